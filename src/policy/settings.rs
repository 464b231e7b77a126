//! What the operator decides for a whole node, and what follows from it and from our Node.
//!
//! Everything here is a pure function of [`Settings`] and [`Node`] (spec of kube-proxy 1.36, section 3). Nothing looks at network
//! interfaces: which of the addresses that [`node_port_ranges`] allows are this host's is asked of the routing tables, packet by
//! packet, so an address that comes or goes counts at once.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::model::{AddressRange, Family, Node};
use crate::schedule::TableSizes;

/// The node-wide decisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The node we act as: an endpoint is local if its `nodeName` is this.
    pub node: Arc<str>,
    /// How to tell connections of this node's pods from all others.
    pub detect_local: DetectLocal,
    /// Hide the source of every connection to a cluster address.
    pub masquerade_all: bool,
    /// On which of the node's addresses node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Whether `spec.externalIPs` is ignored (feature gate `AllowServiceExternalIPs` set to false).
    pub ignore_external_ips: bool,
    /// `--bind-address`: replaces the Node's address of its family, and makes that family the primary one.
    pub bind_address: Option<IpAddr>,
    /// How large the tables of hashing schedulers are (`--sh-table-size`, `--mh-table-size`).
    pub tables: TableSizes,
    /// Every Service goes through the userspace forwarder (`--proxy-mode=userspace`).
    pub userspace: bool,
    /// Node ports are served on 127.0.0.1 and ::1, too, by the forwarder, where [`Self::node_port_addresses`] has these.
    pub localhost_node_ports: bool,
    /// How long the forwarder's attempts to connect may take each where a Service does not say; `None`: its own times.
    pub connect_timeout: Option<Duration>,
    /// When silence ends what the forwarder carries where a Service does not say; `None`: its own times.
    pub idle_timeout: Option<Duration>,
}

/// What makes a connection one of a local pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DetectLocal {
    /// Nothing: there is no telling.
    #[default]
    Unknown,
    /// Its source is in the first of these networks that is of its family (mode ClusterCIDR).
    Networks(Vec<IpNet>),
    /// Its source is in the first of our Node's pod networks of its family (mode NodeCIDR).
    NodeNetworks,
    /// It came in by this interface (mode BridgeInterface).
    Interface(String),
    /// It came in by an interface whose name begins so (mode InterfaceNamePrefix).
    InterfacePrefix(String),
}

/// How a table tells local pods: [`DetectLocal`] with the Node's part filled in, for one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Detector {
    /// It cannot.
    #[default]
    None,
    /// By the source address.
    Network(IpNet),
    /// By the interface they come in by.
    Interface(String),
    /// By the beginning of that interface's name.
    InterfacePrefix(String),
}

/// On which of the node's own addresses node ports are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// On the Node's primary address of each family; on all addresses of a family of which the Node has none.
    #[default]
    Primary,
    /// On all but loopback.
    All,
    /// On those in these networks; on all addresses of a family of which there is no network.
    Networks(Vec<IpNet>),
}

/// The addresses we act for, one of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    /// IPv4; loopback while unknown.
    pub v4: IpAddr,
    /// IPv6; loopback while unknown.
    pub v6: IpAddr,
    /// The family of the first one.
    pub primary: Family,
}

// === impl NodeAddresses ===

impl NodeAddresses {
    /// What settings and Node say: the Node's first address of each family, unless `--bind-address` replaces it.
    pub fn new(settings: &Settings, node: Option<&Node>) -> Self {
        let known = node.map(|node| node.addresses.as_slice()).unwrap_or_default();
        let mut addresses =
            Self { v4: [127, 0, 0, 1].into(), v6: [0u16, 0, 0, 0, 0, 0, 0, 1].into(), primary: Family::V4 };
        for family in Family::ALL {
            if let Some(address) = known.iter().find(|address| Family::of(**address) == family) {
                *addresses.slot(family) = *address;
            }
        }
        if let Some(first) = known.first() {
            addresses.primary = Family::of(*first);
        }
        if let Some(bind) = settings.bind_address.filter(|address| !address.is_unspecified()) {
            *addresses.slot(Family::of(bind)) = bind;
            addresses.primary = Family::of(bind);
        }
        addresses
    }

    /// The address of a family, unless it is unknown.
    pub fn known(&self, family: Family) -> Option<IpAddr> {
        let address = match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        };
        (!address.is_loopback()).then_some(address)
    }

    fn slot(&mut self, family: Family) -> &mut IpAddr {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

// === what follows ===

/// The destination addresses that node ports are looked up for, if they are the host's own. Never loopback.
pub fn node_port_ranges(settings: &Settings, node: Option<&Node>, family: Family) -> Vec<AddressRange> {
    let chosen: Vec<AddressRange> = match &settings.node_port_addresses {
        NodePortAddresses::All => Vec::new(),
        NodePortAddresses::Primary => {
            NodeAddresses::new(settings, node).known(family).map(AddressRange::single).into_iter().collect()
        }
        NodePortAddresses::Networks(networks) => networks.iter().copied().map(AddressRange::from).collect(),
    };
    let mut ranges = AddressRange::merged(family, chosen);
    if ranges.is_empty() {
        ranges.push(AddressRange::everything(family));
    }
    AddressRange::without(&ranges, AddressRange::loopback(family))
}

/// The same where node ports are not served on all addresses, and `None` where they are.
pub fn restricted_node_ports(settings: &Settings, node: Option<&Node>, family: Family) -> Option<Vec<AddressRange>> {
    let ranges = node_port_ranges(settings, node, family);
    let all = AddressRange::without(&[AddressRange::everything(family)], AddressRange::loopback(family));
    (ranges != all).then_some(ranges)
}

/// The address on which the host's own processes find node ports though no packet can be sent elsewhere from there, if it is served.
pub fn localhost_node_port(settings: &Settings, family: Family) -> Option<IpAddr> {
    let address: IpAddr = match family {
        Family::V4 => [127, 0, 0, 1].into(),
        Family::V6 => [0u16, 0, 0, 0, 0, 0, 0, 1].into(),
    };
    let served = match &settings.node_port_addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => false,
        NodePortAddresses::Networks(networks) => {
            let mut networks = networks.iter().filter(|network| Family::of(network.addr()) == family).peekable();
            networks.peek().is_none() || networks.any(|network| network.contains(&address))
        }
    };
    (settings.localhost_node_ports && served).then_some(address)
}

/// How a table tells local pods.
pub fn detector(settings: &Settings, node: Option<&Node>, family: Family) -> Detector {
    let first = |networks: &[IpNet]| {
        let network = networks.iter().find(|network| Family::of(network.addr()) == family);
        network.map_or(Detector::None, |network| Detector::Network(network.trunc()))
    };
    match &settings.detect_local {
        DetectLocal::Unknown => Detector::None,
        DetectLocal::Networks(networks) => first(networks),
        DetectLocal::NodeNetworks => first(node.map(|node| node.pod_networks.as_slice()).unwrap_or_default()),
        DetectLocal::Interface(name) => Detector::Interface(name.clone()),
        DetectLocal::InterfacePrefix(prefix) => Detector::InterfacePrefix(prefix.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parse_network;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| parse_network(text).expect("a network")).collect()
    }

    fn node(addresses: &[&str], pods: &[&str]) -> Node {
        let addresses = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        Node { addresses, pod_networks: networks(pods), ..Node::default() }
    }

    /// Spec section 3; upstream: TestGetNodeIPs, Test_detectNodeIPs, TestNodePorts (which addresses), TestContainsIPv4Loopback.
    #[test]
    fn node_ports_are_served_where_the_operator_says() {
        const ALL4: &str = "0.0.0.0-126.255.255.255 128.0.0.0-255.255.255.255";
        const ALL6: &str = ":: ::2-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let primary = NodePortAddresses::Primary;
        let list = |list: &[&str]| NodePortAddresses::Networks(networks(list));
        type Row<'a> = (NodePortAddresses, &'a [&'a str], Option<&'a str>, &'a str, &'a str);
        let table: [Row<'_>; 12] = [
            (primary.clone(), &["10.0.0.1", "fd00::1", "192.0.2.1"], None, "10.0.0.1", "fd00::1"),
            (primary.clone(), &["fd00::1", "10.0.0.1"], None, "10.0.0.1", "fd00::1"),
            (primary.clone(), &["10.0.0.1"], None, "10.0.0.1", ALL6),
            (primary.clone(), &[], None, ALL4, ALL6),
            (primary.clone(), &["10.0.0.1", "fd00::1"], Some("10.0.0.9"), "10.0.0.9", "fd00::1"),
            (primary.clone(), &["10.0.0.1"], Some("fd00::9"), "10.0.0.1", "fd00::9"),
            (primary.clone(), &["10.0.0.1"], Some("0.0.0.0"), "10.0.0.1", ALL6),
            (primary, &["10.0.0.1"], Some("127.0.0.1"), ALL4, ALL6),
            (NodePortAddresses::All, &["10.0.0.1"], None, ALL4, ALL6),
            (list(&["10.0.0.0/8", "10.1.0.0/16"]), &["10.0.0.1"], None, "10.0.0.0-10.255.255.255", ALL6),
            (list(&["0.0.0.0/0", "::/0"]), &[], None, ALL4, ALL6),
            (list(&["127.0.0.0/8", "192.168.0.0/24"]), &[], None, "192.168.0.0-192.168.0.255", ALL6),
        ];
        for (mode, addresses, bind, v4, v6) in table {
            let bind_address = bind.map(|text| text.parse().expect("an address"));
            let settings = Settings { node_port_addresses: mode, bind_address, ..Settings::default() };
            let node = node(addresses, &[]);
            for (family, want) in Family::ALL.into_iter().zip([v4, v6]) {
                let ranges = node_port_ranges(&settings, Some(&node), family);
                let text: Vec<_> = ranges.iter().map(ToString::to_string).collect();
                assert_eq!(text.join(" "), want, "{settings:?} {addresses:?}");
            }
        }
    }

    #[test]
    fn the_bind_address_decides_the_primary_family() {
        let primary = |bind: Option<&str>, addresses: &[&str]| {
            let bind_address = bind.map(|text| text.parse().expect("an address"));
            NodeAddresses::new(&Settings { bind_address, ..Settings::default() }, Some(&node(addresses, &[]))).primary
        };
        assert_eq!(primary(None, &[]), Family::V4);
        assert_eq!(primary(None, &["fd00::1", "10.0.0.1"]), Family::V6);
        assert_eq!(primary(Some("10.0.0.9"), &["fd00::1", "10.0.0.1"]), Family::V4);
        assert_eq!(primary(Some("::"), &["10.0.0.1"]), Family::V4);
    }

    /// Spec section 3, table of detectLocalMode; upstream: Test_getLocalDetectors, TestDetectLocal*.
    #[test]
    fn local_pods_are_told_by_the_first_network_of_the_family_or_by_interface() {
        let node = node(&[], &["10.244.1.0/24", "10.99.0.0/24", "fd00:244::/64"]);
        let by = |detect_local| {
            let settings = Settings { detect_local, ..Settings::default() };
            Family::ALL.map(|family| match detector(&settings, Some(&node), family) {
                Detector::None => "none".to_owned(),
                Detector::Network(network) => network.to_string(),
                Detector::Interface(name) => name,
                Detector::InterfacePrefix(prefix) => format!("{prefix}*"),
            })
        };
        assert_eq!(by(DetectLocal::Unknown), ["none", "none"]);
        assert_eq!(by(DetectLocal::Networks(networks(&["10.0.0.0/8", "11.0.0.0/8"]))), ["10.0.0.0/8", "none"]);
        assert_eq!(by(DetectLocal::NodeNetworks), ["10.244.1.0/24", "fd00:244::/64"]);
        assert_eq!(by(DetectLocal::Interface("cni0".into())), ["cni0", "cni0"]);
        assert_eq!(by(DetectLocal::InterfacePrefix("veth".into())), ["veth*", "veth*"]);
        let settings = Settings { detect_local: DetectLocal::NodeNetworks, ..Settings::default() };
        assert_eq!(detector(&settings, None, Family::V4), Detector::None, "no Node yet");
    }
}

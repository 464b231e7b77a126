//! Which endpoints serve a Service port: the selection table of kube-proxy 1.36 (spec section 4.4).
//!
//! Endpoints fall into two classes: those that are *ready*, and those that still serve while they terminate (*leaving*). All others
//! are never used. Two sets may be needed: the *cluster set* (filtered by topology hints; all leaving ones anywhere if nobody is
//! ready) and the *local set* (of this node, hints ignored, leaving ones if nobody here is ready).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Endpoint, Family, ServicePort, Slice};

/// Who asks: the name and the zone of our node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
}

/// The sets a Service port may need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Uses {
    pub(super) cluster: bool,
    pub(super) local: bool,
}

/// What may serve a Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// Sorted, without duplicates, as every list here.
    pub(super) cluster: Vec<SocketAddr>,
    pub(super) local: Vec<SocketAddr>,
    /// Addresses of the local endpoints in either set.
    pub(super) local_addresses: Vec<IpAddr>,
    /// Whether anyone, anywhere, could serve.
    pub(super) any: bool,
}

/// Where hints lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Topology {
    /// Hints are missing, or lead nowhere near.
    #[default]
    Anywhere,
    /// To endpoints whose hints name our zone.
    Zone,
    /// To endpoints whose hints name our node.
    Node,
}

/// Why an endpoint is not in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It takes no connections.
    NotReady,
    /// It terminates and does not even serve any more.
    Stopped,
    /// It terminates, still serves, and others are ready.
    Leaving,
    /// Hints keep it for other zones.
    OtherZone,
    /// Hints keep it for other nodes.
    OtherNode,
    /// It is not on this node, and the set is the local one.
    NotHere,
}

/// Whom a set is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Nobody,
    Ready,
    Leaving,
}

/// How many endpoints there are of each kind. All that endpoints of a port have to do with each other is in these numbers: they say
/// how the sets are made up ([`Modes`]), and with that given each endpoint is in or out by itself ([`Sets`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    ready: usize,
    ready_here: usize,
    /// Ready ones with hints for zones, and those of them that name ours.
    zoned: usize,
    in_zone: usize,
    /// Ready ones with hints for nodes, and those of them that name ours.
    noded: usize,
    on_node: usize,
    leaving: usize,
    leaving_here: usize,
}

/// How the sets are made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    topology: Topology,
    cluster: Class,
    local: Class,
    /// Whether anyone, anywhere, could serve.
    any: bool,
}

/// The two sets, by the rules in force for one port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sets<'a> {
    place: Place<'a>,
    uses: Uses,
    pub(super) topology: Topology,
    /// Whether nobody in the set is ready, so that those who leave go on serving.
    cluster_leaves: bool,
    local_leaves: bool,
}

/// Selects for one Service port.
pub(super) fn select<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    place: Place<'_>,
    uses: Uses,
) -> Selection {
    let known = gather(port, slices);
    let modes = Tally::of(&known, place).modes(uses);
    let sets = Sets::new(modes, place, uses);
    let chosen = |local: bool| {
        let chosen = known.iter().filter(|(_, endpoint)| sets.holds(local, endpoint));
        chosen.map(|(address, _)| *address).collect()
    };
    let here = known.iter().filter(|(_, endpoint)| sets.reaches_here(endpoint));
    let mut local_addresses: Vec<_> = here.map(|(address, _)| address.ip()).collect();
    local_addresses.dedup();
    Selection { cluster: chosen(false), local: chosen(true), local_addresses, any: modes.any }
}

// === impl Tally ===

impl Tally {
    /// Of these.
    fn of(known: &BTreeMap<SocketAddr, &Endpoint>, place: Place<'_>) -> Self {
        let mut tally = Self::default();
        known.values().for_each(|endpoint| tally.add(endpoint, place));
        tally
    }

    /// Counts an endpoint in.
    pub(super) fn add(&mut self, endpoint: &Endpoint, place: Place<'_>) {
        self.count(endpoint, place, |number, one| *number += one);
    }

    /// Counts an endpoint out that was counted in.
    pub(super) fn remove(&mut self, endpoint: &Endpoint, place: Place<'_>) {
        self.count(endpoint, place, |number, one| *number -= one);
    }

    fn count(&mut self, endpoint: &Endpoint, place: Place<'_>, count: fn(&mut usize, usize)) {
        let here = is_local(endpoint, place.node);
        if endpoint.ready {
            let (zones, nodes) = (endpoint.zones(), endpoint.nodes());
            count(&mut self.ready, 1);
            count(&mut self.ready_here, here.into());
            count(&mut self.zoned, (!zones.is_empty()).into());
            count(&mut self.in_zone, place.zone.is_some_and(|zone| names(zones, zone)).into());
            count(&mut self.noded, (!nodes.is_empty()).into());
            count(&mut self.on_node, names(nodes, place.node).into());
        } else if leaves(endpoint) {
            count(&mut self.leaving, 1);
            count(&mut self.leaving_here, here.into());
        }
    }

    /// How many would be in the cluster set, or in the local one, if no hint led elsewhere.
    pub(super) fn usable(&self, local: bool) -> usize {
        let (ready, leaving) = if local { (self.ready_here, self.leaving_here) } else { (self.ready, self.leaving) };
        if ready > 0 { ready } else { leaving }
    }

    /// How many on this node may be in a set.
    pub(super) fn here(&self) -> usize {
        self.ready_here + self.leaving_here
    }

    /// What follows for the sets. Of one that is of no use there is nobody.
    pub(super) fn modes(&self, uses: Uses) -> Modes {
        let class = |used, ready, leaving| match (used, ready, leaving) {
            (false, ..) | (true, 0, 0) => Class::Nobody,
            (true, 0, _) => Class::Leaving,
            (true, ..) => Class::Ready,
        };
        let cluster = class(uses.cluster, self.ready, self.leaving);
        let local = class(uses.local, self.ready_here, self.leaving_here);
        let any = cluster != Class::Nobody || (uses.local && self.ready + self.leaving > 0);
        Modes { topology: if uses.cluster { self.topology() } else { Topology::Anywhere }, cluster, local, any }
    }

    /// Hints count only if every ready endpoint has them and one of them names us; those for nodes before those for zones. So
    /// somebody ready is always near, if anybody is ready.
    fn topology(&self) -> Topology {
        if self.noded == self.ready && self.on_node > 0 {
            Topology::Node
        } else if self.zoned == self.ready && self.in_zone > 0 {
            Topology::Zone
        } else {
            Topology::Anywhere
        }
    }
}

// === impl Sets ===

impl<'a> Sets<'a> {
    /// Looks at all endpoints of a port. Sets that are of no use are not looked at.
    pub(super) fn of(known: &BTreeMap<SocketAddr, &Endpoint>, place: Place<'a>, uses: Uses) -> Self {
        Self::new(Tally::of(known, place).modes(uses), place, uses)
    }

    /// By what is known of how they are made up.
    pub(super) fn new(modes: Modes, place: Place<'a>, uses: Uses) -> Self {
        let [cluster_leaves, local_leaves] = [modes.cluster, modes.local].map(|class| class == Class::Leaving);
        Self { place, uses, topology: modes.topology, cluster_leaves, local_leaves }
    }

    /// Whether an endpoint is in the cluster set, or in the local one. Nobody is in a set that is of no use.
    pub(super) fn holds(&self, local: bool, endpoint: &Endpoint) -> bool {
        let used = if local { self.uses.local } else { self.uses.cluster };
        used && self.unfit(local, endpoint).is_none()
    }

    /// Whether an endpoint is on this node and in either set.
    pub(super) fn reaches_here(&self, endpoint: &Endpoint) -> bool {
        is_local(endpoint, self.place.node) && (self.holds(false, endpoint) || self.holds(true, endpoint))
    }

    /// Why an endpoint is not in the cluster set, or in the local one; `None`: it is.
    pub(super) fn unfit(&self, local: bool, endpoint: &Endpoint) -> Option<Unfit> {
        if local { self.local(endpoint) } else { self.cluster(endpoint) }
    }

    fn cluster(&self, endpoint: &Endpoint) -> Option<Unfit> {
        if !endpoint.ready {
            return unready(endpoint, self.cluster_leaves);
        }
        match self.topology {
            Topology::Anywhere => None,
            Topology::Zone => {
                let near = self.place.zone.is_some_and(|zone| names(endpoint.zones(), zone));
                (!near).then_some(Unfit::OtherZone)
            }
            Topology::Node => (!names(endpoint.nodes(), self.place.node)).then_some(Unfit::OtherNode),
        }
    }

    fn local(&self, endpoint: &Endpoint) -> Option<Unfit> {
        if !is_local(endpoint, self.place.node) {
            return Some(Unfit::NotHere);
        }
        if endpoint.ready { None } else { unready(endpoint, self.local_leaves) }
    }
}

/// Why an endpoint that is not ready is not used; `None`: it is, because nobody else is there.
fn unready(endpoint: &Endpoint, leaving_serve: bool) -> Option<Unfit> {
    if leaves(endpoint) {
        return (!leaving_serve).then_some(Unfit::Leaving);
    }
    Some(if endpoint.terminating { Unfit::Stopped } else { Unfit::NotReady })
}

fn leaves(endpoint: &Endpoint) -> bool {
    !endpoint.ready && endpoint.serving && endpoint.terminating
}

/// How many distinct addresses of this node are ready behind any port of a Service.
pub(super) fn local_ready<'a>(
    ports: &[ServicePort],
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &str,
    family: Family,
) -> usize {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for port in ports {
        let known = gather(port, slices.clone().filter(|slice| slice.family == family));
        let here = known.iter().filter(|(_, endpoint)| endpoint.ready && is_local(endpoint, node));
        addresses.extend(here.map(|(address, _)| address.ip()));
    }
    addresses.sort();
    addresses.dedup();
    addresses.len()
}

/// The endpoints of a port by address. The same address and port in several entries or slices is one endpoint; of two, the one
/// that does not terminate is believed.
pub(super) fn gather<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut known: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports =
            slice.ports.iter().filter(|candidate| candidate.name == port.name && candidate.protocol == port.protocol);
        for target in ports {
            for endpoint in &slice.endpoints {
                let slot = known.entry(SocketAddr::new(endpoint.address, target.port)).or_insert(endpoint);
                if !endpoint.terminating {
                    *slot = endpoint;
                }
            }
        }
    }
    known
}

fn names(hints: &[std::sync::Arc<str>], wanted: &str) -> bool {
    hints.iter().any(|hint| **hint == *wanted)
}

pub(super) fn is_local(endpoint: &Endpoint, node: &str) -> bool {
    endpoint.node() == Some(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Hints, Protocol, ServiceKey, SlicePort};

    const BOTH: Uses = Uses { cluster: true, local: true };
    const CLUSTER: Uses = Uses { cluster: true, local: false };
    const LOCAL: Uses = Uses { cluster: false, local: true };

    /// `1` ready, `1l` leaving (serving, terminating), `1n` not ready, `1d` terminating and not serving; then `@node`, `zone=a,b` and
    /// `node=a,b` hints, separated by blanks.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split(' ');
        let name = words.next().expect("a number");
        let (number, kind) = name.split_at(name.trim_end_matches(char::is_alphabetic).len());
        let (ready, serving, terminating) = match kind {
            "" => (true, true, false),
            "l" => (false, true, true),
            "n" => (false, true, false),
            "d" => (false, false, true),
            other => panic!("{other}"),
        };
        let address = [10, 0, 0, number.parse().expect("a number")];
        let mut endpoint = Endpoint { ready, serving, terminating, ..Endpoint::ready_at(address) };
        let mut hints = Hints::default();
        for word in words {
            let list = |text: &str| text.split(',').map(Into::into).collect();
            match (word.strip_prefix('@'), word.strip_prefix("zone="), word.strip_prefix("node=")) {
                (Some(node), _, _) => endpoint = endpoint.at(Some(node), None),
                (_, Some(zones), _) => hints.zones = list(zones),
                (_, _, Some(nodes)) => hints.nodes = list(nodes),
                _ => panic!("{word}"),
            }
        }
        endpoint.hints = (hints != Hints::default()).then(|| hints.into());
        endpoint
    }

    fn slice(endpoints: &[&str]) -> Slice {
        Slice {
            service: ServiceKey::new("ns", "s"),
            family: Family::V4,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
            endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
        }
    }

    fn port() -> ServicePort {
        ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }
    }

    /// `cluster / local / local addresses / any`, by last octet, as node `me` in zone `a`.
    fn selected(uses: Uses, endpoints: &[&str]) -> String {
        let slice = slice(endpoints);
        let selection = select(&port(), [slice].iter(), Place { node: "me", zone: Some("a") }, uses);
        let last = |address: IpAddr| address.to_string().rsplit('.').next().expect("octets").to_owned();
        let list =
            |addresses: &[SocketAddr]| addresses.iter().map(|address| last(address.ip())).collect::<Vec<_>>().join(" ");
        let local: Vec<_> = selection.local_addresses.iter().map(|address| last(*address)).collect();
        let any = if selection.any { "any" } else { "none" };
        format!("{} / {} / {} / {any}", list(&selection.cluster), list(&selection.local), local.join(" "))
    }

    /// Upstream: TestCategorizeEndpoints, row by row; the words before each group are spec 4.4's.
    #[test]
    fn the_selection_table() {
        let table: &[(&str, Uses, &[&str], &str)] = &[
            // topology mode
            ("zone hints that name us", CLUSTER, &["1 zone=a", "2 zone=b"], "1 /  /  / any"),
            ("several zones in one hint", CLUSTER, &["1 zone=a,b", "2 zone=b,c", "3 zone=c"], "1 /  /  / any"),
            ("one without hints spoils them", CLUSTER, &["1 zone=a", "2"], "1 2 /  /  / any"),
            ("nobody hints at our zone", CLUSTER, &["1 zone=b", "2 zone=c"], "1 2 /  /  / any"),
            ("hints of those not ready do not count", CLUSTER, &["1n", "2 zone=a", "3 zone=b"], "2 /  /  / any"),
            ("our zone only among those not ready", CLUSTER, &["1n zone=a", "2 zone=b"], "2 /  /  / any"),
            ("node hints go before zone hints", CLUSTER, &["1 zone=a node=me", "2 zone=a node=other"], "1 /  /  / any"),
            ("node hints for others: zone hints", CLUSTER, &["1 zone=a node=x", "2 zone=b node=y"], "1 /  /  / any"),
            ("incomplete node hints: zone hints", CLUSTER, &["1 zone=a node=me", "2 zone=b"], "1 /  /  / any"),
            ("neither: anywhere", CLUSTER, &["1 zone=b node=x", "2 zone=b node=y"], "1 2 /  /  / any"),
            // cluster set
            ("only the ready", CLUSTER, &["1", "2n", "3l", "4d"], "1 /  /  / any"),
            (
                "nobody ready: those leaving, whatever the hints",
                CLUSTER,
                &["1l zone=b", "2l zone=a", "3n", "4d"],
                "1 2 /  /  / any",
            ),
            ("serving but not ready nor terminating is never used", CLUSTER, &["1n"], " /  /  / none"),
            ("terminating without serving is never used", CLUSTER, &["1d"], " /  /  / none"),
            ("no endpoints at all", BOTH, &[], " /  /  / none"),
            // local set
            ("of this node only", LOCAL, &["1 @me", "2 @other", "3"], " / 1 / 1 / any"),
            ("hints do not count", LOCAL, &["1 @me zone=b", "2 @other zone=a"], " / 1 / 1 / any"),
            ("nobody ready here: those leaving here", LOCAL, &["1l @me", "2 @other"], " / 1 / 1 / any"),
            ("ready ones here go before those leaving", LOCAL, &["1l @me", "2 @me"], " / 2 / 2 / any"),
            ("nobody here, but elsewhere", LOCAL, &["1 @other"], " /  /  / any"),
            ("nobody here, leaving elsewhere", LOCAL, &["1l @other"], " /  /  / any"),
            ("nobody usable anywhere", LOCAL, &["1n @me", "2d @other"], " /  /  / none"),
            // both, and what is reachable
            ("both sets", BOTH, &["1 @me", "2 @other"], "1 2 / 1 / 1 / any"),
            (
                "hints lead away from here, yet local ones serve",
                BOTH,
                &["1 @me zone=b", "2 @other zone=a"],
                "2 / 1 / 1 / any",
            ),
            ("fallbacks are independent", BOTH, &["1l @me", "2 @other"], "2 / 1 / 1 / any"),
            ("both fall back", BOTH, &["1l @me", "2l @other"], "1 2 / 1 / 1 / any"),
            // hairpin
            ("local endpoints of the cluster set alone", CLUSTER, &["1 @me", "2 @other"], "1 2 /  / 1 / any"),
        ];
        for (what, uses, endpoints, want) in table {
            assert_eq!(selected(*uses, endpoints), *want, "{what}: {endpoints:?}");
        }
    }

    #[test]
    fn without_a_zone_of_our_own_zone_hints_do_not_count() {
        let slice = slice(&["1 zone=a", "2 zone=b"]);
        let selection = select(&port(), [slice].iter(), Place { node: "me", zone: None }, CLUSTER);
        assert_eq!(selection.cluster.len(), 2);
    }

    /// Upstream: TestEndpointInfoByServicePort, TestEndpointsMapFromESC (overlaps).
    #[test]
    fn of_two_entries_for_one_address_the_one_that_does_not_terminate_is_believed() {
        for endpoints in [&["1d @me", "1 @me"], &["1 @me", "1d @me"]] {
            assert_eq!(selected(BOTH, endpoints), "1 / 1 / 1 / any");
        }
    }

    /// Upstream: TestGetLocalEndpointIPs, TestHealthCheckNodePortWhenTerminating.
    #[test]
    fn only_ready_local_addresses_are_counted_and_each_once() {
        let count = |endpoints: &[&str]| {
            let two = ServicePort { name: "other".into(), ..port() };
            let mut slice = slice(endpoints);
            slice.ports.push(SlicePort { name: "other".into(), protocol: Protocol::Tcp, port: 81 });
            local_ready(&[port(), two], [slice].iter(), "me", Family::V4)
        };
        assert_eq!(count(&["1 @me", "2 @me", "3 @other", "4"]), 2);
        assert_eq!(count(&["1n @me", "2l @me", "3d @me"]), 0);
        assert_eq!(count(&[]), 0);
    }
}

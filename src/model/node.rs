//! Our own Node.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::parse_address;
use super::network::parse_network;
use super::problem::{Problem, Report};
use crate::source::object::labels;
use crate::source::{Kind, ObjectKey, object};

/// Label that says in which zone a node is.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Taint by which the cluster autoscaler announces that the node will go.
pub const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What is known of the node we run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// InternalIP addresses, then ExternalIP addresses, in the order of the object; the first is the primary one.
    pub addresses: Vec<IpAddr>,
    /// The zone it is in.
    pub zone: Option<Arc<str>>,
    /// Networks of its pods, in the order of the object.
    pub pod_networks: Vec<IpNet>,
    /// Whether load balancers may send it new connections: it is neither being deleted nor about to be.
    pub eligible: bool,
}

// === impl Node ===

impl Node {
    /// Parses a Node; addresses and networks that are none are skipped and reported.
    pub fn parse(key: &ObjectKey, node: &object::Node) -> (Self, Vec<Problem>) {
        let mut report = Report::new(Kind::Node, key.clone());
        let mut addresses = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (index, entry) in node.status.addresses.iter().enumerate().filter(|(_, entry)| entry.type_ == wanted) {
                match parse_address(&entry.address) {
                    Some(address) => addresses.push(address),
                    None => report.add(
                        format!("status.addresses[{index}].address"),
                        &entry.address,
                        "not an IP address; skipped",
                    ),
                }
            }
        }
        let mut pod_networks = Vec::new();
        for (index, text) in node.spec.pod_cidrs.iter().enumerate() {
            match parse_network(text) {
                Some(network) => pod_networks.push(network),
                None => report.add(format!("spec.podCIDRs[{index}]"), text, "not a CIDR; skipped"),
            }
        }
        let going = node.metadata.deletion_timestamp.is_some()
            || node.spec.taints.iter().any(|taint| taint.key == AUTOSCALER_TAINT);
        let zone = labels(&node.metadata).get(ZONE_LABEL).map(|zone| zone.as_str().into());
        (Self { addresses, zone, pod_networks, eligible: !going }, report.problems)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_says_where_it_is_and_whether_it_stays() {
        let parse = |value| {
            let key = ObjectKey { namespace: String::new(), name: "n1".into() };
            let (node, problems) = Node::parse(&key, &serde_json::from_value(value).expect("decodes"));
            (node, problems.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (node, problems) = parse(json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "east"}},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:244::/64", "pods"], "taints": [{"key": "other", "effect": "NoSchedule"}]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "10.0.0.01"},
                {"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "n1"}, {"type": "InternalIP", "address": "fd00::1"},
            ]},
        }));
        assert_eq!(
            node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1", "fd00::1", "192.0.2.1"]
        );
        assert_eq!((node.zone.as_deref(), node.pod_networks.len(), node.eligible), (Some("east"), 2, true));
        insta::assert_snapshot!(problems.join("\n"), @r#"
        Node n1: status.addresses[3].address: "n1": not an IP address; skipped
        Node n1: spec.podCIDRs[2]: "pods": not a CIDR; skipped
        "#);
        for going in [
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            json!({"metadata": {}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoExecute"}]}}),
        ] {
            assert!(!parse(going.clone()).0.eligible, "{going}");
        }
    }
}

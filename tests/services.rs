//! Services seen from outside, packet by packet: a node, its clients and its pods in namespaces, our tables in the node.
//! `tests/conformance/README.md` says which row of kube-proxy's behaviour each test covers. Needs root, and fails without it.

#[path = "services/affinity.rs"]
mod affinity;
#[path = "services/bed.rs"]
mod bed;
#[path = "services/guard.rs"]
mod guard;
#[path = "services/masquerade.rs"]
mod masquerade;
#[path = "services/node_ports.rs"]
mod node_ports;
#[path = "services/policies.rs"]
mod policies;
#[path = "services/source_ranges.rs"]
mod source_ranges;

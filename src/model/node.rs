//! Our own Node.

use std::net::IpAddr;

use super::address::parse_address;
use super::problem::{Problem, Report};
use crate::source::{Kind, ObjectKey, object};

/// What is known of the node we run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// InternalIP addresses, then ExternalIP addresses, in the order of the object; the first is the primary one.
    pub addresses: Vec<IpAddr>,
}

// === impl Node ===

impl Node {
    /// Parses a Node; addresses that are none are skipped and reported.
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
        (Self { addresses }, report.problems)
    }
}

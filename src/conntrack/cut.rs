//! Which connections end because their endpoint has left for good.
//!
//! A Service that says how long its connections may outlive the departure of their endpoint gets them *cut* after that time: their
//! entries are removed from the connection tracking table, of every protocol. What that does to TCP is in
//! [`crate::kernel::conntrack`]. Without the annotation, or an order by hand, nothing here is ever made, and no TCP entry is ever touched.
//!
//! What the userspace forwarder carries ends at a listener, for connection tracking: whose endpoint that is, and how it is ended, a [`Carrier`] knows.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::flow::{Destination, Flow};
use crate::model::{AddressRange, Family, Protocol};

/// The connections of one protocol from clients of some destinations to some endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Their protocol.
    pub protocol: Protocol,
    /// Their family.
    pub family: Family,
    /// Where their clients connected to: all frontends of one Service port.
    pub destinations: BTreeSet<Destination>,
    /// Where they go: endpoints that have left.
    pub endpoints: BTreeSet<SocketAddr>,
    /// The addresses on which node ports are served.
    pub node_port_ranges: Arc<[AddressRange]>,
}

/// Who carries connections to endpoints that connection tracking does not know.
pub trait Carrier: Send {
    /// Ends the connection behind this entry, which leads through the Service, if it is carried to one of the endpoints; whether it was.
    fn end(&self, cut: &Cut, flow: &Flow) -> bool;

    /// Ends those that no entry leads to; how many that were.
    fn end_untracked(&self, cut: &Cut) -> usize;
}

/// Nobody.
impl Carrier for () {
    fn end(&self, _: &Cut, _: &Flow) -> bool {
        false
    }

    fn end_untracked(&self, _: &Cut) -> usize {
        0
    }
}

// === impl Cut ===

impl Cut {
    /// Whether a connection is one of these: to the endpoint, through this Service and no other.
    pub fn concerns(&self, flow: &Flow) -> bool {
        self.endpoints.contains(&flow.reply.source) && self.leads_through(flow)
    }

    /// Whether a connection goes through this Service, to whomever.
    pub fn leads_through(&self, flow: &Flow) -> bool {
        let to = flow.original.destination;
        let node_port = || {
            flow.reply.source != to
                && self.node_port_ranges.iter().any(|range| range.contains(to.ip()))
                && self.destinations.contains(&Destination::NodePort(self.family, to.port()))
        };
        flow.protocol == self.protocol && (self.destinations.contains(&Destination::Address(to)) || node_port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Tuple;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_connections_through_this_service_to_who_left() {
        let cut = Cut {
            protocol: Protocol::Tcp,
            family: Family::V4,
            destinations: [Destination::Address(at("10.96.0.1:80")), Destination::NodePort(Family::V4, 30080)].into(),
            endpoints: [at("10.1.0.1:8080")].into(),
            node_port_ranges: [AddressRange::single(at("192.168.50.1:0").ip())].into(),
        };
        let table = [
            ("10.96.0.1:80", "10.1.0.1:8080", true),
            ("192.168.50.1:30080", "10.1.0.1:8080", true),
            ("10.96.0.1:80", "10.1.0.2:8080", false),
            ("10.96.0.1:80", "10.1.0.1:80", false),
            ("10.96.0.1:81", "10.1.0.1:8080", false),
            ("10.96.0.2:80", "10.1.0.1:8080", false),
            ("10.1.0.1:8080", "10.1.0.1:8080", false),
            ("192.168.50.2:30080", "10.1.0.1:8080", false),
            ("192.168.50.1:80", "10.1.0.1:8080", false),
        ];
        for (to, answered_by, want) in table {
            let flow = |protocol| Flow {
                protocol,
                original: Tuple { source: at("10.9.0.1:4000"), destination: at(to), zone: None },
                reply: Tuple { source: at(answered_by), destination: at("10.9.0.1:4000"), zone: None },
                zone: None,
                id: None,
                state: None,
            };
            assert_eq!(cut.concerns(&flow(Protocol::Tcp)), want, "{to} {answered_by}");
            assert!(!cut.concerns(&flow(Protocol::Udp)), "another protocol");
        }
    }
}

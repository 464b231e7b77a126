//! Remembers what was expected of flows last and answers each update with what differs.
//!
//! Slots alone do not tell: an endpoint that terminates leaves the slots when it stops taking new connections, and the serving set
//! only when it has stopped answering. The book therefore follows the decisions of [`crate::policy`], not the
//! [`crate::compile::Delta`]; an update without UDP ports before and after returns at once.

use std::net::SocketAddr;
use std::sync::Arc;

use super::flow::{Destination, Expected, View};
use crate::compile::Image;
use crate::model::map::HashMap;
use crate::model::{AddressRange, Family, Protocol, ServiceKey};
use crate::policy::ResolvedPort;

/// What is expected of UDP flows, per Service. Owned by the task that owns the model.
#[derive(Debug, Default)]
pub struct FlowBook {
    services: HashMap<ServiceKey, Vec<Entry>>,
    node_port_ranges: Arc<[AddressRange]>,
    changed: View,
}

/// The flows of one destination may go to these.
type Entry = (Destination, Arc<[SocketAddr]>);

// === impl FlowBook ===

impl FlowBook {
    /// Takes note of the frontends that a predecessor served: those that no Service claims by the first update are gone. To be
    /// called before the first update.
    pub fn adopt(&mut self, found: &Image) {
        let frontends = Family::ALL.iter().flat_map(|family| found.table(*family).services.keys());
        for frontend in frontends.filter(|frontend| frontend.protocol == Protocol::Udp) {
            let address = SocketAddr::new(frontend.address, frontend.port);
            self.changed.expect_untranslated(Destination::Address(address));
        }
        for family in Family::ALL {
            let node_ports = found.table(family).node_ports.keys();
            for node_port in node_ports.filter(|node_port| node_port.protocol == Protocol::Udp) {
                self.changed.expect_untranslated(Destination::NodePort(family, node_port.port));
            }
        }
    }

    /// Takes the new decisions for all ports of a Service; none: the Service is gone.
    pub fn update(&mut self, service: &ServiceKey, resolved: &[ResolvedPort]) {
        let udp = resolved.iter().filter(|port| port.key.protocol == Protocol::Udp);
        let now: Vec<Entry> = udp.flat_map(entries).collect();
        let before = if now.is_empty() {
            self.services.remove(service)
        } else {
            self.services.insert(service.clone(), now.clone())
        };
        let before = before.unwrap_or_default();
        for (destination, serving) in &now {
            let expected = || Expected::Endpoints(serving.clone());
            match before.iter().find(|(known, _)| known == destination) {
                Some((_, known)) if known == serving => {}
                // From none to some is not the same: there, flows may have been let through untranslated.
                Some((_, known)) if !known.is_empty() && contains(serving, known) => {
                    self.changed.widen(*destination, expected());
                }
                _ => self.changed.expect(*destination, expected()),
            }
        }
        for (destination, _) in before {
            if !now.iter().any(|(still, _)| *still == destination) {
                self.changed.expect_untranslated(destination);
            }
        }
    }

    /// The addresses on which node ports are served. A new address needs no look at the table: nothing was served there.
    pub fn set_node_port_ranges(&mut self, ranges: Vec<AddressRange>) {
        self.node_port_ranges = ranges.into();
    }

    /// The addresses on which node ports are served, as told last.
    pub fn node_port_ranges(&self) -> &Arc<[AddressRange]> {
        &self.node_port_ranges
    }

    /// What changed since the last call.
    pub fn take_changed(&mut self) -> View {
        let mut changed = std::mem::take(&mut self.changed);
        changed.set_node_port_ranges(self.node_port_ranges.clone());
        changed
    }
}

/// Whether all of these are among those; both are sorted.
fn contains(those: &[SocketAddr], these: &[SocketAddr]) -> bool {
    these.iter().all(|one| those.binary_search(one).is_ok())
}

fn entries(port: &ResolvedPort) -> impl Iterator<Item = Entry> {
    let serving: Arc<[SocketAddr]> = port.serving.as_slice().into();
    let all = Destination::all(&port.frontends, port.family, port.node_port);
    all.map(move |destination| (destination, serving.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PortKey;
    use crate::policy::{Frontend, Path, Role, Verdict};
    use crate::schedule::Scheduler;

    fn port(protocol: Protocol, addresses: &[u8], serving: &[u8]) -> ResolvedPort {
        let service = ServiceKey::new("ns", "any");
        let frontends = addresses
            .iter()
            .map(|last| (Frontend { address: [10, 96, 0, *last].into(), protocol, port: 53 }, Role::Cluster))
            .collect();
        let serving = serving.iter().map(|last| SocketAddr::from(([10, 1, 0, *last], 5353))).collect();
        let key = PortKey { service, name: "".into(), protocol };
        // Ready endpoints are another matter: none here.
        ResolvedPort {
            key,
            family: Family::V4,
            frontends,
            node_port: None,
            internal: Verdict::Cluster,
            outside: Verdict::Cluster,
            inside: Verdict::Cluster,
            keeps_source: false,
            source_ranges: None,
            cluster: Vec::new(),
            local: Vec::new(),
            serving,
            local_addresses: Vec::new(),
            scheduler: Scheduler::Random,
            affinity: None,
            path: Path::Kernel,
        }
    }

    /// `1:2,3` for a frontend 10.96.0.1 served by .2 and .3, `1-` for one that is gone: those to be looked at.
    fn changes(book: &mut FlowBook) -> Vec<String> {
        let view = book.take_changed();
        let last = |address: &SocketAddr| address.ip().to_string().rsplit('.').next().unwrap_or_default().to_owned();
        let mut all: Vec<_> = view
            .suspects()
            .map(|destination| {
                let Destination::Address(address) = destination else { panic!("no node ports here") };
                match view.expected(&destination).expect("listed") {
                    Expected::Untranslated => format!("{}-", last(&address)),
                    Expected::Endpoints(to) => {
                        format!("{}:{}", last(&address), to.iter().map(last).collect::<Vec<_>>().join(","))
                    }
                }
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn only_what_changed_is_looked_at() {
        let (a, b) = (ServiceKey::new("ns", "a"), ServiceKey::new("ns", "b"));
        let udp = |addresses: &[u8], serving: &[u8]| vec![port(Protocol::Udp, addresses, serving)];
        let none: [&str; 0] = [];
        let mut book = FlowBook::default();
        book.update(&a, &udp(&[1], &[1, 2]));
        assert_eq!(changes(&mut book), ["1:1,2"], "a new Service: flows that were there before it");
        book.update(&a, &udp(&[1], &[1, 2]));
        assert_eq!(changes(&mut book), none, "nothing changed");
        book.update(&a, &udp(&[1], &[1, 2, 3]));
        assert_eq!(book.changed.len(), 1, "who looks has to know");
        assert_eq!(changes(&mut book), none, "an endpoint more makes no flow stale");
        book.update(&a, &udp(&[1], &[1, 2]));
        assert_eq!(changes(&mut book), ["1:1,2"], "an endpoint less does");
        book.update(&a, &udp(&[1], &[2]));
        assert_eq!(changes(&mut book), ["1:2"], "an endpoint stopped serving");
        book.update(&a, &udp(&[1, 2], &[2]));
        assert_eq!(changes(&mut book), ["2:2"], "a second frontend");
        book.update(&a, &udp(&[1, 2], &[]));
        assert_eq!(changes(&mut book), ["1:", "2:"], "scaled to zero");
        book.update(&a, &udp(&[2], &[]));
        assert_eq!(changes(&mut book), ["1-"], "a frontend less");
        book.update(&a, &udp(&[2], &[7]));
        assert_eq!(changes(&mut book), ["2:7"], "scaled up from zero");
        book.update(&a, &[]);
        assert_eq!(changes(&mut book), ["2-"], "deleted");
        book.update(&b, &[port(Protocol::Tcp, &[1], &[1]), port(Protocol::Sctp, &[1], &[1])]);
        book.update(&b, &[]);
        assert_eq!(changes(&mut book), none, "TCP and SCTP are never looked at");
        assert!(book.services.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_frontend_that_changes_hands_is_served_whoever_speaks_first() {
        let (a, b) = (ServiceKey::new("ns", "a"), ServiceKey::new("ns", "b"));
        for order in [[&a, &b], [&b, &a]] {
            let mut book = FlowBook::default();
            book.update(&a, &[port(Protocol::Udp, &[1], &[1])]);
            book.take_changed();
            for service in order {
                if *service == a {
                    book.update(&a, &[]);
                } else {
                    book.update(&b, &[port(Protocol::Udp, &[1], &[9])]);
                }
            }
            assert_eq!(changes(&mut book), ["1:9"]);
        }
    }

    #[test]
    fn what_a_predecessor_served_and_nobody_serves_now_is_gone() {
        use crate::compile::Target;
        use crate::compile::layout::Decision;
        let mut found = Image::default();
        for (last, protocol) in [(1, Protocol::Udp), (2, Protocol::Udp), (3, Protocol::Tcp)] {
            let frontend = Frontend { address: [10, 96, 0, last].into(), protocol, port: 53 };
            found.v4.services.insert(frontend, Target { decision: Decision::REFUSE, label: "ns/a".into() });
        }
        let mut book = FlowBook::default();
        book.adopt(&found);
        book.update(&ServiceKey::new("ns", "a"), &[port(Protocol::Udp, &[1], &[1])]);
        assert_eq!(changes(&mut book), ["1:1", "2-"]);
    }
}

//! Flows, and what is expected of them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{AddressRange, Family, Protocol};
use crate::policy::{Frontend, NodePort, Role};

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// Zone of this direction alone; `None` almost always.
    pub zone: Option<u16>,
}

/// One entry of the connection tracking table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Transport protocol.
    pub protocol: Protocol,
    /// As the client sends.
    pub original: Tuple,
    /// As the answer comes, before it is translated back.
    pub reply: Tuple,
    /// Zone of both directions; `None` is the default one.
    pub zone: Option<u16>,
    /// The kernel's number of the entry: another flow with the same tuples has another.
    pub id: Option<u32>,
    /// TCP and SCTP: where in its life it is, if the kernel says so, as `enum tcp_conntrack` and `enum sctp_conntrack` number it
    /// (linux/netfilter/nf_conntrack_tcp.h, nf_conntrack_sctp.h).
    pub state: Option<u8>,
}

/// Where clients send to, as far as a Service decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// A cluster, external or load balancer address and a port.
    Address(SocketAddr),
    /// A port on every address of the node; see [`View::set_node_port_ranges`].
    NodePort(Family, u16),
}

impl Destination {
    /// Everywhere that clients of a Service port send to, in one family.
    pub fn all(
        frontends: &[(Frontend, Role)],
        family: Family,
        node_port: Option<NodePort>,
    ) -> impl Iterator<Item = Self> + Clone {
        let addresses = frontends.iter().map(|(frontend, _)| SocketAddr::new(frontend.address, frontend.port));
        let node_port = node_port.map(|node_port| Self::NodePort(family, node_port.port));
        addresses.map(Self::Address).chain(node_port)
    }
}

/// What is expected of the flows to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// They go to one of these, sorted; none when the Service has no serving endpoint.
    Endpoints(Arc<[SocketAddr]>),
    /// They are not translated: nobody serves the destination any more.
    Untranslated,
}

/// What a view says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing: another protocol, or a destination that the view does not know.
    Unknown,
    /// It goes where it may go.
    Fine,
    /// It contradicts the data plane.
    Stale,
}

/// What is expected of the UDP flows to some destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    expected: HashMap<Destination, Expected>,
    /// The destinations whose flows have to be looked at.
    suspect: HashSet<Destination>,
    /// The addresses on which node ports are served.
    node_port_ranges: Arc<[AddressRange]>,
    /// The addresses of this host's interfaces.
    local_addresses: Arc<BTreeSet<IpAddr>>,
}

/// A direction and a zone are a connection; the kernel's number tells it from the next one with the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) protocol: Protocol,
    pub(crate) original: Tuple,
    pub(crate) zone: Option<u16>,
    pub(crate) id: Option<u32>,
}

// === impl Flow ===

impl Flow {
    /// Where in its life it is, in words; `active` where the protocol has no states.
    pub fn state_name(&self) -> &'static str {
        Self::name_of(self.protocol, self.state)
    }

    /// The name of a state.
    pub(crate) fn name_of(protocol: Protocol, state: Option<u8>) -> &'static str {
        // `enum tcp_conntrack`, `enum sctp_conntrack` (linux/netfilter/nf_conntrack_tcp.h, nf_conntrack_sctp.h).
        const TCP: [&str; 10] = [
            "none",
            "SYN sent",
            "SYN received",
            "established",
            "FIN wait",
            "close wait",
            "last ACK",
            "time wait",
            "closed",
            "SYN sent",
        ];
        const SCTP: [&str; 9] = [
            "none",
            "closed",
            "cookie wait",
            "cookie echoed",
            "established",
            "shutdown sent",
            "shutdown received",
            "shutdown ACK sent",
            "heartbeat sent",
        ];
        let names: &[&str] = match protocol {
            Protocol::Tcp => &TCP,
            Protocol::Sctp => &SCTP,
            Protocol::Udp => &[],
        };
        state.and_then(|state| names.get(usize::from(state)).copied()).unwrap_or("active")
    }

    /// What tells it from every other entry.
    pub(crate) fn identity(&self) -> Identity {
        Identity { protocol: self.protocol, original: self.original, zone: self.zone, id: self.id }
    }

    /// Whether both sides have said that they have nothing more to say: what comes now only waits to be forgotten.
    pub fn is_over(&self) -> bool {
        match (self.protocol, self.state) {
            // TIME_WAIT and CLOSE; SHUTDOWN_ACK_SENT and CLOSED.
            (Protocol::Tcp, Some(state)) => matches!(state, 7 | 8),
            (Protocol::Sctp, Some(state)) => matches!(state, 1 | 7),
            _ => false,
        }
    }

    /// Whether its destination was translated.
    pub fn is_translated(&self) -> bool {
        self.original.destination != self.reply.source
    }

    /// Whether it counts as active, as IPVS means it; one whose state is not told has just begun.
    pub fn is_active(&self) -> bool {
        match (self.protocol, self.state) {
            // FIN_WAIT to CLOSE (linux/netfilter/nf_conntrack_tcp.h); SYN_SENT2, which comes behind them, is a beginning.
            (Protocol::Tcp, Some(state)) => !(4..=8).contains(&state),
            // CLOSED, SHUTDOWN_SENT to SHUTDOWN_ACK_SENT (linux/netfilter/nf_conntrack_sctp.h).
            (Protocol::Sctp, Some(state)) => state != 1 && !(5..=7).contains(&state),
            (Protocol::Udp, Some(_)) | (_, None) => true,
        }
    }
}

// === impl Destination ===

impl Destination {
    /// Its family.
    pub fn family(&self) -> Family {
        match self {
            Destination::Address(address) => Family::of(address.ip()),
            Destination::NodePort(family, _) => *family,
        }
    }
}

// === impl View ===

impl View {
    /// Whether it says nothing at all.
    pub fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    /// How many destinations it knows.
    pub fn len(&self) -> usize {
        self.expected.len()
    }

    /// The destinations whose flows have to be looked at, in no particular order.
    pub fn suspects(&self) -> impl Iterator<Item = Destination> + '_ {
        self.suspect.iter().copied()
    }

    /// What is expected of flows to a destination, if it is known.
    pub fn expected(&self, destination: &Destination) -> Option<&Expected> {
        self.expected.get(destination)
    }

    /// Says what is expected of flows to a destination, and that there may be some that do not meet it.
    pub fn expect(&mut self, destination: Destination, expected: Expected) {
        self.expected.insert(destination, expected);
        self.suspect.insert(destination);
    }

    /// Says what is expected of flows to a destination where all that were fine before still are: nothing has to be looked at,
    /// but nobody who looks may hold an older opinion.
    pub fn widen(&mut self, destination: Destination, expected: Expected) {
        self.expected.insert(destination, expected);
    }

    /// Says that nobody serves a destination any more, unless this view has just said who does: when a destination changes
    /// hands, the old owner may speak after the new one.
    pub fn expect_untranslated(&mut self, destination: Destination) {
        self.expected.entry(destination).or_insert(Expected::Untranslated);
        self.suspect.insert(destination);
    }

    /// The addresses on which node ports are served, if they are this host's; flows to other addresses have nothing to do with node
    /// ports.
    pub fn set_node_port_ranges(&mut self, ranges: Arc<[AddressRange]>) {
        self.node_port_ranges = ranges;
    }

    /// The addresses of this host's interfaces. A flow that was translated tells by itself that it went to a node port; of one that was
    /// not, this tells whether it came to this host or only passes through.
    pub fn set_local_addresses(&mut self, addresses: Arc<BTreeSet<IpAddr>>) {
        self.local_addresses = addresses;
    }

    /// Takes in what a newer view says; where both say something, the newer one counts.
    pub fn merge(&mut self, newer: View) {
        if self.expected.is_empty() {
            *self = newer;
        } else {
            self.expected.extend(newer.expected);
            self.suspect.extend(newer.suspect);
            self.node_port_ranges = newer.node_port_ranges;
            self.local_addresses = newer.local_addresses;
        }
    }

    /// What this view says about a flow.
    pub fn judge(&self, flow: &Flow) -> Judgement {
        if flow.protocol != Protocol::Udp {
            return Judgement::Unknown;
        }
        let to = flow.original.destination;
        let node_port = || {
            let served = self.node_port_ranges.iter().any(|range| range.contains(to.ip()));
            let ours = flow.reply.source != to || self.local_addresses.contains(&to.ip());
            (served && ours).then(|| self.expected.get(&Destination::NodePort(Family::of(to.ip()), to.port())))?
        };
        let fine = match self.expected.get(&Destination::Address(to)).or_else(node_port) {
            None => return Judgement::Unknown,
            Some(Expected::Endpoints(endpoints)) => endpoints.binary_search(&flow.reply.source).is_ok(),
            Some(Expected::Untranslated) => flow.reply.source == to,
        };
        if fine { Judgement::Fine } else { Judgement::Stale }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn flow(protocol: Protocol, to: &str, answered_by: &str) -> Flow {
        let client = if to.starts_with('[') { at("[fd00::c]:4000") } else { at("10.9.0.1:4000") };
        Flow {
            protocol,
            original: Tuple { source: client, destination: at(to), zone: None },
            // Masqueraded: the answer goes to the node. That must not matter.
            reply: Tuple {
                source: at(answered_by),
                destination: if client.is_ipv4() { at("192.168.50.1:5000") } else { client },
                zone: None,
            },
            zone: None,
            id: Some(7),
            state: None,
        }
    }

    fn endpoints(all: &[&str]) -> Expected {
        Expected::Endpoints(all.iter().map(|text| at(text)).collect())
    }

    /// The frontends of upstream's TestCleanStaleEntries, ours added.
    fn view() -> View {
        let mut view = View::default();
        view.expect(Destination::Address(at("10.96.0.1:53")), endpoints(&["10.1.0.1:5353", "10.1.0.2:5353"]));
        view.expect(Destination::Address(at("[fd00::1]:53")), endpoints(&["[fd00:1::1]:5353"]));
        view.expect(Destination::Address(at("10.96.0.2:53")), endpoints(&[]));
        view.expect(Destination::Address(at("10.96.0.3:53")), Expected::Untranslated);
        view.expect(Destination::NodePort(Family::V4, 30053), endpoints(&["10.1.0.1:5353"]));
        view.expect(Destination::NodePort(Family::V4, 30054), Expected::Untranslated);
        let ranges = [AddressRange::everything(Family::V4)];
        view.set_node_port_ranges(AddressRange::without(&ranges, AddressRange::loopback(Family::V4)).into());
        view.set_local_addresses(Arc::new(BTreeSet::from([at("192.168.50.1:0").ip(), at("10.7.7.7:0").ip()])));
        view
    }

    #[test]
    fn clean_stale_entries() {
        use Judgement::{Fine, Stale, Unknown};
        let table = [
            ("a serving endpoint answers", "10.96.0.1:53", "10.1.0.2:5353", Fine),
            ("an endpoint that is gone", "10.96.0.1:53", "10.1.0.3:5353", Stale),
            ("the right address, another port", "10.96.0.1:53", "10.1.0.1:53", Stale),
            ("never translated", "10.96.0.1:53", "10.96.0.1:53", Stale),
            ("another port of the frontend's address", "10.96.0.1:54", "10.1.0.3:5353", Unknown),
            ("another address", "10.96.0.9:53", "10.1.0.3:5353", Unknown),
            ("IPv6: serving", "[fd00::1]:53", "[fd00:1::1]:5353", Fine),
            ("IPv6: gone", "[fd00::1]:53", "[fd00:1::2]:5353", Stale),
            ("scaled to zero", "10.96.0.2:53", "10.1.0.1:5353", Stale),
            ("scaled to zero, never translated: a new flow would be refused", "10.96.0.2:53", "10.96.0.2:53", Stale),
            ("Service gone", "10.96.0.3:53", "10.1.0.1:5353", Stale),
            ("Service gone, never translated", "10.96.0.3:53", "10.96.0.3:53", Fine),
            ("node port: serving", "192.168.50.1:30053", "10.1.0.1:5353", Fine),
            ("node port: gone", "192.168.50.1:30053", "10.1.0.2:5353", Stale),
            ("node port: never translated", "192.168.50.1:30053", "192.168.50.1:30053", Stale),
            ("node port of a Service that is gone", "192.168.50.1:30054", "10.1.0.1:5353", Stale),
            ("node port on an address that only an interface has: gone", "10.7.7.7:30053", "10.1.0.2:5353", Stale),
            ("node port on an address that no interface has any more: gone", "10.8.8.8:30053", "10.1.0.2:5353", Stale),
            ("node port there: never translated", "10.7.7.7:30053", "10.7.7.7:30053", Stale),
            ("node port there: serving", "10.7.7.7:30053", "10.1.0.1:5353", Fine),
            ("never on loopback", "127.0.0.1:30053", "10.1.0.2:5353", Unknown),
            ("the node port's number on somebody else's address", "8.8.8.8:30053", "8.8.8.8:30053", Unknown),
        ];
        let view = view();
        for (case, to, answered_by, want) in table {
            assert_eq!(view.judge(&flow(Protocol::Udp, to, answered_by)), want, "{case}");
            for protocol in [Protocol::Tcp, Protocol::Sctp] {
                assert_eq!(view.judge(&flow(protocol, to, answered_by)), Unknown, "{protocol}: {case}");
            }
        }
    }

    #[test]
    fn the_newer_view_counts_and_a_new_owner_beats_the_old_ones_farewell() {
        let destination = Destination::Address(at("10.96.0.1:53"));
        let mut view = view();
        let mut newer = View::default();
        newer.expect(destination, endpoints(&["10.1.0.7:5353"]));
        newer.expect_untranslated(destination);
        view.merge(newer);
        assert_eq!(view.expected(&destination), Some(&endpoints(&["10.1.0.7:5353"])));
        let mut newest = View::default();
        newest.expect_untranslated(destination);
        view.merge(newest);
        assert_eq!(view.expected(&destination), Some(&Expected::Untranslated));
        view.widen(destination, endpoints(&["10.1.0.1:5353"]));
        assert_eq!(view.suspects().count(), 6, "once suspect, suspect until looked at");
        assert_eq!(view.len(), 6);
    }
}

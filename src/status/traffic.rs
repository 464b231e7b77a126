//! Live connections, by what they were made to and who answers.
//!
//! A [`Sums`] is one walk through the kernel's connection tracking, summed up as it comes: nothing is kept per connection. Only
//! connections count whose destination was translated, which all are that a Service carried; whose they were made to is told by the original
//! destination, who answers by the reply.
//!
//! *Active* is what IPVS calls so ([`Flow::is_active`]); *inactive* is whatever else the kernel still remembers. Packets and bytes are
//! those of connections that are still remembered, and only where `net.netfilter.nf_conntrack_acct` was 1 when they began.
//!
//! A [`RateList`] is what came between two walks ([`crate::conntrack::rates`]).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::{PortView, ServiceView};
use crate::conntrack::Flow;
use crate::model::Protocol;

/// What a walk through connection tracking found.
#[derive(Clone, Debug, Default)]
pub struct Sums {
    /// By who answers in the end, as far as that is known.
    sums: Pairs,
    /// What the forwarder carries and is counted there already, by its listener.
    through: Pairs,
    /// Entries looked at.
    pub read: usize,
    /// Whether the table changed so fast that some may have been missed.
    pub partial: bool,
}

/// Connections by what they were made to and who answers.
#[derive(Clone, Debug, Default)]
struct Pairs {
    pairs: HashMap<(Protocol, SocketAddr, SocketAddr), Counters>,
    /// The same by port alone: of node ports the address does not matter.
    ports: HashMap<(Protocol, u16, SocketAddr), Counters>,
}

/// Connections, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Connections that are open.
    pub active: u64,
    /// Connections that are over, or about to be, and still remembered.
    pub inactive: u64,
    /// What they carried; left out where the kernel does not account.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// What connections carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients, headers included.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionList {
    /// [`super::VERSION`].
    pub version: String,
    /// Whether `net.netfilter.nf_conntrack_acct` is on: if not, new connections have no packets and bytes.
    pub accounting: bool,
    /// Entries of the table that were looked at.
    pub read: usize,
    /// Whether the table changed so fast that some may have been missed.
    pub partial: bool,
    /// By protocol, destination, endpoint.
    pub connections: Vec<ConnectionRow>,
}

/// Connections from one frontend to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What clients connected to.
    pub destination: SocketAddr,
    /// Who answers: an endpoint; the forwarder's listener for connections that it does not have any more.
    pub endpoint: SocketAddr,
    /// How many.
    #[serde(flatten)]
    pub counters: Counters,
}

/// What came within some time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateList {
    /// [`super::VERSION`].
    pub version: String,
    /// Whether `net.netfilter.nf_conntrack_acct` is on: if not, new connections have no packets and bytes.
    pub accounting: bool,
    /// Between the beginnings of the first and the second walk.
    pub seconds: f64,
    /// Entries of the table that were looked at.
    pub read: usize,
    /// Whether the table changed so fast that some may have been missed, or be taken for new ones; or the forwarder had more that ended than it remembers.
    pub partial: bool,
    /// By protocol, destination, endpoint; those of which nothing came are left out.
    pub rates: Vec<RateRow>,
}

/// What came from one frontend to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateRow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// What clients connected to.
    pub destination: SocketAddr,
    /// Who answers, as in a [`ConnectionRow`].
    pub endpoint: SocketAddr,
    /// How much.
    #[serde(flatten)]
    pub came: Opened,
}

/// What came, in numbers; not per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Connections that were opened.
    pub opened: u64,
    /// What all connections carried meanwhile; left out where the kernel does not account.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

// === impl Sums ===

impl Sums {
    /// One more entry of the table. `behind`: who answers, where that is a listener of the forwarder and the forwarder knows.
    pub fn add(&mut self, flow: &Flow, behind: Option<SocketAddr>, traffic: Option<Traffic>) {
        let (to, by) = (flow.original.destination, flow.reply.source);
        if to == by {
            return;
        }
        let active = flow.is_active();
        let one = Counters { active: active.into(), inactive: (!active).into(), traffic };
        self.sums.add(flow.protocol, to, behind.unwrap_or(by), one);
        if behind.is_some() {
            self.through.add(flow.protocol, to, by, one);
        }
    }

    /// A connection to a listener of the forwarder itself, which connection tracking does not know as translated.
    pub fn add_direct(&mut self, protocol: Protocol, frontend: SocketAddr, endpoint: SocketAddr) {
        self.sums.add(protocol, frontend, endpoint, Counters { active: 1, ..Counters::default() });
    }

    /// Takes what another walk found; about other connections.
    pub fn join(&mut self, other: Self) {
        self.sums.join(other.sums);
        self.through.join(other.through);
    }

    /// Connections from one frontend to one endpoint.
    pub fn pair(&self, protocol: Protocol, destination: SocketAddr, endpoint: SocketAddr) -> Counters {
        self.sums.pair(protocol, destination, endpoint)
    }

    /// Connections by a port of whatever address to one endpoint.
    pub fn by_port(&self, protocol: Protocol, port: u16, endpoint: SocketAddr) -> Counters {
        self.sums.by_port(protocol, port, endpoint)
    }

    /// Whether there are no connections.
    pub fn is_empty(&self) -> bool {
        self.sums.pairs.is_empty()
    }

    /// What connections were made to, each once.
    pub fn destinations(&self) -> Vec<(Protocol, SocketAddr)> {
        let found: HashSet<_> = self.sums.pairs.keys().map(|(protocol, to, _)| (*protocol, *to)).collect();
        found.into_iter().collect()
    }

    /// Fills in the connections of all endpoints and listeners of a Service.
    pub fn fill(&self, service: &mut ServiceView) {
        for port in &mut service.ports {
            let mut endpoints = std::mem::take(&mut port.endpoints);
            for endpoint in &mut endpoints {
                endpoint.connections = self.sums.of(port, endpoint.socket());
            }
            port.endpoints = endpoints;
            let sums = [&self.sums, &self.through];
            let to_listeners =
                port.path.listeners.iter().flat_map(|listener| sums.map(|sums| sums.of(port, *listener)));
            port.path.connections = to_listeners.flatten().reduce(|mut sum, more| {
                sum += more;
                sum
            });
        }
    }

    /// All of it, sorted.
    pub fn rows(&self) -> Vec<ConnectionRow> {
        let mut keys: Vec<_> = self.sums.pairs.iter().collect();
        keys.sort_by_key(|(key, _)| **key);
        let row = |((protocol, destination, endpoint), counters): (&(Protocol, SocketAddr, SocketAddr), &Counters)| {
            ConnectionRow {
                protocol: protocol.to_string(),
                destination: *destination,
                endpoint: *endpoint,
                counters: *counters,
            }
        };
        keys.into_iter().map(row).collect()
    }
}

// === impl Pairs ===

impl Pairs {
    fn add(&mut self, protocol: Protocol, to: SocketAddr, by: SocketAddr, counters: Counters) {
        *self.pairs.entry((protocol, to, by)).or_default() += counters;
        *self.ports.entry((protocol, to.port(), by)).or_default() += counters;
    }

    fn join(&mut self, other: Self) {
        other.pairs.into_iter().for_each(|(key, counters)| *self.pairs.entry(key).or_default() += counters);
        other.ports.into_iter().for_each(|(key, counters)| *self.ports.entry(key).or_default() += counters);
    }

    fn pair(&self, protocol: Protocol, destination: SocketAddr, endpoint: SocketAddr) -> Counters {
        self.pairs.get(&(protocol, destination, endpoint)).copied().unwrap_or_default()
    }

    fn by_port(&self, protocol: Protocol, port: u16, endpoint: SocketAddr) -> Counters {
        self.ports.get(&(protocol, port, endpoint)).copied().unwrap_or_default()
    }

    /// Connections by all frontends of a port to one endpoint.
    fn of(&self, port: &PortView, endpoint: SocketAddr) -> Option<Counters> {
        let protocol = port.transport()?;
        let mut sum = Counters::default();
        for frontend in port.frontends.iter().filter(|frontend| frontend.held_by.is_none()) {
            sum += match frontend.address {
                Some(address) => self.pair(protocol, SocketAddr::new(address, frontend.port), endpoint),
                // Should a frontend of the Service have the same number, it is counted there.
                None if frontend.port == port.port => Counters::default(),
                None => self.by_port(protocol, frontend.port, endpoint),
            };
        }
        Some(sum)
    }
}

// === impl Counters ===

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.active += other.active;
        self.inactive += other.inactive;
        add(&mut self.traffic, other.traffic);
    }
}

// === impl Opened ===

impl AddAssign for Opened {
    fn add_assign(&mut self, other: Self) {
        self.opened += other.opened;
        add(&mut self.traffic, other.traffic);
    }
}

// === impl Traffic ===

impl Traffic {
    /// What was carried beyond that; nothing, where it is less.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            packets_in: self.packets_in.saturating_sub(earlier.packets_in),
            packets_out: self.packets_out.saturating_sub(earlier.packets_out),
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
        }
    }
}

fn add(sum: &mut Option<Traffic>, other: Option<Traffic>) {
    if let Some(other) = other {
        let sum = sum.get_or_insert_default();
        sum.packets_in += other.packets_in;
        sum.packets_out += other.packets_out;
        sum.bytes_in += other.bytes_in;
        sum.bytes_out += other.bytes_out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Tuple;

    fn flow(to: &str, by: &str, state: u8) -> Flow {
        let at = |text: &str| text.parse().expect("an address");
        let (client, to, by) = (at("10.9.0.1:4000"), at(to), at(by));
        Flow {
            protocol: Protocol::Tcp,
            original: Tuple { source: client, destination: to, zone: None },
            reply: Tuple { source: by, destination: client, zone: None },
            zone: None,
            id: None,
            state: Some(state),
        }
    }

    #[test]
    fn connections_are_summed_by_frontend_and_endpoint() {
        let mut census = Sums::default();
        let traffic = Some(Traffic { packets_in: 5, packets_out: 4, bytes_in: 300, bytes_out: 900 });
        const ESTABLISHED: u8 = 3;
        const TIME_WAIT: u8 = 7;
        census.add(&flow("10.96.0.1:80", "10.1.0.1:8080", ESTABLISHED), None, traffic);
        census.add(&flow("10.96.0.1:80", "10.1.0.1:8080", ESTABLISHED), None, traffic);
        census.add(&flow("10.96.0.1:80", "10.1.0.1:8080", TIME_WAIT), None, None);
        census.add(&flow("10.96.0.1:80", "10.1.0.2:8080", ESTABLISHED), None, None);
        // Two addresses of the node, and somebody else's connection.
        census.add(&flow("192.168.0.1:30080", "10.1.0.1:8080", ESTABLISHED), None, None);
        census.add(&flow("10.0.0.1:30080", "10.1.0.1:8080", TIME_WAIT), None, None);
        census.add(&flow("8.8.8.8:443", "8.8.8.8:443", ESTABLISHED), None, None);
        let at = |text: &str| text.parse().expect("an address");
        let first = census.pair(Protocol::Tcp, at("10.96.0.1:80"), at("10.1.0.1:8080"));
        let traffic = Some(Traffic { packets_in: 10, packets_out: 8, bytes_in: 600, bytes_out: 1800 });
        assert_eq!(first, Counters { active: 2, inactive: 1, traffic });
        let by_port = census.by_port(Protocol::Tcp, 30080, at("10.1.0.1:8080"));
        assert_eq!(by_port, Counters { active: 1, inactive: 1, traffic: None });
        assert_eq!(census.rows().len(), 4);
        // Through the forwarder: counted where it ends, and once.
        let (listener, behind) = (at("192.168.0.1:40000"), at("10.1.0.3:8080"));
        census.add(&flow("10.96.0.1:80", "192.168.0.1:40000", ESTABLISHED), Some(behind), None);
        census.add(&flow("10.96.0.1:80", "192.168.0.1:40000", TIME_WAIT), None, None);
        let count = |by| {
            let counters = census.pair(Protocol::Tcp, at("10.96.0.1:80"), by);
            (counters.active, counters.inactive)
        };
        assert_eq!((count(behind), count(listener)), ((1, 0), (0, 1)));
        let through = census.through.pair(Protocol::Tcp, at("10.96.0.1:80"), listener);
        assert_eq!((through.active, through.inactive), (1, 0));
        assert_eq!(census.pair(Protocol::Udp, at("10.96.0.1:80"), at("10.1.0.1:8080")), Counters::default());
    }

    #[test]
    fn what_is_not_accounted_is_left_out() {
        let text = |counters: &Counters| serde_json::to_string(counters).expect("JSON");
        assert_eq!(text(&Counters { active: 1, inactive: 2, traffic: None }), r#"{"active":1,"inactive":2}"#);
        let traffic = Some(Traffic { packets_in: 1, packets_out: 2, bytes_in: 3, bytes_out: 4 });
        let counters = Counters { active: 0, inactive: 0, traffic };
        let all = r#"{"active":0,"inactive":0,"packetsIn":1,"packetsOut":2,"bytesIn":3,"bytesOut":4}"#;
        assert_eq!(text(&counters), all);
        assert_eq!(serde_json::from_str::<Counters>(all).expect("JSON"), counters);
        assert_eq!(serde_json::from_str::<Counters>(r#"{"active":1,"inactive":2}"#).expect("JSON").traffic, None);
    }
}

//! Connections one by one, for people who look: those to a Service, some hundred at most.

use std::collections::HashSet;
use std::net::SocketAddr;

use serde::Serialize;

use super::{ConntrackError, ConntrackTable};
use crate::conntrack::Destination;
use crate::conntrack::census::Sighting;
use crate::model::{Family, Protocol};

/// Connections that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowList {
    /// The open ones first, then by client.
    pub flows: Vec<FlowRow>,
    /// How many more there are.
    pub more: usize,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlowRow {
    /// Whether it is over.
    #[serde(skip)]
    pub over: bool,
    /// Who connected.
    pub client: SocketAddr,
    /// To what.
    pub frontend: SocketAddr,
    /// Who answers: an endpoint, or the forwarder's listener.
    pub endpoint: SocketAddr,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// As the kernel names it (`nf_conntrack_proto_tcp.c`), `active` where the protocol has none.
    pub state: &'static str,
    /// Seconds until the kernel forgets it, if nothing happens.
    pub left: u32,
}

/// What connection tracking has of connections to these destinations, in the calling thread's network namespace. One walk through the table: not for a
/// thread that others wait for.
///
/// # Errors
/// Whatever the kernel answers.
pub fn list_flows(destinations: &[(Protocol, Destination)], most: usize) -> Result<FlowList, ConntrackError> {
    let wanted: HashSet<_> = destinations.iter().copied().collect();
    // An entry may come twice, and what is not shown is only counted.
    let (mut rows, mut seen) = (Vec::new(), HashSet::new());
    ConntrackTable::open()?.walk(|Sighting { flow, left, .. }| {
        let (to, endpoint) = (flow.original.destination, flow.reply.source);
        let by_port = Destination::NodePort(Family::of(to.ip()), to.port());
        let is_wanted = [Destination::Address(to), by_port].iter().any(|to| wanted.contains(&(flow.protocol, *to)));
        if to == endpoint || !is_wanted || !seen.insert((flow.protocol, flow.original, flow.zone)) {
            return;
        }
        rows.push(FlowRow {
            over: !flow.is_active(),
            client: flow.original.source,
            frontend: to,
            endpoint,
            protocol: flow.protocol.to_string(),
            state: state(flow.protocol, flow.state),
            left: *left,
        });
    })?;
    rows.sort();
    let more = rows.len().saturating_sub(most);
    rows.truncate(most);
    Ok(FlowList { flows: rows, more })
}

/// `enum tcp_conntrack`, `enum sctp_conntrack` (linux/netfilter/nf_conntrack_tcp.h, nf_conntrack_sctp.h).
fn state(protocol: Protocol, state: Option<u8>) -> &'static str {
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

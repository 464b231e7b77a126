//! The steps of each packet, put together.
//!
//! The kernel tells of steps one by one, of several packets at once. A packet begins where our own rule marks it; it has ended when nothing
//! has been heard of it for a while. Its headers, told once per base chain, say where it was going at that point: what comes out of the difference between the first and the
//! last is what became of it.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use nft::{Hook, Trace, TraceAt, TraceVerdict};
use serde::Serialize;

use super::words::{self, Known};
use crate::kernel::trap::PREFIX;
use crate::model::Protocol;

/// Packets put together at a time; one too many takes the oldest's place.
const MOST: usize = 1024;

/// Packets that are under way.
#[derive(Debug)]
pub(super) struct Paths {
    /// The table that marks packets.
    own: String,
    packets: VecDeque<Packet>,
}

/// A packet, and what it has met so far.
#[derive(Debug)]
pub(super) struct Packet {
    number: u32,
    heard: Instant,
    first: Header,
    last: Header,
    hook: Option<Hook>,
    steps: Vec<Met>,
}

/// A step in others' eyes and at which hook.
#[derive(Debug)]
pub(super) struct Met {
    pub(super) hook: Option<Hook>,
    pub(super) trace: Trace,
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// A packet in words.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    pub(super) number: usize,
    pub(super) protocol: String,
    pub(super) client: SocketAddr,
    pub(super) target: SocketAddr,
    pub(super) steps: Vec<StepTold>,
    pub(super) outcome: Outcome,
    /// `namespace/name:port`, as the kernel's tables label it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<String>,
    /// What the endpoint sees as the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) source: Option<SocketAddr>,
    pub(super) summary: String,
}

/// A rule that a packet took.
#[derive(Debug, Serialize)]
pub(super) struct StepTold {
    pub(super) hook: &'static str,
    /// Family and name.
    pub(super) table: String,
    pub(super) chain: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) handle: Option<u64>,
    pub(super) verdict: String,
    pub(super) words: String,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Outcome {
    /// It was sent to an endpoint.
    Endpoint,
    /// It was led to a listener of the userspace forwarder.
    Forwarder,
    /// It was refused: the client is told.
    Refused,
    /// It was dropped in silence.
    Dropped,
    /// Nobody translated it: it went where it was going.
    Untouched,
    /// It was let through, and left by no interface: no route, or one that the kernel does not believe.
    Vanished,
}

// === impl Outcome ===

impl Outcome {
    /// Whether somebody got it.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Outcome::Endpoint | Outcome::Forwarder)
    }
}

// === impl Paths ===

impl Paths {
    /// Nobody's yet. `own`: the table that marks packets.
    pub(super) fn new(own: &str) -> Self {
        Self { own: own.to_owned(), packets: VecDeque::new() }
    }

    /// One more step.
    pub(super) fn take(&mut self, trace: Trace, now: Instant, known: &Known) {
        let header = Header::of(&trace);
        let hook = known.hook(&trace);
        let ours = trace.table == self.own;
        let begins = ours && matches!(trace.at, TraceAt::Rule { .. });
        let place = self.packets.iter().rposition(|packet| packet.number == trace.packet);
        if let (true, Some(first)) = (begins, header)
            && place.is_none_or(|place| self.packets[place].is_another(&first, hook))
        {
            if self.packets.len() == MOST {
                self.packets.pop_front();
            }
            let number = trace.packet;
            return self.packets.push_back(Packet { number, heard: now, first, last: first, hook, steps: Vec::new() });
        }
        // What somebody else traces is not ours to tell.
        let Some(packet) = place.and_then(|place| self.packets.get_mut(place)) else { return };
        packet.heard = now;
        packet.hook = hook.or(packet.hook);
        packet.last = header.unwrap_or(packet.last);
        // Nor is what others' traces do.
        if !trace.table.starts_with(PREFIX) {
            packet.steps.push(Met { hook: packet.hook, trace });
        }
    }

    /// Those of which nothing has been heard for so long, the oldest first.
    pub(super) fn ended(&mut self, now: Instant, quiet: Duration) -> Vec<Packet> {
        let mut ended = Vec::new();
        let mut rest = VecDeque::new();
        for packet in self.packets.drain(..) {
            if now.duration_since(packet.heard) >= quiet { ended.push(packet) } else { rest.push_back(packet) }
        }
        self.packets = rest;
        ended
    }
}

// === impl Packet ===

impl Packet {
    /// Whether a packet with this one's number is another one: numbers are used again. One that the host sends to itself is marked twice.
    fn is_another(&self, header: &Header, hook: Option<Hook>) -> bool {
        let again = self.first.source == header.source || self.last.source == header.source;
        !again || (hook == Some(Hook::Output) && !self.steps.is_empty()) || self.hook == hook && !self.steps.is_empty()
    }

    /// In words. `pod` knows whose an endpoint is, by the label of its Service.
    pub(super) fn told(
        self,
        number: usize,
        known: &Known,
        pod: &mut dyn FnMut(&str, SocketAddr) -> Option<String>,
    ) -> Told {
        let Self { first, last, hook, steps, .. } = self;
        let gone = steps.iter().rev().find(|met| met.drops());
        let translated = last.destination != first.destination;
        let forwarder = steps.iter().any(|met| met.trace.table == crate::kernel::redirects::TABLE && met.accepts());
        let outcome = match gone {
            Some(met) if known.is_ours(&met.trace) && met.trace.chain == REFUSE => Outcome::Refused,
            Some(_) => Outcome::Dropped,
            None if !matches!(hook, Some(Hook::Input | Hook::Postrouting)) => Outcome::Vanished,
            None if forwarder => Outcome::Forwarder,
            None if translated => Outcome::Endpoint,
            None => Outcome::Untouched,
        };
        let service = known.label(&first);
        let endpoint = translated.then_some(last.destination);
        let pod = endpoint.filter(|_| !forwarder).and_then(|at| pod(service.as_deref()?, at));
        let told: Vec<_> = steps.iter().map(|met| known.step(met, &first, endpoint)).collect();
        // What a translation does to the source is seen only if the kernel tells of the packet once more.
        let hidden = last.source == first.source && told.iter().any(|step| step.words.starts_with(words::HIDDEN));
        let source = (outcome.is_good() && !hidden).then_some(last.source);
        let summary = sentence(&first, &last, outcome, hidden, service.as_deref(), pod.as_deref(), told.last());
        Told {
            number,
            protocol: first.protocol.to_string(),
            client: first.source,
            target: first.destination,
            steps: told,
            outcome,
            service,
            endpoint,
            pod,
            source,
            summary,
        }
    }
}

const REFUSE: &str = "refuse";

fn sentence(
    first: &Header,
    last: &Header,
    outcome: Outcome,
    hidden: bool,
    service: Option<&str>,
    pod: Option<&str>,
    end: Option<&StepTold>,
) -> String {
    let to = match service {
        Some(service) => format!("{} ({service})", first.destination),
        None => first.destination.to_string(),
    };
    let by = |end: Option<&StepTold>| {
        end.map(|step| format!(" by {}, chain {}", step.table, step.chain)).unwrap_or_default()
    };
    match outcome {
        Outcome::Endpoint => {
            let pod = pod.map(|pod| format!(" ({pod})")).unwrap_or_default();
            let source = match last.source == first.source {
                _ if hidden => "masqueraded: it sees an address of this node".to_owned(),
                true => "its source kept".to_owned(),
                false => format!("masqueraded as {}", last.source),
            };
            format!("{} to {to} was sent to endpoint {}{pod}, {source}", first.source, last.destination)
        }
        Outcome::Forwarder => {
            format!(
                "{} to {to} was handed to the userspace forwarder at {}, which chooses the endpoint",
                first.source, last.destination
            )
        }
        Outcome::Refused => format!("{} to {to} was refused{}: the client is told at once", first.source, by(end)),
        Outcome::Dropped => format!("{} to {to} was dropped{}: the client waits in vain", first.source, by(end)),
        Outcome::Untouched => {
            format!("{} to {to} went on as it was: no rule of a Service translated it", first.source)
        }
        Outcome::Vanished => format!(
            "{} to {to} was let through by all rules and left by no interface as {}: no route, or a reverse path that the kernel does not believe",
            first.source, last.destination
        ),
    }
}

// === impl Met ===

impl Met {
    fn drops(&self) -> bool {
        match &self.trace.at {
            TraceAt::Rule { verdict, .. } | TraceAt::Policy(verdict) => *verdict == TraceVerdict::Drop,
            TraceAt::Return => false,
        }
    }

    fn accepts(&self) -> bool {
        matches!(&self.trace.at, TraceAt::Rule { verdict: TraceVerdict::Accept, .. })
    }
}

// === impl Header ===

impl Header {
    /// `None` where the kernel told no header, or one of a protocol without ports.
    pub(super) fn of(trace: &Trace) -> Option<Self> {
        let (network, transport) = (trace.network.as_deref()?, trace.transport.as_deref()?);
        let (protocol, source, destination): (u8, IpAddr, IpAddr) = match network.first()? >> 4 {
            // RFC 791: protocol, source and destination address.
            4 => {
                let address =
                    |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(network.get(at..at + 4)?).ok()?).into());
                (*network.get(9)?, address(12)?, address(16)?)
            }
            // RFC 8200; what has extension headers is not told here.
            6 => {
                let address =
                    |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(network.get(at..at + 16)?).ok()?).into());
                (*network.get(6)?, address(8)?, address(24)?)
            }
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?));
        Some(Self {
            protocol: Protocol::from_number(protocol)?,
            source: (source, port(0)?).into(),
            destination: (destination, port(2)?).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(network: Vec<u8>, transport: Vec<u8>) -> Trace {
        Trace {
            packet: 1,
            family: nft::Family::Ip,
            table: "t".into(),
            chain: "c".into(),
            at: TraceAt::Return,
            iif: None,
            oif: None,
            network: Some(network),
            transport: Some(transport),
        }
    }

    #[test]
    fn headers_are_read_and_short_ones_are_none() {
        let mut v4 = vec![0x45; 20];
        v4[9] = 6;
        v4[12..20].copy_from_slice(&[10, 9, 0, 1, 10, 96, 0, 1]);
        let header = Header::of(&trace(v4.clone(), vec![0x0f, 0xa0, 0, 80])).expect("a header");
        assert_eq!(
            (header.source.to_string(), header.destination.to_string()),
            ("10.9.0.1:4000".into(), "10.96.0.1:80".into())
        );
        let mut v6 = vec![0x60; 40];
        v6[6] = 17;
        assert_eq!(Header::of(&trace(v6.clone(), vec![0; 4])).map(|header| header.protocol), Some(Protocol::Udp));
        for short in 0..20 {
            assert_eq!(Header::of(&trace(v4[..short].to_vec(), vec![0; 4])), None);
        }
        assert_eq!(Header::of(&trace(v6[..39].to_vec(), vec![0; 4])), None);
        assert_eq!(Header::of(&trace(v4, vec![0; 3])), None);
    }
}

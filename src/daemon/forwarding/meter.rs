//! What goes through the forwarder, summed up for metrics.
//!
//! Each route counts for itself and takes its counters along when it goes; metrics must not go back. So the meter remembers what
//! each route said last and adds what is new. What a route counts between the last look and its end is lost: that is little,
//! because there is a look before any is closed.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use crate::forward::udp::UdpStatus;
use crate::forward::{EndpointStatus, RouteStatus};
use crate::observe::metrics::{self, Traffic};

/// Endpoints whose failures are told one by one. Only those that failed count, but pods come and go as long as the process lives.
const NAMED: usize = 1024;

/// Sums of one protocol.
#[derive(Debug, Default)]
pub(super) struct Meter {
    total: Traffic,
    last: HashMap<String, Traffic>,
}

// === impl Meter ===

impl Meter {
    /// Takes what all routes say now, by names that stay with them; of one name there may be several.
    pub(super) fn read(&mut self, routes: impl Iterator<Item = (String, Traffic)>) {
        let mut now: HashMap<String, Traffic> = HashMap::new();
        for (name, traffic) in routes {
            add(now.entry(name).or_default(), &traffic);
        }
        let none = Traffic::default();
        for (name, traffic) in &now {
            add(&mut self.total, &since(self.last.get(name).unwrap_or(&none), traffic));
        }
        self.total.connections = now.values().map(|traffic| traffic.connections).sum();
        self.last = now;
    }

    /// Tells the metrics.
    pub(super) fn publish(&self, protocol: &'static str) {
        metrics::userspace_traffic(protocol, &self.total);
    }
}

/// Of a TCP route.
pub(super) fn tcp(status: &RouteStatus) -> Traffic {
    let sum = |of: fn(&EndpointStatus) -> u64| status.endpoints.values().map(of).sum();
    Traffic {
        connections: status.active as u64,
        accepted: status.accepted,
        failures: failures(status.endpoints.iter().map(|(endpoint, status)| (*endpoint, status.failures))),
        up: sum(|endpoint| endpoint.received),
        down: sum(|endpoint| endpoint.sent),
        refused: status.refused.iter().map(|(reason, count)| (reason.label(), *count)).collect(),
    }
}

/// Of a UDP route.
pub(super) fn udp(status: &UdpStatus) -> Traffic {
    Traffic {
        connections: status.flows,
        accepted: status.opened,
        failures: failures(status.failures.iter().copied()),
        up: status.request_bytes,
        down: status.reply_bytes,
        refused: Vec::new(),
    }
}

fn failures(counts: impl Iterator<Item = (SocketAddr, u64)>) -> BTreeMap<Option<SocketAddr>, u64> {
    counts.filter(|(_, count)| *count > 0).map(|(endpoint, count)| (Some(endpoint), count)).collect()
}

fn add(total: &mut Traffic, more: &Traffic) {
    total.connections += more.connections;
    total.accepted += more.accepted;
    for (endpoint, count) in &more.failures {
        let has_room = total.failures.len() < NAMED || total.failures.contains_key(endpoint);
        *total.failures.entry(endpoint.filter(|_| has_room)).or_default() += count;
    }
    total.up += more.up;
    total.down += more.down;
    for (reason, count) in &more.refused {
        match total.refused.iter_mut().find(|(known, _)| known == reason) {
            Some((_, known)) => *known += count,
            None => total.refused.push((reason, *count)),
        }
    }
}

/// What is new; nothing where it went back.
fn since(before: &Traffic, now: &Traffic) -> Traffic {
    let failures = |endpoint: &Option<SocketAddr>| before.failures.get(endpoint).copied().unwrap_or_default();
    let refused = |reason: &str| before.refused.iter().find(|(known, _)| *known == reason).map_or(0, |known| known.1);
    Traffic {
        connections: 0,
        accepted: now.accepted.saturating_sub(before.accepted),
        failures: now
            .failures
            .iter()
            .map(|(endpoint, count)| (*endpoint, count.saturating_sub(failures(endpoint))))
            .filter(|(_, count)| *count > 0)
            .collect(),
        up: now.up.saturating_sub(before.up),
        down: now.down.saturating_sub(before.down),
        refused: now.refused.iter().map(|(reason, count)| (*reason, count.saturating_sub(refused(reason)))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_never_go_back_when_routes_do() {
        let traffic = |connections, accepted| Traffic { connections, accepted, ..Traffic::default() };
        let mut meter = Meter::default();
        meter.read([("a".to_owned(), traffic(2, 10)), ("b".to_owned(), traffic(1, 5))].into_iter());
        assert_eq!(meter.total, traffic(3, 15));
        meter.read([("b".to_owned(), traffic(0, 7))].into_iter());
        assert_eq!(meter.total, traffic(0, 17), "a has gone");
        // It comes back and begins at zero, while an older one of its name still has connections.
        meter.read([("a".to_owned(), traffic(1, 1)), ("a".to_owned(), traffic(1, 3))].into_iter());
        assert_eq!(meter.total, traffic(2, 21));
        meter.read([("a".to_owned(), traffic(1, 2))].into_iter());
        assert_eq!(meter.total, traffic(1, 21), "back is nothing");
        let refused = |count| Traffic { refused: vec![("unreachable", count)], ..Traffic::default() };
        meter.read([("c".to_owned(), refused(4))].into_iter());
        meter.read([("c".to_owned(), refused(6))].into_iter());
        assert_eq!(meter.total.refused, [("unreachable", 6)]);
    }

    #[test]
    fn endpoints_that_fail_are_named_while_there_is_room() {
        let at = |port: usize| SocketAddr::from(([10, 1, 0, 1], u16::try_from(port).expect("a port")));
        let failed = |ports: std::ops::Range<usize>| Traffic {
            failures: failures(ports.map(|port| (at(port), port as u64))),
            ..Traffic::default()
        };
        let mut meter = Meter::default();
        meter.read([("a".to_owned(), failed(0..3))].into_iter());
        assert_eq!(meter.total.failures, [(Some(at(1)), 1), (Some(at(2)), 2)].into());
        meter.read([("a".to_owned(), failed(0..3)), ("b".to_owned(), failed(1..2))].into_iter());
        assert_eq!(meter.total.failures[&Some(at(1))], 2, "by both of its Services");
        meter.read([("c".to_owned(), failed(1000..3000))].into_iter());
        assert!((NAMED..=NAMED + 1).contains(&meter.total.failures.len()), "{}", meter.total.failures.len());
        let all: u64 = meter.total.failures.values().sum();
        assert_eq!(all, 2 + 2 + (1000..3000).sum::<u64>(), "none is lost");
    }
}

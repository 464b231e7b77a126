//! Since when endpoints have been leaving, of Services with a drain time.
//!
//! An endpoint *leaves* when it terminates and when it is in none of the Service's slices any more, which all are behind a port that is gone,
//! or a Service. A weight of 0, or not being ready,
//! is no leaving: whoever is told so may stay for long, and its connections with it. It leaves from the moment at which that is seen
//! first, so a restart of the controller begins the time anew, and whoever was gone by then is not known. When the time is over the
//! endpoint's connections through this Service port are cut, once: an endpoint that comes back before is spared, and one that new
//! connections still go to, because nobody else is there, is left alone until they do not.
//!
//! Invariants: no clock; a Service without the annotation costs nothing and leaves nothing. Proven by `engine/tuning_tests.rs` and, on
//! the real kernel, `tests/conntrack/drain.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::conntrack::{Cut, Destination};
use crate::model::map::HashMap;
use crate::model::{Family, Protocol, Service, ServiceKey, Slice};
use crate::policy::ResolvedPort;

/// The endpoints of all Services with a drain time.
#[derive(Debug, Default)]
pub(super) struct Drains {
    services: HashMap<ServiceKey, Watched>,
}

/// One Service's.
#[derive(Debug, Default)]
struct Watched {
    drain: Duration,
    endpoints: BTreeMap<Identity, Stay>,
    /// Where connections came from; also of ports that are gone, as long as somebody drains behind them.
    ports: BTreeMap<Port, Vec<Destination>>,
}

/// A port of a Service in one family: its name, protocol.
type Port = (Arc<str>, Protocol, Family);

/// An endpoint behind a port: name of the port, protocol, address.
type Identity = (Arc<str>, Protocol, SocketAddr);

/// Where an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    Here,
    /// It terminates, or is gone, since then.
    Leaving(Instant),
    /// It is still listed, and its connections have been cut.
    Cut,
}

/// An endpoint whose connections will be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The name of the port that it was behind.
    pub port: Arc<str>,
    /// That port's protocol.
    pub protocol: Protocol,
    /// Who.
    pub endpoint: SocketAddr,
    /// When it was first seen to leave.
    pub since: Instant,
    /// When its connections are ended.
    pub until: Instant,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Due {
    /// Now.
    pub(super) cuts: Vec<Cut>,
    /// When there will be more, unless something else happens.
    pub(super) next: Option<Instant>,
}

// === impl Drains ===

impl Drains {
    /// Takes note of a Service as it is now and was decided as `resolved`.
    pub(super) fn update<'a>(
        &mut self,
        key: &ServiceKey,
        service: Option<&Service>,
        slices: impl Iterator<Item = &'a Slice>,
        resolved: &[ResolvedPort],
        now: Option<Instant>,
    ) -> Due {
        // Of a Service that is gone, what it said last counts.
        let remembered = self.services.get(key).map(|watched| watched.drain);
        let drain = service.map_or(remembered, |service| service.tuning.drain);
        let (Some(drain), Some(now)) = (drain, now) else {
            self.services.remove(key);
            return Due::default();
        };
        let mut listed = listed(slices);
        listed.retain(|identity, _| resolved.iter().any(|port| is_behind(identity, &port_of(port))));
        let watched = self.services.entry(key.clone()).or_default();
        watched.drain = drain;
        watched.ports.extend(resolved.iter().map(|port| (port_of(port), destinations(port))));
        let known = &mut watched.endpoints;
        for (identity, terminating) in &listed {
            let stay = known.entry(identity.clone()).or_insert(Stay::Here);
            *stay = match (*terminating, *stay) {
                (false, _) => Stay::Here,
                (true, Stay::Here) => Stay::Leaving(now),
                (true, left) => left,
            };
        }
        for (_, stay) in known.iter_mut().filter(|(identity, _)| !listed.contains_key(*identity)) {
            if *stay == Stay::Here {
                *stay = Stay::Leaving(now);
            }
        }
        let due = watched.due(resolved, now);
        // Whose connections are cut and who is gone is nobody any more, and a port without anybody is none.
        watched.endpoints.retain(|identity, stay| listed.contains_key(identity) || *stay != Stay::Cut);
        let endpoints = &watched.endpoints;
        watched.ports.retain(|port, _| {
            resolved.iter().any(|one| port_of(one) == *port) || endpoints.keys().any(|one| is_behind(one, port))
        });
        if service.is_none() && watched.endpoints.is_empty() {
            self.services.remove(key);
        }
        due
    }

    /// The endpoints of a Service that are leaving: the port they are behind, its protocol, their address, since when and until when.
    pub(super) fn leaving(&self, key: &ServiceKey) -> Vec<Leaving> {
        let Some(watched) = self.services.get(key) else { return Vec::new() };
        let leaving = watched.endpoints.iter().filter_map(|((port, protocol, endpoint), stay)| match stay {
            Stay::Leaving(since) => Some(Leaving {
                port: port.clone(),
                protocol: *protocol,
                endpoint: *endpoint,
                since: *since,
                until: *since + watched.drain,
            }),
            Stay::Here | Stay::Cut => None,
        });
        leaving.collect()
    }

    /// How many endpoints are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.services.values().map(|watched| watched.endpoints.len()).sum()
    }
}

/// The endpoints in the slices, and whether they terminate; of two entries for one, the one that does not is believed.
fn listed<'a>(slices: impl Iterator<Item = &'a Slice>) -> BTreeMap<Identity, bool> {
    let mut listed = BTreeMap::new();
    for slice in slices {
        for port in &slice.ports {
            for endpoint in &slice.endpoints {
                let identity = (port.name.clone(), port.protocol, SocketAddr::new(endpoint.address, port.port));
                let terminating = listed.entry(identity).or_insert(endpoint.terminating);
                *terminating &= endpoint.terminating;
            }
        }
    }
    listed
}

fn port_of(port: &ResolvedPort) -> Port {
    (port.key.name.clone(), port.key.protocol, port.family)
}

fn is_behind((name, protocol, endpoint): &Identity, port: &Port) -> bool {
    *port.0 == **name && port.1 == *protocol && port.2 == Family::of(endpoint.ip())
}

/// Where connections to a Service port come from.
pub(super) fn destinations(port: &ResolvedPort) -> Vec<Destination> {
    Destination::all(&port.frontends, port.family, port.node_port).collect()
}

// === impl Watched ===

impl Watched {
    fn due(&mut self, resolved: &[ResolvedPort], now: Instant) -> Due {
        let mut due = Due::default();
        for (port, destinations) in &self.ports {
            let decided = resolved.iter().find(|one| port_of(one) == *port);
            let used = |endpoint: &SocketAddr| {
                let candidates = decided.into_iter().flat_map(|port| port.cluster.iter().chain(&port.local));
                candidates.into_iter().any(|candidate| candidate.endpoint == *endpoint)
            };
            let mut endpoints = BTreeSet::new();
            for (identity, stay) in self.endpoints.iter_mut().filter(|(identity, _)| is_behind(identity, port)) {
                let Stay::Leaving(since) = *stay else { continue };
                let at = since + self.drain;
                if at > now {
                    due.next = Some(due.next.map_or(at, |next| next.min(at)));
                } else if !used(&identity.2) {
                    endpoints.insert(identity.2);
                    *stay = Stay::Cut;
                }
            }
            if !endpoints.is_empty() {
                due.cuts.push(Cut {
                    protocol: port.1,
                    family: port.2,
                    destinations: destinations.iter().copied().collect(),
                    endpoints,
                    node_port_ranges: Arc::default(),
                });
            }
        }
        due
    }
}

//! Which Service ports go through the userspace forwarder, and what the forwarder is to do for them.
//!
//! To the kernel such a port is like any other whose scheduler is `random`, except that its decisions leave each set of endpoints (cluster,
//! local) to the *listener* of that set's route as long as there is one (`compile::layout`); where random endpoints make no sense,
//! it refuses instead. [`Routes::update`] makes *wishes* of what was decided. Of listeners the engine must know only what UDP
//! flows may lead to ([`Routes::set_listener`]): who sends to them is `kernel::redirects`.
//!
//! A node port on a loopback address is no packet's business: the forwarder listens there itself, and the kernel knows nothing of it.
//!
//! Invariants: no I/O; a wish is handed out once per change. Proven by the engine's property test (`route_tests`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::forward::{Method, Options, Route, RouteId};
use crate::model::map::HashMap;
use crate::model::{Protocol, Service, ServiceKey};
use crate::policy::{self, Path, Reason, ResolvedPort, Settings, Verdict};
use crate::schedule::{Candidate, Exact, Scheduler};

use super::fallback::Fallback;
use crate::forward::balance::HashPort;

/// A listener that shall be there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerKey {
    /// What it serves.
    pub route: RouteId,
    /// Exactly here, for the host's own processes; `None`: where the kernel can send packets to, on any port.
    pub loopback: Option<SocketAddr>,
}

/// What the forwarder shall do with what comes in by a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    /// Where to, and how.
    pub route: Route,
    /// Endpoints that keep the UDP flows they have.
    pub draining: Vec<SocketAddr>,
}

/// All wishes, and the listeners that are open.
#[derive(Debug, Default)]
pub(super) struct Routes {
    wishes: HashMap<ServiceKey, BTreeMap<ListenerKey, Wish>>,
    listeners: HashMap<RouteId, SocketAddr>,
    fallbacks: BTreeMap<ServiceKey, Fallback>,
    changed: BTreeSet<ListenerKey>,
    fallbacks_changed: BTreeSet<ServiceKey>,
}

// === impl Routes ===

impl Routes {
    /// Takes the decisions for a Service, and changes them to what the kernel shall know.
    pub(super) fn update(
        &mut self,
        key: &ServiceKey,
        service: Option<&Service>,
        resolved: &mut [ResolvedPort],
        settings: &Settings,
    ) {
        let (mut wishes, mut fallback) = (BTreeMap::new(), None);
        if let Some(service) = service {
            wishes.extend(resolved.iter().flat_map(|port| wished(service, port, settings)));
            let loopback = wishes.keys().any(|listener| listener.loopback.is_some());
            fallback = Fallback::of(service, resolved, loopback);
            for port in resolved {
                if let Path::Userspace(reason) = port.path {
                    self.prepare(port, reason);
                }
            }
        }
        let before = match wishes.is_empty() {
            true => self.wishes.remove(key),
            false => self.wishes.insert(key.clone(), wishes),
        };
        let (before, empty) = (before.unwrap_or_default(), BTreeMap::new());
        let now = self.wishes.get(key).unwrap_or(&empty);
        self.changed.extend(before.keys().filter(|listener| !now.contains_key(*listener)).cloned());
        self.changed
            .extend(now.iter().filter(|(key, wish)| before.get(*key) != Some(*wish)).map(|(key, _)| key.clone()));
        if self.fallbacks.get(key) != fallback.as_ref() {
            self.fallbacks_changed.insert(key.clone());
            match fallback {
                Some(fallback) => self.fallbacks.insert(key.clone(), fallback),
                None => self.fallbacks.remove(key),
            };
        }
    }

    /// The listeners that a Service wishes for.
    pub(super) fn listeners(&self, service: &ServiceKey) -> impl Iterator<Item = &ListenerKey> {
        self.wishes.get(service).into_iter().flat_map(BTreeMap::keys)
    }

    /// A route has a listener that flows may lead to, or has none any more. Whether that makes a difference to its Service.
    pub(super) fn set_listener(&mut self, route: &RouteId, listener: Option<SocketAddr>) -> bool {
        let differs = match listener {
            Some(listener) => self.listeners.insert(route.clone(), listener) != Some(listener),
            None => self.listeners.remove(route).is_some(),
        };
        // Of TCP connections nothing is expected once they are made.
        differs
            && route.port.protocol == Protocol::Udp
            && self.listeners(&route.port.service).any(|listener| listener.route == *route)
    }

    /// Nobody is sent to the forwarder any more. Returns the Services that this concerns.
    pub(super) fn stop(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.listeners).into_keys().map(|route| route.port.service).collect()
    }

    /// What differs since the last call; `None` where a listener is not needed any more.
    pub(super) fn take_changed(&mut self) -> Vec<(ListenerKey, Option<Wish>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed
            .map(|listener| {
                let wish = self.wishes.get(&listener.route.port.service).and_then(|wishes| wishes.get(&listener));
                let wish = wish.cloned();
                (listener, wish)
            })
            .collect()
    }

    /// The Services of the forwarder that became so, or for another reason, since the last call; `None` for those that are the kernel's again.
    pub(super) fn take_fallbacks(&mut self) -> Vec<(ServiceKey, Option<Fallback>)> {
        let changed = std::mem::take(&mut self.fallbacks_changed).into_iter();
        changed.map(|service| (service.clone(), self.fallbacks.get(&service).cloned())).collect()
    }

    /// All Services of the forwarder.
    pub(super) fn fallbacks(&self) -> &BTreeMap<ServiceKey, Fallback> {
        &self.fallbacks
    }

    /// Where a route is listened for, if that may be sent to.
    pub(super) fn listener(&self, route: &RouteId) -> Option<SocketAddr> {
        self.listeners.get(route).copied()
    }

    /// What the kernel shall know of a port: what to do instead, and where its flows may be.
    fn prepare(&self, port: &mut ResolvedPort, reason: Reason) {
        port.scheduler = Scheduler::Random;
        if !reason.has_kernel_path() {
            // They are refused instead, and the pool is there for its number: one endpoint is enough.
            port.affinity = None;
            port.cluster.truncate(1);
            port.local.truncate(1);
        }
        if port.key.protocol == Protocol::Udp {
            // Flows that were made before stay where they are.
            let route = |local| RouteId { port: port.key.clone(), family: port.family, local };
            let listeners = [false, true].map(|local| self.listeners.get(&route(local)).copied());
            port.serving.extend(listeners.into_iter().flatten());
            port.serving.sort();
            port.serving.dedup();
        }
    }
}

/// What a port wants of the forwarder, as the policy decided and before anything is changed.
fn wished(service: &Service, port: &ResolvedPort, settings: &Settings) -> Vec<(ListenerKey, Wish)> {
    let mut wished = Vec::new();
    let mut wish = |local: bool, loopback: Option<SocketAddr>, candidates: &[Candidate]| {
        let route = RouteId { port: port.key.clone(), family: port.family, local };
        let draining = port.serving.iter().copied();
        let draining = draining.filter(|one| candidates.iter().all(|candidate| candidate.endpoint != *one)).collect();
        let route_to = Route {
            candidates: candidates.to_vec(),
            method: method(service, port.scheduler),
            affinity: port.affinity.map(|affinity| Duration::from_secs(affinity.seconds.into())),
            options: options(service, port, settings),
        };
        wished.push((ListenerKey { route, loopback }, Wish { route: route_to, draining }));
    };
    if port.path != Path::Kernel {
        for (local, candidates) in [(false, &port.cluster), (true, &port.local)] {
            if !candidates.is_empty() {
                wish(local, None, candidates);
            }
        }
    }
    // Whoever connects from the node itself may reach all endpoints, whatever the external policy.
    if let Some(node_port) = port.node_port.filter(|node_port| node_port.protocol != Protocol::Sctp)
        && port.inside == Verdict::Cluster
        && let Some(address) = policy::localhost_node_port(settings, port.family)
    {
        wish(false, Some(SocketAddr::new(address, node_port.port)), &port.cluster);
    }
    wished
}

fn options(service: &Service, port: &ResolvedPort, settings: &Settings) -> Options {
    let forwarding = &service.tuning.forwarding;
    let mut options = Options { max_connections: forwarding.max_connections, ..Options::default() };
    if let Some(timeout) = forwarding.connect_timeout.or(settings.connect_timeout) {
        options.connect_timeouts = vec![timeout; options.connect_timeouts.len()];
    }
    if let Some(timeout) = forwarding.idle_timeout.or(settings.idle_timeout) {
        options.idle_timeout = Some(timeout);
    }
    if port.key.protocol == Protocol::Tcp && port.path == Path::Userspace(Reason::ProxyProtocol) {
        options.proxy_protocol = forwarding.proxy_protocol;
    }
    if port.key.protocol == Protocol::Tcp {
        options.client_ip = forwarding.client_ip;
    }
    options
}

fn method(service: &Service, scheduler: Scheduler) -> Method {
    let by_port = |port| if port { HashPort::With } else { HashPort::Without };
    match (service.exact, scheduler) {
        (Some(Exact::PeakEwma), _) => Method::PeakEwma,
        (Some(Exact::TwoChoices), _) => Method::TwoChoices,
        (_, Scheduler::Random) => Method::Random,
        (_, Scheduler::RoundRobin) => Method::RoundRobin,
        (_, Scheduler::WeightedRoundRobin) => Method::WeightedRoundRobin,
        (_, Scheduler::LeastConnection) => Method::LeastConnection,
        (_, Scheduler::WeightedLeastConnection) => Method::WeightedLeastConnection,
        (_, Scheduler::ShortestExpectedDelay) => Method::ShortestExpectedDelay,
        (_, Scheduler::NeverQueue) => Method::NeverQueue,
        (_, Scheduler::SourceHash { port }) => Method::SourceHash(by_port(port)),
        (_, Scheduler::DestinationHash) => Method::DestinationHash,
        (_, Scheduler::Maglev { port }) => Method::Maglev(by_port(port)),
    }
}

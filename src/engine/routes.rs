//! Which Service ports go through the userspace forwarder, and what the forwarder is to do for them.
//!
//! To the kernel such a port has one endpoint per set (cluster, local): the *listener* of that set's route. Everything else about the
//! port stays as decided: frontends, verdicts, source ranges, masquerading. [`Routes::update`] makes *wishes* of what was decided, and
//! puts listeners in the place of endpoints as soon as it is told that they are open ([`Routes::set_listener`]); until then, and if that
//! never happens, the kernel picks at random from the endpoints themselves, where that makes sense, and refuses where it does not.
//!
//! A node port on a loopback address is no packet's business: the forwarder listens there itself, and the kernel knows nothing of it.
//!
//! Invariants: no I/O; all sets of a port are the forwarder's or none is; a wish is handed out once per change. Proven by the engine's
//! property test.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use crate::forward::{ClientIp, Method, Options, Route, RouteId};
use crate::model::{Protocol, Service, ServiceKey};
use crate::policy::{self, Path, Reason, ResolvedPort, Settings, Verdict};
use crate::schedule::{Candidate, Exact, Scheduler};

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

/// Why a Service is the forwarder's, and what its users should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The first reason of all its ports.
    pub reason: Reason,
    /// Whether endpoints see an address of the node instead of the client's, and are not told otherwise.
    pub hides_clients: bool,
}

/// All wishes, and the listeners that are open.
#[derive(Debug, Default)]
pub(super) struct Routes {
    wishes: HashMap<ServiceKey, BTreeMap<ListenerKey, Wish>>,
    listeners: HashMap<RouteId, SocketAddr>,
    fallbacks: BTreeMap<ServiceKey, Fallback>,
    changed: BTreeSet<ListenerKey>,
    fallbacks_changed: BTreeSet<ServiceKey>,
    /// Nobody is sent to the forwarder any more.
    stopped: bool,
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
        let mut wishes = BTreeMap::new();
        let mut fallback: Option<Fallback> = None;
        if let Some(service) = service {
            for port in resolved {
                for (listener, wish) in wished(service, port, settings) {
                    wishes.insert(listener, wish);
                }
                let Path::Userspace(reason) = port.path else { continue };
                fallback = Some(Fallback {
                    reason: fallback.map_or(reason, |known| known.reason.min(reason)),
                    hides_clients: fallback.is_some_and(|known| known.hides_clients)
                        || hides_clients(service, port, reason),
                });
                self.redirect(port, reason);
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
        let before = match fallback {
            Some(fallback) => self.fallbacks.insert(key.clone(), fallback),
            None => self.fallbacks.remove(key),
        };
        if before != fallback {
            self.fallbacks_changed.insert(key.clone());
        }
    }

    /// A route has a listener that may be sent to, or has none any more. Whether that makes a difference to its Service.
    pub(super) fn set_listener(&mut self, route: &RouteId, listener: Option<SocketAddr>) -> bool {
        let differs = match listener {
            Some(listener) => self.listeners.insert(route.clone(), listener) != Some(listener),
            None => self.listeners.remove(route).is_some(),
        };
        let wished = || self.wishes.get(&route.port.service)?.keys().find(|listener| listener.route == *route);
        differs && wished().is_some()
    }

    /// Nobody shall be sent to the forwarder any more. Returns the Services that this concerns.
    pub(super) fn stop(&mut self) -> BTreeSet<ServiceKey> {
        self.stopped = true;
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
        changed.map(|service| (service.clone(), self.fallbacks.get(&service).copied())).collect()
    }

    /// All Services of the forwarder.
    pub(super) fn fallbacks(&self) -> &BTreeMap<ServiceKey, Fallback> {
        &self.fallbacks
    }

    /// Where a route is listened for, if that may be sent to.
    pub(super) fn listener(&self, route: &RouteId) -> Option<SocketAddr> {
        self.listeners.get(route).copied()
    }

    /// Puts listeners in the place of endpoints.
    fn redirect(&self, port: &mut ResolvedPort, reason: Reason) {
        let listener = |local: bool, candidates: &[Candidate]| {
            if candidates.is_empty() {
                return Some(None);
            }
            let route = RouteId { port: port.key.clone(), family: port.family, local };
            self.listeners.get(&route).filter(|_| !self.stopped).map(|listener| Some(*listener))
        };
        let (cluster, local) = (listener(false, &port.cluster), listener(true, &port.local));
        port.scheduler = Scheduler::Random;
        match (cluster, local) {
            (Some(cluster), Some(local)) => {
                let only = |listener: Option<SocketAddr>| listener.map(Candidate::equal).into_iter().collect();
                (port.cluster, port.local) = (only(cluster), only(local));
                port.affinity = None;
                if port.key.protocol == Protocol::Udp {
                    // Flows that were made before stay where they are.
                    port.serving.extend([cluster, local].into_iter().flatten());
                    port.serving.sort();
                    port.serving.dedup();
                }
            }
            _ if reason.has_kernel_path() => {}
            _ => {
                (port.cluster, port.local) = Default::default();
                for verdict in [&mut port.internal, &mut port.outside, &mut port.inside] {
                    if matches!(verdict, Verdict::Cluster | Verdict::Local) {
                        *verdict = Verdict::Refuse;
                    }
                }
            }
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
            options: options(service, port),
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

/// Whether endpoints of a port neither see nor are told the client's address.
fn hides_clients(service: &Service, port: &ResolvedPort, reason: Reason) -> bool {
    let preserved = service.tuning.forwarding.client_ip == ClientIp::Preserve && port.key.protocol == Protocol::Tcp;
    reason != Reason::ProxyProtocol && !preserved
}

fn options(service: &Service, port: &ResolvedPort) -> Options {
    let forwarding = &service.tuning.forwarding;
    let mut options = Options { max_connections: forwarding.max_connections, ..Options::default() };
    if let Some(timeout) = forwarding.connect_timeout {
        options.connect_timeouts = vec![timeout; options.connect_timeouts.len()];
    }
    if forwarding.idle_timeout.is_some() {
        options.idle_timeout = forwarding.idle_timeout;
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

//! What the shards of a route share: who may be chosen, limits, and counters.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::flows::{Caller, Idle};
use super::{Dial, UdpRoute, UdpStatus};
use crate::forward::balance::{Arrival, Balancer, Sticky};
use crate::forward::register::{CarriedKey, Entry, Register};
use crate::model::Protocol;

/// How many clients a route with session affinity remembers.
const STICKY_CLIENTS: usize = 65_536;

/// A route, as its shards see it.
#[derive(Debug)]
pub(super) struct Route {
    decider: Mutex<Decider>,
    /// Goes up when `decider` changes: flows look whether their endpoint may stay.
    generation: AtomicU64,
    closed: AtomicBool,
    pub dial: Dial,
    pub budget: Arc<Budget>,
    register: Register,
    listener: SocketAddr,
    pub counters: Counters,
}

/// Looked at once per flow, not per datagram.
#[derive(Debug)]
struct Decider {
    frontend: SocketAddr,
    balancer: Balancer,
    sticky: Option<Sticky>,
    draining: Vec<SocketAddr>,
    failures: HashMap<SocketAddr, u64>,
    idle: Idle,
    /// Flows per shard.
    limit: usize,
}

/// Flows of all routes together.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: AtomicUsize,
}

/// Room for one flow; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit(Arc<Budget>);

/// What passed, and what did not.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub flows: AtomicU64,
    pub opened: AtomicU64,
    pub moved: AtomicU64,
    pub expired: AtomicU64,
    pub evicted: AtomicU64,
    pub requests: AtomicU64,
    pub request_bytes: AtomicU64,
    pub replies: AtomicU64,
    pub reply_bytes: AtomicU64,
    pub no_endpoint: AtomicU64,
    pub no_room: AtomicU64,
    pub not_sent: AtomicU64,
}

// === impl Route ===

impl Route {
    pub fn new(settings: &UdpRoute, frontend: SocketAddr, budget: Arc<Budget>, register: Register) -> Self {
        let decider = Decider {
            frontend,
            balancer: Balancer::new(settings.method, &[], settings.seed),
            sticky: None,
            draining: Vec::new(),
            failures: HashMap::new(),
            idle: settings.options.idle(),
            limit: 0,
        };
        let route = Self {
            decider: Mutex::new(decider),
            generation: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            dial: settings.options.dial.clone(),
            budget,
            register,
            listener: frontend,
            counters: Counters::default(),
        };
        route.update(settings);
        route
    }

    /// Takes everything that can change while the listeners stay.
    pub fn update(&self, settings: &UdpRoute) {
        let mut decider = self.decider();
        decider.balancer.set_method(settings.method);
        decider.balancer.update(&settings.candidates);
        decider.draining.clone_from(&settings.draining);
        match (&mut decider.sticky, settings.affinity) {
            (Some(sticky), Some(timeout)) => sticky.set_timeout(timeout),
            (sticky, timeout) => *sticky = timeout.map(|timeout| Sticky::new(timeout, STICKY_CLIENTS)),
        }
        decider.idle = settings.options.idle();
        decider.limit = settings.options.flows.div_ceil(settings.options.shards.get()).max(1);
        let Decider { failures, balancer, draining, .. } = &mut *decider;
        failures.retain(|endpoint, _| balancer.is_candidate(*endpoint) || draining.contains(endpoint));
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Its shards shall end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// What shards copy when the generation changes.
    pub fn limits(&self) -> (Idle, usize) {
        let decider = self.decider();
        (decider.idle, decider.limit)
    }

    /// An endpoint for a flow, which is counted there from now on. The excluded ones failed just now: if there is nobody else, one
    /// of them is tried again.
    pub fn place(&self, caller: &Caller, now: Instant, excluded: &[SocketAddr]) -> Option<SocketAddr> {
        let mut decider = self.decider();
        let Decider { balancer, sticky, frontend, .. } = &mut *decider;
        let arrival = Arrival { client: caller.client, frontend: *frontend };
        let client = caller.client.ip();
        let usable = |endpoint| balancer.is_candidate(endpoint) && !excluded.contains(&endpoint);
        let kept = sticky.as_mut().and_then(|sticky| sticky.renew(client, now, usable));
        let endpoint = match kept {
            Some(endpoint) => endpoint,
            None => {
                let chosen = balancer.pick(&arrival, now, excluded).or_else(|| balancer.pick(&arrival, now, &[]))?;
                if let Some(sticky) = sticky {
                    sticky.remember(client, chosen, now);
                }
                chosen
            }
        };
        balancer.opened(endpoint);
        Some(endpoint)
    }

    /// Enters a flow where people look.
    pub fn enter(&self, caller: &Caller, endpoint: SocketAddr) -> Entry {
        let key = CarriedKey { protocol: Protocol::Udp, client: caller.client, listener: self.listener.port() };
        // Nobody translates what goes to a node port on the loopback.
        let direct = self.listener.ip().is_loopback().then_some(self.listener);
        // A flow that is cut ends with the next datagram, from whomever.
        self.register.enter(key, endpoint, direct, None)
    }

    /// A flow left this endpoint.
    pub fn left(&self, endpoint: SocketAddr) {
        self.decider().balancer.closed(endpoint);
    }

    /// Whether a flow may stay where it is.
    pub fn keeps(&self, endpoint: SocketAddr) -> bool {
        let decider = self.decider();
        decider.balancer.is_candidate(endpoint) || decider.draining.contains(&endpoint)
    }

    pub fn answered(&self, endpoint: SocketAddr, latency: Duration, now: Instant) {
        self.decider().balancer.connected(endpoint, latency, now);
    }

    pub fn failed(&self, endpoint: SocketAddr, now: Instant) {
        let mut decider = self.decider();
        decider.balancer.failed(endpoint, now);
        *decider.failures.entry(endpoint).or_default() += 1;
    }

    pub fn status(&self) -> UdpStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let mut failures: Vec<_> =
            self.decider().failures.iter().map(|(endpoint, count)| (*endpoint, *count)).collect();
        failures.sort_unstable();
        UdpStatus {
            flows: read(&counters.flows),
            opened: read(&counters.opened),
            moved: read(&counters.moved),
            expired: read(&counters.expired),
            evicted: read(&counters.evicted),
            requests: read(&counters.requests),
            request_bytes: read(&counters.request_bytes),
            replies: read(&counters.replies),
            reply_bytes: read(&counters.reply_bytes),
            no_endpoint: read(&counters.no_endpoint),
            no_room: read(&counters.no_room),
            not_sent: read(&counters.not_sent),
            failures,
        }
    }

    fn decider(&self) -> MutexGuard<'_, Decider> {
        // Nothing in there is left half done by a panic.
        self.decider.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Budget ===

impl Budget {
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// Room for one flow more, if there is.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let more = |used| (used < self.limit).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Permit(Arc::clone(self)))
    }

    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

//! What happens in a route, counted.
//!
//! Counters are written by the connections themselves, relaxed, and read whenever somebody asks. They begin at zero when the route
//! (or the endpoint in it) is set for the first time, and never go back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The route has as many connections as it may have.
    RouteLimit,
    /// All routes together have.
    ProcessLimit,
    /// No descriptors are left.
    Descriptors,
    /// It did not come by way of the kernel's translation: somebody found the listener.
    NotTranslated,
    /// The route has no endpoints.
    NoEndpoints,
    /// No endpoint accepted a connection in time.
    Unreachable,
}

/// What has happened in a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteStatus {
    /// Where the route listens.
    pub listener: Option<SocketAddr>,
    /// Connections now, those that are still being connected included.
    pub active: usize,
    /// Connections accepted, those that were refused included.
    pub accepted: u64,
    /// Connections refused, by reason.
    pub refused: BTreeMap<Refusal, u64>,
    /// Connections that should have come from the client's address and come from the node's.
    pub unpreserved: u64,
    /// What happened at each endpoint that is a candidate or has connections.
    pub endpoints: BTreeMap<SocketAddr, EndpointStatus>,
}

/// What has happened at an endpoint of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointStatus {
    /// Connections now.
    pub active: usize,
    /// Connections made.
    pub connections: u64,
    /// Attempts to connect that were refused or took too long.
    pub failures: u64,
    /// Bytes from clients.
    pub received: u64,
    /// Bytes to clients.
    pub sent: u64,
    /// Whether it has failed so often that it gets connections only now and then.
    pub set_aside: bool,
}

/// Counters of a route.
#[derive(Debug, Default)]
pub(super) struct RouteCounters {
    pub active: AtomicUsize,
    pub accepted: AtomicU64,
    pub unpreserved: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
}

/// Counters of an endpoint of a route.
#[derive(Debug, Default)]
pub(super) struct EndpointCounters {
    pub active: AtomicUsize,
    pub connections: AtomicU64,
    pub failures: AtomicU64,
    pub received: AtomicU64,
    pub sent: AtomicU64,
}

// === impl Refusal ===

impl Refusal {
    /// All reasons, in the order of their numbers.
    pub const ALL: [Refusal; 6] = [
        Refusal::RouteLimit,
        Refusal::ProcessLimit,
        Refusal::Descriptors,
        Refusal::NotTranslated,
        Refusal::NoEndpoints,
        Refusal::Unreachable,
    ];

    /// As a label of a metric and in log lines.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::RouteLimit => "service_limit",
            Refusal::ProcessLimit => "process_limit",
            Refusal::Descriptors => "no_descriptors",
            Refusal::NotTranslated => "not_translated",
            Refusal::NoEndpoints => "no_endpoints",
            Refusal::Unreachable => "unreachable",
        }
    }
}

// === impl RouteCounters ===

impl RouteCounters {
    /// One more refusal.
    pub fn refuse(&self, reason: Refusal) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Refusals so far, without the reasons that there were none for.
    pub fn refused(&self) -> BTreeMap<Refusal, u64> {
        let counts = Refusal::ALL.map(|reason| (reason, self.refused[reason as usize].load(Ordering::Relaxed)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

// === impl EndpointCounters ===

impl EndpointCounters {
    /// As they are now.
    pub fn status(&self, set_aside: bool) -> EndpointStatus {
        EndpointStatus {
            active: self.active.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            set_aside,
        }
    }
}

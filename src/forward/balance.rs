//! Who is picked: each in turn, for now.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::schedule::Candidate;

/// How endpoints are picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// Each in turn.
    #[default]
    RoundRobin,
}

/// Picks endpoints for new connections.
#[derive(Debug)]
pub struct Balancer {
    candidates: Vec<Candidate>,
    next: usize,
}

impl Balancer {
    /// Among these.
    pub fn new(_method: Method, candidates: &[Candidate], seed: u64) -> Self {
        Self { candidates: candidates.to_vec(), next: seed as usize }
    }

    /// From now on among these.
    pub fn update(&mut self, candidates: &[Candidate]) {
        self.candidates = candidates.to_vec();
    }

    /// The endpoint for a new connection.
    pub fn pick(&mut self, _client: SocketAddr, _now: Instant, excluded: &[SocketAddr]) -> Option<SocketAddr> {
        for _ in 0..self.candidates.len() {
            self.next = self.next.wrapping_add(1);
            let endpoint = self.candidates[self.next % self.candidates.len()].endpoint;
            if !excluded.contains(&endpoint) {
                return Some(endpoint);
            }
        }
        None
    }

    /// A connection to this endpoint begins.
    pub fn opened(&mut self, _endpoint: SocketAddr) {}

    /// A connection to this endpoint has ended.
    pub fn closed(&mut self, _endpoint: SocketAddr) {}

    /// This endpoint accepted after this time.
    pub fn connected(&mut self, _endpoint: SocketAddr, _latency: Duration, _now: Instant) {}

    /// This endpoint did not accept.
    pub fn failed(&mut self, _endpoint: SocketAddr, _now: Instant) {}
}

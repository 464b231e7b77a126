//! The endpoints of a route: who is picked, and what happened there.
//!
//! A [`Pick`] is one connection's hold on its endpoint, from before it is connected until it ends; dropping it lets go. That is how
//! the balancer knows, at every moment, exactly how many connections each endpoint has.
//!
//! Picking takes a lock for less than a microsecond: all workers share one balancer, or a scheduler could not be exact.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::balance::{Arrival, Balancer, Sticky};
use super::route::Route;
use super::status::{EndpointCounters, EndpointStatus, RouteCounters};

/// Clients remembered for session affinity per route: some 10 MiB at most.
const CLIENTS: usize = 1 << 17;

/// See the module.
#[derive(Debug)]
pub(super) struct Pool {
    chooser: Mutex<Chooser>,
    /// Counters of the whole route.
    pub counters: RouteCounters,
}

#[derive(Debug)]
struct Chooser {
    balancer: Balancer,
    sticky: Option<Sticky>,
    endpoints: HashMap<SocketAddr, Arc<EndpointCounters>>,
}

/// A connection's hold on an endpoint.
#[derive(Debug)]
pub(super) struct Pick {
    pool: Arc<Pool>,
    endpoint: SocketAddr,
    counters: Arc<EndpointCounters>,
}

// === impl Pool ===

impl Pool {
    /// Of a new route.
    pub fn new(route: &Route, seed: u64) -> Self {
        let chooser = Chooser {
            balancer: Balancer::new(route.method, &route.candidates, seed),
            sticky: None,
            endpoints: HashMap::new(),
        };
        let pool = Self { chooser: Mutex::new(chooser), counters: RouteCounters::default() };
        pool.choosing().note(route);
        pool
    }

    /// Takes over what the route is now. Connections stay where they are.
    pub fn set(&self, route: &Route) {
        let mut chooser = self.choosing();
        chooser.balancer.update(&route.candidates);
        chooser.balancer.set_method(route.method);
        chooser.note(route);
    }

    /// An endpoint for this connection, but none of these.
    pub fn pick(self: &Arc<Self>, arrival: &Arrival, excluded: &[SocketAddr]) -> Option<Pick> {
        let now = Instant::now();
        let mut chooser = self.choosing();
        let endpoint = chooser.pick(arrival, now, excluded)?;
        chooser.balancer.opened(endpoint);
        let counters = chooser.endpoints.entry(endpoint).or_default().clone();
        counters.active.fetch_add(1, Ordering::Relaxed);
        drop(chooser);
        Some(Pick { pool: self.clone(), endpoint, counters })
    }

    /// Whether an endpoint may be picked.
    pub fn is_candidate(&self, endpoint: SocketAddr) -> bool {
        self.choosing().balancer.is_candidate(endpoint)
    }

    /// What happened at each endpoint.
    pub fn endpoints(&self) -> BTreeMap<SocketAddr, EndpointStatus> {
        let (chooser, now) = (self.choosing(), Instant::now());
        let status = |(endpoint, counters): (&SocketAddr, &Arc<EndpointCounters>)| {
            (*endpoint, counters.status(chooser.balancer.is_set_aside(*endpoint, now)))
        };
        chooser.endpoints.iter().map(status).collect()
    }

    fn choosing(&self) -> MutexGuard<'_, Chooser> {
        self.chooser.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

// === impl Chooser ===

impl Chooser {
    fn pick(&mut self, arrival: &Arrival, now: Instant, excluded: &[SocketAddr]) -> Option<SocketAddr> {
        let Self { balancer, sticky, .. } = self;
        let Some(sticky) = sticky else { return balancer.pick(arrival, now, excluded) };
        let usable = |endpoint| balancer.is_candidate(endpoint) && !excluded.contains(&endpoint);
        let client = arrival.client.ip();
        if let Some(kept) = sticky.renew(client, now, usable) {
            return Some(kept);
        }
        let endpoint = balancer.pick(arrival, now, excluded)?;
        sticky.remember(client, endpoint, now);
        Some(endpoint)
    }

    /// Remembers who are endpoints now, and forgets who are not and have no connections.
    fn note(&mut self, route: &Route) {
        let Self { balancer, sticky, endpoints } = self;
        endpoints.retain(|endpoint, counters| {
            balancer.is_candidate(*endpoint) || counters.active.load(Ordering::Relaxed) > 0
        });
        for candidate in &route.candidates {
            endpoints.entry(candidate.endpoint).or_default();
        }
        match (sticky, route.affinity) {
            (Some(sticky), Some(timeout)) => sticky.set_timeout(timeout),
            (sticky, timeout) => *sticky = timeout.map(|timeout| Sticky::new(timeout, CLIENTS)),
        }
    }
}

// === impl Pick ===

impl Pick {
    /// Who was picked.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// The endpoint accepted.
    pub fn connected(&self, latency: Duration) {
        self.counters.connections.fetch_add(1, Ordering::Relaxed);
        self.pool.choosing().balancer.connected(self.endpoint, latency, Instant::now());
    }

    /// The endpoint did not.
    pub fn failed(&self) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        self.pool.choosing().balancer.failed(self.endpoint, Instant::now());
    }

    /// So many bytes from the client, and to it.
    pub fn count(&self, received: u64, sent: u64) {
        if received > 0 {
            self.counters.received.fetch_add(received, Ordering::Relaxed);
        }
        if sent > 0 {
            self.counters.sent.fetch_add(sent, Ordering::Relaxed);
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        let mut chooser = self.pool.choosing();
        self.counters.active.fetch_sub(1, Ordering::Relaxed);
        chooser.balancer.closed(self.endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::balance::Method;
    use crate::forward::route::Options;
    use crate::schedule::Candidate;

    fn endpoint(port: u16) -> SocketAddr {
        ([10, 244, 0, 1], port).into()
    }

    fn route(ports: &[u16], affinity: Option<Duration>) -> Route {
        let candidates = ports.iter().map(|port| Candidate::equal(endpoint(*port))).collect();
        Route { candidates, method: Method::RoundRobin, affinity, options: Options::default() }
    }

    fn client(number: u8) -> Arrival {
        Arrival { client: ([192, 168, 50, number], 40000).into(), frontend: ([10, 96, 0, 1], 80).into() }
    }

    #[test]
    fn a_client_with_affinity_keeps_its_endpoint_until_that_fails_or_goes() {
        let sticky = Some(Duration::from_secs(3600));
        let pool = Arc::new(Pool::new(&route(&[1, 2, 3], sticky), 0));
        let first = pool.pick(&client(1), &[]).expect("one of three").endpoint();
        let again = |excluded: &[SocketAddr]| pool.pick(&client(1), excluded).expect("another").endpoint();
        assert!((0..9).all(|_| again(&[]) == first));
        let second = again(&[first]);
        assert_ne!(second, first, "it did not answer");
        assert_eq!(again(&[]), second, "and the client moves for good");
        let others: Vec<u16> = [1, 2, 3].into_iter().filter(|port| endpoint(*port) != second).collect();
        pool.set(&route(&others, sticky));
        assert_ne!(again(&[]), second, "it has gone");
    }

    #[test]
    fn endpoints_are_remembered_as_long_as_they_have_connections() {
        let pool = Arc::new(Pool::new(&route(&[1], None), 0));
        let held = pool.pick(&client(1), &[]).expect("the only one");
        held.connected(Duration::from_millis(1));
        held.count(3, 4);
        pool.set(&route(&[2], None));
        let status = pool.endpoints();
        let expected = EndpointStatus { active: 1, connections: 1, received: 3, sent: 4, ..EndpointStatus::default() };
        assert_eq!((status.len(), status[&endpoint(1)]), (2, expected));
        drop(held);
        pool.set(&route(&[], None));
        assert_eq!(pool.endpoints().len(), 0);
        assert!(pool.pick(&client(1), &[]).is_none());
    }
}

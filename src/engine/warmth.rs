//! Since when endpoints are ready, of Services with slow start.
//!
//! What counts is an endpoint's *warmth*: how long it has been ready, at most the window. It grows while the endpoint is ready and
//! shrinks as fast while it is not, so time is neither won nor lost by flapping: who was away for a moment goes on where it was, who
//! was away for as long as it had been ready begins anew. Away is whoever is not ready, or in no slice.
//!
//! Warm from the beginning is who is ready when we begin to look at a Service: at the first compilation (a restart of the controller
//! must not start endpoints again), and when the annotation comes. An endpoint is its address and its pod's name: a pod that gets the address of another begins.
//!
//! Invariants: no clock; a Service without the annotation costs nothing and leaves nothing; a wake-up is asked for only while somebody
//! grows. Proven by `engine/tuning_tests.rs`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::model::map::HashMap;
use crate::model::tuning::SlowStart;
use crate::model::{Endpoint, Service, ServiceKey, Slice};
use crate::policy::Warming;

/// The endpoints of all Services with slow start.
#[derive(Debug, Default)]
pub(super) struct Warmth {
    services: HashMap<ServiceKey, HashMap<Identity, Warm>>,
}

/// An address, and who is behind it.
type Identity = (IpAddr, Option<Box<str>>);

/// How warm an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Warm {
    ready: bool,
    /// At this time...
    at: Instant,
    /// ...it was so warm.
    warmth: Duration,
}

/// What became of a Service's endpoints.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Who has less than all of its weight.
    pub(super) warming: Warming,
    /// When that changes next, unless something else happens.
    pub(super) next: Option<Instant>,
}

// === impl Warm ===

impl Warm {
    /// Moves to `now`.
    fn advance(&mut self, now: Instant, window: Duration) {
        let passed = now.saturating_duration_since(self.at);
        let warmth = if self.ready { self.warmth.saturating_add(passed) } else { self.warmth.saturating_sub(passed) };
        *self = Self { warmth: warmth.min(window), at: now, ..*self };
    }
}

// === impl Warmth ===

impl Warmth {
    /// Takes note of a Service as it is now; without a `service`, or a time, there is nobody to watch.
    pub(super) fn update<'a>(
        &mut self,
        key: &ServiceKey,
        service: Option<&Service>,
        slices: impl Iterator<Item = &'a Slice>,
        now: Option<Instant>,
    ) -> Progress {
        let (Some(slow_start), Some(now)) = (service.and_then(|service| service.tuning.slow_start), now) else {
            self.services.remove(key);
            return Progress::default();
        };
        let ready: BTreeSet<Identity> =
            slices.flat_map(|slice| &slice.endpoints).filter(|one| one.ready).map(identity).collect();
        // Whoever is there when we begin to look has been there before, as far as we know.
        let newcomer = if self.services.contains_key(key) { Duration::ZERO } else { slow_start.window };
        let known = self.services.entry(key.clone()).or_default();
        known.values_mut().for_each(|warm| warm.advance(now, slow_start.window));
        for identity in &ready {
            known.entry(identity.clone()).or_insert(Warm { ready: true, at: now, warmth: newcomer });
        }
        known.retain(|identity, warm| {
            warm.ready = ready.contains(identity);
            warm.ready || !warm.warmth.is_zero()
        });
        progress(known, slow_start, now)
    }

    /// Who has less than all of its weight at this time, without taking note of anything.
    pub(super) fn warming(&self, key: &ServiceKey, service: &Service, now: Option<Instant>) -> Warming {
        let (Some(slow_start), Some(now)) = (service.tuning.slow_start, now) else { return Warming::default() };
        let Some(known) = self.services.get(key) else { return Warming::default() };
        let mut known = known.clone();
        known.values_mut().for_each(|warm| warm.advance(now, slow_start.window));
        progress(&known, slow_start, now).warming
    }

    /// How many endpoints are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.services.values().map(HashMap::len).sum()
    }
}

fn identity(endpoint: &Endpoint) -> Identity {
    (endpoint.address, endpoint.pod.clone())
}

fn progress(known: &HashMap<Identity, Warm>, slow_start: SlowStart, now: Instant) -> Progress {
    let mut progress = Progress::default();
    for ((address, _), warm) in known.iter().filter(|(_, warm)| warm.ready) {
        let percent = slow_start.percent(warm.warmth);
        if percent < 100 {
            progress.warming.0.insert(*address, percent);
        }
        if let Some(wait) = slow_start.until_next(warm.warmth) {
            let next = now + wait;
            progress.next = Some(progress.next.map_or(next, |known| known.min(next)));
        }
    }
    progress
}

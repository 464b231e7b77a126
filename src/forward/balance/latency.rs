//! Peak EWMA: how long an endpoint takes, remembered pessimistically.
//!
//! As in Finagle and Linkerd: a sample above the average replaces it at once (a peak), one below pulls it down by how long ago the
//! last one was: after [`DECAY`] the old average has a weight of 1/e. While nothing is heard, the average decays towards nothing, so
//! that an endpoint that was slow is tried again. The *cost* of an endpoint is this average times the connections it would have with
//! the new one, per unit of weight.
//!
//! Of whom nothing was ever heard the best is assumed that is known of the others: it gets a share, and not everything.

use std::time::{Duration, Instant};

use super::member::Member;

/// The time constant: ten seconds, as in Finagle and Linkerd.
pub(super) const DECAY: Duration = Duration::from_secs(10);
/// The least that a latency counts as: below it, differences are noise. Keeps costs above zero.
const LEAST: f64 = 1e-6;

/// The moving average of one endpoint, in seconds; see the module.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Latency {
    average: Option<(f64, Instant)>,
}

/// The cheaper of two; of equals, the first.
pub(super) fn cheaper(members: &[Member], eligible: &[usize], [a, b]: [usize; 2], now: Instant) -> usize {
    let known = |place: usize| members[place].latency.at(now);
    let (first, second) = match (known(a), known(b)) {
        (Some(first), Some(second)) => (first, second),
        (first, second) => {
            let best = eligible.iter().filter_map(|place| known(*place)).min_by(f64::total_cmp).unwrap_or(LEAST);
            (first.unwrap_or(best), second.unwrap_or(best))
        }
    };
    let cost = |place: usize, latency: f64| {
        latency.max(LEAST) * (f64::from(members[place].active) + 1.0) / f64::from(members[place].weight)
    };
    // Where both are equally fast, the weights have had their say in the draw.
    let (first, second) = (cost(a, first), cost(b, second));
    if second < first { b } else { a }
}

// === impl Latency ===

impl Latency {
    /// The average as it is now; `None` if nothing was ever heard.
    pub fn at(&self, now: Instant) -> Option<f64> {
        let (average, when) = self.average?;
        Some(average * remaining(now.saturating_duration_since(when)))
    }

    /// Takes a sample in.
    pub fn observe(&mut self, latency: Duration, now: Instant) {
        let sample = latency.as_secs_f64();
        let average = match self.average {
            Some((average, when)) if sample < average => {
                let old = remaining(now.saturating_duration_since(when));
                average * old + sample * (1.0 - old)
            }
            _ => sample,
        };
        self.average = Some((average, now));
    }
}

/// The weight of what is this old.
fn remaining(age: Duration) -> f64 {
    (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_at_once_and_decays_slowly() {
        let start = Instant::now();
        let mut latency = Latency::default();
        assert_eq!(latency.at(start), None);
        latency.observe(Duration::from_millis(10), start);
        assert_eq!(latency.at(start), Some(0.010));
        latency.observe(Duration::from_millis(500), start);
        assert_eq!(latency.at(start), Some(0.5), "a peak");
        latency.observe(Duration::from_millis(10), start);
        assert_eq!(latency.at(start), Some(0.5), "no time has passed: it stays");
        let later = start + DECAY;
        let expected = 0.5 / std::f64::consts::E;
        assert!((latency.at(later).expect("known") - expected).abs() < 1e-9);
        latency.observe(Duration::ZERO, later);
        assert!((latency.at(later).expect("known") - expected).abs() < 1e-9);
    }
}

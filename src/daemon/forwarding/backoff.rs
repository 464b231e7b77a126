//! When to try again what was refused: after a second, then after twice as long each time, and after half a minute at most.
//!
//! Each pause is up to a quarter longer or shorter than that, so that the nodes of a cluster, and the listeners of a node, that were
//! refused at the same time do not come back at the same time.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    /// Not before this.
    pub at: Instant,
    /// How long that was from the refusal.
    pub pause: Duration,
    /// The same for the next refusal, before chance has its say.
    next: Duration,
}

// === impl Backoff ===

impl Backoff {
    /// After a refusal now, and possibly one before.
    pub fn after(before: Option<Self>, now: Instant) -> Self {
        let about = before.map_or(FIRST, |before| before.next);
        let pause = about.mul_f64(0.75 + fastrand::f64() / 2.0);
        Self { at: now + pause, pause, next: (about * 2).min(LONGEST) }
    }

    /// Whether its time has come.
    pub fn is_due(&self, now: Instant) -> bool {
        self.at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_differ() {
        let now = Instant::now();
        let (mut last, mut pauses) = (None, Vec::new());
        for _ in 0..10 {
            let backoff = Backoff::after(last, now);
            assert!(!backoff.is_due(now) && backoff.is_due(now + backoff.pause));
            pauses.push(backoff.pause.as_secs_f64());
            last = Some(backoff);
        }
        for (pause, about) in pauses.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0, 30.0]) {
            assert!((about * 0.75..=about * 1.25).contains(pause), "{pause} for {about}");
        }
        let first: Vec<_> = (0..10).map(|_| Backoff::after(None, now).pause).collect();
        assert!(first.iter().any(|pause| *pause != first[0]), "not all at the same time");
    }
}

//! How many requests an API server is asked at most: a token bucket, as client-go has it.
//!
//! The bucket holds `burst` tokens and gets `per_second` of them. A request takes one, or the next that will come, and waits for it; so
//! nobody is overtaken. A watch is one request, however long it lasts. kube-proxy has one bucket for what it watches and one for its
//! Events, and so do we: [`super::ApiSource`] and [`super::Clients`] have their own.
//!
//! Proven by the tests here, and against the double by `requests_are_limited_as_configured` in `tests/source_api.rs`.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Nobody waits longer than this for the next token, however small the rate is.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A limit, `clientConnection.qps` and `.burst`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Requests per second in the long run; zero or less means any number, as in client-go.
    pub per_second: f32,
    /// Requests that may come at once; at least one may.
    pub burst: u32,
}

/// The bucket.
#[derive(Debug)]
pub(super) struct Limiter {
    /// In which time a token comes.
    interval: Duration,
    /// How much earlier than at its due time a request may be made.
    slack: Duration,
    /// When the bucket will be full again.
    full: Mutex<Instant>,
}

// === impl Limiter ===

impl Limiter {
    /// A full bucket; `None` if there is no limit.
    pub(super) fn new(rate: Rate) -> Option<Self> {
        let interval = (rate.per_second > 0.0)
            .then(|| Duration::try_from_secs_f32(1.0 / rate.per_second).unwrap_or(LONGEST).min(LONGEST))?;
        let slack = interval.saturating_mul(rate.burst.max(1) - 1);
        Some(Self { interval, slack, full: Mutex::new(Instant::now()) })
    }

    /// Takes a token, and waits until it is there.
    pub(super) async fn ready(&self) {
        let at = self.take(Instant::now());
        sleep_until(at).await;
    }

    /// Takes a token; returns when it will be there.
    fn take(&self, now: Instant) -> Instant {
        let mut full = self.full.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let due = (*full).max(now);
        *full = due + self.interval;
        now + due.duration_since(now).saturating_sub(self.slack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter(per_second: f32, burst: u32) -> Limiter {
        Limiter::new(Rate { per_second, burst }).expect("a limit")
    }

    #[test]
    fn a_burst_goes_at_once_and_the_rest_in_turn() {
        let bucket = limiter(5.0, 3);
        let now = Instant::now() + Duration::from_secs(1);
        let waits = |count| -> Vec<u128> {
            std::iter::repeat_with(|| bucket.take(now).duration_since(now).as_millis()).take(count).collect()
        };
        assert_eq!(waits(6), [0, 0, 0, 200, 400, 600]);
        // A second later two of the three that were lent have been paid back, and two more tokens have come.
        let later = now + Duration::from_secs(1);
        let waits: Vec<_> =
            std::iter::repeat_with(|| bucket.take(later).duration_since(later).as_millis()).take(4).collect();
        assert_eq!(waits, [0, 0, 200, 400]);
        // And it never holds more than a burst.
        let rested = now + Duration::from_secs(3600);
        let waits: Vec<_> =
            std::iter::repeat_with(|| bucket.take(rested).duration_since(rested).as_millis()).take(4).collect();
        assert_eq!(waits, [0, 0, 0, 200]);
    }

    #[test]
    fn any_rate_is_borne() {
        for per_second in [0.0, -1.0, f32::NAN] {
            assert!(Limiter::new(Rate { per_second, burst: 10 }).is_none(), "{per_second}");
        }
        let now = Instant::now();
        for (per_second, burst) in [(f32::MIN_POSITIVE, u32::MAX), (f32::MAX, 1), (f32::INFINITY, 0), (0.001, 1)] {
            let bucket = limiter(per_second, burst);
            for _ in 0..3 {
                assert!(bucket.take(now) <= now + LONGEST * 3, "{per_second}");
            }
        }
    }
}

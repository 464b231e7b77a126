//! Setting endpoints aside that keep failing.
//!
//! An endpoint is in good standing until [`FAILURES`] connections in a row fail. Then it is set aside for [`FIRST_SPAN`]. When that
//! is over, one connection tries it (others go on passing it by); if that fails, it is set aside for twice as long as before, up to
//! [`LONGEST_SPAN`]; if it succeeds, all is forgotten. Failures of connections that were under way while it was set aside say
//! nothing new and change nothing.

use std::time::{Duration, Instant};

/// Failures in a row that end good standing.
pub(super) const FAILURES: u32 = 3;
/// For how long an endpoint is set aside at first.
pub(super) const FIRST_SPAN: Duration = Duration::from_secs(1);
/// For how long at most.
pub(super) const LONGEST_SPAN: Duration = Duration::from_secs(60);
/// How long a trial may remain without a result before the next connection is a trial too: more than any dial takes.
pub(super) const TRIAL: Duration = Duration::from_secs(5);

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Fewer than [`FAILURES`] failures in a row.
    Good { failures: u32 },
    /// Not to be chosen before `until`; then it may be tried.
    Aside { until: Instant, span: Duration },
    /// Is being tried; not to be chosen by others before `until`.
    Trial { until: Instant, span: Duration },
}

impl Default for Standing {
    fn default() -> Self {
        Self::Good { failures: 0 }
    }
}

impl Standing {
    /// Whether it may be chosen without asking for the time.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Good { .. })
    }

    /// For what span it is set aside, if it is now.
    pub fn set_aside(&self, now: Instant) -> Option<Duration> {
        match *self {
            Self::Good { .. } => None,
            Self::Aside { until, span } | Self::Trial { until, span } => (now < until).then_some(span),
        }
    }

    /// It was chosen: if its time was over, this is its trial.
    pub fn tried(&mut self, now: Instant) {
        if let Self::Aside { until, span } | Self::Trial { until, span } = *self
            && now >= until
        {
            *self = Self::Trial { until: now + TRIAL, span };
        }
    }

    /// A connection was accepted.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A connection failed.
    pub fn failed(&mut self, now: Instant) {
        *self = match *self {
            Self::Good { failures } if failures + 1 < FAILURES => Self::Good { failures: failures + 1 },
            Self::Good { .. } => Self::Aside { until: now + FIRST_SPAN, span: FIRST_SPAN },
            Self::Aside { .. } => return,
            Self::Trial { span, .. } => {
                let span = (span * 2).min(LONGEST_SPAN);
                Self::Aside { until: now + span, span }
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_double_up_to_a_minute_and_a_success_forgets() {
        let mut now = Instant::now();
        let mut standing = Standing::default();
        standing.failed(now);
        standing.succeeded();
        for _ in 0..FAILURES - 1 {
            standing.failed(now);
            assert!(standing.is_good(), "a success in between: counted from the beginning");
        }
        standing.failed(now);
        let mut spans = Vec::new();
        for _ in 0..8 {
            let span = standing.set_aside(now).expect("set aside");
            spans.push(span.as_secs());
            // Those who were under way already do not lengthen it.
            standing.failed(now);
            assert_eq!(standing.set_aside(now + span - Duration::from_nanos(1)), Some(span));
            now += span;
            assert_eq!(standing.set_aside(now), None);
            standing.tried(now);
            assert_eq!(standing.set_aside(now), Some(span), "one trial at a time");
            standing.failed(now);
        }
        assert_eq!(spans, [1, 2, 4, 8, 16, 32, 60, 60]);
        standing.succeeded();
        assert_eq!(standing, Standing::default());
    }

    #[test]
    fn a_trial_without_a_result_is_followed_by_another() {
        let now = Instant::now();
        let mut standing = Standing::Aside { until: now, span: FIRST_SPAN };
        standing.tried(now);
        assert!(standing.set_aside(now).is_some());
        assert!(standing.set_aside(now + TRIAL).is_none());
        standing.tried(now + TRIAL);
        assert!(standing.set_aside(now + TRIAL).is_some());
    }
}

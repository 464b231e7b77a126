//! When to walk through the kernel's table.
//!
//! A walk (a *review*) is due for subjects that are new, for all of them after a loss, and for all from time to time: often as long as there
//! are flows that no event has told of, more often where there are no events at all, seldom otherwise. However much is due, the pause
//! between two walks is never less than a hundred times what the last one took, so walking takes one per cent of a thread at most; what
//! becomes due meanwhile is looked for together.
//!
//! No clock: time is what the caller says.

use std::time::{Duration, Instant};

/// Time between reviews of everything: when the kernel tells of nothing, while some flows may end in silence, and when none can.
const DEAF: Duration = Duration::from_secs(1);
const OFTEN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(120);

/// The next review comes after so many times what the last one took, at least.
const SHARE: u32 = 100;

/// The reviews that were.
#[derive(Debug, Default)]
pub(super) struct Reviews {
    /// When the last one ended, and how long it took.
    last: Option<(Instant, Duration)>,
    /// When the last one of everything ended.
    complete: Option<Instant>,
}

/// What there is to say about the flows that are counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct State {
    /// There are subjects that have to be looked at.
    pub(super) wanted: bool,
    /// There are flows of whose end the kernel may not tell.
    pub(super) silent: bool,
    /// The kernel tells of nothing.
    pub(super) deaf: bool,
}

// === impl Reviews ===

impl Reviews {
    /// One has ended that took so long.
    pub(super) fn ended(&mut self, now: Instant, took: Duration, complete: bool) {
        self.last = Some((now, took));
        if complete {
            self.complete = Some(now);
        }
    }

    /// When the next one of everything is due.
    pub(super) fn next_complete(&self, state: State) -> Option<Instant> {
        let pause = match state {
            State { deaf: true, .. } => DEAF,
            State { silent: true, .. } => OFTEN,
            _ => SELDOM,
        };
        Some(self.complete? + pause)
    }

    /// How long until the next one; zero: now.
    pub(super) fn wait(&self, now: Instant, state: State) -> Option<Duration> {
        let due = if state.wanted { Some(now) } else { self.next_complete(state) };
        let rested = self.last.map_or(now, |(ended, took)| ended + took * SHARE);
        Some(due?.max(rested).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn often_enough_and_never_too_often() {
        let (begin, ms) = (Instant::now(), Duration::from_millis);
        let wanted = State { wanted: true, ..State::default() };
        let mut reviews = Reviews::default();
        assert_eq!(reviews.wait(begin, State::default()), None);
        assert_eq!(reviews.wait(begin, wanted), Some(ms(0)), "the first one at once");
        reviews.ended(begin, ms(50), true);
        assert_eq!(reviews.wait(begin, wanted), Some(ms(5_000)), "also after a loss, and for who is new");
        assert_eq!(reviews.wait(begin + ms(6_000), wanted), Some(ms(0)));
        let table = [
            (State::default(), 120_000),
            (State { silent: true, ..State::default() }, 5_000),
            (State { deaf: true, ..State::default() }, 5_000),
        ];
        for (state, millis) in table {
            assert_eq!(reviews.wait(begin, state), Some(ms(millis)), "{state:?}");
        }
        // One of a few subjects is none of all.
        reviews.ended(begin + ms(100_000), ms(2), false);
        assert_eq!(reviews.wait(begin + ms(100_000), State::default()), Some(ms(20_000)));
        assert_eq!(reviews.wait(begin + ms(100_000), wanted), Some(ms(200)));
        reviews.ended(begin + ms(200_000), ms(1), true);
        let deaf = State { deaf: true, ..State::default() };
        assert_eq!(reviews.wait(begin + ms(200_000), deaf), Some(ms(1_000)));
    }
}

//! What goes wrong between us and the server, how long to wait then, and saying so once.
//!
//! A *failure* is one attempt that did not work. A *trouble* is the time from the first failure to the next success: it is
//! logged when it begins, with its reason, and when it ends, with its duration; what happens in between is for debugging.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use kube::core::Status;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Kind, Timing};

/// Why an attempt did not work, by what has to be done about it.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens to us any more: stop.
    Closed,
    /// Our version is too old, or from another life of the server: list again.
    Expired(String),
    /// The server does not do streaming lists, it said so: list and watch from now on.
    Refused(String),
    /// It looks as if the server did not know streaming lists: see whether a list works.
    Doubtful(String),
    /// What came cannot be trusted: list again.
    Garbled(String),
    /// The credentials were not accepted: read them again.
    Unauthorized(String),
    /// No answer, or no more of it: connect again.
    Transport(String),
    /// The server answered that it cannot; it may have said for how long.
    Server(String, Option<Duration>),
}

/// Doubling delays with jitter.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

/// The trouble we are in, if any.
#[derive(Debug)]
pub(super) struct Trouble {
    kind: Kind,
    since: Option<Instant>,
}

// === impl Failure ===

impl Failure {
    /// Sorts an error of the client.
    pub(super) fn of(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(&status),
            kube::Error::SerdeError(error) => Self::Garbled(error.to_string()),
            error => Self::Transport(chain(&error)),
        }
    }

    /// Sorts a refusal by the server, be it the answer itself or an ERROR event.
    pub(super) fn of_status(status: &Status) -> Self {
        let text = format!("{} {}: {}", status.code, status.reason, status.message.trim());
        // A server that was restored from a backup, or one that lags behind its peers, does not know our version yet.
        let too_large = status.message.contains("Too large resource version")
            || status.details.iter().flat_map(|details| &details.causes).any(|c| c.reason == "ResourceVersionTooLarge");
        match status.code {
            410 => Self::Expired(text),
            _ if too_large || matches!(status.reason.as_str(), "Expired" | "Gone") => Self::Expired(text),
            401 => Self::Unauthorized(text),
            _ => {
                let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                Self::Server(text, (seconds > 0).then(|| Duration::from_secs(seconds.into())))
            }
        }
    }

    /// Like [`Failure::of`], for a request that asked for a streaming list: some answers mean "not that way". An API server
    /// whose gate is off says 422 (its cause is of the type FieldValueForbidden), a proxy in front of it may say 400 or 403.
    pub(super) fn of_streaming(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &error
            && (matches!(status.code, 400 | 422)
                || status.is_invalid()
                || (status.code == 403 && status.message.contains("sendInitialEvents")))
        {
            return Self::Refused(format!("{} {}: {}", status.code, status.reason, status.message.trim()));
        }
        Self::of(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the receiver is gone"),
            Self::Expired(reason)
            | Self::Refused(reason)
            | Self::Doubtful(reason)
            | Self::Garbled(reason)
            | Self::Unauthorized(reason)
            | Self::Transport(reason)
            | Self::Server(reason, _) => f.write_str(reason),
        }
    }
}

/// An error and its causes on one line, without those that the one before already spells out.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

// === impl Backoff ===

impl Backoff {
    pub(super) fn new(timing: &Timing) -> Self {
        Self { first: timing.backoff_first, max: timing.backoff_max, next: timing.backoff_first }
    }

    /// The next delay: between an eighth and the whole of a value that doubles from the first to the longest.
    pub(super) fn delay(&mut self) -> Duration {
        let whole = self.next.min(self.max);
        self.next = whole * 2;
        whole.mul_f64(0.125 + 0.875 * fastrand::f64())
    }

    /// Never longer than this, whatever the server asks for.
    pub(super) fn max(&self) -> Duration {
        self.max
    }

    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// Whether there was a failure since the last reset.
    pub(super) fn is_raised(&self) -> bool {
        self.next > self.first
    }
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn none(kind: Kind) -> Self {
        Self { kind, since: None }
    }

    pub(super) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// Another failure: the first one is worth a warning.
    pub(super) fn begin(&mut self, reason: &Failure) {
        let kind = self.kind.name();
        if self.since.is_none() {
            self.since = Some(Instant::now());
            warn!(kind, %reason, "API server: trouble; what was learnt so far stays, retrying");
        } else {
            debug!(kind, %reason, "API server: still in trouble");
        }
    }

    /// A success.
    pub(super) fn end(&mut self) {
        if let Some(since) = self.since.take() {
            let lasted = format!("{:.3}s", since.elapsed().as_secs_f64());
            info!(kind = self.kind.name(), lasted, "API server: the trouble is over");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_are_never_zero() {
        let timing = Timing::default();
        let mut backoff = Backoff::new(&timing);
        let mut whole = timing.backoff_first;
        for _ in 0..20 {
            let delay = backoff.delay();
            assert!(delay >= whole / 8 && delay <= whole, "{delay:?} of {whole:?}");
            whole = (whole * 2).min(timing.backoff_max);
        }
        backoff.reset();
        assert!(backoff.delay() <= timing.backoff_first);
    }

    /// An hour without a server: few attempts, and no two nodes make theirs at the same times.
    #[test]
    fn an_hour_of_trouble_is_few_attempts_at_times_of_ones_own() {
        let hour = Duration::from_secs(3600);
        let attempts = || {
            let mut backoff = Backoff::new(&Timing::default());
            let mut at = Duration::ZERO;
            std::iter::from_fn(move || {
                at += backoff.delay();
                (at < hour).then_some(at)
            })
            .collect::<Vec<_>>()
        };
        let nodes: Vec<_> = (0..100).map(|_| attempts()).collect();
        for attempts in &nodes {
            assert!((120..400).contains(&attempts.len()), "{} attempts in an hour", attempts.len());
        }
        // In no tenth of a second of the last half hour does a tenth of all nodes come.
        let mut busy = std::collections::BTreeMap::<u128, usize>::new();
        nodes
            .iter()
            .flatten()
            .filter(|at| **at > hour / 2)
            .for_each(|at| *busy.entry(at.as_millis() / 100).or_default() += 1);
        assert!(busy.values().all(|count| *count < 10), "{:?}", busy.values().max());
    }

    #[test]
    fn statuses_are_sorted_by_remedy() {
        let status = |code, reason: &str, message: &str| Status::failure(message, reason).with_code(code);
        assert!(matches!(Failure::of_status(&status(410, "Expired", "old")), Failure::Expired(_)));
        let too_large = status(504, "Timeout", "Too large resource version: 7, current: 3");
        assert!(matches!(Failure::of_status(&too_large), Failure::Expired(_)));
        assert!(matches!(Failure::of_status(&status(401, "Unauthorized", "")), Failure::Unauthorized(_)));
        assert!(matches!(Failure::of_status(&status(500, "InternalError", "")), Failure::Server(_, None)));
        let invalid = || kube::Error::Api(status(422, "Invalid", "sendInitialEvents: Forbidden").boxed());
        assert!(matches!(Failure::of_streaming(invalid()), Failure::Refused(_)));
        assert!(matches!(Failure::of(invalid()), Failure::Server(..)));
        let rbac = kube::Error::Api(status(403, "Forbidden", "cannot watch services").boxed());
        assert!(matches!(Failure::of_streaming(rbac), Failure::Server(..)));
    }
}

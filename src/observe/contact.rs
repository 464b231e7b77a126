//! When the API server answered last, and what its clock said: for who asks how the daemon is.
//!
//! Noted where requests are counted ([`super::metrics::CountRequests`]), so it is about all clients of this process, which all have one server. A watch is an
//! answer when it begins; the next one comes when it ends, after some minutes.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use crate::status::ApiHealth;

static LAST: Mutex<Option<ApiHealth>> = Mutex::new(None);

/// What is known; `None`: nobody was asked yet.
pub(super) fn last() -> Option<ApiHealth> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A request was answered by `server`, perhaps with a `Date`, or it was not.
pub(super) fn note(server: &str, answer: Result<Option<&str>, String>) {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let before = last.take();
    *last = Some(noted(before, server, answer, Timestamp::now()));
}

fn noted(before: Option<ApiHealth>, server: &str, answer: Result<Option<&str>, String>, now: Timestamp) -> ApiHealth {
    let known = before.filter(|known| known.server == server);
    let (last_answer, known_skew) = known.map_or((None, None), |known| (known.last_answer, known.clock_skew_seconds));
    let server = server.to_owned();
    match answer {
        Ok(date) => {
            let clock_skew_seconds = date.and_then(|date| skew(date, now)).or(known_skew);
            ApiHealth { server, last_answer: Some(now), last_error: None, clock_skew_seconds }
        }
        Err(error) => ApiHealth { server, last_answer, last_error: Some(error), clock_skew_seconds: known_skew },
    }
}

/// How far our clock is ahead of one that said this just now, in seconds. A `Date` is cut to whole seconds: it is half a second off, in the mean.
fn skew(date: &str, now: Timestamp) -> Option<f64> {
    let said = DateTimeParser::new().parse_timestamp(date).ok()?;
    Some(now.duration_since(said).as_secs_f64() - 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts_and_a_failure_forgets_nothing() {
        let at = |seconds: i64| Timestamp::from_second(1_764_313_200 + seconds).expect("a time");
        let date = "Fri, 28 Nov 2025 07:00:00 GMT";
        let first = noted(None, "a:443", Ok(Some(date)), at(10));
        assert_eq!((first.clock_skew_seconds, first.last_answer), (Some(9.5), Some(at(10))));
        let failed = noted(Some(first), "a:443", Err("refused".to_owned()), at(20));
        assert_eq!(
            (failed.last_error.as_deref(), failed.last_answer, failed.clock_skew_seconds),
            (Some("refused"), Some(at(10)), Some(9.5))
        );
        let again = noted(Some(failed.clone()), "a:443", Ok(None), at(30));
        assert_eq!((again.last_error, again.last_answer, again.clock_skew_seconds), (None, Some(at(30)), Some(9.5)));
        let other = noted(Some(failed), "b:443", Ok(Some("yesterday")), at(40));
        assert_eq!((other.last_answer, other.clock_skew_seconds), (Some(at(40)), None));
    }
}

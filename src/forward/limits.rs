//! How much is too much: connections, descriptors, log lines.
//!
//! A connection needs two descriptors, and up to four more while it is busy, which it can do without. The soft limit of descriptors
//! is raised to the hard one at the start, and the process takes no more connections than half of what is left after a
//! [`RESERVE`] for everything else. When descriptors run out all the same (others in the process use them, or the whole machine has
//! none left), a *spare* descriptor is given up to accept the next client and refuse it properly, and accepting pauses.

use std::fs::File;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors for everything in the process that is no connection.
const RESERVE: u64 = 512;

/// Between two log lines about the same trouble.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many connections there may be at once, and how many there are: of one forwarder, or of several that share it.
#[derive(Debug)]
pub struct Gate {
    limit: usize,
    active: AtomicUsize,
}

/// A descriptor to give up when there are no others.
#[derive(Debug)]
pub(super) struct Spare(Mutex<Option<File>>);

/// Lets a line through now and then, and knows how many it has kept back.
#[derive(Debug, Default)]
pub(super) struct Occasionally {
    last: Mutex<Option<Instant>>,
    kept_back: AtomicU64,
}

/// Raises the soft limit of open descriptors to the hard limit. Returns what it is now.
fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// How many connections so many descriptors are enough for.
fn connections_for(descriptors: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(RESERVE) / 2).unwrap_or(usize::MAX).max(16)
}

// === impl Gate ===

impl Gate {
    /// For so many.
    pub fn new(limit: usize) -> Self {
        Self { limit, active: AtomicUsize::new(0) }
    }

    /// For so many, or else as many as the process has descriptors for. Raises the soft limit of those to the hard one.
    pub fn of_process(limit: Option<usize>) -> Self {
        let descriptors = raise_descriptors();
        Self::new(limit.unwrap_or_else(|| connections_for(descriptors)))
    }

    /// One more, unless there are too many.
    pub(super) fn enter(&self) -> bool {
        let entered = self.active.fetch_add(1, Ordering::AcqRel) < self.limit;
        if !entered {
            self.leave();
        }
        entered
    }

    /// One less.
    pub(super) fn leave(&self) {
        self.active.fetch_sub(1, Ordering::AcqRel);
    }

    /// How many there are.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }
}

// === impl Spare ===

impl Spare {
    /// Takes a descriptor for later.
    pub fn new() -> Self {
        Self(Mutex::new(File::open("/dev/null").ok()))
    }

    /// Runs this with one descriptor more to spend, which it must have given back when it ends.
    pub fn with<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut spare = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        drop(spare.take());
        let result = work();
        *spare = File::open("/dev/null").ok();
        result
    }
}

// === impl Occasionally ===

impl Occasionally {
    /// Whether it is time for a line; then also how many were kept back since the last one.
    pub fn now(&self) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            self.kept_back.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        *last = Some(Instant::now());
        Some(self.kept_back.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_lets_so_many_in_and_counts() {
        let gate = Gate::new(2);
        assert!(gate.enter() && gate.enter() && !gate.enter());
        assert_eq!(gate.active(), 2, "who was turned away does not count");
        gate.leave();
        assert!(gate.enter());
    }

    #[test]
    fn descriptors_are_shared_out() {
        assert_eq!(connections_for(20_512), 10_000);
        assert_eq!(connections_for(256), 16, "a few always");
        let limit = raise_descriptors();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).expect("a limit").0, limit);
    }

    #[test]
    fn a_line_now_and_how_many_were_kept_back_then() {
        let lines = Occasionally::default();
        assert_eq!(lines.now(), Some(0));
        assert_eq!((lines.now(), lines.now()), (None, None));
        *lines.last.lock().expect("not poisoned") = None;
        assert_eq!(lines.now(), Some(2));
    }
}

//! What an operation took: transactions, bytes, time.

use std::time::{Duration, Instant};

/// What applying a difference took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Elements added and removed.
    pub elements: usize,
    /// Transactions committed.
    pub transactions: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time from the first byte encoded to the last acknowledgement.
    pub duration: Duration,
    /// The longest single transaction.
    pub longest: Duration,
    /// Chains that nobody uses any more and that the kernel would not delete yet, per family: the next call tries again.
    pub stuck: [usize; 2],
}

/// Adds up what an operation took.
pub(super) struct Work {
    begin: Instant,
    applied: Applied,
}

// === impl Applied ===

impl Applied {
    /// Adds a later operation that belongs to the same change.
    pub fn followed_by(&mut self, later: Applied) {
        self.elements += later.elements;
        self.transactions += later.transactions;
        self.bytes += later.bytes;
        self.duration += later.duration;
        self.longest = self.longest.max(later.longest);
        self.stuck = later.stuck;
    }
}

// === impl Work ===

impl std::ops::Deref for Work {
    type Target = Applied;

    fn deref(&self) -> &Applied {
        &self.applied
    }
}

impl std::ops::DerefMut for Work {
    fn deref_mut(&mut self) -> &mut Applied {
        &mut self.applied
    }
}

impl Work {
    pub(super) fn begin() -> Self {
        Self { begin: Instant::now(), applied: Applied::default() }
    }

    pub(super) fn add(&mut self, other: Applied) {
        self.elements += other.elements;
        self.transactions += other.transactions;
        self.bytes += other.bytes;
        self.longest = self.longest.max(other.longest);
        for (stuck, more) in self.stuck.iter_mut().zip(other.stuck) {
            *stuck += more;
        }
    }

    pub(super) fn end(mut self) -> Applied {
        self.applied.duration = self.begin.elapsed();
        self.applied
    }
}

//! What the thread that counts connections has done, for whoever asks: tests, benches, metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the thread has done so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub(super) events: AtomicU64,
    pub(super) reviews: AtomicU64,
    pub(super) losses: AtomicU64,
    pub(super) flows: AtomicU64,
    pub(super) looked_for: AtomicU64,
    pub(super) subjects: AtomicU64,
}

// === impl Tally ===

impl Tally {
    /// Events that the kernel handed out.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Walks through the kernel's table, as far as they were complete.
    pub fn reviews(&self) -> u64 {
        self.reviews.load(Ordering::Relaxed)
    }

    /// How often events were lost.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Service ports counted, per family.
    pub fn subjects(&self) -> u64 {
        self.subjects.load(Ordering::Relaxed)
    }

    /// For how many subjects these walks were, one by one.
    pub fn looked_for(&self) -> u64 {
        self.looked_for.load(Ordering::Relaxed)
    }

    /// Connections counted now.
    pub fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }
}

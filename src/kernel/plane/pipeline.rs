//! Two processors at once: while the kernel takes one part of a large change, the caller makes the next.
//!
//! Half the time of a first load is the kernel's, and a transaction's sender waits for it. So that is done by a thread of its own, which has the
//! connection as long as it lives; the caller's thread has the model. Order and contents of transactions are as they would be on one thread, and
//! where there is no thread to be had it is done on one.
//!
//! Proven by `tests/kernel/large.rs` (a first load in parts, also one that is cut short), `tests/e2e/life.rs` (storms, as the
//! controller has them) and `tests/e2e/manifests.rs` (one that outgrows its tables).

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::table::count;
use super::work::{Applied, Work};
use super::{DataPlane, Receive};
use crate::compile::{Crowd, Delta};
use crate::kernel::both::both;
use crate::kernel::error::KernelError;
use crate::kernel::skeleton::{Counts, ENDPOINTS, MEMBER_SLOTS, MEMBERS, Sizes};

/// Parts that may wait while one is being programmed; each takes about a megabyte.
const AHEAD: usize = 2;

/// What the threads that program are called, so that one sees in `top` who is busy.
const NAME: &str = "programmer";

impl DataPlane {
    /// Builds the tables where there are none ([`DataPlane::is_vacant`]) out of parts that `parts` hands out, so that nobody has to hold
    /// everything at once. Before that, `outline` says how large the maps have to be: all but what there is as much of as endpoints, and how much that is, by
    /// family. No packet meets a table that is not complete; if this fails halfway, what was built is a table to be finished or replaced.
    ///
    /// # Errors
    /// What `outline` or `parts` ended with, or the kernel's refusal of a part; those after it are not sent.
    pub fn build(
        &mut self,
        outline: impl FnOnce(Receive<'_>) -> Result<[Crowd; 2], KernelError>,
        parts: impl Fn(Receive<'_>) -> Result<(), KernelError>,
    ) -> Result<Applied, KernelError> {
        let mut work = Work::begin();
        let mut counts: Vec<_> = self.tables.iter().map(|state| (state.family, Counts::default())).collect();
        let crowds = outline(&mut |part| {
            counts.iter_mut().for_each(|(family, counts)| count(part.table(*family), counts));
            Ok(())
        })?;
        for (state, (family, mut counts)) in self.tables.iter_mut().zip(counts) {
            let Crowd { endpoints, member_slots, members } = crowds[family as usize];
            for (set, number) in [(ENDPOINTS, endpoints), (MEMBER_SLOTS, member_slots), (MEMBERS, members)] {
                counts.add(set, number.cast_signed());
            }
            state.sizes = Sizes::for_counts(&counts);
        }
        self.found(&mut work)?;
        let built = self.update_in_turn(&parts, &mut work);
        built.map_err(|error| self.outgrown(error))?;
        self.activate(&mut work)?;
        Ok(work.end())
    }

    /// Applies a difference, as [`DataPlane::apply`], and does something else meanwhile.
    pub fn apply_while<T>(
        &mut self,
        delta: &Delta,
        meanwhile: impl FnOnce() -> T,
    ) -> (Result<Applied, KernelError>, T) {
        both(NAME, || self.apply(delta), meanwhile)
    }

    fn update_in_turn(
        &mut self,
        parts: &impl Fn(Receive<'_>) -> Result<(), KernelError>,
        work: &mut Work,
    ) -> Result<(), KernelError> {
        let started = thread::scope(|scope| {
            let (send, received) = sync_channel(AHEAD);
            let (plane, work) = (&mut *self, &mut *work);
            let updating = move || plane.update_all(&received, work);
            let updating = thread::Builder::new().name(NAME.to_owned()).spawn_scoped(scope, updating).ok()?;
            // Whoever receives does so until we stop sending.
            let made = parts(&mut |part| {
                let _ = send.send(part);
                Ok(())
            });
            drop(send);
            Some(updating.join().unwrap_or_else(|panic| resume_unwind(panic)).and(made))
        });
        started.unwrap_or_else(|| parts(&mut |part| self.update(&part, work)))
    }

    /// Programs part after part; after a failure the rest is thrown away.
    fn update_all(&mut self, parts: &Receiver<Delta>, work: &mut Work) -> Result<(), KernelError> {
        let mut result = Ok(());
        // To the last one, or the sender would wait.
        for part in parts {
            result = result.and_then(|()| self.update(&part, work));
        }
        result
    }
}

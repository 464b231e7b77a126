//! Two processors at once: while the kernel takes one part of a large change, the caller makes the next.
//!
//! Half the time of a first load is the kernel's, and a transaction's sender waits for it. So that is done by a thread of its own, which has the
//! connection as long as it lives; the caller's thread has the model. Order and contents of transactions are as they would be on one thread, and
//! where there is no thread to be had it is done on one. After a refusal no part is taken any more.
//!
//! Proven by `tests/kernel/large.rs` (a first load in parts, also one that is cut short), `tests/e2e/life.rs` (storms, as the
//! controller has them) and `tests/e2e/manifests.rs` (one that outgrows its tables).

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;

use super::work::{Applied, Work};
use super::{DataPlane, Receive};
use crate::compile::{Delta, Forecast};
use crate::kernel::error::KernelError;
use crate::kernel::skeleton::{Counts, Sizes};

/// Parts that may wait while one is being programmed; each takes about a megabyte.
const AHEAD: usize = 2;

/// What the threads that program are called, so that one sees in `top` who is busy.
const NAME: &str = "programmer";

/// No part is taken any more: why is what the call ends with that they were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl DataPlane {
    /// Builds the tables where there are none ([`DataPlane::is_vacant`]) out of parts that `parts` hands out, so that nobody has to hold
    /// everything at once. How large the maps have to be is `forecast`, by family. No packet meets a table that is not complete; if this
    /// fails halfway, what was built is a table to be finished or replaced.
    ///
    /// # Errors
    /// The kernel's refusal of a part; those after it are not sent.
    pub fn build(
        &mut self,
        forecast: &[Forecast; 2],
        parts: impl FnMut(Receive<'_>) -> Result<(), Refused>,
    ) -> Result<Applied, KernelError> {
        let mut work = Work::begin();
        for state in &mut self.tables {
            state.sizes = Sizes::for_counts(&Counts::from(&forecast[state.family as usize]));
        }
        self.found(&mut work)?;
        self.transaction.clear();
        for state in &mut self.tables {
            state.add_shared_chains(&mut self.transaction, &forecast[state.family as usize].plans);
        }
        self.commit(&mut work)?;
        let built = self.in_turn(parts, |plane, part| plane.update(part, &mut work));
        built.map_err(|error| self.outgrown(error))?;
        self.activate(&mut work)?;
        Ok(work.end())
    }

    /// Applies differences, each as [`DataPlane::apply`], while `parts` makes the next ones.
    ///
    /// # Errors
    /// The kernel's refusal of a part; those after it are not sent.
    pub fn apply_in_turn(
        &mut self,
        parts: impl FnMut(Receive<'_>) -> Result<(), Refused>,
    ) -> Result<Applied, KernelError> {
        let mut applied = Applied::default();
        self.in_turn(parts, |plane, part| {
            applied.followed_by(plane.apply(part)?);
            Ok(())
        })?;
        Ok(applied)
    }

    /// Hands all parts to `program`, on a thread of its own if there is one to be had.
    fn in_turn(
        &mut self,
        mut parts: impl FnMut(Receive<'_>) -> Result<(), Refused>,
        mut program: impl FnMut(&mut Self, &Delta) -> Result<(), KernelError> + Send,
    ) -> Result<(), KernelError> {
        let started = thread::scope(|scope| {
            let (send, received) = sync_channel::<Delta>(AHEAD);
            let (plane, program) = (&mut *self, &mut program);
            // Ends with a refusal, and the channel with it.
            let all = move || received.into_iter().try_for_each(|part| program(plane, &part));
            let programming = thread::Builder::new().name(NAME.to_owned()).spawn_scoped(scope, all).ok()?;
            // Whoever refuses says why.
            let _ = parts(&mut |part| send.send(part).map_err(|_| Refused));
            drop(send);
            Some(programming.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        started.unwrap_or_else(|| {
            let mut result = Ok(());
            let _ = parts(&mut |part| {
                result = program(self, &part);
                result.as_ref().map(drop).map_err(|_| Refused)
            });
            result
        })
    }
}

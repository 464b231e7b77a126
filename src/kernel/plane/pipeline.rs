//! Two processors at once: while the kernel takes one part of a large change, the caller makes the next.
//!
//! Half the time of a first load is the kernel's, and a transaction's sender waits for it. So that is done by a thread of its own, which has the
//! connection as long as it lives; the caller's thread has the model. Order and contents of transactions are as they would be on one thread, and
//! where there is no thread to be had it is done on one. After a refusal no part is taken any more.
//!
//! Proven by `tests/kernel/large.rs` (a first load in parts, also one that is cut short), `tests/e2e/life.rs` (storms, as the
//! controller has them) and `tests/e2e/manifests.rs` (one that outgrows its tables).

use super::DataPlane;
use super::work::{Applied, Work};
use crate::compile::Forecast;
use crate::kernel::both::{Receive, Refused, in_turn};
use crate::kernel::error::KernelError;
use crate::kernel::skeleton::{Counts, Sizes};

/// What the threads that program are called, so that one sees in `top` who is busy.
const NAME: &str = "programmer";

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
        let built = in_turn(NAME, parts, |part| self.update(&part, &mut work));
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
        in_turn(NAME, parts, |part| {
            applied.followed_by(self.apply(&part)?);
            Ok::<_, KernelError>(())
        })?;
        Ok(applied)
    }
}

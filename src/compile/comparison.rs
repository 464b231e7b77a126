//! What is desired beside what a kernel has, part by part, while the parts are being made.
//!
//! At a restart everything desired is compiled once, and nearly all of it is there. So each part is compared as it comes, by somebody else than who makes
//! the next one, and the image of what is there is only looked at: who compiles finds the numbers of pools in it meanwhile. What the
//! kernel has and nobody desires shows in the numbers alone: then there is more than was met.
//!
//! Proven by the property tests of `engine::tests`.

use std::sync::Arc;

use super::delta::{Delta, Image};
use crate::model::Family;

/// Compares everything desired with what a kernel has.
#[derive(Debug)]
pub struct Comparison {
    found: Arc<Image>,
    differing: Delta,
    /// Elements of the kernel's that are desired, like that or otherwise.
    met: usize,
    /// A part took back what an earlier one said.
    retracted: bool,
}

// === impl Comparison ===

impl Comparison {
    /// With what a kernel has.
    pub fn new(found: Arc<Image>) -> Self {
        Self { found, differing: Delta::default(), met: 0, retracted: false }
    }

    /// Takes a part of everything desired, as a delta to nothing.
    pub fn take(&mut self, mut part: Delta) {
        for family in Family::ALL {
            let part = std::mem::take(part.table_mut(family));
            self.retracted |= !part.is_all_new();
            self.met += part.differ_from(self.found.table(family), self.differing.table_mut(family));
        }
    }

    /// What differs, when all parts have been taken. `None`: the kernel has something that nobody desires, or a part took back what an earlier
    /// one said; [`super::Compiler::difference`] finds out what.
    pub fn end(self) -> Option<Delta> {
        let there = Family::ALL.into_iter().map(|family| self.found.table(family).len()).sum::<usize>();
        (self.met == there && !self.retracted).then_some(self.differing)
    }
}

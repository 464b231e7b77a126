//! Two things at once, on two processors.
//!
//! What waits for the kernel, or can wait for the caller, is done by a thread of its own, as long as the calling one does the rest. Where there is no
//! thread to be had, one is done after the other.
//!
//! Proven by who does so: `tests/kernel/large.rs` and `tests/kernel/reading.rs`.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use crate::compile::{Comparison, Delta, Image};

/// Parts that may wait while one is being taken; each takes about a megabyte.
const AHEAD: usize = 2;

/// What the thread is called that compares.
const COMPARER: &str = "comparer";

/// No part is taken any more: why is what the call ends with that they were made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Takes one part of a large change.
pub type Receive<'a> = &'a mut dyn FnMut(Delta) -> Result<(), Refused>;

/// Does the one on a thread of this name (one sees in `top` who is busy) and the other here. A panic of either is the caller's.
pub(super) fn both<A: Send, B>(name: &str, mut there: impl FnMut() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    let (of_thread, of_here) = thread::scope(|scope| {
        let started = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, &mut there);
        let of_here = here();
        (started.ok().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))), of_here)
    });
    (of_thread.unwrap_or_else(there), of_here)
}

/// Compares everything desired with what was found, part by part, while `parts` makes the next ones: see [`Comparison::end`].
pub fn compare_in_turn(found: Arc<Image>, parts: impl FnMut(Receive<'_>) -> Result<(), Refused>) -> Option<Delta> {
    let mut comparison = Comparison::new(found);
    let Ok(()) = in_turn(COMPARER, parts, |part| {
        comparison.take(part);
        Ok::<_, Infallible>(())
    });
    comparison.end()
}

/// Takes one part after the other on a thread of this name, in their order, while `parts` makes the next ones here. After an error no part is
/// taken any more. A panic of either is the caller's.
///
/// # Errors
/// What `take` ended with.
pub(super) fn in_turn<E: Send>(
    name: &str,
    mut parts: impl FnMut(Receive<'_>) -> Result<(), Refused>,
    mut take: impl FnMut(Delta) -> Result<(), E> + Send,
) -> Result<(), E> {
    let started = thread::scope(|scope| {
        let (send, received) = sync_channel(AHEAD);
        // Ends with an error, and the channel with it.
        let all = || received.into_iter().try_for_each(&mut take);
        let taking = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, all).ok()?;
        // Whoever refuses says why.
        let _ = parts(&mut |part| send.send(part).map_err(|_| Refused));
        drop(send);
        Some(taking.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    started.unwrap_or_else(|| {
        let mut result = Ok(());
        let _ = parts(&mut |part| {
            result = take(part);
            result.as_ref().map(drop).map_err(|_| Refused)
        });
        result
    })
}

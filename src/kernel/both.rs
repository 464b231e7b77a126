//! Two things at once, on two processors.
//!
//! What waits for the kernel is done by a thread of its own, as long as the calling one does the rest. Where there is no thread to be had, one is done after the
//! other.
//!
//! Proven by who does so: `tests/kernel/large.rs` and `tests/kernel/reading.rs`.

use std::panic::resume_unwind;
use std::thread;

/// Does the one on a thread of this name (one sees in `top` who is busy) and the other here. A panic of either is the caller's.
pub(super) fn both<A: Send, B>(name: &str, mut there: impl FnMut() -> A + Send, here: impl FnOnce() -> B) -> (A, B) {
    let (of_thread, of_here) = thread::scope(|scope| {
        let started = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, &mut there);
        let of_here = here();
        (started.ok().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))), of_here)
    });
    (of_thread.unwrap_or_else(there), of_here)
}

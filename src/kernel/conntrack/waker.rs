//! Waking a thread that polls, from one that must never wait for it.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// One end wakes, the other is polled. Any number of calls before the sleeper looks are one.
#[derive(Clone, Debug)]
pub(super) struct Waker(Arc<EventFd>);

// === impl Waker ===

impl Waker {
    pub(super) fn new() -> std::io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    /// Makes the other end readable. Never waits: a counter that is full is readable already.
    pub(super) fn wake(&self) {
        let _ = self.0.write(1);
    }

    /// Makes it unreadable again.
    pub(super) fn rest(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_awake(waker: &Waker) -> bool {
        poll(&mut [PollFd::new(waker.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("polled") > 0
    }

    /// A pipe would be full after 65,536 of them, and whoever wakes would wait.
    #[test]
    fn nobody_waits_for_the_sleeper() {
        let waker = Waker::new().expect("a waker");
        assert!(!is_awake(&waker));
        (0..200_000).for_each(|_| waker.wake());
        // The most that an eventfd holds.
        let _ = waker.0.write(u64::MAX - 1);
        waker.wake();
        assert!(is_awake(&waker));
        waker.rest();
        assert!(!is_awake(&waker), "all of it was one call");
        waker.wake();
        assert!(is_awake(&waker));
    }
}

//! Hearing what the kernel multicasts to a group, one thing after the other.
//!
//! A datagram may hold several messages; they wait here until they are asked for. What a message means, [`Told`] knows.
//!
//! Invariant: nothing is dropped silently: if the socket's buffer overflows, [`Told::LOST`] says so.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::error::Error;
use crate::netlink::{self, Message};
use crate::sys::Socket;

const RECEIVE_LEN: usize = 64 << 10;

/// Room for the events of one large transaction, each of which costs the kernel about 800 bytes of it, or for some thousand packets' steps.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Something that a group is told.
pub(crate) trait Told: Sized {
    /// Stands for what was lost.
    const LOST: Self;
    /// What is tried while one is received, and while one is waited for: for errors.
    const ACTIONS: [&'static str; 2];

    /// `None` for messages that say nothing of interest.
    fn decode(message: &Message<'_>) -> Option<Self>;
}

/// A socket that hears of what the kernel tells a group.
pub(crate) struct Subscription<T> {
    socket: Socket,
    receive: Vec<u8>,
    pending: VecDeque<T>,
}

// === impl Subscription ===

impl<T: Told> Subscription<T> {
    /// Subscribes in the calling thread's network namespace.
    pub(crate) fn open(group: u32) -> Result<Self, Error> {
        let socket = Socket::open(1 << (group - 1)).map_err(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
                Error::Unavailable(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
            }
            Some(libc::EPERM) => Error::Permission,
            _ => Error::socket("subscribe", &error),
        })?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        Ok(Self { socket, receive: vec![0; RECEIVE_LEN], pending: VecDeque::new() })
    }

    /// The next one, as soon as there is one.
    pub(crate) fn next(&mut self) -> Result<T, Error> {
        loop {
            if let Some(told) = self.wait(PollTimeout::NONE)? {
                return Ok(told);
            }
        }
    }

    /// The next one, or `None` after this time.
    pub(crate) fn next_timeout(&mut self, timeout: Duration) -> Result<Option<T>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to spin through the last millisecond.
            let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
            let wait = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            if let Some(told) = self.wait(wait)? {
                return Ok(Some(told));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// The next one, or `None` if none has arrived.
    pub(crate) fn try_next(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(told) = self.pending.pop_front() {
                return Ok(Some(told));
            }
            match recv(self.socket.as_fd().as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => {
                    self.pending.extend(netlink::messages(&self.receive[..len]).filter_map(|m| T::decode(&m)));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => return Ok(Some(T::LOST)),
                Err(errno) => return Err(Error::Socket { action: T::ACTIONS[0], errno }),
            }
        }
    }

    fn wait(&mut self, timeout: PollTimeout) -> Result<Option<T>, Error> {
        if let Some(told) = self.try_next()? {
            return Ok(Some(told));
        }
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => self.try_next(),
            Err(errno) => Err(Error::Socket { action: T::ACTIONS[1], errno }),
        }
    }
}

impl<T> AsFd for Subscription<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<T> std::fmt::Debug for Subscription<T> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Subscription")
            .field("port", &self.socket.port())
            .field("pending", &self.pending.len())
            .finish()
    }
}

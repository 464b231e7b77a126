//! Moving bytes between sockets without looking at them.
//!
//! `splice(2)` moves references to the pages of a socket's receive queue into a pipe, and from the pipe into another socket's send
//! queue: no byte is copied through user memory. nix wraps the call, so that nothing unsafe is needed here.
//!
//! All calls are non-blocking: `WouldBlock` from [`fill`] into an empty pipe means that the socket has nothing, from [`drain`] that
//! the socket takes nothing now.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::socket::{MsgFlags, recv as nix_recv, send as nix_send};

/// Moves up to `limit` bytes from a socket into a pipe. 0 means that the peer has finished sending.
pub(super) fn fill(pipe: impl AsFd, socket: impl AsFd, limit: usize) -> io::Result<usize> {
    moved(splice(socket, None, pipe, None, limit, FLAGS))
}

/// Moves up to `limit` bytes out of a pipe into a socket. `SPLICE_F_MORE` is left out on purpose: the kernel would hold the last
/// segment back for what may never come.
pub(super) fn drain(pipe: impl AsFd, socket: impl AsFd, limit: usize) -> io::Result<usize> {
    moved(splice(pipe, None, socket, None, limit, FLAGS))
}

/// Reads what a socket has. 0 means that the peer has finished sending.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix_recv(socket.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}

/// Whether a socket has something to read; its end is nothing.
pub(super) fn has_something(socket: impl AsFd) -> io::Result<bool> {
    match nix_recv(socket.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK) {
        Err(Errno::EAGAIN) => Ok(false),
        heard => Ok(heard? > 0),
    }
}

/// Writes what a socket takes.
pub(super) fn send(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(nix_send(socket.as_fd().as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?)
}

const FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

fn moved(result: nix::Result<usize>) -> io::Result<usize> {
    result.map_err(|errno: Errno| errno.into())
}

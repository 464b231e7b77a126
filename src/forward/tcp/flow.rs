//! One direction of a connection.
//!
//! Bytes come in two kinds. A request or an answer is read into a buffer that the thread has anyway, and written from there: that
//! spares a pipe and, as a read that does not fill the buffer has emptied the socket, a call that only says so. When a read fills
//! the buffer, there is more to come, and the direction becomes *bulk*: from then on pages move from socket to pipe to socket
//! uncopied, until reads become small again. What the receiver does not take stays in the pipe (or, of a small read, in a box), and nothing more is read
//! until that has gone: this is the back-pressure. A direction with an empty pipe that has to wait for its sender gives the pipe back.
//!
//! System calls come first and waiting second: a new connection's request is passed on before epoll has told anything of either
//! socket. All that is asked of tokio is to wait, after its record of readiness has been cleared ([`nothing_to_read`],
//! [`no_room_to_write`]). No event can be lost between call and clearing, for events are taken by this very thread, later.
//!
//! A client whose server takes nothing is not read from, but watched: if it resets, the server is told at once. A server is not: what
//! it sent before it broke off is for the client, however slow that is.
//!
//! An end of one direction is passed on as such (half-close). A direction is *broken* if its receiver takes nothing any more; the
//! other direction then still carries what the receiver has sent before.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::forward::pipes::{CAPACITY, Pipe};
use crate::forward::splice;

/// What is read at once while a direction is not bulk.
const BUFFER: usize = 16 * 1024;
/// A bulk direction that gets less than this...
const SMALL: usize = 4096;
/// ...so many times in a row is bulk no more.
const PATIENCE: u8 = 4;
/// What is spliced at first, in bytes: twice as much each time, as long as there is so much and the receiver takes it all. What
/// it does not take stays in the pipe, so nobody who is slow holds much memory.
const FIRST_SPLICE: usize = 64 * 1024;
/// Rounds of reading and writing before other connections have their turn, and bytes: half a millisecond's worth.
const TURN: usize = 16;
const TURN_BYTES: u64 = 1024 * 1024;

/// One direction; see the module.
#[derive(Debug, Default)]
pub(super) struct Flow {
    stash: Stash,
    state: State,
    /// Small reads until it is bulk no more; 0: it is not.
    bulk: u8,
    /// How often what is spliced at once has doubled.
    doubled: u8,
    /// Whether the sender is watched while the receiver takes nothing.
    watched: bool,
    /// The sender's socket has been emptied: there is nothing to read before there is an event.
    dry: bool,
    moved: u64,
}

/// Bytes that were read and not yet written.
#[derive(Debug, Default)]
enum Stash {
    #[default]
    Empty,
    Pipe(Box<Pipe>),
    /// The part of a small read that the receiver did not take.
    Heap(Box<Rest>),
}

#[derive(Debug)]
struct Rest {
    bytes: Box<[u8]>,
    written: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The sender has finished; the receiver is to be told when it has got everything.
    Finishing,
    Finished,
    Broken,
}

/// The sender is gone without having finished.
#[derive(Debug)]
pub(super) struct SenderFailed;

thread_local! {
    static BUFFERS: RefCell<Box<[u8; BUFFER]>> = RefCell::new(Box::new([0; BUFFER]));
}

impl Flow {
    /// From a client to a server: with an eye on the client.
    pub fn up() -> Self {
        Self { watched: true, ..Self::default() }
    }

    /// Whether nothing will pass any more.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Broken)
    }

    /// Whether all has been passed on, the end included.
    pub fn finished(&self) -> bool {
        self.state == State::Finished
    }

    /// Whether the receiver has stopped taking.
    pub fn broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Bytes passed on since the last time this was asked.
    pub fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Moves what can be moved. Ready when the direction has ended. `last`: the other direction has finished, so that both sockets will be
    /// closed when this one has, which tells their ends as well.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        last: bool,
    ) -> Poll<Result<(), SenderFailed>> {
        let before = self.moved;
        for _ in 0..TURN {
            if self.ended() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_write(cx, to) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.stash = Stash::Empty;
                    self.state = State::Broken;
                    continue;
                }
                Poll::Pending if self.watched && self.state == State::Open && has_failed(cx, from) => {
                    return Poll::Ready(Err(SenderFailed));
                }
                Poll::Pending => return Poll::Pending,
            }
            if self.moved - before >= TURN_BYTES {
                break;
            }
            if self.state == State::Finishing {
                if !last {
                    // Errors mean that the receiver is gone, which its own direction notices.
                    let _ = SockRef::from(to).shutdown(std::net::Shutdown::Write);
                }
                self.state = State::Finished;
                continue;
            }
            if self.dry {
                self.give_back();
                ready!(from.poll_read_ready(cx)).map_err(|_| SenderFailed)?;
                self.dry = false;
            }
            match self.read(from, to) {
                Ok(0) => self.state = State::Finishing,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dry = true,
                Err(_) => return Poll::Ready(Err(SenderFailed)),
            }
            if self.dry {
                nothing_to_read(from);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes all that is in the stash.
    fn poll_write(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let result = match &mut self.stash {
                Stash::Empty => return Poll::Ready(Ok(())),
                Stash::Pipe(pipe) if pipe.held() == 0 => return Poll::Ready(Ok(())),
                Stash::Pipe(pipe) => pipe.drain(to.as_fd()),
                Stash::Heap(rest) => splice::send(to, &rest.bytes[rest.written..]).inspect(|written| {
                    rest.written += written;
                }),
            };
            match result {
                Ok(written) => {
                    self.moved += written as u64;
                    if matches!(&self.stash, Stash::Heap(rest) if rest.written == rest.bytes.len()) {
                        self.stash = Stash::Empty;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.doubled = 0;
                    no_room_to_write(to);
                    ready!(to.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads once, and writes at once what was copied. Only with an empty stash. 0 is the end.
    fn read(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        if self.bulk > 0 {
            let limit = FIRST_SPLICE << self.doubled;
            if let Some(pipe) = self.pipe() {
                let filled = pipe.fill(from.as_fd(), limit)?;
                if filled == limit && limit < CAPACITY {
                    self.doubled += 1;
                }
                self.bulk = if filled < SMALL { self.bulk - 1 } else { PATIENCE };
                return Ok(filled);
            }
            // No pipe to be had: copying works without.
            self.bulk = 0;
        }
        BUFFERS.with_borrow_mut(|buffer| {
            let heard = splice::receive(from, &mut buffer[..])?;
            if heard == BUFFER {
                self.bulk = PATIENCE;
            } else {
                // The next event will tell of more, and of the end: a call that only says so is saved (epoll(7)).
                self.dry = heard > 0;
            }
            // An error of writing is left to the next attempt, which finds it again.
            let written = if heard > 0 { splice::send(to, &buffer[..heard]).unwrap_or(0) } else { 0 };
            self.moved += written as u64;
            if written < heard {
                self.stash = Stash::Heap(Box::new(Rest { bytes: buffer[written..heard].into(), written: 0 }));
            }
            Ok(heard)
        })
    }

    fn pipe(&mut self) -> Option<&mut Pipe> {
        if !matches!(self.stash, Stash::Pipe(_)) {
            self.stash = Stash::Pipe(Pipe::take().ok()?);
        }
        match &mut self.stash {
            Stash::Pipe(pipe) => Some(pipe),
            Stash::Empty | Stash::Heap(_) => None,
        }
    }

    fn give_back(&mut self) {
        if matches!(&self.stash, Stash::Pipe(pipe) if pipe.held() == 0)
            && let Stash::Pipe(pipe) = std::mem::take(&mut self.stash)
        {
            pipe.give_back();
        }
    }
}

/// Has tokio forget that there was something to read.
fn nothing_to_read(from: &TcpStream) {
    let _ = from.try_io(Interest::READABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
}

/// Has tokio forget that there was room.
fn no_room_to_write(to: &TcpStream) {
    let _ = to.try_io(Interest::WRITABLE, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
}

/// Whether a sender that is not read from has reset the connection; asks to be woken if it does, or sends more.
fn has_failed(cx: &mut Context<'_>, from: &TcpStream) -> bool {
    nothing_to_read(from);
    match from.poll_read_ready(cx) {
        Poll::Pending => false,
        // Ready all the same: it has finished, which can wait, or broken off.
        Poll::Ready(Ok(())) => from.take_error().is_ok_and(|error| error.is_some()),
        Poll::Ready(Err(_)) => true,
    }
}

//! One direction of a connection.
//!
//! Bytes come in two kinds. A request or an answer is read into a buffer that the thread has anyway, and written from there: that
//! spares a pipe and, as a read that does not fill the buffer has emptied the socket, a call that only says so. When a read fills
//! the buffer, there is more to come, and the direction becomes *bulk*: from then on pages move from socket to pipe to socket
//! uncopied, until reads become small again. What the receiver does not take stays in the pipe (or, of a small read, in a box), and nothing more is read
//! until that has gone: this is the back-pressure. A direction with an empty pipe that has to wait for its sender gives the pipe back.
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

use crate::forward::pipes::Pipe;
use crate::forward::splice;

/// What is read at once while a direction is not bulk.
const BUFFER: usize = 16 * 1024;
/// A bulk direction that gets less than this...
const SMALL: usize = 4096;
/// ...so many times in a row is bulk no more.
const PATIENCE: u8 = 4;
/// Rounds of reading and writing before other connections have their turn.
const TURN: usize = 16;

/// One direction; see the module.
#[derive(Debug, Default)]
pub(super) struct Flow {
    stash: Stash,
    state: State,
    /// Small reads until it is bulk no more; 0: it is not.
    bulk: u8,
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
    /// Whether nothing will pass any more.
    pub fn ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Broken)
    }

    /// Whether the receiver has stopped taking.
    pub fn broken(&self) -> bool {
        self.state == State::Broken
    }

    /// Bytes passed on since the last time this was asked.
    pub fn take_moved(&mut self) -> u64 {
        std::mem::take(&mut self.moved)
    }

    /// Moves what can be moved. Ready when the direction has ended.
    pub fn poll(&mut self, cx: &mut Context<'_>, from: &TcpStream, to: &TcpStream) -> Poll<Result<(), SenderFailed>> {
        for _ in 0..TURN {
            if self.ended() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_write(cx, to)).is_err() {
                self.stash = Stash::Empty;
                self.state = State::Broken;
                continue;
            }
            if self.state == State::Finishing {
                // Errors mean that the receiver is gone, which its own direction notices.
                let _ = SockRef::from(to).shutdown(std::net::Shutdown::Write);
                self.state = State::Finished;
                continue;
            }
            match self.read(from, to) {
                Ok(0) => self.state = State::Finishing,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.give_back();
                    ready!(from.poll_read_ready(cx)).map_err(|_| SenderFailed)?;
                }
                Err(_) => return Poll::Ready(Err(SenderFailed)),
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
                Stash::Pipe(pipe) => to.try_io(Interest::WRITABLE, || pipe.drain(to.as_fd())),
                Stash::Heap(rest) => {
                    to.try_io(Interest::WRITABLE, || splice::send(to, &rest.bytes[rest.written..])).inspect(|written| {
                        rest.written += written;
                    })
                }
            };
            match result {
                Ok(written) => {
                    self.moved += written as u64;
                    if matches!(&self.stash, Stash::Heap(rest) if rest.written == rest.bytes.len()) {
                        self.stash = Stash::Empty;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads once, and writes at once what was copied. Only with an empty stash. 0 is the end.
    fn read(&mut self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        if self.bulk > 0 {
            if let Some(pipe) = self.pipe() {
                let filled = from.try_io(Interest::READABLE, || pipe.fill(from.as_fd()))?;
                self.bulk = if filled < SMALL { self.bulk - 1 } else { PATIENCE };
                return Ok(filled);
            }
            // No pipe to be had: copying works without.
            self.bulk = 0;
        }
        BUFFERS.with_borrow_mut(|buffer| {
            let heard = receive(from, &mut buffer[..])?;
            if heard == BUFFER {
                self.bulk = PATIENCE;
            }
            // An error of writing is left to the next attempt, which finds it again.
            let written = to.try_io(Interest::WRITABLE, || splice::send(to, &buffer[..heard])).unwrap_or(0);
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

/// Reads into the buffer. A read that does not fill it has emptied the socket: the next event will tell of more, and one system
/// call that only says so is saved (epoll(7), "edge-triggered").
fn receive(from: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut heard = 0;
    let result = from.try_io(Interest::READABLE, || {
        heard = splice::receive(from, buffer)?;
        if heard > 0 && heard < buffer.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(heard) }
    });
    match result {
        Err(error) if heard > 0 && error.kind() == io::ErrorKind::WouldBlock => Ok(heard),
        result => result,
    }
}

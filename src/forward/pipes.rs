//! Pipes, and where they wait.
//!
//! A direction of a connection that is busy holds a pipe; one that is silent holds none. So there are about as many pipes as
//! connections that move bytes at this moment, and a connection finds one without a system call in its thread's *pool*. A pool
//! keeps [`KEPT`] pipes and closes the rest. A pipe in a pool is empty.
//!
//! Proven by the tests below; `bench forward` counts the pipes that idle connections hold.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::splice;

/// Pipes that a thread keeps for later: 64 busy directions come and go without a system call.
const KEPT: usize = 64;

/// What we ask the kernel for, in bytes: the most that it gives without privileges (`fs.pipe-max-size`); the default is 64 KiB. It is
/// a limit of references to pages, not memory: empty, a pipe of this size has a ring of some 10 KiB. With 64 streams the forwarder
/// needed 0.60, 0.37 and 0.24 s of CPU time per gigabyte with reads of up to 64 KiB, 256 KiB and 1 MiB (`bench forward`).
pub(super) const CAPACITY: usize = 1024 * 1024;

/// A pipe and how much is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Ends,
    held: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

thread_local! {
    static POOL: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

/// Closes the calling thread's spare pipes: somebody needs descriptors more.
pub(super) fn give_up_spares() {
    POOL.with_borrow_mut(Vec::clear);
}

// === impl Pipe ===

impl Pipe {
    /// An empty pipe, out of the pool if there is one.
    ///
    /// # Errors
    /// When descriptors or pipe memory have run out.
    pub fn take() -> io::Result<Box<Self>> {
        let ends = match POOL.with_borrow_mut(Vec::pop) {
            Some(ends) => ends,
            None => Ends::open()?,
        };
        Ok(Box::new(Self { ends, held: 0 }))
    }

    /// Bytes in the pipe.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Moves up to `limit` bytes in from a socket; see [`splice::fill`].
    pub fn fill(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let moved = splice::fill(&self.ends.write, socket, limit)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves bytes out into a socket; see [`splice::drain`].
    pub fn drain(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let moved = splice::drain(&self.ends.read, socket, self.held)?;
        self.held -= moved;
        Ok(moved)
    }

    /// Back to the pool, if nothing is in it.
    pub fn give_back(self: Box<Self>) {
        if self.held == 0 {
            // A thread that is ending has no pool any more; the pipe is closed then.
            let _ = POOL.try_with(|pool| {
                let mut pool = pool.borrow_mut();
                if pool.len() < KEPT {
                    pool.push(self.ends);
                }
            });
        }
    }
}

// === impl Ends ===

impl Ends {
    fn open() -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        match fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32)) {
            // Without privileges a user has a limited number of pages in pipes (pipe(7)): smaller pipes work as well.
            Ok(_) | Err(Errno::EPERM | Errno::EBUSY | Errno::ENOMEM) => Ok(Self { read, write }),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let there = TcpStream::connect(listener.local_addr().expect("bound")).expect("a connection");
        let here = listener.accept().expect("the other end").0;
        there.set_nonblocking(true).expect("a socket");
        (here, there)
    }

    /// Fills the pipe as soon as there is something.
    fn fill(pipe: &mut Pipe, from: &TcpStream) -> usize {
        loop {
            match pipe.fill(from.as_fd(), CAPACITY) {
                Ok(moved) => return moved,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
    }

    #[test]
    fn bytes_pass_from_socket_to_socket_in_order() {
        let ((mut source, inlet), (mut sink, outlet)) = (pair(), pair());
        let mut pipe = Pipe::take().expect("a pipe");
        let empty = pipe.fill(inlet.as_fd(), CAPACITY).expect_err("nothing was sent");
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        for part in ["first, ", "second"] {
            source.write_all(part.as_bytes()).expect("written");
            fill(&mut pipe, &inlet);
        }
        assert_eq!(pipe.drain(outlet.as_fd()).expect("sent"), 13);
        let mut heard = [0; 13];
        sink.read_exact(&mut heard).expect("heard");
        assert_eq!(&heard, b"first, second");
        drop(source);
        assert_eq!(fill(&mut pipe, &inlet), 0, "the end");
    }

    #[test]
    fn only_empty_pipes_are_kept_and_not_more_than_so_many() {
        let mut used = Pipe::take().expect("a pipe");
        let (mut source, inlet) = pair();
        source.write_all(b"x").expect("written");
        fill(&mut used, &inlet);
        used.give_back();
        assert_eq!(POOL.with_borrow(Vec::len), 0, "what is in a pipe belongs to one connection");
        let many: Vec<_> = (0..KEPT + 5).map(|_| Pipe::take().expect("a pipe")).collect();
        many.into_iter().for_each(Pipe::give_back);
        assert_eq!(POOL.with_borrow(Vec::len), KEPT);
        let _ = Pipe::take().expect("a pipe");
        assert_eq!(POOL.with_borrow(Vec::len), KEPT - 1, "out of the pool");
        give_up_spares();
        assert_eq!(POOL.with_borrow(Vec::len), 0);
    }
}

//! The threads that forward.
//!
//! Each *worker* is a thread with a runtime, an epoll instance and a pool of pipes of its own. A connection is given a *place* at
//! the worker with the fewest and stays there, so that its sockets, its pipes and its memory stay with one core. Threads are
//! started where the forwarder is, and so are in its network namespace, as are all sockets that they make.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Turns of tasks between two looks at what has happened to sockets. A busy stream's turn may be half a millisecond, after which it
/// wants another; tokio's own 61 of them would let everybody else wait for 30 ms.
const EVENT_INTERVAL: u32 = 8;

/// All workers; dropping it ends them, and with them all their connections.
#[derive(Debug)]
pub(super) struct Workers {
    places: Arc<[Desk]>,
    threads: Vec<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

/// Where connections can be placed.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<[Desk]>);

/// A place on a worker; dropping it leaves.
#[derive(Debug)]
pub(super) struct Place {
    desks: Arc<[Desk]>,
    number: usize,
}

/// A worker as seen from outside.
#[derive(Debug)]
struct Desk {
    runtime: Handle,
    busy: AtomicUsize,
}

// === impl Workers ===

impl Workers {
    /// Starts so many threads, at least one, with this name and a number.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(name: &str, count: usize) -> io::Result<Self> {
        let (mut desks, mut threads) = (Vec::new(), Vec::new());
        for number in 0..count.max(1) {
            let runtime =
                Builder::new_current_thread().enable_io().enable_time().event_interval(EVENT_INTERVAL).build()?;
            desks.push(Desk { runtime: runtime.handle().clone(), busy: AtomicUsize::new(0) });
            let (stop, stopped) = oneshot::channel::<()>();
            let thread = thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                let _ = runtime.block_on(stopped);
                // Its tasks end here, and their sockets are closed.
                runtime.shutdown_timeout(Duration::ZERO);
            })?;
            threads.push((stop, thread));
        }
        Ok(Self { places: desks.into(), threads })
    }

    /// Where connections can be placed.
    pub fn places(&self) -> Places {
        Places(self.places.clone())
    }

    /// The runtime of the worker of this number (modulo how many there are).
    pub fn runtime(&self, number: usize) -> &Handle {
        &self.places[number % self.places.len()].runtime
    }

    /// Runs a closure on the worker of this number (modulo how many there are), and waits for it. Not from a worker.
    ///
    /// # Errors
    /// When the worker has panicked or ended.
    pub fn run<T: Send + 'static>(&self, number: usize, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (done, result) = mpsc::channel();
        self.runtime(number).spawn(async move { drop(done.send(work())) });
        result.recv().map_err(|_| io::Error::other("the worker has ended"))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let threads: Vec<_> = self.threads.drain(..).map(|(_, thread)| thread).collect();
        // All of them stop at once; a panic has been reported by the thread itself.
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
}

// === impl Places ===

impl Places {
    /// The place where a connection goes best: at the worker with the fewest.
    pub fn take(&self) -> Place {
        let load = |number: &usize| self.0[*number].busy.load(Ordering::Relaxed);
        let number = (0..self.0.len()).min_by_key(load).expect("there is at least one worker");
        self.0[number].busy.fetch_add(1, Ordering::Relaxed);
        Place { desks: self.0.clone(), number }
    }
}

// === impl Place ===

impl Place {
    /// The worker's number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The worker's runtime.
    pub fn runtime(&self) -> &Handle {
        &self.desks[self.number].runtime
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.desks[self.number].busy.fetch_sub(1, Ordering::Relaxed);
    }
}

//! The threads that carry datagrams, and what each of them watches.
//!
//! A thread has one epoll instance for the listeners and upstream sockets of all its shards, and sleeps in nothing else: between a
//! datagram's arrival and its departure are one wait, one receive and one send, with no runtime's timers and task queues around them.
//!
//! A *token* says what is ready: the shard's number in its upper half, and which of the shard's sockets in its lower one. The epoll
//! instance is level-triggered, so whatever a turn leaves is told again, and nobody need look whether there is more.
//!
//! Invariants: a shard stays with its thread; who is told to end has closed all sockets when its thread has ended.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::Socket;

use super::shard::Shard;
use super::wire::{SLOTS, with_arena};

/// No shard's: the thread is told something.
const ORDERS: u64 = u64::MAX;
/// A shard's listener among its sockets; the others are known by their flows' keys.
const LISTENER: u32 = u32::MAX;
/// How often flows are looked at for their age, at most and at least.
const SWEEP: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// All threads. Dropping it ends them, and with them all shards.
#[derive(Debug)]
pub(super) struct Crew(Vec<Hand>);

/// One of them, from outside.
#[derive(Debug)]
struct Hand {
    line: Arc<Line>,
    orders: mpsc::Sender<Order>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What reaches a thread.
#[derive(Debug)]
struct Line {
    epoll: Epoll,
    bell: EventFd,
}

#[derive(Debug)]
enum Order {
    Carry(u32, Box<Shard>),
    /// Some routes have been closed.
    Look,
    End,
}

/// What a shard has its sockets watched by.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    line: Arc<Line>,
    shard: u32,
}

/// Something of a shard is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// Its listener.
    Listener,
    /// The upstream socket of this flow.
    Flow(usize),
}

/// A thread, from inside.
#[derive(Debug)]
struct Worker {
    line: Arc<Line>,
    orders: mpsc::Receiver<Order>,
    shards: HashMap<u32, Box<Shard>>,
    /// When flows are looked at for their age; not while there are none.
    sweep_at: Option<Instant>,
}

// === impl Crew ===

impl Crew {
    /// Starts so many threads, at least one, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(count: usize) -> io::Result<Self> {
        // One after the other is added, so that those that are there end if another cannot be.
        let mut crew = Self(Vec::new());
        for number in 0..count.max(1) {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, ORDERS))?;
            let line = Arc::new(Line { epoll, bell });
            let (orders, taken) = mpsc::channel();
            let worker = Worker { line: line.clone(), orders: taken, shards: HashMap::new(), sweep_at: None };
            let thread = thread::Builder::new().name(format!("forward-udp-{number}")).spawn(move || worker.run())?;
            crew.0.push(Hand { line, orders, thread: Some(thread) });
        }
        Ok(crew)
    }

    /// What the shard of this number, which no other has, will be watched by.
    pub fn watch(&self, number: u32) -> Watch {
        Watch { line: self.hand(number).line.clone(), shard: number }
    }

    /// Gives the shard of this number to its thread.
    pub fn carry(&self, number: u32, shard: Box<Shard>) {
        self.hand(number).tell(Order::Carry(number, shard));
    }

    /// Has shards of closed routes end.
    pub fn look(&self) {
        self.0.iter().for_each(|hand| hand.tell(Order::Look));
    }

    fn hand(&self, number: u32) -> &Hand {
        &self.0[number as usize % self.0.len()]
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.0.iter().for_each(|hand| hand.tell(Order::End));
        // A panic has been reported by the thread itself.
        self.0.iter_mut().filter_map(|hand| hand.thread.take()).for_each(|thread| drop(thread.join()));
    }
}

// === impl Hand ===

impl Hand {
    fn tell(&self, order: Order) {
        // An error means that it has panicked, which has been reported. A full counter rings, too.
        if self.orders.send(order).is_ok() {
            let _ = self.line.bell.write(1);
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Watches a shard's listener.
    ///
    /// # Errors
    /// When the system has no more room for watched descriptors.
    pub fn listener(&self, socket: &Socket) -> io::Result<()> {
        self.add(socket, LISTENER)
    }

    /// Watches the upstream socket of a flow, until it is closed.
    ///
    /// # Errors
    /// As for the listener.
    pub fn upstream(&self, socket: &Socket, key: usize) -> io::Result<()> {
        self.add(socket, u32::try_from(key).map_err(|_| io::ErrorKind::OutOfMemory)?)
    }

    fn add(&self, socket: &Socket, which: u32) -> io::Result<()> {
        let token = u64::from(self.shard) << 32 | u64::from(which);
        Ok(self.line.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }
}

// === impl Worker ===

impl Worker {
    fn run(mut self) {
        let mut events = vec![EpollEvent::empty(); SLOTS];
        loop {
            let ready = match self.line.epoll.wait(&mut events, self.patience()) {
                Ok(ready) => &mut events[..ready],
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "UDP Services of the userspace forwarder are not carried any more");
                    return;
                }
            };
            let now = Instant::now();
            // By shards, and orders last.
            ready.sort_unstable_by_key(EpollEvent::data);
            for group in ready.chunk_by(|one, other| shard_of(one) == shard_of(other)) {
                if group[0].data() == ORDERS {
                    if !self.obey() {
                        return;
                    }
                } else if let Some(shard) = self.shards.get_mut(&shard_of(&group[0])) {
                    let what = group.iter().map(|event| what(event.data()));
                    let turn = || with_arena(|arena| shard.turn(what, arena, now));
                    if catch_unwind(AssertUnwindSafe(turn)).is_err() {
                        // Reported by the hook. The other shards of this thread go on.
                        self.shards.remove(&shard_of(&group[0]));
                    } else if self.sweep_at.is_none() && shard.has_flows() {
                        self.sweep_at = Some(now + shard.sweep_period());
                    }
                }
            }
            if self.sweep_at.is_some_and(|at| at <= now) {
                self.sweep(now);
            }
        }
    }

    /// How long there may be nothing to do.
    fn patience(&self) -> EpollTimeout {
        let Some(at) = self.sweep_at else { return EpollTimeout::NONE };
        // Rounded up, or it would be too early again and again.
        let rest = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        EpollTimeout::try_from(rest.min(SWEEP[1])).unwrap_or(EpollTimeout::ZERO)
    }

    /// Does what it is told. Whether it shall go on.
    fn obey(&mut self) -> bool {
        let _ = self.line.bell.read();
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Carry(number, shard) => drop(self.shards.insert(number, shard)),
                Order::Look => self.shards.retain(|_, shard| !shard.is_closed()),
                Order::End => return false,
            }
        }
        true
    }

    /// Ends flows that were idle for too long, some of each shard: others wait for nobody's thousands.
    fn sweep(&mut self, now: Instant) {
        let mut next: Option<Duration> = None;
        for shard in self.shards.values_mut().filter(|shard| shard.has_flows()) {
            let period = if shard.expire(now) { Duration::ZERO } else { shard.sweep_period() };
            next = Some(next.map_or(period, |next| next.min(period)));
        }
        self.sweep_at = next.map(|period| now + period);
    }
}

fn shard_of(event: &EpollEvent) -> u32 {
    (event.data() >> 32) as u32
}

fn what(token: u64) -> Ready {
    match token as u32 {
        LISTENER => Ready::Listener,
        key => Ready::Flow(key as usize),
    }
}

/// How often a shard with flows that live for so long at least is swept: so often that none stays for much longer than it should.
pub(super) fn sweep_period(shortest: Duration) -> Duration {
    (shortest / 4).clamp(SWEEP[0], SWEEP[1])
}

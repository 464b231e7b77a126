//! The UDP forwarder: datagrams from clients to endpoints and back, in user space.
//!
//! A *route* carries one Service port of one family and traffic policy. The kernel sends its clients' datagrams to the route's
//! listener by an ordinary `dnat` or `redirect`, and translates the replies, which leave from the listener, back: the client sees
//! the address that it talked to. What one client address and port sends to a route is a *flow*. A flow has a connected socket of its
//! own to the endpoint that the [`Balancer`](super::balance::Balancer) picked, so that the kernel knows whose reply is whose and
//! says when an endpoint refuses.
//!
//! ```text
//!  client ──> frontend ═dnat═> listener ─┬─ flow ── socket ──> endpoint
//!                                        ├─ flow ── socket ──> endpoint
//!                                        └─ ...
//! ```
//!
//! - **Idle flows** go after 30 s; after 120 s, if they were answered and went on for two seconds: the kernel's own times for UDP.
//! - **Limits**: flows per route and for the process. At a limit the flow that was idle for longest goes, unanswered ones first; so a
//!   flood from made-up sources takes bounded memory and descriptors, and those who are being answered keep their flows. The same
//!   happens when descriptors or ports run out.
//! - **Endpoints**: a flow stays with its endpoint while that is a candidate or draining; else its next datagram goes to another. One
//!   whose connections are ended ([`Register`] as a [`Carrier`](crate::conntrack::Carrier)) hears no more of a flow, whose next datagram begins another. One
//!   that refuses (ICMP) is reported to the balancer; the refused datagram, if it was the flow's first, is sent to another.
//! - **Shards**: a route may have several listeners on one port, each with its own flows and task. The kernel gives each client to
//!   one of them.
//!
//! A datagram is never split or merged: zero bytes, 64 KiB and fragments pass as they are. Nothing waits and nothing is queued: what
//! cannot be sent at once is dropped and counted, as a router would.
//!
//! The listener may be bound to the unspecified address; replies then leave from the address that the client's datagram came to.
//!
//! Proven by `tests/forward_udp.rs`; measured by `bench forward-udp`.

mod crew;
mod flows;
mod route;
mod shard;
mod socket;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use socket2::Socket;

use self::crew::Crew;
use self::flows::Idle;
use self::route::{Budget, Route};
use self::shard::Shard;
use super::balance::Method;
use super::register::Register;
use crate::schedule::Candidate;

/// A Service port to carry.
#[derive(Clone, Debug)]
pub struct UdpRoute {
    /// Where the kernel sends the datagrams; port 0 lets the kernel choose one.
    pub listen: SocketAddr,
    /// Who may get new flows. None: datagrams are dropped (whether they are refused instead is up to the rules).
    pub candidates: Vec<Candidate>,
    /// Who gets no new flows but keeps those that are there: endpoints that terminate and still serve, or have weight 0.
    pub draining: Vec<SocketAddr>,
    /// The way to choose.
    pub method: Method,
    /// Session affinity: for how long a client's address stays with its endpoint after its last new flow.
    pub affinity: Option<Duration>,
    /// See [`Balancer::new`](super::balance::Balancer::new).
    pub seed: u64,
    /// Everything with a default.
    pub options: UdpOptions,
}

/// How a route is carried.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// How long a flow may be idle: 30 s, as `nf_conntrack_udp_timeout`.
    pub idle: Duration,
    /// How long one that was answered and went on for two seconds may be idle: 120 s, as `nf_conntrack_udp_timeout_stream`.
    pub idle_stream: Duration,
    /// Most flows at a time, 1 or more: 8,192. Each takes a descriptor, a local port and some three KiB.
    pub flows: usize,
    /// Listeners on the same port: one per core, at most four. Fixed once the route is there.
    pub shards: NonZeroUsize,
    /// How sockets to endpoints are made. Fixed once the route is there.
    pub dial: Dial,
}

/// Makes sockets to endpoints.
#[derive(Clone)]
pub struct Dial(Arc<DialFn>);

type DialFn = dyn Fn(SocketAddr, SocketAddr) -> io::Result<Socket> + Send + Sync;

/// What happened on a route since it was set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpStatus {
    /// Flows now.
    pub flows: u64,
    /// Flows ever.
    pub opened: u64,
    /// How often a flow got another endpoint.
    pub moved: u64,
    /// Flows that were idle for too long.
    pub expired: u64,
    /// Flows that went to make room.
    pub evicted: u64,
    /// Datagrams from clients.
    pub requests: u64,
    /// Their payload.
    pub request_bytes: u64,
    /// Datagrams from endpoints.
    pub replies: u64,
    /// Their payload.
    pub reply_bytes: u64,
    /// Datagrams, or datagrams in a row, for which there was no endpoint.
    pub no_endpoint: u64,
    /// The same for want of descriptors, ports, memory or flows.
    pub no_room: u64,
    /// Datagrams that could not be sent: buffers were full, or they were too large.
    pub not_sent: u64,
    /// How often an endpoint refused, for those that are candidates or draining and ever did.
    pub failures: Vec<(SocketAddr, u64)>,
}

/// All UDP routes of this process; its owner changes them, threads of its own carry the datagrams. Dropping it ends all routes, and
/// returns when all their sockets are closed.
#[derive(Debug)]
pub struct UdpForwarder {
    budget: Arc<Budget>,
    register: Register,
    routes: HashMap<String, Running>,
    /// Shards made so far: the next one's number.
    given: u32,
    crew: Crew,
}

#[derive(Debug)]
struct Running {
    asked: SocketAddr,
    bound: SocketAddr,
    shards: NonZeroUsize,
    route: Arc<Route>,
}

// === impl UdpOptions ===

impl UdpOptions {
    fn idle(&self) -> Idle {
        Idle { flow: self.idle, stream: self.idle_stream }
    }
}

impl Default for UdpOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            idle: Duration::from_secs(30),
            idle_stream: Duration::from_secs(120),
            flows: 8_192,
            shards: NonZeroUsize::new(cores.min(4)).expect("at least one"),
            dial: Dial::default(),
        }
    }
}

// === impl Dial ===

impl Dial {
    /// With sockets made by `dial` for a client and an endpoint: UDP, connected to the endpoint, not blocking. An error that says
    /// something about the endpoint (no route to it) counts as its failure, any other as a shortage of this process.
    pub fn new(dial: impl Fn(SocketAddr, SocketAddr) -> io::Result<Socket> + Send + Sync + 'static) -> Self {
        Self(Arc::new(dial))
    }

    fn dial(&self, client: SocketAddr, endpoint: SocketAddr) -> io::Result<Socket> {
        (self.0)(client, endpoint)
    }
}

/// From an address of this host.
impl Default for Dial {
    fn default() -> Self {
        Self::new(|_, endpoint| socket::dial(endpoint))
    }
}

impl std::fmt::Debug for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dial")
    }
}

// === impl UdpForwarder ===

impl UdpForwarder {
    /// Most flows of a process by default: well below the 28,232 local ports that a host has unless told otherwise
    /// (`net.ipv4.ip_local_port_range`).
    pub const FLOWS: usize = 16_384;

    /// Without routes. Starts so many threads, in the calling thread's network namespace; `flows` is the most that all routes may have
    /// together.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(workers: usize, flows: usize) -> io::Result<Self> {
        Self::start_with(workers, flows, Register::default())
    }

    /// The same, with a register that others look into.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(workers: usize, flows: usize, register: Register) -> io::Result<Self> {
        let (budget, crew) = (Budget::new(flows), Crew::start(workers)?);
        Ok(Self { budget, register, routes: HashMap::new(), given: 0, crew })
    }

    /// Makes a route, or changes the one of this name, and says where it listens. Flows stay, unless the address to listen at or the
    /// number of shards is another; then the new listeners are there before the old ones go.
    ///
    /// # Errors
    /// When the address is taken or not ours, or descriptors have run out; a route of this name stays as it is then.
    pub fn set(&mut self, name: &str, settings: UdpRoute) -> io::Result<SocketAddr> {
        if let Some(running) = self.routes.get(name)
            && running.asked == settings.listen
            && running.shards == settings.options.shards
        {
            running.route.update(&settings);
            return Ok(running.bound);
        }
        let running = self.open(&settings)?;
        let bound = running.bound;
        if let Some(before) = self.routes.insert(name.to_owned(), running) {
            self.end(&before);
        }
        Ok(bound)
    }

    /// Ends a route and its flows; `false` if there was none. The rules that lead to it should be gone before.
    pub fn remove(&mut self, name: &str) -> bool {
        let removed = self.routes.remove(name);
        if let Some(running) = &removed {
            self.end(running);
        }
        removed.is_some()
    }

    /// Where a route listens, and what happened on it.
    pub fn status(&self, name: &str) -> Option<(SocketAddr, UdpStatus)> {
        self.routes.get(name).map(|running| (running.bound, running.route.status()))
    }

    /// Names of all routes, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.routes.keys().map(String::as_str)
    }

    /// Flows of all routes, those included that are about to end.
    pub fn flows(&self) -> usize {
        self.budget.used()
    }

    fn end(&self, running: &Running) {
        running.route.close();
        self.crew.look();
    }

    fn open(&mut self, settings: &UdpRoute) -> io::Result<Running> {
        let shards = settings.options.shards;
        let shared = shards.get() > 1;
        let first = socket::listen(settings.listen, shared)?;
        let bound = first.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let others = (1..shards.get()).map(|_| socket::listen(bound, shared));
        let listeners = std::iter::once(Ok(first)).chain(others).collect::<io::Result<Vec<_>>>()?;
        let route = Arc::new(Route::new(settings, bound, Arc::clone(&self.budget), self.register.clone()));
        // Each stays with one thread: a datagram wakes nobody else.
        for (number, listener) in (self.given..).zip(listeners) {
            match Shard::new(Arc::clone(&route), listener, self.crew.watch(number)) {
                Ok(shard) => self.crew.carry(number, Box::new(shard)),
                Err(error) => {
                    // Those that are carried already.
                    route.close();
                    self.crew.look();
                    return Err(error);
                }
            }
        }
        self.given = self.given.wrapping_add(u32::try_from(shards.get()).unwrap_or(1));
        Ok(Running { asked: settings.listen, bound, shards, route })
    }
}

//! TCP: one listener per route, and what becomes of its connections.
//!
//! ```text
//!  client ──> listener ──> limits ──> original destination ──> dial ──> [PROXY header] ──> relay
//!                accept loop (one task per route)  ╰── one task per connection, on the worker with the fewest ──╯
//! ```
//!
//! Invariants: a client that is refused gets a reset and is counted, whatever the reason; accepting never spins; a listener that is
//! taken away first accepts who is waiting; what connections do is nobody's business but their own task's.

mod dial;
mod flow;
mod proxy;
mod relay;
mod youth;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Shared;
use super::balance::Arrival;
use super::limits::Occasionally;
use super::pipes;
use super::pool::Pool;
use super::register::{CarriedKey, Entry};
use super::route::{Options, Route, RouteId};
use super::splice;
use super::status::{Refusal, RouteStatus};
use super::workers::Place;

/// Clients that may wait to be accepted; the kernel's own limit (`net.core.somaxconn`) is 4096 unless changed.
const BACKLOG: i32 = 4096;
/// Clients accepted before other tasks have their turn.
const TURN: usize = 64;
/// How long accepting pauses when descriptors have run out: at first, and at most.
const PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(1)];

/// A route that listens.
#[derive(Debug)]
pub(super) struct TcpRoute {
    state: Arc<State>,
    stop: CancellationToken,
}

/// What the tasks of a route share.
#[derive(Debug)]
struct State {
    id: RouteId,
    listener: SocketAddr,
    pool: Arc<Pool>,
    options: Mutex<Arc<Options>>,
    complaints: Occasionally,
    shared: Arc<Shared>,
    /// Clients connect to the listener itself: nothing is translated.
    direct: bool,
}

/// A client that may have a connection.
#[derive(Debug)]
struct Admitted {
    socket: Socket,
    client: SocketAddr,
    options: Arc<Options>,
    permit: Permit,
}

/// A connection's place in all limits; dropping it leaves.
#[derive(Debug)]
struct Permit {
    state: Arc<State>,
    place: Place,
}

// === impl TcpRoute ===

impl TcpRoute {
    /// Opens the listener and begins to accept. Must be called on a worker. `direct`: see [`super::Forwarder::set_at`].
    pub fn open(
        id: RouteId,
        route: &Route,
        address: SocketAddr,
        shared: Arc<Shared>,
        seed: u64,
        direct: bool,
    ) -> io::Result<Self> {
        let socket = listen(address)?;
        let listener = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        // tokio's own listener would bind each connection to this worker. A stream has what is needed: it says when there is something.
        let socket = TcpStream::from_std(socket.into())?;
        let state = Arc::new(State {
            id,
            listener,
            pool: Arc::new(Pool::new(route, seed)),
            options: Mutex::new(Arc::new(route.options.clone())),
            complaints: Occasionally::default(),
            shared,
            direct,
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept_all(socket, state.clone(), stop.clone()));
        Ok(Self { state, stop })
    }

    /// Where it listens.
    pub fn listener(&self) -> SocketAddr {
        self.state.listener
    }

    /// Takes over what the route is now.
    pub fn set(&self, route: &Route) {
        self.state.pool.set(route);
        let mut options = self.state.options.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if **options != route.options {
            *options = Arc::new(route.options.clone());
        }
    }

    /// What has happened.
    pub fn status(&self) -> RouteStatus {
        let counters = &self.state.pool.counters;
        RouteStatus {
            listener: (!self.stop.is_cancelled()).then_some(self.state.listener),
            active: self.connections(),
            accepted: counters.accepted.load(Ordering::Relaxed),
            refused: counters.refused(),
            unpreserved: counters.unpreserved.load(Ordering::Relaxed),
            endpoints: self.state.pool.endpoints(),
        }
    }

    /// Connections now, those that are still being connected included.
    pub fn connections(&self) -> usize {
        self.state.pool.counters.active.load(Ordering::Relaxed)
    }

    /// Closes the listener, after those who wait have been accepted. Connections live on.
    pub fn close(&self) {
        self.stop.cancel();
    }
}

impl Drop for TcpRoute {
    fn drop(&mut self) {
        self.close();
    }
}

// === accepting ===

fn listen(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Small packets at once, and a question now and then whether the other end lives. Accepted connections inherit both from their listener:
    // no calls for each of them.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&dial::keepalive())?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

async fn accept_all(listener: TcpStream, state: Arc<State>, stop: CancellationToken) {
    let mut pause = PAUSE[0];
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ready = listener.readable() => if ready.is_err() { return },
        }
        match listener.try_io(Interest::READABLE, || accept_some(&listener, &state)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // It stays ready, so that the next attempt needs no new client.
                state.complain(format_args!("accepting pauses: {error}"));
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(pause) => pause = (pause * 2).min(PAUSE[1]),
                }
            }
            _ => pause = PAUSE[0],
        }
        tokio::task::yield_now().await;
    }
    // Whoever the kernel has connected already would be reset by closing now.
    while accept_some(&listener, &state).is_ok() {}
}

/// Accepts who is waiting, up to a number.
///
/// # Errors
/// `WouldBlock` when nobody is, others when no more can be accepted for now.
fn accept_some(listener: &TcpStream, state: &Arc<State>) -> io::Result<()> {
    let mut admitted = Vec::new();
    let accepted = accept_into(&mut admitted, listener, state);
    begin(admitted);
    accepted
}

fn accept_into(admitted: &mut Vec<Admitted>, listener: &TcpStream, state: &Arc<State>) -> io::Result<()> {
    for _ in 0..TURN {
        match SockRef::from(listener).accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
            Ok((socket, client)) => {
                if let Some(client) = client.as_socket() {
                    admitted.extend(admit(socket, client, state));
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EMFILE | libc::ENFILE) => {
                    pipes::give_up_spares();
                    refuse_one(listener, state);
                    return Err(error);
                }
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => return Err(error),
                // The client was gone before it was accepted, or its packet was not allowed (accept(2)): the next one.
                _ => {}
            },
        }
    }
    Ok(())
}

/// With no descriptors left, the first in the queue is told so.
fn refuse_one(listener: &TcpStream, state: &Arc<State>) {
    state.shared.spare.with(|| {
        if let Ok((socket, _)) = SockRef::from(listener).accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) {
            state.pool.counters.accepted.fetch_add(1, Ordering::Relaxed);
            state.refuse(&socket, Refusal::Descriptors);
        }
    });
}

/// Whether a client may have a connection.
fn admit(socket: Socket, client: SocketAddr, state: &Arc<State>) -> Option<Admitted> {
    state.pool.counters.accepted.fetch_add(1, Ordering::Relaxed);
    let options = state.options();
    let active = state.pool.counters.active.fetch_add(1, Ordering::Relaxed);
    if options.max_connections.is_some_and(|limit| active >= limit) {
        state.pool.counters.active.fetch_sub(1, Ordering::Relaxed);
        state.refuse(&socket, Refusal::RouteLimit);
        return None;
    }
    if !state.shared.gate.enter() {
        state.pool.counters.active.fetch_sub(1, Ordering::Relaxed);
        state.refuse(&socket, Refusal::ProcessLimit);
        return None;
    }
    let permit = Permit { state: state.clone(), place: state.shared.places.take() };
    Some(Admitted { socket, client, options, permit })
}

/// Has connections begin, each at its place. Another worker is woken once for all that go there: that takes a system call.
fn begin(admitted: Vec<Admitted>) {
    let here = Handle::current().id();
    let mut elsewhere: BTreeMap<usize, Vec<Admitted>> = BTreeMap::new();
    for one in admitted {
        if one.permit.place.runtime().id() == here {
            tokio::spawn(one.live());
        } else {
            elsewhere.entry(one.permit.place.number()).or_default().push(one);
        }
    }
    for group in elsewhere.into_values() {
        let runtime = group[0].permit.place.runtime().clone();
        runtime.spawn(async move { group.into_iter().for_each(|one| drop(tokio::spawn(one.live()))) });
    }
}

/// From an accepted socket to two streams that may be relayed.
async fn connect(
    socket: Socket,
    client: SocketAddr,
    state: &Arc<State>,
    options: &Arc<Options>,
) -> Option<(TcpStream, TcpStream, super::pool::Pick, Entry)> {
    let destination = match original_destination(&socket, client) {
        _ if state.direct => state.listener,
        // Without a translation, connection tracking knows the listener itself, or nothing.
        Some(destination) if destination != state.listener => destination,
        _ => {
            state.refuse(&socket, Refusal::NotTranslated);
            return None;
        }
    };
    let arrival = Arrival { client, frontend: destination };
    let header = options.proxy_protocol.map(|version| proxy::header(version, client, destination));
    // An error means that the client is gone: it needs no endpoint any more.
    let speaks = splice::has_something(&socket).ok()? || header.is_some();
    let cuts = state.shared.register.cuts();
    let (server, pick) = match dial::dial(state, &arrival, options, speaks).await {
        Ok(connected) => connected,
        Err(reason) => {
            state.refuse(&socket, reason);
            return None;
        }
    };
    // A new socket takes some kilobytes at once, unless it is gone already.
    if header.is_some_and(|header| splice::send(&server, &header).ok() != Some(header.len())) {
        reset(&socket);
        return None;
    }
    let key = CarriedKey { protocol: crate::model::Protocol::Tcp, client, listener: state.listener.port() };
    // All polls of a task have the same waker.
    let waker = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
    let direct = state.direct.then_some(destination);
    let entry = state.shared.register.enter(key, pick.endpoint(), direct, Some(waker));
    if state.shared.register.cuts() != cuts && !state.pool.is_candidate(pick.endpoint()) {
        // Connections to it were ended while this one was being made.
        reset(&socket);
        reset(&server);
        return None;
    }
    Some((relay::adopt(socket).ok()?, server, pick, entry))
}

/// The address that the client connected to, as connection tracking remembers it.
fn original_destination(socket: &Socket, client: SocketAddr) -> Option<SocketAddr> {
    let original = if client.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    original.ok()?.as_socket()
}

/// Has the socket closed by a reset rather than in order.
fn reset(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

// === impl Admitted ===

impl Admitted {
    /// The connection, from here to its end.
    async fn live(self) {
        let Self { socket, client, options, permit } = self;
        let connected = Box::pin(connect(socket, client, &permit.state, &options)).await;
        let Some((client, server, pick, entry)) = connected else { return };
        let relay =
            relay::Relay::new(client, server, pick, entry).timeouts(options.idle_timeout, options.half_closed_timeout);
        drop(options);
        relay.await;
        drop(permit);
    }
}

// === impl State ===

impl State {
    fn options(&self) -> Arc<Options> {
        self.options.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Has a client reset, and counts.
    fn refuse(&self, socket: &Socket, reason: Refusal) {
        reset(socket);
        self.pool.counters.refuse(reason);
        self.complain(format_args!("a connection was refused: {}", reason.label()));
    }

    fn complain(&self, what: std::fmt::Arguments<'_>) {
        if let Some(kept_back) = self.complaints.now() {
            let RouteId { port, family, .. } = &self.id;
            warn!(service = %port.service, port = %port.name, %family, since_the_last_line = kept_back, "{what}");
        }
    }
}

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        self.state.pool.counters.active.fetch_sub(1, Ordering::Relaxed);
        self.state.shared.gate.leave();
    }
}

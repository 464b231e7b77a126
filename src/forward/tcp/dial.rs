//! Finding an endpoint that answers.
//!
//! Endpoints are tried as the route's balancer picks them, each once. One that refuses costs a round trip, so all may be tried; one
//! that is silent costs time, so only as many silences are put up with as there are timeouts, each longer than the one before. When
//! all have been tried and some were silent, they are tried again: a packet may have been lost. Nothing is said to the client
//! meanwhile, whose bytes wait in its socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::State;
use crate::forward::balance::Arrival;
use crate::forward::client_ip::Announced;
use crate::forward::pool::Pick;
use crate::forward::route::{ClientIp, Options};
use crate::forward::status::Refusal;

/// How we find out that an end has vanished: after a minute of silence we ask, four times within another minute. (The kernel's own
/// default is to ask after two hours.)
pub(super) fn keepalive() -> TcpKeepalive {
    let quarter = Duration::from_secs(15);
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(quarter).with_retries(4)
}

/// A connection to one of the pool's endpoints. `speaks`: something will be sent to it at once.
pub(super) async fn dial(
    state: &State,
    arrival: &Arrival,
    options: &Options,
    speaks: bool,
) -> Result<(TcpStream, Pick), Refusal> {
    let mut tried = Vec::new();
    let (mut silences, mut silences_before) = (0, 0);
    loop {
        let Some(pick) = state.pool.pick(arrival, &tried) else {
            if tried.is_empty() {
                return Err(Refusal::NoEndpoints);
            }
            if silences == silences_before {
                return Err(Refusal::Unreachable);
            }
            silences_before = silences;
            tried.clear();
            continue;
        };
        let Some(patience) = options.connect_timeouts.get(silences).copied() else { return Err(Refusal::Unreachable) };
        let begin = Instant::now();
        let client = (options.client_ip == ClientIp::Preserve).then_some(arrival.client.ip());
        match connect(pick.endpoint(), patience, client, speaks, state).await {
            Ok(stream) => {
                pick.connected(begin.elapsed());
                return Ok((stream, pick));
            }
            Err(error) if is_ours(&error) => return Err(Refusal::Descriptors),
            Err(error) => {
                pick.failed();
                silences += usize::from(error.kind() == io::ErrorKind::TimedOut);
            }
        }
        tried.push(pick.endpoint());
    }
}

/// # Errors
/// `TimedOut` when there was no answer for so long.
async fn connect(
    to: SocketAddr,
    patience: Duration,
    client: Option<IpAddr>,
    speaks: bool,
    state: &State,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // Keepalives are for who stays.
    socket.set_tcp_nodelay(true)?;
    if speaks {
        hold_acknowledgements(&socket, true);
    }
    // Until the connection is made, or has failed.
    let _announced = match client {
        Some(client) => appear_as(client, &socket, to, state).await,
        None => None,
    };
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // A pod of this node has answered within the call: no timer and no waiting, which would take longer than all before.
    let connected = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    if !connected {
        timeout(patience, stream.writable()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

/// Has the connection that this socket will make come from the client's address. None if it will come from the node's.
async fn appear_as(client: IpAddr, socket: &Socket, to: SocketAddr, state: &State) -> Option<Announced> {
    let announced = if client.is_loopback() || client == to.ip() {
        // A pod takes no packets from outside that seem to be its own.
        Err("the client is on the loopback or the endpoint itself".to_owned())
    } else {
        match take_port(socket, to) {
            Ok(port) => state.shared.clients.announce(port, to, client).await,
            Err(error) => Err(error.to_string()),
        }
    };
    announced
        .inspect_err(|why| {
            state.pool.counters.unpreserved.fetch_add(1, Ordering::Relaxed);
            state.complain(format_args!("a client's address was not preserved: {why}"));
        })
        .ok()
}

/// A local port of the kernel's choice.
fn take_port(socket: &Socket, like: SocketAddr) -> io::Result<u16> {
    let any: IpAddr = if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(any, 0).into())?;
    socket.local_addr()?.as_socket().map(|local| local.port()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether a socket keeps its acknowledgements back to send them with what it sends (tcp(7), `TCP_QUICKACK`). One that is about to connect, with
/// something to be sent as soon as it has, does: it says that it is connected by its first bytes, which spares a packet, and the endpoint hears of
/// both at once. Not for longer than that: an endpoint that answers by two small writes and waits in between for the first to be
/// acknowledged (Nagle) would wait for 40 ms.
pub(super) fn hold_acknowledgements(socket: &impl AsFd, on: bool) {
    // Without it, all is well.
    let _ = SockRef::from(socket).set_tcp_quickack(!on);
}

/// Whether the trouble is our own: no descriptors, memory or ports. Another endpoint would not help, and this one is not to blame.
fn is_ours(error: &io::Error) -> bool {
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|errno| ours.contains(&errno))
}

//! Finding an endpoint that answers.
//!
//! Endpoints are tried as the route's balancer picks them, each once. One that refuses costs a round trip, so all may be tried; one
//! that is silent costs time, so only as many silences are put up with as there are timeouts, each longer than the one before. When
//! all have been tried and some were silent, they are tried again: a packet may have been lost. Nothing is said to the client
//! meanwhile, whose bytes wait in its socket.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::Timeouts;
use crate::forward::balance::Arrival;
use crate::forward::pool::{Pick, Pool};
use crate::forward::status::Refusal;

/// How we find out that an end has vanished: after a minute of silence we ask, four times within another minute. (The kernel's own
/// default is to ask after two hours.)
pub(super) fn keepalive() -> TcpKeepalive {
    let quarter = Duration::from_secs(15);
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(quarter).with_retries(4)
}

/// A connection to one of the pool's endpoints.
pub(super) async fn dial(
    pool: &Arc<Pool>,
    arrival: &Arrival,
    timeouts: Timeouts,
) -> Result<(TcpStream, Pick), Refusal> {
    let mut tried = Vec::new();
    let (mut silences, mut silences_before) = (0, 0);
    loop {
        let Some(pick) = pool.pick(arrival, &tried) else {
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
        let Some(patience) = timeouts.get(silences) else { return Err(Refusal::Unreachable) };
        let begin = Instant::now();
        match timeout(patience, connect(pick.endpoint())).await {
            Ok(Ok(stream)) => {
                pick.connected(begin.elapsed());
                return Ok((stream, pick));
            }
            Ok(Err(error)) if is_ours(&error) => return Err(Refusal::Descriptors),
            Ok(Err(_)) => pick.failed(),
            Err(_) => {
                pick.failed();
                silences += 1;
            }
        }
        tried.push(pick.endpoint());
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    prepare(&socket)?;
    TcpSocket::from_std_stream(socket.into()).connect(to).await
}

/// What every connection has, on both sides: small packets at once, and a question now and then whether the other end lives.
pub(super) fn prepare(socket: &Socket) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())
}

/// Whether the trouble is our own: no descriptors, memory or ports. Another endpoint would not help, and this one is not to blame.
fn is_ours(error: &io::Error) -> bool {
    let ours = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|errno| ours.contains(&errno))
}

//! The HTTP server behind every port we open: bind, accept, answer, and survive whoever connects.
//!
//! A health port is looked at by load balancers and kubelets and can be reached by anybody on the network. So nobody may keep
//! others from being answered: a head must arrive within [`Limits::head`], heads and bodies are bounded, and of more than
//! [`Limits::connections`] connections the oldest is closed, never the newest refused. Most answers are computed at once from what is
//! at hand ([`at_once`]); those about Services wait for the controller.
//!
//! Vocabulary: a [`Server`] is a guard; dropping it closes the listening socket and every connection of it.
//!
//! Methods are not told apart, as in kube-proxy: unless a path says otherwise, POST is answered like GET, and HEAD like GET without
//! the body.
//!
//! Invariants: a failed bind is retried every [`REBIND`] for ever, unless it is meant to be fatal; a failing `accept` (no file
//! descriptors left) is waited out.
//!
//! Proven by the tests in `http/tests.rs`, over real sockets.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{error, info};

/// What is answered.
pub(super) type Answer = Response<Body>;

/// Its body: at hand, or told bit by bit.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Computes answers. Only a PUT comes with its body.
pub(super) type Handler = Arc<dyn Fn(Request<Bytes>) -> BoxFuture<'static, Answer> + Send + Sync>;

/// Time between two attempts to bind.
pub(super) const REBIND: Duration = Duration::from_secs(5);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// A request's head; hyper answers 431 to more.
const HEAD_BYTES: usize = 16 * 1024;
/// A request's body.
const BODY_BYTES: usize = 1024;
/// Time after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a single client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// For the head of a request, and for its body, to arrive; also how long a connection may idle.
    pub(super) head: Duration,
    /// Connections of one listener at a time.
    pub(super) connections: usize,
}

/// Which families a listener takes connections of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Both for an unspecified address, as Go's `net.Listen("tcp", ...)` does.
    Any,
    /// The address's own only.
    OwnFamily,
}

/// A port that cannot be opened. It says its reason itself, so it names no `source`.
#[derive(Debug, thiserror::Error)]
#[error("{what} cannot listen on {address}: {reason}")]
pub struct BindError {
    /// What was to be served.
    pub what: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// Why not.
    pub reason: io::Error,
}

/// The connections of a listener, oldest first.
struct Guests {
    limits: Limits,
    connections: JoinSet<()>,
    by_age: VecDeque<AbortHandle>,
}

/// A server at work, or waiting for its port.
#[derive(Debug)]
pub(super) struct Server {
    bound: watch::Receiver<Option<SocketAddr>>,
    task: JoinHandle<()>,
}

/// A handler that has its answers at hand.
pub(super) fn at_once(answer: impl Fn(&Request<Bytes>) -> Answer + Send + Sync + 'static) -> Handler {
    Arc::new(move |request| Box::pin(ready(answer(&request))))
}

/// An answer with a body.
pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

/// A plain text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

/// What Go's servers say about a path they do not know.
pub(super) fn not_found() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// Binds and listens, without blocking.
pub(super) fn bind(address: SocketAddr, reach: Reach) -> io::Result<StdListener> {
    let dual = reach == Reach::Any && address.ip().is_unspecified();
    if dual {
        let everywhere = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        match listen(everywhere, false) {
            // No IPv6 on this machine: what was asked for literally is all there is.
            Err(error) if address.is_ipv4() && error.kind() != io::ErrorKind::AddrInUse => {}
            listener => return listener,
        }
    }
    listen(address, true)
}

fn listen(address: SocketAddr, v6_only: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    // As Go does: connections of a predecessor in TIME_WAIT must not keep us from the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self { head: Duration::from_secs(30), connections: 256 }
    }
}

// === impl Server ===

impl Server {
    /// Binds and serves. When the port cannot be had now, that is an error if `fatal`, and otherwise tried again for ever.
    pub(super) fn start(
        what: &'static str,
        address: SocketAddr,
        fatal: bool,
        limits: Limits,
        handler: Handler,
    ) -> Result<Self, BindError> {
        let first = match bind(address, Reach::Any) {
            Ok(listener) => Some(listener),
            Err(reason) if fatal => return Err(BindError { what, address, reason }),
            Err(reason) => {
                error!(error = %BindError { what, address, reason }, retry_in = ?REBIND, "a port cannot be opened");
                None
            }
        };
        let (sender, bound) = watch::channel(first.as_ref().and_then(|listener| listener.local_addr().ok()));
        let task = tokio::spawn(async move {
            let listener = match first {
                Some(listener) => listener,
                None => bind_again(what, address).await,
            };
            sender.send_replace(listener.local_addr().ok());
            accept(listener, limits, handler).await;
        });
        Ok(Self { bound, task })
    }

    /// Serves on a socket that is listening already.
    pub(super) fn on(listener: StdListener, limits: Limits, handler: Handler) -> Self {
        let (_, bound) = watch::channel(listener.local_addr().ok());
        Self { bound, task: tokio::spawn(accept(listener, limits, handler)) }
    }

    /// Serves root, and the user that this process is of, on a socket of the file system that is listening already.
    pub(super) fn on_socket(listener: StdUnixListener, limits: Limits, handler: Handler) -> Self {
        let (_, bound) = watch::channel(None);
        Self { bound, task: tokio::spawn(accept_local(listener, limits, handler)) }
    }

    /// Where it listens; `None` while the port cannot be had.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        *self.bound.borrow()
    }

    /// Ends it and waits until the port is free.
    pub(super) async fn close(mut self) {
        self.task.abort();
        // An error is the cancellation that was asked for.
        drop((&mut self.task).await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn bind_again(what: &'static str, address: SocketAddr) -> StdListener {
    loop {
        sleep(REBIND).await;
        match bind(address, Reach::Any) {
            Ok(listener) => {
                info!(what, %address, "the port is open now");
                return listener;
            }
            Err(reason) => {
                error!(error = %BindError { what, address, reason }, retry_in = ?REBIND, "a port cannot be opened");
            }
        }
    }
}

async fn accept(listener: StdListener, limits: Limits, handler: Handler) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "a listening socket cannot be watched; nothing is served on it"),
    };
    let mut guests = Guests::new(limits);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    drop(stream.set_nodelay(true));
                    guests.admit(converse(stream, limits, handler.clone()));
                }
                Err(error) => missed(&error).await,
            },
            () = guests.one_leaves() => {}
        }
    }
}

async fn accept_local(listener: StdUnixListener, limits: Limits, handler: Handler) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "a listening socket cannot be watched; nothing is served on it"),
    };
    let own = nix::unistd::geteuid().as_raw();
    let forbidden = at_once(|_| text(StatusCode::FORBIDDEN, "for root only\n"));
    let mut guests = Guests::new(limits);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let known = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own);
                    let handler = if known { &handler } else { &forbidden };
                    guests.admit(converse(stream, limits, handler.clone()));
                }
                Err(error) => missed(&error).await,
            },
            () = guests.one_leaves() => {}
        }
    }
}

async fn missed(error: &io::Error) {
    error!(%error, "a connection cannot be accepted");
    sleep(ACCEPT_PAUSE).await;
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, limits: Limits, handler: Handler) {
    let service = service_fn(|request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = match head.method {
                Method::PUT => match timeout(limits.head, Limited::new(body, BODY_BYTES).collect()).await {
                    Ok(Ok(body)) => body.to_bytes(),
                    Ok(Err(_)) => {
                        return Ok(text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large or broke off\n"));
                    }
                    Err(_) => return Ok(text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n")),
                },
                _ => Bytes::new(),
            };
            Ok::<_, Infallible>(handler(Request::from_parts(head, body)).await)
        }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_BYTES);
    // An error is a client that left, was too slow or spoke something else.
    drop(server.serve_connection(TokioIo::new(stream), service).await);
}

// === impl Guests ===

impl Guests {
    fn new(limits: Limits) -> Self {
        Self { limits, connections: JoinSet::new(), by_age: VecDeque::new() }
    }

    /// One more, for which the oldest has to go if there are too many.
    fn admit(&mut self, conversation: impl Future<Output = ()> + Send + 'static) {
        if self.connections.len() >= self.limits.connections {
            self.by_age.retain(|connection| !connection.is_finished());
            if let Some(oldest) = self.by_age.pop_front() {
                oldest.abort();
            }
        }
        self.by_age.push_back(self.connections.spawn(conversation));
    }

    /// Waits until one has come to its end; for ever if there is none.
    async fn one_leaves(&mut self) {
        match self.connections.join_next().await {
            Some(_) => self.by_age.retain(|connection| !connection.is_finished()),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

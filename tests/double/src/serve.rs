//! The server thread: listening, connections, and what each request is answered.
//!
//! A request passes the gates in the order of a real server under trouble: it is logged, it may stall, it may fail on demand,
//! its token is checked, and only then is it understood.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::feed::{self, Beginning, FeedBody};
use crate::query::{self, Query};
use crate::store::Refusal;
use crate::{GoneStyle, Request, Shared, StreamingLists, lock, write};

/// What the handle asks of the thread; the sender is dropped when it is done.
pub(crate) enum Command {
    Stop(blocking::Sender<()>),
    Listen(blocking::Sender<()>),
    Quit,
}

pub(crate) type Answer = Response<FeedBody>;

/// Binds a free port and starts the thread.
pub(crate) fn spawn(shared: Arc<Shared>) -> (SocketAddr, mpsc::UnboundedSender<Command>, JoinHandle<()>) {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on 127.0.0.1");
    listener.set_nonblocking(true).expect("a non-blocking listener");
    let address = listener.local_addr().expect("a bound address");
    let (commands, inbox) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
    let thread = std::thread::Builder::new().name("api-double".into());
    let thread = thread
        .spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a tokio listener");
                serve(shared, listener, address, inbox).await;
            });
            runtime.shutdown_background();
        })
        .expect("a thread");
    (address, commands, thread)
}

async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(Command::Stop(_done)) => {
                    listener = None;
                    connections.shutdown().await;
                }
                Some(Command::Listen(_done)) => {
                    if listener.is_none() {
                        listener = Some(listen_again(address).await);
                    }
                }
                Some(Command::Quit) | None => return,
            },
            Some(_) = connections.join_next() => {}
            stream = accept(listener.as_ref()) => {
                connections.spawn(converse(shared.clone(), stream));
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            return stream;
        }
    }
}

/// Somebody else may hold the port for a moment, so this is patient.
async fn listen_again(address: SocketAddr) -> TcpListener {
    let bind = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    let mut refusal = None;
    for _ in 0..100 {
        match bind() {
            Ok(listener) => return listener,
            Err(error) => refusal = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{address} cannot be bound again: {refusal:?}");
}

async fn converse(shared: Arc<Shared>, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    // An error here is a client that left or a watch that was broken on demand.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(shared: Arc<Shared>, request: hyper::Request<Incoming>) -> Answer {
    let request_log = logged(&request);
    let token = request_log.token.clone();
    lock(&shared.requests).push(request_log);
    let (stalled, failure, required) = {
        let mut faults = lock(&shared.faults);
        let stalled = faults.stalled;
        (stalled, if stalled { None } else { faults.next_failure() }, faults.token.clone())
    };
    if stalled {
        return std::future::pending().await;
    }
    if let Some(code) = failure {
        return refuse(&shared, code, reason_of(code), "failed on demand");
    }
    if required.is_some() && required != token {
        return refuse(&shared, 401, "Unauthorized", "Unauthorized");
    }
    if request.method() != Method::GET {
        return write::answer(&shared, request).await;
    }
    let uri = request.uri();
    match uri.path() {
        "/healthz" | "/livez" | "/readyz" => return reply(&shared, 200, "text/plain", b"ok".to_vec()),
        "/version" => {
            let version =
                json!({"major": "1", "minor": "36", "gitVersion": "v1.36.0+double", "platform": "linux/amd64"});
            return reply_json(&shared, 200, &version);
        }
        path if !path.starts_with("/api/") && !path.starts_with("/apis/") => return not_found(&shared, path),
        _ => {}
    }
    match Query::parse(uri.path(), uri.query().unwrap_or_default()) {
        Err(message) => refuse(&shared, 400, "BadRequest", &message),
        Ok(query) if lock(&shared.store).collection(&query.collection).is_none() => not_found(&shared, uri.path()),
        Ok(query) if query.name.is_some() => get(&shared, &query),
        Ok(query) if query.watch => watch(&shared, query),
        Ok(query) => list(&shared, &query),
    }
}

fn get(shared: &Arc<Shared>, query: &Query) -> Answer {
    let name = query.name.as_deref().unwrap_or_default();
    let object = lock(&shared.store).get(&query.collection, query.namespace.as_deref().unwrap_or_default(), name);
    match object {
        Some(object) => reply(shared, 200, "application/json", object.json.to_vec()),
        None => not_found(shared, name),
    }
}

fn list(shared: &Arc<Shared>, query: &Query) -> Answer {
    let mut store = lock(&shared.store);
    let page = match store.list(query) {
        Ok(page) => page,
        Err(refusal) => return refuse_by(shared, &refusal),
    };
    let head = store.collection(&query.collection).map(|collection| collection.list_head(&page)).unwrap_or_default();
    drop(store);
    let size: usize = page.objects.iter().map(|object| object.json.len() + 1).sum();
    let mut body = Vec::with_capacity(head.len() + size + 2);
    body.extend_from_slice(head.as_bytes());
    for (n, object) in page.objects.iter().enumerate() {
        if n > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&object.json);
    }
    body.extend_from_slice(b"]}\n");
    reply(shared, 200, "application/json", body)
}

fn watch(shared: &Arc<Shared>, query: Query) -> Answer {
    let (streaming_lists, gone_style) = {
        let faults = lock(&shared.faults);
        (faults.streaming_lists, faults.gone_style)
    };
    let initial_events = match (query.send_initial_events, streaming_lists) {
        (false, _) | (_, StreamingLists::Ignored) => false,
        (true, StreamingLists::Refused) => {
            let message = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is \
                           forbidden for watch unless the WatchList feature gate is enabled";
            return refuse(shared, 422, "Invalid", message);
        }
        (true, StreamingLists::Supported) => {
            if query.version_match.as_deref() != Some("NotOlderThan") || !query.bookmarks {
                let message = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch \
                               to NotOlderThan and allowWatchBookmarks";
                return refuse(shared, 422, "Invalid", message);
            }
            true
        }
    };
    let store = lock(&shared.store);
    let version = query.version.unwrap_or(0);
    let checked = match (initial_events, version) {
        (_, 0) => Ok(()),
        (true, version) if version <= store.version() => Ok(()),
        _ => store.check_version(&query.collection, version),
    };
    if let Err(refusal) = checked {
        drop(store);
        return match (&refusal, gone_style) {
            (Refusal::Gone(_), GoneStyle::Event) => {
                respond(200, "application/json", FeedBody::of(shared, feed::error_line(&refusal)))
            }
            _ => refuse_by(shared, &refusal),
        };
    }
    let beginning = if initial_events || version == 0 {
        Beginning { objects: store.matching(&query), marked: initial_events, cursor: store.version() }
    } else {
        Beginning { objects: Vec::new(), marked: false, cursor: version }
    };
    drop(store);
    respond(200, "application/json", feed::open(shared.clone(), query, beginning))
}

fn logged(request: &hyper::Request<Incoming>) -> Request {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    Request {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        query: query::pairs(request.uri().query().unwrap_or_default()),
        user_agent: header(USER_AGENT).unwrap_or_default().to_owned(),
        token: header(AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned),
    }
}

pub(crate) fn not_found(shared: &Arc<Shared>, what: &str) -> Answer {
    refuse(shared, 404, "NotFound", &format!("the server could not find {what}"))
}

fn refuse_by(shared: &Arc<Shared>, refusal: &Refusal) -> Answer {
    let (code, reason, message) = refusal.status();
    refuse(shared, code, reason, &message)
}

pub(crate) fn refuse(shared: &Arc<Shared>, code: u16, reason: &str, message: &str) -> Answer {
    let mut answer = reply_json(shared, code, &status_object(code, reason, message));
    if matches!(code, 429 | 503) {
        answer.headers_mut().insert(RETRY_AFTER, "1".parse().expect("a header value"));
    }
    answer
}

pub(crate) fn reply_json(shared: &Arc<Shared>, code: u16, value: &Value) -> Answer {
    reply(shared, code, "application/json", format!("{value}\n").into_bytes())
}

fn reply(shared: &Arc<Shared>, code: u16, content_type: &'static str, body: Vec<u8>) -> Answer {
    respond(code, content_type, FeedBody::of(shared, body))
}

fn respond(code: u16, content_type: &'static str, body: FeedBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(CONTENT_TYPE, content_type.parse().expect("a header value"));
    answer
}

/// A `v1` Status that tells of a failure.
pub(crate) fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    })
}

fn reason_of(code: u16) -> &'static str {
    match code {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    }
}

// === impl Refusal ===

impl Refusal {
    /// HTTP status, reason and message.
    pub(crate) fn status(&self) -> (u16, &'static str, String) {
        match self {
            Refusal::Gone(message) => (410, "Expired", message.clone()),
            Refusal::TooLarge(version) => (504, "Timeout", format!("Too large resource version: {version}")),
            Refusal::BadToken => (400, "BadRequest", "continue key is not valid".to_owned()),
        }
    }
}

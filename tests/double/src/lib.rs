//! A Kubernetes API server double: list and watch over real HTTP, with faults on demand.
//!
//! [`ApiDouble::start`] listens on 127.0.0.1 and serves whatever objects it is given under their real paths. It exists so that
//! a client of the Kubernetes API can be tested, and measured, against the wire instead of against a mock of its own library,
//! and so that everything that goes wrong with a real API server can go wrong on command.
//!
//! What it speaks, as the API documentation ("Kubernetes API Concepts") has it:
//! - **list** with label and field selectors, `limit`/`continue` over an immutable snapshot, `resourceVersion`;
//! - **watch** as chunked JSON lines: ADDED, MODIFIED, DELETED as the selectors see them, bookmarks, `timeoutSeconds`, a start
//!   at any version inside the history window and 410 outside of it, "Too large resource version" beyond the present;
//! - **streaming lists** (`sendInitialEvents`, `resourceVersionMatch=NotOlderThan`, the `k8s.io/initial-events-end` bookmark),
//!   or a server that refuses them, or one too old to know them: [`StreamingLists`];
//! - get of a single object, `/version`, `/healthz`, `/livez`, `/readyz`; bearer tokens;
//! - create and patch of Events (`events.k8s.io/v1`): [`ApiDouble::events`].
//!
//! What it does not do: other writes over HTTP (use [`ApiDouble::apply`] and [`ApiDouble::delete`]), TLS, protobuf, compression,
//! validation. It stores what it is given, so an object no real server would accept is a fine test.
//!
//! Vocabulary: a *collection* is one kind of object, named by its path across namespaces (`/api/v1/services`); a *version* is a
//! resourceVersion; a *fault* is anything that a well server would not do.
//!
//! The server runs in a thread of its own with its own runtime, so it works from tests with and without tokio, is never starved
//! by what it tests, and lives in the network namespace of the thread that started it. Dropping the [`ApiDouble`] closes every
//! connection and ends the thread.
//!
//! ```
//! use api_double::{ApiDouble, service};
//!
//! let double = ApiDouble::start();
//! double.apply(service("default", "web", "10.96.0.10", &[("http", "TCP", 80)]));
//! println!("kubectl --server {} get services -A", double.url());
//! double.fail_next(3, 503);
//! double.drop_watches();
//! double.delete("/api/v1/services", "default", "web");
//! ```
//!
//! Proven by `tests/wire.rs` and by the tests of the modules.
#![forbid(unsafe_code)]

mod faults;
mod feed;
mod object;
mod query;
mod selector;
mod serve;
mod store;
mod write;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

pub use object::{endpoint_slice, node, service};
pub use selector::Selector;

use faults::Faults;
use feed::{Signal, Watches};
use serve::Command;
use store::Store;

/// A running API server double.
pub struct ApiDouble {
    shared: Arc<Shared>,
    address: SocketAddr,
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// What the server does with `sendInitialEvents=true`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamingLists {
    /// Initial events, then the bookmark that ends them (Kubernetes 1.32 and later).
    #[default]
    Supported,
    /// 422 Invalid: the server knows the parameter, its feature gate is off (1.27 to 1.31).
    Refused,
    /// The parameter is not looked at, as before 1.27: a watch from version 0 begins with ADDED events and no bookmark ends them.
    Ignored,
}

/// How a version that is too old is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GoneStyle {
    /// 200, and an ERROR event with code 410 as the only event. What the watch cache does.
    #[default]
    Event,
    /// HTTP status 410. What a list with an expired continue token gets, and a watch that goes to etcd.
    Status,
}

/// One request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `GET`, as a rule.
    pub method: String,
    /// Without the query string.
    pub path: String,
    /// Decoded, in the order of arrival.
    pub query: Vec<(String, String)>,
    /// `User-Agent`, empty when absent.
    pub user_agent: String,
    /// The bearer token, if one was sent.
    pub token: Option<String>,
}

/// What the handle and the server thread share. Every lock is held for one short, synchronous step.
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    pub(crate) faults: Mutex<Faults>,
    pub(crate) requests: Mutex<Vec<Request>>,
    pub(crate) watches: Mutex<Watches>,
    /// Counts up whenever watches have something to look at.
    pub(crate) wake: watch::Sender<u64>,
}

// === impl ApiDouble ===

impl ApiDouble {
    /// Starts a server on a free port of 127.0.0.1 that remembers the last 100,000 events of each collection.
    pub fn start() -> Self {
        Self::with_history(100_000)
    }

    /// Starts a server that remembers this many events per collection; older versions answer 410.
    pub fn with_history(events: usize) -> Self {
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(events)),
            faults: Mutex::default(),
            requests: Mutex::default(),
            watches: Mutex::default(),
            wake: watch::Sender::new(0),
        });
        let (address, commands, thread) = serve::spawn(shared.clone());
        Self { shared, address, commands, thread: Some(thread) }
    }

    /// `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig for this server into `dir`, with a token file beside it when a token is required.
    pub fn kubeconfig(&self, dir: &Path) -> PathBuf {
        let mut user = json!({});
        if lock(&self.shared.faults).token.is_some() {
            user["tokenFile"] = self.write_token(dir).to_str().expect("a UTF-8 path").into();
        }
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": {"server": self.url()}}],
            "users": [{"name": "double", "user": user}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "double"}}],
            "current-context": "double",
        });
        let path = dir.join("kubeconfig");
        std::fs::write(&path, format!("{config:#}\n")).expect("the kubeconfig can be written");
        path
    }

    /// Writes the token that is required now to `token` in `dir`, as a kubelet would after a rotation.
    pub fn write_token(&self, dir: &Path) -> PathBuf {
        let path = dir.join("token");
        let token = lock(&self.shared.faults).token.clone().unwrap_or_default();
        std::fs::write(&path, token).expect("the token can be written");
        path
    }

    /// Creates or replaces an object and returns its version. `metadata.resourceVersion` is set, `metadata.uid` and the
    /// namespace `default` where they are missing.
    ///
    /// # Panics
    /// Without `apiVersion`, `kind` or `metadata.name`.
    pub fn apply(&self, object: Value) -> u64 {
        let version = lock(&self.shared.store).apply(object);
        self.wake();
        version
    }

    /// Deletes an object of the collection under `path` (an empty namespace for cluster-scoped kinds) and returns the version
    /// of the deletion, or `None` when there was nothing to delete.
    pub fn delete(&self, path: &str, namespace: &str, name: &str) -> Option<u64> {
        let version = lock(&self.shared.store).delete(path, namespace, name);
        self.wake();
        version
    }

    /// The version of the last write.
    pub fn version(&self) -> u64 {
        lock(&self.shared.store).version()
    }

    /// Makes every version handed out so far, and every unfinished paged list, too old: the next use of one answers 410. Open
    /// watches go on.
    pub fn compact(&self) {
        lock(&self.shared.store).compact();
    }

    /// Every request so far, in order of arrival, faulty ones included.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        lock(&self.shared.requests).clear();
    }

    /// The Events that clients have reported, as they are now, by name.
    pub fn events(&self) -> Vec<Value> {
        let query = query::Query { collection: write::EVENTS.to_owned(), ..query::Query::default() };
        lock(&self.shared.store).matching(&query).iter().map(|stored| stored.value.clone()).collect()
    }

    /// How many watches are open.
    pub fn open_watches(&self) -> usize {
        lock(&self.shared.watches).len()
    }

    /// Sets what happens to `sendInitialEvents=true` from now on.
    pub fn streaming_lists(&self, mode: StreamingLists) {
        lock(&self.shared.faults).streaming_lists = mode;
    }

    /// Sets how a watch from a version that is too old is refused from now on.
    pub fn gone_style(&self, style: GoneStyle) {
        lock(&self.shared.faults).gone_style = style;
    }

    /// Requires this bearer token from now on (401 without it), or none.
    pub fn require_token(&self, token: Option<&str>) {
        lock(&self.shared.faults).token = token.map(str::to_owned);
    }

    /// Sends a bookmark to every watch this often, if it asked for bookmarks; every minute at first.
    pub fn bookmark_every(&self, interval: Duration) {
        lock(&self.shared.faults).bookmark_interval = interval;
    }

    /// Answers the next `count` requests with this HTTP status and a `Status` object, whatever they ask. 429 and 503 come with
    /// `Retry-After: 1`, as from a real server under load. `fail_next(0, ...)` ends it early.
    pub fn fail_next(&self, count: usize, status: u16) {
        lock(&self.shared.faults).fail = (count, status);
    }

    /// While set, requests are accepted and never answered. Requests caught by it stay unanswered.
    pub fn stall(&self, stalled: bool) {
        lock(&self.shared.faults).stalled = stalled;
    }

    /// While set, every answer body is sent `bytes` at a time with `pause` between the pieces.
    pub fn trickle(&self, pace: Option<(usize, Duration)>) {
        lock(&self.shared.faults).trickle = pace.filter(|(bytes, _)| *bytes > 0);
    }

    /// Breaks the connection of every open watch in the middle of a chunked body.
    pub fn drop_watches(&self) {
        lock(&self.shared.watches).signal(|_| Some(Signal::Break));
    }

    /// Ends every open watch as a server does that shuts down gracefully.
    pub fn end_watches(&self) {
        lock(&self.shared.watches).signal(|_| Some(Signal::End));
    }

    /// Silences every open watch for good, `timeoutSeconds` included: a connection whose other side is gone without a word.
    pub fn freeze_watches(&self) {
        lock(&self.shared.watches).signal(|_| Some(Signal::Freeze));
    }

    /// Sends this text, and a line feed, to every open watch of a collection. It is no part of the history.
    pub fn inject_line(&self, path: &str, line: &str) {
        let line = Bytes::from(format!("{line}\n"));
        lock(&self.shared.watches).signal(|collection| (collection == path).then(|| Signal::Line(line.clone())));
    }

    /// Closes the listening socket and every connection, as when the server process dies. Objects and history stay.
    pub fn stop_listening(&self) {
        self.command(Command::Stop);
    }

    /// Listens again, on the same port.
    pub fn resume_listening(&self) {
        self.command(Command::Listen);
    }

    fn command(&self, make: impl FnOnce(std::sync::mpsc::Sender<()>) -> Command) {
        let (done, wait) = std::sync::mpsc::channel();
        // The thread only ends with the handle, so a failure here is a panic over there, which has already been printed.
        if self.commands.send(make(done)).is_ok() {
            let _ = wait.recv();
        }
    }

    fn wake(&self) {
        self.shared.wake.send_modify(|count| *count += 1);
    }
}

impl Drop for ApiDouble {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Quit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Request ===

impl Request {
    /// The value of a query parameter.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.query.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether this asked for a watch.
    pub fn is_watch(&self) -> bool {
        self.param("watch") == Some("true")
    }
}

/// Locks, also after a panic elsewhere: what is protected is only ever changed in single steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

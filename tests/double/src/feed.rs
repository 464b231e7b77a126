//! Open watches: a task per watch that reads the store and writes chunks.
//!
//! A feed holds a cursor, the last version it has told. Whenever the store changes it copies the events after the cursor that
//! its selectors let through. Faults reach it as signals. A feed ends when its client is gone, when `timeoutSeconds` have
//! passed, or when it is told to.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};

use crate::query::Query;
use crate::serve::status_object;
use crate::store::{Refusal, Stored, write_line};
use crate::{Shared, lock};

/// Chunks that wait for a slow client before the feed waits, too.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Initial events are sent in chunks of about this size.
const CHUNK: usize = 64 * 1024;
/// How long a watch without `timeoutSeconds` lives at least on a real server (`--min-request-timeout`).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);

/// What can be done to an open watch.
#[derive(Clone, Debug)]
pub(crate) enum Signal {
    /// Send this.
    Line(Bytes),
    /// Break the connection.
    Break,
    /// End the body.
    End,
    /// Never do anything again.
    Freeze,
}

/// The open watches.
#[derive(Default)]
pub(crate) struct Watches {
    next: u64,
    open: BTreeMap<u64, (String, mpsc::UnboundedSender<Signal>)>,
}

/// The body of a watch answer: whatever the feed sends.
pub(crate) struct FeedBody {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
}

/// Where a watch begins.
pub(crate) struct Beginning {
    /// Told as ADDED before anything else.
    pub(crate) objects: Vec<Arc<Stored>>,
    /// Whether a bookmark ends them.
    pub(crate) marked: bool,
    /// Events after this version follow.
    pub(crate) cursor: u64,
}

/// Takes a watch off the list when its feed ends, however it ends.
struct Registration {
    shared: Arc<Shared>,
    id: u64,
}

/// The writing end of a watch body.
struct Outlet {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    shared: Arc<Shared>,
}

/// Starts the feed of a watch and returns its body.
pub(crate) fn open(shared: Arc<Shared>, query: Query, beginning: Beginning) -> FeedBody {
    let (sender, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let (signal, signals) = mpsc::unbounded_channel();
    let id = lock(&shared.watches).add(query.collection.clone(), signal);
    let registration = Registration { shared: shared.clone(), id };
    let outlet = Outlet { chunks: sender, shared: shared.clone() };
    tokio::spawn(async move {
        let _registration = registration;
        run(&shared, &query, beginning, outlet, signals).await;
    });
    FeedBody { chunks }
}

/// Feeds one watch to its end; `None` is the early way out when the client is gone.
async fn run(
    shared: &Shared,
    query: &Query,
    beginning: Beginning,
    outlet: Outlet,
    mut signals: mpsc::UnboundedReceiver<Signal>,
) -> Option<()> {
    let mut changed = shared.wake.subscribe();
    changed.mark_changed();
    let deadline = Instant::now() + query.timeout_seconds.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let period = lock(&shared.faults).bookmark_interval;
    let mut bookmarks = interval_at(Instant::now() + period, period);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let mut cursor = beginning.cursor;
    outlet.send_objects(&beginning.objects).await?;
    drop(beginning.objects);
    if beginning.marked {
        outlet.send(bookmark(shared, query, cursor, true)).await?;
    }
    loop {
        tokio::select! {
            biased;
            signal = signals.recv() => match signal? {
                Signal::Line(line) => outlet.send(line.into()).await?,
                Signal::End => return Some(()),
                Signal::Break => {
                    let _ = outlet.chunks.send(Err(io::Error::other("broken on demand"))).await;
                    return Some(());
                }
                Signal::Freeze => {
                    outlet.chunks.closed().await;
                    return None;
                }
            },
            () = outlet.chunks.closed() => return None,
            () = sleep_until(deadline) => {
                if query.bookmarks {
                    outlet.send(bookmark(shared, query, cursor, false)).await?;
                }
                return Some(());
            }
            woken = changed.changed() => {
                woken.ok()?;
                let mut lines = Vec::new();
                let told = lock(&shared.store).events_since(query, cursor, &mut lines);
                outlet.send(lines).await?;
                match told {
                    Ok(version) => cursor = version,
                    Err(refusal) => {
                        outlet.send(error_line(&refusal)).await?;
                        return Some(());
                    }
                }
            }
            _ = bookmarks.tick(), if query.bookmarks => outlet.send(bookmark(shared, query, cursor, false)).await?,
        }
    }
}

fn bookmark(shared: &Shared, query: &Query, version: u64, initial: bool) -> Vec<u8> {
    let store = lock(&shared.store);
    store.collection(&query.collection).map(|collection| collection.bookmark(version, initial)).unwrap_or_default()
}

/// The ERROR event for a refusal.
pub(crate) fn error_line(refusal: &Refusal) -> Vec<u8> {
    let (code, reason, message) = refusal.status();
    let mut line = Vec::new();
    write_line("ERROR", status_object(code, reason, &message).to_string().as_bytes(), &mut line);
    line
}

// === impl Watches ===

impl Watches {
    fn add(&mut self, collection: String, signals: mpsc::UnboundedSender<Signal>) -> u64 {
        self.next += 1;
        self.open.insert(self.next, (collection, signals));
        self.next
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Sends each watch the signal chosen for its collection.
    pub(crate) fn signal(&self, choose: impl Fn(&str) -> Option<Signal>) {
        for (collection, signals) in self.open.values() {
            if let Some(signal) = choose(collection) {
                let _ = signals.send(signal);
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        lock(&self.shared.watches).open.remove(&self.id);
    }
}

// === impl FeedBody ===

impl FeedBody {
    /// Exactly these bytes, at the pace the faults ask for.
    pub(crate) fn of(shared: &Arc<Shared>, bytes: Vec<u8>) -> Self {
        let (sender, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let outlet = Outlet { chunks: sender, shared: shared.clone() };
        tokio::spawn(async move { outlet.send(bytes).await });
        Self { chunks }
    }
}

impl hyper::body::Body for FeedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let chunk = ready!(self.chunks.poll_recv(context));
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

// === impl Outlet ===

impl Outlet {
    /// Sends bytes, in pieces when a trickle is asked for; `None` when the client is gone.
    async fn send(&self, bytes: Vec<u8>) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        let mut bytes = Bytes::from(bytes);
        while let Some((piece, pause)) = self.trickle()
            && bytes.len() > piece
        {
            self.chunks.send(Ok(bytes.split_to(piece))).await.ok()?;
            sleep(pause).await;
        }
        self.chunks.send(Ok(bytes)).await.ok()
    }

    async fn send_objects(&self, objects: &[Arc<Stored>]) -> Option<()> {
        let mut lines = Vec::new();
        for object in objects {
            write_line("ADDED", &object.json, &mut lines);
            if lines.len() >= CHUNK {
                self.send(std::mem::take(&mut lines)).await?;
            }
        }
        self.send(lines).await
    }

    fn trickle(&self) -> Option<(usize, Duration)> {
        lock(&self.shared.faults).trickle
    }
}

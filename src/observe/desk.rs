//! The desk: where questions to the controller are handed in.
//!
//! Whoever wants to know something sends a closure that looks at a [`Glance`], which is all that the controller owns, and gets back
//! what it returned. The controller answers between two batches, some at a time, so a question costs nothing while nobody asks, and
//! whoever asks much asks in pieces ([`crate::status::CHUNK`]).
//!
//! Invariants: a closure makes plain data and does no I/O; the controller never waits for who asks. Who asks does not wait for ever:
//! a commit may take its time, and then [`Busy`] says so.
//!
//! Proven by `tests/e2e/status.rs`.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::metrics::SyncKind;
use crate::engine::Engine;
use crate::status::{LastError, LastSync};

/// Questions that wait; more wait outside.
const QUEUE: usize = 64;

/// How long a question may wait for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the controller answers before it looks at changes again.
const TURN: Duration = Duration::from_millis(4);

/// What the controller shows.
#[derive(Clone, Copy, Debug)]
pub struct Glance<'a> {
    /// What shall be.
    pub engine: &'a Engine,
    /// What is known of the kernel's side.
    pub kernel: &'a KernelSide,
}

/// What the controller knows of the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelSide {
    /// Whether everything known at the start is programmed.
    pub loaded: bool,
    /// Whether the tables are as they were left, as far as is known.
    pub trusted: bool,
    /// Elements in them.
    pub elements: usize,
    /// The last transaction that the kernel took.
    pub last_sync: Option<LastSync>,
    /// The last one that it refused.
    pub last_error: Option<LastError>,
}

/// The controller has no time: it waits for the kernel, or it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller did not answer within {} s: it waits for the kernel, or it has ended", PATIENCE.as_secs())]
pub struct Busy;

/// A question.
type Question = Box<dyn FnOnce(Glance<'_>) + Send>;

/// Where questions are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<Question>);

/// The other side: what has been asked.
#[derive(Debug)]
pub struct Questions(mpsc::Receiver<Question>);

/// The two sides of a desk.
pub fn desk() -> (Desk, Questions) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Desk(sender), Questions(receiver))
}

// === impl Desk ===

impl Desk {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// There is none within the time that a question waits.
    pub async fn ask<T: Send + 'static>(&self, look: impl FnOnce(Glance<'_>) -> T + Send + 'static) -> Result<T, Busy> {
        let (answer, answered) = oneshot::channel();
        let question: Question = Box::new(move |glance| {
            // Who does not wait any more need not be answered.
            if !answer.is_closed() {
                drop(answer.send(look(glance)));
            }
        });
        let asked = async {
            self.0.send(question).await.map_err(|_| Busy)?;
            answered.await.map_err(|_| Busy)
        };
        timeout(PATIENCE, asked).await.unwrap_or(Err(Busy))
    }
}

// === impl Questions ===

impl Questions {
    /// Waits for a question; for ever, if nobody can ask any more.
    pub async fn wait(&mut self) -> Asked {
        match self.0.recv().await {
            Some(question) => Asked(question),
            None => std::future::pending().await,
        }
    }

    /// Answers what waits, first `asked`, for some milliseconds at most.
    pub fn answer(&mut self, asked: Option<Asked>, glance: Glance<'_>) {
        let begin = Instant::now();
        let mut next = asked.map(|asked| asked.0);
        while let Some(question) = next.take().or_else(|| self.0.try_recv().ok()) {
            question(glance);
            if begin.elapsed() > TURN {
                break;
            }
        }
    }

    /// Whether anybody waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A question that was taken.
pub struct Asked(Question);

// === impl KernelSide ===

impl KernelSide {
    /// The kernel took a transaction.
    pub fn synced(&mut self, kind: SyncKind, duration: Duration) {
        let kind = match kind {
            SyncKind::Full => "full",
            SyncKind::Partial => "partial",
        };
        let (at, milliseconds) = (Timestamp::now(), duration.as_secs_f64() * 1e3);
        self.last_sync = Some(LastSync { at, milliseconds, kind: kind.to_owned() });
    }

    /// The kernel refused one.
    pub fn refused(&mut self, error: String) {
        self.last_error = Some(LastError { at: Timestamp::now(), error });
    }
}

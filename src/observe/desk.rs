//! The desk: where questions to the controller are handed in.
//!
//! Whoever wants to know something sends a closure that looks at a [`Glance`], which is all that the controller owns, and gets back
//! what it returned. The controller answers between two batches, some at a time, so a question costs nothing while nobody asks, and
//! whoever asks much asks in pieces ([`crate::status::CHUNK`]).
//!
//! Whoever wants something done (an endpoint drained by hand) sends an *order*: a closure that may change the engine, and another that tells, of a
//! glance taken after the kernel has been told, what came of it. Orders have a queue of their own; one whose sender has given up is not carried out,
//! and whoever waits for one that was begun hears what came of it.
//!
//! Invariants: a closure makes plain data and does no I/O; the controller never waits for who asks. Who asks does not wait for ever:
//! a commit may take its time, and then [`Busy`] says so.
//!
//! Proven by the tests below and by `tests/e2e/status.rs`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::metrics::{self, SyncKind};
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
pub struct Question(Box<dyn FnOnce(Glance<'_>) + Send>);

/// Changes the engine, and returns what is to be told afterwards.
type Act = dyn FnOnce(&mut Engine) -> Option<Question> + Send;

/// An order; `None` if nobody waits for it any more, and then it did nothing.
pub struct Order(Box<Act>);

/// What only one can have.
#[derive(Clone, Debug, Default)]
struct Claim(Arc<AtomicBool>);

/// Where questions are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Desk {
    questions: mpsc::Sender<Question>,
    orders: mpsc::Sender<Order>,
}

/// The other side: what has been asked.
#[derive(Debug)]
pub struct Questions {
    questions: mpsc::Receiver<Question>,
    orders: mpsc::Receiver<Order>,
    /// What is to be told of orders that were carried out.
    told: Vec<Question>,
}

/// The two sides of a desk.
pub fn desk() -> (Desk, Questions) {
    let (questions, asked) = mpsc::channel(QUEUE);
    let (orders, ordered) = mpsc::channel(QUEUE);
    (Desk { questions, orders }, Questions { questions: asked, orders: ordered, told: Vec::new() })
}

impl fmt::Debug for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Question")
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Order")
    }
}

// === impl Desk ===

impl Desk {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// There is none within the time that a question waits.
    pub async fn ask<T: Send + 'static>(&self, look: impl FnOnce(Glance<'_>) -> T + Send + 'static) -> Result<T, Busy> {
        let (answer, answered) = oneshot::channel();
        let question = Question(Box::new(move |glance| {
            // Who does not wait any more need not be answered.
            if !answer.is_closed() {
                drop(answer.send(look(glance)));
            }
        }));
        let asked = async {
            self.questions.send(question).await.map_err(|_| Busy)?;
            answered.await.map_err(|_| Busy)
        };
        timeout(PATIENCE, asked).await.unwrap_or(Err(Busy))
    }

    /// Has something done, and waits until the kernel has been told; `tell` sees what `act` returned and how things are then.
    ///
    /// # Errors
    /// The controller did not begin within `patience`, and never will; or it has ended. What was begun is waited for, however long the kernel takes.
    pub async fn order<D: Send + 'static, T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Engine) -> D + Send + 'static,
        tell: impl FnOnce(D, Glance<'_>) -> T + Send + 'static,
        patience: Duration,
    ) -> Result<T, Busy> {
        let (answer, mut answered) = oneshot::channel();
        // Whoever is first has it: the controller, who begins, or the asker, who gives up.
        let claim = Claim::default();
        let begun = claim.clone();
        let order = Order(Box::new(move |engine| {
            if answer.is_closed() || !begun.take() {
                return None;
            }
            let done = act(engine);
            Some(Question(Box::new(move |glance| drop(answer.send(tell(done, glance))))))
        }));
        let ordered = async {
            self.orders.send(order).await.map_err(|_| Busy)?;
            (&mut answered).await.map_err(|_| Busy)
        };
        match timeout(patience, ordered).await {
            Ok(told) => told,
            Err(_) if claim.take() => Err(Busy),
            Err(_) => answered.await.map_err(|_| Busy),
        }
    }
}

// === impl Claim ===

impl Claim {
    /// Whether nobody had it before.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

// === impl Questions ===

impl Questions {
    /// Waits for a question or an order; for ever, if nobody can ask any more.
    pub async fn wait(&mut self) -> Asked {
        let asked = tokio::select! {
            Some(question) = self.questions.recv() => Some(Asked::Question(question)),
            Some(order) = self.orders.recv() => Some(Asked::Order(order)),
            else => None,
        };
        match asked {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }

    /// Carries an order out; its sender is told with the next answers, when the kernel knows. Whether anything was done.
    pub fn carry_out(&mut self, Order(order): Order, engine: &mut Engine) -> bool {
        let before = self.told.len();
        self.told.extend(order(engine));
        self.told.len() > before
    }

    /// Tells whose orders were carried out, then answers what waits, first `question`, for some milliseconds at most.
    pub fn answer(&mut self, question: Option<Question>, glance: Glance<'_>) {
        let begin = Instant::now();
        self.told.drain(..).for_each(|told| told.0(glance));
        let mut next = question;
        while let Some(Question(question)) = next.take().or_else(|| self.questions.try_recv().ok()) {
            let asked = Instant::now();
            question(glance);
            metrics::answered(asked.elapsed());
            if begin.elapsed() > TURN {
                break;
            }
        }
    }

    /// Whether anybody waits for an answer.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty() && self.told.is_empty()
    }
}

/// What was taken from the desk.
#[derive(Debug)]
pub enum Asked {
    /// To be answered.
    Question(Question),
    /// To be carried out.
    Order(Order),
}

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::schedule::Scheduler;

    const SHORT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn what_was_begun_is_waited_for_and_what_was_not_never_is() {
        let (desk, mut questions) = desk();
        let mut engine = Engine::new("n1", Scheduler::Random);
        let kernel = KernelSide::default();
        // Nobody takes it in time.
        assert_eq!(desk.order(|_| panic!("nobody waits for it"), |(), _| (), SHORT).await, Err(Busy));
        let Asked::Order(late) = questions.wait().await else { panic!("an order") };
        assert!(!questions.carry_out(late, &mut engine), "it was not carried out");
        // It is begun, and the kernel takes longer than anybody would wait.
        let asking =
            tokio::spawn(async move { desk.order(|engine| engine.overrides().count(), |done, _| done, SHORT).await });
        let Asked::Order(order) = questions.wait().await else { panic!("an order") };
        assert!(questions.carry_out(order, &mut engine));
        tokio::time::sleep(SHORT * 3).await;
        questions.answer(None, Glance { engine: &engine, kernel: &kernel });
        assert_eq!(asking.await.expect("no panic"), Ok(0));
    }
}

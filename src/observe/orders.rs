//! What is said by hand over the status API: endpoints drained and weighted, and taken back.
//!
//! An order goes to the controller ([`Desk::order`]), and what stands then is kept for a successor ([`kept`]). Both are one thing to whoever
//! ordered: so they happen in a task of their own, which goes on when nobody waits for the answer any more, because the asker has gone or because a commit takes
//! longer than anybody waits.
//!
//! Invariants: one order at a time, so that what is kept is what stands; an order whose asker was told that the controller has no time is never carried
//! out later; one that was carried out is kept.
//!
//! Proven by `tests/e2e/orders.rs` and by the tests of [`super::desk`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{self, timeout, timeout_at};
use tracing::warn;

use super::desk::{Busy, Desk, Glance};
use super::kept;
use crate::engine::{Engine, Order, OrderError};
use crate::status::{self, Lift, OverrideList, OverrideView, VERSION};

/// How long an order may wait until it is begun, all in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long whoever ordered is kept waiting: longer than an order waits, so that it has been begun by then. `pointsman` gives up after 15 s.
const ANSWER: Duration = Duration::from_secs(13);

/// Takes orders. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Orders {
    desk: Desk,
    /// Where what was said by hand is kept for a successor. Locked while somebody says something.
    keep: Arc<Mutex<Option<PathBuf>>>,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// This is said.
    Place(Order),
    /// That is taken back.
    Lift(Lift),
}

/// Why an order was not carried out, or not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error("the daemon has not programmed everything known at its start yet: try again")]
    Loading,
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error("it is being done, but the kernel takes its time: see what stands with `pointsman get overrides`")]
    Late,
}

/// What is answered, and all that stands.
type Done = (OverrideList, Vec<OverrideView>);

// === impl Orders ===

impl Orders {
    pub(super) fn new(desk: Desk, keep: Option<PathBuf>) -> Self {
        Self { desk, keep: Arc::new(Mutex::new(keep)) }
    }

    /// What stands.
    pub(super) async fn standing(&self) -> Result<OverrideList, Busy> {
        let standing = |glance: Glance<'_>| status::overrides(glance.engine, Instant::now(), Timestamp::now());
        let overrides = self.desk.ask(standing).await?;
        Ok(OverrideList { version: VERSION.to_owned(), overrides, warnings: Vec::new() })
    }

    /// Has it done and kept, whether or not anybody waits for the answer.
    pub(super) async fn say(&self, said: Said) -> Result<OverrideList, Refused> {
        let orders = self.clone();
        let doing = tokio::spawn(async move { orders.carry_out(said).await });
        match timeout(ANSWER, doing).await {
            Ok(done) => done.map_err(|_| Busy)?,
            Err(_) => Err(Refused::Late),
        }
    }

    async fn carry_out(&self, said: Said) -> Result<OverrideList, Refused> {
        let deadline = time::Instant::now() + PATIENCE;
        let keep = timeout_at(deadline, self.keep.lock()).await.map_err(|_| Busy)?;
        if !timeout_at(deadline, self.desk.ask(|glance| glance.kernel.loaded)).await.map_err(|_| Busy)?? {
            return Err(Refused::Loading);
        }
        let left = deadline.saturating_duration_since(time::Instant::now());
        let (mut answer, all) = match said {
            Said::Place(order) => self.place(order, left).await?,
            Said::Lift(lift) => self.lift(lift, left).await?,
        };
        if let Some(path) = keep.clone() {
            let name = path.display().to_string();
            let written = spawn_blocking(move || kept::write(&path, all)).await.map_err(|_| Busy)?;
            if let Err(error) = written {
                warn!(path = name, %error, "what was said by hand cannot be kept: it ends with this process");
                answer.warnings.push(format!("it ends with this process, because {name} cannot be written: {error}"));
            }
        }
        Ok(answer)
    }

    async fn place(&self, order: Order, patience: Duration) -> Result<Done, Refused> {
        let act = move |engine: &mut Engine| engine.place_override(&order, Instant::now());
        let tell = |placed: Result<Vec<_>, OrderError>, glance: Glance<'_>| {
            let (now, wall) = (Instant::now(), Timestamp::now());
            let placed = placed?;
            let said = placed.iter().filter_map(|one| status::override_on(glance.engine, one, now, wall)).collect();
            Ok((list_of(said, &glance), status::overrides(glance.engine, now, wall)))
        };
        self.desk.order(act, tell, patience).await?.map_err(Refused::Order)
    }

    async fn lift(&self, Lift { who, service }: Lift, patience: Duration) -> Result<Done, Refused> {
        let act = move |engine: &mut Engine| engine.lift_overrides(who.as_ref(), service.as_ref(), Instant::now());
        let tell = |lifted: Result<Vec<_>, OrderError>, glance: Glance<'_>| {
            lifted?;
            let left = status::overrides(glance.engine, Instant::now(), Timestamp::now());
            Ok((list_of(left.clone(), &glance), left))
        };
        self.desk.order(act, tell, patience).await?.map_err(Refused::Order)
    }
}

fn list_of(overrides: Vec<OverrideView>, glance: &Glance<'_>) -> OverrideList {
    let mut warnings = Vec::new();
    if !glance.kernel.trusted {
        warnings.push(
            "the kernel does not know yet: it refused, and will be asked again (see its last error in /v1/health)"
                .to_owned(),
        );
    }
    OverrideList { version: VERSION.to_owned(), overrides, warnings }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::observe::desk;

    /// The one test that has to wait as long as people do.
    #[tokio::test]
    async fn an_order_that_was_not_begun_is_refused_and_not_said_to_be_done() {
        // Nobody answers.
        let (desk, _questions) = desk::desk();
        let orders = Orders::new(desk, None);
        let before = orders.keep.clone().lock_owned().await;
        let begin = Instant::now();
        let lift = orders.say(Said::Lift(Lift { who: None, service: None }));
        let another = async {
            sleep(PATIENCE / 2).await;
            drop(before);
        };
        let (answer, ()) = tokio::join!(lift, another);
        assert!(matches!(answer, Err(Refused::Busy(_))), "{answer:?}");
        assert!((PATIENCE..ANSWER).contains(&begin.elapsed()), "waiting for others counts: {:?}", begin.elapsed());
    }
}

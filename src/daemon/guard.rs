//! Guarding what is programmed against others: what to do about a [`Disturbance`].
//!
//! A disturbance of our tables means that they are read, compared with what is desired and repaired: at once the first time, and then no more
//! often than every [`PAUSE`], so that somebody who removes them in a loop does not keep us busy. New chains of others are looked
//! at for [`Shadow`]s, at most every [`LOOK`], and each shadow is mentioned once.
//!
//! Listening begins after the first load: before that, everything is compared anyway.
//!
//! Proven by `tests/e2e/guard.rs`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::kernel::watch::{Disturbance, Watch};
use crate::kernel::{DataPlane, Shadow};
use crate::observe::metrics;

/// Between two repairs.
const PAUSE: Duration = Duration::from_millis(500);

/// Between two looks at the tables of others.
const LOOK: Duration = Duration::from_secs(30);

/// Before the first look: what kube-proxy left is just being removed.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Disturbances that wait to be dealt with; more are as good as these.
const QUEUE: usize = 64;

/// Listens, and remembers what was done.
pub(super) struct Guard {
    watch: Option<Watch>,
    report: mpsc::Sender<Disturbance>,
    heard: mpsc::Receiver<Disturbance>,
    /// When a repair was last begun.
    repaired: Option<Instant>,
    /// What others have in front of us, as mentioned.
    shadows: BTreeSet<Shadow>,
    /// When to look next, if somebody made chains.
    next_look: Instant,
    look: bool,
}

// === impl Guard ===

impl Guard {
    /// One that does not listen yet.
    pub(super) fn new() -> Self {
        let (report, heard) = mpsc::channel(QUEUE);
        Self {
            watch: None,
            report,
            heard,
            repaired: None,
            shadows: BTreeSet::new(),
            next_look: Instant::now(),
            look: false,
        }
    }

    /// Begins to listen, in the calling thread's network namespace, and looks around soon.
    pub(super) fn start(&mut self, plane: &mut DataPlane) {
        let report = self.report.clone();
        // A full queue already holds the reason for a comparison.
        let listen = Watch::start(plane.port(), move |disturbance| drop(report.try_send(disturbance)));
        match listen {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => warn!(%error, "what others do to our tables will not be noticed"),
        }
        (self.look, self.next_look) = (true, Instant::now() + FIRST_LOOK);
    }

    /// The next disturbance.
    pub(super) async fn heard(&mut self) -> Option<Disturbance> {
        self.heard.recv().await
    }

    /// Takes a disturbance, and all that wait behind it. The answer is when the tables are to be compared, if they are.
    pub(super) fn take(&mut self, first: Disturbance) -> Option<Instant> {
        let mut repair = false;
        let mut next = Some(first);
        while let Some(disturbance) = next {
            match &disturbance {
                Disturbance::Elsewhere => self.look = true,
                Disturbance::Changed { .. } => {
                    warn!("our tables were changed by {disturbance}; comparing and repairing");
                    metrics::disturbed("changed");
                    repair = true;
                }
                Disturbance::Lost => {
                    info!("{disturbance}; comparing our tables");
                    metrics::disturbed("lost");
                    repair = true;
                }
            }
            next = self.heard.try_recv().ok();
        }
        let now = Instant::now();
        let at = self.repaired.map_or(now, |last| (last + PAUSE).max(now));
        repair.then(|| {
            self.repaired = Some(at);
            at
        })
    }

    /// When to call [`Guard::look`], if somebody made chains.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.look.then_some(self.next_look)
    }

    /// Mentions who decides before us, once each.
    pub(super) fn look(&mut self, plane: &mut DataPlane) {
        (self.look, self.next_look) = (false, Instant::now() + LOOK);
        match plane.shadows() {
            Ok(shadows) => {
                for shadow in shadows.difference(&self.shadows) {
                    warn!("{shadow} may translate connections to Services before our rules are asked");
                }
                self.shadows = shadows;
            }
            Err(error) => info!(%error, "the tables of others could not be read"),
        }
    }
}

//! The daemon: sources, engine and data plane wired together.
//!
//! ```text
//!  source (tokio tasks)  --changes-->  controller (a thread of its own)
//!                                        Engine: what shall be       DataPlane: what is
//! ```
//!
//! One thread, the *controller*, owns all state: it takes changes, compiles them, applies the difference and waits for the kernel's
//! answer. While it waits, changes pile up in the channel and become the next batch: a quiet cluster is programmed at once, a storm
//! in few transactions. What belongs together (the edits of one file, the events of one write) arrives within microseconds, so the
//! first change of a batch waits a moment for the others.
//!
//! Invariants: nothing is programmed before Services and EndpointSlices are known completely; what is programmed stays when a source
//! falls silent, when the daemon ends and when it dies; a refusal by the kernel leads to a fresh look at what is there and a second
//! attempt, with back-off, for as long as it takes.
//!
//! Proven by `tests/e2e/`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::compile::Delta;
use crate::config::{Config, SourceConfig};
use crate::engine::{Engine, Outcome};
use crate::kernel::conntrack::{Cleaner, Pass};
use crate::kernel::{Applied, DataPlane, KernelError};
use crate::model::{Families, Family};
use crate::observe::metrics::{self, SyncKind};
use crate::observe::services::HealthPort;
use crate::observe::{self, Observer, Pending};
use crate::policy::HealthCheck;
use crate::source::api::{ApiConfig, ApiSource, Clients};
use crate::source::manifests::ManifestSource;
use crate::source::{Change, Kind};

/// Changes in flight between source and controller; a source that is faster waits.
const CHANNEL: usize = 4096;

/// Changes taken before the kernel is told, at most.
const BATCH: usize = 16_384;

/// A batch is complete when nothing more has come for so long, or after so many times that.
const SETTLE: Duration = Duration::from_micros(100);
const SETTLE_ROUNDS: usize = 20;

/// Pause after a refusal, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Owns what shall be and what is.
struct Controller {
    engine: Engine,
    plane: DataPlane,
    /// Ends the UDP flows that what is programmed contradicts.
    cleaner: Cleaner,
    observer: Observer,
    awaited: Vec<Kind>,
    /// Whether a predecessor's numbers have been taken over.
    adopted: bool,
    /// What was taken in since the kernel was last up to date, and the families it concerns.
    pending: Pending,
    due: Families,
    /// When the changes happened that the next transaction brings.
    triggers: Vec<(Family, Timestamp)>,
    /// Whether the kernel has what the engine desires, as far as we know.
    trust: Trust,
}

/// How much the controller knows of the kernel's tables.
enum Trust {
    /// They are as we left them: differences can be applied.
    Known,
    /// They have to be read before anything is written: at the start, and after a refusal.
    Unknown {
        /// Not before this time.
        retry_at: Instant,
        /// How long to wait after the next refusal.
        pause: Duration,
    },
}

/// Serves until the process is ended. Returns only errors that nothing can be done about here.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let (changes, taken) = mpsc::channel(CHANNEL);
    // The source is made first: a directory that is not there, or a kubeconfig that does not parse, must not leave a trace in the
    // kernel. The data plane is opened before the source runs: without permission there is no use in listing a cluster.
    let source = make_source(&config)?;
    let clients = source.clients();
    let start = Timestamp::now();
    let (opened, open_result) = oneshot::channel();
    let (ended, end_result) = oneshot::channel();
    let (observe, observer) = oneshot::channel();
    let node = config.node.clone();
    let scheduler = config.scheduler;
    thread::Builder::new()
        .name("controller".to_owned())
        .spawn(move || {
            let plane = match DataPlane::open() {
                Ok(plane) => plane,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let mut engine = Engine::new(&node, scheduler);
            engine.measure_since(start);
            let mut plane = plane;
            // A table owned by somebody else ends the start and not the third hour.
            let first = plane.claim().map(|tables| {
                if tables > 0 {
                    info!(
                        tables,
                        "adopting the tables of a predecessor; they stay as they are until everything is known"
                    );
                }
            });
            let hopeless = first.is_err();
            if opened.send(first).is_err() || hopeless {
                return;
            }
            let Ok(observer) = observer.blocking_recv() else { return };
            let controller = Controller::new(engine, plane, observer);
            let runtime = runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.expect("a runtime without I/O needs no resources that could be lacking");
            drop(ended.send(runtime.block_on(controller.run(taken))));
        })
        .context("starting the controller thread")?;
    open_result.await.context("the controller thread ended before it began")??;
    let settings = observe::Settings {
        node: config.node.clone(),
        watches_node: clients.is_some(),
        ..observe::Settings::default()
    };
    // Before anything is programmed, and not before it is clear that something can be.
    let (observer, _servers) = observe::start(settings, clients)?;
    drop(observe.send(observer));
    info!(node = config.node, scheduler = %config.scheduler, "serving");
    tokio::select! {
        () = source.run(changes, shutdown) => anyhow::bail!("the source of objects ended"),
        outcome = end_result => {
            outcome.context("the controller thread panicked")??;
            anyhow::bail!("the controller ended")
        }
    }
}

/// Removes everything this program ever programs in this network namespace.
pub fn cleanup() -> Result<(), KernelError> {
    let mut plane = DataPlane::open()?;
    let removed = plane.remove()?;
    info!(tables = removed, "cleaned up");
    Ok(())
}

enum Source {
    Manifests(ManifestSource),
    Api(Box<ApiSource>),
}

fn make_source(config: &Config) -> anyhow::Result<Source> {
    Ok(match &config.source {
        SourceConfig::Manifests(dir) => Source::Manifests(ManifestSource::new(dir, &config.node)?),
        SourceConfig::Api { kubeconfig, master } => Source::Api(Box::new(ApiSource::new(ApiConfig {
            kubeconfig: kubeconfig.clone(),
            master: master.clone(),
            node_name: config.node.clone(),
            ..ApiConfig::default()
        })?)),
    })
}

/// Waits for the rest of a burst. The thread sleeps, because tokio's timers are no finer than a millisecond.
fn settle(changes: &mut mpsc::Receiver<Change>, batch: &mut Vec<Change>) {
    for _ in 0..SETTLE_ROUNDS {
        let before = batch.len();
        thread::sleep(SETTLE);
        while batch.len() < BATCH
            && let Ok(change) = changes.try_recv()
        {
            batch.push(change);
        }
        if batch.len() == before || batch.len() == BATCH {
            break;
        }
    }
}

/// In the calling thread's network namespace. Without it Services are served all the same.
fn start_cleaner() -> Cleaner {
    let report = |pass: &Pass| metrics::conntrack_reconciled(pass.family, pass.duration, pass.deleted.deleted as u64);
    Cleaner::start(report).unwrap_or_else(|error| {
        warn!(%error, "stale UDP flows will not be removed");
        Cleaner::disabled()
    })
}

// === impl Source ===

impl Source {
    /// For who writes to the API server, if there is one.
    fn clients(&self) -> Option<Clients> {
        match self {
            Source::Manifests(_) => None,
            Source::Api(source) => Some(source.clients()),
        }
    }

    async fn run(self, changes: mpsc::Sender<Change>, shutdown: CancellationToken) {
        match self {
            Source::Manifests(source) => source.run(changes, shutdown).await,
            Source::Api(source) => source.run(changes, shutdown).await,
        }
    }
}

// === impl Controller ===

impl Controller {
    fn new(engine: Engine, plane: DataPlane, observer: Observer) -> Self {
        Self {
            engine,
            plane,
            cleaner: start_cleaner(),
            observer,
            pending: Pending::default(),
            due: Families::default(),
            triggers: Vec::new(),
            // The Node too: which addresses serve node ports depends on it.
            awaited: vec![Kind::Service, Kind::EndpointSlice, Kind::Node],
            adopted: false,
            trust: Trust::Unknown { retry_at: Instant::now(), pause: FIRST_PAUSE },
        }
    }

    async fn run(mut self, mut changes: mpsc::Receiver<Change>) -> Result<(), KernelError> {
        let mut batch = Vec::new();
        self.observer.loop_started();
        loop {
            let wait = changes.recv_many(&mut batch, BATCH);
            let received = match self.trust {
                Trust::Unknown { retry_at, .. } if self.awaited.is_empty() => {
                    tokio::time::timeout_at(retry_at.into(), wait).await.ok()
                }
                Trust::Known | Trust::Unknown { .. } => Some(wait.await),
            };
            if received == Some(0) {
                return Ok(());
            }
            let begin = Instant::now();
            if received.is_some() {
                settle(&mut changes, &mut batch);
            }
            let changes_taken = batch.len();
            for change in batch.drain(..) {
                if let Change::Synced(kind) = change {
                    self.awaited.retain(|awaited| *awaited != kind);
                }
                self.observer.seen(&change);
                self.pending.add(&change);
                self.engine.take(change);
            }
            if self.awaited.is_empty() {
                self.program(begin, changes_taken)?;
            }
        }
    }

    /// Takes over the numbers that a predecessor used; before the first compilation, and when everything that the layout depends on
    /// is known.
    fn adopt(&mut self) -> Result<(), KernelError> {
        let found = self.plane.read()?;
        for reason in &found.rejected {
            warn!(reason, "the table that is there cannot be adopted and will be replaced");
        }
        self.engine.adopt(found.image);
        self.adopted = true;
        Ok(())
    }

    /// Compiles what was taken and brings the kernel there.
    fn program(&mut self, begin: Instant, changes: usize) -> Result<(), KernelError> {
        let touched = self.engine.touched();
        self.due = self.due.union(touched);
        if !touched.is_empty() {
            self.observer.queued(self.pending, touched);
        }
        let stale = self.plane.set_locality(self.engine.locality());
        if !self.adopted
            && let Err(error) = self.adopt()
        {
            return self.refused(error);
        }
        let outcome = if self.engine.is_idle() { Outcome::default() } else { self.engine.compile() };
        for problem in &outcome.problems {
            warn!("{problem}");
            self.observer.invalid(problem);
        }
        self.cleaner.announce(self.engine.take_flow_changes());
        self.triggers.extend(&outcome.triggers);
        let (kind, result) = match &mut self.trust {
            Trust::Known if stale => (SyncKind::Full, self.plane.replace(&self.engine.everything())),
            Trust::Known if outcome.delta.is_empty() => {
                self.cleaner.programmed();
                self.synced(SyncKind::Partial, begin, true);
                return Ok(());
            }
            Trust::Known => (SyncKind::Partial, self.plane.apply(&outcome.delta)),
            Trust::Unknown { retry_at, .. } if *retry_at > Instant::now() => return Ok(()),
            Trust::Unknown { .. } => {
                self.due = Families::ALL;
                (SyncKind::Full, self.reconcile())
            }
        };
        let result = match result {
            Err(KernelError::Outgrown { family, map, size }) => {
                info!(%family, map, size, "the map outgrew its size: replacing the tables by larger ones");
                self.plane.replace(&self.engine.everything())
            }
            result => result,
        };
        self.synced(kind, begin, result.is_ok());
        match result {
            Ok(applied) => {
                self.report(&outcome, applied, begin, changes);
                self.trust = Trust::Known;
                if !outcome.services.is_empty() {
                    self.tell_health();
                }
                self.cleaner.programmed();
                Ok(())
            }
            Err(error) => self.refused(error),
        }
    }

    /// What load balancers hear follows what is programmed.
    fn tell_health(&self) {
        let port = |health: &HealthCheck| HealthPort {
            port: health.port,
            local_endpoints: [health.local_v4, health.local_v6],
        };
        self.observer
            .health_ports(self.engine.health().iter().map(|(key, health)| (key.clone(), port(health))).collect());
    }

    /// Plans another attempt, unless that is hopeless.
    fn refused(&mut self, error: KernelError) -> Result<(), KernelError> {
        if error.is_hopeless() {
            return Err(error);
        }
        let pause = match self.trust {
            Trust::Known => FIRST_PAUSE,
            Trust::Unknown { pause, .. } => pause,
        };
        error!(%error, retry_in = ?pause, "programming failed; what is programmed stays, and will be compared and corrected");
        self.trust = Trust::Unknown { retry_at: Instant::now() + pause, pause: (pause * 2).min(LONGEST_PAUSE) };
        Ok(())
    }

    /// Tells the outside how it went. What was due is done with success; the times of a failure are lost.
    fn synced(&mut self, kind: SyncKind, begin: Instant, success: bool) {
        let triggers = std::mem::take(&mut self.triggers);
        let (families, duration) = (self.due, begin.elapsed());
        self.observer.synced(&observe::Sync { kind, families, duration, success, triggers: &triggers });
        if success {
            (self.due, self.pending) = Default::default();
        }
    }

    /// Reads what is there and applies the difference to everything desired.
    fn reconcile(&mut self) -> Result<Applied, KernelError> {
        let found = self.plane.read()?;
        let difference: Delta = self.engine.everything().rebase(found.image);
        debug!(elements = difference.len(), "compared with the kernel");
        let applied = self.plane.apply(&difference)?;
        self.engine.settle();
        Ok(applied)
    }

    /// One line per batch programmed, shown from `-v=2` on.
    fn report(&self, outcome: &Outcome, applied: Applied, begin: Instant, changes: usize) {
        const NAMED: usize = 3;
        let named: Vec<_> = outcome.services.iter().take(NAMED).map(ToString::to_string).collect();
        let more = outcome.services.len().saturating_sub(NAMED);
        let services = if more > 0 { format!("{} and {more} more", named.join(", ")) } else { named.join(", ") };
        info!(
            target: "pointsman::programmed",
            services,
            changes,
            elements = applied.elements,
            transactions = applied.transactions,
            kernel_us = u64::try_from(applied.duration.as_micros()).unwrap_or(u64::MAX),
            total_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
            "programmed"
        );
    }
}

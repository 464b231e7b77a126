//! The controller: the one thread that owns what shall be and what is.

use std::collections::HashSet;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::forwarding::Forwarding;
use super::node_wait::{ADDRESSES, News, NodeWait, POD_NETWORKS, Step};
use crate::compile::{Delta, Ring};
use crate::conntrack::ledger::Report;
use crate::engine::{Engine, Outcome};
use crate::kernel::conntrack::{Cleaner, Counts, Pass};
use crate::kernel::{Applied, DataPlane, KernelError};
use crate::model::{Families, Family};
use crate::observe::metrics::{self, SyncKind};
use crate::observe::{self, HealthPort, HealthPorts, Observer, Pending};
use crate::policy::HealthCheck;
use crate::source::{Change, Kind, Object};

/// Changes taken before the kernel is told, at most.
const BATCH: usize = 16_384;

/// A batch is complete when nothing more has come for so long, or after so many times that.
const SETTLE: Duration = Duration::from_micros(100);
const SETTLE_ROUNDS: usize = 20;

/// Pause after a refusal, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Reports of connections that may wait for the controller.
const REPORTS: usize = 256;

/// Done once, when everything known is programmed for the first time; must not take long.
pub(super) type AfterFirstLoad = fn();

/// Owns what shall be and what is.
pub(super) struct Controller {
    engine: Engine,
    plane: DataPlane,
    /// Ends the UDP flows that what is programmed contradicts.
    cleaner: Cleaner,
    /// Counts the connections of Services whose scheduler goes by counts, and reports them.
    counts: Counts,
    reports: mpsc::Receiver<Report>,
    observer: Observer,
    /// What goes through this process.
    forwarding: Forwarding,
    /// The pause between two transactions, if one is configured.
    pause: Option<Duration>,
    after_first_load: Option<AfterFirstLoad>,
    /// When this began, until the first load is programmed.
    loading_since: Option<Instant>,
    node_wait: NodeWait,
    awaited: Vec<Kind>,
    /// What was taken in since the kernel was last up to date, and the families it concerns.
    pending: Pending,
    due: Families,
    /// When the changes happened that the next transaction brings.
    triggers: Vec<(Family, Timestamp)>,
    /// Whether a predecessor's numbers have been taken over.
    adopted: bool,
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

/// In the calling thread's network namespace. Without it Services are served all the same.
fn start_cleaner() -> Cleaner {
    let report = |pass: &Pass| metrics::conntrack_reconciled(pass.family, pass.duration, pass.deleted.deleted as u64);
    Cleaner::start(report).unwrap_or_else(|error| {
        warn!(%error, "stale UDP flows will not be removed");
        Cleaner::disabled()
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

// === impl Controller ===

impl Controller {
    /// To be made in the network namespace that is served. `pause` is the least time between two transactions.
    pub(super) fn new(
        engine: Engine,
        plane: DataPlane,
        observer: Observer,
        pause: Option<Duration>,
        after_first_load: Option<AfterFirstLoad>,
        node_wait: NodeWait,
        forwarding: Forwarding,
    ) -> Self {
        let (report, reports) = mpsc::channel(REPORTS);
        Self {
            engine,
            plane,
            cleaner: start_cleaner(),
            counts: Counts::new(report),
            reports,
            observer,
            forwarding,
            pause,
            after_first_load,
            loading_since: Some(Instant::now()),
            node_wait,
            pending: Pending::default(),
            due: Families::default(),
            triggers: Vec::new(),
            // The Node too: which addresses serve node ports depends on it.
            awaited: vec![Kind::Service, Kind::EndpointSlice, Kind::Node],
            adopted: false,
            trust: Trust::Unknown { retry_at: Instant::now(), pause: FIRST_PAUSE },
        }
    }

    /// Takes over the numbers that a predecessor used; before the first compilation, and when everything that the layout depends on
    /// is known.
    fn adopt(&mut self) -> Result<(), KernelError> {
        let found = self.plane.read()?;
        for reason in &found.rejected {
            warn!(reason, "the table that is there cannot be adopted and will be replaced");
        }
        if found.existed && found.rejected.is_empty() {
            info!("adopting the tables of a predecessor");
        }
        self.engine.adopt(found.image);
        self.adopted = true;
        Ok(())
    }

    /// Serves until the source ends or something is hopeless.
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) -> anyhow::Result<()> {
        let stop = self.forwarding.stop();
        let (mut batch, mut reports) = (Vec::new(), Vec::new());
        self.observer.loop_started();
        loop {
            let due = self.next_deadline();
            let wait = async {
                tokio::select! {
                    // Changes first: after them, other rings may have to be dealt.
                    biased;
                    () = stop.cancelled() => Some(0),
                    received = changes.recv_many(&mut batch, BATCH) => Some(received),
                    Some(report) = self.reports.recv() => {
                        reports.push(report);
                        None
                    }
                }
            };
            // When to go on though nothing came.
            let wake = match self.trust {
                _ if !self.awaited.is_empty() => None,
                Trust::Unknown { retry_at, .. } => Some(self.node_wait.until().unwrap_or(retry_at)),
                Trust::Known => due,
            };
            let received = match wake {
                Some(at) => tokio::time::timeout_at(at.into(), wait).await.ok().flatten(),
                None => wait.await,
            };
            if !reports.is_empty() {
                self.redeal(&mut reports)?;
                // Reports may come all the time, and must not keep what is due from being done.
                if self.next_deadline().is_none_or(|at| at > Instant::now()) {
                    continue;
                }
            }
            if stop.is_cancelled() {
                return self.stop_forwarding();
            }
            if received == Some(0) {
                return Ok(());
            }
            if received.is_some() {
                settle(&mut changes, &mut batch);
            }
            let begin = Instant::now();
            let changes_taken = batch.len();
            for change in batch.drain(..) {
                if let Change::Synced(kind) = change {
                    self.awaited.retain(|awaited| *awaited != kind);
                }
                self.observer.seen(&change);
                self.pending.add(&change);
                let of_node = matches!(&change, Change::Apply(Object::Node(_)));
                self.engine.take(change);
                if of_node && let Some(node) = self.engine.store().node() {
                    self.observer.set_node_eligible(node.eligible);
                }
            }
            self.engine.take_time(Instant::now());
            if self.awaited.is_empty() && self.node_is_known()? {
                let wrote = self.program(begin, changes_taken)?;
                // What changed nothing holds nobody up: after a quiet time the next change is programmed at once.
                if let Some(pause) = self.pause.filter(|_| wrote) {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// When something is due though nothing changes.
    fn next_deadline(&self) -> Option<Instant> {
        [self.engine.next_deadline(), self.forwarding.next_deadline()].into_iter().flatten().min()
    }

    /// Whether the first load need not wait for our Node (any more).
    fn node_is_known(&mut self) -> anyhow::Result<bool> {
        let node = self.engine.node_name();
        loop {
            match self.node_wait.ask(self.engine.store().node(), Instant::now()) {
                Step::Go => return Ok(true),
                Step::Wait(_, None) => return Ok(false),
                Step::Wait(_, Some(News::Addresses)) => {
                    warn!(node, patience = ?ADDRESSES, "waiting for a Node of this name with an address (--hostname-override chooses another name)");
                    return Ok(false);
                }
                Step::Wait(_, Some(News::PodNetworks)) => {
                    warn!(node, patience = ?POD_NETWORKS, "waiting for spec.podCIDRs of our Node, which detectLocalMode NodeCIDR needs");
                    return Ok(false);
                }
                Step::GiveUpAddresses => {
                    warn!(
                        node,
                        "going on without a Node of this name that has an address: NodePorts are served on all addresses where the primary ones are asked for, and /healthz says 503 until there is one"
                    );
                }
                Step::Hopeless => anyhow::bail!(
                    "Node {node} has no spec.podCIDRs after {} s: detectLocalMode NodeCIDR needs them",
                    POD_NETWORKS.as_secs()
                ),
            }
        }
    }

    /// Compiles what was taken and brings the kernel there. Whether something was written.
    fn program(&mut self, begin: Instant, changes: usize) -> Result<bool, KernelError> {
        let touched = self.engine.touched();
        self.due = self.due.union(touched);
        if !touched.is_empty() {
            self.observer.queued(self.pending, touched);
        }
        let stale = self.plane.set_locality(self.engine.locality());
        if !self.adopted
            && let Err(error) = self.adopt()
        {
            return self.refused(error).map(|()| false);
        }
        let mut outcome = if self.engine.is_idle() { Outcome::default() } else { self.engine.compile() };
        self.forwarding.follow(&mut self.engine, &mut outcome, &self.observer);
        for problem in &outcome.problems {
            match problem.is_passed_over() {
                true => info!("{problem}"),
                false => warn!("{problem}"),
            }
            self.observer.invalid(problem);
        }
        self.cleaner.announce(self.engine.take_flow_changes());
        self.triggers.extend(&outcome.triggers);
        let (kind, result) = match &mut self.trust {
            Trust::Known if stale => (SyncKind::Full, self.plane.replace(&self.engine.everything())),
            Trust::Known if outcome.delta.is_empty() => {
                self.clean();
                self.synced(SyncKind::Partial, begin, true);
                return Ok(false);
            }
            Trust::Known => (SyncKind::Partial, self.plane.apply(&outcome.delta)),
            Trust::Unknown { retry_at, .. } if *retry_at > Instant::now() => return Ok(false),
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
                self.observer.cleanup_failed(applied.stuck);
                self.report(&outcome, applied, begin, changes);
                if matches!(self.trust, Trust::Unknown { .. }) {
                    self.engine.settle();
                    self.trust = Trust::Known;
                    self.counts.report_all();
                }
                self.clean();
                if let Some(begin) = self.loading_since.take() {
                    self.loaded(applied, begin);
                }
                Ok(applied.transactions > 0)
            }
            Err(error) => self.refused(error).map(|()| false),
        }
    }

    /// Everything known is programmed for the first time.
    fn loaded(&mut self, applied: Applied, begin: Instant) {
        info!(
            services = self.engine.store().services().count(),
            elements = self.engine.everything().len(),
            written = applied.elements,
            after_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            "first load programmed"
        );
        self.observer.loaded();
        if let Some(work) = self.after_first_load.take() {
            work();
        }
    }

    /// The kernel has what is expected of new connections: now for those that are there.
    fn clean(&mut self) {
        self.cleaner.programmed();
        self.cleaner.cut(self.engine.take_cuts());
        self.counts.watch(self.engine.take_interests());
        self.forwarding.committed(&mut self.engine);
    }

    /// The kernel takes over what went through this process, as far as it can; then connections are waited for.
    fn stop_forwarding(mut self) -> anyhow::Result<()> {
        self.engine.leave_forwarder();
        if self.forwarding.is_in_use() && self.loading_since.is_none() {
            self.program(Instant::now(), 0)?;
        }
        // What it still has to remove are UDP flows to listeners that will be closed.
        self.cleaner = Cleaner::disabled();
        self.forwarding.shutdown();
        Ok(())
    }

    /// Deals the rings of those Services again whose connections were counted, all in one transaction.
    fn redeal(&mut self, reports: &mut Vec<Report>) -> Result<(), KernelError> {
        while let Ok(report) = self.reports.try_recv() {
            reports.push(report);
        }
        if !matches!(self.trust, Trust::Known) {
            // They are asked for again when the tables are as they should be.
            reports.clear();
            return Ok(());
        }
        let mut delta = Delta::default();
        let mut dealt = HashSet::new();
        // The newest report of each.
        for report in reports.drain(..).rev() {
            if !dealt.insert(report.subject.clone()) {
                continue;
            }
            let picks = |(ring, _): &(Ring, _)| self.plane.picks(report.subject.family, &ring.chain);
            match report.rings.iter().map(picks).collect::<Result<Vec<_>, _>>() {
                Ok(picks) => self.engine.redeal(&report, &picks, &mut delta),
                // A ring that has gone since: there will be a report of what is there now.
                Err(KernelError::Nft(nft::Error::Query { .. })) => {}
                Err(error) => return self.refused(error),
            }
        }
        match self.plane.apply(&delta) {
            Ok(applied) => {
                debug!(
                    services = dealt.len(),
                    elements = applied.elements,
                    kernel_us = applied.duration.as_micros(),
                    "dealt again"
                );
                Ok(())
            }
            Err(error) => self.refused(error),
        }
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
            let ports = self.engine.health().iter().map(|(service, check)| (service.clone(), health_port(check)));
            self.observer.health_ports(ports.collect::<HealthPorts>(), self.engine.restricted_node_ports());
            self.observer.no_local_endpoints(self.engine.no_local_endpoints());
        }
    }

    /// Reads what is there and applies the difference to everything desired.
    fn reconcile(&mut self) -> Result<Applied, KernelError> {
        let found = self.plane.read()?;
        let difference: Delta = self.engine.everything().rebase(found.image);
        debug!(elements = difference.len(), "compared with the kernel");
        self.plane.apply(&difference)
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

fn health_port(check: &HealthCheck) -> HealthPort {
    HealthPort { port: check.port, local_endpoints: [check.local_v4, check.local_v6] }
}

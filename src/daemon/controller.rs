//! The controller: the one thread that owns what shall be and what is.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, error, info, warn};

use super::dealer::Dealer;
use super::forwarding::Forwarding;
use super::guard::Guard;
use super::node_wait::{ADDRESSES, News, NodeWait, POD_NETWORKS, Step};
use crate::compile::{Delta, Image, LISTED};
use crate::conntrack::ledger::Report;
use crate::engine::{Engine, Outcome};
use crate::forward::Register;
use crate::kernel::conntrack::{CensusTaker, Cleaner, Pass};
use crate::kernel::{Applied, DataPlane, Found, KernelError, PART, Receive, Refused, SHARE, compare_in_turn};
use crate::model::{AddressRange, Families, Family, Problem, plain};
use crate::observe::desk::{Asked, Glance, KernelSide, Question, Questions};
use crate::observe::metrics::{self, SyncKind};
use crate::observe::timeline::{Entry, Occasion};
use crate::observe::{self, HealthPort, HealthPorts, Observer, Pending};
use crate::policy::HealthCheck;
use crate::source::{Change, Kind, Object};

/// Changes taken before the kernel is told, at most.
const BATCH: usize = 16_384;

/// Changes held as objects at a time, at most; one may be larger than a megabyte.
const PIECE: usize = 128;

/// A batch is complete when nothing more has come for so long, or after so many times that.
const SETTLE: Duration = Duration::from_micros(100);
const SETTLE_ROUNDS: usize = 20;

/// Pause after a refusal, doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Done once, when everything known is programmed for the first time; must not take long.
pub(super) type AfterFirstLoad = fn();

/// Owns what shall be and what is.
pub(super) struct Controller {
    engine: Engine,
    plane: DataPlane,
    /// Ends the UDP flows that what is programmed contradicts.
    cleaner: Cleaner,
    /// Counts the connections of Services whose scheduler goes by counts, and reports them.
    dealer: Dealer,
    observer: Observer,
    /// Counts the connections of all, for whoever looks.
    census: Option<CensusTaker>,
    /// What goes through this process.
    forwarding: Forwarding,
    /// The pause between two transactions, if one is configured, and when the present one is over: changes wait until then.
    /// Connections do not: what their counts, and time, ask for is done all the same.
    pause: Option<Duration>,
    not_before: Option<Instant>,
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
    /// On which addresses health ports were last opened.
    health_ports_on: Option<[Option<Vec<AddressRange>>; 2]>,
    /// Notices what others do to the tables.
    guard: Guard,
    /// What a predecessor left, read while the cluster is being listed.
    found: Option<Found>,
    /// Whether a predecessor's numbers have been taken over.
    adopted: bool,
    /// Whether the kernel has what the engine desires, as far as we know.
    trust: Trust,
    /// What people want to know, and what they are told of the kernel's side.
    questions: Questions,
    kernel: KernelSide,
}

/// Those outside: who is told, and who asks.
pub(super) struct Outside {
    pub(super) observer: Observer,
    pub(super) questions: Questions,
    /// Counts the connections of all, for whoever looks.
    pub(super) census: Option<CensusTaker>,
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
fn start_cleaner(carried: Register) -> Cleaner {
    let report = |pass: &Pass| metrics::conntrack_reconciled(pass.family, pass.duration, pass.deleted.deleted as u64);
    Cleaner::start_with(carried, report).unwrap_or_else(|error| {
        warn!(%error, "stale UDP flows will not be removed");
        Cleaner::disabled()
    })
}

/// Takes a change in.
fn take(change: Change, engine: &mut Engine, observer: &Observer, pending: &mut Pending, awaited: &mut Vec<Kind>) {
    if let Change::Synced(kind) = change {
        awaited.retain(|awaited| *awaited != kind);
    }
    observer.seen(&change);
    pending.add(&change);
    let of_node = matches!(&change, Change::Apply(Object::Node(_)));
    engine.take(change);
    if of_node && let Some(node) = engine.store().node() {
        observer.set_node_eligible(node.eligible);
    }
}

// === impl Controller ===

impl Controller {
    /// To be made in the network namespace that is served. `pause` is the least time between two transactions.
    pub(super) fn new(
        mut engine: Engine,
        mut plane: DataPlane,
        Outside { observer, questions, census }: Outside,
        pause: Option<Duration>,
        after_first_load: Option<AfterFirstLoad>,
        node_wait: NodeWait,
        forwarding: Forwarding,
    ) -> Self {
        plane.measured_by(metrics::transaction);
        if census.is_some() {
            engine.keep_directory();
        }
        Self {
            engine,
            plane,
            cleaner: start_cleaner(forwarding.register()),
            dealer: Dealer::new(),
            observer,
            census,
            forwarding,
            pause,
            not_before: None,
            after_first_load,
            loading_since: Some(Instant::now()),
            node_wait,
            pending: Pending::default(),
            due: Families::default(),
            triggers: Vec::new(),
            // The Node too: which addresses serve node ports depends on it.
            awaited: vec![Kind::Service, Kind::EndpointSlice, Kind::Node],
            health_ports_on: None,
            guard: Guard::new(),
            found: None,
            adopted: false,
            trust: Trust::Unknown { retry_at: Instant::now(), pause: FIRST_PAUSE },
            questions,
            kernel: KernelSide::default(),
        }
    }

    /// Takes over the numbers that a predecessor used; before the first compilation, and when everything that the layout depends on
    /// is known.
    fn adopt(&mut self) -> Result<(), KernelError> {
        let found = match self.found.take() {
            Some(found) => found,
            None => self.plane.read()?,
        };
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

    /// Reads what is there, on a thread of its own, and takes in meanwhile what the source lists.
    fn read_ahead(&mut self, changes: &mut mpsc::Receiver<Change>) {
        let begin = Instant::now();
        if self.plane.set_locality(self.engine.locality()) {
            return;
        }
        let Self { plane, engine, observer, pending, awaited, .. } = self;
        let read = thread::scope(|scope| {
            let reading = scope.spawn(|| plane.read());
            while !reading.is_finished() {
                while let Ok(change) = changes.try_recv() {
                    take(change, engine, observer, pending, awaited);
                }
                thread::sleep(SETTLE);
            }
            reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match read {
            Ok(found) => {
                debug!(duration = ?begin.elapsed(), existed = found.existed, "read what is there");
                self.found = Some(found);
            }
            Err(error) => debug!(%error, "what is there cannot be read; it will be tried again when it is needed"),
        }
    }

    /// Serves until the source ends or something is hopeless.
    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) -> anyhow::Result<()> {
        let stop = self.forwarding.stop();
        let (mut batch, mut reports, mut disturbed, mut asked) = (Vec::new(), Vec::new(), None, None);
        // Changes that wait for the end of a pause.
        let mut held_back = 0;
        self.observer.loop_started();
        self.read_ahead(&mut changes);
        loop {
            // Between two batches, however fast they come.
            if !self.questions.is_empty() {
                self.answer(None);
            }
            // When to go on though nothing came.
            let wake = match self.trust {
                _ if !self.awaited.is_empty() => None,
                Trust::Unknown { retry_at, .. } => Some(self.node_wait.until().unwrap_or(retry_at)),
                // What goes through this process waits for the end of a pause, as changes do.
                Trust::Known if self.is_held() => {
                    let held = self.not_before.filter(|_| !self.engine.is_idle());
                    [self.engine.next_deadline(), self.guard.deadline(), held].into_iter().flatten().min()
                }
                Trust::Known => self.next_deadline(),
            };
            let wait = async {
                tokio::select! {
                    // Changes first: after them, other rings may have to be dealt.
                    biased;
                    () = stop.cancelled() => Some(0),
                    received = changes.recv_many(&mut batch, PIECE) => Some(received),
                    Some(report) = self.dealer.report() => {
                        reports.push(report);
                        None
                    }
                    Some(disturbance) = self.guard.heard() => {
                        disturbed = Some(disturbance);
                        None
                    }
                    question = self.questions.wait() => {
                        asked = Some(question);
                        None
                    }
                }
            };
            let received = match wake {
                Some(at) => tokio::time::timeout_at(at.into(), wait).await.ok().flatten(),
                None => wait.await,
            };
            match asked.take() {
                Some(Asked::Question(question)) => {
                    self.answer(Some(question));
                    // Questions may come all the time, and must not keep what is due from being done.
                    if wake.is_none_or(|at| at > Instant::now()) {
                        continue;
                    }
                }
                // What it changed is due now.
                Some(Asked::Order(order)) => drop(self.questions.carry_out(order, &mut self.engine)),
                None => {}
            }
            if let Some(at) = disturbed.take().and_then(|disturbance| self.guard.take(disturbance)) {
                self.trust = Trust::Unknown { retry_at: at, pause: FIRST_PAUSE };
            }
            if self.guard.deadline().is_some_and(|at| at <= Instant::now()) {
                self.guard.look(&mut self.plane);
            }
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
            let mut taken = held_back;
            if received.is_some() {
                taken += self.take(&mut batch);
                if !self.is_held() {
                    taken += self.settle(&mut changes, &mut batch);
                }
            }
            if !self.awaited.is_empty() || !self.node_is_known()? {
                continue;
            }
            if self.is_held() {
                held_back = taken;
                self.go_on()?;
                continue;
            }
            held_back = 0;
            let begin = Instant::now();
            self.engine.take_time(begin);
            // What changed nothing holds nobody up: after a quiet time the next change is programmed at once.
            if self.program(begin, taken)? {
                self.not_before = self.pause.map(|pause| Instant::now() + pause);
            }
        }
    }

    /// Answers those who want to know something, for some milliseconds at most.
    fn answer(&mut self, question: Option<Question>) {
        self.kernel.loaded = self.loading_since.is_none();
        self.kernel.trusted = matches!(self.trust, Trust::Known);
        self.kernel.elements = self.plane.elements();
        self.questions.answer(question, Glance { engine: &self.engine, kernel: &self.kernel });
    }

    /// When something is due though nothing changes.
    fn next_deadline(&self) -> Option<Instant> {
        [self.engine.next_deadline(), self.forwarding.next_deadline(), self.guard.deadline()]
            .into_iter()
            .flatten()
            .min()
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

    /// Takes changes in; returns how many.
    fn take(&mut self, batch: &mut Vec<Change>) -> usize {
        let count = batch.len();
        for change in batch.drain(..) {
            take(change, &mut self.engine, &self.observer, &mut self.pending, &mut self.awaited);
        }
        count
    }

    /// Waits for the rest of a burst, and takes it in; returns how many changes that were. The thread sleeps, because tokio's timers
    /// are no finer than a millisecond. As long as nothing can be programmed there is nothing to wait for.
    fn settle(&mut self, changes: &mut mpsc::Receiver<Change>, batch: &mut Vec<Change>) -> usize {
        let mut taken = 0;
        for _ in 0..SETTLE_ROUNDS {
            if !self.awaited.is_empty() || taken >= BATCH {
                break;
            }
            thread::sleep(SETTLE);
            let before = taken;
            while taken < BATCH
                && let Ok(change) = changes.try_recv()
            {
                batch.push(change);
                taken += self.take(batch);
            }
            if taken == before {
                break;
            }
        }
        taken
    }

    /// Whether changes have to wait. Repairs do not.
    fn is_held(&self) -> bool {
        matches!(self.trust, Trust::Known) && self.not_before.is_some_and(|at| at > Instant::now())
    }

    /// Does what time asks for while changes wait: steps of slow starts, ends of drains.
    fn go_on(&mut self) -> Result<(), KernelError> {
        let touched = self.engine.touched();
        if !touched.is_empty() {
            self.observer.queued(self.pending, touched);
        }
        let now = Instant::now();
        if self.engine.next_deadline().is_none_or(|at| at > now) {
            return Ok(());
        }
        let outcome = self.engine.compile_timed(now);
        tell(&outcome.problems, &self.observer);
        say_overridden(&outcome, &self.engine);
        self.note_overridden(&outcome, now);
        self.cleaner.announce(self.engine.take_flow_changes());
        match self.plane.apply(&outcome.delta) {
            Ok(_) => {
                self.clean();
                Ok(())
            }
            Err(error) => self.refused(error),
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
        if stale {
            // Our Node says otherwise than was thought: what was read was judged wrongly.
            self.found = None;
        }
        if !self.adopted
            && let Err(error) = self.adopt()
        {
            return self.refused(error).map(|()| false);
        }
        // Nothing has been compiled: what is from now on is everything.
        let first =
            matches!(self.trust, Trust::Unknown { retry_at, .. } if retry_at <= begin) && self.engine.is_blank();
        let part = match self.trust {
            Trust::Known if !stale => SHARE,
            Trust::Unknown { .. } if first => PART,
            _ => usize::MAX,
        };
        let mut outcome = match part {
            _ if self.engine.is_idle() => Outcome::default(),
            // Nobody asks what differs: everything is compared, or replaced.
            usize::MAX => self.engine.catch_up(),
            part => self.engine.compile_part(part),
        };
        self.compiled(&mut outcome, part);
        self.triggers.extend(&outcome.triggers);
        let (kind, result) = match &mut self.trust {
            Trust::Known if stale => (SyncKind::Full, self.plane.replace(&self.engine.everything())),
            Trust::Known if outcome.delta.is_empty() => {
                self.clean();
                self.note_overridden(&outcome, begin);
                self.synced(SyncKind::Partial, begin, true);
                return Ok(false);
            }
            Trust::Known => (SyncKind::Partial, self.apply_in_parts(&mut outcome)),
            Trust::Unknown { .. } if first => {
                self.due = Families::ALL;
                (SyncKind::Full, self.begin(&mut outcome))
            }
            Trust::Unknown { retry_at, .. } if *retry_at > Instant::now() => {
                self.note_overridden(&outcome, begin);
                return Ok(false);
            }
            Trust::Unknown { .. } => {
                self.due = Families::ALL;
                (SyncKind::Full, self.reconcile())
            }
        };
        let result = match result {
            Err(KernelError::Outgrown { family, map, size }) => {
                info!(%family, map, size, "the map outgrew its size: replacing the tables by larger ones");
                let mut rest = self.engine.catch_up();
                self.compiled(&mut rest, usize::MAX);
                self.engine.settle();
                self.plane.replace(&self.engine.everything())
            }
            result => result,
        };
        self.synced(kind, begin, result.is_ok());
        match result {
            Ok(applied) => {
                self.observer.cleanup_failed(applied.stuck);
                self.report(&outcome, kind, applied, begin, changes);
                if matches!(self.trust, Trust::Unknown { .. }) {
                    self.trust = Trust::Known;
                    self.dealer.report_all();
                }
                self.clean();
                if let Some(begin) = self.loading_since.take() {
                    self.loaded(applied, begin);
                }
                Ok(applied.transactions > 0)
            }
            Err(error) => {
                let mut what = vec![plain(&error.to_string()).into_owned()];
                what.extend(outcome.overridden.iter().cloned());
                self.note(Occasion::Refused, &outcome, what, Applied::default(), begin, changes);
                self.refused(error).map(|()| false)
            }
        }
    }

    /// Programs everything known, of which a first part is compiled: builds tables, or finds out where those of a predecessor differ.
    fn begin(&mut self, outcome: &mut Outcome) -> Result<Applied, KernelError> {
        if self.plane.is_vacant() && self.plane.is_as_read()? {
            let forecast = self.engine.forecast();
            let applied = self.in_parts(outcome, PART, |plane, parts| plane.build(&forecast, parts))?;
            self.engine.settle();
            return Ok(applied);
        }
        let adopted = self.engine.adopted();
        let difference = self.in_parts(outcome, PART, |_, parts| compare_in_turn(adopted, parts));
        let adopted = self.engine.settle();
        if !self.plane.is_as_read()? {
            let found = self.read_again()?;
            return self.correct(found.into());
        }
        match difference {
            Some(difference) => self.apply_difference(&difference),
            None => self.correct(adopted),
        }
    }

    /// Applies what was compiled and, as long as there is more, compiles the next part meanwhile: a storm of changes becomes transactions that
    /// are short enough for others who want the netlink lock.
    fn apply_in_parts(&mut self, outcome: &mut Outcome) -> Result<Applied, KernelError> {
        if !self.engine.has_more() {
            return self.plane.apply(&outcome.delta);
        }
        self.in_parts(outcome, SHARE, |plane, parts| plane.apply_in_turn(parts))
    }

    /// Hands what was compiled to `program` and, as long as there is more, compiles the next part, of about so many elements.
    fn in_parts<T>(
        &mut self,
        outcome: &mut Outcome,
        elements: usize,
        program: impl FnOnce(&mut DataPlane, &mut dyn FnMut(Receive<'_>) -> Result<(), Refused>) -> T,
    ) -> T {
        let Self { plane, engine, forwarding, cleaner, observer, census, .. } = self;
        let programmed = program(plane, &mut |take| {
            take(std::mem::take(&mut outcome.delta))?;
            while engine.has_more() {
                // Not all of it at once: of a first load it is as large as what is remembered of it.
                if let Some(census) = census {
                    census.direct(engine.take_directory());
                }
                let mut part = engine.compile_part(elements);
                // What was compiled is told in any case: it will not be compiled again.
                follow_up(engine, &mut part, elements, forwarding, cleaner, observer);
                let delta = std::mem::take(&mut part.delta);
                outcome.services.append(&mut part.services);
                outcome.overridden.append(&mut part.overridden);
                outcome.changes.append(part.changes);
                take(delta)?;
            }
            Ok(())
        });
        if forwarding.is_in_use() {
            // What follows from a part may concern a Service of an earlier one.
            outcome.services.sort_unstable();
            outcome.services.dedup();
        }
        programmed
    }

    /// What follows from what was compiled, before the kernel has it; `elements` is how many may differ in all.
    fn compiled(&mut self, outcome: &mut Outcome, elements: usize) {
        let Self { engine, forwarding, cleaner, observer, .. } = self;
        follow_up(engine, outcome, elements, forwarding, cleaner, observer);
    }

    /// Everything known is programmed for the first time.
    fn loaded(&mut self, applied: Applied, begin: Instant) {
        info!(
            services = self.engine.store().services().count(),
            elements = self.plane.elements(),
            written = applied.elements,
            after_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            "first load programmed"
        );
        self.observer.loaded();
        self.guard.start(&mut self.plane);
        if let Some(work) = self.after_first_load.take() {
            work();
        }
    }

    /// The kernel has what is expected of new connections: now for those that are there.
    fn clean(&mut self) {
        self.cleaner.programmed();
        self.cleaner.cut(self.engine.take_cuts());
        self.dealer.watch(self.engine.take_interests());
        if let Some(census) = &self.census {
            census.direct(self.engine.take_directory());
        }
        self.forwarding.committed(&mut self.engine);
    }

    /// The kernel takes over what went through this process, as far as it can; then connections are waited for.
    fn stop_forwarding(mut self) -> anyhow::Result<()> {
        self.forwarding.hand_over();
        self.engine.leave_forwarder();
        // Connections that go through here are waited for whatever the kernel says to this.
        let programmed = match self.forwarding.is_in_use() && self.loading_since.is_none() {
            true => self.program(Instant::now(), 0).map(drop),
            false => Ok(()),
        };
        // What it still has to remove are UDP flows to listeners that will be closed.
        self.cleaner = Cleaner::disabled();
        self.forwarding.shutdown();
        Ok(programmed?)
    }

    /// Deals the rings of those Services again whose connections were counted.
    fn redeal(&mut self, reports: &mut Vec<Report>) -> Result<(), KernelError> {
        if !matches!(self.trust, Trust::Known) {
            // They are asked for again when the tables are as they should be.
            self.dealer.forget(reports);
            return Ok(());
        }
        match self.dealer.redeal(reports, &mut self.engine, &mut self.plane) {
            Ok(()) => Ok(()),
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
        self.kernel.refused(error.to_string());
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
            self.kernel.synced(kind, duration);
            (self.due, self.pending) = Default::default();
            let restricted = self.engine.restricted_node_ports();
            if self.engine.take_health_changed() || self.health_ports_on.as_ref() != Some(&restricted) {
                let ports = self.engine.health().iter().map(|(service, check)| (service.clone(), health_port(check)));
                self.observer.health_ports(ports.collect::<HealthPorts>(), restricted.clone());
                self.health_ports_on = Some(restricted);
            } else if restricted.iter().any(Option::is_some) && !self.engine.health().is_empty() {
                // The host's interfaces may have other addresses by now.
                self.observer.health_ports_again();
            }
            self.observer.no_local_endpoints(self.engine.no_local_endpoints());
        }
    }

    /// Reads what is there and brings it to what is desired.
    fn reconcile(&mut self) -> Result<Applied, KernelError> {
        self.engine.settle();
        let found = self.read_again()?;
        if self.plane.is_vacant() {
            let forecast = self.engine.forecast();
            let applied = self.plane.build(&forecast, |take| self.engine.everything_in_parts(PART, take))?;
            self.repaired(applied, || "the tables were gone".to_owned());
            return Ok(applied);
        }
        self.correct(found.into())
    }

    /// Applies the difference between what is there and everything desired.
    fn correct(&mut self, found: Arc<Image>) -> Result<Applied, KernelError> {
        let difference = self.engine.difference(found);
        self.apply_difference(&difference)
    }

    fn apply_difference(&mut self, difference: &Delta) -> Result<Applied, KernelError> {
        debug!(elements = difference.len(), "compared with the kernel");
        let applied = self.plane.apply(difference)?;
        self.repaired(applied, || difference.summary());
        Ok(applied)
    }

    /// Reads what is there after somebody else may have changed it.
    fn read_again(&mut self) -> Result<Image, KernelError> {
        let found = self.plane.read()?;
        for reason in &found.rejected {
            warn!(reason, "a table is not as we left it and will be replaced");
        }
        Ok(found.image)
    }

    /// Everything is as it should be again; the first load is no repair.
    fn repaired(&self, applied: Applied, differed: impl FnOnce() -> String) {
        if self.loading_since.is_none() {
            let (elements, differed) = (applied.elements, differed());
            info!(elements, differed, "compared our tables with what is desired and put right what differed");
            metrics::repaired(elements);
        }
    }

    /// One line per batch programmed, shown from `-v=2` on, and an entry in the timeline.
    fn report(&self, outcome: &Outcome, kind: SyncKind, applied: Applied, begin: Instant, changes: usize) {
        let occasion = match (kind, &self.loading_since) {
            (_, Some(_)) => Occasion::Load,
            (SyncKind::Full, None) => Occasion::Repair,
            (SyncKind::Partial, None) => Occasion::Change,
        };
        let ports = outcome.changes.ports.iter().map(ToString::to_string);
        let what: Vec<_> = outcome.overridden.iter().cloned().chain(ports).collect();
        let services = some(outcome.services.iter().map(ToString::to_string), ", ", outcome.services.len());
        let said = some(what.iter().cloned(), "; ", what.len() + outcome.changes.more);
        info!(
            target: "pointsman::programmed",
            services,
            what = said,
            changes,
            elements = applied.elements,
            transactions = applied.transactions,
            kernel_us = u64::try_from(applied.duration.as_micros()).unwrap_or(u64::MAX),
            total_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
            "programmed"
        );
        self.note(occasion, outcome, what, applied, begin, changes);
    }

    /// What was said by hand, taken back or has ended, as an entry in the timeline, where there is no other for it.
    fn note_overridden(&self, outcome: &Outcome, begin: Instant) {
        if !outcome.overridden.is_empty() {
            self.note(Occasion::Change, outcome, outcome.overridden.clone(), Applied::default(), begin, 0);
        }
    }

    fn note(
        &self,
        occasion: Occasion,
        outcome: &Outcome,
        what: Vec<String>,
        applied: Applied,
        begin: Instant,
        changes: usize,
    ) {
        self.observer.programmed(Entry {
            number: 0,
            time: Timestamp::now(),
            occasion,
            services: outcome.services.len(),
            named: outcome
                .services
                .iter()
                .take(LISTED)
                .map(|service| plain(&service.to_string()).into_owned())
                .collect(),
            what,
            more: outcome.changes.more,
            changes,
            elements: applied.elements,
            transactions: applied.transactions,
            kernel: applied.duration,
            total: begin.elapsed(),
        });
    }
}

/// What follows from what was compiled, before the kernel has it. That may be more to compile: as long as fewer than `elements` differ, it
/// becomes one with the rest.
fn follow_up(
    engine: &mut Engine,
    outcome: &mut Outcome,
    elements: usize,
    forwarding: &mut Forwarding,
    cleaner: &mut Cleaner,
    observer: &Observer,
) {
    forwarding.follow(engine, outcome, elements, observer);
    tell(&outcome.problems, observer);
    say_overridden(outcome, engine);
    cleaner.announce(engine.take_flow_changes());
}

fn tell(problems: &[Problem], observer: &Observer) {
    for problem in problems {
        match problem.is_passed_over() {
            true => info!("{problem}"),
            false => warn!("{problem}"),
        }
        observer.invalid(problem);
    }
}

/// What was said by hand, taken back or has ended: a log line each, and how many endpoints that leaves.
fn say_overridden(outcome: &Outcome, engine: &Engine) {
    if outcome.overridden.is_empty() {
        return;
    }
    for line in &outcome.overridden {
        info!("{line}");
    }
    let (drained, weighted): (Vec<_>, Vec<_>) = engine.overrides().partition(|(_, one)| one.is_drain());
    metrics::overrides(drained.len(), weighted.len());
}

/// The first of them, and how many more there are.
fn some(all: impl Iterator<Item = String>, separator: &str, count: usize) -> String {
    const NAMED: usize = 3;
    let named = all.take(NAMED).collect::<Vec<_>>().join(separator);
    let more = count.saturating_sub(NAMED);
    if more > 0 { format!("{named} and {more} more") } else { named }
}

fn health_port(check: &HealthCheck) -> HealthPort {
    HealthPort { port: check.port, local_endpoints: [check.local_v4, check.local_v6] }
}

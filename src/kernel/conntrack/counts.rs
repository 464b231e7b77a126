//! The thread that counts connections, for Services whose scheduler goes by counts.
//!
//! It runs from the first such Service on, and subscribes to conntrack's events while there is one. What it hears goes into a
//! [`Ledger`]; what is due comes out of it as a [`Report`], into a bounded channel that the controller empties. The controller never
//! waits for it, and it never waits for the controller: a report that finds no room stays due.
//!
//! How it knows: a walk through the kernel's table for what is there at the start (a *review*), then events. Events can be lost, when
//! they come faster than they are taken, and a flow that began while nobody listened may end in silence. So a review is also due
//! after a loss, and from time to time; `reviews` says when. One for a new subject looks for that subject's flows alone. Where
//! `nf_conntrack_events` is 0 there are no events at all: that is said, and reviews are all there is.
//!
//! Waking up: at the first event after a quiet time at once; while events keep coming, once per [`PACE`] for all that have come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, info, warn};

use super::events::{ConntrackEvents, Heard};
use super::reviews::{Reviews, State};
use super::table::{ConntrackError, ConntrackTable, Filter};
use super::tally::Tally;
use super::waker::Waker;
use crate::compile::Ring;
use crate::conntrack::ledger::Report;
use crate::conntrack::{Destination, Interest, Interests, Ledger, Subject};
use crate::kernel::PickReader;
use crate::model::Protocol;

/// Events are taken so often while they keep coming.
const PACE: Duration = Duration::from_millis(1);

/// Whether the kernel tells of connections: 0 if not, else 1, or 2 for as long as somebody listens.
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// How often counts are taken anew because a pick was made meanwhile.
const CONSISTENT: usize = 3;

/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Destinations that are looked for by a walk each; for more there is one walk per family and protocol.
const ONE_BY_ONE: usize = 4;

/// Room for events that have not been taken: 20,000.
const BUFFER: usize = 16 << 20;

/// The thread's handle; dropping it ends the thread.
#[derive(Debug)]
pub struct Counts {
    reports: tokio::sync::mpsc::Sender<Report>,
    running: Option<Running>,
    tally: Arc<Tally>,
    buffer: usize,
    /// All that is to be counted, should the thread have to begin anew.
    known: BTreeMap<Subject, Interest>,
}

#[derive(Debug)]
struct Running {
    news: Sender<News>,
    waker: Waker,
    thread: JoinHandle<()>,
}

enum News {
    Interests(Interests),
    ReportAll,
    #[cfg(test)]
    Panic,
}

// === impl Counts ===

impl Counts {
    /// Counts nothing yet. Reports will go to `reports`.
    pub fn new(reports: tokio::sync::mpsc::Sender<Report>) -> Self {
        Self::with_buffer(reports, BUFFER)
    }

    /// The same with so many bytes of room for events that have not been taken.
    pub fn with_buffer(reports: tokio::sync::mpsc::Sender<Report>, buffer: usize) -> Self {
        Self { reports, running: None, tally: Arc::default(), buffer, known: BTreeMap::new() }
    }

    /// Takes news about what is to be counted, in the calling thread's network namespace, which must be the same each time.
    pub fn watch(&mut self, interests: Interests) {
        // Nothing new is still a chance to notice that the thread has died.
        if interests.is_empty() && (self.known.is_empty() || self.is_running()) {
            return;
        }
        for (subject, interest) in &interests {
            match interest {
                Some(interest) => self.known.insert(subject.clone(), interest.clone()),
                None => self.known.remove(subject),
            };
        }
        if self.is_running() {
            self.tell(News::Interests(interests));
        } else {
            self.start();
        }
    }

    /// Whether the thread is there; one that has panicked (which has been reported by then) is given up.
    fn is_running(&mut self) -> bool {
        if self.running.as_ref().is_some_and(|running| running.thread.is_finished()) {
            warn!("the thread that counts connections has ended; another one begins anew");
            self.running = None;
        }
        self.running.is_some()
    }

    /// Begins with everything known.
    fn start(&mut self) {
        match self.spawn() {
            Ok(running) => {
                self.running = Some(running);
                let all = self.known.iter().map(|(subject, interest)| (subject.clone(), Some(interest.clone())));
                self.tell(News::Interests(all.collect()));
            }
            Err(error) => warn!(%error, "connections cannot be counted; lc, wlc, sed and nq serve in turn"),
        }
    }

    /// Asks for a report of everything, because some were thrown away.
    pub fn report_all(&mut self) {
        match self.is_running() {
            true => self.tell(News::ReportAll),
            false if !self.known.is_empty() => self.start(),
            false => {}
        }
    }

    /// How many Services it has been told to count for.
    pub fn services(&self) -> usize {
        self.known.keys().map(|subject| &subject.port.service).collect::<BTreeSet<_>>().len()
    }

    /// What has been done so far.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    fn spawn(&self) -> std::io::Result<Running> {
        let waker = Waker::new()?;
        let (news, inbox) = mpsc::channel();
        let mut counter = Counter {
            inbox,
            waker: waker.clone(),
            reports: self.reports.clone(),
            tally: self.tally.clone(),
            buffer: self.buffer,
            ledger: Ledger::default(),
            events: None,
            reader: None,
            reviews: Reviews::default(),
            deaf: false,
            retry: None,
        };
        let thread = thread::Builder::new().name("counts".to_owned()).spawn(move || counter.run())?;
        Ok(Running { news, waker, thread })
    }

    fn tell(&mut self, news: News) {
        if let Some(running) = &mut self.running {
            // Should it have ended meanwhile, whoever has more to tell will see.
            let _ = running.news.send(news);
            running.waker.wake();
        }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        if let Some(Running { news, waker, thread }) = self.running.take() {
            drop(news);
            waker.wake();
            let _ = thread.join();
        }
    }
}

// === the thread ===

struct Counter {
    inbox: Receiver<News>,
    waker: Waker,
    reports: tokio::sync::mpsc::Sender<Report>,
    tally: Arc<Tally>,
    buffer: usize,
    ledger: Ledger,
    events: Option<ConntrackEvents>,
    /// Without it rings are dealt a little less exactly.
    reader: Option<PickReader>,
    reviews: Reviews,
    /// The kernel tells of nothing, because somebody wants it so.
    deaf: bool,
    /// After a failure: not before this time.
    retry: Option<Instant>,
}

impl Counter {
    fn run(&mut self) {
        while self.take_news() {
            if let Err(error) = self.step() {
                warn!(%error, retry_in = ?PAUSE, "counting connections failed; lc, wlc, sed and nq serve in turn");
                self.events = None;
                self.ledger.doubt();
                self.retry = Some(Instant::now() + PAUSE);
            }
            self.tally.flows.store(self.ledger.flows() as u64, Ordering::Relaxed);
            self.rest();
        }
    }

    /// Takes what the controller said. False: it has gone.
    fn take_news(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(News::ReportAll) => self.ledger.report_all(),
                #[cfg(test)]
                Ok(News::Panic) => panic!("as the test wants it"),
                Ok(News::Interests(interests)) => {
                    self.ledger.watch(interests);
                    self.tally.subjects.store(self.ledger.subjects() as u64, Ordering::Relaxed);
                    if self.ledger.is_empty() {
                        (self.events, self.reader) = (None, None);
                    } else if let Some(events) = &mut self.events {
                        events.set_destinations(self.ledger.destinations());
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn step(&mut self) -> Result<(), ConntrackError> {
        if self.ledger.is_empty() || self.retry.is_some_and(|retry| retry > Instant::now()) {
            return Ok(());
        }
        self.retry = None;
        if self.events.is_none() {
            self.events = Some(ConntrackEvents::open(self.ledger.destinations(), self.buffer)?);
            self.reader = PickReader::open().ok();
            self.ledger.doubt();
            self.deaf = false;
        }
        self.hear()?;
        let now = Instant::now();
        if self.until_review(now).is_some_and(|wait| wait.is_zero()) {
            if self.reviews.next_complete(self.state()).is_some_and(|at| at <= now) {
                self.ledger.doubt();
            }
            self.review()?;
            self.hear()?;
        }
        self.report()
    }

    /// Sends what is due, and how far rings were when the counts were true: if no pick was made while events were taken.
    fn report(&mut self) -> Result<(), ConntrackError> {
        let now = Instant::now();
        let mut picks = self.picks(now);
        if picks.is_empty() {
            return Ok(());
        }
        for _ in 0..CONSISTENT {
            self.hear()?;
            let after = self.picks(now);
            if std::mem::replace(&mut picks, after) == picks {
                break;
            }
        }
        // Before the report, so that whoever gets it finds no older number here.
        self.tally.flows.store(self.ledger.flows() as u64, Ordering::Relaxed);
        let reports = &self.reports;
        self.ledger.report(now, |mut report| {
            let Some(known) = picks.get(&report.subject) else { return false };
            report.rings.iter_mut().zip(known).for_each(|((_, then), picks)| *then = *picks);
            reports.try_send(report).is_ok()
        });
        Ok(())
    }

    /// How far the rings of those subjects are whose reports go next.
    fn picks(&mut self, now: Instant) -> BTreeMap<Subject, Vec<Option<u64>>> {
        let (ledger, reader) = (&self.ledger, &mut self.reader);
        let mut read = |family, ring: &Ring| reader.as_mut()?.picks(family, &ring.chain).ok();
        let mut of = |subject: &Subject, rings: &[Ring]| rings.iter().map(|ring| read(subject.family, ring)).collect();
        // No more than there is room for: what is read for others would be read again.
        let due = ledger.due(now).into_iter().take(self.reports.capacity());
        due.map(|(subject, rings)| (subject.clone(), of(subject, rings))).collect()
    }

    fn hear(&mut self) -> Result<(), ConntrackError> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let before = events.received();
        let heard = events.take(|event, flow| self.ledger.take(event, flow))?;
        self.tally.events.fetch_add(events.received() - before, Ordering::Relaxed);
        if heard == Heard::Lost {
            self.tally.losses.fetch_add(1, Ordering::Relaxed);
            debug!("events of connection tracking were lost; reading its table");
            self.ledger.doubt();
        }
        Ok(())
    }

    /// Compares with what the kernel has. What happens meanwhile waits as events.
    fn review(&mut self) -> Result<(), ConntrackError> {
        let (begin, busy) = (Instant::now(), time_on_cpu());
        self.listen_for_silence();
        let subjects = self.ledger.unreviewed();
        let wanted = self.ledger.begin_review();
        let mut table = ConntrackTable::open()?;
        let mut partial = false;
        for filter in filters(&wanted) {
            let dump = table.dump(&filter, |flows| flows.iter().for_each(|flow| self.ledger.found(flow)))?;
            partial |= dump.partial;
        }
        let gone = self.ledger.end_review();
        // What it cost, and not how long others had the CPU meanwhile.
        let took = busy.and_then(|busy| time_on_cpu()?.checked_sub(busy)).unwrap_or_else(|| begin.elapsed());
        self.reviews.ended(Instant::now(), took, subjects == self.ledger.subjects());
        self.tally.reviews.fetch_add(1, Ordering::Relaxed);
        self.tally.looked_for.fetch_add(subjects as u64, Ordering::Relaxed);
        debug!(flows = self.ledger.flows(), gone, partial, took_us = took.as_micros(), "connections counted anew");
        if partial {
            info!("the connection tracking table changed while it was read; counts may be off until the next time");
        }
        Ok(())
    }

    fn until_review(&self, now: Instant) -> Option<Duration> {
        self.reviews.wait(now, self.state()).filter(|_| !self.ledger.is_empty())
    }

    fn state(&self) -> State {
        State { wanted: self.ledger.wants_review(), silent: self.ledger.has_silent(), deaf: self.deaf }
    }

    /// Whether the kernel tells of connections at all may change at any time.
    fn listen_for_silence(&mut self) {
        let deaf = fs::read_to_string(EVENTS).is_ok_and(|text| text.trim() == "0");
        match (std::mem::replace(&mut self.deaf, deaf), deaf) {
            (false, true) => warn!(
                "net.netfilter.nf_conntrack_events is 0: the kernel does not tell of connections. They are counted by reading its table now and then, so lc, wlc, sed and nq lag behind by a second or more"
            ),
            (true, false) => {
                info!("net.netfilter.nf_conntrack_events is on again: connections are counted as they come and go");
            }
            _ => {}
        }
    }

    /// Waits until there is something to do.
    fn rest(&mut self) {
        let now = Instant::now();
        let mut wait = self.until_review(now);
        if let Some(retry) = self.retry {
            wait = Some(retry.saturating_duration_since(now));
        } else if let Some(due) = self.ledger.wait(now) {
            // Something will be due in a moment: what comes until then is taken at once. With the channel full, too.
            return thread::sleep(due.clamp(PACE / 4, PACE));
        }
        // Rounded up: waking up too early would be waking up twice.
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut sources = vec![PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        sources.extend(self.events.as_ref().map(|events| PollFd::new(events.as_fd(), PollFlags::POLLIN)));
        let told = match poll(&mut sources, timeout) {
            Ok(0) | Err(Errno::EINTR) => false,
            Ok(_) => sources[0].any().unwrap_or(true),
            // Nothing that could be waited for; not without a pause.
            Err(_) => return thread::sleep(PAUSE),
        };
        if told {
            // What was said is in the channel, or its end.
            self.waker.rest();
        }
    }
}

/// How long the calling thread has run so far; `None` where the kernel does not say.
pub(super) fn time_on_cpu() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split_whitespace().next()?.parse().ok()?))
}

/// What to ask the kernel for, to find flows to all of these. It hands out more than that; the ledger passes it over.
fn filters(wanted: &[(Protocol, Destination)]) -> Vec<Filter> {
    let exact =
        |(protocol, destination): &(Protocol, Destination)| Filter { protocol: *protocol, ..Filter::to(destination) };
    let mut filters: Vec<_> = wanted.iter().map(exact).collect();
    filters.sort();
    filters.dedup();
    if filters.len() > ONE_BY_ONE {
        filters.iter_mut().for_each(|filter| (filter.address, filter.port) = (None, None));
        filters.dedup();
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, PortKey, ServiceKey};
    use crate::schedule::live::Rule;

    fn interest(name: &str) -> (Subject, Option<Interest>) {
        let port = PortKey { service: ServiceKey::new("ns", name), name: "".into(), protocol: Protocol::Tcp };
        let nothing = Interest {
            destinations: Vec::new(),
            candidates: Vec::new(),
            rule: Rule::LeastConnection,
            rings: Vec::new(),
        };
        (Subject { port, family: Family::V4 }, Some(nothing))
    }

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whatever the thread dies of, the next one counts all that the first one did.
    #[test]
    fn a_thread_that_dies_is_followed_by_another() {
        for (report_all, more) in [(false, 1), (false, 0), (true, 0)] {
            let (report, _reports) = tokio::sync::mpsc::channel(16);
            let mut counts = Counts::new(report);
            let tally = counts.tally();
            counts.watch(vec![interest("a"), interest("b")]);
            wait_for("both", || tally.subjects() == 2);
            counts.tell(News::Panic);
            wait_for("the end", || counts.running.as_ref().is_some_and(|running| running.thread.is_finished()));
            tally.subjects.store(0, Ordering::Relaxed);
            match report_all {
                true => counts.report_all(),
                false => counts.watch([interest("c")].into_iter().take(more).collect()),
            }
            wait_for("all of them", || tally.subjects() == 2 + more as u64);
        }
    }
}

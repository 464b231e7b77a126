//! The thread that counts connections, for Services whose scheduler goes by counts.
//!
//! It runs from the first such Service on, and subscribes to conntrack's events while there is one. What it hears goes into a
//! [`Ledger`]; what is due comes out of it as a [`Report`], into a bounded channel that the controller empties. The controller never
//! waits for it, and it never waits for the controller: a report that finds no room stays due.
//!
//! How it knows: a walk through the kernel's table for what is there at the start (a *review*), then events. Events can be lost, when
//! they come faster than they are taken, and a flow that began while nobody listened may end in silence. So a review is also due
//! after a loss, and from time to time: often as long as there are flows that no event has told of, seldom otherwise. A review
//! costs a walk; the pause until the next one is never less than a hundred times what it took.
//!
//! Waking up: at the first event after a quiet time at once; while events keep coming, once per [`PACE`] for all that have come.

use std::collections::{BTreeMap, HashSet};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{debug, info, warn};

use super::events::{ConntrackEvents, Heard};
use super::table::{ConntrackError, ConntrackTable, Filter};
use crate::compile::Ring;
use crate::conntrack::ledger::Report;
use crate::conntrack::{Destination, Interests, Ledger, Subject};
use crate::kernel::PickReader;
use crate::model::Protocol;

/// Events are taken so often while they keep coming.
const PACE: Duration = Duration::from_millis(1);

/// Time between reviews while some flows may end in silence, and when none can.
const OFTEN: Duration = Duration::from_secs(5);
const SELDOM: Duration = Duration::from_secs(120);

/// The next review comes after so many times what the last one took, at least.
const REVIEW_SHARE: u32 = 100;

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
    /// What is counted, as far as the thread has been told.
    watched: HashSet<Subject>,
}

/// What the thread has done so far.
#[derive(Debug, Default)]
pub struct Tally {
    events: AtomicU64,
    reviews: AtomicU64,
    losses: AtomicU64,
    flows: AtomicU64,
}

#[derive(Debug)]
struct Running {
    news: Sender<News>,
    wake: PipeWriter,
    thread: JoinHandle<()>,
}

enum News {
    Interests(Interests),
    ReportAll,
}

// === impl Tally ===

impl Tally {
    /// Events that the kernel handed out.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Walks through the kernel's table, as far as they were complete.
    pub fn reviews(&self) -> u64 {
        self.reviews.load(Ordering::Relaxed)
    }

    /// How often events were lost.
    pub fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Connections counted now.
    pub fn flows(&self) -> u64 {
        self.flows.load(Ordering::Relaxed)
    }
}

// === impl Counts ===

impl Counts {
    /// Counts nothing yet. Reports will go to `reports`.
    pub fn new(reports: tokio::sync::mpsc::Sender<Report>) -> Self {
        Self::with_buffer(reports, BUFFER)
    }

    /// The same with so many bytes of room for events that have not been taken.
    pub fn with_buffer(reports: tokio::sync::mpsc::Sender<Report>, buffer: usize) -> Self {
        Self { reports, running: None, tally: Arc::default(), buffer, watched: HashSet::new() }
    }

    /// Takes news about what is to be counted, in the calling thread's network namespace, which must be the same each time.
    pub fn watch(&mut self, interests: Interests) {
        if interests.is_empty() {
            return;
        }
        for (subject, interest) in &interests {
            match interest {
                Some(_) => drop(self.watched.insert(subject.clone())),
                None => drop(self.watched.remove(subject)),
            }
        }
        if self.running.is_none() {
            match self.start() {
                Ok(running) => self.running = Some(running),
                Err(error) => {
                    warn!(%error, "connections cannot be counted; lc, wlc, sed and nq serve in turn");
                    return;
                }
            }
        }
        self.tell(News::Interests(interests));
    }

    /// Asks for a report of everything, because some were thrown away.
    pub fn report_all(&mut self) {
        if self.running.is_some() {
            self.tell(News::ReportAll);
        }
    }

    /// How many Services it has been told to count for.
    pub fn services(&self) -> usize {
        self.watched.iter().map(|subject| &subject.port.service).collect::<HashSet<_>>().len()
    }

    /// What has been done so far.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    fn start(&self) -> std::io::Result<Running> {
        let (waker, wake) = pipe()?;
        let (news, inbox) = mpsc::channel();
        let mut counter = Counter {
            inbox,
            waker,
            reports: self.reports.clone(),
            tally: self.tally.clone(),
            buffer: self.buffer,
            ledger: Ledger::default(),
            events: None,
            reader: None,
            reviewed: None,
            retry: None,
        };
        let thread = thread::Builder::new().name("counts".to_owned()).spawn(move || counter.run())?;
        Ok(Running { news, wake, thread })
    }

    fn tell(&mut self, news: News) {
        if let Some(running) = &mut self.running {
            // The thread ends before this only by a panic, which has been reported by then.
            let _ = running.news.send(news);
            let _ = running.wake.write(&[0]);
        }
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        if let Some(Running { news, wake, thread }) = self.running.take() {
            drop((news, wake));
            let _ = thread.join();
        }
    }
}

// === the thread ===

struct Counter {
    inbox: Receiver<News>,
    waker: PipeReader,
    reports: tokio::sync::mpsc::Sender<Report>,
    tally: Arc<Tally>,
    buffer: usize,
    ledger: Ledger,
    events: Option<ConntrackEvents>,
    /// Without it rings are dealt a little less exactly.
    reader: Option<PickReader>,
    /// When the last review ended, and how long it took.
    reviewed: Option<(Instant, Duration)>,
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
                Ok(News::Interests(interests)) => {
                    self.ledger.watch(interests);
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
        }
        self.hear()?;
        if self.ledger.wants_review() || self.until_review(Instant::now()).is_some_and(|wait| wait.is_zero()) {
            self.ledger.doubt();
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

    /// How far the rings of all subjects that are due are.
    fn picks(&mut self, now: Instant) -> BTreeMap<Subject, Vec<Option<u64>>> {
        let (ledger, reader) = (&self.ledger, &mut self.reader);
        let mut read = |family, ring: &Ring| reader.as_mut()?.picks(family, &ring.chain).ok();
        let mut of = |subject: &Subject, rings: &[Ring]| rings.iter().map(|ring| read(subject.family, ring)).collect();
        ledger.due(now).map(|(subject, rings)| (subject.clone(), of(subject, rings))).collect()
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
        let begin = Instant::now();
        let wanted = self.ledger.begin_review();
        let mut table = ConntrackTable::open()?;
        let mut partial = false;
        for filter in filters(&wanted) {
            let dump = table.dump(&filter, |flows| flows.iter().for_each(|flow| self.ledger.found(flow)))?;
            partial |= dump.partial;
        }
        let gone = self.ledger.end_review();
        let took = begin.elapsed();
        self.reviewed = Some((Instant::now(), took));
        self.tally.reviews.fetch_add(1, Ordering::Relaxed);
        debug!(flows = self.ledger.flows(), gone, partial, took_us = took.as_micros(), "connections counted anew");
        if partial {
            info!("the connection tracking table changed while it was read; counts may be off until the next time");
        }
        Ok(())
    }

    fn until_review(&self, now: Instant) -> Option<Duration> {
        let (ended, took) = self.reviewed.filter(|_| !self.ledger.is_empty())?;
        let pause = if self.ledger.has_silent() { OFTEN } else { SELDOM };
        Some((ended + pause.max(took * REVIEW_SHARE)).saturating_duration_since(now))
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
            // What was said is in the channel; at the end of the pipe, that says so.
            let _ = self.waker.read(&mut [0; 64]);
        }
    }
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

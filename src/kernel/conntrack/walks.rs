//! The thread that takes the census: how many connections each Service has, for whoever looks.
//!
//! It walks through the kernel's table while somebody looks, and not at all otherwise: the first look starts it, and [`PATIENCE`] after
//! the last one it rests. No packet knows of it, because nothing is switched on: no events, no accounting, no counter on an element.
//! A walk takes 1.5 µs per entry (`bench/results`, `counting.md`), in pieces during which others get their turn; walks come every
//! [`PACE`] (every [`CLOSE`] while somebody watches a page), but rarer where they would take more than [`SHARE`]th of a CPU.
//!
//! Looking costs a look at what was found last ([`Snapshot`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, warn};

use super::counts::time_on_cpu;
use super::table::{ConntrackError, ConntrackTable};
use crate::conntrack::census::{Account, Connections};
use crate::conntrack::{Census, Directory};
use crate::model::PortKey;

/// Between two walks, for metrics. Less than the 10 s for which a connection that was reset is remembered.
const PACE: Duration = Duration::from_secs(5);

/// Between two walks while a page is watched.
const CLOSE: Duration = Duration::from_secs(2);

/// How long after the last look walks go on: longer than anybody's pause between two scrapes.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long after the last close look walks come as often as that.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// What part of a CPU walks may take, as a divisor.
const SHARE: u32 = 50;

/// Looks that come within this time of the last one are one.
const SAME: Duration = Duration::from_millis(500);

/// What the last walk found.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The number of the walk; 0: there was none.
    pub walk: u64,
    /// When it ended.
    pub at: Option<Instant>,
    /// CPU time that it took.
    pub took: Duration,
    /// Entries that it met, those of nobody's too.
    pub entries: usize,
    /// Whether the table changed so often that entries may have been missed.
    pub partial: bool,
    /// All connections, those of Services that are gone as well.
    pub totals: Connections,
    /// Service ports that have or had connections, sorted.
    pub accounts: Vec<(PortKey, Account)>,
}

/// Asks for walks and reads what they found. Cheap to clone; the thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct CensusTaker {
    news: Sender<News>,
    found: watch::Receiver<Arc<Snapshot>>,
    /// When somebody looked last, and closely, in milliseconds since `born`, plus one.
    looked: Arc<[AtomicU64; 2]>,
    born: Instant,
}

enum News {
    Directory(Directory),
    Look { close: bool },
}

// === impl Snapshot ===

impl Snapshot {
    /// What a Service port's endpoint has.
    pub fn endpoint(&self, port: &PortKey, endpoint: SocketAddr) -> Option<Connections> {
        self.account(port)?.endpoints.get(&endpoint).copied()
    }

    /// What a Service port has.
    pub fn account(&self, port: &PortKey) -> Option<&Account> {
        let at = self.accounts.binary_search_by(|(known, _)| known.cmp(port)).ok()?;
        Some(&self.accounts[at].1)
    }
}

// === impl CensusTaker ===

impl CensusTaker {
    /// Starts the thread, for the calling thread's network namespace. It sleeps until somebody looks.
    ///
    /// # Errors
    /// When the table cannot be opened or the thread not be started.
    pub fn start() -> Result<Self, ConntrackError> {
        let table = ConntrackTable::open()?;
        let (news, inbox) = mpsc::channel();
        let (publish, found) = watch::channel(Arc::default());
        let taker = Taker {
            table,
            inbox,
            publish,
            census: Census::default(),
            until: None,
            close_until: None,
            next: Instant::now(),
            walks: 0,
        };
        thread::Builder::new().name("census".to_owned()).spawn(move || taker.run()).map_err(|error| {
            let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
            ConntrackError { action: "start a thread for", errno }
        })?;
        Ok(Self { news, found, looked: Arc::default(), born: Instant::now() })
    }

    /// Says where clients connect to, where that changed.
    pub fn direct(&self, news: Directory) {
        if !news.is_empty() {
            // An error is a thread that has panicked, which has been reported.
            let _ = self.news.send(News::Directory(news));
        }
    }

    /// What the last walk found. There will be another one soon.
    pub fn look(&self) -> Arc<Snapshot> {
        self.ask(false)
    }

    /// The same for somebody who keeps looking at a few.
    pub fn look_closely(&self) -> Arc<Snapshot> {
        self.ask(true)
    }

    /// Hears of further walks.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.found.clone()
    }

    fn ask(&self, close: bool) -> Arc<Snapshot> {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let looked = &self.looked[usize::from(close)];
        let last = looked.load(Ordering::Relaxed);
        if last == 0 || now - last.min(now) > SAME.as_millis() as u64 {
            looked.store(now, Ordering::Relaxed);
            let _ = self.news.send(News::Look { close });
        }
        self.found.borrow().clone()
    }
}

// === the thread ===

struct Taker {
    table: ConntrackTable,
    inbox: Receiver<News>,
    publish: watch::Sender<Arc<Snapshot>>,
    census: Census,
    /// Until when somebody looks.
    until: Option<Instant>,
    close_until: Option<Instant>,
    /// The next walk.
    next: Instant,
    walks: u64,
}

impl Taker {
    fn run(mut self) {
        loop {
            let now = Instant::now();
            let news = match self.until {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => self.inbox.recv_timeout(self.next.min(until).saturating_duration_since(now)),
            };
            match news {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = Instant::now();
            if self.until.is_some_and(|until| until <= now) {
                debug!("nobody looks any more: connections are not counted");
                self.until = None;
                self.census.rest();
                self.publish(Snapshot { walk: self.walks, totals: self.census.totals(), ..Snapshot::default() });
            }
            if self.until.is_some() && self.next <= now {
                self.walk();
            }
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Directory(news) => self.census.direct(news),
            News::Look { close } => {
                let now = Instant::now();
                if self.until.replace(now + PATIENCE).is_none() {
                    self.next = now;
                }
                if close {
                    if self.close_until.is_none_or(|until| until < now) {
                        self.next = self.next.min(now + CLOSE);
                    }
                    self.close_until = Some(now + CLOSE_PATIENCE);
                }
            }
        }
    }

    fn walk(&mut self) {
        let (begin, busy) = (Instant::now(), time_on_cpu());
        self.census.begin();
        let census = &mut self.census;
        let walked = self.table.walk(|sighting| census.sight(sighting));
        let now = Instant::now();
        let took = busy.and_then(|busy| time_on_cpu()?.checked_sub(busy)).unwrap_or_else(|| begin.elapsed());
        let pace = if self.close_until.is_some_and(|until| until > now) { CLOSE } else { PACE };
        self.next = now + pace.max(took * SHARE);
        match walked {
            Ok(dump) => {
                self.census.end(!dump.partial);
                self.walks += 1;
                let mut accounts: Vec<_> =
                    self.census.accounts().map(|(port, account)| (port.clone(), account.clone())).collect();
                accounts.sort_by(|(one, _), (other, _)| one.cmp(other));
                debug!(
                    entries = dump.read,
                    flows = self.census.len(),
                    took_us = took.as_micros(),
                    "connections counted"
                );
                let (entries, partial) = (dump.read, dump.partial);
                let totals = self.census.totals();
                self.publish(Snapshot { walk: self.walks, at: Some(now), took, entries, partial, totals, accounts });
            }
            Err(error) => {
                warn!(%error, "connections cannot be counted for metrics");
                self.census.end(false);
                if let Ok(table) = ConntrackTable::open() {
                    self.table = table;
                }
            }
        }
    }

    fn publish(&self, snapshot: Snapshot) {
        self.publish.send_replace(Arc::new(snapshot));
    }
}

//! The thread that removes stale flows.
//!
//! The controller tells it twice about each change: what will be expected ([`Cleaner::announce`]) before the kernel is told, and
//! that the kernel has it ([`Cleaner::programmed`]) afterwards. Passes are due after the second; the first protects. A pass over
//! a large table takes a while, and traffic does not wait: a flow to an endpoint that was added meanwhile looks stale to
//! the pass, but every such flow is younger than its announcement, and announcements are taken before every removal. So a flow is removed only if
//! nothing newer finds it fine.
//!
//! Changes that come during a pass are one next pass, the newest expectation of each destination.
//!
//! The same thread ends the connections of endpoints that have left for good ([`Cleaner::cut`]), after what is stale.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::{debug, error, info, warn};

use super::cutter;
use super::table::{ConntrackError, ConntrackTable, Deleted, Filter};
use crate::conntrack::{Carrier, Cut, Destination, Flow, Judgement, View};
use crate::kernel::addresses::interface_addresses;
use crate::model::Family;

/// Up to so many filters are asked one after the other; for more destinations all UDP entries are read in one go. The kernel walks
/// the whole table for each dump, whatever the filter. A walk costs as much as handing out some 8 % of the entries
/// (`measure_a_large_table` in `tests/conntrack.rs`), so few walks are a small loss where UDP is rare, and a large gain where it is not.
const ONE_BY_ONE: usize = 4;

/// Pause before a pass that failed is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// The thread's handle; dropping it waits for the pass in progress.
#[derive(Debug)]
pub struct Cleaner {
    news: Option<Sender<News>>,
    thread: Option<JoinHandle<()>>,
    /// Whether something was announced that is not yet programmed.
    announced: bool,
}

/// What one pass over one family took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The family.
    pub family: Family,
    /// Destinations whose flows were looked at.
    pub destinations: usize,
    /// Walks through the table.
    pub dumps: usize,
    /// Entries that the kernel sent.
    pub read: usize,
    /// What became of the stale ones.
    pub deleted: Deleted,
    /// Whether the table changed so often that entries may have been missed.
    pub partial: bool,
    /// How long it took.
    pub duration: Duration,
}

/// What the controller says.
enum News {
    Announced(View),
    Programmed,
    Cut(Vec<Cut>),
}

/// What the thread knows.
#[derive(Default)]
struct Known {
    /// Expected soon.
    announced: View,
    /// Expected now, and not yet enforced.
    due: View,
    /// To be ended.
    cuts: Vec<Cut>,
}

// === impl Cleaner ===

impl Cleaner {
    /// Starts the thread for the calling thread's network namespace. `report` hears of every pass, on that thread.
    ///
    /// # Errors
    /// When the table cannot be opened or the thread not be started.
    pub fn start(report: impl FnMut(&Pass) + Send + 'static) -> Result<Self, ConntrackError> {
        Self::start_with((), report)
    }

    /// The same beside somebody who carries connections, and will be told which of them end.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(
        carrier: impl Carrier + 'static,
        report: impl FnMut(&Pass) + Send + 'static,
    ) -> Result<Self, ConntrackError> {
        let tables = Tables::open()?;
        let (sender, news) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("conntrack".to_owned())
            .spawn(move || serve(tables, &carrier, &news, report))
            .map_err(|error| {
                let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
                ConntrackError { action: "start a thread for", errno }
            })?;
        Ok(Self { news: Some(sender), thread: Some(thread), announced: false })
    }

    /// One that removes nothing, for kernels whose table cannot be opened.
    pub fn disabled() -> Self {
        Self { news: None, thread: None, announced: false }
    }

    /// Says what will be expected; to be called before the kernel is told.
    pub fn announce(&mut self, view: View) {
        if !view.is_empty() {
            self.announced = true;
            self.tell(News::Announced(view));
        }
    }

    /// Says that the kernel has what was announced. Costs nothing if nothing was.
    pub fn programmed(&mut self) {
        if std::mem::take(&mut self.announced) {
            self.tell(News::Programmed);
        }
    }

    /// Ends connections; to be called when the kernel sends no new ones where these go. Costs nothing if there are none.
    pub fn cut(&mut self, cuts: Vec<Cut>) {
        if !cuts.is_empty() {
            self.tell(News::Cut(cuts));
        }
    }

    fn tell(&mut self, news: News) {
        // The thread ends before its sender does only by a panic, which has been reported by then.
        if let Some(sender) = &self.news
            && sender.send(news).is_err()
        {
            error!("the thread that removes stale UDP flows has ended; they stay until they expire");
            self.news = None;
        }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        drop(self.news.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Known ===

impl Known {
    fn take(&mut self, news: News) {
        match news {
            News::Announced(mut view) => {
                view.set_local_addresses(Arc::new(interface_addresses()));
                self.announced.merge(view);
            }
            News::Programmed => self.due.merge(std::mem::take(&mut self.announced)),
            News::Cut(cuts) => self.cuts.extend(cuts),
        }
    }

    fn take_all(&mut self, news: &Receiver<News>) {
        news.try_iter().for_each(|news| self.take(news));
    }

    /// Whether something newer than the pass finds a flow fine.
    fn protects(&self, flow: &Flow) -> bool {
        [&self.announced, &self.due].iter().any(|view| view.judge(flow) == Judgement::Fine)
    }
}

// === the thread ===

/// Two sockets: removals are answered while a dump is still being read.
pub(super) struct Tables {
    pub(super) reading: ConntrackTable,
    pub(super) removing: ConntrackTable,
}

impl Tables {
    fn open() -> Result<Self, ConntrackError> {
        Ok(Self { reading: ConntrackTable::open()?, removing: ConntrackTable::open()? })
    }
}

fn serve(mut tables: Tables, carrier: &dyn Carrier, news: &Receiver<News>, mut report: impl FnMut(&Pass)) {
    let mut known = Known::default();
    loop {
        // Something is due already only if its pass failed.
        let wait = if known.due.is_empty() && known.cuts.is_empty() {
            news.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            news.recv_timeout(PAUSE)
        };
        match wait {
            Ok(first) => known.take(first),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        known.take_all(news);
        let due = std::mem::take(&mut known.due);
        for family in Family::ALL {
            match pass(&mut tables, family, &due, &mut known, news) {
                Ok(None) => {}
                Ok(Some(pass)) => {
                    log(&pass);
                    report(&pass);
                }
                Err(error) => {
                    warn!(%family, %error, retry_in = ?PAUSE, "removing stale UDP flows failed");
                    let mut again = due.clone();
                    again.merge(std::mem::take(&mut known.due));
                    known.due = again;
                    if let Ok(fresh) = Tables::open() {
                        tables = fresh;
                    }
                    break;
                }
            }
        }
        let cuts = std::mem::take(&mut known.cuts);
        if let Err(error) = cutter::cut(&mut tables, &cuts, carrier) {
            warn!(%error, retry_in = ?PAUSE, "ending the connections of endpoints that left failed");
            known.cuts = cuts;
            if let Ok(fresh) = Tables::open() {
                tables = fresh;
            }
        }
    }
}

/// Removes the flows of one family that are stale by what is due; `None` if nothing is expected of that family.
fn pass(
    tables: &mut Tables,
    family: Family,
    due: &View,
    known: &mut Known,
    news: &Receiver<News>,
) -> Result<Option<Pass>, ConntrackError> {
    let begin = Instant::now();
    let destinations: Vec<_> = due.suspects().filter(|destination| destination.family() == family).collect();
    if destinations.is_empty() {
        return Ok(None);
    }
    let mut pass = Pass {
        family,
        destinations: destinations.len(),
        dumps: 0,
        read: 0,
        deleted: Deleted::default(),
        partial: false,
        duration: Duration::ZERO,
    };
    let mut stale = Vec::new();
    for filter in filters(family, &destinations) {
        let mut failure = Ok(());
        let Tables { reading, removing } = tables;
        let dump = reading.dump(&filter, |flows| {
            stale.clear();
            stale.extend(flows.iter().filter(|flow| due.judge(flow) == Judgement::Stale));
            if stale.is_empty() || failure.is_err() {
                return;
            }
            known.take_all(news);
            stale.retain(|flow| !known.protects(flow));
            failure = removing.delete(&stale).map(|deleted| pass.deleted.add(deleted));
        })?;
        failure?;
        pass.dumps += 1;
        pass.read += dump.read;
        pass.partial |= dump.partial;
        if !dump.filtered {
            // That was the whole family, judged by all that is due.
            break;
        }
    }
    pass.duration = begin.elapsed();
    Ok(Some(pass))
}

fn filters(family: Family, destinations: &[Destination]) -> Vec<Filter> {
    let mut filters: Vec<_> = destinations.iter().map(Filter::to).collect();
    filters.sort();
    // The same port at several IPv6 addresses is one filter.
    filters.dedup();
    if let [first, others @ ..] = filters.as_slice()
        && !others.is_empty()
        && first.address.is_some()
        && others.iter().all(|other| other.address == first.address)
    {
        // The ports of one Service.
        return vec![Filter { port: None, ..*first }];
    }
    if filters.len() > ONE_BY_ONE { vec![Filter::udp(family)] } else { filters }
}

fn log(pass: &Pass) {
    if pass.deleted.deleted == 0 {
        debug!(family = %pass.family, read = pass.read, "no stale UDP flows");
    } else {
        info!(
            target: "pointsman::programmed",
            family = %pass.family,
            destinations = pass.destinations,
            dumps = pass.dumps,
            read = pass.read,
            deleted = pass.deleted.deleted,
            total_us = u64::try_from(pass.duration.as_micros()).unwrap_or(u64::MAX),
            "stale UDP flows removed"
        );
    }
    if let Some(errno) = pass.deleted.refusal {
        warn!(family = %pass.family, flows = pass.deleted.refused, %errno, "the kernel would not remove stale UDP flows");
    }
    if pass.partial {
        warn!(family = %pass.family, "the connection tracking table changed while it was read; stale UDP flows may be left");
    }
}

// === impl Deleted ===

impl Deleted {
    pub(super) fn add(&mut self, other: Deleted) {
        self.deleted += other.deleted;
        self.gone += other.gone;
        self.refused += other.refused;
        self.refusal = self.refusal.or(other.refusal);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::conntrack::{Expected, Tuple};
    use crate::model::Protocol;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn view(endpoints: &[&str]) -> View {
        let mut view = View::default();
        let endpoints = endpoints.iter().map(|text| at(text)).collect();
        view.expect(Destination::Address(at("10.96.0.1:53")), Expected::Endpoints(endpoints));
        view
    }

    #[test]
    fn a_flow_to_an_endpoint_that_is_being_added_is_protected_from_an_older_pass() {
        let flow = Flow {
            protocol: Protocol::Udp,
            original: Tuple { source: at("10.9.0.1:4000"), destination: at("10.96.0.1:53"), zone: None },
            reply: Tuple { source: at("10.1.0.2:53"), destination: at("10.9.0.1:4000"), zone: None },
            zone: None,
            id: None,
            state: None,
        };
        let mut known = Known::default();
        assert!(!known.protects(&flow));
        known.take(News::Announced(view(&["10.1.0.1:53", "10.1.0.2:53"])));
        assert!(known.protects(&flow) && known.due.is_empty(), "not due before the kernel has it");
        known.take(News::Programmed);
        assert!(known.protects(&flow) && known.announced.is_empty());
        known.take(News::Announced(view(&["10.1.0.1:53"])));
        known.take(News::Programmed);
        assert!(!known.protects(&flow), "the newest expectation counts");
    }

    #[test]
    fn few_destinations_are_read_one_by_one_and_many_at_once() {
        let some: Vec<_> = (1..=5).map(|last| Destination::Address(at(&format!("10.96.0.{last}:53")))).collect();
        let few = filters(Family::V4, &some[..4]);
        assert_eq!(few.len(), 4);
        assert_eq!((few[0].address, few[0].port), (Some([10, 96, 0, 1].into()), Some(53)));
        assert_eq!(filters(Family::V4, &some), [Filter::udp(Family::V4)]);
        let some: Vec<_> = (1..=9).map(|last| Destination::Address(at(&format!("[fd00::{last}]:53")))).collect();
        let ports: Vec<_> = (1..=9).map(|port| Destination::Address(at(&format!("10.96.0.1:{port}")))).collect();
        let by_address = Filter { address: Some([10, 96, 0, 1].into()), ..Filter::udp(Family::V4) };
        assert_eq!(filters(Family::V4, &ports), [by_address], "one Service is one walk");
        let by_port = Filter { port: Some(53), ..Filter::udp(Family::V6) };
        assert_eq!(filters(Family::V6, &some), [by_port], "the kernel cannot tell IPv6 addresses");
        assert_eq!(filters(Family::V6, &[Destination::NodePort(Family::V6, 53)]), [by_port]);
    }
}

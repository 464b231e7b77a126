//! Walks through connection tracking because somebody asked: one at a time, and shared.
//!
//! A walk takes 1.5 µs per entry, and whoever reaches the metrics port can ask for one (the page does, for each Service that somebody looks at). So
//! whoever asks waits for his turn, and what a walk found answers everybody who asks within [`FRESH`], or within [`REST`] times as long as it took, if that is more: all
//! who ask for sums together cost a fifth of a processor, at most. The first who asks for one Service gets a walk for that; who asks for another one
//! meanwhile gets the whole table counted, which serves all others.
//!
//! Connections one by one differ by what is asked for: the page's lists are shared by those who ask for the same ([`Shared`]), and there is such a rest between
//! two of them; root's wait for their turn and no longer.
//!
//! A walk whose asker has gone keeps its turn to its end. What was found is let go when it is not good enough any more.
//!
//! `pointsman_status_walks_total` counts walks. Proven by `tests/e2e/status.rs`.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::metrics;
use crate::conntrack::{Destination, Flow};
use crate::forward::{Carried, CarriedKey, Register};
use crate::kernel::conntrack::{ConntrackError, Listing, Measuring, list_flows, take_census};
use crate::model::Protocol;
use crate::status::{RateList, Sums};

/// How long what a walk found is good enough.
pub(super) const FRESH: Duration = Duration::from_millis(500);

/// How many times as long as a walk took it is good enough at least.
const REST: u32 = 4;

/// How long somebody may wait for his turn.
const PATIENCE: Duration = Duration::from_secs(10);

/// After so long whoever is missing among those that the forwarder carries may have come since.
const AGAIN: Duration = Duration::from_millis(1);

type Wanted = Vec<(Protocol, Destination)>;

/// Walks for whoever asks. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Walks {
    register: Register,
    /// Locked while a walk is under way.
    last: Arc<Mutex<Last>>,
}

/// What walks found last.
#[derive(Debug, Default)]
struct Last {
    all: Option<Found<Arc<Sums>>>,
    /// Connections to some destinations alone.
    some: Option<(Wanted, Found<Arc<Sums>>)>,
    /// Connections one by one, for the page.
    listed: Option<Found<()>>,
}

/// A walk's turn; the walk itself has it, so that it is the only one even when nobody waits for it any more.
type Turn = OwnedMutexGuard<Last>;

/// What was found, when, and in how long.
#[derive(Debug)]
struct Found<T> {
    what: T,
    at: Instant,
    took: Duration,
}

/// Answers that are shared among those who ask for the same. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Shared<K, T>(Arc<Mutex<Answers<K, T>>>);

type Answers<K, T> = Vec<(K, Found<T>)>;

/// Who answers behind a listener of the forwarder, while a walk goes on: the register is read as a whole, not for each entry of the table.
#[derive(Debug)]
struct Behind {
    register: Register,
    known: RefCell<Found<HashMap<CarriedKey, Carried>>>,
    /// Ports of listeners.
    listeners: HashSet<u16>,
}

/// Why nothing was found.
#[derive(Debug, thiserror::Error)]
pub(super) enum WalkError {
    #[error("connection tracking is being read for others: try again")]
    Waiting,
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
}

// === impl Walks ===

impl Walks {
    pub(super) fn new(register: Register) -> Self {
        Self { register, last: Arc::default() }
    }

    /// All connections, as they were not long ago.
    pub(super) async fn all(&self) -> Result<Arc<Sums>, WalkError> {
        let turn = self.turn().await?;
        match fresh(&turn.all) {
            Some(found) => Ok(found),
            None => self.take(turn, None).await,
        }
    }

    /// The connections to these destinations, and perhaps others.
    pub(super) async fn to(&self, wanted: Wanted) -> Result<Arc<Sums>, WalkError> {
        let turn = self.turn().await?;
        if let Some(found) = fresh(&turn.all) {
            return Ok(found);
        }
        match &turn.some {
            Some((known, found)) if found.is_fresh() && *known == wanted => Ok(found.what.clone()),
            Some((_, found)) if found.is_fresh() => self.take(turn, None).await,
            _ => self.take(turn, Some(wanted)).await,
        }
    }

    /// Connections one by one: see [`list_flows`]; and how long the walk took. `rests`: not before there was a rest since the last one that was to.
    pub(super) async fn list(
        &self,
        wants: impl Fn(&Flow) -> bool + Send + 'static,
        most: usize,
        rests: bool,
    ) -> Result<(Listing, Duration), WalkError> {
        let mut turn = if rests { self.turn_after_rest().await? } else { self.turn().await? };
        walk(move || {
            let begin = Instant::now();
            let listing = list_flows(wants, most);
            let found = Found::since(begin, ());
            let took = found.took;
            if rests {
                turn.listed = Some(found);
            }
            Ok((listing?, took))
        })
        .await
    }

    /// What comes within so long from now on; that is not longer than the register remembers who left.
    pub(super) async fn rates(&self, window: Duration) -> Result<RateList, WalkError> {
        let register = self.register.clone();
        // Who carried a connection that is over by then.
        let _following = register.follow();
        let turn = self.turn().await?;
        let (since, begin) = (Timestamp::now(), Instant::now());
        let mut measuring = walk(move || {
            let _turn = turn;
            Measuring::begin()
        })
        .await?;
        sleep(window.saturating_sub(begin.elapsed())).await;
        let turn = self.turn().await?;
        walk(move || {
            let _turn = turn;
            for (key, carried) in register.direct_since(since) {
                if let Some(frontend) = carried.direct {
                    measuring.add_direct(key.protocol, frontend, carried.endpoint);
                }
            }
            let behind = Behind::of(register.clone());
            let mut rates = measuring.end(|flow| behind.endpoint(flow))?;
            rates.partial |= register.has_forgotten(begin);
            Ok(rates)
        })
        .await
    }

    async fn turn(&self) -> Result<Turn, WalkError> {
        timeout(PATIENCE, self.last.clone().lock_owned()).await.map_err(|_| WalkError::Waiting)
    }

    async fn turn_after_rest(&self) -> Result<Turn, WalkError> {
        let turn = async {
            loop {
                let turn = self.turn().await?;
                let rest = turn.listed.as_ref().map(Found::rest).unwrap_or_default();
                if rest.is_zero() {
                    return Ok(turn);
                }
                // Others need not wait for it.
                drop(turn);
                sleep(rest).await;
            }
        };
        timeout(PATIENCE, turn).await.map_err(|_| WalkError::Waiting)?
    }

    /// Counts the connections to these destinations, or all, and keeps what was found.
    async fn take(&self, mut turn: Turn, wanted: Option<Wanted>) -> Result<Arc<Sums>, WalkError> {
        let (register, last) = (self.register.clone(), self.last.clone());
        walk(move || {
            let begin = Instant::now();
            let carried = register.all();
            let behind = |flow: &Flow| carried.get(&CarriedKey::of(flow)).map(|carried| carried.endpoint);
            let mut census = take_census(wanted.as_deref().unwrap_or_default(), behind)?;
            for (key, carried) in &carried {
                if let Some(frontend) = carried.direct {
                    census.add_direct(key.protocol, frontend, carried.endpoint);
                }
            }
            let sums = Arc::new(census);
            let found = Found::since(begin, sums.clone());
            later(found.lasts(), async move { last.lock().await.forget() });
            match wanted {
                Some(wanted) => turn.some = Some((wanted, found)),
                None => turn.all = Some(found),
            }
            Ok(sums)
        })
        .await
    }
}

/// A walk, on a thread of its own.
async fn walk<T: Send + 'static>(
    walk: impl FnOnce() -> Result<T, ConntrackError> + Send + 'static,
) -> Result<T, WalkError> {
    metrics::walked();
    // A panic there is told where it happens.
    Ok(spawn_blocking(walk).await.map_err(|_| WalkError::Waiting)??)
}

/// Does something after a while.
fn later(after: Duration, what: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(async move {
        sleep(after).await;
        what.await;
    }));
}

fn fresh<T: Clone>(found: &Option<Found<T>>) -> Option<T> {
    found.as_ref().filter(|found| found.is_fresh()).map(|found| found.what.clone())
}

// === impl Last ===

impl Last {
    /// Lets go of what is not good enough any more.
    fn forget(&mut self) {
        self.all.take_if(|found| !found.is_fresh());
        self.some.take_if(|(_, found)| !found.is_fresh());
    }
}

// === impl Found ===

impl<T> Found<T> {
    fn since(begin: Instant, what: T) -> Self {
        let at = Instant::now();
        Self { what, at, took: at.duration_since(begin) }
    }

    fn is_fresh(&self) -> bool {
        self.at.elapsed() < self.lasts()
    }

    /// How long it is good enough.
    fn lasts(&self) -> Duration {
        FRESH.max(self.took * REST)
    }

    /// How long to rest before the next one.
    fn rest(&self) -> Duration {
        (self.took * REST).saturating_sub(self.at.elapsed())
    }
}

// === impl Shared ===

impl<K: PartialEq + Send + 'static, T: Clone + Send + 'static> Shared<K, T> {
    /// What was worked out for somebody else not long ago, or is now. `work` says how long the walk took, too, without what it waited for.
    pub(super) async fn ask<E: From<WalkError>>(
        &self,
        key: K,
        work: impl Future<Output = Result<(T, Duration), E>>,
    ) -> Result<T, E> {
        let mut known = timeout(PATIENCE, self.0.lock()).await.map_err(|_| WalkError::Waiting)?;
        if let Some((_, found)) = known.iter().find(|(of, found)| *of == key && found.is_fresh()) {
            return Ok(found.what.clone());
        }
        let (what, took) = work.await?;
        known.retain(|(_, found)| found.is_fresh());
        let found = Found { what: what.clone(), at: Instant::now(), took };
        let all = self.0.clone();
        later(found.lasts(), async move { all.lock().await.retain(|(_, found)| found.is_fresh()) });
        known.push((key, found));
        Ok(what)
    }
}

impl<K, T> Default for Shared<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

// === impl Behind ===

impl Behind {
    fn of(register: Register) -> Self {
        let known = Self::read(&register);
        let listeners = known.what.keys().map(|key| key.listener).collect();
        Self { register, known: RefCell::new(known), listeners }
    }

    fn endpoint(&self, flow: &Flow) -> Option<SocketAddr> {
        let key = CarriedKey::of(flow);
        let mut known = self.known.borrow_mut();
        // Most of those who are missing are over for long, and are remembered by the kernel alone.
        let may_have_come = !known.what.contains_key(&key) && self.listeners.contains(&key.listener);
        if may_have_come && known.at.elapsed() > AGAIN.max(known.took * REST) {
            *known = Self::read(&self.register);
        }
        known.what.get(&key).map(|carried| carried.endpoint)
    }

    fn read(register: &Register) -> Found<HashMap<CarriedKey, Carried>> {
        let begin = Instant::now();
        Found::since(begin, register.all_and_recent())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;

    use super::*;
    use crate::conntrack::Tuple;

    #[tokio::test]
    async fn who_asks_for_the_same_shares_and_others_wait() {
        let shared = Shared::default();
        let (made, at_once) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let ask = |key: usize| {
            let (made, at_once) = (&made, &at_once);
            shared.ask(key, async move {
                assert_eq!(at_once.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                sleep(Duration::from_millis(1)).await;
                at_once.fetch_sub(1, Ordering::Relaxed);
                made.fetch_add(1, Ordering::Relaxed);
                Ok::<_, WalkError>((Arc::new(key), Duration::ZERO))
            })
        };
        let found = join_all((0..30).map(|number| ask(number % 3))).await;
        assert!(found.iter().enumerate().all(|(number, found)| found.as_ref().is_ok_and(|key| **key == number % 3)));
        assert_eq!(made.load(Ordering::Relaxed), 3, "one for each that differs");
        sleep(FRESH).await;
        ask(0).await.expect("an answer");
        assert_eq!(made.load(Ordering::Relaxed), 4, "what is old is not told");
        sleep(FRESH + Duration::from_millis(200)).await;
        assert!(shared.0.lock().await.is_empty(), "nor kept");
        // What it waited for does not make it last.
        let slow = async {
            sleep(FRESH / 2).await;
            Ok::<_, WalkError>((Arc::new(0), Duration::ZERO))
        };
        shared.ask(0, slow).await.expect("an answer");
        sleep(FRESH + Duration::from_millis(20)).await;
        ask(0).await.expect("an answer");
        assert_eq!(made.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn who_comes_while_a_walk_goes_on_is_known() {
        let register = Register::default();
        let _following = register.follow();
        let (frontend, listener): (SocketAddr, SocketAddr) =
            (([10, 96, 0, 1], 80).into(), ([10, 9, 0, 2], 40000).into());
        let endpoint: SocketAddr = ([10, 1, 0, 1], 8080).into();
        let flow = |client: u16, listener: SocketAddr| {
            let client: SocketAddr = ([10, 9, 0, 1], client).into();
            Flow {
                protocol: Protocol::Tcp,
                original: Tuple { source: client, destination: frontend, zone: None },
                reply: Tuple { source: listener, destination: client, zone: None },
                zone: None,
                id: None,
                state: None,
            }
        };
        let enter = |client| register.enter(CarriedKey::of(&flow(client, listener)), endpoint, None, None);
        let (there, over) = (enter(1), enter(2));
        drop(over);
        let behind = Behind::of(register.clone());
        assert_eq!([1, 2, 3].map(|client| behind.endpoint(&flow(client, listener)).is_some()), [true, true, false]);
        let came = [enter(3), enter(4)];
        drop(came);
        std::thread::sleep(AGAIN * 10);
        assert_eq!([3, 4].map(|client| behind.endpoint(&flow(client, listener))), [Some(endpoint); 2]);
        assert_eq!(behind.endpoint(&flow(1, ([10, 1, 0, 1], 8080).into())), None, "that one is the kernel's");
        drop(there);
    }

    #[test]
    fn a_long_walk_is_followed_by_a_long_rest() {
        let found = |ago: u64, took: u64| {
            let at = Instant::now().checked_sub(Duration::from_millis(ago)).expect("the clock began earlier");
            Found { what: (), at, took: Duration::from_millis(took) }
        };
        assert!(found(300, 1).is_fresh() && !found(600, 1).is_fresh(), "half a second");
        assert!(found(3_000, 1_000).is_fresh() && !found(4_100, 1_000).is_fresh(), "four times as long as it took");
        assert!(found(1, 100).rest() > Duration::from_millis(300) && found(450, 100).rest().is_zero());
    }
}

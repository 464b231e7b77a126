//! Who is carried where: every connection and UDP flow of the forwarder, for people who look.
//!
//! To connection tracking, what the forwarder carries ends at a listener; only the forwarder knows who answers. So each connection has an
//! [`Entry`] from the moment at which its endpoint is known to its end, by what connection tracking knows of it, too: protocol, the
//! client as the listener sees it, and the listener's port. One register serves all forwarders of the process.
//!
//! Who has to end ([`Carrier`]) is taken out of the register, and its task is woken. Whoever carries something looks each time that it does anything whether
//! somebody was taken out since ([`Entry::is_cut`]: a number that is compared), and only then whether that was itself.
//!
//! Entering and leaving take a lock that is one of [`SHARDS`], for less than a microsecond per connection, and some 150 bytes. While somebody
//! follows ([`Register::follow`]), who left is remembered for [`RECENT`]: a connection may be over before whoever follows asks.
//!
//! Proven by the tests below, by `tests/e2e/flows.rs`, and by `tests/e2e/orders.rs`.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::conntrack::{Carrier, Cut, Destination, Flow};
use crate::model::{Family, Protocol};

/// Locks, so that threads seldom meet.
const SHARDS: usize = 16;

/// How long who left is remembered while somebody follows, and how many per lock.
const RECENT: Duration = Duration::from_secs(5);
const RECENT_COUNT: usize = 1024;

/// By what a connection is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CarriedKey {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The client, as the listener sees it.
    pub client: SocketAddr,
    /// The listener's port.
    pub listener: u16,
}

/// A connection that is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Who answers.
    pub endpoint: SocketAddr,
    /// What the client connected to, where that is the listener itself: connection tracking knows of no translation then.
    pub direct: Option<SocketAddr>,
    /// When the endpoint was found.
    pub since: Timestamp,
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Register(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    shards: [Mutex<Shard>; SHARDS],
    followers: AtomicUsize,
    /// How many of them are direct.
    direct: AtomicUsize,
    /// How many were taken out.
    cuts: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    live: HashMap<CarriedKey, Live>,
    /// Those who left, the oldest first.
    recent: VecDeque<(Instant, CarriedKey, Carried)>,
    /// When the last of those left who are not remembered any more.
    forgotten: Option<Instant>,
}

#[derive(Debug)]
struct Live {
    carried: Carried,
    /// Has whoever carries it look at it; nothing, where that is done with its next datagram.
    waker: Option<Waker>,
}

/// A connection's place; dropping it leaves.
#[derive(Debug)]
pub(crate) struct Entry {
    register: Register,
    key: CarriedKey,
    since: Timestamp,
    /// How many had been taken out when it was last looked for.
    cuts: usize,
}

/// Somebody follows, until this is dropped.
#[derive(Debug)]
pub struct Following(Register);

// === impl Register ===

impl Register {
    /// A connection found its endpoint. `direct`: see [`Carried`]. `waker` wakes who has to end it.
    pub(crate) fn enter(
        &self,
        key: CarriedKey,
        endpoint: SocketAddr,
        direct: Option<SocketAddr>,
        waker: Option<Waker>,
    ) -> Entry {
        let (since, cuts) = (Timestamp::now(), self.cuts());
        let carried = Carried { endpoint, direct, since };
        let before = self.shard(&key).live.insert(key, Live { carried, waker }).map(|before| before.carried);
        let directs = |carried: Option<SocketAddr>| usize::from(carried.is_some());
        self.0.direct.fetch_add(directs(direct), Ordering::Relaxed);
        self.0.direct.fetch_sub(directs(before.and_then(|before| before.direct)), Ordering::Relaxed);
        Entry { register: self.clone(), key, since, cuts }
    }

    /// Who carries this one, or did a moment ago.
    pub fn find(&self, key: &CarriedKey) -> Option<Carried> {
        let shard = self.shard(key);
        let recent = || shard.recent.iter().rev().find(|(_, known, _)| known == key).map(|(_, _, carried)| *carried);
        shard.live.get(key).map(|live| live.carried).or_else(recent)
    }

    /// All that are carried now.
    pub fn all(&self) -> HashMap<CarriedKey, Carried> {
        let mut all = HashMap::new();
        for shard in &self.0.shards {
            all.extend(locked(shard).live.iter().map(|(key, live)| (*key, live.carried)));
        }
        all
    }

    /// All that are carried now, or were a moment ago if somebody follows.
    pub fn all_and_recent(&self) -> HashMap<CarriedKey, Carried> {
        let mut all = HashMap::new();
        for shard in &self.0.shards {
            let shard = locked(shard);
            // The later one counts.
            all.extend(shard.recent.iter().map(|(_, key, carried)| (*key, *carried)));
            all.extend(shard.live.iter().map(|(key, live)| (*key, live.carried)));
        }
        all
    }

    /// Whether somebody who left since then is not remembered any more. Known while somebody follows.
    pub fn has_forgotten(&self, since: Instant) -> bool {
        self.0.shards.iter().any(|shard| locked(shard).forgotten.is_some_and(|left| left >= since))
    }

    /// Those among them that connection tracking does not know as translated.
    pub fn direct(&self) -> HashMap<CarriedKey, Carried> {
        if self.0.direct.load(Ordering::Relaxed) == 0 {
            return HashMap::new();
        }
        let mut all = self.all();
        all.retain(|_, carried| carried.direct.is_some());
        all
    }

    /// Those of them that came since then, and may have left again if somebody followed.
    pub fn direct_since(&self, since: Timestamp) -> Vec<(CarriedKey, Carried)> {
        let mut found = Vec::new();
        for shard in &self.0.shards {
            let shard = locked(shard);
            let live = shard.live.iter().map(|(key, live)| (*key, live.carried));
            let all = live.chain(shard.recent.iter().map(|(_, key, carried)| (*key, *carried)));
            found.extend(all.filter(|(_, carried)| carried.direct.is_some() && carried.since >= since));
        }
        found
    }

    /// Has who leaves remembered for a while, as long as the value lives.
    pub fn follow(&self) -> Following {
        self.0.followers.fetch_add(1, Ordering::Relaxed);
        Following(self.clone())
    }

    fn shard(&self, key: &CarriedKey) -> MutexGuard<'_, Shard> {
        // Clients of one address differ in their ports, and these in their low bits.
        locked(&self.0.shards[usize::from(key.client.port()) % SHARDS])
    }

    fn leave(&self, key: &CarriedKey, since: Timestamp) {
        // Another connection may have taken the place: the client's port is free before we are here.
        self.take_out(key, |carried| carried.since == since);
    }

    /// Moves with every order to end connections, and with every one that was ended.
    pub(crate) fn cuts(&self) -> usize {
        self.0.cuts.load(Ordering::Acquire)
    }

    /// Ends the connection if it goes to one of these; whether it does.
    fn cut(&self, key: &CarriedKey, endpoints: &BTreeSet<SocketAddr>) -> bool {
        let Some(live) = self.take_out(key, |carried| endpoints.contains(&carried.endpoint)) else { return false };
        // It must not be told of it before it can find out.
        self.0.cuts.fetch_add(1, Ordering::AcqRel);
        live.waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Takes one out if it is as it should be; while somebody follows it is remembered for a while.
    fn take_out(&self, key: &CarriedKey, is_meant: impl Fn(&Carried) -> bool) -> Option<Live> {
        let followed = self.0.followers.load(Ordering::Relaxed) > 0;
        let mut shard = self.shard(key);
        shard.live.get(key).filter(|live| is_meant(&live.carried))?;
        let live = shard.live.remove(key)?;
        let carried = live.carried;
        self.0.direct.fetch_sub(usize::from(carried.direct.is_some()), Ordering::Relaxed);
        if !followed {
            shard.recent = VecDeque::new();
            return Some(live);
        }
        let now = Instant::now();
        let is_over = |(at, _, _): &(Instant, _, _)| now.duration_since(*at) > RECENT;
        while shard.recent.len() >= RECENT_COUNT || shard.recent.front().is_some_and(is_over) {
            shard.forgotten = shard.recent.pop_front().map(|(left, _, _)| left);
        }
        shard.recent.push_back((now, *key, carried));
        Some(live)
    }
}

impl Carrier for Register {
    fn end(&self, cut: &Cut, flow: &Flow) -> bool {
        self.cut(&CarriedKey::of(flow), &cut.endpoints)
    }

    fn end_untracked(&self, cut: &Cut) -> usize {
        // Who is being connected to one of these endpoints is not in here yet, and has to find out when it comes.
        self.0.cuts.fetch_add(1, Ordering::AcqRel);
        let is_meant = |(key, carried): &(&CarriedKey, &Carried)| {
            let node_port = |to: SocketAddr| Destination::NodePort(Family::of(to.ip()), to.port());
            key.protocol == cut.protocol && carried.direct.is_some_and(|to| cut.destinations.contains(&node_port(to)))
        };
        let direct = self.direct();
        direct.iter().filter(is_meant).filter(|(key, _)| self.cut(key, &cut.endpoints)).count()
    }
}

fn locked(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // Nothing in there is left half done by a panic.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Entry ===

impl Entry {
    /// Another endpoint answers from now on.
    pub fn move_to(&self, endpoint: SocketAddr) {
        if let Some(Live { carried, .. }) = self.register.shard(&self.key).live.get_mut(&self.key) {
            carried.endpoint = endpoint;
        }
    }

    /// Whether it has to end: it was taken out.
    pub fn is_cut(&mut self) -> bool {
        let cuts = self.register.cuts();
        if cuts == self.cuts {
            return false;
        }
        self.cuts = cuts;
        let shard = self.register.shard(&self.key);
        shard.live.get(&self.key).is_none_or(|live| live.carried.since != self.since)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.register.leave(&self.key, self.since);
    }
}

// === impl Following ===

impl Drop for Following {
    fn drop(&mut self) {
        self.0.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> CarriedKey {
        CarriedKey { protocol: Protocol::Tcp, client: ([192, 168, 0, 1], port).into(), listener: 40000 }
    }

    #[test]
    fn who_left_is_remembered_while_somebody_follows() {
        let register = Register::default();
        let endpoint: SocketAddr = ([10, 244, 0, 1], 80).into();
        let entry = register.enter(key(1), endpoint, None, None);
        assert_eq!(register.find(&key(1)).map(|carried| carried.endpoint), Some(endpoint));
        let other: SocketAddr = ([10, 244, 0, 2], 80).into();
        entry.move_to(other);
        assert_eq!(register.all()[&key(1)].endpoint, other);
        drop(entry);
        assert!(register.find(&key(1)).is_none() && register.all().is_empty(), "nobody followed");
        let following = register.follow();
        let (begin, since) = (Instant::now(), Timestamp::now());
        drop(register.enter(key(3), endpoint, Some(other), None));
        let there = register.enter(key(4), endpoint, Some(other), None);
        assert_eq!(register.direct_since(since).len(), 2, "one of them has left");
        drop(there);
        drop(register.enter(key(2), endpoint, None, None));
        assert!(register.find(&key(2)).is_some() && register.all().is_empty());
        assert!(register.all_and_recent().contains_key(&key(2)) && !register.has_forgotten(begin));
        for port in 0..40_000 {
            drop(register.enter(key(port), endpoint, None, None));
        }
        let remembered: usize = register.0.shards.iter().map(|shard| locked(shard).recent.len()).sum();
        assert_eq!(remembered, SHARDS * RECENT_COUNT, "and no more than that");
        assert!(register.has_forgotten(begin) && !register.has_forgotten(Instant::now()));
        drop(following);
        (0..32).for_each(|port| drop(register.enter(key(port), endpoint, None, None)));
        assert!(register.0.shards.iter().all(|shard| locked(shard).recent.is_empty()));
    }

    #[test]
    fn who_is_cut_learns_of_it_and_nobody_else_does() {
        #[derive(Default)]
        struct Woken(AtomicUsize);
        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let register = Register::default();
        let [first, second] = [1, 2].map(|last| SocketAddr::from(([10, 244, 0, last], 80)));
        let woken = Arc::new(Woken::default());
        let enter = |port, endpoint, direct| register.enter(key(port), endpoint, direct, Some(woken.clone().into()));
        let node_port: SocketAddr = ([127, 0, 0, 1], 30080).into();
        let (mut cut, mut other, mut local) =
            (enter(1, first, None), enter(2, second, None), enter(3, first, Some(node_port)));
        let order = Cut {
            protocol: Protocol::Tcp,
            family: Family::V4,
            destinations: [Destination::NodePort(Family::V4, 30080)].into(),
            endpoints: [first].into(),
            node_port_ranges: Arc::default(),
        };
        assert!(register.cut(&key(1), &order.endpoints) && !register.cut(&key(2), &order.endpoints));
        assert!(!register.cut(&key(1), &order.endpoints), "once");
        assert_eq!([&mut cut, &mut other, &mut local].map(Entry::is_cut), [true, false, false]);
        assert_eq!((register.end_untracked(&order), register.all().len()), (1, 1));
        assert_eq!([&mut other, &mut local].map(Entry::is_cut), [false, true]);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        // Who is being connected meanwhile is in no order's reach, and looks whether there was one.
        let before = register.cuts();
        assert_eq!(register.end_untracked(&Cut { destinations: [].into(), ..order }), 0);
        assert_ne!(register.cuts(), before);
        assert_eq!([&mut other, &mut local].map(Entry::is_cut), [false, true]);
        // Who comes by the same port is another.
        let mut next = enter(1, second, None);
        drop(cut);
        assert!(!next.is_cut() && register.find(&key(1)).is_some());
    }
}

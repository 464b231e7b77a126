//! Who has how many connections, of all Services, by walks through the kernel's table.
//!
//! A [`Ledger`](super::Ledger) hears of every connection and is right at any moment; that costs the data path an event per connection,
//! and is for the few Services whose scheduler needs it. For metrics and for people a number that is some seconds old will do, and it
//! costs a connection nothing: now and then somebody walks through the table and shows each translated entry ([`Sighting`]) to the census.
//!
//! Active and inactive is what is there during a walk. *Opened* counts entries that were not there in the walk before. It is exact as long as
//! walks come at least as often as entries last: a TCP connection is remembered for 120 s after its end (10 s after a reset), a UDP flow
//! for 30 s. A connection that took another's ports has another number, or at least more time left than the old one could have.
//! *Unanswered* counts TCP connections that have waited for an answer from one walk to the next. One that is refused leaves no entry behind.
//!
//! Vocabulary: the [`Directory`] says which destination is whose; a *subject* is a Service port.
//!
//! Invariants: no I/O, and no clock; the first walk counts nobody as opened, because nobody knows when. Memory: some 40 bytes per entry.
//! Property test below; on the real kernel `tests/conntrack/census.rs`.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::net::SocketAddr;

use super::flow::{Destination, Flow};
use crate::model::{Family, PortKey, Protocol, ServiceKey};
use crate::policy::ResolvedPort;

/// Where the clients of some Services connect to now; nowhere: the Service is gone.
pub type Directory = Vec<(ServiceKey, Vec<(Destination, PortKey)>)>;

/// `IPS_SEEN_REPLY` (linux/netfilter/nf_conntrack_common.h).
pub const SEEN_REPLY: u32 = 1 << 1;

/// An entry as a walk met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which flow.
    pub flow: Flow,
    /// `enum ip_conntrack_status`.
    pub status: u32,
    /// Seconds until the kernel forgets it, if nothing happens.
    pub left: u32,
}

/// Connections of somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Since the census began, without those that were there then.
    pub opened: u64,
    /// Open as IPVS means it: TCP until one side closes, UDP as long as it is remembered.
    pub active: u64,
    /// Closed, and still remembered.
    pub inactive: u64,
    /// TCP connections that waited for an answer from one walk to the next, ever.
    pub unanswered: u64,
    /// For how many walks nothing of it has been there.
    pub(crate) idle: u16,
}

/// A Service port's connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// All of them.
    pub total: Connections,
    /// By endpoint: who answers, as connection tracking has it.
    pub endpoints: BTreeMap<SocketAddr, Connections>,
}

/// Everything that walks have found.
#[derive(Debug, Default)]
pub struct Census {
    /// Subjects by where clients send to.
    destinations: HashMap<(Protocol, Destination), u32>,
    services: HashMap<ServiceKey, Vec<u32>>,
    subjects: HashMap<u32, Subject>,
    last: u32,
    flows: HashMap<u64, Seen>,
    hasher: RandomState,
    /// The number of the walk; 0 before the first.
    walk: u32,
    totals: Connections,
}

#[derive(Debug)]
struct Subject {
    port: PortKey,
    destinations: Box<[Destination]>,
    /// Once it has connections: most Services of a large cluster have none on a node.
    account: Option<Box<Account>>,
}

/// For how many walks an endpoint without connections is remembered: a quarter of an hour, when walks come every five seconds.
const REMEMBERED: u16 = 180;

/// `TCP_CONNTRACK_TIME_WAIT` (linux/netfilter/nf_conntrack_tcp.h); what comes from there on only waits to be forgotten.
const TIME_WAIT: u8 = 7;

/// What is remembered of an entry between walks.
#[derive(Clone, Copy, Debug)]
struct Seen {
    walk: u32,
    age: Age,
    waiting: bool,
    unanswered: bool,
}

/// How far an entry is in its life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    left: u32,
    /// 0 where the protocol has none.
    state: u8,
    active: bool,
}

/// Where a Service's clients connect to.
pub fn entries(resolved: &[ResolvedPort]) -> Vec<(Destination, PortKey)> {
    let entries = |port: &ResolvedPort| {
        let addresses: Vec<_> = port
            .frontends
            .iter()
            .map(|(frontend, _)| Destination::Address(SocketAddr::new(frontend.address, frontend.port)))
            .collect();
        let node_port = port.node_port.map(|node_port| Destination::NodePort(port.family, node_port.port));
        let key = port.key.clone();
        addresses.into_iter().chain(node_port).map(move |destination| (destination, key.clone()))
    };
    resolved.iter().flat_map(entries).collect()
}

// === impl Connections ===

impl Connections {
    fn add(&mut self, other: Connections) {
        self.opened += other.opened;
        self.active += other.active;
        self.inactive += other.inactive;
        self.unanswered += other.unanswered;
    }
}

// === impl Census ===

impl Census {
    /// Takes in where clients connect to. What is counted for a port goes on as long as the port is there.
    pub fn direct(&mut self, news: Directory) {
        for (service, entries) in news {
            let mut wanted: BTreeMap<PortKey, Vec<Destination>> = BTreeMap::new();
            for (destination, port) in entries {
                wanted.entry(port).or_default().push(destination);
            }
            let mut numbers = self.services.remove(&service).unwrap_or_default();
            numbers.retain(|number| {
                let Some(subject) = self.subjects.get_mut(number) else { return false };
                for destination in std::mem::take(&mut subject.destinations) {
                    let key = (subject.port.protocol, destination);
                    // Who has it now may have said so before.
                    if self.destinations.get(&key) == Some(number) {
                        self.destinations.remove(&key);
                    }
                }
                let stays = wanted.contains_key(&subject.port);
                if !stays {
                    self.subjects.remove(number);
                }
                stays
            });
            for (port, destinations) in wanted {
                let known = numbers.iter().copied().find(|number| self.subjects[number].port == port);
                let number = known.unwrap_or_else(|| {
                    self.last += 1;
                    numbers.push(self.last);
                    self.last
                });
                for destination in &destinations {
                    self.destinations.insert((port.protocol, *destination), number);
                }
                let subject = self.subjects.entry(number).or_insert_with(|| Subject {
                    port,
                    destinations: Box::default(),
                    account: None,
                });
                subject.destinations = destinations.into();
            }
            if !numbers.is_empty() {
                self.services.insert(service, numbers);
            }
        }
    }

    /// Forgets which entries were there: nobody has looked for long. The next walk is a first one; counts go on.
    pub fn rest(&mut self) {
        self.flows = HashMap::new();
        self.walk = 0;
        self.forget_present();
    }

    fn forget_present(&mut self) {
        (self.totals.active, self.totals.inactive) = (0, 0);
        self.subjects.values_mut().filter_map(|subject| subject.account.as_mut()).for_each(|account| account.begin());
    }

    /// Begins a walk.
    pub fn begin(&mut self) {
        self.walk = self.walk.checked_add(1).unwrap_or(2);
        self.forget_present();
    }

    /// Takes an entry that the walk found. Those of nobody's are passed over.
    pub fn sight(&mut self, sighting: &Sighting) {
        let Sighting { flow, status, .. } = sighting;
        let (to, endpoint) = (flow.original.destination, flow.reply.source);
        if to == endpoint {
            return;
        }
        let by_address = self.destinations.get(&(flow.protocol, Destination::Address(to)));
        let by_port = || self.destinations.get(&(flow.protocol, Destination::NodePort(Family::of(to.ip()), to.port())));
        let Some(subject) = by_address.or_else(by_port).and_then(|number| self.subjects.get_mut(number)) else {
            return;
        };
        let (age, first) = (Age::of(sighting), self.walk == 1);
        let active = age.active;
        let waiting = flow.protocol == Protocol::Tcp && status & SEEN_REPLY == 0;
        let now = Seen { walk: self.walk, age, waiting, unanswered: false };
        let key = self.hasher.hash_one(flow.identity());
        let mut found =
            Connections { active: u64::from(active), inactive: u64::from(!active), ..Connections::default() };
        match self.flows.entry(key) {
            Entry::Vacant(entry) => {
                found.opened = u64::from(!first);
                entry.insert(now);
            }
            Entry::Occupied(mut entry) => {
                let before = *entry.get();
                if before.walk == self.walk {
                    // A walk may meet an entry twice.
                    return;
                }
                let another = now.age.is_later_than(&before.age);
                found.opened = u64::from(another);
                let unanswered = waiting && before.waiting && !another;
                found.unanswered = u64::from(unanswered && !before.unanswered);
                entry.insert(Seen { unanswered, ..now });
            }
        }
        self.totals.add(found);
        let account = subject.account.get_or_insert_default();
        account.total.add(found);
        account.endpoints.entry(endpoint).or_default().add(found);
    }

    /// Ends a walk. One that may have missed entries forgets none.
    pub fn end(&mut self, complete: bool) {
        let walk = self.walk;
        if complete {
            self.flows.retain(|_, seen| seen.walk == walk);
        }
    }

    /// All connections, those of Services that are gone as well.
    pub fn totals(&self) -> Connections {
        self.totals
    }

    /// How many entries of Services the last walk found.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether it found none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// The Service ports that have or had connections, in no particular order.
    pub fn accounts(&self) -> impl Iterator<Item = (&PortKey, &Account)> {
        self.subjects.values().filter_map(|subject| Some((&subject.port, subject.account.as_deref()?)))
    }
}

// === impl Age ===

impl Age {
    pub(super) fn of(sighting: &Sighting) -> Self {
        let Sighting { flow, left, .. } = sighting;
        Self { left: *left, state: flow.state.unwrap_or_default(), active: flow.is_active() }
    }

    /// Whether this is not the connection that it was before, though it goes by the same number: the kernel uses memory again, and the number
    /// comes from there. What was closed does not open, or close, again, and its time only runs out.
    pub(super) fn is_later_than(&self, before: &Self) -> bool {
        let (now, then) = (self, before);
        let restarted = now.state >= TIME_WAIT && now.state == then.state && now.left > then.left;
        !then.active && (now.active || now.state < then.state || restarted)
    }
}

// === impl Account ===

impl Account {
    /// What is there is counted anew.
    fn begin(&mut self) {
        for endpoint in self.endpoints.values_mut() {
            endpoint.idle = if endpoint.active + endpoint.inactive == 0 { endpoint.idle + 1 } else { 0 };
        }
        self.endpoints.retain(|_, endpoint| endpoint.idle <= REMEMBERED);
        for connections in self.endpoints.values_mut().chain([&mut self.total]) {
            (connections.active, connections.inactive) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests;

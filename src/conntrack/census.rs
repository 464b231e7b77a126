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
//! Invariants: no I/O, and no clock; the first walk counts nobody as opened, because nobody knows when. Memory: some 40 bytes per entry, and
//! some 150 per Service port, which is why who tells of new places also says which are left: they need not be kept by Service, too.
//! Property tests below; on the real kernel `tests/conntrack/census.rs`.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use slab::Slab;

use super::flow::{Destination, Flow};
use crate::model::map::HashMap;
use crate::model::{Family, PortKey, Protocol, ServiceKey};
use crate::policy::ResolvedPort;

/// Where the clients of some Services connect to now.
pub type Directory = Vec<Entrances>;

/// Where the clients of a Service connect to now; nowhere: it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entrances {
    /// Which Service.
    pub service: ServiceKey,
    /// All places, and which of its ports each leads to.
    pub entries: Vec<(Destination, PortKey)>,
    /// Where they connected to by what was said last, and do not any more.
    pub left: Vec<(Protocol, Destination)>,
}

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
    places: HashMap<Place, u32>,
    /// Boxed: half a slab's places may be empty.
    subjects: Slab<Box<Subject>>,
    flows: HashMap<u64, Seen>,
    hasher: RandomState,
    /// The number of the walk; 0 before the first.
    walk: u32,
    totals: Connections,
}

/// A destination and its protocol, in little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    V4(Ipv4Addr, u16, Protocol),
    V6(Ipv6Addr, u16, Protocol),
    NodePort(Family, u16, Protocol),
}

/// Subjects to whom no place leads.
type Astray = HashMap<PortKey, u32>;

#[derive(Debug)]
struct Subject {
    port: PortKey,
    /// How many places lead here.
    places: u32,
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
        let all = Destination::all(&port.frontends, port.family, port.node_port);
        all.map(|destination| (destination, port.key.clone())).collect::<Vec<_>>()
    };
    resolved.iter().flat_map(entries).collect()
}

// === impl Place ===

impl Place {
    fn new(protocol: Protocol, destination: Destination) -> Self {
        match destination {
            Destination::Address(SocketAddr::V4(at)) => Self::V4(*at.ip(), at.port(), protocol),
            Destination::Address(SocketAddr::V6(at)) => Self::V6(*at.ip(), at.port(), protocol),
            Destination::NodePort(family, port) => Self::NodePort(family, port, protocol),
        }
    }
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
        // Those to whom no place leads at the moment.
        let mut astray = Astray::default();
        for Entrances { service, entries, left } in news {
            for (destination, port) in &entries {
                let number = self.subject(port, &entries, &left, &astray);
                self.subjects[number as usize].places += 1;
                let before = self.places.insert(Place::new(port.protocol, *destination), number);
                self.release(before, &mut astray);
            }
            for (protocol, destination) in left {
                let place = Place::new(protocol, destination);
                // Who has it now may have said so before.
                let owner = self.places.get(&place).copied();
                if owner.is_some_and(|number| self.subjects[number as usize].port.service == service) {
                    let owner = self.places.remove(&place);
                    self.release(owner, &mut astray);
                }
            }
        }
        for number in astray.into_values() {
            if self.subjects.get(number as usize).is_some_and(|subject| subject.places == 0) {
                self.subjects.remove(number as usize);
            }
        }
    }

    /// The number of a port: a place of its Service that is known leads to it, or it has just lost them all, or it is a new one.
    fn subject(
        &mut self,
        port: &PortKey,
        entries: &[(Destination, PortKey)],
        left: &[(Protocol, Destination)],
        astray: &Astray,
    ) -> u32 {
        let entries = entries.iter().filter(|(_, of)| of == port).map(|(destination, _)| *destination);
        let left = left.iter().filter(|(protocol, _)| *protocol == port.protocol).map(|(_, destination)| *destination);
        let places = entries.chain(left).map(|destination| Place::new(port.protocol, destination));
        let led_to = places.filter_map(|place| self.places.get(&place));
        let mut candidates = led_to.chain(astray.get(port)).copied();
        candidates.find(|number| self.subjects[*number as usize].port == *port).unwrap_or_else(|| {
            let number = self.subjects.insert(Box::new(Subject { port: port.clone(), places: 0, account: None }));
            u32::try_from(number).expect("fewer than 4 billion Service ports")
        })
    }

    /// A place leads to this subject no more.
    fn release(&mut self, subject: Option<u32>, astray: &mut Astray) {
        let Some(number) = subject else { return };
        let subject = &mut self.subjects[number as usize];
        subject.places -= 1;
        if subject.places == 0 {
            astray.insert(subject.port.clone(), number);
        }
    }

    /// Forgets which entries were there: nobody has looked for long. The next walk is a first one; counts go on.
    pub fn rest(&mut self) {
        self.flows = HashMap::default();
        self.walk = 0;
        self.forget_present();
    }

    fn forget_present(&mut self) {
        (self.totals.active, self.totals.inactive) = (0, 0);
        self.subjects
            .iter_mut()
            .filter_map(|(_, subject)| subject.account.as_mut())
            .for_each(|account| account.begin());
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
        let find = |destination| self.places.get(&Place::new(flow.protocol, destination));
        let by_port = || find(Destination::NodePort(Family::of(to.ip()), to.port()));
        let number = find(Destination::Address(to)).or_else(by_port);
        let Some(subject) = number.and_then(|number| self.subjects.get_mut(*number as usize)) else { return };
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
        self.subjects.iter().filter_map(|(_, subject)| Some((&subject.port, subject.account.as_deref()?)))
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

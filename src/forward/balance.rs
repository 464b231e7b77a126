//! Which endpoint gets a new connection, decided in user space.
//!
//! The kernel can deal slots, draw numbers and hash addresses; it cannot compare. A [`Balancer`] can: it knows how many
//! connections of its own are open at each endpoint, how long they took to open, and which endpoints fail. It belongs to one pool
//! (one Service port, one family, one traffic policy) and decides one connection at a time.
//!
//! Vocabulary:
//! - A *method* is the way to choose, by the names of IPVS where IPVS has it. Schedulers deal slots for the kernel; methods choose.
//! - An endpoint's *active* connections are those [`opened`](Balancer::opened) and not yet [`closed`](Balancer::closed) here. IPVS
//!   also counts connections that are closing, as 1/256; this process has none, so equals take turns instead (by weight, where the
//!   method knows weights).
//! - An endpoint that keeps failing is *set aside* for some time (*probation*): the first failures cost one second, each
//!   failed trial after that twice as long, up to a minute; a success ends it.
//!
//! Invariants:
//! - Only candidates that are not excluded are chosen. `None` means that there is no such candidate, never that one is set aside:
//!   if all are, the least bad is tried.
//! - No clock and no I/O: time is handed in, randomness comes from the seed.
//! - The hashing methods choose by the set of candidates alone, not by their order or history, so nodes agree; and a candidate that
//!   leaves moves its own clients only.
//!
//! Proven by `balance/tests.rs`, against brute force where the method is exact.

mod hash;
mod latency;
mod member;
mod probation;
mod sticky;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::member::{Member, Share};
pub use self::sticky::Sticky;
use crate::schedule::Candidate;

/// The way to choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// `random`: any, with a probability proportional to its weight.
    #[default]
    Random,
    /// `rr`: each in turn, whatever its weight.
    RoundRobin,
    /// `wrr`: in turn, in proportion to weights and evenly spread (smooth weighted round robin: never the heavy one's whole share
    /// in a row).
    WeightedRoundRobin,
    /// `lc`: who has the fewest active connections.
    LeastConnection,
    /// `wlc`: who has the fewest active connections per unit of weight.
    WeightedLeastConnection,
    /// `sed`: who will have the fewest per unit of weight with this one included.
    ShortestExpectedDelay,
    /// `nq`: who has none; if all have some, as `sed`.
    NeverQueue,
    /// `sh`: by the client's address.
    SourceHash(HashPort),
    /// `dh`: by the address that the client talks to.
    DestinationHash,
    /// `mh`: by the client's address. In user space every hash is consistent, so this is `sh`.
    Maglev(HashPort),
    /// `p2c`: the better of two drawn at random, by active connections per unit of weight.
    TwoChoices,
    /// `ewma`: the better of two drawn at random, by the peak-sensitive moving average of connect latency times connections.
    PeakEwma,
}

/// Whether a client's port is hashed with its address: spreads one client's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashPort {
    /// The address alone: all connections of a client go together.
    #[default]
    Without,
    /// IPVS' `sh-port` and `mh-port`.
    With,
}

/// A connection that wants an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arrival {
    /// Who opened it.
    pub client: SocketAddr,
    /// What it was opened to: the frontend's address, before any translation. Only `dh` looks at it.
    pub frontend: SocketAddr,
}

/// Chooses endpoints for one pool; see the module.
#[derive(Debug)]
pub struct Balancer {
    method: Method,
    members: Vec<Member>,
    index: HashMap<SocketAddr, usize>,
    /// Endpoints that are no candidates any more but still have connections: if they come back, they count.
    departed: HashMap<SocketAddr, Member>,
    heaviest: u32,
    /// How many members are not in good standing. While there are none, a choice need not look at every member.
    troubled: usize,
    seed: u64,
    rng: fastrand::Rng,
    /// Every member's place, and room for the places of those who come into question.
    everyone: Vec<usize>,
    eligible: Vec<usize>,
}

// === impl Method ===

impl Method {
    /// The name, as annotations and flags spell it.
    pub fn name(self) -> &'static str {
        match self {
            Method::Random => "random",
            Method::RoundRobin => "rr",
            Method::WeightedRoundRobin => "wrr",
            Method::LeastConnection => "lc",
            Method::WeightedLeastConnection => "wlc",
            Method::ShortestExpectedDelay => "sed",
            Method::NeverQueue => "nq",
            Method::SourceHash(_) => "sh",
            Method::DestinationHash => "dh",
            Method::Maglev(_) => "mh",
            Method::TwoChoices => "p2c",
            Method::PeakEwma => "ewma",
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Balancer ===

impl Balancer {
    /// Of these candidates, of which each endpoint appears once. `seed` should differ between nodes and pools: it decides where
    /// the first round begins and what is drawn, never what a hash leads to.
    pub fn new(method: Method, candidates: &[Candidate], seed: u64) -> Self {
        let mut balancer = Self {
            method,
            members: Vec::new(),
            index: HashMap::new(),
            departed: HashMap::new(),
            heaviest: 1,
            troubled: 0,
            seed,
            rng: fastrand::Rng::with_seed(seed),
            everyone: Vec::new(),
            eligible: Vec::new(),
        };
        balancer.update(candidates);
        balancer
    }

    /// How it chooses.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Chooses another way from now on; counts and history stay.
    pub fn set_method(&mut self, method: Method) {
        self.method = method;
    }

    /// Takes a new set of candidates. Who stays keeps connections, latency, turn and probation; who leaves is forgotten when its
    /// last connection closes.
    pub fn update(&mut self, candidates: &[Candidate]) {
        let mut known: HashMap<SocketAddr, Member> =
            self.members.drain(..).map(|member| (member.endpoint, member)).collect();
        self.index.clear();
        for candidate in candidates {
            if self.index.contains_key(&candidate.endpoint) {
                continue;
            }
            self.index.insert(candidate.endpoint, self.members.len());
            let member = known.remove(&candidate.endpoint).or_else(|| self.departed.remove(&candidate.endpoint));
            let mut member = member.unwrap_or_else(|| Member::new(candidate.endpoint));
            member.weight = candidate.weight.max(1);
            self.members.push(member);
        }
        self.departed.extend(known.into_iter().filter(|(_, member)| member.active > 0));
        turn::level(&mut self.members);
        self.heaviest = self.members.iter().map(|member| member.weight).max().unwrap_or(1);
        self.troubled = self.members.iter().filter(|member| !member.standing.is_good()).count();
        // Rounds go in this order; it begins at a place that depends on the seed.
        let first = usize::try_from(self.seed % self.members.len().max(1) as u64).expect("below a length");
        self.everyone = (first..self.members.len()).chain(0..first).collect();
    }

    /// The endpoint for a new connection; `None` if every candidate is excluded, or if there are none. Does not count the
    /// connection: [`opened`](Self::opened) does, and belongs into the same critical section.
    pub fn pick(&mut self, arrival: &Arrival, now: Instant, excluded: &[SocketAddr]) -> Option<SocketAddr> {
        let mut scratch = std::mem::take(&mut self.eligible);
        let chosen = if self.troubled == 0 && excluded.is_empty() {
            let everyone = std::mem::take(&mut self.everyone);
            let chosen = self.choose(&everyone, arrival, now);
            self.everyone = everyone;
            chosen
        } else {
            self.come_into_question(&mut scratch, now, excluded);
            self.choose(&scratch, arrival, now)
        };
        self.eligible = scratch;
        let member = &mut self.members[chosen?];
        member.standing.tried(now);
        Some(member.endpoint)
    }

    /// A connection to this endpoint counts from now on.
    pub fn opened(&mut self, endpoint: SocketAddr) {
        match self.member_mut(endpoint) {
            Some(member) => member.active += 1,
            None => {
                // It ceased to be a candidate while it was dialled.
                self.departed.insert(endpoint, Member { active: 1, ..Member::new(endpoint) });
            }
        }
    }

    /// A connection that counted does so no longer.
    pub fn closed(&mut self, endpoint: SocketAddr) {
        if let Some(member) = self.member_mut(endpoint) {
            member.active = member.active.saturating_sub(1);
            if member.active == 0 {
                self.departed.remove(&endpoint);
            }
        }
    }

    /// An endpoint accepted a connection, after `latency`: it is in good standing.
    pub fn connected(&mut self, endpoint: SocketAddr, latency: Duration, now: Instant) {
        self.report(endpoint, |member| {
            member.latency.observe(latency, now);
            member.standing.succeeded();
        });
    }

    /// An endpoint refused a connection or did not answer in time. For `ewma` it was as slow as [`Self::FAILURE_LATENCY`].
    pub fn failed(&mut self, endpoint: SocketAddr, now: Instant) {
        self.report(endpoint, |member| {
            member.latency.observe(Self::FAILURE_LATENCY, now);
            member.standing.failed(now);
        });
    }

    /// What a failure counts as in the average of latencies: more than any connection within a cluster should take.
    pub const FAILURE_LATENCY: Duration = Duration::from_secs(1);

    /// Active connections of an endpoint, candidate or not.
    pub fn active(&self, endpoint: SocketAddr) -> u32 {
        let member = self.index.get(&endpoint).map(|place| &self.members[*place]);
        member.or_else(|| self.departed.get(&endpoint)).map_or(0, |member| member.active)
    }

    /// Whether an endpoint may be chosen at all.
    pub fn is_candidate(&self, endpoint: SocketAddr) -> bool {
        self.index.contains_key(&endpoint)
    }

    /// Whether an endpoint is set aside at this moment.
    pub fn is_set_aside(&self, endpoint: SocketAddr, now: Instant) -> bool {
        self.index.get(&endpoint).is_some_and(|place| self.members[*place].standing.set_aside(now).is_some())
    }

    fn member_mut(&mut self, endpoint: SocketAddr) -> Option<&mut Member> {
        match self.index.get(&endpoint) {
            Some(place) => Some(&mut self.members[*place]),
            None => self.departed.get_mut(&endpoint),
        }
    }

    /// Changes what is known about an endpoint, if anything is.
    fn report(&mut self, endpoint: SocketAddr, change: impl FnOnce(&mut Member)) {
        let Some(place) = self.index.get(&endpoint) else {
            self.departed.get_mut(&endpoint).map(change);
            return;
        };
        let member = &mut self.members[*place];
        let before = member.standing.is_good();
        change(member);
        match (before, member.standing.is_good()) {
            (true, false) => self.troubled += 1,
            (false, true) => self.troubled -= 1,
            _ => {}
        }
    }

    /// The places of all who are not excluded and not set aside; if that is nobody, of those who are set aside for the shortest
    /// spans.
    fn come_into_question(&self, places: &mut Vec<usize>, now: Instant, excluded: &[SocketAddr]) {
        let allowed = |place: &usize| !excluded.contains(&self.members[*place].endpoint);
        let aside = |place: &usize| self.members[*place].standing.set_aside(now);
        places.clear();
        places.extend(self.everyone.iter().filter(|place| allowed(place) && aside(place).is_none()));
        if places.is_empty() {
            let least = self.everyone.iter().filter(|place| allowed(place)).filter_map(aside).min();
            places.extend(self.everyone.iter().filter(|place| allowed(place) && aside(place) == least));
        }
    }

    /// The method, among these places.
    fn choose(&mut self, eligible: &[usize], arrival: &Arrival, now: Instant) -> Option<usize> {
        if eligible.is_empty() {
            return None;
        }
        let members = &mut self.members;
        let client = |port| match port {
            HashPort::Without => hash::of_address(arrival.client.ip()),
            HashPort::With => hash::of_address_and_port(arrival.client),
        };
        Some(match self.method {
            Method::Random => member::draw(members, eligible, self.heaviest, &mut self.rng),
            Method::RoundRobin => turn::next(members, eligible, |_| 1),
            Method::WeightedRoundRobin => turn::next(members, eligible, |member| member.weight),
            Method::LeastConnection => turn::next_of_least(members, eligible, |_| 1, |member| Share(member.active, 1)),
            Method::WeightedLeastConnection => {
                turn::next_of_least(members, eligible, |member| member.weight, |m| Share(m.active, m.weight))
            }
            Method::ShortestExpectedDelay => turn::next_of_least(members, eligible, |member| member.weight, expected),
            Method::NeverQueue => turn::next_of_least(
                members,
                eligible,
                |member| member.weight,
                |member| {
                    // Without a queue all are alike; with one, this order is that of `sed` and behind the former.
                    if member.active == 0 { Share(0, 1) } else { expected(member) }
                },
            ),
            Method::SourceHash(port) | Method::Maglev(port) => hash::choose(members, eligible, client(port)),
            Method::DestinationHash => hash::choose(members, eligible, hash::of_address(arrival.frontend.ip())),
            Method::TwoChoices => {
                let [a, b] = member::draw_two(members, eligible, self.heaviest, &mut self.rng);
                if Share(members[b].active, members[b].weight) < Share(members[a].active, members[a].weight) {
                    b
                } else {
                    a
                }
            }
            Method::PeakEwma => {
                let [a, b] = member::draw_two(members, eligible, self.heaviest, &mut self.rng);
                latency::cheaper(members, eligible, [a, b], now)
            }
        })
    }
}

/// What `sed` compares: connections per unit of weight with the new one.
fn expected(member: &Member) -> Share {
    Share(member.active.saturating_add(1), member.weight)
}

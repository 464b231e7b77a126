//! `lc`, `wlc`, `sed`, `nq`: the endpoint that has least to do.
//!
//! The kernel cannot choose by counts, but it can walk a *ring* of slots, and what stands in the slots it will come to next can be
//! dealt again at any time. Here is what stands there:
//!
//! - `deal` makes the ring without counts: weighted round robin, interleaved. That is what a ring says until it is dealt again,
//!   and where nobody deals any more;
//! - [`Redeal`] takes the counts of each endpoint's connections and the position of the walk, and asks the scheduler's own
//!   [`Rule`] for the next picks, each pick counting as an active connection for those after it. They go into the slots that come
//!   next, up to the *horizon*; all other slots are round robin. So a burst that is longer than the horizon, or a
//!   process that has died, is served in turn and never by counts that are long out of date.
//!
//! The rules are IPVS's (net/netfilter/ipvs/ip_vs_lc.c, ip_vs_wlc.c, ip_vs_sed.c, ip_vs_nq.c), with one difference: among endpoints
//! that are equally good the choice goes round, beginning behind the one picked last. IPVS takes the first of its list, so that
//! `sed` and `nq` send connections that come one at a time to one and the same server.
//!
//! The size of a ring stays while the number of endpoints stays of the same order, because a ring of another size is another
//! chain, whose walk begins again.
//!
//! Invariants: no I/O and no clock; a ring holds candidates only, and all of them as far as their weights give them a slot; the
//! picks are those of a simulation of the rule (`rule.rs`, by properties).

mod rule;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

pub use rule::Rule;

use super::{Candidate, Deal, Hand, Pick, Scheduler};

/// Slots of the smallest ring.
pub const MIN_RING: usize = 64;

/// Slots of the largest ring, unless there are more endpoints than that.
pub const MAX_RING: usize = 1024;

/// Slots per endpoint that a new ring has at least, within those limits. A ring in use is kept from half to four times that.
const SLOTS_PER_ENDPOINT: usize = 4;

/// Picks dealt at least: enough for what arrives until the next deal where little arrives.
const MIN_HORIZON: usize = 8;

/// The last picks, this part of the ring, are left in their slots.
const RECENT: usize = 4;

/// Picks dealt for each that is expected until the next deal.
const HEADROOM: usize = 3;

/// An endpoint's connections, as IPVS counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Load {
    /// Connections that are established, or on their way there.
    pub active: u32,
    /// Connections that are closing or closed and still remembered.
    pub inactive: u32,
}

/// The connections of some endpoints; those not in here have none.
pub type Loads = HashMap<SocketAddr, Load>;

/// What is known when a ring is dealt again.
#[derive(Clone, Copy, Debug)]
pub struct Redeal<'a> {
    /// Who is best.
    pub rule: Rule,
    /// The qualifying endpoints: sorted, without duplicates, at least one.
    pub candidates: &'a [Candidate],
    /// The ring as it is in the kernel now.
    pub ring: &'a [SocketAddr],
    /// Picks made from this ring so far; the next one takes slot `picks % ring.len()`.
    pub picks: u64,
    /// Connections of the candidates.
    pub loads: &'a Loads,
    /// Picks to be expected until the next deal.
    pub expected: usize,
    /// As [`Hand::seed`].
    pub seed: u64,
}

/// The ring without counts. What a ring that fits already says is kept as far as possible.
pub(super) fn deal(scheduler: Scheduler, hand: Hand<'_>) -> Deal {
    let weighted = scheduler.live().is_some_and(Rule::heeds_weights);
    let size = ring_size(hand.previous.len(), hand.candidates.len());
    let turn = in_turn(hand.candidates, size, weighted, hand.seed);
    if hand.previous.len() != size {
        return Deal { pick: Pick::Ring, slots: turn };
    }
    let stays =
        |endpoint: &SocketAddr| hand.candidates.binary_search_by_key(endpoint, |candidate| candidate.endpoint).is_ok();
    // Who takes the slots that are due to them: those who have none. That may leave another without any, who then does the same.
    let mut takes = HashSet::new();
    let mut slots = hand.previous.to_vec();
    loop {
        let present: HashSet<_> = slots.iter().copied().collect();
        let before = takes.len();
        takes.extend(turn.iter().copied().filter(|due| !present.contains(due)));
        if takes.len() == before && slots.iter().all(stays) {
            return Deal { pick: Pick::Ring, slots };
        }
        let keep =
            |(was, due): (&SocketAddr, &SocketAddr)| if stays(was) && !takes.contains(due) { *was } else { *due };
        slots = hand.previous.iter().zip(&turn).map(keep).collect();
    }
}

/// Slots of a new ring for so many endpoints.
pub(super) fn new_ring_size(endpoints: usize) -> usize {
    ring_size(0, endpoints)
}

/// How many slots: a power of two, so that the walk goes on evenly when the kernel's 32-bit counter wraps around.
fn ring_size(previous: usize, endpoints: usize) -> usize {
    let limit = |size: usize| size.clamp(MIN_RING, MAX_RING.max(endpoints.next_power_of_two()));
    let wanted = limit((SLOTS_PER_ENDPOINT * endpoints).next_power_of_two());
    let fits = previous.is_power_of_two() && previous == limit(previous) && previous >= endpoints;
    // A ring of 64 may be kept from 1 to 32 endpoints, one of 128 from 8 to 64.
    if fits && (wanted / 2..=wanted * 4).contains(&previous) { previous } else { wanted }
}

/// Smooth weighted round robin: each endpoint in proportion to its weight, its turns spread evenly. Begins at an endpoint that
/// depends on the seed.
fn in_turn(candidates: &[Candidate], slots: usize, weighted: bool, seed: u64) -> Vec<SocketAddr> {
    let weight = |candidate: &Candidate| if weighted { i64::from(candidate.weight.max(1)) } else { 1 };
    let first = usize::try_from(seed % candidates.len().max(1) as u64).expect("below a length");
    if candidates.iter().all(|candidate| weight(candidate) == 1) {
        let turns = candidates.iter().cycle().skip(first);
        return turns.take(slots).map(|candidate| candidate.endpoint).collect();
    }
    let total: i64 = candidates.iter().map(weight).sum();
    let mut credit = vec![0i64; candidates.len()];
    let mut next = || {
        credit.iter_mut().zip(candidates).for_each(|(credit, candidate)| *credit += weight(candidate));
        // The first of the best, counted from `first`.
        let order = (first..candidates.len()).chain(0..first);
        let best = order.reduce(|best, other| if credit[other] > credit[best] { other } else { best });
        let best = best.expect("at least one candidate");
        credit[best] -= total;
        candidates[best].endpoint
    };
    (0..slots).map(|_| next()).collect()
}

// === impl Redeal ===

impl Redeal<'_> {
    /// The ring as it should be now.
    pub fn deal(&self) -> Vec<SocketAddr> {
        let size = self.ring.len();
        let mut ring = in_turn(self.candidates, size, self.rule.heeds_weights(), self.seed);
        // As it was dealt without counts, which say nothing yet: there is nothing to be better by.
        if ring == self.ring && self.loads.values().all(|load| *load == Load::default()) {
            return ring;
        }
        let next = usize::try_from(self.picks % size.max(1) as u64).expect("below a length");
        // What was picked lately stays readable: counts may lag behind.
        for slot in (0..size / RECENT).map(|back| (next + size - 1 - back) % size) {
            ring[slot] = self.ring[slot];
        }
        let last = size.checked_sub(1).map(|last| self.ring[(next + last) % size]);
        for (offset, endpoint) in self.picks(last, self.horizon()).into_iter().enumerate() {
            ring[(next + offset) % size] = endpoint;
        }
        ring
    }

    /// How many picks ahead are worth dealing: some more than expected, and half of the ring at most, so that the other half is
    /// round robin.
    fn horizon(&self) -> usize {
        (self.expected.saturating_mul(HEADROOM)).max(MIN_HORIZON).min(self.ring.len() / 2)
    }

    /// The scheduler's next picks.
    fn picks(&self, last: Option<SocketAddr>, count: usize) -> Vec<SocketAddr> {
        let load = |candidate: &Candidate| self.loads.get(&candidate.endpoint).copied().unwrap_or_default();
        let mut loads: Vec<Load> = self.candidates.iter().map(load).collect();
        let weights: Vec<u32> = self.candidates.iter().map(|candidate| candidate.weight).collect();
        // The turn goes on behind whoever was picked last, even if that one has left.
        let behind = |last: SocketAddr| self.candidates.partition_point(|candidate| candidate.endpoint <= last);
        let mut turn = last.map_or(0, behind);
        let mut picks = Vec::with_capacity(count);
        for _ in 0..count {
            let Some(pick) = self.rule.pick(&loads, &weights, turn) else { break };
            loads[pick].active += 1;
            turn = pick + 1;
            picks.push(self.candidates[pick].endpoint);
        }
        picks
    }
}

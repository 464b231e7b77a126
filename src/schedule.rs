//! In what order endpoints are taken.
//!
//! A scheduler turns the endpoints of a Service port into *slots*: a numbered list in which every slot names one endpoint; an
//! endpoint may stand in several. The kernel picks the number of a slot (how is the scheduler's [`Pick`]); which endpoint stands in
//! a slot is decided here. Knows neither Kubernetes nor nftables.
//!
//! There are three kinds:
//! - *dealt in turn* (`random`, `rr`, `wrr`): slots are dealt so that a change moves as little as possible. An endpoint keeps its
//!   slots, one that leaves is replaced by the endpoint of the last slot, one that joins takes a new last slot;
//! - *tables* (`sh`, `dh`, `mh`): the slots are the buckets of a hash. Who stands where depends on the set of endpoints and their
//!   weights alone, not on history and not on the node, so all nodes send a client to the same endpoint;
//! - *fed by live counts* (`lc`, `wlc`, `sed`, `nq`): a ring dealt as `wrr` would, and dealt again by whoever counts connections
//!   (`live`).
//!
//! Where things are: `name` how schedulers are written; `share` how weights become numbers of slots; `slots` dealing in turn with few
//! changes; `table` the sizes of tables and their hash; then one file per scheduler. Each is proven by its own tests.

mod exact;
pub mod live;
mod maglev;
mod name;
mod random;
mod rendezvous;
mod rr;
mod share;
mod slots;
mod table;
mod wrr;

use std::collections::HashSet;
use std::net::SocketAddr;

pub use exact::{Choice, Exact};
pub use name::SchedulerError;
pub use share::{Shares, share};
pub use slots::Changed;
pub use table::{Buckets, TableSizes};

/// The schedulers, by the names IPVS gave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// Any endpoint, with a probability by its weight. What kube-proxy does in its iptables and nftables modes.
    #[default]
    Random,
    /// Each endpoint in turn, counted per Service port on this node. Ignores weights.
    RoundRobin,
    /// Each endpoint as often per cycle as its weight says, interleaved.
    WeightedRoundRobin,
    /// The endpoint with the fewest connections. Ignores weights.
    LeastConnection,
    /// The endpoint with the fewest connections per weight.
    WeightedLeastConnection,
    /// The endpoint where one connection more would make the fewest per weight.
    ShortestExpectedDelay,
    /// An endpoint without connections if there is one, else as [`Scheduler::ShortestExpectedDelay`].
    NeverQueue,
    /// Always the same endpoint for a client.
    SourceHash {
        /// For a client and its port, rather than for a client.
        port: bool,
    },
    /// Always the same endpoint for an address that is connected to.
    DestinationHash,
    /// Always the same endpoint for a client, from a table that is even and that hardly changes when endpoints do.
    Maglev {
        /// For a client and its port, rather than for a client.
        port: bool,
    },
}

/// How the kernel picks a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pick {
    /// A random number below the number of slots; nothing to remember, so one rule serves all Services.
    Random,
    /// A counter that belongs to one Service port, modulo the number of slots.
    Counter,
    /// As [`Pick::Counter`], and the rule counts its packets: which slot is next can be read back, so that slots can be dealt again
    /// just before they are picked.
    Ring,
    /// A hash of the packet, modulo the number of slots, which is one of [`Buckets`]; nothing to remember.
    Hash(HashKey),
}

/// What is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashKey {
    /// The client's address.
    Source,
    /// The client's address and port.
    SourcePort,
    /// The address connected to.
    Destination,
}

/// What a scheduler dealt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deal {
    /// How a slot is picked.
    pub pick: Pick,
    /// The endpoint of each slot.
    pub slots: Vec<SocketAddr>,
}

/// An endpoint that may be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// Who.
    pub endpoint: SocketAddr,
    /// Its share relative to the others of its pool, 1 or more; who shall get no new connections is no candidate.
    pub weight: u32,
}

/// What a scheduler deals from.
#[derive(Clone, Copy, Debug)]
pub struct Hand<'a> {
    /// The qualifying endpoints: sorted, without duplicates, at least one.
    pub candidates: &'a [Candidate],
    /// The slots as they are in the kernel now; empty the first time.
    pub previous: &'a [SocketAddr],
    /// A number that differs between nodes and Service ports: where the first round begins, so that not every node in the cluster
    /// sends its first connection to the same endpoint.
    pub seed: u64,
    /// How often the number of slots has changed. A counter begins at slot 0 then, and somebody else shall stand there each time.
    pub changes: u64,
    /// How many buckets tables have.
    pub tables: TableSizes,
}

/// Endpoints that go and endpoints that come, among equals; both lists are sorted.
#[derive(Clone, Copy, Debug)]
pub struct Swap<'a, T = SocketAddr> {
    /// Each of them has a slot.
    pub gone: &'a [T],
    /// None of them has one.
    pub came: &'a [T],
    /// As in [`Hand`].
    pub seed: u64,
    /// As in [`Hand`].
    pub changes: u64,
}

/// Shares that are further off are told about.
const NOTED_ERROR: f64 = 0.01;

// === impl Candidate ===

impl Candidate {
    /// One among equals.
    pub fn equal(endpoint: SocketAddr) -> Self {
        Self { endpoint, weight: 1 }
    }
}

// === impl Hand ===

impl Hand<'_> {
    /// The qualifying endpoints, whatever their weights.
    fn endpoints(&self) -> Vec<SocketAddr> {
        self.candidates.iter().map(|candidate| candidate.endpoint).collect()
    }

    /// Whether nobody weighs more than another.
    fn is_equal(&self) -> bool {
        self.candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight)
    }

    fn weights(&self) -> Vec<u32> {
        self.candidates.iter().map(|candidate| candidate.weight).collect()
    }
}

// === impl Scheduler ===

impl Scheduler {
    /// Deals slots to endpoints.
    pub fn deal(self, hand: Hand<'_>) -> Deal {
        if let [only] = hand.candidates {
            // Whatever the scheduler, there is no choice, and nothing to remember.
            return Deal::only(only.endpoint);
        }
        match self {
            Scheduler::Random => random::deal(hand),
            Scheduler::RoundRobin => rr::deal(hand),
            Scheduler::WeightedRoundRobin => wrr::deal(hand),
            Scheduler::LeastConnection
            | Scheduler::WeightedLeastConnection
            | Scheduler::ShortestExpectedDelay
            | Scheduler::NeverQueue => live::deal(self, hand),
            Scheduler::SourceHash { port } => rendezvous::deal(hand, HashKey::of_source(port)),
            Scheduler::DestinationHash => rendezvous::deal(hand, HashKey::Destination),
            Scheduler::Maglev { port } => maglev::deal(hand, HashKey::of_source(port)),
        }
    }

    /// How [`Scheduler::deal`] has slots picked that it deals to so many equals the first time, and how many they are.
    pub fn first_deal_to_equals(self, count: usize, tables: TableSizes) -> (Pick, usize) {
        let pick = match self {
            _ if count < 2 => Pick::Random,
            Scheduler::Random => Pick::Random,
            Scheduler::RoundRobin | Scheduler::WeightedRoundRobin => Pick::Counter,
            Scheduler::SourceHash { port } | Scheduler::Maglev { port } => Pick::Hash(HashKey::of_source(port)),
            Scheduler::DestinationHash => Pick::Hash(HashKey::Destination),
            Scheduler::LeastConnection
            | Scheduler::WeightedLeastConnection
            | Scheduler::ShortestExpectedDelay
            | Scheduler::NeverQueue => Pick::Ring,
        };
        let slots = match pick {
            Pick::Random | Pick::Counter => count,
            Pick::Ring => live::new_ring_size(count),
            Pick::Hash(_) => self.buckets(tables).map_or(count, |buckets| buckets.count() as usize),
        };
        (pick, slots)
    }

    /// Brings slots that [`Scheduler::deal`] dealt to two or more equals to where it would bring them, without a look at those who stay.
    /// `None`, with the slots as they were: everybody has to be dealt to. Endpoints may be kept in any form that has the order of their addresses.
    pub fn exchange<T: Copy + Ord>(self, slots: &mut Vec<T>, swap: Swap<'_, T>) -> Option<Changed<T>> {
        let Swap { gone, came, seed, changes } = swap;
        if slots.len() < 2 || slots.len() + came.len() < gone.len() + 2 {
            return None;
        }
        match self {
            Scheduler::Random => slots::exchange(slots, gone, came),
            Scheduler::RoundRobin => rr::exchange(slots, gone, came, |slots| slots::turn(slots, seed, changes + 1)),
            _ => None,
        }
    }

    /// What a user should know about a deal: that somebody goes without a slot, or that weights had to be rounded.
    pub fn remark(self, hand: Hand<'_>, deal: &Deal) -> Option<String> {
        let all = hand.candidates.len();
        if let Pick::Hash(_) = deal.pick {
            let served: HashSet<_> = deal.slots.iter().collect();
            let idle = all - served.len();
            let flag = self.table_flag().unwrap_or_default();
            return (idle > 0).then(|| {
                let buckets = deal.slots.len();
                // Which of them it is: with weights, whoever has least, be it alone in its group.
                let weights = if hand.is_equal() { "" } else { " with these weights or shares (pointsman.dev/weights, pointsman.dev/split)" };
                format!("{idle} of {all} endpoints get no connections: a table of {buckets} is too small for them{weights}, see {flag}")
            });
        }
        // Rings follow the weights themselves, pick by pick.
        if !self.heeds_weights() || hand.is_equal() || deal.pick == Pick::Ring {
            return None;
        }
        let error = share(&hand.weights()).error;
        (error > NOTED_ERROR).then(|| {
            let (slots, points) = (deal.slots.len(), error * 100.0);
            format!("weights are rounded to {slots} slots: shares are up to {points:.1} percentage points off")
        })
    }

    /// The rule by which it goes by counts of connections, if it does: see [`live`].
    pub fn live(self) -> Option<live::Rule> {
        match self {
            Scheduler::LeastConnection => Some(live::Rule::LeastConnection),
            Scheduler::WeightedLeastConnection => Some(live::Rule::WeightedLeastConnection),
            Scheduler::ShortestExpectedDelay => Some(live::Rule::ShortestExpectedDelay),
            Scheduler::NeverQueue => Some(live::Rule::NeverQueue),
            Scheduler::Random
            | Scheduler::RoundRobin
            | Scheduler::WeightedRoundRobin
            | Scheduler::SourceHash { .. }
            | Scheduler::DestinationHash
            | Scheduler::Maglev { .. } => None,
        }
    }

    /// Whether an endpoint's weight makes a difference.
    pub fn heeds_weights(self) -> bool {
        !matches!(self, Scheduler::RoundRobin | Scheduler::LeastConnection)
    }

    /// Whether weights become numbers of slots ([`share()`]).
    pub fn deals_weights(self) -> bool {
        matches!(self, Scheduler::Random | Scheduler::WeightedRoundRobin)
    }

    /// How large the tables of this scheduler are, if it has any.
    pub fn buckets(self, tables: TableSizes) -> Option<Buckets> {
        match self {
            Scheduler::SourceHash { .. } | Scheduler::DestinationHash => Some(tables.hash),
            Scheduler::Maglev { .. } => Some(tables.maglev),
            _ => None,
        }
    }

    /// The flag that sizes the tables of this scheduler, if it has any.
    pub fn table_flag(self) -> Option<&'static str> {
        match self {
            Scheduler::SourceHash { .. } | Scheduler::DestinationHash => Some("--sh-table-size"),
            Scheduler::Maglev { .. } => Some("--mh-table-size"),
            _ => None,
        }
    }
}

// === impl HashKey ===

impl HashKey {
    fn of_source(port: bool) -> Self {
        if port { HashKey::SourcePort } else { HashKey::Source }
    }
}

// === impl Deal ===

impl Deal {
    /// The only endpoint, whatever is asked.
    fn only(endpoint: SocketAddr) -> Self {
        Self { pick: Pick::Random, slots: vec![endpoint] }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::testing::{candidates, hand, sized};
    use super::*;

    #[test]
    fn one_endpoint_needs_no_table_and_no_counter() {
        let one = candidates(&[9]);
        for scheduler in Scheduler::NAMES {
            let deal = scheduler.parse::<Scheduler>().expect("known").deal(hand(&one));
            assert_eq!(deal, Deal { pick: Pick::Random, slots: vec![one[0].endpoint] }, "{scheduler}");
        }
    }

    proptest! {
        #[test]
        fn what_equals_get_is_known_beforehand(name in 0..Scheduler::NAMES.len(), count in 1usize..300) {
            let scheduler: Scheduler = Scheduler::NAMES[name].parse().expect("known");
            let equals = candidates(&vec![3; count]);
            let hand = Hand { tables: sized(64, 251), ..hand(&equals) };
            let deal = scheduler.deal(hand);
            let known = scheduler.first_deal_to_equals(count, hand.tables);
            prop_assert_eq!((deal.pick, deal.slots.len()), known, "{}", scheduler);
        }

        /// Whoever goes and comes: an exchange leads where a deal does.
        #[test]
        fn an_exchange_is_a_deal(
            round_robin in any::<bool>(),
            before in proptest::collection::btree_set(0u16..400, 2..300),
            toggled in proptest::collection::btree_set(0u16..400, 0..6),
            seed in any::<u64>(),
            changes in 0u64..9,
        ) {
            let list = |all: &BTreeSet<u16>| -> Vec<_> { all.iter().map(|port| SocketAddr::from(([10, 0, 0, 1], *port))).collect() };
            let after = &before ^ &toggled;
            let candidates: Vec<_> = list(&after).into_iter().map(Candidate::equal).collect();
            let scheduler = if round_robin { Scheduler::RoundRobin } else { Scheduler::Random };
            let first: Vec<_> = list(&before).into_iter().map(Candidate::equal).collect();
            let previous = scheduler.deal(Hand { seed, ..hand(&first) }).slots;
            let mut slots = previous.clone();
            let swap = Swap { gone: &list(&(&before - &after)), came: &list(&(&after - &before)), seed, changes };
            let exchanged = scheduler.exchange(&mut slots, swap);
            let Some(changed) = exchanged else {
                prop_assert!(after.len() < 2);
                prop_assert_eq!(slots, previous);
                return Ok(());
            };
            let dealt = scheduler.deal(Hand { previous: &previous, seed, changes, ..hand(&candidates) }).slots;
            prop_assert_eq!(&slots, &dealt);
            let differ = (0..previous.len().max(slots.len())).filter(|slot| previous.get(*slot) != slots.get(*slot));
            let differ: Changed<SocketAddr> = differ.map(|slot| (slot, previous.get(slot).copied())).collect();
            prop_assert_eq!(changed, differ);
        }
    }

    #[test]
    fn who_goes_without_is_told_about() {
        let remark = |scheduler: &str, weights: &[u32]| {
            let (scheduler, candidates): (Scheduler, _) = (scheduler.parse().expect("known"), candidates(weights));
            let hand = Hand { tables: sized(16, 251), ..hand(&candidates) };
            scheduler.remark(hand, &scheduler.deal(hand))
        };
        for scheduler in Scheduler::NAMES {
            assert_eq!(remark(scheduler, &[5, 2]), None, "{scheduler}");
        }
        let too_small =
            "9 of 260 endpoints get no connections: a table of 251 is too small for them, see --mh-table-size";
        assert_eq!(remark("mh", &[1; 260]).as_deref(), Some(too_small));
        assert!(remark("sh", &[1; 100]).is_some_and(|text| text.ends_with("--sh-table-size")));
        let tiny = remark("sh", &[1_000_000, 1]).expect("nothing is left for the second");
        assert_eq!(
            tiny,
            "1 of 2 endpoints get no connections: a table of 16 is too small for them with these weights or shares (pointsman.dev/weights, pointsman.dev/split), see --sh-table-size"
        );
        let weights = [&[65535][..], &[1; 11]].concat();
        let rounded = "weights are rounded to 512 slots: shares are up to 2.1 percentage points off";
        assert_eq!(remark("wrr", &weights).as_deref(), Some(rounded));
        assert_eq!(remark("random", &weights).as_deref(), Some(rounded));
        assert_eq!(remark("rr", &weights), None, "weights make no difference");
    }
}

/// What the tests of all schedulers need.
#[cfg(test)]
mod testing {
    use std::collections::BTreeMap;

    use super::*;

    /// Endpoints 10.0.0.1:80 and following with these weights.
    pub(super) fn candidates(weights: &[u32]) -> Vec<Candidate> {
        let endpoint = |at: usize| SocketAddr::from(([10, 0, (at / 256) as u8, (at % 256) as u8], 80));
        weights
            .iter()
            .enumerate()
            .map(|(at, weight)| Candidate { endpoint: endpoint(at + 1), weight: *weight })
            .collect()
    }

    /// A first deal.
    pub(super) fn hand(candidates: &[Candidate]) -> Hand<'_> {
        Hand { candidates, previous: &[], seed: 0, changes: 0, tables: TableSizes::default() }
    }

    /// Tables of these sizes.
    pub(super) fn sized(hash: usize, maglev: usize) -> TableSizes {
        let buckets = |count| Buckets::new(count).expect("a size");
        TableSizes { hash: buckets(hash), maglev: buckets(maglev) }
    }

    /// How many slots each endpoint has, in the order of endpoints.
    pub(super) fn counts(slots: &[SocketAddr]) -> Vec<u32> {
        let mut counts = BTreeMap::new();
        slots.iter().for_each(|slot| *counts.entry(*slot).or_default() += 1);
        counts.into_values().collect()
    }
}

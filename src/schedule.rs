//! In what order endpoints are taken.
//!
//! A scheduler turns the endpoints of a Service port into *slots*: a numbered list in which every slot names one endpoint. The
//! kernel picks the number of a slot (how is the scheduler's [`Pick`]); which endpoint stands in a slot is decided here. Knows
//! neither Kubernetes nor nftables.
//!
//! Slots are dealt so that a change moves as little as possible: an endpoint keeps its slots, one that leaves is replaced by the
//! endpoint of the last slot, one that joins takes a new last slot. The kernel then has to be told three things about a departure,
//! however many endpoints there are.
//!
//! One file per scheduler; each is proven by its own tests, the common dealing by the property test in `slots.rs`.

pub mod live;
mod random;
mod rr;
mod slots;

use std::net::SocketAddr;
use std::str::FromStr;

/// The schedulers, by the names IPVS gave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheduler {
    /// Any endpoint, with equal probability. What kube-proxy does in its iptables and nftables modes.
    #[default]
    Random,
    /// Each endpoint in turn, counted per Service port on this node.
    RoundRobin,
    /// The endpoint with the fewest connections, whatever the weights (`lc`).
    LeastConnection,
    /// The endpoint with the fewest connections for its weight (`wlc`).
    WeightedLeastConnection,
    /// The endpoint that would have the fewest active connections for its weight with one more (`sed`).
    ShortestExpectedDelay,
    /// One without active connections if there is any, otherwise as [`Scheduler::ShortestExpectedDelay`] (`nq`).
    NeverQueue,
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
}

/// The text that names no scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown scheduler {name:?}: one of {}", Scheduler::NAMES.join(", "))]
pub struct UnknownScheduler {
    /// What was asked for.
    pub name: String,
}

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
}

// === impl Scheduler ===

impl Scheduler {
    /// All names that [`FromStr`] takes, for messages.
    pub const NAMES: [&'static str; 6] = ["random", "rr", "lc", "wlc", "sed", "nq"];

    /// The name, as annotations and flags spell it.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Random => "random",
            Scheduler::RoundRobin => "rr",
            Scheduler::LeastConnection => "lc",
            Scheduler::WeightedLeastConnection => "wlc",
            Scheduler::ShortestExpectedDelay => "sed",
            Scheduler::NeverQueue => "nq",
        }
    }

    /// The rule by which it takes counts of connections into account, if it does: see [`live`].
    pub fn live(self) -> Option<live::Rule> {
        match self {
            Scheduler::Random | Scheduler::RoundRobin => None,
            Scheduler::LeastConnection => Some(live::Rule::LeastConnection),
            Scheduler::WeightedLeastConnection => Some(live::Rule::WeightedLeastConnection),
            Scheduler::ShortestExpectedDelay => Some(live::Rule::ShortestExpectedDelay),
            Scheduler::NeverQueue => Some(live::Rule::NeverQueue),
        }
    }

    /// Deals slots to endpoints.
    pub fn deal(self, hand: Hand<'_>) -> Deal {
        match self {
            Scheduler::Random => random::deal(hand),
            Scheduler::RoundRobin => rr::deal(hand),
            Scheduler::LeastConnection
            | Scheduler::WeightedLeastConnection
            | Scheduler::ShortestExpectedDelay
            | Scheduler::NeverQueue => live::deal(self, hand),
        }
    }
}

impl FromStr for Scheduler {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, UnknownScheduler> {
        match name {
            "random" => Ok(Scheduler::Random),
            "rr" => Ok(Scheduler::RoundRobin),
            "lc" => Ok(Scheduler::LeastConnection),
            "wlc" => Ok(Scheduler::WeightedLeastConnection),
            "sed" => Ok(Scheduler::ShortestExpectedDelay),
            "nq" => Ok(Scheduler::NeverQueue),
            _ => Err(UnknownScheduler { name: name.to_owned() }),
        }
    }
}

impl std::fmt::Display for Scheduler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_scheduler_and_back() {
        for name in Scheduler::NAMES {
            assert_eq!(name.parse::<Scheduler>().expect("known").name(), name);
        }
        let error = "RR".parse::<Scheduler>().expect_err("case matters, as for IPVS");
        assert_eq!(error.to_string(), r#"unknown scheduler "RR": one of random, rr, lc, wlc, sed, nq"#);
    }
}

//! What "least" means.

use std::cmp::Ordering;

use super::Load;

/// By which measure endpoints are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// `active * 256 + inactive`, without weights.
    LeastConnection,
    /// `(active * 256 + inactive) / weight`.
    WeightedLeastConnection,
    /// `(active + 1) / weight`.
    ShortestExpectedDelay,
    /// Endpoints without active connections first, then as [`Rule::ShortestExpectedDelay`].
    NeverQueue,
}

/// What an active connection weighs in inactive ones (`ip_vs_dest_conn_overhead`, include/net/ip_vs.h).
const ACTIVE: u64 = 256;

// === impl Rule ===

impl Rule {
    /// Whether weights count.
    pub fn heeds_weights(self) -> bool {
        self != Rule::LeastConnection
    }

    /// Whether closed connections leave no trace: then few connections say nothing about who had how many, and weights are not the shares
    /// of those.
    pub fn forgets_shares(self) -> bool {
        matches!(self, Rule::ShortestExpectedDelay | Rule::NeverQueue)
    }

    /// The best endpoint by position; of several, the first from position `turn` on, cyclically. `None` without endpoints.
    pub fn pick(self, loads: &[Load], weights: &[u32], turn: usize) -> Option<usize> {
        let turn = turn % loads.len().max(1);
        let order = (turn..loads.len()).chain(0..turn);
        // The first of equals wins: a later one has to be better.
        order.reduce(|best, other| {
            let better = self.compare((loads[other], weights[other]), (loads[best], weights[best])).is_lt();
            if better { other } else { best }
        })
    }

    fn compare(self, one: (Load, u32), other: (Load, u32)) -> Ordering {
        let idle = |(load, _): (Load, u32)| self == Rule::NeverQueue && load.active == 0;
        match (idle(one), idle(other)) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) => {
                // a / v < b / w, without fractions. At most 41 and 32 bits.
                let weight = |weight: u32| if self.heeds_weights() { u128::from(weight.max(1)) } else { 1 };
                (self.overhead(one.0) * weight(other.1)).cmp(&(self.overhead(other.0) * weight(one.1)))
            }
        }
    }

    fn overhead(self, load: Load) -> u128 {
        u128::from(match self {
            Rule::LeastConnection | Rule::WeightedLeastConnection => {
                u64::from(load.active) * ACTIVE + u64::from(load.inactive)
            }
            Rule::ShortestExpectedDelay | Rule::NeverQueue => u64::from(load.active) + 1,
        })
    }
}

//! What is known about one endpoint, and drawing lots among several.

use std::cmp::Ordering;
use std::net::SocketAddr;

use super::latency::Latency;
use super::probation::Standing;

/// An endpoint with its history.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub endpoint: SocketAddr,
    /// 1 or more.
    pub weight: u32,
    /// Open connections.
    pub active: u32,
    /// How much it is owed by those it takes turns with; see [`super::turn`].
    pub credit: i64,
    pub standing: Standing,
    pub latency: Latency,
}

/// Connections per weight, compared as fractions without rounding.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share(pub u32, pub u32);

/// How often lots are drawn again before everybody's weight is added up instead.
const DRAWS: usize = 16;

/// One of `eligible`, with a probability proportional to its weight. `heaviest` is at least the heaviest of them.
///
/// # Panics
/// If nobody is eligible.
pub(super) fn draw(members: &[Member], eligible: &[usize], heaviest: u32, rng: &mut fastrand::Rng) -> usize {
    // Anybody, kept with probability weight / heaviest: exact, and one draw where weights are equal.
    for _ in 0..DRAWS {
        let place = eligible[rng.usize(..eligible.len())];
        if members[place].weight >= heaviest || rng.u32(..heaviest) < members[place].weight {
            return place;
        }
    }
    let total: u64 = eligible.iter().map(|place| u64::from(members[*place].weight)).sum();
    let mut lot = rng.u64(..total);
    for place in eligible {
        let weight = u64::from(members[*place].weight);
        if lot < weight {
            return *place;
        }
        lot -= weight;
    }
    unreachable!("the lot is below the sum of weights")
}

/// Two different ones, each drawn by weight; the same twice if only one is eligible.
pub(super) fn draw_two(members: &[Member], eligible: &[usize], heaviest: u32, rng: &mut fastrand::Rng) -> [usize; 2] {
    let first = draw(members, eligible, heaviest, rng);
    for _ in 0..DRAWS {
        let second = draw(members, eligible, heaviest, rng);
        if second != first || eligible.len() == 1 {
            return [first, second];
        }
    }
    // One outweighs all others together by far: any of them is as good a comparison.
    let other = eligible[rng.usize(..eligible.len() - 1)];
    [first, if other == first { eligible[eligible.len() - 1] } else { other }]
}

// === impl Member ===

impl Member {
    /// Nothing is known yet.
    pub fn new(endpoint: SocketAddr) -> Self {
        let (standing, latency) = (Standing::default(), Latency::default());
        Self { endpoint, weight: 1, active: 0, credit: 0, standing, latency }
    }
}

// === impl Share ===

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        let cross = |a: &Self, b: &Self| u64::from(a.0) * u64::from(b.1);
        cross(self, other).cmp(&cross(other, self))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Share {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Share {}

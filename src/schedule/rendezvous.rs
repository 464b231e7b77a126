//! `sh` and `dh`: always the same endpoint for a client, or for an address that is connected to.
//!
//! The slots are buckets. Each bucket goes to the endpoint that values it most (highest random weight: Thaler and Ravishankar, "Using
//! name-based mappings to increase hit rates", 1998; weights as in draft-ietf-bess-weighted-hrw): an endpoint that leaves leaves its
//! buckets to whoever valued them second most and moves nobody else; one that joins takes what it values most and nothing moves between
//! others. All nodes come to the same table, in whatever order they learn of endpoints.
//!
//! The price is evenness: with B buckets and n endpoints the number of buckets per endpoint spreads by `sqrt((n-1)/B)` of its mean, 9 %
//! with ten endpoints and the default of 1024. `mh` is even, and moves some others.

use std::net::SocketAddr;

use super::table::number;
use super::{Candidate, Deal, Hand, HashKey, Pick};

pub(super) fn deal(hand: Hand<'_>, key: HashKey) -> Deal {
    let buckets = u64::from(hand.tables.hash.count());
    let slots = if hand.is_equal() {
        // The smallest price among equals is the highest number: no need for logarithms.
        (0..buckets).map(|bucket| best(hand.candidates, |candidate| number(candidate.endpoint, bucket))).collect()
    } else {
        (0..buckets).map(|bucket| best(hand.candidates, |candidate| value(candidate, bucket))).collect()
    };
    Deal { pick: Pick::Hash(key), slots }
}

/// Who values a bucket most; the last of equals, of which there are none worth mentioning.
fn best<V: PartialOrd>(candidates: &[Candidate], value: impl Fn(&Candidate) -> V) -> SocketAddr {
    let (first, others) = candidates.split_first().expect("at least one candidate");
    let mut best = (value(first), first.endpoint);
    for candidate in others {
        let value = value(candidate);
        if value >= best.0 {
            best = (value, candidate.endpoint);
        }
    }
    best.1
}

/// What a bucket is worth: `weight / -ln(u)`, where `u` is the endpoint's number for it, between 0 and 1. The number itself decides
/// where floating point cannot.
fn value(candidate: &Candidate, bucket: u64) -> (f64, u64) {
    let number = number(candidate.endpoint, bucket);
    // 53 bits fit; the half keeps 0 and 1 away.
    let u = ((number >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (f64::from(candidate.weight) / -libm::log(u), number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::testing::{candidates, counts, hand, sized};

    fn table(candidates: &[Candidate]) -> Vec<SocketAddr> {
        deal(Hand { tables: sized(256, 251), ..hand(candidates) }, HashKey::Source).slots
    }

    /// If this fails, nodes that are updated disagree with those that are not.
    #[test]
    fn the_table_is_the_one_it_has_always_been() {
        let shares =
            [&[1; 10][..], &[5, 2, 1]].map(|weights| counts(&deal(hand(&candidates(weights)), HashKey::Source).slots));
        assert_eq!(shares, [vec![87, 111, 110, 117, 110, 94, 96, 95, 98, 106], vec![624, 266, 134]]);
        let first: Vec<_> = table(&candidates(&[1; 10]))[..12].iter().map(|slot| slot.ip().to_string()).collect();
        let wanted = "10.0.0.4 10.0.0.10 10.0.0.2 10.0.0.1 10.0.0.9 10.0.0.1 10.0.0.7 10.0.0.1 10.0.0.8 10.0.0.6 10.0.0.9 10.0.0.10";
        assert_eq!(first.join(" "), wanted);
    }

    #[test]
    fn weights_are_shares_of_the_table() {
        let shares =
            counts(&deal(Hand { tables: sized(65536, 251), ..hand(&candidates(&[5, 2, 1])) }, HashKey::Source).slots);
        for (share, weight) in shares.iter().zip([5.0, 2.0, 1.0]) {
            let (share, wanted) = (f64::from(*share) / 65536.0, weight / 8.0);
            assert!((share - wanted).abs() < 0.01, "{shares:?}");
        }
    }

    proptest! {
        /// Whoever leaves, only its buckets move; whoever joins or gains weight, buckets move only to it.
        #[test]
        fn only_the_leavers_buckets_move(weights in proptest::collection::vec(1u32..=9, 3..12), equal in any::<bool>(), leaver in any::<prop::sample::Index>()) {
            let mut all = candidates(&weights);
            if equal {
                all.iter_mut().for_each(|candidate| candidate.weight = 3);
            }
            let mut rest = all.clone();
            let gone = rest.remove(leaver.index(all.len())).endpoint;
            for (with, without) in table(&all).into_iter().zip(table(&rest)) {
                prop_assert!(with == gone || with == without);
            }
        }

        #[test]
        fn only_to_who_gains_weight(weights in proptest::collection::vec(1u32..=9, 2..12), more in 1u32..9, gainer in any::<prop::sample::Index>()) {
            let before = candidates(&weights);
            let mut after = before.clone();
            let gainer = &mut after[gainer.index(before.len())];
            gainer.weight += more;
            let gainer = gainer.endpoint;
            for (old, new) in table(&before).into_iter().zip(table(&after)) {
                prop_assert!(old == new || new == gainer);
            }
        }

        /// Neither what was there before nor the node makes a difference, and doubled weights are the same weights.
        #[test]
        fn the_set_alone_decides(weights in proptest::collection::vec(1u32..=9, 2..12), previous in proptest::collection::vec(1u32..=9, 1..12), seed in any::<u64>()) {
            let all = candidates(&weights);
            let before = table(&candidates(&previous));
            let mut double = all.clone();
            double.iter_mut().for_each(|candidate| candidate.weight *= 2);
            let again = deal(Hand { previous: &before, seed, changes: 0, tables: sized(256, 251), candidates: &double }, HashKey::Source);
            prop_assert_eq!(table(&all), again.slots);
        }
    }
}

//! `mh`: always the same endpoint for a client, from a table that is even.
//!
//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4): every
//! endpoint has its own permutation of the buckets, and they take turns claiming the next free bucket of theirs. Nobody has more than
//! one bucket more than another of its weight. An endpoint that leaves moves its own clients and, because others claim in another order
//! then, a few more: the fewer, the larger the table.
//!
//! An endpoint of less weight takes fewer turns: each round everybody's credit grows by their weight, and a turn costs the largest
//! weight. All begin with the credit for one turn, so nobody goes without a bucket while there are enough.

use super::table::number;
use super::{Deal, Hand, HashKey, Pick};

/// What the numbers of an endpoint are asked for: where its permutation begins, and how far it steps.
const OFFSET: u64 = 0;
const SKIP: u64 = 1;

/// An endpoint's permutation of the buckets, and its turns.
struct Row {
    /// The bucket it claims next, if that is free.
    next: usize,
    skip: usize,
    credit: u64,
    weight: u64,
}

pub(super) fn deal(hand: Hand<'_>, key: HashKey) -> Deal {
    let buckets = hand.tables.maglev.count();
    let claims = claims(hand, buckets as usize);
    let slots = claims.into_iter().map(|candidate| hand.candidates[candidate].endpoint).collect();
    Deal { pick: Pick::Hash(key), slots }
}

/// Which candidate has each bucket. The number of buckets is prime, so every step leads through all of them.
fn claims(hand: Hand<'_>, buckets: usize) -> Vec<usize> {
    let below = |number: u64, limit: usize| usize::try_from(number % limit as u64).expect("below a length");
    let price = u64::from(hand.candidates.iter().map(|candidate| candidate.weight).max().unwrap_or(1));
    let row = |candidate: &super::Candidate| {
        let weight = u64::from(candidate.weight);
        let next = below(number(candidate.endpoint, OFFSET), buckets);
        let skip = below(number(candidate.endpoint, SKIP), buckets - 1) + 1;
        Row { next, skip, credit: price - weight, weight }
    };
    let mut rows: Vec<Row> = hand.candidates.iter().map(row).collect();
    let mut claims: Vec<Option<usize>> = vec![None; buckets];
    let mut free = buckets;
    while free > 0 {
        for (index, row) in rows.iter_mut().enumerate() {
            row.credit += row.weight;
            if row.credit < price || free == 0 {
                continue;
            }
            row.credit -= price;
            while claims[row.next].is_some() {
                row.next = (row.next + row.skip) % buckets;
            }
            claims[row.next] = Some(index);
            free -= 1;
        }
    }
    claims.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::schedule::Candidate;
    use crate::schedule::testing::{candidates, counts, hand, sized};

    fn table(candidates: &[Candidate], buckets: usize) -> Vec<SocketAddr> {
        deal(Hand { tables: sized(16, buckets), ..hand(candidates) }, HashKey::Source).slots
    }

    /// If this fails, nodes that are updated disagree with those that are not.
    #[test]
    fn the_table_is_the_one_it_has_always_been() {
        let first: Vec<_> = table(&candidates(&[1; 10]), 251)[..12].iter().map(|slot| slot.ip().to_string()).collect();
        let wanted = "10.0.0.2 10.0.0.10 10.0.0.6 10.0.0.8 10.0.0.3 10.0.0.6 10.0.0.7 10.0.0.10 10.0.0.6 10.0.0.7 10.0.0.8 10.0.0.9";
        assert_eq!(first.join(" "), wanted);
    }

    #[test]
    fn every_weight_has_its_share() {
        assert_eq!(counts(&table(&candidates(&[5, 2, 1]), 251)), [156, 63, 32]);
        assert_eq!(counts(&table(&candidates(&[65535, 1]), 251)), [250, 1], "nobody goes without");
        let many = candidates(&[1; 251]);
        assert_eq!(counts(&table(&many, 251)), [1; 251]);
    }

    #[test]
    fn one_of_ten_that_leaves_moves_few_others() {
        for (buckets, most) in [(4093, 0.04), (65537, 0.02)] {
            let all = candidates(&[1; 10]);
            for leaver in 0..10 {
                let mut rest = all.clone();
                let gone = rest.remove(leaver).endpoint;
                let tables = table(&all, buckets).into_iter().zip(table(&rest, buckets));
                let moved = tables.filter(|(with, without)| *with != gone && with != without).count();
                let moved = moved as f64 / buckets as f64;
                assert!(moved < most, "{moved} of {buckets} when {leaver} leaves");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_table_is_full_and_even(weights in proptest::collection::vec(1u32..=9, 2..40)) {
            let shares = counts(&table(&candidates(&weights), 509));
            prop_assert_eq!(shares.iter().sum::<u32>(), 509);
            let sum: u32 = weights.iter().sum();
            for (share, weight) in shares.iter().zip(&weights) {
                let due = 509.0 * f64::from(*weight) / f64::from(sum);
                // Up to two turns for its own rounding, and what the first turns of the others take from it.
                let slack = 2.0 + due * weights.len() as f64 / 509.0;
                prop_assert!((f64::from(*share) - due).abs() <= slack, "{} buckets of {} for weight {}", share, due, weight);
            }
            for (a, b) in weights.iter().zip(&shares).zip(weights.iter().zip(&shares).skip(1)) {
                prop_assert!(a.0 != b.0 || a.1.abs_diff(*b.1) <= 1, "equal weights differ by one at most");
            }
        }

        #[test]
        fn the_set_alone_decides(weights in proptest::collection::vec(1u32..=9, 2..12), seed in any::<u64>()) {
            let all = candidates(&weights);
            let before = table(&candidates(&[3, 1]), 251);
            let again = deal(Hand { previous: &before, seed, changes: 0, tables: sized(16, 251), candidates: &all }, HashKey::Source);
            prop_assert_eq!(table(&all, 251), again.slots);
        }
    }
}

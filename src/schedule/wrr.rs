//! `wrr`: each endpoint as often per cycle as its weight says, and its turns spread over the cycle.
//!
//! Smooth weighted round robin: in each turn everybody's credit grows by their weight, whoever has the most is picked and pays what all
//! weigh together. 5:2:1 gives `a b a a c a b a`: exact per cycle, never a burst longer than it must be. The kernel counts through the
//! cycle as for `rr`; where it begins depends on node and Service port, and on how often the length of the cycle has changed (`slots`).
//!
//! Among equals this is `rr`. Otherwise an endpoint that replaces another of its weight takes exactly its slots, and equal weights keep
//! their order, so a change rewrites no more than the cycle's new form asks for.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use super::slots::{keep_places, place};
use super::{Deal, Hand, Pick, rr, share};

pub(super) fn deal(hand: Hand<'_>) -> Deal {
    if hand.is_equal() {
        return rr::deal(hand);
    }
    let counts = share(&hand.weights()).slots;
    let count = |endpoint| {
        let at = hand.candidates.binary_search_by_key(&endpoint, |candidate| candidate.endpoint);
        counts[at.expect("one of the candidates")]
    };
    let begun = begun(&hand);
    let mut previous = hand.previous.to_vec();
    previous.rotate_right(begun);
    let mut order = keep_places(&distinct(&previous), &hand.endpoints(), 0);
    // The order in which a cycle meets them first: found again in the slots it makes, so dealing twice is dealing once.
    order.sort_by_key(|endpoint| std::cmp::Reverse(count(*endpoint)));
    let turns: Vec<_> = order.into_iter().map(|endpoint| (endpoint, count(endpoint))).collect();
    let mut slots = cycle(&turns);
    let begins = match previous.len() {
        0 => place(hand.seed, hand.changes, slots.len()),
        same if same == slots.len() => begun,
        _ => place(hand.seed, hand.changes + 1, slots.len()),
    };
    slots.rotate_left(begins);
    Deal { pick: Pick::Counter, slots }
}

/// Where in their cycle the previous slots begin. As this process would have had it begin; or, after a restart, as they say.
fn begun(hand: &Hand<'_>) -> usize {
    let slots = hand.previous;
    if slots.is_empty() {
        return 0;
    }
    let expected = place(hand.seed, hand.changes, slots.len());
    let begins = |at: &usize| is_cycle(&[&slots[slots.len() - at..], &slots[..slots.len() - at]].concat());
    std::iter::once(expected).chain(0..slots.len()).find(begins).unwrap_or(expected)
}

/// Whether these are one cycle from its beginning, by how often each is in there.
fn is_cycle<T: Copy + Eq + Hash>(slots: &[T]) -> bool {
    let mut counts = HashMap::new();
    slots.iter().for_each(|one| *counts.entry(*one).or_insert(0u32) += 1);
    // A cycle begins with who has most turns, and meets those who have fewer later.
    let turns: Vec<_> = distinct(slots).into_iter().map(|one| (one, counts[&one])).collect();
    turns.is_sorted_by_key(|(_, count)| std::cmp::Reverse(*count)) && cycle(&turns) == slots
}

/// One cycle; those who come first win ties.
fn cycle<T: Copy>(turns: &[(T, u32)]) -> Vec<T> {
    let total: i64 = turns.iter().map(|(_, count)| i64::from(*count)).sum();
    if total == i64::try_from(turns.len()).expect("a length") {
        return turns.iter().map(|(one, _)| *one).collect();
    }
    let mut credits = vec![0i64; turns.len()];
    let pick = |_| {
        for (credit, (_, count)) in credits.iter_mut().zip(turns) {
            *credit += i64::from(*count);
        }
        let most = (0..turns.len()).max_by_key(|at| (credits[*at], std::cmp::Reverse(*at))).expect("somebody");
        credits[most] -= total;
        turns[most].0
    };
    (0..total).map(pick).collect()
}

fn distinct<T: Copy + Eq + Hash>(list: &[T]) -> Vec<T> {
    let mut seen = HashSet::new();
    list.iter().copied().filter(|one| seen.insert(*one)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::Candidate;
    use crate::schedule::testing::{candidates, counts, hand};

    #[test]
    fn turns_are_spread_over_the_cycle() {
        let text = |turns: &[(char, u32)]| cycle(turns).into_iter().collect::<String>();
        assert_eq!(text(&[('a', 5), ('b', 2), ('c', 1)]), "abaacaba");
        assert_eq!(text(&[('a', 5), ('b', 1), ('c', 1)]), "aabacaa");
        assert_eq!(text(&[('a', 3), ('b', 3)]), "ababab");
        assert_eq!(text(&[('a', 1), ('b', 1), ('c', 1)]), "abc");
    }

    #[test]
    fn nodes_begin_at_different_turns() {
        let candidates = candidates(&[5, 2, 1]);
        let firsts: HashSet<_> = (0..8).map(|seed| deal(Hand { seed, ..hand(&candidates) }).slots[0]).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn who_replaces_another_of_its_weight_takes_its_slots() {
        let before = candidates(&[5, 2, 1, 2]);
        let first = deal(Hand { seed: 12, ..hand(&before) }).slots;
        let newcomer = Candidate { weight: 2, ..candidates(&[1; 9])[8] };
        let after = [before[0], before[2], before[3], newcomer];
        let second = deal(Hand { seed: 12, previous: &first, ..hand(&after) }).slots;
        let changed: Vec<_> = first.iter().zip(&second).filter(|(a, b)| a != b).collect();
        assert_eq!(changed.len(), 2, "{changed:?}");
        assert!(changed.iter().all(|(old, new)| **old == before[1].endpoint && **new == newcomer.endpoint));
    }

    proptest! {
        /// In any part of a cycle, each has had its share, give or take less than two turns: nobody waits, nobody bursts.
        #[test]
        fn every_part_of_a_cycle_is_near_the_shares(weights in proptest::collection::vec(1u32..=30, 2..8)) {
            let turns: Vec<_> = weights.iter().copied().enumerate().collect();
            let slots = cycle(&turns);
            let total = slots.len() as f64;
            for (one, weight) in turns {
                let mut had = 0.0;
                for (turn, slot) in slots.iter().enumerate() {
                    had += f64::from(u8::from(*slot == one));
                    let due = (turn + 1) as f64 * f64::from(weight) / total;
                    prop_assert!((had - due).abs() < 2.0, "{} turns of {} after {}", had, due, turn + 1);
                }
                prop_assert_eq!(had, f64::from(weight), "exact per cycle");
            }
        }

        #[test]
        fn dealing_twice_is_dealing_once(weights in proptest::collection::vec(1u32..=3000, 1..12), other in proptest::collection::vec(1u32..=9, 1..12), seed in any::<u64>()) {
            let (before, candidates) = (candidates(&other), candidates(&weights));
            let previous = deal(Hand { seed, ..hand(&before) }).slots;
            let first = deal(Hand { seed, previous: &previous, ..hand(&candidates) }).slots;
            let second = deal(Hand { seed, previous: &first, ..hand(&candidates) }).slots;
            prop_assert_eq!(counts(&first), share(&weights).slots);
            prop_assert_eq!(first, second);
        }
    }
}

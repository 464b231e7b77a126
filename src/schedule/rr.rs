//! `rr`: each endpoint in turn.
//!
//! One slot per endpoint, whatever its weight; the kernel counts connections of this Service port and takes the count modulo the number
//! of slots. The first round begins at an endpoint that depends on node and Service port, so that a thousand nodes that just
//! (re)started do not all open their first connection to the same endpoint (kubernetes/kubernetes 121591).
//!
//! While the number of endpoints stays, the count goes on. With another number it begins at 0, and others stand there then (`slots`).

use super::slots::{self, Changed, keep_places, place, turn};
use super::{Deal, Hand, Pick};

pub(super) fn deal(hand: Hand<'_>) -> Deal {
    let first = place(hand.seed, hand.changes, hand.candidates.len().max(1));
    let mut slots = keep_places(hand.previous, &hand.endpoints(), first);
    if !hand.previous.is_empty() && hand.previous.len() != slots.len() {
        turn(&mut slots, hand.seed, hand.changes + 1);
    }
    Deal { pick: Pick::Counter, slots }
}

/// As [`slots::exchange`], with the turn that another number of slots brings.
pub(super) fn exchange<T: Copy + Ord>(
    slots: &mut Vec<T>,
    gone: &[T],
    came: &[T],
    turn: impl FnOnce(&mut [T]),
) -> Option<Changed<T>> {
    if gone.len() == came.len() {
        return slots::exchange(slots, gone, came);
    }
    let before = slots.clone();
    slots::exchange(slots, gone, came)?;
    turn(slots);
    let all = 0..before.len().max(slots.len());
    let changed = all.filter(|slot| before.get(*slot) != slots.get(*slot));
    Some(changed.map(|slot| (slot, before.get(slot).copied())).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::SocketAddr;

    use super::*;
    use crate::schedule::Candidate;
    use crate::schedule::testing::{candidates, counts, hand};

    #[test]
    fn nodes_begin_at_different_endpoints() {
        let candidates = candidates(&[1; 5]);
        let firsts: BTreeSet<_> = (0..20).map(|seed| deal(Hand { seed, ..hand(&candidates) }).slots[0]).collect();
        assert_eq!(firsts.len(), 5);
    }

    #[test]
    fn every_endpoint_has_exactly_one_slot() {
        let previous = deal(hand(&candidates(&[1; 3]))).slots;
        let weights: Vec<u32> = (1..=7).collect();
        let deal = deal(Hand { previous: &previous, seed: 4, ..hand(&candidates(&weights)) });
        assert_eq!(counts(&deal.slots), [1; 7], "weights make no difference");
    }

    /// One flaps, and there are so many connections after each change, picked as the kernel would: from slot 0 if there are more or
    /// fewer slots. How many each endpoint had, and how many are due to it.
    fn flap(all: &[Candidate], flapping: usize, between: u32) -> BTreeMap<SocketAddr, (f64, f64)> {
        let mut rest = all.to_vec();
        rest.remove(flapping);
        let (mut picked, mut slots) = (BTreeMap::<_, (f64, f64)>::new(), Vec::new());
        for changes in 0..400 {
            let candidates = if changes % 2 == 0 { all } else { &rest };
            slots =
                deal(Hand { previous: &slots, changes: u64::saturating_sub(changes, 1), seed: 3, ..hand(candidates) })
                    .slots;
            slots.iter().cycle().take(between as usize).for_each(|slot| picked.entry(*slot).or_default().0 += 1.0);
            let due = f64::from(between) / slots.len() as f64;
            slots.iter().for_each(|slot| picked.entry(*slot).or_default().1 += due);
        }
        picked
    }

    #[test]
    fn an_endpoint_that_flaps_gives_nobody_a_surplus() {
        for (endpoints, between) in
            [(2, 1), (3, 1), (3, 2), (4, 1), (4, 2), (4, 3), (5, 2), (8, 3), (10, 1), (10, 7), (300, 10)]
        {
            let all = candidates(&vec![1; endpoints]);
            for flapping in [0, endpoints / 2, endpoints - 1] {
                for (endpoint, (had, due)) in flap(&all, flapping, between) {
                    // Within four standard deviations of chance; without turns it is up to a hundred.
                    let off = (had - due) / due.sqrt();
                    let what = format!("{endpoint} of {endpoints}, {between} between changes of {flapping}");
                    assert!(off.abs() < 4.0, "{what}: {had} instead of {due}");
                }
            }
        }
    }

    #[test]
    fn a_change_of_a_long_list_writes_a_bounded_number_of_slots() {
        let (all, more) = (candidates(&[1; 1000]), candidates(&[1; 1001]));
        let before = deal(hand(&all)).slots;
        for changes in 0..50 {
            let after = deal(Hand { previous: &before, changes, ..hand(&more) }).slots;
            assert_eq!(counts(&after), [1; 1001]);
            let written = after.iter().zip(&before).filter(|(new, old)| new != old).count();
            assert!(written <= 129, "{written}");
        }
    }
}

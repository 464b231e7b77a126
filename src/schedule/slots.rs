//! Dealing slots so that as few as possible change hands; and where a walk through them begins.
//!
//! A chain that counts is made for a number of slots: when that changes, the chain is another, and its counter begins at slot 0. If the
//! same endpoint stood there each time, an endpoint that flaps would give it, and those next to it, a surplus: with two connections
//! between two changes they would get all of them. So the slots are turned with each such change ([`turn`]), as far as a hash of the
//! number of changes says: regular steps keep step with what flaps regularly. Of a long list only [`TURNED`] slots change places with
//! as many others.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use xxhash_rust::xxh64::xxh64;

/// So many slots at the front are exchanged for others in lists too long to be turned as a whole.
const TURNED: usize = 64;

/// Where a walk of `len` slots, at least one, begins after so many changes of their number: by the seed, and then anywhere.
pub(super) fn place(seed: u64, changes: u64, len: usize) -> usize {
    let number = if changes == 0 { seed } else { xxh64(&changes.to_be_bytes(), seed) };
    usize::try_from(number % len as u64).expect("below a length")
}

/// Puts others in front, for a walk that begins anew after so many changes of the number of slots.
pub(super) fn turn<T>(slots: &mut [T], seed: u64, changes: u64) {
    let len = slots.len();
    if len == 0 {
        return;
    }
    let by = place(seed, changes, len);
    if len <= 2 * TURNED {
        slots.rotate_left(by);
    } else {
        (0..TURNED.min(len - by)).for_each(|slot| slots.swap(slot, by + slot));
    }
}

/// As many slots as `wanted` is long, each endpoint as often as it is in there. Whoever had a slot below the new count keeps it, as
/// far as it is wanted so often; the free slots go to those who lack some: first to the endpoints whose slots are cut off, then in the
/// order of `wanted`. The first deal (no `previous`) begins with `wanted[first]`.
pub(super) fn keep_places<T: Copy + Eq + Hash>(previous: &[T], wanted: &[T], first: usize) -> Vec<T> {
    if previous.is_empty() {
        let mut slots = wanted.to_vec();
        if !slots.is_empty() {
            slots.rotate_left(first % wanted.len());
        }
        return slots;
    }
    // How many slots each still lacks.
    let mut lacks: HashMap<T, usize> = HashMap::with_capacity(wanted.len());
    wanted.iter().for_each(|endpoint| *lacks.entry(*endpoint).or_default() += 1);
    let mut gets_one = |endpoint: &T| match lacks.get_mut(endpoint) {
        Some(count) if *count > 0 => {
            *count -= 1;
            true
        }
        _ => false,
    };
    let mut slots: Vec<Option<T>> =
        (0..wanted.len()).map(|slot| previous.get(slot).copied().filter(&mut gets_one)).collect();
    let cut_off = previous.iter().skip(wanted.len());
    let mut homeless = cut_off.chain(wanted).copied().filter(gets_one);
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = homeless.next();
    }
    // Exactly as many as are needed: there is such a list for every port of every Service.
    let mut dealt = Vec::with_capacity(slots.len());
    dealt.extend(slots.into_iter().flatten());
    dealt
}

/// Slots that changed hands, and who had them before; `None`: there was no such slot.
pub type Changed<T> = BTreeMap<usize, Option<T>>;

/// What [`keep_places`] does where each endpoint has one slot, these go, and those come; both are sorted. `None`, with the slots as
/// they were, if somebody goes who has no slot.
pub(super) fn exchange<T: Copy + Ord>(slots: &mut Vec<T>, gone: &[T], came: &[T]) -> Option<Changed<T>> {
    let goes = |one: &T| match gone {
        [] => false,
        [only] => one == only,
        _ => gone.binary_search(one).is_ok(),
    };
    let (had, has) = (slots.len(), (slots.len() + came.len()).checked_sub(gone.len())?);
    let mut free: Vec<usize> = slots.iter().enumerate().filter(|(_, one)| goes(one)).map(|(slot, _)| slot).collect();
    if free.len() != gone.len() {
        return None;
    }
    let cut_off: Vec<T> = slots[has.min(had)..].to_vec();
    let mut changed = Changed::new();
    changed.extend((has..had).map(|slot| (slot, Some(slots[slot]))));
    free.retain(|slot| *slot < has);
    free.extend(had..has);
    slots.truncate(has);
    let homeless = cut_off.into_iter().filter(|one| !goes(one)).chain(came.iter().copied());
    for (slot, one) in free.into_iter().zip(homeless) {
        changed.insert(slot, slots.get(slot).copied());
        match slots.get_mut(slot) {
            Some(place) => *place = one,
            None => slots.push(one),
        }
    }
    Some(changed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_leaves_is_replaced_by_the_last_and_one_that_joins_comes_last() {
        assert_eq!(keep_places(&[1, 2, 3, 4], &[1, 3, 4], 0), [1, 4, 3]);
        assert_eq!(keep_places(&[1, 2, 3, 4], &[1, 2, 3], 0), [1, 2, 3]);
        assert_eq!(keep_places(&[3, 1, 2], &[1, 2, 3, 4], 0), [3, 1, 2, 4]);
        assert_eq!(keep_places(&[3, 1, 2], &[1, 3, 4], 0), [3, 1, 4], "one for one: one slot changes");
        assert_eq!(keep_places(&[], &[1, 2, 3], 2), [3, 1, 2]);
        assert_eq!(keep_places(&[1], &[], 0), [0; 0]);
        assert_eq!(
            keep_places(&[1, 1, 1, 2], &[1, 1, 2, 2], 0),
            [1, 1, 2, 2],
            "a weight less, a weight more: one slot"
        );
    }

    /// How many of `a` have no counterpart in `b`.
    fn missing(a: &[u16], b: &[u16]) -> usize {
        let mut b = b.to_vec();
        let found = |one: &&u16| b.iter().position(|other| other == *one).map(|at| b.swap_remove(at)).is_none();
        a.iter().filter(found).count()
    }

    proptest! {
        /// An exchange is a deal in which nobody else is looked at.
        #[test]
        fn an_exchange_keeps_places(
            before in proptest::collection::btree_set(0u16..30, 0..20),
            after in proptest::collection::btree_set(0u16..30, 0..20),
            first in 0usize..20,
        ) {
            let list = |all: &std::collections::BTreeSet<u16>| all.iter().copied().collect::<Vec<_>>();
            let previous = keep_places(&[], &list(&before), first);
            prop_assume!(!previous.is_empty());
            let (gone, came) = (list(&(&before - &after)), list(&(&after - &before)));
            let mut slots = previous.clone();
            let changed = exchange(&mut slots, &gone, &came).expect("all of them have slots");
            prop_assert_eq!(&slots, &keep_places(&previous, &list(&after), 0));
            let differ = (0..previous.len().max(slots.len())).filter(|slot| previous.get(*slot) != slots.get(*slot));
            let differ: Changed<u16> = differ.map(|slot| (slot, previous.get(slot).copied())).collect();
            prop_assert_eq!(changed, differ);
            prop_assert_eq!(exchange(&mut slots, &[30], &[]), None);
        }

        #[test]
        fn exactly_the_wanted_ones_and_few_moves(
            previous in proptest::collection::vec(0u16..12, 0..20),
            wanted in proptest::collection::vec(0u16..12, 0..20),
        ) {
            let slots = keep_places(&previous, &wanted, 0);
            let sorted = |list: &[u16]| {
                let mut list = list.to_vec();
                list.sort_unstable();
                list
            };
            prop_assert_eq!(sorted(&slots), sorted(&wanted));
            if !previous.is_empty() {
                // Only slots of endpoints that have too many, and slots that did not exist, are written.
                let written = slots.iter().enumerate().filter(|(slot, endpoint)| previous.get(*slot) != Some(endpoint)).count();
                let kept = &previous[..previous.len().min(wanted.len())];
                prop_assert_eq!(written, missing(kept, &wanted) + wanted.len().saturating_sub(previous.len()));
            }
        }
    }
}

//! Dealing slots so that as few as possible change hands.

use std::collections::HashSet;
use std::hash::Hash;

/// One slot per endpoint. Whoever had a slot below the new count keeps it; the free slots go to those without one: first to
/// the endpoints whose slots are cut off, then to newcomers. `wanted` must hold no duplicates; the first deal (no `previous`)
/// begins with `wanted[first]`.
pub(super) fn keep_places<T: Copy + Eq + Hash>(previous: &[T], wanted: &[T], first: usize) -> Vec<T> {
    if previous.is_empty() {
        let mut slots = wanted.to_vec();
        if !slots.is_empty() {
            slots.rotate_left(first % wanted.len());
        }
        return slots;
    }
    let still_wanted: HashSet<T> = wanted.iter().copied().collect();
    let mut placed: HashSet<T> = HashSet::with_capacity(wanted.len());
    let mut slots: Vec<Option<T>> = (0..wanted.len())
        .map(|slot| {
            previous.get(slot).copied().filter(|endpoint| still_wanted.contains(endpoint) && placed.insert(*endpoint))
        })
        .collect();
    let cut_off = previous.iter().skip(wanted.len()).filter(|endpoint| still_wanted.contains(endpoint));
    let mut homeless: Vec<T> = Vec::new();
    for endpoint in cut_off.chain(wanted) {
        if placed.insert(*endpoint) {
            homeless.push(*endpoint);
        }
    }
    let mut homeless = homeless.into_iter();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = homeless.next();
    }
    slots.into_iter().flatten().collect()
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
    }

    proptest! {
        #[test]
        fn exactly_the_wanted_ones_and_few_moves(
            previous in proptest::collection::hash_set(0u16..40, 0..20),
            wanted in proptest::collection::hash_set(0u16..40, 0..20),
        ) {
            let previous: Vec<_> = previous.into_iter().collect();
            let wanted: Vec<_> = wanted.into_iter().collect();
            let slots = keep_places(&previous, &wanted, 0);
            let mut sorted = slots.clone();
            sorted.sort_unstable();
            let mut expected = wanted.clone();
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
            if !previous.is_empty() {
                // Only slots whose endpoint left, and slots that did not exist, are written.
                let written = slots.iter().enumerate().filter(|(slot, endpoint)| previous.get(*slot) != Some(endpoint)).count();
                let left = previous.iter().take(wanted.len()).filter(|endpoint| !wanted.contains(endpoint)).count();
                prop_assert_eq!(written, left + wanted.len().saturating_sub(previous.len()));
            }
        }
    }
}

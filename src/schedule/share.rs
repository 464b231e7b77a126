//! From weights to numbers of slots.
//!
//! Weights of any size stand for shares: 10:4:2 is 5:2:1, and eight slots hold that exactly. Weights that have no such small form are
//! rounded to so many slots that the error stays small, and what it is can be told. Nobody who has a weight goes without a slot.

/// How many slots each one gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// In the order of the weights; at least 1 each.
    pub slots: Vec<u32>,
    /// The largest difference between a share in slots and the share in weights, from 0 (exact) to 1. Below `(1 + small) / total`,
    /// where `small` are those whose share is less than one slot and who get one all the same.
    pub error: f64,
}

/// Weights whose sum, after division by what they have in common, is no larger stay as they are. Fewer than a shared plan can have
/// (`MAX_SHARED_SLOTS` in [`crate::compile::layout`]).
const EXACT: u64 = 1000;

/// The number of slots that larger weights are rounded to, up to 64 endpoints: a share is then at most 0.2 percentage points off.
const ROUNDED: usize = 512;

/// Beyond that, slots per endpoint as long as it stays below [`EXACT`].
const PER_ENDPOINT: usize = 8;

/// The slots that weights come to. No weight may be 0.
pub fn share(weights: &[u32]) -> Shares {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let reduced: Vec<u32> = weights.iter().map(|weight| weight / divisor).collect();
    let sum: u64 = reduced.iter().map(|weight| u64::from(*weight)).sum();
    if sum <= EXACT {
        return Shares { slots: reduced, error: 0.0 };
    }
    let most = usize::try_from(EXACT).expect("small");
    let total = (weights.len() * PER_ENDPOINT).clamp(ROUNDED, most).max(weights.len());
    let slots = round(&reduced, total);
    let error = error(&reduced, &slots);
    Shares { slots, error }
}

/// Largest remainders, after those who would get less than one slot got one. The slots are `total` together; there must be one for each.
fn round(weights: &[u32], total: usize) -> Vec<u32> {
    let mut slots = vec![0u32; weights.len()];
    let mut left = total as u64;
    let mut sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    // Whoever gets one slot for less makes a slot dearer for the others, so that others may fall below.
    loop {
        let small = |at: &usize| slots[*at] == 0 && u64::from(weights[*at]) * left < sum;
        let small: Vec<usize> = (0..weights.len()).filter(small).collect();
        if small.is_empty() {
            break;
        }
        for at in small {
            slots[at] = 1;
            left -= 1;
            sum -= u64::from(weights[at]);
        }
    }
    let mut rest: Vec<(u64, usize)> = Vec::new();
    let mut given = 0;
    for at in 0..weights.len() {
        if slots[at] == 0 {
            let share = u64::from(weights[at]) * left;
            slots[at] = u32::try_from(share / sum).expect("at most the total");
            given += share / sum;
            rest.push((share % sum, at));
        }
    }
    rest.sort_by_key(|(remainder, at)| (std::cmp::Reverse(*remainder), *at));
    let remaining = usize::try_from(left - given).expect("at most one each");
    rest.iter().take(remaining).for_each(|(_, at)| slots[*at] += 1);
    slots
}

fn error(weights: &[u32], slots: &[u32]) -> f64 {
    let sum = |list: &[u32]| list.iter().map(|one| f64::from(*one)).sum::<f64>();
    let (by_weight, by_slot) = (sum(weights), sum(slots));
    let off = |(weight, slots): (&u32, &u32)| (f64::from(*slots) / by_slot - f64::from(*weight) / by_weight).abs();
    weights.iter().zip(slots).map(off).fold(0.0, f64::max)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

// === impl Shares ===

impl Shares {
    /// Each of these as often as it has slots.
    pub(super) fn repeat<T: Copy>(&self, of: &[T]) -> Vec<T> {
        self.slots.iter().zip(of).flat_map(|(count, one)| std::iter::repeat_n(*one, *count as usize)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_forms_are_exact_and_the_rest_is_rounded() {
        for (weights, slots) in [
            (&[5, 2, 1][..], &[5, 2, 1][..]),
            (&[100, 40, 20], &[5, 2, 1]),
            (&[65535], &[1]),
            (&[7, 7], &[1, 1]),
            (&[999, 1], &[999, 1]),
        ] {
            assert_eq!(share(weights), Shares { slots: slots.to_vec(), error: 0.0 }, "{weights:?}");
        }
        assert_eq!(share(&[1000, 1]).slots, [511, 1]);
        assert_eq!(share(&[65535, 1, 1, 1]).slots, [509, 1, 1, 1], "nobody goes without");
        assert_eq!(share(&[1001, 1002, 1003]).slots, [170, 171, 171]);
        assert!(share(&[1001, 1002, 1003]).error < 0.002);
        assert_eq!(share(&[50, 50, 50, 57, 57, 57]).slots.iter().sum::<u32>(), 321);
    }

    proptest! {
        #[test]
        fn shares_are_near_their_weights(weights in proptest::collection::vec(1u32..=65535, 1..300)) {
            let Shares { slots, error } = share(&weights);
            let total: u32 = slots.iter().sum();
            prop_assert!(slots.iter().all(|count| *count > 0));
            prop_assert!(total as usize <= weights.len().max(1000));
            let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            let least = |count: &&u32| **count == 1;
            let small = slots.iter().filter(least).count() as f64;
            let bound = (1.0 + small) / f64::from(total);
            for (weight, count) in weights.iter().zip(&slots) {
                let off = (f64::from(*count) / f64::from(total) - f64::from(*weight) / sum).abs();
                prop_assert!(off <= error + 1e-9 && off <= bound, "{} slots of {} for {}", count, total, weight);
            }
        }

        #[test]
        fn few_endpoints_of_like_weights_are_within_a_fifth_of_a_percent(weights in proptest::collection::vec(500u32..=60000, 1..=4)) {
            prop_assert!(share(&weights).error < 1.0 / 512.0);
        }

        /// More weight is never fewer slots than less weight.
        #[test]
        fn order_is_kept(weights in proptest::collection::vec(1u32..=65535, 1..100)) {
            let slots = share(&weights).slots;
            for (a, b) in weights.iter().zip(&slots).zip(weights.iter().zip(&slots).skip(1)) {
                let ((weight, count), (other, others)) = (a, b);
                prop_assert!(weight == other || (weight < other) == (count < others) || count == others);
            }
        }
    }
}

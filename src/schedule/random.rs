//! `random`: any endpoint with a probability by its weight.
//!
//! Among equals each endpoint has one slot, else as many as [`super::share()`] gives it; the kernel draws a number below the number of
//! slots. The order of slots means nothing.

use super::slots::keep_places;
use super::{Deal, Hand, Pick, share};

pub(super) fn deal(hand: Hand<'_>) -> Deal {
    let wanted = if hand.is_equal() { hand.endpoints() } else { share(&hand.weights()).repeat(&hand.endpoints()) };
    Deal { pick: Pick::Random, slots: keep_places(hand.previous, &wanted, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::testing::{candidates, counts, hand};

    #[test]
    fn slots_are_as_many_as_weights_say() {
        let equal = candidates(&[7, 7, 7]);
        assert_eq!(counts(&deal(hand(&equal)).slots), [1, 1, 1]);
        let unequal = candidates(&[10, 4, 2]);
        let first = deal(hand(&unequal)).slots;
        assert_eq!(counts(&first), [5, 2, 1]);
        let shifted = candidates(&[8, 6, 2]);
        let second = deal(Hand { previous: &first, ..hand(&shifted) }).slots;
        assert_eq!(counts(&second), [4, 3, 1]);
        assert_eq!(first.iter().zip(&second).filter(|(a, b)| a != b).count(), 1, "one slot changes hands");
    }
}

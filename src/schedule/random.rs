//! `random`: any endpoint with equal probability.
//!
//! One slot per endpoint; the kernel draws a number below the number of slots. The order of slots means nothing.

use super::slots::keep_places;
use super::{Deal, Hand, Pick};

pub(super) fn deal(hand: Hand<'_>) -> Deal {
    Deal { pick: Pick::Random, slots: keep_places(hand.previous, &hand.endpoints(), 0) }
}

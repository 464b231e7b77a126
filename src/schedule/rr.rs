//! `rr`: each endpoint in turn.
//!
//! One slot per endpoint, whatever its weight; the kernel counts connections of this Service port and takes the count modulo the number
//! of slots. The first round begins at an endpoint that depends on node and Service port, so that a thousand nodes that just
//! (re)started do not all open their first connection to the same endpoint (kubernetes/kubernetes 121591).

use super::slots::keep_places;
use super::{Deal, Hand, Pick};

pub(super) fn deal(hand: Hand<'_>) -> Deal {
    let first = usize::try_from(hand.seed % hand.candidates.len().max(1) as u64).expect("below a length");
    Deal { pick: Pick::Counter, slots: keep_places(hand.previous, &hand.endpoints(), first) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
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
}

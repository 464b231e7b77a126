//! `rr`: each endpoint in turn.
//!
//! One slot per endpoint; the kernel counts connections of this Service port and takes the count modulo the number of slots. The
//! first round begins at an endpoint that depends on node and Service port, so that a thousand nodes that just (re)started do not
//! all open their first connection to the same endpoint (kubernetes/kubernetes 121591).

use super::slots::keep_places;
use super::{Deal, Hand, Pick};

pub(super) fn deal(hand: Hand<'_>) -> Deal {
    let first = usize::try_from(hand.seed % hand.candidates.len().max(1) as u64).expect("below a length");
    Deal { pick: Pick::Counter, slots: keep_places(hand.previous, &hand.endpoints(), first) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use super::*;
    use crate::schedule::Candidate;

    fn endpoints(n: u8) -> Vec<SocketAddr> {
        (1..=n).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect()
    }

    fn candidates(n: u8) -> Vec<Candidate> {
        endpoints(n).into_iter().map(Candidate::equal).collect()
    }

    #[test]
    fn nodes_begin_at_different_endpoints() {
        let candidates = candidates(5);
        let firsts: BTreeSet<_> =
            (0..20).map(|seed| deal(Hand { candidates: &candidates, previous: &[], seed }).slots[0]).collect();
        assert_eq!(firsts.len(), 5);
    }

    #[test]
    fn every_endpoint_has_exactly_one_slot() {
        let deal = deal(Hand { candidates: &candidates(7), previous: &endpoints(3), seed: 4 });
        let mut slots = deal.slots;
        slots.sort();
        assert_eq!(slots, endpoints(7));
    }
}

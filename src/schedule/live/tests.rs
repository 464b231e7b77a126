//! The ring against brute force: the next picks are those of IPVS's own loops.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::schedule::TableSizes;

fn endpoint(last: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (last >> 8) as u8, last as u8], 80))
}

fn candidates(weights: &[u32]) -> Vec<Candidate> {
    weights.iter().enumerate().map(|(last, weight)| Candidate { endpoint: endpoint(last), weight: *weight }).collect()
}

fn equal(n: usize) -> Vec<Candidate> {
    candidates(&vec![1; n])
}

fn loads(all: &[(u32, u32)]) -> Loads {
    all.iter()
        .enumerate()
        .map(|(last, (active, inactive))| (endpoint(last), Load { active: *active, inactive: *inactive }))
        .collect()
}

/// The next picks as the last number of their addresses.
fn next(rule: Rule, candidates: &[Candidate], loads: &Loads, last: usize, count: usize) -> Vec<usize> {
    let ring = vec![endpoint(last); 64];
    let redeal = Redeal { rule, candidates, ring: &ring, picks: 1, loads, expected: count, seed: 0 };
    let dealt = redeal.deal();
    let number = |slot: usize| candidates.iter().position(|one| one.endpoint == dealt[slot]).expect("a candidate");
    (1..=count).map(number).collect()
}

/// What is shown, weights, active and inactive connections, the next picks.
type Row = (&'static str, Rule, &'static [u32], &'static [(u32, u32)], &'static [usize]);

#[test]
fn rules_by_table() {
    use Rule::*;
    let table: &[Row] = &[
        ("the emptiest first", LeastConnection, &[1, 1, 1], &[(3, 0), (1, 0), (2, 0)], &[1, 2, 1, 2]),
        ("an active one weighs 256 inactive ones", LeastConnection, &[1, 1], &[(1, 0), (0, 255)], &[1, 0]),
        ("but not 257", LeastConnection, &[1, 1], &[(1, 0), (0, 257)], &[0, 1]),
        ("weights mean nothing to lc", LeastConnection, &[9, 1], &[(1, 0), (0, 0)], &[1]),
        ("nobody has anything: in turn behind the last", LeastConnection, &[1, 1, 1], &[], &[0, 1, 2, 0]),
        ("wlc by weight", WeightedLeastConnection, &[1, 3], &[(1, 0), (2, 0)], &[1, 0]),
        ("sed looks one ahead", ShortestExpectedDelay, &[1, 3], &[(0, 0), (1, 0)], &[1, 0, 1]),
        ("sed does not see inactive ones", ShortestExpectedDelay, &[1, 1], &[(0, 999), (1, 0)], &[0]),
        ("nq takes an idle one, however slow", NeverQueue, &[1, 9], &[(0, 0), (1, 0)], &[0, 1]),
        ("nq without idle ones is sed", NeverQueue, &[1, 3], &[(1, 0), (1, 0)], &[1, 1, 1]),
    ];
    for (what, rule, weights, have, want) in table {
        let candidates = candidates(weights);
        let got = next(*rule, &candidates, &loads(have), candidates.len() - 1, want.len());
        assert_eq!(got, *want, "{what}");
    }
}

#[test]
fn connections_one_at_a_time_go_round() {
    // Nothing is ever open when the next one comes, as with sed and nq, to which closed ones do not count.
    for rule in [Rule::ShortestExpectedDelay, Rule::NeverQueue] {
        let candidates = equal(4);
        let (mut last, mut got) = (3, Vec::new());
        for _ in 0..8 {
            last = next(rule, &candidates, &Loads::new(), last, 1)[0];
            got.push(last);
        }
        assert_eq!(got, [0, 1, 2, 3, 0, 1, 2, 3]);
    }
}

#[test]
fn a_ring_keeps_its_size_while_it_fits() {
    let table = [
        (0, 1, 64),
        (0, 10, 64),
        (0, 16, 64),
        (0, 17, 128),
        (64, 17, 64),
        (64, 32, 64),
        (64, 33, 256),
        (256, 17, 256),
        (256, 16, 256),
        (512, 16, 64),
        (0, 500, 1024),
        (1024, 600, 1024),
        (0, 5000, 8192),
        (100, 10, 64),
    ];
    for (previous, endpoints, want) in table {
        assert_eq!(ring_size(previous, endpoints), want, "from {previous} with {endpoints} endpoints");
    }
}

#[test]
fn beyond_the_horizon_there_is_round_robin() {
    let (candidates, ring) = (equal(10), vec![endpoint(3); 64]);
    let loads =
        loads(&[(100, 0), (100, 0), (100, 0), (100, 0), (100, 0), (100, 0), (100, 0), (100, 0), (100, 0), (0, 0)]);
    let redeal = |expected| {
        let redeal = Redeal {
            rule: Rule::LeastConnection,
            candidates: &candidates,
            ring: &ring,
            picks: 130,
            loads: &loads,
            expected,
            seed: 0,
        };
        let dealt = redeal.deal();
        dealt.into_iter().filter(|one| *one == endpoint(9)).count()
    };
    // Of the other slots every tenth is the newcomer's, but for those that were picked lately.
    assert_eq!(redeal(0), 8 + 4, "little is expected");
    assert_eq!(redeal(1000), 32 + 2, "never more than half of the ring");
}

#[test]
fn who_leaves_gives_up_their_slots_and_others_keep_theirs() {
    let scheduler = Scheduler::LeastConnection;
    let all = equal(4);
    let first =
        deal(scheduler, Hand { candidates: &all, previous: &[], seed: 2, changes: 0, tables: TableSizes::default() })
            .slots;
    assert_eq!((first.len(), first[0]), (64, endpoint(2)), "begins by the seed");
    let rest = deal(
        scheduler,
        Hand { candidates: &all[..3], previous: &first, seed: 2, changes: 0, tables: TableSizes::default() },
    )
    .slots;
    for (was, is) in first.iter().zip(&rest) {
        assert!(*is != endpoint(3) && (was == is || *was == endpoint(3)));
    }
    let back =
        deal(scheduler, Hand { candidates: &all, previous: &rest, seed: 2, changes: 0, tables: TableSizes::default() })
            .slots;
    assert_eq!(back.iter().filter(|one| **one == endpoint(3)).count(), 16, "a newcomer gets its share at once");
    assert_eq!(
        deal(scheduler, Hand { candidates: &all, previous: &back, seed: 2, changes: 0, tables: TableSizes::default() })
            .slots,
        back,
        "nothing changed"
    );
}

/// IPVS's loop over its list of servers, from a place in the list on: the first becomes `least`, a later one has to beat it.
fn ipvs(rule: Rule, loads: &[Load], weights: &[u32], start: usize) -> usize {
    let n = loads.len();
    let order: Vec<usize> = (0..n).map(|step| (start + step) % n).collect();
    let overhead = |i: usize| match rule {
        Rule::LeastConnection | Rule::WeightedLeastConnection => {
            (u64::from(loads[i].active) << 8) + u64::from(loads[i].inactive)
        }
        _ => u64::from(loads[i].active) + 1,
    };
    if rule == Rule::NeverQueue
        && let Some(idle) = order.iter().find(|i| loads[**i].active == 0)
    {
        return *idle;
    }
    let mut least = order[0];
    for &i in &order[1..] {
        let beats = match rule {
            Rule::LeastConnection => overhead(i) < overhead(least),
            _ => overhead(least) * u64::from(weights[i]) > overhead(i) * u64::from(weights[least]),
        };
        if beats {
            least = i;
        }
    }
    least
}

fn any_rule() -> impl Strategy<Value = Rule> {
    prop_oneof![
        Just(Rule::LeastConnection),
        Just(Rule::WeightedLeastConnection),
        Just(Rule::ShortestExpectedDelay),
        Just(Rule::NeverQueue)
    ]
}

proptest! {
    #[test]
    fn the_next_picks_are_those_of_the_scheduler(
        rule in any_rule(),
        have in proptest::collection::vec((0u32..6, 0u32..600, 1u32..9), 1..20),
        picks in 0u64..500,
        last in 0usize..20,
    ) {
        let weights: Vec<u32> = have.iter().map(|(_, _, weight)| *weight).collect();
        let candidates = candidates(&weights);
        let mut now: Vec<Load> = have.iter().map(|(active, inactive, _)| Load { active: *active, inactive: *inactive }).collect();
        let loads: Loads = now.iter().enumerate().map(|(last, load)| (endpoint(last), *load)).collect();
        let size = ring_size(0, candidates.len());
        let mut ring = vec![endpoint(0); size];
        let first = (picks % size as u64) as usize;
        let last = last % candidates.len();
        ring[(first + size - 1) % size] = endpoint(last);
        let dealt = Redeal { rule, candidates: &candidates, ring: &ring, picks, loads: &loads, expected: 8, seed: 7 }.deal();
        let mut turn = last + 1;
        for offset in 0..24 {
            let want = ipvs(rule, &now, &weights, turn % now.len());
            prop_assert_eq!(dealt[(first + offset) % size], endpoint(want), "pick {}", offset);
            now[want].active += 1;
            turn = want + 1;
        }
    }

    #[test]
    fn a_ring_holds_candidates_in_proportion(weights in proptest::collection::vec(1u32..9, 1..40), seed in any::<u64>()) {
        let candidates = candidates(&weights);
        let deal = deal(Scheduler::WeightedLeastConnection, Hand { candidates: &candidates, previous: &[], seed, changes: 0, tables: TableSizes::default() });
        prop_assert_eq!(deal.pick, Pick::Ring);
        prop_assert!(deal.slots.len().is_power_of_two());
        let mut have: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        deal.slots.iter().for_each(|one| *have.entry(*one).or_default() += 1);
        let total: u32 = weights.iter().sum();
        for candidate in &candidates {
            let share = deal.slots.len() as f64 * f64::from(candidate.weight) / f64::from(total);
            let got = have.remove(&candidate.endpoint).unwrap_or_default() as f64;
            prop_assert!((got - share).abs() < 2.0, "{} of {}", got, share);
        }
        prop_assert!(have.is_empty(), "nobody else");
    }
}

/// A ring that is as it was dealt at first is left alone until somebody has connections.
#[test]
fn without_connections_nothing_is_dealt_again() {
    for rule in [Rule::LeastConnection, Rule::WeightedLeastConnection, Rule::ShortestExpectedDelay, Rule::NeverQueue] {
        let candidates: Vec<_> = (1u8..=3)
            .map(|last| Candidate { endpoint: SocketAddr::from(([10, 0, 0, last], 80)), weight: u32::from(last) })
            .collect();
        let ring = in_turn(&candidates, MIN_RING, rule.heeds_weights(), 7);
        let nobody = Loads::new();
        let deal = |picks, loads: &Loads| {
            Redeal { rule, candidates: &candidates, ring: &ring, picks, loads, expected: 0, seed: 7 }.deal()
        };
        for picks in 0..130 {
            assert_eq!(deal(picks, &nobody), ring, "{rule:?} after {picks}");
        }
        let somebody = Loads::from([(candidates[2].endpoint, Load { active: 9, inactive: 0 })]);
        assert_ne!(deal(0, &somebody), ring, "{rule:?}");
    }
}

/// Whoever joins, nobody who stays loses all slots.
#[test]
fn all_have_slots_after_a_change() {
    let candidates = |lasts: &[usize]| lasts.iter().map(|last| Candidate::equal(endpoint(*last))).collect::<Vec<_>>();
    let deal = |candidates: &[Candidate], previous: &[SocketAddr], seed| {
        let hand = Hand { candidates, previous, seed, tables: TableSizes::default(), changes: 0 };
        super::deal(Scheduler::LeastConnection, hand).slots
    };
    for (before, after) in
        [(&[2, 8][..], &[1, 2, 4, 8][..]), (&[1, 2, 3], &[1, 2, 3, 4, 5, 6]), (&[5, 6, 7], &[1, 6, 7])]
    {
        for seed in 0..24 {
            let slots = deal(&candidates(after), &deal(&candidates(before), &[], seed), seed + 1);
            assert!(
                after.iter().all(|last| slots.contains(&endpoint(*last))),
                "{before:?} {after:?} {seed}: {slots:?}"
            );
        }
    }
}

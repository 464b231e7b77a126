//! The balancer as a whole: what each method promises, and what holds for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;

const METHODS: [Method; 14] = [
    Method::Random,
    Method::RoundRobin,
    Method::WeightedRoundRobin,
    Method::LeastConnection,
    Method::WeightedLeastConnection,
    Method::ShortestExpectedDelay,
    Method::NeverQueue,
    Method::SourceHash(HashPort::Without),
    Method::SourceHash(HashPort::With),
    Method::DestinationHash,
    Method::Maglev(HashPort::Without),
    Method::Maglev(HashPort::With),
    Method::TwoChoices,
    Method::PeakEwma,
];

fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 80))
}

/// Endpoints from 1 on with these weights.
fn weights(weights: &[u32]) -> Vec<Candidate> {
    (1..).zip(weights).map(|(number, weight)| Candidate { endpoint: endpoint(number), weight: *weight }).collect()
}

fn equal(count: usize) -> Vec<Candidate> {
    weights(&vec![1; count])
}

fn from(client: u32) -> Arrival {
    let frontend = SocketAddr::from(([10, 96, 0, 1], 80));
    Arrival { client: SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(0xc0a8_0000 + client)), 40_000), frontend }
}

/// Opens that many connections, and says to which endpoints (by last octet).
fn open(balancer: &mut Balancer, count: u32) -> Vec<u8> {
    let now = Instant::now();
    let opened = (0..count).map(|client| {
        let chosen = balancer.pick(&from(client), now, &[]).expect("there are candidates");
        balancer.opened(chosen);
        number(chosen)
    });
    opened.collect()
}

/// Opens and closes one after the other.
fn open_and_close(balancer: &mut Balancer, count: u32) -> Vec<u8> {
    let one = |balancer: &mut Balancer| {
        let opened = open(balancer, 1);
        balancer.closed(endpoint(opened[0]));
        opened[0]
    };
    (0..count).map(|_| one(balancer)).collect()
}

fn number(endpoint: SocketAddr) -> u8 {
    match endpoint.ip() {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => unreachable!("these tests use IPv4"),
    }
}

fn tally(chosen: &[u8]) -> Vec<usize> {
    let mut counts = BTreeMap::new();
    chosen.iter().for_each(|number| *counts.entry(*number).or_default() += 1);
    counts.into_values().collect()
}

// === what each method promises ===

#[test]
fn turns() {
    let rr = |seed| open(&mut Balancer::new(Method::RoundRobin, &weights(&[1, 5, 1]), seed), 6);
    assert_eq!(rr(0), [1, 2, 3, 1, 2, 3]);
    assert_eq!(rr(1), [2, 3, 1, 2, 3, 1], "the seed says who begins");
    let mut wrr = Balancer::new(Method::WeightedRoundRobin, &weights(&[5, 1, 1]), 0);
    assert_eq!(open(&mut wrr, 7), [1, 1, 2, 1, 3, 1, 1], "smooth: as nginx deals the same weights");
    assert_eq!(open(&mut wrr, 7), [1, 1, 2, 1, 3, 1, 1], "each round alike");
}

#[test]
fn turns_go_on_through_changes() {
    let mut balancer = Balancer::new(Method::RoundRobin, &equal(4), 0);
    assert_eq!(open(&mut balancer, 2), [1, 2]);
    balancer.update(&equal(5));
    assert_eq!(tally(&open(&mut balancer, 3)), [1, 1, 1], "the next three are three others");
    assert_eq!(tally(&open(&mut balancer, 50)), [10; 5]);
    balancer.update(&equal(2));
    assert_eq!(tally(&open(&mut balancer, 10)), [5, 5]);
}

#[test]
fn least_connections_catch_up() {
    // The figures measured with IPVS: 25 held at each of four, one joins, forty more arrive.
    let mut lc = Balancer::new(Method::LeastConnection, &equal(4), 7);
    assert_eq!(tally(&open(&mut lc, 100)), [25; 4]);
    lc.update(&equal(5));
    let next = open(&mut lc, 40);
    assert_eq!(tally(&next), [3, 3, 3, 3, 28]);
}

#[test]
fn weights_are_honoured() {
    for method in [Method::WeightedLeastConnection, Method::ShortestExpectedDelay, Method::NeverQueue] {
        let mut balancer = Balancer::new(method, &weights(&[1, 2, 4]), 3);
        assert_eq!(tally(&open(&mut balancer, 70)), [10, 20, 40], "{method}");
    }
    let mut lc = Balancer::new(Method::LeastConnection, &weights(&[1, 2, 4]), 3);
    assert_eq!(tally(&open(&mut lc, 69)), [23; 3], "lc knows no weights");
}

#[test]
fn idle_endpoints() {
    // Short connections one at a time: IPVS' sed and nq send all to one endpoint of several equal ones.
    for method in METHODS {
        let hashes = matches!(method, Method::SourceHash(_) | Method::Maglev(_) | Method::DestinationHash);
        if hashes || [Method::Random, Method::TwoChoices, Method::PeakEwma].contains(&method) {
            continue;
        }
        let mut balancer = Balancer::new(method, &equal(4), 1);
        assert_eq!(tally(&open_and_close(&mut balancer, 400)), [100; 4], "{method}");
    }
    let idle = |method| tally(&open_and_close(&mut Balancer::new(method, &weights(&[1, 2, 4]), 0), 70));
    assert_eq!(idle(Method::WeightedLeastConnection), [10, 20, 40], "by weight where the formula says nothing");
    assert_eq!(idle(Method::NeverQueue), [10, 20, 40]);
    assert_eq!(idle(Method::ShortestExpectedDelay), [70], "the formula says something: the heaviest is the fastest");
}

#[test]
fn never_queue_prefers_the_idle_even_if_light() {
    let mut nq = Balancer::new(Method::NeverQueue, &weights(&[1, 100]), 0);
    let first = open(&mut nq, 2);
    assert_eq!(tally(&first), [1, 1]);
    let mut sed = Balancer::new(Method::ShortestExpectedDelay, &weights(&[1, 100]), 0);
    assert_eq!(open(&mut sed, 2), [2, 2]);
}

#[test]
fn draws_follow_weights() {
    for weighted in [&[1, 1, 1, 1][..], &[1, 2, 5], &[1, 1, 1000], &[1; 100]] {
        let candidates = weights(weighted);
        let mut random = Balancer::new(Method::Random, &candidates, 11);
        let mut counts = BTreeMap::<u8, f64>::new();
        let draws = 40_000;
        open(&mut random, draws).into_iter().for_each(|number| *counts.entry(number).or_default() += 1.0);
        let total: u32 = weighted.iter().sum();
        for (candidate, weight) in candidates.iter().zip(weighted) {
            let expected = f64::from(draws) * f64::from(*weight) / f64::from(total);
            let got = counts.get(&number(candidate.endpoint)).copied().unwrap_or(0.0);
            // Six standard deviations of a binomial: the seed is fixed, so this either always holds or never.
            assert!((got - expected).abs() < 6.0 * expected.sqrt() + 1.0, "{weighted:?}: {got} for {expected}");
        }
    }
}

#[test]
fn two_choices_are_far_more_even_than_one() {
    let spread = |method| {
        let counts = tally(&open(&mut Balancer::new(method, &equal(10), 5), 10_000));
        counts.iter().max().expect("ten") - counts.iter().min().expect("ten")
    };
    assert!(spread(Method::TwoChoices) <= 10);
    assert!(spread(Method::Random) > 40);
    let mut weighted = Balancer::new(Method::TwoChoices, &weights(&[1, 2, 4]), 5);
    for (got, expected) in tally(&open(&mut weighted, 7_000)).into_iter().zip([1_000, 2_000, 4_000]) {
        assert!(got.abs_diff(expected) < 50, "{got} for {expected}");
    }
}

#[test]
fn latency_counts_for_ewma() {
    let now = Instant::now();
    let mut balancer = Balancer::new(Method::PeakEwma, &equal(3), 5);
    for (number, millis) in [(1, 1), (2, 1), (3, 100)] {
        balancer.connected(endpoint(number), Duration::from_millis(millis), now);
    }
    let chosen: Vec<u8> = (0..1_000).map(|n| number(balancer.pick(&from(n), now, &[]).expect("three"))).collect();
    assert!(!chosen.contains(&3), "a hundred times slower, and nobody has connections");
    // Connections count: with many on the fast ones, the slow one is cheaper.
    let chosen = open(&mut balancer, 1_000);
    assert!((1..=20).contains(&chosen.iter().filter(|number| **number == 3).count()));
    // What was slow long ago is tried again; so is who is new.
    let much_later = now + Duration::from_secs(300);
    balancer.connected(endpoint(1), Duration::from_millis(1), much_later);
    balancer.connected(endpoint(2), Duration::from_millis(1), much_later);
    (0..500).for_each(|_| [1, 2].into_iter().for_each(|number| balancer.closed(endpoint(number))));
    let again: BTreeSet<u8> =
        (0..100).map(|n| number(balancer.pick(&from(n), much_later, &[]).expect("three"))).collect();
    assert!(again.contains(&3));
    balancer.update(&equal(4));
    let chosen = open(&mut balancer, 400);
    let newcomer = chosen.iter().filter(|number| **number == 4).count();
    assert!((20..=250).contains(&newcomer), "a share and not everything: {newcomer}");
}

#[test]
fn failures_are_slow_for_ewma() {
    let now = Instant::now();
    let mut balancer = Balancer::new(Method::PeakEwma, &equal(2), 5);
    balancer.connected(endpoint(1), Duration::from_millis(1), now);
    balancer.connected(endpoint(2), Duration::from_millis(1), now);
    balancer.failed(endpoint(1), now);
    assert!((0..100).all(|n| balancer.pick(&from(n), now, &[]) == Some(endpoint(2))));
}

#[test]
fn hashes_are_even_and_consistent() {
    for method in [Method::SourceHash(HashPort::Without), Method::Maglev(HashPort::Without)] {
        let choices = |candidates: &[Candidate], seed| {
            let mut balancer = Balancer::new(method, candidates, seed);
            open(&mut balancer, 10_000)
        };
        let candidates = weights(&[1, 2, 3, 4]);
        let before = choices(&candidates, 1);
        for (got, expected) in tally(&before).into_iter().zip([1_000, 2_000, 3_000, 4_000]) {
            assert!(got.abs_diff(expected) < 200, "{got} for {expected}");
        }
        let reversed: Vec<_> = candidates.iter().rev().copied().collect();
        assert_eq!(choices(&reversed, 99), before, "neither order nor seed matter");
        let without: Vec<_> = candidates.iter().filter(|c| c.endpoint != endpoint(2)).copied().collect();
        for (before, after) in before.iter().zip(choices(&without, 1)) {
            assert!(*before == 2 || *before == after, "only the leaver's clients move");
        }
    }
}

#[test]
fn what_is_hashed() {
    let to = |frontend: u8, client: u8, port: u16| Arrival {
        client: SocketAddr::from(([192, 0, 2, client], port)),
        frontend: SocketAddr::from(([10, 96, 0, frontend], 80)),
    };
    let distinct = |method, arrivals: Vec<Arrival>| {
        let mut balancer = Balancer::new(method, &equal(8), 1);
        let now = Instant::now();
        arrivals.iter().filter_map(|arrival| balancer.pick(arrival, now, &[])).collect::<BTreeSet<_>>().len()
    };
    let ports = || (1_000..1_200).map(|port| to(1, 1, port)).collect::<Vec<_>>();
    let clients = || (1..200).map(|client| to(1, client, 1_000)).collect::<Vec<_>>();
    let frontends = || (1..200).map(|frontend| to(frontend, 1, 1_000)).collect::<Vec<_>>();
    let table = [
        (Method::SourceHash(HashPort::Without), [1, 8, 1]),
        (Method::SourceHash(HashPort::With), [8, 8, 1]),
        (Method::Maglev(HashPort::Without), [1, 8, 1]),
        (Method::Maglev(HashPort::With), [8, 8, 1]),
        (Method::DestinationHash, [1, 1, 8]),
    ];
    for (method, expected) in table {
        assert_eq!(
            [ports(), clients(), frontends()].map(|arrivals| distinct(method, arrivals)),
            expected,
            "{method:?}"
        );
    }
}

// === probation ===

#[test]
fn who_keeps_failing_is_set_aside_and_tried_again() {
    for method in METHODS {
        let mut now = Instant::now();
        let mut balancer = Balancer::new(method, &equal(3), 0);
        let bad = balancer.pick(&from(1), now, &[]).expect("three");
        (0..3).for_each(|_| balancer.failed(bad, now));
        assert!(balancer.is_set_aside(bad, now));
        assert!((0..100).all(|_| balancer.pick(&from(1), now, &[]) != Some(bad)), "{method}");
        now += Duration::from_secs(1);
        // At most one trial at a time, whatever the method.
        let trials = (0..100).filter(|_| balancer.pick(&from(1), now, &[]) == Some(bad)).count();
        assert!(trials <= 1, "{method}: {trials}");
        balancer.connected(bad, Duration::from_millis(1), now);
        assert!(!balancer.is_set_aside(bad, now));
    }
}

#[test]
fn probation_refuses_nobody() {
    for method in METHODS {
        let now = Instant::now();
        let mut balancer = Balancer::new(method, &equal(3), 0);
        (1..=3).for_each(|number| (0..3).for_each(|_| balancer.failed(endpoint(number), now)));
        // Two of them failed their trials as well: the third is the least bad.
        let later = now + Duration::from_secs(1);
        for number in [1, 2] {
            let others: Vec<_> = (1..=3).filter(|other| *other != number).map(endpoint).collect();
            assert_eq!(balancer.pick(&from(1), later, &others), Some(endpoint(number)));
            balancer.failed(endpoint(number), later);
        }
        assert_eq!(balancer.pick(&from(1), later, &[]), Some(endpoint(3)), "{method}");
        assert_eq!(balancer.pick(&from(1), later, &[]), Some(endpoint(3)), "{method}: and again during its trial");
        assert!(balancer.pick(&from(1), later, &[endpoint(3)]).is_some(), "{method}");
        assert_eq!(balancer.pick(&from(1), later, &[endpoint(1), endpoint(2), endpoint(3)]), None);
    }
}

#[test]
fn probation_survives_updates_of_the_others() {
    let now = Instant::now();
    let mut balancer = Balancer::new(Method::RoundRobin, &equal(3), 0);
    (0..3).for_each(|_| balancer.failed(endpoint(1), now));
    balancer.update(&equal(4));
    assert!(balancer.is_set_aside(endpoint(1), now));
    balancer.update(&equal(4)[1..]);
    balancer.update(&equal(4));
    assert!(!balancer.is_set_aside(endpoint(1), now), "who was gone and had no connections begins anew");
}

// === counts ===

#[test]
fn connections_of_the_departed_count_when_they_come_back() {
    let mut balancer = Balancer::new(Method::LeastConnection, &equal(2), 0);
    open(&mut balancer, 10);
    balancer.update(&equal(1));
    assert_eq!(balancer.active(endpoint(2)), 5);
    balancer.closed(endpoint(2));
    balancer.update(&equal(2));
    assert_eq!(balancer.active(endpoint(2)), 4);
    // One that was dialled while it left.
    balancer.update(&[]);
    assert_eq!(balancer.pick(&from(1), Instant::now(), &[]), None);
    balancer.opened(endpoint(9));
    assert_eq!(balancer.active(endpoint(9)), 1);
    balancer.closed(endpoint(9));
    balancer.closed(endpoint(9));
    assert_eq!(balancer.active(endpoint(9)), 0);
    assert!(!balancer.departed.contains_key(&endpoint(9)));
}

#[derive(Clone, Debug)]
enum Step {
    Pick { client: u32, excluded: Vec<u8> },
    Close(u8),
    Fail(u8),
    Connect(u8, u64),
    Wait(u64),
    Update(Vec<(u8, u32)>),
}

fn step() -> impl Strategy<Value = Step> {
    let who = 1u8..8;
    let candidates = proptest::collection::btree_map(1u8..8, 1u32..6, 0..8);
    prop_oneof![
        8 => (any::<u32>(), proptest::collection::vec(who.clone(), 0..3))
            .prop_map(|(client, excluded)| Step::Pick { client: client % 1_000, excluded }),
        3 => who.clone().prop_map(Step::Close),
        2 => who.clone().prop_map(Step::Fail),
        2 => (who, 0u64..1_000).prop_map(|(who, millis)| Step::Connect(who, millis)),
        1 => (0u64..5_000).prop_map(Step::Wait),
        1 => candidates.prop_map(|candidates| Step::Update(candidates.into_iter().collect())),
    ]
}

proptest! {
    /// Whatever happens: only candidates that are not excluded; somebody, if there is one; counts are what was opened and closed;
    /// and an exact method's choice is one of the cheapest of those in good standing.
    #[test]
    fn choices_are_allowed_and_exact(
        method in proptest::sample::select(&METHODS),
        seed: u64,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut now = Instant::now();
        let mut candidates = weights(&[1, 2, 3]);
        let mut balancer = Balancer::new(method, &candidates, seed);
        let mut active = BTreeMap::<u8, u32>::new();
        for step in steps {
            match step {
                Step::Pick { client, excluded } => {
                    let excluded: Vec<_> = excluded.into_iter().map(endpoint).collect();
                    let allowed: Vec<_> =
                        candidates.iter().filter(|candidate| !excluded.contains(&candidate.endpoint)).collect();
                    let preferred: Vec<_> =
                        allowed.iter().filter(|c| !balancer.is_set_aside(c.endpoint, now)).copied().collect();
                    let chosen = balancer.pick(&from(client), now, &excluded);
                    prop_assert_eq!(chosen.is_some(), !allowed.is_empty());
                    let Some(chosen) = chosen else { continue };
                    prop_assert!(allowed.iter().any(|candidate| candidate.endpoint == chosen));
                    if !preferred.is_empty() {
                        let of = |number: u8| active.get(&number).copied().unwrap_or(0);
                        prop_assert!(preferred.iter().any(|candidate| candidate.endpoint == chosen));
                        let cost = |c: &Candidate| brute_force(method, of(number(c.endpoint)), c.weight);
                        let mine = preferred.iter().find(|c| c.endpoint == chosen).and_then(|c| cost(c));
                        let least = preferred.iter().filter_map(|c| cost(c)).min_by(f64::total_cmp);
                        prop_assert_eq!(mine, least);
                    }
                    balancer.opened(chosen);
                    *active.entry(number(chosen)).or_default() += 1;
                }
                Step::Close(who) => {
                    balancer.closed(endpoint(who));
                    active.entry(who).and_modify(|count| *count = count.saturating_sub(1));
                }
                Step::Fail(who) => balancer.failed(endpoint(who), now),
                Step::Connect(who, millis) => balancer.connected(endpoint(who), Duration::from_millis(millis), now),
                Step::Wait(millis) => now += Duration::from_millis(millis),
                Step::Update(next) => {
                    candidates =
                        next.into_iter().map(|(who, weight)| Candidate { endpoint: endpoint(who), weight }).collect();
                    balancer.update(&candidates);
                }
            }
            for who in 1..8 {
                prop_assert_eq!(balancer.active(endpoint(who)), active.get(&who).copied().unwrap_or(0));
            }
            let troubled = balancer.members.iter().filter(|member| !member.standing.is_good()).count();
            prop_assert_eq!(balancer.troubled, troubled);
        }
    }

    /// After any number of whole rounds, everybody had exactly its share, and in between nobody is far from it.
    #[test]
    fn weighted_turns_are_smooth(weighted in proptest::collection::vec(1u32..12, 1..8), seed: u64) {
        let candidates = weights(&weighted);
        let mut balancer = Balancer::new(Method::WeightedRoundRobin, &candidates, seed);
        let total: u32 = weighted.iter().sum();
        let mut counts = vec![0.0; weighted.len()];
        for turn in 1..=3 * total {
            counts[usize::from(open(&mut balancer, 1)[0]) - 1] += 1.0;
            for (count, weight) in counts.iter().zip(&weighted) {
                let due = f64::from(turn) * f64::from(*weight) / f64::from(total);
                prop_assert!(f64::abs(count - due) <= weighted.len() as f64, "{} is far from {}", count, due);
                prop_assert!(turn % total != 0 || *count == due);
            }
        }
    }
}

/// What IPVS compares, the slow way; `None` for methods that do not compare.
fn brute_force(method: Method, active: u32, weight: u32) -> Option<f64> {
    let (active, weight) = (f64::from(active), f64::from(weight));
    match method {
        Method::LeastConnection => Some(active),
        Method::WeightedLeastConnection => Some(active / weight),
        Method::ShortestExpectedDelay => Some((active + 1.0) / weight),
        Method::NeverQueue => Some(if active == 0.0 { 0.0 } else { (active + 1.0) / weight }),
        _ => None,
    }
}

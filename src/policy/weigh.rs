//! What qualifying endpoints weigh: from annotations to the candidates that a scheduler deals from.
//!
//! [`weigh`] turns one set of qualifying endpoints into [`Candidate`]s. Whoever weighs 0 is none of them, so every scheduler leaves it
//! alone; a set in which nobody would be left is used as if nothing had been said, because a Service without endpoints refuses its
//! clients. Then comes slow start, which takes a part of a weight away, and at last the split: groups get their shares, whatever their
//! endpoints weigh together, and within a group weights count. So a group whose only endpoint starts has all of its share at once.
//!
//! Numbers are exact: a candidate's weight is its share multiplied by what makes all of them whole numbers, divided by their greatest
//! common divisor, so that few slots do where few can. A split that takes more than 1,000 is rounded to that, group by group. Only sums
//! beyond 2^24 are rounded, to that, which errs by less than 0.02 percentage points for a group of 5,000 endpoints; nobody rounds to
//! nothing (`proportion`). What that does to a small group is told in `remarks`.
//!
//! [`scheduler`] says who deals: weights on a Service that chose no scheduler turn `rr` into `wrr` and `lc` into `wlc`; a scheduler that
//! was chosen stays, and `remarks` tells that it does not look at weights.
//!
//! Proven by the tables and properties below; what is said about it, in `remarks`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::assess::Assessment;
use super::proportion::{fit, gcd, reduce};
use crate::model::tuning::Split;
use crate::model::{Endpoint, Service, Slice};
use crate::schedule::{Candidate, Scheduler};

/// Which endpoints of a Service are in slow start, and how many per cent of their weight they have. By address: whoever starts does so
/// on all of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warming(pub BTreeMap<IpAddr, u32>);

/// An endpoint and what is known of it.
pub(super) type Known<'a> = (SocketAddr, &'a Endpoint);

/// Whether anything could make the endpoints of a Service differ.
pub(super) fn is_weighted<'a>(service: &Service, mut slices: impl Iterator<Item = &'a Slice>) -> bool {
    // All endpoints of a slice have its weight.
    service.tuning.is_weighted() || slices.any(|slice| slice.endpoints.first().is_some_and(|one| one.weight.is_some()))
}

/// Who deals the slots of a Service, given whether it has weights.
pub(super) fn scheduler(service: &Service, default: Scheduler, weighted: bool) -> Scheduler {
    match service.scheduler {
        Some(chosen) => chosen,
        None if weighted => twin(default).unwrap_or(default),
        None => default,
    }
}

/// The scheduler that does the same with weights.
fn twin(scheduler: Scheduler) -> Option<Scheduler> {
    match scheduler {
        Scheduler::RoundRobin => Some(Scheduler::WeightedRoundRobin),
        Scheduler::LeastConnection => Some(Scheduler::WeightedLeastConnection),
        _ => None,
    }
}

/// Whether every one of these is drained, so that all are used alike.
pub(super) fn all_drained<'a>(assessment: &Assessment<'_>, endpoints: impl Iterator<Item = Known<'a>>) -> bool {
    let mut endpoints = endpoints.peekable();
    endpoints.peek().is_some() && endpoints.all(|(at, endpoint)| assessment.weight(at, endpoint) == 0)
}

/// Weighs qualifying endpoints, which stay in their order, for a scheduler that has weights `dealt` as slots or not.
pub(super) fn weigh(
    assessment: &Assessment<'_>,
    endpoints: &[Known<'_>],
    warming: &Warming,
    dealt: bool,
) -> Vec<Candidate> {
    let drained = all_drained(assessment, endpoints.iter().copied());
    let weight = |(at, endpoint): &Known<'_>| if drained { 1 } else { u64::from(assessment.weight(*at, endpoint)) };
    let percent = |endpoint: &Endpoint| u64::from(warming.0.get(&endpoint.address).copied().unwrap_or(100));
    let weighed = endpoints.iter().map(|one| (one.0, one.1, weight(one) * percent(one.1)));
    let weighed: Vec<_> = weighed.filter(|(_, _, weight)| *weight > 0).collect();
    let weights: Vec<u64> = weighed.iter().map(|(_, _, weight)| *weight).collect();
    let groups: Vec<_> = weighed.iter().map(|(_, endpoint, _)| assessment.said(endpoint).group).collect();
    let whole = match assessment.tuning().split.as_ref().and_then(|split| divide(split, &groups, &weights)) {
        Some(divided) => {
            fit(&divided, dealt).unwrap_or_else(|| reduce(divided.into_iter().map(|(_, number)| number).collect()))
        }
        None => reduce(weights.iter().map(|weight| u128::from(*weight)).collect()),
    };
    let candidates = weighed.iter().zip(whole);
    candidates
        .filter(|(_, weight)| *weight > 0)
        .map(|((at, _, _), weight)| Candidate { endpoint: *at, weight })
        .collect()
}

/// The share of a group, in millionths.
pub(super) fn share_of(split: &Split, group: usize) -> u32 {
    split.groups().get(group).map_or_else(|| split.rest(), |group| group.share)
}

/// Gives each group its share, divided by weight: for each endpoint its group and a number in proportion to what it gets, 0 if that has no
/// share. `None` if nobody here has a share.
fn divide(split: &Split, groups: &[usize], weights: &[u64]) -> Option<Vec<(usize, u128)>> {
    let mut sums: BTreeMap<usize, u64> = BTreeMap::new();
    for (group, weight) in groups.iter().zip(weights) {
        *sums.entry(*group).or_default() += weight;
    }
    sums.retain(|group, _| share_of(split, *group) > 0);
    if sums.is_empty() {
        return None;
    }
    // share / sum is what a unit of weight gets in a group; the least common multiple of what is left below the line makes all whole.
    let below = |group: &usize, sum: u64| sum / gcd(u128::from(sum), u128::from(share_of(split, *group))) as u64;
    let common = sums.iter().try_fold(1u128, |common, (group, sum)| {
        let below = u128::from(below(group, *sum));
        (common / gcd(common, below)).checked_mul(below).filter(|common| *common <= u128::from(u64::MAX))
    });
    // Too large for whole numbers: 2^64 is finer than anything that is made of it.
    let common = common.unwrap_or(u128::from(u64::MAX));
    let each = groups.iter().zip(weights).map(|(group, weight)| {
        let sum = sums.get(group).copied()?;
        // A share is below 2^20; a weight is no more than its group's sum: below 2^85 each, and below 2^98 together.
        let share = u128::from(share_of(split, *group)) * common;
        Some((share / u128::from(sum) * u128::from(*weight)).max(1))
    });
    Some(groups.iter().copied().zip(each.map(Option::unwrap_or_default)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::proportion::{FEW, MAX_TOTAL};
    use super::*;
    use crate::model::Tuning;
    use crate::source::ObjectKey;

    fn tuning(annotations: &[(&str, &str)]) -> Tuning {
        let annotations: BTreeMap<_, _> =
            annotations.iter().map(|(key, value)| (format!("pointsman.dev/{key}"), value)).collect();
        let value = json!({
            "metadata": {"annotations": annotations}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
        });
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        let service = Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served");
        service.tuning.as_ref().clone()
    }

    fn endpoint(number: usize, pod: &str) -> Endpoint {
        let [.., high, low] = number.to_be_bytes();
        Endpoint { pod: Some(pod.into()), ..Endpoint::ready_at([10, 1, high, low]) }
    }

    /// Groups of pods by the first part of their name: `("canary", 1), ("main", 50)`.
    fn pods(groups: &[(&str, usize)]) -> Vec<Endpoint> {
        let names = groups.iter().flat_map(|(name, count)| (0..*count).map(move |number| format!("{name}-{number}")));
        names.enumerate().map(|(number, pod)| endpoint(number, &pod)).collect()
    }

    fn weighed(tuning: &Tuning, endpoints: &[Endpoint], warming: &Warming) -> Vec<(String, u32)> {
        weighed_for(tuning, endpoints, warming, false)
    }

    fn weighed_for(tuning: &Tuning, endpoints: &[Endpoint], warming: &Warming, dealt: bool) -> Vec<(String, u32)> {
        let known: Vec<Known<'_>> = endpoints.iter().map(|one| (SocketAddr::new(one.address, 80), one)).collect();
        let candidates = weigh(&Assessment::of(tuning, endpoints.iter()), &known, warming, dealt);
        let pod = |at: SocketAddr| endpoints.iter().find(|one| one.address == at.ip()).and_then(|one| one.pod.clone());
        candidates.iter().map(|one| (pod(one.endpoint).expect("known").to_string(), one.weight)).collect()
    }

    /// Group by group, what part of all they have, in per cent.
    fn shares(weighed: &[(String, u32)]) -> BTreeMap<String, f64> {
        let total: f64 = weighed.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut shares = BTreeMap::new();
        for (pod, weight) in weighed {
            let group = pod.rsplit_once('-').map_or(pod.as_str(), |(group, _)| group);
            *shares.entry(group.to_owned()).or_default() += f64::from(*weight) * 100.0 / total;
        }
        shares
    }

    fn line(weighed: &[(String, u32)]) -> String {
        weighed.iter().map(|(pod, weight)| format!("{pod}:{weight}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn weights() {
        type Row = (&'static [(&'static str, &'static str)], &'static [(&'static str, usize)], &'static str);
        let table: [Row; 14] = [
            (&[], &[("a", 2)], "a-0:1 a-1:1"),
            (&[("weights", "a-0=5,a-1=2")], &[("a", 3)], "a-0:5 a-1:2 a-2:1"),
            (&[("weights", "*=100")], &[("a", 2)], "a-0:1 a-1:1"),
            (&[("weights", "a-*=300,*=100")], &[("a", 1), ("b", 1)], "a-0:3 b-0:1"),
            (&[("weights", "a-0=0")], &[("a", 3)], "a-1:1 a-2:1"),
            (&[("weights", "*=0")], &[("a", 2)], "a-0:1 a-1:1"),
            (&[("split", "a-*=5%,*=95%")], &[("a", 1), ("b", 1)], "a-0:1 b-0:19"),
            (&[("split", "a-*=5%,*=95%")], &[("a", 1), ("b", 3)], "a-0:3 b-0:19 b-1:19 b-2:19"),
            (&[("split", "a-*=5%,*=95%"), ("weights", "b-0=2")], &[("a", 1), ("b", 2)], "a-0:3 b-0:38 b-1:19"),
            (&[("split", "a-*=5%,*=95%"), ("weights", "b-0=0")], &[("a", 1), ("b", 2)], "a-0:1 b-1:19"),
            (&[("split", "a-*=5%,*=95%"), ("weights", "a-*=0")], &[("a", 1), ("b", 2)], "b-0:1 b-1:1"),
            (&[("split", "a-*=5%,*=95%"), ("weights", "*=0")], &[("a", 1), ("b", 1)], "a-0:1 b-0:19"),
            (&[("split", "a-*=0%,*=100%")], &[("a", 1), ("b", 2)], "b-0:1 b-1:1"),
            (&[("split", "a-*=5%,*=95%")], &[("a", 2), ("b", 2)], "a-0:1 a-1:1 b-0:19 b-1:19"),
        ];
        for (annotations, groups, want) in table {
            let got = weighed(&tuning(annotations), &pods(groups), &Warming::default());
            assert_eq!(line(&got), want, "{annotations:?} {groups:?}");
        }
    }

    #[test]
    fn shares_of_groups_that_are_not_all_there() {
        let table = [
            ("a-*=20%,b-*=60%,*=20%", &[("b", 4), ("c", 1)][..], "b 75 c 25"),
            ("a-*=20%,b-*=60%,*=20%", &[("a", 1)], "a 100"),
            ("a-*=5%", &[("a", 3), ("b", 7)], "a 5 b 95"),
            ("a-*=5%", &[("a", 3)], "a 100"),
            ("a-*=50%,b-*=50%", &[("a", 1), ("b", 2), ("c", 5)], "a 50 b 50"),
            ("a-*=60%,b-*=60%", &[("a", 1), ("b", 2)], "a 50 b 50"),
            ("a-*=30%,b-*=30%", &[("a", 1), ("b", 2)], "a 50 b 50"),
            ("a-*=0%,b-*=100%", &[("a", 4)], "a 100"),
            ("a-*=0.0001%,*=99.9999%", &[("a", 2), ("b", 2)], "a 0.0001 b 99.9999"),
        ];
        for (split, groups, want) in table {
            let got = shares(&weighed(&tuning(&[("split", split)]), &pods(groups), &Warming::default()));
            let rounded = |share: f64| (share * 1e4).round() / 1e4;
            let line: Vec<_> = got.iter().map(|(group, share)| format!("{group} {}", rounded(*share))).collect();
            assert_eq!(line.join(" "), want, "{split} {groups:?}");
        }
    }

    /// However many endpoints are on either side, few enough for slots.
    #[test]
    fn a_canary_beside_many() {
        let tuning = tuning(&[("split", "a-*=5%,*=95%")]);
        for (canaries, others) in [(1, 1), (1, 3), (1, 50), (1, 70), (3, 70), (50, 50), (7, 300), (50, 501), (1, 950)] {
            let got = weighed(&tuning, &pods(&[("a", canaries), ("b", others)]), &Warming::default());
            assert!((shares(&got)["a"] - 5.0).abs() < 1e-9, "{canaries} {others}");
            let total: u32 = got.iter().map(|(_, weight)| weight).sum();
            assert!(total <= FEW, "{canaries} {others}: {total}");
            let of = |group: &str| {
                got.iter().filter(|(pod, _)| pod.starts_with(group)).map(|(_, weight)| *weight).collect::<Vec<_>>()
            };
            for weights in [of("a"), of("b")] {
                let (least, most) = (weights.iter().min().expect("some"), weights.iter().max().expect("some"));
                assert!(*least > 0 && most - least <= 1, "{canaries} {others}: {least} to {most}");
            }
        }
        // More canaries than their share has slots: exact, for whoever can make something of it.
        let got = weighed(&tuning, &pods(&[("a", 60), ("b", 70)]), &Warming::default());
        assert!((shares(&got)["a"] - 5.0).abs() < 1e-3);
    }

    /// Shares below what a slot is: one slot each, and no more than that.
    #[test]
    fn a_tiny_group_has_one_slot_for_each() {
        for (split, canaries, others, slots) in [
            ("a-*=0.0001%,*=99.9999%", 1, 2, 1),
            ("a-*=0.0001%,*=99.9999%", 3, 50, 3),
            ("a-*=0.05%,*=99.95%", 1, 7, 1),
            ("a-*=5%,*=95%", 60, 70, 60),
        ] {
            let tuning = tuning(&[("split", split)]);
            let got = weighed_for(&tuning, &pods(&[("a", canaries), ("b", others)]), &Warming::default(), true);
            let sum = |group: &str| -> u32 {
                got.iter().filter(|(pod, _)| pod.starts_with(group)).map(|(_, weight)| weight).sum()
            };
            assert_eq!((sum("a"), sum("b")), (slots, FEW - slots), "{split} {canaries} {others}");
            let weights: Vec<u32> = got.iter().map(|(_, weight)| *weight).collect();
            assert_eq!(crate::schedule::share(&weights).error, 0.0, "slots as they are");
        }
    }

    #[test]
    fn starting_takes_a_part_of_the_weight_and_never_of_a_groups_share() {
        let endpoints = pods(&[("a", 2), ("b", 2)]);
        let warming = |numbers: &[(usize, u32)]| {
            Warming(numbers.iter().map(|(number, percent)| (endpoints[*number].address, *percent)).collect())
        };
        let got = |annotations: &[(&str, &str)], numbers: &[(usize, u32)]| {
            line(&weighed(&tuning(annotations), &endpoints, &warming(numbers)))
        };
        assert_eq!(got(&[], &[(0, 10)]), "a-0:1 a-1:10 b-0:10 b-1:10");
        assert_eq!(got(&[("weights", "a-*=2")], &[(0, 25)]), "a-0:1 a-1:4 b-0:2 b-1:2");
        assert_eq!(got(&[], &[(0, 10), (1, 10), (2, 10), (3, 10)]), "a-0:1 a-1:1 b-0:1 b-1:1", "all new: all equal");
        let split = [("split", "a-*=20%,*=80%")];
        assert_eq!(got(&split, &[(0, 50)]), "a-0:1 a-1:2 b-0:6 b-1:6");
        assert_eq!(
            got(&split, &[(0, 10), (1, 10)]),
            "a-0:1 a-1:1 b-0:4 b-1:4",
            "a group that is all new has its share"
        );
    }

    #[test]
    fn who_deals() {
        let mut service = {
            let value = json!({"metadata": {}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}});
            let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
            Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served")
        };
        assert_eq!(scheduler(&service, Scheduler::Random, true), Scheduler::Random);
        assert_eq!(scheduler(&service, Scheduler::RoundRobin, false), Scheduler::RoundRobin);
        assert_eq!(scheduler(&service, Scheduler::RoundRobin, true), Scheduler::WeightedRoundRobin);
        assert_eq!(scheduler(&service, Scheduler::LeastConnection, true), Scheduler::WeightedLeastConnection);
        assert_eq!(scheduler(&service, Scheduler::NeverQueue, true), Scheduler::NeverQueue);
        service.scheduler = Some(Scheduler::RoundRobin);
        assert_eq!(scheduler(&service, Scheduler::Random, true), Scheduler::RoundRobin, "what was chosen stays");
    }

    proptest! {
        /// Whatever the shares, the sizes of groups, the weights and the starts: groups get what is theirs, and nobody gets nothing.
        #[test]
        fn shares_are_exact_and_nobody_rounds_to_nothing(
            groups in proptest::collection::vec((1u32..=1_000_000, proptest::collection::vec((1u16.., 1u32..=100), 0..60)), 1..6),
        ) {
            prop_assume!(groups.iter().any(|(_, members)| !members.is_empty()));
            let percent = |share: u32| format!("{}.{:04}%", share / 10_000, share % 10_000);
            let names = ["a", "b", "c", "d", "e", "f"];
            let split: Vec<_> = groups.iter().zip(names).map(|((share, _), name)| format!("{name}-*={}", percent(*share))).collect();
            let mut endpoints = Vec::new();
            let (mut weights, mut warming) = (Vec::new(), Warming::default());
            for ((_, members), name) in groups.iter().zip(names) {
                for (number, (weight, started)) in members.iter().enumerate() {
                    let one = endpoint(endpoints.len(), &format!("{name}-{number}"));
                    weights.push(format!("{name}-{number}={weight}"));
                    warming.0.insert(one.address, *started);
                    endpoints.push(one);
                }
            }
            let tuning = tuning(&[("split", &split.join(",")), ("weights", &weights.join(","))]);
            let got = weighed(&tuning, &endpoints, &warming);
            prop_assert_eq!(got.len(), endpoints.len(), "nobody is left out");
            prop_assert!(got.iter().all(|(_, weight)| *weight > 0));
            let total: u64 = got.iter().map(|(_, weight)| u64::from(*weight)).sum();
            prop_assert!(total <= MAX_TOTAL + endpoints.len() as u64);
            let present = || groups.iter().zip(names).filter(|((_, members), _)| !members.is_empty());
            let all: f64 = present().map(|((share, _), _)| f64::from(*share)).sum();
            let fitted = total == u64::from(FEW);
            let shares = shares(&got);
            for ((share, members), name) in present() {
                let wanted = f64::from(*share) * 100.0 / all;
                let tolerance = if fitted { 0.1 } else { 0.001 };
                prop_assert!((shares[name] - wanted).abs() < tolerance, "{name}: {} for {wanted}", shares[name]);
                // Within a group by weight, as far as whole numbers go.
                let sum: f64 = members.iter().map(|(weight, started)| f64::from(*weight) * f64::from(*started)).sum();
                for (number, (weight, started)) in members.iter().enumerate().filter(|_| !fitted) {
                    let got = got.iter().find(|(pod, _)| *pod == format!("{name}-{number}")).expect("there").1;
                    let wanted = wanted / 100.0 * f64::from(*weight) * f64::from(*started) / sum;
                    prop_assert!((f64::from(got) / total as f64 - wanted).abs() < 1e-5);
                }
            }
        }
    }
}

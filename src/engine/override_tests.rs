//! What is said by hand, through the engine and with a time of our own.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::tests::{any_change, apply, observable, rich_service, slice, small_engine};
use super::*;
use crate::compile::Image;
use crate::source::Change;

const S: Duration = Duration::from_secs(1);

fn order(who: &str, service: Option<&str>, weight: u16, lasts: Duration, cut: bool) -> Order {
    let who = Who::parse(who).expect("an endpoint");
    Order { who, service: service.map(|name| ServiceName::parse(name).expect("a name")), weight, lasts, cut }
}

/// An engine with Services a and b, which share endpoints 1 and 2; a has 3 as well.
fn two(begin: Instant) -> Engine {
    let mut engine = small_engine();
    engine.take(rich_service("a", &["10.0.0.1".into()], 0, &[1, 2]));
    engine.take(rich_service("b", &["10.0.0.2".into()], 0, &[1]));
    engine.take(slice("a4", "a", false, &[1, 2, 3].into()));
    engine.take(slice("b4", "b", false, &[1, 2].into()));
    engine.take_time(begin);
    engine.compile();
    engine
}

/// Which endpoints get connections, by Service: `a 1 2 3, b 1 2`.
fn served(engine: &Engine) -> String {
    let of = |name: &str| {
        let key = ServiceKey::new("ns", name);
        let seen = engine.look(&key).expect("served");
        let slots: BTreeSet<_> =
            engine.slots(&seen.service.port_key(&seen.service.ports[0]), Family::V4, false).into_iter().collect();
        let last = |at: &SocketAddr| at.ip().to_string().rsplit('.').next().map(str::to_owned);
        format!("{name} {}", slots.iter().filter_map(last).collect::<Vec<_>>().join(" "))
    };
    [of("a"), of("b")].join(", ")
}

fn compile_at(engine: &mut Engine, now: Instant) -> Outcome {
    engine.take_time(now);
    let outcome = engine.compile();
    assert!(engine.next_deadline().is_none_or(|next| next > now), "a deadline that is over would be asked for again");
    outcome
}

#[test]
fn a_drain_holds_for_its_time_where_it_was_asked_for() {
    let begin = Instant::now();
    let mut engine = two(begin);
    assert_eq!(served(&engine), "a 1 2 3, b 1 2");
    let placed = engine.place_override(&order("10.1.0.1", None, 0, 60 * S, false), begin).expect("placed");
    assert_eq!(placed.len(), 2, "behind both Services");
    assert_eq!(engine.next_deadline(), Some(begin), "at once");
    let outcome = compile_at(&mut engine, begin);
    assert_eq!(served(&engine), "a 2 3, b 2");
    assert_eq!(outcome.overridden[0], "ns/a: 10.1.0.1 drained by hand for 1m");
    engine.place_override(&order("10.1.0.2:8001", Some("ns/b"), 0, 10 * S, false), begin + S).expect("placed");
    let timed = engine.compile_timed(begin + S);
    assert_eq!(timed.services, [ServiceKey::new("ns", "b")], "also while changes are held back");
    assert_eq!(served(&engine), "a 2 3, b 1 2", "everybody is drained, so nobody is");
    assert_eq!(timed.problems.len(), 1, "{:?}", timed.problems);
    assert!(timed.problems[0].to_string().contains("all qualifying endpoints have weight 0"));
    assert_eq!(engine.next_deadline(), Some(begin + 11 * S));
    // An endpoint comes, and the drains hold; one of them ends.
    engine.take(slice("b4", "b", false, &[1, 2, 4].into()));
    compile_at(&mut engine, begin + 2 * S);
    assert_eq!(served(&engine), "a 2 3, b 4");
    let outcome = compile_at(&mut engine, begin + 11 * S);
    assert_eq!(outcome.overridden, ["ns/b: 10.1.0.2:8001 is drained by hand no longer: its time is over"]);
    assert_eq!(served(&engine), "a 2 3, b 2 4");
    // Who goes and comes back is still meant; so is who is asked for again, for another time.
    engine.take(slice("a4", "a", false, &[2, 3].into()));
    compile_at(&mut engine, begin + 12 * S);
    engine.take(slice("a4", "a", false, &[1, 2, 3].into()));
    compile_at(&mut engine, begin + 13 * S);
    assert_eq!(served(&engine), "a 2 3, b 2 4");
    engine.place_override(&order("10.1.0.1", Some("a"), 0, 100 * S, false), begin + 14 * S).expect("placed");
    compile_at(&mut engine, begin + 60 * S);
    assert_eq!(served(&engine), "a 2 3, b 1 2 4");
    let lifted = engine.lift_overrides(Who::parse("10.1.0.1:8002").as_ref(), None, begin + 61 * S).expect("lifted");
    assert_eq!(lifted.len(), 1, "named by one of its ports");
    assert_eq!(compile_at(&mut engine, begin + 61 * S).overridden.len(), 1);
    assert_eq!(served(&engine), "a 1 2 3, b 1 2 4");
    assert_eq!((engine.next_deadline(), engine.overrides().count()), (None, 0), "nothing is left");
}

#[test]
fn weights_by_hand_need_a_scheduler_that_looks_at_them() {
    let begin = Instant::now();
    let mut engine = small_engine();
    let value = json!({"metadata": {"namespace": "ns", "name": "a"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "p1", "port": 1}]}});
    engine.take(Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes")))));
    engine.take(slice("a4", "a", false, &[1, 2].into()));
    engine.scheduler = Scheduler::RoundRobin;
    compile_at(&mut engine, begin);
    let key = ServiceKey::new("ns", "a");
    let scheduler =
        |engine: &Engine| engine.look(&key).expect("served").ports[0].resolved.as_ref().expect("decided").scheduler;
    engine.place_override(&order("10.1.0.1", None, 0, S, false), begin).expect("placed");
    compile_at(&mut engine, begin);
    assert_eq!(scheduler(&engine), Scheduler::RoundRobin, "a drain asks for no weights");
    engine.place_override(&order("10.1.0.1", None, 3, S, false), begin).expect("placed");
    compile_at(&mut engine, begin);
    assert_eq!(scheduler(&engine), Scheduler::WeightedRoundRobin);
    let slots = engine.slots(
        &engine.look(&key).expect("served").service.port_key(&engine.store.service(&key).expect("known").ports[0]),
        Family::V4,
        false,
    );
    assert_eq!(slots.iter().filter(|at| at.to_string().starts_with("10.1.0.1:")).count() * 4, slots.len() * 3);
    compile_at(&mut engine, begin + S);
    assert_eq!(scheduler(&engine), Scheduler::RoundRobin);
}

#[test]
fn connections_end_where_that_was_asked_for_and_others_are_there() {
    let begin = Instant::now();
    let mut engine = two(begin);
    engine.place_override(&order("10.1.0.1", None, 0, 60 * S, false), begin).expect("placed");
    compile_at(&mut engine, begin);
    assert_eq!(engine.take_cuts(), [], "a drain ends nothing");
    engine.place_override(&order("10.1.0.1", None, 0, 60 * S, true), begin).expect("placed");
    compile_at(&mut engine, begin);
    let cuts = engine.take_cuts();
    let told: Vec<_> = cuts
        .iter()
        .map(|cut| {
            (cut.destinations.len(), cut.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        })
        .collect();
    assert_eq!(
        told,
        [(1, "10.1.0.1:8001".to_owned()), (1, "10.1.0.1:8002".to_owned()), (1, "10.1.0.1:8001".to_owned())]
    );
    engine.place_override(&order("10.1.0.2", Some("b"), 0, 60 * S, true), begin).expect("placed");
    compile_at(&mut engine, begin);
    assert_eq!(engine.take_cuts(), [], "new connections still go there: they would come back");
    compile_at(&mut engine, begin + S);
    assert_eq!(engine.take_cuts(), [], "and once is enough");
}

#[test]
fn who_is_not_meant_is_said() {
    let begin = Instant::now();
    let mut engine = two(begin);
    let mut said = |who: &str, service: Option<&str>| {
        engine.place_override(&order(who, service, 0, S, false), begin).expect_err(who).to_string()
    };
    assert_eq!(said("10.1.0.9", None), "10.1.0.9 is behind no Service here");
    assert_eq!(said("web-9", Some("a")), "pod web-9 is behind no Service here as far as Service a goes");
    assert_eq!(said("10.1.0.3", Some("ns/b")), "10.1.0.3 is behind no Service here as far as Service ns/b goes");
    assert_eq!(said("10.1.0.1", Some("ns/c\u{1b}")), "no Service ns/c\\u{1b} is served here");
    let nothing = engine.lift_overrides(Who::parse("10.1.0.1").as_ref(), None, begin).expect_err("nothing");
    assert_eq!(nothing.to_string(), "nothing was said by hand about 10.1.0.1");
    assert!(engine.is_idle() && engine.next_deadline().is_none(), "nothing has been done");
}

/// Pods of one name in two namespaces; a pod in the place of another; both families.
#[test]
fn pods_are_meant_by_name_and_addresses_with_their_pod() {
    let begin = Instant::now();
    let objects = |namespace: &str, pod: &str, last: u8| {
        let key = format!("w{last}");
        let spec = json!({"clusterIPs": [format!("10.0.0.{last}"), format!("fd00::{last}")], "ports": [{"name": "p1", "port": 1}]});
        let service = json!({"metadata": {"namespace": namespace, "name": key}, "spec": spec});
        let endpoints = |prefix: &str| json!([{"addresses": [format!("{prefix}{last}")], "targetRef": {"kind": "Pod", "name": pod}}]);
        let labels = json!({"kubernetes.io/service-name": key});
        let slices = [("IPv4", "10.1.0."), ("IPv6", "fd00:1::")].map(|(family, prefix)| {
            json!({"metadata": {"namespace": namespace, "name": format!("{key}-{family}"), "labels": labels}, "addressType": family,
                   "ports": [{"name": "p1", "port": 8001}], "endpoints": endpoints(prefix)})
        });
        let mut changes =
            vec![Change::Apply(Object::Service(Box::new(serde_json::from_value(service).expect("decodes"))))];
        changes.extend(
            slices.map(|one| {
                Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(one).expect("decodes"))))
            }),
        );
        changes
    };
    let mut engine = small_engine();
    [objects("n1", "web-0", 1), objects("n2", "web-0", 2)].concat().into_iter().for_each(|change| engine.take(change));
    compile_at(&mut engine, begin);
    let ambiguous = engine.place_override(&order("web-0", None, 0, S, false), begin).expect_err("two");
    assert!(ambiguous.to_string().ends_with("n1, n2"), "{ambiguous}");
    for (who, service, count) in
        [("n1/web-0", None, 1), ("web-0", Some("n2/w2"), 1), ("10.1.0.1", None, 1), ("fd00:1::1", None, 1)]
    {
        assert_eq!(
            engine.place_override(&order(who, service, 0, 60 * S, false), begin).expect(who).len(),
            count,
            "{who}"
        );
    }
    compile_at(&mut engine, begin);
    let meant = |engine: &Engine, namespace: &str, name: &str| {
        let seen = engine.look(&ServiceKey::new(namespace, name)).expect("served");
        let ports = seen.ports.iter().flat_map(|port| &port.endpoints);
        ports.filter(|one| seen.overrides.iter().any(|said| said.subject.is(one.address, one.endpoint))).count()
    };
    assert_eq!((meant(&engine, "n1", "w1"), meant(&engine, "n2", "w2")), (2, 2), "in both families");
    engine.lift_overrides(Who::parse("n1/web-0").as_ref(), None, begin).expect("three things were said");
    engine.place_override(&order("10.1.0.1", None, 0, 60 * S, false), begin).expect("placed");
    objects("n1", "other", 1).into_iter().for_each(|change| engine.take(change));
    compile_at(&mut engine, begin);
    assert_eq!(meant(&engine, "n1", "w1"), 0, "another pod has the address now");
    assert_eq!(engine.overrides_of(&ServiceKey::new("n1", "w1")).len(), 1, "the first may come back");
}

/// A step of a history: a change, something said or taken back, or time that passes.
#[derive(Clone, Debug)]
enum Step {
    Change(Change),
    Say(u8, Option<&'static str>, u16, u8),
    Lift(u8),
    Pass(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    let service = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
    prop_oneof![
        4 => any_change().prop_map(Step::Change),
        4 => (1u8..6, service, prop_oneof![2 => Just(0u16), 1 => 1u16..5], 1u8..20)
            .prop_map(|(who, service, weight, lasts)| Step::Say(who, service, weight, lasts)),
        1 => (1u8..6).prop_map(Step::Lift),
        2 => (1u8..20).prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is said and happens: what is desired is what a fresh engine desires that is told what stands, and once everything has ended, what one
    /// desires that is told nothing. The kernel's image follows by the differences alone.
    #[test]
    fn what_stands_counts_and_nothing_else(history in proptest::collection::vec(any_step(), 1..40)) {
        let (mut now, mut engine, mut kernel) = (Instant::now(), small_engine(), Image::default());
        let mut past: Vec<Change> = Vec::new();
        let mut check = |engine: &mut Engine, past: &[Change], now: Instant| {
            engine.take_time(now);
            apply(&mut kernel, &engine.compile().delta);
            prop_assert!(engine.next_deadline().is_none_or(|next| next > now));
            let mut fresh = small_engine();
            for (key, one) in engine.overrides() {
                fresh.restore_override(key, one.clone());
            }
            past.iter().cloned().for_each(|change| fresh.take(change));
            fresh.take_time(now);
            fresh.compile();
            let mut wanted = Image::default();
            apply(&mut wanted, &fresh.everything());
            for family in Family::ALL {
                prop_assert_eq!(observable(kernel.table(family)), observable(wanted.table(family)));
            }
            prop_assert!(engine.difference(kernel.clone()).is_empty());
            prop_assert_eq!(engine.overrides().count(), fresh.overrides().count());
            Ok(())
        };
        for step in history {
            match step {
                Step::Change(change) => {
                    past.push(change.clone());
                    engine.take(change);
                }
                // Whether anybody is there who can be meant is not the question.
                Step::Say(who, service, weight, lasts) => {
                    let who = format!("10.1.0.{who}");
                    drop(engine.place_override(&order(&who, service, weight, u32::from(lasts) * S, false), now));
                }
                Step::Lift(who) => drop(engine.lift_overrides(Who::parse(&format!("10.1.0.{who}")).as_ref(), None, now)),
                Step::Pass(seconds) => now += u32::from(seconds) * S,
            }
            check(&mut engine, &past, now)?;
        }
        now += 100 * S;
        check(&mut engine, &past, now)?;
        prop_assert_eq!((engine.overrides().count(), engine.next_deadline()), (0, None));
    }
}

//! The engine against simulated maps: what a kernel would have after any history.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::compile::layout::{Decision, Plan};
use crate::compile::{Comparison, Edits, Hop, SlotKey, Stage, TableDelta, TableImage};
use crate::model::Family;
use crate::model::map::NearMap;
use crate::schedule::live::Load;
use crate::schedule::{Buckets, Pick, TableSizes};
use crate::source::{Object, ObjectKey};

/// Applies edits as a kernel would, refusing what a kernel would refuse.
fn apply_edits<K: Ord + std::hash::Hash + Clone + std::fmt::Debug, V: PartialEq + Clone + std::fmt::Debug>(
    map: &mut NearMap<K, V>,
    edits: &Edits<K, V>,
) {
    for (key, before) in edits.removed() {
        assert_eq!(map.remove(key).as_ref(), Some(before), "removes what is there: {key:?}");
    }
    for (key, after) in edits.added() {
        assert_eq!(map.insert(key.clone(), after.clone()), None, "adds what is not there: {key:?}");
    }
}

macro_rules! apply_all {
    ($table:expr, $edits:expr, $($map:ident),*) => {$( apply_edits(&mut $table.$map, &$edits.$map); )*};
}

pub(super) fn apply(image: &mut Image, delta: &Delta) {
    for family in Family::ALL {
        let (table, edits) = (image.table_mut(family), delta.table(family));
        apply_all!(
            table,
            edits,
            services,
            node_ports,
            hops,
            endpoints,
            members,
            member_slots,
            dedicated,
            source_ranges,
            cluster_ips,
            hairpins,
            masqueraded,
            masqueraded_node_ports,
            node_port_addresses,
            service_networks
        );
    }
}

/// What comes of a connection that meets this decision, numbers aside.
fn reach(table: &TableImage, decision: Decision) -> String {
    let pool = || decision.pool.expect("a pool");
    let hop = |stage| reach(table, table.hops[&Hop { stage, pool: pool() }].decision);
    let (pick, affinity, slots) = match decision.plan {
        Plan::Refuse => return "refuse".to_owned(),
        Plan::Discard => return "discard".to_owned(),
        Plan::SourceRanges => {
            let ranges = table.source_ranges.keys().filter(|range| range.pool == pool());
            let mut ranges: Vec<_> = ranges.map(|range| range.range.to_string()).collect();
            ranges.sort();
            return format!("from {ranges:?}: {}", hop(Stage::Admitted));
        }
        Plan::LocalPolicy => return format!("inside {} outside {}", hop(Stage::Inside), hop(Stage::Outside)),
        Plan::Userspace => return format!("forwarder, or {}", hop(Stage::Instead)),
        Plan::Random(slots) => (Pick::Random, None, u32::from(slots)),
        Plan::Hash(key, buckets) => (Pick::Hash(key), None, buckets.count()),
        Plan::Dedicated => {
            let chain = &table.dedicated[&pool()];
            (chain.pick, chain.affinity, chain.slots)
        }
    };
    let slot = |slot| {
        let key = SlotKey { pool: pool(), slot };
        let member = || table.members.get(table.member_slots.get(&key)?);
        table.endpoints.get(&key).or_else(member).expect("every slot is there").endpoint.to_string()
    };
    let mut endpoints: Vec<_> = (0..slots).map(slot).collect();
    if pick == Pick::Ring {
        // A ring need not be a multiple of its shares: who has one slot more is a matter of history. `schedule::live` has tests of that.
        endpoints.sort();
        endpoints.dedup();
        return format!("ring {affinity:?} {endpoints:?}");
    }
    // In tables every node and every history comes to the same order.
    if !matches!(pick, Pick::Hash(_)) {
        endpoints.sort();
    }
    format!("{pick:?} {affinity:?} {endpoints:?}")
}

/// What a client of each frontend can reach, and everything else that packets can notice.
pub(super) fn observable(table: &TableImage) -> BTreeSet<String> {
    let services = table.services.iter().map(|(key, target)| format!("{key} -> {}", reach(table, target.decision)));
    let node_ports =
        table.node_ports.iter().map(|(key, target)| format!("{key:?} -> {}", reach(table, target.decision)));
    let mut all: BTreeSet<_> = services.chain(node_ports).collect();
    all.extend(table.cluster_ips.keys().map(|address| format!("cluster {address}")));
    all.extend(table.hairpins.keys().map(|address| format!("hairpin {address}")));
    all.extend(table.masqueraded.iter().map(|(key, value)| format!("hide {key} {}", value.from_host_only)));
    all.extend(
        table.masqueraded_node_ports.iter().map(|(key, value)| format!("hide {key:?} {}", value.from_host_only)),
    );
    all.extend(table.node_port_addresses.keys().map(|range| format!("node ports on {range}")));
    all.extend(table.service_networks.keys().map(|range| format!("services in {range}")));
    all
}

/// How many elements there are of the kinds that have numbers in them.
fn numbered(table: &TableImage) -> [usize; 6] {
    let TableImage { hops, endpoints, members, member_slots, dedicated, source_ranges, .. } = table;
    [hops.len(), endpoints.len(), members.len(), member_slots.len(), dedicated.len(), source_ranges.len()]
}

fn service(name: &str, ips: &[String], rr: bool, ports: &[u16]) -> Change {
    let ports: Vec<_> = ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let scheduler = if rr { "rr" } else { "random" };
    let value = json!({
        "metadata": {"namespace": "ns", "name": name, "annotations": {"pointsman.dev/scheduler": scheduler}},
        "spec": {"clusterIPs": ips, "ports": ports},
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

/// An engine with small tables, which are dealt and compared thousands of times, and with rosters even of small Services.
pub(super) fn small_engine() -> Engine {
    let buckets = |count| Buckets::new(count).expect("a size");
    let tables = TableSizes { hash: buckets(16), maglev: buckets(251) };
    let settings = Settings { node: "n1".into(), tables, ..Settings::default() };
    Engine { roster_from: 0, ..Engine::with_settings(settings, Scheduler::Random) }
}

/// A Service that has whatever its flavour's bits say.
pub(super) fn rich_service(name: &str, ips: &[String], flavour: u16, ports: &[u16]) -> Change {
    let has = |bit: u16| flavour & (1 << bit) != 0;
    let policy = |local| if local { "Local" } else { "Cluster" };
    let node_port = |port: &u16| if has(0) { 30000 + port } else { 0 };
    let ports: Vec<_> = ports
        .iter()
        .map(|port| json!({"name": format!("p{port}"), "port": port, "nodePort": node_port(port)}))
        .collect();
    let ingress = if has(1) { json!([{"ip": "198.51.100.1"}, {"ip": "fd00:b::1"}]) } else { json!([]) };
    let external = if has(2) { json!(["192.0.2.1", "198.51.100.1"]) } else { json!([]) };
    let ranges = if has(3) { json!(["192.168.0.0/24", "203.0.113.0/24", "fd00:5::/64"]) } else { json!([]) };
    let schedulers = ["rr", "wrr", "sh", "sh,sh-port", "dh", "mh,mh-port", "lc", "rr"];
    let scheduler = if has(4) { schedulers[usize::from(flavour >> 9 & 7)] } else { "random" };
    let userspace = [
        json!({"pointsman.dev/scheduler": scheduler}),
        json!({"pointsman.dev/scheduler": scheduler, "pointsman.dev/datapath": "userspace"}),
        json!({"pointsman.dev/scheduler": "lc,exact"}),
        json!({"pointsman.dev/scheduler": scheduler, "pointsman.dev/proxy-protocol": "v1"}),
    ];
    let annotations = &userspace[usize::from(flavour >> 12 & 3)];
    let value = json!({
        "metadata": {"namespace": "ns", "name": name, "annotations": annotations},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ips, "ports": ports, "externalIPs": external, "loadBalancerSourceRanges": ranges,
            "internalTrafficPolicy": policy(has(5)), "externalTrafficPolicy": policy(has(6)),
            "sessionAffinity": if has(7) { "ClientIP" } else { "None" },
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": if has(8) { 10 } else { 20 }}},
            "healthCheckNodePort": 31000,
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

pub(super) fn slice(name: &str, owner: &str, v6: bool, endpoints: &BTreeSet<u8>) -> Change {
    rich_slice(name, owner, v6, endpoints, 0)
}

/// A slice whose endpoints of odd number are on our node; flavour 1: some leave, 2: all leave, 3: with hints.
pub(super) fn rich_slice(name: &str, owner: &str, v6: bool, endpoints: &BTreeSet<u8>, flavour: u8) -> Change {
    let prefix = if v6 { "fd00:1::" } else { "10.1.0." };
    let endpoint = |last: &u8| {
        let leaves = flavour == 2 || (flavour == 1 && last.is_multiple_of(3));
        let zone = if last % 4 < 2 { "east" } else { "west" };
        let hints = if flavour == 3 { json!({"forZones": [{"name": zone}]}) } else { json!(null) };
        json!({
            "addresses": [format!("{prefix}{last}")], "nodeName": if last % 2 == 1 { "n1" } else { "n2" }, "hints": hints,
            "conditions": {"ready": !leaves, "serving": true, "terminating": leaves},
        })
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    let value = json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": owner}},
        "addressType": if v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "p1", "port": 8001}, {"name": "p2", "port": 8002}], "endpoints": endpoints,
    });
    Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
}

pub(super) fn node(address: u8, zone: &str) -> Change {
    let value = json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.{address}.7")}]},
    });
    Change::Apply(Object::Node(Box::new(serde_json::from_value(value).expect("decodes"))))
}

fn service_networks(name: &str, network: u8) -> Change {
    let value = json!({"metadata": {"name": name}, "spec": {"cidrs": [format!("10.{network}.0.0/16"), "fd00::/112"]}});
    Change::Apply(Object::ServiceCIDR(Box::new(serde_json::from_value(value).expect("decodes"))))
}

pub(super) fn delete(kind: Kind, name: &str) -> Change {
    Change::Delete(kind, ObjectKey { namespace: "ns".into(), name: name.into() })
}

#[test]
fn a_departure_costs_three_endpoint_edits_and_one_frontend_edit() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.take(service("web", &["10.0.0.1".into()], false, &[1]));
    engine.take(slice("s", "web", false, &(1..=50).collect()));
    engine.compile();
    engine.take(slice("s", "web", false, &(1..=50).filter(|last| *last != 7).collect()));
    let delta = engine.compile().delta;
    assert_eq!((delta.v4.services.len(), delta.v4.endpoints.len(), delta.v6.len()), (1, 2, 0));
    engine.take(slice("s", "web", false, &(1..=50).collect()));
    let delta = engine.compile().delta;
    assert_eq!((delta.v4.services.len(), delta.v4.endpoints.len()), (1, 1));
    assert!(engine.is_idle());
    engine.take(slice("s", "web", false, &(1..=50).collect()));
    assert!(engine.is_idle(), "the same again is no work");
}

#[test]
fn two_services_that_claim_one_frontend_are_told_apart_and_reported() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.take(service("b", &["10.0.0.1".into()], false, &[1]));
    engine.take(service("a", &["10.0.0.1".into()], false, &[1, 2]));
    let outcome = engine.compile();
    let problems: Vec<_> = outcome.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            r#"Service ns/b: spec.ports: "TCP 10.0.0.1:1": already served for Service ns/a, which goes first (by kind of address, age, name); not served"#
        ]
    );
    engine.take(delete(Kind::Service, "a"));
    let outcome = engine.compile();
    assert!(outcome.problems.is_empty());
    assert_eq!(engine.standing_problems(), 0);
    assert_eq!(outcome.delta.v4.services.len(), 2, "b takes over in the same transaction");
}

pub(super) fn any_change() -> impl Strategy<Value = Change> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c")];
    let ips = prop_oneof![
        (1u8..4).prop_map(|ip| vec![format!("10.0.0.{ip}")]),
        (1u8..4).prop_map(|ip| vec![format!("10.0.0.{ip}"), format!("fd00::{ip}")]),
    ];
    let ports = prop_oneof![Just(vec![1u16]), Just(vec![1, 2]), Just(vec![2, 3])];
    let endpoints = proptest::collection::btree_set(1u8..9, 0..6);
    let flavour = prop_oneof![Just(0u16), Just(0b1_0000), (0u16..8).prop_map(|kind| kind << 9 | 1 << 4), any::<u16>()];
    let zone = prop_oneof![Just("east"), Just("west")];
    prop_oneof![
        4 => (name.clone(), ips, flavour, ports).prop_map(|(name, ips, flavour, ports)| rich_service(name, &ips, flavour, &ports)),
        6 => (name.clone(), name.clone(), any::<bool>(), endpoints, 0u8..4).prop_map(|(name, owner, v6, endpoints, flavour)| rich_slice(name, owner, v6, &endpoints, flavour)),
        1 => name.clone().prop_map(|name| delete(Kind::Service, name)),
        1 => name.clone().prop_map(|name| delete(Kind::EndpointSlice, name)),
        1 => (0u8..2, zone).prop_map(|(address, zone)| node(address, zone)),
        1 => (name.clone(), 0u8..3).prop_map(|(name, network)| service_networks(name, network)),
        1 => name.prop_map(|name| delete(Kind::ServiceCIDR, name)),
    ]
}

/// What differs from what was adopted, compared part by part, as a restart does.
fn compared(engine: &mut Engine) -> Delta {
    let mut comparison = Comparison::new(engine.adopted());
    let take = &mut |part| {
        comparison.take(part);
        Ok::<(), ()>(())
    };
    engine.compile_in_parts(3, take).expect("all of it");
    let found = engine.settle();
    comparison.end().unwrap_or_else(|| engine.difference(found))
}

/// Issue 3: after deleting everything, the maps are empty; what is left is where node ports are served.
pub(super) fn is_clean(table: &TableImage) -> bool {
    table.len() == table.node_port_addresses.len()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Random histories, cut into random batches, with a restart at a random point that adopts what the kernel has: after each
    /// batch every frontend reaches exactly what a fresh engine would let it reach.
    #[test]
    fn the_last_state_counts_whatever_the_history(
        history in proptest::collection::vec((any_change(), any::<bool>()), 1..40),
        restart_at in 0usize..40,
    ) {
        let mut engine = small_engine();
        let mut kernel = Image::default();
        let mut past: Vec<Change> = Vec::new();
        for (step, (change, batch_ends)) in history.into_iter().enumerate() {
            past.push(change.clone());
            engine.take(change);
            if !batch_ends {
                continue;
            }
            if step == restart_at {
                engine = small_engine();
                engine.adopt(kernel.clone());
                past.iter().cloned().for_each(|change| engine.take(change));
                let difference = compared(&mut engine);
                prop_assert_eq!(&difference, &engine.difference(kernel.clone()));
                apply(&mut kernel, &difference);
            } else {
                apply(&mut kernel, &engine.compile().delta);
            }
            let mut fresh = small_engine();
            past.iter().cloned().for_each(|change| fresh.take(change));
            fresh.compile();
            let mut wanted = Image::default();
            apply(&mut wanted, &fresh.everything());
            for family in Family::ALL {
                prop_assert_eq!(observable(kernel.table(family)), observable(wanted.table(family)));
                prop_assert_eq!(numbered(kernel.table(family)), numbered(wanted.table(family)));
            }
            // What the engine believes is what the kernel has.
            let drift = engine.difference(kernel.clone());
            prop_assert!(drift.is_empty(), "{:?}", drift);
        }
    }

    /// A restart with nothing changed rewrites nothing.
    #[test]
    fn a_restart_changes_nothing(history in proptest::collection::vec(any_change(), 1..30)) {
        let mut engine = small_engine();
        history.iter().cloned().for_each(|change| engine.take(change));
        let mut kernel = Image::default();
        apply(&mut kernel, &engine.compile().delta);
        let mut next = small_engine();
        next.adopt(kernel.clone());
        history.into_iter().for_each(|change| next.take(change));
        let mut comparison = Comparison::new(next.adopted());
        let take = &mut |part| {
            comparison.take(part);
            Ok::<(), ()>(())
        };
        next.compile_in_parts(3, take).expect("all of it");
        prop_assert_eq!(comparison.end(), Some(Delta::default()), "and it takes no second look");
        let delta = next.difference(kernel);
        prop_assert!(delta.is_empty(), "{:?}", delta);
    }

    /// Nothing is left of what was deleted.
    #[test]
    fn deleting_everything_empties_the_maps(history in proptest::collection::vec(any_change(), 1..30)) {
        let mut engine = small_engine();
        let mut kernel = Image::default();
        for change in history {
            engine.take(change);
            apply(&mut kernel, &engine.compile().delta);
        }
        for name in ["a", "b", "c"] {
            for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCIDR] {
                engine.take(delete(kind, name));
            }
        }
        apply(&mut kernel, &engine.compile().delta);
        prop_assert!(is_clean(&kernel.v4) && is_clean(&kernel.v6), "{:?}", kernel);
        prop_assert_eq!((engine.compiler.pools(), engine.health().len()), (0, 0));
    }
}

#[test]
fn a_zone_change_decides_everything_again_and_an_address_change_what_depends_on_it() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.take(node(0, "east"));
    engine.take(rich_service("open", &["10.0.0.1".into()], 0b10, &[1]));
    engine.take(rich_service("ranged", &["10.0.0.2".into()], 0b1010, &[2]));
    engine.compile();
    engine.take(node(0, "west"));
    assert_eq!(engine.compile().services.len(), 2);
    engine.take(node(1, "west"));
    let outcome = engine.compile();
    assert_eq!(outcome.services, [ServiceKey::new("ns", "ranged")]);
    // 192.168.0.0/24 no longer covers the node's address, so the load balancer's own is not let in any more.
    assert_eq!(outcome.delta.v4.source_ranges.len(), 1);
    let moved: Vec<_> = outcome.delta.v4.node_port_addresses.added().map(|(range, _)| range.to_string()).collect();
    assert_eq!(moved, ["192.168.1.7"], "node ports follow at once");
}

/// Upstream: TestNoEndpointsMetric.
#[test]
fn ports_without_local_endpoints_are_counted_while_there_are_others_elsewhere() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    let mut after = |changes: Vec<Change>| {
        changes.into_iter().for_each(|change| engine.take(change));
        engine.compile();
        let NoLocalEndpoints { internal, external } = engine.no_local_endpoints();
        (internal, external)
    };
    let both = 0b110_0001;
    let (here, there) = (BTreeSet::from([1, 2]), BTreeSet::from([2, 4]));
    let ips = ["10.0.0.1".to_owned(), "fd00::1".to_owned()];
    assert_eq!(after(vec![rich_service("a", &ips, both, &[1, 2])]), ([0, 0], [0, 0]), "no endpoints at all");
    assert_eq!(after(vec![slice("a4", "a", false, &there)]), ([2, 0], [2, 0]), "two ports, one family");
    assert_eq!(after(vec![slice("a6", "a", true, &here)]), ([2, 0], [2, 0]));
    let second = [rich_service("b", &["10.0.0.2".into()], 0b10_0000, &[1]), slice("b4", "b", false, &there)];
    assert_eq!(after(second.into()), ([3, 0], [2, 0]), "internal only");
    assert_eq!(after(vec![slice("a6", "a", true, &there)]), ([3, 2], [2, 2]));
    assert_eq!(after(vec![slice("a4", "a", false, &here)]), ([1, 2], [0, 2]), "somebody came here");
    assert_eq!(after(vec![delete(Kind::Service, "a")]), ([1, 0], [0, 0]));
    assert_eq!(after(vec![delete(Kind::EndpointSlice, "b4")]), ([0, 0], [0, 0]), "nobody anywhere");
    assert!(engine.lacking.is_empty(), "nothing is left behind");
}

/// Upstream: TestProxier_OnServiceCIDRsChanged.
#[test]
fn service_networks_are_the_union_and_count_at_once() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.compile();
    engine.take(service_networks("a", 96));
    engine.take(service_networks("b", 97));
    let added = |delta: &crate::compile::TableDelta| {
        delta.service_networks.added().map(|(range, _)| range.to_string()).collect::<Vec<_>>()
    };
    let delta = engine.compile().delta;
    assert_eq!(added(&delta.v4), ["10.96.0.0-10.97.255.255"]);
    assert_eq!(added(&delta.v6), ["fd00::-fd00::ffff"]);
    engine.take(delete(Kind::ServiceCIDR, "b"));
    let delta = engine.compile().delta;
    assert_eq!((added(&delta.v4), delta.v6.len()), (vec!["10.96.0.0-10.96.255.255".to_owned()], 0));
}

#[test]
fn affinity_keeps_members_when_others_come_and_go() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.take(rich_service("web", &["10.0.0.1".into()], 1 << 7, &[1]));
    engine.take(slice("s", "web", false, &(1..=5).collect()));
    let first = engine.compile().delta.v4;
    assert_eq!((first.members.len(), first.member_slots.len(), first.endpoints.len()), (5, 5, 0));
    engine.take(slice("s", "web", false, &(2..=5).collect()));
    let second = engine.compile().delta.v4;
    assert_eq!((second.members.len(), second.members.removed().count()), (1, 1), "the others keep their numbers");
    engine.take(slice("s", "web", false, &(1..=5).collect()));
    let third = engine.compile().delta.v4;
    let number =
        |delta: &crate::compile::TableDelta| delta.members.added().map(|(member, _)| member.index).collect::<Vec<_>>();
    assert_eq!(
        (number(&first), number(&third)),
        (vec![0, 1, 2, 3, 4], vec![5]),
        "a number that was used is used again late"
    );
}

proptest! {
    /// Endpoints come and go, weights aside; in between rings are dealt again by any counts at any position. What the kernel was told
    /// is always what is desired, and no slot names an endpoint that has left.
    #[test]
    fn rings_dealt_again_stay_in_step_with_the_kernel(
        sticky in any::<bool>(),
        steps in proptest::collection::vec(
            (proptest::collection::btree_set(1u8..30, 0..20), any::<bool>(), any::<u64>(), 0u32..20, 0usize..40),
            1..12,
        ),
    ) {
        let mut engine = Engine::new("n1", Scheduler::Random);
        let mut image = Image::default();
        let value = json!({
            "metadata": {"namespace": "ns", "name": "web", "annotations": {"pointsman.dev/scheduler": "wlc"}},
            "spec": {
                "clusterIPs": ["10.0.0.1"], "ports": [{"name": "p1", "port": 1}],
                "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"],
                "sessionAffinity": if sticky { "ClientIP" } else { "None" },
            },
        });
        engine.take(Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes")))));
        let mut report = None;
        for (endpoints, change, picks, load, expected) in steps {
            if change || report.is_none() {
                engine.take(slice("s", "web", false, &endpoints));
                apply(&mut image, &engine.compile().delta);
                for (subject, interest) in engine.take_interests() {
                    report = interest.map(|interest| (subject, interest));
                }
            }
            let Some((subject, interest)) = &report else { continue };
            let counted = interest.candidates.iter().zip(0..);
            let loads = counted.map(|(one, number)| (one.endpoint, Load { active: load * number % 7, inactive: number }));
            let report = Report {
                subject: subject.clone(),
                rule: interest.rule,
                loads: loads.collect(),
                expected,
                rings: interest.rings.iter().map(|ring| (ring.clone(), Some(picks.saturating_sub(3)))).collect(),
            };
            let mut delta = Delta::default();
            engine.redeal(&report, &vec![picks; report.rings.len()], &mut delta);
            let TableDelta { endpoints: slots, member_slots, .. } = &delta.v4;
            prop_assert_eq!(delta.len(), slots.len() + member_slots.len(), "slots and nothing else");
            apply(&mut image, &delta);
            let mut desired = Image::default();
            apply(&mut desired, &engine.everything());
            prop_assert_eq!(&image, &desired);
            let present: BTreeSet<_> = interest.candidates.iter().map(|one| one.endpoint).collect();
            let named = image.v4.endpoints.values().chain(image.v4.members.values()).map(|slot| slot.endpoint);
            for endpoint in named {
                prop_assert!(present.contains(&endpoint), "{} has left", endpoint);
            }
        }
    }
}

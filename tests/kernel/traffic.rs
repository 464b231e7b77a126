//! Who answers at a Service: every endpoint, in both families and protocols, to clients and to the node itself.
//!
//! SCTP is programmed and listed (see `golden`), but not sent: the kernels that these tests run on have no SCTP sockets.

use pointsman::lab::{Listen, connect};
use serde_json::json;

use super::proxy::Proxy;
use super::support::beds::{PATIENCE, TCP, UDP, bed, pods};
use super::support::objects::{DNS, HTTP, frontends, scheduled, service, shop, slice_of, slices};
use super::support::traffic::{BOTH, Tally, assert_even, assert_refused, names, tally, tally_by};

#[test]
fn random_reaches_every_endpoint_in_both_families_and_protocols_from_clients_and_the_node() {
    let lab = bed(3);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods(1..=3)));
    for from in [lab.client(0), lab.node(), lab.pod("web-2")] {
        for ((protocol, question), port) in BOTH.into_iter().zip([80, 53]) {
            for to in frontends(1, port) {
                // A pod is not asked to reach itself by way of its Service: that takes masquerading. 60 of 60 missing one of
                // three happens once in 10^10 runs.
                if from.role() == "web-2" {
                    proxy.put(&slices("web", &pods([1, 3])));
                    let answered = tally_by(question, from, to, 40);
                    assert_eq!(names(&answered), ["web-1", "web-3"], "{protocol} {to} from a pod");
                    proxy.put(&slices("web", &pods(1..=3)));
                } else {
                    let answered = tally_by(question, from, to, 60);
                    assert_eq!(names(&answered), ["web-1", "web-2", "web-3"], "{protocol} {to} from {}", from.role());
                }
            }
        }
    }
    // The port of one protocol is not the port of the other, and other ports are nobody's.
    for to in frontends(1, 53).into_iter().chain(frontends(1, 8080)) {
        assert_refused(connect, lab.client(0), to, "a port that the Service does not have");
    }
}

#[test]
fn round_robin_is_exact_also_with_another_one_in_lock_step() {
    let lab = bed(3);
    let rr = |name: &str, number: u8, ready: &[usize]| {
        let mut objects = shop(name, number, &pods(ready.iter().copied()));
        objects[0] = scheduled(objects[0].take(), "rr");
        objects
    };
    let _proxy = Proxy::serving(lab.node().namespace(), &[rr("web", 1, &[1, 2, 3]), rr("cart", 2, &[1, 2])].concat());
    for family in 0..2 {
        let targets = [frontends(1, 80)[family], frontends(2, 80)[family]];
        let mut tallies = [Tally::new(), Tally::new()];
        lab.client(0).run(|| {
            for round in 0..31 {
                for (target, tally) in targets.iter().zip(&mut tallies) {
                    let answer = connect(*target, PATIENCE);
                    let pod = answer.unwrap_or_else(|error| panic!("{target}, round {round}: {error}")).pod;
                    *tally.entry(pod).or_default() += 1;
                }
            }
        });
        assert_even(&tallies[0], 3, "web, in lock step");
        assert_even(&tallies[1], 2, "cart, in lock step");
        assert_even(&tally(lab.client(0), targets[0], 10), 3, "web alone");
        assert_even(&tally(lab.node(), targets[0], 7), 3, "web from the node");
    }
    for to in frontends(1, 53) {
        assert_even(&tally_by(BOTH[1].1, lab.client(0), to, 20), 3, "web over UDP");
    }
}

#[test]
fn round_robin_stays_exact_when_endpoints_come_and_go() {
    let lab = bed(4);
    let mut objects = shop("web", 1, &pods(1..=2));
    objects[0] = scheduled(objects[0].take(), "rr");
    let mut proxy = Proxy::serving(lab.node().namespace(), &objects);
    for ready in [1..=4, 2..=4, 2..=2, 1..=3] {
        proxy.put(&slices("web", &pods(ready.clone())));
        for to in frontends(1, 80) {
            assert_even(&tally(lab.client(0), to, 13), ready.clone().count(), &format!("{ready:?} ready"));
        }
        proxy.assert_exact("after a change");
    }
    // Back to random: the chain of its own goes.
    proxy.put(&[service("web", 1, &[HTTP, DNS])]);
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 60)), ["web-1", "web-2", "web-3"]);
    proxy.assert_exact("back to random");
}

/// Each change of the number of endpoints begins a walk anew. If it always began at the same endpoint, two connections between changes
/// would all go to the same two.
#[test]
fn an_endpoint_that_flaps_gives_nobody_a_surplus() {
    const FLAPS: usize = 100;
    let lab = bed(4);
    let by = |scheduler: &str, number: u8, ready: &[usize]| {
        let mut objects = shop(scheduler, number, &pods(ready.iter().copied()));
        objects[0] = scheduled(objects[0].take(), scheduler);
        objects
    };
    let [rr, wrr] = ["rr", "wrr"];
    let mut proxy = Proxy::start(lab.node().namespace());
    let mut tallies = [Tally::new(), Tally::new()];
    for flap in 0..FLAPS {
        let ready: &[usize] = if flap % 2 == 0 { &[1, 2, 3, 4] } else { &[1, 2, 3] };
        proxy.put(&[by(rr, 1, ready), by(wrr, 2, ready)].concat());
        for (number, tally_of) in (1..).zip(&mut tallies) {
            for (pod, count) in tally(lab.client(0), frontends(number, 80)[0], 2) {
                *tally_of.entry(pod).or_default() += count;
            }
        }
    }
    proxy.assert_exact("after all that");
    for (scheduler, tally) in [rr, wrr].into_iter().zip(tallies) {
        // Even would be 25 for the one that flaps and 58 for each of the others; chance alone is off by 5 and 6.
        let had = |pod: &str| tally.get(pod).copied().unwrap_or_default();
        let steady = ["web-1", "web-2", "web-3"].map(had);
        assert!(steady.iter().all(|had| (35..=81).contains(had)), "{scheduler}: a surplus: {tally:?}");
        assert!((7..=43).contains(&had("web-4")), "{scheduler}: half of the time a quarter: {tally:?}");
    }
}

#[test]
fn several_ports_and_slices_lead_where_they_say() {
    let mut lab = bed(2);
    lab.serve("web-1", &[Listen::Tcp(9090)]).expect("a server");
    let ports = [HTTP, ("metrics", "TCP", 9100), ("dns-tcp", "TCP", 53), DNS];
    let [web1, web2] = [pods([1])[0], pods([2])[0]];
    let mut second = slice_of("web", "IPv4", &[web2.v4.into()], &[("http", "TCP", TCP), ("dns-tcp", "TCP", TCP)]);
    second["metadata"]["name"] = json!("web-second");
    let mut third = slice_of("web", "IPv4", &[web1.v4.into()], &[("metrics", "TCP", 9090), ("dns", "UDP", UDP)]);
    third["metadata"]["name"] = json!("web-third");
    let first = slice_of("web", "IPv4", &[web1.v4.into(), web2.v4.into()], &[("http", "TCP", TCP)]);
    let proxy = Proxy::serving(lab.node().namespace(), &[service("web", 1, &ports), first, second, third]);
    let client = lab.client(0);
    let at = |port| frontends(1, port)[0];
    assert_eq!(names(&tally(client, at(80), 40)), ["web-1", "web-2"], "http: two slices, one endpoint in both");
    assert_eq!(names(&tally(client, at(9100), 10)), ["web-1"], "metrics: another target port");
    assert_eq!(names(&tally(client, at(53), 10)), ["web-2"], "dns over TCP");
    assert_eq!(names(&tally_by(BOTH[1].1, client, at(53), 10)), ["web-1"], "dns over UDP");
    proxy.die(lab.node().namespace());
    assert_eq!(names(&tally(client, at(80), 40)), ["web-1", "web-2"], "what is programmed outlives who programmed it");
}

#[test]
fn no_endpoints_refuse_at_once() {
    let lab = bed(1);
    let node = lab.node().namespace();
    let mut proxy = Proxy::serving(node, &[service("web", 1, &[HTTP, DNS])]);
    let all_refuse = |what: &str| {
        for from in [lab.client(0), lab.node(), lab.pod("web-1")] {
            for ((_, question), port) in BOTH.into_iter().zip([80, 53]) {
                for to in frontends(1, port) {
                    assert_refused(question, from, to, what);
                }
            }
        }
    };
    all_refuse("a Service without slices");
    let mut unready = slices("web", &pods([1]));
    for slice in &mut unready {
        slice["endpoints"][0]["conditions"] = json!({"ready": false, "serving": false, "terminating": true});
    }
    proxy.put(&unready);
    all_refuse("a Service whose only endpoint neither is ready nor serves");
    proxy.put(&slices("web", &pods([1])));
    for to in frontends(1, 80) {
        assert_eq!(names(&tally(lab.client(0), to, 5)), ["web-1"], "ready by now");
    }
    proxy.put(&slices("web", &[]));
    all_refuse("a Service whose last endpoint left");
    proxy.assert_exact("refusing");
}

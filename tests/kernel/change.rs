//! How changes look from outside: connections that are made meanwhile succeed, connections that stand stay.

use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::{PATIENCE, bed, pods};
use super::support::objects::{DNS, HTTP, frontends, scheduled, service, shop, slices};
use super::support::oracle::{chains, elements};
use super::support::traffic::{BOTH, Held, Restless, assert_refused, assert_silent, names, tally};

#[test]
fn scaling_up_and_down_interrupts_nobody() {
    let lab = bed(5);
    let mut objects = [shop("web", 1, &pods(1..=5)), shop("cart", 2, &pods(1..=5))].concat();
    objects[3] = scheduled(objects[3].take(), "rr");
    let mut proxy = Proxy::serving(lab.node().namespace(), &objects);
    let targets: Vec<_> = [1, 2].into_iter().flat_map(|number| frontends(number, 80)).collect();
    let client = Restless::start(lab.client(0), &targets);
    for _ in 0..3 {
        for count in [4, 3, 2, 1, 2, 5, 1, 5] {
            let applied = proxy.put(&[slices("web", &pods(1..=count)), slices("cart", &pods(6 - count..=5))].concat());
            assert!(applied.transactions <= 3, "chains, then elements at once, then sweeping up: {applied:?}");
            client.wait_for(3);
        }
    }
    client.assert_uninterrupted("scaling between 1 and 5");
    proxy.assert_exact("after scaling");
}

#[test]
fn no_connection_is_led_astray_while_everything_changes() {
    let lab = bed(5);
    let rr = |number: u8, ready: &[usize]| {
        let mut objects = shop("cart", number, &pods(ready.iter().copied()));
        objects[0] = scheduled(objects[0].take(), "rr");
        objects
    };
    let mut proxy = Proxy::serving(lab.node().namespace(), &[shop("web", 1, &pods(1..=2)), rr(2, &[3, 4])].concat());
    let targets: Vec<_> = [1, 2].into_iter().flat_map(|number| frontends(number, 80)).collect();
    let client = Restless::start(lab.client(0), &targets);
    for round in 0..25 {
        let passing = shop(&format!("passing-{round}"), 3, &pods([5]));
        proxy.put(&[passing.clone(), slices("web", &pods([1 + round % 2])).to_vec(), rr(2, &[3])].concat());
        client.wait_for(1);
        // What goes and what comes, in one transaction: numbers given back must not be dealt again at once.
        passing.iter().for_each(|object| proxy.forget(object));
        proxy.put(&[shop("next", 4, &pods([5])), slices("web", &pods(1..=2)).to_vec(), rr(2, &[4, 3])].concat());
        client.wait_for(1);
        proxy.delete(&shop("next", 4, &[]));
    }
    for (to, answered) in client.assert_uninterrupted("everything changes") {
        let own = if targets[..2].contains(&to) { ["web-1", "web-2"] } else { ["web-3", "web-4"] };
        let stray: Vec<_> = answered.keys().filter(|pod| !own.contains(&pod.as_str())).collect();
        assert!(stray.is_empty(), "{to} should lead to {own:?} only: {answered:?}");
    }
    proxy.assert_exact("after all");
}

/// Every change of a round robin makes a chain, leads to it and removes another: as much as one change can do to a packet.
#[test]
fn a_round_robin_that_never_stops_changing_loses_no_connection() {
    let lab = bed(4);
    let mut objects = shop("web", 1, &pods(1..=4));
    objects[0] = scheduled(objects[0].take(), "rr");
    let mut proxy = Proxy::serving(lab.node().namespace(), &objects);
    let clients = [lab.client(0), lab.node()].map(|from| Restless::start(from, &frontends(1, 80)));
    for round in 0..300 {
        proxy.put(&slices("web", &pods(1..=1 + round % 4)));
    }
    for client in clients {
        client.assert_uninterrupted("a change after the other");
    }
    proxy.assert_exact("after all");
}

#[test]
fn a_frontend_passes_to_another_port_and_to_another_service_in_one_batch() {
    let lab = bed(2);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods(1..=2)));
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    for round in 0..4 {
        // The port is renamed: for us that is another port, with slots of its own.
        let (name, scheduler) = if round % 2 == 0 { ("web", "rr") } else { ("http", "random") };
        let renamed = |mut slice: Value| {
            slice["ports"][0]["name"] = name.into();
            slice
        };
        let service = scheduled(service("web", 1, &[(name, "TCP", 80), DNS]), scheduler);
        let applied = proxy.put(&[vec![service], slices("web", &pods(1..=2)).map(renamed).to_vec()].concat());
        assert_eq!(
            applied.transactions, 3,
            "round {round}: a chain, all at once, and then the pools left: {applied:?}"
        );
        client.wait_for(3);
    }
    // The Service is renamed: the frontends go from one to the other.
    shop("web", 1, &[]).iter().for_each(|object| proxy.forget(object));
    proxy.put(&shop("successor", 1, &pods([2])));
    assert!(proxy.problems.is_empty(), "no conflict in the end: {:?}", proxy.problems);
    for to in frontends(1, 80) {
        assert_eq!(names(&tally(lab.client(0), to, 10)), ["web-2"], "the successor's endpoint");
    }
    client.assert_uninterrupted("frontends that change hands");
    proxy.assert_exact("after changing hands");
}

/// A packet between two lookups has read the number of a pool that goes with its Service: its endpoints stay for a moment longer.
#[test]
fn a_frontend_that_passes_on_and_on_loses_no_connection() {
    let lab = bed(2);
    let owner = |round: usize| shop(&format!("owner-{round}"), 1, &pods([1 + round % 2]));
    let mut proxy = Proxy::serving(lab.node().namespace(), &owner(0));
    let clients = [lab.client(0), lab.node()].map(|from| Restless::start(from, &frontends(1, 80)));
    for round in 1..=150 {
        owner(round - 1).iter().for_each(|object| proxy.forget(object));
        let applied = proxy.put(&owner(round));
        assert!(applied.transactions <= 2, "all at once, and then what was left: {applied:?}");
    }
    for client in clients {
        client.assert_uninterrupted("a frontend that passes on and on");
    }
    proxy.assert_exact("after all");
}

/// What was in other maps from one commit to the next is looked for by packets on their way.
#[test]
fn affinity_and_schedulers_that_come_and_go_cost_no_connection() {
    let lab = bed(2);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods(1..=2)));
    let clients = [lab.client(0), lab.node()].map(|from| Restless::start(from, &frontends(1, 80)));
    for round in 0..120 {
        let scheduler = ["random", "rr", "sh"][round % 3];
        let mut web = scheduled(service("web", 1, &[HTTP, DNS]), scheduler);
        if round % 2 == 0 {
            web["spec"]["sessionAffinity"] = "ClientIP".into();
        }
        proxy.put(&[web]);
    }
    for client in clients {
        client.assert_uninterrupted("affinity on and off");
    }
    proxy.assert_exact("after all");
}

#[test]
fn a_service_is_recreated_with_another_address_in_one_batch() {
    let lab = bed(2);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods(1..=2)));
    for round in 0..4u8 {
        let (from, to) = (1 + round % 2 * 8, 9 - round % 2 * 8);
        shop("web", from, &pods(1..=2)).iter().for_each(|object| proxy.forget(object));
        proxy.put(&shop("web", to, &pods([2])));
        for family in 0..2 {
            assert_eq!(names(&tally(lab.client(0), frontends(to, 80)[family], 10)), ["web-2"], "round {round}");
            assert_silent(lab.client(0), frontends(from, 80)[family], "the old address");
        }
        proxy.assert_exact("recreated");
    }
}

#[test]
fn deletions_of_what_nobody_knows_are_no_work() {
    let lab = bed(1);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods([1])));
    let unknown = [shop("web-2", 2, &pods([1])), shop("", 3, &[])].concat();
    let applied = proxy.delete(&unknown);
    assert_eq!((applied.elements, applied.transactions), (0, 0), "{applied:?}");
    // Twice, and in the batch that makes it.
    let cart = shop("cart", 2, &pods([1]));
    proxy.take(&cart);
    let applied = proxy.delete(&cart);
    assert_eq!((applied.elements, applied.transactions), (0, 0), "{applied:?}");
    proxy.delete(&shop("web", 1, &[]));
    assert_eq!(proxy.delete(&shop("web", 1, &[])).elements, 0, "a second time");
    proxy.assert_exact("after all");
}

#[test]
fn a_departure_costs_the_same_however_many_endpoints_there_are() {
    let lab = bed(1);
    let many = pods(1..=60);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &many));
    let without: Vec<_> = many.iter().copied().filter(|pod| *pod != many[7]).collect();
    let applied = proxy.put(&slices("web", &without));
    // Two ports in two families: a frontend, a slot refilled and a slot removed each.
    assert_eq!((applied.elements, applied.transactions), (12, 2), "and a chain of 59, once for all Services");
    let without: Vec<_> = without.iter().copied().filter(|pod| *pod != many[20]).chain([many[7]]).collect();
    let applied = proxy.put(&slices("web", &without));
    assert_eq!((applied.elements, applied.transactions), (4, 1), "one for one: a slot each");
    let applied = proxy.put(&slices("web", &without));
    assert_eq!((applied.elements, applied.transactions), (0, 0), "the same again is no work");
}

#[test]
fn standing_connections_survive_updates_and_removals() {
    let lab = bed(3);
    let mut proxy =
        Proxy::serving(lab.node().namespace(), &[shop("web", 1, &pods(1..=3)), shop("cart", 2, &pods(1..=3))].concat());
    let mut held: Vec<_> =
        frontends(1, 80).into_iter().flat_map(|to| [to; 4]).map(|to| Held::open(lab.client(0), to)).collect();
    held.push(Held::open(lab.node(), frontends(1, 80)[0]));
    let mut all_alive = |what: &str| held.iter_mut().for_each(|held| held.assert_alive(what));
    all_alive("at first");
    proxy.delete(&shop("cart", 2, &[]));
    all_alive("an unrelated Service is removed");
    proxy.put(&slices("web", &pods(1..=2)));
    all_alive("an endpoint is no longer chosen, but lives");
    proxy.put(&[scheduled(service("web", 1, &[HTTP, DNS]), "rr")]);
    all_alive("another scheduler");
    proxy.put(&[service("web", 1, &[HTTP, DNS])]);
    all_alive("and back");
    proxy.put(&slices("web", &[]));
    all_alive("no endpoints: new connections are refused, old ones are not");
    assert_refused(BOTH[0].1, lab.client(0), frontends(1, 80)[0], "no endpoints");
    proxy.delete(&shop("web", 1, &[]));
    all_alive("the Service is gone");
}

#[test]
fn a_service_changes_its_address() {
    let lab = bed(2);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods(1..=2)));
    let applied = proxy.put(&[service("web", 9, &[HTTP, DNS])]);
    assert_eq!(
        applied.elements, 12,
        "two frontends and an address of two families go, as many come; no endpoint is touched"
    );
    for family in 0..2 {
        assert_eq!(names(&tally(lab.client(0), frontends(9, 80)[family], 40)), ["web-1", "web-2"], "the new address");
        assert_silent(lab.client(0), frontends(1, 80)[family], "the old address");
    }
    proxy.assert_exact("after the move");
}

#[test]
fn two_services_swap_addresses_in_one_batch() {
    let lab = bed(2);
    let mut proxy =
        Proxy::serving(lab.node().namespace(), &[shop("web", 1, &pods([1])), shop("cart", 2, &pods([2]))].concat());
    let targets: Vec<_> = [1, 2].into_iter().flat_map(|number| frontends(number, 80)).collect();
    let client = Restless::start(lab.client(0), &targets);
    for round in 0..6 {
        let (web, cart) = if round % 2 == 0 { (2, 1) } else { (1, 2) };
        let applied = proxy.put(&[service("web", web, &[HTTP, DNS]), service("cart", cart, &[HTTP, DNS])]);
        assert_eq!(applied.transactions, 1, "all at once");
        assert!(proxy.problems.is_empty(), "no conflict in the end, so none to report: {:?}", proxy.problems);
        for family in 0..2 {
            assert_eq!(names(&tally(lab.client(0), frontends(web, 80)[family], 5)), ["web-1"], "round {round}: web");
            assert_eq!(names(&tally(lab.client(0), frontends(cart, 80)[family], 5)), ["web-2"], "round {round}: cart");
        }
    }
    client.assert_uninterrupted("swapping");
    proxy.assert_exact("after swapping");
}

#[test]
fn of_two_claims_to_one_frontend_the_older_is_served_and_the_other_follows() {
    let lab = bed(2);
    let aged = |name: &str, pod: usize, created: &str| {
        let mut objects = shop(name, 1, &pods([pod]));
        objects[0]["metadata"]["creationTimestamp"] = json!(created);
        objects
    };
    let young = aged("a-young", 1, "2026-02-01T00:00:00Z");
    let old = aged("b-old", 2, "2026-01-01T00:00:00Z");
    let mut proxy = Proxy::serving(lab.node().namespace(), &[young.clone(), old.clone()].concat());
    assert_eq!(proxy.problems.len(), 4, "two ports in two families are lost: {:?}", proxy.problems);
    assert!(proxy.problems.iter().all(|problem| problem.object.name == "a-young"), "{:?}", proxy.problems);
    let to = frontends(1, 80)[0];
    assert_eq!(names(&tally(lab.client(0), to, 10)), ["web-2"], "the older one");
    let client = Restless::start(lab.client(0), &[to]);
    proxy.delete(&old[..1]);
    client.wait_for(3);
    assert_eq!(names(&tally(lab.client(0), to, 10)), ["web-1"], "the next in line");
    proxy.put(&old[..1]);
    assert_eq!(names(&tally(lab.client(0), to, 10)), ["web-2"], "the older one is back");
    client.assert_uninterrupted("a frontend that changes hands");
    proxy.assert_exact("after changing hands");
}

#[test]
fn a_deleted_service_no_longer_answers_and_nothing_is_left_of_all_of_them() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let mut rr = shop("cart", 2, &pods(1..=2));
    rr[0] = scheduled(rr[0].take(), "rr");
    let web = shop("web", 1, &pods(1..=2));
    let mut proxy = Proxy::serving(node, &[web.clone(), rr.clone()].concat());
    proxy.delete(&rr[..1]);
    for to in frontends(2, 80) {
        assert_silent(lab.client(0), to, "deleted");
    }
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 40)), ["web-1", "web-2"], "the other one");
    proxy.delete(&web);
    proxy.delete(&rr[1..]);
    for family in ["ip", "ip6"] {
        for map in ["services", "endpoints", "dedicated"] {
            assert_eq!(elements(node, family, map), 0, "map {map} of {family}");
        }
        let left: Vec<_> = chains(node, family).into_iter().filter(|chain| chain.starts_with("rr-")).collect();
        assert!(left.is_empty(), "chains that nobody uses: {left:?}");
    }
    // And back, on the empty tables.
    proxy.put(&web);
    let answer = lab.client(0).connect(frontends(1, 80)[1], PATIENCE);
    assert!(answer.is_ok(), "served again: {answer:?}");
    proxy.assert_exact("served again");
}

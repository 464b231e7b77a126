//! What a start makes of what is there: a predecessor's tables are taken over as they are, corrected where they differ, finished where
//! they are unfinished, and replaced where they cannot be trusted. Other people's tables are left alone.
//!
//! A [`Proxy`] that dies leaves its tables behind without an owner; then, and only then, `nft` may meddle with them.

use std::ops::RangeInclusive;

use pointsman::kernel::{DataPlane, KernelError};
use pointsman::lab::{Lab, Namespace};
use serde_json::Value;

use super::proxy::Proxy;
use super::support::beds::{bed, left_by_another_release, pods};
use super::support::objects::{HTTP, crowd, frontends, scheduled, service, service_at, shop, slices};
use super::support::oracle::{chain_handle, chains, elements, json, nft, ruleset, tables, try_nft};
use super::support::traffic::{Held, Restless, assert_silent, names, tally};

/// One random and one round robin Service.
fn objects(ready: RangeInclusive<usize>) -> Vec<Value> {
    let mut cart = shop("cart", 2, &pods(ready.clone()));
    cart[0] = scheduled(cart[0].take(), "rr");
    [shop("web", 1, &pods(ready)), cart].concat()
}

fn all_targets() -> Vec<std::net::SocketAddr> {
    [1, 2].into_iter().flat_map(|number| frontends(number, 80)).collect()
}

fn assert_served(lab: &Lab, what: &str) {
    for to in all_targets() {
        assert_eq!(names(&tally(lab.client(0), to, 40)), ["web-1", "web-2"], "{what}: {to}");
    }
}

#[test]
fn a_restart_rewrites_nothing() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let mut first = Proxy::serving(node, &objects(1..=2));
    // Some history, so that numbers are not those of a fresh start.
    first.put(&shop("gone", 3, &pods([1])));
    first.put(&slices("web", &pods([2])));
    first.put(&slices("web", &pods(1..=2)));
    first.delete(&shop("gone", 3, &[]));
    let image = first.image();
    let chain = "rr-2-00005-shop/cart/tcp/http";
    let handle = chain_handle(node, "ip", chain).expect("the chain of a round robin");
    let client = Restless::start(lab.client(0), &all_targets());
    let mut held = Held::open(lab.client(0), frontends(1, 80)[0]);
    for _ in 0..3 {
        first.die(node);
        client.wait_for(3);
        first = Proxy::start(node);
        assert!(first.found.existed && first.found.rejected.is_empty(), "adopted: {:?}", first.found.rejected);
        assert_eq!(first.found.image, image, "what is found is what was there");
        let difference = first.difference(&objects(1..=2));
        assert!(difference.is_empty(), "a restart should change nothing: {difference:?}");
        let applied = first.plane.apply(&difference).expect("nothing to do");
        assert_eq!((applied.elements, applied.transactions), (0, 0), "and do nothing");
        assert_eq!(first.image(), image, "the same pool numbers and slots");
        assert_eq!(chain_handle(node, "ip", chain), Some(handle), "the round robin goes on counting");
    }
    let applied = first.put(&slices("web", &pods([1])));
    assert_eq!((applied.elements, applied.transactions), (12, 1), "afterwards changes cost what they always did");
    client.assert_uninterrupted("restarts");
    held.assert_alive("restarts");
    first.assert_exact("after restarts");
}

#[test]
fn what_changed_while_nobody_looked_is_caught_up_with() {
    let lab = bed(3);
    let node = lab.node().namespace();
    let first = Proxy::serving(node, &[objects(1..=3), shop("gone", 3, &pods([1]))].concat());
    let client = Restless::start(lab.client(0), &all_targets());
    first.die(node);
    let (mut second, applied) = Proxy::succeeding(node, &[objects(1..=2), shop("new", 4, &pods([3]))].concat());
    assert!(applied.transactions <= 3, "chains, then elements at once, then sweeping up: {applied:?}");
    client.assert_uninterrupted("catching up");
    assert_served(&lab, "after catching up");
    assert_silent(lab.client(0), frontends(3, 80)[0], "deleted meanwhile");
    assert_eq!(names(&tally(lab.client(0), frontends(4, 80)[0], 5)), ["web-3"], "new meanwhile");
    second.assert_exact("after catching up");
}

#[test]
fn drift_is_corrected() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let first = Proxy::serving(node, &objects(1..=2));
    let tamper = ["delete", "element", "ip", "pointsman", "services", "{ 10.96.0.1 . tcp . 80 }"];
    if owned(node) {
        assert!(!try_nft(node, &tamper).status.success(), "while its owner lives, nobody else should change the table");
    }
    first.die(node);
    nft(node, &tamper);
    nft(node, &["add", "element", "ip", "pointsman", "services", "{ 10.96.0.77 . tcp . 80 : 0x00001002 }"]);
    nft(node, &["delete", "element", "ip", "pointsman", "endpoints", "{ 0x00001000 . 0x00000001 }"]);
    nft(node, &["add", "element", "ip", "pointsman", "endpoints", "{ 0x00077000 . 0x00000000 : 10.244.0.2 . 8080 }"]);
    let (mut second, applied) = Proxy::succeeding(node, &objects(1..=2));
    assert!(second.found.rejected.is_empty(), "drift is no reason to replace: {:?}", second.found.rejected);
    // The port whose frontend was gone is not recognised and gets a new number; all others keep theirs.
    assert!((4..=8).contains(&applied.elements) && applied.transactions == 1, "little is rewritten: {applied:?}");
    second.assert_exact("after correcting");
    assert_served(&lab, "after correcting");
    assert_silent(lab.client(0), "10.96.0.77:80".parse().expect("an address"), "the stray frontend");
}

/// Whether the kernel keeps others out of our table (6.9 and newer).
fn owned(inside: &Namespace) -> bool {
    nft(inside, &["list", "table", "ip", "pointsman"]).contains("flags owner")
}

#[test]
fn an_adopted_table_is_owned_again() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let first = Proxy::serving(&inside, &crowd(3));
    if !owned(&inside) {
        return; // A kernel before 6.9: the lock keeps a second instance out instead.
    }
    first.die(&inside);
    assert!(!owned(&inside), "nobody owns it while nobody lives");
    let second = Proxy::start(&inside);
    assert!(owned(&inside), "the successor should own the table it adopted");
    let refused = Proxy::try_start(&inside).err();
    assert!(refused.is_some(), "and keep a third one out");
    drop(second);
}

#[test]
fn others_cannot_flush_the_tables_away() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let mut proxy = Proxy::serving(node, &objects(1..=2));
    if !owned(node) {
        return; // A kernel before 6.9 lets them.
    }
    let before = ruleset(node);
    nft(node, &["add", "table", "ip", "somebody-elses"]);
    nft(node, &["flush", "ruleset"]);
    assert_eq!(ruleset(node), before, "theirs is gone, ours stays");
    for table in ["ip", "ip6"] {
        assert!(!try_nft(node, &["delete", "table", table, "pointsman"]).status.success(), "not by name either");
    }
    assert_served(&lab, "after a flush by others");
    proxy.assert_exact("after a flush by others");
}

#[test]
fn leftover_chains_are_swept_up() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut rr = crowd(2);
    rr[0] = scheduled(rr[0].take(), "rr");
    let left = [scheduled(service_at("left", &["10.96.0.9"], &[HTTP]), "rr"), slices("left", &pods(1..=7))[0].clone()];
    Proxy::serving(&inside, &[rr.clone(), left.to_vec()].concat()).die(&inside);
    // As if the predecessor had died between the transaction that stopped using a chain and the sweep.
    for map in ["services", "dedicated", "endpoints"] {
        nft(&inside, &["flush", "map", "ip", "pointsman", map]);
    }
    let (mut second, _) = Proxy::succeeding(&inside, &rr);
    assert!(second.found.rejected.is_empty(), "a leftover is no reason to replace: {:?}", second.found.rejected);
    let chains = chains(&inside, "ip");
    assert!(!chains.iter().any(|chain| chain.contains("left")), "swept up: {chains:?}");
    assert!(chains.contains(&"rr-2-00001-shop/crowd-0/tcp/http".to_owned()), "the used one stays: {chains:?}");
    second.assert_exact("after sweeping");
}

/// Lets `meddle` loose on the IPv4 table between two lives; the successor must notice, replace that table and lose nothing.
fn replaced_after(what: &str, meddle: &[&[&str]]) {
    let lab = bed(2);
    let node = lab.node().namespace();
    let first = Proxy::serving(node, &objects(1..=2));
    let good = ruleset(node);
    first.die(node);
    for command in meddle {
        nft(node, command);
    }
    let client = Restless::start(lab.client(0), &all_targets());
    let (mut second, _) = Proxy::succeeding(node, &objects(1..=2));
    assert_eq!(
        second.found.rejected.len(),
        1,
        "{what}: the IPv4 table should be rejected: {:?}",
        second.found.rejected
    );
    second.assert_exact(what);
    assert_served(&lab, what);
    client.assert_uninterrupted(what);
    assert_eq!(ruleset(node).lines().count(), good.lines().count(), "{what}: nothing foreign is left");
    let applied = second.put(&slices("web", &pods([1])));
    assert!(applied.transactions <= 2, "{what}: changes go on, a chain and elements: {applied:?}");
}

#[test]
fn a_foreign_chain_leads_to_replacement() {
    replaced_after("a foreign chain", &[&["add", "chain", "ip", "pointsman", "stray"]]);
}

#[test]
fn a_foreign_rule_leads_to_replacement() {
    replaced_after("a foreign rule", &[&["add", "rule", "ip", "pointsman", "services", "counter"]]);
}

#[test]
fn rules_that_were_changed_lead_to_replacement() {
    let lab = bed(2);
    let node = lab.node().namespace();
    Proxy::serving(node, &objects(1..=2)).die(node);
    // As many rules as before, which do something else.
    nft(node, &["flush", "chain", "ip", "pointsman", "random-2"]);
    for _ in 0..2 {
        nft(node, &["add", "rule", "ip", "pointsman", "random-2", "drop"]);
    }
    let (mut second, _) = Proxy::succeeding(node, &objects(1..=2));
    assert_eq!(second.found.rejected, ["IPv4: chain random-2 has other rules"]);
    assert_served(&lab, "changed rules");
    second.assert_exact("changed rules");
}

#[test]
fn a_foreign_element_leads_to_replacement() {
    replaced_after(
        "a foreign element",
        &[&["add", "element", "ip", "pointsman", "services", "{ 10.96.0.77 . icmp . 80 : 0x00001002 }"]],
    );
}

#[test]
fn a_missing_plan_leads_to_replacement() {
    // Packets of web are not served in between, so only cart's frontends are connected to while this is mended.
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    Proxy::serving(&inside, &objects(1..=2)).die(&inside);
    nft(&inside, &["delete", "element", "ip", "pointsman", "plans", "{ 0x00000002 }"]);
    let (mut second, _) = Proxy::succeeding(&inside, &objects(1..=2));
    assert_eq!(second.found.rejected.len(), 1, "{:?}", second.found.rejected);
    second.assert_exact("a missing plan");
}

#[test]
fn a_table_of_another_layout_is_replaced_without_a_gap() {
    let lab = bed(2);
    let node = lab.node().namespace();
    left_by_another_release(node, 0);
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    client.wait_for(5);
    let mut held = Held::open(lab.client(0), frontends(1, 80)[0]);
    let mut proxy = Proxy::start(node);
    assert!(proxy.found.existed, "something is there");
    assert_eq!(proxy.found.rejected.len(), 2, "in both families: {:?}", proxy.found.rejected);
    assert!(proxy.found.rejected[0].contains("pointsman layout 0"), "and says why: {:?}", proxy.found.rejected);
    client.wait_for(5);
    let difference = proxy.difference(&objects(1..=2));
    let applied = proxy.plane.apply(&difference).expect("replaced");
    assert_eq!(applied.transactions, 1, "in one transaction: {applied:?}");
    client.assert_uninterrupted("another layout");
    held.assert_alive("another layout");
    assert_served(&lab, "after replacing");
    assert!(!chains(node, "ip").contains(&"old".to_owned()), "nothing of the old table is left");
    proxy.assert_exact("after replacing");
}

#[test]
fn a_half_finished_first_load_is_finished() {
    let lab = bed(2);
    let node = lab.node().namespace();
    Proxy::serving(node, &objects(1..=2)).die(node);
    // As it is before the last transaction of a first load, and as it is before the last elements.
    for chain in ["prerouting", "output", "after-prerouting", "after-output", "postrouting"] {
        for family in ["ip", "ip6"] {
            nft(node, &["delete", "chain", family, "pointsman", chain]);
        }
    }
    nft(node, &["flush", "map", "ip", "pointsman", "services"]);
    nft(node, &["delete", "element", "ip", "pointsman", "endpoints", "{ 0x00001000 . 0x00000001 }"]);
    assert_silent(lab.client(0), frontends(1, 80)[1], "without base chains");
    let (mut second, _) = Proxy::succeeding(node, &objects(1..=2));
    assert!(second.found.rejected.is_empty(), "half a load can be adopted: {:?}", second.found.rejected);
    assert_served(&lab, "finished");
    second.assert_exact("finished");
}

#[test]
fn one_table_of_two_is_made_up_for() {
    let lab = bed(2);
    let node = lab.node().namespace();
    Proxy::serving(node, &objects(1..=2)).die(node);
    nft(node, &["delete", "table", "ip6", "pointsman"]);
    let client = Restless::start(lab.client(0), &[frontends(1, 80)[0], frontends(2, 80)[0]]);
    let (mut second, _) = Proxy::succeeding(node, &objects(1..=2));
    client.assert_uninterrupted("the other table is made anew");
    assert_served(&lab, "made up for");
    second.assert_exact("made up for");
}

#[test]
fn a_second_live_instance_is_refused_and_changes_nothing() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let mut first = Proxy::serving(node, &objects(1..=2));
    let before = ruleset(node);
    let error = match Proxy::try_start(node) {
        Err(error) => error,
        Ok(_) => panic!("a second instance should be refused"),
    };
    assert!(matches!(error, KernelError::Nft(nft::Error::Owned { .. }) | KernelError::Locked { .. }), "{error:?}");
    assert!(error.is_hopeless(), "trying again cannot help: {error}");
    // Where tables have no owners, a lock ends it even earlier.
    let cleaned = node.run(DataPlane::open).and_then(|mut cleaner| cleaner.remove());
    assert!(cleaned.is_err(), "somebody else's tables cannot be removed");
    assert_eq!(ruleset(node), before, "nothing is changed");
    assert_eq!(first.put(&slices("web", &pods(1..=2))).elements, 0);
    first.put(&slices("web", &pods([1])));
    first.assert_exact("the first instance goes on");
}

#[test]
fn removing_leaves_nothing_and_touches_nothing_else() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let others = "table ip pointsman-2 {
            map services {
                type ipv4_addr : ipv4_addr
                elements = { 10.0.0.1 : 10.0.0.2 }
            }
        }
        table inet filter {
            chain forward {
                type filter hook forward priority filter
                counter
            }
        }
        table ip nat {
            chain services {
            }
            chain prerouting {
                type nat hook prerouting priority dstnat
                jump services
            }
        }";
    nft(node, &[others]);
    let before = nft(node, &["-s", "list", "ruleset"]);
    let mut proxy = Proxy::serving(node, &objects(1..=2));
    assert_served(&lab, "beside other tables");
    assert_eq!(proxy.plane.remove().expect("removed"), 2, "one table per family");
    assert_eq!(nft(node, &["-s", "list", "ruleset"]), before, "what others made is as it was");
    assert_silent(lab.client(0), frontends(1, 80)[0], "removed");
    assert_eq!(proxy.plane.remove().expect("nothing to do"), 0, "a second time");
    // The same instance can begin again, and a successor that never served can clean up too.
    let everything = proxy.engine.everything();
    proxy.plane.apply(&everything).expect("programmed again");
    assert_served(&lab, "programmed again");
    proxy.die(node);
    let mut cleaner = node.run(DataPlane::open).expect("a data plane");
    assert_eq!(cleaner.remove().expect("removed"), 2, "a predecessor's tables");
    assert_eq!(nft(node, &["-s", "list", "ruleset"]), before, "what others made is as it was");
}

#[test]
fn opening_and_reading_leave_no_trace() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let proxy = Proxy::start(&inside);
    assert!(!proxy.found.existed, "nothing is there");
    assert_eq!(tables(&inside), [""; 0], "and nothing is made before there is something to program");
    assert_eq!(json(&inside, &["list", "ruleset"]).len(), 1, "but for nft's own version");
    drop(proxy);
    let mut proxy = Proxy::serving(&inside, &[service("web", 1, &[])]);
    assert_eq!(elements(&inside, "ip", "services"), 0, "a Service without ports has no frontend");
    proxy.assert_exact("no ports");
}

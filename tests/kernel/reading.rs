//! Reading what is there, in both ways: by listing whole maps, and by asking for the elements that somebody can reach. Whatever a
//! predecessor or a stranger left, both find the same, and a start puts it right.

use pointsman::compile::Phases;
use pointsman::kernel::{DataPlane, Ownership, Reading};
use pointsman::lab::Namespace;
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::pods;
use super::support::objects::{crowd, scheduled, shop, slices};
use super::support::oracle::{elements, nft};

const WAYS: [Reading; 2] = [Reading::Listing, Reading::ByKey];

/// Services of every kind of pool: shared plans, a chain of its own, session affinity.
fn objects() -> Vec<Value> {
    let mut cart = shop("cart", 2, &pods(1..=3));
    cart[0] = scheduled(cart[0].take(), "rr");
    let mut desk = shop("desk", 3, &pods(1..=4));
    desk[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    [shop("web", 1, &pods(1..=2)), cart, desk, shop("idle", 4, &[]), crowd(300)].concat()
}

/// Two lives in a namespace; in between, something happens to the tables. Returns how many elements the second one wrote.
fn two_lives(reading: Reading, between: impl FnOnce(&Namespace)) -> usize {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    Proxy::serving(&inside, &objects()).die(&inside);
    between(&inside);
    let mut second = Proxy::start_reading(&inside, reading);
    assert!(second.found.rejected.is_empty(), "{reading:?}: {:?}", second.found.rejected);
    let other = WAYS.into_iter().find(|way| *way != reading).expect("two ways");
    let again = second.plane.read_by(other).expect("readable");
    assert_eq!(again.image, second.found.image, "both ways find the same");
    let difference = second.difference(&objects());
    let applied = second.plane.apply(&difference).expect("the kernel takes the difference");
    second.assert_exact(&format!("{reading:?}"));
    applied.elements
}

fn both_ways(what: &str, expected: std::ops::RangeInclusive<usize>, between: impl Fn(&Namespace)) {
    for reading in WAYS {
        let written = two_lives(reading, &between);
        assert!(expected.contains(&written), "{what}, {reading:?}: {written} elements, not {expected:?}");
    }
}

#[test]
fn nothing_happened() {
    both_ways("nothing happened", 0..=0, |_| {});
}

#[test]
fn elements_that_nobody_asked_for_are_removed() {
    both_ways("strays", 5..=5, |inside| {
        let add = |map: &str, element: &str| nft(inside, &["add", "element", "ip", "pointsman", map, element]);
        // A pool that is nobody's, a slot behind a pool's last one, and the same for members.
        add("endpoints", "{ 0x77777000 . 0x00000000 : 10.244.0.2 . 8080 }");
        add("endpoints", "{ 0x00001000 . 0x00000009 : 10.244.0.2 . 8080 }");
        add("member-slots", "{ 0x77777000 . 0x00000000 : 0x77777000 }");
        add("members", "{ 0x77777000 : 10.244.0.2 . 8080 }");
        add("services", "{ 10.96.0.77 . tcp . 80 : 0x00001002 }");
    });
}

/// The first element of a map that is in a listing, as nft spells it.
fn first_of(inside: &Namespace, map: &str) -> String {
    let listing = nft(inside, &["list", "map", "ip", "pointsman", map]);
    let elements = listing.split("elements = { ").nth(1).expect("elements");
    elements.split([',', '\n', '}']).next().expect("an element").trim().to_owned()
}

#[test]
fn elements_that_are_missing_come_back() {
    for map in ["endpoints", "member-slots", "members"] {
        // A pool whose first slot is gone is not recognised and gets another number, with all that it holds.
        both_ways(map, 1..=40, |inside| {
            let element = first_of(inside, map);
            let key = element.split(" comment ").next().and_then(|head| head.split(" : ").next()).expect("a key");
            let before = elements(inside, "ip", map);
            nft(inside, &["delete", "element", "ip", "pointsman", map, &format!("{{ {key} }}")]);
            assert_eq!(elements(inside, "ip", map), before - 1);
        });
    }
}

#[test]
fn elements_that_were_changed_are_put_right() {
    // The slot holds an endpoint that is none: it is dealt again, which may move others.
    both_ways("changed", 1..=4, |inside| {
        nft(inside, &["delete", "element", "ip", "pointsman", "endpoints", "{ 0x00001000 . 0x00000001 }"]);
        let element = "{ 0x00001000 . 0x00000001 : 203.0.113.9 . 9 }";
        nft(inside, &["add", "element", "ip", "pointsman", "endpoints", element]);
    });
}

#[test]
fn a_large_change_that_was_cut_short_is_finished() {
    for reading in WAYS {
        for survived in 0..=3 {
            let inside = Namespace::anonymous().expect("a namespace, which needs root");
            let mut first = Proxy::serving(&inside, &[crowd(400), shop("web", 1, &pods(1..=4))].concat());
            let changed = [crowd(600), slices("web", &pods(4..=5)).to_vec()].concat();
            first.take(&changed);
            crowd(100).iter().for_each(|object| first.forget(object));
            let delta = first.engine.compile().delta;
            let phases = Phases::of_large(&delta);
            for phase in &[&phases.ahead, &*phases.now, &phases.behind][..survived] {
                first.plane.apply(phase).expect("the kernel takes a phase");
            }
            first.die(&inside);
            let now = [crowd(600)[200..].to_vec(), shop("web", 1, &pods(4..=5))].concat();
            let mut second = Proxy::start_reading(&inside, reading);
            assert!(second.found.rejected.is_empty(), "{reading:?}: {:?}", second.found.rejected);
            let difference = second.difference(&now);
            let applied = second.plane.apply(&difference).expect("the kernel takes the difference");
            second.assert_exact(&format!("{reading:?}, died after phase {survived}"));
            if survived == 3 {
                assert_eq!(applied.elements, 0, "{reading:?}: all was done");
            }
        }
    }
}

#[test]
fn a_first_load_that_was_cut_short_is_finished() {
    for reading in WAYS {
        for flushed in [&["services"][..], &["services", "endpoints"], &["members", "member-slots"]] {
            let inside = Namespace::anonymous().expect("a namespace, which needs root");
            Proxy::serving(&inside, &objects()).die(&inside);
            for chain in ["prerouting", "output", "after-prerouting", "after-output", "postrouting"] {
                nft(&inside, &["delete", "chain", "ip", "pointsman", chain]);
            }
            flushed.iter().for_each(|map| drop(nft(&inside, &["flush", "map", "ip", "pointsman", map])));
            let mut second = Proxy::start_reading(&inside, reading);
            let difference = second.difference(&objects());
            second.plane.apply(&difference).expect("the kernel takes the difference");
            second.assert_exact(&format!("{reading:?}, without {flushed:?}"));
        }
    }
}

#[test]
fn what_was_read_stays_true_until_somebody_writes() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    Proxy::serving(&inside, &objects()).die(&inside);
    let meddle = |what: &str| nft(&inside, &["add", "table", "ip", what]);
    // Owned tables cannot be changed by others, whatever else they do.
    let mut owner = Proxy::start(&inside);
    assert!(owner.plane.is_as_read().expect("asked"));
    meddle("others");
    let owned = nft(&inside, &["list", "table", "ip", "pointsman"]).contains("flags owner");
    assert_eq!(owner.plane.is_as_read().expect("asked"), owned, "another table is none of an owner's business");
    owner.die(&inside);
    // Shared ones can.
    let mut sharer = inside.run(|| DataPlane::open_as(Ownership::Shared)).expect("a data plane");
    assert!(!sharer.is_as_read().expect("asked"), "nothing was read yet");
    sharer.read().expect("readable");
    assert!(sharer.is_as_read().expect("asked"));
    meddle("more");
    assert!(!sharer.is_as_read().expect("asked"), "somebody changed something");
}

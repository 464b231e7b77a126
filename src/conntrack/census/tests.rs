//! Walks over simulated tables.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::conntrack::Tuple;

const SYN_SENT: u8 = 1;
const ESTABLISHED: u8 = 3;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn port(service: &str, name: &str) -> PortKey {
    PortKey { service: ServiceKey::new("ns", service), name: name.into(), protocol: Protocol::Tcp }
}

fn entry(service: &str, to: &str) -> Entrances {
    moved(service, &[(Destination::Address(at(to)), "")], &[])
}

/// A Service that clients connect to here, by port, and no more there.
fn moved(service: &str, entries: &[(Destination, &str)], left: &[Destination]) -> Entrances {
    let entries = entries.iter().map(|(destination, name)| (*destination, port(service, name))).collect();
    let left = left.iter().map(|destination| (Protocol::Tcp, *destination)).collect();
    Entrances { service: ServiceKey::new("ns", service), entries, left }
}

fn sighting(client: u16, to: &str, endpoint: u8, id: u32, state: u8, left: u32) -> Sighting {
    let client = SocketAddr::from(([10, 9, 0, 1], client));
    let flow = Flow {
        protocol: Protocol::Tcp,
        original: Tuple { source: client, destination: at(to), zone: None },
        reply: Tuple { source: SocketAddr::from(([10, 1, 0, endpoint], 8080)), destination: client, zone: None },
        zone: None,
        id: Some(id),
        state: Some(state),
    };
    let status = if state == SYN_SENT { 0 } else { SEEN_REPLY };
    Sighting { flow, status, left }
}

fn walk(census: &mut Census, entries: &[Sighting]) {
    census.begin();
    entries.iter().for_each(|entry| census.sight(entry));
    census.end(true);
}

/// `opened active inactive unanswered` per Service, sorted.
fn said(census: &Census) -> Vec<String> {
    let line = |(port, account): (&PortKey, &Account)| {
        let Connections { opened, active, inactive, unanswered, .. } = account.total;
        format!("{port} {opened} {active} {inactive} {unanswered}")
    };
    let mut lines: Vec<_> = census.accounts().map(line).collect();
    lines.sort();
    lines
}

const WEB: &str = "10.96.0.1:80";

/// Places, each for a port of a Service, or for nobody.
fn any_batch() -> impl Strategy<Value = Vec<(u16, &'static str, &'static str)>> {
    let service = prop_oneof![Just("a"), Just("b"), Just("c")];
    let port = prop_oneof![Just("x"), Just("y"), Just("")];
    proptest::collection::vec((1u16..6, service, port), 1..6)
}

#[test]
fn connections_come_close_and_go() {
    let mut census = Census::default();
    census.direct(vec![entry("web", WEB), entry("idle", "10.96.0.2:80")]);
    let standing = sighting(1, WEB, 1, 1, ESTABLISHED, 400);
    walk(&mut census, &[standing, sighting(9, "10.96.9.9:80", 1, 9, ESTABLISHED, 400)]);
    assert_eq!(said(&census), ["ns/web 0 1 0 0"], "who was there before has not been seen opening");
    let waiting = sighting(3, WEB, 2, 3, SYN_SENT, 100);
    walk(&mut census, &[standing, standing, sighting(2, WEB, 2, 2, ESTABLISHED, 400), waiting]);
    assert_eq!(said(&census), ["ns/web 2 3 0 0"], "an entry met twice counts once");
    for _ in 0..3 {
        walk(&mut census, &[standing, sighting(2, WEB, 2, 2, TIME_WAIT, 118), waiting]);
    }
    assert_eq!(said(&census), ["ns/web 2 2 1 1"], "unanswered once, however long it waits");
    let endpoints = |census: &Census| census.accounts().next().expect("one").1.endpoints.clone();
    let of = |number: u8| SocketAddr::from(([10, 1, 0, number], 8080));
    assert_eq!((endpoints(&census)[&of(1)].opened, endpoints(&census)[&of(2)].opened), (0, 2));
    walk(&mut census, &[]);
    assert_eq!(said(&census), ["ns/web 2 0 0 1"]);
    assert!(census.is_empty());
    for _ in 0..=REMEMBERED {
        walk(&mut census, &[]);
    }
    assert!(endpoints(&census).is_empty(), "an endpoint that nobody uses is forgotten");
    assert_eq!(said(&census), ["ns/web 2 0 0 1"], "the Service's counts are not");
}

#[test]
fn ports_that_are_used_again_are_other_connections() {
    let mut census = Census::default();
    census.direct(vec![entry("web", WEB)]);
    walk(&mut census, &[]);
    let mut opened = Vec::new();
    for (state, left) in [
        (ESTABLISHED, 400),
        // It closes in the usual way, and waits.
        (4, 120),
        (6, 30),
        (TIME_WAIT, 118),
        (TIME_WAIT, 113),
        // The same number and ports, and closed again: another one in between.
        (TIME_WAIT, 119),
        (ESTABLISHED, 400),
        (TIME_WAIT, 110),
        (6, 30),
    ] {
        walk(&mut census, &[sighting(1, WEB, 1, 7, state, left)]);
        opened.push(census.accounts().next().expect("one").1.total.opened);
    }
    assert_eq!(opened, [1, 1, 1, 1, 1, 2, 3, 3, 4]);
}

#[test]
fn a_walk_that_missed_something_forgets_nothing_and_a_rest_begins_anew() {
    let mut census = Census::default();
    census.direct(vec![entry("web", WEB)]);
    let standing = sighting(1, WEB, 1, 1, ESTABLISHED, 400);
    walk(&mut census, &[]);
    walk(&mut census, &[standing]);
    census.begin();
    census.end(false);
    walk(&mut census, &[standing]);
    assert_eq!(said(&census), ["ns/web 1 1 0 0"]);
    census.rest();
    walk(&mut census, &[standing, sighting(2, WEB, 1, 2, ESTABLISHED, 400)]);
    assert_eq!(said(&census), ["ns/web 1 2 0 0"]);
}

#[test]
fn addresses_change_hands_and_ports_come_and_go() {
    let mut census = Census::default();
    census.direct(vec![entry("a", WEB)]);
    let standing = sighting(1, WEB, 1, 1, ESTABLISHED, 400);
    walk(&mut census, &[]);
    walk(&mut census, &[standing]);
    // The new owner may speak before the old one.
    let (web, other) = (Destination::Address(at(WEB)), Destination::Address(at("10.96.0.7:80")));
    census.direct(vec![entry("b", WEB), moved("a", &[(other, "")], &[web])]);
    walk(&mut census, &[standing]);
    assert_eq!(said(&census), ["ns/a 1 0 0 0", "ns/b 0 1 0 0"]);
    census.direct(vec![moved("a", &[], &[other])]);
    assert_eq!(said(&census), ["ns/b 0 1 0 0"]);
    let node_port = Destination::NodePort(Family::V4, 30080);
    census.direct(vec![moved("b", &[(node_port, "")], &[web])]);
    walk(&mut census, &[standing, sighting(2, "192.168.0.1:30080", 1, 2, ESTABLISHED, 400)]);
    assert_eq!(said(&census), ["ns/b 1 1 0 0"]);
    census.direct(vec![moved("b", &[], &[node_port])]);
    assert_eq!(census.totals().opened, 2, "what is gone has been");
    assert!(census.subjects.is_empty() && census.places.is_empty());
}

proptest! {
    /// However Services and ports exchange their places, those lead to whoever has them last, and nobody else is remembered.
    #[test]
    fn places_lead_to_who_has_them(batches in proptest::collection::vec(any_batch(), 1..12)) {
        let mut census = Census::default();
        let mut has: BTreeMap<&str, BTreeMap<u16, &str>> = BTreeMap::new();
        for batch in batches {
            // Whoever takes a place in a batch loses it to nobody else in it, but its last owner loses it.
            let taken: BTreeMap<u16, (&str, &str)> = batch.into_iter().map(|(place, service, port)| (place, (service, port))).collect();
            let mut news = Vec::new();
            for service in ["a", "b", "c"] {
                let before = has.get(service).cloned().unwrap_or_default();
                let mut now = before.clone();
                now.retain(|place, _| !taken.contains_key(place));
                now.extend(taken.iter().filter(|(_, (of, port))| *of == service && !port.is_empty()).map(|(place, (_, port))| (*place, *port)));
                if now != before {
                    let entries: Vec<_> = now.iter().map(|(place, port)| (Destination::NodePort(Family::V4, *place), *port)).collect();
                    let left: Vec<_> = before.keys().filter(|place| !now.contains_key(place)).map(|place| Destination::NodePort(Family::V4, *place)).collect();
                    news.push(moved(service, &entries, &left));
                }
                has.insert(service, now);
            }
            census.direct(news);
            let led: BTreeMap<u16, PortKey> = census.places.iter().map(|(place, number)| match place {
                Place::NodePort(_, port, _) => (*port, census.subjects[*number as usize].port.clone()),
                other => unreachable!("{other:?}"),
            }).collect();
            let wanted: BTreeMap<u16, PortKey> = has.iter().flat_map(|(service, ports)| ports.iter().map(|(place, name)| (*place, port(service, name)))).collect();
            let ports: BTreeSet<_> = wanted.values().collect();
            prop_assert_eq!(census.subjects.len(), ports.len());
            prop_assert_eq!(led, wanted.clone());
        }
    }

    /// Whatever comes and goes: what is open is what the last walk saw, and opened is every number that was not there before.
    #[test]
    fn counts_are_those_of_the_table(walks in proptest::collection::vec(proptest::collection::btree_set(0u16..40, 0..20), 1..12)) {
        let mut census = Census::default();
        census.direct(vec![entry("web", WEB)]);
        walk(&mut census, &[]);
        let (mut before, mut opened) = (BTreeSet::new(), 0);
        for present in walks {
            let entries: Vec<_> = present.iter().map(|n| sighting(*n, WEB, (n % 3) as u8, u32::from(*n), ESTABLISHED, 400)).collect();
            walk(&mut census, &entries);
            opened += present.difference(&before).count() as u64;
            let total = census.accounts().next().map(|(_, account)| account.total).unwrap_or_default();
            prop_assert_eq!((total.opened, total.active), (opened, present.len() as u64));
            let sum: u64 = census.accounts().flat_map(|(_, account)| account.endpoints.values()).map(|of| of.active).sum();
            prop_assert_eq!(sum, total.active);
            before = present;
        }
    }
}

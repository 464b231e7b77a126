//! The ledger against the flows that are there, whatever the order of what it hears.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proptest::prelude::*;

use super::account::{LONGEST_GAP, SHORTEST_GAP};
use super::*;
use crate::conntrack::Tuple;
use crate::model::{PortKey, ServiceKey};
use crate::schedule::Candidate;
use crate::schedule::live::Load;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn subject(name: &str, protocol: Protocol) -> Subject {
    let port = PortKey { service: ServiceKey::new("ns", name), name: "".into(), protocol };
    Subject { port, family: Family::V4 }
}

fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, number], 8080))
}

fn interest(destinations: &[Destination]) -> Interest {
    let candidates = (1..=3).map(|number| Candidate::equal(endpoint(number))).collect();
    Interest { destinations: destinations.to_vec(), candidates, rule: Rule::LeastConnection, rings: Vec::new() }
}

/// A flow from a client port to 10.96.0.1:80 that an endpoint answers.
fn flow(protocol: Protocol, client: u16, to: &str, answers: SocketAddr, id: u32, state: Option<u8>) -> Flow {
    let client = SocketAddr::from(([10, 9, 0, 1], client));
    Flow {
        protocol,
        original: Tuple { source: client, destination: at(to), zone: None },
        reply: Tuple { source: answers, destination: client, zone: None },
        zone: None,
        id: Some(id),
        state,
    }
}

fn ledger(protocol: Protocol) -> Ledger {
    let mut ledger = Ledger::default();
    let to = [Destination::Address(at("10.96.0.1:80")), Destination::NodePort(Family::V4, 30080)];
    ledger.watch(vec![(subject("web", protocol), Some(interest(&to)))]);
    ledger.begin_review();
    ledger.end_review();
    ledger
}

/// What is reported: `active+inactive` per endpoint.
fn counts(ledger: &mut Ledger) -> String {
    ledger.report_all();
    let mut counts = Vec::new();
    ledger.report(Instant::now(), |report| {
        let sorted: BTreeMap<_, _> = report.loads.iter().collect();
        counts.extend(sorted.into_iter().map(|(at, load)| format!("{}:{}+{}", at.ip(), load.active, load.inactive)));
        true
    });
    counts.join(" ").replace("10.1.0.", "")
}

#[test]
fn a_tcp_connection_is_active_until_it_closes() {
    let mut ledger = ledger(Protocol::Tcp);
    let tcp = |state| flow(Protocol::Tcp, 1000, "10.96.0.1:80", endpoint(1), 1, state);
    ledger.take(Event::New, &tcp(None));
    assert_eq!(counts(&mut ledger), "1:1+0", "from the first packet on");
    for (state, want) in [(2, "1:1+0"), (3, "1:1+0"), (4, "1:0+1"), (6, "1:0+1"), (7, "1:0+1"), (8, "1:0+1")] {
        ledger.take(Event::Present, &tcp(Some(state)));
        assert_eq!(counts(&mut ledger), want, "state {state}");
    }
    ledger.take(Event::Present, &tcp(None));
    assert_eq!(counts(&mut ledger), "1:0+1", "nothing is said about its state");
    ledger.take(Event::End, &tcp(None));
    assert_eq!(counts(&mut ledger), "");
    assert_eq!(ledger.flows(), 0);
    ledger.take(Event::End, &tcp(None));
    assert_eq!(counts(&mut ledger), "", "an end that is told twice");
}

#[test]
fn only_what_goes_through_the_service_counts() {
    let mut ledger = ledger(Protocol::Udp);
    let mut udp =
        |to, answers, protocol, client| ledger.take(Event::New, &flow(protocol, client, to, answers, 1, None));
    udp("10.96.0.1:80", endpoint(1), Protocol::Udp, 1);
    udp("192.168.0.1:30080", endpoint(2), Protocol::Udp, 2);
    udp("10.96.0.1:80", endpoint(3), Protocol::Tcp, 3);
    udp("10.96.0.1:81", endpoint(3), Protocol::Udp, 4);
    udp("10.96.0.2:80", endpoint(3), Protocol::Udp, 5);
    udp("192.168.0.1:30080", at("192.168.0.1:30080"), Protocol::Udp, 6);
    assert_eq!(counts(&mut ledger), "1:1+0 2:1+0", "by address and by node port; the last was not translated");
}

#[test]
fn a_review_finds_what_ended_in_silence() {
    let mut ledger = ledger(Protocol::Udp);
    let udp = |client| flow(Protocol::Udp, client, "10.96.0.1:80", endpoint(1), client.into(), None);
    for client in 1..=3 {
        ledger.take(Event::New, &udp(client));
    }
    ledger.doubt();
    assert!(ledger.wants_review());
    assert_eq!(ledger.begin_review().len(), 2);
    ledger.found(&udp(2));
    ledger.found(&udp(9));
    // What begins meanwhile is not looked for.
    ledger.take(Event::New, &udp(4));
    assert!(ledger.has_silent(), "nobody told of number 9");
    assert_eq!(ledger.end_review(), 2);
    assert_eq!(counts(&mut ledger), "1:3+0");
    assert!(!ledger.wants_review());
    ledger.take(Event::End, &udp(9));
    assert!(!ledger.has_silent());
}

/// What a review found that failed half-way counts for nothing in the next one.
#[test]
fn a_review_that_fails_leaves_nothing_behind() {
    let mut ledger = ledger(Protocol::Udp);
    let udp = |client| flow(Protocol::Udp, client, "10.96.0.1:80", endpoint(1), client.into(), None);
    (1..=3).for_each(|client| ledger.take(Event::New, &udp(client)));
    for aborted in 1..=3 {
        ledger.doubt();
        ledger.begin_review();
        ledger.found(&udp(1));
        assert!(ledger.wants_review(), "after {aborted} that failed");
    }
    // Numbers 1 and 3 have ended since, in silence.
    ledger.begin_review();
    ledger.found(&udp(2));
    assert_eq!(ledger.end_review(), 2);
    assert_eq!(counts(&mut ledger), "1:1+0");
}

#[test]
fn an_interest_that_ends_leaves_nothing() {
    let mut ledger = ledger(Protocol::Tcp);
    ledger.take(Event::New, &flow(Protocol::Tcp, 1, "10.96.0.1:80", endpoint(1), 1, None));
    ledger.watch(vec![(subject("web", Protocol::Tcp), None)]);
    assert!(ledger.is_empty() && ledger.flows() == 0 && ledger.destinations().count() == 0);
    ledger.take(Event::New, &flow(Protocol::Tcp, 2, "10.96.0.1:80", endpoint(1), 2, None));
    assert_eq!(ledger.flows(), 0);
}

#[test]
fn reports_come_at_once_then_in_turn_and_wait_for_room() {
    let mut ledger = ledger(Protocol::Udp);
    let mut client = 0;
    let mut arrive = |ledger: &mut Ledger| {
        client += 1;
        ledger.take(Event::New, &flow(Protocol::Udp, client, "10.96.0.1:80", endpoint(1), 1, None));
    };
    let sent = |ledger: &mut Ledger, now| {
        let mut sent = 0;
        ledger.report(now, |_| {
            sent += 1;
            true
        });
        sent
    };
    let begin = Instant::now();
    assert_eq!((ledger.wait(begin), sent(&mut ledger, begin)), (Some(Duration::ZERO), 1), "the first one");
    assert_eq!((ledger.wait(begin), sent(&mut ledger, begin)), (None, 0), "nothing new");
    arrive(&mut ledger);
    assert_eq!((ledger.wait(begin), sent(&mut ledger, begin)), (Some(SHORTEST_GAP), 0), "a change per two endpoints");
    let later = begin + SHORTEST_GAP;
    ledger.report(later, |_| false);
    assert_eq!(ledger.wait(later), Some(Duration::ZERO), "no room: still due");
    assert_eq!(sent(&mut ledger, later), 1);
    assert_eq!(ledger.wait(later), None);
}

#[test]
fn who_waits_longest_is_reported_first() {
    let mut ledger = Ledger::default();
    let names = ["a", "b", "c"];
    for (number, name) in (1u8..).zip(names) {
        let to = Destination::Address(SocketAddr::from(([10, 96, 0, number], 80)));
        ledger.watch(vec![(subject(name, Protocol::Udp), Some(interest(&[to])))]);
    }
    let begin = Instant::now();
    let first =
        |ledger: &Ledger, now| ledger.due(now).first().map(|(subject, _)| subject.port.service.name.to_string());
    // Room for one at a time: each has its turn.
    let mut served = Vec::new();
    for round in 0..6u32 {
        let now = begin + LONGEST_GAP * (round + 1);
        ledger.dirty.extend(ledger.accounts.keys());
        let next = first(&ledger, now).expect("all are due");
        ledger.report(now, |report| *report.subject.port.service.name == *next);
        served.push(next);
    }
    assert_eq!(served, ["a", "b", "c", "a", "b", "c"]);
}

proptest! {
    /// Each flow lives through any of its states; some events are lost, and a review makes up for them.
    #[test]
    fn counts_are_those_of_the_flows_there(
        steps in proptest::collection::vec((0u16..12, 0u8..7, any::<bool>()), 0..120),
    ) {
        let mut ledger = ledger(Protocol::Tcp);
        let mut there: BTreeMap<u16, (u32, u8)> = BTreeMap::new();
        let mut ids = 0;
        let mut lost = false;
        let of = |client: u16, id: u32, state| flow(Protocol::Tcp, client, "10.96.0.1:80", endpoint((client % 3) as u8 + 1), id, state);
        for (client, what, heard) in steps {
            if what == 6 {
                // A review that fails: half-way, or before it found anything.
                ledger.doubt();
                ledger.begin_review();
                let some = there.iter().filter(|_| heard).take(usize::from(client));
                some.for_each(|(client, (id, state))| ledger.found(&of(*client, *id, Some(*state))));
                lost = true;
                continue;
            }
            let before = there.get(&client).copied();
            let event = match (what, before) {
                (0..3, None) => {
                    ids += 1;
                    there.insert(client, (ids, 1));
                    (Event::New, of(client, ids, None))
                }
                (0..4, Some((id, state))) => {
                    let state = (state + 1).min(8);
                    there.insert(client, (id, state));
                    (Event::Present, of(client, id, Some(state)))
                }
                (_, Some((id, _))) => {
                    there.remove(&client);
                    (Event::End, of(client, id, None))
                }
                (_, None) => continue,
            };
            if heard {
                ledger.take(event.0, &event.1);
            }
            lost |= !heard;
        }
        if lost {
            ledger.doubt();
            ledger.begin_review();
            there.iter().for_each(|(client, (id, state))| ledger.found(&of(*client, *id, Some(*state))));
            ledger.end_review();
        }
        let mut want: BTreeMap<u8, Load> = BTreeMap::new();
        for (client, (_, state)) in &there {
            let load = want.entry((client % 3) as u8 + 1).or_default();
            if *state < 4 { load.active += 1 } else { load.inactive += 1 }
        }
        let want: Vec<_> = want.iter().map(|(number, load)| format!("{number}:{}+{}", load.active, load.inactive)).collect();
        prop_assert_eq!(counts(&mut ledger), want.join(" "));
        prop_assert_eq!(ledger.flows(), there.len());
        for (client, (id, _)) in there {
            ledger.take(Event::End, &of(client, id, None));
        }
        prop_assert!(!ledger.has_silent());
        prop_assert_eq!(ledger.flows(), 0);
    }
}

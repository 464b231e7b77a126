//! Rings: slots that are dealt again while the kernel walks them, by counts that are made up here.
//!
//! [`Counted`] deals as the daemon's controller does, as often as it is told, so that commits meet walks of every kind.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pointsman::compile::Delta;
use pointsman::conntrack::ledger::Report;
use pointsman::conntrack::{Interest, Subject};
use pointsman::lab::connect;
use pointsman::schedule::live::Load;
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::{PATIENCE, bed, pods};
use super::support::objects::{frontends, scheduled, shop, slices};
use super::support::oracle::chain_handle;
use super::support::traffic::{Held, Restless};

fn by_counts(sticky: bool, ready: &[usize]) -> Vec<Value> {
    let mut objects = shop("web", 1, &pods(ready.iter().copied()));
    objects[0] = scheduled(objects[0].take(), "lc");
    if sticky {
        objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    }
    objects
}

/// What is to be counted, as the engine said last.
#[derive(Default)]
struct Counted(BTreeMap<Subject, Interest>);

impl Counted {
    /// Deals all rings again, as if one endpoint after the other had no connections and the others many.
    fn deal(&mut self, proxy: &mut Proxy, round: usize) {
        for (subject, interest) in proxy.engine.take_interests() {
            let interest = interest.expect("nothing loses its ring here");
            self.0.insert(subject, interest);
        }
        let mut delta = Delta::default();
        for (subject, interest) in &self.0 {
            let of = |(at, endpoint): (usize, SocketAddr)| {
                let idle = at == round % interest.candidates.len();
                (endpoint, Load { active: if idle { 0 } else { 100 }, inactive: 0 })
            };
            let endpoints = interest.candidates.iter().map(|candidate| candidate.endpoint);
            let picks: Vec<_> = interest
                .rings
                .iter()
                .map(|ring| proxy.plane.picks(subject.family, &ring.chain).expect("the ring is there"))
                .collect();
            let report = Report {
                subject: subject.clone(),
                rule: interest.rule,
                loads: endpoints.enumerate().map(of).collect(),
                expected: 20,
                rings: interest.rings.iter().cloned().map(|ring| (ring, None)).collect(),
            };
            proxy.engine.redeal(&report, &picks, &mut delta);
        }
        proxy.plane.apply(&delta).expect("the kernel takes the slots");
    }
}

#[test]
fn commits_under_a_walk_fail_nobody_and_who_left_is_not_reached() {
    let lab = bed(4);
    let mut proxy = Proxy::serving(lab.node().namespace(), &by_counts(false, &[1, 2, 3, 4]));
    let mut counted = Counted::default();
    let targets = frontends(1, 80);
    let clients = [lab.client(0), lab.node()].map(|host| Restless::start(host, &targets));
    for round in 0..300 {
        if round % 10 == 0 {
            let stays: &[usize] = if round % 20 == 0 { &[1, 2, 3] } else { &[1, 2, 3, 4] };
            proxy.put(&slices("web", &pods(stays.iter().copied())));
            // However loaded the machine is, every phase meets some connections.
            clients.iter().for_each(|client| client.wait_for(3));
        }
        counted.deal(&mut proxy, round);
        if round % 20 < 10 {
            let pod = lab.client(0).run(|| connect(targets[round % 2], PATIENCE)).expect("an answer").pod;
            assert_ne!(pod, "web-4", "round {round}: it has left");
        }
    }
    for client in clients {
        let answers = client.assert_uninterrupted("rings dealt again and again");
        for (to, tally) in answers {
            assert!(tally.len() >= 3, "{to}: those who stayed had their time: {tally:?}");
        }
    }
    proxy.assert_exact("after all that");
}

#[test]
fn with_affinity_a_client_stays_whatever_is_dealt() {
    let lab = bed(3);
    let mut proxy = Proxy::serving(lab.node().namespace(), &by_counts(true, &[1, 2, 3]));
    let mut counted = Counted::default();
    for to in frontends(1, 80) {
        let ask = || lab.client(0).run(|| connect(to, PATIENCE)).expect("an answer").pod;
        let home = ask();
        for round in 0..12 {
            counted.deal(&mut proxy, round);
            assert_eq!(ask(), home, "{to}: round {round}");
        }
        // The other client is new, so it goes where the counts say: in this round, to the first.
        counted.deal(&mut proxy, 0);
        assert_eq!(lab.node().run(|| connect(to, PATIENCE)).expect("an answer").pod, "web-1", "{to}");
        let number: usize = home.trim_start_matches("web-").parse().expect("a number");
        let rest: Vec<_> = (1..=3).filter(|other| *other != number).collect();
        proxy.put(&slices("web", &pods(rest)));
        let next = ask();
        assert_ne!(next, home, "{to}: it has left");
        counted.deal(&mut proxy, 1);
        proxy.put(&slices("web", &pods(1..=3)));
        counted.deal(&mut proxy, 2);
        assert_eq!(ask(), next, "{to}: and who comes back does not get its clients back");
    }
    proxy.assert_exact("after all that");
}

#[test]
fn a_restart_takes_rings_over_as_they_were_dealt() {
    let lab = bed(3);
    let node = lab.node().namespace();
    for sticky in [false, true] {
        let objects = by_counts(sticky, &[1, 2, 3]);
        let mut first = Proxy::start(node);
        first.put(&objects);
        let mut counted = Counted::default();
        let to = frontends(1, 80)[0];
        let chain =
            if sticky { "sticky-ring-64-10800s-00001-shop/web/tcp/http" } else { "ring-64-00001-shop/web/tcp/http" };
        let mut held = Held::open(lab.client(0), to);
        counted.deal(&mut first, 1);
        let (handle, image) = (chain_handle(node, "ip", chain), first.image());
        assert!(handle.is_some(), "{chain}");
        let client = Restless::start(lab.node(), &[to]);
        first.die(node);
        let (mut second, applied) = Proxy::succeeding(node, &objects);
        assert_eq!(applied.elements, 0, "{chain}: nothing is written");
        assert_eq!(chain_handle(node, "ip", chain), handle, "{chain}: the walk goes on");
        assert_eq!(second.found.image, image, "{chain}: what is found is what was dealt");
        // Dealt from where the walk is by now.
        let mut counted = Counted::default();
        counted.deal(&mut second, 2);
        second.assert_exact(chain);
        client.assert_uninterrupted(chain);
        held.assert_alive(chain);
        second.plane.remove().expect("removed");
    }
}

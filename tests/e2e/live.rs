//! Schedulers that go by counts of connections, on real connections: who has fewest gets the next ones.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::sys::signal::Signal;
use pointsman::lab::Host;

use super::daemon::{Daemon, Manifests};
use super::observe::metric;
use super::support::beds::{bed, pods};
use super::support::eventually;
use super::support::objects::{HTTP, frontends, scheduled, service, slices};
use super::support::traffic::Held;

/// Connections that stay open, by who answers.
type Crowd = BTreeMap<String, Vec<Held>>;

fn open(from: &Host, to: SocketAddr, count: usize, crowd: &mut Crowd) {
    for _ in 0..count {
        let held = Held::open(from, to);
        crowd.entry(held.pod.clone()).or_default().push(held);
    }
}

fn sizes(crowd: &Crowd) -> Vec<usize> {
    crowd.values().map(Vec::len).collect()
}

/// Opens so many connections until all of them go to one pod, and keeps those.
fn all_go_to(pod: &str, from: &Host, to: SocketAddr, count: usize, crowd: &mut Crowd) {
    let mut last = Vec::new();
    eventually(&format!("the next {count} connections to {to} to go to {pod}"), || {
        last = (0..count).map(|_| Held::open(from, to)).collect();
        last.iter().all(|held: &Held| held.pod == pod)
    });
    crowd.entry(pod.to_owned()).or_default().append(&mut last);
}

#[test]
fn who_has_fewest_gets_the_next_ones() {
    let lab = bed(3);
    for (number, scheduler) in (1..).zip(["lc", "wlc", "sed", "nq"]) {
        let objects =
            [vec![scheduled(service("web", number, &[HTTP]), scheduler)], slices("web", &pods(1..=3)).to_vec()]
                .concat();
        let manifests = Manifests::of(&objects);
        let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
        daemon.programmed();
        for to in frontends(number, 80) {
            let mut crowd = Crowd::new();
            open(lab.client(0), to, 15, &mut crowd);
            // Connections that come while slots are being dealt find the old ones.
            let (least, most) = (sizes(&crowd).into_iter().min(), sizes(&crowd).into_iter().max());
            assert!(least >= Some(4) && most <= Some(6), "{scheduler} {to}: in turn as long as all have as many");
            crowd.remove("web-2");
            all_go_to("web-2", lab.client(0), to, 4, &mut crowd);
            crowd.get_mut("web-3").expect("five").truncate(1);
            all_go_to("web-3", lab.client(0), to, 3, &mut crowd);
        }
        assert_eq!(daemon.count(&["WARN"]), 0, "{:#?}", daemon.said());
        daemon.end(Signal::SIGTERM);
    }
}

#[test]
fn metrics_say_what_is_counted_and_dealt() {
    let lab = bed(2);
    let objects = |scheduler: &str| {
        [vec![scheduled(service("web", 1, &[HTTP]), scheduler)], slices("web", &pods(1..=2)).to_vec()].concat()
    };
    let manifests = Manifests::of(&objects("lc"));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    eventually("one Service to be counted for", || metric(&lab, "pointsman_live_services") == 1.0);
    let mut crowd = Crowd::new();
    open(lab.client(0), frontends(1, 80)[0], 12, &mut crowd);
    eventually("twelve connections", || metric(&lab, "pointsman_live_connections") == 12.0);
    assert!(metric(&lab, "pointsman_conntrack_events_total") >= 12.0);
    assert_eq!(metric(&lab, "pointsman_conntrack_events_lost_total"), 0.0);
    crowd.remove("web-1");
    eventually("slots to be dealt by that", || metric(&lab, "pointsman_redeal_slots_total") > 0.0);
    assert!(metric(&lab, "pointsman_redeal_duration_seconds_count") > 0.0);
    manifests.write("all.json", &objects("rr"));
    eventually("nothing to be counted", || metric(&lab, "pointsman_live_services") == 0.0);
    daemon.assert_alive();
}

#[test]
fn a_restart_finds_the_connections_that_are_there() {
    let lab = bed(3);
    let objects = [vec![scheduled(service("web", 1, &[HTTP]), "lc")], slices("web", &pods(1..=3)).to_vec()].concat();
    let manifests = Manifests::of(&objects);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let to = frontends(1, 80)[0];
    let mut crowd = Crowd::new();
    open(lab.client(0), to, 9, &mut crowd);
    daemon.end(Signal::SIGKILL);
    // Nobody deals any more: in turn. And nobody hears of these.
    let before = sizes(&crowd);
    open(lab.client(0), to, 30, &mut crowd);
    let more: Vec<_> = sizes(&crowd).iter().zip(before).map(|(now, before)| now - before).collect();
    assert!(more.iter().all(|more| (8..=12).contains(more)), "without a daemon in turn: {more:?}");
    crowd.remove("web-3");
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    all_go_to("web-3", lab.client(0), to, 6, &mut crowd);
    // The end of connections that began while nobody listened is found out, too.
    crowd.remove("web-1");
    all_go_to("web-1", lab.client(0), to, 6, &mut crowd);
    daemon.assert_alive();
}

#[test]
fn who_joins_is_filled_and_who_leaves_gets_nothing_more() {
    let lab = bed(4);
    let web = |numbers: &[usize]| {
        let pods = pods(numbers.iter().copied());
        [vec![scheduled(service("web", 1, &[HTTP]), "lc")], slices("web", &pods).to_vec()].concat()
    };
    let manifests = Manifests::of(&web(&[1, 2, 3]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let to = frontends(1, 80)[0];
    let mut crowd = Crowd::new();
    open(lab.client(0), to, 60, &mut crowd);
    assert!(sizes(&crowd).iter().all(|size| (18..=22).contains(size)), "{:?}", sizes(&crowd));
    manifests.write("all.json", &web(&[1, 2, 3, 4]));
    daemon.hear(&["programmed", "shop/web"]);
    all_go_to("web-4", lab.client(0), to, 5, &mut crowd);
    open(lab.client(0), to, 15, &mut crowd);
    let newcomer = crowd["web-4"].len();
    assert!((17..=22).contains(&newcomer), "filled up to the others, and not beyond: {:?}", sizes(&crowd));
    manifests.write("all.json", &web(&[1, 2, 4]));
    eventually("web-3 to be left alone", || Held::open(lab.client(0), to).pod != "web-3");
    daemon.hear(&["programmed", "shop/web"]);
    let mut rest = Crowd::new();
    open(lab.client(0), to, 40, &mut rest);
    assert!(!rest.contains_key("web-3"), "{:?}", sizes(&rest));
}

/// Changes may have to wait for each other; who has fewest connections changes all the time.
#[test]
fn a_pause_between_changes_is_none_between_deals() {
    let lab = bed(3);
    let objects = [vec![scheduled(service("web", 1, &[HTTP]), "lc")], slices("web", &pods(1..=3)).to_vec()].concat();
    let manifests = Manifests::of(&objects);
    let pause = ["--proxy-mode=ipvs", "--ipvs-min-sync-period=1h", "--ipvs-sync-period=2h"];
    let mut daemon = Daemon::serving(lab.node(), &manifests, &pause);
    daemon.programmed();
    let to = frontends(1, 80)[0];
    let mut crowd = Crowd::new();
    open(lab.client(0), to, 15, &mut crowd);
    // A change that waits for the end of the hour.
    manifests.write("more.json", &[service("later", 2, &[HTTP])]);
    crowd.remove("web-2");
    all_go_to("web-2", lab.client(0), to, 4, &mut crowd);
    assert_eq!(daemon.count(&["\"programmed\" ", "shop/later"]), 0, "{:#?}", daemon.said());
    daemon.end(Signal::SIGTERM);
}

//! Annotations of weights, shares, slow start and drain, through the daemon and with real connections. Proportions are counted with `wrr`,
//! which is exact.

use std::time::{Duration, Instant};

use pointsman::lab::{Host, Lab};
use serde_json::{Value, json};

use super::daemon::{Daemon, Manifests};
use super::support::beds::{PATIENCE, bed, pods};
use super::support::objects::{frontends, shop};
use super::support::traffic::{Held, Tally, assert_even, tally};

/// A Service and its slices with these annotations and these pods, by their numbers; `-2` is the second pod, terminating.
fn tuned(name: &str, number: u8, annotations: &[(&str, &str)], members: &[i32]) -> Vec<Value> {
    let mut objects = shop(name, number, &pods(members.iter().map(|member| member.unsigned_abs() as usize)));
    for (key, value) in annotations {
        objects[0]["metadata"]["annotations"][format!("pointsman.dev/{key}")] = json!(value);
    }
    for slice in &mut objects[1..] {
        for (endpoint, member) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().zip(members) {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": format!("web-{}", member.abs())});
            if *member < 0 {
                endpoint["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
            }
        }
    }
    objects
}

fn asked(lab: &Lab, number: u8, count: usize) -> Tally {
    tally(lab.client(0), frontends(number, 80)[0], count)
}

fn shares(tally: &Tally) -> Vec<(&str, usize)> {
    tally.iter().map(|(pod, count)| (pod.as_str(), *count)).collect()
}

#[test]
fn shares_and_weights_are_what_clients_meet() {
    let lab = bed(3);
    let canary = [("scheduler", "wrr"), ("split", "web-1=10%,*=90%")];
    let manifests = Manifests::of(&tuned("web", 1, &canary, &[1, 2, 3]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--ipvs-scheduler=rr"]);
    daemon.programmed();
    assert_eq!(shares(&asked(&lab, 1, 60)), [("web-1", 6), ("web-2", 27), ("web-3", 27)]);
    let mut held: Vec<Held> = (0..20).map(|_| Held::open(lab.client(0), frontends(1, 80)[0])).collect();
    assert!(held.iter().any(|one| one.pod == "web-1"));
    let mut change = |annotations: &[(&str, &str)], members: &[i32]| {
        manifests.write("all.json", &tuned("web", 1, annotations, members));
        daemon.programmed();
    };
    change(&canary, &[1, 3]);
    assert_eq!(shares(&asked(&lab, 1, 60)), [("web-1", 6), ("web-3", 54)], "whatever the number of replicas");
    change(&canary, &[2, 3]);
    assert_eq!(shares(&asked(&lab, 1, 60)), [("web-2", 30), ("web-3", 30)], "nobody in the group");
    // No scheduler of its own, the default is rr: weights make it wrr.
    change(&[("weights", "web-1=3,web-2=2")], &[1, 2, 3]);
    assert_eq!(shares(&asked(&lab, 1, 60)), [("web-1", 30), ("web-2", 20), ("web-3", 10)]);
    change(&[("weights", "web-1=0")], &[1, 2, 3]);
    assert_eq!(shares(&asked(&lab, 1, 60)), [("web-2", 30), ("web-3", 30)]);
    held.iter_mut().for_each(|one| one.assert_alive("weight 0 ends nothing"));
    change(&[("weights", "*=0")], &[1, 2, 3]);
    assert_even(&asked(&lab, 1, 60), 3, "all drained is none drained");
    assert_eq!(daemon.count(&["WARN", r#"[pointsman.dev/weights]: "0": all qualifying endpoints have weight 0"#]), 1);
    let text = [("weights", "web-1=heavy,web-2=2"), ("split", "db-*=5%"), ("slow-start", "soon"), ("drain", "")];
    manifests.write("all.json", &tuned("web", 1, &text, &[1, 2, 3]));
    daemon.hear(&["WARN", r#"Service shop/web: metadata.annotations[pointsman.dev/drain]: "": empty; ignored"#]);
    for said in [
        r#"metadata.annotations[pointsman.dev/weights]: "web-1=heavy": not a weight in 0..65535; skipped"#,
        r#"metadata.annotations[pointsman.dev/slow-start]: "soon": not a time such as 30s or 1m30s; no slow start"#,
        r#"metadata.annotations[pointsman.dev/split]: "db-*": matches no endpoint of this Service"#,
    ] {
        let begin = Instant::now();
        while daemon.count(&["WARN", "Service shop/web", said]) == 0 {
            assert!(begin.elapsed() < PATIENCE, "{said}: {:#?}", daemon.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    daemon.programmed();
    assert_eq!(shares(&asked(&lab, 1, 60)), [("web-1", 15), ("web-2", 30), ("web-3", 15)], "what is usable counts");
}

#[test]
fn a_newcomer_starts_small_and_grows_and_a_restart_does_not_start_it_again() {
    let lab = bed(3);
    let objects = |members: &[i32]| {
        let hour = tuned("hour", 1, &[("scheduler", "wrr"), ("slow-start", "1h")], members);
        [hour, tuned("moment", 2, &[("scheduler", "wrr"), ("slow-start", "2s,min=1%")], members)].concat()
    };
    let manifests = Manifests::of(&objects(&[1, 2]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_even(&asked(&lab, 1, 20), 2, "who was there is warm");
    manifests.write("all.json", &objects(&[1, 2, 3]));
    daemon.programmed();
    assert_eq!(
        shares(&asked(&lab, 1, 63)),
        [("web-1", 30), ("web-2", 30), ("web-3", 3)],
        "a tenth for the first hour's sake"
    );
    // The other one grows by itself, step by step, until all are equal.
    let begin = Instant::now();
    while asked(&lab, 2, 30).values().any(|count| *count != 10) {
        assert!(begin.elapsed() < PATIENCE * 3, "it should grow: {:#?}", daemon.said());
    }
    let steps = daemon.count(&["\"programmed\" ", "shop/moment"]);
    assert!((8..=40).contains(&steps), "in few steps: {steps}");
    daemon.end(nix::sys::signal::Signal::SIGKILL);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_even(&asked(&lab, 1, 60), 3, "after a restart");
}

fn wait_for_reset(held: &mut Held, from: &Host) {
    let begin = Instant::now();
    while held.echoes() {
        assert!(begin.elapsed() < PATIENCE * 3, "{} should be reset", from.role());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn drained_connections_live_for_their_time_and_end() {
    let lab = bed(2);
    let drain = [("drain", "3s")];
    let objects = |members: &[i32]| [tuned("short", 1, &drain, members), tuned("ever", 2, &[], members)].concat();
    let manifests = Manifests::of(&objects(&[1]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let client = lab.client(0);
    let mut held: Vec<Held> = frontends(1, 80).map(|to| Held::open(client, to)).into();
    let mut ever: Vec<Held> = frontends(2, 80).map(|to| Held::open(client, to)).into();
    let begin = Instant::now();
    manifests.write("all.json", &objects(&[-1, 2]));
    daemon.programmed();
    assert!(held.iter_mut().all(Held::echoes) || begin.elapsed() > Duration::from_secs(3), "it keeps what it has");
    held.iter_mut().for_each(|one| wait_for_reset(one, client));
    assert!(begin.elapsed() >= Duration::from_secs(3), "not before its time");
    ever.iter_mut().for_each(|one| one.assert_alive("without the annotation"));
    assert_eq!(asked(&lab, 1, 10).keys().collect::<Vec<_>>(), ["web-2"]);
}

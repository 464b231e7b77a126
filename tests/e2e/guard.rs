//! Others change our tables while we live: it is noticed, said, counted and repaired, and nobody has to restart anything.

use std::time::{Duration, Instant};

use pointsman::lab::{Host, Lab};

use super::daemon::{Daemon, Manifests};
use super::support::beds::{bed, pods};
use super::support::eventually;
use super::support::objects::{frontends, shop};
use super::support::oracle::{elements, nft, ruleset};
use super::support::traffic::{names, tally};

fn serves(lab: &Lab) -> bool {
    frontends(1, 80).iter().all(|frontend| lab.client(0).connect(*frontend, Duration::from_secs(2)).is_ok())
}

/// What there is, whatever its order: a table that was replaced lists its chains in another.
fn programmed(lab: &Lab) -> Vec<String> {
    let mut lines: Vec<_> = ruleset(lab.node().namespace()).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn run(node: &Host, args: &str) {
    nft(node.namespace(), &[args]);
}

#[test]
fn what_others_break_is_repaired() {
    let lab = bed(3);
    let node = lab.node();
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=3)));
    let mut daemon = Daemon::serving(node, &manifests, &["--own-tables=false"]);
    daemon.hear(&["\"first load programmed\""]);
    eventually("service", || serves(&lab));
    let whole = programmed(&lab);
    for (damage, said) in [
        ("delete element ip pointsman endpoints { 0x1000 . 1 }", "ip: map endpoints: 1 elements deleted"),
        ("flush map ip pointsman services", "ip: map services"),
        ("add element ip pointsman services { 10.96.77.7 . tcp . 80 : 0x1003 }", "ip: map services: 1 elements added"),
        ("flush chain ip pointsman random-3", "ip: rules of chain random-3 deleted"),
        ("add rule ip pointsman services drop", "ip: rules of chain services added"),
        ("delete table ip pointsman", "ip: table deleted"),
        ("delete table ip6 pointsman", "ip6: table deleted"),
        ("flush ruleset", "table deleted"),
    ] {
        let begin = Instant::now();
        run(node, damage);
        daemon.hear(&["WARN", "our tables were changed by nft (process", said]);
        daemon.hear(&["put right what differed"]);
        eventually(damage, || programmed(&lab) == whole);
        // Not a claim about speed, but a repair that waits for something else would take longer than this.
        assert!(begin.elapsed() < Duration::from_secs(20), "{damage}: {:?}", begin.elapsed());
        assert!(serves(&lab), "{damage}");
    }
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 60)), ["web-1", "web-2", "web-3"]);
}

#[test]
fn a_loop_that_breaks_things_is_outlived() {
    let lab = bed(2);
    let node = lab.node();
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(node, &manifests, &["--own-tables=false"]);
    daemon.hear(&["\"first load programmed\""]);
    for _ in 0..50 {
        run(node, "flush ruleset");
    }
    eventually("service after fifty times", || serves(&lab));
    let repairs = daemon.said().iter().filter(|line| line.contains("put right what differed")).count();
    assert!(repairs < 25, "repairs should be paced: {repairs}");
}

#[test]
fn owned_tables_are_left_alone_and_foreign_ones_are_pointed_out() {
    let lab = bed(2);
    let node = lab.node();
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let before = "add table ip first; add chain ip first nat { type nat hook prerouting priority -150; }; \
                  add rule ip first nat tcp dport 4242 dnat to 10.0.0.1";
    run(node, before);
    let mut daemon = Daemon::serving(node, &manifests, &[]);
    daemon.hear(&["WARN", "table ip first, chain nat (priority -150) may translate"]);
    eventually("service", || serves(&lab));
    let owned = nft(node.namespace(), &["list table ip pointsman"]).contains("flags owner");
    if owned {
        run(node, "flush ruleset");
        assert!(elements(node.namespace(), "ip", "services") > 0, "nobody else may flush an owned table");
        assert!(serves(&lab));
    }
}

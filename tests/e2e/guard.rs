//! Others change our tables while we live: it is noticed, said, counted and repaired, and nobody has to restart anything.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pointsman::lab::{Host, Lab};

use super::daemon::{Daemon, Manifests};
use super::observe::metric;
use super::support::beds::{bed, pods};
use super::support::eventually;
use super::support::objects::{frontends, shop};
use super::support::oracle::{elements, nft, ruleset};
use super::support::traffic::{names, tally};

const REPAIRED: &str = "pointsman_table_repaired_elements_total";

const RELOAD: &str = "flush ruleset; add table ip firewall; add chain ip firewall input { type filter hook input priority 0; policy accept; }; \
                      add rule ip firewall input ct state invalid drop";

fn disturbed(lab: &Lab, kind: &str) -> f64 {
    metric(lab, &format!("pointsman_table_disturbances_total{{kind=\"{kind}\"}}"))
}

fn serves(lab: &Lab) -> bool {
    frontends(1, 80).iter().all(|frontend| lab.client(0).connect(*frontend, Duration::from_secs(2)).is_ok())
}

/// What there is, whatever its order: a table that was replaced lists its chains in another.
fn programmed(lab: &Lab) -> Vec<String> {
    let text = ruleset(lab.node().namespace());
    let ours = text.split("\ntable ").filter(|table| !table.contains("ip firewall {"));
    let mut lines: Vec<_> =
        ours.flat_map(str::lines).map(|line| line.trim_start_matches("table ").to_owned()).collect();
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
        ("flush chain ip pointsman prerouting; delete chain ip pointsman prerouting", "ip: chain prerouting deleted"),
        ("flush chain ip6 pointsman output; delete chain ip6 pointsman output", "ip6: chain output deleted"),
        ("add rule ip pointsman services drop", "ip: rules of chain services added"),
        ("delete table ip pointsman", "ip: table deleted"),
        ("delete table ip6 pointsman", "ip6: table deleted"),
        ("flush ruleset", "table deleted"),
        // As the service of a firewall does it: everything goes, and the firewall's own rules come, in one transaction.
        (RELOAD, "table deleted"),
    ] {
        let (begin, before) = (Instant::now(), [disturbed(&lab, "changed"), metric(&lab, REPAIRED)]);
        run(node, damage);
        daemon.hear(&["WARN", "our tables were changed by nft (process", said]);
        let repair = daemon.hear(&["put right what differed"]);
        let named = repair.contains("missing") || repair.contains("too many") || repair.contains("tables were gone");
        assert!(named || damage.contains("chain"), "what differed is said: {repair}");
        eventually("it to be counted", || disturbed(&lab, "changed") > before[0]);
        let elements = || metric(&lab, REPAIRED) > before[1];
        assert!(damage.contains("chain") || elements(), "{damage}: elements are counted");
        eventually(damage, || programmed(&lab) == whole);
        // Not a claim about speed, but a repair that waits for something else would take longer than this.
        assert!(begin.elapsed() < Duration::from_secs(20), "{damage}: {:?}", begin.elapsed());
        assert!(serves(&lab), "{damage}");
    }
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 60)), ["web-1", "web-2", "web-3"]);
    assert!(
        nft(node.namespace(), &["list tables"]).contains("table ip firewall"),
        "others' tables are their own affair"
    );
}

/// More is told than the daemon's socket holds while it cannot listen, and what is lost is the very notification that matters.
#[test]
fn lost_notifications_lead_to_a_comparison() {
    let lab = bed(2);
    let node = lab.node();
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(node, &manifests, &["--own-tables=false"]);
    daemon.hear(&["\"first load programmed\""]);
    eventually("service", || serves(&lab));
    let whole = programmed(&lab);
    let lost = disturbed(&lab, "lost");
    daemon.signal(Signal::SIGSTOP);
    // Each element is told with its comment, and the socket takes 16 MiB of them; what comes last is ours.
    let comment = "-".repeat(120);
    let addresses = |third: usize| -> String {
        (0..768).map(|last| format!("10.{third}.{}.{} comment \"{comment}\", ", last / 3, last % 3)).collect()
    };
    let flood: String = (0..200)
        .map(|part| format!("add element ip flood addresses {{ {} }}\n", addresses(part).trim_end_matches(", ")))
        .collect();
    let script = tempfile::NamedTempFile::new().expect("a file");
    let text = format!(
        "add table ip flood\nadd set ip flood addresses {{ type ipv4_addr; }}\n{flood}flush map ip pointsman services\n"
    );
    std::fs::write(script.path(), text).expect("written");
    nft(node.namespace(), &["-f", script.path().to_str().expect("UTF-8")]);
    assert_eq!(elements(node.namespace(), "ip", "services"), 0, "nobody repairs while the daemon is stopped");
    daemon.signal(Signal::SIGCONT);
    daemon.hear(&["notifications of changes were lost; comparing our tables"]);
    daemon.hear(&["put right what differed", "IPv4: services: 2 missing"]);
    run(node, "delete table ip flood");
    eventually("repair", || programmed(&lab) == whole);
    assert!(serves(&lab));
    assert!(disturbed(&lab, "lost") > lost, "counted");
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

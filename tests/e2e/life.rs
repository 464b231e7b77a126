//! The daemon's life: killed at the worst moments, replaced by another release, killed again and again while everything changes. Clients
//! that open connections all the time may not notice any of it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nft::{Connection, Event, Family, Monitor};
use nix::sys::signal::Signal;
use pointsman::lab::{ConnectError, Host, Lab, connect};
use serde_json::Value;
use socket2::{SockFilter, SockRef};

use super::api::{apply, server, start};
use super::daemon::{Daemon, Manifests, command, run, stderr};
use super::support::beds::{bed, left_by_another_release, pods};
use super::support::objects::{crowd, frontends, scheduled, shop, slices};
use super::support::oracle::{chains, elements, nft, tables};
use super::support::traffic::{Held, Restless, names, tally};

/// Six transactions and more of a first load.
const CROWD: usize = 6000;

/// How often a kill may miss the moment that it is meant for.
const TRIES: usize = 8;

/// Hears of each commit in a node, and of nothing else: what was committed is filtered out by the kernel, so that nobody is late.
struct Commits(Monitor);

/// Stops whoever looks at it when it goes.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

// === impl Commits ===

impl Commits {
    fn of(node: &Host) -> Self {
        /// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN` (linux/netfilter/nfnetlink.h, nf_tables.h), at offset 4 of `struct nlmsghdr`.
        const NEW_GENERATION: u16 = 10 << 8 | 15;
        /// `BPF_LD | BPF_H | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K` (linux/filter.h).
        const LOAD_HALF: u16 = 0x28;
        const JUMP_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        let monitor = node.run(Monitor::open).expect("a subscription");
        let wanted = u16::from_be_bytes(NEW_GENERATION.to_ne_bytes());
        let filter = [
            SockFilter::new(LOAD_HALF, 0, 0, 4),
            SockFilter::new(JUMP_EQUAL, 0, 1, wanted.into()),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
            SockFilter::new(RETURN, 0, 0, 0),
        ];
        SockRef::from(&monitor).attach_filter(&filter).expect("a filter");
        Self(monitor)
    }

    /// Waits for the next commits.
    fn wait_for(&mut self, count: usize) {
        for _ in 0..count {
            let event = self.0.next_timeout(Duration::from_secs(90)).expect("an event").expect("a commit");
            assert!(matches!(event, Event::NewGeneration { .. }), "{event:?}");
        }
    }

    /// Waits until there is a table of ours.
    fn wait_for_table(&mut self, node: &Host) {
        let mut asking = node.run(Connection::open).expect("a connection");
        while asking.table(Family::Ip, "pointsman").expect("an answer").is_none() {
            self.wait_for(1);
        }
    }
}

/// A kill between two parts of the first load, for each of the first parts. What is left then is half a table, which no packet sees.
#[test]
fn killed_between_two_parts_of_the_first_load_the_next_finishes_it() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let manifests = Manifests::of(&[shop("web", 1, &pods(1..=2)), crowd(CROWD)].concat());
    let whole = 2 * CROWD + 4;
    let mut met = Vec::new();
    // The first commit that is heard of may be that of the empty tables.
    for part in 2..=4 {
        // The kill races the next commit, so it may come too late; not every time.
        let mut missed = Vec::new();
        let left = (0..TRIES).find_map(|_| {
            let mut commits = Commits::of(lab.node());
            let daemon = Daemon::serving(lab.node(), &manifests, &[]);
            commits.wait_for_table(lab.node());
            commits.wait_for(part);
            daemon.end(Signal::SIGKILL);
            let there = elements(node, "ip", "endpoints");
            let half = there > 0 && there < whole && !chains(node, "ip").contains(&"output".to_owned());
            if !half {
                missed.push(there);
                clean_up(&lab);
            }
            half.then_some(there)
        });
        let left = left
            .unwrap_or_else(|| panic!("part {part}: no kill came between two parts, but with {missed:?} of {whole}"));
        met.push(left);
        let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
        daemon.hear(&["adopting"]);
        daemon.hear(&["\"first load programmed\""]);
        assert_eq!(elements(node, "ip", "endpoints"), whole, "killed with {left} endpoints");
        assert_eq!(elements(node, "ip", "services"), CROWD + 2, "killed with {left} endpoints");
        for to in frontends(1, 80) {
            assert_eq!(names(&tally(lab.client(0), to, 30)), ["web-1", "web-2"], "killed with {left} endpoints");
        }
        assert_eq!(daemon.count(&["WARN"]), 0, "half a load is nothing to worry about: {:?}", daemon.said());
        daemon.end(Signal::SIGKILL);
        clean_up(&lab);
    }
    assert!(met.windows(2).any(|pair| pair[0] != pair[1]), "different moments: {met:?}");
}

fn clean_up(lab: &Lab) {
    let output = run(lab.node(), command(), &["--cleanup"]);
    assert!(output.status.success(), "cleaned up for the next round: {}", stderr(&output));
    assert_eq!(tables(lab.node().namespace()), [""; 0]);
}

/// A kill between two transactions of a large change, of tables that are in use.
#[test]
fn killed_in_the_midst_of_a_storm_nobody_notices() {
    let lab = bed(3);
    let node = lab.node().namespace();
    let (small, large) = (shop("web", 1, &pods(1..=2)), crowd(CROWD));
    let manifests = Manifests::of(&small);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["\"first load programmed\""]);
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    let mut held = Held::open(lab.client(0), frontends(1, 80)[0]);
    let mut unfinished = 0;
    for round in 0..4 {
        let grows = round % 2 == 0;
        let web = if grows { shop("web", 1, &pods(2..=3)) } else { shop("web", 1, &pods(1..=2)) };
        let mut commits = Commits::of(lab.node());
        manifests.write("all.json", &if grows { [large.clone(), web].concat() } else { web });
        commits.wait_for(1 + round / 2);
        daemon.end(Signal::SIGKILL);
        let there = elements(node, "ip", "services");
        unfinished += usize::from(there != if grows { CROWD + 2 } else { 2 });
        client.wait_for(10);
        daemon = Daemon::serving(lab.node(), &manifests, &[]);
        daemon.hear(&["\"first load programmed\""]);
        assert_eq!(elements(node, "ip", "services"), if grows { CROWD + 2 } else { 2 }, "round {round}");
        assert_eq!(elements(node, "ip", "endpoints"), if grows { 2 * CROWD + 4 } else { 4 }, "round {round}");
        let expected = if grows { ["web-2", "web-3"] } else { ["web-1", "web-2"] };
        assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[1], 30)), expected, "round {round}");
    }
    assert!(unfinished > 0, "at least one kill should come before all was done");
    client.assert_uninterrupted("kills in the midst of storms");
    held.assert_alive("kills in the midst of storms");
}

/// What another release left, in a layout that we do not know, serves until ours does: the tables are swapped in one commit.
#[test]
fn an_upgrade_that_changes_the_layout_interrupts_nobody() {
    let lab = bed(2);
    let node = lab.node().namespace();
    left_by_another_release(node, 1);
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    let mut held = Held::open(lab.client(0), frontends(1, 80)[0]);
    client.wait_for(10);
    // More than one part: the swap is one transaction all the same.
    let manifests = Manifests::of(&[shop("web", 1, &pods(1..=2)), crowd(2000)].concat());
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    let said = daemon.hear(&["WARN", "cannot be adopted and will be replaced"]);
    assert!(said.contains("layout 1"), "and why: {said}");
    daemon.hear(&["\"first load programmed\""]);
    client.wait_for(10);
    client.assert_uninterrupted("an upgrade");
    held.assert_alive("an upgrade");
    for to in frontends(1, 80) {
        assert_eq!(names(&tally(lab.client(0), to, 30)), ["web-1", "web-2"], "by the new tables");
    }
    assert_eq!(elements(node, "ip", "services"), 2002);
}

/// What `bench hitless` measures for minutes, for some seconds: kills and churn at once, through every kind of pool, and afterwards the
/// same clients without tables, to show that they would have noticed.
#[test]
fn kills_and_churn_of_others_cost_no_connection() {
    let lab = bed(4);
    let hot = |number: u8, scheduler: &str| {
        let mut objects = shop(&format!("hot-{number}"), number, &pods(1..=4));
        match scheduler {
            "affinity" => objects[0]["spec"]["sessionAffinity"] = "ClientIP".into(),
            name => objects[0] = scheduled(objects[0].take(), name),
        }
        objects
    };
    let schedulers = ["random", "rr", "sh", "lc", "affinity"];
    let mut objects: Vec<Value> = (1..).zip(schedulers).flat_map(|(number, name)| hot(number, name)).collect();
    objects.extend((11..=40).flat_map(|number| shop(&format!("other-{number}"), number, &pods(1..=4))));
    let (double, directory) = server(&lab, &objects);
    let serving = || {
        let mut daemon = start(&lab, &double, &directory);
        daemon.hear(&["\"first load programmed\""]);
        daemon
    };
    let mut daemon = Some(serving());
    let targets: Vec<SocketAddr> = (1..=5).flat_map(|number| frontends(number, 80)).collect();
    let clients = [lab.client(0), lab.node()].map(|from| Restless::start(from, &targets));
    let (stop, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // Also when the test fails, or the thread would be waited for without end.
        let _stop = StopAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let step = changes.fetch_add(1, Ordering::Relaxed);
                let (number, ready) = (11 + step / 2 % 30, 1 + step * 7 % 4);
                apply(&double, &slices(&format!("other-{number}"), &pods(ready..=4)));
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        for _ in 0..6 {
            clients.iter().for_each(|client| client.wait_for(100));
            daemon.take().expect("one runs").end(Signal::SIGKILL);
            daemon = Some(serving());
            clients.iter().for_each(|client| client.wait_for(100));
        }
    });
    assert!(changes.load(Ordering::Relaxed) > 20, "others should have changed meanwhile");
    for client in clients {
        let answered = client.assert_uninterrupted("kills and churn");
        assert_eq!(answered.len(), targets.len(), "every frontend was connected to");
    }
    // The control.
    daemon.take().expect("one runs").end(Signal::SIGKILL);
    for family in ["ip", "ip6"] {
        nft(lab.node().namespace(), &["delete", "table", family, "pointsman"]);
    }
    let lost = lab.client(0).run(|| connect(targets[0], Duration::from_millis(300)));
    assert!(matches!(lost, Err(ConnectError::TimedOut | ConnectError::Unreachable)), "without tables: {lost:?}");
}

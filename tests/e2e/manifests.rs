//! A directory of manifests as the source: what is in it is served, now and after every change to it.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use nft::{Connection, Family};
use nix::sys::signal::Signal;
use pointsman::lab::{Host, Lab};
use serde_json::json;

use super::daemon::{Daemon, Manifests, command, run, stderr};
use super::support::beds::{PATIENCE, bed, pods};
use super::support::eventually;
use super::support::objects::{HTTP, crowd, frontends, scheduled, service, service_at, shop, slices};
use super::support::oracle::{chain_handle, chains, elements, tables};
use super::support::traffic::{
    BOTH, Held, Restless, assert_even, assert_refused, assert_silent, names, tally, tally_by,
};

/// Fails unless exactly these pods come to answer at both addresses of the Service with this number. On a busy machine one edit can
/// arrive in several parts, each of them programmed when it comes.
fn assert_answered(lab: &Lab, number: u8, pods: &[&str], what: &str) {
    for to in frontends(number, 80) {
        eventually(&format!("{what}: {pods:?} at {to}"), || names(&tally(lab.client(0), to, 30)) == pods);
    }
}

#[test]
fn a_directory_is_served_and_followed() {
    let lab = bed(3);
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_answered(&lab, 1, &["web-1", "web-2"], "as it was found");
    for to in frontends(1, 53) {
        assert_eq!(names(&tally_by(BOTH[1].1, lab.client(0), to, 30)), ["web-1", "web-2"], "UDP {to}");
    }
    // Connections to a Service that does not change are never disturbed by all that follows.
    let client = Restless::start(lab.client(0), &frontends(1, 80));

    manifests.write("cart.yaml", &[vec![service("cart", 2, &[HTTP])], slices("cart", &pods([3])).to_vec()].concat());
    daemon.hear(&["programmed", "shop/cart"]);
    assert_eq!(names(&tally(lab.client(0), frontends(2, 80)[0], 10)), ["web-3"], "a new file");

    fs::rename(manifests.file("cart.yaml"), manifests.file("basket.yml")).expect("renamed");
    fs::write(
        manifests.file("basket.yml"),
        yaml(&[service("cart", 3, &[HTTP]), slices("cart", &pods([1]))[0].clone()]),
    )
    .expect("written in place");
    daemon.hear(&["programmed", "shop/cart"]);
    eventually("the Service at its new address", || {
        lab.client(0).connect(frontends(3, 80)[0], PATIENCE).is_ok_and(|answer| answer.pod == "web-1")
    });
    assert_silent(lab.client(0), frontends(2, 80)[0], "the address before");
    assert_refused(BOTH[0].1, lab.client(0), frontends(3, 80)[1], "no IPv6 endpoints by now");

    manifests.remove("basket.yml");
    daemon.hear(&["programmed", "shop/cart"]);
    eventually("nobody at a deleted Service", || {
        lab.client(0).connect(frontends(3, 80)[0], Duration::from_millis(100)).is_err()
    });
    client.assert_uninterrupted("edits of other files");

    manifests.write("all.json", &shop("web", 1, &pods(2..=3)));
    daemon.hear(&["programmed", "shop/web"]);
    assert_answered(&lab, 1, &["web-2", "web-3"], "after an edit");
    assert_eq!(daemon.count(&["WARN"]) + daemon.count(&["ERROR"]), 0, "nothing to complain about: {:?}", daemon.said());
}

/// Several documents in one file.
fn yaml(objects: &[serde_json::Value]) -> String {
    objects.iter().map(|object| format!("---\n# JSON is YAML, too.\n{object:#}\n")).collect()
}

#[test]
fn a_mounted_config_map_is_followed_through_its_symlinks() {
    let lab = bed(2);
    let manifests = Manifests::new();
    let publish = |revision: &str, pod: usize| {
        let payload = manifests.file(revision);
        fs::create_dir(&payload).expect("a directory");
        fs::write(payload.join("web.yaml"), yaml(&shop("web", 1, &pods([pod])))).expect("written");
        symlink(revision, manifests.file("..tmp")).expect("linked");
        fs::rename(manifests.file("..tmp"), manifests.file("..data")).expect("swapped");
    };
    publish("..1", 1);
    symlink("..data/web.yaml", manifests.file("web.yaml")).expect("linked");
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_answered(&lab, 1, &["web-1"], "first revision");
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    publish("..2", 2);
    daemon.programmed();
    assert_answered(&lab, 1, &["web-2"], "second revision");
    fs::remove_dir_all(manifests.file("..1")).expect("removed");
    publish("..3", 1);
    daemon.programmed();
    assert_answered(&lab, 1, &["web-1"], "third revision");
    client.assert_uninterrupted("swaps");
}

#[test]
fn a_broken_file_keeps_its_last_good_content_and_is_named_with_its_line() {
    let lab = bed(2);
    let manifests = Manifests::new();
    manifests.write("web.yaml", &shop("web", 1, &pods([1])));
    manifests.write("cart.json", &shop("cart", 2, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    manifests.write_text("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: [\nspec: }\n");
    let line = daemon.hear(&["web.yaml:"]);
    assert!(line.starts_with(['W', 'E']), "a warning: {line}");
    let place = line.split("web.yaml:").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or_default();
    assert!(place.parse::<usize>().is_ok_and(|line| (3..=4).contains(&line)), "file and line: {line}");
    assert!(line.contains("last good content stays"), "and what it means: {line}");
    assert_answered(&lab, 1, &["web-1"], "its last good content");
    manifests.write("cart.json", &shop("cart", 2, &pods([2])));
    daemon.hear(&["programmed", "shop/cart"]);
    assert_answered(&lab, 2, &["web-2"], "other files are followed");
    manifests.write("web.yaml", &shop("web", 1, &pods([2])));
    daemon.hear(&["programmed", "shop/web"]);
    assert_answered(&lab, 1, &["web-2"], "mended");
    assert_eq!(daemon.count(&["web.yaml", "last good content"]), 1, "said once: {:?}", daemon.said());
    assert_eq!(daemon.count(&["web.yaml", "fine again"]), 1, "and when it ended: {:?}", daemon.said());
}

#[test]
fn a_restart_interrupts_nobody_and_rewrites_nothing() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let mut cart = shop("cart", 2, &pods(1..=2));
    cart[0] = scheduled(cart[0].take(), "rr");
    let manifests = Manifests::of(&[shop("web", 1, &pods(1..=2)), cart].concat());
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let chain = chain_handle(node, "ip", "rr-2-00001-shop/cart/tcp/http").expect("a chain for the round robin");
    let targets: Vec<_> = [1, 2].into_iter().flat_map(|number| frontends(number, 80)).collect();
    let client = Restless::start(lab.client(0), &targets);
    let mut held = Held::open(lab.client(0), targets[0]);
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT, Signal::SIGKILL] {
        daemon.end(signal);
        client.wait_for(5);
        daemon = Daemon::serving(lab.node(), &manifests, &[]);
        daemon.hear(&["adopting"]);
        let line = daemon.programmed();
        assert!(line.contains(" elements=0 ") && line.contains(" transactions=0 "), "after {signal}: {line}");
        client.wait_for(5);
        assert_eq!(chain_handle(node, "ip", "rr-2-00001-shop/cart/tcp/http"), Some(chain), "the very same chain");
    }
    client.assert_uninterrupted("restarts");
    held.assert_alive("restarts");
    daemon.end(Signal::SIGKILL);
    manifests.write("all.json", &shop("web", 1, &pods([2])));
    assert_even(&tally(lab.client(0), frontends(2, 80)[0], 10), 2, "served without a daemon");
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_answered(&lab, 1, &["web-2"], "what changed meanwhile");
    assert_silent(lab.client(0), frontends(2, 80)[0], "what was deleted meanwhile");
}

/// Waits until there is a table of ours, asking without pause.
fn wait_for_table(node: &Host) {
    let mut witness = node.run(Connection::open).expect("a connection");
    eventually("the first transaction", || witness.table(Family::Ip, "pointsman").expect("an answer").is_some());
}

#[test]
fn killed_at_any_moment_of_the_first_load_a_restart_converges() {
    const CROWD: usize = 3000;
    let lab = bed(2);
    let node = lab.node().namespace();
    let manifests = Manifests::of(&[shop("web", 1, &pods(1..=2)), crowd(CROWD)].concat());
    let mut unfinished = 0;
    for delay in [0, 2, 5, 10, 20, 40] {
        let daemon = Daemon::serving(lab.node(), &manifests, &[]);
        wait_for_table(lab.node());
        std::thread::sleep(Duration::from_millis(delay));
        daemon.end(Signal::SIGKILL);
        unfinished += usize::from(!chains(node, "ip").contains(&"output".to_owned()));
        let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
        daemon.programmed();
        assert_eq!(elements(node, "ip", "services"), CROWD + 2, "killed after {delay} ms");
        assert_eq!(elements(node, "ip", "endpoints"), 2 * CROWD + 4, "killed after {delay} ms");
        assert_answered(&lab, 1, &["web-1", "web-2"], "after the restart");
        assert_eq!(daemon.count(&["WARN"]), 0, "half a load is nothing to worry about: {:?}", daemon.said());
        daemon.end(Signal::SIGKILL);
        let output = run(lab.node(), command(), &["--cleanup"]);
        assert!(output.status.success(), "cleaned up for the next round: {}", stderr(&output));
        assert_eq!(tables(node), [""; 0]);
    }
    assert!(unfinished > 0, "at least the first kill should meet a load that is not finished");
}

#[test]
fn a_cluster_that_outgrows_the_tables_gets_larger_ones() {
    let lab = bed(2);
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    // 66,000 frontends without endpoints: more than the maps are made for at first.
    let ports: Vec<_> = (1..=1000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
    let wide = (0..66).map(|number| {
        let mut service = service_at(&format!("wide-{number}"), &[format!("10.98.0.{number}")], &[]);
        service["spec"]["ports"] = ports.clone().into();
        service
    });
    manifests.write("wide.json", &wide.collect::<Vec<_>>());
    daemon.hear(&["outgrew"]);
    daemon.programmed();
    client.wait_for(10);
    assert_refused(BOTH[0].1, lab.client(0), "10.98.0.65:1000".parse().expect("an address"), "the last frontend");
    manifests.write("all.json", &shop("web", 1, &pods([2])));
    daemon.hear(&["programmed", "shop/web"]);
    assert_answered(&lab, 1, &["web-2"], "in the new tables");
    client.assert_uninterrupted("larger tables");
    assert_eq!(daemon.count(&["ERROR"]) + daemon.count(&["WARN"]), 0, "{:#?}", daemon.said());
}

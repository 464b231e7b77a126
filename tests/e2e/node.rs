//! Our Node, when it is late, or never comes.

use std::time::{Duration, Instant};

use api_double::{ApiDouble, node};
use pointsman::lab::Lab;
use serde_json::json;
use tempfile::TempDir;

use super::daemon::Daemon;
use super::support::beds::{bed, pods};
use super::support::objects::{frontends, shop};
use super::support::oracle::tables;
use super::support::traffic::tally;

/// A server inside the node that knows one Service and no Node, and a daemon that follows it.
fn start(lab: &Lab, more: &[&str]) -> (ApiDouble, TempDir, Daemon) {
    let double = lab.node().run(ApiDouble::start);
    for object in shop("web", 1, &pods(1..=2)) {
        double.apply(object);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = double.kubeconfig(directory.path());
    let args = [&["--kubeconfig", kubeconfig.to_str().expect("UTF-8")], more].concat();
    let daemon = Daemon::start(lab.node(), &args);
    (double, directory, daemon)
}

fn answering(lab: &Lab) -> Vec<String> {
    tally(lab.client(0), frontends(1, 80)[0], 20).into_keys().collect()
}

#[test]
fn a_node_that_never_comes_is_waited_for_and_then_services_work_all_the_same() {
    let lab = bed(2);
    let begin = Instant::now();
    let (_double, _directory, mut daemon) = start(&lab, &[]);
    daemon.hear(&["WARN", "waiting for a Node of this name", "node=\"n1\""]);
    daemon.hear_within(Duration::from_secs(60), &["WARN", "going on without a Node", "node=\"n1\""]);
    assert!(begin.elapsed() >= Duration::from_secs(30), "{:?}", begin.elapsed());
    daemon.hear(&["\"first load programmed\""]);
    assert_eq!(answering(&lab), ["web-1", "web-2"]);
}

#[test]
fn pod_networks_are_waited_for_where_they_tell_local_pods() {
    let lab = bed(2);
    let (double, _directory, mut daemon) = start(&lab, &["--detect-local-mode=NodeCIDR"]);
    daemon.hear(&["WARN", "waiting for a Node of this name"]);
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    daemon.hear(&["WARN", "waiting for spec.podCIDRs", "node=\"n1\""]);
    assert!(tables(lab.node().namespace()).is_empty(), "nothing is programmed without them");
    let mut full = node("n1", &[("InternalIP", "192.168.50.1")]);
    full["spec"]["podCIDRs"] = json!(["10.244.0.0/24"]);
    double.apply(full);
    daemon.hear(&["\"first load programmed\""]);
    assert_eq!(answering(&lab), ["web-1", "web-2"]);
}

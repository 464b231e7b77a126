//! An API server as the source: the daemon against the double, which listens inside the node.

use std::time::{Duration, Instant};

use api_double::{ApiDouble, StreamingLists, node};
use pointsman::lab::Lab;
use serde_json::Value;
use tempfile::TempDir;

use super::daemon::{Daemon, command};
use super::support::beds::{PATIENCE, bed, pods};
use super::support::eventually;
use super::support::objects::{DNS, HTTP, crowd, frontends, service, shop, slices};
use super::support::oracle::tables;
use super::support::traffic::{Restless, names, tally};

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";

/// An API server inside the node that has these objects, and a kubeconfig for it.
pub(super) fn server(lab: &Lab, objects: &[Value]) -> (ApiDouble, TempDir) {
    let double = lab.node().run(ApiDouble::start);
    apply(&double, objects);
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    (double, tempfile::tempdir().expect("a directory"))
}

pub(super) fn start(lab: &Lab, double: &ApiDouble, directory: &TempDir) -> Daemon {
    let kubeconfig = double.kubeconfig(directory.path());
    Daemon::start(lab.node(), &["--kubeconfig", kubeconfig.to_str().expect("UTF-8")])
}

fn answering(lab: &Lab, number: u8) -> Vec<String> {
    tally(lab.client(0), frontends(number, 80)[0], 30).into_keys().collect()
}

pub(super) fn apply(double: &ApiDouble, objects: &[Value]) {
    for object in objects {
        double.apply(object.clone());
    }
}

/// Sync, updates and deletions with one dialect of the server.
fn follow(dialect: StreamingLists) {
    let lab = bed(3);
    let mut headless = service("headless", 9, &[HTTP]);
    headless["spec"]["clusterIP"] = "None".into();
    headless["spec"]["clusterIPs"] = vec!["None"].into();
    let mut foreign = service("foreign", 8, &[HTTP]);
    foreign["metadata"]["labels"] = serde_json::json!({"service.kubernetes.io/service-proxy-name": "other"});
    let (double, directory) = server(&lab, &[shop("web", 1, &pods(1..=2)), vec![headless, foreign]].concat());
    double.streaming_lists(dialect);
    let mut daemon = start(&lab, &double, &directory);
    let line = daemon.programmed();
    assert!(line.contains(r#"services="shop/web""#), "{dialect:?}: only what is ours: {line}");
    assert_eq!(answering(&lab, 1), ["web-1", "web-2"], "{dialect:?}: initial sync");

    apply(&double, &slices("web", &pods(2..=3)));
    daemon.programmed();
    eventually("the new endpoints", || answering(&lab, 1) == ["web-2", "web-3"]);
    apply(&double, &[service("web", 4, &[HTTP, DNS])]);
    daemon.programmed();
    eventually("the new address", || lab.client(0).connect(frontends(4, 80)[1], PATIENCE).is_ok());
    apply(&double, &shop("cart", 2, &pods([1])));
    eventually("a new Service", || lab.client(0).connect(frontends(2, 80)[1], PATIENCE).is_ok());
    double.delete(SERVICES, "shop", "cart");
    let short = Duration::from_millis(100);
    eventually("its end", || lab.client(0).connect(frontends(2, 80)[1], short).is_err());
    assert_eq!(answering(&lab, 4), ["web-2", "web-3"]);

    for (path, labels, fields) in [
        (SERVICES, Some("!service.kubernetes.io/service-proxy-name"), Some("spec.clusterIP!=None")),
        (SLICES, Some("!service.kubernetes.io/headless"), None),
        (NODES, None, Some("metadata.name=n1")),
    ] {
        let asked: Vec<_> = double.requests().into_iter().filter(|request| request.path == path).collect();
        assert!(!asked.is_empty(), "{path} should be asked for");
        for request in &asked {
            assert_eq!(request.param("labelSelector"), labels, "{dialect:?}: {path}");
            assert_eq!(request.param("fieldSelector"), fields, "{dialect:?}: {path}");
            assert!(request.user_agent.starts_with("kube-proxy/"), "{}", request.user_agent);
        }
        let listed = asked.iter().any(|request| !request.is_watch());
        assert_eq!(
            listed,
            dialect != StreamingLists::Supported,
            "{dialect:?}: {path} is listed where it cannot be streamed"
        );
    }
}

#[test]
fn a_server_that_streams_lists_is_followed() {
    follow(StreamingLists::Supported);
}

#[test]
fn a_server_that_refuses_to_stream_lists_is_followed() {
    follow(StreamingLists::Refused);
}

#[test]
fn while_the_server_is_gone_all_stays_and_afterwards_all_is_caught_up_with() {
    let lab = bed(3);
    let (double, directory) = server(&lab, &[shop("web", 1, &pods(1..=2)), shop("gone", 3, &pods([1]))].concat());
    let mut daemon = start(&lab, &double, &directory);
    daemon.programmed();
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    double.stop_listening();
    daemon.hear(&["WARN"]);
    client.wait_for(20);
    assert_eq!(names(&tally(lab.client(0), frontends(3, 80)[0], 5)), ["web-1"], "what is programmed stays");
    // Changes that nobody can replay: every version handed out so far will be answered with 410.
    double.delete(SERVICES, "shop", "gone");
    double.delete(SLICES, "shop", "gone-ipv4");
    apply(&double, &slices("web", &pods(2..=3)));
    apply(&double, &shop("new", 4, &pods([3])));
    double.compact();
    double.resume_listening();
    eventually("the new Service", || lab.client(0).connect(frontends(4, 80)[0], Duration::from_millis(100)).is_ok());
    eventually("the end of the deleted one", || {
        lab.client(0).connect(frontends(3, 80)[0], Duration::from_millis(100)).is_err()
    });
    eventually("the new endpoints", || answering(&lab, 1) == ["web-2", "web-3"]);
    client.assert_uninterrupted("a server that was gone");
    daemon.assert_alive();
}

#[test]
fn a_restart_while_the_server_is_gone_leaves_all_as_it_is() {
    let lab = bed(2);
    let (double, directory) = server(&lab, &shop("web", 1, &pods(1..=2)));
    let mut daemon = start(&lab, &double, &directory);
    daemon.programmed();
    daemon.end(nix::sys::signal::Signal::SIGKILL);
    double.stop_listening();
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    let mut daemon = start(&lab, &double, &directory);
    daemon.hear(&["\"serving\""]);
    daemon.hear(&["WARN"]);
    client.wait_for(20);
    assert_eq!(daemon.count(&["\"programmed\" "]), 0, "half a picture would remove what is there: {:?}", daemon.said());
    double.resume_listening();
    let line = daemon.programmed();
    assert!(line.contains(" elements=0 "), "all is as it was: {line}");
    client.assert_uninterrupted("a restart without a server");
}

/// Holds back either kind of object by its sheer size, and looks whether anything is programmed meanwhile.
fn waits_for_both(slow: &str) {
    const PIECE: usize = 2000;
    const PAUSE: Duration = Duration::from_millis(20);
    let lab = bed(2);
    let many = crowd(200).into_iter().filter(|object| object["kind"] == slow);
    let objects: Vec<_> = shop("web", 1, &pods(1..=2)).into_iter().chain(many).collect();
    let bytes = |kind: &str| -> usize {
        objects.iter().filter(|object| object["kind"] == kind).map(|object| object.to_string().len()).sum()
    };
    let least = PAUSE * u32::try_from(bytes(slow) / PIECE).expect("few");
    let quick: usize = ["Service", "EndpointSlice"].into_iter().filter(|kind| *kind != slow).map(bytes).sum();
    assert!(quick * 10 < bytes(slow), "the other kind should be there long before");
    let (double, directory) = server(&lab, &objects);
    double.trickle(Some((PIECE, PAUSE)));
    let begin = Instant::now();
    let mut daemon = start(&lab, &double, &directory);
    let node = lab.node().namespace();
    while begin.elapsed() < least * 3 / 4 {
        let there = tables(node);
        // The bytes cannot have arrived before this time, however fast the machine.
        assert!(there.is_empty() || begin.elapsed() > least, "nothing before all {slow}s are known: {there:?}");
        assert_eq!(daemon.count(&["\"programmed\" "]), 0, "nothing before all {slow}s are known");
    }
    daemon.programmed();
    assert_eq!(answering(&lab, 1), ["web-1", "web-2"], "and then all at once");
}

#[test]
fn nothing_is_programmed_before_all_endpoint_slices_are_known() {
    waits_for_both("EndpointSlice");
}

#[test]
fn nothing_is_programmed_before_all_services_are_known() {
    waits_for_both("Service");
}

#[test]
fn a_proxy_in_the_environment_keeps_nobody_from_a_server_that_it_is_not_for() {
    let lab = bed(2);
    let (double, directory) = server(&lab, &shop("web", 1, &pods(1..=2)));
    let kubeconfig = double.kubeconfig(directory.path());
    let args = ["--kubeconfig", kubeconfig.to_str().expect("UTF-8")];
    // As in a pod of kubeadm's, which copies its own environment. The server is on this host, so it is asked directly.
    for (variable, url) in [("HTTPS_PROXY", "http://proxy.invalid:3128"), ("HTTP_PROXY", "ftp://proxy.invalid")] {
        let mut command = command();
        command.env(variable, url);
        let mut daemon = Daemon::start_as(lab.node(), command, &args);
        daemon.programmed();
        assert_eq!(answering(&lab, 1), ["web-1", "web-2"], "{variable}");
    }
}

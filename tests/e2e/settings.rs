//! Each setting, from the command line to where it is seen: what a daemon that lost one on the way would do differently.
//!
//! What settings mean is proven elsewhere; these tests notice a field that is left at its default between flag and part.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

use api_double::{ApiDouble, StreamingLists, node};
use nix::sys::signal::Signal;
use pointsman::lab::{Lab, NODE, POD_GATEWAY};
use serde_json::{Value, json};

use super::daemon::{Daemon, Manifests, command, run, stderr};
use super::observe::{METRICS, get, local, metric};
use super::support::beds::{bed, pods};
use super::support::eventually;
use super::support::objects::{HTTP, frontends, service, shop, slices};
use super::support::oracle::{nft, tables};
use super::support::traffic::tally;

const PORT: u16 = 30080;
const HEALTH_CHECK: u16 = 31999;

/// A load balancer's Service with a node port, a health check port and an external address.
fn balanced(name: &str, number: u8) -> Vec<Value> {
    let mut service = service(name, number, &[HTTP]);
    let spec = &mut service["spec"];
    spec["type"] = "LoadBalancer".into();
    spec["externalTrafficPolicy"] = "Local".into();
    spec["healthCheckNodePort"] = HEALTH_CHECK.into();
    spec["ports"][0]["nodePort"] = PORT.into();
    spec["externalIPs"] = json!(["203.0.113.9"]);
    let mut objects = vec![service];
    for mut slice in slices(name, &pods([1])) {
        slice["endpoints"][0]["nodeName"] = "n1".into();
        objects.push(slice);
    }
    objects
}

/// A daemon on manifests of such a Service, and of our Node.
fn serving(lab: &Lab, args: &[&str]) -> (Manifests, Daemon) {
    let manifests = Manifests::of(&[balanced("web", 1), vec![node("n1", &[("InternalIP", "192.168.50.1")])]].concat());
    let mut daemon = Daemon::serving(lab.node(), &manifests, args);
    daemon.hear(&["\"first load programmed\""]);
    (manifests, daemon)
}

fn list(lab: &Lab, what: &[&str]) -> String {
    nft(lab.node().namespace(), &[&["list"], what].concat())
}

fn answers(lab: &Lab, ip: impl Into<IpAddr>, port: u16) -> bool {
    get(lab, (ip.into(), port).into(), "/").0 != 0
}

/// Upstream: TestServerWithSelectiveListeningAddress.
#[test]
fn health_check_ports_are_where_node_ports_are() {
    let lab = bed(1);
    let (_manifests, daemon) = serving(&lab, &[]);
    eventually("all addresses", || answers(&lab, NODE.v4, HEALTH_CHECK) && answers(&lab, POD_GATEWAY.v4, HEALTH_CHECK));
    drop(daemon);
    for restriction in ["--nodeport-addresses=192.168.50.0/24", "--nodeport-addresses=primary"] {
        let (_manifests, daemon) = serving(&lab, &[restriction]);
        eventually("the address chosen", || answers(&lab, NODE.v4, HEALTH_CHECK));
        assert!(!answers(&lab, POD_GATEWAY.v4, HEALTH_CHECK), "{restriction}: nowhere else");
        assert!(!answers(&lab, Ipv4Addr::LOCALHOST, HEALTH_CHECK), "{restriction}: nowhere else");
        drop(daemon);
    }
    // None of this host's addresses: nobody listens, in the family that is named.
    let (_manifests, _daemon) = serving(&lab, &["--nodeport-addresses=192.0.2.0/24"]);
    eventually("the other family", || answers(&lab, NODE.v6, HEALTH_CHECK));
    assert!(!answers(&lab, NODE.v4, HEALTH_CHECK) && !answers(&lab, POD_GATEWAY.v4, HEALTH_CHECK));
}

#[test]
fn what_the_data_plane_is_told() {
    let lab = bed(1);
    let services = ["map", "ip", "pointsman", "services"];
    let node_ports = ["set", "ip", "pointsman", "node-port-addresses"];
    let table = ["table", "ip", "pointsman"];
    let (_manifests, daemon) = serving(&lab, &[]);
    assert!(list(&lab, &services).contains("203.0.113.9"), "external addresses");
    assert!(!list(&lab, &node_ports).contains("192.168.50.1"), "mode iptables: everywhere");
    let plain = list(&lab, &table);
    drop(daemon);
    let (_manifests, daemon) =
        serving(&lab, &["--feature-gates=AllowServiceExternalIPs=false", "--proxy-mode=nftables"]);
    assert!(!list(&lab, &services).contains("203.0.113.9"), "no external addresses");
    assert!(list(&lab, &node_ports).contains("192.168.50.1"), "mode nftables: the primary one");
    drop(daemon);
    let (_manifests, daemon) = serving(&lab, &["--proxy-mode=nftables", "--bind-address=192.168.50.7"]);
    assert!(list(&lab, &node_ports).contains("192.168.50.7"), "instead of the Node's");
    drop(daemon);
    for (args, wanted) in [
        (["--masquerade-all", "--v=2"], ""),
        (["--cluster-cidr=10.244.0.0/16", "--v=2"], "10.244.0.0/16"),
        (["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni7"], "cni7"),
        (["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth7"], "veth7"),
    ] {
        let (_manifests, daemon) = serving(&lab, &args);
        let other = list(&lab, &table);
        assert!(other != plain && other.contains(wanted), "{args:?} should be seen in {other}");
        drop(daemon);
    }
}

#[test]
fn what_the_process_is_told() {
    let lab = bed(1);
    let established =
        || fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established").expect("it");
    let (_manifests, daemon) =
        serving(&lab, &["--oom-score-adj=123", "--conntrack-tcp-timeout-established=4321s", "--profiling"]);
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", daemon.id())).expect("a process");
    assert_eq!(score.trim(), "123");
    assert_eq!(lab.node().run(established).trim(), "4321");
    assert_ne!(get(&lab, local(METRICS), "/debug/flags/v").0, 404);
    drop(daemon);
    let (_manifests, _daemon) =
        serving(&lab, &["--metrics-bind-address=127.0.0.1:9249", "--healthz-bind-address=127.0.0.1:9256"]);
    assert_eq!(get(&lab, local(9249), "/debug/flags/v").0, 404, "without --profiling");
    assert_eq!((get(&lab, local(9249), "/healthz").0, get(&lab, local(9256), "/livez").0), (200, 200));
    assert!(!answers(&lab, Ipv4Addr::LOCALHOST, METRICS));
}

#[test]
fn a_port_that_is_taken_ends_the_start_if_it_shall() {
    let lab = bed(1);
    let _holder = lab.node().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, METRICS)).expect("a fresh namespace"));
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let output = run(lab.node(), command(), &["--manifests", manifests.path(), "--bind-address-hard-fail"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let message = said.lines().find(|line| line.starts_with("Error:")).expect("a message");
    assert!(message.contains("the metrics server cannot listen on 127.0.0.1:10249"), "{message}");
    assert_eq!(message.matches("Address already in use").count(), 1, "the reason, once: {message}");
    assert_eq!(tables(lab.node().namespace()), [""; 0]);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    let line = daemon.hear(&["WARN", "not all ports are open"]);
    assert!(line.contains("metrics=\"none\" tried_again=\"127.0.0.1:10249\""), "{line}");
}

#[test]
fn verbosities_add_what_they_say() {
    let lab = bed(1);
    let (_double, _directory, kubeconfig) = cluster(&lab);
    let mut said = Vec::new();
    for verbosity in ["--v=0", "--v=2", "--v=4", "--v=6"] {
        let mut daemon = Daemon::start(lab.node(), &[&kubeconfig, verbosity]);
        daemon.hear(&["\"first load programmed\""]);
        said.push(
            ["API server: listed", "API server: watching", "Service shop/web", "EndpointSlice shop/web-ipv4"]
                .map(|part| daemon.count(&[part]) > 0),
        );
    }
    assert_eq!(said, [[false; 4], [false; 4], [true, true, false, false], [true; 4]]);
}

#[test]
fn gates_open_and_close_what_they_are_about() {
    let lab = bed(1);
    let (_manifests, daemon) = serving(&lab, &[]);
    assert_eq!(["/flagz", "/statusz"].map(|path| get(&lab, local(METRICS), path).0), [200, 200]);
    drop(daemon);
    let (_manifests, daemon) = serving(&lab, &["--feature-gates=ComponentFlagz=false"]);
    assert_eq!(["/flagz", "/statusz"].map(|path| get(&lab, local(METRICS), path).0), [404, 200]);
    let page = get(&lab, local(METRICS), "/statusz").1;
    assert!(!page.contains("/flagz"), "{page}");
    drop(daemon);
    let (_manifests, _daemon) = serving(&lab, &["--feature-gates=ComponentStatusz=false"]);
    assert_eq!(["/flagz", "/statusz"].map(|path| get(&lab, local(METRICS), path).0), [200, 404]);
}

/// A double with one Service and our Node, and the flags to follow it.
fn cluster(lab: &Lab) -> (ApiDouble, tempfile::TempDir, String) {
    let double = lab.node().run(ApiDouble::start);
    for object in shop("web", 1, &pods([1])) {
        double.apply(object);
    }
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    let directory = tempfile::tempdir().expect("a directory");
    let flag = format!("--kubeconfig={}", double.kubeconfig(directory.path()).display());
    (double, directory, flag)
}

#[test]
fn what_the_api_server_is_asked_and_who_asks() {
    let lab = bed(1);
    let (double, _directory, kubeconfig) = cluster(&lab);
    double.streaming_lists(StreamingLists::Supported);
    let mut daemon =
        Daemon::start(lab.node(), &[&kubeconfig, "--version=v1.36.2-acme.7", "--feature-gates=WatchListClient=false"]);
    daemon.programmed();
    let requests = double.requests();
    let streamed = requests.iter().find(|request| request.param("sendInitialEvents").is_some());
    assert!(streamed.is_none(), "a closed gate: lists and watches only: {streamed:?}");
    assert!(requests.iter().all(|request| request.user_agent.starts_with("kube-proxy/v1.36.2-acme.7 ")));
    let page = get(&lab, local(METRICS), "/statusz").1;
    assert!(page.contains("1.36.2-acme.7"), "{page}");
    let text = get(&lab, local(METRICS), "/metrics").1;
    let info = text.lines().find(|line| line.starts_with("kubernetes_build_info{")).expect("a line");
    for part in ["git_version=\"v1.36.2-acme.7\"", "major=\"1\"", "minor=\"36\""] {
        assert!(info.contains(part), "{part} in {info}");
    }
}

#[test]
fn what_changes_nothing_does_not_delay_what_does() {
    let lab = bed(2);
    let (double, _directory, kubeconfig) = cluster(&lab);
    let mut daemon = Daemon::start(lab.node(), &[&kubeconfig]);
    daemon.programmed();
    daemon.end(Signal::SIGTERM);
    // Longer than anybody waits here.
    let paced = ["--iptables-sync-period=1h", "--iptables-min-sync-period=1h"];
    let mut daemon = Daemon::start(lab.node(), &[&[kubeconfig.as_str()], paced.as_slice()].concat());
    daemon.hear(&["\"first load programmed\"", " written=0 "]);
    let changes = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    let before = metric(&lab, changes);
    let mut same = slices("web", &pods([1]));
    same[0]["metadata"]["annotations"] = json!({"nobody": "cares"});
    double.apply(same[0].clone());
    eventually("it to be taken in", || metric(&lab, changes) > before);
    let mut more = slices("web", &pods(1..=2));
    double.apply(more[0].take());
    daemon.programmed();
    assert_eq!(tally(lab.client(0), frontends(1, 80)[0], 20).len(), 2);
    // And the pause is kept after that.
    double.apply(slices("web", &pods([2]))[0].clone());
    eventually("it to be taken in", || {
        metric(&lab, "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}") > 0.0
    });
    assert_eq!(tally(lab.client(0), frontends(1, 80)[0], 20).len(), 2, "not before an hour is over");
}

#[test]
fn an_instance_that_is_about_to_end_is_waited_for() {
    let lab = bed(1);
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut old = Daemon::serving(lab.node(), &manifests, &[]);
    old.programmed();
    let mut new = Daemon::serving(lab.node(), &manifests, &[]);
    new.hear(&["waiting for another instance to be gone"]);
    old.end(Signal::SIGKILL);
    new.programmed();
    assert_eq!(tally(lab.client(0), frontends(1, 80)[0], 5).len(), 1);
}

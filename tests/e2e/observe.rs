//! What the outside is told: the daemon's ports, numbers and Events, asked for inside the node.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use api_double::{ApiDouble, node};
use nft::Connection;
use pointsman::lab::Lab;
use serde_json::{Value, json};

use super::daemon::{Daemon, Manifests};
use super::support::beds::{bed, pods};
use super::support::eventually;
use super::support::objects::{frontends, scheduled, shop, slices};
use super::support::oracle::{chains, nft, try_nft};
use super::support::traffic::tally;

pub const HEALTH: u16 = 10256;
pub const METRICS: u16 = 10249;

/// Status and body; status 0 when nobody answers.
pub fn get(lab: &Lab, address: SocketAddr, path: &str) -> (u16, String) {
    get_by("HTTP/1.1", lab, address, path)
}

/// The same in another version of HTTP: in `HTTP/1.0` a body comes as it is.
pub fn get_by(version: &str, lab: &Lab, address: SocketAddr, path: &str) -> (u16, String) {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        write!(stream, "GET {path} {version}\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        std::io::Result::Ok(text)
    };
    let text = lab.node().run(ask).unwrap_or_default();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    (head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

pub fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The value of a metric, 0 when it is not there.
pub fn metric(lab: &Lab, series: &str) -> f64 {
    let text = get(lab, local(METRICS), "/metrics").1;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

#[test]
fn a_cluster_sees_health_metrics_and_events() {
    let lab = bed(3);
    let double = lab.node().run(ApiDouble::start);
    let mut objects = shop("web", 1, &pods(1..=2));
    let mut broken = shop("broken", 2, &pods([1]));
    broken[0]["spec"]["clusterIP"] = "nonsense".into();
    broken[0]["spec"]["clusterIPs"] = json!(["nonsense"]);
    objects.append(&mut broken);
    for object in objects {
        double.apply(object);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = double.kubeconfig(directory.path());
    let mut daemon = Daemon::start(lab.node(), &["--kubeconfig", kubeconfig.to_str().expect("UTF-8")]);
    daemon.hear(&["WARN", "waiting for a Node of this name", "node=\"n1\""]);
    assert_eq!(get(&lab, local(HEALTH), "/livez").0, 200);
    assert_eq!(get(&lab, local(HEALTH), "/healthz").0, 503, "our Node has not been seen");
    assert_eq!(get(&lab, local(HEALTH), "/readyz").0, 503, "so nothing is programmed");
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    let line = daemon.hear(&["\"first load programmed\""]);
    assert!(line.contains(" services=2 ") && !line.contains(" written=0 "), "{line}");
    eventually("readiness", || get(&lab, local(HEALTH), "/readyz").0 == 200);
    eventually("the node to be eligible", || get(&lab, local(HEALTH), "/healthz").0 == 200);
    let body = get(&lab, (Ipv6Addr::LOCALHOST, HEALTH).into(), "/healthz").1;
    let health: Value = serde_json::from_str(&body).expect("JSON, over IPv6");
    assert_eq!((&health["healthy"], &health["status"]["IPv6"]["healthy"]), (&json!(true), &json!(true)), "{body}");

    assert_eq!(
        get(&lab, local(METRICS), "/proxyMode"),
        (200, "iptables".to_owned()),
        "what nobody chooses is that, as in kube-proxy"
    );
    assert_eq!(metric(&lab, "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}"), 1.0);
    let programming = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    assert_eq!(metric(&lab, programming), 0.0);
    let mut changed = slices("web", &pods(2..=3));
    // The API server's clock is ours.
    let now = jiff::Timestamp::now();
    changed[0]["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": now.to_string()});
    for slice in changed {
        double.apply(slice);
    }
    daemon.programmed();
    eventually("the change to be measured", || metric(&lab, programming) == 1.0);
    assert!(metric(&lab, "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}") > 1e9);
    // The other family's slice may come a moment later.
    let changes = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    eventually("the last slice to be taken in", || metric(&lab, changes) == 6.0);
    let pending = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    eventually("nothing to wait", || metric(&lab, pending) == 0.0);
    // Two Services in two families; one slice of each family and Service, two of them twice.
    assert_eq!(metric(&lab, "kubeproxy_sync_proxy_rules_service_changes_total"), 4.0);
    assert_eq!(metric(&lab, changes), 6.0);

    let event = |reason: &str| double.events().into_iter().find(|event| event["reason"] == reason);
    eventually("the events", || event("Starting").is_some() && event("InvalidService").is_some());
    let starting = event("Starting").expect("there");
    assert_eq!(starting["regarding"]["name"], "n1");
    assert!(starting["reportingInstance"].as_str().is_some_and(|name| name.starts_with("kube-proxy-")), "{starting}");
    assert_eq!(event("InvalidService").expect("there")["regarding"]["name"], "broken");
}

#[test]
fn the_log_says_what_changed() {
    let lab = bed(3);
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    let line = daemon.programmed();
    assert!(
        line.contains(
            "shop/web:http (TCP, IPv4): new, +1 frontend 10.96.0.1:80, +2 endpoints 10.244.0.2:8080 10.244.0.3:8080"
        ),
        "{line}"
    );
    manifests.write("all.json", &shop("web", 1, &pods(2..=3)));
    let line = daemon.hear(&[
        "\"programmed\" ",
        "shop/web:http (TCP, IPv4): +1 endpoint 10.244.0.4:8080, -1 endpoint 10.244.0.2:8080",
    ]);
    for part in ["services=\"shop/web\"", " elements=", " transactions=1 ", " kernel_us=", " total_us="] {
        assert!(line.contains(part), "{part} in {line}");
    }
    manifests.write("all.json", &[]);
    daemon.hear(&["\"programmed\" ", "shop/web:http (TCP, IPv4): gone"]);
}

#[test]
fn a_port_that_is_taken_keeps_nothing_else_from_working() {
    let lab = bed(1);
    let holder = lab.node().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, HEALTH)).expect("a fresh namespace"));
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["ERROR", "the health server cannot listen on 0.0.0.0:10256"]);
    daemon.programmed();
    assert_eq!(get(&lab, local(METRICS), "/healthz"), (200, "ok".to_owned()));
    drop(holder);
    daemon.hear(&["the port is open now"]);
    assert_eq!(get(&lab, local(HEALTH), "/healthz").0, 200, "without an API server there is no Node to wait for");
}

/// A chain that cannot be deleted, because somebody else's rule leads to it, is counted, keeps nothing else from working, and goes when it
/// can. Where tables are owned, nobody else can make such a rule.
#[test]
fn a_clean_up_that_fails_is_counted_and_made_up_for() {
    let lab = bed(4);
    let inside = lab.node().namespace();
    let owned = inside.run(|| Connection::open().and_then(|mut open| open.probe())).expect("answers").owner_persist;
    let web = |endpoints| {
        let mut objects = shop("web", 1, &pods(1..=endpoints));
        objects[0] = scheduled(objects[0].take(), "rr");
        objects
    };
    let manifests = Manifests::of(&web(2));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let scaled_to = |endpoints: usize| {
        manifests.write("all.json", &web(endpoints));
        eventually("the new endpoints", || tally(lab.client(0), frontends(1, 80)[0], 2 * endpoints).len() == endpoints);
    };
    let chain = |endpoints: usize| {
        let prefix = format!("rr-{endpoints}-00001-shop/web/tcp/http");
        chains(inside, "ip").into_iter().find(|chain| chain.starts_with(&prefix))
    };
    let kept = chain(2).expect("a chain of two");
    let failures = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"}";
    let foreign = try_nft(inside, &["add", "chain", "ip", "pointsman", "foreign"]).status.success()
        && try_nft(inside, &["add", "rule", "ip", "pointsman", "foreign", "goto", &kept]).status.success();
    assert_eq!(foreign, !owned, "whether others can change our tables");
    scaled_to(3);
    if owned {
        eventually("the chain of two to go", || chain(2).is_none());
        assert_eq!(metric(&lab, failures), 0.0);
        return;
    }
    eventually("a failure to be counted", || metric(&lab, failures) >= 1.0);
    assert!(chain(2).is_some() && chain(3).is_some(), "{:?}", chains(inside, "ip"));
    nft(inside, &["delete", "chain", "ip", "pointsman", "foreign"]);
    scaled_to(4);
    eventually("both chains to go", || chain(2).is_none() && chain(3).is_none());
    assert_eq!(daemon.count(&["WARN"]) + daemon.count(&["ERROR"]), 0, "{:#?}", daemon.said());
}

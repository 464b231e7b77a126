//! What the outside is told, end to end: Events against the API double, ports and metrics against a real client.

#[path = "source_api/support.rs"]
#[allow(dead_code)]
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use api_double::ApiDouble;
use pointsman::engine::NoLocalEndpoints;
use pointsman::model::{Families, Family, Problem, ServiceKey};
use pointsman::observe::events::{self, Delivery, Event};
use pointsman::observe::metrics::SyncKind;
use pointsman::observe::services::{HealthPort, HealthPorts};
use pointsman::observe::{self, Pending, Settings, Sync};
use pointsman::source::api::{ApiConfig, ApiSource, Clients};
use pointsman::source::{Change, Kind, Object, ObjectKey};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

fn delivery() -> Delivery {
    Delivery { attempts: 40, pause: Duration::from_millis(50), answer: Duration::from_millis(500) }
}

fn clients(double: &ApiDouble) -> Clients {
    let config = ApiConfig { master: Some(double.url()), node_name: "node-1".into(), ..ApiConfig::default() };
    ApiSource::new(config).expect("a URL").clients()
}

async fn until<T>(what: &str, find: impl Fn() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(Instant::now() < limit, "waited in vain for: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn count(double: &ApiDouble, events: usize) -> Vec<Value> {
    until(&format!("{events} events"), || Some(double.events()).filter(|all| all.len() >= events)).await
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("somebody listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("the server reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head[9..12].parse().expect("a status"), body.to_owned())
}

#[tokio::test]
async fn events_are_those_of_kube_proxy() {
    let double = ApiDouble::start();
    let (sink, _task) = events::start("host-1", clients(&double), delivery());
    sink.send(Event::starting("node-1"));
    let event = count(&double, 1).await.remove(0);
    assert_eq!(event["metadata"]["namespace"], "default");
    assert!(event["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("node-1.")), "{event}");
    assert_eq!(event["regarding"], json!({"apiVersion": "v1", "kind": "Node", "name": "node-1"}));
    for (field, value) in [
        ("type", "Normal"),
        ("reason", "Starting"),
        ("action", "StartKubeProxy"),
        ("reportingController", "kube-proxy"),
        ("reportingInstance", "kube-proxy-host-1"),
    ] {
        assert_eq!(event[field], value, "{field}");
    }
    let time = event["eventTime"].as_str().expect("a time");
    assert!(time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000000Z".len(), "{time}");
    let request = support::requests(&double, EVENTS).remove(0);
    assert_eq!(request.method, "POST");
    assert!(request.user_agent.starts_with("kube-proxy/v"), "{}", request.user_agent);
}

#[tokio::test]
async fn a_problem_of_a_service_is_an_event_in_its_namespace() {
    let double = ApiDouble::start();
    let (sink, _task) = events::start("host-1", clients(&double), delivery());
    let problem = Problem {
        kind: Kind::Service,
        object: ObjectKey { namespace: "shop".into(), name: "web".into() },
        field: "spec.clusterIP".into(),
        value: "nonsense".into(),
        reason: "not an IP address".into(),
    };
    sink.send(Event::invalid(&problem));
    let event = count(&double, 1).await.remove(0);
    assert_eq!(event["metadata"]["namespace"], "shop");
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("InvalidService")));
    assert_eq!(event["note"], "spec.clusterIP: \"nonsense\": not an IP address");
    assert_eq!(event["regarding"]["name"], "web");
}

#[tokio::test]
async fn repetitions_are_one_event() {
    let double = ApiDouble::start();
    let (sink, _task) = events::start("host-1", clients(&double), delivery());
    let event = || Event::service_health_failed(&ServiceKey::new("default", "web"), "taken".to_owned());
    for _ in 0..20 {
        sink.send(event());
    }
    sink.send(Event::starting("node-1"));
    let all = count(&double, 2).await;
    let series: Vec<_> = all.iter().map(|event| event["series"]["count"].as_i64()).collect();
    assert!(series.contains(&Some(2)) && series.contains(&None), "{all:?}");
    let methods: Vec<_> = double.requests().into_iter().map(|request| request.method).collect();
    assert_eq!(methods, ["POST", "PATCH", "POST"]);
    let patched = all.iter().find(|event| event["reason"] == "FailedToStartServiceHealthcheck").expect("there");
    assert_eq!(patched["note"], "taken", "the rest is as it was");

    // The server has forgotten the Event when its series goes on: it is created again.
    let (sink, _task) = events::start("host-2", clients(&double), delivery());
    sink.send(event());
    let name = until("the other instance's", || {
        let mine = |event: &Value| event["reportingInstance"] == "kube-proxy-host-2";
        double.events().into_iter().find(mine)?["metadata"]["name"].as_str().map(str::to_owned)
    })
    .await;
    double.delete("/apis/events.k8s.io/v1/events", "default", &name).expect("it was there");
    sink.send(event());
    let back = until("the event to be back", || {
        double.events().into_iter().find(|event| event["metadata"]["name"] == name.as_str())
    });
    assert_eq!(back.await["series"]["count"], 2);
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again_and_one_that_refuses_is_not() {
    let double = ApiDouble::start();
    double.fail_next(2, 503);
    let (sink, _task) = events::start("host-1", clients(&double), delivery());
    sink.send(Event::starting("node-1"));
    count(&double, 1).await;
    assert_eq!(double.requests().len(), 3);

    double.stop_listening();
    sink.send(Event::ipvs_deprecated("node-1", "soon"));
    sleep(Duration::from_millis(150)).await;
    double.resume_listening();
    count(&double, 2).await;

    double.clear_requests();
    double.fail_next(1, 403);
    sink.send(Event::starting("node-2"));
    sink.send(Event::starting("node-3"));
    let all = count(&double, 3).await;
    assert!(all.iter().all(|event| event["regarding"]["name"] != "node-2"), "refused and dropped");
    assert_eq!(double.requests().len(), 2);
}

#[tokio::test]
async fn sending_neither_blocks_nor_fails() {
    let double = ApiDouble::start();
    double.stall(true);
    let (sink, task) = events::start("host-1", clients(&double), delivery());
    let begin = Instant::now();
    for n in 0..10_000 {
        sink.send(Event::starting(&format!("node-{n}")));
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(task);
    sleep(Duration::from_millis(20)).await;
    sink.send(Event::starting("nobody listens"));
}

fn slice_event() -> Change {
    let value = json!({"metadata": {"namespace": "shop", "name": "web-1"}, "addressType": "IPv4"});
    Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
}

/// One process, one registry: everything about the assembled whole is one test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_of_it() {
    let double = support::shop();
    let settings = Settings {
        node: "node-1".into(),
        health_address: Some((Ipv4Addr::LOCALHOST, 0).into()),
        metrics_address: Some((Ipv4Addr::LOCALHOST, 0).into()),
        sync_period: Duration::from_millis(500),
        watches_node: true,
        delivery: delivery(),
        ..Settings::default()
    };
    let source = ApiSource::new(ApiConfig {
        master: Some(double.url()),
        node_name: "node-1".into(),
        timing: support::short(),
        ..ApiConfig::default()
    });
    let source = source.expect("a URL");
    let (observer, servers) = observe::start(settings, Some(source.clients())).expect("free ports");
    let health = servers.health_address().expect("open");
    let metrics = servers.metrics_address().expect("open");

    // Before the Node is known: alive, and not to be sent traffic to.
    assert_eq!((get(health, "/livez").await.0, get(health, "/healthz").await.0), (200, 503));
    observer.loop_started();
    count(&double, 1).await;

    // The Node comes with the source; the requests are counted.
    let (sender, mut changes) = tokio::sync::mpsc::channel(16);
    let task = tokio::spawn(source.run(sender, Default::default()));
    let mut pending = Pending::default();
    let mut node_seen = false;
    while !node_seen {
        let change = changes.recv().await.expect("goes on");
        node_seen = matches!(&change, Change::Apply(Object::Node(_)));
        observer.seen(&change);
        pending.add(&change);
    }
    // Whether it is eligible is read by the model, and said by who owns it.
    observer.set_node_eligible(true);
    let (status, body) = get(health, "/healthz").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.contains(r#""nodeEligible":true"#) && body.contains(r#""IPv6":{"lastUpdated""#), "{body}");

    // A family that is asked for and does not come is unhealthy after twice the period, until it comes.
    observer.seen(&slice_event());
    pending.add(&slice_event());
    observer.queued(pending, Families::from(Family::V4));
    assert_eq!(get(health, "/livez").await.0, 200);
    sleep(Duration::from_millis(1100)).await;
    assert_eq!((get(health, "/livez").await.0, get(health, "/healthz").await.0), (503, 503));
    let failed = Sync {
        kind: SyncKind::Full,
        families: Families::ALL,
        duration: Duration::from_millis(3),
        success: false,
        triggers: &[(Family::V4, jiff::Timestamp::now())],
    };
    observer.synced(&failed);
    assert_eq!(get(health, "/livez").await.0, 503);
    let long_ago = jiff::Timestamp::now() - Duration::from_secs(2);
    observer.synced(&Sync { success: true, triggers: &[(Family::V4, long_ago)], ..failed.clone() });
    observer.synced(&Sync {
        kind: SyncKind::Partial,
        families: Family::V4.into(),
        success: true,
        triggers: &[],
        ..failed
    });
    assert_eq!((get(health, "/livez").await.0, get(health, "/healthz").await.0), (200, 200));

    // A Service's health port.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("free").port();
    let wanted = HealthPort { port, local_endpoints: [2, 0] };
    observer.health_ports(HealthPorts::from([(ServiceKey::new("default", "web"), wanted)]), [None, None]);
    until("the port", || std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()).await;
    assert_eq!(get((Ipv4Addr::LOCALHOST, port).into(), "/").await.0, 200);

    let counts = NoLocalEndpoints { internal: [1, 0], external: [3, 2] };
    observer.no_local_endpoints(counts);
    observer.no_local_endpoints(NoLocalEndpoints { internal: [0, 0], ..counts });
    observer.cleanup_failed([2, 0]);
    let text = get(metrics, "/metrics").await.1;
    let host = double.url().trim_start_matches("http://").to_owned();
    for line in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 3",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 2",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 1",
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 1",
        "kubeproxy_network_programming_duration_seconds_bucket{ip_family=\"IPv4\",le=\"1\"} 0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 3",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 2",
        "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 2",
        "kubeproxy_proxy_livez_total{code=\"503\"} 2",
        &format!("rest_client_requests_total{{code=\"201\",host=\"{host}\",method=\"POST\"}} 1"),
        &format!("rest_client_requests_total{{code=\"200\",host=\"{host}\",method=\"GET\"}} 4"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(text.contains("kubernetes_build_info{") && text.contains("process_resident_memory_bytes "), "{text}");
    assert_eq!(get(metrics, "/proxyMode").await.1, "nftables");
    drop(servers);
    until("the ports to close", || std::net::TcpStream::connect(health).is_err().then_some(())).await;
    task.abort();
}

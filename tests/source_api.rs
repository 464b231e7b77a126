//! The API-server source against the API-server double: everything that can go wrong between the two, over real HTTP.

#[path = "source_api/storms.rs"]
mod storms;
#[path = "source_api/support.rs"]
mod support;

use std::time::Duration;

use api_double::{ApiDouble, GoneStyle, StreamingLists, node, service};
use pointsman::source::api::{ApiConfig, ApiSource, Rate, Timing};
use pointsman::source::{Kind, Object};
use serde_json::json;
use support::*;
use tokio::time::{Instant, sleep, timeout};

const WHILE: Duration = Duration::from_millis(400);

#[tokio::test]
async fn initial_streaming_list() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    assert_eq!(run.names(), ["default/web", "default/web-1", "node-1"]);
    for path in [SERVICES, SLICES, NODES] {
        let requests = requests(&double, path);
        assert_eq!(requests.len(), 1, "{path}: one watch and no list");
        assert!(requests[0].is_watch());
        assert_eq!(requests[0].param("sendInitialEvents"), Some("true"));
    }
    let Object::EndpointSlice(slice) = &run.objects[&(Kind::EndpointSlice, "default/web-1".into())] else { panic!() };
    assert_eq!(slice.endpoints[0].addresses, ["10.1.0.1"]);
    assert_eq!(slice.ports[0].port, Some(8080));
}

#[tokio::test]
async fn requests_are_those_of_kube_proxy() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    let agent = double.requests()[0].user_agent.clone();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    assert_eq!(agent, format!("kube-proxy/v{} (linux/{arch}) pointsman", env!("CARGO_PKG_VERSION")));
    for (path, labels, fields) in [
        (SERVICES, Some("!service.kubernetes.io/service-proxy-name"), Some("spec.clusterIP!=None")),
        (SLICES, Some("!service.kubernetes.io/headless"), None),
        (NODES, None, Some("metadata.name=node-1")),
    ] {
        let request = &requests(&double, path)[0];
        assert_eq!((request.param("labelSelector"), request.param("fieldSelector")), (labels, fields), "{path}");
        assert_eq!(request.param("allowWatchBookmarks"), Some("true"));
        assert_eq!(request.param("resourceVersionMatch"), Some("NotOlderThan"));
        let seconds: u64 = request.param("timeoutSeconds").unwrap().parse().unwrap();
        assert!((60..=120).contains(&seconds), "{seconds}");
    }
}

#[tokio::test]
async fn refused_streaming_lists_become_pages() {
    let double = shop();
    for n in 0..4 {
        double.apply(web(&format!("s{n}"), 80));
    }
    double.streaming_lists(StreamingLists::Refused);
    let timing = Timing { page_size: 2, ..short() };
    let mut run = start_with(ApiConfig { master: Some(double.url()), timing, ..ApiConfig::default() });
    run.synced().await;
    assert_eq!(run.objects.len(), 7);
    run.until("the watch", |_| double.open_watches() == 4).await;
    let all = requests(&double, SERVICES);
    let lists: Vec<_> = all.iter().filter(|request| !request.is_watch()).collect();
    assert_eq!(lists.len(), 3, "five Services in pages of two");
    assert!(lists.iter().all(|list| list.param("limit") == Some("2")));
    assert!(lists.iter().all(|list| list.param("labelSelector").is_some() && list.param("fieldSelector").is_some()));
    assert_eq!((lists[0].param("resourceVersion"), lists[0].param("continue")), (Some("0"), None));
    assert!(lists[1].param("resourceVersion").is_none() && lists[1].param("continue").is_some());
    let watches: Vec<_> = all.iter().filter(|request| request.is_watch()).collect();
    assert_eq!(watches.iter().map(|w| w.param("sendInitialEvents")).collect::<Vec<_>>(), [Some("true"), None]);

    // The refusal is remembered: starting over asks for pages at once, and not for cached ones.
    double.clear_requests();
    double.stop_listening();
    double.delete(SERVICES, "default", "s0");
    double.compact();
    double.resume_listening();
    run.until("the deletion", |run| !run.has("default/s0")).await;
    assert!(double.requests().iter().all(|request| request.param("sendInitialEvents").is_none()));
    let relist = requests(&double, SERVICES).into_iter().find(|request| !request.is_watch()).unwrap();
    assert_eq!(relist.param("resourceVersion"), None);
}

#[tokio::test]
async fn servers_that_ignore_streaming_lists_are_found_out() {
    let double = shop();
    double.streaming_lists(StreamingLists::Ignored);
    let mut run = start(&double);
    run.synced().await;
    assert_eq!(run.names(), ["default/web", "default/web-1", "node-1"]);
    double.apply(web("web", 81));
    run.until("the update", |run| run.port("default/web") == Some(81)).await;
    assert_eq!(run.logged(&["WARN"]), 0, "{}", run.log());
    assert_eq!(run.logged(&["no usable streaming lists", "kind=\"Service\""]), 1, "{}", run.log());
}

#[tokio::test]
async fn busy_servers_that_ignore_streaming_lists_are_found_out_too() {
    let double = shop();
    double.streaming_lists(StreamingLists::Ignored);
    let mut run = start(&double);
    // Never silent for long enough: only the repetition gives it away.
    let busy = async {
        for port in 1.. {
            double.apply(web("web", port));
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = run.synced() => {}
        () = busy => {}
    }
}

#[tokio::test]
async fn apply_update_delete() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    double.apply(web("api", 90));
    run.until("the new Service", |run| run.has("default/api")).await;
    double.apply(web("api", 91));
    run.until("the update", |run| run.port("default/api") == Some(91)).await;
    double.delete(SERVICES, "default", "api");
    run.until("the deletion", |run| !run.has("default/api")).await;
    assert_eq!(run.deletions().len(), 1);
}

#[tokio::test]
async fn objects_leave_and_enter_with_their_labels() {
    let double = shop();
    double.apply(service("default", "headless", "None", &[]));
    let mut run = start(&double);
    run.synced().await;
    assert!(!run.has("default/headless"));
    let mut foreign = web("web", 80);
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    double.apply(foreign);
    run.until("the Service to leave", |run| !run.has("default/web")).await;
    double.apply(web("web", 80));
    run.until("the Service to come back", |run| run.has("default/web")).await;
}

async fn expired(style: GoneStyle) {
    let double = shop();
    double.gone_style(style);
    double.apply(web("gone", 80));
    let mut run = start(&double);
    run.synced().await;
    double.stop_listening();
    double.delete(SERVICES, "default", "gone");
    double.delete(SLICES, "default", "web-1");
    double.apply(web("new", 80));
    double.compact();
    double.resume_listening();
    run.until("the new state", |run| run.names() == ["default/new", "default/web", "node-1"]).await;
    assert_eq!(run.deletions().len(), 2);
    assert_eq!(run.synced_kinds().len(), 4, "synced is said once");
    double.apply(web("web", 81));
    run.until("an update afterwards", |run| run.port("default/web") == Some(81)).await;
}

#[tokio::test]
async fn expired_by_status() {
    expired(GoneStyle::Status).await;
}

#[tokio::test]
async fn expired_by_event() {
    expired(GoneStyle::Event).await;
}

#[tokio::test]
async fn a_dropped_watch_goes_on_where_it_was() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    run.until("the watches", |_| double.open_watches() == 4).await;
    double.clear_requests();
    let said = run.said.len();
    double.drop_watches();
    double.apply(web("api", 90));
    run.until("the new Service", |run| run.has("default/api")).await;
    run.until("the watches", |_| double.open_watches() == 4).await;
    assert_eq!(run.said.len(), said + 1, "nothing is told twice");
    assert!(double.requests().iter().all(|request| request.param("sendInitialEvents").is_none()));
    assert!(double.requests().iter().all(|request| request.param("resourceVersion").is_some_and(|v| v != "0")));
    // A server that shuts down gracefully is no trouble at all.
    let warnings = run.logged(&["WARN"]);
    double.end_watches();
    double.apply(web("api", 91));
    run.until("the update", |run| run.port("default/api") == Some(91)).await;
    assert_eq!(run.logged(&["WARN"]), warnings);
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_not_reopened_in_a_hurry() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    double.clear_requests();
    let limit = Instant::now() + Duration::from_millis(600);
    while Instant::now() < limit {
        double.end_watches();
        run.settle(Duration::from_millis(2)).await;
    }
    let requests = requests(&double, SERVICES).len();
    assert!((2..40).contains(&requests), "{requests} requests in 0.6 s");
    double.apply(web("api", 90));
    run.until("the new Service", |run| run.has("default/api")).await;
    assert!(run.deletions().is_empty());
}

#[tokio::test]
async fn a_storm_of_errors_is_sat_out() {
    for status in [500, 503, 429] {
        let double = shop();
        double.fail_next(usize::MAX, status);
        let mut run = start(&double);
        run.settle(WHILE).await;
        assert!(run.said.is_empty());
        let requests = double.requests().len();
        assert!((6..60).contains(&requests), "{requests} requests");
        double.fail_next(0, status);
        run.synced().await;
        assert_eq!(run.names(), ["default/web", "default/web-1", "node-1"]);
        assert_eq!(run.logged(&["WARN", "trouble", "kind=\"Service\"", &status.to_string()]), 1, "{}", run.log());
        assert_eq!(run.logged(&["INFO", "the trouble is over", "kind=\"Service\"", "lasted="]), 1, "{}", run.log());
    }
}

#[tokio::test]
async fn nothing_is_deleted_while_the_server_is_away() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    let said = run.said.len();
    double.stop_listening();
    run.settle(WHILE).await;
    double.resume_listening();
    double.fail_next(20, 500);
    run.until("the watches", |_| double.open_watches() == 4).await;
    run.settle(WHILE).await;
    assert_eq!(run.said.len(), said);
    assert_eq!(run.logged(&["WARN", "trouble"]), 4, "one for each kind: {}", run.log());
    assert_eq!(run.logged(&["the trouble is over"]), 4, "{}", run.log());
}

#[tokio::test]
async fn a_server_that_starts_later() {
    let double = shop();
    double.stop_listening();
    let mut run = start(&double);
    run.settle(WHILE).await;
    assert!(run.said.is_empty());
    double.resume_listening();
    run.synced().await;
    assert!(run.has("default/web"));
}

#[tokio::test]
async fn a_server_restored_from_a_backup_is_listed_again() {
    let double = shop();
    for n in 0..20 {
        double.apply(web(&format!("s{n}"), 80));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut run = start_from(double.kubeconfig(dir.path()));
    run.synced().await;
    // Another server whose counter is behind: the version we hold is from the future. The kubeconfig leads there.
    let restored = shop();
    restored.kubeconfig(dir.path());
    drop(double);
    run.until("the restored state", |run| run.names() == ["default/web", "default/web-1", "node-1"]).await;
}

#[tokio::test]
async fn a_stalled_server_is_given_up_and_asked_again() {
    let double = shop();
    double.stall(true);
    let mut run = start(&double);
    run.settle(Duration::from_millis(600)).await;
    double.stall(false);
    run.synced().await;
    assert_eq!(run.logged(&["WARN", "no answer within", "kind=\"Service\""]), 1, "{}", run.log());
    assert!(requests(&double, SERVICES).iter().all(|request| request.is_watch()), "still by streaming list");
}

#[tokio::test]
async fn a_stall_in_pages_is_no_verdict_on_streaming_lists() {
    let double = shop();
    double.streaming_lists(StreamingLists::Ignored);
    let mut run = start(&double);
    // The initial events fall silent, and when the pages are asked for, nobody answers.
    run.until("the initial events", |run| run.objects.len() == 3).await;
    double.stall(true);
    run.settle(Duration::from_millis(900)).await;
    double.clear_requests();
    double.streaming_lists(StreamingLists::Supported);
    double.stall(false);
    run.synced().await;
    assert!(requests(&double, SERVICES).iter().any(|request| request.param("sendInitialEvents") == Some("true")));
}

#[tokio::test]
async fn a_watch_gone_silent_is_reopened() {
    let double = shop();
    let timing = Timing { watch: Duration::from_secs(1), ..short() };
    let mut run = start_with(ApiConfig { master: Some(double.url()), timing, ..ApiConfig::default() });
    run.synced().await;
    run.until("the watches", |_| double.open_watches() == 4).await;
    double.freeze_watches();
    double.apply(web("api", 90));
    let asked = Instant::now();
    run.until("the new Service", |run| run.has("default/api")).await;
    assert!(asked.elapsed() > Duration::from_millis(500), "only after the watch was over");
    assert_eq!(run.logged(&["WARN", "fell silent", "kind=\"Service\""]), 1, "{}", run.log());
}

#[tokio::test]
async fn a_thin_line_is_enough() {
    let double = shop();
    double.trickle(Some((50, Duration::from_millis(5))));
    let mut run = start(&double);
    run.synced().await;
    double.apply(web("api", 90));
    run.until("the new Service", |run| run.has("default/api")).await;
    assert_eq!(run.logged(&["WARN"]), 0, "{}", run.log());
}

#[tokio::test]
async fn a_malformed_event_costs_a_listing() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    run.until("the watches", |_| double.open_watches() == 4).await;
    for line in ["<html>502 Bad Gateway</html>", r#"{"type":"ADDED","object":{"#, r#"{"type":"ADDED","object":{}}"#] {
        double.inject_line(SERVICES, line);
        run.settle(Duration::from_millis(200)).await;
        run.until("the watches", |_| double.open_watches() == 4).await;
    }
    double.apply(web("web", 81));
    run.until("the update", |run| run.port("default/web") == Some(81)).await;
    assert!(run.deletions().is_empty());
}

#[tokio::test]
async fn an_object_that_cannot_be_decoded_is_skipped_and_named_once() {
    for streaming in [StreamingLists::Supported, StreamingLists::Refused] {
        let double = shop();
        double.streaming_lists(streaming);
        let bad = |name: &str| {
            let mut object = web(name, 80);
            object["spec"]["ports"] = "many".into();
            object
        };
        double.apply(bad("bad"));
        let mut run = start(&double);
        run.synced().await;
        assert!(run.has("default/web") && !run.has("default/bad"));
        double.apply(bad("bad"));
        // A good object that goes bad keeps its last good content, over a listing, too.
        double.apply(bad("web"));
        double.apply(web("api", 90));
        run.until("the next event", |run| run.has("default/api")).await;
        double.stop_listening();
        double.compact();
        double.resume_listening();
        run.until("the watches", |_| double.open_watches() == 4).await;
        run.settle(WHILE).await;
        assert_eq!(run.port("default/web"), Some(80));
        for name in ["default/bad", "default/web"] {
            let object = format!("object={name} ");
            assert_eq!(run.logged(&["WARN", "cannot be decoded", "many", &object]), 1, "{}", run.log());
        }
        double.apply(web("bad", 82));
        run.until("the mended object", |run| run.port("default/bad") == Some(82)).await;
        double.delete(SERVICES, "default", "web");
        run.until("the deletion", |run| !run.has("default/web")).await;
    }
}

#[tokio::test]
async fn a_rotated_token_is_picked_up() {
    let double = shop();
    let dir = tempfile::tempdir().unwrap();
    double.require_token(Some("first"));
    let mut run = start_from(double.kubeconfig(dir.path()));
    run.synced().await;
    assert!(double.requests().iter().all(|request| request.token.as_deref() == Some("first")));
    let said = run.said.len();
    double.clear_requests();
    double.require_token(Some("second"));
    double.drop_watches();
    run.settle(WHILE).await;
    let refused = double.requests().len();
    assert!((3..40).contains(&refused), "{refused} requests");
    double.write_token(dir.path());
    double.apply(web("api", 90));
    run.until("the new Service", |run| run.has("default/api")).await;
    assert_eq!(run.said.len(), said + 1, "the watch went on where it was");
    assert_eq!(requests(&double, SERVICES).last().unwrap().token.as_deref(), Some("second"));
}

#[tokio::test]
async fn a_token_file_may_end_with_a_line_feed() {
    let double = shop();
    let dir = tempfile::tempdir().unwrap();
    double.require_token(Some("first"));
    let kubeconfig = double.kubeconfig(dir.path());
    std::fs::write(dir.path().join("token"), "first\n").unwrap();
    let mut run = start_from(kubeconfig);
    run.synced().await;
    double.require_token(Some("second"));
    std::fs::write(dir.path().join("token"), "second\n").unwrap();
    double.drop_watches();
    double.apply(web("api", 90));
    run.until("the new Service", |run| run.has("default/api")).await;
}

#[tokio::test]
async fn synced_is_said_once_per_kind_and_without_objects_too() {
    let double = ApiDouble::start();
    let mut run = start(&double);
    run.synced().await;
    double.compact();
    double.drop_watches();
    run.settle(WHILE).await;
    double.apply(node("node-1", &[]));
    run.until("our Node", |run| run.has("node-1")).await;
    let mut kinds = run.synced_kinds();
    kinds.sort();
    assert_eq!(kinds, [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCIDR]);
}

#[tokio::test]
async fn everything_listed_is_said_before_synced() {
    let double = ApiDouble::start();
    for n in 0..300 {
        double.apply(web(&format!("s{n}"), 80));
    }
    let mut run = start(&double);
    run.until("Services to be synced", |run| run.synced_kinds().contains(&Kind::Service)).await;
    assert_eq!(run.objects.len(), 300);
}

#[tokio::test]
async fn shutdown_is_prompt() {
    for stalled in [false, true] {
        let double = shop();
        double.stall(stalled);
        let mut run = start(&double);
        run.settle(Duration::from_millis(100)).await;
        run.shutdown.cancel();
        timeout(Duration::from_millis(500), &mut run.task).await.expect("a prompt end").unwrap();
        let limit = Instant::now() + Duration::from_secs(5);
        while double.open_watches() > 0 {
            assert!(Instant::now() < limit, "connections are left open");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn the_source_ends_with_its_receiver() {
    let double = shop();
    let mut run = start(&double);
    run.synced().await;
    timeout(Duration::from_secs(2), run.stop_listening()).await.expect("an end");
}

#[test]
fn a_configuration_that_leads_nowhere_is_refused_at_once() {
    let missing = ApiConfig { kubeconfig: Some("/nowhere/kubeconfig".into()), ..ApiConfig::default() };
    let error = ApiSource::new(missing).unwrap_err().to_string();
    assert!(error.contains("/nowhere/kubeconfig"), "{error}");
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        let error = ApiSource::new(ApiConfig::default()).unwrap_err().to_string();
        assert!(error.contains("--kubeconfig") && error.contains("--master"), "{error}");
    }
}

#[tokio::test]
async fn requests_are_limited_as_configured() {
    let double = shop();
    let begin = std::time::Instant::now();
    let rate = Some(Rate { per_second: 4.0, burst: 1 });
    let mut run = start_with(ApiConfig { master: Some(double.url()), timing: short(), rate, ..ApiConfig::default() });
    run.until("every kind to be asked for", |_| double.requests().len() >= 4).await;
    // One at once and three that had to wait for a quarter of a second each.
    assert!(begin.elapsed() >= Duration::from_millis(750), "{:?}", begin.elapsed());
    run.synced().await;
    assert_eq!(run.names(), ["default/web", "default/web-1", "node-1"]);
}

/// A proxy that tunnels: accepts CONNECT and passes bytes. Says on the channel what it was asked for.
async fn tunnels() -> (std::net::SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let mut server = tokio::net::TcpStream::connect(&target).await.unwrap();
                asked.send(head).unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    (address, heard)
}

#[tokio::test]
async fn the_proxy_of_a_kubeconfig_is_used() {
    let double = shop();
    let directory = tempfile::tempdir().unwrap();
    let path = double.kubeconfig(directory.path());
    let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let (proxy, mut heard) = tunnels().await;
    config["clusters"][0]["cluster"]["proxy-url"] = format!("http://me:secret@{proxy}").into();
    std::fs::write(&path, config.to_string()).unwrap();
    let mut run = start_from(path.clone());
    run.synced().await;
    assert_eq!(run.names(), ["default/web", "default/web-1", "node-1"]);
    let asked = heard.recv().await.unwrap();
    let server = double.url().replace("http://", "");
    assert!(asked.starts_with(&format!("CONNECT {server} HTTP/1.1\r\n")), "{asked}");
    assert!(asked.to_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0"), "{asked}");

    config["clusters"][0]["cluster"]["proxy-url"] = "https://me:secret@proxy.example".into();
    std::fs::write(&path, config.to_string()).unwrap();
    let error = ApiSource::new(ApiConfig { kubeconfig: Some(path), ..ApiConfig::default() }).unwrap_err().to_string();
    assert!(error.contains("clusters: proxy-url: \"https://proxy.example"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

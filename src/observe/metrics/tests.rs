//! A scrape, compared with the specification.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Name, type, labels and number of finite buckets, as written in the specification and not in the catalogue.
const SPECIFIED: &[(&str, &str, &[&str], usize)] = &[
    ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", &["ip_family"], 15),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", &["ip_family"], 15),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", &["ip_family"], 15),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", &["ip_family"], 0),
    ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", &["ip_family"], 0),
    ("kubeproxy_network_programming_duration_seconds", "histogram", &["ip_family"], 3 + 59 + 12 + 7),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", &[], 0),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", &[], 0),
    ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", &[], 0),
    ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", &[], 0),
    ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", &["ip_family", "traffic_policy"], 0),
    ("kubeproxy_proxy_healthz_total", "counter", &["code"], 0),
    ("kubeproxy_proxy_livez_total", "counter", &["code"], 0),
    ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", &["ip_family"], 0),
    ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter", &["ip_family"], 0),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", &["ip_family"], 15),
    ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", &["ip_family"], 0),
    ("pointsman_transaction_duration_seconds", "histogram", &[], 16),
    ("pointsman_transaction_bytes", "histogram", &[], 10),
    ("pointsman_programmed_elements_total", "counter", &[], 0),
    ("pointsman_userspace_fallbacks_total", "counter", &["reason"], 0),
    ("pointsman_table_disturbances_total", "counter", &["kind"], 0),
    ("pointsman_table_repaired_elements_total", "counter", &[], 0),
    ("pointsman_endpoint_overrides", "gauge", &["kind"], 0),
    ("pointsman_status_answer_duration_seconds", "histogram", &[], 16),
    ("pointsman_status_walks_total", "counter", &[], 0),
    ("pointsman_live_services", "gauge", &[], 0),
    ("pointsman_live_connections", "gauge", &[], 0),
    ("pointsman_conntrack_events_total", "counter", &[], 0),
    ("pointsman_conntrack_events_lost_total", "counter", &[], 0),
    ("pointsman_redeal_duration_seconds", "histogram", &[], 13),
    ("pointsman_redeal_slots_total", "counter", &[], 0),
    ("pointsman_userspace_services", "gauge", &["reason"], 0),
    ("pointsman_userspace_listeners", "gauge", &["state"], 0),
    ("pointsman_userspace_connections", "gauge", &["protocol"], 0),
    ("pointsman_userspace_connections_total", "counter", &["protocol"], 0),
    ("pointsman_userspace_refused_total", "counter", &["reason"], 0),
    ("pointsman_userspace_endpoint_failures_total", "counter", &["endpoint", "protocol"], 0),
    ("pointsman_userspace_bytes_total", "counter", &["direction", "protocol"], 0),
    ("rest_client_requests_total", "counter", &["code", "host", "method"], 0),
    ("rest_client_request_duration_seconds", "histogram", &["host", "verb"], 12),
    (
        "kubernetes_build_info",
        "gauge",
        &[
            "build_date",
            "compiler",
            "git_commit",
            "git_tree_state",
            "git_version",
            "go_version",
            "major",
            "minor",
            "platform",
        ],
        0,
    ),
    ("process_cpu_seconds_total", "counter", &[], 0),
    ("process_max_fds", "gauge", &[], 0),
    ("process_open_fds", "gauge", &[], 0),
    ("process_resident_memory_bytes", "gauge", &[], 0),
    ("process_start_time_seconds", "gauge", &[], 0),
    ("process_threads", "gauge", &[], 0),
    ("process_virtual_memory_bytes", "gauge", &[], 0),
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    kind: String,
    labels: BTreeSet<String>,
    buckets: Vec<String>,
}

fn scrape(text: &str) -> BTreeMap<String, Seen> {
    let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            current = name.to_owned();
            seen.entry(current.clone()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') {
            let (labels, first_series) = match line.split_once('{') {
                Some((_, rest)) => (rest.rsplit_once('}').expect("closed").0, true),
                None => ("", true),
            };
            let metric = seen.get_mut(&current).expect("a type comes first");
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (name, value) = label.split_once('=').expect("a label");
                match name {
                    "le" if first_series && !labels.contains("IPv6") => metric.buckets.push(value.replace('"', "")),
                    "le" => {}
                    name => drop(metric.labels.insert(name.to_owned())),
                }
            }
        }
    }
    seen
}

fn use_everything() {
    for family in Family::ALL {
        for kind in [SyncKind::Full, SyncKind::Partial] {
            sync_duration(family, kind, Duration::from_millis(3));
        }
        synced(family, Timestamp::UNIX_EPOCH + Duration::from_millis(1500));
        queued(family, Timestamp::UNIX_EPOCH);
        sync_failed(family);
        overrides(2, 1);
        answered(Duration::from_micros(70));
        cleanup_failed(family);
        network_programming(family, Duration::from_secs(61));
        for policy in [TrafficPolicy::Internal, TrafficPolicy::External] {
            no_local_endpoints(family, policy, 4);
        }
        conntrack_reconciled(family, Duration::from_secs(1), 5);
    }
    disturbed("changed");
    repaired(3);
    endpoint_changes(3);
    service_changes(2);
    changes_pending(6, 7);
    live(&Live { services: 2, connections: 30, events: 40, losses: 1 });
    live(&Live { services: 1, connections: 20, events: 5, losses: 0 });
    walked();
    redealt(Duration::from_micros(300), 12);
    probed(Probe::Healthz, 200);
    probed(Probe::Livez, 503);
    api_request("GET", "10.96.0.1:443", Some(200), Duration::from_millis(6));
    api_request("GET", "10.96.0.1:443", None, Duration::from_millis(6));
    transaction(Duration::from_micros(150), 700);
    programmed(5);
    fell_back("mode");
    userspace_services("mode", 3);
    userspace_listeners(2, 1);
    let failures = [(Some(([10, 1, 0, 1], 80).into()), 5)].into();
    let traffic = Traffic { accepted: 7, up: 9, failures, refused: vec![("unreachable", 4)], ..Traffic::default() };
    userspace_traffic("tcp", &traffic);
    userspace_traffic("tcp", &traffic);
    build(&Build::default());
}

#[test]
fn a_scrape_is_what_is_specified() {
    let (exposition, recorder) = Exposition::new();
    metrics::with_local_recorder(&recorder, use_everything);
    let text = exposition.render();
    let seen = scrape(&text);
    let names: Vec<_> = seen.keys().map(String::as_str).collect();
    let mut specified: Vec<_> = SPECIFIED.iter().map(|(name, ..)| *name).collect();
    specified.sort_unstable();
    assert_eq!(names, specified);
    for (name, kind, labels, buckets) in SPECIFIED {
        let metric = &seen[*name];
        assert_eq!(metric.kind, *kind, "{name}");
        assert_eq!(metric.labels.iter().map(String::as_str).collect::<Vec<_>>(), *labels, "{name}");
        let expected = if *kind == "histogram" { buckets + 1 } else { 0 };
        assert_eq!(metric.buckets.len(), expected, "{name}: {:?}", metric.buckets);
    }
    for value in [
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 2",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
        "kubeproxy_sync_proxy_rules_service_changes_total 2",
        "kubeproxy_sync_proxy_rules_service_changes_pending 6",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 7",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 4",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
        "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv6\"} 5",
        "pointsman_endpoint_overrides{kind=\"drain\"} 2",
        "pointsman_live_services 1",
        "pointsman_conntrack_events_total 45",
        "pointsman_conntrack_events_lost_total 1",
        "pointsman_redeal_duration_seconds_bucket{le=\"0.0002\"} 0",
        "pointsman_redeal_slots_total 12",
        "pointsman_userspace_services{reason=\"mode\"} 3",
        "pointsman_userspace_listeners{state=\"missing\"} 1",
        "pointsman_userspace_connections_total{protocol=\"tcp\"} 7",
        "pointsman_userspace_bytes_total{direction=\"up\",protocol=\"tcp\"} 9",
        "pointsman_userspace_endpoint_failures_total{endpoint=\"10.1.0.1:80\",protocol=\"tcp\"} 5",
        "pointsman_userspace_refused_total{reason=\"unreachable\"} 4",
        "rest_client_requests_total{code=\"<error>\",host=\"10.96.0.1:443\",method=\"GET\"} 1",
        "rest_client_request_duration_seconds_bucket{host=\"10.96.0.1:443\",verb=\"GET\",le=\"0.005\"} 0",
    ] {
        assert!(text.lines().any(|line| line == value), "{value} in\n{text}");
    }
}

#[test]
fn buckets_are_those_of_kube_proxy() {
    let (exposition, recorder) = Exposition::new();
    metrics::with_local_recorder(&recorder, use_everything);
    let seen = scrape(&exposition.render());
    let buckets = |name: &str| seen[name].buckets.join(" ");
    assert_eq!(
        buckets("kubeproxy_sync_proxy_rules_duration_seconds"),
        "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 +Inf"
    );
    let programming = buckets("kubeproxy_network_programming_duration_seconds");
    assert!(programming.starts_with("0 0.25 0.5 1 2 3 "), "{programming}");
    assert!(
        programming.ends_with(" 58 59 60 65 70 75 80 85 90 95 100 105 110 115 120 150 180 210 240 270 300 +Inf"),
        "{programming}"
    );
}

#[test]
fn metrics_with_labels_appear_after_their_first_use() {
    let (exposition, _recorder) = Exposition::new();
    let names: Vec<_> = scrape(&exposition.render()).into_keys().filter(|name| !name.starts_with("process_")).collect();
    assert_eq!(
        names,
        [
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "pointsman_conntrack_events_lost_total",
            "pointsman_conntrack_events_total",
            "pointsman_live_connections",
            "pointsman_live_services",
            "pointsman_programmed_elements_total",
            "pointsman_redeal_duration_seconds",
            "pointsman_redeal_slots_total",
            "pointsman_status_answer_duration_seconds",
            "pointsman_status_walks_total",
            "pointsman_table_repaired_elements_total",
            "pointsman_transaction_bytes",
            "pointsman_transaction_duration_seconds",
        ]
    );
}

#[test]
fn without_a_recorder_nothing_happens() {
    let (exposition, _recorder) = Exposition::new();
    metrics::with_local_recorder(&metrics::NoopRecorder, use_everything);
    assert_eq!(scrape(&exposition.render()).keys().filter(|name| name.starts_with("rest_")).count(), 0);
}

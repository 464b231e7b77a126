//! Tables for [`super::resolve`]: the verdict table (spec 4.5), frontends (4.2) and source ranges (4.2, 5.4).

use serde_json::{Value, json};

use super::*;
use crate::model::{Names, ServiceKey};
use crate::source::ObjectKey;

fn service(value: Value) -> Service {
    let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
    Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served")
}

fn slice(family: &str, ports: Value, endpoints: Value) -> Slice {
    let key = ObjectKey { namespace: "shop".into(), name: "web-1".into() };
    let value = json!({
        "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    });
    Slice::parse(&key, &serde_json::from_value(value).expect("decodes"), &mut Names::default()).0.expect("usable")
}

fn settings() -> Settings {
    Settings { node: "me".into(), ..Settings::default() }
}

fn resolved(service: &Service, slices: &[Slice], settings: &Settings, node: Option<&Node>) -> Vec<ResolvedPort> {
    let mut claims = Claims::default();
    claims.set(&service.key, service.created, wanted(service, settings));
    resolve(
        service,
        slices.iter(),
        Context {
            settings,
            node,
            claims: &claims,
            scheduler: Scheduler::Random,
            warming: None,
            assessment: None,
            overrides: &[],
        },
    )
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

fn decide(service: &Service, slices: &[Slice]) -> Vec<String> {
    let describe = |port: &ResolvedPort| {
        let frontends = port.frontends.iter().map(|(frontend, _)| frontend);
        format!("{} [{}] -> [{}]", port.key, list(frontends), list(port.cluster.iter().map(|one| one.endpoint)))
    };
    resolved(service, slices, &settings(), None).iter().map(describe).collect()
}

/// Upstream: TestBuildServiceMapAddRemove, TestEndpointsMapFromESC (ports by name), TestServiceToServiceMap (families).
#[test]
fn ports_match_by_name_and_protocol_across_slices() {
    let service = service(json!({"metadata": {}, "spec": {
        "clusterIPs": ["10.0.0.1", "fd00::1"],
        "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}],
    }}));
    let slices = [
        slice(
            "IPv4",
            json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]),
            json!([{"addresses": ["10.1.0.2"]}]),
        ),
        slice(
            "IPv4",
            json!([{"name": "http", "port": 9090}]),
            json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.2"]}]),
        ),
        slice("IPv6", json!([{"name": "dns-tcp", "port": 53}]), json!([{"addresses": ["fd00:1::1"]}])),
    ];
    insta::assert_snapshot!(decide(&service, &slices).join("\n"), @r"
    shop/web:http [TCP 10.0.0.1:80] -> [10.1.0.1:9090 10.1.0.2:8080 10.1.0.2:9090]
    shop/web:dns [UDP 10.0.0.1:53] -> [10.1.0.2:5353]
    shop/web:dns-tcp [TCP 10.0.0.1:53] -> []
    shop/web:http [TCP [fd00::1]:80] -> []
    shop/web:dns [UDP [fd00::1]:53] -> []
    shop/web:dns-tcp [TCP [fd00::1]:53] -> [[fd00:1::1]:53]
    ");
}

/// Spec 4.5, every cell. Upstream: TestInternalTrafficPolicy, TestTerminatingEndpointsTrafficPolicyLocal and ...Cluster,
/// TestNoEndpointsReject, TestExternalTrafficPolicyLocal and ...Cluster.
#[test]
fn the_verdict_table() {
    use Verdict::{Cluster, Discard, Local, Refuse};
    let here = json!({"addresses": ["10.1.0.1"], "nodeName": "me"});
    let there = json!({"addresses": ["10.1.0.2"], "nodeName": "other"});
    let leaving_here = json!({"addresses": ["10.1.0.3"], "nodeName": "me", "conditions": {"ready": false, "serving": true, "terminating": true}});
    let leaving_there = json!({"addresses": ["10.1.0.4"], "nodeName": "other", "conditions": {"ready": false, "serving": true, "terminating": true}});
    let dead = json!({"addresses": ["10.1.0.5"], "nodeName": "me", "conditions": {"ready": false, "serving": false, "terminating": true}});
    // iTP, eTP, endpoints, then (internal, outside, inside).
    let table = [
        ("Cluster", "Cluster", vec![], (Refuse, Refuse, Refuse)),
        ("Local", "Local", vec![], (Refuse, Refuse, Refuse)),
        ("Local", "Local", vec![&dead], (Refuse, Refuse, Refuse)),
        ("Cluster", "Cluster", vec![&here, &there], (Cluster, Cluster, Cluster)),
        ("Cluster", "Cluster", vec![&leaving_there], (Cluster, Cluster, Cluster)),
        ("Local", "Cluster", vec![&here, &there], (Local, Cluster, Cluster)),
        ("Local", "Cluster", vec![&there], (Discard, Cluster, Cluster)),
        ("Local", "Cluster", vec![&leaving_here, &there], (Local, Cluster, Cluster)),
        ("Cluster", "Local", vec![&here, &there], (Cluster, Local, Cluster)),
        ("Cluster", "Local", vec![&there], (Cluster, Discard, Cluster)),
        ("Cluster", "Local", vec![&leaving_there], (Cluster, Discard, Cluster)),
        ("Cluster", "Local", vec![&leaving_here, &there], (Cluster, Local, Cluster)),
        ("Local", "Local", vec![&here, &there], (Local, Local, Cluster)),
        ("Local", "Local", vec![&there], (Discard, Discard, Cluster)),
        ("Local", "Local", vec![&leaving_here], (Local, Local, Cluster)),
    ];
    for (internal, external, endpoints, want) in table {
        let service = service(json!({"metadata": {}, "spec": {
            "type": "NodePort", "clusterIP": "10.0.0.1", "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"port": 80, "nodePort": 30080}],
        }}));
        let slice = slice("IPv4", json!([{"name": "", "port": 80}]), json!(endpoints));
        let port = &resolved(&service, &[slice], &settings(), None)[0];
        assert_eq!((port.internal, port.outside, port.inside), want, "iTP {internal} eTP {external} {endpoints:?}");
        assert_eq!(port.keeps_source, external == "Local");
        // Sets are there exactly if something leads to them.
        let leads = |verdict| [port.internal, port.outside, port.inside].contains(&verdict);
        assert_eq!((port.cluster.is_empty(), port.local.is_empty()), (!leads(Cluster), !leads(Local)), "{port:?}");
    }
}

/// Spec 9. Upstream: TestNoEndpointsMetric.
#[test]
fn ports_whose_local_policy_finds_nobody_here() {
    let here = json!({"addresses": ["10.1.0.1"], "nodeName": "me"});
    let there = json!({"addresses": ["10.1.0.2"], "nodeName": "other"});
    let leaving_here = json!({"addresses": ["10.1.0.3"], "nodeName": "me", "conditions": {"ready": false, "serving": true, "terminating": true}});
    let dead = json!({"addresses": ["10.1.0.5"], "nodeName": "other", "conditions": {"ready": false, "serving": false, "terminating": true}});
    // type, iTP, eTP, endpoints, then (internal, external).
    let table = [
        ("NodePort", "Local", "Local", vec![&here, &there], [false, false]),
        ("NodePort", "Local", "Local", vec![&leaving_here, &there], [false, false]),
        ("NodePort", "Local", "Local", vec![&there], [true, true]),
        ("NodePort", "Local", "Cluster", vec![&there], [true, false]),
        ("NodePort", "Cluster", "Local", vec![&there], [false, true]),
        ("NodePort", "Cluster", "Cluster", vec![&there], [false, false]),
        ("NodePort", "Local", "Local", vec![&dead], [false, false]),
        ("NodePort", "Local", "Local", vec![], [false, false]),
        ("ClusterIP", "Local", "Local", vec![&there], [true, false]),
        ("ClusterIP", "Cluster", "Local", vec![&there], [false, false]),
    ];
    for (kind, internal, external, endpoints, want) in table {
        let node_port = if kind == "NodePort" { 30080 } else { 0 };
        let service = service(json!({"metadata": {}, "spec": {
            "type": kind, "clusterIP": "10.0.0.1", "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"port": 80, "nodePort": node_port}],
        }}));
        let slice = slice("IPv4", json!([{"name": "", "port": 80}]), json!(endpoints));
        let port = &resolved(&service, &[slice], &settings(), None)[0];
        assert_eq!(port.lacks_local(), want, "{kind} iTP {internal} eTP {external} {endpoints:?}");
    }
}

/// Upstream: TestCategorizeEndpoints ("externalTrafficPolicy ignored if not externally accessible").
#[test]
fn without_external_frontends_the_external_policy_does_not_matter() {
    let here = json!([{"addresses": ["10.1.0.2"], "nodeName": "other"}]);
    let slice = slice("IPv4", json!([{"name": "", "port": 80}]), here);
    let load_balancer = service(json!({"metadata": {}, "spec": {
        "type": "LoadBalancer", "clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "ports": [{"port": 80}]}}));
    let port = &resolved(&load_balancer, std::slice::from_ref(&slice), &settings(), None)[0];
    assert_eq!((port.internal, port.keeps_source, port.cluster.len()), (Verdict::Discard, false, 0));
    // A plain ClusterIP Service has no external policy, whatever it says; with external addresses it has.
    for (external_ips, keeps) in [(json!([]), false), (json!(["192.0.2.1"]), true)] {
        let plain = service(json!({"metadata": {}, "spec": {"clusterIP": "10.0.0.1", "externalTrafficPolicy": "Local",
            "externalIPs": external_ips, "ports": [{"port": 80}]}}));
        assert_eq!(resolved(&plain, std::slice::from_ref(&slice), &settings(), None)[0].keeps_source, keeps);
    }
}

/// Spec 4.2. Upstream: TestBadIPs, TestLoadBalancerIngressRouteTypeProxy, TestServiceToServiceMap (LB, padded addresses).
#[test]
fn every_kind_of_frontend_in_both_families() {
    let service = service(json!({"metadata": {}, "spec": {
        "type": "LoadBalancer", "clusterIPs": ["10.0.0.1", "fd00::1"], "ports": [{"port": 80, "nodePort": 30080}],
        "externalIPs": ["192.000.2.001", " ", "fd00:e::1", "nonsense", "198.51.100.1", "10.0.0.1"]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1"}, {"ip": "198.51.100.02", "ipMode": "VIP"}, {"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "lb"}, {"ip": ""},
        ]}},
    }));
    let describe = |port: &ResolvedPort| {
        let frontends = port.frontends.iter().map(|(frontend, role)| format!("{role:?} {frontend}"));
        format!("{}; node port {}", list(frontends), port.node_port.map_or(0, |node_port| node_port.port))
    };
    let lines = |settings: &Settings| {
        resolved(&service, &[], settings, None).iter().map(describe).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(lines(&settings()), @r"
    Cluster TCP 10.0.0.1:80 LoadBalancer TCP 198.51.100.1:80 LoadBalancer TCP 198.51.100.2:80 External TCP 192.0.2.1:80; node port 30080
    Cluster TCP [fd00::1]:80 External TCP [fd00:e::1]:80; node port 30080
    ");
    insta::assert_snapshot!(lines(&Settings { ignore_external_ips: true, ..settings() }), @r"
    Cluster TCP 10.0.0.1:80 LoadBalancer TCP 198.51.100.1:80 LoadBalancer TCP 198.51.100.2:80; node port 30080
    Cluster TCP [fd00::1]:80; node port 30080
    ");
}

/// Spec 4.2 and 5.4. Upstream: TestLoadBalancer (source ranges), TestServiceToServiceMap (padded source ranges).
#[test]
fn source_ranges_by_family_and_with_the_nodes_own_address() {
    let table = [
        (json!([]), "all", "all"),
        (json!([" 203.000.113.0/25"]), "203.0.113.0-203.0.113.127", "all"),
        (json!(["203.0.113.0/25", "0.0.0.0/0"]), "all", "all"),
        (json!(["fd00:5::/64"]), "all", "fd00:5::-fd00:5::ffff:ffff:ffff:ffff"),
        (json!(["203.0.113.0/25", "203.0.113.128/25"]), "203.0.113.0-203.0.113.255", "all"),
        (json!(["nonsense"]), "all", "all"),
        (json!(["192.168.0.7/32"]), "192.168.0.7 198.51.100.1", "all"),
        (
            json!(["192.168.0.0/24", "fd00:9::/64"]),
            "192.168.0.0-192.168.0.255 198.51.100.1",
            "fd00:9::-fd00:9::ffff:ffff:ffff:ffff fd00:b::1",
        ),
    ];
    let node =
        Node { addresses: vec!["192.168.0.7".parse().unwrap(), "fd00:9::7".parse().unwrap()], ..Node::default() };
    for (ranges, v4, v6) in table {
        let service =
            service(json!({"metadata": {}, "spec": {"type": "LoadBalancer", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ports": [{"port": 80}], "loadBalancerSourceRanges": ranges},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "fd00:b::1"}]}}}));
        let resolved = resolved(&service, &[], &settings(), Some(&node));
        let text = |port: &ResolvedPort| port.source_ranges.as_ref().map_or("all".to_owned(), list);
        assert_eq!((text(&resolved[0]).as_str(), text(&resolved[1]).as_str()), (v4, v6), "{ranges}");
    }
}

/// Spec 4.2. Upstream: TestBuildServiceMapServiceUpdate (health ports), TestBuildServiceMapAddRemove (health ports).
#[test]
fn health_checks_are_for_load_balancers_that_keep_the_source() {
    let table = [
        ("LoadBalancer", "Local", 30999, Some(30999)),
        ("LoadBalancer", "Cluster", 30999, None),
        ("NodePort", "Local", 30999, None),
        ("LoadBalancer", "Local", 0, None),
    ];
    let endpoints =
        json!([{"addresses": ["10.1.0.1"], "nodeName": "me"}, {"addresses": ["10.1.0.2"], "nodeName": "other"}]);
    let slice = slice("IPv4", json!([{"name": "", "port": 80}]), endpoints);
    for (kind, policy, port, want) in table {
        let service =
            service(json!({"metadata": {}, "spec": {"type": kind, "clusterIP": "10.0.0.1", "ports": [{"port": 80}],
            "externalTrafficPolicy": policy, "healthCheckNodePort": port}}));
        let health = HealthCheck::of(&service, [&slice].into_iter(), &settings());
        assert_eq!(health, want.map(|port| HealthCheck { port, local_v4: 1, local_v6: 0 }), "{kind} {policy} {port}");
    }
}

#[test]
fn what_another_service_has_is_left_out() {
    let service = service(json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "10.0.0.1",
        "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81}]}}));
    let settings = settings();
    let mut claims = Claims::default();
    claims.set(&service.key, service.created, wanted(&service, &settings));
    claims.set(&ServiceKey::new("shop", "older"), 7, wanted(&service, &settings).into_iter().take(2));
    let context = Context {
        settings: &settings,
        node: None,
        claims: &claims,
        scheduler: Scheduler::Random,
        warming: None,
        assessment: None,
        overrides: &[],
    };
    let resolved = resolve(&service, [].iter(), context);
    assert_eq!(resolved.len(), 1);
    assert_eq!(&*resolved[0].key.name, "b");
    let problems: Vec<_> = lost_frontends(&service, context).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(problems.join("\n"), @r#"
    Service shop/web: spec.ports: "TCP 10.0.0.1:80": already served for Service shop/older, which goes first (by kind of address, age, name); not served
    Service shop/web: spec.ports: "TCP node port 30080 (IPv4)": already served for Service shop/older, which goes first (by kind of address, age, name); not served
    "#);
}

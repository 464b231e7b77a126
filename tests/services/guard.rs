//! What has no Service behind it (spec 5.6), who is let through, and what listings show. Upstream: TestClusterIPGeneral (wrong port,
//! wrong protocol, unallocated address), TestNoEndpointsReject, TestOverallNFTablesRules.

use pointsman::policy::Settings;
use pointsman::source::Kind;
use serde_json::json;

use crate::bed::{At, Bed, State, service, service_networks, slices, with_node_port};

const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const EXTERNAL: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const UNALLOCATED: [&str; 2] = ["10.96.9.9", "fd00:96::9:9"];

fn bed() -> Bed {
    let mut bed = Bed::new(Settings::default());
    let mut objects = slices(&bed.lab, "web", &[At("web-1", true, State::Ready)]);
    objects.push(service("web", &CLUSTER, json!({"externalIPs": EXTERNAL}), &[]));
    objects.push(service_networks("kubernetes", &["10.96.0.0/16", "fd00:96::/112"]));
    bed.apply(objects);
    bed
}

#[test]
fn a_wrong_port_or_protocol_of_a_cluster_address_is_refused_at_once() {
    let bed = bed();
    for cluster in CLUSTER {
        for host in [bed.client(), bed.pod("web-2"), bed.node()] {
            assert!(bed.tcp(host, cluster, 80).starts_with("web-1"), "{} to {cluster}", host.role());
            assert_eq!(bed.tcp(host, cluster, 81), "refused", "{} to {cluster}, tcp", host.role());
            let refused = if host.role() == "node" { "barred" } else { "refused" };
            assert_eq!(bed.udp(host, cluster, 81), refused, "{} to {cluster}, udp", host.role());
        }
    }
}

#[test]
fn ping_to_a_cluster_address_is_answered_by_port_unreachable() {
    let bed = bed();
    for cluster in CLUSTER {
        assert_eq!(bed.ping(bed.client(), cluster), "refused");
    }
    for silent in UNALLOCATED {
        assert_eq!(bed.ping(bed.client(), silent), "dropped");
    }
}

#[test]
fn addresses_that_no_service_has_are_dropped_as_the_networks_change() {
    let mut bed = bed();
    let refused_elsewhere = |bed: &Bed, to: &str| bed.tcp(bed.pod("web-2"), to, 80);
    for (unallocated, host) in UNALLOCATED.into_iter().flat_map(|to| ["client", "pod"].map(|host| (to, host))) {
        let host = if host == "client" { bed.client() } else { bed.pod("web-2") };
        assert_eq!(bed.tcp(host, unallocated, 80), "dropped");
        assert_eq!(bed.udp(host, unallocated, 80), "dropped");
    }
    // The host's own: nothing leaves it.
    assert_eq!(bed.tcp(bed.node(), UNALLOCATED[0], 80), "dropped");
    // A second network counts at once, and so does its end. Pings show it: what is not dropped is routed to the first client.
    assert!(bed.listing().contains("10.96.0.0/16"), "{}", bed.listing());
    bed.apply([service_networks("more", &["10.97.0.0/16"])]);
    assert!(bed.listing().contains("10.96.0.0/15"), "{}", bed.listing());
    assert_eq!(refused_elsewhere(&bed, "10.97.0.1"), "dropped");
    bed.delete(Kind::ServiceCIDR, "more");
    bed.delete(Kind::ServiceCIDR, "kubernetes");
    assert!(!bed.listing().contains("10.96.0.0/1"), "{}", bed.listing());
    assert!(bed.tcp(bed.client(), CLUSTER[0], 80).starts_with("web-1"), "what is allocated is served anyway");
}

/// "LB VIPs/externalIPs get no such guard: undefined ports are simply routed."
#[test]
fn external_addresses_have_no_guard() {
    let mut bed = bed();
    // Routed to a pod that has the address, of all things: whoever gets the packet answers.
    let (address, pod) = ("192.0.2.10", "web-3");
    let mut node = bed.node().namespace().rtnl().expect("a routing socket");
    let to = address.parse().expect("an address");
    node.add_route(pointsman::lab::Route { to: (to, 32), via: None, link: pod }).expect("a route");
    let mut inside = bed.pod(pod).namespace().rtnl().expect("a routing socket");
    inside.add_address("eth0", to, 32).expect("an address");
    assert_eq!(bed.tcp(bed.client(), address, 8080), "web-3 192.168.50.2", "not ours, not touched");
    assert!(bed.tcp(bed.client(), address, 80).starts_with("web-1"));
    bed.delete(Kind::Service, "web");
    assert_eq!(bed.tcp(bed.client(), "192.0.2.10", 8080), "web-3 192.168.50.2");
}

#[test]
fn without_endpoints_every_frontend_refuses_everyone() {
    let mut bed = bed();
    let extra = json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.20"], "ports": with_node_port(30080)});
    bed.apply([service("none", &["10.96.0.20", "fd00:96::20"], extra, &["198.51.100.20"])]);
    for host in [bed.client(), bed.pod("web-2"), bed.node()] {
        for (to, port) in [
            ("10.96.0.20", 80),
            ("fd00:96::20", 80),
            ("192.0.2.20", 80),
            ("198.51.100.20", 80),
            ("192.168.50.1", 30080),
        ] {
            assert_eq!(bed.tcp(host, to, port), "refused", "{} to {to}, tcp", host.role());
            let refused = if host.role() == "node" { "barred" } else { "refused" };
            assert_eq!(bed.udp(host, to, port), refused, "{} to {to}, udp", host.role());
        }
    }
}

/// A node-local DNS cache borrows a cluster address: what reaches the host itself is not for us to refuse.
#[test]
fn a_cluster_address_that_the_host_has_borrowed_is_spared() {
    let bed = bed();
    let mut links = bed.node().namespace().rtnl().expect("a routing socket");
    links.add_address("lo", CLUSTER[0].parse().expect("an address"), 32).expect("an address");
    assert_eq!(bed.ping(bed.client(), CLUSTER[0]), "answered");
    assert!(bed.tcp(bed.client(), CLUSTER[0], 80).starts_with("web-1"), "its Service ports are still ours");
}

/// Everything at once, as an operator sees it. The listing is a golden file: what it says is what `layout` promises.
#[test]
fn a_listing_reads_like_the_layout() {
    let mut bed = Bed::new(Settings {
        detect_local: pointsman::policy::DetectLocal::Networks(vec!["10.244.0.0/16".parse().unwrap()]),
        ..Settings::default()
    });
    let ready = |pod, here| At(pod, here, State::Ready);
    let mut objects = slices(&bed.lab, "web", &[ready("web-1", true), ready("web-2", false)]);
    objects.extend(slices(&bed.lab, "cart", &[ready("web-3", true)]));
    let extra = json!({
        "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"name": "tcp", "port": 80, "nodePort": 30080}],
        "loadBalancerSourceRanges": ["203.0.113.0/24"], "healthCheckNodePort": 31000,
    });
    objects.push(service("web", &["10.96.0.10"], extra, &["198.51.100.10"]));
    let sticky = json!({"sessionAffinity": "ClientIP", "ports": [{"name": "tcp", "port": 80}]});
    objects.push(service("cart", &["10.96.0.11"], sticky, &[]));
    objects.push(service("none", &["10.96.0.12"], json!({"ports": [{"port": 80}]}), &[]));
    objects.push(service_networks("kubernetes", &["10.96.0.0/16"]));
    bed.apply(objects);
    let listing = bed.listing();
    let table = listing.split("table ip6 ").next().expect("the ip table");
    insta::assert_snapshot!(in_order(table));
}

/// A listing without what differs from one run to the next: who owns the table, and the order of elements in a hash.
fn in_order(listing: &str) -> String {
    let mut text = String::new();
    let mut rest = listing;
    while let Some((before, behind)) = rest.split_once("elements = {") {
        let (elements, after) = behind.split_once('}').expect("a closing brace");
        let mut elements: Vec<_> = elements.split(',').map(str::trim).collect();
        elements.sort_unstable();
        text.push_str(before);
        text.push_str("elements = {\n");
        elements.iter().for_each(|element| text.push_str(&format!("\t\t\t{element}\n")));
        text.push_str("\t\t}");
        rest = after;
    }
    text.push_str(rest);
    // Of the lines at a table's head: the flags, which it has where it can be owned, and the empty line behind them.
    let depends = |line: &&str| !line.is_empty() && !line.starts_with("\tflags ");
    let head = text.lines().take_while(|line| !line.starts_with("\tmap ")).filter(depends);
    let body = text.lines().skip_while(|line| !line.starts_with("\tmap "));
    let lines = head.chain(body).map(|line| line.split(" # progname").next().unwrap_or_default().replace('\t', "  "));
    lines.collect::<Vec<_>>().join("\n")
}

//! `loadBalancerSourceRanges` (spec 4.2, 5.3 to 5.5). Upstream: TestLoadBalancer, TestLoadBalancerIngressRouteTypeProxy.

use pointsman::policy::Settings;
use serde_json::{Value, json};

use crate::bed::{At, Bed, State, node, service, slices, with_node_port};

const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const BALANCER: [&str; 2] = ["198.51.100.10", "2001:db8:b::10"];
const NODE: [&str; 2] = ["192.168.50.1", "fd00:50::1"];

fn ranged(ranges: &[&str], more: Value) -> Value {
    let mut extra = json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ranges, "ports": with_node_port(30080), "healthCheckNodePort": 31000});
    for (key, value) in more.as_object().expect("an object") {
        extra[key] = value.clone();
    }
    service("web", &CLUSTER, extra, &BALANCER)
}

fn bed(ranges: &[&str]) -> Bed {
    let mut bed = Bed::new(Settings::default());
    let mut objects = slices(&bed.lab, "web", &[At("web-1", true, State::Ready)]);
    objects.push(ranged(ranges, json!({})));
    bed.apply(objects);
    bed
}

/// Whether both clients, a pod and the node itself are let in, in IPv4 and IPv6.
fn admitted(bed: &Bed) -> [[bool; 4]; 2] {
    BALANCER.map(|to| {
        [bed.lab.client(0), bed.lab.client(1), bed.pod("web-2"), bed.node()].map(|host| {
            let answers = [bed.tcp(host, to, 80), bed.udp(host, to, 80)];
            let admitted = answers[0].starts_with("web-1");
            let dropped = if host.role() == "node" { "barred" } else { "dropped" };
            let want = if admitted { ["web-1", "web-1"] } else { ["dropped", dropped] };
            let as_wanted = answers.iter().zip(want).all(|(answer, want)| answer.starts_with(want));
            assert!(as_wanted, "{} to {to}: {answers:?}", host.role());
            admitted
        })
    })
}

#[test]
fn only_the_named_clients_reach_the_load_balancer_and_all_others_everything_else() {
    let bed = bed(&["192.168.50.2/32", "fd00:50::3/128"]);
    assert_eq!(admitted(&bed), [[true, false, false, false], [false, true, false, false]]);
    for host in [bed.lab.client(0), bed.lab.client(1), bed.pod("web-2"), bed.node()] {
        for family in [0, 1] {
            assert!(bed.tcp(host, CLUSTER[family], 80).starts_with("web-1"), "cluster address");
            assert!(bed.tcp(host, NODE[family], 30080).starts_with("web-1"), "node port");
        }
    }
}

#[test]
fn ranges_change_in_place() {
    let mut bed = bed(&[]);
    let everyone = [true; 4];
    let nobody = [false; 4];
    assert_eq!(admitted(&bed), [everyone, everyone]);
    let steps: [(&[&str], [[bool; 4]; 2]); 6] = [
        (&["192.168.50.2/32"], [[true, false, false, false], everyone]),
        // Ranges that overlap, touch, contain what was there, and shrink again.
        (&["192.168.50.0/24", "192.168.50.2/31", "192.168.51.0/24"], [[true, true, false, true], everyone]),
        (&["192.168.50.3/32", "10.244.0.0/16"], [[false, true, true, false], everyone]),
        (&["203.0.113.0/24", "2001:db8:5::/64"], [nobody, nobody]),
        // "if any is a /0 the whole list is treated as empty"
        (&["203.0.113.0/24", "0.0.0.0/0", "2001:db8:5::/64"], [everyone, nobody]),
        (&[], [everyone, everyone]),
    ];
    for (ranges, want) in steps {
        bed.apply([ranged(ranges, json!({}))]);
        assert_eq!(admitted(&bed), want, "{ranges:?}");
        assert_eq!(bed.restart(), 0, "{ranges:?}");
    }
}

/// A source range is checked before it is known whether anyone could serve (5.4: independent of endpoints).
#[test]
fn without_endpoints_the_others_are_dropped_and_the_named_refused() {
    let mut bed = bed(&["192.168.50.2/32"]);
    bed.apply(slices(&bed.lab, "web", &[]));
    assert_eq!(bed.tcp(bed.lab.client(0), BALANCER[0], 80), "refused");
    assert_eq!(bed.tcp(bed.lab.client(1), BALANCER[0], 80), "dropped");
    assert_eq!(bed.tcp(bed.lab.client(1), NODE[0], 30080), "refused");
}

/// 5.4: a range that covers the node lets in what bears the load balancer's own address, as the node's packets do where that
/// address is bound to the node.
#[test]
fn the_nodes_own_connections_are_let_in_with_the_node() {
    let mut bed = bed(&["192.168.50.1/32"]);
    let mut links = bed.node().namespace().rtnl().expect("a routing socket");
    links.add_address("lo", BALANCER[0].parse().expect("an address"), 32).expect("an address");
    let answer = bed.tcp(bed.node(), BALANCER[0], 80);
    assert!(answer.starts_with("web-1"), "from its own address to itself: {answer}");
    assert_eq!(bed.tcp(bed.client(), BALANCER[0], 80), "dropped");
    // The node moves, and the range covers it no more.
    bed.apply([node(&["192.168.50.9", "fd00:50::1"])]);
    assert_eq!(bed.tcp(bed.node(), BALANCER[0], 80), "dropped");
}

#[test]
fn ranges_local_policy_and_affinity_together() {
    let mut bed = bed(&["192.168.50.2/32"]);
    let both = [At("web-1", true, State::Ready), At("web-3", false, State::Ready)];
    bed.apply(slices(&bed.lab, "web", &both));
    let extra = json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"});
    bed.apply([ranged(&["192.168.50.0/30"], extra)]);
    assert_eq!(bed.answering(bed.lab.client(0), BALANCER[0], 80), "web-1");
    assert_eq!(bed.tcp(bed.lab.client(0), BALANCER[0], 80), "web-1 192.168.50.2", "its source stays");
    assert_eq!(bed.tcp(bed.pod("web-2"), BALANCER[0], 80), "dropped");
    assert!(!bed.answering(bed.node(), BALANCER[0], 80).contains(' '), "the node is in the range, and stays with one");
    assert_eq!(bed.restart(), 0);
}

/// An address whose balancer works as a proxy is not ours.
#[test]
fn load_balancers_of_mode_proxy_are_left_alone() {
    let mut bed = bed(&[]);
    let mut object = ranged(&[], json!({}));
    for (mode, served) in [("Proxy", false), ("VIP", true)] {
        object["status"]["loadBalancer"]["ingress"] = json!([{"ip": BALANCER[0], "ipMode": mode}]);
        bed.apply([object.clone()]);
        assert_eq!(bed.listing().contains(BALANCER[0]), served, "{mode}");
    }
}

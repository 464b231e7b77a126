//! Traffic policies (spec 4.4, 4.5, 5.4, 5.5), packet by packet. Upstream: TestInternalTrafficPolicy, TestExternalTrafficPolicyLocal,
//! TestExternalTrafficPolicyCluster, TestTerminatingEndpointsTrafficPolicyLocal and ...Cluster.

use pointsman::policy::{DetectLocal, Settings};
use pointsman::source::Kind;
use serde_json::json;

use crate::bed::{At, Bed, State, service, slices, with_node_port};

const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const EXTERNAL: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const BALANCER: [&str; 2] = ["198.51.100.10", "2001:db8:b::10"];
const NODE: [&str; 2] = ["192.168.50.1", "fd00:50::1"];

/// `10.244.0.4` and its like, `web-3`, stands for a client that is no pod of this node where the detector says so.
fn bed(internal: &str, external: &str, detect: bool) -> Bed {
    let networks = || vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()];
    let detect_local = if detect { DetectLocal::Networks(networks()) } else { DetectLocal::Unknown };
    let mut bed = Bed::new(Settings { detect_local, ..Settings::default() });
    let extra = json!({
        "type": "LoadBalancer", "internalTrafficPolicy": internal, "externalTrafficPolicy": external, "externalIPs": EXTERNAL,
        "ports": with_node_port(30080), "healthCheckNodePort": 31000,
    });
    bed.apply([service("web", &CLUSTER, extra, &BALANCER)]);
    bed
}

/// Who answers at the cluster address, and at every external frontend alike.
fn answers(bed: &Bed, host: &str) -> [String; 2] {
    let host = match host {
        "client" => bed.client(),
        "node" => bed.node(),
        pod => bed.pod(pod),
    };
    let per_family = [0, 1].map(|family| {
        let internal = bed.answering(host, CLUSTER[family], 80);
        let external = bed.answering(host, EXTERNAL[family], 80);
        assert_eq!(bed.answering(host, BALANCER[family], 80), external, "{} to a load balancer", host.role());
        assert_eq!(bed.answering(host, NODE[family], 30080), external, "{} to a node port", host.role());
        [internal, external]
    });
    assert_eq!(per_family[0], per_family[1], "both families");
    per_family[0].clone()
}

/// The verdict table, and the selection behind it: endpoints, then who answers (inside, outside) by policy.
#[test]
fn verdicts_as_packets_meet_them() {
    use State::{Dead, Leaving, Ready};
    // Policies, endpoints, then cluster address and external frontends for a client from outside; external for the node itself.
    let table: &[(&str, &str, &[At], [&str; 3])] = &[
        (
            "Cluster",
            "Cluster",
            &[At("web-1", true, Ready), At("web-2", false, Ready)],
            ["web-1 web-2", "web-1 web-2", "web-1 web-2"],
        ),
        (
            "Cluster",
            "Local",
            &[At("web-1", true, Ready), At("web-2", false, Ready)],
            ["web-1 web-2", "web-1", "web-1 web-2"],
        ),
        (
            "Local",
            "Cluster",
            &[At("web-1", true, Ready), At("web-2", false, Ready)],
            ["web-1", "web-1 web-2", "web-1 web-2"],
        ),
        ("Local", "Local", &[At("web-2", false, Ready)], ["dropped", "dropped", "web-2"]),
        ("Local", "Local", &[At("web-1", true, Leaving), At("web-2", false, Ready)], ["web-1", "web-1", "web-2"]),
        (
            "Cluster",
            "Cluster",
            &[At("web-1", true, Leaving), At("web-2", false, Leaving)],
            ["web-1 web-2", "web-1 web-2", "web-1 web-2"],
        ),
        ("Cluster", "Cluster", &[At("web-1", true, Leaving), At("web-2", false, Ready)], ["web-2", "web-2", "web-2"]),
        ("Cluster", "Local", &[At("web-2", false, Leaving)], ["web-2", "dropped", "web-2"]),
        ("Local", "Local", &[At("web-1", true, Dead)], ["refused", "refused", "refused"]),
        ("Local", "Local", &[], ["refused", "refused", "refused"]),
    ];
    for (internal, external, endpoints, want) in table {
        let mut bed = bed(internal, external, true);
        bed.apply(slices(&bed.lab, "web", endpoints));
        let shown: Vec<_> = endpoints.iter().map(|at| at.0).collect();
        let outside = answers(&bed, "client");
        let inside = answers(&bed, "node");
        assert_eq!(outside, [want[0], want[1]], "iTP {internal} eTP {external} {shown:?}, from outside");
        assert_eq!(inside[1], want[2], "iTP {internal} eTP {external} {shown:?}, from the node");
    }
}

/// The short-circuit of 5.4: a local pod and the node itself use all endpoints, even when none is here.
#[test]
fn external_policy_local_spares_local_pods_if_they_can_be_told() {
    for (detect, pod_gets) in [(true, "web-1 web-2"), (false, "web-1")] {
        let mut bed = bed("Cluster", "Local", detect);
        bed.apply(slices(&bed.lab, "web", &[At("web-1", true, State::Ready), At("web-2", false, State::Ready)]));
        assert_eq!(answers(&bed, "web-3")[1], pod_gets, "detector: {detect}");
        assert_eq!(answers(&bed, "node")[1], "web-1 web-2", "the node itself needs no detector");
        assert_eq!(answers(&bed, "client")[1], "web-1");
        bed.apply(slices(&bed.lab, "web", &[At("web-2", false, State::Ready)]));
        assert_eq!(answers(&bed, "web-3")[1], if detect { "web-2" } else { "dropped" }, "detector: {detect}");
        assert_eq!(answers(&bed, "node")[1], "web-2");
        assert_eq!(answers(&bed, "client")[1], "dropped");
    }
}

/// Upstream: TestInternalTrafficPolicy ("after deletion REJECT"), TestBuildServiceMapServiceUpdate (type flips).
#[test]
fn policies_and_types_change_in_place_and_restarts_change_nothing() {
    let mut bed = bed("Cluster", "Cluster", true);
    bed.apply(slices(&bed.lab, "web", &[At("web-1", true, State::Ready), At("web-2", false, State::Ready)]));
    assert_eq!(answers(&bed, "client"), ["web-1 web-2", "web-1 web-2"]);
    assert_eq!(bed.restart(), 0);
    let extra = json!({
        "type": "LoadBalancer", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "externalIPs": EXTERNAL,
        "ports": with_node_port(30080), "healthCheckNodePort": 31000,
    });
    bed.apply([service("web", &CLUSTER, extra, &BALANCER)]);
    assert_eq!(answers(&bed, "client"), ["web-1", "web-1"]);
    assert_eq!(bed.restart(), 0);
    bed.apply([service("web", &CLUSTER, json!({}), &[])]);
    assert_eq!(bed.answering(bed.client(), CLUSTER[0], 80), "web-1 web-2");
    assert_eq!(bed.tcp(bed.client(), NODE[0], 30080), "refused", "no node port any more");
    bed.apply(slices(&bed.lab, "web", &[]));
    assert_eq!(bed.tcp(bed.client(), CLUSTER[0], 80), "refused");
    bed.delete(Kind::Service, "web");
    for name in ["web-IPv4", "web-IPv6"] {
        bed.delete(Kind::EndpointSlice, name);
    }
    let listing = bed.listing();
    assert!(!listing.contains("shop/") && !listing.contains("10.96."), "nothing of it is left: {listing}");
}

/// Upstream: established flows are untouched by rule updates (spec 5.6).
#[test]
fn established_connections_survive_every_update() {
    use std::io::{Read, Write};
    let mut bed = bed("Cluster", "Cluster", true);
    bed.apply(slices(&bed.lab, "web", &[At("web-1", true, State::Ready)]));
    let mut streams: Vec<_> = [(CLUSTER[0], 80), (BALANCER[0], 80), (NODE[0], 30080), (CLUSTER[1], 80)]
        .into_iter()
        .map(|(address, port)| {
            let to = std::net::SocketAddr::new(crate::bed::address(address), port);
            bed.client().run(|| std::net::TcpStream::connect(to)).expect("a connection")
        })
        .collect();
    let mut echo = |what: &str| {
        for stream in &mut streams {
            stream.set_read_timeout(Some(std::time::Duration::from_secs(3))).expect("a timeout");
            stream.write_all(what.as_bytes()).expect("sent");
            let mut heard = Vec::new();
            while !String::from_utf8_lossy(&heard).ends_with(what) {
                let mut buffer = [0; 256];
                let more = stream.read(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_ne!(more, 0, "{what}");
                heard.extend_from_slice(&buffer[..more]);
            }
        }
    };
    echo("begin");
    bed.apply(slices(&bed.lab, "web", &[At("web-2", false, State::Ready)]));
    echo("other endpoints");
    let extra =
        json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/24"], "ports": with_node_port(30080)});
    bed.apply([service("web", &CLUSTER, extra, &BALANCER)]);
    assert_eq!(bed.tcp(bed.client(), BALANCER[0], 80), "dropped", "new ones are not admitted");
    echo("source ranges");
    bed.replace();
    echo("new tables");
    assert_eq!(bed.restart(), 0);
    bed.delete(Kind::Service, "web");
    echo("no Service");
}

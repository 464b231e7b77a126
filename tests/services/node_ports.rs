//! On which addresses node ports are served (spec 3, 5.3, 5.6). Upstream: TestNodePorts.

use pointsman::policy::{NodePortAddresses, Settings};
use serde_json::json;

use crate::bed::{At, Bed, State, node, service, slices, with_node_port};

/// The node has these, too.
const SECOND: [&str; 2] = ["172.31.0.1", "fd00:31::1"];
const FIRST: [&str; 2] = ["192.168.50.1", "fd00:50::1"];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

fn bed(node_port_addresses: NodePortAddresses) -> Bed {
    let mut bed = Bed::new(Settings { node_port_addresses, ..Settings::default() });
    let mut links = bed.node().namespace().rtnl().expect("a routing socket");
    links.add_address("lo", SECOND[0].parse().expect("an address"), 32).expect("an address");
    links.add_address("lo", SECOND[1].parse().expect("an address"), 128).expect("an address");
    let mut objects = slices(&bed.lab, "web", &[At("web-1", true, State::Ready)]);
    let extra = json!({"type": "NodePort", "ports": with_node_port(30080)});
    objects.push(service("web", &["10.96.0.10", "fd00:96::10"], extra, &[]));
    bed.apply(objects);
    bed
}

/// Everyone but the host itself, and the host: served or refused as by a closed port.
fn check(bed: &Bed, address: &str, served: bool) {
    for host in [bed.client(), bed.pod("web-2"), bed.node()] {
        for answer in [bed.tcp(host, address, 30080), bed.udp(host, address, 30080)] {
            let want = if served { "web-1" } else { "refused" };
            assert!(answer.starts_with(want), "{} to {address}: {answer}, not {want}", host.role());
        }
    }
}

fn never_on_loopback(bed: &Bed) {
    for loopback in LOOPBACK {
        assert_eq!(bed.tcp(bed.node(), loopback, 30080), "refused");
        assert_eq!(bed.udp(bed.node(), loopback, 30080), "refused");
    }
}

#[test]
fn on_the_primary_addresses_and_live_as_they_change() {
    let mut bed = bed(NodePortAddresses::Primary);
    for family in [0, 1] {
        check(&bed, FIRST[family], true);
        check(&bed, SECOND[family], false);
    }
    never_on_loopback(&bed);
    bed.apply([node(&SECOND)]);
    for family in [0, 1] {
        check(&bed, FIRST[family], false);
        check(&bed, SECOND[family], true);
    }
    // "primary on a v4-only node leaves v6 node ports open on all v6 addresses"
    bed.apply([node(&FIRST[..1])]);
    check(&bed, SECOND[0], false);
    check(&bed, FIRST[0], true);
    check(&bed, FIRST[1], true);
    check(&bed, SECOND[1], true);
    never_on_loopback(&bed);
}

#[test]
fn on_all_addresses_but_loopback() {
    let bed = bed(NodePortAddresses::All);
    for address in FIRST.into_iter().chain(SECOND) {
        check(&bed, address, true);
    }
    never_on_loopback(&bed);
    // An address that comes later is served at once: nobody has to notice.
    let mut links = bed.node().namespace().rtnl().expect("a routing socket");
    links.add_address("lo", "172.31.0.2".parse().expect("an address"), 32).expect("an address");
    check(&bed, "172.31.0.2", true);
    // What is not the host's own passes.
    assert_eq!(bed.tcp(bed.client(), "10.244.0.3", 30080), "refused");
}

#[test]
fn on_the_networks_that_are_named() {
    let networks = ["172.31.0.0/16", "127.0.0.0/8", "fd00:31::/64"].map(|text| text.parse().expect("a network"));
    let bed = bed(NodePortAddresses::Networks(networks.to_vec()));
    for family in [0, 1] {
        check(&bed, FIRST[family], false);
        check(&bed, SECOND[family], true);
    }
    never_on_loopback(&bed);
}

#[test]
fn a_node_port_is_shared_by_nobody_and_goes_with_its_service() {
    let mut bed = bed(NodePortAddresses::Primary);
    let mut objects = slices(&bed.lab, "late", &[At("web-3", true, State::Ready)]);
    let extra = json!({"type": "NodePort", "ports": with_node_port(30080)});
    objects.push(service("zz-late", &["10.96.0.11"], extra, &[]));
    bed.apply(objects);
    check(&bed, FIRST[0], true);
    bed.delete(pointsman::source::Kind::Service, "web");
    assert_eq!(bed.tcp(bed.client(), FIRST[0], 30080), "refused", "the next in line has it, and no endpoints");
    bed.delete(pointsman::source::Kind::Service, "zz-late");
    check(&bed, FIRST[0], false);
}

//! Whose source is hidden (spec 5.5), for every way of telling local pods. Upstream: TestInternalExternalMasquerade,
//! TestClusterIPGeneral (hairpin), TestExternalTrafficPolicyCluster and ...Local.

use pointsman::policy::{DetectLocal, NodePortAddresses, Settings};
use serde_json::json;

use crate::bed::{At, Bed, HIDDEN, State, service, slices, with_node_port};

const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const EXTERNAL: [&str; 2] = ["192.0.2.10", "2001:db8::10"];
const BALANCER: [&str; 2] = ["198.51.100.10", "2001:db8:b::10"];
const NODE: [&str; 2] = ["192.168.50.1", "fd00:50::1"];

/// What a pod sees of its client.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// The client's own address.
    Source,
    /// An address of the node.
    Hidden,
}

use Seen::{Hidden, Source};

/// The rows of the table: who asks. Columns: to the cluster address, to external frontends with policy Cluster, with Local.
struct Table {
    pod: [Seen; 3],
    host: [Seen; 3],
    outside: [Seen; 3],
}

fn networks() -> DetectLocal {
    DetectLocal::Networks(vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/48".parse().unwrap()])
}

/// Two Services with one endpoint on this node, `web-1`: `open` with external policy Cluster, `strict` with Local.
fn bed(settings: Settings) -> Bed {
    let mut bed = Bed::new(settings);
    for (number, (name, policy)) in [("open", "Cluster"), ("strict", "Local")].into_iter().enumerate() {
        let plus = |address: &str| format!("{address}{number}");
        let of = |list: [&str; 2]| list.map(plus);
        let (cluster, external, balancer) = (of(CLUSTER), of(EXTERNAL), of(BALANCER));
        let refs = |list: &[String; 2]| list.clone();
        let extra = json!({
            "type": "LoadBalancer", "externalTrafficPolicy": policy, "externalIPs": refs(&external),
            "ports": with_node_port(30080 + u16::try_from(number).unwrap()), "healthCheckNodePort": 31000,
        });
        let mut objects = slices(&bed.lab, name, &[At("web-1", true, State::Ready)]);
        objects.push(service(
            name,
            &cluster.each_ref().map(String::as_str),
            extra,
            &balancer.each_ref().map(String::as_str),
        ));
        bed.apply(objects);
    }
    bed
}

fn check(settings: Settings, table: &Table) {
    let told = format!("{settings:?}");
    let bed = bed(settings);
    for family in [0, 1] {
        let asking = [
            ("pod", bed.pod("web-2"), table.pod),
            ("host", bed.node(), table.host),
            ("outside", bed.client(), table.outside),
        ];
        for (who, host, want) in asking {
            let own = if family == 0 { host.addresses().v4.to_string() } else { host.addresses().v6.to_string() };
            let frontends = |number: usize| {
                [(EXTERNAL, 80), (BALANCER, 80)].map(|(list, port)| (format!("{}{number}", list[family]), port))
            };
            let mut columns =
                vec![(format!("{}0", CLUSTER[family]), 80, want[0]), (format!("{}1", CLUSTER[family]), 80, want[0])];
            for number in [0, 1] {
                columns.extend(frontends(number).map(|(address, port)| (address, port, want[1 + number])));
                columns.push((NODE[family].to_owned(), 30080 + number as u16, want[1 + number]));
            }
            for (address, port, want) in columns {
                let want = match want {
                    Source => format!("web-1 {own}"),
                    Hidden => format!("web-1 {}", HIDDEN[family]),
                };
                assert_eq!(bed.tcp(host, &address, port), want, "{told}: {who} to {address}:{port}, tcp");
                assert_eq!(bed.udp(host, &address, port), want, "{told}: {who} to {address}:{port}, udp");
            }
        }
        // A pod that meets itself must not see its own address: it would answer itself past the node.
        for (address, port) in [
            (format!("{}0", CLUSTER[family]), 80),
            (format!("{}0", EXTERNAL[family]), 80),
            (format!("{}1", BALANCER[family]), 80),
            (NODE[family].to_owned(), 30081),
        ] {
            let hidden = format!("web-1 {}", HIDDEN[family]);
            assert_eq!(bed.tcp(bed.pod("web-1"), &address, port), hidden, "{told}: hairpin by {address}:{port}");
        }
    }
}

/// Table 5.5 with a detector: the four of them are the same thing told in four ways.
#[test]
fn with_a_detector_pods_keep_their_address_inside_and_everyone_loses_it_outside() {
    let table =
        Table { pod: [Source, Hidden, Source], host: [Hidden, Hidden, Hidden], outside: [Hidden, Hidden, Source] };
    for detect_local in [networks(), DetectLocal::InterfacePrefix("web-".into())] {
        check(Settings { detect_local, ..Settings::default() }, &table);
    }
}

/// One interface is one pod here: `web-2` is local by its interface, everybody else is not.
#[test]
fn a_bridge_interface_tells_local_pods() {
    let detect_local = DetectLocal::Interface("web-2".into());
    let table =
        Table { pod: [Source, Hidden, Source], host: [Hidden, Hidden, Hidden], outside: [Hidden, Hidden, Source] };
    check(Settings { detect_local, ..Settings::default() }, &table);
}

/// "No detector: ClusterIP never SNATed (except hairpin)".
#[test]
fn without_a_detector_cluster_addresses_hide_nobody() {
    let table =
        Table { pod: [Source, Hidden, Source], host: [Source, Hidden, Hidden], outside: [Source, Hidden, Source] };
    check(Settings::default(), &table);
    // The same where node ports are on all addresses and the original destination tells less.
    check(Settings { node_port_addresses: NodePortAddresses::All, ..Settings::default() }, &table);
}

/// "masqueradeAll: every ClusterIP flow is SNATed; external rows unchanged".
#[test]
fn masquerade_all_hides_everyone_who_comes_by_a_cluster_address() {
    let table =
        Table { pod: [Hidden, Hidden, Source], host: [Hidden, Hidden, Hidden], outside: [Hidden, Hidden, Source] };
    for detect_local in [networks(), DetectLocal::Unknown] {
        check(Settings { detect_local, masquerade_all: true, ..Settings::default() }, &table);
    }
}

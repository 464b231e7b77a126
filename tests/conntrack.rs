//! Stale UDP flows on the real kernel: real datagrams through the data plane, and tables full of made-up entries. Needs root, and
//! fails without it.

#[path = "conntrack/census.rs"]
mod census;
#[path = "conntrack/counts.rs"]
mod counts;
#[path = "conntrack/drain.rs"]
mod drain;
#[path = "support/flush.rs"]
mod flush;
#[path = "conntrack/support.rs"]
mod support;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pointsman::conntrack::{Destination, Expected, Settings, View};
use pointsman::kernel::conntrack::{Cleaner, ConntrackTable, Filter, apply_sysctls};
use pointsman::lab::{Lab, Listen, NODE, Namespace, POD_GATEWAY, has_ipv6};
use pointsman::model::{Family, Protocol};
use pointsman::source::{Change, Object};
use serde_json::json;
use support::{Client, Made, PATIENCE, Proxy, SHORT, delete_service, flows, listed, make, service, slice, slice_with};

const VIP: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const OTHER_VIP: [&str; 2] = ["10.96.0.2", "fd00:96::2"];

fn lab(pods: &[&str]) -> Lab {
    let mut lab = Lab::builder().prefix("pmct").pods(pods.iter().copied()).build().expect("a lab");
    for pod in pods {
        lab.serve(pod, &[Listen::Udp(5353), Listen::Tcp(8080)]).expect("servers");
    }
    lab
}

fn families() -> impl Iterator<Item = Family> {
    Family::ALL.into_iter().filter(|family| *family == Family::V4 || has_ipv6())
}

fn vip(of: [&str; 2], family: Family, port: u16) -> SocketAddr {
    let text = if family == Family::V4 { of[0] } else { of[1] };
    SocketAddr::new(text.parse().expect("an address"), port)
}

fn pod(lab: &Lab, name: &str, family: Family) -> IpAddr {
    let addresses = lab.pod(name).addresses();
    if family == Family::V4 { addresses.v4.into() } else { addresses.v6.into() }
}

/// The slices of a Service in all families.
fn slices(lab: &Lab, name: &str, pods: &[&str]) -> Vec<pointsman::source::Change> {
    families()
        .map(|family| slice(name, family, &pods.iter().map(|name| pod(lab, name, family)).collect::<Vec<_>>()))
        .collect()
}

fn v4(address: [u8; 4], port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

#[test]
fn a_client_whose_endpoint_is_removed_reaches_another_with_its_next_datagram() {
    let lab = lab(&["a", "b"]);
    let mut proxy = Proxy::start(lab.node());
    proxy.apply([service("dns", &VIP)]);
    proxy.apply(slices(&lab, "dns", &["a"]));
    let clients: Vec<_> = families().map(|family| Client::new(lab.client(0), vip(VIP, family, 53))).collect();
    clients.iter().for_each(|client| assert_eq!(client.ask(), "a"));
    assert_eq!(proxy.apply(slices(&lab, "dns", &["a", "b"])), [], "not even a look at the table");
    clients.iter().for_each(|client| assert_eq!(client.ask(), "a", "an endpoint more disturbs nobody"));
    let passes = proxy.apply(slices(&lab, "dns", &["b"]));
    for pass in &passes {
        assert_eq!((pass.read, pass.deleted.deleted, pass.dumps), (1, 1, 1), "{pass:?}");
    }
    assert_eq!(passes.len(), families().count());
    clients.iter().for_each(|client| assert_eq!(client.ask(), "b"));
}

/// Spec 7.2 goes by the port: an address that only an interface has, and no Node object, serves node ports as well.
#[test]
fn flows_to_a_node_port_on_any_address_of_the_host_follow_its_endpoints() {
    const NODE_PORT: u16 = 30053;
    let lab = lab(&["a", "b"]);
    let mut proxy = Proxy::start(lab.node());
    let service = json!({
        "metadata": {"namespace": "ns", "name": "dns"},
        "spec": {"type": "NodePort", "clusterIPs": VIP, "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": NODE_PORT},
        ]},
    });
    let service = Object::Service(Box::new(serde_json::from_value(service).expect("decodes")));
    proxy.apply([Change::Apply(service)]);
    proxy.apply(slices(&lab, "dns", &["a"]));
    let addresses: Vec<IpAddr> = [NODE, POD_GATEWAY].into_iter().flat_map(|host| host.usable()).collect();
    let at = |address: &IpAddr| Client::new(lab.client(0), SocketAddr::new(*address, NODE_PORT));
    let clients: Vec<_> = addresses.iter().map(at).collect();
    clients.iter().for_each(|client| assert_eq!(client.ask(), "a"));
    let passes = proxy.apply(slices(&lab, "dns", &["b"]));
    assert_eq!(passes.iter().map(|pass| pass.deleted.deleted).sum::<usize>(), clients.len(), "{passes:?}");
    clients.iter().for_each(|client| assert_eq!(client.ask(), "b"));
}

#[test]
fn scaled_to_zero_a_client_is_refused_and_scaled_up_it_is_served() {
    let lab = lab(&["a"]);
    let mut proxy = Proxy::start(lab.node());
    proxy.apply([service("dns", &VIP)]);
    proxy.apply(slices(&lab, "dns", &["a"]));
    for family in families() {
        let to = vip(VIP, family, 53);
        let client = Client::new(lab.client(0), to);
        assert_eq!(client.ask(), "a");
        let flows = lab.node().run(|| listed(to));
        assert_eq!(flows.len(), 1, "{flows:#?}");
        proxy.apply([slice("dns", family, &[])]);
        assert_eq!(lab.node().run(|| listed(to)), BTreeSet::new());
        let refused = client.ask_within(PATIENCE).expect_err("nobody");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
        proxy.apply([slice("dns", family, &[pod(&lab, "a", family)])]);
        assert_eq!(client.ask(), "a");
    }
}

#[test]
fn the_flows_of_a_deleted_service_are_gone() {
    let lab = lab(&["a"]);
    let mut proxy = Proxy::start(lab.node());
    proxy.apply([service("dns", &VIP)]);
    proxy.apply(slices(&lab, "dns", &["a"]));
    for family in families() {
        assert_eq!(Client::new(lab.client(0), vip(VIP, family, 53)).ask(), "a");
    }
    proxy.apply([delete_service("dns")]);
    for family in families() {
        assert_eq!(lab.node().run(|| listed(vip(VIP, family, 53))), BTreeSet::new());
    }
    proxy.apply([service("dns", &VIP)]);
    for family in families() {
        assert_eq!(Client::new(lab.client(0), vip(VIP, family, 53)).ask(), "a", "back again");
    }
}

#[test]
fn a_flow_that_was_there_before_its_service_heals() {
    let lab = lab(&["a"]);
    let mut proxy = Proxy::start(lab.node());
    // Another Service with an endpoint: the kernel tracks connections in a namespace from the first nat statement on.
    proxy.apply(slices(&lab, "other", &["a"]).into_iter().chain([service("other", &OTHER_VIP)]));
    let clients: Vec<_> = families().map(|family| Client::new(lab.client(0), vip(VIP, family, 53))).collect();
    for (client, family) in clients.iter().zip(families()) {
        assert!(client.ask_within(SHORT).is_err(), "nobody is there yet");
        assert_eq!(lab.node().run(|| listed(vip(VIP, family, 53))).len(), 1, "the black hole");
    }
    let mut changes = slices(&lab, "dns", &["a"]);
    changes.push(service("dns", &VIP));
    let passes = proxy.apply(changes);
    assert!(passes.iter().all(|pass| pass.deleted.deleted == 1), "{passes:?}");
    clients.iter().for_each(|client| assert_eq!(client.ask(), "a"));
}

#[test]
fn tcp_and_everybody_elses_flows_stay() {
    let lab = lab(&["a", "b"]);
    let mut proxy = Proxy::start(lab.node());
    let mut changes = slices(&lab, "dns", &["a"]);
    changes.extend(slices(&lab, "other", &["a"]));
    changes.extend([service("dns", &VIP), service("other", &OTHER_VIP)]);
    proxy.apply(changes);
    let mut table = lab.node().run(ConntrackTable::open).expect("a table");
    for family in families() {
        // TCP through the Service, UDP past it, UDP to another Service's frontend: all answered by the same pod.
        let tcp = lab.client(0).run(|| TcpStream::connect_timeout(&vip(VIP, family, 80), PATIENCE));
        let mut tcp = tcp.expect("connected");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut echo = |word: &[u8], expected: &[u8]| {
            tcp.write_all(word).expect("written");
            let mut heard = vec![0; expected.len()];
            tcp.read_exact(&mut heard).expect("read");
            assert_eq!(heard, expected);
        };
        echo(b"", b"a\n");
        let direct = Client::new(lab.client(0), SocketAddr::new(pod(&lab, "a", family), 5353));
        let other = Client::new(lab.client(0), vip(OTHER_VIP, family, 53));
        let concerned = Client::new(lab.client(0), vip(VIP, family, 53));
        [&direct, &other, &concerned].iter().for_each(|client| assert_eq!(client.ask(), "a"));
        let is_concerned = |port: u16| port == concerned.port();
        let before: Vec<_> = flows(&mut table, family);
        assert!(before.len() >= 4);
        for step in ["moved", "emptied", "deleted"] {
            proxy.apply([match step {
                "moved" => slice("dns", family, &[pod(&lab, "b", family)]),
                "emptied" => slice("dns", family, &[]),
                _ => delete_service("dns"),
            }]);
            let after: Vec<_> = flows(&mut table, family);
            for flow in before.iter().filter(|flow| !is_concerned(flow.original.source.port())) {
                assert!(after.contains(flow), "{step}: {flow:?}");
            }
            assert!(!after.iter().any(|flow| is_concerned(flow.original.source.port())), "{step}");
            echo(step.as_bytes(), step.as_bytes());
            [&direct, &other].iter().for_each(|client| assert_eq!(client.ask(), "a"));
        }
        proxy.apply(slices(&lab, "dns", &["a"]).into_iter().chain([service("dns", &VIP)]));
    }
}

#[test]
fn a_terminating_endpoint_keeps_its_flows_until_it_stops_serving() {
    let lab = lab(&["a", "b"]);
    let mut proxy = Proxy::start(lab.node());
    let (a, b) = (pod(&lab, "a", Family::V4), pod(&lab, "b", Family::V4));
    proxy.apply([service("dns", &VIP[..1]), slice("dns", Family::V4, &[a])]);
    let client = Client::new(lab.client(0), vip(VIP, Family::V4, 53));
    assert_eq!(client.ask(), "a");
    let leaving = |serving: bool| {
        let conditions = json!({"ready": false, "serving": serving, "terminating": true});
        slice_with("dns", Family::V4, [(a, conditions), (b, json!({}))])
    };
    proxy.apply([leaving(true)]);
    assert_eq!(client.ask(), "a", "it finishes what it began");
    assert_eq!(Client::new(lab.client(0), vip(VIP, Family::V4, 53)).ask(), "b", "new flows go elsewhere");
    // The slots do not change by this: the flows must all the same.
    let passes = proxy.apply([leaving(false)]);
    assert_eq!(passes[0].deleted.deleted, 1, "{passes:?}");
    assert_eq!(client.ask(), "b");
}

#[test]
fn a_restart_keeps_what_is_fine_and_removes_what_a_predecessor_left() {
    let lab = lab(&["a", "b"]);
    let (a, b) = (pod(&lab, "a", Family::V4), pod(&lab, "b", Family::V4));
    let to = |address: &str| SocketAddr::new(address.parse().expect("an address"), 53);
    let vips = ["10.96.0.1", "10.96.0.2", "10.96.0.3"];
    let mut proxy = Proxy::start(lab.node());
    let stays = || [service("stays", &vips[..1]), slice("stays", Family::V4, &[a])];
    proxy.apply(stays());
    proxy.apply([service("moves", &vips[1..2]), slice("moves", Family::V4, &[a])]);
    proxy.apply([service("goes", &vips[2..]), slice("goes", Family::V4, &[a])]);
    let clients = vips.map(|address| Client::new(lab.client(0), to(address)));
    clients.iter().for_each(|client| assert_eq!(client.ask(), "a"));
    let mut table = lab.node().run(ConntrackTable::open).expect("a table");
    let before = flows(&mut table, Family::V4);
    drop(proxy);
    // While nobody looks, one Service changes its endpoints and one goes.
    let mut next = Proxy::start(lab.node());
    let passes =
        next.apply(stays().into_iter().chain([service("moves", &vips[1..2]), slice("moves", Family::V4, &[b])]));
    assert_eq!((passes.len(), passes[0].deleted.deleted), (1, 2), "{passes:?}");
    let after = flows(&mut table, Family::V4);
    assert_eq!(after, before.into_iter().filter(|flow| flow.original.destination == to(vips[0])).collect::<Vec<_>>());
    assert_eq!(clients[0].ask(), "a");
    assert_eq!(clients[1].ask(), "b");
}

/// TCP entries, UDP entries of others, and UDP entries of `10.96.0.{1..=services}:53` of which half are stale.
fn crowd(tcp: u32, udp: u32, services: u8, per_service: u16) -> impl Iterator<Item = Made> {
    let spread = |number: u32| {
        let [_, high, middle, low] = number.to_be_bytes();
        ([10, 200 + high, middle, low], 40_000)
    };
    let others = move |protocol, count: u32, first: u32| {
        (0..count).map(move |number| {
            let (address, port) = spread(first + number);
            let (to, answered_by) = (v4([10, 96, 0, 1], 80), v4([10, 1, 0, 9], 8080));
            Made { protocol, from: v4(address, port), to, answered_by, zone: None }
        })
    };
    let concerned = (1..=services).flat_map(move |service| {
        (0..per_service).map(move |number| Made {
            protocol: Protocol::Udp,
            from: v4([10, 99, 0, service], 1024 + number),
            to: v4([10, 96, 0, service], 53),
            answered_by: v4([10, 1, 0, 1 + (number % 2) as u8], 5353),
            zone: None,
        })
    });
    others(Protocol::Tcp, tcp, 0).chain(others(Protocol::Udp, udp, 1 << 20)).chain(concerned)
}

/// What is expected of [`crowd`]'s first so many Services: the first endpoint alone serves.
fn expectations(services: u8) -> View {
    let mut view = View::default();
    for service in 1..=services {
        let destination = Destination::Address(v4([10, 96, 0, service], 53));
        view.expect(destination, Expected::Endpoints([v4([10, 1, 0, 1], 5353)].into()));
    }
    view
}

/// One pass in a namespace.
fn pass(inside: &Namespace, view: View) -> pointsman::kernel::conntrack::Pass {
    let (report, passes) = std::sync::mpsc::channel();
    let mut cleaner =
        inside.run(|| Cleaner::start(move |pass| report.send(*pass).unwrap_or_default())).expect("a cleaner");
    cleaner.announce(view);
    cleaner.programmed();
    passes.recv_timeout(Duration::from_secs(60)).expect("a pass")
}

#[test]
fn of_a_large_table_only_what_concerns_us_is_read() {
    let namespace = Namespace::anonymous().expect("a namespace");
    namespace.run(|| make(crowd(20_000, 2_000, 6, 10)));
    let one = pass(&namespace, expectations(1));
    assert_eq!((one.dumps, one.read, one.deleted.deleted), (1, 10, 5), "{one:?}");
    let four = pass(&namespace, expectations(4));
    assert_eq!((four.dumps, four.read, four.deleted.deleted), (4, 5 + 3 * 10, 3 * 5), "{four:?}");
    let six = pass(&namespace, expectations(6));
    assert_eq!((six.dumps, six.read, six.deleted.deleted), (1, 2_000 + 4 * 5 + 2 * 10, 2 * 5), "{six:?}");
    let again = pass(&namespace, expectations(6));
    assert_eq!((again.deleted.deleted, again.deleted.gone, again.deleted.refused), (0, 0, 0), "{again:?}");
    // A kernel without filters has to be read as a whole, once, with the same outcome.
    let mut table = namespace.run(ConntrackTable::open).expect("a table");
    table.ignore_filters();
    let mut flows = 0;
    let dump = table.dump(&Filter::udp(Family::V4), |portion| flows += portion.len()).expect("a dump");
    assert_eq!((dump.filtered, dump.read, flows), (false, 22_000 + 6 * 5, 22_000 + 6 * 5));
}

#[test]
fn other_namespaces_stay_as_they_are() {
    let (ours, others) = (Namespace::anonymous().expect("one"), Namespace::anonymous().expect("another"));
    ours.run(|| make(crowd(0, 0, 1, 10)));
    others.run(|| make(crowd(0, 0, 1, 10)));
    assert_eq!(pass(&ours, expectations(1)).deleted.deleted, 5);
    // Not by the listing in /proc: with many entries 6.1 leaves one out.
    let count = |inside: &Namespace| flows(&mut inside.run(ConntrackTable::open).expect("a table"), Family::V4).len();
    assert_eq!((count(&ours), count(&others)), (5, 10));
}

#[test]
fn exactly_one_entry_is_removed_by_its_zone_and_number() {
    let namespace = Namespace::anonymous().expect("a namespace");
    let entry = |zone| Made { zone, ..crowd(0, 0, 1, 2).nth(1).expect("a stale one") };
    namespace.run(|| make([entry(None), entry(Some(5)), entry(Some(6))]));
    let mut table = namespace.run(ConntrackTable::open).expect("a table");
    let all = flows(&mut table, Family::V4);
    let mut zones: Vec<_> = all.iter().map(|flow| flow.zone).collect();
    zones.sort();
    assert_eq!(zones, [None, Some(5), Some(6)]);
    let five = *all.iter().find(|flow| flow.zone == Some(5)).expect("the one in zone 5");
    let successor = pointsman::conntrack::Flow { id: five.id.map(|id| id.wrapping_add(1)), ..five };
    let outcome = table.delete(&[successor]).expect("sent");
    assert_eq!((outcome.deleted, outcome.gone, outcome.refused), (0, 1, 0), "another flow of the same tuple stays");
    let outcome = table.delete(&[five]).expect("sent");
    assert_eq!((outcome.deleted, outcome.gone, outcome.refused), (1, 0, 0));
    assert_eq!(flows(&mut table, Family::V4).len(), 2);
    // The rule knows no zones: our rules translate in all of them.
    assert_eq!(pass(&namespace, expectations(1)).deleted.deleted, 2);
    let many: Vec<_> = (0..300).map(|_| five).collect();
    let outcome = table.delete(&many).expect("sent");
    assert_eq!((outcome.deleted, outcome.gone), (0, 300), "every failure is heard of");
}

#[test]
fn kernel_parameters_are_set_inside_the_namespace() {
    let namespace = Namespace::anonymous().expect("a namespace");
    let settings = Settings {
        max_per_core: 0,
        tcp_established_timeout: Duration::from_secs(7200),
        tcp_close_wait_timeout: Duration::from_secs(61),
        udp_timeout: Duration::from_secs(31),
        udp_stream_timeout: Duration::from_secs(121),
        tcp_be_liberal: true,
        ..Settings::default()
    };
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).expect("readable");
        text.trim().to_owned()
    };
    let outside = read("nf_conntrack_tcp_timeout_established");
    namespace.run(|| {
        assert_eq!(apply_sysctls(&settings.sysctls(2)).expect("set").written.len(), 5);
        assert_eq!(read("nf_conntrack_tcp_timeout_established"), "7200");
        assert_eq!(read("nf_conntrack_udp_timeout_stream"), "121");
        assert_eq!(read("nf_conntrack_tcp_be_liberal"), "1");
        assert_eq!(apply_sysctls(&settings.sysctls(2)).expect("set").written.len(), 0, "nothing differs any more");
        let liberal_once = Settings { tcp_be_liberal: false, ..settings.clone() };
        assert_eq!(apply_sysctls(&liberal_once.sysctls(2)).expect("set").written.len(), 0, "never reset");
        // The size of the table is the machine's: from here nobody can change it, which is said and no error.
        let hash_size = std::fs::read_to_string("/sys/module/nf_conntrack/parameters/hashsize").expect("readable");
        let hash_size: u32 = hash_size.trim().parse().expect("a number");
        let max = Settings { max_per_core: 1, min: 8 * hash_size, ..settings.clone() };
        let fixed = apply_sysctls(&max.sysctls(1)).expect("left alone").fixed;
        let fixed: Vec<_> =
            fixed.iter().map(|sysctl| (sysctl.path.file_name().expect("a name"), sysctl.value)).collect();
        let wanted = [("nf_conntrack_max", 8 * hash_size), ("hashsize", 2 * hash_size)];
        assert_eq!(fixed, wanted.map(|(name, value)| (name.as_ref(), value.into())));
    });
    assert_eq!(read("nf_conntrack_tcp_timeout_established"), outside);
}

/// Not a test: prints what passes over a large table cost. Changes the machine's table size for its time.
#[test]
#[ignore = "a measurement"]
fn measure_a_large_table() {
    struct Max(String);
    impl Drop for Max {
        fn drop(&mut self) {
            let _ = std::fs::write(MAX, &self.0);
        }
    }
    const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    let _restored = Max(std::fs::read_to_string(MAX).expect("readable").trim().to_owned());
    std::fs::write(MAX, "1048576").expect("raised");
    const TCP: u32 = 500_000;
    let namespace = Namespace::anonymous().expect("a namespace");
    let begin = Instant::now();
    namespace.run(|| make(crowd(TCP, 5_000, 200, 20)));
    println!("made {} entries in {:?}", TCP + 5_000 + 200 * 20, begin.elapsed());
    for round in 0..5 {
        for services in [1, 4, 200] {
            let pass = pass(&namespace, expectations(services));
            println!(
                "round {round}: {services:3} destinations, {} dumps: read {:5}, deleted {:4}, {:?}",
                pass.dumps, pass.read, pass.deleted.deleted, pass.duration
            );
        }
        let mut table = namespace.run(ConntrackTable::open).expect("a table");
        table.ignore_filters();
        let begin = Instant::now();
        let dump = table.dump(&Filter::udp(Family::V4), |_| {}).expect("a dump");
        println!("round {round}: everything, no filter: read {}, {:?}", dump.read, begin.elapsed());
    }
    let stale: Vec<_> = (1..=20u8)
        .flat_map(|service| {
            (0..1000u16).map(move |number| Made {
                protocol: Protocol::Udp,
                from: v4([10, 98, 0, service], 1024 + number),
                to: v4([10, 96, 0, service], 53),
                answered_by: v4([10, 1, 0, 2], 5353),
                zone: None,
            })
        })
        .collect();
    namespace.run(|| make(stale));
    let pass = pass(&namespace, expectations(20));
    println!("20,000 stale among them: {pass:?}");
}

/// The daemon as it is deployed, on a directory of manifests; ended when dropped.
struct Daemon(std::process::Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_daemon_removes_what_its_manifests_contradict() {
    let lab = lab(&["a", "b"]);
    let manifests = tempfile::tempdir().expect("a directory");
    let write = |endpoint: &str| {
        let endpoints = if endpoint.is_empty() {
            "[]".to_owned()
        } else {
            format!("[{{addresses: [{}]}}]", pod(&lab, endpoint, Family::V4))
        };
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: dns, namespace: ns}}, spec: {{clusterIP: 10.96.0.1, ports: [{{port: 53, protocol: UDP}}]}}}}\n---\n\
             {{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: dns-1, namespace: ns, labels: {{kubernetes.io/service-name: dns}}}}, \
             addressType: IPv4, ports: [{{name: '', port: 5353, protocol: UDP}}], endpoints: {endpoints}}}\n"
        );
        let fresh = manifests.path().join(".fresh");
        std::fs::write(&fresh, text).expect("written");
        std::fs::rename(fresh, manifests.path().join("dns.yaml")).expect("renamed");
    };
    write("a");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_kube-proxy"));
    command.arg("--manifests").arg(manifests.path()).arg("--hostname-override=node");
    let _daemon = Daemon(lab.node().spawn(command).expect("started"));
    let client = Client::new(lab.client(0), vip(VIP, Family::V4, 53));
    let until = |wanted: &dyn Fn(io::Result<String>) -> bool| {
        let begin = Instant::now();
        while !wanted(client.ask_within(SHORT)) {
            assert!(begin.elapsed() < PATIENCE, "not in time");
        }
    };
    // It asks all the time, so its flow never expires by itself.
    until(&|answer| answer.is_ok_and(|pod| pod == "a"));
    write("b");
    until(&|answer| answer.is_ok_and(|pod| pod == "b"));
    write("");
    until(&|answer| answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused));
    write("a");
    until(&|answer| answer.is_ok_and(|pod| pod == "a"));
}

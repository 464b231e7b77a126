//! Services that go through the userspace forwarder, from outside: who answers, who is refused, what is said, and what a stop, a crash and
//! a restart do to clients.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use api_double::{ApiDouble, node};
use nix::sys::signal::Signal;
use pointsman::lab::{Lab, NODE, ask, connect};
use serde_json::{Value, json};

use super::daemon::{Daemon, Manifests};
use super::observe::metric;
use super::support::beds::{PATIENCE, TCP, bed, pods};
use super::support::eventually;
use super::support::objects::{DNS, HTTP, frontends, service, shop, slice_of};
use super::support::oracle::nft;
use super::support::traffic::{
    BOTH, Held, Restless, assert_even, assert_refused, assert_silent, names, tally, tally_by,
};

const NODE_PORTS: [u16; 2] = [30080, 30053];

/// The same objects, the first of them with these annotations.
fn annotated(mut objects: Vec<Value>, annotations: &[(&str, &str)]) -> Vec<Value> {
    for (key, value) in annotations {
        objects[0]["metadata"]["annotations"][format!("pointsman.dev/{key}")] = json!(value);
    }
    objects
}

fn userspace(name: &str, number: u8, members: &[usize]) -> Vec<Value> {
    annotated(shop(name, number, &pods(members.iter().copied())), &[("datapath", "userspace")])
}

/// The same with node ports.
fn with_node_ports(mut objects: Vec<Value>) -> Vec<Value> {
    objects[0]["spec"]["type"] = "NodePort".into();
    for (port, number) in NODE_PORTS.into_iter().enumerate() {
        objects[0]["spec"]["ports"][port]["nodePort"] = number.into();
    }
    objects
}

/// Whether a connection goes through the daemon: it then has a socket of its own to the pod.
fn is_forwarded(lab: &Lab, daemon: &Daemon, to: SocketAddr) -> bool {
    let held = Held::open(lab.client(0), to);
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", daemon.id())).expect("it lives");
    let sockets = sockets.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    let inodes: Vec<String> = sockets
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
        .collect();
    let tables = ["tcp", "tcp6"].map(|table| {
        std::fs::read_to_string(format!("/proc/{}/net/{table}", daemon.id())).expect("the sockets of its namespace")
    });
    // State 01 is ESTABLISHED (include/net/tcp_states.h); the ninth column after the number is the inode.
    let established = tables.iter().flat_map(|table| table.lines().skip(1)).filter(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let to_pod = columns[2].ends_with(&format!(":{TCP:04X}"));
        columns[3] == "01" && to_pod && inodes.iter().any(|inode| inode == columns[9])
    });
    let found = established.count() > 0;
    drop(held);
    found
}

#[test]
fn every_kind_of_client_is_served_over_both_protocols_and_families() {
    let lab = bed(3);
    let manifests = Manifests::of(&with_node_ports(userspace("web", 1, &[1, 2])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&[
        "carried by the userspace forwarder",
        "service=\"shop/web\"",
        "annotation",
        "instead of the client's",
    ]);
    daemon.hear(&["\"first load programmed\""]);
    for (family, node) in [(0, IpAddr::V4(NODE.v4)), (1, IpAddr::V6(NODE.v6))] {
        for ((protocol, question), (port, node_port)) in
            BOTH.into_iter().zip([(80, NODE_PORTS[0]), (53, NODE_PORTS[1])])
        {
            for host in [lab.client(0), lab.pod("web-3"), lab.pod("web-1"), lab.node()] {
                for to in [frontends(1, port)[family], SocketAddr::new(node, node_port)] {
                    let asked = tally_by(question, host, to, 20);
                    assert!(
                        names(&asked).iter().all(|pod| ["web-1", "web-2"].contains(pod)),
                        "{protocol} {to}: {asked:?}"
                    );
                }
            }
        }
        assert!(is_forwarded(&lab, &daemon, frontends(1, 80)[family]));
    }
    // The kernel refuses where nobody is.
    manifests.write("all.json", &with_node_ports(userspace("web", 1, &[])));
    daemon.programmed();
    for (to, (_, question)) in [frontends(1, 80)[0], frontends(1, 53)[0]].into_iter().zip(BOTH) {
        eventually("everything to be programmed", || lab.client(0).run(|| question(to, PATIENCE)).is_err());
        assert_refused(question, lab.client(0), to, "without endpoints");
    }
    manifests.write("all.json", &with_node_ports(userspace("web", 1, &[3])));
    // A file's slices may come in two batches.
    for (to, (_, question)) in [frontends(1, 80)[1], frontends(1, 53)[1]].into_iter().zip(BOTH) {
        eventually("endpoints again", || lab.client(0).run(|| question(to, PATIENCE)).is_ok());
    }
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[1], 5)), ["web-3"]);
    assert_eq!(names(&tally_by(ask, lab.client(0), frontends(1, 53)[1], 5)), ["web-3"]);
}

#[test]
fn going_to_userspace_and_back_and_changing_endpoints_fails_no_connection() {
    let lab = bed(3);
    let plain = |members: &[usize]| shop("web", 1, &pods(members.iter().copied()));
    let manifests = Manifests::of(&plain(&[1, 2]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let to = frontends(1, 80);
    let mut by_kernel = Held::open(lab.client(0), to[0]);
    let clients = [lab.client(0), lab.node()].map(|host| Restless::start(host, &to));
    let more = || clients.iter().for_each(|client| client.wait_for(20));
    more();
    manifests.write("all.json", &userspace("web", 1, &[1, 2]));
    daemon.hear(&["carried by the userspace forwarder"]);
    daemon.programmed();
    let mut forwarded = Held::open(lab.client(0), to[0]);
    more();
    assert!(is_forwarded(&lab, &daemon, to[0]));
    for members in [&[1, 2, 3][..], &[3], &[1, 3]] {
        manifests.write("all.json", &userspace("web", 1, members));
        eventually("the endpoints to be those", || {
            let pods = tally(lab.client(0), to[0], 30);
            names(&pods) == members.iter().map(|number| format!("web-{number}")).collect::<Vec<_>>()
        });
        more();
    }
    forwarded.assert_alive("endpoints changed");
    manifests.write("all.json", &plain(&[1, 2]));
    daemon.hear(&["carried by the kernel alone again"]);
    daemon.programmed();
    more();
    assert!(!is_forwarded(&lab, &daemon, to[0]) || forwarded.echoes(), "only what was there before");
    forwarded.assert_alive("the Service is the kernel's again");
    by_kernel.assert_alive("through all of it");
    for client in clients {
        client.assert_uninterrupted("to userspace and back");
    }
    assert_eq!(daemon.count(&["WARN"]) + daemon.count(&["ERROR"]), 0, "{:#?}", daemon.said());
}

#[test]
fn exact_least_connection_and_affinity_hold_for_every_single_connection() {
    let lab = bed(3);
    let exact = annotated(shop("exact", 1, &pods(1..=3)), &[("scheduler", "lc,exact")]);
    let mut sticky = userspace("sticky", 2, &[1, 2, 3]);
    sticky[0]["spec"]["sessionAffinity"] = "ClientIP".into();
    let p2c = annotated(shop("p2c", 3, &pods(1..=3)), &[("scheduler", "p2c")]);
    let ewma = annotated(shop("ewma", 4, &pods(1..=3)), &[("scheduler", "ewma")]);
    let manifests = Manifests::of(&[exact, sticky, p2c, ewma].concat());
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["\"first load programmed\""]);
    for to in frontends(1, 80) {
        let mut held: Vec<Held> = (0..9).map(|_| Held::open(lab.client(0), to)).collect();
        let count = |held: &[Held], pod: &str| held.iter().filter(|one| one.pod == pod).count();
        assert_eq!([1, 2, 3].map(|pod| count(&held, &format!("web-{pod}"))), [3, 3, 3], "exactly");
        held.retain(|one| one.pod != "web-2");
        // The end of a connection takes two packets to be noticed.
        eventually("the next ones to go where nobody is", || {
            let next: Vec<Held> = (0..3).map(|_| Held::open(lab.client(0), to)).collect();
            next.iter().all(|one| one.pod == "web-2")
        });
        assert_eq!(tally(lab.client(0), frontends(2, 80)[usize::from(to.is_ipv6())], 20).len(), 1, "one endpoint");
    }
    for number in [3, 4] {
        assert_eq!(tally(lab.client(0), frontends(number, 80)[0], 60).len(), 3, "everybody gets some");
    }
    for name in ["exact", "sticky", "p2c", "ewma"] {
        let service = format!("service=\"shop/{name}\"");
        assert_eq!(daemon.count(&["carried by the userspace forwarder", &service]), 1, "{:#?}", daemon.said());
    }
}

#[test]
fn policies_and_source_ranges_are_the_kernels() {
    let lab = bed(2);
    let mut objects = with_node_ports(userspace("web", 1, &[1, 2]));
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    objects[0]["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    objects[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    for slice in &mut objects[1..] {
        slice["endpoints"][1]["nodeName"] = "n1".into();
    }
    let manifests = Manifests::of(&objects);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["\"first load programmed\""]);
    let at_node = SocketAddr::new(NODE.v4.into(), NODE_PORTS[0]);
    assert_eq!(names(&tally(lab.client(0), at_node, 20)), ["web-2"], "from outside, only who is here");
    assert_eq!(names(&tally(lab.node(), at_node, 40)), ["web-1", "web-2"], "from the node, everybody");
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 40)), ["web-1", "web-2"], "at the cluster address");
    let balancer: SocketAddr = "203.0.113.7:80".parse().expect("an address");
    assert_silent(lab.client(0), balancer, "not within the source ranges");
    objects[0]["spec"]["loadBalancerSourceRanges"] = json!([format!("{}/32", lab.client(0).addresses().v4)]);
    manifests.write("all.json", &objects);
    daemon.programmed();
    assert_eq!(names(&tally(lab.client(0), balancer, 20)), ["web-2"], "within");
}

#[test]
fn node_ports_on_loopback_addresses() {
    let lab = bed(2);
    let manifests = Manifests::of(&with_node_ports(shop("web", 1, &pods(1..=2))));
    let loopback = |family: usize, port: u16| {
        let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        SocketAddr::new(addresses[family], port)
    };
    // Somebody has one of them already.
    let taken = lab.node().run(|| TcpListener::bind(loopback(0, NODE_PORTS[0])).expect("free"));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["ERROR", "the forwarder cannot listen", "127.0.0.1:30080", "in use"]);
    drop(taken);
    daemon.hear(&["node port served for local processes", "127.0.0.1:30080"]);
    for family in [0, 1] {
        assert_eq!(tally_by(connect, lab.node(), loopback(family, NODE_PORTS[0]), 30).len(), 2);
        assert_eq!(tally_by(ask, lab.node(), loopback(family, NODE_PORTS[1]), 30).len(), 2);
    }
    let asked = lab.client(0).run(|| connect(SocketAddr::new(NODE.v4.into(), NODE_PORTS[0]), PATIENCE));
    assert!(asked.is_ok(), "the kernel's part is the kernel's: {asked:?}");
    let carried =
        ["NodePorts on loopback addresses are carried by the userspace forwarder", "shop/web", "loopback_node_port"];
    assert_eq!(daemon.count(&carried), 1, "{:#?}", daemon.said());
    assert_eq!(daemon.count(&["carried by the userspace forwarder"]), 1, "{:#?}", daemon.said());
    let by_reason = "pointsman_userspace_services{reason=\"loopback_node_port\"}";
    eventually("metrics", || metric(&lab, by_reason) == 1.0);
    manifests.write("all.json", &shop("web", 1, &pods(1..=2)));
    daemon.hear(&["carried by the kernel alone again", "shop/web"]);
    eventually("the listeners to be closed", || {
        lab.node().run(|| TcpListener::bind(loopback(0, NODE_PORTS[0])).is_ok())
    });
    drop(daemon);
    // Not where the operator does not want them.
    manifests.write("all.json", &with_node_ports(shop("web", 1, &pods(1..=2))));
    for option in [
        "--iptables-localhost-nodeports=false",
        "--proxy-mode=nftables",
        "--nodeport-addresses=192.168.50.0/24,fd00:50::/64",
    ] {
        let mut daemon = Daemon::serving(lab.node(), &manifests, &[option]);
        daemon.hear(&["\"first load programmed\""]);
        for family in [0, 1] {
            assert_refused(connect, lab.node(), loopback(family, NODE_PORTS[0]), option);
        }
    }
}

#[test]
fn without_a_listener_the_kernel_serves_until_there_is_one() {
    let lab = bed(2);
    let node = lab.node().namespace();
    // One port to choose from, and somebody has it.
    node.sysctls(&[("ipv4/ip_local_port_range", "40000 40000")]).expect("a smaller range");
    let taken = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]
        .map(|any| lab.node().run(|| TcpListener::bind((any, 40000))).ok());
    let headers = annotated(shop("headers", 2, &pods(1..=2)), &[("proxy-protocol", "v1")]);
    let mut objects = [userspace("web", 1, &[1, 2]), headers].concat();
    objects.retain(|object| !object.to_string().contains("IPv6\",\"kind\":\"EndpointSlice"));
    let manifests = Manifests::of(&objects);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--iptables-localhost-nodeports=false"]);
    daemon.hear(&["ERROR", "the forwarder cannot listen; the kernel carries it where it can", "shop/web"]);
    daemon.hear(&["\"first load programmed\""]);
    let to = frontends(1, 80)[0];
    assert_eq!(tally(lab.client(0), to, 30).len(), 2, "by the kernel");
    assert!(!is_forwarded(&lab, &daemon, to));
    assert_refused(connect, lab.client(0), frontends(2, 80)[0], "the kernel cannot write a header");
    drop(taken);
    node.sysctls(&[("ipv4/ip_local_port_range", "40000 41000")]).expect("a larger range");
    eventually("a listener", || is_forwarded(&lab, &daemon, to));
    assert_eq!(tally(lab.client(0), to, 30).len(), 2, "by the forwarder");
    daemon.assert_alive();
}

#[test]
fn a_cluster_is_told_and_the_address_follows_the_node() {
    let lab = bed(2);
    let mut links = lab.node().namespace().rtnl().expect("a routing socket");
    let second: IpAddr = "172.31.0.1".parse().expect("an address");
    links.add_address("lo", second, 32).expect("an address");
    let double = lab.node().run(ApiDouble::start);
    for object in userspace("web", 1, &[1, 2]).into_iter().chain(with_node_ports(shop("ported", 2, &pods([1])))) {
        double.apply(object);
    }
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = double.kubeconfig(directory.path());
    let mut daemon = Daemon::start(lab.node(), &["--kubeconfig", kubeconfig.to_str().expect("UTF-8")]);
    daemon.hear(&["connections for the forwarder are sent to", "192.168.50.1"]);
    daemon.hear(&["\"first load programmed\""]);
    for (service, reason) in [("web", "(annotation)"), ("ported", "(loopback_node_port)")] {
        eventually("an Event", || {
            double.events().iter().any(|event| {
                event["reason"] == "CarriedInUserspace"
                    && event["type"] == "Normal"
                    && event["regarding"]["name"] == service
                    && event["note"].as_str().is_some_and(|note| note.contains(reason))
            })
        });
    }
    let to = frontends(1, 80)[0];
    assert_eq!(tally(lab.client(0), to, 20).len(), 2);
    eventually("metrics", || metric(&lab, "pointsman_userspace_connections_total{protocol=\"tcp\"}") >= 20.0);
    assert_eq!(metric(&lab, "pointsman_userspace_services{reason=\"annotation\"}"), 1.0);
    assert_eq!(metric(&lab, "pointsman_userspace_listeners{state=\"missing\"}"), 0.0);

    let client = Restless::start(lab.client(0), &[to]);
    client.wait_for(20);
    double.apply(node("n1", &[("InternalIP", &second.to_string())]));
    daemon.hear(&["connections for the forwarder are sent to", &second.to_string()]);
    eventually("listeners at the new address", || {
        let listed = nft(lab.node().namespace(), &["list", "map", "ip", "pointsman-userspace", "listeners"]);
        listed.contains("172.31.0.1") && !listed.contains("192.168.50.1")
    });
    client.wait_for(20);
    // One that the host does not have; then it does, and nobody but the kernel says so.
    let third: IpAddr = "172.31.0.2".parse().expect("an address");
    double.apply(node("n1", &[("InternalIP", &third.to_string())]));
    daemon.hear(&["connections for the forwarder are sent to", "192.168.50.1"]);
    client.wait_for(20);
    links.add_address("lo", third, 32).expect("an address");
    daemon.hear(&["connections for the forwarder are sent to", &third.to_string()]);
    client.wait_for(20);
    client.assert_uninterrupted("the Node's address changed");
}

#[test]
fn a_refusal_of_the_kernel_to_lead_here_is_said_once_and_outlived() {
    let lab = bed(2);
    let inside = lab.node().namespace();
    nft(inside, &["add", "table", "ip", "pointsman-userspace"]);
    let manifests = Manifests::of(&userspace("web", 1, &[1, 2]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    let refused = ["ERROR", "connections cannot be led to the forwarder; the kernel carries them where it can"];
    daemon.hear(&refused);
    daemon.hear(&["\"first load programmed\""]);
    let to = frontends(1, 80)[0];
    assert_eq!(tally(lab.client(0), to, 30).len(), 2, "by the kernel");
    assert!(!is_forwarded(&lab, &daemon, to));
    // Longer than the first pauses take.
    std::thread::sleep(Duration::from_millis(4000));
    assert_eq!(daemon.count(&refused), 1, "{:#?}", daemon.said());
    nft(inside, &["delete", "table", "ip", "pointsman-userspace"]);
    daemon.hear(&["connections are led to the forwarder again"]);
    assert!(is_forwarded(&lab, &daemon, to));
    assert_eq!(tally(lab.client(0), to, 30).len(), 2, "by the forwarder");
}

#[test]
fn the_limit_for_the_process_is_for_connections_of_both_kinds() {
    let lab = bed(1);
    let manifests = Manifests::of(&with_node_ports(userspace("web", 1, &[1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--forward-max-connections=2"]);
    daemon.hear(&["\"first load programmed\""]);
    let places = [(lab.client(0), frontends(1, 80)[0]), (lab.node(), (Ipv4Addr::LOCALHOST, NODE_PORTS[0]).into())];
    let held = places.map(|(host, to)| Held::open(host, to));
    for (host, to) in places {
        assert!(host.run(|| connect(to, PATIENCE)).is_err(), "{to}: one too many");
    }
    drop(held);
    for (host, to) in places {
        eventually("a place", || host.run(|| connect(to, PATIENCE)).is_ok());
    }
}

#[test]
fn mode_userspace_is_for_all() {
    let lab = bed(2);
    let kernel = annotated(shop("kernel", 2, &pods(1..=2)), &[("datapath", "kernel")]);
    let manifests = Manifests::of(&[shop("web", 1, &pods(1..=2)), kernel].concat());
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--proxy-mode=userspace", "--ipvs-scheduler=rr"]);
    daemon.hear(&["carried by the userspace forwarder", "service=\"shop/web\"", "reason=\"mode\""]);
    daemon.hear(&["\"first load programmed\""]);
    assert_even(&tally(lab.client(0), frontends(1, 80)[0], 30), 2, "the default scheduler");
    assert!(is_forwarded(&lab, &daemon, frontends(1, 80)[0]));
    assert!(!is_forwarded(&lab, &daemon, frontends(2, 80)[0]));
    assert_eq!(daemon.count(&["shop/kernel", "userspace"]), 0, "{:#?}", daemon.said());
}

/// A pod's own server that keeps the first bytes of each connection.
fn first_bytes(lab: &Lab, pod: &str, port: u16, count: usize) -> std::thread::JoinHandle<Vec<u8>> {
    let listener = lab.pod(pod).run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a listener"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).expect("a header");
        bytes
    })
}

#[test]
fn the_proxy_protocol_tells_pods_who_asks() {
    const PORT: u16 = 9000;
    let lab = bed(1);
    let pod = IpAddr::V4(pods([1])[0].v4);
    let mut objects = vec![
        service("web", 1, &[HTTP, DNS]),
        slice_of("web", "IPv4", &[pod], &[("http", "TCP", PORT), ("dns", "UDP", 5353)]),
    ];
    let manifests = Manifests::of(&annotated(objects.clone(), &[("proxy-protocol", "v1")]));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["carried by the userspace forwarder", "told the client's address"]);
    daemon.hear(&["\"first load programmed\""]);
    assert_eq!(daemon.count(&["WARN", "[pointsman.dev/proxy-protocol]: \"UDP\": TCP only"]), 1, "{:#?}", daemon.said());
    let to = frontends(1, 80)[0];
    let client = lab.client(0).addresses().v4;
    let header = first_bytes(&lab, "web-1", PORT, 200.min(format!("PROXY TCP4 {client} {} ", to.ip()).len()));
    // The pod closes with a header half read, which may reset the client before it knows that it is connected.
    let _stream = lab.client(0).run(|| std::net::TcpStream::connect_timeout(&to, PATIENCE));
    assert_eq!(String::from_utf8_lossy(&header.join().expect("a header")), format!("PROXY TCP4 {client} {} ", to.ip()));
    objects = annotated(objects, &[("proxy-protocol", "v2")]);
    manifests.write("all.json", &objects);
    eventually("version 2", || {
        let header = first_bytes(&lab, "web-1", PORT, 16);
        let _stream = lab.client(0).run(|| std::net::TcpStream::connect_timeout(&to, PATIENCE));
        header.join().expect("a header").starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11")
    });
}

#[test]
fn pods_see_the_clients_address_where_that_is_asked_for() {
    const PORT: u16 = 9000;
    let lab = bed(1);
    let pod = IpAddr::V4(pods([1])[0].v4);
    let objects = vec![
        service("web", 1, &[HTTP, DNS]),
        slice_of("web", "IPv4", &[pod], &[("http", "TCP", PORT), ("dns", "UDP", 5353)]),
    ];
    let asked = [("datapath", "userspace"), ("client-ip", "preserve")];
    let manifests = Manifests::of(&annotated(objects.clone(), &asked));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["\"first load programmed\""]);
    assert_eq!(daemon.count(&["WARN", "[pointsman.dev/client-ip]: \"UDP\": TCP only"]), 1, "{:#?}", daemon.said());
    let each = "endpoints of dns/UDP see an address of the node instead of the client's; endpoints of http/TCP see the client's address";
    assert_eq!(daemon.count(&["carried by the userspace forwarder", each]), 1, "{:#?}", daemon.said());
    let to = frontends(1, 80)[0];
    let seen = || {
        let listener = lab.pod("web-1").run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("a free port"));
        let held = lab.client(0).run(|| std::net::TcpStream::connect_timeout(&to, PATIENCE).expect("connected"));
        let source = listener.accept().expect("a connection").1.ip();
        drop(held);
        source
    };
    assert_eq!(seen(), lab.client(0).addresses().v4);
    manifests.write("all.json", &annotated(objects, &asked[..1]));
    eventually("the node's address", || seen() != IpAddr::V4(lab.client(0).addresses().v4));
}

#[test]
fn timeouts_and_limits_are_the_services_or_the_operators() {
    let lab = bed(1);
    let told = annotated(userspace("told", 1, &[1]), &[("idle-timeout", "1s"), ("max-connections", "2")]);
    let manifests = Manifests::of(&[told, userspace("web", 2, &[1])].concat());
    let (told, web) = (frontends(1, 80)[0], frontends(2, 80)[0]);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--forward-idle-timeout=2s"]);
    daemon.hear(&["\"first load programmed\""]);
    let life = |to| Held::open(lab.client(0), to).wait_for_end();
    let (short, longer) = (life(told), life(web));
    assert!(short >= Duration::from_millis(900) && longer >= Duration::from_millis(1900), "{short:?}, {longer:?}");
    assert!(short < PATIENCE && longer < PATIENCE, "{short:?}, {longer:?}");
    let is_cut = |to| lab.client(0).run(|| connect(to, PATIENCE)).is_err();
    let mut held: Vec<_> = (0..2).map(|_| Held::open(lab.client(0), told)).collect();
    assert!(is_cut(told), "one too many");
    held.pop();
    eventually("a place", || !is_cut(told));
    drop(held);
    drop(daemon);

    // An endpoint that does not answer: four attempts of the time that is said.
    let silent: IpAddr = "10.244.0.99".parse().expect("an address");
    let mut objects = userspace("told", 1, &[1]);
    objects[1] = slice_of("told", "IPv4", &[silent], &[("http", "TCP", TCP)]);
    let mut other = userspace("web", 2, &[1]);
    other[1] = slice_of("web", "IPv4", &[silent], &[("http", "TCP", TCP)]);
    let objects = annotated(objects, &[("connect-timeout", "100ms")]);
    manifests.write("all.json", &[objects, other].concat());
    nft(lab.node().namespace(), &["add", "table", "ip", "test"]);
    let chain = "{ type filter hook output priority 0; ip daddr 10.244.0.99 drop; }";
    nft(lab.node().namespace(), &["add", "chain", "ip", "test", "nobody", chain]);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--forward-connect-timeout=400ms"]);
    daemon.hear(&["\"first load programmed\""]);
    for (to, least, most) in [(told, 400, 1500), (web, 1600, 3700)] {
        let begin = Instant::now();
        assert!(is_cut(to), "nobody answers");
        let took = begin.elapsed();
        assert!(took >= Duration::from_millis(least), "{to}: {took:?}");
        assert!(took < Duration::from_millis(most) + Duration::from_secs(5), "{to}: {took:?}");
    }
    let failures = "pointsman_userspace_endpoint_failures_total{endpoint=\"10.244.0.99:8080\",protocol=\"tcp\"}";
    eventually("metrics that name who failed", || metric(&lab, failures) >= 8.0);
}

#[test]
fn a_stop_hands_over_to_the_kernel_and_drains() {
    let lab = bed(2);
    let manifests = Manifests::of(&with_node_ports(userspace("web", 1, &[1, 2])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--forward-drain=60s"]);
    daemon.hear(&["\"first load programmed\""]);
    let to = frontends(1, 80);
    let loopback = (Ipv4Addr::LOCALHOST, NODE_PORTS[0]).into();
    assert_eq!(tally_by(connect, lab.node(), loopback, 30).len(), 2);
    let mut held = Held::open(lab.client(0), to[0]);
    assert_eq!(tally_by(ask, lab.client(0), frontends(1, 53)[0], 30).len(), 2);
    let client = Restless::start(lab.client(0), &to);
    client.wait_for(20);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).expect("it lives");
    daemon.hear(&["draining what the forwarder carries"]);
    client.wait_for(50);
    held.assert_alive("while it drains");
    assert_refused(connect, lab.node(), loopback, "nobody new is let in who would be ended soon");
    daemon.assert_alive();
    assert_eq!(tally_by(ask, lab.client(0), frontends(1, 53)[0], 30).len(), 2, "UDP by the kernel");
    drop(held);
    let begin = Instant::now();
    let status = daemon.end(Signal::SIGURG);
    assert!(begin.elapsed() < Duration::from_secs(50), "as soon as nobody is left");
    assert_eq!(status.code(), Some(128 + Signal::SIGTERM as i32));
    client.wait_for(50);
    client.assert_uninterrupted("a stop");

    // The next one takes over again, and a second signal ends it at once.
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--forward-drain=1h"]);
    daemon.hear(&["\"first load programmed\""]);
    let held = Held::open(lab.client(0), to[0]);
    assert!(is_forwarded(&lab, &daemon, to[0]));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).expect("it lives");
    daemon.hear(&["draining what the forwarder carries"]);
    assert_eq!(daemon.end(Signal::SIGINT).code(), Some(128 + Signal::SIGTERM as i32));
    drop(held);
}

#[test]
fn after_a_crash_the_kernel_serves_at_once_and_the_next_start_takes_over() {
    let lab = bed(2);
    let headers = annotated(shop("headers", 2, &pods(1..=2)), &[("proxy-protocol", "v1")]);
    let manifests = Manifests::of(&[userspace("web", 1, &[1, 2]), headers].concat());
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["\"first load programmed\""]);
    let to = frontends(1, 80);
    let mut held = Held::open(lab.client(0), to[0]);
    assert!(is_forwarded(&lab, &daemon, to[0]));
    daemon.end(Signal::SIGKILL);
    let died = Instant::now();
    for family in [0, 1] {
        assert!(lab.client(0).run(|| connect(to[family], Duration::from_secs(1))).is_ok(), "the first one after");
        assert!(lab.client(0).run(|| ask(frontends(1, 53)[family], Duration::from_secs(1))).is_ok(), "and a datagram");
    }
    assert!(died.elapsed() < Duration::from_secs(1), "{:?}", died.elapsed());
    assert!(!held.echoes(), "it went through the process that is gone");
    assert_eq!(tally(lab.client(0), to[0], 30).len(), 2, "at random");
    assert_refused(connect, lab.client(0), frontends(2, 80)[0], "the kernel cannot write a header");

    // The next one hears nothing of the cluster for now: an API server that accepts and says nothing.
    let client = Restless::start(lab.client(0), &to);
    let silent = lab.node().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener"));
    let server = format!("--master=http://{}", silent.local_addr().expect("bound"));
    let mut waiting = Daemon::start(lab.node(), &[&server, "--hostname-override=n1"]);
    waiting.hear(&["tables of a predecessor are there"]);
    client.wait_for(50);
    waiting.assert_alive();
    waiting.end(Signal::SIGKILL);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.hear(&["\"first load programmed\""]);
    client.wait_for(50);
    client.assert_uninterrupted("a start, its end and another one");
    assert!(is_forwarded(&lab, &daemon, to[0]));
    assert_eq!(tally(lab.client(0), to[0], 30).len(), 2);
    assert_eq!(tally_by(ask, lab.client(0), frontends(1, 53)[0], 30).len(), 2);
}

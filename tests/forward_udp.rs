//! The UDP forwarder between real namespaces: clients, a node whose rules lead to it, pods that echo. Needs root, and fails without
//! it.

#[path = "forward_udp/bed.rs"]
mod bed;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use bed::{Bed, PATIENCE, SHORT, eventually};
use pointsman::forward::balance::Method;
use pointsman::forward::udp::UdpOptions;

#[test]
fn replies_come_from_the_frontend_in_both_families() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    for frontend in bed.route("web", &["web-1"], |_| {}) {
        // A connected socket hears nobody else.
        let client = bed.connected(0, frontend);
        for number in 0..3u8 {
            assert_eq!(bed::ask(&client, &[number; 64]).expect("a reply"), [number; 64]);
        }
        let from_node = bed.lab.node().run(|| bed::connect(frontend));
        assert_eq!(bed::ask(&from_node, b"who").expect("a reply"), b"web-1", "the node is a client, too");
    }
    for status in bed.statuses("web") {
        assert_eq!((status.flows, status.opened, status.requests, status.replies), (2, 2, 4, 4));
        assert_eq!((status.request_bytes, status.reply_bytes), (3 * 64 + 3, 3 * 64 + 5));
        assert_eq!((status.no_endpoint, status.no_room, status.not_sent), (0, 0, 0));
    }
}

#[test]
fn a_listener_at_any_address_answers_from_the_one_that_was_asked() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    // The node's address on the pods' side: a reply by plain routing would leave from the clients' side.
    for node in pointsman::lab::POD_GATEWAY.usable() {
        let any = if node.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let bound = bed.set("web", any.parse().expect("an address"), &["web-1"], |_| {});
        let client = bed.connected(0, SocketAddr::new(node, bound.port()));
        assert_eq!(bed::ask(&client, b"who").expect("a reply"), b"web-1");
        let burst: Vec<Vec<u8>> = (0..40).map(|number| vec![number; 100]).collect();
        assert_eq!(bed::ask_all(&client, &burst), burst, "joined datagrams, too");
    }
}

#[test]
fn many_clients_hear_their_own_replies() {
    let mut bed = Bed::new(2, &["web-1", "web-2", "web-3"]);
    ["web-1", "web-2", "web-3"].iter().for_each(|pod| bed.echo(pod));
    let frontend = bed.route("web", &["web-1", "web-2", "web-3"], |route| route.method = Method::LeastConnection)[0];
    let clients: Vec<_> = (0..600).map(|number| bed.connected(number % 2, frontend)).collect();
    // All at once, twice.
    for round in 0..2u32 {
        for (number, client) in clients.iter().enumerate() {
            client.send(format!("{round} {number}").as_bytes()).expect("sent");
        }
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(bed::hear(client).expect("a reply"), format!("{round} {number}").into_bytes());
        }
    }
    let status = bed.status("web");
    assert_eq!((status.flows, status.opened), (600, 600));
    let mut by_pod = BTreeMap::<Vec<u8>, u32>::new();
    for client in &clients {
        *by_pod.entry(bed::ask(client, b"who").expect("a reply")).or_default() += 1;
    }
    assert_eq!(by_pod.into_values().collect::<Vec<_>>(), [200; 3], "least connection counts flows exactly");
}

#[test]
fn one_client_socket_and_many_frontends() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let first = bed.route("web", &["web-1"], |_| {})[0];
    let others: Vec<SocketAddr> = (2..6).map(|last| SocketAddr::from(([10, 96, 0, last], first.port()))).collect();
    others.iter().for_each(|other| bed.lead(*other, "web"));
    let client = bed.lab.client(0).run(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let frontends: Vec<SocketAddr> = std::iter::once(first).chain(others).collect();
    for round in 0..3 {
        for frontend in &frontends {
            client.send_to(format!("{round} {frontend}").as_bytes(), frontend).expect("sent");
        }
        let mut buffer = [0; 100];
        for _ in &frontends {
            let (length, from) = client.recv_from(&mut buffer).expect("a reply");
            assert_eq!(String::from_utf8_lossy(&buffer[..length]), format!("{round} {from}"));
        }
    }
    assert_eq!(bed.status("web").flows, frontends.len() as u64, "one flow each");
}

#[test]
fn datagrams_of_every_size() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    for frontend in bed.route("web", &["web-1"], |_| {}) {
        let client = bed.connected(0, frontend);
        let largest = if frontend.is_ipv4() { 65_507 } else { 65_487 };
        for size in [0, 1, 1_472, 1_473, 9_000, largest] {
            let datagram: Vec<u8> = (0..size).map(|index: usize| (index * 7 % 251) as u8).collect();
            assert_eq!(bed::ask(&client, &datagram).expect("a reply").len(), size, "{frontend}");
            assert_eq!(bed::ask(&client, &datagram).expect("a reply"), datagram, "{frontend}");
        }
        // In one burst, so that some of them are joined on the way: of one size, with a shorter end, of mixed sizes.
        let burst: Vec<Vec<u8>> = [100, 100, 100, 40, 0, 0, 1_400, 1_400, 1_400, 1_400, 3_000, 3_000, 10, 11, 12]
            .iter()
            .enumerate()
            .map(|(number, size)| vec![number as u8; *size])
            .collect();
        assert_eq!(bed::ask_all(&client, &burst), burst, "in order, none split or merged");
    }
}

#[test]
fn idle_flows_go_and_busy_ones_stay() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let idle = Duration::from_millis(600);
    let frontend = bed.route("web", &["web-1"], |route| route.options.idle = idle)[0];
    let (busy, once) = (bed.connected(0, frontend), bed.connected(0, frontend));
    let peer = bed::ask(&busy, b"peer").expect("a reply");
    bed::ask(&once, b"x").expect("a reply");
    assert_eq!(bed.status("web").flows, 2);
    // Asks more often than the time, for as long as the other needs to go.
    eventually("the idle flow goes", || {
        bed::ask(&busy, b"x").expect("a reply");
        bed.status("web").expired > 0
    });
    if bed.status("web").expired == 1 {
        assert_eq!(bed::ask(&busy, b"peer").expect("a reply"), peer, "the busy one is still the same flow");
    }
    eventually("all are gone", || bed.status("web").flows == 0 && bed.flows() == 0);
    assert!(bed::ask(&once, b"x").is_ok(), "who comes back gets a new one");
}

#[test]
fn an_endpoint_that_leaves_gives_its_flows_away() {
    let mut bed = Bed::new(1, &["web-1", "web-2"]);
    bed.echo("web-1");
    bed.echo("web-2");
    let frontend = bed.route("web", &["web-1"], |_| {})[0];
    let client = bed.connected(0, frontend);
    let peer = bed::ask(&client, b"peer").expect("a reply");
    assert_eq!(bed::ask(&client, b"who").expect("a reply"), b"web-1");
    // Another joins, the first one only drains: its flow stays.
    let draining = SocketAddr::new(bed.lab.pod("web-1").addresses().v4.into(), bed::PORT);
    bed.route("web", &["web-2"], |route| route.draining = vec![draining]);
    assert_eq!(bed::ask(&client, b"peer").expect("a reply"), peer, "the same flow");
    assert_eq!(bed::ask(&bed.connected(0, frontend), b"who").expect("a reply"), b"web-2", "new ones go elsewhere");
    // Now it is gone.
    bed.route("web", &["web-2"], |_| {});
    assert_eq!(bed::ask(&client, b"who").expect("a reply"), b"web-2");
    assert_eq!(bed.status("web").moved, 1);
    // All are gone, and one comes back.
    bed.route("web", &[], |_| {});
    client.set_read_timeout(Some(SHORT)).expect("a timeout");
    assert!(bed::ask(&client, b"who").is_err());
    assert!(bed.status("web").no_endpoint > 0);
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    bed.route("web", &["web-1"], |_| {});
    assert_eq!(bed::ask(&client, b"who").expect("a reply"), b"web-1");
}

#[test]
fn an_endpoint_that_refuses_costs_no_datagram_at_first_and_one_later() {
    let mut bed = Bed::new(1, &["web-1", "web-2"]);
    // Nobody listens on web-1.
    bed.echo("web-2");
    let frontend = bed.route("web", &["web-1", "web-2"], |route| route.method = Method::RoundRobin)[0];
    for _ in 0..20 {
        assert_eq!(bed::ask(&bed.connected(0, frontend), b"who").expect("sent to another"), b"web-2");
    }
    let status = bed.status("web");
    let refused = SocketAddr::new(bed.lab.pod("web-1").addresses().v4.into(), bed::PORT);
    assert!(matches!(status.failures[..], [(endpoint, 3..)] if endpoint == refused), "{:?}", status.failures);
    assert!(status.failures[0].1 < 10, "set aside after three failures: {:?}", status.failures);
    // A flow that was answered, and whose endpoint stops serving: a datagram is lost, then it moves.
    bed.echo("web-1");
    bed.route("web", &["web-1"], |_| {});
    let client = bed.connected(0, frontend);
    assert_eq!(bed::ask(&client, b"who").expect("a reply"), b"web-1");
    bed.route("web", &["web-1", "web-2"], |_| {});
    bed.stop_echo("web-1");
    client.set_read_timeout(Some(SHORT)).expect("a timeout");
    eventually("the flow moves", || bed::ask(&client, b"who").is_ok_and(|who| who == b"web-2"));
}

#[test]
fn who_is_alone_and_refuses_is_asked_again() {
    let mut bed = Bed::new(1, &["web-1"]);
    let frontend = bed.route("web", &["web-1"], |_| {})[0];
    let client = bed.connected(0, frontend);
    client.set_read_timeout(Some(SHORT)).expect("a timeout");
    for _ in 0..5 {
        assert!(bed::ask(&client, b"who").is_err());
    }
    bed.echo("web-1");
    eventually("it answers", || bed::ask(&client, b"who").is_ok_and(|who| who == b"web-1"));
    assert_eq!(bed.status("web").flows, 1);
}

#[test]
fn affinity_is_of_the_address() {
    let mut bed = Bed::new(2, &["web-1", "web-2", "web-3"]);
    ["web-1", "web-2", "web-3"].iter().for_each(|pod| bed.echo(pod));
    let set = |bed: &mut Bed, pods: &[&str], affinity| {
        bed.route("web", pods, |route| {
            route.method = Method::RoundRobin;
            route.affinity = affinity;
        })[0]
    };
    let who = |bed: &Bed, client: usize, frontend| {
        let asked = (0..6).map(|_| bed::ask(&bed.connected(client, frontend), b"who").expect("a reply"));
        asked.collect::<BTreeSet<_>>()
    };
    let all = ["web-1", "web-2", "web-3"];
    let frontend = set(&mut bed, &all, Some(Duration::from_secs(100)));
    let (first, second) = (who(&bed, 0, frontend), who(&bed, 1, frontend));
    assert_eq!((first.len(), second.len()), (1, 1), "each client address has one endpoint");
    assert_ne!(first, second, "in turn");
    // Its endpoint leaves: another one, and again always the same.
    let gone = String::from_utf8(first.first().expect("one").clone()).expect("a name");
    let others: Vec<_> = all.into_iter().filter(|pod| *pod != gone).collect();
    set(&mut bed, &others, Some(Duration::from_secs(100)));
    let moved = who(&bed, 0, frontend);
    assert!(moved.len() == 1 && moved != first);
    assert_eq!(who(&bed, 1, frontend), second, "the others stay");
    set(&mut bed, &all, None);
    assert_eq!(who(&bed, 0, frontend).len(), 3, "without affinity");
}

#[test]
fn a_flood_from_made_up_sources_displaces_itself() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let limit = 64;
    let frontend = bed.route("web", &["web-1"], |route| route.options.flows = limit)[0];
    // Who is served before the flood, and goes on.
    let served: Vec<_> = (0..4).map(|_| bed.connected(0, frontend)).collect();
    let peers: Vec<_> = served.iter().map(|client| bed::ask(client, b"peer").expect("a reply")).collect();
    for round in 0..10u32 {
        bed.lab.client(0).run(|| {
            for number in 0..300u32 {
                // Nobody is there, so nothing comes back, and the pod does not answer "silent".
                let source = Ipv4Addr::from_bits(0x0a09_0000 + round * 300 + number);
                bed::made_up(source).send_to(b"silent", frontend).expect("sent");
            }
        });
        for (client, peer) in served.iter().zip(&peers) {
            assert_eq!(&bed::ask(client, b"peer").expect("a reply"), peer, "still the same flow");
        }
        let status = bed.status("web");
        assert!(status.flows <= limit as u64 && bed.flows() <= limit, "{status:?}");
    }
    let status = bed.status("web");
    assert!(status.evicted >= 2_500 && status.opened >= 3_000, "{status:?}");
    assert_eq!(
        bed::ask(&bed.connected(0, frontend), b"who").expect("a reply"),
        b"web-1",
        "and there is room for others"
    );
}

#[test]
fn the_process_has_a_limit_of_its_own() {
    let mut bed = Bed::with_flows(1, &["web-1"], 8);
    bed.echo("web-1");
    let first = bed.route("first", &["web-1"], |_| {})[0];
    let clients: Vec<_> = (0..8).map(|_| bed.connected(0, first)).collect();
    clients.iter().for_each(|client| assert!(bed::ask(client, b"x").is_ok()));
    // A route without flows of its own to do without gets none while others have them all.
    let second = bed.route("second", &["web-1"], |_| {})[0];
    let late = bed.connected(0, second);
    late.set_read_timeout(Some(SHORT)).expect("a timeout");
    assert!(bed::ask(&late, b"x").is_err());
    assert!(bed.status("second").no_room > 0);
    // The first goes on, by doing without its oldest.
    for _ in 0..20 {
        assert!(bed::ask(&bed.connected(0, first), b"x").is_ok());
    }
    assert!(bed.flows() <= 8);
    assert!(bed.remove("first"));
    eventually("there is room", || bed::ask(&late, b"x").is_ok());
}

/// Says to this test that it is the process that may run out.
const FEW_DESCRIPTORS: &str = "POINTSMAN_TEST_FEW_DESCRIPTORS";

#[test]
fn few_descriptors_are_shared_by_those_who_ask() {
    if std::env::var_os(FEW_DESCRIPTORS).is_none() {
        // All tests of this process share its descriptors, so this one gets a process of its own.
        let program = std::env::current_exe().expect("a test program");
        let mut child = std::process::Command::new(program);
        child.args(["few_descriptors_are_shared_by_those_who_ask", "--exact", "--nocapture"]).env(FEW_DESCRIPTORS, "1");
        assert!(child.status().expect("it starts").success());
        return;
    }
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let frontend = bed.route("web", &["web-1"], |_| {})[0];
    let clients: Vec<_> = (0..40).map(|_| bed.connected(0, frontend)).collect();
    let room = 10;
    let open = std::fs::read_dir("/proc/self/fd").expect("procfs").count();
    let limit = std::process::Command::new("prlimit")
        .args([format!("--pid={}", std::process::id()), format!("--nofile={}", open + room)])
        .status();
    assert!(limit.expect("prlimit is there").success());
    for _ in 0..3 {
        for client in &clients {
            assert!(bed::ask(client, b"x").is_ok(), "somebody else's idle flow makes room");
        }
    }
    let status = bed.status("web");
    assert!(status.evicted > 0 && status.flows < 2 * room as u64, "{status:?}");
    assert_eq!(status.failures, [], "no endpoint is to blame");
}

#[test]
fn running_out_of_descriptors_is_survived() {
    use pointsman::forward::udp::Dial;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let exhausted = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&exhausted);
    // What the kernel says then; the whole process, with all other tests, would have to run out otherwise.
    let dial = Dial::new(move |_, endpoint: SocketAddr| {
        if switch.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(endpoint)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    });
    let frontend = bed.route("web", &["web-1"], |route| route.options.dial = dial.clone())[0];
    let client = bed.connected(0, frontend);
    assert!(bed::ask(&client, b"x").is_ok());
    exhausted.store(true, Ordering::SeqCst);
    let late = bed.connected(0, frontend);
    late.set_read_timeout(Some(SHORT)).expect("a timeout");
    assert!(bed::ask(&late, b"x").is_err());
    assert!(bed.status("web").no_room > 0);
    exhausted.store(false, Ordering::SeqCst);
    late.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert!(bed::ask(&late, b"x").is_ok());
    assert_eq!(bed.status("web").failures, [], "no endpoint is to blame");
}

#[test]
fn listeners_come_before_and_go_after() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let node: IpAddr = pointsman::lab::NODE.v4.into();
    let taken = bed.lab.node().run(|| UdpSocket::bind((node, 0))).expect("a socket");
    let address = taken.local_addr().expect("an address");
    let error = bed.try_set("web", address, &["web-1"]).expect_err("taken");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(taken);
    assert_eq!(bed.try_set("web", address, &["web-1"]).expect("free"), address);
    bed.lead(SocketAddr::from(([10, 96, 0, 1], 53)), "web");
    let client = bed.connected(0, SocketAddr::from(([10, 96, 0, 1], 53)));
    assert!(bed::ask(&client, b"x").is_ok());
    // Another address for the same route.
    let moved = bed.try_set("web", SocketAddr::new(node, 0), &["web-1"]).expect("another");
    assert_ne!(moved, address);
    let free = || bed.lab.node().run(|| UdpSocket::bind(address)).is_ok();
    eventually("the old one is closed", free);
    bed.shutdown();
    assert!(bed.lab.node().run(|| UdpSocket::bind(moved)).is_ok(), "closed when shutdown returns");
    assert_eq!(bed.flows(), 0);
}

#[test]
fn a_burst_of_one_flow_arrives_in_order() {
    let mut bed = Bed::new(1, &["web-1"]);
    bed.echo("web-1");
    let frontend = bed.route("web", &["web-1"], |route| route.options = UdpOptions::default())[0];
    let client = bed.connected(0, frontend);
    let begin = Instant::now();
    for round in 0..50u32 {
        let burst: Vec<Vec<u8>> =
            (0..30u32).map(|number| [round.to_be_bytes(), number.to_be_bytes()].concat().repeat(100)).collect();
        assert_eq!(bed::ask_all(&client, &burst), burst);
        assert!(begin.elapsed() < PATIENCE * 10, "this takes far too long");
    }
}

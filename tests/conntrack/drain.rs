//! What becomes of the connections of an endpoint that leaves: they live, and with a drain time they end, cleanly, on both sides.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pointsman::kernel::conntrack::ConntrackTable;
use pointsman::lab::Lab;
use pointsman::model::{Family, Protocol};
use pointsman::source::Change;
use serde_json::json;

use super::support::{Client, PATIENCE, Proxy, SHORT, annotated, flows, service, slice, slice_with};
use super::{OTHER_VIP, VIP, families, lab, pod, vip};

const DRAIN: Duration = Duration::from_secs(30);

/// Both ends of a connection through the Service.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn open(lab: &Lab, listener: &TcpListener, to: SocketAddr) -> Self {
        let client = lab.client(0).run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("connected");
        let begin = Instant::now();
        let server = loop {
            match listener.accept() {
                Ok((server, _)) => break server,
                Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("nobody came: {error}"),
            }
        };
        server.set_nonblocking(false).expect("a blocking socket");
        [&client, &server].iter().for_each(|end| end.set_read_timeout(Some(PATIENCE)).expect("a timeout"));
        let mut pair = Self { client, server };
        pair.assert_alive("just opened");
        pair
    }

    fn assert_alive(&mut self, what: &str) {
        let mut heard = [0; 4];
        self.client.write_all(b"ping").and_then(|()| self.server.read_exact(&mut heard)).expect(what);
        self.server.write_all(b"pong").and_then(|()| self.client.read_exact(&mut heard)).expect(what);
    }

    /// Says something in a connection that has been ended, and is told so.
    fn assert_reset(mut end: &TcpStream, what: &str) {
        // A late acknowledgement may have been the first segment, so that it knows already.
        let result = end.write_all(b"anybody there?").and_then(|()| end.read(&mut [0; 8]));
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}: {error}");
    }
}

fn listen(lab: &Lab, pod: &str, family: Family) -> TcpListener {
    let any = if family == Family::V4 { "0.0.0.0:9090" } else { "[::]:9090" };
    let listener = lab.pod(pod).run(|| TcpListener::bind(any)).expect("a listener");
    listener.set_nonblocking(true).expect("a non-blocking socket");
    listener
}

/// A Service with UDP 53 and TCP 80 whose pods listen at 9090.
fn endpoints(lab: &Lab, name: &str, family: Family, endpoints: &[(&str, bool)]) -> Change {
    let endpoints = endpoints.iter().map(|(name, leaving)| {
        (pod(lab, name, family), json!({"ready": !leaving, "serving": true, "terminating": leaving}))
    });
    support_port(slice_with(name, family, endpoints))
}

fn support_port(change: Change) -> Change {
    let Change::Apply(pointsman::source::Object::EndpointSlice(mut slice)) = change else { panic!("a slice") };
    slice.ports.iter_mut().filter(|port| port.name.as_deref() == Some("tcp")).for_each(|port| port.port = Some(9090));
    Change::Apply(pointsman::source::Object::EndpointSlice(slice))
}

fn draining(name: &str, addresses: &[&str], drain: Duration) -> Change {
    annotated(service(name, addresses), "pointsman.dev/drain", &format!("{}s", drain.as_secs()))
}

/// How many TCP connections to a destination are known.
fn tracked(lab: &Lab, to: SocketAddr) -> usize {
    let mut table = lab.node().run(ConntrackTable::open).expect("a table");
    let all = flows(&mut table, Family::of(to.ip()));
    all.iter().filter(|flow| flow.protocol == Protocol::Tcp && flow.original.destination == to).count()
}

fn wait_until_none(lab: &Lab, to: SocketAddr) {
    let begin = Instant::now();
    while tracked(lab, to) > 0 {
        assert!(begin.elapsed() < PATIENCE, "the entry should go");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn after_its_time_tcp_is_reset_on_both_sides_and_not_before() {
    let lab = lab(&["a", "b"]);
    for family in families() {
        let mut proxy = Proxy::start(lab.node());
        let (a, b) = (listen(&lab, "a", family), listen(&lab, "b", family));
        let (to, other) = (vip(VIP, family, 80), vip(OTHER_VIP, family, 80));
        proxy.apply([draining("dns", &VIP, DRAIN), service("other", &OTHER_VIP)]);
        proxy.apply([
            endpoints(&lab, "dns", family, &[("a", false)]),
            endpoints(&lab, "other", family, &[("a", false)]),
        ]);
        let mut pair = Pair::open(&lab, &a, to);
        let mut quiet_client = Pair::open(&lab, &a, to);
        let mut through_other = Pair::open(&lab, &a, other);
        let mut direct = Pair::open(&lab, &a, SocketAddr::new(pod(&lab, "a", family), 9090));
        proxy.apply([endpoints(&lab, "dns", family, &[("a", true), ("b", false)])]);
        let mut to_b = Pair::open(&lab, &b, to);
        proxy.pass(DRAIN - Duration::from_secs(1));
        [&mut pair, &mut quiet_client, &mut to_b].into_iter().for_each(|pair| pair.assert_alive("not yet"));
        // That it goes from the slices at last does not begin its time again.
        proxy.apply([endpoints(&lab, "dns", family, &[("b", false)])]);
        pair.assert_alive("gone from the slices, alive for its clients");
        assert_eq!(tracked(&lab, to), 3);
        proxy.pass(Duration::from_secs(1));
        let begin = Instant::now();
        while tracked(&lab, to) > 1 {
            assert!(begin.elapsed() < PATIENCE, "two connections should be cut");
            std::thread::sleep(Duration::from_millis(5));
        }
        Pair::assert_reset(&pair.client, "the client speaks");
        Pair::assert_reset(&pair.server, "then the server");
        Pair::assert_reset(&quiet_client.server, "the server speaks first");
        Pair::assert_reset(&quiet_client.client, "then the client");
        [&mut to_b, &mut through_other, &mut direct].into_iter().for_each(|pair| pair.assert_alive("not concerned"));
        let nobody = b.accept().expect_err("the other endpoint has seen no connection");
        assert_eq!(nobody.kind(), ErrorKind::WouldBlock);
        Pair::open(&lab, &b, to).assert_alive("a new connection");
    }
}

#[test]
fn where_nobody_is_left_the_client_is_reset_as_well() {
    let lab = lab(&["a"]);
    for family in families() {
        let mut proxy = Proxy::start(lab.node());
        let a = listen(&lab, "a", family);
        let to = vip(VIP, family, 80);
        proxy.apply([draining("dns", &VIP, DRAIN), endpoints(&lab, "dns", family, &[("a", false)])]);
        let mut pair = Pair::open(&lab, &a, to);
        proxy.apply([endpoints(&lab, "dns", family, &[])]);
        pair.assert_alive("its time has begun");
        proxy.pass(DRAIN);
        wait_until_none(&lab, to);
        Pair::assert_reset(&pair.client, "refused as a new connection would be");
    }
}

#[test]
fn without_the_annotation_and_where_segments_are_not_picked_up_tcp_lives() {
    let lab = lab(&["a", "b"]);
    let family = Family::V4;
    let to = vip(VIP, family, 80);
    let a = listen(&lab, "a", family);
    for (drain, loose) in [(None, "1"), (Some(DRAIN), "0")] {
        let mut proxy = Proxy::start(lab.node());
        lab.node().namespace().sysctls(&[("netfilter/nf_conntrack_tcp_loose", loose)]).expect("a sysctl");
        let plain = service("dns", &VIP[..1]);
        let plain = drain.map_or(plain, |drain| draining("dns", &VIP[..1], drain));
        proxy.apply([plain, endpoints(&lab, "dns", family, &[("a", false)])]);
        let mut pair = Pair::open(&lab, &a, to);
        proxy.apply([endpoints(&lab, "dns", family, &[("a", true), ("b", false)])]);
        proxy.pass(DRAIN * 2);
        proxy.apply([endpoints(&lab, "dns", family, &[("b", false)])]);
        proxy.pass(DRAIN * 2);
        pair.assert_alive("never cut");
        assert!(tracked(&lab, to) >= 1, "the entry is there");
    }
}

#[test]
fn a_udp_flow_lives_with_a_terminating_endpoint_until_its_time_is_over() {
    let lab = lab(&["a", "b"]);
    for family in families() {
        let mut proxy = Proxy::start(lab.node());
        proxy.apply([draining("dns", &VIP, DRAIN), slice("dns", family, &[pod(&lab, "a", family)])]);
        let client = Client::new(lab.client(0), vip(VIP, family, 53));
        assert_eq!(client.ask(), "a");
        let leaving = json!({"ready": false, "serving": true, "terminating": true});
        proxy.apply([slice_with(
            "dns",
            family,
            [(pod(&lab, "a", family), leaving), (pod(&lab, "b", family), json!({}))],
        )]);
        proxy.pass(DRAIN - Duration::from_secs(1));
        assert_eq!(client.ask(), "a", "it finishes what it began");
        proxy.pass(Duration::from_secs(1));
        let begin = Instant::now();
        while client.ask_within(SHORT).map_or(true, |pod| pod != "b") {
            assert!(begin.elapsed() < PATIENCE, "the flow should move");
        }
    }
}

/// Weight 0 takes new flows away and leaves those that are there, with a drain time as without.
#[test]
fn weight_0_keeps_flows() {
    let lab = lab(&["a", "b"]);
    let family = Family::V4;
    let mut proxy = Proxy::start(lab.node());
    proxy.apply([draining("dns", &VIP[..1], DRAIN), slice("dns", family, &[pod(&lab, "a", family)])]);
    let client = Client::new(lab.client(0), vip(VIP, family, 53));
    assert_eq!(client.ask(), "a");
    let to_a = format!("ip:{}=0", pod(&lab, "a", family));
    let drained = annotated(draining("dns", &VIP[..1], DRAIN), "pointsman.dev/weights", &to_a);
    proxy.apply([drained, slice("dns", family, &[pod(&lab, "a", family), pod(&lab, "b", family)])]);
    proxy.pass(DRAIN * 10);
    assert_eq!(client.ask(), "a");
    for _ in 0..12 {
        assert_eq!(Client::new(lab.client(0), vip(VIP, family, 53)).ask(), "b");
    }
}

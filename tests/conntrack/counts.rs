//! Counting connections: real ones, however they begin and end.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman::conntrack::Subject;
use pointsman::conntrack::ledger::Report;
use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::kernel::conntrack::{ConntrackTable, Counts, Filter, Tally};
use pointsman::lab::Lab;
use pointsman::model::{Family, Protocol};
use pointsman::schedule::Scheduler;
use pointsman::source::{Change, Object};
use serde_json::json;

use super::flush::flush_conntrack;
use super::support::PATIENCE;
use super::{OTHER_VIP, VIP, families, lab, slices, vip};

/// The default of the daemon.
const BUFFER: usize = 16 << 20;

/// A data plane, a thread that counts, and the newest counts.
struct Rig {
    lab: Lab,
    engine: Engine,
    plane: DataPlane,
    counts: Counts,
    tally: Arc<Tally>,
    reports: tokio::sync::mpsc::Receiver<Report>,
    newest: HashMap<Subject, (u32, u32)>,
}

fn scheduled(name: &str, addresses: &[&str], scheduler: &str) -> Change {
    let value = json!({
        "metadata": {"namespace": "ns", "name": name, "annotations": {"pointsman.dev/scheduler": scheduler}},
        "spec": {"type": "NodePort", "clusterIPs": addresses, "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053},
            {"name": "tcp", "port": 80, "protocol": "TCP", "nodePort": 30080},
        ]},
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

impl Rig {
    fn new(buffer: usize) -> Self {
        let lab = lab(&["a", "b"]);
        let plane = lab.node().run(|| {
            let mut plane = DataPlane::open().expect("a data plane");
            plane.read().expect("nothing there yet");
            plane
        });
        let (report, reports) = tokio::sync::mpsc::channel(64);
        let counts = Counts::with_buffer(report, buffer);
        let tally = counts.tally();
        let engine = Engine::new("node", Scheduler::Random);
        Self { lab, engine, plane, counts, tally, reports, newest: HashMap::new() }
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.engine.take(change));
        let outcome = self.engine.compile();
        assert_eq!(outcome.problems, []);
        self.plane.apply(&outcome.delta).expect("programmed");
        let (counts, interests) = (&mut self.counts, self.engine.take_interests());
        self.lab.node().run(|| counts.watch(interests));
    }

    fn serve(&mut self, name: &str, addresses: &[&str], scheduler: &str) {
        let slices = slices(&self.lab, name, &["a", "b"]);
        self.apply(slices.into_iter().chain([scheduled(name, addresses, scheduler)]));
    }

    /// Waits until so many connections to a port are active and inactive; `poke` is done in between.
    fn until(&mut self, protocol: Protocol, family: Family, want: (u32, u32), what: &str, mut poke: impl FnMut(&Self)) {
        let begin = Instant::now();
        loop {
            while let Ok(report) = self.reports.try_recv() {
                let sum = report.loads.values().fold((0, 0), |sum, load| (sum.0 + load.active, sum.1 + load.inactive));
                self.newest.insert(report.subject, sum);
            }
            let is = |subject: &&Subject| subject.protocol() == protocol && subject.family == family;
            let now = self.newest.keys().find(is).map(|subject| self.newest[subject]);
            if now == Some(want) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE * 2, "{what}: {protocol} {family} should come to {want:?}: {now:?}");
            poke(self);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn tcp(&self, to: SocketAddr) -> TcpStream {
        self.lab.client(0).run(|| {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE).expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            // The greeting, so that the handshake is over.
            let heard = stream.read(&mut [0; 64]).expect("a greeting");
            assert!(heard > 0);
            stream
        })
    }

    fn udp(&self, to: SocketAddr) -> UdpSocket {
        self.lab.client(0).run(|| {
            let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.connect(to).expect("a destination");
            socket.send(b"hello...").expect("sent");
            socket
        })
    }

    fn entries(&self, family: Family, protocol: Protocol) -> Vec<pointsman::conntrack::Flow> {
        let filter = Filter { family, protocol, address: None, port: None };
        self.lab.node().run(|| {
            let mut all = Vec::new();
            let mut table = ConntrackTable::open().expect("a table");
            table.dump(&filter, |flows| all.extend_from_slice(flows)).expect("readable");
            all
        })
    }
}

#[test]
fn a_connection_counts_until_it_ends_in_whatever_way() {
    let mut rig = Rig::new(BUFFER);
    rig.serve("web", &VIP, "lc");
    for family in families() {
        let to = vip(VIP, family, 80);
        let node_port: SocketAddr =
            if family == Family::V4 { "192.168.50.1:30080" } else { "[fd00:50::1]:30080" }.parse().expect("an address");
        let [closed, reset, deleted] = [rig.tcp(to), rig.tcp(to), rig.tcp(to)];
        rig.until(Protocol::Tcp, family, (3, 0), "three are open", |_| {});
        let by_node_port = rig.tcp(node_port);
        rig.until(Protocol::Tcp, family, (4, 0), "one more by the node port", |_| {});
        drop(by_node_port);
        drop(closed);
        rig.until(Protocol::Tcp, family, (2, 2), "two are closed", |_| {});
        socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(reset);
        rig.until(Protocol::Tcp, family, (1, 3), "one is reset", |_| {});
        let entries = rig.entries(family, Protocol::Tcp);
        let gone = rig.lab.node().run(|| ConntrackTable::open()?.delete(&entries)).expect("removed");
        assert!(gone.deleted >= 4, "{gone:?}");
        rig.until(Protocol::Tcp, family, (0, 0), "all entries are removed", |_| {});
        drop(deleted);
    }
    assert_eq!(rig.tally.losses(), 0);
}

#[test]
fn a_flush_of_the_whole_table_brings_counts_to_zero() {
    let mut rig = Rig::new(BUFFER);
    rig.serve("web", &VIP, "lc");
    let mut clients = Vec::new();
    for family in families() {
        clients.extend((0..20).map(|_| rig.tcp(vip(VIP, family, 80))));
        rig.until(Protocol::Tcp, family, (20, 0), "twenty are open", |_| {});
    }
    rig.lab.node().run(flush_conntrack);
    for family in families() {
        rig.until(Protocol::Tcp, family, (0, 0), "flushed", |_| {});
    }
    let _one_more = rig.tcp(vip(VIP, Family::V4, 80));
    rig.until(Protocol::Tcp, Family::V4, (1, 0), "and counting goes on", |_| {});
}

#[test]
fn udp_counts_until_it_times_out() {
    let mut rig = Rig::new(BUFFER);
    let timeouts = [("netfilter/nf_conntrack_udp_timeout", "1"), ("netfilter/nf_conntrack_udp_timeout_stream", "1")];
    rig.serve("dns", &VIP, "nq");
    rig.lab.node().namespace().sysctls(&timeouts).expect("a sysctl");
    for family in families() {
        let _clients = [0; 3].map(|_| rig.udp(vip(VIP, family, 53)));
        rig.until(Protocol::Udp, family, (3, 0), "three clients", |_| {});
        // The kernel forgets what has expired when it comes across it: now and then by itself, and whenever the table is read.
        rig.until(Protocol::Udp, family, (0, 0), "a second later", |rig| drop(rig.entries(family, Protocol::Udp)));
    }
}

#[test]
fn connections_that_were_there_before_are_found_and_their_end_too() {
    let mut rig = Rig::new(BUFFER);
    rig.serve("web", &VIP, "random");
    let to = vip(VIP, Family::V4, 80);
    let mut held: Vec<_> = (0..5).map(|_| rig.tcp(to)).collect();
    assert_eq!(rig.tally.reviews(), 0, "nobody counts for random");
    rig.serve("web", &VIP, "sed");
    rig.until(Protocol::Tcp, Family::V4, (5, 0), "found by reading the table", |_| {});
    held.truncate(2);
    // Nobody listened when they began, so the kernel may be silent about their end.
    rig.until(Protocol::Tcp, Family::V4, (2, 3), "found by reading it again", |_| {});
}

#[test]
fn lost_events_are_made_up_for() {
    // Room for a handful.
    let mut rig = Rig::new(4 << 10);
    rig.serve("dns", &VIP, "lc");
    rig.until(Protocol::Udp, Family::V4, (0, 0), "nothing yet", |_| {});
    let to = vip(VIP, Family::V4, 53);
    let begin = Instant::now();
    let mut clients = Vec::new();
    while rig.tally.losses() == 0 || clients.len() < 200 {
        assert!(begin.elapsed() < PATIENCE, "{} events should not find room", clients.len());
        let more: Vec<_> = rig.lab.client(0).run(|| {
            let one = || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                let sent = socket.send_to(b"hello...", to);
                assert!(sent.is_ok() || sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
                socket
            };
            (0..200).map(|_| one()).collect()
        });
        clients.extend(more);
        assert!(clients.len() < 5000, "events should have been lost by now");
    }
    let all = u32::try_from(clients.len()).expect("some hundreds");
    rig.until(Protocol::Udp, Family::V4, (all, 0), "every one of them", |_| {});
    assert!(rig.tally.reviews() > 1);
}

#[test]
fn nothing_is_heard_of_other_services() {
    let mut rig = Rig::new(BUFFER);
    rig.serve("web", &VIP, "lc");
    rig.apply(slices(&rig.lab, "other", &["a", "b"]));
    // Node ports are the first one's.
    let value = json!({
        "metadata": {"namespace": "ns", "name": "other", "annotations": {"pointsman.dev/scheduler": "rr"}},
        "spec": {"clusterIPs": OTHER_VIP, "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 80, "protocol": "TCP"},
        ]},
    });
    let other = Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))));
    rig.apply([other]);
    rig.until(Protocol::Tcp, Family::V4, (0, 0), "nothing yet", |_| {});
    for family in families() {
        for _ in 0..30 {
            let mut stream = rig.tcp(vip(OTHER_VIP, family, 80));
            stream.write_all(b"ping").expect("sent");
        }
        let _clients: Vec<_> = (0..30).map(|_| rig.udp(vip(OTHER_VIP, family, 53))).collect();
    }
    // What was delivered before this one has been taken by then.
    let _held = rig.tcp(vip(VIP, Family::V4, 80));
    rig.until(Protocol::Tcp, Family::V4, (1, 0), "one", |_| {});
    assert_eq!(rig.tally.events(), 1, "the beginning of the one connection that matters");
}

/// A walk for a Service that is new is none for all others.
#[test]
fn who_is_new_is_looked_for_alone() {
    let mut rig = Rig::new(BUFFER);
    let settled = |rig: &mut Rig, count: u64| {
        let begin = Instant::now();
        while rig.tally.looked_for() < count {
            assert!(begin.elapsed() < PATIENCE * 2, "{} of {count}", rig.tally.looked_for());
            while rig.reports.try_recv().is_ok() {}
            std::thread::sleep(Duration::from_millis(5));
        }
        rig.tally.looked_for()
    };
    rig.serve("web", &VIP, "lc");
    let subjects = settled(&mut rig, 1);
    rig.apply(slices(&rig.lab, "other", &["a", "b"]));
    let value = json!({
        "metadata": {"namespace": "ns", "name": "other", "annotations": {"pointsman.dev/scheduler": "lc"}},
        "spec": {"clusterIPs": OTHER_VIP, "ports": [{"name": "tcp", "port": 80, "protocol": "TCP"}]},
    });
    rig.apply([Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))]);
    let families = families().count() as u64;
    assert_eq!(subjects, 2 * families, "UDP and TCP");
    assert_eq!(settled(&mut rig, subjects + 1), 3 * families, "one port more, and nothing else");
}

/// Where an operator has turned events off, the table still says who has how many.
#[test]
fn without_events_the_table_is_read_often() {
    let mut rig = Rig::new(BUFFER);
    rig.lab.node().namespace().sysctls(&[("netfilter/nf_conntrack_events", "0")]).expect("a sysctl");
    rig.serve("web", &VIP, "lc");
    rig.until(Protocol::Tcp, Family::V4, (0, 0), "nothing yet", |_| {});
    let to = vip(VIP, Family::V4, 80);
    // More than a review apart: before, the second group came minutes later.
    let mut held: Vec<_> = (0..3).map(|_| rig.tcp(to)).collect();
    rig.until(Protocol::Tcp, Family::V4, (3, 0), "found by reading", |_| {});
    held.extend((0..2).map(|_| rig.tcp(to)));
    rig.until(Protocol::Tcp, Family::V4, (5, 0), "found by reading again", |_| {});
    held.clear();
    rig.until(Protocol::Tcp, Family::V4, (0, 5), "closed", |_| {});
    assert_eq!(rig.tally.events(), 0);
}

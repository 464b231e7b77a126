//! A proxy on a lab's node, its clients, and entries made up in the connection tracking table.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nft::netlink::Writer;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use pointsman::conntrack::Flow;
use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::kernel::conntrack::{Cleaner, ConntrackTable, Filter, Pass};
use pointsman::lab::Host;
use pointsman::model::{Family, Protocol};
use pointsman::schedule::Scheduler;
use pointsman::source::{Change, Kind, Object, ObjectKey};
use serde_json::json;

/// Generous: nothing here waits for it unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// For answers that are not meant to come.
pub const SHORT: Duration = Duration::from_millis(200);

/// Engine, data plane and cleaner in one namespace, as the daemon wires them.
pub struct Proxy {
    engine: Engine,
    plane: DataPlane,
    cleaner: Cleaner,
    passes: Receiver<Pass>,
    first: bool,
    /// What time it is for the engine.
    now: Instant,
}

impl Proxy {
    /// Starts on a host, adopting what is there.
    pub fn start(host: &Host) -> Self {
        host.run(|| {
            let mut plane = DataPlane::open().expect("a data plane");
            let mut engine = Engine::new("node", Scheduler::Random);
            engine.adopt(plane.read().expect("readable").image);
            let (report, passes) = mpsc::channel();
            let cleaner = Cleaner::start(move |pass| report.send(*pass).unwrap_or_default()).expect("a cleaner");
            Self { engine, plane, cleaner, passes, first: true, now: Instant::now() }
        })
    }

    /// Programs changes and waits for the passes that follow: one per family concerned.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Pass> {
        changes.into_iter().for_each(|change| self.engine.take(change));
        self.engine.take_time(self.now);
        let mut delta = self.engine.compile().delta;
        let view = self.engine.take_flow_changes();
        let families: BTreeSet<_> = view.suspects().map(|destination| destination.family()).collect();
        self.cleaner.announce(view);
        if std::mem::take(&mut self.first) {
            let found = self.plane.read().expect("readable");
            delta = self.engine.difference(found.image);
            self.engine.settle();
        }
        self.plane.apply(&delta).expect("programmed");
        self.cleaner.programmed();
        self.cleaner.cut(self.engine.take_cuts());
        let passes = families.iter().map(|_| self.passes.recv_timeout(PATIENCE).expect("a pass")).collect();
        assert!(self.passes.recv_timeout(Duration::from_millis(20)).is_err(), "no pass without a reason");
        passes
    }

    /// Lets time pass for the engine, and programs what comes of it.
    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.apply([]);
    }
}

/// The same Service with one annotation more.
pub fn annotated(service: Change, annotation: &str, value: &str) -> Change {
    let Change::Apply(Object::Service(mut service)) = service else { panic!("a Service") };
    service.metadata.annotations.get_or_insert_default().insert(annotation.to_owned(), value.to_owned());
    Change::Apply(Object::Service(service))
}

/// A Service with the UDP ports 53 and the TCP ports 80 of these addresses.
pub fn service(name: &str, addresses: &[&str]) -> Change {
    let value = json!({
        "metadata": {"namespace": "ns", "name": name},
        "spec": {"clusterIPs": addresses, "ports": [
            {"name": "udp", "port": 53, "protocol": "UDP"}, {"name": "tcp", "port": 80, "protocol": "TCP"},
        ]},
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

/// The slice of a Service in one family: pods that serve UDP 5353 and TCP 8080.
pub fn slice(name: &str, family: Family, endpoints: &[IpAddr]) -> Change {
    slice_with(name, family, endpoints.iter().map(|address| (*address, json!({}))))
}

/// The same with conditions.
pub fn slice_with(
    name: &str,
    family: Family,
    endpoints: impl IntoIterator<Item = (IpAddr, serde_json::Value)>,
) -> Change {
    let endpoints: Vec<_> = endpoints
        .into_iter()
        .map(|(address, conditions)| json!({"addresses": [address.to_string()], "conditions": conditions}))
        .collect();
    let value = json!({
        "metadata": {"namespace": "ns", "name": format!("{name}-{family}"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": family.to_string(),
        "ports": [{"name": "udp", "port": 5353, "protocol": "UDP"}, {"name": "tcp", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    });
    Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
}

pub fn delete_service(name: &str) -> Change {
    Change::Delete(Kind::Service, ObjectKey { namespace: "ns".into(), name: name.into() })
}

/// A UDP client that keeps its port.
pub struct Client(UdpSocket);

impl Client {
    pub fn new(host: &Host, to: SocketAddr) -> Self {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
        let socket = host.run(|| UdpSocket::bind(any)).expect("a socket");
        socket.connect(to).expect("a destination");
        Self(socket)
    }

    /// Sends a datagram and says who answered it.
    pub fn ask_within(&self, timeout: Duration) -> io::Result<String> {
        self.0.set_read_timeout(Some(timeout)).expect("a timeout");
        self.0.send(b"question")?;
        let mut buffer = [0; 256];
        let len = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[8..len]).into_owned())
    }

    pub fn ask(&self) -> String {
        self.ask_within(PATIENCE).expect("an answer")
    }

    pub fn port(&self) -> u16 {
        self.0.local_addr().expect("bound").port()
    }
}

/// All flows in a namespace, as [`ConntrackTable`] reads them.
pub fn flows(table: &mut ConntrackTable, family: Family) -> Vec<Flow> {
    let mut all = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let filter = Filter { protocol, ..Filter::udp(family) };
        table.dump(&filter, |flows| all.extend_from_slice(flows)).expect("a dump");
    }
    all
}

/// The kernel's own listing of the calling thread's namespace: UDP entries that name this original destination. Each is listed once
/// here: a kernel (6.1) that walks its one hash table while others change it may come by an entry several times.
pub fn listed(to: SocketAddr) -> BTreeSet<String> {
    let listing = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("a listing");
    let address = match to.ip() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => address.segments().map(|segment| format!("{segment:04x}")).join(":"),
    };
    let is_to = |line: &&str| {
        let mut original = line.split_whitespace().skip_while(|word| !word.starts_with("dst="));
        line.contains(" udp ")
            && original.next() == Some(&format!("dst={address}"))
            && original.find(|word| word.starts_with("dport=")) == Some(&format!("dport={}", to.port()))
    };
    let entry = |line: &str| line.find("src=").map(|at| line[at..].to_owned());
    listing.lines().filter(is_to).filter_map(entry).collect()
}

/// An entry to be made up: who answers decides whether it is stale.
#[derive(Clone, Copy)]
pub struct Made {
    pub protocol: Protocol,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub answered_by: SocketAddr,
    pub zone: Option<u16>,
}

/// Puts entries into the calling thread's namespace, by IPCTNL_MSG_CT_NEW. IPv4 only.
pub fn make(entries: impl IntoIterator<Item = Made>) {
    const PER_DATAGRAM: usize = 200;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
        .expect("a socket");
    let mut entries = entries.into_iter().peekable();
    let mut writer = Writer::new();
    while entries.peek().is_some() {
        writer.clear();
        for entry in entries.by_ref().take(PER_DATAGRAM) {
            // CT_NEW of subsystem 1; REQUEST, EXCL and CREATE; AF_INET.
            let message = writer.begin(0x100, 0x601, 1, &[2, 0, 0, 0]);
            tuple(&mut writer, 1, entry.protocol, entry.from, entry.to);
            tuple(&mut writer, 2, entry.protocol, entry.answered_by, entry.from);
            // CTA_STATUS: SEEN_REPLY, ASSURED and CONFIRMED; CTA_TIMEOUT in seconds; CTA_ZONE.
            writer.attr_be32(3, 0xe);
            writer.attr_be32(7, 600);
            if let Some(zone) = entry.zone {
                writer.attr(18, &zone.to_be_bytes());
            }
            writer.end(message);
        }
        send(fd.as_raw_fd(), writer.as_bytes(), MsgFlags::empty()).expect("sent");
        let mut buffer = [0; 4096];
        let answer = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT);
        assert!(answer.is_err(), "refused: {:?}", &buffer[16..20]);
    }
}

fn tuple(writer: &mut Writer, kind: u16, protocol: Protocol, from: SocketAddr, to: SocketAddr) {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => panic!("IPv4 only"),
    };
    let nest = writer.begin_nest(kind);
    let ip = writer.begin_nest(1);
    writer.attr(1, &octets(from));
    writer.attr(2, &octets(to));
    writer.end_nest(ip);
    let proto = writer.begin_nest(2);
    writer.attr(1, &[protocol.number()]);
    writer.attr(2, &from.port().to_be_bytes());
    writer.attr(3, &to.port().to_be_bytes());
    writer.end_nest(proto);
    writer.end_nest(nest);
}

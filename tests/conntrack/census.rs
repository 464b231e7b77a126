//! The census against real connections.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pointsman::conntrack::{Destination, Directory, Entrances};
use pointsman::kernel::conntrack::CensusTaker;
use pointsman::lab::{Namespace, Rtnl};
use pointsman::model::{PortKey, Protocol, ServiceKey};
use socket2::{Domain, Socket, Type};

const FRONTEND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 96, 1)), 80);
const ENDPOINT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
const SILENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 96, 2)), 80);

fn nft(rules: &str) {
    let done = std::process::Command::new("nft").arg(rules).output().expect("nft");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn port(name: &str) -> PortKey {
    PortKey { service: ServiceKey::new("shop", name), name: "".into(), protocol: Protocol::Tcp }
}

fn entry(name: &str, to: SocketAddr) -> Entrances {
    let entries = vec![(Destination::Address(to), port(name))];
    Entrances { service: ServiceKey::new("shop", name), entries, left: Vec::new() }
}

/// Opens a connection from this port, which may be in use by one that has ended.
fn connect(from: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("set");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, from)).into()).expect("the port");
    socket.connect(&FRONTEND.into()).expect("served");
    socket.into()
}

/// Everything that opens is counted once, whatever became of it between two walks; nothing is walked while nobody looks.
#[test]
fn what_opens_is_counted_once_and_nobody_is_counted_unasked() {
    let namespace = Namespace::anonymous().expect("a namespace, which needs root");
    namespace.run(|| {
        Rtnl::open().and_then(|mut rtnl| rtnl.set_up("lo")).expect("a loopback interface");
        nft("add table ip t; add chain ip t out { type nat hook output priority -100; };
            add rule ip t out ip daddr 127.0.96.1 tcp dport 80 dnat to 127.0.0.1:8080;
            add rule ip t out ip daddr 127.0.96.2 tcp dport 80 dnat to 127.0.0.1:9;
            add chain ip t in { type filter hook input priority 0; };
            add rule ip t in tcp dport 9 drop");
        let listener = TcpListener::bind(ENDPOINT).expect("a fresh namespace");
        let census = CensusTaker::start().expect("a table");
        let mut walks = census.subscribe();
        census.direct(Directory::from([entry("web", FRONTEND), entry("silent", SILENT)]));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!walks.has_changed().expect("alive"), "nobody has looked");
        // Somebody keeps looking from now on. The first walk is for who is there.
        let mut walk = || {
            let begin = Instant::now();
            while !walks.has_changed().expect("alive") {
                census.look_closely();
                assert!(begin.elapsed() < Duration::from_secs(30), "walks should come while somebody looks");
                std::thread::sleep(Duration::from_millis(20));
            }
            walks.borrow_and_update().clone()
        };
        let standing = connect(20_000);
        assert_eq!(walk().account(&port("web")).map(|of| (of.total.opened, of.total.active)), Some((0, 1)));
        let mut accepted = vec![listener.accept().expect("a connection")];
        // Ten that stay, five that are closed in the usual way, five that are reset, one that nobody answers.
        let stay: Vec<_> = (0..10).map(|n| connect(20_001 + n)).collect();
        let close: Vec<_> = (0..5).map(|n| connect(20_100 + n)).collect();
        let reset: Vec<_> = (0..5).map(|n| connect(20_200 + n)).collect();
        accepted.extend((0..20).map(|_| listener.accept().expect("a connection")));
        for stream in reset {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
        }
        drop(close);
        accepted.retain(|(_, peer)| !(20_100..20_200).contains(&peer.port()));
        let waiting = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        waiting.set_nonblocking(true).expect("set");
        assert!(waiting.connect(&SILENT.into()).is_err(), "it goes on");
        let found = walk();
        let web = found.account(&port("web")).expect("counted");
        assert_eq!((web.total.opened, web.total.active, web.total.inactive), (20, 11, 10), "{web:?}");
        assert_eq!(found.endpoint(&port("web"), ENDPOINT), Some(web.total), "one endpoint has them all");
        assert_eq!(found.account(&port("silent")).map(|of| of.total.unanswered), Some(0));
        // The same ports again: new connections, though nothing but that differs.
        let again: Vec<_> = (0..5).map(|n| connect(20_200 + n)).collect();
        let found = walk();
        let web = found.account(&port("web")).expect("counted");
        assert_eq!((web.total.opened, web.total.active), (25, 16), "{web:?}");
        assert_eq!(found.account(&port("silent")).map(|of| of.total.unanswered), Some(1));
        assert_eq!((found.totals.opened, found.totals.unanswered, found.partial), (26, 1, false), "{found:?}");
        drop((standing, stay, again, accepted));
        let left = vec![(Protocol::Tcp, Destination::Address(FRONTEND))];
        census.direct(vec![Entrances { service: ServiceKey::new("shop", "web"), entries: Vec::new(), left }]);
        let found = walk();
        assert!(found.account(&port("web")).is_none() && found.totals.opened == 26, "{found:?}");
    });
}

//! A node that forwards: clients connect to [`VIP`], the kernel sends them to a route's listener, the route knows the pods.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nft::{Chain, ChainKind, Connection, Expr, Family as NftFamily, Hook, Key, Reg, Rule, Table, Transaction};
use pointsman::forward::{EndpointStatus, Forwarder, Method, Options, Route, RouteId, RouteStatus, Settings};
use pointsman::lab::{Host, Lab, NODE, POD_GATEWAY};
use pointsman::model::{Family, PortKey, Protocol, ServiceKey};
use pointsman::schedule::Candidate;
use socket2::SockRef;

/// Generous: nothing waits for it unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Where pods listen.
pub const PORT: u16 = 8080;

/// What clients connect to: addresses that only translation knows.
pub fn vip(family: Family) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::new(10, 96, 0, 1), 80).into(),
        Family::V6 => ("fd00:10:96::1".parse::<Ipv6Addr>().expect("an address"), 80).into(),
    }
}

/// A lab whose node has a forwarder.
pub struct Bed {
    pub forwarder: Option<Forwarder>,
    pub lab: Lab,
}

/// A server in a pod; it stops accepting when dropped.
pub struct Server(TcpListener);

impl Bed {
    /// With pods `web-1`, `web-2`...
    pub fn new(pods: usize) -> Self {
        Self::with(pods, settings())
    }

    pub fn with(pods: usize, settings: Settings) -> Self {
        let lab = lab(pods);
        let forwarder = lab.node().run(|| Forwarder::start(settings)).expect("a forwarder");
        Self { forwarder: Some(forwarder), lab }
    }

    pub fn forwarder(&mut self) -> &mut Forwarder {
        self.forwarder.as_mut().expect("not shut down")
    }

    /// A route to these endpoints, and clients sent to it. Returns its listener.
    pub fn serve(&mut self, family: Family, endpoints: &[SocketAddr], options: Options) -> SocketAddr {
        let listener = self.forwarder().set(&id(family), &route(endpoints, options)).expect("a listener");
        redirect(self.lab.node(), listener);
        listener
    }

    /// The address of a pod's server.
    pub fn endpoint(&self, pod: usize, family: Family) -> SocketAddr {
        endpoint(&self.lab, pod, family)
    }

    /// A client's connection to the Service.
    pub fn connect(&self, family: Family) -> TcpStream {
        connect(self.lab.client(0), vip(family))
    }

    /// Fails unless the Service breaks a client's connection off.
    pub fn assert_refused(&self, family: Family, what: &str) {
        assert_refused(self.lab.client(0), vip(family), what);
    }

    /// What has happened in the route.
    pub fn status(&self, family: Family) -> RouteStatus {
        let routes = self.forwarder.as_ref().expect("not shut down").status();
        routes.into_iter().find(|(found, _)| *found == id(family)).expect("the route").1
    }

    /// What has happened at an endpoint.
    pub fn endpoint_status(&self, pod: usize, family: Family) -> EndpointStatus {
        self.status(family).endpoints[&self.endpoint(pod, family)]
    }

    /// Waits until no connection is left, and with it nothing of one.
    pub fn wait_for_silence(&self) {
        eventually("the end of all connections", || self.forwarder.as_ref().expect("there").connections() == 0);
    }
}

/// The node's address only: what is translated to another one would be a mistake.
pub fn settings() -> Settings {
    Settings { listen_v4: NODE.v4, listen_v6: NODE.v6, workers: 2, max_connections: None }
}

/// A node, one client and these pods, who all have heard of each other: the first packet of a new IPv6 link may be lost.
pub fn lab(pods: usize) -> Lab {
    let names: Vec<String> = (1..=pods).map(|number| format!("web-{number}")).collect();
    let lab = Lab::builder().prefix("pmfwd").pods(names).build().expect("a lab, which needs root");
    for host in lab.pods().chain([lab.client(0)]) {
        let router = if host.role().starts_with("client") { NODE } else { POD_GATEWAY };
        for address in router.usable() {
            eventually("an answer of the router", || {
                let answer = host.run(|| TcpStream::connect_timeout(&(address, 1).into(), PATIENCE));
                matches!(answer, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
            });
        }
    }
    lab
}

pub fn id(family: Family) -> RouteId {
    let service = ServiceKey { namespace: "shop".into(), name: "web".into() };
    let port = PortKey { service, name: "http".into(), protocol: Protocol::Tcp };
    RouteId { port, family, local: false }
}

pub fn route(endpoints: &[SocketAddr], options: Options) -> Route {
    let mut candidates: Vec<_> = endpoints.iter().map(|endpoint| Candidate::equal(*endpoint)).collect();
    candidates.sort();
    Route { candidates, method: Method::RoundRobin, affinity: None, options }
}

pub fn endpoint(lab: &Lab, pod: usize, family: Family) -> SocketAddr {
    let addresses = lab.pod(&format!("web-{pod}")).addresses();
    let address: IpAddr = match family {
        Family::V4 => addresses.v4.into(),
        Family::V6 => addresses.v6.into(),
    };
    (address, PORT).into()
}

/// Has the node send what is for [`vip`] to a listener of its own.
pub fn redirect(node: &Host, listener: SocketAddr) {
    const TABLE: &str = "test";
    let vip = vip(Family::of(listener.ip()));
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (family, load) = match listener {
        SocketAddr::V4(_) => (NftFamily::Ip, Expr::ip_daddr(Reg::R1)),
        SocketAddr::V6(_) => (NftFamily::Ip6, Expr::ip6_daddr(Reg::R1)),
    };
    let rule = vec![
        load,
        Expr::eq(Reg::R1, Key::raw(&octets(vip.ip()))),
        Expr::l4proto(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&[6])),
        Expr::Immediate { dreg: Reg::R1, data: Key::raw(&octets(listener.ip())) },
        Expr::Immediate { dreg: Reg::R2, data: Key::raw(&listener.port().to_be_bytes()) },
        Expr::dnat(family, Reg::R1, Some(Reg::R2)),
    ];
    let mut transaction = Transaction::new();
    transaction.add_table(&Table::new(family, TABLE));
    transaction.add_chain(&Chain::new(family, TABLE, "entry").hooked(ChainKind::Nat, Hook::Prerouting, -100));
    transaction.flush_chain(family, TABLE, "entry");
    transaction.add_rule(&Rule::new(family, TABLE, "entry", rule));
    node.run(|| Connection::open().and_then(|mut kernel| kernel.commit(&transaction))).expect("a dnat rule");
}

pub fn connect(from: &Host, to: SocketAddr) -> TcpStream {
    let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("a connection");
    patient(&stream);
    stream
}

fn patient(stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
}

/// Serves each connection by a thread of its own.
pub fn server(lab: &Lab, pod: usize, work: impl Fn(TcpStream) + Clone + Send + 'static) -> Server {
    server_on(lab.pod(&format!("web-{pod}")), PORT, work)
}

pub fn server_on(host: &Host, port: u16, work: impl Fn(TcpStream) + Clone + Send + 'static) -> Server {
    let listener = host.run(|| {
        let any = if pointsman::lab::has_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from([0, 0, 0, 0]) };
        let socket =
            socket2::Socket::new(socket2::Domain::for_address((any, port).into()), socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any, port).into())?;
        socket.listen(4096)?;
        io::Result::Ok(TcpListener::from(socket))
    });
    let listener = listener.expect("a listener");
    let server = Server(listener.try_clone().expect("a listener"));
    let serve = move || {
        while let Ok((stream, _)) = listener.accept() {
            patient(&stream);
            let work = work.clone();
            std::thread::spawn(move || work(stream));
        }
    };
    host.namespace().thread(serve).expect("a thread");
    server
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the thread's `accept`.
        let _ = SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }
}

/// Answers everything with itself until the client has finished, then finishes too.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(heard @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..heard]).is_err() {
            return;
        }
    }
}

/// Fails unless an echo comes back.
pub fn assert_echo(stream: &mut TcpStream, what: &str) {
    let mut echo = [0; 4];
    let result = stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut echo));
    assert!(result.is_ok() && &echo == b"ping", "{what}: {result:?}");
}

/// Fails unless a connection is broken off: at once, or even before the client has noticed that it was made.
pub fn assert_refused(from: &Host, to: SocketAddr, what: &str) {
    match from.run(|| TcpStream::connect_timeout(&to, PATIENCE)) {
        Ok(mut stream) => {
            patient(&stream);
            assert_reset(&mut stream, what);
        }
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{what}: {error}"),
    }
}

/// Fails unless the peer has broken the connection off.
pub fn assert_reset(stream: &mut TcpStream, what: &str) {
    let result = stream.read(&mut [0; 16]);
    let reset = matches!(&result, Err(error) if error.kind() == io::ErrorKind::ConnectionReset);
    assert!(reset, "{what}: {result:?}");
}

/// Waits until the condition holds, and fails when it has not after a while.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE * 2, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

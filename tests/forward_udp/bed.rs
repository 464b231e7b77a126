//! A node with a UDP forwarder, pods that echo, and rules that lead from frontends to routes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nft::{Chain, ChainKind, Connection, Expr, Family, Hook, Key, Reg, Rule, Table, Transaction};
use pointsman::forward::balance::Method;
use pointsman::forward::udp::{UdpForwarder, UdpOptions, UdpRoute, UdpStatus};
use pointsman::lab::{Lab, NODE};
use pointsman::schedule::Candidate;

/// Generous: nothing waits for it unless something is broken.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// For questions that nobody is meant to answer.
pub const SHORT: Duration = Duration::from_millis(300);
/// Where pods echo.
pub const PORT: u16 = 5353;

const TABLE: &str = "frontends";

pub struct Bed {
    forwarder: Option<UdpForwarder>,
    echoes: BTreeMap<String, Echo>,
    families: Vec<Family>,
    frontends: BTreeMap<String, Vec<SocketAddr>>,
    pub lab: Lab,
}

/// Servers of one pod; they stop when dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE * 3, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A socket that hears only `to`, in the calling thread's namespace.
pub fn connect(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect(to).expect("a route");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// A socket with a source that is not ours.
pub fn made_up(source: Ipv4Addr) -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).expect("a socket");
    socket.set_ip_transparent_v4(true).expect("root may");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("any source");
    socket.into()
}

/// The next datagram.
pub fn hear(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 65_536];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

/// The reply to a datagram; what came earlier and was not heard is skipped.
pub fn ask(socket: &UdpSocket, datagram: &[u8]) -> io::Result<Vec<u8>> {
    socket.set_nonblocking(true)?;
    while hear(socket).is_ok() {}
    socket.set_nonblocking(false)?;
    socket.send(datagram)?;
    hear(socket)
}

/// As many replies as datagrams, in the order in which they come.
pub fn ask_all(socket: &UdpSocket, datagrams: &[Vec<u8>]) -> Vec<Vec<u8>> {
    for datagram in datagrams {
        socket.send(datagram).expect("sent");
    }
    datagrams.iter().map(|_| hear(socket).expect("a reply")).collect()
}

// === impl Bed ===

impl Bed {
    pub fn new(clients: u8, pods: &[&str]) -> Self {
        Self::with_flows(clients, pods, UdpForwarder::FLOWS)
    }

    pub fn with_flows(clients: u8, pods: &[&str], flows: usize) -> Self {
        let lab = Lab::builder().prefix("pmtest").clients(clients).pods(pods.iter().copied()).build().expect("a lab");
        let families: Vec<_> =
            NODE.usable().map(|address| if address.is_ipv4() { Family::Ip } else { Family::Ip6 }).collect();
        lab.node().run(|| {
            let mut transaction = Transaction::new();
            for family in &families {
                transaction.add_table(&Table::new(*family, TABLE));
                for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
                    transaction.add_chain(&Chain::new(*family, TABLE, chain).hooked(ChainKind::Nat, hook, -100));
                }
            }
            Connection::open().expect("netlink").commit(&transaction).expect("chains");
        });
        // The workers stay in the namespace in which they are started.
        let forwarder = Some(lab.node().run(|| UdpForwarder::start(2, flows)).expect("workers"));
        let (echoes, frontends) = (BTreeMap::new(), BTreeMap::new());
        Self { forwarder, echoes, families, frontends, lab }
    }

    /// Pods' servers: `who` is answered with the pod's name, `peer` with the address that asks, `silent` not at all, and everything
    /// else with itself.
    pub fn echo(&mut self, pod: &str) {
        let stop = Arc::new(AtomicBool::new(false));
        let host = self.lab.pod(pod);
        let start = |address: IpAddr| {
            let socket = host.run(|| UdpSocket::bind((address, PORT))).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
            let (stop, name) = (Arc::clone(&stop), pod.to_owned());
            std::thread::spawn(move || serve(&socket, &name, &stop))
        };
        let threads = host.addresses().usable().map(start).collect();
        self.echoes.insert(pod.to_owned(), Echo { stop, threads });
    }

    pub fn stop_echo(&mut self, pod: &str) {
        assert!(self.echoes.remove(pod).is_some(), "{pod} serves");
    }

    /// Sets a route in every family, led to by a frontend each.
    pub fn route(&mut self, name: &str, pods: &[&str], change: impl Fn(&mut UdpRoute)) -> Vec<SocketAddr> {
        let known = self.frontends.contains_key(name);
        let number = 1 + self.frontends.len() as u16;
        for node in NODE.usable() {
            let route = format!("{name}-{}", if node.is_ipv4() { "v4" } else { "v6" });
            self.set(&route, SocketAddr::new(node, 0), pods, &change);
            if !known {
                let frontend = match node {
                    IpAddr::V4(_) => SocketAddr::from(([10, 96, 0, 1], 1_000 + number)),
                    IpAddr::V6(_) => SocketAddr::new("fd00:96::1".parse().expect("an address"), 1_000 + number),
                };
                self.lead(frontend, &route);
                self.frontends.entry(name.to_owned()).or_default().push(frontend);
            }
        }
        self.frontends[name].clone()
    }

    /// Sets one route.
    pub fn set(
        &mut self,
        route: &str,
        listen: SocketAddr,
        pods: &[&str],
        change: impl FnOnce(&mut UdpRoute),
    ) -> SocketAddr {
        let mut settings = self.settings(listen, pods);
        change(&mut settings);
        let forwarder = self.forwarder.as_mut().expect("runs");
        // Listeners belong to the namespace of the thread that makes them.
        self.lab.node().run(|| forwarder.set(route, settings)).expect("a listener")
    }

    pub fn try_set(&mut self, route: &str, listen: SocketAddr, pods: &[&str]) -> io::Result<SocketAddr> {
        let settings = self.settings(listen, pods);
        let forwarder = self.forwarder.as_mut().expect("runs");
        self.lab.node().run(|| forwarder.set(route, settings))
    }

    fn settings(&self, listen: SocketAddr, pods: &[&str]) -> UdpRoute {
        let of = |pod: &&str| {
            let addresses = self.lab.pod(pod).addresses();
            let address = if listen.is_ipv4() { addresses.v4.into() } else { addresses.v6.into() };
            Candidate::equal(SocketAddr::new(address, PORT))
        };
        UdpRoute {
            listen,
            candidates: pods.iter().map(of).collect(),
            draining: Vec::new(),
            method: Method::Random,
            affinity: None,
            seed: 1,
            // One listener, so that limits and turns are exact.
            options: UdpOptions { shards: NonZeroUsize::MIN, ..UdpOptions::default() },
        }
    }

    /// Adds rules: what is sent to the frontend goes to a route's listener.
    pub fn lead(&mut self, frontend: SocketAddr, route: &str) {
        let status = |name: &str| self.forwarder.as_ref().expect("runs").status(name);
        let (listener, _) = status(route).or_else(|| status(&format!("{route}-v4"))).expect("a route");
        let (family, load) = match frontend {
            SocketAddr::V4(_) => (Family::Ip, Expr::ip_daddr(Reg::R1)),
            SocketAddr::V6(_) => (Family::Ip6, Expr::ip6_daddr(Reg::R1)),
        };
        assert!(self.families.contains(&family));
        let bytes = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let rule = || {
            vec![
                load.clone(),
                Expr::eq(Reg::R1, Key::raw(&bytes(frontend.ip()))),
                Expr::l4proto(Reg::R1),
                Expr::eq(Reg::R1, Key::raw(&[nix::libc::IPPROTO_UDP as u8])),
                Expr::th_dport(Reg::R1),
                Expr::eq(Reg::R1, Key::raw(&frontend.port().to_be_bytes())),
                Expr::Immediate { dreg: Reg::R1, data: Key::raw(&bytes(listener.ip())) },
                Expr::Immediate { dreg: Reg::R2, data: Key::raw(&listener.port().to_be_bytes()) },
                Expr::dnat(family, Reg::R1, Some(Reg::R2)),
            ]
        };
        self.lab.node().run(|| {
            let mut transaction = Transaction::new();
            for chain in ["prerouting", "output"] {
                transaction.add_rule(&Rule::new(family, TABLE, chain, rule()));
            }
            Connection::open().expect("netlink").commit(&transaction).expect("rules");
        });
    }

    /// A client's socket that hears only this frontend.
    pub fn connected(&self, client: usize, frontend: SocketAddr) -> UdpSocket {
        self.lab.client(client).run(|| connect(frontend))
    }

    /// Of a route in IPv4, which is the one most tests look at.
    pub fn status(&self, name: &str) -> UdpStatus {
        self.statuses(name).swap_remove(0)
    }

    /// Of a route, by family.
    pub fn statuses(&self, name: &str) -> Vec<UdpStatus> {
        let forwarder = self.forwarder.as_ref().expect("runs");
        let of = |suffix| forwarder.status(&format!("{name}-{suffix}")).map(|(_, status)| status);
        ["v4", "v6"].into_iter().filter_map(of).collect()
    }

    /// Flows of the process.
    pub fn flows(&self) -> usize {
        self.forwarder.as_ref().map_or(0, UdpForwarder::flows)
    }

    pub fn remove(&mut self, name: &str) -> bool {
        let forwarder = self.forwarder.as_mut().expect("runs");
        ["v4", "v6"].map(|suffix| forwarder.remove(&format!("{name}-{suffix}"))).contains(&true)
    }

    /// Ends the forwarder and waits for it.
    pub fn shutdown(&mut self) {
        drop(self.forwarder.take().expect("runs"));
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.echoes.clear();
        self.forwarder.take();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Ordering::SeqCst) {
        // Timeouts, and errors of those who are gone.
        let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
        let _ = match &buffer[..length] {
            b"who" => socket.send_to(name.as_bytes(), peer),
            b"peer" => socket.send_to(peer.to_string().as_bytes(), peer),
            b"silent" => Ok(0),
            other => socket.send_to(other, peer),
        };
    }
}

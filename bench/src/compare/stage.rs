//! The lab that a contender is measured in: one client, one node, one pod with many addresses and all servers.
//!
//! Each session has a lab of its own, so that nothing of one contender is left for the next; when it is dropped, namespaces, tables, links
//! and daemons go together. The floor has one too, which stays for the whole run and has nothing but routes.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman::lab::{Host, Lab, Route};
use socket2::Socket;

use super::model::{self, BULK_PORT, DNS_PORT, Service, WEB_PORT};
use crate::arrivals::{self, Door};
use crate::first_packet::connect;
use crate::first_packet::flush_conntrack;
use crate::forward::load;
use crate::forward_udp;

const POD: &str = "pod";

/// Addresses of the pod's for Service `web`.
pub const WEB_ENDPOINTS: usize = 16;

/// Addresses of the client's own besides its first.
pub const CLIENTS: usize = 256;

/// See the module.
pub struct Stage {
    // Dropped in this order.
    bulk: [Socket; 1],
    web: [Socket; 1],
    _server: load::Server,
    echo: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    pub lab: Lab,
}

impl Stage {
    pub fn new() -> anyhow::Result<Self> {
        let lab = Lab::builder().prefix("pm-compare").pods([POD]).build()?;
        let (pod, client) = (lab.pod(POD), lab.client(0));
        let (mut of_pod, mut of_node) = (pod.namespace().rtnl()?, lab.node().namespace().rtnl()?);
        let bulk = (0..crate::cluster::ENDPOINTS).map(model::bulk_endpoint);
        for address in bulk.chain((0..WEB_ENDPOINTS).map(model::web_endpoint)) {
            of_pod.add_address("eth0", address.into(), 32)?;
            of_node.add_route(Route { to: (address.into(), 32), via: None, link: POD })?;
        }
        let mut of_client = client.namespace().rtnl()?;
        for number in 0..CLIENTS {
            of_client.add_address("eth0", client_address(number).into(), 32)?;
        }
        // Ports and entries must not run out while thousands of connections per second end, whoever ends them.
        for host in [lab.node(), client, pod] {
            host.namespace().sysctls(&[("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "10000 65000")])?;
        }
        let bulk = [pod.run(|| connect::listen(BULK_PORT))?];
        let web = [pod.run(|| arrivals::listen(WEB_PORT))?];
        let server = load::Server::start(pod)?;
        let socket = pod.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, DNS_PORT)))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let echo = std::thread::spawn(move || forward_udp::serve(&socket, true, &stopped, &AtomicU64::default()));
        Ok(Self { bulk, web, _server: server, echo: Some((stop, echo)), lab })
    }

    pub fn node(&self) -> &Host {
        self.lab.node()
    }

    pub fn client(&self) -> &Host {
        self.lab.client(0)
    }

    /// The pod's first address.
    pub fn pod(&self) -> Ipv4Addr {
        self.lab.pod(POD).addresses().v4
    }

    /// The listener behind all endpoints of the bulk.
    pub fn bulk(&self) -> &[Socket] {
        &self.bulk
    }

    /// The way to the endpoints of `web`, by a Service or by an address of one; they are numbered as in the model.
    pub fn web(&self, to: SocketAddr) -> Door<'_> {
        let endpoint = |_, server: &Socket| {
            let own = server.local_addr().ok().and_then(|address| address.as_socket_ipv4());
            own.map_or(usize::MAX, |own| usize::from(own.ip().octets()[3]).wrapping_sub(1))
        };
        Door { listeners: &self.web, to, endpoint }
    }

    /// Empties the node's connection tracking table.
    pub fn forget_connections(&self) -> anyhow::Result<()> {
        self.node().run(flush_conntrack)
    }

    /// Waits until a sample of Services answers, over the whole range; from the client.
    pub fn until_served(
        &self,
        cluster: &[Service],
        deadline: Duration,
        mut alive: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let tcp: Vec<_> = cluster.iter().filter(|service| service.protocol == model::Protocol::Tcp).collect();
        let step = tcp.len().div_ceil(20).max(1);
        let begin = Instant::now();
        for service in tcp.iter().rev().step_by(step) {
            while !self.client().run(|| self.answers(service.to())) {
                alive()?;
                anyhow::ensure!(begin.elapsed() < deadline, "{} does not answer after {deadline:?}", service.key());
                std::thread::sleep((begin.elapsed() / 50).min(Duration::from_millis(20)));
            }
        }
        self.web(tcp[0].to()).clear()?;
        Ok(())
    }

    fn answers(&self, to: SocketAddr) -> bool {
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(25)).is_ok()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((stop, echo)) = self.echo.take() {
            stop.store(true, Ordering::SeqCst);
            let _ = echo.join();
        }
    }
}

/// The client's further addresses.
pub fn client_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + u32::try_from(number).expect("few"))
}

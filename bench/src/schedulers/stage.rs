//! A node, a client with many addresses, and a pod whose UDP ports are the endpoints.
//!
//! A connection is one datagram from a port that was not used before: the node decides it as it decides a SYN, and where it went is read
//! from the pod's sockets. All of that happens in one thread, over veth within the call that sends.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use pointsman::compile::{Compiler, Delta};
use pointsman::kernel::DataPlane;
use pointsman::lab::Lab;
use pointsman::model::{Family, PortKey, Protocol, ServiceKey};
use pointsman::policy::{Frontend, Path, ResolvedPort, Role, Verdict};
use pointsman::schedule::{Candidate, Scheduler, TableSizes};

use crate::cluster::{SERVICE_PORT, TARGET_PORT, cluster_ip};

const POD: &str = "web-1";

/// Long enough for anything but a lost packet.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
pub struct Stage {
    lab: Lab,
    pod: Ipv4Addr,
    endpoints: Vec<UdpSocket>,
    compiler: Compiler,
    plane: DataPlane,
}

impl Stage {
    /// With so many endpoints and client addresses.
    pub fn new(endpoints: u16, clients: usize, tables: TableSizes) -> anyhow::Result<Self> {
        let lab = Lab::builder().prefix("pm-bench").pods([POD]).build()?;
        let pod = lab.pod(POD).addresses().v4;
        let ports = TARGET_PORT..TARGET_PORT + endpoints;
        let open = |port| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let endpoints = lab.pod(POD).run(|| ports.map(open).collect::<Result<Vec<_>, _>>())?;
        let mut links = lab.client(0).namespace().rtnl()?;
        for number in 0..clients {
            links.add_address("eth0", client(number).into(), 32)?;
        }
        let compiler = Compiler::new("bench").with_tables(tables);
        let mut plane = lab.node().run(DataPlane::open)?;
        plane.read()?;
        Ok(Self { lab, pod, endpoints, compiler, plane })
    }

    /// Programs a Service: weights by endpoint, none for 0.
    pub fn serve(&mut self, service: u32, scheduler: Scheduler, weights: &[u32]) -> anyhow::Result<()> {
        let name = format!("service-{service}");
        let key =
            PortKey { service: ServiceKey::new("bench", name.as_str()), name: "".into(), protocol: Protocol::Udp };
        let frontend = Frontend { address: cluster_ip(service).into(), protocol: Protocol::Udp, port: SERVICE_PORT };
        let candidate = |(port, weight): (u16, &u32)| Candidate {
            endpoint: SocketAddr::new(IpAddr::V4(self.pod), TARGET_PORT + port),
            weight: *weight,
        };
        let port = ResolvedPort {
            key,
            family: Family::V4,
            frontends: vec![(frontend, Role::Cluster)],
            node_port: None,
            internal: Verdict::Cluster,
            outside: Verdict::Cluster,
            inside: Verdict::Cluster,
            keeps_source: false,
            source_ranges: None,
            cluster: (0..).zip(weights).filter(|(_, weight)| **weight > 0).map(candidate).collect(),
            local: Vec::new(),
            serving: Vec::new(),
            local_addresses: Vec::new(),
            scheduler,
            affinity: None,
            path: Path::Kernel,
        };
        let mut delta = Delta::default();
        let shortages = self.compiler.update(&port.key.service.clone(), &[port], &mut delta);
        anyhow::ensure!(shortages.is_empty(), "{}", shortages[0].reason);
        self.plane.apply(&delta)?;
        Ok(())
    }

    /// Which endpoints take connections to these Services from these addresses and ports, one after the other.
    pub fn ask(&self, questions: impl Iterator<Item = (u32, SocketAddr)> + Send) -> anyhow::Result<Vec<u16>> {
        let endpoints = &self.endpoints;
        self.lab.client(0).run(|| questions.map(|(service, source)| ask(endpoints, service, source)).collect())
    }

    /// Forgets all connections, so that every address and port is new again.
    pub fn forget(&self) -> anyhow::Result<()> {
        self.lab.node().run(crate::first_packet::flush_conntrack)
    }
}

/// Asks from the calling thread's namespace.
fn ask(endpoints: &[UdpSocket], service: u32, source: SocketAddr) -> anyhow::Result<u16> {
    let to = SocketAddr::new(cluster_ip(service).into(), SERVICE_PORT);
    let socket = UdpSocket::bind(source).with_context(|| format!("using {source}"))?;
    socket.send_to(b"?", to)?;
    let (own, begin) = (socket.local_addr()?.port(), Instant::now());
    let mut buffer = [0; 8];
    while begin.elapsed() < PATIENCE {
        for (number, endpoint) in (0..).zip(endpoints) {
            match endpoint.recv_from(&mut buffer) {
                Ok((_, from)) if from.port() == own => return Ok(number),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    anyhow::bail!("nobody heard {source} ask {to}")
}

/// The client's addresses.
pub fn client(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + u32::try_from(number).expect("few"))
}

/// Sources that differ in the port: `count` of them from the first client address, beginning with this port.
pub fn ports(first: u16, count: usize) -> impl Iterator<Item = SocketAddr> {
    (first..).take(count).map(|port| SocketAddr::from((client(0), port)))
}

//! The userspace forwarder: Services that the kernel's tables cannot express.
//!
//! The kernel sends the connections of such a Service to a listener of ours by an ordinary dnat, behind everything else that it
//! decides about them. So all that decides whether a connection may be made (source ranges, traffic policies, refusal without endpoints)
//! stays where it is, and here is only: to which endpoint, and moving the bytes. Knows nothing of the tables that lead
//! here, nor of the API; a small table of its own has connections come from the client's address (`client_ip`).
//!
//! | Where | What |
//! |---|---|
//! | `route` | what the forwarder is told about one pool: candidates, method, options |
//! | [`balance`] | which endpoint a connection gets; pure |
//! | `pool` | the same under a lock, with session affinity and counters |
//! | `tcp/` | listeners, connecting with failover, PROXY protocol, relays |
//! | [`udp`] | datagrams: flows with sockets of their own; with an owner of its own, [`udp::UdpForwarder`] |
//! | `client_ip` | connections to endpoints that come from the client's address |
//! | `register` | which endpoint each connection has, for people who look |
//! | `splice`, `pipes` | moving bytes uncopied |
//! | `workers`, `limits`, `status` | threads; connections and descriptors; counters |
//!
//! Vocabulary: a *route* is a pool with a listener. A connection's *client* side was accepted, its *server* side was dialled; *up*
//! is from client to server. A *worker* is one of the forwarder's threads.
//!
//! Invariants:
//! - A listener is open before [`Forwarder::set`] returns its address, and stays the same until the route is removed.
//! - No change of routes ends a connection. Only its two ends do, its timeouts, [`Forwarder::shutdown`], and whoever has connections to an endpoint
//!   ended ([`Register`] as a [`Carrier`](crate::conntrack::Carrier)).
//! - What one connection does costs others nothing but their share: no unbounded memory, no waiting for it.
//! - An idle connection holds two sockets and about a kilobyte; pipes are held by those that move bytes.
//!
//! Proven by `tests/forward.rs`, which needs root; measured by `bench forward`.

pub mod balance;
mod client_ip;
mod limits;
mod pipes;
mod pool;
mod register;
mod route;
mod splice;
mod status;
mod tcp;
pub mod udp;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub use balance::Method;
pub use client_ip::TABLE as CLIENT_IP_TABLE;
pub use limits::Gate;
pub use register::{Carried, CarriedKey, Following, Register};
pub use route::{ClientIp, Options, ProxyProtocol, Route, RouteId};
pub use status::{EndpointStatus, Refusal, RouteStatus};

use crate::model::{Family, Protocol};
use client_ip::Clients;
use limits::Spare;
use tcp::TcpRoute;
use workers::{Places, Workers};

/// What applies to all routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where IPv4 listeners bind: an address of the node, or all of them.
    pub listen_v4: Ipv4Addr,
    /// Where IPv6 listeners bind.
    pub listen_v6: Ipv6Addr,
    /// Threads; 0: as many as there are CPUs.
    pub workers: usize,
    /// How many connections the process takes at once; none: as many as it has descriptors for.
    pub max_connections: Option<usize>,
}

/// Why something could not be done; nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// No threads, or no descriptors for them.
    #[error("cannot start the forwarder: {source}")]
    Start {
        /// The system's answer.
        source: io::Error,
    },
    /// The listener could not be opened. Worth another attempt: ports and addresses come and go.
    #[error("cannot listen on {address} for {} of Service {}: {source}", id.port.name, id.port.service)]
    Listen {
        /// For which route.
        id: RouteId,
        /// Where; port 0 is any.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// Not a protocol that can be forwarded. No use in trying again.
    #[error("cannot forward {} of Service {}", id.port.protocol, id.port.service)]
    Protocol {
        /// For which route.
        id: RouteId,
    },
}

/// The forwarder; see the module. Dropping it ends all connections at once.
#[derive(Debug)]
pub struct Forwarder {
    settings: Settings,
    routes: BTreeMap<RouteId, TcpRoute>,
    /// Removed, but with connections.
    leaving: Vec<(RouteId, TcpRoute)>,
    shared: Arc<Shared>,
    workers: Workers,
}

/// What all routes share.
#[derive(Debug)]
struct Shared {
    gate: Arc<Gate>,
    spare: Spare,
    places: Places,
    clients: Clients,
    register: Register,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        let (listen_v4, listen_v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        Self { listen_v4, listen_v6, workers: 0, max_connections: None }
    }
}

// === impl ForwardError ===

impl ForwardError {
    /// Whether the same may work later.
    pub fn retry(&self) -> bool {
        !matches!(self, ForwardError::Protocol { .. })
    }
}

// === impl Forwarder ===

impl Forwarder {
    /// Starts the workers, in the calling thread's network namespace, and raises the soft limit of open descriptors to the hard one.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start(settings: Settings) -> Result<Self, ForwardError> {
        let gate = Gate::of_process(settings.max_connections);
        Self::start_with(settings, Arc::new(gate), Register::default())
    }

    /// The same, with a register that others look into, and counting its connections at a gate that other forwarders share, instead of by
    /// its settings' limit.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(settings: Settings, gate: Arc<Gate>, register: Register) -> Result<Self, ForwardError> {
        let count = if settings.workers > 0 {
            settings.workers
        } else {
            thread::available_parallelism().map_or(1, std::num::NonZero::get)
        };
        let workers = Workers::start("forward", count).map_err(|source| ForwardError::Start { source })?;
        let shared = Arc::new(Shared {
            gate,
            spare: Spare::new(),
            places: workers.places(),
            clients: Clients::default(),
            register,
        });
        Ok(Self { settings, routes: BTreeMap::new(), leaving: Vec::new(), shared, workers })
    }

    /// Opens a route, or changes what it is; connections stay as they are. Returns where it listens, which never changes while the
    /// route is there. Waits for a worker, so not to be called from one.
    ///
    /// # Errors
    /// When no listener can be opened; a route that is there already is changed in any case.
    pub fn set(&mut self, id: &RouteId, route: &Route) -> Result<SocketAddr, ForwardError> {
        let address = SocketAddr::new(self.listen_address(id.family), 0);
        self.open(id, route, address, false)
    }

    /// The same at exactly this address, for clients that connect to it as it is: a node port on a loopback address. A route that is
    /// there stays where it listens.
    ///
    /// # Errors
    /// As [`Self::set`]; the port may be taken by another process.
    pub fn set_at(&mut self, id: &RouteId, route: &Route, address: SocketAddr) -> Result<SocketAddr, ForwardError> {
        self.open(id, route, address, true)
    }

    fn open(
        &mut self,
        id: &RouteId,
        route: &Route,
        address: SocketAddr,
        direct: bool,
    ) -> Result<SocketAddr, ForwardError> {
        if let Some(there) = self.routes.get(id) {
            there.set(route);
            return Ok(there.listener());
        }
        if id.port.protocol != Protocol::Tcp {
            return Err(ForwardError::Protocol { id: id.clone() });
        }
        self.forget_the_gone();
        let (own, wanted, shared) = (id.clone(), route.clone(), self.shared.clone());
        let open = move || TcpRoute::open(own, &wanted, address, shared, fastrand::u64(..), direct);
        let opened = self.workers.run(self.routes.len(), open).and_then(|opened| opened);
        let opened = opened.map_err(|source| ForwardError::Listen { id: id.clone(), address, source })?;
        let listener = opened.listener();
        self.routes.insert(id.clone(), opened);
        Ok(listener)
    }

    /// Closes a route's listener, which by now nothing should be sent to; whoever waits there is accepted first. Its connections live
    /// on. False if there is no such route.
    pub fn remove(&mut self, id: &RouteId) -> bool {
        self.forget_the_gone();
        let Some((id, route)) = self.routes.remove_entry(id) else { return false };
        route.close();
        self.leaving.push((id, route));
        true
    }

    /// What has happened in each route; of removed ones as long as they have connections.
    pub fn status(&self) -> Vec<(RouteId, RouteStatus)> {
        let leaving = self.leaving.iter().map(|(id, route)| (id.clone(), route.status()));
        let leaving = leaving.filter(|(_, status)| status.active > 0);
        self.routes.iter().map(|(id, route)| (id.clone(), route.status())).chain(leaving).collect()
    }

    /// Connections of all routes.
    pub fn connections(&self) -> usize {
        let routes = self.routes.values().chain(self.leaving.iter().map(|(_, route)| route));
        routes.map(TcpRoute::connections).sum()
    }

    /// Removes all routes, as [`Self::remove`] does.
    pub fn close(&mut self) {
        let ids: Vec<_> = self.routes.keys().cloned().collect();
        for id in &ids {
            self.remove(id);
        }
    }

    /// Closes all listeners, waits until the last connection has ended or this time is over, and ends the others. Returns how many
    /// those were. Blocks meanwhile.
    pub fn shutdown(mut self, drain: Duration) -> usize {
        /// How often the connections are counted.
        const STEP: Duration = Duration::from_millis(10);
        self.close();
        let begin = Instant::now();
        while self.connections() > 0 && begin.elapsed() < drain {
            thread::sleep(STEP.min(drain));
        }
        self.connections()
    }

    fn listen_address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.settings.listen_v4.into(),
            Family::V6 => self.settings.listen_v6.into(),
        }
    }

    fn forget_the_gone(&mut self) {
        self.leaving.retain(|(_, route)| route.connections() > 0);
    }
}

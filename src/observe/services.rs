//! One small server per Service with a healthCheckNodePort: load balancers ask it whether this node has endpoints of that Service.
//!
//! ```text
//!  controller --sync(desired)--> ServiceHealth (watch channel) --> one task: opens and closes ports
//!                                            \--> each port's answers look up their Service's numbers in the same channel
//! ```
//!
//! Whoever knows the Services says what is desired, whole, after every synchronisation. The task compares ports; numbers of
//! endpoints are never copied to a server, so they are as fresh as the last `sync`. 200 means: ready local endpoints, and a proxy
//! that keeps up ([`super::health`]). Any path and method is answered.
//!
//! IPv4 and IPv6 have listeners and numbers of their own. Where NodePorts are restricted to some addresses, so are these ports: to
//! those of them that this host's interfaces have at each synchronisation (kube-proxy knows those of its start only). Where there is none,
//! nobody listens.
//!
//! Invariants: a port that is not desired any more is closed before its number can be used again; a port that cannot be opened is
//! an Event on its Service, keeps nothing else from being opened, and is tried again at the next `sync`, at the latest after
//! [`RETRY`].
//!
//! Proven by `services/tests.rs`, over real sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, error, info};

use super::events::{Event, EventSink};
use super::health::{Moment, ProxyHealth};
use super::http::{Answer, Handler, Limits, Reach, Server, answer, at_once, bind};
use crate::kernel::addresses::interface_addresses;
use crate::model::{AddressRange, Family, ServiceKey};

/// Ports that cannot be opened are tried again after this time even if nothing else happens: kube-proxy waits for its next sync,
/// which for us may be days away.
pub const RETRY: Duration = Duration::from_secs(30);

/// The weight of this node for load balancers that balance by endpoints (1.29).
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What a Service's health port shall say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// `spec.healthCheckNodePort`, 1..65535.
    pub port: u16,
    /// Distinct ready endpoint addresses on this node, over all ports of the Service: IPv4 and IPv6.
    pub local_endpoints: [usize; 2],
}

/// Everything that is desired.
pub type HealthPorts = BTreeMap<ServiceKey, HealthPort>;

/// Takes what is desired; cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct ServiceHealth {
    desired: watch::Sender<Arc<Desired>>,
}

/// What is desired, and where.
#[derive(Clone, Debug, Default)]
struct Desired {
    ports: HealthPorts,
    /// IPv4 and IPv6; `None` is every address.
    restricted: [Option<Vec<AddressRange>>; 2],
}

/// The task that opens and closes ports; dropping it closes all of them.
#[derive(Debug)]
pub(super) struct ServiceServers {
    task: JoinHandle<()>,
}

/// Owns the listeners.
struct Keeper {
    desired: watch::Receiver<Arc<Desired>>,
    health: watch::Receiver<ProxyHealth>,
    events: EventSink,
    node: String,
    families: Vec<Family>,
    open: BTreeMap<(ServiceKey, SocketAddr), Server>,
    /// Why a port is not open; logged once per reason.
    failed: BTreeMap<(ServiceKey, SocketAddr), String>,
}

/// Starts the task, which listens in the given families.
pub(super) fn start(
    node: &str,
    families: &[Family],
    health: watch::Receiver<ProxyHealth>,
    events: EventSink,
) -> (ServiceHealth, ServiceServers) {
    let (desired, receiver) = watch::channel(Arc::default());
    let keeper = Keeper {
        desired: receiver,
        health,
        events,
        node: node.to_owned(),
        families: families.to_vec(),
        open: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    (ServiceHealth { desired }, ServiceServers { task: tokio::spawn(keeper.run()) })
}

// === impl ServiceHealth ===

impl ServiceHealth {
    /// Says everything that is desired from now on, and on which addresses (IPv4, IPv6); `None` is all.
    pub fn sync(&self, ports: HealthPorts, restricted: [Option<Vec<AddressRange>>; 2]) {
        self.desired.send_replace(Arc::new(Desired { ports, restricted }));
    }

    /// As [`ServiceHealth::sync`] with what it was told last.
    pub fn sync_again(&self) {
        self.desired.send_modify(|_| {});
    }
}

// === impl ServiceServers ===

impl Drop for ServiceServers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Keeper ===

impl Keeper {
    async fn run(mut self) {
        loop {
            let changed = match self.failed.is_empty() {
                true => self.desired.changed().await,
                false => timeout(RETRY, self.desired.changed()).await.unwrap_or(Ok(())),
            };
            if changed.is_err() {
                return;
            }
            let desired = self.desired.borrow_and_update().clone();
            self.reconcile(&desired).await;
        }
    }

    async fn reconcile(&mut self, desired: &Desired) {
        let addresses = addresses(&self.families, desired);
        let listeners = |(key, wanted): (&ServiceKey, &HealthPort)| {
            let (key, port) = (key.clone(), wanted.port);
            addresses.iter().map(move |ip| (key.clone(), SocketAddr::new(*ip, port))).collect::<Vec<_>>()
        };
        let wanted: BTreeSet<_> = desired.ports.iter().flat_map(listeners).collect();
        let gone: Vec<_> = self.open.keys().filter(|listener| !wanted.contains(*listener)).cloned().collect();
        for listener in gone {
            debug!(service = %listener.0, address = %listener.1, "closing a health check port");
            if let Some(server) = self.open.remove(&listener) {
                server.close().await;
            }
        }
        self.failed.retain(|listener, _| wanted.contains(listener));
        for listener in wanted {
            if !self.open.contains_key(&listener) {
                self.open(listener);
            }
        }
    }

    fn open(&mut self, (service, address): (ServiceKey, SocketAddr)) {
        match bind(address, Reach::OwnFamily) {
            Ok(socket) => {
                info!(%service, %address, "serving a health check port");
                let handler = handler(service.clone(), address, self.desired.clone(), self.health.clone());
                self.failed.remove(&(service.clone(), address));
                self.open.insert((service, address), Server::on(socket, Limits::default(), handler));
            }
            Err(reason) => {
                let (node, port) = (&self.node, address.port());
                let note = format!("node {node} failed to start healthcheck \"{service}\" on port {port}: {reason}");
                let before = self.failed.insert((service.clone(), address), note.clone());
                if before.as_ref() != Some(&note) {
                    error!(%service, %address, %reason, "a health check port cannot be opened");
                }
                self.events.send(Event::service_health_failed(&service, note));
            }
        }
    }
}

/// Where to listen.
fn addresses(families: &[Family], desired: &Desired) -> Vec<IpAddr> {
    let everywhere = |family: &Family| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    // Asked only if it matters.
    let mut host = None;
    let mut within = |ranges: &[AddressRange]| -> Vec<IpAddr> {
        if desired.ports.is_empty() {
            return Vec::new();
        }
        let host: &BTreeSet<IpAddr> = host.get_or_insert_with(interface_addresses);
        host.iter().copied().filter(|address| ranges.iter().any(|range| range.contains(*address))).collect()
    };
    let of = |family: &Family| match &desired.restricted[*family as usize] {
        None => vec![everywhere(family)],
        Some(ranges) => within(ranges),
    };
    families.iter().flat_map(of).collect()
}

fn handler(
    service: ServiceKey,
    address: SocketAddr,
    desired: watch::Receiver<Arc<Desired>>,
    health: watch::Receiver<ProxyHealth>,
) -> Handler {
    let family = usize::from(address.is_ipv6());
    at_once(move |_| {
        let local = desired.borrow().ports.get(&service).map_or(0, |wanted| wanted.local_endpoints[family]);
        let proxy_healthy = health.borrow().verdict(Moment::now()).healthy;
        say(&service, local, proxy_healthy)
    })
}

/// The answer, tab-indented and without a line feed at the end, as kube-proxy's.
fn say(service: &ServiceKey, local: usize, proxy_healthy: bool) -> Answer {
    let ServiceKey { namespace, name } = service;
    let (namespace, name) = (serde_json::Value::from(&**namespace), serde_json::Value::from(&**name));
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\
         \t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {proxy_healthy}\n}}"
    );
    let status = if local > 0 && proxy_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut answer = answer(status, "application/json", body);
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(local));
    answer
}

#[cfg(test)]
mod tests;

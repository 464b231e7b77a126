//! What the outside is told: health, metrics, events.
//!
//! ```text
//!              controller (one thread, owns all state)
//!                  | Observer: typed, never blocks, never fails
//!    +-------------+--------------+---------------+----------------+
//!    metrics       health         services        events
//!    (registry)    (watch)        (watch)         (bounded queue)
//!    |             |              |               |
//!    :10249        :10256         :healthCheck-   API server,
//!    (surface)                     NodePort        or the log
//! ```
//!
//! Whoever wants to know more asks the controller: [`desk`] is where, `api` asks it over HTTP, and `socket` is where `pointsman` asks that.
//!
//! The controller holds an [`Observer`] and says what it does; [`Servers`] are the ports and tasks behind it, which end when the value
//! is dropped. Nothing here decides about Services, and nothing here can hold up or fail what does.
//!
//! Vocabulary: a *probe* is a request to a health port; a family is *queued* when a change has been taken in that concerns it, and
//! *updated* when the kernel knows.
//!
//! Invariants: ports open before the first synchronisation; one that cannot be opened is tried again for ever, unless
//! [`Settings::bind_hard_fail`]; every number and name is kube-proxy's (see the tables in the modules).
//!
//! Proven by the modules' tests, by `tests/observe.rs`, and by `tests/e2e/observe.rs`.

mod api;
mod contact;
pub mod desk;
pub mod events;
mod flows;
pub mod health;
mod http;
pub mod kept;
pub mod metrics;
mod orders;
mod page;
mod rows;
pub mod services;
mod socket;
pub mod surface;
pub mod timeline;
mod walks;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, trace, warn};

use crate::engine::NoLocalEndpoints;
use crate::forward::Register;
use crate::model::{AddressRange, Families, Family, Problem, ServiceKey};
use crate::source::api::Clients;
use crate::source::{Change, Kind, Object};
use api::{About, Api};
use desk::Desk;
use events::{Delivery, Event, EventSink, EventTask};
use health::{HealthReporter, Moment, ProxyHealth};
use http::{Limits, Server};
use metrics::{Build, ConnectionSeries, SyncKind, TrafficPolicy};
use page::Page;
use services::{ServiceHealth, ServiceServers};
use socket::StatusSocket;
use timeline::{Entry, Timeline};

pub use flows::settings as flow_settings;
pub use http::BindError;
pub use services::{HealthPort, HealthPorts};
pub use socket::SocketError;
pub use surface::Surface;

/// Where and how to listen, and what to tell. The default is that of kube-proxy without a configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of our Node.
    pub node: String,
    /// The host's name, for Events; the system is asked when it is empty.
    pub host: String,
    /// The families served.
    pub families: Families,
    /// `healthzBindAddress`; `None` disables it. 0.0.0.0:10256, which takes IPv6, too.
    pub health_address: Option<SocketAddr>,
    /// `metricsBindAddress`; `None` disables it. 127.0.0.1:10249.
    pub metrics_address: Option<SocketAddr>,
    /// `bindAddressHardFail`: a port that cannot be opened is an error. Off.
    pub bind_hard_fail: bool,
    /// `syncPeriod`: half of the time after which a family that does not keep up is unhealthy. 30 s.
    pub sync_period: Duration,
    /// Whether there is a Node object whose state decides about eligibility: then a node is not eligible until it has been seen.
    pub watches_node: bool,
    /// What the metrics port tells.
    pub surface: Surface,
    /// What this binary is.
    pub build: Build,
    /// How Events are delivered.
    pub delivery: Delivery,
    /// Where the controller is asked, by those who want to know; without it there is no status API.
    pub desk: Option<Desk>,
    /// The socket at which the status API is served, if it is.
    pub status_socket: Option<PathBuf>,
    /// Whether the page is served under `/ui/` of the metrics port; it shows what the status API tells.
    pub page: bool,
    /// Who counts connections, and of whom `/metrics` tells; `None`: nobody.
    pub connections: Option<ConnectionSeries>,
    /// Who is carried where by the userspace forwarder.
    pub carried: Register,
}

/// Tells the outside what the controller does. Cheap to clone; nothing here blocks or fails.
#[derive(Clone, Debug)]
pub struct Observer {
    node: String,
    families: Families,
    health: HealthReporter,
    services: ServiceHealth,
    events: EventSink,
    timeline: Timeline,
}

/// The open ports and the tasks behind them. Dropping it closes and ends them.
#[derive(Debug)]
pub struct Servers {
    health: Option<Server>,
    metrics: Option<Server>,
    _services: ServiceServers,
    _status: Option<StatusSocket>,
    _events: Option<EventTask>,
}

/// Changes taken in since the kernel was last up to date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    services: usize,
    endpoints: usize,
}

/// A synchronisation that has come to its end.
#[derive(Clone, Debug)]
pub struct Sync<'a> {
    /// Everything, or a difference.
    pub kind: SyncKind,
    /// Which families it concerned.
    pub families: Families,
    /// How long it took, from the first change taken to the kernel's answer.
    pub duration: Duration,
    /// Whether the kernel agreed.
    pub success: bool,
    /// When the changes happened that it brought.
    pub triggers: &'a [(Family, Timestamp)],
}

/// Opens the ports and starts the tasks, in the network namespace of the calling thread and on its tokio runtime. Without `clients`
/// Events are log lines.
///
/// # Errors
/// When a port cannot be opened and [`Settings::bind_hard_fail`] is set.
pub fn start(settings: Settings, clients: Option<Clients>) -> Result<(Observer, Servers), BindError> {
    let exposition = metrics::install();
    metrics::build(&settings.build);
    let host = match settings.host.as_str() {
        "" => nix::unistd::gethostname().map_or(settings.node.clone(), |name| name.to_string_lossy().into_owned()),
        host => host.to_owned(),
    };
    let (events, event_task) = match clients {
        Some(clients) => {
            let (sink, task) = events::start(&host, clients, settings.delivery);
            (sink, Some(task))
        }
        None => (EventSink::log(), None),
    };
    let about = About {
        mode: settings.surface.mode.clone(),
        version: settings.surface.version.clone(),
        families: settings.families,
        health_address: settings.health_address,
        metrics_address: settings.metrics_address,
        page: settings.page,
    };
    let keep = settings.status_socket.as_deref().map(kept::beside);
    let api = settings.desk.map(|desk| Api::new(desk, settings.carried, about, keep));
    let timeline = Timeline::default();
    let page = settings.page.then(|| {
        let census = settings.connections.as_ref().map(ConnectionSeries::census);
        Some(Page::new(api.clone()?, timeline.clone(), census))
    });
    let status =
        settings.status_socket.zip(api).map(|(path, api)| StatusSocket::start(path, Limits::default(), api.handler()));
    let reporter = HealthReporter::new(ProxyHealth::new(settings.sync_period, !settings.watches_node));
    let hard = settings.bind_hard_fail;
    let listen = |what, address: Option<SocketAddr>, handler| {
        let start = |address| Server::start(what, address, hard, Limits::default(), handler);
        address.map(start).transpose()
    };
    let health = listen("the health server", settings.health_address, health::handler(reporter.watch()))
        .inspect_err(|error| events.send(Event::health_server_failed(&settings.node, error.to_string())))?;
    let mut numbers = surface::handler(settings.surface, exposition, settings.connections);
    if let Some(page) = page.flatten() {
        numbers = page.before(numbers);
    }
    let metrics = listen("the metrics server", settings.metrics_address, numbers)
        .inspect_err(|error| events.send(Event::metrics_server_failed(&settings.node, error.to_string())))?;
    let families: Vec<_> = settings.families.iter().collect();
    let (services, service_servers) = services::start(&settings.node, &families, reporter.watch(), events.clone());
    let observer =
        Observer { node: settings.node, families: settings.families, health: reporter, services, events, timeline };
    let servers = Servers { health, metrics, _services: service_servers, _status: status, _events: event_task };
    let said = |address: Option<SocketAddr>| address.map_or_else(|| "none".to_owned(), |address| address.to_string());
    let missing = [
        settings.health_address.filter(|_| servers.health_address().is_none()),
        settings.metrics_address.filter(|_| servers.metrics_address().is_none()),
    ];
    let missing: Vec<_> = missing.into_iter().flatten().map(|address| address.to_string()).collect();
    match missing.as_slice() {
        [] => {
            info!(health = said(servers.health_address()), metrics = said(servers.metrics_address()), "ports are open")
        }
        _ => warn!(
            health = said(servers.health_address()),
            metrics = said(servers.metrics_address()),
            tried_again = missing.join(", "),
            "not all ports are open"
        ),
    }
    Ok((observer, servers))
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            node: String::new(),
            host: String::new(),
            families: Families::ALL,
            health_address: Some((Ipv4Addr::UNSPECIFIED, 10256).into()),
            metrics_address: Some((Ipv4Addr::LOCALHOST, 10249).into()),
            bind_hard_fail: false,
            sync_period: Duration::from_secs(30),
            watches_node: false,
            surface: Surface::default(),
            build: Build::default(),
            delivery: Delivery::default(),
            desk: None,
            status_socket: None,
            page: false,
            connections: None,
            carried: Register::default(),
        }
    }
}

// === impl Observer ===

impl Observer {
    /// The loop begins: healthy from now on, until something is asked for and not done.
    pub fn loop_started(&self) {
        let now = Moment::now();
        self.health.updated(self.families.iter(), now);
        self.families.iter().for_each(|family| metrics::queued(family, now.wall));
        self.events.send(Event::starting(&self.node));
    }

    /// A change came in.
    pub fn seen(&self, change: &Change) {
        trace!(%change, "from the source");
        match change {
            Change::Apply(Object::Service(_)) | Change::Delete(Kind::Service, _) => {
                metrics::service_changes(self.families.iter().count() as u64);
            }
            Change::Apply(Object::EndpointSlice(slice)) => {
                let family = Family::from_kubernetes(&slice.address_type);
                metrics::endpoint_changes(u64::from(family.is_some_and(|family| self.families.contains(family))));
            }
            Change::Delete(Kind::EndpointSlice, _) => metrics::endpoint_changes(1),
            Change::Apply(Object::Node(_) | Object::ServiceCIDR(_)) => {}
            // Deleting our Node leaves us with what we knew, as everywhere.
            Change::Delete(..) | Change::Synced(_) => {}
        }
    }

    /// So many changes wait for the kernel, now that a batch has been taken in; these families are to be synchronised.
    pub fn queued(&self, pending: Pending, families: Families) {
        metrics::changes_pending(pending.services, pending.endpoints);
        let (now, families) = (Moment::now(), families.intersection(self.families));
        self.health.queued(families.iter(), now);
        families.iter().for_each(|family| metrics::queued(family, now.wall));
    }

    /// A synchronisation has come to its end.
    pub fn synced(&self, sync: &Sync<'_>) {
        let (now, families) = (Moment::now(), sync.families.intersection(self.families));
        for family in families.iter() {
            metrics::sync_duration(family, sync.kind, sync.duration);
            match sync.success {
                true => metrics::synced(family, now.wall),
                false => metrics::sync_failed(family),
            }
        }
        if !sync.success {
            return;
        }
        if !families.is_empty() {
            self.health.updated(families.iter(), now);
        }
        metrics::changes_pending(0, 0);
        for (family, time) in sync.triggers {
            // A clock that is behind the API server's must not turn into a panic or a negative time.
            let elapsed = Duration::try_from(now.wall.duration_since(*time)).unwrap_or_default();
            metrics::network_programming(*family, elapsed);
        }
    }

    /// So many Service ports are cut off from their endpoints by a Local policy, as the kernel has it now.
    pub fn no_local_endpoints(&self, counts: NoLocalEndpoints) {
        for family in self.families.iter() {
            metrics::no_local_endpoints(family, TrafficPolicy::Internal, counts.internal[family as usize]);
            metrics::no_local_endpoints(family, TrafficPolicy::External, counts.external[family as usize]);
        }
    }

    /// So many chains that nobody uses any more could not be deleted, per family.
    pub fn cleanup_failed(&self, stuck: [usize; 2]) {
        for family in self.families.iter() {
            (0..stuck[family as usize]).for_each(|_| metrics::cleanup_failed(family));
        }
    }

    /// Something is wrong with an object.
    pub fn invalid(&self, problem: &Problem) {
        if !problem.is_passed_over() {
            self.events.send(Event::invalid(problem));
        }
    }

    /// The userspace forwarder carries a Service: why, and what follows for its endpoints.
    pub fn carried_in_userspace(&self, service: &ServiceKey, note: String) {
        self.events.send(Event::in_userspace(service, note));
    }

    /// A listener of the userspace forwarder could not be opened.
    pub fn forwarder_cannot_listen(&self, service: &ServiceKey, note: String) {
        self.events.send(Event::forwarder_cannot_listen(service, note));
    }

    /// Whether load balancers may send traffic to this node: see [`crate::model::Node::eligible`].
    pub fn set_node_eligible(&self, eligible: bool) {
        self.health.set_eligible(eligible);
    }

    /// What the health ports of Services shall say from now on, and on which of this host's addresses; `None` is all of the family.
    pub fn health_ports(&self, desired: HealthPorts, restricted: [Option<Vec<AddressRange>>; 2]) {
        self.services.sync(desired, restricted);
    }

    /// A batch has changed the kernel, or was refused.
    pub fn programmed(&self, entry: Entry) {
        metrics::programmed(entry.elements);
        self.timeline.push(entry);
    }

    /// What was programmed lately.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// What the health ports shall say is what it was; on which addresses may have to be found out again.
    pub fn health_ports_again(&self) {
        self.services.sync_again();
    }

    /// Everything known at the start is programmed.
    pub fn loaded(&self) {
        self.health.loaded();
    }

    /// Where Events go.
    pub fn events(&self) -> &EventSink {
        &self.events
    }
}

// === impl Servers ===

impl Servers {
    /// Where the health server listens now, if it does.
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref().and_then(Server::address)
    }

    /// Where the metrics server listens now, if it does.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(Server::address)
    }
}

// === impl Pending ===

impl Pending {
    /// One more change, unless it is none of a Service or a slice.
    pub fn add(&mut self, change: &Change) {
        match change {
            Change::Apply(Object::Service(_)) | Change::Delete(Kind::Service, _) => self.services += 1,
            Change::Apply(Object::EndpointSlice(_)) | Change::Delete(Kind::EndpointSlice, _) => self.endpoints += 1,
            _ => {}
        }
    }
}

//! What cluster users shall learn from `kubectl get events`: that this proxy started, and what it cannot do for an object of theirs.
//!
//! ```text
//!  anybody --send--> EventSink --bounded queue--> one task: Correlator --> create or patch, with patience
//! ```
//!
//! Events are news, not state: losing one is no harm and waiting for one is. So [`EventSink::send`] never blocks and never fails;
//! what does not fit into the queue, what comes too fast (`correlate`) and what the API server refuses is dropped. Without an
//! API server an Event is a log line.
//!
//! They are `events.k8s.io/v1` Events as client-go's recorder makes them: reportingController `kube-proxy`, reportingInstance
//! `kube-proxy-<host>`; repetitions become a series of one Event. Events on the Node live in namespace `default`.
//!
//! | type | reason | action | regarding |
//! |---|---|---|---|
//! | Normal | Starting | StartKubeProxy | Node |
//! | Warning | IPVSDeprecation | StartKubeProxy | Node |
//! | Warning | FailedToStartProxierHealthcheck, FailedToStartMetricServer | StartKubeProxy | Node |
//! | Warning | FailedToStartServiceHealthcheck | Listen | Service |
//! | Normal | CarriedInUserspace (ours) | Program | Service |
//! | Warning | FailedToListen (ours): the forwarder, for a Service | Listen | Service |
//! | Warning | InvalidService, InvalidEndpointSlice, InvalidNode (ours) | Program | the object |
//!
//! Proven by `events/tests.rs` and, against the API double, `tests/observe.rs`.

mod correlate;
mod deliver;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::model::{Problem, ServiceKey};
use crate::source::Kind;
use crate::source::api::Clients;

/// Who says so.
pub const CONTROLLER: &str = "kube-proxy";

/// Events that wait to be delivered; more are dropped.
const QUEUE: usize = 512;

/// Normal or Warning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing is wrong.
    Normal,
    /// Something is.
    Warning,
}

/// The object an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// `v1` or `discovery.k8s.io/v1`.
    pub api_version: &'static str,
    /// `Node`, `Service`...
    pub kind: &'static str,
    /// Empty for a Node.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// Normal or Warning.
    pub severity: Severity,
    /// Why, for machines, as in `Starting`.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// About what.
    pub regarding: Regarding,
    /// For people; cut at 1 KiB.
    pub note: String,
    /// Whether the log says it already, so that without an API server it is not said twice.
    pub logged: bool,
}

/// Takes Events. Cheap to clone; [`EventSink::send`] never blocks.
#[derive(Clone, Debug)]
pub struct EventSink(Target);

#[derive(Clone, Debug)]
enum Target {
    Queue(mpsc::Sender<Event>),
    Log,
    #[cfg(test)]
    Record(std::sync::mpsc::Sender<Event>),
}

/// The time constants of delivery. The defaults are client-go's; tests shorten them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Attempts to deliver one Event: 12.
    pub attempts: u32,
    /// Time between two attempts: 10 s.
    pub pause: Duration,
    /// For one answer: 30 s.
    pub answer: Duration,
}

/// The task that delivers; dropping it drops what has not been delivered.
#[derive(Debug)]
pub struct EventTask(JoinHandle<()>);

/// Starts delivering to the API server, as `kube-proxy-<host>`.
pub fn start(host: &str, clients: Clients, delivery: Delivery) -> (EventSink, EventTask) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let task = tokio::spawn(deliver::run(format!("{CONTROLLER}-{host}"), clients, delivery, queue));
    (EventSink(Target::Queue(sender)), EventTask(task))
}

// === impl Regarding ===

impl Regarding {
    /// Our Node.
    pub fn node(name: &str) -> Self {
        Self { api_version: "v1", kind: "Node", namespace: String::new(), name: name.to_owned() }
    }

    /// A Service.
    pub fn service(key: &ServiceKey) -> Self {
        let (namespace, name) = (key.namespace.to_string(), key.name.to_string());
        Self { api_version: "v1", kind: "Service", namespace, name }
    }
}

// === impl Event ===

impl Event {
    /// We are there.
    pub fn starting(node: &str) -> Self {
        Self::on_node(Severity::Normal, "Starting", node, String::new())
    }

    /// Mode ipvs is on its way out.
    pub fn ipvs_deprecated(node: &str, note: impl Into<String>) -> Self {
        Self::on_node(Severity::Warning, "IPVSDeprecation", node, note.into())
    }

    /// The health port cannot be opened, and that is fatal.
    pub fn health_server_failed(node: &str, note: impl Into<String>) -> Self {
        Self::on_node(Severity::Warning, "FailedToStartProxierHealthcheck", node, note.into())
    }

    /// The metrics port cannot be opened, and that is fatal.
    pub fn metrics_server_failed(node: &str, note: impl Into<String>) -> Self {
        Self::on_node(Severity::Warning, "FailedToStartMetricServer", node, note.into())
    }

    /// The health check port of a Service cannot be opened.
    pub fn service_health_failed(service: &ServiceKey, note: String) -> Self {
        Self {
            severity: Severity::Warning,
            reason: "FailedToStartServiceHealthcheck",
            action: "Listen",
            regarding: Regarding::service(service),
            note,
            logged: true,
        }
    }

    /// A Service is carried by the userspace forwarder.
    pub fn in_userspace(service: &ServiceKey, note: String) -> Self {
        Self::on_service(Severity::Normal, "CarriedInUserspace", "Program", service, note)
    }

    /// A listener of the userspace forwarder cannot be opened.
    pub fn forwarder_cannot_listen(service: &ServiceKey, note: String) -> Self {
        Self::on_service(Severity::Warning, "FailedToListen", "Listen", service, note)
    }

    /// Something is wrong with an object; the log says it, too.
    pub fn invalid(problem: &Problem) -> Self {
        let (api_version, kind, reason) = match problem.kind {
            Kind::Service => ("v1", "Service", "InvalidService"),
            Kind::EndpointSlice => ("discovery.k8s.io/v1", "EndpointSlice", "InvalidEndpointSlice"),
            Kind::Node => ("v1", "Node", "InvalidNode"),
            Kind::ServiceCIDR => ("networking.k8s.io/v1", "ServiceCIDR", "InvalidServiceCIDR"),
        };
        let (namespace, name) = (problem.object.namespace.clone(), problem.object.name.clone());
        Self {
            severity: Severity::Warning,
            reason,
            action: "Program",
            regarding: Regarding { api_version, kind, namespace, name },
            note: format!("{}: {:?}: {}", problem.field, problem.value, problem.reason),
            logged: true,
        }
    }

    fn on_service(
        severity: Severity,
        reason: &'static str,
        action: &'static str,
        service: &ServiceKey,
        note: String,
    ) -> Self {
        Self { severity, reason, action, regarding: Regarding::service(service), note, logged: true }
    }

    fn on_node(severity: Severity, reason: &'static str, node: &str, note: String) -> Self {
        Self { severity, reason, action: "StartKubeProxy", regarding: Regarding::node(node), note, logged: false }
    }

    fn log(&self) {
        let Event { reason, action, regarding: Regarding { kind, namespace, name, .. }, note, .. } = self;
        match self.severity {
            _ if self.logged => debug!(reason, action, kind, namespace, name, note, "event"),
            Severity::Normal => info!(reason, action, kind, namespace, name, note, "event"),
            Severity::Warning => warn!(reason, action, kind, namespace, name, note, "event"),
        }
    }
}

// === impl EventSink ===

impl EventSink {
    /// Without an API server: Events become log lines.
    pub fn log() -> Self {
        Self(Target::Log)
    }

    /// Tells it, if that can be done without waiting.
    pub fn send(&self, event: Event) {
        match &self.0 {
            Target::Queue(queue) => match queue.try_send(event) {
                Ok(()) | Err(TrySendError::Closed(_)) => {}
                Err(TrySendError::Full(event)) => debug!(?event, "too many events at once; dropped"),
            },
            Target::Log => event.log(),
            #[cfg(test)]
            Target::Record(record) => drop(record.send(event)),
        }
    }
}

// === impl Delivery ===

impl Default for Delivery {
    fn default() -> Self {
        Self { attempts: 12, pause: Duration::from_secs(10), answer: Duration::from_secs(30) }
    }
}

// === impl EventTask ===

impl Drop for EventTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What was sent, for tests.
#[cfg(test)]
pub(super) struct Recorded(std::sync::mpsc::Receiver<Event>);

#[cfg(test)]
impl EventSink {
    pub(super) fn recorded() -> (Self, Recorded) {
        let (sender, receiver) = std::sync::mpsc::channel();
        (Self(Target::Record(sender)), Recorded(receiver))
    }
}

#[cfg(test)]
impl Recorded {
    /// What was sent since the last call.
    pub(super) fn all(&self) -> Vec<Event> {
        self.0.try_iter().collect()
    }
}

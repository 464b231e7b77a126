//! What is counted and measured, under the names that kube-proxy's users have their dashboards and alerts on.
//!
//! ```text
//!  callers --> the functions here --> `metrics` facade --> recorder --> `prometheus` registry --> Exposition --> /metrics
//! ```
//!
//! Callers use typed functions, one per thing that can happen, so no name, label or label value can be misspelt. The
//! catalogue fixes type, labels, buckets and help of each metric; a metric with labels appears after its first use, as with
//! kube-proxy. Names are those of kube-proxy 1.36 (all ALPHA there), of client-go (`rest_client_*`), of component-base
//! (`kubernetes_build_info`) and of every Prometheus client library (`process_*`). What no kube-proxy does is under `pointsman_*`.
//!
//! Both families are programmed in one transaction here, so where kube-proxy measures each family by itself, both get the
//! duration of the transaction they were in.
//!
//! Deliberately absent, because there is nothing here that they could tell:
//! - `kubeproxy_sync_proxy_rules_iptables_*`, `kubeproxy_iptables_*`: no iptables, in no mode;
//! - `go_*`: no Go runtime;
//! - `rest_client_rate_limiter_duration_seconds`, `rest_client_exec_plugin_*`, `rest_client_transport_*`: client-go's rate
//!   limiter, credential plug-ins and transport cache, which our client does not have; `rest_client_*_size_bytes`: answers are
//!   streams that never end;
//! - `kubernetes_feature_enabled`, `registered_metrics_total`, `apiserver_*`: the insides of upstream's libraries.
//!
//! Invariants: recording neither blocks on anything slow nor fails; without [`install`] every function here does nothing.
//!
//! Proven by the tests below, which scrape and compare with a table of the specification.

mod catalogue;
mod client;
mod connections;
mod process;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use prometheus::{Registry, TextEncoder};

pub use client::CountRequests;
pub use connections::ConnectionSeries;
pub(crate) use process::start_time;

use crate::model::Family;
use catalogue as names;

/// What kind of synchronisation was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncKind {
    /// Everything desired was compared with everything there is.
    Full,
    /// A difference was applied.
    Partial,
}

/// A traffic policy of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

/// What schedulers go by that go by counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Services whose connections are counted.
    pub services: usize,
    /// Their connections.
    pub connections: u64,
    /// Events of connection tracking heard since the last time.
    pub events: u64,
    /// How often events were lost since then.
    pub losses: u64,
}

/// Which probe of the proxy's health was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// What went through the userspace forwarder, in one protocol, since the process began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// TCP connections or UDP flows now.
    pub connections: u64,
    /// The same, ever.
    pub accepted: u64,
    /// Attempts to reach an endpoint that failed, by endpoint; `None`: of all whom there is no room for.
    pub failures: BTreeMap<Option<SocketAddr>, u64>,
    /// Bytes from clients.
    pub up: u64,
    /// Bytes to clients.
    pub down: u64,
    /// Connections refused, by reason.
    pub refused: Vec<(&'static str, u64)>,
}

/// What this binary is, for `kubernetes_build_info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// `v1.36.0`.
    pub version: String,
    /// Major version.
    pub major: String,
    /// Minor version.
    pub minor: String,
    /// `linux/amd64`.
    pub platform: String,
}

/// The registry behind the facade, to be read out.
#[derive(Clone, Debug)]
pub struct Exposition {
    registry: Registry,
}

static INSTALLED: OnceLock<Exposition> = OnceLock::new();

/// Makes the functions of this module record, in the whole process, and returns what to read them from. Further calls return the
/// same.
pub fn install() -> Exposition {
    let make = || {
        let (exposition, recorder) = Exposition::new();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!(
                "another recorder of metrics is installed in this process: /metrics will show nothing of ours"
            );
        }
        exposition
    };
    INSTALLED.get_or_init(make).clone()
}

/// A synchronisation of a family, successful or not, took so long.
pub fn sync_duration(family: Family, kind: SyncKind, duration: Duration) {
    let seconds = duration.as_secs_f64();
    let by_kind = match kind {
        SyncKind::Full => names::SYNC_FULL_DURATION,
        SyncKind::Partial => names::SYNC_PARTIAL_DURATION,
    };
    metrics::histogram!(names::SYNC_DURATION, "ip_family" => label(family)).record(seconds);
    metrics::histogram!(by_kind, "ip_family" => label(family)).record(seconds);
}

/// A family was synchronised successfully at this time.
pub fn synced(family: Family, at: Timestamp) {
    metrics::gauge!(names::SYNC_LAST_TIMESTAMP, "ip_family" => label(family)).set(seconds(at));
}

/// A synchronisation of a family was asked for at this time.
pub fn queued(family: Family, at: Timestamp) {
    metrics::gauge!(names::SYNC_LAST_QUEUED_TIMESTAMP, "ip_family" => label(family)).set(seconds(at));
}

/// The kernel refused a transaction that concerned this family.
pub fn sync_failed(family: Family) {
    metrics::counter!(names::SYNC_FAILURES, "ip_family" => label(family)).increment(1);
}

/// Something stale could not be removed.
pub fn cleanup_failed(family: Family) {
    metrics::counter!(names::CLEANUP_FAILURES, "ip_family" => label(family)).increment(1);
}

/// A transaction of so many bytes was sent to the kernel and answered, after so long.
pub fn transaction(duration: Duration, bytes: usize) {
    metrics::histogram!(names::TRANSACTION_DURATION).record(duration.as_secs_f64());
    metrics::histogram!(names::TRANSACTION_BYTES).record(bytes as f64);
}

/// So many elements were added and removed.
pub fn programmed(elements: usize) {
    metrics::counter!(names::PROGRAMMED_ELEMENTS).increment(elements as u64);
}

/// A Service became the userspace forwarder's for this reason.
pub fn fell_back(reason: &'static str) {
    metrics::counter!(names::USERSPACE_FALLBACKS, "reason" => reason).increment(1);
}

/// Somebody else `changed` our tables, or notifications were `lost`.
pub fn disturbed(kind: &'static str) {
    metrics::counter!(names::DISTURBANCES, "kind" => kind).increment(1);
}

/// So many elements were not as they should have been, and are now.
pub fn repaired(elements: usize) {
    metrics::counter!(names::REPAIRED).increment(elements as u64);
}

/// From the change that made it necessary to the kernel, it took so long.
pub fn network_programming(family: Family, duration: Duration) {
    metrics::histogram!(names::NETWORK_PROGRAMMING, "ip_family" => label(family)).record(duration.as_secs_f64());
}

/// So many EndpointSlice events came in.
pub fn endpoint_changes(count: u64) {
    metrics::counter!(names::ENDPOINT_CHANGES_TOTAL).increment(count);
}

/// So many Service events came in, counted once per family.
pub fn service_changes(count: u64) {
    metrics::counter!(names::SERVICE_CHANGES_TOTAL).increment(count);
}

/// So many changes have been taken in and are not in the kernel yet.
pub fn changes_pending(services: usize, endpoints: usize) {
    metrics::gauge!(names::SERVICE_CHANGES_PENDING).set(services as f64);
    metrics::gauge!(names::ENDPOINT_CHANGES_PENDING).set(endpoints as f64);
}

/// So many Service ports have a Local policy and endpoints, none of them here.
pub fn no_local_endpoints(family: Family, policy: TrafficPolicy, ports: usize) {
    let policy = match policy {
        TrafficPolicy::Internal => "internal",
        TrafficPolicy::External => "external",
    };
    metrics::gauge!(names::NO_LOCAL_ENDPOINTS, "traffic_policy" => policy, "ip_family" => label(family))
        .set(ports as f64);
}

/// So many Services are carried in userspace for this reason.
pub fn userspace_services(reason: &'static str, count: usize) {
    metrics::gauge!(names::USERSPACE_SERVICES, "reason" => reason).set(count as f64);
}

/// So many listeners of the userspace forwarder are open, and so many are missing.
pub fn userspace_listeners(open: usize, missing: usize) {
    metrics::gauge!(names::USERSPACE_LISTENERS, "state" => "open").set(open as f64);
    metrics::gauge!(names::USERSPACE_LISTENERS, "state" => "missing").set(missing as f64);
}

/// What the userspace forwarder has done with a protocol so far, and has now.
pub fn userspace_traffic(protocol: &'static str, traffic: &Traffic) {
    metrics::gauge!(names::USERSPACE_CONNECTIONS, "protocol" => protocol).set(traffic.connections as f64);
    metrics::counter!(names::USERSPACE_ACCEPTED, "protocol" => protocol).absolute(traffic.accepted);
    for (endpoint, count) in &traffic.failures {
        let endpoint = endpoint.map_or("others".to_owned(), |endpoint| endpoint.to_string());
        metrics::counter!(names::USERSPACE_FAILURES, "protocol" => protocol, "endpoint" => endpoint).absolute(*count);
    }
    let bytes = |direction| metrics::counter!(names::USERSPACE_BYTES, "protocol" => protocol, "direction" => direction);
    bytes("up").absolute(traffic.up);
    bytes("down").absolute(traffic.down);
    for (reason, count) in &traffic.refused {
        metrics::counter!(names::USERSPACE_REFUSED, "reason" => *reason).absolute(*count);
    }
}

/// A probe was answered with this HTTP status.
pub fn probed(probe: Probe, code: u16) {
    let name = match probe {
        Probe::Healthz => names::HEALTHZ,
        Probe::Livez => names::LIVEZ,
    };
    metrics::counter!(name, "code" => code.to_string()).increment(1);
}

/// Stale conntrack entries of a family were looked for: how long it took and how many were deleted.
pub fn conntrack_reconciled(family: Family, duration: Duration, deleted: u64) {
    metrics::histogram!(names::CONNTRACK_DURATION, "ip_family" => label(family)).record(duration.as_secs_f64());
    metrics::counter!(names::CONNTRACK_DELETED, "ip_family" => label(family)).increment(deleted);
}

/// Connections are counted.
pub fn live(now: &Live) {
    metrics::gauge!(names::LIVE_SERVICES).set(now.services as f64);
    metrics::gauge!(names::LIVE_CONNECTIONS).set(now.connections as f64);
    metrics::counter!(names::CONNTRACK_EVENTS).increment(now.events);
    metrics::counter!(names::CONNTRACK_EVENTS_LOST).increment(now.losses);
}

/// So many endpoints of Services are drained, or have another weight, by hand.
pub fn overrides(drained: usize, weighted: usize) {
    metrics::gauge!(names::OVERRIDES, "kind" => "drain").set(drained as f64);
    metrics::gauge!(names::OVERRIDES, "kind" => "weight").set(weighted as f64);
}

/// The controller was held for so long by somebody's question.
pub fn answered(duration: Duration) {
    metrics::histogram!(names::STATUS_ANSWER).record(duration.as_secs_f64());
}

/// Connection tracking is read because somebody asks.
pub fn walked() {
    metrics::counter!(names::STATUS_WALKS).increment(1);
}

/// Rings were dealt again by counts, so many of their slots to somebody else, in so long.
pub fn redealt(duration: Duration, slots: u64) {
    metrics::histogram!(names::REDEAL_DURATION).record(duration.as_secs_f64());
    metrics::counter!(names::REDEAL_SLOTS).increment(slots);
}

/// A request to the API server was answered with this status, or not at all, after so long.
pub fn api_request(method: &str, host: &str, code: Option<u16>, duration: Duration) {
    let (method, host) = (method.to_owned(), host.to_owned());
    let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
    metrics::histogram!(names::REST_DURATION, "verb" => method.clone(), "host" => host.clone())
        .record(duration.as_secs_f64());
    metrics::counter!(names::REST_REQUESTS, "code" => code, "method" => method, "host" => host).increment(1);
}

/// What this binary is.
pub fn build(build: &Build) {
    let Build { version, major, minor, platform } = build.clone();
    metrics::gauge!(
        names::BUILD_INFO, "build_date" => "", "compiler" => "rustc", "git_commit" => "", "git_tree_state" => "",
        "git_version" => version, "go_version" => "", "major" => major, "minor" => minor, "platform" => platform
    )
    .set(1.0);
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Seconds since 1970.
fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

// === impl Exposition ===

impl Exposition {
    /// The content type of [`Exposition::render`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// A registry with everything in the catalogue, and a recorder that fills it.
    pub(crate) fn new() -> (Self, metrics_prometheus::Recorder) {
        let registry = Registry::new();
        let recorder = metrics_prometheus::Recorder::builder().with_registry(&registry).build();
        for definition in catalogue::CATALOGUE {
            definition.register(&recorder);
        }
        let process = registry.register(Box::new(process::Process::new()));
        process.expect("the catalogue and the process collector have no name in common");
        (Self { registry }, recorder)
    }

    /// Everything recorded so far, in Prometheus' text format.
    pub fn render(&self) -> String {
        encode(&self.registry)
    }
}

/// A registry in text format.
pub(crate) fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = TextEncoder::new().encode_utf8(&registry.gather(), &mut text) {
        tracing::error!(%error, "metrics cannot be written down");
    }
    text
}

// === impl Build ===

impl Build {
    /// What says it is this version, `v1.36.2+x`.
    pub fn of(version: &str) -> Self {
        let mut numbers = version.trim_start_matches('v').split('.');
        let mut next = || numbers.next().unwrap_or_default().to_owned();
        Self { version: version.to_owned(), major: next(), minor: next(), ..Self::default() }
    }
}

impl Default for Build {
    fn default() -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            version: format!("v{}", env!("CARGO_PKG_VERSION")),
            major: env!("CARGO_PKG_VERSION_MAJOR").to_owned(),
            minor: env!("CARGO_PKG_VERSION_MINOR").to_owned(),
            platform: format!("{}/{arch}", std::env::consts::OS),
        }
    }
}

#[cfg(test)]
mod tests;

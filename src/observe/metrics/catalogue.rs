//! The table of metrics: name, type, labels, buckets and help of everything that is recorded.
//!
//! Names, labels and buckets are interfaces of kube-proxy 1.36 and client-go and must not change, but for those of `pointsman_*`; the help texts are ours.

use metrics_prometheus::Recorder;
use prometheus::{Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts};

/// One metric.
pub(super) struct Definition {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
}

/// What a metric is.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by buckets.
    Histogram(fn() -> Vec<f64>),
}

macro_rules! names {
    ($($constant:ident = $name:literal;)*) => {
        $(pub(super) const $constant: &str = $name;)*
    };
}

names! {
    SYNC_DURATION = "kubeproxy_sync_proxy_rules_duration_seconds";
    SYNC_FULL_DURATION = "kubeproxy_sync_full_proxy_rules_duration_seconds";
    SYNC_PARTIAL_DURATION = "kubeproxy_sync_partial_proxy_rules_duration_seconds";
    SYNC_LAST_TIMESTAMP = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    SYNC_LAST_QUEUED_TIMESTAMP = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    NETWORK_PROGRAMMING = "kubeproxy_network_programming_duration_seconds";
    ENDPOINT_CHANGES_PENDING = "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    ENDPOINT_CHANGES_TOTAL = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    SERVICE_CHANGES_PENDING = "kubeproxy_sync_proxy_rules_service_changes_pending";
    SERVICE_CHANGES_TOTAL = "kubeproxy_sync_proxy_rules_service_changes_total";
    NO_LOCAL_ENDPOINTS = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    HEALTHZ = "kubeproxy_proxy_healthz_total";
    LIVEZ = "kubeproxy_proxy_livez_total";
    SYNC_FAILURES = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";
    CLEANUP_FAILURES = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total";
    CONNTRACK_DURATION = "kubeproxy_conntrack_reconciler_sync_duration_seconds";
    CONNTRACK_DELETED = "kubeproxy_conntrack_reconciler_deleted_entries_total";
    TRANSACTION_DURATION = "pointsman_transaction_duration_seconds";
    TRANSACTION_BYTES = "pointsman_transaction_bytes";
    PROGRAMMED_ELEMENTS = "pointsman_programmed_elements_total";
    USERSPACE_FALLBACKS = "pointsman_userspace_fallbacks_total";
    DISTURBANCES = "pointsman_table_disturbances_total";
    REPAIRED = "pointsman_table_repaired_elements_total";
    OVERRIDES = "pointsman_endpoint_overrides";
    STATUS_ANSWER = "pointsman_status_answer_duration_seconds";
    STATUS_WALKS = "pointsman_status_walks_total";
    LIVE_SERVICES = "pointsman_live_services";
    LIVE_CONNECTIONS = "pointsman_live_connections";
    CONNTRACK_EVENTS = "pointsman_conntrack_events_total";
    CONNTRACK_EVENTS_LOST = "pointsman_conntrack_events_lost_total";
    REDEAL_DURATION = "pointsman_redeal_duration_seconds";
    REDEAL_SLOTS = "pointsman_redeal_slots_total";
    REST_REQUESTS = "rest_client_requests_total";
    REST_DURATION = "rest_client_request_duration_seconds";
    BUILD_INFO = "kubernetes_build_info";
    USERSPACE_SERVICES = "pointsman_userspace_services";
    USERSPACE_LISTENERS = "pointsman_userspace_listeners";
    USERSPACE_CONNECTIONS = "pointsman_userspace_connections";
    USERSPACE_ACCEPTED = "pointsman_userspace_connections_total";
    USERSPACE_REFUSED = "pointsman_userspace_refused_total";
    USERSPACE_FAILURES = "pointsman_userspace_endpoint_failures_total";
    USERSPACE_BYTES = "pointsman_userspace_bytes_total";
}

const FAMILY: &[&str] = &["ip_family"];

/// Everything that is recorded through the facade.
pub(super) const CATALOGUE: &[Definition] = &[
    Definition {
        name: SYNC_DURATION,
        shape: Shape::Histogram(exponential),
        labels: FAMILY,
        help: "[ALPHA] Time that a synchronisation with the kernel took, whether it worked or not",
    },
    Definition {
        name: SYNC_FULL_DURATION,
        shape: Shape::Histogram(exponential),
        labels: FAMILY,
        help: "[ALPHA] Time that a full comparison with the kernel took",
    },
    Definition {
        name: SYNC_PARTIAL_DURATION,
        shape: Shape::Histogram(exponential),
        labels: FAMILY,
        help: "[ALPHA] Time that applying a difference to the kernel took",
    },
    Definition {
        name: SYNC_LAST_TIMESTAMP,
        shape: Shape::Gauge,
        labels: FAMILY,
        help: "[ALPHA] When the kernel was last brought up to date (seconds since 1970)",
    },
    Definition {
        name: SYNC_LAST_QUEUED_TIMESTAMP,
        shape: Shape::Gauge,
        labels: FAMILY,
        help: "[ALPHA] When a synchronisation was last asked for (seconds since 1970)",
    },
    Definition {
        name: NETWORK_PROGRAMMING,
        shape: Shape::Histogram(programming),
        labels: FAMILY,
        help: "[ALPHA] Time from the change of a pod or Service to the kernel knowing of it",
    },
    Definition {
        name: ENDPOINT_CHANGES_PENDING,
        shape: Shape::Gauge,
        labels: &[],
        help: "[ALPHA] EndpointSlice changes taken in and not in the kernel yet",
    },
    Definition {
        name: ENDPOINT_CHANGES_TOTAL,
        shape: Shape::Counter,
        labels: &[],
        help: "[ALPHA] EndpointSlice events seen",
    },
    Definition {
        name: SERVICE_CHANGES_PENDING,
        shape: Shape::Gauge,
        labels: &[],
        help: "[ALPHA] Service changes taken in and not in the kernel yet",
    },
    Definition {
        name: SERVICE_CHANGES_TOTAL,
        shape: Shape::Counter,
        labels: &[],
        help: "[ALPHA] Service events seen, each counted once per IP family",
    },
    Definition {
        name: NO_LOCAL_ENDPOINTS,
        shape: Shape::Gauge,
        labels: &["traffic_policy", "ip_family"],
        help: "[ALPHA] Service ports with a Local traffic policy whose endpoints are all on other nodes",
    },
    Definition {
        name: HEALTHZ,
        shape: Shape::Counter,
        labels: &["code"],
        help: "[ALPHA] Answers of /healthz by HTTP status",
    },
    Definition {
        name: LIVEZ,
        shape: Shape::Counter,
        labels: &["code"],
        help: "[ALPHA] Answers of /livez by HTTP status",
    },
    Definition {
        name: SYNC_FAILURES,
        shape: Shape::Counter,
        labels: FAMILY,
        help: "[ALPHA] Synchronisations that the kernel refused",
    },
    Definition {
        name: CLEANUP_FAILURES,
        shape: Shape::Counter,
        labels: FAMILY,
        help: "[ALPHA] Removals of stale objects that the kernel refused",
    },
    Definition {
        name: CONNTRACK_DURATION,
        shape: Shape::Histogram(exponential),
        labels: FAMILY,
        help: "[ALPHA] Time that looking for stale conntrack entries took",
    },
    Definition {
        name: CONNTRACK_DELETED,
        shape: Shape::Counter,
        labels: FAMILY,
        help: "[ALPHA] Stale conntrack entries deleted",
    },
    Definition {
        name: TRANSACTION_DURATION,
        shape: Shape::Histogram(transactions),
        labels: &[],
        help: "Time from sending a transaction to the kernel's answer, all that it took to write the tables",
    },
    Definition {
        name: TRANSACTION_BYTES,
        shape: Shape::Histogram(sizes),
        labels: &[],
        help: "Size of transactions as they are sent to the kernel",
    },
    Definition {
        name: PROGRAMMED_ELEMENTS,
        shape: Shape::Counter,
        labels: &[],
        help: "Elements added to and removed from our tables",
    },
    Definition {
        name: DISTURBANCES,
        shape: Shape::Counter,
        labels: &["kind"],
        help: "Times that others changed our tables (changed), or that notifications of changes were lost (lost)",
    },
    Definition {
        name: REPAIRED,
        shape: Shape::Counter,
        labels: &[],
        help: "Elements that were found missing, different or foreign in our tables after the first load, and put right",
    },
    Definition {
        name: OVERRIDES,
        shape: Shape::Gauge,
        labels: &["kind"],
        help: "Endpoints of Services that are drained, or have another weight, by hand on this node",
    },
    Definition {
        name: STATUS_ANSWER,
        shape: Shape::Histogram(transactions),
        labels: &[],
        help: "Time for which the controller was held by a question about what it serves",
    },
    Definition {
        name: STATUS_WALKS,
        shape: Shape::Counter,
        labels: &[],
        help: "Walks through connection tracking because somebody asked for connections",
    },
    Definition {
        name: LIVE_SERVICES,
        shape: Shape::Gauge,
        labels: &[],
        help: "Services whose scheduler goes by counts of connections",
    },
    Definition {
        name: LIVE_CONNECTIONS,
        shape: Shape::Gauge,
        labels: &[],
        help: "Connections counted for them, open ones and closed ones that are still remembered",
    },
    Definition {
        name: CONNTRACK_EVENTS,
        shape: Shape::Counter,
        labels: &[],
        help: "Events of connection tracking heard for them",
    },
    Definition {
        name: CONNTRACK_EVENTS_LOST,
        shape: Shape::Counter,
        labels: &[],
        help: "How often events came faster than they were heard, and connections were counted anew",
    },
    Definition {
        name: REDEAL_DURATION,
        shape: Shape::Histogram(redeals),
        labels: &[],
        help: "Time from counts to the kernel having the slots dealt by them",
    },
    Definition {
        name: REDEAL_SLOTS,
        shape: Shape::Counter,
        labels: &[],
        help: "Slots that went to another endpoint by counts",
    },
    Definition {
        name: REST_REQUESTS,
        shape: Shape::Counter,
        labels: &["code", "method", "host"],
        help: "[ALPHA] Requests to the API server by HTTP status, method and host",
    },
    Definition {
        name: REST_DURATION,
        shape: Shape::Histogram(requests),
        labels: &["verb", "host"],
        help: "[ALPHA] Time to the head of the API server's answer",
    },
    Definition {
        name: USERSPACE_SERVICES,
        shape: Shape::Gauge,
        labels: &["reason"],
        help: "Services that the userspace forwarder carries, by the reason why the kernel does not",
    },
    Definition {
        name: USERSPACE_FALLBACKS,
        shape: Shape::Counter,
        labels: &["reason"],
        help: "Times that a Service became the userspace forwarder's, by the reason why the kernel does not carry it",
    },
    Definition {
        name: USERSPACE_LISTENERS,
        shape: Shape::Gauge,
        labels: &["state"],
        help: "Listeners of the userspace forwarder that are open, and that could not be opened so far",
    },
    Definition {
        name: USERSPACE_CONNECTIONS,
        shape: Shape::Gauge,
        labels: &["protocol"],
        help: "TCP connections and UDP flows in the userspace forwarder",
    },
    Definition {
        name: USERSPACE_ACCEPTED,
        shape: Shape::Counter,
        labels: &["protocol"],
        help: "TCP connections accepted and UDP flows made by the userspace forwarder",
    },
    Definition {
        name: USERSPACE_REFUSED,
        shape: Shape::Counter,
        labels: &["reason"],
        help: "TCP connections that the userspace forwarder refused",
    },
    Definition {
        name: USERSPACE_FAILURES,
        shape: Shape::Counter,
        labels: &["protocol", "endpoint"],
        help: "Attempts of the userspace forwarder to reach an endpoint that failed",
    },
    Definition {
        name: USERSPACE_BYTES,
        shape: Shape::Counter,
        labels: &["protocol", "direction"],
        help: "Bytes forwarded in userspace: up from clients, down to clients",
    },
    Definition {
        name: BUILD_INFO,
        shape: Shape::Gauge,
        labels: &[
            "build_date",
            "compiler",
            "git_commit",
            "git_tree_state",
            "git_version",
            "go_version",
            "major",
            "minor",
            "platform",
        ],
        help: "[ALPHA] Always 1; the labels say what is running",
    },
];

/// 1 ms to 16.384 s, doubling.
fn exponential() -> Vec<f64> {
    (0..15).map(|n| 0.001 * f64::from(1 << n)).collect()
}

/// 0.05 ms to 1.6 s, doubling.
fn transactions() -> Vec<f64> {
    (0..16).map(|n| 0.000_05 * f64::from(1 << n)).collect()
}

/// 256 bytes to 64 MiB, times four.
fn sizes() -> Vec<f64> {
    (0..10).map(|n| 256.0 * f64::from(1 << (2 * n))).collect()
}

/// 0.1 ms to 409.6 ms, doubling.
fn redeals() -> Vec<f64> {
    (0..13).map(|n| 0.0001 * f64::from(1 << n)).collect()
}

/// 0 (there is one), 0.25, 0.5, seconds up to a minute, 5 s steps up to two, half minutes up to five.
fn programming() -> Vec<f64> {
    let steps = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.0, 0.25, 0.5].into_iter().chain(steps.map(f64::from)).collect()
}

/// client-go's.
fn requests() -> Vec<f64> {
    vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0]
}

// === impl Definition ===

impl Definition {
    /// Makes the metric known to a recorder and its registry.
    pub(super) fn register(&self, recorder: &Recorder) {
        let opts = || Opts::new(self.name, self.help);
        let made = match self.shape {
            Shape::Counter if self.labels.is_empty() => {
                IntCounter::with_opts(opts()).and_then(|metric| recorder.try_register_metric(metric))
            }
            Shape::Counter => {
                IntCounterVec::new(opts(), self.labels).and_then(|metric| recorder.try_register_metric(metric))
            }
            Shape::Gauge if self.labels.is_empty() => {
                Gauge::with_opts(opts()).and_then(|metric| recorder.try_register_metric(metric))
            }
            Shape::Gauge => GaugeVec::new(opts(), self.labels).and_then(|metric| recorder.try_register_metric(metric)),
            Shape::Histogram(buckets) => {
                let opts = HistogramOpts::new(self.name, self.help).buckets(buckets());
                match self.labels {
                    [] => Histogram::with_opts(opts).and_then(|metric| recorder.try_register_metric(metric)),
                    labels => HistogramVec::new(opts, labels).and_then(|metric| recorder.try_register_metric(metric)),
                }
            }
        };
        made.expect("a constant definition is sound");
    }
}

//! How the daemon is.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::explain::DifferenceView;

/// The daemon itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthView {
    /// [`super::VERSION`].
    pub version: String,
    /// Of this program.
    pub program: String,
    /// The version of kube-proxy that it stands for.
    pub kube_proxy: String,
    /// Its process.
    pub pid: u32,
    /// The node that it acts as.
    pub node: String,
    /// The node's zone, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// `iptables`, `ipvs`, `nftables` or `userspace`: whose defaults apply.
    pub mode: String,
    /// Who serves Services that choose nobody.
    pub default_scheduler: String,
    /// When it was started.
    pub started: Timestamp,
    /// Seconds since then.
    pub uptime_seconds: f64,
    /// Whether everything known at the start is programmed.
    pub loaded: bool,
    /// Whether the kernel has what is desired, as far as is known; if not, it is being compared, or a refusal is waited out.
    pub trusted: bool,
    /// Services served.
    pub services: usize,
    /// Endpoints in all slices, ports not told apart.
    pub endpoints: usize,
    /// Elements of our tables.
    pub elements: usize,
    /// Problems of objects that stand now.
    pub problems: usize,
    /// The families served, with their tables.
    pub families: Vec<FamilyHealth>,
    /// Endpoints drained or weighted by hand, each Service's counted.
    #[serde(default)]
    pub overrides: usize,
    /// Where `/healthz`, `/livez` and `/readyz` are meant to be served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_address: Option<SocketAddr>,
    /// Where `/metrics` is meant to be served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_address: Option<SocketAddr>,
    /// Whether the page is served there.
    #[serde(default)]
    pub page: bool,
    /// The API server, if one is followed and was asked for something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiHealth>,
    /// The last transaction that the kernel took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_sync: Option<LastSync>,
    /// The last one that it refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
}

/// How an API server answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiHealth {
    /// Its host and port.
    pub server: String,
    /// When it answered last. A watch is one answer, when it begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_answer: Option<Timestamp>,
    /// Why the last request had no answer; left out where it had.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How many seconds our clock is ahead of its, give or take one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<f64>,
}

/// What came of comparing the kernel's tables with what is desired, element by element.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriftView {
    /// [`super::VERSION`].
    pub version: String,
    /// Elements looked up.
    pub looked_up: usize,
    /// How many are missing or different, twice in a row.
    pub differing: usize,
    /// Some of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<DifferenceView>,
}

/// A family that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyHealth {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// The table, as nft names it: `ip pointsman`.
    pub table: String,
}

/// A synchronisation that came to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastSync {
    /// When it ended.
    pub at: Timestamp,
    /// From the first change taken to the kernel's answer, in milliseconds.
    pub milliseconds: f64,
    /// `full` or `partial`.
    pub kind: String,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// What was tried on which object, and why it failed.
    pub error: String,
}

//! What was typed, what the file says, and what they mean together.
//!
//! ```text
//!  command line --flags--> Flags --+
//!                                  +--merge--> Document --check--> Config
//!  --config file --decode--> Document
//! ```
//!
//! [`Flags`] is the command line as typed, a `Document` is kube-proxy's configuration file, and [`Config`] is what is meant:
//! checked, complete, with defaults, types and the rules of the mode applied. Nothing else in this program looks at the other two.
//! A configuration is refused as a whole and with everything that is wrong with it: [`ConfigErrors`] names each field (or flag, if
//! that is where it came from) with its value.
//!
//! kube-proxy's modes are whose defaults and whose section of the file apply. They all run on the one nftables engine.
//!
//! `table` has the flags, `flags` reads them, `decode` reads files, `document` has their fields and defaults, `check` the rules
//! for single values, `merge` who overrides whom, `resolve` what it all means, `watch` notices when a file is edited. Proven by
//! `tests/config.rs`: files that start us, files that do not, and snapshots of all that is printed.

mod check;
mod decode;
mod document;
mod duration;
mod flags;
mod gates;
mod merge;
mod numbers;
mod quantity;
mod resolve;
pub(crate) mod table;
pub mod version;
mod watch;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;

pub use check::{ConfigError, ConfigErrors};
pub use duration::{GoDuration, NoDuration};
pub use flags::{Flags, Parsed, UsageError};
pub use gates::{FeatureGates, GATES, Gate, Stage};
pub use quantity::{NoQuantity, Quantity};
pub use watch::{Edit, FileWatch};

use crate::logging::LoggingConfig;
use crate::schedule::{Scheduler, TableSizes};

/// What the daemon shall do.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Serve, or do one thing and exit.
    pub action: Action,
    /// The node we act as: lower case, not empty.
    pub node: String,
    /// Where objects come from.
    pub source: SourceConfig,
    /// How an API server is asked.
    pub client: ClientConfig,
    /// The scheduler for Services that choose none.
    pub scheduler: Scheduler,
    /// How large the tables of hashing schedulers are.
    pub tables: TableSizes,
    /// Whether others are kept from changing our tables, where the kernel can.
    pub own_tables: bool,
    /// Limits of the userspace forwarder.
    pub forward: ForwardConfig,
    /// Whether the page is served under `/ui/` beside `/metrics`.
    pub page: bool,
    /// Whose connections `/metrics` tells.
    pub connection_metrics: ConnectionMetrics,
    /// Whose defaults apply, and what `/proxyMode` says.
    pub mode: Mode,
    /// How the source of connections is hidden.
    pub masquerade: Masquerade,
    /// When the kernel is told.
    pub sync: SyncConfig,
    /// On which addresses NodePorts are served.
    pub node_ports: NodePorts,
    /// Whether NodePorts are served on 127.0.0.1 and ::1; only ever in modes iptables and userspace.
    pub localhost_node_ports: bool,
    /// How connections of this node's pods are told from others.
    pub detect_local: DetectLocal,
    /// The node's primary address, if it shall not be the Node object's: never unspecified.
    pub bind_address: Option<IpAddr>,
    /// Where `/healthz` and `/livez` are served, if anywhere.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// Where `pointsman` asks, if it can.
    pub status_socket: Option<PathBuf>,
    /// Whether not being able to listen there ends the process.
    pub bind_hard_fail: bool,
    /// Whether `/debug/` is served beside `/metrics`.
    pub profiling: bool,
    /// Whether metrics hidden since the previous minor version are shown.
    pub show_hidden_metrics: bool,
    /// Sysctls of connection tracking.
    pub conntrack: ConntrackConfig,
    /// What only mode ipvs has.
    pub ipvs: IpvsConfig,
    /// `/proc/self/oom_score_adj`: from -1000 to 1000.
    pub oom_score_adj: i32,
    /// How often kube-proxy looks again at everything known from the API server; without effect here.
    pub config_sync_period: Duration,
    /// Feature gates.
    pub gates: FeatureGates,
    /// How much is said, where and how.
    pub logging: LoggingConfig,
    /// The version to report.
    pub version: String,
    /// Every flag with its value as typed or its default, by name, without hyphens: for `/flagz` and the log.
    pub flags: Vec<(&'static str, String)>,
    /// The merged configuration as `--write-config-to` and `/configz` show it.
    document: document::Document,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve until the end.
    Serve,
    /// Do what needs privileges, and exit.
    InitOnly,
    /// Remove what was programmed, and exit.
    Cleanup,
    /// Write the configuration to this file, and exit.
    WriteConfig(PathBuf),
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Api {
        /// Where it is and how to log in; `None` means in-cluster, unless there is a `master`.
        kubeconfig: Option<PathBuf>,
        /// Its address, if it shall not be the kubeconfig's.
        master: Option<String>,
    },
}

/// How an API server is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// Requests per second in the long run; negative means any number.
    pub qps: f32,
    /// Requests that may come at once.
    pub burst: u32,
    /// Content type of requests; without effect, they are JSON.
    pub content_type: String,
    /// What is accepted as answer, if not that; without effect.
    pub accept_content_types: String,
}

/// Whose defaults apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What kube-proxy does unless told otherwise.
    Iptables,
    /// Deprecated upstream.
    Ipvs,
    /// The mode we are.
    Nftables,
    /// Removed upstream in 1.26: every Service goes through the userspace forwarder.
    Userspace,
}

/// Limits of the userspace forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardConfig {
    /// How long a stop waits for its connections.
    pub drain: Duration,
    /// How long each attempt to connect to an endpoint may take; `None`: the forwarder's own times.
    pub connect_timeout: Option<Duration>,
    /// When silence ends a connection or flow; `None`: the forwarder's own times.
    pub idle_timeout: Option<Duration>,
    /// Connections at once; `None`: as many as there are descriptors for.
    pub max_connections: Option<usize>,
}

/// Whose connections `/metrics` tells one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionMetrics {
    /// Service ports at most; 0: nobody is counted.
    pub services: usize,
    /// Their endpoints, too.
    pub endpoints: bool,
}

/// How the source of connections is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Of all connections to ClusterIPs, not only where it must be.
    pub all: bool,
    /// The bit of the packet mark that upstream uses for it: from 0 to 31.
    pub bit: u8,
}

/// When the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncConfig {
    /// How soon a failed change is tried again at the latest, and half of what `/healthz` tolerates. Positive.
    pub period: Duration,
    /// The pause between two changes, if one is configured: at most `period`. kube-proxy pauses for a second by default; here nothing does,
    /// and `0s` is what says so, in a file, in what is written and in a flag.
    pub min_period: Option<Duration>,
}

/// On which addresses of the node NodePorts are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePorts {
    /// On all.
    All,
    /// On the primary address of each family.
    Primary,
    /// On those within one of these networks.
    Within(Vec<IpNet>),
}

/// How connections of this node's pods are told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// They come from these networks, at most one per family; none means that nothing is known to be local.
    ClusterCidr(Vec<IpNet>),
    /// They come from the Node's `podCIDRs`.
    NodeCidr,
    /// They come in on this bridge.
    BridgeInterface(String),
    /// They come in on an interface whose name begins so.
    InterfaceNamePrefix(String),
}

/// Sysctls of connection tracking. `None` leaves the kernel's value alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Connections per CPU; `None` leaves the limit alone whatever `min` is.
    pub max_per_core: Option<u32>,
    /// Connections at least.
    pub min: u32,
    /// Whether TCP packets outside of the window are valid.
    pub tcp_be_liberal: bool,
    /// For an idle TCP connection.
    pub tcp_established_timeout: Option<Duration>,
    /// For a half-closed TCP connection.
    pub tcp_close_wait_timeout: Option<Duration>,
    /// For an unanswered UDP flow.
    pub udp_timeout: Option<Duration>,
    /// For an answered UDP flow.
    pub udp_stream_timeout: Option<Duration>,
}

/// What only mode ipvs has. None of it changes what nftables does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsConfig {
    /// Whether ARP requests are answered only for addresses of the interface.
    pub strict_arp: bool,
    /// Networks with virtual servers of others.
    pub exclude_cidrs: Vec<IpNet>,
    /// For an idle TCP connection.
    pub tcp_timeout: Option<Duration>,
    /// For a TCP connection after a FIN.
    pub tcp_fin_timeout: Option<Duration>,
    /// For a UDP flow.
    pub udp_timeout: Option<Duration>,
}

/// A configuration and what came with it.
#[derive(Debug)]
pub struct Loaded {
    /// What is meant.
    pub config: Config,
    /// The file it came from, under watch since before it was read.
    pub watch: Option<FileWatch>,
    /// What to say once there is a log.
    pub notes: Vec<Note>,
}

/// Something to say about a configuration that is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Good to know.
    Info(String),
    /// Probably not what was wanted.
    Warning(String),
}

// === impl Config ===

impl Config {
    /// Everything as it is without flags and file, for a node and a source.
    pub fn new(node: impl Into<String>, source: SourceConfig) -> Self {
        resolve::defaults(node.into(), source)
    }

    /// Reads the file, if the flags name one, and works out what is meant.
    ///
    /// # Errors
    /// All that is wrong, not only the first.
    pub fn load(flags: &Flags) -> Result<Loaded, ConfigErrors> {
        resolve::load(flags)
    }

    /// What [`Config::load`] finds, without the rest of it.
    ///
    /// # Errors
    /// As there.
    pub fn resolve(flags: &Flags) -> Result<Self, ConfigErrors> {
        Self::load(flags).map(|loaded| loaded.config)
    }

    /// The merged configuration as a file of ours and of kube-proxy's.
    pub fn to_yaml(&self) -> String {
        let yaml = serde_saphyr::to_string(&self.to_json());
        yaml.expect("texts, numbers and maps of them can be written")
    }

    /// The same as an object for `/configz`.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(&self.document).expect("its fields are texts, numbers and maps of them")
    }

    /// Writes the merged configuration to a file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ConfigErrors> {
        std::fs::write(path, self.to_yaml()).map_err(|error| {
            ConfigError::new("--write-config-to", format!("{:?}", path.display().to_string()), error.to_string()).into()
        })
    }
}

// === impl ForwardConfig ===

impl Default for ForwardConfig {
    fn default() -> Self {
        Self { drain: Duration::from_secs(30), connect_timeout: None, idle_timeout: None, max_connections: None }
    }
}

// === impl ConnectionMetrics ===

impl Default for ConnectionMetrics {
    fn default() -> Self {
        Self { services: 500, endpoints: false }
    }
}

// === impl Mode ===

impl Mode {
    /// As `--proxy-mode` takes it and `/proxyMode` says it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
            Mode::Nftables => "nftables",
            Mode::Userspace => "userspace",
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

//! `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, field by field.
//!
//! A [`Document`] is used twice: as what a file says, where every field may be absent, and as the merged configuration that
//! `--write-config-to` and `/configz` show, where every default is filled in. Which of the two, the function says that hands it
//! out. Field names and defaults are upstream's; what they mean is decided in `resolve`, whether they are acceptable in `check`.
//!
//! Zero and absent are the same for most fields; those where they differ are an [`Option`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::duration::{self, GoDuration};
use super::quantity::Quantity;

/// `apiVersion` of a [`Document`].
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of a [`Document`].
pub const KIND: &str = "KubeProxyConfiguration";
/// What is asked of an API server unless something else is configured.
pub const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

/// The whole configuration. What a field means is told by the flag that stands for it, and by kube-proxy's documentation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Document {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: Iptables,
    pub ipvs: Ipvs,
    pub nftables: Nftables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    pub windows_run_as_service: bool,
}

/// `clientConnection`: how to talk to the API server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    #[serde(serialize_with = "plain_number")]
    pub qps: f32,
    pub burst: i32,
}

/// `logging`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Logging {
    pub format: String,
    #[serde(deserialize_with = "duration::or_nanoseconds")]
    pub flush_frequency: GoDuration,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
    pub options: LoggingOptions,
}

/// One of `logging.vmodule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

/// `logging.options`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LoggingOptions {
    pub text: OutputOptions,
    pub json: OutputOptions,
}

/// `logging.options.text` and `.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OutputOptions {
    pub split_stream: bool,
    pub info_buffer_size: Quantity,
}

/// `iptables`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Iptables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// `ipvs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

/// `nftables`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Nftables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

/// `winkernel`: accepted and without effect.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

/// `detectLocal`: how to tell pods of this node by their interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

/// `conntrack`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

/// Ports of the two listeners, where an address comes without one.
pub const HEALTHZ_PORT: u16 = 10256;
/// See [`HEALTHZ_PORT`].
pub const METRICS_PORT: u16 = 10249;

// === impl Document ===

impl Document {
    /// What no file and no flag changes.
    pub fn defaults() -> Self {
        let mut document = Document { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), ..Self::default() };
        document.fill_defaults();
        document
    }

    /// Fills in the defaults of a file. Idempotent.
    pub fn fill_defaults(&mut self) {
        let text = |field: &mut String, value: &str| {
            if field.is_empty() {
                value.clone_into(field);
            }
        };
        let duration = |field: &mut GoDuration, seconds| {
            if *field == GoDuration::ZERO {
                *field = GoDuration::from_secs(seconds);
            }
        };
        text(&mut self.bind_address, "0.0.0.0");
        let v6 = self.bind_address.parse::<std::net::Ipv6Addr>().is_ok();
        text(&mut self.healthz_bind_address, if v6 { "::" } else { "0.0.0.0" });
        text(&mut self.metrics_bind_address, if v6 { "::1" } else { "127.0.0.1" });
        self.healthz_bind_address = with_port(&self.healthz_bind_address, HEALTHZ_PORT);
        self.metrics_bind_address = with_port(&self.metrics_bind_address, METRICS_PORT);
        text(&mut self.client_connection.content_type, CONTENT_TYPE);
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        text(&mut self.logging.format, "text");
        duration(&mut self.logging.flush_frequency, 5);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.iptables.localhost_node_ports.get_or_insert(true);
        duration(&mut self.iptables.sync_period, 30);
        duration(&mut self.ipvs.sync_period, 30);
        self.nftables.masquerade_bit.get_or_insert(14);
        duration(&mut self.nftables.sync_period, 30);
        self.oom_score_adj.get_or_insert(-999);
        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::from_secs(24 * 60 * 60));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::from_secs(60 * 60));
        duration(&mut self.config_sync_period, 15 * 60);
    }

    /// Fills in what depends on the mode and is the same for flags and file.
    pub fn fill_mode(&mut self) {
        if self.mode.is_empty() {
            "iptables".clone_into(&mut self.mode);
        }
        if self.mode == "nftables" && self.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
            self.node_port_addresses = Some(vec!["primary".to_owned()]);
        }
        if self.detect_local_mode.is_empty() {
            "ClusterCIDR".clone_into(&mut self.detect_local_mode);
        }
    }

    /// Sync periods and `masqueradeAll` where the mode does not look for them are zero.
    pub fn blank_inactive(&mut self) {
        let mode = self.mode.as_str();
        if !matches!(mode, "" | "iptables" | "userspace") {
            self.iptables.sync_period = GoDuration::ZERO;
            self.iptables.min_sync_period = GoDuration::ZERO;
        }
        if mode != "ipvs" {
            self.ipvs.sync_period = GoDuration::ZERO;
            self.ipvs.min_sync_period = GoDuration::ZERO;
        }
        if mode == "nftables" {
            self.iptables.masquerade_all = false;
        } else {
            self.nftables.masquerade_all = false;
            self.nftables.sync_period = GoDuration::ZERO;
            self.nftables.min_sync_period = GoDuration::ZERO;
        }
    }
}

/// The address with a port, if it is an address and has none. Anything else stays as it is, for validation to name.
pub fn with_port(address: &str, port: impl std::fmt::Display) -> String {
    match crate::model::parse_address(address) {
        Some(_) if address.contains(':') => format!("[{address}]:{port}"),
        Some(_) => format!("{address}:{port}"),
        None => address.to_owned(),
    }
}

/// 5 and not 5.0.
#[expect(clippy::cast_possible_truncation, reason = "whole and small, as checked")]
fn plain_number<S: serde::Serializer>(number: &f32, to: S) -> Result<S::Ok, S::Error> {
    if number.fract() == 0.0 && number.abs() < 1e9 {
        to.serialize_i64(*number as i64)
    } else {
        to.serialize_f32(*number)
    }
}

//! Which values are acceptable.
//!
//! [`check`] looks at a merged [`Document`], defaults filled in, and tells everything that is wrong with it. Rules about single
//! fields and about fields that must fit each other are here; rules that need a type to state them (feature gates, schedulers)
//! are told by `resolve` into the same [`ConfigErrors`].

use std::fmt;

use ipnet::IpNet;
use serde_json::json;

use super::document::Document;
use super::duration::GoDuration;
use super::flags::socket;
use super::table;
use crate::model::parse_address;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value}{}{reason}", if value.is_empty() { "" } else { ": " })]
pub struct ConfigError {
    /// Path of the field in the file, or the flag.
    pub field: String,
    /// As JSON writes it; empty if the reason tells it or there is none.
    pub value: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Everything that is wrong, at least one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

// === impl ConfigError ===

impl ConfigError {
    pub(super) fn new(field: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) -> Self {
        ConfigError { field: field.into(), value: value.into(), reason: reason.into() }
    }
}

// === impl ConfigErrors ===

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        ConfigErrors(vec![error])
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => write!(f, "{one}"),
            all => {
                write!(f, "{} things are wrong with the configuration:", all.len())?;
                all.iter().try_for_each(|error| write!(f, "\n       {error}"))
            }
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// Collects what is wrong, under the name of the field or of its flag.
pub(super) struct Complaints {
    flags: bool,
    errors: Vec<ConfigError>,
}

// === impl Complaints ===

impl Complaints {
    /// `flags`: whether values come from flags and not from a file.
    pub fn new(flags: bool) -> Self {
        Complaints { flags, errors: Vec::new() }
    }

    pub fn add(&mut self, field: &str, value: impl serde::Serialize, reason: impl Into<String>) {
        let flag = table::flag_of(field).filter(|_| self.flags);
        let field = flag.map_or_else(|| field.to_owned(), |flag| format!("--{flag}"));
        self.errors.push(ConfigError::new(field, json!(value).to_string(), reason));
    }

    /// Complains unless it is so.
    pub fn require(&mut self, is_so: bool, field: &str, value: impl serde::Serialize, reason: &str) {
        if !is_so {
            self.add(field, value, reason);
        }
    }

    /// Adds a complaint of another kind.
    pub fn push(&mut self, error: ConfigError) {
        self.errors.push(error);
    }

    pub fn end(self) -> Result<(), ConfigErrors> {
        if self.errors.is_empty() { Ok(()) } else { Err(ConfigErrors(self.errors)) }
    }
}

/// Checks all fields.
pub(super) fn check(document: &Document, complaints: &mut Complaints) {
    listeners(document, complaints);
    modes(document, complaints);
    local(document, complaints);
    let client = &document.client_connection;
    complaints.require(client.burst >= 0, "clientConnection.burst", client.burst, "must not be negative");
    let hidden = document.show_hidden_metrics_for_version.as_str();
    let previous = "must be the previous minor version, \"1.35\", or empty";
    complaints.require(matches!(hidden, "" | "1.35"), "showHiddenMetricsForVersion", hidden, previous);
    let score = document.oom_score_adj;
    let in_range = score.is_none_or(|score| (-1000..=1000).contains(&score));
    complaints.require(in_range, "oomScoreAdj", score, "must be from -1000 to 1000");
    let conntrack = &document.conntrack;
    for (field, number) in [("conntrack.maxPerCore", conntrack.max_per_core), ("conntrack.min", conntrack.min)] {
        complaints.require(number.is_none_or(|number| number >= 0), field, number, "must not be negative");
    }
    for (field, timeout) in [
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default()),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default()),
        ("conntrack.udpTimeout", conntrack.udp_timeout),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
    ] {
        complaints.require(timeout >= GoDuration::ZERO, field, timeout, "must not be negative");
    }
    let period = document.config_sync_period;
    complaints.require(period > GoDuration::ZERO, "configSyncPeriod", period, "must be positive");
    node_ports(document, complaints);
    logging(document, complaints);
}

fn listeners(document: &Document, complaints: &mut Complaints) {
    let address = &document.bind_address;
    complaints.require(parse_address(address).is_some(), "bindAddress", address, "must be an IP address");
    let healthz = &document.healthz_bind_address;
    let reason = "must be an IP address and a port from 1 to 65535";
    complaints.require(healthz.is_empty() || socket(healthz).is_some(), "healthzBindAddress", healthz, reason);
    let metrics = &document.metrics_bind_address;
    complaints.require(socket(metrics).is_some(), "metricsBindAddress", metrics, reason);
}

fn modes(document: &Document, complaints: &mut Complaints) {
    let bit = |complaints: &mut Complaints, field, bit: Option<i32>| {
        let in_range = bit.is_none_or(|bit| (0..=31).contains(&bit));
        complaints.require(in_range, field, bit, "must be from 0 to 31");
    };
    let not_negative = |complaints: &mut Complaints, field, duration: GoDuration| {
        complaints.require(duration >= GoDuration::ZERO, field, duration, "must not be negative");
    };
    bit(complaints, "iptables.masqueradeBit", document.iptables.masquerade_bit);
    let (section, period, min) = match document.mode.as_str() {
        "iptables" | "userspace" => ("iptables", document.iptables.sync_period, document.iptables.min_sync_period),
        "nftables" => {
            bit(complaints, "nftables.masqueradeBit", document.nftables.masquerade_bit);
            ("nftables", document.nftables.sync_period, document.nftables.min_sync_period)
        }
        "ipvs" => {
            not_negative(complaints, "ipvs.tcpTimeout", document.ipvs.tcp_timeout);
            not_negative(complaints, "ipvs.tcpFinTimeout", document.ipvs.tcp_fin_timeout);
            not_negative(complaints, "ipvs.udpTimeout", document.ipvs.udp_timeout);
            for (index, text) in document.ipvs.exclude_cidrs.iter().flatten().enumerate() {
                let field = if complaints.flags { "ipvs.excludeCIDRs" } else { &format!("ipvs.excludeCIDRs[{index}]") };
                complaints.require(cidr(text).is_some(), field, text, "must be a CIDR");
            }
            ("ipvs", document.ipvs.sync_period, document.ipvs.min_sync_period)
        }
        mode => return complaints.add("mode", mode, "must be nftables, iptables, ipvs, userspace or empty"),
    };
    // In mode nftables, too, the flags that say so are those of iptables.
    let section = if complaints.flags && section == "nftables" { "iptables" } else { section };
    let (period_field, min_field) = (format!("{section}.syncPeriod"), format!("{section}.minSyncPeriod"));
    complaints.require(period > GoDuration::ZERO, &period_field, period, "must be positive");
    not_negative(complaints, &min_field, min);
    let reason = format!("must not be greater than the sync period, {period}");
    complaints.require(min <= period || period <= GoDuration::ZERO, &min_field, min, &reason);
}

/// `IFNAMSIZ` without the zero at the end (include/uapi/linux/if.h).
const LONGEST_INTERFACE: usize = 15;
const TOO_LONG: &str = "no interface has this name: at most 15 bytes";

fn local(document: &Document, complaints: &mut Complaints) {
    let mode = document.detect_local_mode.as_str();
    let known = matches!(mode, "ClusterCIDR" | "NodeCIDR" | "BridgeInterface" | "InterfaceNamePrefix");
    let reason = "must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix or empty";
    complaints.require(known, "detectLocalMode", mode, reason);
    match mode {
        "ClusterCIDR" if document.cluster_cidr.is_empty() => {}
        "ClusterCIDR" => {
            let text = &document.cluster_cidr;
            let parsed: Vec<_> = text.split(',').map(cidr).collect();
            let reason = match parsed.as_slice() {
                [Some(_)] => return,
                [Some(one), Some(other)] if one.addr().is_ipv4() != other.addr().is_ipv4() => return,
                [Some(_), Some(_)] => "must not be two CIDRs of one family",
                parsed if parsed.len() > 2 => "must be at most one CIDR per family",
                _ => "must be a CIDR, or an IPv4 and an IPv6 one with nothing but a comma between them",
            };
            complaints.add("clusterCIDR", text, reason);
        }
        "BridgeInterface" => {
            let name = &document.detect_local.bridge_interface;
            let reason = "must name a bridge if detectLocalMode is BridgeInterface";
            complaints.require(!name.is_empty(), "detectLocal.bridgeInterface", name, reason);
            complaints.require(name.len() <= LONGEST_INTERFACE, "detectLocal.bridgeInterface", name, TOO_LONG);
        }
        "InterfaceNamePrefix" => {
            let name = &document.detect_local.interface_name_prefix;
            let reason = "must not be empty if detectLocalMode is InterfaceNamePrefix";
            complaints.require(!name.is_empty(), "detectLocal.interfaceNamePrefix", name, reason);
            complaints.require(name.len() <= LONGEST_INTERFACE, "detectLocal.interfaceNamePrefix", name, TOO_LONG);
        }
        _ => {}
    }
}

fn node_ports(document: &Document, complaints: &mut Complaints) {
    let addresses = document.node_port_addresses.as_deref().unwrap_or_default();
    if addresses == ["primary"] {
        return;
    }
    for (index, text) in addresses.iter().enumerate() {
        let field = if complaints.flags { "nodePortAddresses" } else { &format!("nodePortAddresses[{index}]") };
        let reason = if text == "primary" {
            "must be alone: the word primary and nothing else"
        } else {
            "must be a CIDR, or the word primary alone"
        };
        complaints.require(cidr(text).is_some(), field, text, reason);
    }
}

fn logging(document: &Document, complaints: &mut Complaints) {
    let logging = &document.logging;
    let known = matches!(logging.format.as_str(), "text" | "json");
    complaints.require(known, "logging.format", &logging.format, "must be text or json");
    let flush = logging.flush_frequency;
    complaints.require(flush > GoDuration::ZERO, "logging.flushFrequency", flush, "must be positive");
    let text_only = logging.format != "json" || logging.vmodule.is_empty();
    complaints.require(text_only, "logging.vmodule", &logging.vmodule, "only works with format text");
    for (index, module) in logging.vmodule.iter().enumerate() {
        let field = format!("logging.vmodule[{index}]");
        let pattern = &module.file_pattern;
        complaints.require(!pattern.is_empty(), &format!("{field}.filePattern"), pattern, "must not be empty");
        let plain = !pattern.contains(['=', ',']);
        complaints.require(plain, &format!("{field}.filePattern"), pattern, "must not contain = or ,");
    }
    let most = i32::MAX.unsigned_abs();
    let in_range = logging.verbosity <= most;
    complaints.require(in_range, "logging.verbosity", logging.verbosity, "must be at most 2147483647");
    for (format, options) in [("text", logging.options.text), ("json", logging.options.json)] {
        let size = options.info_buffer_size;
        let field = format!("logging.options.{format}.infoBufferSize");
        complaints.require(!size.is_negative(), &field, size, "must not be negative");
    }
}

/// A network as Kubernetes reads it, host bits cut off.
pub(super) fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| plain)?;
    IpNet::new(parse_address(address)?, length).ok().map(|network| network.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_kubernetes_does() {
        for (text, want) in [
            ("10.244.0.0/16", Some("10.244.0.0/16")),
            ("010.244.1.2/16", Some("10.244.0.0/16")),
            ("fd00:1::9/64", Some("fd00:1::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("10.0.0.0", None),
            (" 10.0.0.0/8", None),
            ("", None),
        ] {
            assert_eq!(cidr(text).map(|network| network.to_string()).as_deref(), want, "{text:?}");
        }
    }
}

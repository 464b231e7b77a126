//! What a configuration means to each part of the program.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, DetectLocal, Mode, NodePorts};
use crate::forward::Register;
use crate::kernel::conntrack::CensusTaker;
use crate::logging::Verbosity;
use crate::model::Families;
use crate::observe::desk::Desk;
use crate::observe::metrics::{Build, ConnectionSeries};
use crate::observe::{self, Surface};
use crate::{conntrack, policy};

/// For [`crate::policy`].
pub(super) fn policy(config: &Config) -> policy::Settings {
    policy::Settings {
        node: config.node.as_str().into(),
        detect_local: match &config.detect_local {
            DetectLocal::ClusterCidr(networks) if networks.is_empty() => policy::DetectLocal::Unknown,
            DetectLocal::ClusterCidr(networks) => policy::DetectLocal::Networks(networks.clone()),
            DetectLocal::NodeCidr => policy::DetectLocal::NodeNetworks,
            DetectLocal::BridgeInterface(name) => policy::DetectLocal::Interface(name.clone()),
            DetectLocal::InterfaceNamePrefix(prefix) => policy::DetectLocal::InterfacePrefix(prefix.clone()),
        },
        masquerade_all: config.masquerade.all,
        node_port_addresses: match &config.node_ports {
            NodePorts::All => policy::NodePortAddresses::All,
            NodePorts::Primary => policy::NodePortAddresses::Primary,
            NodePorts::Within(networks) => policy::NodePortAddresses::Networks(networks.clone()),
        },
        ignore_external_ips: !config.gates.enabled("AllowServiceExternalIPs"),
        bind_address: config.bind_address,
        tables: config.tables,
        userspace: config.mode == Mode::Userspace,
        localhost_node_ports: config.localhost_node_ports,
        connect_timeout: config.forward.connect_timeout,
        idle_timeout: config.forward.idle_timeout,
    }
}

/// For [`crate::conntrack`].
pub(super) fn conntrack(config: &Config) -> conntrack::Settings {
    let conntrack = &config.conntrack;
    let or_zero = |timeout: Option<Duration>| timeout.unwrap_or_default();
    conntrack::Settings {
        max_per_core: conntrack.max_per_core.unwrap_or(0),
        min: conntrack.min,
        tcp_established_timeout: or_zero(conntrack.tcp_established_timeout),
        tcp_close_wait_timeout: or_zero(conntrack.tcp_close_wait_timeout),
        tcp_be_liberal: conntrack.tcp_be_liberal,
        udp_timeout: or_zero(conntrack.udp_timeout),
        udp_stream_timeout: or_zero(conntrack.udp_stream_timeout),
    }
}

/// For [`crate::observe`].
pub(super) fn observe(
    config: &Config,
    families: Families,
    verbosity: Verbosity,
    watches_node: bool,
    desk: Desk,
    census: Option<CensusTaker>,
    carried: Register,
) -> observe::Settings {
    let configuration = config.to_json().to_string();
    let defaults = observe::Settings::default();
    let set_verbosity = move |level: i32| match u32::try_from(level) {
        Ok(level) => {
            verbosity.set(level);
            Ok(())
        }
        Err(_) => Err(format!("{level} is no verbosity")),
    };
    observe::Settings {
        node: config.node.clone(),
        watches_node,
        families,
        health_address: config.healthz,
        metrics_address: Some(config.metrics),
        bind_hard_fail: config.bind_hard_fail,
        sync_period: config.sync.period,
        surface: Surface {
            mode: config.mode.name().to_owned(),
            configuration: Some(Arc::new(move || configuration.clone())),
            flags: config.flags.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            profiling: config.profiling,
            flagz: config.gates.enabled("ComponentFlagz"),
            statusz: config.gates.enabled("ComponentStatusz"),
            version: config.version.trim_start_matches('v').to_owned(),
            set_verbosity: Arc::new(set_verbosity),
        },
        build: Build::of(&config.version),
        desk: Some(desk),
        status_socket: config.status_socket.clone(),
        page: config.page,
        carried,
        connections: census.map(|census| ConnectionSeries::new(census, config.connection_metrics)),
        ..defaults
    }
}

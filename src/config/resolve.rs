//! What a merged configuration means.
//!
//! Everything becomes typed here: addresses, networks, durations, the rules of the mode, the node's name. Whatever cannot be
//! stated as a rule about one text is checked here too, and all complaints are told together.

use std::path::PathBuf;
use std::time::Duration;

use super::check::{Complaints, ConfigErrors, check, cidr};
use super::document::Document;
use super::duration::GoDuration;
use super::flags::{Flags, Parsed, socket};
use super::merge::{Merged, merge};
use super::table;
use super::version::{self, Asked};
use super::{
    Action, ClientConfig, Config, ConnectionMetrics, ConntrackConfig, DetectLocal, FeatureGates, ForwardConfig,
    IpvsConfig, Loaded, Masquerade, Mode, NodePorts, Note, SourceConfig, SyncConfig,
};
use crate::logging::{Format, LoggingConfig, Pattern};
use crate::model::parse_address;
use crate::schedule::{Scheduler, SchedulerError, TableSizes};

/// The schedulers of the kernel's IPVS (`net/netfilter/ipvs/ip_vs_*.c`, Linux 6.12).
const IPVS_SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh", "fo", "ovf", "twos"];

/// What a bucket takes in the kernel: an element, and its part of the map's places (`bench/results/`, `schedulers.md`).
const TABLE_BYTES: u64 = 80;

/// Merges, checks and types.
pub fn load(flags: &Flags) -> Result<Loaded, ConfigErrors> {
    let from_flags = flags.text("config").is_none();
    let Merged { document, watch, mut notes } = merge(flags)?;
    let mut complaints = Complaints::new(from_flags);
    check(&document, &mut complaints);
    let gates = FeatureGates::new(&document.feature_gates).unwrap_or_else(|wrong| {
        for (name, reason) in wrong {
            let on = document.feature_gates.get(&name).copied().unwrap_or_default();
            match from_flags {
                true => complaints.push(super::ConfigError::new("--feature-gates", format!("{name}={on}"), reason)),
                false => complaints.add(&format!("featureGates.{name}"), on, reason),
            }
        }
        FeatureGates::default()
    });
    gate_logging(&document, &gates, &mut complaints);
    let node = node(&document, &mut complaints);
    let mode = match document.mode.as_str() {
        "ipvs" => Mode::Ipvs,
        "nftables" => Mode::Nftables,
        "userspace" => Mode::Userspace,
        _ => Mode::Iptables,
    };
    let scheduler = scheduler(&document, mode, from_flags, &mut complaints, &mut notes);
    let forward = forward(flags, &mut complaints);
    let connection_metrics = connection_metrics(flags, &mut complaints);
    let tables = tables(flags, &mut complaints);
    let source = source(flags, &document, &mut complaints, &mut notes);
    let version = match version::asked(flags.value("version")) {
        Ok(Asked::Report(version)) => version,
        Ok(Asked::Print(_)) => version::REPORTED.to_owned(),
        Err(reason) => {
            complaints.push(super::ConfigError::new("--version", "", reason));
            String::new()
        }
    };
    complaints.end()?;
    let action = match flags.text("write-config-to") {
        Some(path) => Action::WriteConfig(path.into()),
        None if flags.on("cleanup") => Action::Cleanup,
        None if flags.on("init-only") => Action::InitOnly,
        None => Action::Serve,
    };
    let config = Config {
        action,
        scheduler,
        tables,
        own_tables: flags.on("own-tables"),
        status_socket: flags.text("status-socket").map(PathBuf::from),
        forward,
        page: flags.on("ui"),
        connection_metrics,
        gates,
        version,
        flags: flags.listing(),
        ..typed(document, node, source, mode)
    };
    remark(&config, &mut notes);
    Ok(Loaded { config, watch, notes })
}

/// What [`Config::new`] promises.
pub fn defaults(node: String, source: SourceConfig) -> Config {
    let Ok(Parsed::Flags(flags)) = Flags::parse(["kube-proxy".into()]) else {
        unreachable!("a command line without flags is fine")
    };
    let mut document = Document { hostname_override: node.clone(), ..Document::defaults() };
    document.fill_mode();
    Config { flags: flags.listing(), ..typed(document, node, source, Mode::Iptables) }
}

/// Types what has been checked.
fn typed(mut document: Document, node: String, source: SourceConfig, mode: Mode) -> Config {
    let (masquerade_all, bit, period, min) = match mode {
        Mode::Nftables => {
            let own = &document.nftables;
            (own.masquerade_all, own.masquerade_bit, own.sync_period, own.min_sync_period)
        }
        Mode::Ipvs => {
            let (own, shared) = (&document.ipvs, &document.iptables);
            (shared.masquerade_all, shared.masquerade_bit, own.sync_period, own.min_sync_period)
        }
        Mode::Iptables | Mode::Userspace => {
            let own = &document.iptables;
            (own.masquerade_all, own.masquerade_bit, own.sync_period, own.min_sync_period)
        }
    };
    document.blank_inactive();
    let conntrack = &document.conntrack;
    let unsigned = |number: Option<i32>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default();
    let optional = |timeout: Option<GoDuration>| timeout.and_then(GoDuration::nonzero);
    let ipvs = &document.ipvs;
    Config {
        action: Action::Serve,
        node,
        source,
        client: ClientConfig {
            qps: document.client_connection.qps,
            burst: unsigned(Some(document.client_connection.burst)),
            content_type: document.client_connection.content_type.clone(),
            accept_content_types: document.client_connection.accept_content_types.clone(),
        },
        scheduler: Scheduler::default(),
        tables: TableSizes::default(),
        own_tables: true,
        forward: ForwardConfig::default(),
        page: true,
        connection_metrics: ConnectionMetrics::default(),
        mode,
        masquerade: Masquerade { all: masquerade_all, bit: bit.and_then(|bit| bit.try_into().ok()).unwrap_or(14) },
        sync: SyncConfig { period: period.get(), min_period: min.nonzero() },
        node_ports: node_ports(&document),
        localhost_node_ports: matches!(mode, Mode::Iptables | Mode::Userspace)
            && document.iptables.localhost_node_ports.unwrap_or(true),
        detect_local: detect_local(&document),
        bind_address: parse_address(&document.bind_address).filter(|address| !address.is_unspecified()),
        healthz: socket(&document.healthz_bind_address),
        metrics: socket(&document.metrics_bind_address).expect("checked, and a default is there"),
        status_socket: Some(PathBuf::from(table::STATUS_SOCKET)),
        bind_hard_fail: document.bind_address_hard_fail,
        profiling: document.enable_profiling,
        show_hidden_metrics: !document.show_hidden_metrics_for_version.is_empty(),
        conntrack: ConntrackConfig {
            max_per_core: Some(unsigned(conntrack.max_per_core)).filter(|most| *most != 0),
            min: unsigned(conntrack.min),
            tcp_be_liberal: conntrack.tcp_be_liberal,
            tcp_established_timeout: optional(conntrack.tcp_established_timeout),
            tcp_close_wait_timeout: optional(conntrack.tcp_close_wait_timeout),
            udp_timeout: conntrack.udp_timeout.nonzero(),
            udp_stream_timeout: conntrack.udp_stream_timeout.nonzero(),
        },
        ipvs: if mode == Mode::Ipvs {
            IpvsConfig {
                strict_arp: ipvs.strict_arp,
                exclude_cidrs: ipvs.exclude_cidrs.iter().flatten().filter_map(|text| cidr(text)).collect(),
                tcp_timeout: ipvs.tcp_timeout.nonzero(),
                tcp_fin_timeout: ipvs.tcp_fin_timeout.nonzero(),
                udp_timeout: ipvs.udp_timeout.nonzero(),
            }
        } else {
            IpvsConfig::default()
        },
        oom_score_adj: document.oom_score_adj.unwrap_or(-999),
        config_sync_period: document.config_sync_period.get(),
        gates: FeatureGates::default(),
        logging: logging(&document),
        version: version::REPORTED.to_owned(),
        flags: Vec::new(),
        document,
    }
}

fn node_ports(document: &Document) -> NodePorts {
    match document.node_port_addresses.as_deref() {
        None | Some([]) => NodePorts::All,
        Some([word]) if word == "primary" => NodePorts::Primary,
        Some(texts) => NodePorts::Within(texts.iter().filter_map(|text| cidr(text)).collect()),
    }
}

fn detect_local(document: &Document) -> DetectLocal {
    let names = &document.detect_local;
    match document.detect_local_mode.as_str() {
        "NodeCIDR" => DetectLocal::NodeCidr,
        "BridgeInterface" => DetectLocal::BridgeInterface(names.bridge_interface.clone()),
        "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(names.interface_name_prefix.clone()),
        _ => DetectLocal::ClusterCidr(document.cluster_cidr.split(',').filter_map(cidr).collect()),
    }
}

fn logging(document: &Document) -> LoggingConfig {
    let logging = &document.logging;
    let (format, options) = match logging.format.as_str() {
        "json" => (Format::Json, logging.options.json),
        _ => (Format::Text, logging.options.text),
    };
    let pattern = |module: &super::document::VModule| (Pattern::new(&module.file_pattern), module.verbosity);
    LoggingConfig {
        format,
        verbosity: logging.verbosity,
        modules: logging.vmodule.iter().map(pattern).collect(),
        split_stream: options.split_stream,
    }
}

fn gate_logging(document: &Document, gates: &FeatureGates, complaints: &mut Complaints) {
    let options = &document.logging.options;
    for (format, options) in [("text", options.text), ("json", options.json)] {
        let reason = "needs the feature gate LoggingAlphaOptions";
        let allowed = gates.enabled("LoggingAlphaOptions");
        let field = format!("logging.options.{format}.splitStream");
        complaints.require(allowed || !options.split_stream, &field, options.split_stream, reason);
        let field = format!("logging.options.{format}.infoBufferSize");
        let size = options.info_buffer_size;
        complaints.require(allowed || size.value() == 0, &field, size, reason);
    }
}

/// The override or the host's name, trimmed and in lower case as kube-proxy does.
fn node(document: &Document, complaints: &mut Complaints) -> String {
    let given = &document.hostname_override;
    if !given.is_empty() {
        let name = given.trim().to_lowercase();
        complaints.require(!name.is_empty(), "hostnameOverride", given, "an empty host name is invalid");
        return name;
    }
    let mut unnamed = |reason: &str| {
        let reason = format!("this host has no usable name ({reason}): give one");
        complaints.push(super::ConfigError::new("--hostname-override", "", reason));
        String::new()
    };
    match nix::unistd::gethostname() {
        Err(errno) => unnamed(errno.desc()),
        Ok(host) => match host.to_string_lossy().trim().to_lowercase() {
            name if name.is_empty() => unnamed("it is empty"),
            name => name,
        },
    }
}

fn scheduler(
    document: &Document,
    mode: Mode,
    from_flags: bool,
    complaints: &mut Complaints,
    notes: &mut Vec<Note>,
) -> Scheduler {
    let name = document.ipvs.scheduler.as_str();
    let default = if mode == Mode::Ipvs { Scheduler::RoundRobin } else { Scheduler::default() };
    if name.is_empty() {
        return default;
    }
    let error = match name.parse::<Scheduler>() {
        Ok(scheduler) => return scheduler,
        Err(error) => error,
    };
    let ours = Scheduler::NAMES.join(", ");
    let reason = match &error {
        SchedulerError::Unknown { .. } => format!("unknown scheduler: one of {ours}"),
        SchedulerError::Flag { .. } => error.to_string(),
    };
    if mode == Mode::Ipvs && IPVS_SCHEDULERS.contains(&name) {
        let text = format!("ipvs.scheduler {name:?} is not implemented: using {default}, the nearest of {ours}");
        notes.push(Note::Warning(text));
    } else if mode == Mode::Ipvs || from_flags {
        complaints.add("ipvs.scheduler", name, reason);
    } else {
        let text = format!("ipvs.scheduler {name:?} is ignored in mode {mode}: {reason}");
        notes.push(Note::Warning(text));
    }
    default
}

fn forward(flags: &Flags, complaints: &mut Complaints) -> ForwardConfig {
    let mut complain = |name: &str, value: String, reason: &str| {
        complaints.push(super::ConfigError::new(format!("--{name}"), value, reason));
    };
    let mut time = |name: &str, default| {
        let text = flags.text(name).unwrap_or(default);
        let time = text.parse::<GoDuration>().unwrap_or(GoDuration::ZERO);
        if time < GoDuration::ZERO {
            complain(name, text.to_owned(), "must not be negative");
            return Duration::ZERO;
        }
        time.get()
    };
    let drain = time("forward-drain", "30s");
    let connect_timeout = time("forward-connect-timeout", "0s");
    let idle_timeout = time("forward-idle-timeout", "0s");
    let count = flags.value("forward-max-connections").as_i64().unwrap_or_default();
    let limit = usize::try_from(count);
    if limit.is_err() {
        complain("forward-max-connections", count.to_string(), "must not be negative");
    }
    let some = |time: Duration| Some(time).filter(|time| !time.is_zero());
    ForwardConfig {
        drain,
        connect_timeout: some(connect_timeout),
        idle_timeout: some(idle_timeout),
        max_connections: limit.ok().filter(|limit| *limit > 0),
    }
}

fn connection_metrics(flags: &Flags, complaints: &mut Complaints) -> ConnectionMetrics {
    let count = flags.value("metrics-services").as_i64().unwrap_or_default();
    let services = usize::try_from(count);
    if services.is_err() {
        complaints.push(super::ConfigError::new("--metrics-services", count.to_string(), "must not be negative"));
    }
    ConnectionMetrics { services: services.unwrap_or_default(), endpoints: flags.on("metrics-endpoints") }
}

fn tables(flags: &Flags, complaints: &mut Complaints) -> TableSizes {
    let mut size = |name: &str, default, read: fn(i64) -> Result<_, String>| {
        let count = flags.value(name).as_i64().unwrap_or_default();
        read(count).unwrap_or_else(|reason| {
            complaints.push(super::ConfigError::new(format!("--{name}"), count.to_string(), reason));
            default
        })
    };
    let default = TableSizes::default();
    TableSizes {
        hash: size("sh-table-size", default.hash, TableSizes::hash_buckets),
        maglev: size("mh-table-size", default.maglev, TableSizes::maglev_buckets),
    }
}

fn source(flags: &Flags, document: &Document, complaints: &mut Complaints, notes: &mut Vec<Note>) -> SourceConfig {
    let kubeconfig = Some(document.client_connection.kubeconfig.as_str()).filter(|path| !path.is_empty());
    let master = flags.text("master");
    let Some(dir) = flags.text("manifests") else {
        return SourceConfig::Api { kubeconfig: kubeconfig.map(PathBuf::from), master: master.map(str::to_owned) };
    };
    let reason = |other| format!("excludes {other}: objects come from one place");
    if let Some(path) = kubeconfig {
        if flags.text("config").is_none() {
            complaints.push(super::ConfigError::new("--manifests", format!("{dir:?}"), reason("--kubeconfig")));
        } else {
            let text =
                format!("clientConnection.kubeconfig {path:?} is not used: objects come from --manifests {dir:?}");
            notes.push(Note::Info(text));
        }
    }
    if master.is_some() {
        complaints.push(super::ConfigError::new("--manifests", format!("{dir:?}"), reason("--master")));
    }
    SourceConfig::Manifests(dir.into())
}

/// What a user should know about a configuration that is fine.
fn remark(config: &Config, notes: &mut Vec<Note>) {
    let ports = match &config.node_ports {
        NodePorts::All => "on all addresses",
        NodePorts::Primary => "on the primary address",
        NodePorts::Within(_) => "on the addresses configured",
    };
    if config.mode != Mode::Nftables {
        notes.push(Note::Info(format!(
            "mode {}: running on nftables with the defaults of that mode: NodePorts {ports}, scheduler {}",
            config.mode, config.scheduler
        )));
    }
    if let Some(flag) = config.scheduler.table_flag() {
        let buckets = config.scheduler.buckets(config.tables).map(|buckets| buckets.count()).unwrap_or_default();
        notes.push(Note::Info(format!(
            "scheduler {}: each Service port with two endpoints or more takes a table of {buckets} buckets in the kernel, some \
             {} kB per family; {flag} chooses another size",
            config.scheduler,
            (u64::from(buckets) * TABLE_BYTES).div_ceil(1000)
        )));
    }
    sanity(config, notes);
    let inert: Vec<_> = config.gates.inert().collect();
    if !inert.is_empty() {
        notes.push(Note::Info(format!("feature gates without effect here: {}", inert.join(", "))));
    }
    if config.document.feature_gates.contains_key("AllowServiceExternalIPs") {
        notes.push(Note::Warning("the feature gate AllowServiceExternalIPs will be removed".to_owned()));
    }
}

/// What is probably a mistake (spec section 3), as far as the configuration alone tells.
fn sanity(config: &Config, notes: &mut Vec<Note>) {
    let mut warn = |text: String| notes.push(Note::Warning(text));
    let name = |v4: bool| if v4 { "IPv4" } else { "IPv6" };
    let one_family = |mut families: Vec<bool>| {
        families.dedup();
        if let [v4] = families[..] { Some(v4) } else { None }
    };
    let of = |networks: &[ipnet::IpNet]| networks.iter().map(|network| network.addr().is_ipv4()).collect::<Vec<_>>();
    let dual = matches!(&config.detect_local, DetectLocal::ClusterCidr(networks) if networks.len() > 1);
    match &config.node_ports {
        NodePorts::All if dual => {
            warn("nodePortAddresses is not set in a dual-stack cluster: NodePorts are served on all addresses of both families".into());
        }
        NodePorts::Within(networks) => {
            if let Some(v4) = one_family(of(networks)) {
                let (named, other) = (name(v4), name(!v4));
                warn(format!(
                    "nodePortAddresses names {named} networks only: NodePorts are served on all {other} addresses"
                ));
            }
        }
        NodePorts::All | NodePorts::Primary => {}
    }
    if let Some(bind) = config.bind_address {
        let odd = |v4: Option<bool>| v4.is_some_and(|v4| v4 != bind.is_ipv4());
        let listeners = [("healthzBindAddress", config.healthz), ("metricsBindAddress", Some(config.metrics))];
        for (field, address) in listeners.into_iter().filter_map(|(field, address)| Some((field, address?))) {
            if !address.ip().is_unspecified() && odd(Some(address.is_ipv4())) {
                warn(format!("{field} {address} is not of the family of bindAddress, {bind}"));
            }
        }
        if let DetectLocal::ClusterCidr(networks) = &config.detect_local
            && odd(one_family(of(networks)))
        {
            warn(format!("clusterCIDR names no network of the family of bindAddress, {bind}"));
        }
        if odd(one_family(of(&config.ipvs.exclude_cidrs))) {
            warn(format!("ipvs.excludeCIDRs names no network of the family of bindAddress, {bind}"));
        }
    }
    let conntrack = &config.conntrack;
    for (field, timeout) in [
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout),
        ("conntrack.udpTimeout", conntrack.udp_timeout),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
    ] {
        if let Some(timeout) = timeout.filter(|timeout| timeout.subsec_nanos() != 0) {
            warn(format!(
                "{field} {timeout:?} is cut to whole seconds, {}: the kernel knows no others",
                timeout.as_secs()
            ));
        }
    }
}

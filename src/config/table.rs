//! The one table of flags.
//!
//! Each flag is one row: name, kind, default, the field of the configuration file that it stands for, and its help. Parsing,
//! `--help`, the lines logged at verbosity 1, `/flagz` and the names in error messages all come from here, so none of them can
//! lag behind. A flag with a field is not looked at when there is a `--config`: the file replaces it.
//!
//! Names and defaults are kube-proxy 1.36's, except for what the section "Pointsman" holds.

use Kind::{Bool, Duration, Float32, Gates, Int32, Ip, IpPort, Levels, List, Path, Quantity, Text, Version};

/// What a flag's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `--x` or `--x=true`.
    Bool,
    /// 32 bits with a sign.
    Int32,
    /// A number.
    Float32,
    /// As Go writes it.
    Duration,
    /// As Kubernetes writes it.
    Quantity,
    /// Anything.
    Text,
    /// Of a file or a directory.
    Path,
    /// An address; empty leaves the default.
    Ip,
    /// An address with or without port; empty leaves the default.
    IpPort,
    /// Texts with commas between them; repeating the flag appends.
    List,
    /// `name=true`, with commas between them; repeating the flag adds.
    Gates,
    /// `pattern=level`, with commas between them; repeating the flag adds.
    Levels,
    /// `true`, `false`, `raw` or a version.
    Version,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without the two hyphens.
    pub name: &'static str,
    /// What its value is.
    pub kind: Kind,
    /// What it is when not given; empty for false, nothing, none.
    pub default: &'static str,
    /// Path of the field in the configuration file that it stands for, and that replaces it.
    pub field: &'static str,
    /// Why it should not be used any more. Such a flag is not in `--help`.
    pub deprecated: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// Flags that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Heading in `--help`.
    pub heading: &'static str,
    /// In the order of `--help`.
    pub flags: &'static [Flag],
}

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, default, field: "", deprecated: "", help }
}

const fn of_file(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    field: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, field, deprecated: "", help }
}

const fn outdated(name: &'static str, default: &'static str, field: &'static str, deprecated: &'static str) -> Flag {
    Flag { name, kind: Kind::Int32, default, field, deprecated, help: deprecated }
}

/// All flags.
pub const SECTIONS: &[Section] = &[
    Section { heading: "What to do", flags: WHAT },
    Section { heading: "Pointsman", flags: OURS },
    Section { heading: "API server", flags: API },
    Section { heading: "Node", flags: NODE },
    Section { heading: "Services", flags: SERVICES },
    Section { heading: "Conntrack", flags: CONNTRACK },
    Section { heading: "Mode iptables", flags: IPTABLES },
    Section { heading: "Mode ipvs", flags: IPVS },
    Section { heading: "Health and metrics", flags: HTTP },
    Section { heading: "Logging", flags: LOGGING },
    Section { heading: "Accepted without effect", flags: INERT },
];

const WHAT: &[Flag] = &[
    flag(
        "config",
        Path,
        "",
        "Configuration file (KubeProxyConfiguration v1alpha1, YAML or JSON). It replaces all flags that have a field in it: only what to do, --manifests, --master, --hostname-override and logging can be combined with it",
    ),
    flag("write-config-to", Path, "", "Write the complete configuration, defaults filled in, to this file and exit"),
    flag(
        "init-only",
        Bool,
        "",
        "Do what needs full privileges and exit; run again without this flag and with CAP_NET_ADMIN alone",
    ),
    flag("cleanup", Bool, "", "Remove everything that this program or kube-proxy ever programs and exit"),
    flag(
        "version",
        Version,
        "",
        "Print the version and exit; `raw` prints all its parts; vX.Y.Z... changes what is reported, if it is the same release",
    ),
];

/// Where `pointsman` asks, unless told otherwise.
pub const STATUS_SOCKET: &str = "/run/pointsman/pointsman.sock";

const OURS: &[Flag] = &[
    flag(
        "manifests",
        Path,
        "",
        "Serve the Services and EndpointSlices in this directory (*.yaml, *.yml, *.json) and follow it live, instead of an API server. Not in upstream's kube-proxy",
    ),
    flag(
        "own-tables",
        Bool,
        "true",
        "Let nobody else change our nftables tables while we live, where the kernel can see to that (Linux 6.9). Without, and on older kernels, what others change is noticed and repaired",
    ),
    flag(
        "status-socket",
        Path,
        STATUS_SOCKET,
        "Unix socket at which `pointsman` asks this process what it does, for root only; empty: none. Its directory is made if it is not there",
    ),
    flag(
        "sh-table-size",
        Int32,
        "1024",
        "Buckets per Service port of schedulers sh and dh, a power of two from 16 to 65536. More are more even and take more memory in the kernel. The same on all nodes",
    ),
    flag(
        "mh-table-size",
        Int32,
        "4093",
        "Buckets per Service port of scheduler mh, one of 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 65537, 131071. With more, fewer clients of others move when an endpoint leaves. The same on all nodes",
    ),
    flag(
        "forward-drain",
        Duration,
        "30s",
        "How long a stop (SIGTERM, SIGINT) waits for connections that go through the userspace forwarder; a second signal ends at once",
    ),
    flag(
        "forward-connect-timeout",
        Duration,
        "0s",
        "How long each of four attempts of the userspace forwarder to connect to endpoints may take, unless a Service says otherwise; 0: 250ms, 500ms, 1s and 2s",
    ),
    flag(
        "forward-idle-timeout",
        Duration,
        "0s",
        "When the userspace forwarder ends a silent connection or UDP flow, unless a Service says otherwise; 0: TCP never, UDP after 30s, or 2m0s once both sides have talked",
    ),
    flag(
        "forward-max-connections",
        Int32,
        "0",
        "Connections that the userspace forwarder takes at once, of all Services; 0: as many as there are file descriptors for",
    ),
    flag(
        "ui",
        Bool,
        "true",
        "Serve a page to look at, read-only, under /ui/ of the metrics port: to whoever reaches that port",
    ),
    flag(
        "metrics-services",
        Int32,
        "500",
        "Service ports whose connections /metrics tells one by one, at most; the others are summed up. 0: connections are not counted for metrics",
    ),
    flag(
        "metrics-endpoints",
        Bool,
        "false",
        "Tell the connections of each endpoint of these Service ports, too: a series more per endpoint and number",
    ),
];

const API: &[Flag] = &[
    of_file(
        "kubeconfig",
        Path,
        "",
        "clientConnection.kubeconfig",
        "Kubeconfig file that says where the API server is and how to log in. Without it and without --master, the in-cluster configuration of a pod is used",
    ),
    flag("master", Text, "", "Address of the API server, overriding every other source of it"),
    of_file(
        "kube-api-qps",
        Float32,
        "5",
        "clientConnection.qps",
        "Requests per second to the API server in the long run; negative: no limit",
    ),
    of_file(
        "kube-api-burst",
        Int32,
        "10",
        "clientConnection.burst",
        "Requests to the API server that may come at once",
    ),
    of_file(
        "kube-api-content-type",
        Text,
        "application/vnd.kubernetes.protobuf",
        "clientConnection.contentType",
        "Accepted, without effect: objects are asked for as JSON",
    ),
    of_file(
        "config-sync-period",
        Duration,
        "15m0s",
        "configSyncPeriod",
        "Accepted, without effect: what is known already is never looked at again",
    ),
];

const NODE: &[Flag] = &[
    flag("hostname-override", Text, "", "Name of the node to act as, instead of the host name"),
    of_file(
        "bind-address",
        Ip,
        "0.0.0.0",
        "bindAddress",
        "The node's primary address, if it is not the one that its Node object says; nothing listens on it",
    ),
    of_file(
        "detect-local-mode",
        Text,
        "",
        "detectLocalMode",
        "How to tell connections of this node's pods from others: ClusterCIDR (the default), NodeCIDR, BridgeInterface or InterfaceNamePrefix",
    ),
    of_file(
        "cluster-cidr",
        Text,
        "",
        "clusterCIDR",
        "Addresses of all pods: one CIDR, or an IPv4 and an IPv6 one with a comma between them. Used by --detect-local-mode=ClusterCIDR",
    ),
    of_file(
        "pod-bridge-interface",
        Text,
        "",
        "detectLocal.bridgeInterface",
        "The bridge that this node's pods are on. Used by --detect-local-mode=BridgeInterface",
    ),
    of_file(
        "pod-interface-name-prefix",
        Text,
        "",
        "detectLocal.interfaceNamePrefix",
        "What names of pod interfaces begin with. Used by --detect-local-mode=InterfaceNamePrefix",
    ),
    of_file(
        "oom-score-adj",
        Int32,
        "-999",
        "oomScoreAdj",
        "What the kernel's out-of-memory killer shall think of this process, from -1000 (never) to 1000",
    ),
    of_file(
        "feature-gates",
        Gates,
        "",
        "featureGates",
        "Features to switch on or off, as name=true or name=false with commas between them",
    ),
];

const SERVICES: &[Flag] = &[
    of_file(
        "proxy-mode",
        Text,
        "",
        "mode",
        "nftables, iptables (the default) or ipvs: whose defaults apply. All run on the same nftables engine. userspace: the defaults of iptables, and every connection goes through this process (TCP and UDP)",
    ),
    of_file(
        "nodeport-addresses",
        List,
        "",
        "nodePortAddresses",
        "On which addresses of the node NodePorts are served: CIDRs, or the word primary. The default is all addresses, in mode nftables primary",
    ),
    of_file(
        "masquerade-all",
        Bool,
        "",
        "iptables.masqueradeAll",
        "Hide the source of every connection to a ClusterIP behind the node's address",
    ),
];

const CONNTRACK: &[Flag] = &[
    of_file(
        "conntrack-max-per-core",
        Int32,
        "32768",
        "conntrack.maxPerCore",
        "Connections to track per CPU; 0 leaves the kernel's limit alone and ignores --conntrack-min",
    ),
    of_file(
        "conntrack-min",
        Int32,
        "131072",
        "conntrack.min",
        "Connections to track at least, however few CPUs there are",
    ),
    of_file(
        "conntrack-tcp-be-liberal",
        Bool,
        "",
        "conntrack.tcpBeLiberal",
        "Do not treat TCP packets outside of the window as invalid",
    ),
    of_file(
        "conntrack-tcp-timeout-established",
        Duration,
        "24h0m0s",
        "conntrack.tcpEstablishedTimeout",
        "How long an idle TCP connection is remembered; 0 leaves the kernel's value alone",
    ),
    of_file(
        "conntrack-tcp-timeout-close-wait",
        Duration,
        "1h0m0s",
        "conntrack.tcpCloseWaitTimeout",
        "How long a half-closed TCP connection is remembered; 0 leaves the kernel's value alone",
    ),
    of_file(
        "conntrack-udp-timeout",
        Duration,
        "0s",
        "conntrack.udpTimeout",
        "How long an unanswered UDP flow is remembered; 0 leaves the kernel's value alone",
    ),
    of_file(
        "conntrack-udp-timeout-stream",
        Duration,
        "0s",
        "conntrack.udpStreamTimeout",
        "How long an answered UDP flow is remembered; 0 leaves the kernel's value alone",
    ),
];

const IPTABLES: &[Flag] = &[
    of_file(
        "iptables-localhost-nodeports",
        Bool,
        "true",
        "iptables.localhostNodePorts",
        "Serve NodePorts on 127.0.0.1 and ::1 too, through the userspace forwarder; without effect in modes ipvs and nftables",
    ),
    of_file(
        "iptables-masquerade-bit",
        Int32,
        "14",
        "iptables.masqueradeBit",
        "Bit of the packet mark that marks packets to be masqueraded, from 0 to 31",
    ),
    of_file(
        "iptables-sync-period",
        Duration,
        "30s",
        "iptables.syncPeriod",
        "How soon a failed change is tried again, in modes iptables and nftables",
    ),
    of_file(
        "iptables-min-sync-period",
        Duration,
        "0s",
        "iptables.minSyncPeriod",
        "Pause between two changes of the kernel's rules, in modes iptables and nftables. Not given, changes are only batched for milliseconds",
    ),
];

const IPVS: &[Flag] = &[
    of_file(
        "ipvs-scheduler",
        Text,
        "",
        "ipvs.scheduler",
        "Scheduler for Services that do not choose one by the annotation `pointsman.dev/scheduler`: random (the default; in mode ipvs: rr), rr, wrr, lc, wlc, sed, nq, sh, dh or mh; with commas, the flags sh-port or mh-port",
    ),
    of_file(
        "ipvs-exclude-cidrs",
        List,
        "",
        "ipvs.excludeCIDRs",
        "Accepted, without effect: there are no virtual servers. CIDRs that IPVS would leave alone",
    ),
    of_file(
        "ipvs-strict-arp",
        Bool,
        "",
        "ipvs.strictARP",
        "Accepted, without effect: no address of a Service is on an interface",
    ),
    of_file(
        "ipvs-sync-period",
        Duration,
        "30s",
        "ipvs.syncPeriod",
        "How soon a failed change is tried again, in mode ipvs",
    ),
    of_file("ipvs-min-sync-period", Duration, "0s", "ipvs.minSyncPeriod", "The same, in mode ipvs"),
    of_file(
        "ipvs-tcp-timeout",
        Duration,
        "0s",
        "ipvs.tcpTimeout",
        "Accepted, without effect: there is no IPVS. How long it would remember an idle TCP connection",
    ),
    of_file(
        "ipvs-tcpfin-timeout",
        Duration,
        "0s",
        "ipvs.tcpFinTimeout",
        "Accepted, without effect: there is no IPVS. How long it would remember a TCP connection after a FIN",
    ),
    of_file(
        "ipvs-udp-timeout",
        Duration,
        "0s",
        "ipvs.udpTimeout",
        "Accepted, without effect: there is no IPVS. How long it would remember a UDP flow",
    ),
];

const HTTP: &[Flag] = &[
    of_file(
        "healthz-bind-address",
        IpPort,
        "0.0.0.0:10256",
        "healthzBindAddress",
        "Where /healthz and /livez are served; a missing port is 10256. Empty leaves the default",
    ),
    outdated("healthz-port", "10256", "healthzBindAddress", "use --healthz-bind-address instead"),
    of_file(
        "metrics-bind-address",
        IpPort,
        "127.0.0.1:10249",
        "metricsBindAddress",
        "Where /metrics is served; a missing port is 10249. Empty leaves the default",
    ),
    outdated("metrics-port", "10249", "metricsBindAddress", "use --metrics-bind-address instead"),
    of_file(
        "bind-address-hard-fail",
        Bool,
        "",
        "bindAddressHardFail",
        "Exit if one of these addresses cannot be listened on, instead of trying again and again",
    ),
    of_file(
        "profiling",
        Bool,
        "",
        "enableProfiling",
        "Serve /debug/flags/v where /metrics is served; there is no /debug/pprof, which is a format of Go's runtime",
    ),
    of_file(
        "show-hidden-metrics-for-version",
        Text,
        "",
        "showHiddenMetricsForVersion",
        "Accepted, without effect: no metric of ours is hidden. Only the previous minor version is valid (1.35)",
    ),
];

const LOGGING: &[Flag] = &[
    flag(
        "v",
        Int32,
        "0",
        "How much to say: 0 to 10. 2 adds a line per change programmed, 4 the reasons and each list and watch, 6 each object that comes in, 8 what libraries say",
    ),
    flag(
        "vmodule",
        Levels,
        "",
        "How much single source files or modules say, as pattern=level with commas between them; only with --logging-format=text",
    ),
    flag("logging-format", Text, "text", "text or json"),
    flag("log-flush-frequency", Duration, "5s", "Accepted: lines are written at once"),
    flag(
        "log-text-split-stream",
        Bool,
        "",
        "With format text: errors to standard error, everything else to standard output (needs the feature gate LoggingAlphaOptions)",
    ),
    flag(
        "log-text-info-buffer-size",
        Quantity,
        "0",
        "Accepted (needs the feature gate LoggingAlphaOptions): lines are written at once",
    ),
    flag(
        "log-json-split-stream",
        Bool,
        "",
        "With format json: errors to standard error, everything else to standard output (needs the feature gate LoggingAlphaOptions)",
    ),
    flag(
        "log-json-info-buffer-size",
        Quantity,
        "0",
        "Accepted (needs the feature gate LoggingAlphaOptions): lines are written at once",
    ),
];

const INERT: &[Flag] = &[
    flag(
        "boot-id-file",
        Text,
        "/proc/sys/kernel/random/boot_id",
        "Accepted, without effect: files that could hold a boot id",
    ),
    flag(
        "machine-id-file",
        Text,
        "/etc/machine-id,/var/lib/dbus/machine-id",
        "Accepted, without effect: files that could hold a machine id",
    ),
];

/// The fields that logging flags override: flag, path in the file.
pub const LOGGING_FIELDS: [(&str, &str); 7] = [
    ("v", "logging.verbosity"),
    ("logging-format", "logging.format"),
    ("log-flush-frequency", "logging.flushFrequency"),
    ("log-text-split-stream", "logging.options.text.splitStream"),
    ("log-text-info-buffer-size", "logging.options.text.infoBufferSize"),
    ("log-json-split-stream", "logging.options.json.splitStream"),
    ("log-json-info-buffer-size", "logging.options.json.infoBufferSize"),
];

/// All flags, in the order of `--help`.
pub fn flags() -> impl Iterator<Item = &'static Flag> {
    SECTIONS.iter().flat_map(|section| section.flags)
}

/// The flag that stands for a field of the configuration file.
pub fn flag_of(field: &str) -> Option<&'static str> {
    let logging = LOGGING_FIELDS.iter().find(|(_, path)| *path == field).map(|(name, _)| *name);
    let vmodule = (field == "logging.vmodule").then_some("vmodule");
    let hostname = (field == "hostnameOverride").then_some("hostname-override");
    let table = || flags().find(|flag| flag.field == field && flag.deprecated.is_empty()).map(|flag| flag.name);
    logging.or(vmodule).or(hostname).or_else(table)
}

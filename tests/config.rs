//! Command lines and configuration files, as kube-proxy takes them and as it refuses them.
//!
//! Most of it calls the library, as the binary does; the last part runs the real binary, for exit codes and what it prints.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use pointsman::config::{
    Action, Config, DetectLocal, Flags, GoDuration, IpvsConfig, Mode, NodePorts, Note, Parsed, SourceConfig,
};
use pointsman::lab::Lab;
use pointsman::logging::Format;
use pointsman::schedule::Scheduler;
use tempfile::TempDir;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

// === helpers ===

fn flags(args: &[&str]) -> Flags {
    match Flags::parse(std::iter::once("kube-proxy").chain(args.iter().copied()).map(Into::into)) {
        Ok(Parsed::Flags(flags)) => flags,
        other => panic!("{args:?}: {other:?}"),
    }
}

fn usage_error(args: &[&str]) -> String {
    let parsed = Flags::parse(std::iter::once("kube-proxy").chain(args.iter().copied()).map(Into::into));
    parsed.map(|_| ()).expect_err("a usage error").to_string()
}

/// Flags that name the node, so that nothing depends on the host, and these.
fn load(args: &[&str]) -> Result<(Config, Vec<Note>), String> {
    let args = [args, &["--hostname-override=node"]].concat();
    let loaded = Config::load(&flags(&args)).map_err(|errors| errors.to_string())?;
    Ok((loaded.config, loaded.notes))
}

fn config(args: &[&str]) -> Config {
    load(args).unwrap_or_else(|errors| panic!("{args:?}: {errors}")).0
}

struct File {
    dir: TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = File { dir: tempfile::tempdir().expect("a directory") };
        fs::write(file.path(), text).expect("written");
        file
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("config.conf")
    }

    fn flag(&self) -> String {
        format!("--config={}", self.path().display())
    }
}

/// A file with the mandatory head and this body.
fn with_body(body: &str) -> Result<(Config, Vec<Note>), String> {
    let file = File::new(&format!("{HEAD}{body}"));
    load(&[&file.flag()]).map_err(|error| error.replace(&format!("{:?}", file.path()), "FILE"))
}

fn data(name: &str) -> String {
    format!("--config={}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === flags ===

#[test]
fn help_is_complete() {
    let Ok(Parsed::Help(text)) = Flags::parse(["kube-proxy".into(), "-h".into()]) else { panic!("no help") };
    insta::assert_snapshot!(text);
}

#[test]
fn flags_are_cut_as_kube_proxy_does() {
    let given = flags(&[
        "--proxy-mode=x",
        "--proxy_mode=ipvs",
        "--oom_score_adj",
        "-998",
        "--masquerade-all",
        "--ipvs-strict-arp=false",
        "--nodeport-addresses=10.0.0.0/8,11.0.0.0/8",
        "--nodeport-addresses",
        "fd00::/8",
        "--feature-gates=AllAlpha=true,ComponentFlagz=0",
        "--feature-gates=AllAlpha=F",
        "-v2",
        "-v",
        "3",
        "--v=4",
        "--vmodule=a*=1,b=2",
        "--vmodule=c=3",
        "--master",
        "--a_b",
    ]);
    for (name, want) in [
        ("proxy-mode", "ipvs"),
        ("oom-score-adj", "-998"),
        ("masquerade-all", "true"),
        ("ipvs-strict-arp", "false"),
        ("nodeport-addresses", "[10.0.0.0/8,11.0.0.0/8,fd00::/8]"),
        ("feature-gates", "AllAlpha=false,ComponentFlagz=false"),
        ("v", "4"),
        ("vmodule", "a*=1,b=2,c=3"),
        ("master", "--a_b"),
        ("conntrack-tcp-timeout-established", "24h0m0s"),
        ("healthz-port", "10256"),
        ("version", "false"),
    ] {
        let listing = given.listing();
        let value = listing.iter().find(|(flag, _)| *flag == name).map(|(_, value)| value.as_str());
        assert_eq!(value, Some(want), "{name}");
    }
}

#[test]
fn command_lines_that_make_no_sense_are_refused() {
    let table: &[(&[&str], &str)] = &[
        (&["--no-such-flag"], "unknown flag: --no-such-flag"),
        (&["--proxy-mod=ipvs"], "unknown flag: --proxy-mod (there is --proxy-mode)"),
        (&["-x"], "unknown flag: -x"),
        (&["serve"], r#"unexpected arguments: "serve": kube-proxy takes flags only"#),
        (&["--cleanup", "false"], r#"unexpected arguments: "false": kube-proxy takes flags only"#),
        (&["--", "--cleanup"], r#"unexpected arguments: "--cleanup": kube-proxy takes flags only"#),
        (&["--config"], "flag needs a value: --config <PATH>"),
        (&["--cleanup=maybe"], r#"invalid argument "maybe" for --cleanup: not true or false"#),
        (&["--conntrack-min=1.5"], r#"invalid argument "1.5" for --conntrack-min: not a whole number of 32 bits"#),
        (&["--kube-api-qps=inf"], r#"invalid argument "inf" for --kube-api-qps: not a number"#),
        (&["--bind-address=localhost"], r#"invalid argument "localhost" for --bind-address: not an IP address"#),
        (&["--feature-gates=A"], r#"invalid argument "A" for --feature-gates: "A" is not name=bool"#),
        (&["--vmodule=a"], r#"invalid argument "a" for --vmodule: "a" is not pattern=level"#),
        (&["--version=1.36"], r#"invalid argument "1.36" for --version: not true, false, raw or vX.Y.Z"#),
        (
            &["--ipvs-udp-timeout=5"],
            r#"invalid argument "5" for --ipvs-udp-timeout: a duration needs a unit (ns, us, ms, s, m, h), such as "30s""#,
        ),
        (
            &["--metrics-bind-address=1.2.3.4:0"],
            r#"invalid argument "1.2.3.4:0" for --metrics-bind-address: not an IP address with or without port (1 to 65535)"#,
        ),
    ];
    for (args, want) in table {
        assert_eq!(usage_error(args), *want, "{args:?}");
    }
}

#[test]
fn flags_mean_what_they_mean_in_kube_proxy() {
    let loaded = Config::load(&flags(&["--manifests", "/m", "--hostname-override", " Node-1 ", "--ipvs-scheduler=rr"]));
    let config_1 = loaded.expect("valid").config;
    assert_eq!((config_1.node.as_str(), config_1.scheduler), ("node-1", Scheduler::RoundRobin));
    assert_eq!(config_1.source, SourceConfig::Manifests("/m".into()));

    let api = config(&["--master=http://1.2.3.4", "--v=4", "--kubeconfig=/k"]);
    assert_eq!(api.source, SourceConfig::Api { kubeconfig: Some("/k".into()), master: Some("http://1.2.3.4".into()) });
    assert_eq!((api.logging.verbosity, api.scheduler), (4, Scheduler::Random));

    let source = SourceConfig::Api { kubeconfig: None, master: None };
    let mut defaults = Config::new("node", source);
    defaults.flags = config(&[]).flags;
    assert_eq!(config(&[]), defaults);
}

#[test]
fn empty_addresses_leave_the_default_and_ports_are_filled_in() {
    let got = config(&["--healthz-bind-address=", "--metrics-bind-address=", "--bind-address="]);
    assert_eq!(got.healthz, "0.0.0.0:10256".parse().ok());
    assert_eq!((got.metrics, got.bind_address), ("127.0.0.1:10249".parse().expect("an address"), None));
    let got = config(&["--healthz-bind-address=::1", "--metrics-bind-address=10.0.0.1", "--bind-address=010.1.1.1"]);
    assert_eq!(got.healthz, "[::1]:10256".parse().ok());
    assert_eq!(got.metrics, "10.0.0.1:10249".parse().expect("an address"));
    assert_eq!(got.bind_address, "10.1.1.1".parse().ok());

    let (got, notes) = load(&["--healthz-port=0", "--metrics-port=9"]).expect("valid");
    assert_eq!((got.healthz, got.metrics.port()), (None, 10249));
    assert_eq!(
        notes.iter().filter(|note| matches!(note, Note::Warning(text) if text.contains("deprecated"))).count(),
        2
    );
    assert_eq!(config(&["--healthz-bind-address=1.1.1.1", "--healthz-port=77"]).healthz, "1.1.1.1:77".parse().ok());
    let error = load(&["--metrics-port=0"]).expect_err("metrics cannot be disabled");
    assert_eq!(error, r#"--metrics-bind-address: "": must be an IP address and a port from 1 to 65535"#);
}

/// Spec section 3, sanity warnings; upstream: Test_checkBadConfig.
#[test]
fn what_is_probably_a_mistake_is_said() {
    let dual = "--cluster-cidr=10.244.0.0/16,fd00::/64";
    for (args, want) in [
        (&["--cluster-cidr=10.244.0.0/16"][..], None),
        (&[dual], Some("nodePortAddresses is not set in a dual-stack cluster")),
        (&[dual, "--proxy-mode=nftables"], None),
        (&["--nodeport-addresses=10.0.0.0/8"], Some("all IPv6 addresses")),
        (&["--nodeport-addresses=fd00::/8"], Some("all IPv4 addresses")),
        (&["--nodeport-addresses=10.0.0.0/8,fd00::/8"], None),
        (&["--bind-address=10.0.0.1", "--cluster-cidr=fd00::/64"], Some("clusterCIDR names no network of the family")),
        (&["--bind-address=10.0.0.1", "--cluster-cidr=10.244.0.0/16"], None),
        (&["--bind-address=10.0.0.1", "--metrics-bind-address=::1"], Some("metricsBindAddress [::1]:10249")),
        (
            &["--bind-address=10.0.0.1", "--proxy-mode=ipvs", "--ipvs-exclude-cidrs=fd00::/64"],
            Some("ipvs.excludeCIDRs"),
        ),
        (&["--conntrack-udp-timeout=500ms"], Some("conntrack.udpTimeout 500ms is cut to whole seconds, 0")),
        (&["--conntrack-udp-timeout=10s"], None),
    ] {
        let (_, notes) = load(args).expect("valid");
        let warnings = notes.iter().filter_map(|note| match note {
            Note::Warning(text) => Some(text.as_str()),
            Note::Info(_) => None,
        });
        match (&warnings.collect::<Vec<_>>()[..], want) {
            ([], None) => {}
            ([warning], Some(want)) if warning.contains(want) => {}
            (warnings, want) => panic!("{args:?}: {want:?}, not {warnings:?}"),
        }
    }
}

#[test]
fn numbers_and_lists_are_read_as_go_reads_them() {
    let got = config(&[
        "--conntrack-min=0x10",
        "--conntrack-max-per-core=1_000",
        "--nodeport-addresses=\"10.0.0.0/8\",fd00::/8",
    ]);
    assert_eq!((got.conntrack.min, got.conntrack.max_per_core), (16, Some(1000)));
    assert!(matches!(&got.node_ports, NodePorts::Within(networks) if networks.len() == 2), "{:?}", got.node_ports);
    let file = File::new(&format!("{HEAD}conntrack: {{min: 5.0}}\noomScoreAdj: -10.0\nclientConnection: {{qps: 2.5}}"));
    let got = config(&[&file.flag()]);
    assert_eq!((got.conntrack.min, got.oom_score_adj, got.client.qps), (5, -10, 2.5));
    let error = load(&["--feature-gates=NoSuchGate=true"]).expect_err("refused");
    assert_eq!(error, "--feature-gates: NoSuchGate=true: unknown feature gate");
}

/// What is written, read again, means the same and is written the same: also what was not said.
#[test]
fn what_is_written_can_be_read_and_means_the_same() {
    for args in [
        vec![],
        vec!["--proxy-mode=ipvs"],
        vec!["--proxy-mode=nftables"],
        vec!["--iptables-min-sync-period=0"],
        vec![
            "--iptables-min-sync-period=1s",
            "--nodeport-addresses=10.0.0.0/8",
            "--masquerade-all",
            "--conntrack-min=0",
        ],
        vec!["--proxy-mode=nftables", "--iptables-min-sync-period=3s", "--feature-gates=ComponentFlagz=false"],
        vec!["--proxy-mode=ipvs", "--ipvs-min-sync-period=2s", "--ipvs-scheduler=rr", "--config-sync-period=1m"],
    ] {
        let args = [args.as_slice(), &["--hostname-override=n1"]].concat();
        let first = config(&args);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config.yaml");
        first.write(&path).expect("written");
        let mut again = config(&["--config", path.to_str().expect("UTF-8")]);
        assert_eq!(again.to_yaml(), first.to_yaml(), "{args:?}");
        again.flags.clone_from(&first.flags);
        assert_eq!(again, first, "{args:?}");
    }
    let unsaid = config(&[]);
    assert_eq!(unsaid.sync.min_period, None);
    assert_eq!(unsaid.to_json()["iptables"]["minSyncPeriod"], "0s", "/configz says what is in effect");
    let flag = unsaid.flags.iter().find(|(name, _)| *name == "iptables-min-sync-period");
    assert_eq!(flag.map(|(_, value)| value.as_str()), Some("0s"), "and so do the log and /flagz");
}

#[test]
fn periods_come_from_the_flags_of_the_mode() {
    let given =
        ["--iptables-sync-period=7s", "--iptables-min-sync-period=0", "--ipvs-sync-period=9s", "--masquerade-all"];
    for (mode, period, min, all) in
        [("", 7, None::<u64>, true), ("iptables", 7, None, true), ("nftables", 7, None, true), ("ipvs", 9, None, true)]
    {
        let mode = format!("--proxy-mode={mode}");
        let got = config(&[given.as_slice(), &[&mode]].concat());
        assert_eq!((got.sync.period, got.sync.min_period), (secs(period), min.map(secs)), "{mode}");
        assert_eq!(got.masquerade.all, all, "{mode}");
    }
}

#[test]
fn a_file_replaces_the_flags_that_stand_for_its_fields() {
    let file = File::new(&format!(
        "{HEAD}mode: nftables\nlogging: {{verbosity: 1, vmodule: [{{filePattern: a, verbosity: 1}}]}}"
    ));
    let args = [
        file.flag(),
        "--proxy-mode=ipvs".into(),
        "--cluster-cidr=nonsense".into(),
        "--conntrack-min=-5".into(),
        "--feature-gates=NoSuchGate=true".into(),
        "--metrics-port=0".into(),
        "--kubeconfig=/ignored".into(),
        "--master=http://m".into(),
        "--cleanup".into(),
        "--v=5".into(),
        "--vmodule=b=2".into(),
        "--log-flush-frequency=1m".into(),
    ];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let got = config(&args);
    assert_eq!((got.mode, got.action.clone()), (Mode::Nftables, Action::Cleanup));
    assert_eq!(got.source, SourceConfig::Api { kubeconfig: None, master: Some("http://m".into()) });
    assert_eq!((got.logging.verbosity, got.logging.modules.len()), (5, 2));
    assert!(got.to_yaml().contains("flushFrequency: 1m0s"));
}

#[test]
fn what_to_do_is_one_thing() {
    for (args, want) in [
        (&["--cleanup", "--init-only"][..], Action::Cleanup),
        (&["--init-only"], Action::InitOnly),
        (&["--cleanup", "--write-config-to=/x"], Action::WriteConfig("/x".into())),
        (&["--cleanup=false"], Action::Serve),
    ] {
        assert_eq!(config(args).action, want, "{args:?}");
    }
}

// === modes ===

#[test]
fn modes_bring_their_defaults() {
    for (mode, want, ports, localhost, scheduler) in [
        ("", Mode::Iptables, NodePorts::All, true, Scheduler::Random),
        ("iptables", Mode::Iptables, NodePorts::All, true, Scheduler::Random),
        ("ipvs", Mode::Ipvs, NodePorts::All, false, Scheduler::RoundRobin),
        ("nftables", Mode::Nftables, NodePorts::Primary, false, Scheduler::Random),
        ("userspace", Mode::Userspace, NodePorts::All, true, Scheduler::Random),
    ] {
        let (by_flag, notes) = load(&[&format!("--proxy-mode={mode}")]).expect("valid");
        let (by_file, _) = with_body(&format!("mode: {mode:?}")).expect("valid");
        for got in [&by_flag, &by_file] {
            assert_eq!((got.mode, &got.node_ports, got.scheduler), (want, &ports, scheduler), "{mode:?}");
            assert_eq!(got.localhost_node_ports, localhost, "{mode:?}");
        }
        assert_eq!(notes.len(), usize::from(want != Mode::Nftables), "{notes:?}");
    }
    let (_, notes) = load(&["--proxy-mode=ipvs"]).expect("valid");
    insta::assert_debug_snapshot!(notes, @r#"
    [
        Info(
            "mode ipvs: running on nftables with the defaults of that mode: NodePorts on all addresses, scheduler rr",
        ),
    ]
    "#);
}

#[test]
fn schedulers_fall_back_or_are_refused() {
    let in_mode = |mode: &str, name: &str| with_body(&format!("mode: {mode}\nipvs: {{scheduler: {name}}}"));
    for name in Scheduler::NAMES {
        for mode in ["ipvs", "nftables"] {
            assert_eq!(in_mode(mode, name).expect("valid").0.scheduler.name(), name, "{mode}");
        }
    }
    let (got, _) = load(&["--ipvs-scheduler=mh,mh-port"]).expect("valid");
    assert_eq!(got.scheduler, Scheduler::Maglev { port: true });
    for name in ["lblc", "lblcr", "fo", "ovf", "twos"] {
        let (got, notes) = in_mode("ipvs", name).expect("a node must start");
        assert_eq!(got.scheduler, Scheduler::RoundRobin, "{name}");
        let warnings: Vec<_> = notes.iter().filter(|note| matches!(note, Note::Warning(_))).collect();
        assert!(matches!(&warnings[..], [Note::Warning(text)] if text.contains(&format!("{name:?}"))), "{notes:?}");
    }
    let error = in_mode("ipvs", "fastest").expect_err("IPVS knows no such scheduler");
    assert!(
        error.starts_with(
            r#"ipvs.scheduler: "fastest": unknown scheduler: one of random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh"#
        ),
        "{error}"
    );
    let (got, notes) = in_mode("nftables", "fastest").expect("upstream does not look at it");
    assert_eq!((got.scheduler, notes.len()), (Scheduler::Random, 1), "{notes:?}");
    assert_eq!(in_mode("nftables", "rr").expect("valid").0.scheduler, Scheduler::RoundRobin);
    let error = load(&["--ipvs-scheduler=sh,port"]).expect_err("invalid");
    assert!(
        error.starts_with(r#"--ipvs-scheduler: "sh,port": scheduler sh has no flag "port": sh-port and"#),
        "{error}"
    );
    let error = load(&["--ipvs-scheduler=fast"]).expect_err("invalid");
    assert!(
        error.starts_with(
            r#"--ipvs-scheduler: "fast": unknown scheduler: one of random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh"#
        ),
        "{error}"
    );
}

#[test]
fn tables_have_sizes_that_fit_their_schedulers() {
    let sizes = |args: &[&str]| load(args).map(|(got, _)| (got.tables.hash.count(), got.tables.maglev.count()));
    assert_eq!(sizes(&[]), Ok((1024, 4093)));
    assert_eq!(sizes(&["--sh-table-size=256", "--mh-table-size=65537"]), Ok((256, 65537)));
    let (_, notes) = load(&["--proxy-mode=nftables", "--ipvs-scheduler=sh", "--sh-table-size=256"]).expect("valid");
    insta::assert_debug_snapshot!(notes, @r#"
    [
        Info(
            "scheduler sh: each Service port with two endpoints or more takes a table of 256 buckets in the kernel, some 21 kB per family; --sh-table-size chooses another size",
        ),
    ]
    "#);
    let error = sizes(&["--sh-table-size=1000", "--mh-table-size=1024"]).expect_err("invalid");
    insta::assert_snapshot!(error, @r"
    2 things are wrong with the configuration:
           --sh-table-size: 1000: must be a power of two from 16 to 65536
           --mh-table-size: 1024: must be one of 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 65537, 131071
    ");
}

#[test]
fn written_configs_are_complete_and_can_be_read_back() {
    for mode in ["iptables", "ipvs", "nftables"] {
        let given = config(&[&format!("--proxy-mode={mode}"), "--masquerade-all", "--conntrack-max-per-core=0"]);
        let yaml = given.to_yaml();
        insta::assert_snapshot!(format!("written_{mode}"), yaml);
        let file = File::new(&yaml);
        let (again, notes) = load(&[&file.flag()]).expect("our own file");
        assert_eq!(again.to_yaml(), yaml);
        assert!(!notes.iter().any(|note| matches!(note, Note::Warning(_))), "{notes:?}");
    }
    let full = config(&[&data("full.yaml")]);
    insta::assert_snapshot!("written_full", full.to_yaml());
    let again = config(&[&File::new(&full.to_yaml()).flag()]);
    assert_eq!(again.to_json(), full.to_json());
    assert_eq!(full.to_json()["ipvs"]["syncPeriod"], "40s");
}

// === files ===

#[test]
fn the_file_of_kubeadm_starts_us() {
    let (got, notes) = load(&[&data("kubeadm.yaml")]).expect("valid");
    let mut want = config(&["--cluster-cidr=10.244.0.0/16", "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf"]);
    want.flags.clone_from(&got.flags);
    // As a file writes it: the pause of a mode that is not active.
    assert_eq!(got, want);
    assert_eq!(got.sync.min_period, None);
    assert_eq!(notes.len(), 1, "{notes:?}");
}

#[test]
fn the_full_file_means_what_it_says() {
    let (got, notes) = load(&[&data("full.yaml")]).expect("valid");
    assert_eq!(got.mode, Mode::Ipvs);
    assert_eq!((got.sync.period, got.sync.min_period), (secs(40), Some(Duration::from_millis(250))));
    assert!(got.masquerade.all && got.bind_hard_fail && got.profiling && got.show_hidden_metrics);
    assert!(!got.localhost_node_ports && got.logging.split_stream && !got.gates.enabled("ComponentFlagz"));
    assert_eq!((got.masquerade.bit, got.oom_score_adj), (15, -500));
    assert_eq!(got.bind_address, "2001:db8::7".parse().ok());
    assert_eq!(got.healthz, "[2001:db8::7]:20256".parse().ok());
    assert_eq!(got.metrics, "10.0.0.7:10249".parse().expect("an address"));
    assert_eq!(got.detect_local, DetectLocal::BridgeInterface("cni0".into()));
    let within = ["10.0.0.0/8", "2001:db8::/32"].map(|text| text.parse().expect("a network"));
    assert_eq!(got.node_ports, NodePorts::Within(within.into()));
    assert_eq!((got.client.burst, got.client.content_type.as_str()), (25, "application/json"));
    assert_eq!(got.conntrack.max_per_core, None);
    assert_eq!((got.conntrack.min, got.conntrack.tcp_close_wait_timeout), (65536, None));
    assert_eq!(got.conntrack.tcp_established_timeout, Some(secs(9000)));
    assert_eq!(got.conntrack.udp_stream_timeout, Some(secs(180)));
    let excluded = ["192.168.7.0/24", "fd00:7::/64"].map(|text| text.parse().expect("a network"));
    assert_eq!(
        got.ipvs,
        IpvsConfig {
            strict_arp: true,
            exclude_cidrs: excluded.into(),
            tcp_timeout: Some(secs(900)),
            tcp_fin_timeout: Some(secs(120)),
            udp_timeout: Some(secs(300)),
        }
    );
    assert_eq!((got.logging.format, got.logging.verbosity, got.logging.modules.len()), (Format::Text, 3, 2));
    assert_eq!(got.config_sync_period, secs(300));
    insta::assert_debug_snapshot!(notes, @r#"
    [
        Info(
            "mode ipvs: running on nftables with the defaults of that mode: NodePorts on the addresses configured, scheduler wlc",
        ),
        Warning(
            "metricsBindAddress 10.0.0.7:10249 is not of the family of bindAddress, 2001:db8::7",
        ),
        Info(
            "feature gates without effect here: NodeSwap",
        ),
    ]
    "#);
}

#[test]
fn strictness_is_told_in_one_line() {
    let (got, notes) = with_body("mode: nftables\nmod: ipvs\nmode: nftables\n").expect("lenient");
    assert_eq!(got.mode, Mode::Nftables);
    assert!(
        matches!(&notes[..], [Note::Warning(text)] if text.ends_with(r#"read leniently: key "mode" given twice, unknown field "mod""#)),
        "{notes:?}"
    );
}

#[test]
fn defaults_follow_the_bind_address() {
    let (got, _) = with_body("bindAddress: '::'\n").expect("valid");
    assert_eq!(got.healthz, "[::]:10256".parse().ok());
    assert_eq!(got.metrics, "[::1]:10249".parse().expect("an address"));
    let (got, _) = with_body("clusterCIDR: nonsense\ndetectLocalMode: NodeCIDR\nnftables: {masqueradeBit: 99}\n")
        .expect("not looked at");
    assert_eq!(got.detect_local, DetectLocal::NodeCidr);
    let file = File::new(&format!("{HEAD}hostnameOverride: ' Other '\n"));
    let named = Config::load(&flags(&[&file.flag()])).expect("valid").config;
    assert_eq!(named.node, "other");
}

#[test]
fn bad_files_are_refused_with_field_and_value() {
    let table: &[(&str, &str)] = include!("data/bad.rs");
    assert!(table.len() >= 40);
    for (body, want) in table {
        let error = with_body(body).map(|_| ()).expect_err(body);
        assert_eq!(error, *want, "{body}");
    }
    for (text, want) in [
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- a\n", "expected fields, found [\"a\"]"),
        ("mode: ipvs\n", "apiVersion: missing; this file must say \"kubeproxy.config.k8s.io/v1alpha1\""),
        (
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: Pod\n",
            "kind: \"Pod\": must be \"KubeProxyConfiguration\"",
        ),
        (
            "apiVersion: v1\nkind: KubeProxyConfiguration\n",
            "apiVersion: \"v1\": must be \"kubeproxy.config.k8s.io/v1alpha1\"",
        ),
    ] {
        let file = File::new(text);
        let error = load(&[&file.flag()]).map(|_| ()).expect_err(text);
        assert_eq!(error, format!("--config: {:?}: {want}", file.path()));
    }
    let error = load(&["--config=/no/such/file"]).map(|_| ()).expect_err("there is none");
    assert_eq!(error, "--config: \"/no/such/file\": No such file or directory (os error 2)");
}

#[test]
fn all_errors_are_told_at_once() {
    let error = with_body(
        "bindAddress: here\nmode: nftables\nnftables: {syncPeriod: 1s, minSyncPeriod: 1m, masqueradeBit: 32}\n\
         oomScoreAdj: -1001\nfeatureGates: {NoSuchGate: true}\nnodePortAddresses: [primary, 10.0.0.1]\n",
    );
    insta::assert_snapshot!(error.map(|_| ()).expect_err("invalid"), @r#"
    7 things are wrong with the configuration:
           bindAddress: "here": must be an IP address
           nftables.masqueradeBit: 32: must be from 0 to 31
           nftables.minSyncPeriod: "1m0s": must not be greater than the sync period, 1s
           oomScoreAdj: -1001: must be from -1000 to 1000
           nodePortAddresses[0]: "primary": must be alone: the word primary and nothing else
           nodePortAddresses[1]: "10.0.0.1": must be a CIDR, or the word primary alone
           featureGates.NoSuchGate: true: unknown feature gate
    "#);
    let args = [
        "--hostname-override",
        "  ",
        "--ipvs-scheduler=fast",
        "--manifests=/m",
        "--kubeconfig=/k",
        "--conntrack-min=-1",
    ];
    let error = Config::resolve(&flags(&args)).expect_err("invalid");
    insta::assert_snapshot!(error, @r#"
    4 things are wrong with the configuration:
           --conntrack-min: -1: must not be negative
           --hostname-override: "  ": an empty host name is invalid
           --ipvs-scheduler: "fast": unknown scheduler: one of random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh
           --manifests: "/m": excludes --kubeconfig: objects come from one place
    "#);
}

#[test]
fn manifests_beat_the_kubeconfig_of_a_file() {
    let (got, notes) = load(&[&data("kubeadm.yaml"), "--manifests=/m"]).expect("valid");
    assert_eq!(got.source, SourceConfig::Manifests("/m".into()));
    assert!(notes.iter().any(|note| matches!(note, Note::Info(text) if text.contains("is not used"))), "{notes:?}");
}

#[test]
fn durations_are_public() {
    assert_eq!("1m30s".parse::<GoDuration>().map(GoDuration::get), Ok(secs(90)));
}

// === the binary ===

fn binary(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kube-proxy")).args(args).env_remove("RUST_LOG").output().expect("started")
}

#[test]
fn exit_codes_and_streams() {
    let bad = File::new(&format!("{HEAD}oomScoreAdj: 1001\n"));
    let table: &[(&[&str], i32, &str, &str)] = &[
        (&["--help"], 0, "Usage: kube-proxy [flags]", ""),
        (&["--version"], 0, "Kubernetes v1.36.2+pointsman.", ""),
        (&["--version=raw"], 0, "version.Info{Major:\"1\", Minor:\"36\"", ""),
        (&["--version=v1.35.0"], 1, "", "Error: --version: \"v1.35.0\": this is v1.36.2"),
        (&["--no-such-flag"], 1, "", "Error: unknown flag: --no-such-flag"),
        (&["--no-such-flag"], 1, "", "Usage: kube-proxy [flags]"),
        (&["extra"], 1, "", "Error: unexpected arguments: \"extra\""),
        (&["--config=/no/such/file"], 1, "", "Error: --config: \"/no/such/file\": No such file"),
        (&[&bad.flag()], 1, "", "Error: oomScoreAdj: 1001: must be from -1000 to 1000"),
        (&["--forward-drain=-1s"], 1, "", "Error: --forward-drain: -1s: must not be negative"),
        (&["--forward-connect-timeout=-1s"], 1, "", "Error: --forward-connect-timeout: -1s: must not be negative"),
        (&["--forward-idle-timeout=-1s"], 1, "", "Error: --forward-idle-timeout: -1s: must not be negative"),
        (&["--forward-max-connections=-1"], 1, "", "Error: --forward-max-connections: -1: must not be negative"),
        (&["--logging-format=xml"], 1, "", "Error: --logging-format: \"xml\": must be text or json"),
        (&["--cleanup", "--metrics-port=0"], 1, "", "Error: --metrics-bind-address: \"\": must be"),
        (&["--manifests=/no/such/dir", "-v=1"], 1, "", "FLAG: --manifests=\"/no/such/dir\""),
    ];
    for (args, code, out, err) in table {
        let output = binary(args);
        let texts = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {texts:?}");
        assert!(texts[0].contains(out) && texts[1].contains(err), "{args:?}: {texts:?}");
        assert_eq!(texts[0].is_empty(), out.is_empty(), "{args:?}: {texts:?}");
    }
}

#[test]
fn the_binary_writes_its_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("out.yaml");
    let output = binary(&[&data("kubeadm.yaml"), &format!("--write-config-to={}", path.display())]);
    assert!(output.status.success(), "{output:?}");
    let written = fs::read_to_string(&path).expect("written");
    assert!(written.contains("mode: iptables\n") && written.contains("oomScoreAdj: -999\n"), "{written}");
    let log = String::from_utf8_lossy(&output.stderr);
    let first = log.lines().next().unwrap_or_default();
    assert!(first.starts_with('I') && first.contains("] mode iptables: running on nftables"), "{log}");

    let nowhere = binary(&["--write-config-to=/no/such/dir/x", "--logging-format=json"]);
    assert_eq!(nowhere.status.code(), Some(1));
    let log = String::from_utf8_lossy(&nowhere.stderr);
    assert!(log.starts_with("{\"ts\":1") && log.contains("Error: --write-config-to: \"/no/such/dir/x\""), "{log}");
}

/// Needs root, for a network namespace of its own.
#[test]
fn the_file_of_kubeadm_starts_the_daemon_and_an_edit_ends_it() {
    let lab = Lab::builder().prefix("pmconfig").build().expect("a lab");
    let manifests = tempfile::tempdir().expect("a directory");
    let file = File::new(include_str!("data/kubeadm.yaml"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_kube-proxy"));
    command.arg(file.flag()).arg("--manifests").arg(manifests.path()).env_remove("RUST_LOG").stderr(Stdio::piped());
    let mut child = lab.node().spawn(command).expect("started");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("\"serving\"")), "it ended before it served");
    fs::write(file.path(), format!("{HEAD}mode: ipvs\n")).expect("written");
    let rest: Vec<_> = lines.collect();
    assert_eq!(child.wait().expect("ended").code(), Some(1), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("was written: exiting")), "{rest:?}");
}

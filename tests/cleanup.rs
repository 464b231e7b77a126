//! The removal of kube-proxy's leftovers by the real binary, on a real kernel. Needs root, `nft`, `iptables` (for nf_tables) and
//! `ipset`, and fails without them.
//!
//! What kube-proxy would leave is made with the programs that it uses itself, beside what others could have there. A test looks at
//! what these programs list afterwards.

#[path = "e2e/daemon.rs"]
#[allow(dead_code, reason = "the end-to-end tier uses the rest")]
mod daemon;
#[path = "cleanup/left.rs"]
mod left;
#[allow(dead_code, reason = "the other tiers use the rest")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use api_double::ApiDouble;
use nft::{Connection, Family, Table, TableFlags, Transaction};
use nix::sys::signal::Signal;
use pointsman::lab::{Rtnl, VethEnd};

use daemon::{Daemon, Manifests, command, run, stderr};
use left::{NFT, both, cleanup, install_iptables, iptables, kept, node, program};
use support::beds::pods;
use support::eventually;
use support::objects::shop;
use support::oracle::{nft, ruleset, tables};

#[test]
fn tables_of_mode_nftables_go_and_others_stay() {
    let lab = node();
    let inside = lab.node().namespace();
    for (family, table) in
        [("ip", "kube-proxy"), ("ip6", "kube-proxy"), ("inet", "kube-proxy"), ("ip", "kube-proxy-2"), ("ip", "mine")]
    {
        nft(inside, &["add", "table", family, table]);
        nft(inside, &["add", "chain", family, table, "services"]);
        let hooked = "{ type filter hook output priority 0; policy accept; }";
        nft(inside, &["add", "chain", family, table, "filter-output", hooked]);
        nft(inside, &["add", "rule", family, table, "filter-output", "ct state new jump services"]);
    }
    nft(inside, &["add", "map", "ip", "kube-proxy", "service-ips", "{ type ipv4_addr . inet_service : verdict; }"]);
    nft(inside, &["add", "element", "ip", "kube-proxy", "service-ips", "{ 10.96.0.1 . 443 : goto services }"]);
    let said = cleanup(&lab);
    assert_eq!(tables(inside), ["inet kube-proxy", "ip kube-proxy-2", "ip mine"]);
    assert_eq!(said.matches("removed kube-proxy's nftables table").count(), 2, "{said}");
    let before = ruleset(inside);
    let said = cleanup(&lab);
    assert_eq!(ruleset(inside), before, "nothing to do");
    assert!(!said.contains("removed kube-proxy's"), "{said}");
}

#[test]
fn chains_of_mode_iptables_go_and_others_stay() {
    let lab = node();
    let inside = lab.node().namespace();
    install_iptables(inside, NFT);
    let list = || both(inside, NFT);
    let before = list();
    assert!(before.iter().all(|lines| lines.len() > 60), "the rules should be there: {before:#?}");
    let said = cleanup(&lab);
    let after = list();
    assert_eq!(after, before.map(|lines| kept(&lines)));
    assert!(after[0].iter().any(|line| line.contains("it is not")), "{after:#?}");
    // One line for each table of each family: mangle, filter and nat.
    assert_eq!(said.matches("removed kube-proxy's iptables chains").count(), 6, "{said}");
    let said = cleanup(&lab);
    // Without counters, which a stray packet of the lab's own may have moved.
    assert_eq!(list(), after, "nothing to do");
    assert!(!said.contains("removed kube-proxy's"), "{said}");
}

#[test]
fn interface_ipsets_and_chains_of_mode_ipvs_go_and_others_stay() {
    let lab = node();
    let inside = lab.node().namespace();
    let mut rtnl: Rtnl = inside.rtnl().expect("a routing socket");
    // The kind does not matter, only the name.
    let end = |name, last| VethEnd { name, mac: [2, 0, 0, 0, 9, last], mtu: 1500 };
    rtnl.add_veth(end("kube-ipvs0", 1), end("peer", 2), inside).expect("an interface");
    for (name, family) in [
        ("KUBE-CLUSTER-IP", "inet"),
        ("KUBE-LOOP-BACK", "inet"),
        ("KUBE-6-CLUSTER-IP", "inet6"),
        ("KUBE-6-LOAD-BALANCER-SOURCE-CID", "inet6"),
        ("KUBE-SRC-ABCDEFGHIJKLMNOP", "inet"),
        ("mine", "inet"),
    ] {
        program(inside, "ipset", &["create", name, "hash:ip,port", "family", family], "");
    }
    let rules = "*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER
-A INPUT -m set --match-set mine src,src -j ACCEPT
-A OUTPUT -j KUBE-IPVS-OUT-FILTER
COMMIT
";
    program(inside, "iptables-nft-restore", &["--noflush"], rules);
    let said = cleanup(&lab);
    let sets = program(inside, "ipset", &["list", "-n"], "");
    assert_eq!(sets.lines().collect::<Vec<_>>(), ["KUBE-SRC-ABCDEFGHIJKLMNOP", "mine"], "{said}");
    let rules = iptables(inside, "iptables-nft-save");
    assert!(!rules.iter().any(|line| line.contains("KUBE-")), "{rules:#?}");
    assert!(rules.iter().any(|line| line.contains("--match-set mine")), "{rules:#?}");
    let error = rtnl.index("kube-ipvs0").expect_err("no such interface any more");
    assert_eq!(error.errno(), Some(nix::libc::ENODEV));
    assert!(said.contains("removed kube-proxy's interface"), "{said}");
}

#[test]
fn what_cannot_be_removed_is_named_and_the_rest_is_gone() {
    let lab = node();
    let inside = lab.node().namespace();
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let served = || nft(inside, &["list", "table", "ip", "pointsman"]);
    let before = served();
    install_iptables(inside, NFT);
    nft(inside, &["add", "table", "ip6", "kube-proxy"]);
    // Somebody holds a table of kube-proxy's name.
    let mut owner = lab.node().run(Connection::open).expect("a connection");
    let flags = TableFlags { owner: true, persist: false };
    let mut transaction = Transaction::new();
    transaction.add_table(&Table { flags, ..Table::new(Family::Ip, "kube-proxy") });
    owner.commit(&transaction).expect("an owned table");

    let output = run(lab.node(), command(), &["--cleanup"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let message = said.lines().find(|line| line.starts_with("Error: ")).expect("a message");
    assert!(message.contains("table ip kube-proxy is owned by another process"), "{message}");
    assert!(message.contains("table ip pointsman") || message.contains("another instance"), "{message}");
    let rules = iptables(inside, "iptables-nft-save");
    assert!(!rules.iter().any(|line| line.contains("KUBE-SVC-")), "{rules:#?}");
    assert!(!tables(inside).contains(&"ip6 kube-proxy".to_owned()), "{:?}", tables(inside));
    assert_eq!(served(), before, "what the daemon serves stays as it is");
    daemon.assert_alive();
}

#[test]
fn programs_that_are_missing_are_no_error_and_programs_that_fail_are() {
    let lab = node();
    let bin = tempfile::tempdir().expect("a directory");
    let with_path = || {
        let mut command = command();
        command.env("PATH", bin.path());
        command
    };
    let output = run(lab.node(), with_path(), &["--cleanup"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let script = |name: &str, text: &str| {
        let path = bin.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    };
    script("iptables-save", "echo 'it is broken' >&2; exit 3");
    script("ip6tables-save", "echo '*nat'; echo ':KUBE-SERVICES - [0:0]'; echo COMMIT");
    script("ip6tables-restore", "echo 'so is this' >&2; exit 4");
    script("ipset", r#"[ "$1" = list ] && { echo KUBE-CLUSTER-IP; exit; }; echo 'in use' >&2; exit 1"#);
    let output = run(lab.node(), with_path(), &["--cleanup"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        "iptables-save: exit status: 3: it is broken; ",
        "ip6tables-restore -w 5 --noflush: exit status: 4: so is this; ",
        "ipset destroy KUBE-CLUSTER-IP: exit status: 1: in use",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_start_in_a_cluster_removes_leftovers_once_it_serves() {
    let lab = node();
    let inside = lab.node().namespace();
    let leave = || {
        install_iptables(inside, NFT);
        nft(inside, &["add", "table", "ip", "kube-proxy"]);
    };
    leave();
    let list = || iptables(inside, "iptables-nft-save");
    let before = list();

    // A directory of manifests is no cluster.
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    daemon.end(Signal::SIGTERM);
    assert_eq!(list(), before);

    let double = lab.node().run(ApiDouble::start);
    for object in shop("web", 1, &pods([1])) {
        double.apply(object);
    }
    double.apply(api_double::node("n1", &[("InternalIP", "192.168.50.1")]));
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = double.kubeconfig(directory.path());
    let mut daemon = Daemon::start(lab.node(), &["--kubeconfig", kubeconfig.to_str().expect("UTF-8")]);
    daemon.hear(&["removed kube-proxy's nftables table"]);
    eventually("the end of the leftovers", || list() == kept(&before));
    let table = daemon.said().iter().position(|line| line.contains("removed kube-proxy's")).expect("heard");
    let served = daemon.said().iter().position(|line| line.contains("\"programmed\" ")).expect("programmed");
    assert!(served < table, "nothing is removed before we serve: {:#?}", daemon.said());
    assert_eq!(daemon.count(&["WARN"]), 0, "{:#?}", daemon.said());
    assert!(!tables(inside).contains(&"ip kube-proxy".to_owned()));
    daemon.assert_alive();
}

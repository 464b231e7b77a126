//! The removal of kube-proxy's leftovers where the kernel has what few still have: IPVS, and the older ip_tables. The real binary on a
//! real kernel, with the programs that kube-proxy uses (`iptables-legacy`, `ipset`, `ipvsadm`).
//!
//! `tests/vm/run.sh` runs these on kernels that have both; elsewhere they are ignored, because no program can stand in for a kernel.

#[path = "e2e/daemon.rs"]
#[allow(dead_code, reason = "the end-to-end tier uses the rest")]
mod daemon;
#[path = "cleanup/left.rs"]
mod left;
#[allow(dead_code, reason = "the other tiers use the rest")]
mod support;

use api_double::ApiDouble;
use pointsman::lab::{Lab, Namespace};

use daemon::{Daemon, command, run, stderr};
use left::{Kind, NFT, both, cleanup, install_iptables, iptables, kept, node, program};
use support::beds::{bed, pods};
use support::eventually;
use support::objects::{frontends, shop};
use support::oracle::{nft, tables};
use support::traffic::{Restless, names, tally};

const LEGACY: Kind = "legacy";

/// What mode ipvs makes of Service 1 in both families: its addresses on an interface, virtual servers that lead to `web-2` alone, ipsets
/// and the rules of ip_tables that use them.
fn install_ipvs(inside: &Namespace) {
    program(inside, "ip", &["link", "add", "kube-ipvs0", "type", "dummy"], "");
    for (address, prefix, set, family) in
        [("10.96.0.1", "32", "KUBE-CLUSTER-IP", "inet"), ("fd00:10:96::1", "128", "KUBE-6-CLUSTER-IP", "inet6")]
    {
        program(inside, "ip", &["addr", "add", &format!("{address}/{prefix}"), "dev", "kube-ipvs0"], "");
        program(inside, "ipset", &["create", set, "hash:ip,port", "family", family], "");
        program(inside, "ipset", &["add", set, &format!("{address},tcp:80")], "");
    }
    for (server, pod) in [("10.96.0.1:80", "10.244.0.3:8080"), ("[fd00:10:96::1]:80", "[fd00:10:244::3]:8080")] {
        program(inside, "ipvsadm", &["--add-service", "--tcp-service", server, "--scheduler", "rr"], "");
        let real = ["--add-server", "--tcp-service", server, "--real-server", pod, "--masquerading", "--weight", "1"];
        program(inside, "ipvsadm", &real, "");
    }
    for (family, set) in [("iptables", "KUBE-CLUSTER-IP"), ("ip6tables", "KUBE-6-CLUSTER-IP")] {
        let rules = format!(
            "*nat
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m set --match-set {set} dst,dst -j ACCEPT
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
"
        );
        program(inside, &format!("{family}-legacy-restore"), &["--noflush"], &rules);
    }
}

/// Virtual servers of somebody else's: on an address of its own, and for a packet mark.
fn install_foreign_servers(inside: &Namespace) {
    program(inside, "ipvsadm", &["--add-service", "--udp-service", "192.0.2.1:53", "--scheduler", "wrr"], "");
    program(inside, "ipvsadm", &["--add-service", "--fwmark-service", "7", "--scheduler", "wlc"], "");
}

/// Lines of `ipvsadm` that restore what is there: none without virtual servers.
fn servers(inside: &Namespace) -> Vec<String> {
    program(inside, "ipvsadm", &["--save", "--numeric"], "").lines().map(str::to_owned).collect()
}

fn ipsets(inside: &Namespace) -> Vec<String> {
    program(inside, "ipset", &["list", "-n"], "").lines().map(str::to_owned).collect()
}

fn has_interface(inside: &Namespace) -> bool {
    program(inside, "ip", &["link", "show"], "").contains("kube-ipvs0")
}

/// A start that follows an API server with Service 1, which leads to `web-1` alone.
fn start_in_cluster(lab: &Lab, double: &ApiDouble, directory: &std::path::Path) -> Daemon {
    for object in shop("web", 1, &pods([1])) {
        double.apply(object);
    }
    double.apply(api_double::node("n1", &[("InternalIP", "192.168.50.1")]));
    let kubeconfig = double.kubeconfig(directory);
    Daemon::start(lab.node(), &["--kubeconfig", kubeconfig.to_str().expect("UTF-8")])
}

#[test]
#[ignore = "needs a kernel with ip_tables: tests/vm/run.sh leftovers"]
fn chains_in_both_kinds_of_iptables_go_and_others_stay() {
    let lab = node();
    let inside = lab.node().namespace();
    for kind in [LEGACY, NFT] {
        install_iptables(inside, kind);
    }
    let list = || [both(inside, LEGACY), both(inside, NFT)];
    let before = list();
    assert!(before.iter().flatten().all(|lines| lines.len() > 60), "the rules should be there: {before:#?}");
    let said = cleanup(&lab);
    let after = list();
    assert_eq!(after, before.map(|families| families.map(|lines| kept(&lines))));
    assert!(after.iter().flatten().all(|lines| lines.iter().any(|line| line.contains("it is not"))), "{after:#?}");
    // One line for each table of each family and kind: mangle, filter and nat.
    assert_eq!(said.matches("removed kube-proxy's iptables chains").count(), 12, "{said}");
    let said = cleanup(&lab);
    assert_eq!(list(), after, "nothing to do");
    assert!(!said.contains("removed kube-proxy's"), "{said}");
}

#[test]
#[ignore = "needs a kernel with IPVS: tests/vm/run.sh leftovers"]
fn a_clean_up_removes_all_that_mode_ipvs_left() {
    let lab = node();
    let inside = lab.node().namespace();
    install_ipvs(inside);
    install_foreign_servers(inside);
    program(inside, "ipset", &["create", "mine", "hash:ip", "family", "inet"], "");
    program(inside, "iptables-legacy", &["-A", "INPUT", "-m", "set", "--match-set", "mine", "src", "-j", "ACCEPT"], "");
    // Two virtual servers with an endpoint each, and two of somebody else's.
    assert_eq!(servers(inside).len(), 6, "{:#?}", servers(inside));
    let said = cleanup(&lab);
    assert!(said.contains("removed IPVS virtual servers") && said.contains("servers=4"), "{said}");
    assert_eq!(servers(inside), [""; 0], "kube-proxy's own clean-up takes all of them, too");
    assert!(!has_interface(inside), "{said}");
    assert_eq!(ipsets(inside), ["mine"], "{said}");
    for lines in both(inside, LEGACY) {
        assert!(!lines.iter().any(|line| line.contains("KUBE-")), "{lines:#?}");
    }
    assert!(iptables(inside, "iptables-legacy-save").iter().any(|line| line.contains("--match-set mine")));
    let said = cleanup(&lab);
    assert!(!said.contains("removed"), "nothing to do: {said}");
}

#[test]
#[ignore = "needs a kernel with IPVS: tests/vm/run.sh leftovers"]
fn virtual_servers_need_no_program_to_be_removed() {
    let lab = node();
    let inside = lab.node().namespace();
    install_foreign_servers(inside);
    let nothing = tempfile::tempdir().expect("a directory");
    let mut cleanup = command();
    cleanup.env("PATH", nothing.path());
    let output = run(lab.node(), cleanup, &["--cleanup"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(servers(inside), [""; 0], "{}", stderr(&output));
}

#[test]
#[ignore = "needs a kernel with IPVS: tests/vm/run.sh leftovers"]
fn a_start_leaves_virtual_servers_alone_unless_kube_proxys_interface_is_there() {
    let lab = bed(2);
    let inside = lab.node().namespace();
    install_foreign_servers(inside);
    nft(inside, &["add", "table", "ip", "kube-proxy"]);
    let before = servers(inside);
    let (double, directory) = (lab.node().run(ApiDouble::start), tempfile::tempdir().expect("a directory"));
    let mut daemon = start_in_cluster(&lab, &double, directory.path());
    daemon.hear(&["of kube-proxy's leftovers none is there"]);
    assert_eq!(servers(inside), before);
    assert!(!tables(inside).contains(&"ip kube-proxy".to_owned()));
    daemon.assert_alive();
}

#[test]
#[ignore = "needs a kernel with IPVS: tests/vm/run.sh leftovers"]
fn a_swap_from_mode_ipvs_interrupts_nobody() {
    let lab = bed(2);
    let inside = lab.node().namespace();
    install_ipvs(inside);
    for to in frontends(1, 80) {
        assert_eq!(names(&tally(lab.client(0), to, 10)), ["web-2"], "IPVS serves");
    }
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    client.wait_for(20);
    let (double, directory) = (lab.node().run(ApiDouble::start), tempfile::tempdir().expect("a directory"));
    let mut daemon = start_in_cluster(&lab, &double, directory.path());
    daemon.hear(&["removed IPVS virtual servers", "servers=2"]);
    daemon.hear(&["removed kube-proxy's interface"]);
    eventually("the end of the ipsets", || ipsets(inside).is_empty());
    for to in frontends(1, 80) {
        assert_eq!(names(&tally(lab.client(0), to, 10)), ["web-1"], "we serve");
    }
    client.wait_for(20);
    client.assert_uninterrupted("the swap");
    assert_eq!(servers(inside), [""; 0]);
    assert_eq!(daemon.count(&["WARN"]), 0, "{:#?}", daemon.said());
    daemon.assert_alive();
}

//! What kube-proxy leaves behind, made with the programs that it uses itself, and what others have beside it.

use std::io::{Seek, Write};
use std::process::{Command, Stdio};

use pointsman::lab::{Lab, Namespace};

use super::daemon::{command, run, stderr};

/// Which of the two iptables: the middle of its programs' names.
pub type Kind = &'static str;
pub const NFT: Kind = "nft";

/// As mode iptables leaves it, among rules of a CNI plug-in, of kubelet and of an operator. `LOCAL` and `SERVICE` are addresses.
const IPTABLES: &str = r#"*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
:CALICO - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -m comment --comment "the operator's; -j KUBE-SERVICES it is not" -j ACCEPT
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -j CALICO
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A CALICO -p tcp -m tcp --dport 179 -j ACCEPT
-A KUBE-FIREWALL -p udp -m udp --dport 1 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-SERVICES -d SERVICE -p tcp -m comment --comment "shop/none has no endpoints" -m tcp --dport 81 -j REJECT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-BBBBBBBBBBBBBBBB - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXT-CCCCCCCCCCCCCCCC - [0:0]
:KUBE-SVC-CCCCCCCCCCCCCCCC - [0:0]
:KUBE-SVL-CCCCCCCCCCCCCCCC - [0:0]
:KUBE-FW-CCCCCCCCCCCCCCCC - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s LOCAL -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-CCCCCCCCCCCCCCCC
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-AAAAAAAAAAAAAAAA -s LOCAL -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d SERVICE -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-CCCCCCCCCCCCCCCC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-EXT-CCCCCCCCCCCCCCCC -j KUBE-SVC-CCCCCCCCCCCCCCCC
-A KUBE-EXT-CCCCCCCCCCCCCCCC -j KUBE-SVL-CCCCCCCCCCCCCCCC
-A KUBE-FW-CCCCCCCCCCCCCCCC -j KUBE-EXT-CCCCCCCCCCCCCCCC
-A KUBE-SVC-CCCCCCCCCCCCCCCC -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SVC-CCCCCCCCCCCCCCCC -j KUBE-SEP-BBBBBBBBBBBBBBBB
COMMIT
"#;

/// A node alone.
pub fn node() -> Lab {
    Lab::builder().prefix("pmtier").build().expect("a lab, which needs root")
}

/// Runs a program inside a namespace and returns what it printed; it must succeed.
pub fn program(inside: &Namespace, program: &str, args: &[&str], input: &str) -> String {
    let mut stdin = tempfile::tempfile().expect("a file");
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).expect("input");
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::from(stdin)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = inside.spawn(command).unwrap_or_else(|error| panic!("{program}, which this test needs: {error}"));
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success(), "{program} {args:?}: {}: {}", output.status, stderr(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The ruleset of mode iptables for both families, in one kind of iptables.
pub fn install_iptables(inside: &Namespace, kind: Kind) {
    for (family, local, service) in
        [("iptables", "10.244.0.3/32", "10.96.0.10/32"), ("ip6tables", "fd00:10:244::3/128", "fd00:10:96::10/128")]
    {
        // A whole word: LOCAL is also a type of addresses.
        let rules =
            IPTABLES.replace("-s LOCAL ", &format!("-s {local} ")).replace("SERVICE -p", &format!("{service} -p"));
        program(inside, &format!("{family}-{kind}-restore"), &["--noflush"], &rules);
    }
}

/// What iptables of one kind lists for IPv4 and IPv6, without times and counters.
pub fn both(inside: &Namespace, kind: Kind) -> [Vec<String>; 2] {
    ["iptables", "ip6tables"].map(|family| iptables(inside, &format!("{family}-{kind}-save")))
}

/// What one program lists, without times and counters.
pub fn iptables(inside: &Namespace, program_name: &str) -> Vec<String> {
    let text = program(inside, program_name, &[], "");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect()
}

/// What stays of [`IPTABLES`]: all lines in which nothing of kube-proxy's occurs outside of a comment.
pub fn kept(before: &[String]) -> Vec<String> {
    let theirs = |line: &&String| {
        let line = line.replace("-j KUBE-SERVICES it is not", "");
        let known = ["KUBE-FIREWALL", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"];
        !line.contains("KUBE-") || known.iter().any(|name| line.contains(name))
    };
    before.iter().filter(theirs).cloned().collect()
}

/// Cleans up, which must succeed; returns what was said.
pub fn cleanup(lab: &Lab) -> String {
    let output = run(lab.node(), command(), &["--cleanup"]);
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

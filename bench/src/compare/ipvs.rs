//! Baseline: IPVS as kube-proxy 1.36 sets it up, through `ipvsadm`, `ipset`, `ip` and `iptables-legacy-restore`.
//!
//! A virtual server per Service port, all ClusterIPs on the dummy interface `kube-ipvs0`, ipsets for what is said of many addresses, and a
//! handful of iptables rules that look into them. A change adds the new real servers and takes the weight of those that go (graceful
//! removal; kube-proxy deletes them once their connections are gone). `sh` and `mh` are without fallback flags, as kube-proxy has them.

use std::fmt::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use pointsman::lab::{Host, Lab};

use super::contender::{Contender, Kind, Running, Usage};
use super::iptables::{self, Variant};
use super::model::{self, Measurement, Protocol, Service};
use super::stage::Stage;
use super::tool::{self, Bill};

/// See the module.
pub struct Ipvs;

struct Loaded<'a> {
    host: &'a Host,
    cluster: Vec<Service>,
    first: Bill,
    bill: Bill,
    limit: Duration,
}

const LINK: &str = "kube-ipvs0";

const SYSCTLS: [(&str, &str); 4] = [
    ("ipv4/vs/conntrack", "1"),
    ("ipv4/vs/expire_nodest_conn", "1"),
    ("ipv4/vs/expire_quiescent_template", "1"),
    ("ipv4/ip_forward", "1"),
];

const SETS: &str = "\
create KUBE-LOOP-BACK hash:ip,port,ip
create KUBE-CLUSTER-IP hash:ip,port maxelem 65536
create KUBE-EXTERNAL-IP hash:ip,port
create KUBE-EXTERNAL-IP-LOCAL hash:ip,port
create KUBE-LOAD-BALANCER hash:ip,port
create KUBE-LOAD-BALANCER-FW hash:ip,port
create KUBE-LOAD-BALANCER-LOCAL hash:ip,port
create KUBE-LOAD-BALANCER-SOURCE-IP hash:ip,port,ip
create KUBE-LOAD-BALANCER-SOURCE-CIDR hash:ip,port,net
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
create KUBE-HEALTH-CHECK-NODE-PORT bitmap:port range 0-65535
create KUBE-IPVS-IPS hash:ip maxelem 65536
";

fn rules() -> String {
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES ! -s {} -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-A INPUT -j KUBE-IPVS-FILTER
-A INPUT -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODE-PORT
-A FORWARD -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A OUTPUT -j KUBE-IPVS-OUT-FILTER
-A KUBE-PROXY-FIREWALL -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-NODE-PORT -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-FORWARD -m mark --mark 0x00004000/0x00004000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
",
        model::CLIENTS
    )
}

/// `-t 10.96.0.1:80`
fn server(service: &Service) -> String {
    let kind = if service.protocol == Protocol::Tcp { "-t" } else { "-u" };
    format!("{kind} {}:{}", service.address, service.port)
}

fn scheduler(service: &Service) -> &'static str {
    service.scheduler.filter(|name| *name != "default").unwrap_or("rr")
}

/// Why there is no IPVS here.
pub fn missing() -> Option<String> {
    for program in ["ipvsadm", "ipset", "ip"] {
        if let Err(reason) = tool::find(program) {
            return Some(reason);
        }
    }
    let _ = Command::new("modprobe").arg("ip_vs").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if std::fs::metadata("/proc/net/ip_vs").is_err() {
        return Some("this kernel has no IPVS: see the rows from the VM".to_owned());
    }
    let dummy = || -> anyhow::Result<()> {
        let lab = Lab::builder().prefix("pm-compare").build()?;
        Bill::open().run(lab.node(), "ip", &["link", "add", LINK, "type", "dummy"], "", Duration::from_secs(5))
    };
    let dummy = dummy().err().map(|error| format!("this kernel has no dummy interfaces: {error}"));
    dummy.or_else(|| iptables::missing(Variant::Legacy))
}

impl Contender for Ipvs {
    fn name(&self) -> &str {
        "ipvs-shape"
    }

    fn kind(&self) -> Kind {
        Kind::Baseline
    }

    fn title(&self) -> String {
        "IPVS as kube-proxy 1.36 sets it up, through ipvsadm, ipset, ip and iptables-legacy-restore".to_owned()
    }

    fn version(&self) -> String {
        tool::version("ipvsadm", "--version")
    }

    fn unavailable(&self) -> Option<String> {
        missing()
    }

    fn declines(&self, _: Measurement, _: u32) -> Option<String> {
        None
    }

    fn schedulers(&self) -> &'static [&'static str] {
        &["default", "lc"]
    }

    fn steady(&self) -> &'static [&'static str] {
        &["sh", "mh"]
    }

    fn start<'a>(
        &self,
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
    ) -> anyhow::Result<Box<dyn Running + 'a>> {
        let (mut sets, mut servers) = (SETS.to_owned(), String::new());
        for service in cluster {
            let (address, port) = (service.address, service.port);
            writeln!(sets, "add KUBE-CLUSTER-IP {address},{}:{port}", service.protocol.name())?;
            writeln!(sets, "add KUBE-IPVS-IPS {address}")?;
            writeln!(servers, "-A {} -s {}", server(service), scheduler(service))?;
            for endpoint in &service.endpoints {
                writeln!(servers, "-a {} -r {endpoint} -m -w 1", server(service))?;
            }
        }
        let host = stage.node();
        let mut first = Bill::open();
        // Loads the module, so that its parameters are there.
        first.run(host, "ipvsadm", &["-L", "-n"], "", limit)?;
        host.namespace().sysctls(&SYSCTLS)?;
        first.run(host, "ip", &["link", "add", LINK, "type", "dummy"], "", limit)?;
        let mut links = host.namespace().rtnl()?;
        for service in cluster {
            links.add_address(LINK, service.address.into(), 32).context("an address of a Service")?;
        }
        first.run(host, "ipset", &["restore"], &sets, limit)?;
        first.run(host, "iptables-legacy-restore", &["--noflush"], &rules(), limit)?;
        first.run(host, "ipvsadm", &["-R"], &servers, limit)?;
        Ok(Box::new(Loaded { host, cluster: cluster.to_vec(), first, bill: first, limit }))
    }
}

impl Running for Loaded<'_> {
    fn began(&self) -> Instant {
        self.first.began
    }

    fn change(&mut self, service: &Service) -> anyhow::Result<()> {
        let before = super::replace(&mut self.cluster, service);
        let (mut text, to) = (String::new(), server(service));
        if scheduler(&before) != scheduler(service) {
            writeln!(text, "-E {to} -s {}", scheduler(service))?;
        }
        let gone = |endpoint: &&std::net::SocketAddrV4| !service.endpoints.contains(endpoint);
        for endpoint in &service.endpoints {
            // Who was taken out before is still there, with weight 0 or none: adding it fails then, changing it does not.
            if !before.endpoints.contains(endpoint) {
                let arguments = ["-e", &to[..2], &to[3..], "-r", &endpoint.to_string(), "-m", "-w", "1"];
                if self.bill.run(self.host, "ipvsadm", &arguments, "", self.limit).is_err() {
                    writeln!(text, "-a {to} -r {endpoint} -m -w 1")?;
                }
            }
        }
        for endpoint in before.endpoints.iter().filter(gone) {
            // Under schedulers that keep a client's endpoint what matters is where clients are in the end, when it has been deleted.
            let in_the_end = Ipvs.steady().contains(&scheduler(service));
            writeln!(
                text,
                "{}",
                if in_the_end { format!("-d {to} -r {endpoint}") } else { format!("-e {to} -r {endpoint} -m -w 0") }
            )?;
        }
        self.bill.run(self.host, "ipvsadm", &["-R"], &text, self.limit)
    }

    /// Every sync of this mode is a full one: each virtual server is written as it should be. Real servers that are there stay.
    fn restart(&mut self) -> anyhow::Result<()> {
        let edits: String =
            self.cluster.iter().map(|service| format!("-E {} -s {}\n", server(service), scheduler(service))).collect();
        self.bill.run(self.host, "ipvsadm", &["-R"], &edits, self.limit)
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Ok(self.bill.usage)
    }
}

//! Baseline: iptables as kube-proxy 1.36 lays it out, through `iptables-restore`.
//!
//! A chain `KUBE-SERVICES` with a rule per Service port, a chain `KUBE-SVC-*` per Service port that draws lots, a chain `KUBE-SEP-*` per
//! endpoint that translates. Two [`Variant`]s: the older ip_tables, and iptables' rules on nf_tables. As in a cluster of more than 1,000
//! endpoints, rules have no comments then. A change is a partial sync: the dispatching rules of all Services are written again, as
//! kube-proxy does, and of the chains only those of the Service that changed. Computing that input is not in the baseline's time.

use std::fmt::Write;
use std::time::{Duration, Instant};

use pointsman::lab::Host;

use super::contender::{Contender, Kind, Running, Usage};
use super::model::{self, Measurement, Service};
use super::short_hash;
use super::stage::Stage;
use super::tool::{self, Bill};

/// Endpoints from which on kube-proxy leaves comments out.
const LARGE: usize = 1_000;

/// Services that rules on nf_tables are loaded with: beyond, restoring takes minutes and more.
const NFT_MOST: u32 = 1_000;

/// Which iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Nft,
    Legacy,
}

/// See the module.
pub struct Iptables(pub Variant);

struct Loaded<'a> {
    host: &'a Host,
    program: &'static str,
    cluster: Vec<Service>,
    first: Bill,
    bill: Bill,
    limit: Duration,
}

/// What comes before rules of Services in table nat.
const NAT: &str = "\
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
";

/// kube-proxy's own rules in table nat, but for those of Services.
const NAT_RULES: &str = "\
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
";

/// Made once, at the start, and in front of everything else.
const JUMPS: &str = "\
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-I INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-I FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x00004000/0x00004000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
COMMIT
";

fn service_chain(service: &Service) -> String {
    format!("KUBE-SVC-{:016X}", short_hash(&format!("{}{}", service.key(), service.protocol.name())))
}

fn endpoint_chain(service: &Service, endpoint: &std::net::SocketAddrV4) -> String {
    format!("KUBE-SEP-{:016X}", short_hash(&format!("{}{}{endpoint}", service.key(), service.protocol.name())))
}

/// The input of a sync: all Services' dispatching rules, and the chains of those that `writes` says.
fn sync(cluster: &[Service], writes: impl Fn(&Service) -> bool) -> String {
    let large = cluster.iter().map(|service| service.endpoints.len()).sum::<usize>() > LARGE;
    let comment = |text: String| if large { String::new() } else { format!("-m comment --comment \"{text}\" ") };
    let (mut chains, mut rules) = (format!("*nat\n{NAT}"), NAT_RULES.to_owned());
    for service in cluster {
        let (chain, protocol) = (service_chain(service), service.protocol.name());
        let to = format!(
            "{}-m {protocol} -p {protocol} -d {} --dport {}",
            comment(format!("{} cluster IP", service.key())),
            service.address,
            service.port
        );
        let _ = writeln!(rules, "-A KUBE-SERVICES {to} -j {chain}");
        if !writes(service) {
            continue;
        }
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(rules, "-A {chain} {to} ! -s {} -j KUBE-MARK-MASQ", model::CLIENTS);
        let count = service.endpoints.len();
        for (number, endpoint) in service.endpoints.iter().enumerate() {
            let own = endpoint_chain(service, endpoint);
            let lot = if number + 1 < count {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / (count - number) as f64)
            } else {
                String::new()
            };
            let _ = writeln!(rules, "-A {chain} {}{lot}-j {own}", comment(format!("{} -> {endpoint}", service.key())));
        }
        for endpoint in &service.endpoints {
            let own = endpoint_chain(service, endpoint);
            let said = comment(service.key());
            let _ = writeln!(chains, ":{own} - [0:0]");
            let _ = writeln!(rules, "-A {own} {said}-s {} -j KUBE-MARK-MASQ", endpoint.ip());
            let _ = writeln!(rules, "-A {own} {said}-m {protocol} -p {protocol} -j DNAT --to-destination {endpoint}");
        }
    }
    rules.push_str("-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n");
    format!("{chains}{rules}COMMIT\n")
}

impl Variant {
    fn restore(self) -> &'static str {
        match self {
            Self::Nft => "iptables-nft-restore",
            Self::Legacy => "iptables-legacy-restore",
        }
    }
}

/// As kube-proxy calls it.
const ARGUMENTS: [&str; 4] = ["-w", "5", "--noflush", "--counters"];

impl Contender for Iptables {
    fn name(&self) -> &str {
        match self.0 {
            Variant::Nft => "iptables-nft-shape",
            Variant::Legacy => "iptables-legacy-shape",
        }
    }

    fn kind(&self) -> Kind {
        Kind::Baseline
    }

    fn title(&self) -> String {
        format!("iptables as kube-proxy 1.36 lays it out, through {}", self.0.restore())
    }

    fn version(&self) -> String {
        tool::version(self.0.restore(), "--version")
    }

    fn unavailable(&self) -> Option<String> {
        missing(self.0)
    }

    fn declines(&self, measurement: Measurement, services: u32) -> Option<String> {
        if self.0 == Variant::Nft && services > NFT_MOST {
            return Some(format!("measured up to {NFT_MOST} Services: beyond, loading the rules takes minutes"));
        }
        let reason = "no scheduler but random, but for session affinity";
        (measurement == Measurement::Moved).then(|| reason.to_owned())
    }

    fn schedulers(&self) -> &'static [&'static str] {
        &["default"]
    }

    fn start<'a>(
        &self,
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
    ) -> anyhow::Result<Box<dyn Running + 'a>> {
        let (text, program) = (sync(cluster, |_| true), self.0.restore());
        let mut first = Bill::open();
        first.run(stage.node(), program, &ARGUMENTS, JUMPS, limit)?;
        first.run(stage.node(), program, &ARGUMENTS, &text, limit)?;
        Ok(Box::new(Loaded { host: stage.node(), program, cluster: cluster.to_vec(), first, bill: first, limit }))
    }
}

/// Why this iptables does not work here; tried out in a namespace.
pub fn missing(variant: Variant) -> Option<String> {
    let program = match tool::find(variant.restore()) {
        Ok(_) => variant.restore(),
        Err(reason) => return Some(reason),
    };
    let tried = || -> anyhow::Result<()> {
        let lab = pointsman::lab::Lab::builder().prefix("pm-compare").build()?;
        Bill::open().run(lab.node(), program, &ARGUMENTS, JUMPS, Duration::from_secs(20))
    };
    tried().err().map(|error| format!("this kernel does not take its rules: {error}"))
}

impl Running for Loaded<'_> {
    fn began(&self) -> Instant {
        self.first.began
    }

    fn change(&mut self, service: &Service) -> anyhow::Result<()> {
        let before = super::replace(&mut self.cluster, service);
        let mut text = sync(&self.cluster, |one| one.name == service.name);
        // Chains of endpoints that are gone.
        let gone = before.endpoints.iter().filter(|endpoint| !service.endpoints.contains(endpoint));
        let gone: Vec<_> = gone.map(|endpoint| endpoint_chain(service, endpoint)).collect();
        let declared: String = gone.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect();
        let removed: String = gone.iter().map(|chain| format!("-X {chain}\n")).collect();
        text = text.replacen("*nat\n", &format!("*nat\n{declared}"), 1);
        text = text.replacen("COMMIT\n", &format!("{removed}COMMIT\n"), 1);
        self.bill.run(self.host, self.program, &ARGUMENTS, &text, self.limit)
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let text = sync(&self.cluster, |_| true);
        self.bill.run(self.host, self.program, &ARGUMENTS, &text, self.limit)
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Ok(self.bill.usage)
    }
}

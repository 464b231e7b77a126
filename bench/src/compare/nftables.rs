//! Baseline: nftables as kube-proxy 1.36 lays it out, through the program `nft`.
//!
//! Written after its documentation (KEP-3866) and the rules that a running one shows: a table `kube-proxy`, verdict maps from address,
//! protocol and port to a chain per Service port, and in each such chain one rule with an anonymous map of its endpoints. A change flushes
//! and refills the chain of the Service concerned, in one transaction; what kube-proxy does besides (it lists chains in each sync) is left
//! out, so the baseline is rather too fast. No NodePorts, no source ranges, no affinity: their chains and maps are there and empty.

use std::fmt::Write;
use std::time::{Duration, Instant};

use pointsman::lab::Host;

use super::contender::{Contender, Kind, Running, Usage};
use super::model::{self, Measurement, Service};
use super::stage::Stage;
use super::tool::{self, Bill};

/// See the module.
pub struct Nftables;

struct Loaded<'a> {
    host: &'a Host,
    cluster: Vec<Service>,
    first: Bill,
    bill: Bill,
    limit: Duration,
}

const FRAME: &str = "\
add table ip kube-proxy { comment \"rules for kube-proxy\"; }
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100; }
add chain ip kube-proxy nat-output { type nat hook output priority -100; }
add chain ip kube-proxy filter-input { type filter hook input priority 0; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0; }
add chain ip kube-proxy filter-output { type filter hook output priority 0; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100; }
add set ip kube-proxy cluster-ips { type ipv4_addr; comment \"Active ClusterIPs\"; }
add set ip kube-proxy hairpin-connections { type ipv4_addr . ipv4_addr . inet_proto . inet_service; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy firewall-check
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy reject-chain
add chain ip kube-proxy masquerading
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy nodeport-endpoints-check ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
add rule ip kube-proxy cluster-ips-check ip daddr { 10.96.0.0/12 } drop comment \"Drop traffic to unallocated ClusterIPs\"
add rule ip kube-proxy masquerading meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random
add rule ip kube-proxy masquerading ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
";

/// `242WI43H-bench/service-0/tcp/`
fn chain(service: &Service) -> String {
    format!("service-{:08X}-{}/{}/", super::short_hash(&service.key()) as u32, service.key(), service.protocol.name())
}

fn rule(text: &mut String, service: &Service) {
    let endpoint = |(number, endpoint): (usize, &std::net::SocketAddrV4)| {
        format!("{number} : {} . {}", endpoint.ip(), endpoint.port())
    };
    let endpoints: Vec<_> = service.endpoints.iter().enumerate().map(endpoint).collect();
    let _ = writeln!(
        text,
        "add rule ip kube-proxy {} meta l4proto {} dnat ip to numgen random mod {} map {{ {} }}",
        chain(service),
        service.protocol.name(),
        endpoints.len(),
        endpoints.join(" , ")
    );
}

fn everything(cluster: &[Service]) -> String {
    let mut text = FRAME.to_owned();
    let _ = writeln!(
        text,
        "insert rule ip kube-proxy services ip daddr @cluster-ips ip saddr != {} meta mark set meta mark | 0x4000",
        model::CLIENTS
    );
    for service in cluster {
        let (name, protocol) = (chain(service), service.protocol.name());
        let _ = writeln!(text, "add chain ip kube-proxy {name}");
        rule(&mut text, service);
        let _ = writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", service.address);
        let _ = writeln!(
            text,
            "add element ip kube-proxy service-ips {{ {} . {protocol} . {} : goto {name} }}",
            service.address, service.port
        );
    }
    text
}

impl Contender for Nftables {
    fn name(&self) -> &str {
        "nftables-shape"
    }

    fn kind(&self) -> Kind {
        Kind::Baseline
    }

    fn title(&self) -> String {
        "nftables as kube-proxy 1.36 lays it out, through nft".to_owned()
    }

    fn version(&self) -> String {
        tool::version("nft", "--version")
    }

    fn unavailable(&self) -> Option<String> {
        tool::find("nft").err()
    }

    fn declines(&self, measurement: Measurement, _: u32) -> Option<String> {
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
        let text = everything(cluster);
        let mut first = Bill::open();
        first.run(stage.node(), "nft", &["-f", "-"], &text, limit)?;
        let (host, cluster) = (stage.node(), cluster.to_vec());
        Ok(Box::new(Loaded { host, cluster, first, bill: first, limit }))
    }
}

impl Running for Loaded<'_> {
    fn began(&self) -> Instant {
        self.first.began
    }

    fn change(&mut self, service: &Service) -> anyhow::Result<()> {
        super::replace(&mut self.cluster, service);
        let mut text = format!("flush chain ip kube-proxy {}\n", chain(service));
        rule(&mut text, service);
        self.bill.run(self.host, "nft", &["-f", "-"], &text, self.limit)
    }

    /// A full sync: everything once more over what is there, chains flushed first.
    fn restart(&mut self) -> anyhow::Result<()> {
        let mut text = String::new();
        let fixed = FRAME.lines().filter(|line| line.starts_with("add table") || line.starts_with("add chain"));
        fixed.for_each(|line| {
            let _ = writeln!(text, "{line}");
            if let Some(name) = line.strip_prefix("add chain ip kube-proxy ") {
                let name = name.split(' ').next().expect("a name");
                let _ = writeln!(text, "flush chain ip kube-proxy {name}");
            }
        });
        for service in &self.cluster {
            let _ = writeln!(text, "add chain ip kube-proxy {0}\nflush chain ip kube-proxy {0}", chain(service));
        }
        text.push_str(&everything(&self.cluster));
        self.bill.run(self.host, "nft", &["-f", "-"], &text, self.limit)
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Ok(self.bill.usage)
    }
}

//! Those without a control plane: no proxy at all, and rules written by hand.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::contender::{Contender, Kind, Running, Usage};
use super::model::{Measurement, Service};
use super::stage::Stage;
use super::tool::{self, Bill};

/// The floor: clients connect to the pod.
pub struct Direct;

/// The yardstick: a dnat rule for each of a handful of Services.
pub struct DnatRule;

struct Still(Bill);

impl Contender for Direct {
    fn name(&self) -> &str {
        "direct"
    }

    fn kind(&self) -> Kind {
        Kind::Floor
    }

    fn title(&self) -> String {
        "no proxy: clients connect to the pod, the node routes".to_owned()
    }

    fn version(&self) -> String {
        String::new()
    }

    fn unavailable(&self) -> Option<String> {
        None
    }

    fn declines(&self, measurement: Measurement, _: u32) -> Option<String> {
        let of_network = [
            Measurement::Setup,
            Measurement::Requests,
            Measurement::Throughput,
            Measurement::Udp,
            Measurement::Packets,
        ];
        (!of_network.contains(&measurement)).then(|| "there is no Service".to_owned())
    }

    fn address(&self, service: &Service) -> SocketAddr {
        service.endpoints[0].into()
    }

    fn start<'a>(&self, _: &'a Stage, _: &[Service], _: Duration) -> anyhow::Result<Box<dyn Running + 'a>> {
        Ok(Box::new(Still(Bill::open())))
    }
}

impl Contender for DnatRule {
    fn name(&self) -> &str {
        "dnat-rule"
    }

    fn kind(&self) -> Kind {
        Kind::Yardstick
    }

    fn title(&self) -> String {
        "nftables with one dnat rule per measured Service, one endpoint each, and nothing else".to_owned()
    }

    fn version(&self) -> String {
        tool::version("nft", "--version")
    }

    fn unavailable(&self) -> Option<String> {
        tool::find("nft").err()
    }

    fn declines(&self, measurement: Measurement, services: u32) -> Option<String> {
        Direct.declines(measurement, services).map(|_| "rules by hand do not change".to_owned())
    }

    fn targets(&self, _: u32) -> u32 {
        1
    }

    fn start<'a>(
        &self,
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
    ) -> anyhow::Result<Box<dyn Running + 'a>> {
        let mut text =
            "add table ip bench\nadd chain ip bench entry { type nat hook prerouting priority -100; }\n".to_owned();
        let three = cluster.len() - 3;
        for service in std::iter::once(&cluster[0]).chain(&cluster[three..]) {
            let (protocol, port) = (service.protocol.name(), service.port);
            writeln!(
                text,
                "add rule ip bench entry ip daddr {} {protocol} dport {port} dnat to {}",
                service.address, service.endpoints[0]
            )?;
        }
        let mut bill = Bill::open();
        bill.run(stage.node(), "nft", &["-f", "-"], &text, limit)?;
        Ok(Box::new(Still(bill)))
    }
}

impl Running for Still {
    fn began(&self) -> Instant {
        self.0.began
    }

    fn change(&mut self, _: &Service) -> anyhow::Result<()> {
        anyhow::bail!("nothing here changes")
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        anyhow::bail!("nothing runs here")
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        Ok(self.0.usage)
    }
}

//! The lab, the cluster, the daemon, and what happens to them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use api_double::{ApiDouble, endpoint_slice, node, service};
use nft::{Connection, Family, Transaction};
use nix::sys::signal::Signal;
use pointsman::lab::{Host, Lab, Listen};
use serde_json::json;

use super::Scenario;
use crate::cluster;
use crate::daemon::Daemon;

/// How many frontends are connected to.
pub const FRONTENDS: usize = SCHEDULERS.len() * 2;

/// The Services that are connected to, by scheduler; `affinity` is `random` with session affinity.
const SCHEDULERS: [&str; 5] = ["random", "rr", "sh", "lc", "affinity"];

const NAMESPACE: &str = "hot";
const PORT: u16 = 8080;
const PODS: usize = 4;

/// Until something is considered broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the tables are gone in the control.
const GONE: Duration = Duration::from_secs(1);

/// Everything but the clients.
pub struct Stage {
    lab: Lab,
    double: ApiDouble,
    binary: PathBuf,
    directory: tempfile::TempDir,
    others: u32,
    daemon: Option<Daemon>,
}

/// What happened in a scenario.
#[derive(Debug, Default)]
pub struct Happened {
    pub kills: usize,
    /// How long each start took until everything was programmed; those that were killed before are missing.
    pub started: Vec<Duration>,
    pub changes: usize,
    /// When, since the beginning, and what.
    pub events: Vec<(Duration, &'static str)>,
}

/// Where clients connect to.
pub fn frontends() -> Vec<SocketAddr> {
    let both = (1..=SCHEDULERS.len()).flat_map(|number| addresses(number as u8));
    both.map(|address: IpAddr| SocketAddr::new(address, cluster::SERVICE_PORT)).collect()
}

fn addresses(number: u8) -> [IpAddr; 2] {
    [[10, 111, 0, number].into(), [0xfd00, 0x10, 0x111, 0, 0, 0, 0, number.into()].into()]
}

// === impl Stage ===

impl Stage {
    /// Builds everything, and waits until it is programmed.
    pub fn build(others: u32, binary: PathBuf) -> anyhow::Result<Self> {
        let names: Vec<String> = (1..=PODS).map(|number| format!("web-{number}")).collect();
        let mut lab = Lab::builder().prefix("pm-bench").pods(names.clone()).build()?;
        for name in &names {
            lab.serve(name, &[Listen::Tcp(PORT)])?;
        }
        let double = lab.node().run(ApiDouble::start);
        double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
        for (number, scheduler) in (1..).zip(SCHEDULERS) {
            let ips = addresses(number).map(|address| address.to_string());
            let mut object = service(NAMESPACE, scheduler, &ips[0], &[("", "TCP", cluster::SERVICE_PORT)]);
            object["spec"]["clusterIPs"] = json!(ips);
            object["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
            object["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
            match scheduler {
                "affinity" => object["spec"]["sessionAffinity"] = "ClientIP".into(),
                name => object["metadata"]["annotations"] = json!({"pointsman.dev/scheduler": name}),
            }
            double.apply(object);
            let pods = || lab.pods().map(|pod| pod.addresses());
            for (family, pods) in [
                ("v4", pods().map(|pod| pod.v4.to_string()).collect::<Vec<_>>()),
                ("v6", pods().map(|pod| pod.v6.to_string()).collect()),
            ] {
                let pods: Vec<_> = pods.iter().map(String::as_str).collect();
                let name = format!("{scheduler}-{family}");
                double.apply(endpoint_slice(NAMESPACE, &name, scheduler, &pods, &[("", "TCP", PORT)]));
            }
        }
        for number in 0..others {
            let (name, address) = (format!("service-{number}"), cluster::cluster_ip(number).to_string());
            double.apply(service("bench", &name, &address, &[("", "TCP", cluster::SERVICE_PORT)]));
            double.apply(other_slice(number, 0));
        }
        let directory = tempfile::tempdir()?;
        let mut stage = Self { lab, double, binary, directory, others, daemon: None };
        stage.start()?;
        stage.daemon.as_mut().context("just started")?.ready()?;
        Ok(stage)
    }

    pub fn client(&self) -> &Host {
        self.lab.client(0)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let kubeconfig = self.double.kubeconfig(self.directory.path());
        self.daemon = Some(Daemon::start(self.lab.node().namespace(), &self.binary, &kubeconfig)?);
        Ok(())
    }

    /// Lets it happen, for this time.
    pub fn play(
        &mut self,
        scenario: Scenario,
        time: Duration,
        kill_every: Duration,
        churn: u32,
    ) -> anyhow::Result<Happened> {
        let begin = Instant::now();
        let mut happened = Happened::default();
        let kills = matches!(scenario, Scenario::Kill | Scenario::Both);
        let churns = matches!(scenario, Scenario::Churn | Scenario::Both) && churn > 0 && self.others > 0;
        let gap = if churns { Duration::from_secs(1) / churn } else { Duration::from_millis(10) };
        let mut next_kill = begin + kill_every / 2;
        let mut gone = scenario != Scenario::Control;
        while begin.elapsed() < time {
            if kills && Instant::now() >= next_kill {
                next_kill += kill_every;
                self.kill(begin, &mut happened)?;
                self.start()?;
                happened.events.push((begin.elapsed(), "started"));
            }
            if !gone && begin.elapsed() >= time / 4 {
                gone = true;
                self.kill(begin, &mut happened)?;
                self.lab.node().run(remove_tables)?;
                happened.events.push((begin.elapsed(), "tables removed"));
                std::thread::sleep(GONE);
                self.start()?;
                happened.events.push((begin.elapsed(), "started"));
            }
            if churns {
                // Each of them loses an endpoint and gets it back with the next change of the same Service.
                let step = happened.changes as u32;
                let number = (step / 2).wrapping_mul(7919) % self.others;
                self.double.apply(other_slice(number, (step as usize + 1) % 2));
                happened.changes += 1;
            }
            if let Some(took) = self.daemon.as_mut().context("one runs")?.loaded()? {
                happened.started.push(took);
                happened.events.push((begin.elapsed(), "programmed"));
            }
            let due = begin + if churns { gap * happened.changes as u32 } else { begin.elapsed() + gap };
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(happened)
    }

    fn kill(&mut self, begin: Instant, happened: &mut Happened) -> anyhow::Result<()> {
        self.daemon.take().context("one runs")?.end(Signal::SIGKILL)?;
        happened.kills += 1;
        happened.events.push((begin.elapsed(), "killed"));
        Ok(())
    }
}

/// The slice of one of the Services that nobody connects to, without the first `missing` endpoints.
fn other_slice(number: u32, missing: usize) -> serde_json::Value {
    let (service, name) = (format!("service-{number}"), format!("service-{number}-a"));
    let count = u32::from(cluster::ENDPOINTS);
    let pods: Vec<_> =
        (number * count..(number + 1) * count).skip(missing).map(|pod| cluster::pod(pod).to_string()).collect();
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    endpoint_slice("bench", &name, &service, &pods, &[("", "TCP", cluster::TARGET_PORT)])
}

/// As somebody would who thinks that they are nobody's: their owner is dead.
fn remove_tables() -> anyhow::Result<()> {
    let mut transaction = Transaction::new();
    transaction.delete_table(Family::Ip, "pointsman");
    transaction.delete_table(Family::Ip6, "pointsman");
    // The kernel notices the owner's end a moment later.
    let begin = Instant::now();
    loop {
        match Connection::open()?.commit(&transaction) {
            Ok(()) => return Ok(()),
            Err(error) if begin.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

//! kube-proxy, ours or a real one, against the API server double: the program as it is run, from bytes on a socket to the kernel.
//!
//! Both get the same flags. `--iptables-min-sync-period=1ms` and its twin for IPVS take away the second that kube-proxy waits between two syncs by default, so
//! that what is measured is work and not waiting; `--conntrack-*=0`, because a namespace may not set the machine's limits. Mode userspace gets
//! `--forward-drain=1s`: a restart ends the connections that it carries, after a second instead of half a minute. Ours gets no status socket,
//! because its path is the machine's, not the namespace's: it would be another daemon's. All other addresses are those of the namespace.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use api_double::{ApiDouble, endpoint_slice, node, service};

use nix::sys::signal::Signal;
use pointsman::lab::Host;

use super::contender::{Contender, Kind, Running, Usage};
use super::model::{self, Measurement, NAMESPACE, Service};
use super::stage::Stage;
use crate::daemon::Daemon as Process;
use crate::usage::scheduled;

/// Modes of the real program.
pub const MODES: [&str; 3] = ["nftables", "iptables", "ipvs"];

/// Beyond this, listeners and ports of userspace mode say more of the lab than of the program.
const USERSPACE_MOST: u32 = 1_000;

/// See the module.
pub struct Daemon {
    name: String,
    kind: Kind,
    mode: &'static str,
    binary: Option<PathBuf>,
}

struct Following<'a> {
    host: &'a Host,
    double: ApiDouble,
    /// There is one but for the moment of a restart.
    process: Option<Process>,
    binary: PathBuf,
    kubeconfig: PathBuf,
    arguments: Vec<String>,
    began: Instant,
    schedulers: std::collections::BTreeMap<String, Option<&'static str>>,
    _directory: tempfile::TempDir,
}

// === impl Daemon ===

impl Daemon {
    /// Ours, built beside this program.
    pub fn ours(name: &str, mode: &'static str) -> Self {
        let beside = std::env::current_exe().ok().map(|path| path.with_file_name("kube-proxy"));
        Self { name: name.to_owned(), kind: Kind::Ours, mode, binary: beside }
    }

    /// Another one.
    pub fn real(binary: PathBuf, mode: &'static str) -> Self {
        Self { name: format!("kube-proxy-{mode}"), kind: Kind::Binary, mode, binary: Some(binary) }
    }

    fn arguments(&self) -> Vec<String> {
        let mode = format!("--proxy-mode={}", self.mode);
        let clients = format!("--cluster-cidr={}", model::CLIENTS);
        let fixed = [
            "--iptables-min-sync-period=1ms",
            "--ipvs-min-sync-period=1ms",
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ];
        let own = [("--status-socket=", self.kind == Kind::Ours), ("--forward-drain=1s", self.mode == "userspace")];
        let own = own.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag);
        [mode, clients].into_iter().chain(fixed.into_iter().chain(own).map(str::to_owned)).collect()
    }
}

impl Contender for Daemon {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn title(&self) -> String {
        let whose = if self.kind == Kind::Ours { "Pointsman" } else { "the kube-proxy that was given" };
        format!("{whose}, mode {}: the whole daemon, following an API server", self.mode)
    }

    fn version(&self) -> String {
        let said = self.binary.as_ref().and_then(|binary| Command::new(binary).arg("--version").output().ok());
        said.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned()).unwrap_or_default()
    }

    fn unavailable(&self) -> Option<String> {
        let Some(binary) = &self.binary else { return Some("nobody knows where this program is".to_owned()) };
        if !binary.exists() {
            return Some(format!("no daemon at {}: cargo build --release --bin kube-proxy", binary.display()));
        }
        let needs_ipvs = self.kind == Kind::Binary && self.mode == "ipvs";
        needs_ipvs.then(super::ipvs::missing).flatten()
    }

    fn declines(&self, measurement: Measurement, services: u32) -> Option<String> {
        if self.mode == "userspace" && services > USERSPACE_MOST {
            return Some(format!("a listener per Service: measured up to {USERSPACE_MOST}"));
        }
        match measurement {
            Measurement::Moved if self.steady().is_empty() => {
                Some("no scheduler that keeps a client's endpoint, but for session affinity".to_owned())
            }
            _ => None,
        }
    }

    fn schedulers(&self) -> &'static [&'static str] {
        match (self.kind, self.mode) {
            (Kind::Ours, "userspace") => &["default", "lc,exact"],
            (Kind::Ours, _) => &["default", "rr", "lc"],
            _ => &["default"],
        }
    }

    fn steady(&self) -> &'static [&'static str] {
        if self.kind == Kind::Ours && self.mode != "userspace" { &["sh", "mh"] } else { &[] }
    }

    fn start<'a>(&self, stage: &'a Stage, cluster: &[Service], _: Duration) -> anyhow::Result<Box<dyn Running + 'a>> {
        let binary = self.binary.clone().expect("it is available");
        let double = stage.node().run(ApiDouble::start);
        double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
        cluster.iter().for_each(|service| {
            double.apply(object(service));
            double.apply(slice(service));
        });
        let directory = tempfile::tempdir()?;
        let (kubeconfig, arguments) = (double.kubeconfig(directory.path()), self.arguments());
        let process = Process::start_with(stage.node().namespace(), &binary, &kubeconfig, &arguments)?;
        let began = process.started();
        let schedulers = cluster.iter().map(|service| (service.name.clone(), service.scheduler)).collect();
        Ok(Box::new(Following {
            host: stage.node(),
            double,
            process: Some(process),
            binary,
            kubeconfig,
            arguments,
            began,
            schedulers,
            _directory: directory,
        }))
    }
}

/// As the API has it; the scheduler is our annotation, which others pass over.
fn object(of: &Service) -> serde_json::Value {
    let protocol = of.protocol.name().to_uppercase();
    let mut object = service(NAMESPACE, &of.name, &of.address.to_string(), &[("", &protocol, of.port)]);
    if let Some(scheduler) = of.scheduler {
        object["metadata"]["annotations"] = serde_json::json!({"pointsman.dev/scheduler": scheduler});
    }
    object
}

fn slice(of: &Service) -> serde_json::Value {
    let addresses: Vec<_> = of.endpoints.iter().map(|endpoint| endpoint.ip().to_string()).collect();
    let addresses: Vec<_> = addresses.iter().map(String::as_str).collect();
    let port = of.endpoints.first().map_or(0, |endpoint| endpoint.port());
    let protocol = of.protocol.name().to_uppercase();
    endpoint_slice(NAMESPACE, &format!("{}-a", of.name), &of.name, &addresses, &[("", &protocol, port)])
}

// === impl Following ===

impl Running for Following<'_> {
    fn began(&self) -> Instant {
        self.began
    }

    fn alive(&mut self) -> anyhow::Result<()> {
        match self.process.as_mut().context("it runs")?.obituary()? {
            Some(words) => anyhow::bail!("{} ended: {words}", self.binary.display()),
            None => Ok(()),
        }
    }

    fn change(&mut self, service: &Service) -> anyhow::Result<()> {
        let known = self.schedulers.insert(service.name.clone(), service.scheduler);
        if known != Some(service.scheduler) {
            self.double.apply(object(service));
        }
        self.double.apply(slice(service));
        Ok(())
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        if let Some(process) = self.process.take() {
            process.end(Signal::SIGTERM)?;
        }
        let (namespace, binary) = (self.host.namespace(), &self.binary);
        self.process = Some(Process::start_with(namespace, binary, &self.kubeconfig, &self.arguments)?);
        Ok(())
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        let process = self.process.as_ref().context("it runs")?;
        Ok(Usage { cpu: scheduled(process.id())?, memory: process.memory()?[0] * 1024 })
    }
}

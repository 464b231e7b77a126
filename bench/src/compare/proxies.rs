//! Peers of the userspace forwarder: HAProxy and nginx's stream module, as somebody would set them up for the same Services.
//!
//! A listener per Service on the node, in front of them one nftables rule that translates each Service's address to its listener by a map.
//! A change is a new configuration and a reload; old processes finish their connections.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::{Host, NODE};

use super::contender::{Contender, Kind, Running, Usage};
use super::model::{Measurement, Protocol, Service};
use super::stage::Stage;
use super::tool::{self, Bill};
use crate::usage::{family, scheduled};

/// HAProxy in TCP mode, splicing.
pub struct Haproxy;

/// nginx's stream module.
pub struct Nginx;

/// The first listener's port.
const FIRST: u16 = 20_000;

/// Listeners on one address, and with them Services, end somewhere.
const MOST: u32 = 1_000;

const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

struct Loaded<'a> {
    host: &'a Host,
    cluster: Vec<Service>,
    /// Makes a configuration.
    configuration: fn(&[Service], &std::path::Path) -> String,
    /// Starts a process on one; or has the one that runs read it again.
    reload: fn(&Host, Option<&mut Child>, &std::path::Path) -> anyhow::Result<Option<Child>>,
    file: PathBuf,
    began: Instant,
    child: Child,
    older: Vec<Child>,
    _directory: tempfile::TempDir,
}

fn declines(measurement: Measurement, services: u32) -> Option<String> {
    if services > MOST {
        return Some(format!("a listener per Service: measured up to {MOST}"));
    }
    (measurement == Measurement::FirstSync && services == 0).then(|| "there is no Service".to_owned())
}

/// Each Service's address to its listener.
fn redirect(cluster: &[Service]) -> String {
    let mut text = "add table ip bench\n\
        add map ip bench listeners { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }\n\
        add chain ip bench entry { type nat hook prerouting priority -100; }\n\
        add rule ip bench entry dnat ip to ip daddr . meta l4proto . th dport map @listeners\n"
        .to_owned();
    for (service, port) in cluster.iter().zip(FIRST..) {
        let (address, protocol, own) = (service.address, service.protocol.name(), NODE.v4);
        let _ = writeln!(
            text,
            "add element ip bench listeners {{ {address} . {protocol} . {} : {own} . {port} }}",
            service.port
        );
    }
    text
}

fn haproxy(cluster: &[Service], _: &std::path::Path) -> String {
    let mut text =
        "global\n  nbthread 2\n  maxconn 4000\ndefaults\n  mode tcp\n  option splice-auto\n  option splice-request\n  \
                    option splice-response\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            .to_owned();
    for (service, port) in cluster.iter().zip(FIRST..).filter(|(service, _)| service.protocol == Protocol::Tcp) {
        let balance = service.scheduler.filter(|name| *name != "default").unwrap_or("roundrobin");
        let balance = if balance == "source" { "source\n  hash-type consistent" } else { balance };
        let _ = writeln!(text, "listen {}\n  bind {}:{port}\n  balance {balance}", service.name, NODE.v4);
        for endpoint in &service.endpoints {
            let _ = writeln!(text, "  server {} {endpoint}", endpoint.to_string().replace(':', "-"));
        }
    }
    text
}

fn nginx(cluster: &[Service], directory: &std::path::Path) -> String {
    let path = directory.display();
    let mut text = format!(
        "load_module {MODULE};\ndaemon off;\nuser root;\nworker_processes 2;\nworker_rlimit_nofile 60000;\npid {path}/pid;\n\
         error_log {path}/error.log crit;\nevents {{ worker_connections 16000; }}\nstream {{\nproxy_timeout 1h;\n"
    );
    for (service, port) in cluster.iter().zip(FIRST..) {
        let method = match service.scheduler {
            Some("least_conn") => "least_conn;",
            Some("hash") => "hash $remote_addr consistent;",
            _ => "",
        };
        let servers: String = service.endpoints.iter().map(|endpoint| format!(" server {endpoint};")).collect();
        let udp = if service.protocol == Protocol::Udp { " udp reuseport" } else { "" };
        let _ = writeln!(
            text,
            "upstream {0} {{ {method}{servers} }}\nserver {{ listen {1}:{port}{udp}; proxy_pass {0}; }}",
            service.name, NODE.v4
        );
    }
    text + "}\n"
}

/// What a process complains about, beside its configuration.
fn errors(file: &std::path::Path) -> anyhow::Result<fs::File> {
    Ok(fs::OpenOptions::new().create(true).append(true).open(file.with_extension("errors"))?)
}

fn reload_haproxy(host: &Host, running: Option<&mut Child>, file: &std::path::Path) -> anyhow::Result<Option<Child>> {
    let mut command = Command::new(tool::find("haproxy").map_err(anyhow::Error::msg)?);
    command.args(["-db", "-f"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors(file)?);
    if let Some(running) = running {
        command.args(["-sf", &running.id().to_string()]);
    }
    Ok(Some(host.spawn(command).context("starting haproxy")?))
}

fn reload_nginx(host: &Host, running: Option<&mut Child>, file: &std::path::Path) -> anyhow::Result<Option<Child>> {
    if let Some(running) = running {
        kill(Pid::from_raw(running.id().try_into()?), Signal::SIGHUP)?;
        return Ok(None);
    }
    let mut command = Command::new(tool::find("nginx").map_err(anyhow::Error::msg)?);
    command.args(["-e", "stderr", "-c"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors(file)?);
    Ok(Some(host.spawn(command).context("starting nginx")?))
}

impl Contender for Haproxy {
    fn name(&self) -> &str {
        "haproxy"
    }

    fn kind(&self) -> Kind {
        Kind::Binary
    }

    fn title(&self) -> String {
        "HAProxy in TCP mode behind an nftables map, a listener per Service".to_owned()
    }

    fn version(&self) -> String {
        tool::version("haproxy", "-v")
    }

    fn unavailable(&self) -> Option<String> {
        tool::find("haproxy").and_then(|_| tool::find("nft")).err()
    }

    fn declines(&self, measurement: Measurement, services: u32) -> Option<String> {
        match measurement {
            Measurement::Udp | Measurement::Packets => Some("HAProxy does not forward UDP".to_owned()),
            _ => declines(measurement, services),
        }
    }

    fn schedulers(&self) -> &'static [&'static str] {
        &["default", "leastconn"]
    }

    fn steady(&self) -> &'static [&'static str] {
        &["source"]
    }

    fn start<'a>(
        &self,
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
    ) -> anyhow::Result<Box<dyn Running + 'a>> {
        Ok(Box::new(Loaded::start(stage, cluster, limit, haproxy, reload_haproxy)?))
    }
}

impl Contender for Nginx {
    fn name(&self) -> &str {
        "nginx"
    }

    fn kind(&self) -> Kind {
        Kind::Binary
    }

    fn title(&self) -> String {
        "nginx's stream module behind an nftables map, a listener per Service".to_owned()
    }

    fn version(&self) -> String {
        tool::version("nginx", "-v")
    }

    fn unavailable(&self) -> Option<String> {
        let module = || fs::metadata(MODULE).map(drop).map_err(|_| format!("there is no {MODULE}"));
        tool::find("nginx").and_then(|_| tool::find("nft")).and_then(|_| module()).err()
    }

    fn declines(&self, measurement: Measurement, services: u32) -> Option<String> {
        declines(measurement, services)
    }

    fn schedulers(&self) -> &'static [&'static str] {
        &["default", "least_conn"]
    }

    fn steady(&self) -> &'static [&'static str] {
        &["hash"]
    }

    fn start<'a>(
        &self,
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
    ) -> anyhow::Result<Box<dyn Running + 'a>> {
        Ok(Box::new(Loaded::start(stage, cluster, limit, nginx, reload_nginx)?))
    }
}

impl<'a> Loaded<'a> {
    fn start(
        stage: &'a Stage,
        cluster: &[Service],
        limit: Duration,
        configuration: fn(&[Service], &std::path::Path) -> String,
        reload: fn(&Host, Option<&mut Child>, &std::path::Path) -> anyhow::Result<Option<Child>>,
    ) -> anyhow::Result<Self> {
        let (host, directory) = (stage.node(), tempfile::tempdir()?);
        let file = directory.path().join("configuration");
        fs::write(&file, configuration(cluster, directory.path()))?;
        let redirect = redirect(cluster);
        let mut bill = Bill::open();
        let child = reload(host, None, &file)?.context("a process")?;
        bill.run(host, "nft", &["-f", "-"], &redirect, limit)?;
        let cluster = cluster.to_vec();
        let (began, older) = (bill.began, Vec::new());
        Ok(Self { host, cluster, configuration, reload, file, began, child, older, _directory: directory })
    }
}

impl Running for Loaded<'_> {
    fn began(&self) -> Instant {
        self.began
    }

    fn alive(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = fs::read_to_string(self.file.with_extension("errors")).unwrap_or_default();
        let lines: Vec<_> = said.lines().collect();
        anyhow::bail!("it ended: {status}: {}", lines[lines.len().saturating_sub(3)..].join("; "))
    }

    fn change(&mut self, service: &Service) -> anyhow::Result<()> {
        super::replace(&mut self.cluster, service);
        self.restart()
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        let directory = self.file.parent().context("a directory")?;
        fs::write(&self.file, (self.configuration)(&self.cluster, directory))?;
        if let Some(newer) = (self.reload)(self.host, Some(&mut self.child), &self.file)? {
            self.older.push(std::mem::replace(&mut self.child, newer));
        }
        // Who has finished need not be remembered.
        self.older.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        Ok(())
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        let mut usage = Usage::default();
        for process in family(self.child.id())? {
            usage.cpu += scheduled(process)?;
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
            usage.memory += resident.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024;
        }
        Ok(usage)
    }
}

impl Drop for Loaded<'_> {
    fn drop(&mut self) {
        for child in self.older.iter_mut().chain([&mut self.child]) {
            // nginx's master takes its workers along only when it is asked to.
            let process = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
            let _ = kill(process, Signal::SIGTERM);
            let _ = child.wait();
        }
    }
}

//! What it costs connections that somebody looks.
//!
//! A lab of a client, a node and a pod, served by the real daemon; a block is some thousand connections through a Service, opened one after the other
//! and timed each ([`connect`]). In each round there is one block of every *looker*: nobody, somebody who follows all connections, somebody who traces another
//! Service, and nobody again, which shows how much two equal blocks differ. The order moves on from round to round, and connection tracking is emptied before each block.
//! What is compared are medians over rounds of ratios within a round.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use api_double::{ApiDouble, endpoint_slice, node, service};
use nix::sys::signal::Signal;
use pointsman::lab::Lab;
use socket2::Socket;

use crate::cluster::{self, SERVICE_PORT, TARGET_PORT};
use crate::daemon::Daemon;
use crate::first_packet::{connect, flush_conntrack};
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};

const POD: &str = "web-1";

/// After this the daemon's thread for somebody who has gone has ended.
const FORGOTTEN: Duration = Duration::from_millis(400);

/// Who looks, and with which arguments.
const LOOKERS: [(&str, &[&str]); 4] = [
    ("nobody", &[]),
    ("nobody again", &[]),
    ("flows --follow", &["flows", "--follow", "-o", "json"]),
    ("trace of another Service", &["trace", "bench/service-1", "--for", "10m", "--count", "1000000"]),
];

/// A lab with a daemon.
struct Rig {
    lab: Lab,
    listeners: Vec<Socket>,
    socket: std::path::PathBuf,
    daemon: Daemon,
    _double: ApiDouble,
    _directory: tempfile::TempDir,
}

/// Somebody looks, until this is dropped.
struct Looker(Option<Child>);

/// Measures and reports.
pub fn measure(
    rounds: u32,
    connections: usize,
    binary: &Path,
    pointsman: &Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let rig = Rig::build(binary)?;
    let mut raw = Csv::new("round,position,looker,connections,p50_ns,p90_ns,p99_ns");
    let mut medians = LOOKERS.map(|_| Vec::new());
    // Round 0 warms up.
    for round in 0..=rounds {
        for position in 0..LOOKERS.len() {
            let index = (position + round as usize) % LOOKERS.len();
            let (name, arguments) = LOOKERS[index];
            let looker = rig.look(pointsman, arguments)?;
            let block = rig.block(connections)?;
            looker.end().with_context(|| format!("{name}: nobody looked to the end"))?;
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| quantile(&block.sorted, share).as_nanos());
            raw.row(&[&round, &position, &name, &connections, &p50, &p90, &p99]);
            if round > 0 {
                medians[index].push(p50 as f64 / 1e3);
            }
        }
    }
    rig.daemon.end(Signal::SIGTERM)?;
    report.say(format!("\n## Opening a connection, {rounds} rounds of {connections} for each who looks\n"));
    let mut table = Table::new(&["who looks", "p50, µs", "ratio to nobody"]);
    for ((name, _), of) in LOOKERS.iter().zip(&medians) {
        let ratio = format!("{:.3}", Spread::of_ratios(of, &medians[0]));
        table.row(&[name, &Spread::of(of.iter().copied()), &ratio]);
    }
    report.say(&table);
    report.raw("status-lookers", &raw)
}

// === impl Rig ===

impl Rig {
    fn build(binary: &Path) -> anyhow::Result<Self> {
        let lab = Lab::builder().prefix("pm-bench").pods([POD]).build()?;
        let (pod, of_node) = (lab.pod(POD).addresses().v4.to_string(), lab.node().addresses().v4.to_string());
        let listeners = vec![lab.pod(POD).run(|| connect::listen(TARGET_PORT))?];
        let double = lab.node().run(ApiDouble::start);
        double.apply(node("n1", &[("InternalIP", &*of_node)]));
        for number in 0..2 {
            let (name, address) = (format!("service-{number}"), cluster::cluster_ip(number).to_string());
            double.apply(service("bench", &name, &address, &[("", "TCP", SERVICE_PORT)]));
            double.apply(endpoint_slice("bench", &format!("{name}-a"), &name, &[&*pod], &[("", "TCP", TARGET_PORT)]));
        }
        let directory = tempfile::tempdir()?;
        let (kubeconfig, socket) = (double.kubeconfig(directory.path()), directory.path().join("pointsman.sock"));
        let settings = ["--proxy-mode=nftables".to_owned(), format!("--status-socket={}", socket.display())];
        let mut daemon = Daemon::start_with(lab.node().namespace(), binary, &kubeconfig, &settings)?;
        daemon.ready()?;
        Ok(Self { lab, listeners, socket, daemon, _double: double, _directory: directory })
    }

    /// Has somebody look, and waits until it has begun.
    fn look(&self, pointsman: &Path, arguments: &[&str]) -> anyhow::Result<Looker> {
        if arguments.is_empty() {
            return Ok(Looker(None));
        }
        let mut command = Command::new(pointsman);
        command.args(arguments).arg("--socket").arg(&self.socket).stdin(Stdio::null());
        // Whoever follows says on standard output that it has begun; whoever traces, beside it.
        let follows = arguments[0] == "flows";
        command.stdout(if follows { Stdio::piped() } else { Stdio::null() });
        command.stderr(if follows { Stdio::null() } else { Stdio::piped() });
        let mut child = self.lab.node().spawn(command)?;
        let said: Box<dyn std::io::Read + Send> = match follows {
            true => Box::new(child.stdout.take().context("a pipe")?),
            false => Box::new(child.stderr.take().context("a pipe")?),
        };
        let looker = Looker(Some(child));
        let mut said = BufReader::new(said);
        let mut first = String::new();
        said.read_line(&mut first)?;
        let begun = if follows { "begin" } else { "tracing connections" };
        anyhow::ensure!(first.contains(begun), "{arguments:?} says {first:?}");
        // What is told is read, as somebody who looks would.
        thread::spawn(move || drop(std::io::copy(&mut said, &mut std::io::sink())));
        Ok(looker)
    }

    fn block(&self, connections: usize) -> anyhow::Result<connect::Block> {
        self.lab.node().run(flush_conntrack)?;
        let mut targets = std::iter::repeat(SocketAddr::from((cluster::cluster_ip(0), SERVICE_PORT)));
        let listeners = &self.listeners;
        self.lab.client(0).run(|| connect::measure(&mut targets, listeners, connections))
    }
}

// === impl Looker ===

impl Looker {
    /// Ends it, unless it has ended by itself, which would mean that others were measured.
    fn end(mut self) -> anyhow::Result<()> {
        if let Some(child) = &mut self.0 {
            let ended = child.try_wait()?;
            anyhow::ensure!(ended.is_none(), "{ended:?}");
        }
        Ok(())
    }
}

impl Drop for Looker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
            thread::sleep(FORGOTTEN);
        }
    }
}

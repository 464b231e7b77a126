//! How near a split comes to its shares: a canary of one replica with 5 % beside 1, 3 and 50 others.
//!
//! A lab with one client, a node that the product has programmed, and one pod whose ports are the endpoints: each a slice of its own, in
//! which it bears the name of a replica. Every connection is one of the client's through the node; who was connected to is counted
//! where it is accepted. With `random` chance alone puts the share off by a standard deviation of 0.15 percentage points; `wrr` has no chance.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::Lab;
use pointsman::schedule::Scheduler;
use pointsman::source::object::{EndpointSlice, Service};
use pointsman::source::{Change, Object};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::cluster::{SERVICE_PORT, TARGET_PORT, cluster_ip};
use crate::report::{Csv, Report, Table};

const POD: &str = "web-1";

/// The canary's share in per cent.
const SHARE: f64 = 5.0;

/// How far off it may be, in percentage points.
const TARGET: f64 = 0.5;

/// Connections between two visits to the listeners; far below their backlog.
const PILE: usize = 64;

/// Options of `split`.
#[derive(Debug, Args)]
pub struct Options {
    /// Connections per row
    #[arg(long, default_value_t = 20_000)]
    connections: usize,
    /// Numbers of replicas beside the canary
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 50])]
    replicas: Vec<u16>,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let mut report = Report::begin("split", out)?;
    let mut csv = Csv::new("scheduler,replicas,endpoint,connections");
    let mut table = Table::new(&["scheduler", "others", "canary", "share %", "off by", "others: least", "most"]);
    let mut worst: f64 = 0.0;
    for scheduler in ["random", "wrr"] {
        for replicas in &options.replicas {
            let counts = measure(scheduler, *replicas, options.connections)?;
            for (endpoint, count) in counts.iter().enumerate() {
                csv.row(&[&scheduler, replicas, &endpoint, count]);
            }
            let all: usize = counts.iter().sum();
            anyhow::ensure!(all == options.connections, "{all} of {} connections were accepted", options.connections);
            let share = counts[0] as f64 * 100.0 / all as f64;
            let off = (share - SHARE).abs();
            worst = worst.max(off);
            let (least, most) = (counts[1..].iter().min().unwrap_or(&0), counts[1..].iter().max().unwrap_or(&0));
            table.row(&[&scheduler, replicas, &counts[0], &format!("{share:.3}"), &format!("{off:.3}"), least, most]);
        }
    }
    report.raw("split", &csv)?;
    report.say(format!("`web-canary-*={SHARE}%, *={}%`, {} connections per row\n", 100.0 - SHARE, options.connections));
    report.say(&table);
    let met = if worst <= TARGET { "met" } else { "MISSED" };
    report.say(format!("target: within {TARGET} percentage points: {worst:.3}: {met}"));
    report.end()
}

/// Connections per endpoint, the canary first.
fn measure(scheduler: &str, replicas: u16, connections: usize) -> anyhow::Result<Vec<usize>> {
    let lab = Lab::builder().prefix("pm-bench").pods([POD]).build()?;
    let pod = lab.pod(POD).addresses().v4;
    let ports = TARGET_PORT..=TARGET_PORT + replicas;
    let listeners = lab.pod(POD).run(|| ports.map(listen).collect::<Result<Vec<_>, _>>())?;
    let mut engine = Engine::new("bench", Scheduler::Random);
    objects(scheduler, pod, replicas)?.into_iter().for_each(|change| engine.take(change));
    let outcome = engine.compile();
    anyhow::ensure!(outcome.problems.is_empty(), "our own objects are not accepted: {}", outcome.problems[0]);
    // The table outlives its owner, as after a restart of the daemon.
    lab.node().run(|| DataPlane::open()?.apply(&outcome.delta)).context("programming the node")?;
    let to = SocketAddr::from((cluster_ip(0), SERVICE_PORT));
    let mut counts = vec![0; listeners.len()];
    lab.client(0).run(|| -> anyhow::Result<()> {
        for number in 0..connections {
            connect(to).with_context(|| format!("connection {number} to {to}"))?;
            if number % PILE == 0 {
                accept(&listeners, &mut counts)?;
            }
        }
        accept(&listeners, &mut counts)
    })?;
    Ok(counts)
}

fn objects(scheduler: &str, pod: Ipv4Addr, replicas: u16) -> anyhow::Result<Vec<Change>> {
    let service: Service = serde_json::from_value(json!({
        "metadata": {"namespace": "bench", "name": "web", "annotations": {
            "pointsman.dev/scheduler": scheduler,
            "pointsman.dev/split": format!("web-canary-*={SHARE}%, *={}%", 100.0 - SHARE),
        }},
        "spec": {"clusterIP": cluster_ip(0).to_string(), "ports": [{"port": SERVICE_PORT}]},
    }))?;
    let slice = |number: u16| -> anyhow::Result<Change> {
        let name = if number == 0 { "web-canary-0".to_owned() } else { format!("web-{number}") };
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "bench", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": TARGET_PORT + number}],
            "endpoints": [{"addresses": [pod.to_string()], "targetRef": {"name": name}}],
        }))?;
        Ok(Change::Apply(Object::EndpointSlice(Box::new(slice))))
    };
    let service = Ok(Change::Apply(Object::Service(Box::new(service))));
    std::iter::once(service).chain((0..=replicas).map(slice)).collect()
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Opens a connection and resets it, so that no port is left waiting.
fn connect(to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    // For a blocking connect this is the timeout.
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    socket.connect(&to.into())
}

/// Counts and closes whatever was connected.
fn accept(listeners: &[Socket], counts: &mut [usize]) -> anyhow::Result<()> {
    for (listener, count) in listeners.iter().zip(counts) {
        loop {
            match listener.accept() {
                Ok(_) => *count += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("accepting connections"),
            }
        }
    }
    Ok(())
}

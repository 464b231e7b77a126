//! What it costs to know how many connections each Service has: counters on map elements, conntrack's events, walks through its table.
//!
//! One namespace per variant, with one dnat rule by a map. A connection is a UDP datagram from a port not used before, to an address of the
//! map: sending it runs the whole first packet, on the loopback, in the sender's own time. Variants take turns, block by block.
//! Walks cost a connection nothing; what they cost is measured by themselves, on tables of several sizes.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use pointsman::conntrack::{Census, Destination, Entrances};
use pointsman::kernel::conntrack::{ConntrackEvents, ConntrackTable};
use pointsman::lab::{Namespace, Rtnl};
use pointsman::model::{PortKey, Protocol, ServiceKey};

use crate::report::{Csv, Report, Table};
use crate::stats::Spread;
use crate::usage::CpuTime;

const FRONTEND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 96, 0, 1)), 53);

/// How connections are counted.
const VARIANTS: [&str; 4] = ["nothing", "nothing again", "counters", "events"];

/// Options of `counting`.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// Connections per block
    #[arg(long, default_value_t = 4000)]
    block: usize,
    /// Entries in the table for walks, all of them translated
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 60_000])]
    entries: Vec<usize>,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let mut report = Report::begin("counting", out)?;
    setup(options, &mut report)?;
    walks(options, &mut report)?;
    report.end()
}

fn setup(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut csv = Csv::new("round,variant,connections,ns_per_connection,listener_cpu_us");
    let namespaces: Vec<_> =
        VARIANTS.iter().map(|variant| namespace(*variant == "counters")).collect::<Result<_, _>>()?;
    let mut times = vec![Vec::new(); VARIANTS.len()];
    let mut listener = Vec::new();
    for round in 0..options.rounds {
        for turn in 0..VARIANTS.len() {
            let index = (turn + round) % VARIANTS.len();
            let (variant, namespace) = (VARIANTS[index], &namespaces[index]);
            let stop = Arc::new(AtomicBool::new(false));
            let hear = (variant == "events").then(|| listen(namespace, stop.clone())).transpose()?;
            let took = namespace.run(|| open(options.block, round))?;
            stop.store(true, Ordering::Relaxed);
            let cpu = match hear {
                Some(thread) => thread.join().expect("no panic")?,
                None => Duration::ZERO,
            };
            let each = took.as_nanos() as f64 / options.block as f64;
            csv.row(&[&round, &variant, &options.block, &format!("{each:.0}"), &cpu.as_micros()]);
            // The first round warms up.
            if round > 0 {
                times[index].push(each);
                if variant == "events" {
                    listener.push(cpu.as_secs_f64() * 1e9 / options.block as f64);
                }
            }
        }
    }
    report.raw("counting-setup", &csv)?;
    let mut table =
        Table::new(&["connections counted by", "ns per connection", "ratio to nothing", "listener's CPU ns"]);
    for (index, variant) in VARIANTS.iter().enumerate() {
        let ratio = format!("{:.3}", Spread::of_ratios(&times[index], &times[0]));
        let cpu =
            if *variant == "events" { format!("{:.0}", Spread::of(listener.iter().copied())) } else { String::new() };
        table.row(&[variant, &format!("{:.0}", Spread::of(times[index].iter().copied())), &ratio, &cpu]);
    }
    report.say(format!("## Opening a connection, {} rounds of {} per variant\n", options.rounds - 1, options.block));
    report.say(table);
    Ok(())
}

fn walks(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut csv = Csv::new("entries,round,cpu_us,wall_us");
    let mut table = Table::new(&["entries", "CPU ms of a walk", "ns per entry"]);
    for entries in &options.entries {
        let rounds = namespace(false)?.run(|| -> anyhow::Result<Vec<[Duration; 2]>> {
            (0..entries.div_ceil(20_000)).try_for_each(|part| open((*entries).min(20_000), part).map(drop))?;
            let mut census = Census::default();
            let name = ServiceKey::new("bench", "web");
            let port = PortKey { service: name.clone(), name: "".into(), protocol: Protocol::Udp };
            let places = vec![(Destination::Address(FRONTEND), port)];
            census.direct(vec![Entrances { service: name, entries: places, left: Vec::new() }]);
            let mut table = ConntrackTable::open()?;
            let mut walk = || -> anyhow::Result<[Duration; 2]> {
                let (begin, before) = (Instant::now(), CpuTime::now()?);
                census.begin();
                table.walk(|sighting| census.sight(sighting))?;
                census.end(true);
                anyhow::ensure!(census.len() >= entries * 9 / 10, "{} of {entries} entries were met", census.len());
                Ok([CpuTime::now()?.since(before).sum(), begin.elapsed()])
            };
            (0..6).map(|_| walk()).collect()
        })?;
        for (round, [cpu, wall]) in rounds.iter().enumerate() {
            csv.row(&[entries, &round, &cpu.as_micros(), &wall.as_micros()]);
        }
        let cpu = Spread::of(rounds[1..].iter().map(|[cpu, _]| cpu.as_secs_f64() * 1e3));
        let each = Spread::of(rounds[1..].iter().map(|[_, wall]| wall.as_secs_f64() * 1e9 / *entries as f64));
        table.row(&[entries, &format!("{cpu:.2}"), &format!("{each:.0}")]);
    }
    report.raw("counting-walks", &csv)?;
    report.say("## A walk through the table\n");
    report.say(table);
    Ok(())
}

/// A namespace in which [`FRONTEND`] is translated.
fn namespace(counters: bool) -> anyhow::Result<Namespace> {
    let namespace = Namespace::anonymous()?;
    namespace.run(|| -> anyhow::Result<()> {
        Rtnl::open()?.set_up("lo")?;
        let counter = if counters { "counter;" } else { "" };
        let rules = format!(
            "table ip bench {{
                map frontends {{ type ipv4_addr . inet_service : ipv4_addr . inet_service; {counter}
                    elements = {{ 127.96.0.1 . 53 {} : 127.0.0.1 . 5353 }} }}
                chain output {{ type nat hook output priority -100; dnat to ip daddr . udp dport map @frontends; }}
            }}",
            if counters { "counter packets 0 bytes 0" } else { "" }
        );
        let done = Command::new("nft").arg(rules).output().context("running nft")?;
        anyhow::ensure!(done.status.success(), "nft: {}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    })?;
    Ok(namespace)
}

/// Opens so many connections, from addresses that no other round used; the time that took.
fn open(count: usize, round: usize) -> anyhow::Result<Duration> {
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 5353)).context("binding")?;
    let source = Ipv4Addr::new(127, 1, u8::try_from(round)?, 1);
    let begin = Instant::now();
    for number in 0..count {
        let port = 10_000 + u16::try_from(number)?;
        let socket = UdpSocket::bind((source, port))?;
        socket.send_to(b"x", FRONTEND)?;
    }
    let took = begin.elapsed();
    drop(receiver);
    Ok(took)
}

/// Hears of all connections until told to stop; the CPU time that took.
fn listen(
    namespace: &Namespace,
    stop: Arc<AtomicBool>,
) -> anyhow::Result<thread::JoinHandle<anyhow::Result<Duration>>> {
    let to = Destination::Address(FRONTEND);
    let mut events = namespace.run(|| ConntrackEvents::open(std::iter::once((Protocol::Udp, to)), 16 << 20))?;
    Ok(thread::spawn(move || {
        let before = CpuTime::now()?;
        let mut heard = 0;
        while !stop.load(Ordering::Relaxed) {
            events.take(|_, _| heard += 1)?;
            thread::sleep(Duration::from_millis(1));
        }
        anyhow::ensure!(heard > 0, "no event was heard");
        Ok(CpuTime::now()?.since(before).sum())
    }))
}

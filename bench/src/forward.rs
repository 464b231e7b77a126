//! The userspace forwarder beside HAProxy, nginx and tokio's `copy_bidirectional`.
//!
//! One lab: a client, a node, a pod. All forwarders run on the node at once, each in a process of its own with two threads, each
//! behind a dnat rule of the same kind (ours must be: it refuses what was not translated). In every round each of them is measured
//! in turn, in an order that moves on, with the direct path as the floor; compared are medians of ratios within a round.

pub mod load;
mod peer;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nft::{Chain, ChainKind, Connection, Expr, Family, Hook, Key, Reg, Rule, Table as NftTable, Transaction};
use pointsman::lab::{Host, Lab, NODE};

pub use self::peer::{Own, serve};
use self::peer::{Peer, Usage, own_cpu};
use crate::first_packet::flush_conntrack;
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};
use crate::usage::memory_in_use;

const DIRECT: &str = "direct";
const OURS: &str = "pointsman";
const HAPROXY: &str = "haproxy";
const NGINX: &str = "nginx";
const COPY: &str = "copy";
const SERVICE_PORT: u16 = 80;

/// Options of `forward`.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds; 0: only idle connections
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Length of a single measurement, in milliseconds
    #[arg(long, default_value_t = 1000)]
    span: u64,
    /// Measure only these of `throughput`, `connections`, `latency`, `idle`
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Part::ALL)]
    only: Vec<Part>,
    /// Numbers of streams for throughput
    #[arg(long, value_delimiter = ',', default_values_t = [4, 64])]
    streams: Vec<usize>,
    /// Clients that connect, ask and close at once
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Idle connections; fewer where the limit of open descriptors is too low (HAProxy wants 2.5 for each)
    #[arg(long, default_value_t = 20_000)]
    idle: usize,
    /// Measure only these of `haproxy`, `nginx`, `copy` beside the direct path and ours
    #[arg(long, value_delimiter = ',', default_values_t = [HAPROXY.to_owned(), NGINX.to_owned(), COPY.to_owned()])]
    peers: Vec<String>,
    /// Another build of this program, whose forwarder is measured as well, under the name of the file; may be given several times
    #[arg(long)]
    rival: Vec<PathBuf>,
}

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Throughput,
    Connections,
    Latency,
    Idle,
}

struct Variant {
    name: String,
    to: SocketAddr,
    peer: Option<Peer>,
    series: Series,
}

/// One value per round.
#[derive(Default)]
struct Series {
    /// By number of streams: Gb/s, and CPU seconds per gigabyte, of the forwarder and of all together.
    throughput: Vec<Vec<f64>>,
    cpu_per_gigabyte: Vec<Vec<f64>>,
    all_per_gigabyte: Vec<Vec<f64>>,
    rate: Vec<f64>,
    rate_p99: Vec<f64>,
    /// Microseconds of the forwarder, and of all together.
    cpu_per_connection: Vec<f64>,
    all_per_connection: Vec<f64>,
    latency_p50: Vec<f64>,
    latency_p99: Vec<f64>,
}

// === impl Part ===

impl Part {
    const ALL: [Part; 4] = [Part::Throughput, Part::Connections, Part::Latency, Part::Idle];
}

// === impl Options ===

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.contains(&part) && if part == Part::Idle { self.idle > 0 } else { self.rounds > 0 }
    }

    /// Numbers of streams that are to be measured.
    fn streams(&self) -> &[usize] {
        if self.wants(Part::Throughput) { &self.streams } else { &[] }
    }
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let in_rounds = !options.streams().is_empty() || options.wants(Part::Connections) || options.wants(Part::Latency);
    anyhow::ensure!(in_rounds || options.wants(Part::Idle), "nothing to measure");
    let name = if in_rounds { "forward" } else { "forward-idle" };
    let mut report = Report::begin(name, out)?;
    let lab = Lab::builder().prefix("pm-bench").pods(["web-1"]).build()?;
    prepare(&lab)?;
    let _server = load::Server::start(lab.pod("web-1"))?;
    let mut variants = variants(options, &lab)?;
    let mut csv = Csv::new("round,position,variant,measurement,value,forwarder_cpu_ms");
    for round in 0..if in_rounds { options.rounds } else { 0 } {
        let count = variants.len();
        for position in 0..count {
            let variant = &mut variants[(round + position) % count];
            for (name, value, cpu) in variant.measure(lab.client(0), options)? {
                csv.row(&[&round, &position, &variant.name, &name, &value, &cpu]);
            }
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    if in_rounds {
        report.raw("forward", &csv)?;
        report.say(format!(
            "{} rounds; median [quartiles]; per measurement {} ms; CPU is the forwarder's process alone\n",
            options.rounds, options.span
        ));
        for (index, streams) in options.streams().iter().enumerate() {
            throughput_table(&mut report, &variants, index, *streams);
        }
        if options.wants(Part::Connections) {
            connection_table(&mut report, &variants, options.clients);
        }
        if options.wants(Part::Latency) {
            latency_table(&mut report, &variants);
        }
    }
    if options.wants(Part::Idle) {
        let most = usize::try_from(peer::descriptors()?)? * 3 / 8;
        if most < options.idle {
            let idle = options.idle;
            report.say(format!(
                "\nno more than {most} of {idle} idle connections: the hard limit of descriptors is {}",
                peer::descriptors()?
            ));
        }
        idle_table(&mut report, &variants, &lab, options.idle.min(most))?;
    }
    report.end()
}

/// Ports and connection tracking entries must not run out while thousands of connections per second end, whoever ends them.
fn prepare(lab: &Lab) -> anyhow::Result<()> {
    let sysctls = [("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "10000 65000")];
    for host in [lab.node(), lab.client(0), lab.pod("web-1")] {
        host.namespace().sysctls(&sysctls)?;
    }
    Ok(())
}

fn variants(options: &Options, lab: &Lab) -> anyhow::Result<Vec<Variant>> {
    let (node, pod) = (lab.node(), SocketAddr::from((lab.pod("web-1").addresses().v4, load::PORT)));
    let mut peers = vec![(OURS.to_owned(), Peer::own(node, &std::env::current_exe()?, OURS, pod)?)];
    for peer in &options.peers {
        let started = match peer.as_str() {
            HAPROXY => Peer::haproxy(node, 7001, pod)?,
            NGINX => Peer::nginx(node, 7002, pod)?,
            COPY => Peer::own(node, &std::env::current_exe()?, COPY, pod)?,
            other => anyhow::bail!("there is no peer {other:?}"),
        };
        peers.push((peer.clone(), started));
    }
    for rival in &options.rival {
        let name = rival.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        peers.push((name, Peer::own(node, &rival.canonicalize()?, OURS, pod)?));
    }
    let direct = Variant { name: DIRECT.to_owned(), to: pod, peer: None, series: Series::default() };
    let mut variants = vec![direct];
    for (number, (name, peer)) in peers.into_iter().enumerate() {
        let address = Ipv4Addr::new(10, 96, 0, u8::try_from(number + 1)?);
        redirect(node, address, peer.listener.port())?;
        variants.push(Variant {
            name,
            to: (address, SERVICE_PORT).into(),
            peer: Some(peer),
            series: Series::default(),
        });
    }
    node.namespace().sysctls(&[("netfilter/nf_conntrack_tcp_timeout_time_wait", "1")])?;
    Ok(variants)
}

/// `ip daddr ADDRESS dnat to NODE:PORT`
fn redirect(node: &Host, address: Ipv4Addr, port: u16) -> anyhow::Result<()> {
    const TABLE: &str = "bench";
    let rule = vec![
        Expr::ip_daddr(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&address.octets())),
        Expr::l4proto(Reg::R1),
        Expr::eq(Reg::R1, Key::raw(&[6])),
        Expr::Immediate { dreg: Reg::R1, data: Key::raw(&NODE.v4.octets()) },
        Expr::Immediate { dreg: Reg::R2, data: Key::raw(&port.to_be_bytes()) },
        Expr::dnat(Family::Ip, Reg::R1, Some(Reg::R2)),
    ];
    let mut transaction = Transaction::new();
    transaction.add_table(&NftTable::new(Family::Ip, TABLE));
    transaction.add_chain(&Chain::new(Family::Ip, TABLE, "entry").hooked(ChainKind::Nat, Hook::Prerouting, -100));
    transaction.add_rule(&Rule::new(Family::Ip, TABLE, "entry", rule));
    Ok(node.run(|| Connection::open()?.commit(&transaction))?)
}

impl Variant {
    /// All measurements of a round: name, value, CPU.
    fn measure(&mut self, client: &Host, options: &Options) -> anyhow::Result<Vec<(String, f64, u64)>> {
        let (span, mut rows) = (Duration::from_millis(options.span), Vec::new());
        self.series.throughput.resize_with(options.streams().len(), Vec::new);
        self.series.cpu_per_gigabyte.resize_with(options.streams().len(), Vec::new);
        self.series.all_per_gigabyte.resize_with(options.streams().len(), Vec::new);
        for (index, streams) in options.streams().iter().enumerate() {
            let received = load::throughput(client, self.to, *streams, span, || self.cpu())?;
            let [first, last] = received.meter;
            let [forwarder, ends] = [last[0] - first[0], last[1] - first[1]];
            self.series.throughput[index].push(received.gigabits_per_second);
            self.series.cpu_per_gigabyte[index].push(forwarder / received.gigabytes);
            self.series.all_per_gigabyte[index].push((forwarder + ends) / received.gigabytes);
            let millis = |seconds: f64| (seconds * 1e3).round() as u64;
            rows.push((format!("throughput-{streams}-gbps"), received.gigabits_per_second, millis(forwarder)));
            rows.push((format!("throughput-{streams}-all-cpu"), received.gigabytes, millis(forwarder + ends)));
        }
        if options.wants(Part::Connections) {
            let [before, ends_before] = self.cpu()?;
            let (times, rate) = load::transactions(client, self.to, options.clients, span)?;
            let [cpu, ends] = self.cpu()?;
            let (cpu, all) = (cpu - before, cpu - before + ends - ends_before);
            self.series.rate.push(rate);
            self.series.rate_p99.push(micros(&times, 0.99));
            self.series.cpu_per_connection.push(cpu * 1e6 / times.len() as f64);
            self.series.all_per_connection.push(all * 1e6 / times.len() as f64);
            rows.push(("connections-per-second".into(), rate, (cpu * 1e3).round() as u64));
            rows.push(("connections-all-cpu".into(), times.len() as f64, (all * 1e3).round() as u64));
            rows.push(("connections-p50-us".into(), micros(&times, 0.5), 0));
            rows.push(("connections-p99-us".into(), micros(&times, 0.99), 0));
        }
        if options.wants(Part::Latency) {
            let times = load::ping_pong(client, self.to, span)?;
            self.series.latency_p50.push(micros(&times, 0.5));
            self.series.latency_p99.push(micros(&times, 0.99));
            rows.push(("ping-pong-p50-us".into(), micros(&times, 0.5), 0));
            rows.push(("ping-pong-p99-us".into(), micros(&times, 0.99), 0));
        }
        Ok(rows)
    }

    /// CPU time so far, in seconds: the forwarder's, and that of clients and server.
    fn cpu(&self) -> anyhow::Result<[f64; 2]> {
        Ok([self.peer.as_ref().map_or(Ok(0.0), Peer::cpu)?, own_cpu()?])
    }

    fn usage(&self) -> anyhow::Result<Usage> {
        self.peer.as_ref().map_or(Ok(Usage::default()), Peer::usage)
    }
}

fn micros(sorted: &[Duration], share: f64) -> f64 {
    quantile(sorted, share).as_secs_f64() * 1e6
}

fn find<'a>(variants: &'a [Variant], name: &str) -> Option<&'a Series> {
    variants.iter().find(|variant| variant.name == name).map(|variant| &variant.series)
}

/// Ours to a peer's, if it was measured.
fn ratio(variants: &[Variant], name: &str, values: impl Fn(&Series) -> &Vec<f64>) -> Option<Spread> {
    let (ours, peer) = (find(variants, OURS)?, find(variants, name)?);
    Some(Spread::of_ratios(values(ours), values(peer)))
}

fn verdict(report: &mut Report, what: &str, ratio: Option<Spread>, met: impl Fn(f64) -> bool) {
    if let Some(ratio) = ratio {
        let word = if met(ratio.median) { "met" } else { "MISSED" };
        report.say(format!("target: {what}: {ratio:.2}: {word}"));
    }
}

fn throughput_table(report: &mut Report, variants: &[Variant], index: usize, streams: usize) {
    report.say(format!("\n## Throughput, {streams} streams\n"));
    let mut table = Table::new(&["variant", "Gb/s", "forwarder's CPU, s per GB", "everybody's CPU, s per GB"]);
    for Variant { name, series, .. } in variants {
        let spread = Spread::of(series.throughput[index].iter().copied());
        let [forwarder, all] = [&series.cpu_per_gigabyte[index], &series.all_per_gigabyte[index]]
            .map(|values| format!("{:.3}", Spread::of(values.iter().copied())));
        table.row(&[name, &spread, &forwarder, &all]);
    }
    report.say(&table);
    let to = |name| ratio(variants, name, |series| &series.throughput[index]);
    verdict(report, "at least 1.2 of haproxy", to(HAPROXY), |ratio| ratio >= 1.2);
    verdict(report, "at least 2 of copy_bidirectional", to(COPY), |ratio| ratio >= 2.0);
    for name in [HAPROXY, COPY] {
        let [forwarder, all] = [
            ratio(variants, name, |series| &series.cpu_per_gigabyte[index]),
            ratio(variants, name, |series| &series.all_per_gigabyte[index]),
        ];
        if let (Some(forwarder), Some(all)) = (forwarder, all) {
            report.say(format!("CPU per byte, to {name}: forwarder {forwarder:.2}, everybody {all:.2}"));
        }
    }
}

fn connection_table(report: &mut Report, variants: &[Variant], clients: usize) {
    report.say(format!("\n## Connect, request, answer, close: {clients} clients\n"));
    let head = ["variant", "per second", "p99, us", "forwarder's CPU, us each", "everybody's CPU, us each"];
    let mut table = Table::new(&head);
    for Variant { name, series, .. } in variants {
        let [rate, p99, cpu, all] =
            [&series.rate, &series.rate_p99, &series.cpu_per_connection, &series.all_per_connection]
                .map(|values| format!("{:.0}", Spread::of(values.iter().copied())));
        table.row(&[name, &rate, &p99, &cpu, &all]);
    }
    report.say(&table);
    for Variant { name, .. } in variants.iter().filter(|variant| variant.name != OURS && variant.name != DIRECT) {
        let to = |values: fn(&Series) -> &Vec<f64>| ratio(variants, name, values).expect("it was measured");
        let (rate, p99) = (to(|series| &series.rate), to(|series| &series.rate_p99));
        let (cpu, all) = (to(|series| &series.cpu_per_connection), to(|series| &series.all_per_connection));
        report.say(format!(
            "to {name}: rate {rate:.2}, p99 {p99:.2}, CPU of the forwarder {cpu:.2}, of everybody {all:.2}"
        ));
    }
    verdict(report, "as many as haproxy", ratio(variants, HAPROXY, |s| &s.rate), |ratio| ratio >= 1.0);
    verdict(report, "p99 at most haproxy's", ratio(variants, HAPROXY, |s| &s.rate_p99), |ratio| ratio <= 1.0);
}

fn latency_table(report: &mut Report, variants: &[Variant]) {
    report.say("\n## One request after the other on an established connection, us\n");
    let mut table = Table::new(&["variant", "p50", "p99", "p50 added", "p99 added"]);
    let Some(direct) = find(variants, DIRECT) else { return };
    for Variant { name, series, .. } in variants {
        let spread = |values: Vec<f64>| format!("{:.1}", Spread::of(values));
        let added =
            |values: &[f64], floor: &[f64]| values.iter().zip(floor).map(|(value, floor)| value - floor).collect();
        table.row(&[
            name,
            &spread(series.latency_p50.clone()),
            &spread(series.latency_p99.clone()),
            &spread(added(&series.latency_p50, &direct.latency_p50)),
            &spread(added(&series.latency_p99, &direct.latency_p99)),
        ]);
    }
    report.say(&table);
}

fn idle_table(report: &mut Report, variants: &[Variant], lab: &Lab, count: usize) -> anyhow::Result<()> {
    report.say(format!("\n## {count} idle connections, each used once before\n"));
    let head = [
        "variant",
        "answered again",
        "process memory each, bytes",
        "machine's memory each, bytes",
        "ends of pipes held",
    ];
    let mut table = Table::new(&head);
    let mut csv = Csv::new(
        "variant,connections,answered_again,memory_before,memory_after,machine_before,machine_after,pipe_ends_before,\
         pipe_ends_after,descriptors_after",
    );
    let mut each = Vec::new();
    // The direct path first: what clients and server themselves take.
    for variant in variants {
        settle(lab)?;
        let (before, machine_before) = (variant.usage()?, memory_in_use()?);
        let mut held = load::hold(lab.client(0), variant.to, count)?;
        std::thread::sleep(SETTLE);
        let (after, machine_after) = (variant.usage()?, memory_in_use()?);
        let alive = load::ask_again(&mut held);
        load::abort(held)?;
        let per = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
        let (bytes, machine) = (per(before.memory, after.memory), per(machine_before, machine_after));
        table.row(&[&variant.name, &alive, &format!("{bytes:.0}"), &format!("{machine:.0}"), &after.pipes]);
        csv.row(&[
            &variant.name,
            &count,
            &alive,
            &before.memory,
            &after.memory,
            &machine_before,
            &machine_after,
            &before.pipes,
            &after.pipes,
            &after.descriptors,
        ]);
        each.push((variant.name.as_str(), [bytes, machine]));
    }
    report.raw("forward-idle", &csv)?;
    report.say(&table);
    let of = |name| each.iter().find(|(found, _)| *found == name).map(|(_, each)| *each);
    if let (Some([_, floor]), Some([ours, our_all]), Some([haproxy, its_all])) = (of(DIRECT), of(OURS), of(HAPROXY)) {
        let [ours_all, its_all] = [our_all - floor, its_all - floor];
        report.say(format!(
            "the machine's, less the direct path's (sockets, pipes and connection tracking counted): {ours_all:.0} and haproxy \
             {its_all:.0} bytes each"
        ));
        verdict(report, "process memory at most haproxy's", Some(Spread::of([ours / haproxy])), |ratio| ratio <= 1.0);
        verdict(report, "all memory at most haproxy's", Some(Spread::of([ours_all / its_all])), |ratio| ratio <= 1.0);
    }
    Ok(())
}

/// How long the kernel has for what it frees later, and forwarders for what they give back.
const SETTLE: Duration = Duration::from_secs(3);

/// Has the kernel give back what the last variant's connections took.
fn settle(lab: &Lab) -> anyhow::Result<()> {
    std::thread::sleep(SETTLE);
    for host in [lab.node(), lab.client(0), lab.pod("web-1")] {
        host.run(flush_conntrack)?;
    }
    std::thread::sleep(SETTLE);
    // Empty slabs, where the kernel lets us.
    for cache in std::fs::read_dir("/sys/kernel/slab").into_iter().flatten().flatten() {
        let _ = std::fs::write(cache.path().join("shrink"), "1");
    }
    Ok(())
}

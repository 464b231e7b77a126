//! What a UDP Service costs in user space: the forwarder against nginx's stream module and the direct path.
//!
//! One lab (client, node, a pod that echoes) has all *variants* at once, each behind a frontend and a dnat rule of its own. A *block*
//! is a fraction of a second of one *load* through one variant; a *round* is one block of each, in an order that moves on from round
//! to round. What is compared are medians over rounds of ratios within a round.

pub mod load;
mod rig;

pub use self::rig::{STAY, serve};

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use self::load::{Block, Load};
use self::rig::{Rig, VARIANTS};
use crate::report::{Csv, Report, Table};
use crate::stats::Spread;

/// Options of `forward-udp`.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Length of a block, in milliseconds; a proxy's sessions of the last 5 s must fit into its descriptors and ports
    #[arg(long, default_value_t = 200, value_name = "MS")]
    block: u64,
    /// Workers of nginx, and of the forwarder
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && options.block > 0 && options.workers > 0, "nothing to measure");
    let mut report = Report::begin("forward-udp", out)?;
    let mut rig = Rig::new(options.workers)?;
    report.say(format!("peer: {}", rig.nginx_version()));
    let length = Duration::from_millis(options.block);
    let mut csv = Csv::new("round,position,load,variant,seconds,datagrams,lost,p50_ns,p99_ns,proxy_cpu_ns");
    let mut blocks: Vec<Vec<Vec<Block>>> = vec![vec![Vec::new(); VARIANTS.len()]; Load::ALL.len()];
    for round in 0..options.rounds {
        for (load_index, load) in Load::ALL.into_iter().enumerate() {
            for position in 0..VARIANTS.len() {
                let variant = (position + round) % VARIANTS.len();
                let block = rig.measure(load, variant, length)?;
                csv.row(&[
                    &round,
                    &position,
                    &load.name(),
                    &VARIANTS[variant],
                    &block.took.as_secs_f64(),
                    &block.datagrams,
                    &block.lost,
                    &block.p50.as_nanos(),
                    &block.p99.as_nanos(),
                    &block.proxy.as_nanos(),
                ]);
                blocks[load_index][variant].push(block);
            }
        }
        eprintln!("round {} of {}", round + 1, options.rounds);
    }
    report.raw("forward-udp", &csv)?;
    report.say(format!(
        "\n{} rounds x {} ms per load and variant; medians over rounds [quartiles]\n",
        options.rounds, options.block
    ));
    for (load, blocks) in Load::ALL.into_iter().zip(&blocks) {
        report.say(format!("## {}\n\n{}\n", load.name(), load.description()));
        let mut table = Table::new(&[
            "variant",
            "datagrams/s, thousands",
            "p50, us",
            "p99, us",
            "lost, %",
            "rate to direct",
            "rate to nginx",
            "rate to nginx-sessions",
            "proxy's CPU, us per datagram",
        ]);
        let rates: Vec<Vec<f64>> = blocks.iter().map(|blocks| blocks.iter().map(Block::rate).collect()).collect();
        let ratio = |a: usize, b: usize| format!("{:.2}", Spread::of_ratios(&rates[a], &rates[b]));
        for (variant, name) in VARIANTS.iter().enumerate() {
            let of = |value: fn(&Block) -> f64| Spread::of(blocks[variant].iter().map(value));
            let rate = Spread::of(rates[variant].iter().map(|rate| rate / 1e3));
            let (p50, p99) = (of(|block| block.p50.as_secs_f64() * 1e6), of(|block| block.p99.as_secs_f64() * 1e6));
            let lost = of(Block::lost_per_cent);
            let lost = format!("{lost:.1}");
            let times = load.has_latency();
            let time = |spread: Spread| if times { format!("{spread:.1}") } else { "-".to_owned() };
            let cells = [format!("{rate:.1}"), time(p50), time(p99), lost, ratio(variant, 0), ratio(variant, 1)];
            let [rate, p50, p99, lost, direct, nginx] = &cells;
            let cpu = if variant == 0 { "-".to_owned() } else { format!("{:.2}", of(Block::cpu)) };
            table.row(&[name, rate, p50, p99, lost, direct, nginx, &ratio(variant, 2), &cpu]);
        }
        report.say(&table);
    }
    report.say(format!("forwarder at the end: {}", rig.end()?));
    verdicts(&mut report, &blocks);
    report.end()
}

fn verdicts(report: &mut Report, blocks: &[Vec<Vec<Block>>]) {
    let ours = VARIANTS.len() - 1;
    for (load, blocks) in Load::ALL.into_iter().zip(blocks) {
        for peer in [1, 2] {
            let ratio = |value: fn(&Block) -> f64| {
                let of = |variant: usize| blocks[variant].iter().map(value).collect::<Vec<_>>();
                Spread::of_ratios(&of(ours), &of(peer))
            };
            let (rate, cpu) = (ratio(Block::rate), ratio(Block::cpu));
            let verdict = if rate.median >= 1.0 { "met" } else { "MISSED" };
            let (load, peer) = (load.name(), VARIANTS[peer]);
            report.say(format!(
                "target: rate of {load} at least that of {peer}: {rate:.2}: {verdict}; CPU time per datagram: {cpu:.2}"
            ));
        }
    }
}

//! How long it takes to open the first connection through a ClusterIP, from a client through the node to a pod.
//!
//! A *rig* is a lab (client, node, pod) whose node is prepared for one or more *variants*: nothing at all, connection tracking,
//! one hard-coded dnat rule, or the product with so many Services. A *block* is some thousand connections of one variant; a
//! *round* is one block of each, in an order that moves on from round to round, between two blocks of the floor. Rigs are made
//! anew several times (*sets*), because where a rig's memory happens to lie is worth a few per cent; the dnat rule has a second rig
//! that shows how much two equal rigs differ.
//!
//! What is compared are medians over rounds of ratios within a round.

pub mod connect;
mod rig;

use std::path::PathBuf;

use clap::Args;

pub use self::connect::Block;
pub use self::rig::{Rig, flush_conntrack};
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};

/// The floor: nothing on the node but routing.
const FLOOR: &str = "direct";
/// The yardstick of the targets.
const RULE: &str = "dnat-rule";
/// An equal rig of the yardstick.
const CONTROL: &str = "dnat-rule-again";

/// Options of `first-packet`.
#[derive(Debug, Args)]
pub struct Options {
    /// Numbers of other Services to load
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000, 10_000])]
    services: Vec<u32>,
    /// Connections per block
    #[arg(long, default_value_t = 2_000)]
    samples: usize,
    /// Rounds per set
    #[arg(long, default_value_t = 12)]
    rounds: usize,
    /// How often the rigs are made anew
    #[arg(long, default_value_t = 3)]
    sets: usize,
}

/// Something to connect through, and which rig it is in.
struct Variant {
    name: String,
    rig: usize,
    /// The Services connected to in turn; none: straight to the pod.
    targets: Targets,
}

/// What a block of connections goes to.
#[derive(Debug, Clone, Copy)]
pub enum Targets {
    /// Straight to the pod.
    Pod,
    /// To these many Services in turn.
    Services(u32),
}

/// Blocks of a variant, one per round.
#[derive(Default)]
struct Series {
    blocks: Vec<Block>,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.sets > 0 && options.rounds > 0 && options.samples > 0, "nothing to measure");
    let mut report = Report::begin("first-packet", out)?;
    let variants = variants(&options.services);
    let mut series: Vec<Series> = variants.iter().map(|_| Series::default()).collect();
    let mut floor_again = Series::default();
    let mut csv = Csv::new("set,round,position,variant,connections,min_ns,p50_ns,p90_ns,p99_ns");
    for set in 0..options.sets {
        eprintln!("set {} of {}: making rigs", set + 1, options.sets);
        let rigs = rigs(&options.services)?;
        for round in 0..options.rounds {
            // Variant 0 is the floor: first of each round, and once more at its end.
            let others = 1 + (set + round) % (variants.len() - 1);
            let order = std::iter::once(0).chain(others..variants.len()).chain(1..others).chain([0]);
            for (position, index) in order.enumerate() {
                let variant = &variants[index];
                let block = rigs[variant.rig].measure(variant.targets, options.samples)?;
                let again = index == 0 && position > 0;
                let name = if again { "direct-again" } else { &variant.name };
                let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| block.nanos(share));
                csv.row(&[&set, &round, &position, &name, &options.samples, &block.nanos(0.0), &p50, &p90, &p99]);
                let series = if again { &mut floor_again } else { &mut series[index] };
                series.blocks.push(block);
            }
        }
    }
    report.raw("first-packet", &csv)?;
    let find = |name: &str| variants.iter().position(|variant| variant.name == name).map(|index| &series[index]);
    let (floor, rule) = (find(FLOOR).expect("always measured"), find(RULE).expect("always measured"));
    report.say(format!(
        "{} sets of rigs x {} rounds x {} connections per variant; microseconds, median over rounds [quartiles]\n",
        options.sets, options.rounds, options.samples
    ));
    let mut table = Table::new(&["variant", "p50", "p90", "p99", "p50 / direct", "p50 / dnat rule"]);
    let mut row = |name: &str, series: &Series| {
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| Spread::of(series.micros(share)));
        let (to_floor, to_rule) = (format!("{:.3}", series.ratio(floor)), format!("{:.3}", series.ratio(rule)));
        table.row(&[&name, &p50, &p90, &p99, &to_floor, &to_rule]);
    };
    for (variant, series) in variants.iter().zip(&series) {
        row(&variant.name, series);
    }
    row("direct-again", &floor_again);
    report.say(&table);
    report.say(format!("the floor at the end of a round to that at its beginning: {:.3}", floor_again.ratio(floor)));
    verdicts(&mut report, &options.services, rule, &find);
    report.end()
}

fn verdicts<'a>(report: &mut Report, services: &[u32], rule: &Series, find: &impl Fn(&str) -> Option<&'a Series>) {
    let most = services.iter().max().copied().unwrap_or_default();
    let met = |met: bool| if met { "met" } else { "MISSED" };
    if let Some(control) = find(CONTROL) {
        report.say(format!("two equal rigs differ by: {:.3}", control.ratio(rule)));
    }
    if let Some(with_most) = find(&services_name(most)) {
        let ratio = with_most.ratio(rule);
        let verdict = met(ratio.median <= 1.10);
        report.say(format!("target: p50 with {most} Services at most 1.10 of one dnat rule: {ratio:.3}: {verdict}"));
        if let Some(with_some) = find(&services_name(100)) {
            let ratio = with_most.ratio(with_some);
            let verdict = met((0.95..=1.05).contains(&ratio.median));
            report.say(format!("target: p50 with {most} Services within 5 % of that with 100: {ratio:.3}: {verdict}"));
        }
    }
}

fn services_name(count: u32) -> String {
    format!("services-{count}")
}

/// Everything that is measured; in the order of [`rigs`].
fn variants(services: &[u32]) -> Vec<Variant> {
    let fixed = [
        (FLOOR, Targets::Pod),
        ("conntrack", Targets::Pod),
        (RULE, Targets::Services(1)),
        (CONTROL, Targets::Services(1)),
    ];
    let mut variants: Vec<_> = fixed
        .into_iter()
        .enumerate()
        .map(|(rig, (name, targets))| Variant { name: name.to_owned(), rig, targets })
        .collect();
    for count in services {
        let rig = variants.len();
        variants.push(Variant { name: services_name(*count), rig, targets: Targets::Services(1) });
    }
    // The rig with the most Services once more, each connection through another Service: no cache is warm for it.
    if let Some((index, most)) = services.iter().enumerate().max_by_key(|(_, count)| **count) {
        let name = format!("{}-in-turn", services_name(*most));
        variants.push(Variant { name, rig: 4 + index, targets: Targets::Services(*most) });
    }
    variants
}

fn rigs(services: &[u32]) -> anyhow::Result<Vec<Rig>> {
    let mut rigs = vec![Rig::bare()?, Rig::tracking()?, Rig::dnat_rule()?, Rig::dnat_rule()?];
    for count in services {
        rigs.push(Rig::product(*count)?);
    }
    Ok(rigs)
}

// === impl Series ===

impl Series {
    fn micros(&self, share: f64) -> Vec<f64> {
        self.blocks.iter().map(|block| block.nanos(share) as f64 / 1e3).collect()
    }

    fn ratio(&self, to: &Self) -> Spread {
        Spread::of_ratios(&self.micros(0.5), &to.micros(0.5))
    }
}

// === impl Block ===

impl Block {
    fn nanos(&self, share: f64) -> u128 {
        quantile(&self.sorted, share).as_nanos()
    }
}

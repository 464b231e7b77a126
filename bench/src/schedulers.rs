//! What the schedulers promise, on a real kernel: turns, shares, clients that stay, and what that costs.
//!
//! One file per *part*, each with a table of its own in the report and raw data in a CSV of its own; [`PARTS`] lists them. A part says
//! its targets and whether they are met. [`stage`] is what most of them stand on: a node, one client with as many addresses as
//! wanted, and a pod whose ports are the endpoints.

mod balance;
mod memory;
mod moved;
mod setup;
mod stage;
mod turns;

use std::path::PathBuf;

use clap::Args;

use crate::report::Report;

/// A measurement of its own.
type Part = fn(&Options, &mut Report) -> anyhow::Result<()>;

/// What is measured, by name, in the order of the report. To add one: a file with a `run`, and a line here.
const PARTS: [(&str, Part); 5] = [
    ("turns", turns::run),
    ("moved", moved::run),
    ("balance", balance::run),
    ("setup", setup::run),
    ("memory", memory::run),
];

/// Options of `schedulers`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these parts: turns, moved, balance, setup, memory; others keep their raw data, but the summary has these alone
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Connections per scheduler of `turns`
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Client addresses of `moved`
    #[arg(long, default_value_t = 2_000)]
    clients: usize,
    /// Connections per block of `setup`
    #[arg(long, default_value_t = 1_000)]
    samples: usize,
    /// Rounds of `setup`
    #[arg(long, default_value_t = 24)]
    rounds: usize,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let unknown = options.only.iter().find(|name| PARTS.iter().all(|(part, _)| part != name));
    anyhow::ensure!(unknown.is_none(), "no part {:?}", unknown.expect("checked"));
    let mut report = Report::begin("schedulers", out)?;
    for (name, part) in PARTS {
        if options.only.is_empty() || options.only.iter().any(|wanted| wanted == name) {
            eprintln!("measuring {name}");
            part(options, &mut report)?;
        }
    }
    report.end()
}

/// How a target is reported.
fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

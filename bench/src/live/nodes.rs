//! Is least connection useless when every node knows its own connections only? A simulation, without a kernel.
//!
//! Connections of a cluster are opened on its nodes, evenly or as badly spread as a Zipf law, and each node chooses one of ten
//! endpoints: at random, in turn, or by least connection among those that it has opened itself. What counts is how evenly the
//! connections of the whole cluster lie on the endpoints.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;

use clap::Args;

use super::{ENDPOINTS, Holding, schedule};
use crate::arrivals::SAMPLES;
use crate::report::{Csv, Report, Table};
use crate::stats::{Evenness, Spread};

/// Options of `node-local`.
#[derive(Debug, Args)]
pub struct Options {
    /// Connections per second in the whole cluster
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200, 2_000])]
    rates: Vec<u32>,
    /// Numbers of nodes
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    nodes: Vec<usize>,
    /// Seeds per row
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// Mean holding time in seconds
    #[arg(long, default_value_t = 5.0)]
    holding: f64,
    /// Simulated seconds, of which the first third does not count
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug)]
enum Chooser {
    Random,
    InTurn,
    Least,
}

/// Simulates, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let mut report = Report::begin("node-local", out)?;
    let mut csv = Csv::new("holding,rate,nodes,placement,seed,scheduler,cv");
    let mut table =
        Table::new(&["holding", "rate / s", "nodes", "clients", "random", "rr per node", "lc per node", "rr / lc"]);
    for holding in Holding::ALL {
        for rate in &options.rates {
            for nodes in &options.nodes {
                for skewed in [false, true].into_iter().filter(|skewed| !skewed || *nodes > 1) {
                    let placement = if skewed { "skewed" } else { "even" };
                    let mut results = [Vec::new(), Vec::new(), Vec::new()];
                    for seed in 0..options.seeds {
                        let mut random = fastrand::Rng::with_seed(seed);
                        let visits = schedule(&mut random, f64::from(*rate), options.seconds, holding, options.holding);
                        let places = places(&mut random, visits.len(), *nodes, skewed);
                        let choosers = [("random", Chooser::Random), ("rr", Chooser::InTurn), ("lc", Chooser::Least)];
                        for ((name, chooser), results) in choosers.into_iter().zip(&mut results) {
                            let cv = simulate(&visits, &places, *nodes, chooser, options.seconds, seed);
                            csv.row(&[&holding.name(), rate, nodes, &placement, &seed, &name, &cv]);
                            results.push(cv);
                        }
                    }
                    let [random, rr, lc] = results.map(Spread::of);
                    let gain = format!("{:.1}", rr.median / lc.median);
                    let cell = |spread: Spread| format!("{spread:.4}");
                    table.row(&[&holding.name(), rate, nodes, &placement, &cell(random), &cell(rr), &cell(lc), &gain]);
                }
            }
        }
    }
    report.raw("node-local", &csv)?;
    report.say(format!(
        "CV of the cluster's active connections over {ENDPOINTS} endpoints: median over {} seeds [quartiles]; mean holding time {} s\n",
        options.seeds, options.holding
    ));
    report.say(&table);
    report.end()
}

/// On which node each connection is opened; skewed: the n-th node has 1/n of the first one's.
fn places(random: &mut fastrand::Rng, count: usize, nodes: usize, skewed: bool) -> Vec<usize> {
    let weight = |node: usize| if skewed { 1.0 / (node + 1) as f64 } else { 1.0 };
    let mut reach = 0.0;
    let limits: Vec<f64> = (0..nodes)
        .map(|node| {
            reach += weight(node);
            reach
        })
        .collect();
    let mut place = || {
        let drawn = random.f64() * reach;
        limits.partition_point(|limit| *limit <= drawn).min(nodes - 1)
    };
    (0..count).map(|_| place()).collect()
}

fn simulate(visits: &[super::Visit], places: &[usize], nodes: usize, chooser: Chooser, seconds: f64, seed: u64) -> f64 {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let mut own = vec![[0u32; ENDPOINTS]; nodes];
    // Each node begins its turn elsewhere, as the daemon does.
    let mut turns: Vec<usize> = (0..nodes).map(|_| random.usize(..ENDPOINTS)).collect();
    let mut all = [0u32; ENDPOINTS];
    let mut ends: BinaryHeap<Reverse<(u64, usize, usize)>> = BinaryHeap::new();
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let (mut sum, mut samples, mut next) = (0.0, 0u32, seconds / 3.0);
    let mut visits = visits.iter().zip(places).peekable();
    while next < seconds {
        let arrival = visits.peek().map_or(f64::INFINITY, |(visit, _)| visit.at);
        let until = nanos(arrival.min(next));
        while let Some(Reverse((_, node, endpoint))) = ends.peek().copied().filter(|ending| ending.0.0 <= until) {
            own[node][endpoint] -= 1;
            all[endpoint] -= 1;
            ends.pop();
        }
        if arrival > next {
            sum += Evenness::of(&all).map_or(0.0, |even| even.cv);
            samples += 1;
            next += 1.0 / SAMPLES;
            continue;
        }
        let (visit, node) = visits.next().expect("peeked");
        let turn = turns[*node];
        let endpoint = match chooser {
            Chooser::Random => random.usize(..ENDPOINTS),
            Chooser::InTurn => turn,
            Chooser::Least => {
                let open = &own[*node];
                let order = (turn..ENDPOINTS).chain(0..turn);
                order.reduce(|best, other| if open[other] < open[best] { other } else { best }).expect("endpoints")
            }
        };
        turns[*node] = (endpoint + 1) % ENDPOINTS;
        own[*node][endpoint] += 1;
        all[endpoint] += 1;
        ends.push(Reverse((nanos(visit.at + visit.holding), *node, endpoint)));
    }
    sum / f64::from(samples.max(1))
}

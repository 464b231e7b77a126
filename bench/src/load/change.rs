//! One endpoint comes or goes in a cluster that is programmed: from the source's event to the kernel's acknowledgement.
//!
//! Each round makes a namespace for every number of Services and programs it; then endpoints of Services here and there go and
//! come back. Timed are [`Engine::take`], [`Engine::compile`] and [`DataPlane::apply`] together, one change at a time; making the
//! object is not.

use std::time::{Duration, Instant};

use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::Namespace;
use pointsman::schedule::Scheduler;

use crate::cluster::{self, ENDPOINTS, Endpoints};
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};

/// Changes in front of each round that do not count.
const WARM_UP: usize = 20;

/// One timed change.
struct Sample {
    /// Until the difference was known.
    engine: Duration,
    /// Until the kernel had it.
    total: Duration,
    elements: usize,
    bytes: usize,
}

/// Measures, prints and writes.
pub fn run(report: &mut Report, services: &[u32], rounds: usize, changes: usize) -> anyhow::Result<()> {
    if services.is_empty() || rounds == 0 || changes < 2 {
        return Ok(());
    }
    let mut csv = Csv::new("round,services,change,elements,bytes,engine_ns,total_ns");
    let mut samples: Vec<Vec<Vec<Sample>>> = services.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        eprintln!("changes: round {} of {rounds}", round + 1);
        for (count, samples) in services.iter().zip(&mut samples) {
            let block = Namespace::anonymous()?.run(|| measure(*count, changes))?;
            for (change, sample) in block.iter().enumerate() {
                let nanos = [sample.engine, sample.total].map(|part| part.as_nanos());
                csv.row(&[&round, count, &change, &sample.elements, &sample.bytes, &nanos[0], &nanos[1]]);
            }
            samples.push(block);
        }
    }
    report.raw("load-changes", &csv)?;
    report.say(format!(
        "## One endpoint comes or goes: microseconds, median over {rounds} rounds of {changes} changes [quartiles]\n"
    ));
    let mut table = Table::new(&["Services", "p50", "p99", "longest", "of p50: engine", "elements", "bytes"]);
    for (count, blocks) in services.iter().zip(&samples) {
        let over = |share: f64, of: &dyn Fn(&Sample) -> Duration| {
            Spread::of(blocks.iter().map(|block| {
                let mut times: Vec<_> = block.iter().map(of).collect();
                times.sort();
                quantile(&times, share).as_nanos() as f64 / 1e3
            }))
        };
        let most = |of: &dyn Fn(&Sample) -> usize| blocks.iter().flatten().map(of).max().unwrap_or(0);
        table.row(&[
            count,
            &format!("{:.1}", over(0.5, &|sample| sample.total)),
            &format!("{:.1}", over(0.99, &|sample| sample.total)),
            &format!("{:.1}", over(1.0, &|sample| sample.total)),
            &format!("{:.1}", over(0.5, &|sample| sample.engine)),
            &most(&|sample| sample.elements),
            &most(&|sample| sample.bytes),
        ]);
    }
    report.say(table);
    Ok(())
}

/// Programs a cluster in the calling thread's namespace and changes it.
fn measure(services: u32, changes: usize) -> anyhow::Result<Vec<Sample>> {
    let mut engine = Engine::new("bench", Scheduler::Random);
    cluster::changes(services, Endpoints::Spread).into_iter().for_each(|change| engine.take(change));
    let mut plane = DataPlane::open()?;
    plane.apply(&engine.compile().delta)?;
    let mut samples = Vec::with_capacity(changes);
    for number in 0..WARM_UP + changes {
        // The same Service twice in a row: one endpoint goes, then it comes back.
        let service = (number as u32 / 2).wrapping_mul(7919) % services;
        let endpoints = if number % 2 == 0 { ENDPOINTS - 1 } else { ENDPOINTS };
        let change = cluster::spread_slice(service, endpoints);
        let begin = Instant::now();
        engine.take(change);
        let outcome = engine.compile();
        let engine_took = begin.elapsed();
        let applied = plane.apply(&outcome.delta)?;
        let total = begin.elapsed();
        anyhow::ensure!(applied.elements > 0, "a change that changed nothing");
        if number >= WARM_UP {
            samples.push(Sample { engine: engine_took, total, elements: applied.elements, bytes: applied.bytes });
        }
    }
    plane.remove()?;
    Ok(samples)
}

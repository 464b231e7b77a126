//! What a connection costs to set up, by the way its endpoint is picked.
//!
//! As `first-packet` measures it, with a rig per scheduler and a second one of `random` that shows how much two equal rigs differ. One
//! client with one address: with `sh` and `mh` all of its connections meet one bucket, with `sh-port` and `mh-port` any.

use pointsman::schedule::{Buckets, Scheduler, TableSizes};

use super::Options;
use crate::first_packet::{Block, Rig, Targets};
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};

pub fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let default = TableSizes::default();
    let large = TableSizes {
        hash: Buckets::new(65536).expect("one of ours"),
        maglev: Buckets::new(65537).expect("one of ours"),
    };
    let variants = [
        ("random", Scheduler::Random, default),
        ("random again", Scheduler::Random, default),
        ("rr", Scheduler::RoundRobin, default),
        ("wrr", Scheduler::WeightedRoundRobin, default),
        ("sh-1024", Scheduler::SourceHash { port: false }, default),
        ("sh-port-1024", Scheduler::SourceHash { port: true }, default),
        ("sh-port-65536", Scheduler::SourceHash { port: true }, large),
        ("dh-1024", Scheduler::DestinationHash, default),
        ("mh-4093", Scheduler::Maglev { port: false }, default),
        ("mh-port-65537", Scheduler::Maglev { port: true }, large),
    ];
    let rigs: Vec<Rig> =
        variants.iter().map(|(_, scheduler, tables)| Rig::scheduled(*scheduler, *tables)).collect::<Result<_, _>>()?;
    let mut blocks: Vec<Vec<Block>> = variants.iter().map(|_| Vec::new()).collect();
    let mut csv = Csv::new("round,position,variant,connections,min_ns,p50_ns,p90_ns,p99_ns");
    let nanos = |block: &Block, share: f64| quantile(&block.sorted, share).as_nanos();
    for round in 0..options.rounds {
        for position in 0..variants.len() {
            let index = (round + position) % variants.len();
            let block = rigs[index].measure(Targets::Services(1), options.samples)?;
            let [least, p50, p90, p99] = [0.0, 0.5, 0.9, 0.99].map(|share| nanos(&block, share));
            csv.row(&[&round, &position, &variants[index].0, &options.samples, &least, &p50, &p90, &p99]);
            blocks[index].push(block);
        }
    }
    report.raw("schedulers-setup", &csv)?;
    let micros = |index: usize, share: f64| -> Vec<f64> {
        blocks[index].iter().map(|block| nanos(block, share) as f64 / 1e3).collect()
    };
    let mut table = Table::new(&["pick", "p50 µs", "p99 µs", "p50 / random"]);
    for (index, (name, _, _)) in variants.iter().enumerate() {
        let ratio = Spread::of_ratios(&micros(index, 0.5), &micros(0, 0.5));
        table.row(&[name, &Spread::of(micros(index, 0.5)), &Spread::of(micros(index, 0.99)), &format!("{ratio:.3}")]);
    }
    report.say("## setup: opening a connection; median over rounds [quartiles]\n");
    report.say(format!("{} rounds x {} connections, one Service of ten endpoints\n", options.rounds, options.samples));
    report.say(&table);
    Ok(())
}

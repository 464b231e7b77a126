//! `rr` and `wrr`: whether turns are exact.
//!
//! Connections go to two Services in lock step, which is what breaks a counter that is shared.

use pointsman::schedule::{Scheduler, TableSizes};

use super::stage::{Stage, ports};
use super::{Options, verdict};
use crate::report::{Csv, Report, Table};

pub fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let count = options.connections;
    anyhow::ensure!((8..=20_000).contains(&count), "8 to 20000 connections: each needs a port of its own");
    let mut table = Table::new(&["scheduler", "weights", "connections", "per endpoint", "differ by", "cycles off"]);
    let mut csv = Csv::new("scheduler,weights,connection,endpoint");
    let mut worst = 0;
    let mut off = 0;
    let equal: [&[u32]; 4] = [&[1; 2], &[1; 3], &[1; 7], &[1; 10]];
    let unequal: [&[u32]; 2] = [&[5, 2, 1], &[10, 7, 4, 4, 1]];
    let all = equal.map(|weights| (Scheduler::RoundRobin, weights)).into_iter();
    let all = all.chain(unequal.map(|weights| (Scheduler::WeightedRoundRobin, weights)));
    for (scheduler, weights) in all.chain([(Scheduler::Random, equal[3])]) {
        let mut stage = Stage::new(10, 1, TableSizes::default())?;
        stage.serve(0, scheduler, weights)?;
        stage.serve(1, Scheduler::RoundRobin, &[1, 1])?;
        let both = ports(2_000, count).zip(ports(30_000, count)).flat_map(|(own, other)| [(0, own), (1, other)]);
        let answers: Vec<u16> = stage.ask(both)?.into_iter().step_by(2).collect();
        let text = weights.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
        for (number, answer) in answers.iter().enumerate() {
            csv.row(&[&scheduler, &text, &number, answer]);
        }
        let counts = counts(&answers, weights.len());
        let differ = counts.iter().max().unwrap_or(&0) - counts.iter().min().unwrap_or(&0);
        let cycle: u32 = weights.iter().sum();
        let wrong =
            answers.windows(cycle as usize).filter(|turns| self::counts(turns, weights.len()) != weights).count();
        match scheduler {
            Scheduler::RoundRobin => worst = worst.max(differ),
            Scheduler::WeightedRoundRobin => off += wrong,
            _ => {}
        }
        let per = counts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        table.row(&[&scheduler, &text, &count, &per, &differ, &wrong]);
    }
    report.raw("schedulers-turns", &csv)?;
    report.say("## turns: while another Service is connected to in lock step\n");
    report.say(&table);
    report.say("\"cycles off\": of all runs of as many connections as a cycle has, beginning anywhere, those that are not by weight.\n");
    report.say(format!("target: rr differs by at most 1: {worst}: {}", verdict(worst <= 1)));
    report.say(format!("target: wrr is exact in every cycle: {off} are off: {}\n", verdict(off == 0)));
    Ok(())
}

fn counts(answers: &[u16], endpoints: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    answers.iter().for_each(|answer| counts[usize::from(*answer)] += 1);
    counts
}

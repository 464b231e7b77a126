//! `sh`, `dh`, `mh`: how many clients move when one of ten endpoints leaves.
//!
//! Every endpoint leaves once and comes back. The yardstick is how IPVS's `sh` deals, computed for the same clients spread evenly: 256
//! buckets, dealt out in turn to the endpoints in their order.

use pointsman::schedule::{Buckets, Scheduler, TableSizes};

use super::stage::{Stage, client};
use super::{Options, verdict};
use crate::report::{Csv, Report, Table};
use crate::stats::quantile;

const ENDPOINTS: usize = 10;

pub fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut table =
        Table::new(&["scheduler", "buckets", "clients", "moved, of all", "at most", "others moved, of all", "at most"]);
    let mut csv = Csv::new("scheduler,buckets,leaver,clients,of_leaver,of_others");
    let mut verdicts = Vec::new();
    let source = Scheduler::SourceHash { port: false };
    let maglev = Scheduler::Maglev { port: false };
    let rows = [(source, 256), (source, 1024), (source, 4096), (maglev, 1021), (maglev, 4093), (maglev, 65537)];
    for (scheduler, buckets) in rows {
        let mut moves = moves(scheduler, buckets, options.clients)?;
        for (leaver, moved) in moves.iter().enumerate() {
            csv.row(&[&scheduler, &buckets, &leaver, &options.clients, &moved.of_leaver, &moved.of_others]);
        }
        let share = |count: usize| count as f64 / options.clients as f64 * 100.0;
        moves.sort_by_key(|moved| moved.of_others);
        let others: Vec<f64> = moves.iter().map(|moved| share(moved.of_others)).collect();
        let mut all: Vec<f64> = moves.iter().map(|moved| share(moved.of_others + moved.of_leaver)).collect();
        all.sort_by(f64::total_cmp);
        let worst = all.last().copied().unwrap_or_default();
        let worst_other = others.last().copied().unwrap_or_default();
        table.row(&[
            &scheduler,
            &buckets,
            &options.clients,
            &format!("{:.1} %", quantile(&all, 0.5)),
            &format!("{worst:.1} %"),
            &format!("{:.1} %", quantile(&others, 0.5)),
            &format!("{worst_other:.1} %"),
        ]);
        if scheduler == source {
            verdicts.push(format!(
                "target: sh with {buckets} buckets moves nobody but the leaver's: {}",
                verdict(worst_other == 0.0)
            ));
        } else if buckets >= 4093 {
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let judged = |share: f64| format!("{share:.1} %: {}", verdict(share <= 12.0));
            verdicts.push(format!(
                "target: mh with {buckets} buckets moves at most 1/10 + 2 % of all: mean over leavers {}; the worst leaver {}",
                judged(mean),
                judged(worst)
            ));
        }
    }
    let ipvs = in_turn();
    table.row(&[
        &"as IPVS's sh deals",
        &256,
        &"computed",
        &format!("{:.1} %", ipvs.0),
        &"",
        &format!("{:.1} %", ipvs.1),
        &"",
    ]);
    report.raw("schedulers-moved", &csv)?;
    report.say("## moved: one of ten endpoints leaves; median and maximum over who it is\n");
    report.say(&table);
    verdicts.iter().for_each(|line| report.say(line));
    report.say("");
    Ok(())
}

/// Clients that go elsewhere.
struct Moved {
    of_leaver: usize,
    of_others: usize,
}

fn moves(scheduler: Scheduler, buckets: usize, clients: usize) -> anyhow::Result<Vec<Moved>> {
    let size = Buckets::new(buckets).expect("one of ours");
    let default = TableSizes::default();
    let tables =
        if size.is_prime() { TableSizes { maglev: size, ..default } } else { TableSizes { hash: size, ..default } };
    let mut stage = Stage::new(ENDPOINTS as u16, clients, tables)?;
    let homes = |stage: &Stage| -> anyhow::Result<Vec<u16>> {
        stage.forget()?;
        stage.ask((0..clients).map(|number| (0, (client(number), 0).into())))
    };
    let mut moves = Vec::new();
    for leaver in 0..ENDPOINTS {
        stage.serve(0, scheduler, &[1; ENDPOINTS])?;
        let before = homes(&stage)?;
        let mut weights = [1; ENDPOINTS];
        weights[leaver] = 0;
        stage.serve(0, scheduler, &weights)?;
        let after = homes(&stage)?;
        let moved = before.iter().zip(&after).filter(|(old, new)| old != new);
        let (of_leaver, of_others): (Vec<_>, Vec<_>) = moved.partition(|(old, _)| usize::from(**old) == leaver);
        moves.push(Moved { of_leaver: of_leaver.len(), of_others: of_others.len() });
    }
    Ok(moves)
}

/// Buckets that change hands, of all and of the others' in per cent of all, when the list of endpoints gets shorter and all are dealt
/// out in turn again; the mean over leavers.
fn in_turn() -> (f64, f64) {
    let (mut all, mut others) = (0, 0);
    for leaver in 0..ENDPOINTS {
        let rest: Vec<usize> = (0..ENDPOINTS).filter(|endpoint| *endpoint != leaver).collect();
        for bucket in 0..256 {
            let (before, after) = (bucket % ENDPOINTS, rest[bucket % rest.len()]);
            all += usize::from(before != after);
            others += usize::from(before != after && before != leaver);
        }
    }
    let share = |count: usize| count as f64 / (256 * ENDPOINTS) as f64 * 100.0;
    (share(all), share(others))
}

//! `sh`, `mh`: how even tables are, and how even clients are spread by them.
//!
//! Two figures per row. The *table*'s is exact: buckets per endpoint. The *connections*' is measured: the kernel hashes client address and
//! port of as many connections into that table. Connections are few compared with what there could be, so even a perfect table shows
//! some spread; the last column says how much chance alone makes of it.

use std::net::SocketAddr;

use pointsman::schedule::{Buckets, Candidate, Hand, Scheduler, TableSizes};

use super::stage::{Stage, ports};
use super::{Options, verdict};
use crate::report::{Csv, Report, Table};
use crate::stats::Evenness;

const ENDPOINTS: u16 = 10;

/// Connections per row: ports of one client address.
const CONNECTIONS: usize = 50_000;

pub fn run(_: &Options, report: &mut Report) -> anyhow::Result<()> {
    let head = [
        "scheduler",
        "buckets",
        "table: CV",
        "most / mean",
        "least / mean",
        "connections: CV",
        "most / mean",
        "CV by chance",
    ];
    let mut table = Table::new(&head);
    let mut csv = Csv::new("scheduler,buckets,endpoint,of_table,of_connections");
    let (source, maglev) = (Scheduler::SourceHash { port: true }, Scheduler::Maglev { port: true });
    let rows = [
        (source, 256),
        (source, 1024),
        (source, 4096),
        (source, 65536),
        (maglev, 251),
        (maglev, 4093),
        (maglev, 65537),
    ];
    let mut skew = 0.0;
    for (scheduler, count) in rows {
        let size = Buckets::new(count).expect("one of ours");
        let default = TableSizes::default();
        let tables =
            if size.is_prime() { TableSizes { maglev: size, ..default } } else { TableSizes { hash: size, ..default } };
        let buckets = dealt(scheduler, tables);
        let mut stage = Stage::new(ENDPOINTS, 1, tables)?;
        stage.serve(0, scheduler, &[1; ENDPOINTS as usize])?;
        let answers = stage.ask(ports(2_000, CONNECTIONS).map(|source| (0, source)))?;
        let mut connections = vec![0usize; usize::from(ENDPOINTS)];
        answers.iter().for_each(|answer| connections[usize::from(*answer)] += 1);
        for (endpoint, (of_table, of_connections)) in buckets.iter().zip(&connections).enumerate() {
            csv.row(&[&scheduler, &count, &endpoint, of_table, of_connections]);
        }
        let (of_table, of_connections) =
            (Evenness::of(&buckets).expect("dealt"), Evenness::of(&connections).expect("answered"));
        if count == 65537 {
            skew = of_table.most - 1.0;
        }
        let chance = ((f64::from(ENDPOINTS) - 1.0) / CONNECTIONS as f64).sqrt();
        table.row(&[
            &scheduler,
            &count,
            &format!("{:.4}", of_table.cv),
            &format!("{:.4}", of_table.most),
            &format!("{:.4}", of_table.least),
            &format!("{:.4}", of_connections.cv),
            &format!("{:.4}", of_connections.most),
            &format!("{chance:.4}"),
        ]);
    }
    report.raw("schedulers-balance", &csv)?;
    report.say(format!("## balance: ten endpoints, {CONNECTIONS} connections\n"));
    report.say(&table);
    report.say("\"CV\": coefficient of variation over endpoints.\n");
    let target = "target: skew of mh with 65537 buckets and 10 endpoints at most 1 %";
    report.say(format!("{target}: {:.3} %: {}\n", skew * 100.0, verdict(skew <= 0.01)));
    Ok(())
}

/// Buckets per endpoint, as dealt.
fn dealt(scheduler: Scheduler, tables: TableSizes) -> Vec<usize> {
    // The endpoints of `Stage`.
    let endpoint = |port: u16| SocketAddr::from(([10, 244, 0, 2], crate::cluster::TARGET_PORT + port));
    let candidates: Vec<Candidate> = (0..ENDPOINTS).map(|port| Candidate::equal(endpoint(port))).collect();
    let deal = scheduler.deal(Hand { candidates: &candidates, previous: &[], seed: 0, changes: 0, tables });
    candidates.iter().map(|one| deal.slots.iter().filter(|slot| **slot == one.endpoint).count()).collect()
}

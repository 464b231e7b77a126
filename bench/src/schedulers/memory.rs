//! What tables take: kernel memory, and the time to deal and to load them.
//!
//! So many Services of ten endpoints that they have some 200,000 slots together, loaded into an empty namespace. Memory is the growth of
//! the machine's unreclaimable slab, less that of tables without Services, per Service; the median over rounds. The buckets of map
//! `endpoints` come on top: 8 bytes for each place that it declares, which are two to four per slot.

use std::thread;
use std::time::{Duration, Instant};

use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::Namespace;
use pointsman::policy::Settings;
use pointsman::schedule::{Buckets, Scheduler, TableSizes};

use super::Options;
use crate::cluster::{self, Endpoints};
use crate::report::{Csv, Report, Table};
use crate::stats::Spread;
use crate::usage::slab_bytes;

const ROUNDS: usize = 5;

/// Slots of all Services together.
const SLOTS: usize = 200_000;

/// The slab has settled when it has not shrunk for so long: kernel threads free what a load left.
const SETTLE: Duration = Duration::from_millis(400);

/// Less than that is others' doing.
const NOISE: i64 = 256 * 1024;

/// One load.
struct Load {
    slab: i64,
    deal: Duration,
    apply: Duration,
}

pub fn run(_: &Options, report: &mut Report) -> anyhow::Result<()> {
    let sh = |count| (Scheduler::SourceHash { port: false }, count);
    let mh = |count| (Scheduler::Maglev { port: false }, count);
    let rows = [(Scheduler::Random, 10), sh(256), sh(1024), sh(4096), sh(65536), mh(251), mh(4093), mh(65537)];
    let head = [
        "scheduler",
        "slots",
        "Services",
        "kernel kB / Service",
        "bytes / slot",
        "deal µs / Service",
        "load µs / Service",
    ];
    let mut table = Table::new(&head);
    let mut csv = Csv::new("scheduler,slots,services,round,slab_bytes,slab_bytes_empty,deal_ns,apply_ns");
    for (scheduler, slots) in rows {
        let services = u32::try_from((SLOTS / slots).max(3))?;
        let (mut bytes, mut deal, mut apply) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let empty = load(scheduler, slots, 0)?;
            let full = load(scheduler, slots, services)?;
            let (taken, dealt, applied) = (full.slab - empty.slab, full.deal.as_nanos(), full.apply.as_nanos());
            csv.row(&[&scheduler, &slots, &services, &round, &full.slab, &empty.slab, &dealt, &applied]);
            let per = |total: f64| total / f64::from(services);
            bytes.push(per(taken as f64));
            deal.push(per(dealt as f64 / 1e3));
            apply.push(per(applied as f64 / 1e3));
        }
        let bytes = Spread::of(bytes);
        let kilobytes = format!("{:.1} [{:.1}, {:.1}]", bytes.median / 1e3, bytes.low / 1e3, bytes.high / 1e3);
        let per_slot = format!("{:.0}", bytes.median / slots as f64);
        let (deal, apply) = (format!("{:.0}", Spread::of(deal)), format!("{:.0}", Spread::of(apply)));
        table.row(&[&scheduler, &slots, &services, &kilobytes, &per_slot, &deal, &apply]);
    }
    report.raw("schedulers-memory", &csv)?;
    report.say("## memory: per Service port and family, ten endpoints; median over rounds [quartiles]\n");
    report.say(&table);
    report.say("\"deal\": policy, scheduler and compiler; \"load\": the kernel, and encoding for it.\n");
    Ok(())
}

fn load(scheduler: Scheduler, slots: usize, services: u32) -> anyhow::Result<Load> {
    let default = TableSizes::default();
    let tables = match Buckets::new(slots) {
        Some(size) if size.is_prime() => TableSizes { maglev: size, ..default },
        Some(size) => TableSizes { hash: size, ..default },
        None => default,
    };
    let settings = Settings { node: "bench".into(), tables, ..Settings::default() };
    let mut engine = Engine::with_settings(settings, scheduler);
    cluster::changes(services, Endpoints::Spread).into_iter().for_each(|change| engine.take(change));
    let begin = Instant::now();
    let delta = engine.compile().delta;
    let deal = begin.elapsed();
    let inside = Namespace::anonymous()?;
    let (slab, apply) = inside.run(|| -> anyhow::Result<(i64, Duration)> {
        let mut plane = DataPlane::open()?;
        plane.read()?;
        let slab = settled()?;
        let begin = Instant::now();
        plane.apply(&delta)?;
        let took = begin.elapsed();
        let slab = slab_bytes()? - slab;
        plane.remove()?;
        Ok((slab, took))
    })?;
    Ok(Load { slab, deal, apply })
}

/// The slab once nothing is being freed any more.
fn settled() -> anyhow::Result<i64> {
    let (begin, mut least, mut since) = (Instant::now(), slab_bytes()?, Instant::now());
    while since.elapsed() < SETTLE && begin.elapsed() < Duration::from_secs(10) {
        thread::sleep(Duration::from_millis(20));
        let now = slab_bytes()?;
        if now < least - NOISE {
            since = Instant::now();
        }
        least = least.min(now);
    }
    slab_bytes()
}

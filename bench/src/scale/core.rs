//! From objects in memory to the kernel's acknowledgement, in this process.
//!
//! Per size: the first load; single endpoint changes, one at a time; a storm (one event for each of 10,000 slices, all there at once);
//! and the rolling replacement of all endpoints of a Service with 1,000, in ten slices, by events of 1, 10 or 100 endpoints.

use std::time::{Duration, Instant};

use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::Namespace;
use pointsman::source::Change;

use super::{Options, Size};
use crate::cluster;
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};
use crate::usage::CpuTime;

/// Changes in front of each round that do not count.
const WARM_UP: usize = 20;

/// Events of a storm, at most one per Service.
const STORM: u32 = 10_000;

/// Endpoints of the Service that is rolled, and of each of its slices.
const ROLLED: u32 = 1_000;
const SLICE: u32 = 100;

/// Endpoints replaced per event.
const STEPS: [u32; 3] = [1, 10, 100];

/// One round of one size.
struct Round {
    load: Duration,
    /// Sorted.
    changes: Vec<Duration>,
    storm: Duration,
    longest: Duration,
    /// CPU time per replaced endpoint, by steps.
    rolled: [Duration; STEPS.len()],
}

struct Cluster {
    size: Size,
    engine: Engine,
    plane: DataPlane,
}

pub(super) fn run(report: &mut Report, options: &Options) -> anyhow::Result<()> {
    let mut csv = Csv::new(
        "round,services,endpoints,load_us,change_p50_ns,change_p99_ns,storm_us,storm_longest_us,roll1_ns,roll10_ns,roll100_ns",
    );
    let mut rounds: Vec<Vec<Round>> = options.sizes.iter().map(|_| Vec::new()).collect();
    for number in 0..options.rounds {
        for (size, rounds) in options.sizes.iter().zip(&mut rounds) {
            eprintln!("round {} of {}: {size}", number + 1, options.rounds);
            let round = Namespace::anonymous()?.run(|| measure(*size, options))?;
            csv.row(&[
                &number,
                &size.services,
                &size.endpoints,
                &round.load.as_micros(),
                &quantile(&round.changes, 0.5).as_nanos(),
                &quantile(&round.changes, 0.99).as_nanos(),
                &round.storm.as_micros(),
                &round.longest.as_micros(),
                &round.rolled[0].as_nanos(),
                &round.rolled[1].as_nanos(),
                &round.rolled[2].as_nanos(),
            ]);
            rounds.push(round);
        }
    }
    report.raw("scale-core", &csv)?;
    report.say(format!(
        "## Objects in memory to the kernel's acknowledgement: median over {} rounds [quartiles]\n",
        options.rounds
    ));
    let mut table = Table::new(&[
        "cluster",
        "first load, ms",
        "one change p50, us",
        "p99, us",
        "storm of 10,000, ms",
        "longest transaction, ms",
        "rolling: CPU us per endpoint, by 1",
        "by 10",
        "by 100",
    ]);
    for (size, rounds) in options.sizes.iter().zip(&rounds) {
        let over = |scale: f64, of: &dyn Fn(&Round) -> Duration| {
            format!("{:.1}", Spread::of(rounds.iter().map(|round| of(round).as_secs_f64() * scale)))
        };
        table.row(&[
            size,
            &over(1e3, &|round| round.load),
            &over(1e6, &|round| quantile(&round.changes, 0.5)),
            &over(1e6, &|round| quantile(&round.changes, 0.99)),
            &over(1e3, &|round| round.storm),
            &over(1e3, &|round| round.longest),
            &over(1e6, &|round| round.rolled[0]),
            &over(1e6, &|round| round.rolled[1]),
            &over(1e6, &|round| round.rolled[2]),
        ]);
    }
    report.say(table);
    Ok(())
}

/// In the calling thread's namespace.
fn measure(size: Size, options: &Options) -> anyhow::Result<Round> {
    let rolled = size.services;
    let mut objects: Vec<_> = (0..size.services)
        .flat_map(|number| [cluster::service(number), cluster::wide_slice(number, "a", size.pods(number))])
        .collect();
    objects.push(cluster::service(rolled));
    let first = size.services * size.endpoints;
    objects.extend((0..ROLLED / SLICE).map(|slice| rolled_slice(rolled, slice, first, 0)));
    let mut cluster = Cluster { size, engine: Engine::new("bench", options.scheduler), plane: DataPlane::open()? };
    let begin = Instant::now();
    cluster.program(objects)?;
    let load = begin.elapsed();
    let changes = cluster.changes(options.changes)?;
    let (storm, longest) = cluster.storm()?;
    let mut rolls = [Duration::ZERO; STEPS.len()];
    for (index, (step, roll)) in STEPS.iter().zip(&mut rolls).enumerate() {
        let first = first + 2 * ROLLED * index as u32;
        *roll = cluster.roll(rolled, first, *step)?;
    }
    cluster.plane.remove()?;
    Ok(Round { load, changes, storm, longest, rolled: rolls })
}

/// A slice of the rolled Service, of whose pods so many are new.
fn rolled_slice(service: u32, slice: u32, first: u32, new: u32) -> Change {
    let begin = first + slice * SLICE;
    let pods = (begin + ROLLED..begin + ROLLED + new).chain(begin + new..begin + SLICE);
    cluster::wide_slice(service, &format!("r{slice}"), pods)
}

// === impl Cluster ===

impl Cluster {
    /// Returns the longest transaction.
    fn program(&mut self, changes: Vec<Change>) -> anyhow::Result<Duration> {
        changes.into_iter().for_each(|change| self.engine.take(change));
        let applied = self.plane.apply(&self.engine.compile().delta)?;
        anyhow::ensure!(applied.elements > 0, "changes that changed nothing");
        Ok(applied.longest)
    }

    /// The same Service twice in a row: one endpoint goes, then it comes back.
    fn changes(&mut self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(count);
        for number in 0..WARM_UP + count {
            let service = (number as u32 / 2).wrapping_mul(7919) % self.size.services;
            let change = cluster::wide_slice(service, "a", self.size.pods(service).skip((number + 1) % 2));
            let begin = Instant::now();
            self.program(vec![change])?;
            if number >= WARM_UP {
                times.push(begin.elapsed());
            }
        }
        times.sort();
        Ok(times)
    }

    /// One endpoint of each Service goes; returns how long that took and the longest transaction of it.
    fn storm(&mut self) -> anyhow::Result<(Duration, Duration)> {
        let size = self.size;
        let storm = (0..STORM).map(|number| {
            // Where there are fewer Services than events, they come twice and more: each time another endpoint goes.
            let (service, missing) = (number % size.services, number / size.services % size.endpoints);
            let pods = size.pods(service);
            let missing = pods.start + missing;
            cluster::wide_slice(service, "a", pods.filter(move |pod| *pod != missing))
        });
        let storm: Vec<_> = storm.collect();
        let begin = Instant::now();
        let longest = self.program(storm)?;
        Ok((begin.elapsed(), longest))
    }

    /// Replaces all pods of a Service, so many at a time; CPU time of this thread, the kernel's part in it, per pod.
    fn roll(&mut self, service: u32, first: u32, step: u32) -> anyhow::Result<Duration> {
        self.program((0..ROLLED / SLICE).map(|slice| rolled_slice(service, slice, first, 0)).collect()).or_else(
            |error| if first == self.size.services * self.size.endpoints { Ok(Duration::ZERO) } else { Err(error) },
        )?;
        let mut used = Duration::ZERO;
        for slice in 0..ROLLED / SLICE {
            for new in (step..=SLICE).step_by(step as usize) {
                let change = rolled_slice(service, slice, first, new);
                let begin = CpuTime::now()?;
                self.program(vec![change])?;
                let cpu = CpuTime::now()?.since(begin);
                used += cpu.user + cpu.system;
            }
        }
        Ok(used / ROLLED)
    }
}

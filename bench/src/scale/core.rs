//! From objects in memory to the kernel's acknowledgement, in this process.
//!
//! Per size: the first load; single endpoint changes, one at a time; a storm (one event for each of 10,000 slices, all there at once);
//! the rolling replacement of all endpoints of a Service with 1,000, in ten slices, by events of 1, 10 or 100 endpoints; and a restart
//! with nothing changed. All of it as the daemon does it: the first load in parts, a storm in transactions of bounded size, a restart
//! that reads the kernel while objects are taken in.

use std::thread;
use std::time::{Duration, Instant};

use pointsman::engine::Engine;
use pointsman::kernel::{Applied, DataPlane, PART, SHARE, compare_in_turn};
use pointsman::lab::Namespace;
use pointsman::source::Change;

use super::{Metric, Options, Series, Size, size};
use crate::cluster;
use crate::report::Report;
use crate::stats::quantile;
use crate::usage::thread_time;

/// Changes in front of each round that do not count.
const WARM_UP: usize = 20;

/// Events of a storm, at most one per Service.
const STORM: u32 = 10_000;

/// Endpoints of the Service that is rolled, and of each of its slices.
const ROLLED: u32 = 1_000;
const SLICE: u32 = 100;

/// Endpoints replaced per event.
const STEPS: [u32; 3] = [1, 10, 100];

/// Targets from issue 6.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        column: "load_ms",
        title: "first load, ms",
        digits: 0,
        targets: &[(size(10_000, 10), 300.0), (size(50_000, 10), 1600.0), (size(5_000, 50), 800.0)],
    },
    Metric { column: "change_p50_us", title: "one change p50, us", digits: 1, targets: &[(size(10_000, 10), 200.0)] },
    Metric { column: "change_p99_us", title: "one change p99, us", digits: 1, targets: &[(size(10_000, 10), 1000.0)] },
    Metric {
        column: "storm_ms",
        title: "storm of 10,000 slices, ms",
        digits: 0,
        targets: &[(size(10_000, 10), 300.0)],
    },
    Metric {
        column: "storm_longest_ms",
        title: "its longest transaction, ms",
        digits: 1,
        targets: &[(size(10_000, 10), 10.0)],
    },
    Metric {
        column: "roll1_us",
        title: "rolling restart, CPU us per endpoint, by 1",
        digits: 1,
        targets: &[(size(10_000, 10), 20.0)],
    },
    Metric { column: "roll10_us", title: "by 10", digits: 1, targets: &[(size(10_000, 10), 20.0)] },
    Metric { column: "roll100_us", title: "by 100", digits: 1, targets: &[(size(10_000, 10), 20.0)] },
    Metric {
        column: "restart_ms",
        title: "restart, nothing changed, ms",
        digits: 0,
        targets: &[(size(10_000, 10), 500.0), (size(50_000, 10), 2000.0)],
    },
    Metric {
        column: "rewritten",
        title: "elements rewritten",
        digits: 0,
        targets: &[(size(10_000, 10), 0.0), (size(50_000, 10), 0.0)],
    },
];

struct Cluster {
    size: Size,
    engine: Engine,
    plane: DataPlane,
}

/// One round of one size, in a namespace of its own.
pub(super) fn measure(size: Size, options: &Options) -> anyhow::Result<Vec<f64>> {
    Namespace::anonymous()?.run(|| measure_here(size, options))
}

/// Whether one change costs the same in a small cluster and in a large one.
pub(super) fn say_flatness(report: &mut Report, series: &Series) {
    let [small, large] = [size(1_000, 10), size(50_000, 10)].map(|size| series.median("change_p50_us", size));
    if let Some((small, large)) = small.zip(large) {
        let (ratio, verdict) = (large / small, if large <= 1.5 * small { "met" } else { "missed" });
        report.say(format!("target: one change p50, 50000 x 10 to 1000 x 10: at most 1.5: {ratio:.2}: {verdict}"));
    }
}

fn measure_here(size: Size, options: &Options) -> anyhow::Result<Vec<f64>> {
    let rolled = size.services;
    let first = size.services * size.endpoints;
    let objects = objects(size, options.affinity);
    let engine = Engine::new("bench", options.scheduler);
    let mut cluster = Cluster { size, engine, plane: DataPlane::open()? };
    let begin = Instant::now();
    cluster.load(objects)?;
    let load = begin.elapsed();
    let changes = cluster.changes(options.changes)?;
    let (storm, longest) = cluster.storm()?;
    let mut rolls = [Duration::ZERO; STEPS.len()];
    for (index, (step, roll)) in STEPS.iter().zip(&mut rolls).enumerate() {
        *roll = cluster.roll(rolled, first + 2 * ROLLED * index as u32, *step)?;
    }
    drop(cluster);
    DataPlane::open()?.remove()?;
    let (restart, rewritten) = restart(size, options)?;
    let (ms, us) = (|time: Duration| time.as_secs_f64() * 1e3, |time: Duration| time.as_secs_f64() * 1e6);
    Ok(vec![
        ms(load),
        us(quantile(&changes, 0.5)),
        us(quantile(&changes, 0.99)),
        ms(storm),
        ms(longest),
        us(rolls[0]),
        us(rolls[1]),
        us(rolls[2]),
        ms(restart),
        rewritten as f64,
    ])
}

/// Everything a source would say, a large Service included.
fn objects(size: Size, affinity: bool) -> Vec<Change> {
    let first = size.services * size.endpoints;
    let service = |number| match affinity {
        false => cluster::service(number),
        true => cluster::sticky(cluster::service(number)),
    };
    let small =
        (0..size.services).flat_map(|number| [service(number), cluster::wide_slice(number, "a", size.pods(number))]);
    let large = (0..ROLLED / SLICE).map(|slice| rolled_slice(size.services, slice, first, 0));
    small.chain([service(size.services)]).chain(large).collect()
}

/// A slice of the rolled Service, of whose pods so many are new.
fn rolled_slice(service: u32, slice: u32, first: u32, new: u32) -> Change {
    let begin = first + slice * SLICE;
    let pods = (begin + ROLLED..begin + ROLLED + new).chain(begin + new..begin + SLICE);
    cluster::wide_slice(service, &format!("r{slice}"), pods)
}

/// Programs a cluster, forgets everything, and begins again: the time until it is known that the kernel has what is desired, and how
/// many elements were written.
fn restart(size: Size, options: &Options) -> anyhow::Result<(Duration, usize)> {
    let new = || Ok::<_, anyhow::Error>((Engine::new("bench", options.scheduler), DataPlane::open()?));
    let (engine, plane) = new()?;
    Cluster { size, engine, plane }.load(objects(size, options.affinity))?;
    let objects = objects(size, options.affinity);
    let begin = Instant::now();
    let (mut engine, mut plane) = new()?;
    let found = thread::scope(|scope| {
        let reading = scope.spawn(|| plane.read());
        objects.into_iter().for_each(|change| engine.take(change));
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    engine.adopt(found.image);
    let difference = compare_in_turn(engine.adopted(), |take| engine.compile_in_parts(PART, take));
    let found = engine.settle();
    let applied = plane.apply(&difference.unwrap_or_else(|| engine.difference(found)))?;
    let time = begin.elapsed();
    plane.remove()?;
    Ok((time, applied.elements))
}

// === impl Cluster ===

impl Cluster {
    /// The first load.
    fn load(&mut self, objects: Vec<Change>) -> anyhow::Result<()> {
        let Self { engine, plane, .. } = self;
        objects.into_iter().for_each(|change| engine.take(change));
        let forecast = engine.forecast();
        let applied = plane.build(&forecast, |take| engine.compile_in_parts(PART, take))?;
        engine.settle();
        anyhow::ensure!(applied.elements > 0, "nothing was loaded");
        Ok(())
    }

    fn program(&mut self, changes: Vec<Change>) -> anyhow::Result<Applied> {
        changes.into_iter().for_each(|change| self.engine.take(change));
        let Self { engine, plane, .. } = self;
        let mut first = engine.compile_part(SHARE).delta;
        let applied = match engine.has_more() {
            false => plane.apply(&first)?,
            true => plane.apply_in_turn(|take| {
                take(std::mem::take(&mut first))?;
                engine.compile_in_parts(SHARE, take)
            })?,
        };
        anyhow::ensure!(applied.elements > 0, "changes that changed nothing");
        Ok(applied)
    }

    /// The same Service twice in a row: one endpoint goes, then it comes back. Sorted.
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
        let longest = self.program(storm)?.longest;
        Ok((begin.elapsed(), longest))
    }

    /// Replaces all pods of a Service, so many at a time; CPU time of this thread, the kernel's part in it, per pod.
    fn roll(&mut self, service: u32, first: u32, step: u32) -> anyhow::Result<Duration> {
        if first > self.size.services * self.size.endpoints {
            self.program((0..ROLLED / SLICE).map(|slice| rolled_slice(service, slice, first, 0)).collect())?;
        }
        let mut used = Duration::ZERO;
        for slice in 0..ROLLED / SLICE {
            for new in (step..=SLICE).step_by(step as usize) {
                let change = rolled_slice(service, slice, first, new);
                let begin = thread_time()?;
                self.program(vec![change])?;
                used += thread_time()? - begin;
            }
        }
        Ok(used / ROLLED)
    }
}

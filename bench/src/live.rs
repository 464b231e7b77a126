//! Least connection on real connections: how even it is, what it costs, and how it takes a newcomer in.
//!
//! A *run* is a lab with a daemon, a Service with ten endpoints, and one client that opens connections at the times, and closes them
//! after the holding times, that a random but repeatable schedule says. The client and all servers are one thread, so whoever accepts
//! a connection is known at once and the number of open connections per endpoint is exact at any time. It is written down
//! [`SAMPLES`] times a second; what is compared is the coefficient of variation over the endpoints, averaged over the samples after
//! the first holding times. The yardstick is the same scheduler in a simulation that knows everything at once, on the same arrivals
//! and holding times; round robin is measured the same way, in the kernel.
//!
//! Connections are reset at their end, so that the client does not run out of ports.

mod kernel;
mod nodes;

use std::path::PathBuf;

use clap::Args;

pub use nodes::{Options as NodesOptions, run as run_nodes};

use self::kernel::Rig;
use crate::arrivals::{SAMPLES, Visit};
use crate::report::{Csv, Report, Table};
use crate::stats::Evenness;

/// Endpoints of the Service.
pub const ENDPOINTS: usize = 10;

/// Options of `least-connections`.
#[derive(Debug, Args)]
pub struct Options {
    /// Connections per second
    #[arg(long, value_delimiter = ',', default_values_t = [50, 200, 1_000])]
    rates: Vec<u32>,
    /// Mean holding time in seconds
    #[arg(long, default_value_t = 2.0)]
    holding: f64,
    /// Seconds per run
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
    /// Runs per kind
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

/// How long connections last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    Exponential,
    /// With shape 1.3: a few last very long.
    Pareto,
}

impl Holding {
    pub const ALL: [Holding; 2] = [Holding::Exponential, Holding::Pareto];

    pub fn name(self) -> &'static str {
        match self {
            Holding::Exponential => "exponential",
            Holding::Pareto => "Pareto 1.3",
        }
    }

    /// A holding time of this mean.
    pub fn draw(self, random: &mut fastrand::Rng, mean: f64) -> f64 {
        let u = 1.0 - random.f64();
        match self {
            Holding::Exponential => -mean * u.ln(),
            Holding::Pareto => mean * 0.3 / 1.3 / u.powf(1.0 / 1.3),
        }
    }
}

/// Poisson arrivals.
pub fn schedule(random: &mut fastrand::Rng, rate: f64, seconds: f64, holding: Holding, mean: f64) -> Vec<Visit> {
    let mut at = 0.0;
    std::iter::from_fn(|| {
        at += -(1.0 - random.f64()).ln() / rate;
        (at < seconds).then(|| Visit { at, holding: holding.draw(random, mean) })
    })
    .collect()
}

/// Serves visits by a chooser that knows how many are open where; the mean variation from `warm` on.
pub fn simulate(visits: &[Visit], warm: f64, seconds: f64, mut choose: impl FnMut(&[u32]) -> usize) -> f64 {
    let mut open = [0u32; ENDPOINTS];
    let mut ends: std::collections::BinaryHeap<std::cmp::Reverse<(u64, usize)>> = Default::default();
    let nanos = |seconds: f64| (seconds * 1e9) as u64;
    let (mut sum, mut samples, mut next) = (0.0, 0u32, warm);
    let mut visits = visits.iter().peekable();
    while next < seconds {
        let arrival = visits.peek().map_or(f64::INFINITY, |visit| visit.at);
        let until = nanos(arrival.min(next));
        while let Some(std::cmp::Reverse((end, endpoint))) = ends.peek().copied().filter(|ending| ending.0.0 <= until) {
            debug_assert!(end <= until);
            open[endpoint] -= 1;
            ends.pop();
        }
        if arrival <= next {
            let visit = visits.next().expect("peeked");
            let endpoint = choose(&open);
            open[endpoint] += 1;
            ends.push(std::cmp::Reverse((nanos(visit.at + visit.holding), endpoint)));
        } else {
            if let Some(even) = Evenness::of(&open) {
                sum += even.cv;
                samples += 1;
            }
            next += 1.0 / SAMPLES;
        }
    }
    sum / f64::from(samples.max(1))
}

/// Least connection, ties in turn.
pub fn least() -> impl FnMut(&[u32]) -> usize {
    let mut turn = 0;
    move |open| {
        let order = (turn..open.len()).chain(0..turn);
        let best = order.reduce(|best, other| if open[other] < open[best] { other } else { best }).expect("endpoints");
        turn = (best + 1) % open.len();
        best
    }
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let mut report = Report::begin("least-connections", out)?;
    let mut csv = Csv::new(
        "round,holding,rate,scheduler,cv,cv_exact,connections,failures,late_p99_us,counts_cpu_ms,controller_cpu_ms,wakeups,seconds",
    );
    let mut table = Table::new(&[
        "holding",
        "rate / s",
        "lc: CV",
        "exact lc: CV",
        "lc / exact",
        "rr: CV",
        "rr / lc",
        "CPU of counting / 1,000 connections",
        "of dealing",
    ]);
    let warm = (options.holding * 2.0).min(options.seconds / 2.0);
    for holding in Holding::ALL {
        for rate in &options.rates {
            let (mut lc, mut exact, mut rr, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
            for round in 0..options.rounds {
                let mut random = fastrand::Rng::with_seed(u64::from(round) * 7919 + u64::from(*rate));
                let visits = schedule(&mut random, f64::from(*rate), options.seconds, holding, options.holding);
                for scheduler in ["lc", "rr"] {
                    let rig = Rig::new(scheduler, ENDPOINTS)?;
                    let run = rig.run(&visits, warm, options.seconds)?;
                    let yardstick = simulate(&run.visits, warm, options.seconds, least());
                    let milliseconds = run.cpu.map(|cpu| cpu.as_secs_f64() * 1e3);
                    let (name, [counts, controller]) = (holding.name(), milliseconds);
                    csv.row(&[
                        &round,
                        &name,
                        rate,
                        &scheduler,
                        &run.variation,
                        &yardstick,
                        &run.visits.len(),
                        &run.failures,
                        &run.late.as_micros(),
                        &counts,
                        &controller,
                        &run.wakeups,
                        &options.seconds,
                    ]);
                    if scheduler == "lc" {
                        lc.push(run.variation);
                        exact.push(yardstick);
                        let per = |ms: f64| ms * 1e3 / run.visits.len() as f64;
                        cpu[0].push(per(counts));
                        cpu[1].push(per(controller));
                    } else {
                        rr.push(run.variation);
                    }
                    eprintln!(
                        "{} {rate}/s {scheduler}: CV {:.4}, exact {yardstick:.4}, failures {}, late {:?}",
                        holding.name(),
                        run.variation,
                        run.failures,
                        run.late
                    );
                }
            }
            let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
            let (lc, exact, rr) = (mean(&lc), mean(&exact), mean(&rr));
            let [counts, controller] = cpu.map(|ms| format!("{:.0} ms", mean(&ms)));
            table.row(&[
                &holding.name(),
                rate,
                &format!("{lc:.4}"),
                &format!("{exact:.4}"),
                &format!("{:.2}", lc / exact),
                &format!("{rr:.4}"),
                &format!("{:.1}", rr / lc),
                &counts,
                &controller,
            ]);
        }
    }
    report.raw("least-connections", &csv)?;
    report.say(format!(
        "{ENDPOINTS} endpoints, mean holding time {} s, {} rounds of {} s; CV of open connections over endpoints, mean over time\n",
        options.holding, options.rounds, options.seconds
    ));
    report.say(&table);
    newcomer(&mut report)?;
    quiet(&mut report)?;
    report.end()
}

/// One endpoint joins ten that have a hundred connections each.
fn newcomer(report: &mut Report) -> anyhow::Result<()> {
    let rig = Rig::new("lc", ENDPOINTS + 1)?;
    let joined = rig.join(1_000, 200.0)?;
    let mut csv = Csv::new("connection,seconds_after_joining,newcomer,least_of_others,most_of_others");
    for step in &joined {
        csv.row(&[&step.connection, &format!("{:.4}", step.seconds), &step.newcomer, &step.least, &step.most]);
    }
    report.raw("least-connections-newcomer", &csv)?;
    let Some(last) = joined.last() else { return Ok(()) };
    let full = joined.iter().find(|step| step.newcomer >= step.least);
    let overshoot = joined.iter().map(|step| i64::from(step.newcomer) - i64::from(step.most)).max().unwrap_or_default();
    report.say(format!(
        "an endpoint joins ten with 100 held connections each, 200 new ones per second: as full as the others after {} connections; \
         at most {overshoot} more than the fullest of the others at any time; in the end {} and {} to {}",
        full.map_or("more".to_owned(), |step| step.connection.to_string()), last.newcomer, last.least, last.most
    ));
    Ok(())
}

/// Connections to a Service with another scheduler, beside one with lc that nobody connects to.
fn quiet(report: &mut Report) -> anyhow::Result<()> {
    let rig = Rig::new("rr-beside-lc", ENDPOINTS)?;
    let mut random = fastrand::Rng::with_seed(1);
    let visits = schedule(&mut random, 500.0, 4.0, Holding::Exponential, 0.5);
    let run = rig.run(&visits, 1.0, 4.0)?;
    let [counts, controller] = run.cpu;
    report.say(format!(
        "{} connections to a Service with rr while another one has lc: the thread that hears of connections woke up {} times; CPU of counting {counts:?}, of dealing {controller:?}",
        run.visits.len(), run.wakeups
    ));
    Ok(())
}

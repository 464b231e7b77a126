//! What things cost as the cluster grows: whether an update costs what changed, or what exists.
//!
//! Two halves. [`core`] runs an [`Engine`](pointsman::engine::Engine) and a [`DataPlane`](pointsman::kernel::DataPlane) in this
//! process: from objects in memory to the kernel's acknowledgement, without sockets and JSON. [`daemon`] starts the real
//! `kube-proxy` against an API server double in a namespace: what it takes from bytes on a socket to the kernel, what its memory is,
//! and what a restart costs. With `KUBE_PROXY=/path` another program of that command line is measured in the same run, by means that
//! both have.
//!
//! A *size* is a number of Services and how many endpoints each has. Each round goes through all sizes. A [`Metric`] is one figure per
//! round and size; tables, raw data, verdicts and the plot are made of metrics alone.

mod core;
mod daemon;
mod plot;

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use pointsman::schedule::Scheduler;

use crate::report::{Csv, Report, Table};
use crate::stats::Spread;

/// Options of `scale`.
#[derive(Debug, Args)]
pub struct Options {
    /// Clusters, as SERVICES x ENDPOINTS
    #[arg(long, value_delimiter = ',', default_values = ["1000x10", "10000x10", "50000x10", "5000x50"])]
    sizes: Vec<Size>,
    /// Scheduler of all Services in the half without the daemon
    #[arg(long, default_value = "random")]
    scheduler: Scheduler,
    /// Clients stay with their endpoints, of all Services in the half without the daemon
    #[arg(long)]
    affinity: bool,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Single changes per round and size
    #[arg(long, default_value_t = 400)]
    changes: usize,
    /// The daemon to measure; without it, `kube-proxy` beside this program
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Another program that takes kube-proxy's flags, to be measured beside it
    #[arg(long, value_name = "PATH", env = "KUBE_PROXY")]
    kube_proxy: Option<PathBuf>,
    /// Single changes of that program per round and size: it may wait a second before each
    #[arg(long, default_value_t = 8)]
    kube_proxy_changes: usize,
    /// Leave out the half that needs the daemon
    #[arg(long)]
    no_daemon: bool,
    /// Leave out the half without the daemon
    #[arg(long)]
    no_core: bool,
}

/// A cluster's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    services: u32,
    endpoints: u32,
}

/// A figure that is measured.
#[derive(Debug, Clone, Copy)]
struct Metric {
    /// Name in the raw data; ends with the unit.
    column: &'static str,
    /// What it is, for readers, with the unit.
    title: &'static str,
    digits: usize,
    /// What is not to be exceeded, by size; the first that fits.
    targets: &'static [(Size, f64)],
}

/// What was measured of all metrics of a half.
#[derive(Debug)]
struct Series {
    metrics: &'static [Metric],
    /// By size; one list per round.
    rounds: Vec<(Size, Vec<Vec<f64>>)>,
}

const fn size(services: u32, endpoints: u32) -> Size {
    Size { services, endpoints }
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && options.changes > 1 && !options.sizes.is_empty(), "nothing to measure");
    let mut report = Report::begin("scale", out)?;
    let mut panels = Vec::new();
    if !options.no_core {
        report.say("## Objects in memory to the kernel's acknowledgement\n");
        let series = Series::measure(core::METRICS, options, "objects in memory", |size| core::measure(size, options))?;
        series.report(&mut report, "scale-core")?;
        core::say_flatness(&mut report, &series);
        panels.extend(series.panels());
    }
    if !options.no_daemon {
        let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("kube-proxy"));
        let binary = options.daemon.clone().map_or_else(beside, Ok)?;
        report.say("\n## Bytes on the socket to the kernel: the daemon and an API server double\n");
        let series = Series::measure(daemon::METRICS, options, "daemon", |size| {
            daemon::measure(size, &daemon::Subject::ours(&binary, options.changes))
        })?;
        series.report(&mut report, "scale-daemon")?;
        panels.extend(series.panels());
        if let Some(peer) = &options.kube_proxy {
            report.say(format!("\n## The same of `{}` (KUBE_PROXY)\n", peer.display()));
            let series = Series::measure(daemon::PEER_METRICS, options, "KUBE_PROXY", |size| {
                daemon::measure(size, &daemon::Subject::peer(peer, options.kube_proxy_changes))
            })?;
            series.report(&mut report, "scale-kube-proxy")?;
        }
    }
    report.figure("scale", &plot::draw(&panels))?;
    report.end()
}

// === impl Series ===

impl Series {
    fn measure(
        metrics: &'static [Metric],
        options: &Options,
        what: &str,
        measure: impl Fn(Size) -> anyhow::Result<Vec<f64>>,
    ) -> anyhow::Result<Self> {
        let mut rounds: Vec<_> = options.sizes.iter().map(|size| (*size, Vec::new())).collect();
        for number in 1..=options.rounds {
            for (size, rounds) in &mut rounds {
                eprintln!("{what}: round {number} of {}: {size}", options.rounds);
                let values = measure(*size)?;
                anyhow::ensure!(values.len() == metrics.len(), "a figure for each metric");
                rounds.push(values);
            }
        }
        Ok(Self { metrics, rounds })
    }

    /// What was measured of a metric in all rounds of a size.
    fn values(&self, metric: usize, rounds: &[Vec<f64>]) -> Vec<f64> {
        rounds.iter().map(|values| values[metric]).collect()
    }

    /// The median of a metric at a size.
    fn median(&self, column: &str, wanted: Size) -> Option<f64> {
        let metric = self.metrics.iter().position(|metric| metric.column == column)?;
        let (_, rounds) = self.rounds.iter().find(|(size, _)| *size == wanted)?;
        Some(Spread::of(self.values(metric, rounds)).median)
    }

    /// Raw data, a table, and a verdict for each target.
    fn report(&self, report: &mut Report, name: &str) -> anyhow::Result<()> {
        let columns: Vec<_> = self.metrics.iter().map(|metric| metric.column).collect();
        let mut csv = Csv::new(&format!("round,services,endpoints,{}", columns.join(",")));
        let mut table = Table::new(
            &[&["cluster"][..], &self.metrics.iter().map(|metric| metric.title).collect::<Vec<_>>()].concat(),
        );
        for (size, rounds) in &self.rounds {
            for (number, values) in rounds.iter().enumerate() {
                let front = [number.to_string(), size.services.to_string(), size.endpoints.to_string()];
                let cells = front.into_iter().chain(values.iter().map(|value| format!("{value:.3}")));
                csv.row(&as_cells(&cells.collect::<Vec<_>>()));
            }
            let cells = self
                .metrics
                .iter()
                .enumerate()
                .map(|(index, metric)| format!("{:.*}", metric.digits, Spread::of(self.values(index, rounds))));
            let cells: Vec<String> = std::iter::once(size.to_string()).chain(cells).collect();
            table.row(&as_cells(&cells));
        }
        report.raw(name, &csv)?;
        report.say(table);
        for (index, metric) in self.metrics.iter().enumerate() {
            for (size, rounds) in &self.rounds {
                let Some(target) = metric.target(*size) else { continue };
                let median = Spread::of(self.values(index, rounds)).median;
                let (digits, verdict) = (metric.digits, if median <= target { "met" } else { "missed" });
                report.say(format!(
                    "target: {size}: {}: at most {target:.digits$}: {median:.digits$}: {verdict}",
                    metric.title
                ));
            }
        }
        Ok(())
    }

    fn panels(&self) -> impl Iterator<Item = plot::Panel> + '_ {
        self.metrics.iter().enumerate().map(|(index, metric)| plot::Panel {
            title: metric.title.to_owned(),
            groups: self
                .rounds
                .iter()
                .map(|(size, rounds)| plot::Group {
                    label: size.to_string(),
                    values: self.values(index, rounds),
                    target: metric.target(*size),
                })
                .collect(),
        })
    }
}

fn as_cells(cells: &[String]) -> Vec<&dyn Display> {
    cells.iter().map(|cell| cell as &dyn Display).collect()
}

// === impl Metric ===

impl Metric {
    fn target(&self, wanted: Size) -> Option<f64> {
        self.targets.iter().find(|(size, _)| *size == wanted).map(|(_, target)| *target)
    }
}

// === impl Size ===

impl Size {
    /// The numbers of a Service's pods.
    fn pods(self, service: u32) -> std::ops::Range<u32> {
        service * self.endpoints..(service + 1) * self.endpoints
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (services, endpoints) = text.split_once('x')?;
            let size = Self { services: services.trim().parse().ok()?, endpoints: endpoints.trim().parse().ok()? };
            let fits = size.services.checked_mul(size.endpoints).is_some_and(|pods| pods < 8_000_000);
            (fits && size.services > 0 && size.endpoints > 1).then_some(size)
        };
        parse().ok_or_else(|| format!("{text:?} is no size such as 1000x10"))
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.services, self.endpoints)
    }
}

//! What things cost as the cluster grows: whether an update costs what changed, or what exists.
//!
//! Two halves. [`core`] runs an [`Engine`](pointsman::engine::Engine) and a [`DataPlane`](pointsman::kernel::DataPlane) in this
//! process: from objects in memory to the kernel's acknowledgement, without sockets and JSON. [`daemon`] starts the real
//! `kube-proxy` against an API server double in a namespace: what it takes from bytes on a socket to the kernel, what its memory is,
//! and what a restart costs.
//!
//! A *size* is a number of Services and how many endpoints each has. Each round goes through all sizes.

mod core;
mod daemon;

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use pointsman::schedule::Scheduler;

use crate::report::Report;

/// Options of `scale`.
#[derive(Debug, Args)]
pub struct Options {
    /// Clusters, as SERVICES x ENDPOINTS
    #[arg(long, value_delimiter = ',', default_values = ["1000x10", "10000x10", "50000x10", "5000x50"])]
    sizes: Vec<Size>,
    /// Scheduler of all Services in the half without the daemon
    #[arg(long, default_value = "random")]
    scheduler: Scheduler,
    /// Rounds
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Single changes per round and size
    #[arg(long, default_value_t = 400)]
    changes: usize,
    /// The daemon to measure; without it, `kube-proxy` beside this program
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
    /// Leave out the half that needs the daemon
    #[arg(long)]
    no_daemon: bool,
}

/// A cluster's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    services: u32,
    endpoints: u32,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && options.changes > 1 && !options.sizes.is_empty(), "nothing to measure");
    let mut report = Report::begin("scale", out)?;
    core::run(&mut report, options)?;
    if !options.no_daemon {
        daemon::run(&mut report, options)?;
    }
    report.end()
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

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.services, self.endpoints)
    }
}

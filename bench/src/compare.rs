//! Everybody side by side: no proxy, one rule, us, and the shapes of kube-proxy's modes, on the same objects, alternating, on this kernel.
//!
//! Vocabulary: a *contender* serves Services ([`contender`]); a *measurement* has figures ([`model`], taken in [`measure`]); a *session* is one
//! contender on a stage of its own ([`stage`]) with one number of Services; a *round* has a session for each ([`plan`]); a *place* is a kernel
//! on which everything was run, with a *journal* of raw data ([`record`]). The *report* ([`html`], [`markdown`], [`summary`], [`chart`]) is made of all
//! journals of a directory; the VM ([`vm`]) is another place, for what this kernel lacks.
//!
//! Invariants:
//! - Every contender and measurement of a place has rows, failures or a reason; nothing is dropped (`tests/compare.rs` checks a run).
//! - Raw data are written as they are made; a run that is broken off goes on with what is missing.
//! - Who is a real program and who a baseline of ours is said wherever figures are.

mod chart;
mod contender;
mod daemon;
mod fixed;
mod html;
mod iptables;
mod ipvs;
mod markdown;
mod measure;
mod model;
mod nftables;
mod plan;
mod progress;
mod proxies;
mod record;
mod stage;
mod summary;
mod tool;
mod vm;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use self::measure::Pace;
use self::model::{Measurement, Service};
use self::plan::Plan;
use self::record::{Journal, Manifest, Participant, Place};
use crate::report;

/// Options of `compare`.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Fewer sizes, rounds and samples: less than five minutes
    #[arg(long)]
    quick: bool,
    /// Go on with a run that was broken off
    #[arg(long)]
    resume: bool,
    /// Run in a VM, with a kernel that has IPVS (bookworm, trixie or jammy); its rows become another place of the same report
    #[arg(long, value_name = "KERNEL", num_args = 0..=1, require_equals = true, default_missing_value = "bookworm")]
    vm: Option<String>,
    /// In the VM, count instructions of one CPU instead of seconds
    #[arg(long, requires = "vm")]
    icount: bool,
    /// The real kube-proxy, run in its three modes
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
    /// Numbers of Services [default: 1,100,1000,5000,10000; quick and VM: 1,100,1000]
    #[arg(long, value_delimiter = ',')]
    sizes: Option<Vec<u32>>,
    /// The number of Services at which everything is measured
    #[arg(long, default_value_t = 100)]
    base: u32,
    /// Rounds [default: 5; quick and VM: 2]
    #[arg(long)]
    rounds: Option<u32>,
    /// Endpoints of each Service, 1 to 10
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=10))]
    endpoints: u16,
    /// Only these contenders
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these measurements
    #[arg(long, value_delimiter = ',', value_parser = parse_measurement)]
    measure: Vec<Measurement>,
    /// Break off after so many minutes; `--resume` goes on
    #[arg(long)]
    minutes: Option<f64>,
    /// How often a measurement is taken at most, while the floor moves
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// Seconds that a program may take to load [default: 120; quick: 30]
    #[arg(long)]
    limit: Option<u64>,
    /// Measure nothing: make the report of the journals that are there
    #[arg(long)]
    report: bool,
    /// Name of the place
    #[arg(long, default_value = "host", hide = true)]
    place: String,
    /// A second file for the journal's lines
    #[arg(long, hide = true)]
    mirror: Option<PathBuf>,
    /// What was built, where no repository is at hand
    #[arg(long, hide = true)]
    commit: Option<String>,
}

/// Measures, and makes the report.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let directory = report::results(out)?;
    if options.vm.is_some() {
        vm::run(options, &directory)?;
    } else if !options.report {
        measure_here(options, &directory)?;
    }
    if options.mirror.is_none() {
        html::write(&directory, &Place::all(&directory)?)?;
    }
    Ok(())
}

fn measure_here(options: &Options, directory: &std::path::Path) -> anyhow::Result<()> {
    let path = record::path(directory, &options.place);
    anyhow::ensure!(
        options.resume || !path.exists(),
        "{} is there: --resume goes on with it, --out begins another one",
        path.display()
    );
    // Userspace proxies inherit it.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(200_000), most)?;
    let mut contenders = contender::all(options.kube_proxy.as_ref());
    contenders.retain(|contender| options.only.is_empty() || options.only.iter().any(|name| name == contender.name()));
    anyhow::ensure!(!contenders.is_empty(), "no contender of these names: {}", options.only.join(", "));
    let plan = Plan {
        sizes: options.sizes(),
        base: options.base,
        rounds: options.rounds(),
        endpoints: options.endpoints,
        pace: options.pace(),
        contenders: &contenders,
        only: options.measure.clone(),
        attempts: options.attempts,
        until: options.minutes.map(|minutes| Instant::now() + Duration::from_secs_f64(minutes * 60.0)),
    };
    let mut journal = Journal::open(&path, options.mirror.as_deref())?;
    journal.begin(Manifest {
        sizes: plan.sizes.clone(),
        base: plan.base,
        rounds: plan.rounds,
        endpoints: plan.endpoints,
        samples: plan.pace.samples,
        limit_seconds: plan.pace.limit.as_secs(),
        contenders: contenders.iter().map(|contender| Participant::of(&**contender)).collect(),
        ..Manifest::here(&options.place, options.commit.clone())
    })?;
    let complete = plan.run(&mut journal)?;
    let state = if complete { "complete" } else { "not complete yet" };
    println!("{state}: {}", path.display());
    Ok(())
}

// === impl Options ===

impl Options {
    /// A VM without KVM is slow: it gets what a quick run gets.
    fn is_short(&self) -> bool {
        self.quick || self.vm.is_some() || self.place != "host"
    }

    fn sizes(&self) -> Vec<u32> {
        let default = || if self.is_short() { vec![1, 100, 1_000] } else { vec![1, 100, 1_000, 5_000, 10_000] };
        let mut sizes = self.sizes.clone().unwrap_or_else(default);
        // Everything is measured at this one.
        if !sizes.contains(&self.base) {
            sizes.push(self.base);
        }
        sizes.sort_unstable();
        sizes
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.is_short() { 2 } else { 5 })
    }

    fn pace(&self) -> Pace {
        let slow = self.place != "host";
        let millis = Duration::from_millis;
        let mut pace = if self.is_short() {
            Pace {
                samples: 400,
                span: millis(200),
                changes: 5,
                balance: 1.0,
                settle: millis(150),
                limit: millis(30_000),
            }
        } else {
            Pace {
                samples: 2_000,
                span: millis(500),
                changes: 20,
                balance: 4.0,
                settle: millis(300),
                limit: millis(120_000),
            }
        };
        if slow {
            pace = Pace { settle: millis(1_000), span: millis(1_000), limit: millis(120_000), ..pace };
        }
        if let Some(seconds) = self.limit {
            pace.limit = Duration::from_secs(seconds);
        }
        pace
    }
}

fn parse_measurement(name: &str) -> Result<Measurement, String> {
    let known = || Measurement::ALL.map(Measurement::name).join(", ");
    Measurement::of(name).ok_or_else(|| format!("none of {}", known()))
}

/// FNV-1a of a text, for names of chains: as long as those that kube-proxy makes of SHA-256.
fn short_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Replaces a Service of the same name; returns what it was.
fn replace(cluster: &mut [Service], service: &Service) -> Service {
    let known = cluster.iter_mut().find(|known| known.name == service.name).expect("one of the cluster's");
    std::mem::replace(known, service.clone())
}

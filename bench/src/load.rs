//! How long it takes to bring 100,000 endpoints into the kernel, and how long a single change takes afterwards.
//!
//! A *load* runs in a network namespace of its own, from nothing: what is measured is one call, or its equivalent in crate `nft`.
//! The *yardstick* is the fastest way we know to fill one map ([`raw`]); the *product* is [`DataPlane::apply`] of everything an
//! [`Engine`] wants; the *shapes* are the product's two large maps filled by the yardstick's means, with and without comments and
//! in transactions of several sizes, and say where the difference comes from. A *round* is one load of each, in an order that
//! moves on from round to round. A *change* ([`change`]) is one endpoint that comes or goes in a cluster that is already there.
//!
//! Memory of a namespace that goes is freed by kernel threads; the pause after each load lets them finish.

mod change;
mod raw;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use pointsman::compile::Delta;
use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::Namespace;
use pointsman::schedule::Scheduler;

use self::raw::{Comments, Elements};
use crate::cluster::{self, Endpoints};
use crate::report::{Csv, Report, Table};
use crate::stats::Spread;
use crate::usage::{CpuTime, slab_bytes};

/// Elements per transaction of the yardstick: ten messages' worth (design notes, netlink).
const YARDSTICK_CHUNK: usize = 14_890;

/// Elements per transaction of the shapes that differ in comments: the product's own number.
const SHAPE_CHUNK: usize = 8_192;

/// Until the kernel has freed what a load left.
const SETTLE: Duration = Duration::from_millis(150);

/// Options of `load`.
#[derive(Debug, Args)]
pub struct Options {
    /// Number of Services, of ten endpoints each
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Rounds of loads
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Transaction sizes to compare, in elements
    #[arg(long, value_delimiter = ',', default_values_t = [1_024, 2_048, 4_096, 8_192, 14_890, 32_768])]
    chunks: Vec<usize>,
    /// Numbers of Services at which single changes are timed
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    change_services: Vec<u32>,
    /// Rounds of single changes
    #[arg(long, default_value_t = 5)]
    change_rounds: usize,
    /// Single changes per round
    #[arg(long, default_value_t = 300)]
    changes: usize,
}

/// A way of loading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Yardstick,
    Product,
    Shape(Comments),
    Chunked(usize),
}

/// What one load took.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    elements: usize,
    transactions: usize,
    bytes: usize,
    wall: Duration,
    longest: Duration,
    cpu: CpuTime,
    slab: i64,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.rounds > 0 && options.services > 0, "nothing to measure");
    let mut report = Report::begin("load", out)?;
    let _elsewhere = tracking_elsewhere()?;
    let engine = compiled(&mut report, options)?;
    let elements = Elements::of(options.services);
    let shapes = [Comments::NONE, Comments::SERVICES, Comments::ALL].map(Variant::Shape);
    let chunked = options.chunks.iter().map(|chunk| Variant::Chunked(*chunk));
    let variants: Vec<_> = [Variant::Yardstick, Variant::Product].into_iter().chain(shapes).chain(chunked).collect();
    let mut costs: Vec<Vec<Cost>> = variants.iter().map(|_| Vec::new()).collect();
    let mut csv =
        Csv::new("round,position,variant,elements,transactions,bytes,wall_us,longest_us,user_us,system_us,slab_bytes");
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for position in 0..variants.len() {
            let index = (round + position) % variants.len();
            let cost = load(variants[index], &elements, &engine)?;
            csv.row(&[
                &round,
                &position,
                &variants[index],
                &cost.elements,
                &cost.transactions,
                &cost.bytes,
                &cost.wall.as_micros(),
                &cost.longest.as_micros(),
                &cost.cpu.user.as_micros(),
                &cost.cpu.system.as_micros(),
                &cost.slab,
            ]);
            costs[index].push(cost);
        }
    }
    report.raw("load", &csv)?;
    summarise(&mut report, &variants, &costs);
    drop((engine, elements));
    change::run(&mut report, &options.change_services, options.change_rounds, options.changes)?;
    report.end()
}

/// An engine that knows the whole cluster; says what that took.
fn compiled(report: &mut Report, options: &Options) -> anyhow::Result<Engine> {
    let mut csv = Csv::new("round,services,take_us,compile_us,everything_us");
    let mut times: [Vec<f64>; 3] = Default::default();
    let mut last = None;
    for round in 0..options.rounds {
        let changes = cluster::changes(options.services, Endpoints::Spread);
        let mut engine = Engine::new("bench", Scheduler::Random);
        let begin = Instant::now();
        changes.into_iter().for_each(|change| engine.take(change));
        let taken = Instant::now();
        let outcome = engine.compile();
        let compiled = Instant::now();
        let everything = engine.everything();
        let parts = [taken - begin, compiled - taken, compiled.elapsed()];
        anyhow::ensure!(outcome.problems.is_empty(), "our own objects are not accepted: {}", outcome.problems[0]);
        anyhow::ensure!(everything.len() == outcome.delta.len(), "everything is what the first compilation said");
        let micros = parts.map(|part| part.as_micros());
        csv.row(&[&round, &options.services, &micros[0], &micros[1], &micros[2]]);
        parts.iter().zip(&mut times).for_each(|(part, times)| times.push(part.as_secs_f64() * 1e3));
        last = Some(engine);
    }
    report.raw("load-engine", &csv)?;
    let [take, compile, everything] = times.map(Spread::of);
    report
        .say(format!("## Before the kernel: {} Services of ten endpoints, ms, median [quartiles]\n", options.services));
    let mut table = Table::new(&["step", "ms"]);
    table.row(&[&"Engine::take, all objects", &format!("{take:.1}")]);
    table.row(&[&"Engine::compile", &format!("{compile:.1}")]);
    table.row(&[&"Engine::everything", &format!("{everything:.1}")]);
    report.say(table);
    last.context("at least one round")
}

fn load(variant: Variant, elements: &Elements, engine: &Engine) -> anyhow::Result<Cost> {
    let namespace = Namespace::anonymous()?;
    let cost = namespace.run(|| match variant {
        Variant::Yardstick => raw::yardstick(elements, YARDSTICK_CHUNK),
        Variant::Product => product(engine),
        Variant::Shape(comments) => raw::shape(elements, comments, SHAPE_CHUNK),
        Variant::Chunked(chunk) => raw::endpoints(elements, chunk),
    })?;
    drop(namespace);
    thread::sleep(SETTLE);
    Ok(cost)
}

/// A namespace with an empty proxy in it. The first user of a netfilter hook on a machine makes the kernel rewrite its own code in
/// many places (static keys), which takes milliseconds and has nothing to do with what is loaded: on a node, a network plugin or a
/// firewall has done that long before.
fn tracking_elsewhere() -> anyhow::Result<Namespace> {
    let namespace = Namespace::anonymous()?;
    namespace.run(|| DataPlane::open()?.apply(&Delta::default()))?;
    Ok(namespace)
}

fn product(engine: &Engine) -> anyhow::Result<Cost> {
    let everything = engine.everything();
    let mut plane = DataPlane::open()?;
    let (slab, cpu) = (slab_bytes()?, CpuTime::now()?);
    let applied = plane.apply(&everything)?;
    let (cpu, slab) = (CpuTime::now()?.since(cpu), slab_bytes()? - slab);
    plane.remove()?;
    Ok(Cost {
        elements: applied.elements,
        transactions: applied.transactions,
        bytes: applied.bytes,
        wall: applied.duration,
        longest: applied.longest,
        cpu,
        slab,
    })
}

fn summarise(report: &mut Report, variants: &[Variant], costs: &[Vec<Cost>]) {
    let millis = |duration: Duration| duration.as_secs_f64() * 1e3;
    let series = |index: usize, of: &dyn Fn(&Cost) -> f64| -> Vec<f64> { costs[index].iter().map(of).collect() };
    let wall = |index| series(index, &|cost| millis(cost.wall));
    let yardstick = wall(0);
    report.say(format!("## Loads: ms, median over {} rounds [quartiles]\n", costs[0].len()));
    let cpu = |index| series(index, &|cost| millis(cost.cpu.user + cost.cpu.system));
    let mut times = Table::new(&["load", "elements", "wall", "fastest", "CPU", "wall / yardstick", "CPU / yardstick"]);
    let mut sizes =
        Table::new(&["load", "transactions", "longest", "least longest", "MB sent", "slab bytes / element"]);
    for (index, variant) in variants.iter().enumerate() {
        let cost = costs[index][0];
        let longest = series(index, &|cost| millis(cost.longest));
        let least = |values: &[f64]| format!("{:.1}", values.iter().copied().fold(f64::INFINITY, f64::min));
        times.row(&[
            variant,
            &cost.elements,
            &format!("{:.1}", Spread::of(wall(index))),
            &least(&wall(index)),
            &format!("{:.1}", Spread::of(cpu(index))),
            &Spread::of_ratios(&wall(index), &yardstick),
            &Spread::of_ratios(&cpu(index), &cpu(0)),
        ]);
        let slab = Spread::of(series(index, &|cost| cost.slab as f64 / cost.elements as f64));
        sizes.row(&[
            variant,
            &cost.transactions,
            &format!("{:.1}", Spread::of(longest.iter().copied())),
            &least(&longest),
            &format!("{:.1}", cost.bytes as f64 / 1e6),
            &format!("{:.0}", slab.median),
        ]);
    }
    report.say(times);
    report.say(sizes);
    let target = |ratio: Spread| format!("{ratio}: {}", if ratio.median <= 2.0 { "met" } else { "MISSED" });
    report.say("target: the product's whole load, Services and comments included, at most 2 x the yardstick's time");
    report.say(format!("- wall: {}", target(Spread::of_ratios(&wall(1), &yardstick))));
    report.say(format!("- CPU, where others compete for it: {}\n", target(Spread::of_ratios(&cpu(1), &cpu(0)))));
}

impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Yardstick => write!(f, "yardstick"),
            Self::Product => write!(f, "product"),
            Self::Shape(comments) => write!(f, "shape: {comments}"),
            Self::Chunked(chunk) => write!(f, "endpoints by {chunk}"),
        }
    }
}

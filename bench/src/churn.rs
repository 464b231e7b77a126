//! Ten hours of changes in minutes: whether the daemon's memory stays, and whether the kernel has in the end what a fresh start would make.
//!
//! An API server double tells the real `kube-proxy` of events as fast as they are programmed: slices of which endpoints come and go, Services
//! that are deleted and come back elsewhere, change scheduler and affinity, swap their addresses. Every so often a *marker* is
//! waited for, so that the daemon is never further behind than that, and its memory, and how many elements the kernel has, are noted. In the end
//! the tables are read, and compared element by element with what an engine makes that has seen the last state of all objects only.

mod objects;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use api_double::{ApiDouble, node};
use clap::Args;
use nft::{Connection, Family, Key, SetRef};
use nix::libc;
use nix::sys::signal::Signal;
use pointsman::kernel::DataPlane;
use pointsman::lab::Namespace;

use crate::daemon::{self, Daemon};
use crate::report::{Csv, Report, Table};
use objects::{Cluster, MARKER_PORT};

/// Options of `churn`.
#[derive(Debug, Args)]
pub struct Options {
    /// Events in all
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// Services, ten endpoints each at most
    #[arg(long, default_value_t = 2000)]
    services: u32,
    /// Events between two markers
    #[arg(long, default_value_t = 2000)]
    burst: usize,
    /// For the same history again
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The daemon to measure; without it, `kube-proxy` beside this program
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
}

/// Until something is considered broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows of the summary.
const ROWS: usize = 10;

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.services > 1 && options.burst > 0 && options.events >= options.burst, "nothing to measure");
    let binary = daemon::binary(options.kube_proxy.as_deref())?;
    let mut report = Report::begin("churn", out)?;
    let namespace = Namespace::anonymous()?;
    namespace.prepare()?;
    let double = namespace.run(ApiDouble::start);
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    let mut cluster = Cluster::new(options.services, options.seed);
    cluster.fill(&double);
    let directory = tempfile::tempdir()?;
    let mut daemon = Daemon::start(&namespace, &binary, &double.kubeconfig(directory.path()))?;
    let mut witness = namespace.run(Connection::open)?;

    let mut csv = Csv::new("events,seconds,rss_kib,peak_kib,services_elements,endpoints_elements,chains");
    let mut table = Table::new(&["events", "seconds", "resident, MB", "services", "endpoints", "chains"]);
    let begin = Instant::now();
    let mut done = 0;
    let every = (options.events / options.burst / ROWS).max(1);
    for burst in 0.. {
        cluster.mark(&double);
        wait_for(&mut witness, cluster.marker_key(), &mut daemon)?;
        let [resident, peak] = daemon.memory()?;
        let [services, endpoints, chains] = counts(&mut witness)?;
        let seconds = begin.elapsed().as_secs_f64();
        csv.row(&[&done, &format!("{seconds:.3}"), &resident, &peak, &services, &endpoints, &chains]);
        if burst % every == 0 || done >= options.events {
            let megabytes = resident as f64 * 1024.0 / 1e6;
            table.row(&[&done, &format!("{seconds:.1}"), &format!("{megabytes:.1}"), &services, &endpoints, &chains]);
        }
        if done >= options.events {
            break;
        }
        let count = options.burst.min(options.events - done);
        (0..count).for_each(|_| cluster.step(&double));
        done += count;
    }
    report.raw("churn", &csv)?;
    report.say(table);
    daemon.end(Signal::SIGTERM)?;
    report.say(compare(&namespace, &cluster)?);
    report.end()
}

/// Reads what the daemon left and compares it with what a fresh engine makes of the last state.
fn compare(namespace: &Namespace, cluster: &Cluster) -> anyhow::Result<String> {
    let mut plane = namespace.run(DataPlane::open)?;
    let found = plane.read()?;
    anyhow::ensure!(found.rejected.is_empty(), "the tables cannot be adopted: {:?}", found.rejected);
    let mut fresh = cluster.engine();
    fresh.compile();
    let wanted = fresh.everything();
    macro_rules! sizes {
        ($table:expr) => {{
            let table = &$table;
            [
                table.services.len(),
                table.endpoints.len(),
                table.members.len(),
                table.member_slots.len(),
                table.dedicated.len(),
            ]
        }};
    }
    let (there, wanted_sizes) = (sizes!(found.image.v4), sizes!(wanted.v4));
    let pools = |slots: &mut dyn Iterator<Item = u32>| slots.collect::<std::collections::BTreeSet<_>>().len();
    let used = pools(&mut found.image.v4.endpoints.keys().map(|key| key.pool.number()));
    let needed = pools(&mut wanted.v4.endpoints.added().map(|(key, _)| key.pool.number()));
    // An engine that adopts the numbers it finds must find nothing to change.
    let mut next = cluster.engine();
    next.adopt(found.image.clone());
    next.compile();
    next.settle();
    let difference = next.difference(found.image);
    Ok(format!(
        "In the end the kernel has {there:?} elements in services, endpoints, members, member-slots, dedicated; a fresh engine makes {wanted_sizes:?}.\n\
         Pools with endpoints: {used}, a fresh engine has {needed}. What a restart would change: {} elements{}.\n\
         Verdict: {}.",
        difference.len(),
        if difference.is_empty() { String::new() } else { format!(" ({})", difference.summary()) },
        if there == wanted_sizes && used == needed && difference.is_empty() { "equal" } else { "NOT equal" },
    ))
}

/// Waits until the kernel has a frontend.
fn wait_for(witness: &mut Connection, key: Key, daemon: &mut Daemon) -> anyhow::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let services = SetRef { family: Family::Ip, table: "pointsman", name: "services" };
        if matches!(witness.lookup(services, [key], |_| ()), Ok(0)) {
            return Ok(());
        }
        daemon.loaded()?;
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("the marker was not programmed in {PATIENCE:?}")
}

/// Elements of maps `services` and `endpoints`, where the kernel tells (Linux 6.17), and chains; of the `ip` table.
fn counts(witness: &mut Connection) -> anyhow::Result<[usize; 3]> {
    let sets = witness.sets(Family::Ip, "pointsman")?;
    let count = |name: &str| {
        let set = sets.iter().find(|set| set.name == name);
        set.and_then(|set| set.count).unwrap_or_default() as usize
    };
    Ok([count("services"), count("endpoints"), witness.chains(Family::Ip, "pointsman")?.len()])
}

/// The key of map `services`.
fn frontend(address: std::net::Ipv4Addr) -> Key {
    Key::new().ipv4(address).proto(libc::IPPROTO_TCP as u8).port(MARKER_PORT)
}

//! The daemon itself, against an API server double in its namespace.
//!
//! Per size: a first start (until everything is programmed), single endpoint changes (from the server writing the event to the
//! kernel's notification of the commit), the daemon's memory, and a restart with nothing changed (until it says that it compared
//! everything, and how many elements it wrote). The server and this program take CPU time on the same machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api_double::{ApiDouble, endpoint_slice, node, service};
use nft::Monitor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::Namespace;

use super::{Options, Size};
use crate::cluster;
use crate::report::{Csv, Report, Table};
use crate::stats::{Spread, quantile};

/// Until something is considered broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two single changes.
const PAUSE: Duration = Duration::from_millis(3);

const WARM_UP: usize = 10;

/// One round of one size.
struct Round {
    first: Duration,
    /// Sorted.
    changes: Vec<Duration>,
    /// Resident after the changes, and at most so far.
    memory: [u64; 2],
    restart: Duration,
    rewritten: u64,
}

struct Daemon {
    child: Child,
    lines: mpsc::Receiver<String>,
    started: Instant,
}

pub(super) fn run(report: &mut Report, options: &Options) -> anyhow::Result<()> {
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("kube-proxy"));
    let binary = options.kube_proxy.clone().map_or_else(beside, Ok)?;
    anyhow::ensure!(binary.exists(), "no daemon at {}: build it, or say where it is", binary.display());
    let mut csv = Csv::new(
        "round,services,endpoints,first_ms,change_p50_us,change_p99_us,rss_kib,peak_kib,restart_ms,elements_rewritten",
    );
    let mut rounds: Vec<Vec<Round>> = options.sizes.iter().map(|_| Vec::new()).collect();
    for number in 0..options.rounds {
        for (size, rounds) in options.sizes.iter().zip(&mut rounds) {
            eprintln!("daemon: round {} of {}: {size}", number + 1, options.rounds);
            let round = measure(*size, options.changes, &binary)?;
            csv.row(&[
                &number,
                &size.services,
                &size.endpoints,
                &round.first.as_millis(),
                &quantile(&round.changes, 0.5).as_micros(),
                &quantile(&round.changes, 0.99).as_micros(),
                &round.memory[0],
                &round.memory[1],
                &round.restart.as_millis(),
                &round.rewritten,
            ]);
            rounds.push(round);
        }
    }
    report.raw("scale-daemon", &csv)?;
    report
        .say(format!("\n## The daemon and an API server double: median over {} rounds [quartiles]\n", options.rounds));
    let mut table = Table::new(&[
        "cluster",
        "start to all programmed, s",
        "event written to kernel's notice p50, us",
        "p99, us",
        "resident, MB",
        "at most, MB",
        "restart to all compared, s",
        "elements rewritten",
    ]);
    for (size, rounds) in options.sizes.iter().zip(&rounds) {
        let over =
            |digits: usize, of: &dyn Fn(&Round) -> f64| format!("{:.digits$}", Spread::of(rounds.iter().map(of)));
        table.row(&[
            size,
            &over(2, &|round| round.first.as_secs_f64()),
            &over(0, &|round| quantile(&round.changes, 0.5).as_secs_f64() * 1e6),
            &over(0, &|round| quantile(&round.changes, 0.99).as_secs_f64() * 1e6),
            &over(0, &|round| round.memory[0] as f64 * 1024.0 / 1e6),
            &over(0, &|round| round.memory[1] as f64 * 1024.0 / 1e6),
            &over(2, &|round| round.restart.as_secs_f64()),
            &rounds.iter().map(|round| round.rewritten).max().unwrap_or(0),
        ]);
    }
    report.say(table);
    Ok(())
}

fn measure(size: Size, changes: usize, binary: &Path) -> anyhow::Result<Round> {
    let namespace = Namespace::anonymous()?;
    namespace.prepare()?;
    let double = namespace.run(ApiDouble::start);
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    for number in 0..size.services {
        let (name, address) = (format!("service-{number}"), cluster::cluster_ip(number).to_string());
        double.apply(service("bench", &name, &address, &[("", "TCP", cluster::SERVICE_PORT)]));
        double.apply(slice(size, number, 0));
    }
    let directory = tempfile::tempdir()?;
    let kubeconfig = double.kubeconfig(directory.path());

    let mut daemon = Daemon::start(&namespace, binary, &kubeconfig)?;
    let (first, _) = daemon.programmed()?;
    let mut monitor = namespace.run(Monitor::open)?;
    let mut times = Vec::with_capacity(changes);
    for number in 0..WARM_UP + changes {
        let service = (number as u32 / 2).wrapping_mul(7919) % size.services;
        let object = slice(size, service, (number + 1) % 2);
        while monitor.try_next()?.is_some() {}
        std::thread::sleep(PAUSE);
        let begin = Instant::now();
        double.apply(object);
        monitor.next_timeout(PATIENCE)?.context("a change that the kernel never heard of")?;
        if number >= WARM_UP {
            times.push(begin.elapsed());
        }
    }
    times.sort();
    drop(monitor);
    let memory = daemon.memory()?;
    daemon.stop()?;

    let mut daemon = Daemon::start(&namespace, binary, &kubeconfig)?;
    let (restart, rewritten) = daemon.programmed()?;
    daemon.stop()?;
    Ok(Round { first, changes: times, memory, restart, rewritten })
}

/// A Service's slice as a cluster has it, without the first `missing` endpoints.
fn slice(size: Size, number: u32, missing: usize) -> serde_json::Value {
    let (service, name) = (format!("service-{number}"), format!("service-{number}-a"));
    let pods: Vec<_> = size.pods(number).skip(missing).map(|pod| cluster::pod(pod).to_string()).collect();
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    endpoint_slice("bench", &name, &service, &pods, &[("", "TCP", cluster::TARGET_PORT)])
}

// === impl Daemon ===

impl Daemon {
    fn start(namespace: &Namespace, binary: &Path, kubeconfig: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.args(["--hostname-override=n1", "--v=2", "--kubeconfig"]).arg(kubeconfig);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for variable in ["RUST_LOG", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
            command.env_remove(variable);
        }
        let started = Instant::now();
        let mut child = namespace.spawn(command).context("starting the daemon")?;
        let stderr = BufReader::new(child.stderr.take().context("its standard error")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| {
                let _ = sender.send(line);
            });
        });
        Ok(Self { child, lines, started })
    }

    /// Waits until everything known is programmed; says when, and how many elements were written.
    fn programmed(&mut self) -> anyhow::Result<(Duration, u64)> {
        let mut said = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            if line.contains("\"programmed\" ") {
                let elements = line.split("elements=").nth(1).and_then(|rest| rest.split(' ').next());
                let elements = elements.and_then(|number| number.parse().ok()).context("a line without elements")?;
                return Ok((self.started.elapsed(), elements));
            }
            said.push(line);
        }
        bail!("the daemon programmed nothing; it said {said:#?}")
    }

    /// Resident now and at most, in KiB (proc_pid_status(5)).
    fn memory(&self) -> anyhow::Result<[u64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches("kB").trim().parse().ok()
        };
        Ok([field("VmRSS:").context("no VmRSS")?, field("VmHWM:").context("no VmHWM")?])
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let pid = Pid::from_raw(self.child.id().try_into()?);
        kill(pid, Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The daemon itself, against an API server double in its namespace.
//!
//! Per size: a first start, until everything is programmed; single endpoint changes, from the server writing the event to the kernel's
//! notification of the commit; the daemon's memory; and a restart with nothing changed. The server and this program take CPU time on
//! the same machine: what each took of it stands beside the times of both starts.
//!
//! That everything is programmed is asked of the daemon's metrics, where kube-proxy says the same under the same name, so that any program
//! with kube-proxy's flags can be measured by the same means. How many elements a restart wrote only our own log tells.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api_double::{ApiDouble, endpoint_slice, node, service};
use nft::Monitor;
use nix::sys::signal::Signal;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use pointsman::lab::Namespace;

use super::{Metric, Size, size};
use crate::cluster;
use crate::daemon::Daemon;
use crate::stats::quantile;

/// Until something is considered broken.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two questions whether everything is programmed.
const ASK: Duration = Duration::from_millis(5);

/// Targets from issue 6.
pub(super) const METRICS: &[Metric] = &[
    Metric { column: "first_s", title: "start to all programmed, s", digits: 2, targets: &[] },
    Metric { column: "first_cpu_s", title: "CPU of it, s", digits: 2, targets: &[] },
    Metric { column: "first_server_s", title: "server's CPU, s", digits: 2, targets: &[] },
    Metric { column: "change_p50_us", title: "event written to kernel's notice p50, us", digits: 0, targets: &[] },
    Metric { column: "change_p99_us", title: "p99, us", digits: 0, targets: &[] },
    Metric {
        column: "rss_mb",
        title: "resident, MB",
        digits: 0,
        targets: &[(size(10_000, 10), 60.0), (size(50_000, 10), 220.0)],
    },
    Metric { column: "peak_mb", title: "at most, MB", digits: 0, targets: &[] },
    Metric { column: "restart_s", title: "restart to all compared, s", digits: 2, targets: &[] },
    Metric { column: "restart_cpu_s", title: "CPU of it, s", digits: 2, targets: &[] },
    Metric { column: "restart_server_s", title: "server's CPU, s", digits: 2, targets: &[] },
    Metric {
        column: "rewritten",
        title: "elements rewritten",
        digits: 0,
        targets: &[(size(10_000, 10), 0.0), (size(50_000, 10), 0.0)],
    },
];

/// What any other program can be asked for.
pub(super) const PEER_METRICS: &[Metric] = METRICS.split_at(METRICS.len() - 1).0;

/// A program to be measured.
pub(super) struct Subject<'a> {
    binary: &'a Path,
    /// Flags of its own.
    flags: &'a [&'a str],
    changes: usize,
    warm_up: usize,
    /// Between two single changes.
    pause: Duration,
    /// Whether its log tells how many elements were written.
    tells: bool,
}

struct Started {
    daemon: Daemon,
    /// CPU time of this process, the server's, when it was started.
    server: Duration,
}

/// A start, until everything was programmed.
struct Start {
    time: Duration,
    cpu: Duration,
    server: Duration,
}

// === impl Subject ===

impl<'a> Subject<'a> {
    /// The daemon of this project.
    pub(super) fn ours(binary: &'a Path, changes: usize) -> Self {
        Self {
            binary,
            flags: &["--status-socket="],
            changes,
            warm_up: 10,
            pause: Duration::from_millis(3),
            tells: true,
        }
    }

    /// Another program, in its nftables mode. kube-proxy waits for a second between two syncs.
    pub(super) fn peer(binary: &'a Path, changes: usize) -> Self {
        let flags = &["--proxy-mode=nftables"];
        Self { binary, flags, changes, warm_up: 1, pause: Duration::from_millis(1500), tells: false }
    }
}

/// One round of one size.
pub(super) fn measure(size: Size, subject: &Subject<'_>) -> anyhow::Result<Vec<f64>> {
    anyhow::ensure!(
        subject.binary.exists(),
        "{} does not exist: build it, or say where it is",
        subject.binary.display()
    );
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

    let mut daemon = Started::begin(&namespace, subject, &kubeconfig)?;
    let first = daemon.synced(&namespace)?;
    let mut monitor = namespace.run(Monitor::open)?;
    let mut times = Vec::with_capacity(subject.changes);
    for number in 0..subject.warm_up + subject.changes {
        let service = (number as u32 / 2).wrapping_mul(7919) % size.services;
        let object = slice(size, service, (number + 1) % 2);
        std::thread::sleep(subject.pause);
        while monitor.try_next()?.is_some() {}
        let begin = Instant::now();
        double.apply(object);
        monitor.next_timeout(PATIENCE)?.context("a change that the kernel never heard of")?;
        if number >= subject.warm_up {
            times.push(begin.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    drop(monitor);
    let [resident, peak] = daemon.daemon.memory()?.map(|kib| kib as f64 * 1024.0 / 1e6);
    daemon.daemon.end(Signal::SIGTERM)?;

    let mut daemon = Started::begin(&namespace, subject, &kubeconfig)?;
    let restart = daemon.synced(&namespace)?;
    let rewritten = subject.tells.then(|| daemon.written()).transpose()?;
    daemon.daemon.end(Signal::SIGTERM)?;
    let start = |start: &Start| [start.time, start.cpu, start.server].map(|time| time.as_secs_f64());
    let mut values = start(&first).to_vec();
    values.extend([quantile(&times, 0.5), quantile(&times, 0.99), resident, peak]);
    values.extend(start(&restart));
    values.extend(rewritten);
    Ok(values)
}

/// A Service's slice as a cluster has it, without the first `missing` endpoints.
fn slice(size: Size, number: u32, missing: usize) -> serde_json::Value {
    let (service, name) = (format!("service-{number}"), format!("service-{number}-a"));
    let pods: Vec<_> = size.pods(number).skip(missing).map(|pod| cluster::pod(pod).to_string()).collect();
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    endpoint_slice("bench", &name, &service, &pods, &[("", "TCP", cluster::TARGET_PORT)])
}

/// CPU time of this process, all threads.
fn process_time() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("asking for the process's CPU time")?.into())
}

// === impl Started ===

impl Started {
    fn begin(namespace: &Namespace, subject: &Subject<'_>, kubeconfig: &Path) -> anyhow::Result<Self> {
        let settings: Vec<_> =
            std::iter::once("--v=2").chain(subject.flags.iter().copied()).map(str::to_owned).collect();
        let server = process_time()?;
        Ok(Self { daemon: Daemon::start_with(namespace, subject.binary, kubeconfig, &settings)?, server })
    }

    /// Waits until its metrics say that everything known has been programmed.
    fn synced(&mut self, namespace: &Namespace) -> anyhow::Result<Start> {
        let started = self.daemon.started();
        while started.elapsed() < PATIENCE {
            if namespace.run(is_synced) {
                let (time, cpu) = (started.elapsed(), self.cpu()?);
                return Ok(Start { time, cpu, server: process_time()? - self.server });
            }
            if let Some(words) = self.daemon.obituary()? {
                bail!("it ended: {words}");
            }
            std::thread::sleep(ASK);
        }
        let said: Vec<_> = std::iter::from_fn(|| self.daemon.hear(Duration::ZERO)).collect();
        bail!("it programmed nothing, and said {said:#?}")
    }

    /// How many elements were written first, by the log of our own daemon.
    fn written(&mut self) -> anyhow::Result<f64> {
        while let Some(line) = self.daemon.hear(PATIENCE) {
            if line.contains("\"programmed\" ") {
                let elements = line.split("elements=").nth(1).and_then(|rest| rest.split(' ').next());
                return elements.and_then(|number| number.parse().ok()).context("a line without elements");
            }
        }
        bail!("the daemon never said that it programmed anything")
    }

    /// CPU time so far, of all threads it has and had (proc_pid_stat(5)), in steps of a clock tick.
    fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.id()))?;
        let fields = stat.rsplit(')').next().context("no fields")?.split_whitespace();
        // utime and stime are the 14th and 15th; the first after the name is the third.
        let ticks: u32 = fields.skip(11).take(2).map(str::parse::<u32>).sum::<Result<_, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock ticks")?;
        Ok(Duration::from_secs(ticks.into()) / u32::try_from(per_second)?)
    }
}

/// Whether the metrics server of this namespace has seen a synchronisation of IPv4. Where nobody listens yet, it has not.
fn is_synced() -> bool {
    const NAME: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    let ask = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 10249))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    let text: std::io::Result<String> = ask();
    let lines = text.unwrap_or_default();
    let mut values = lines.lines().filter(|line| line.starts_with(NAME) && !line.contains("IPv6"));
    values
        .any(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).is_some_and(|value: f64| value > 0.0))
}

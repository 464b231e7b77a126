//! The `process_*` metrics that every Prometheus client library has, read from `/proc/self` whenever somebody asks.
//!
//! The fields are those of proc_pid_stat(5) and proc_pid_status(5). What cannot be read is left out.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Opts};

/// Clock ticks per second in `/proc`: USER_HZ, which the kernel fixes at 100 for user space on every architecture we build for.
const TICKS: f64 = 100.0;

/// Reads the process on every scrape.
pub(super) struct Process {
    descriptions: Vec<Desc>,
}

/// What `/proc/self` says.
#[derive(Debug, Default, PartialEq)]
struct Reading {
    cpu_seconds: Option<f64>,
    threads: Option<f64>,
    start_time: Option<f64>,
    resident_bytes: Option<f64>,
    virtual_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
}

/// When this process started, in seconds since 1970.
pub(crate) fn start_time() -> Option<f64> {
    let since_boot = stat_fields(&fs::read_to_string("/proc/self/stat").ok()?)?.start_ticks / TICKS;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + since_boot)
}

struct Stat {
    cpu_ticks: f64,
    threads: f64,
    start_ticks: f64,
}

/// Fields 14, 15, 20 and 22 of `/proc/self/stat`. The second one is the command in brackets and may hold anything.
fn stat_fields(stat: &str) -> Option<Stat> {
    let rest = &stat[stat.rfind(')')? + 1..];
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat { cpu_ticks: field(14)? + field(15)?, threads: field(20)?, start_ticks: field(22)? })
}

/// A value of `/proc/self/status` in bytes; the file has KiB.
fn status_bytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}

/// The soft limit of open files in `/proc/self/limits`.
fn max_open_files(limits: &str) -> Option<f64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(f64::INFINITY),
        number => number.parse().ok(),
    }
}

// === impl Reading ===

impl Reading {
    fn now() -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).ok();
        let stat = read("stat").and_then(|text| stat_fields(&text));
        let status = read("status").unwrap_or_default();
        Self {
            cpu_seconds: stat.as_ref().map(|stat| stat.cpu_ticks / TICKS),
            threads: stat.as_ref().map(|stat| stat.threads),
            start_time: start_time(),
            resident_bytes: status_bytes(&status, "VmRSS"),
            virtual_bytes: status_bytes(&status, "VmSize"),
            // One of them is the directory being read.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as f64),
            max_fds: read("limits").and_then(|text| max_open_files(&text)),
        }
    }

    fn gauges(&self) -> [(&'static str, &'static str, Option<f64>); 6] {
        [
            ("process_resident_memory_bytes", "Resident memory in bytes", self.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory in bytes", self.virtual_bytes),
            ("process_start_time_seconds", "When the process started (seconds since 1970)", self.start_time),
            ("process_open_fds", "Open file descriptors", self.open_fds),
            ("process_max_fds", "Most file descriptors that may be open", self.max_fds),
            ("process_threads", "Threads", self.threads),
        ]
    }

    fn families(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let mut families = Vec::new();
        for (name, help, value) in self.gauges() {
            if let Some(value) = value {
                let gauge = Gauge::with_opts(Opts::new(name, help))?;
                gauge.set(value);
                families.extend(gauge.collect());
            }
        }
        if let Some(seconds) = self.cpu_seconds {
            let counter =
                Counter::with_opts(Opts::new("process_cpu_seconds_total", "User and system CPU time in seconds"))?;
            counter.inc_by(seconds);
            families.extend(counter.collect());
        }
        Ok(families)
    }
}

// === impl Process ===

impl Process {
    pub(super) fn new() -> Self {
        let gauges = Reading::default().gauges().map(|(name, help, _)| (name, help));
        let all = gauges.into_iter().chain([("process_cpu_seconds_total", "User and system CPU time in seconds")]);
        let describe = |(name, help): (&str, &str)| Desc::new(name.into(), help.into(), Vec::new(), Default::default());
        Self { descriptions: all.map(|one| describe(one).expect("constant names are sound")).collect() }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        Reading::now().families().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_understood() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 12345 1000 200 184";
        let stat = stat_fields(stat).expect("a stat line");
        assert_eq!((stat.cpu_ticks, stat.threads, stat.start_ticks), (200.0, 9.0, 12345.0));
        assert!(stat_fields("7 (a) S 1").is_none());
        assert_eq!(status_bytes("Name:\tx\nVmRSS:\t   12 kB\n", "VmRSS"), Some(12288.0));
        assert_eq!(max_open_files("Max open files            1024     4096    files"), Some(1024.0));
        assert_eq!(max_open_files("Max open files            unlimited     unlimited    files"), Some(f64::INFINITY));
    }

    #[test]
    fn this_process_is_alive() {
        let now = Reading::now();
        assert!(now.resident_bytes > Some(1e5) && now.virtual_bytes >= now.resident_bytes, "{now:?}");
        assert!(now.open_fds >= Some(3.0) && now.max_fds >= now.open_fds && now.threads >= Some(1.0), "{now:?}");
        let (started, present) = (now.start_time.expect("known"), jiff::Timestamp::now().as_second() as f64);
        assert!(started > 1e9 && started <= present + 2.0, "{started} {present}");
    }
}

//! What something cost, as the kernel counts it.
//!
//! [`CpuTime`] is that of the calling thread alone (`RUSAGE_THREAD`); work that the kernel does for a netlink message happens in the
//! sender's own context and is its system time. Memory is the whole machine's unreclaimable slab, where set elements live: other
//! processes move it too, so only medians over rounds mean anything.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::{ClockId, clock_gettime};

/// CPU time of the calling thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuTime {
    /// In user space.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
}

impl CpuTime {
    /// Used so far.
    pub fn now() -> anyhow::Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).context("asking for the thread's CPU time")?;
        let duration = |time: TimeVal| {
            let nanos = time.tv_sec() * 1_000_000_000 + time.tv_usec() * 1_000;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
        };
        Ok(Self { user: duration(usage.user_time()), system: duration(usage.system_time()) })
    }

    /// In user space and in the kernel.
    pub fn sum(self) -> Duration {
        self.user + self.system
    }

    /// Used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self { user: self.user.saturating_sub(earlier.user), system: self.system.saturating_sub(earlier.system) }
    }
}

/// CPU time of the calling thread so far, in user space and in the kernel together. Not counted by clock ticks, as the parts may be.
pub fn thread_time() -> anyhow::Result<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("asking for the thread's CPU time")?;
    Ok(time.into())
}

/// Bytes of unreclaimable slab in use on this machine.
pub fn slab_bytes() -> anyhow::Result<i64> {
    memory_bytes(&["SUnreclaim:"])
}

/// Bytes of memory of the kernel's own: unreclaimable slab, vmalloc and per-CPU.
pub fn kernel_bytes() -> anyhow::Result<i64> {
    memory_bytes(&["SUnreclaim:", "VmallocUsed:", "Percpu:"])
}

/// Bytes of this machine's memory that neither are free nor hold files.
pub fn memory_in_use() -> anyhow::Result<u64> {
    let spare = memory_bytes(&["MemFree:", "Buffers:", "Cached:"])?;
    Ok(u64::try_from(memory_bytes(&["MemTotal:"])? - spare)?)
}

fn memory_bytes(fields: &[&str]) -> anyhow::Result<i64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let field = |name: &&str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} in /proc/meminfo"))?;
        let kib: i64 =
            line.trim().trim_end_matches("kB").trim().parse().with_context(|| format!("{name} no number"))?;
        anyhow::Ok(kib * 1024)
    };
    fields.iter().map(field).sum()
}

/// CPU time of all threads of a process that are still there, in seconds (`Documentation/scheduler/sched-stats.rst`).
pub fn scheduled(process: u32) -> anyhow::Result<f64> {
    let mut nanos = 0_u64;
    for task in fs::read_dir(format!("/proc/{process}/task"))?.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next().context("no time")?.parse::<u64>()?;
    }
    Ok(nanos as f64 / 1e9)
}

/// A process and its children.
pub fn family(process: u32) -> anyhow::Result<Vec<u32>> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(child) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        parents.insert(child, parent.unwrap_or(0_u32));
    }
    Ok(parents
        .into_iter()
        .filter(|(child, parent)| *child == process || *parent == process)
        .map(|(id, _)| id)
        .collect())
}

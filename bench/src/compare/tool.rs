//! Programs of others that program the kernel: run with input, in a namespace, within a limit of time.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use pointsman::lab::Host;

use super::contender::Usage;

/// Sums up what programs took that have ended.
#[derive(Debug, Clone, Copy)]
pub struct Bill {
    pub began: Instant,
    pub usage: Usage,
}

/// Where system programs are, when a shell would not find them.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The program by this name, or why there is none.
pub fn find(name: &str) -> Result<String, String> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut found = path.split(':').chain(SYSTEM).map(|directory| format!("{directory}/{name}"));
    found.find(|path| fs::metadata(path).is_ok()).ok_or_else(|| format!("there is no program {name}"))
}

/// The first line that a program says of its version.
pub fn version(name: &str, argument: &str) -> String {
    let Ok(program) = find(name) else { return String::new() };
    let Ok(output) = Command::new(program).arg(argument).output() else { return String::new() };
    // One that looks for its kernel module first may have nothing to say.
    if !output.status.success() {
        return String::new();
    }
    let said = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    String::from_utf8_lossy(said).lines().next().unwrap_or_default().trim().to_owned()
}

// === impl Bill ===

impl Bill {
    /// From now on.
    pub fn open() -> Self {
        Self { began: Instant::now(), usage: Usage::default() }
    }

    /// Runs a program on a host until it ends, `limit` at most.
    pub fn run(
        &mut self,
        host: &Host,
        name: &str,
        arguments: &[&str],
        input: &str,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let program = find(name).map_err(anyhow::Error::msg)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (begin, before) = (Instant::now(), of_children()?);
        let mut child = host.spawn(command).with_context(|| format!("starting {name}"))?;
        let mut stdin = child.stdin.take().context("its input")?;
        let feed = |_: ()| {
            // It may end before it has read everything; its status tells.
            let _ = stdin.write_all(input.as_bytes());
            drop(stdin);
        };
        let mut memory = 0;
        let status = std::thread::scope(|scope| {
            scope.spawn(|| feed(()));
            loop {
                if let Some(status) = child.try_wait()? {
                    return anyhow::Ok(Some(status));
                }
                memory = memory.max(peak(child.id()).unwrap_or_default());
                if begin.elapsed() > limit {
                    child.kill()?;
                    child.wait()?;
                    return Ok(None);
                }
                std::thread::sleep((begin.elapsed() / 50).clamp(Duration::from_micros(100), Duration::from_millis(20)));
            }
        })?;
        self.usage.cpu += of_children()? - before;
        self.usage.memory = self.usage.memory.max(memory);
        let Some(status) = status else { bail!("{name} was not done after {} s", limit.as_secs()) };
        if !status.success() {
            let mut said = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().context("its errors")?, &mut said)?;
            let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).take(3).collect();
            bail!("{name}: {status}: {}", lines.join("; "));
        }
        Ok(())
    }
}

/// CPU time of programs that have ended, in seconds.
fn of_children() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6)
}

/// Most memory that a process ever had, in bytes (proc_pid_status(5)).
fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

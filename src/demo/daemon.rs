//! The daemon under demonstration: the real `kube-proxy` binary as a child inside the node's namespace.
//!
//! It is a process group of its own, so that Ctrl-C reaches the demo alone and the demo decides the order of the end. Its output
//! goes to a file, whose last lines are shown when it dies before its time.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Host;

/// How long the daemon may take to end when asked to.
const GRACE: Duration = Duration::from_secs(3);
/// How many of its last lines are shown when it died.
const LAST_LINES: usize = 15;

/// The running daemon; dropping it ends it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts the `kube-proxy` beside this executable, inside `node`, on a directory of manifests.
    ///
    /// # Errors
    /// When there is no such binary or it cannot be started.
    pub fn start(node: &Host, manifests: &Path, node_name: &str, log: PathBuf) -> Result<Self> {
        let binary = binary()?;
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let mut command = Command::new(&binary);
        command
            .arg("--manifests")
            .arg(manifests)
            .arg(format!("--hostname-override={node_name}"))
            .arg(format!("--status-socket={}", log.with_file_name("pointsman.sock").display()))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .env("NO_COLOR", "1")
            .process_group(0);
        let child = node.spawn(command).with_context(|| format!("cannot start {}", binary.display()))?;
        Ok(Self { child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Where it can be asked.
    pub fn socket(&self) -> PathBuf {
        self.log.with_file_name("pointsman.sock")
    }

    /// Fails with its last words if it is not running any more.
    ///
    /// # Errors
    /// When it has ended, which it must not do by itself.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{}", epitaph(status, &fs::read_to_string(&self.log).unwrap_or_default()));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill(pid, Signal::SIGTERM);
        let asked = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > GRACE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The daemon's executable.
///
/// # Errors
/// When it is not there.
pub fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this executable")?;
    let binary = own.with_file_name("kube-proxy");
    if !binary.is_file() {
        bail!(
            "the daemon is missing: no kube-proxy beside {}. Build or install both binaries: cargo build --release",
            own.display()
        );
    }
    Ok(binary)
}

fn epitaph(status: ExitStatus, log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    if last.is_empty() {
        return format!("kube-proxy ended by itself ({status}) and said nothing");
    }
    format!("kube-proxy ended by itself ({status}). Its last lines:\n  {}", last.join("\n  "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_last_words_are_kept() {
        let log: String = (1..=40).map(|line| format!("line {line}\n")).collect();
        let text = epitaph(ExitStatus::from_raw(256), &log);
        assert!(
            text.starts_with("kube-proxy ended by itself (exit status: 1). Its last lines:\n  line 26\n"),
            "{text}"
        );
        assert!(text.ends_with("\n  line 40"), "{text}");
        let silent = epitaph(ExitStatus::from_raw(9), "");
        assert_eq!(silent, "kube-proxy ended by itself (signal: 9 (SIGKILL)) and said nothing");
    }
}

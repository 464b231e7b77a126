//! A `kube-proxy` under measurement: a child process in a namespace, which is heard and looked at.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::Namespace;

/// Until something is considered broken.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running daemon; dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    started: Instant,
    lines: mpsc::Receiver<(Instant, String)>,
}

/// The daemon that was asked for, or the one beside this program.
pub fn binary(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("kube-proxy"));
    let binary = asked.map_or_else(beside, |path| Ok(path.to_owned()))?;
    anyhow::ensure!(binary.exists(), "no daemon at {}: build it, or say where it is", binary.display());
    Ok(binary)
}

// === impl Daemon ===

impl Daemon {
    /// Starts as node `n1` of the cluster that the kubeconfig leads to, with the settings that an engine has by itself. No status socket: its
    /// path is the machine's, where it would take the place of a daemon's that serves this machine.
    pub fn start(namespace: &Namespace, binary: &Path, kubeconfig: &Path) -> anyhow::Result<Self> {
        Self::start_with(
            namespace,
            binary,
            kubeconfig,
            &["--proxy-mode=nftables", "--status-socket="].map(str::to_owned),
        )
    }

    /// Starts as node `n1` with these settings.
    pub fn start_with(
        namespace: &Namespace,
        binary: &Path,
        kubeconfig: &Path,
        settings: &[String],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.args(["--hostname-override=n1", "--kubeconfig"]).arg(kubeconfig).args(settings);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for variable in ["RUST_LOG", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"] {
            command.env_remove(variable);
        }
        let started = Instant::now();
        let mut child = namespace.spawn(command).context("starting the daemon")?;
        let stderr = BufReader::new(child.stderr.take().context("its standard error")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send((Instant::now(), line))));
        });
        Ok(Self { child, started, lines })
    }

    /// Waits until everything known is programmed.
    pub fn ready(&mut self) -> anyhow::Result<Duration> {
        while self.started.elapsed() < PATIENCE {
            if let Some(took) = self.loaded()? {
                return Ok(took);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        bail!("the daemon programmed nothing in {PATIENCE:?}")
    }

    /// How long the start took, once, as soon as everything known is programmed; fails if it has ended.
    pub fn loaded(&mut self) -> anyhow::Result<Option<Duration>> {
        loop {
            match self.lines.try_recv() {
                Ok((at, line)) if line.contains("first load programmed") => return Ok(Some(at - self.started)),
                Ok(_) => {}
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => bail!("the daemon ended: {}", self.child.wait()?),
            }
        }
    }

    /// The next line of its log; none if it says nothing for so long, or has ended.
    pub fn hear(&self, patience: Duration) -> Option<String> {
        self.lines.recv_timeout(patience).ok().map(|(_, line)| line)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Why it ended, if it has: its last words.
    pub fn obituary(&mut self) -> anyhow::Result<Option<String>> {
        let Some(status) = self.child.try_wait()? else { return Ok(None) };
        let said: Vec<_> = self.lines.try_iter().map(|(_, line)| line).collect();
        Ok(Some(format!("{status}: {}", said[said.len().saturating_sub(3)..].join("; "))))
    }

    /// Resident now and at most, in KiB (proc_pid_status(5)).
    pub fn memory(&self) -> anyhow::Result<[u64; 2]> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().trim_end_matches("kB").trim().parse().ok()
        };
        Ok([field("VmRSS:").context("no VmRSS")?, field("VmHWM:").context("no VmHWM")?])
    }

    /// Sends a signal and waits for the end.
    pub fn end(mut self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal)?;
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

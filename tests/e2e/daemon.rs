//! The daemon under test: a child process whose words are kept.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::Host;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::support::beds::PATIENCE;

/// A running `kube-proxy`; dropping it kills it.
pub struct Daemon {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    /// Lines before this one have been waited for.
    heard: usize,
}

/// A directory of manifests.
pub struct Manifests(TempDir);

/// The command, with nothing of the outside in its environment that it would listen to.
pub fn command() -> Command {
    command_at(Path::new(env!("CARGO_BIN_EXE_kube-proxy")))
}

/// The same with another copy of the binary.
pub fn command_at(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    let outside = ["RUST_LOG", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"];
    for variable in outside.into_iter().chain(["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"]) {
        command.env_remove(variable).env_remove(variable.to_lowercase());
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs a command that is expected to end by itself, and says how it did.
pub fn run(node: &Host, mut command: Command, args: &[&str]) -> Output {
    command.args(args);
    let mut child = node.spawn(command).expect("the binary runs");
    let begin = Instant::now();
    while child.try_wait().expect("a child of ours").is_none() {
        if begin.elapsed() > PATIENCE {
            let _ = child.kill();
            let output = child.wait_with_output().expect("its end");
            panic!("kube-proxy {args:?} should end by itself; it said: {}", stderr(&output));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its end")
}

/// What a command said on standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

// === impl Daemon ===

impl Daemon {
    /// Starts on a directory of manifests.
    pub fn serving(node: &Host, manifests: &Manifests, more: &[&str]) -> Self {
        Self::start(node, &[&["--manifests", manifests.path()], more].concat())
    }

    /// Starts as node `n1`, with a log line per change programmed.
    pub fn start(node: &Host, args: &[&str]) -> Self {
        Self::start_as(node, command(), args)
    }

    /// The same with a command that was prepared.
    pub fn start_as(node: &Host, mut command: Command, args: &[&str]) -> Self {
        // Daemons of other tests would be in its way at the default socket.
        command.args(["--hostname-override", "n1", "--v=2", "--status-socket="]).args(args);
        let mut child = node.spawn(command).expect("the binary runs");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (lines, sink) = (BufReader::new(child.stderr.take().expect("piped")).lines(), said.clone());
        let reader = std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| sink.lock().expect("no panic").push(line));
        });
        Self { child, said, reader: Some(reader), heard: 0 }
    }

    /// Waits for a line that has all of these parts (see [`has`]), after the last one that was waited for; returns it.
    pub fn hear(&mut self, parts: &[&str]) -> String {
        self.hear_within(PATIENCE * 3, parts)
    }

    /// The same with a patience of one's own.
    pub fn hear_within(&mut self, patience: Duration, parts: &[&str]) -> String {
        let begin = Instant::now();
        loop {
            let said = self.said();
            let fits = |line: &String| parts.iter().all(|part| has(line, part));
            if let Some(found) = said.iter().skip(self.heard).position(fits) {
                self.heard += found + 1;
                return said[self.heard - 1].clone();
            }
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "the daemon should live and say {parts:?}; {ended:?} after {said:#?}");
            assert!(begin.elapsed() < patience, "the daemon should say {parts:?}; it said {said:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until something was programmed, and returns that line.
    pub fn programmed(&mut self) -> String {
        self.hear(&["\"programmed\" "])
    }

    /// Everything said so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().expect("no panic").clone()
    }

    /// How many lines so far have all of these parts.
    pub fn count(&self, parts: &[&str]) -> usize {
        self.said().iter().filter(|line| parts.iter().all(|part| has(line, part))).count()
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails if it has ended.
    pub fn assert_alive(&mut self) {
        let ended = self.child.try_wait().expect("a child of ours");
        assert!(ended.is_none(), "the daemon should live; {ended:?} after {:#?}", self.said());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).expect("it lives");
    }

    /// Sends a signal and waits for the end.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let status = self.child.wait().expect("a child of ours");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
        status
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon said: {:#?}", self.said());
        }
    }
}

// === impl Manifests ===

impl Manifests {
    /// An empty directory.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// A directory with these objects in one file, `all.json`.
    pub fn of(objects: &[Value]) -> Self {
        let manifests = Self::new();
        manifests.write("all.json", objects);
        manifests
    }

    pub fn path(&self) -> &str {
        self.0.path().to_str().expect("UTF-8")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file of objects the way editors do: beside it, then renamed over it.
    pub fn write(&self, name: &str, objects: &[Value]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.write_text(name, &list.to_string());
    }

    /// Writes a file of text the same way.
    pub fn write_text(&self, name: &str, text: &str) {
        let beside = self.file(&format!(".{name}.new"));
        fs::write(&beside, text).expect("written");
        fs::rename(beside, self.file(name)).expect("renamed");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.file(name)).expect("removed");
    }
}

/// Whether a line has a part; `WARN` and `ERROR` stand for the severities, which klog writes as the first letter.
fn has(line: &str, part: &str) -> bool {
    match part {
        "WARN" => line.starts_with('W'),
        "ERROR" => line.starts_with('E'),
        part => line.contains(part),
    }
}

//! `pointsman demo` as a command: what it says and leaves behind, also when things go wrong. Needs root, and fails without it.
//!
//! Where it must fail, a stand-in takes the daemon's place: a script beside a copy of the command.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::{NETNS_DIR, find_leftovers};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory with the command, and beside it this script as `kube-proxy`, if any.
fn installed(daemon: Option<&str>) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    install(Path::new(env!("CARGO_BIN_EXE_pointsman")), &directory.path().join("pointsman"));
    if let Some(script) = daemon {
        let text = directory.path().join("script");
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).expect("a script");
        install(&text, &directory.path().join("kube-proxy"));
    }
    directory
}

/// An executable copy. Another process writes it: a program that is open for writing cannot be started, and what is open here is open in each
/// child of the other tests, too, until it has become another program.
fn install(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([from, to]).status();
    assert!(status.expect("coreutils").success(), "{} to {}", from.display(), to.display());
}

fn demo(directory: &TempDir) -> Command {
    let mut command = Command::new(directory.path().join("pointsman"));
    command.arg("demo").env("TMPDIR", directory.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn namespaces_of(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    names.filter(|name| name.starts_with(&format!("pointsman-{pid}-"))).collect()
}

/// Waits until the stand-in has said its process id, which it does in the demo's files.
fn wait_for_daemon(directory: &TempDir) -> i32 {
    let began = Instant::now();
    loop {
        if let Ok(pid) = fs::read_to_string(directory.path().join("daemon.pid"))
            && let Ok(pid) = pid.trim().parse()
        {
            return pid;
        }
        assert!(began.elapsed() < PATIENCE, "the daemon was not started");
        sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: i32) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        // A child of a killed demo is reaped by whoever is init here, which may take its time.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        if stat.map_or(true, |stat| stat.contains(") Z ")) {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

fn start(directory: &TempDir) -> (Child, i32) {
    let child = demo(directory).spawn().expect("the demo");
    let daemon = wait_for_daemon(directory);
    (child, daemon)
}

#[test]
fn with_the_real_daemon_everything_works_as_it_should() {
    // Cargo has built the daemon beside the command.
    assert!(fs::exists(env!("CARGO_BIN_EXE_kube-proxy")).expect("a path"));
    let child = Command::new(env!("CARGO_BIN_EXE_pointsman"))
        .args(["demo", "--seconds", "2", "--rounds", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the demo");
    let pid = child.id();
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    for expected in
        [" 0 failed, ", "scaled web up from 3 to 5", "scaled web down from 5 to 3", " The ruleset: 2 tables, "]
    {
        assert!(text.contains(expected), "{expected:?} is not in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "no escape codes in a log");
    assert_eq!(namespaces_of(pid), [""; 0]);
}

const WAITING_DAEMON: &str = "echo $$ > $TMPDIR/daemon.pid; exec sleep 60";

#[test]
fn without_the_daemons_binary_it_says_which_and_where() {
    let directory = installed(None);
    let output = demo(&directory).output().expect("the demo");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no kube-proxy beside"), "{}", stderr(&output));
}

#[test]
fn without_root_it_says_so() {
    let directory = installed(Some("exit 0"));
    let output = demo(&directory).uid(65534).gid(65534).output().expect("the demo");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("need root (try sudo)"), "{}", stderr(&output));
}

#[test]
fn a_daemon_that_dies_is_quoted_and_everything_is_cleared_up() {
    let directory = installed(Some("echo this is why; exit 3"));
    let child = demo(&directory).spawn().expect("the demo");
    let pid = child.id();
    let output = child.wait_with_output().expect("its end");
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains("kube-proxy ended by itself (exit status: 3)") && text.contains("this is why"), "{text}");
    assert_eq!(namespaces_of(pid), [""; 0]);
}

#[test]
fn signals_end_it_and_everything_is_cleared_up() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let directory = installed(Some(WAITING_DAEMON));
        let (child, daemon) = start(&directory);
        let pid = child.id();
        assert!(!namespaces_of(pid).is_empty());
        kill(Pid::from_raw(pid as i32), signal).expect("a signal");
        let output = child.wait_with_output().expect("its end");
        assert_eq!(output.status.code(), Some(130), "{signal}: {}", stderr(&output));
        assert_eq!(namespaces_of(pid), [""; 0], "{signal}");
        assert!(is_gone(daemon), "{signal}");
        let files =
            fs::read_dir(directory.path()).expect("a directory").map(|entry| entry.expect("an entry").file_name());
        assert!(files.into_iter().all(|name| !name.to_string_lossy().starts_with("pointsman-demo-")), "{signal}");
    }
}

#[test]
fn what_a_killed_demo_leaves_is_removed_by_clear() {
    let directory = installed(Some(WAITING_DAEMON));
    let (mut child, daemon) = start(&directory);
    let pid = child.id();
    child.kill().expect("killed");
    child.wait().expect("reaped");
    assert!(!namespaces_of(pid).is_empty());
    let output = demo(&directory).arg("--clear").output().expect("the demo");
    assert!(output.status.success(), "{}", stderr(&output));
    // Another demo that starts meanwhile may have been faster; what matters is that nothing is left.
    assert!(find_leftovers("pointsman").iter().all(|leftover| leftover.maker != pid as i32));
    assert_eq!(namespaces_of(pid), [""; 0]);
    assert!(is_gone(daemon));
    let files = fs::read_dir(directory.path()).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    assert!(files.into_iter().all(|name| !name.to_string_lossy().starts_with("pointsman-demo-")));
}

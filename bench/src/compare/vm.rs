//! The same in a VM: another kernel, without KVM if need be, for what the machine's own kernel lacks (IPVS).
//!
//! `tests/vm/run.sh` makes the VM: Debian's kernel, an initramfs of this program, kube-proxy and the tools that baselines need. What is
//! recorded comes out line by line over a serial port into `<journal>.part` and is appended to the place's journal at the end, or by the
//! next run if this one was killed; the journal so far goes in with the initramfs, so that `--resume` goes on there too.
//!
//! Emulation is some ten times slower and its clock counts the host's seconds: only ratios to the floor of the same boot mean something, and
//! only roughly. With `--icount` the clock counts instructions of one CPU instead (1 ns each): exact and repeatable, but blind to caches.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::Options;
use super::record;
use crate::report;

/// Where the initramfs has them.
const INSIDE: &str = "/out";
const SERIAL: &str = "/dev/ttyS1";

/// Boots, measures, and brings the records out.
pub fn run(options: &Options, directory: &Path) -> anyhow::Result<()> {
    let kernel = options.vm.as_deref().context("a kernel")?;
    let place = match (kernel, options.icount) {
        ("bookworm", false) => "vm".to_owned(),
        (kernel, false) => format!("vm-{kernel}"),
        (kernel, true) => format!("icount-{kernel}"),
    };
    let journal = record::path(directory, &place);
    let part = journal.with_extension("part");
    collect(&part, &journal)?;
    anyhow::ensure!(
        options.resume || !journal.exists(),
        "{} is there: --resume goes on with it, --out begins another one",
        journal.display()
    );
    let program = std::env::current_exe()?;
    let daemon = program.with_file_name("kube-proxy");
    anyhow::ensure!(daemon.exists(), "no daemon at {}: cargo build --release --bin kube-proxy", daemon.display());
    let mut files = format!("{}:/test/kube-proxy", daemon.display());
    if journal.exists() {
        files += &format!(" {}:{INSIDE}/compare-{place}.jsonl", fs::canonicalize(&journal)?.display());
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vm/run.sh");
    let part = std::path::absolute(&part)?;
    let mut command = Command::new(script);
    command.args(["--kernel", kernel, "--program"]).arg(&program).args(["compare", "--resume", "--out", INSIDE]);
    let commit = options.commit.clone().unwrap_or_else(report::commit);
    command.args(["--place", &place, "--mirror", SERIAL, "--commit", &commit]);
    let list = |sizes: &Vec<u32>| sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let given = [
        ("--sizes", options.sizes.as_ref().map(list)),
        ("--rounds", options.rounds.map(|rounds| rounds.to_string())),
        ("--attempts", Some(options.attempts.to_string())),
        ("--base", Some(options.base.to_string())),
        ("--endpoints", Some(options.endpoints.to_string())),
        ("--only", (!options.only.is_empty()).then(|| options.only.join(","))),
        ("--measure", (!options.measure.is_empty()).then(|| measured(options))),
        ("--minutes", options.minutes.map(|minutes| minutes.to_string())),
        ("--limit", options.limit.map(|limit| limit.to_string())),
    ];
    for (flag, value) in given.into_iter().filter_map(|(flag, value)| Some((flag, value?))) {
        command.args([flag, &value]);
    }
    command.env("VM_FILES", files).env("VM_RECORD", &part);
    if let Some(minutes) = options.minutes {
        // It breaks off between two sessions, and boots before the first.
        command.env("VM_TIMEOUT", (minutes * 60.0 + 150.0).round().to_string());
    }
    if options.icount {
        command.env("VM_ICOUNT", "1");
    }
    let status = command.status().context("starting tests/vm/run.sh")?;
    collect(&part, &journal)?;
    anyhow::ensure!(journal.exists(), "the VM ({status}) recorded nothing");
    Ok(())
}

fn measured(options: &Options) -> String {
    options.measure.iter().map(|measurement| measurement.name()).collect::<Vec<_>>().join(",")
}

/// Appends what a VM said to the journal, whole lines only.
fn collect(part: &PathBuf, journal: &Path) -> anyhow::Result<()> {
    let Ok(said) = fs::read(part) else { return Ok(()) };
    let whole = said.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    let text = String::from_utf8_lossy(&said[..whole]).replace('\r', "");
    if !text.is_empty() {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(journal)?;
        file.write_all(text.as_bytes()).with_context(|| format!("writing {}", journal.display()))?;
    }
    Ok(fs::remove_file(part)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_vm_said_is_kept_by_whole_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let (part, journal) = (directory.path().join("j.part"), directory.path().join("j.jsonl"));
        fs::write(&journal, "{}\n").expect("written");
        fs::write(&part, "{\"a\":1}\r\n{\"b\":").expect("written");
        collect(&part, &journal).expect("collected");
        assert_eq!(fs::read_to_string(&journal).expect("text"), "{}\n{\"a\":1}\n");
        assert!(!part.exists());
        collect(&part, &journal).expect("nothing to collect");
    }
}

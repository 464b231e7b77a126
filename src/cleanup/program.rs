//! Running a program of somebody else's, for a limited time, with its words kept.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// How long a program may take. Some ten thousand Services are over a hundred thousand iptables rules, which take long.
const PATIENCE: Duration = Duration::from_secs(120);
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);
/// Bytes of a program's words that an error repeats.
const WORDS: usize = 500;

/// Why a program did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be run.
    #[error("{0}: cannot be run: {1}")]
    Run(String, io::Error),
    /// It took too long and was ended.
    #[error("{0}: ended after {1:?} without having finished")]
    Timeout(String, Duration),
    /// It failed.
    #[error("{command}: {status}: {said}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said on standard error.
        said: String,
    },
}

/// Runs a program with this standard input, in the calling thread's network namespace. `None` means that there is no such program.
pub(super) fn run(program: &str, args: &[&str], input: &str) -> Result<Option<String>, ProgramError> {
    run_for(program, args, input, PATIENCE)
}

fn run_for(program: &str, args: &[&str], input: &str, patience: Duration) -> Result<Option<String>, ProgramError> {
    let command = [&[program], args].concat().join(" ");
    let failed = |error: io::Error| ProgramError::Run(command.clone(), error);
    // Memory and no pipes: whatever the program reads and writes, and in whichever order, nobody waits for anybody.
    let (mut stdin, mut stdout, mut stderr) =
        (memory().map_err(failed)?, memory().map_err(failed)?, memory().map_err(failed)?);
    stdin.write_all(input.as_bytes()).and_then(|()| stdin.rewind()).map_err(failed)?;
    let child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::from(stdout.try_clone().map_err(failed)?))
        .stderr(Stdio::from(stderr.try_clone().map_err(failed)?))
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let begin = Instant::now();
    let mut look = FIRST_LOOK;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if begin.elapsed() >= patience {
            let _ = child.kill();
            let _ = child.wait();
            return Err(ProgramError::Timeout(command, patience));
        }
        std::thread::sleep(look);
        look = (look * 2).min(LAST_LOOK);
    };
    if !status.success() {
        let said = text(&mut stderr).map_err(failed)?;
        let said: Vec<_> = said.split_whitespace().collect();
        let said = said.join(" ").chars().take(WORDS).collect();
        return Err(ProgramError::Failed { command, status, said });
    }
    text(&mut stdout).map(Some).map_err(failed)
}

fn memory() -> io::Result<File> {
    Ok(memfd_create(c"pointsman", MFdFlags::MFD_CLOEXEC)?.into())
}

/// All that was written. The program shares the position with us, so it has to be set back.
fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_answer_fail_are_missing_or_take_too_long() {
        let answer = run("sh", &["-c", "cat; echo done; echo hush >&2"], "asked\n").expect("success");
        assert_eq!(answer.as_deref(), Some("asked\ndone\n"));
        assert!(run("no-such-program-anywhere", &[], "").expect("no error").is_none());
        let error = run("sh", &["-c", "echo 'it is\n  broken' >&2; exit 3"], "").expect_err("a failure");
        assert!(error.to_string().ends_with("exit status: 3: it is broken"), "{error}");
        let error = run_for("sleep", &["60"], "", Duration::from_millis(20)).expect_err("a timeout");
        assert_eq!(error.to_string(), "sleep 60: ended after 20ms without having finished");
        // More than any pipe would hold, in both directions.
        let much = "x".repeat(1 << 20);
        assert_eq!(run("cat", &[], &much).expect("success").map(|text| text.len()), Some(much.len()));
    }
}

//! The operator's command: what the daemon does, told to people and to scripts.
//!
//! Every command asks the daemon over its socket ([`client`]) for the views of [`crate::status`] and shows them: as tables for people, or
//! with `-o json` and `-o yaml` just as the daemon said it. Nothing is decided here: what a table says was decided by the daemon. Where no
//! daemon runs, `list` and `flows` read the kernel's own tables (`tables`), which know frontends and endpoints, and no reasons.
//!
//! Where things are: [`cli`] what can be said on the command line, from which completions and the man page are made, too; `list` the shape of
//! `ipvsadm -ln`; `get` wide tables; `explain` words for a decision; `flows` connections one by one; `trace` rules that packets took; [`doctor`] how the node and the daemon are; [`orders`] what is said by hand: `drain`, `weight`, `undrain`; `target` what connections are made to; `text` columns, colours and what hostile names may not do.
//!
//! Invariants: what comes from objects (names, labels, annotations) reaches a terminal with control characters escaped; colours only where
//! somebody looks; an error is one line on standard error, and the exit status is 1.
//!
//! Proven by the tests of each file and by `tests/e2e/operator.rs`.

pub mod cli;
pub mod client;
pub mod doctor;
mod explain;
mod flows;
mod get;
mod list;
pub mod orders;
mod probe;
mod tables;
mod target;
mod text;
mod trace;

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory;
use serde::Serialize;

use crate::kernel::KernelError;
use cli::{Cli, Command, Format};
use client::ClientError;

/// Why a command could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{client}; and the kernel's own tables cannot be read: {kernel}")]
    Nobody { client: ClientError, kernel: KernelError },
    #[error("{client}; and the kernel has no table of ours in this network namespace")]
    Nothing { client: ClientError },
    #[error(transparent)]
    Conntrack(crate::kernel::conntrack::ConntrackError),
    #[error(transparent)]
    Query(#[from] crate::status::QueryError),
    #[error("cannot write: {0}")]
    Write(#[from] io::Error),
    #[error("cannot be said as JSON or YAML: {0}")]
    Say(String),
    #[error(transparent)]
    Trace(#[from] trace::TraceError),
    #[error(transparent)]
    Target(#[from] target::TargetError),
}

/// Does what the command line says.
pub fn run(cli: &Cli) -> ExitCode {
    match perform(cli) {
        Ok(code) => code,
        // Who reads has heard enough.
        Err(Failure::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("pointsman: {}", text::plain(&failure.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn perform(cli: &Cli) -> Result<ExitCode, Failure> {
    let socket = &cli.socket;
    let shown = match &cli.command {
        Command::Demo(options) => return Ok(crate::demo::run(options)),
        Command::List(options) => list::run(socket, options),
        Command::Get(options) => get::run(socket, options),
        Command::Explain(options) => return explain::run(socket, options),
        Command::Doctor(options) => return doctor::run(socket, options),
        Command::Drain(options) => return orders::drain(socket, options),
        Command::Weight(options) => return orders::weight(socket, options),
        Command::Undrain(options) => return orders::undrain(socket, options),
        Command::Flows(options) => flows::run(socket, options),
        Command::Trace(options) => trace::run(socket, options),
        Command::Completions { shell } => completions(*shell, &mut io::stdout()).map_err(Failure::from),
        Command::Man => man(&mut io::stdout()).map_err(Failure::from),
    };
    shown.map(|()| ExitCode::SUCCESS)
}

/// Completions for a shell. They are made first and written then: who makes them takes a failing pipe for a reason to panic.
fn completions(shell: clap_complete::Shell, out: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pointsman", &mut script);
    out.write_all(&script)
}

/// The manual: the command and, one after the other, what it can do.
fn man(out: &mut impl Write) -> io::Result<()> {
    let command = Cli::command();
    let mut page = Vec::new();
    // Not as a whole: that would refer to a page for each command, and there is this one alone.
    let whole = clap_mangen::Man::new(command.clone());
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    whole.render_options_section(&mut page)?;
    for sub in command.get_subcommands() {
        let name = format!("pointsman {}", sub.get_name());
        let man = clap_mangen::Man::new(sub.clone().bin_name(name.clone()));
        writeln!(page, ".SH \"{}\"", name.to_uppercase())?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
        if sub.get_after_help().is_some() {
            man.render_extra_section(&mut page)?;
        }
    }
    whole.render_version_section(&mut page)?;
    out.write_all(&page)
}

/// Writes a value as scripts want it.
fn say(out: &mut impl Write, format: Format, value: &impl Serialize) -> Result<(), Failure> {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value).map_err(|error| Failure::Say(error.to_string()))? + "\n",
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| Failure::Say(error.to_string()))?,
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// What is shown at a time, and what is to be known beside it: that goes to standard error, so that scripts read what they always read.
#[derive(Debug, Default)]
struct Screen {
    text: Vec<u8>,
    remarks: Vec<String>,
}

/// Shows once, or again and again until somebody stops it.
fn repeat(watch: Option<f64>, mut show: impl FnMut(&mut Screen) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let mut said = Vec::new();
    loop {
        let mut screen = Screen::default();
        show(&mut screen)?;
        let clears = watch.is_some() && out.is_terminal();
        if clears {
            // Clears the screen and begins at its top.
            out.write_all(b"\x1b[H\x1b[2J")?;
        }
        out.write_all(&screen.text)?;
        out.flush()?;
        // In a log once is enough; on a terminal it has just been wiped out.
        if clears || said != screen.remarks {
            screen.remarks.iter().for_each(|remark| self::remark(remark));
        }
        said = screen.remarks;
        let Some(seconds) = watch else { return Ok(()) };
        std::thread::sleep(Duration::from_secs_f64(seconds));
    }
}

/// What is to be known beside what is shown.
fn remark(text: &str) {
    eprintln!("pointsman: {}", text::plain(text));
}

/// Why packets and bytes are not known.
const NOT_COUNTED: &str = "packets and bytes are not counted: net.netfilter.nf_conntrack_acct is 0";

/// That nothing was found, with what was looked for.
fn none_found(what: &str, search: Option<&str>, namespace: Option<&str>, only: Option<&str>) -> String {
    let mut text = match search {
        Some(search) => format!("no {what} matches {search:?}"),
        None => format!("there is no {what}"),
    };
    if let Some(namespace) = namespace {
        text += &format!(" in namespace {namespace}");
    }
    if let Some(only) = only {
        text += &format!(" (--only {only})");
    }
    text
}

fn ask<T: serde::de::DeserializeOwned>(socket: &Path, path: &str) -> Result<T, Failure> {
    Ok(client::ask(socket, path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error_and_no_panic() {
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a device");
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh] {
            let error = completions(shell, &mut full).expect_err("no room");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        assert_eq!(man(&mut full).expect_err("no room").kind(), io::ErrorKind::StorageFull);
    }
}

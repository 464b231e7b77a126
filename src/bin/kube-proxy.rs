//! The daemon, under the name of what it replaces.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use pointsman::config::version::{self, Asked};
use pointsman::config::{Action, Config, FileWatch, Flags, Loaded, Note, Parsed, UsageError};
use pointsman::logging::{FLAGS, Verbosity};
use pointsman::{daemon, logging};
use tracing::{info, warn};

/// A cluster is millions of small pieces of a few sizes: first loads take a fifth less time than by the C library's allocator, and large clusters
/// less memory (bench/README.md, "scale").
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Of a huge page little may be in use, and all of it counts as ours: a third of what a small cluster needs. A refusal changes nothing else.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let flags = match Flags::parse(std::env::args_os()) {
        Ok(Parsed::Flags(flags)) => flags,
        Ok(Parsed::Help(text)) => {
            return print(&text).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS);
        }
        Err(error) => {
            eprintln!("{}\n", UsageError::usage());
            return failed(&error.into());
        }
    };
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// To standard output, which may be closed or full.
fn print(text: &str) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("writing to standard output")
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("Error: {error:#}");
    ExitCode::FAILURE
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    if let Asked::Print(text) = version::asked(flags.value("version")).map_err(anyhow::Error::msg)? {
        return print(&format!("{text}\n"));
    }
    let Loaded { config, watch, notes } = Config::load(flags)?;
    let verbosity = logging::start(&config.logging);
    for (name, value) in &config.flags {
        info!(target: FLAGS, "FLAG: --{name}={value:?}");
    }
    for note in &notes {
        match note {
            Note::Info(text) => info!("{text}"),
            Note::Warning(text) => warn!("{text}"),
        }
    }
    match &config.action {
        Action::WriteConfig(path) => {
            config.write(path)?;
            info!(path = %path.display(), "configuration written");
            Ok(())
        }
        Action::Cleanup => Ok(daemon::cleanup()?),
        Action::InitOnly => daemon::prepare(&config),
        Action::Serve => serve(config, verbosity, watch),
    }
}

/// Serves until something ends it; an edit of the configuration file does.
fn serve(config: Config, verbosity: Verbosity, watch: Option<FileWatch>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let edited = async {
            let Some(watch) = watch else { return std::future::pending().await };
            let path = watch.path().to_owned();
            match watch.edited().await {
                Ok(edit) => anyhow::anyhow!(
                    "the configuration file {} was {edit}: exiting, to be started with the new one",
                    path.display()
                ),
                Err(error) => anyhow::anyhow!("cannot watch the configuration file {}: {error}", path.display()),
            }
        };
        tokio::select! {
            outcome = daemon::run(config, verbosity) => outcome,
            error = edited => Err(error),
        }
    })
}

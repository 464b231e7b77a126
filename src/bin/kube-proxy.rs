//! The daemon, under the name of what it replaces.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use pointsman::config::{Config, Flags};
use pointsman::{daemon, logging};

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(message) => {
            // kube-proxy exits with 1 on a flag it does not know, where clap would say 2.
            drop(message.print());
            return if message.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    logging::start(flags.verbosity);
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let config = Config::resolve(flags).map_err(|errors| {
        let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\n       "))
    })?;
    if flags.cleanup {
        return Ok(daemon::cleanup()?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(daemon::run(config))
}

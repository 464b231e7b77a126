//! The operator's command: see [`pointsman::operator`].

use std::process::ExitCode;

use clap::Parser;
use pointsman::operator::{self, cli::Cli};

fn main() -> ExitCode {
    operator::run(&Cli::parse())
}

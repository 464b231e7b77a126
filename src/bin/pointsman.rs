//! The operator's command: see [`pointsman::operator`].

use std::process::ExitCode;

use clap::Parser;
use pointsman::operator::{self, cli::Cli};

/// What a large cluster has to say is read into millions of small pieces: a third faster than by the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    operator::run(&Cli::parse())
}

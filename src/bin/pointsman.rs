//! The operator's command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pointsman::demo;

/// Shows what Pointsman does, on this machine
///
/// Pointsman is a drop-in replacement for Kubernetes' kube-proxy that compiles Services into nftables maps. The daemon is the
/// binary `kube-proxy`; this command is for the people around it.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a small shop on this machine and connect to it: a node, a client and pods as network namespaces
    ///
    /// Starts the real daemon on the example shop's manifests, connects through the ClusterIPs all the while, scales a Service up and
    /// down, and reports what arrived where and how fast. Needs root, and nothing else: no cluster, no container runtime, no
    /// other program. The machine's own network is not touched, and everything is cleared up at the end.
    ///
    /// Exits with 0 if everything worked as it should.
    #[command(after_help = DEMO_EXAMPLES)]
    Demo(demo::Options),
}

const EXAMPLES: &str = "Examples:
  sudo pointsman demo          a quarter of a minute of real traffic
  pointsman demo --help        what it can be told";

const DEMO_EXAMPLES: &str = "Examples:
  sudo pointsman demo                           as it comes
  sudo pointsman demo --keep                    and look around afterwards
  sudo pointsman demo --seconds 60 --rounds 20  scale up and down every 1.5 s
  sudo pointsman demo --clear                   after kill -9";

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo(options) => demo::run(&options),
    }
}

//! `pointsman demo`: the whole thing on one machine, in a quarter of a minute, on real traffic.
//!
//! The demo makes a node, a client and the pods of the example shop as network namespaces ([`crate::lab`]), runs the real daemon
//! on the shop's manifests inside the node, and connects from the client through the ClusterIPs all the while. Then it does what a
//! cluster does all day: it scales a Service up and down, by making pods and replacing the file that holds its EndpointSlices. What
//! it shows is measured from outside the daemon: connections that arrived, and the kernel's own notifications.
//!
//! It is also a test: it knows from the manifests what must happen ([`board`]), says what did not, and exits accordingly.
//!
//! Parts: [`shop`] reads the manifests, [`daemon`] runs the daemon, [`traffic`] connects, [`commits`] listens to the kernel,
//! [`board`] counts and judges, [`render`] and [`screen`] show, [`interrupt`] hears Ctrl-C. `show` owns them all in the order in
//! which they must go.

pub mod board;
pub mod commits;
pub mod daemon;
pub mod interrupt;
mod leftovers;
pub mod render;
pub mod screen;
pub mod shop;
mod show;
pub mod traffic;

use std::process::ExitCode;
use std::time::Duration;

use crate::lab;
use interrupt::Interrupted;
use show::Show;

/// First part of the names of the demo's namespaces.
const PREFIX: &str = "pointsman";

/// What `pointsman demo` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How long to connect, in seconds; the scaling is spread over it
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub seconds: u64,

    /// How often to scale up and down again
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    pub rounds: u32,

    /// How many pods to add, and remove again, each time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=6))]
    pub pods: u8,

    /// Leave everything running afterwards, and print how to look around; Ctrl-C ends it
    #[arg(long)]
    pub keep: bool,

    /// Only remove what a killed demo left behind
    #[arg(long, conflicts_with_all = ["keep", "rounds", "seconds", "pods"])]
    pub clear: bool,
}

/// Runs the demo and reports; success means that everything worked as it should.
pub fn run(options: &Options) -> ExitCode {
    if options.clear {
        return clear();
    }
    match Show::open().and_then(|mut show| show.perform(options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("pointsman: interrupted; everything is cleared up");
            // What a shell reports for a command that Ctrl-C ended.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("pointsman: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clear() -> ExitCode {
    let cleared = lab::clear_leftovers(PREFIX);
    leftovers::clear();
    for leftover in &cleared {
        println!("removed {} (made by process {}, which is gone)", leftover.name, leftover.maker);
    }
    let left = lab::find_leftovers(PREFIX).len();
    if left > 0 {
        eprintln!("pointsman: {left} namespaces could not be removed; this needs root (try sudo)");
        return ExitCode::FAILURE;
    }
    if cleared.is_empty() {
        println!("nothing to clear: no demo has left anything behind");
    }
    ExitCode::SUCCESS
}

/// How long each of the pauses between changes is.
fn pause(options: &Options) -> Duration {
    Duration::from_secs(options.seconds) / (options.rounds * 2 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_changes_are_spread_over_the_time() {
        let options = Options { seconds: 12, rounds: 2, pods: 2, keep: false, clear: false };
        assert_eq!(pause(&options), Duration::from_millis(2400));
        assert_eq!(pause(&Options { rounds: 0, ..options }), Duration::from_secs(12));
    }
}

//! Whether clients notice that the daemon is killed, or that other Services change: new connections, and how many of them fail.
//!
//! A lab with the real `kube-proxy` against an API server double, and a cluster of Services around a few that are connected to. Clients
//! open connections at a fixed rate, whatever becomes of them ([`clients`]); meanwhile the daemon is ended by SIGKILL and started
//! again, endpoints of other Services come and go, or both ([`stage`]). A *failing* connection is one that was not answered in full. A *slow*
//! one took so long that a packet must have been lost and sent again.
//!
//! A *control* in the same run takes the tables away for a moment: a measurement that shows no failing connections there measures nothing.

mod clients;
mod stage;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::daemon;
use crate::report::{Csv, Report, Table};
use crate::stats::quantile;
use clients::{End, SLOW, Sample};
use stage::Stage;

/// Options of `hitless`.
#[derive(Debug, Args)]
pub struct Options {
    /// Services beside those that are connected to, ten endpoints each
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// New connections per second
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Seconds per scenario
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds of the control
    #[arg(long, default_value_t = 8)]
    control_seconds: u64,
    /// Seconds between two kills
    #[arg(long, default_value_t = 5)]
    kill_every: u64,
    /// Changes of other Services' endpoints per second
    #[arg(long, default_value_t = 200)]
    churn: u32,
    /// Scenarios
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["quiet", "kill", "churn", "both", "control"])]
    scenarios: Vec<Scenario>,
    /// The daemon to measure; without it, `kube-proxy` beside this program
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
}

/// What happens while clients connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Scenario {
    /// Nothing
    Quiet,
    /// The daemon is killed and started again
    Kill,
    /// Endpoints of other Services come and go
    Churn,
    /// Both
    Both,
    /// The daemon is killed and its tables are removed for a second
    Control,
}

/// Measures, prints and writes.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    anyhow::ensure!(options.rate > 0 && options.seconds > 1 && options.kill_every > 0, "nothing to measure");
    let binary = daemon::binary(options.kube_proxy.as_deref())?;
    let name = format!("hitless-{}", options.services);
    let mut report = Report::begin(&name, out)?;
    report.say(format!(
        "{} new connections per second through {} frontends; {} other Services with 10 endpoints each\n",
        options.rate,
        stage::FRONTENDS,
        options.services
    ));
    let mut stage = Stage::build(options.services, binary)?;
    let mut seconds = Csv::new("scenario,second,connections,failing,slow,late,p50_us,p99_us,longest_us");
    let mut failing = Csv::new("scenario,at_ms,frontend,end,took_us");
    let mut events = Csv::new("scenario,at_ms,event");
    let mut table = Table::new(&[
        "scenario",
        "connections",
        "per second",
        "failing",
        "slow",
        "p50, us",
        "p99, us",
        "longest, ms",
        "kills",
        "starts complete after, ms",
        "changes",
    ]);
    for scenario in &options.scenarios {
        eprintln!("{scenario:?}");
        let time = Duration::from_secs(match scenario {
            Scenario::Control => options.control_seconds,
            _ => options.seconds,
        });
        let load = clients::Load::start(stage.client(), stage::frontends(), options.rate, time)?;
        let happened = stage.play(*scenario, time, Duration::from_secs(options.kill_every), options.churn)?;
        let samples = load.finish().context("a client's thread")?;
        let name = format!("{scenario:?}").to_lowercase();
        for (at, event) in &happened.events {
            events.row(&[&name, &at.as_millis(), event]);
        }
        for sample in samples.iter().filter(|sample| sample.end != End::Answered) {
            let end = format!("{:?}", sample.end).to_lowercase();
            failing.row(&[&name, &sample.at.as_millis(), &sample.frontend, &end, &sample.took.as_micros()]);
        }
        by_second(&name, &samples, &mut seconds);
        table.row(&[
            &name,
            &samples.len(),
            &format!("{:.0}", samples.len() as f64 / time.as_secs_f64()),
            &samples.iter().filter(|sample| sample.end != End::Answered).count(),
            &samples.iter().filter(|sample| sample.is_slow()).count(),
            &micros(&samples, 0.5),
            &micros(&samples, 0.99),
            &format!("{:.1}", micros(&samples, 1.0) as f64 / 1e3),
            &happened.kills,
            &happened.started.iter().map(|took| took.as_millis().to_string()).collect::<Vec<_>>().join(" "),
            &happened.changes,
        ]);
    }
    report.raw(&name, &seconds)?;
    report.raw(&format!("{name}-failing"), &failing)?;
    report.raw(&format!("{name}-events"), &events)?;
    report.say(table);
    report.say(format!(
        "failing: not answered in full within {} s; slow: answered after {} ms or more, so a packet was lost. Targets: 0 and 0; the control must fail.",
        clients::PATIENCE.as_secs(),
        SLOW.as_millis()
    ));
    report.end()
}

/// Of all answered connections.
fn micros(samples: &[Sample], share: f64) -> u128 {
    let mut took: Vec<_> =
        samples.iter().filter(|sample| sample.end == End::Answered).map(|sample| sample.took).collect();
    took.sort_unstable();
    if took.is_empty() { 0 } else { quantile(&took, share).as_micros() }
}

fn by_second(name: &str, samples: &[Sample], csv: &mut Csv) {
    let last = samples.iter().map(|sample| sample.at.as_secs()).max().unwrap_or_default();
    for second in 0..=last {
        let those: Vec<_> = samples.iter().filter(|sample| sample.at.as_secs() == second).copied().collect();
        let count = |which: &dyn Fn(&Sample) -> bool| those.iter().filter(|sample| which(sample)).count();
        csv.row(&[
            &name,
            &second,
            &those.len(),
            &count(&|sample| sample.end != End::Answered),
            &count(&Sample::is_slow),
            &count(&|sample| sample.late > clients::LATE),
            &micros(&those, 0.5),
            &micros(&those, 0.99),
            &micros(&those, 1.0),
        ]);
    }
}

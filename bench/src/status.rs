//! How long people and scripts wait who look inside, in a large cluster, and how long the controller is held up by it.
//!
//! The real daemon follows an API server double with many Services; the real `pointsman` asks it, a scraper scrapes it, and a real browser
//! (headless Chromium) opens its page, in turn, in rounds. The controller's part is by its own clock: `pointsman_status_answer_duration_seconds`
//! before and after. Each of a round's questions is asked once, so whatever else the machine does meets all of them alike.
//!
//! What looking costs the connections themselves is measured by itself (`lookers`).

mod lookers;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use api_double::{ApiDouble, endpoint_slice, node, service};
use clap::Args;
use nix::sys::signal::Signal;
use pointsman::lab::Namespace;

use crate::cluster;
use crate::daemon::{self, Daemon};
use crate::report::{Csv, Report, Table};
use crate::stats::quantile;

#[path = "../../tests/e2e/browser.rs"]
#[allow(dead_code, reason = "the tests of the page use the rest")]
mod browser;

/// What the browser's code finds beside it.
mod support {
    pub(super) mod beds {
        use std::time::Duration;

        /// Until something is considered broken.
        pub(in crate::status) const PATIENCE: Duration = Duration::from_secs(20);
    }
}

use browser::Browser;

/// Where metrics and the page are.
const PORT: u16 = 10249;

/// How it is measured.
#[derive(Debug, Args)]
pub struct Options {
    /// Services in the cluster, of ten endpoints each
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// How often each question is asked
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// The daemon; by default the one beside this program. `pointsman` is looked for beside it
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Connections per block, for what it costs them that somebody looks
    #[arg(long, default_value_t = 2_000)]
    connections: usize,
    /// Without a browser, where there is none
    #[arg(long)]
    no_page: bool,
}

/// Something to be asked.
struct Question {
    name: &'static str,
    ask: Ask,
    /// Of issue 8, in milliseconds.
    target: Option<f64>,
}

enum Ask {
    /// `pointsman` with these arguments, until it has ended and all was read.
    Command(Vec<String>),
    /// A path of the metrics port, over HTTP.
    Path(&'static str),
    /// The page, from navigating to rows that are drawn.
    Page,
}

struct Stage<'a> {
    namespace: &'a Namespace,
    pointsman: PathBuf,
    socket: PathBuf,
    browser: Option<Browser>,
}

/// What the controller's clock says: answers given, and seconds they took.
#[derive(Clone, Copy)]
struct Held {
    answers: f64,
    seconds: f64,
}

/// Measures and reports.
pub fn run(options: &Options, out: Option<PathBuf>) -> anyhow::Result<()> {
    let mut report = Report::begin("status", out)?;
    let binary = daemon::binary(options.daemon.as_deref())?;
    let namespace = Namespace::anonymous()?;
    namespace.prepare()?;
    let double = namespace.run(ApiDouble::start);
    double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
    for number in 0..options.services {
        let (name, address) = (format!("service-{number}"), cluster::cluster_ip(number).to_string());
        double.apply(service("bench", &name, &address, &[("", "TCP", cluster::SERVICE_PORT)]));
        let first = number * u32::from(cluster::ENDPOINTS);
        let pods: Vec<_> =
            (first..first + u32::from(cluster::ENDPOINTS)).map(|pod| cluster::pod(pod).to_string()).collect();
        let pods: Vec<_> = pods.iter().map(String::as_str).collect();
        double.apply(endpoint_slice("bench", &format!("{name}-a"), &name, &pods, &[("", "TCP", cluster::TARGET_PORT)]));
    }
    let directory = tempfile::tempdir()?;
    let (kubeconfig, socket) = (double.kubeconfig(directory.path()), directory.path().join("pointsman.sock"));
    let settings = ["--proxy-mode=nftables".to_owned(), format!("--status-socket={}", socket.display())];
    let mut daemon = Daemon::start_with(&namespace, &binary, &kubeconfig, &settings)?;
    daemon.ready()?;
    let pointsman = binary.with_file_name("pointsman");
    anyhow::ensure!(pointsman.exists(), "no {}: build it, it is a binary of this project", pointsman.display());
    let browser = (!options.no_page).then(|| Browser::start(&namespace));
    let mut stage = Stage { namespace: &namespace, pointsman: pointsman.clone(), socket, browser };

    let questions = questions(options);
    let mut raw = Csv::new("round,question,milliseconds,bytes,controller_answers,controller_milliseconds");
    let mut times: Vec<Vec<[f64; 3]>> = questions.iter().map(|_| Vec::new()).collect();
    // The first round fills caches, as the first look of a day does; it is kept apart as round 0.
    for round in 0..=options.rounds {
        for (question, times) in questions.iter().zip(&mut times) {
            let before = stage.held()?;
            let begin = Instant::now();
            let bytes = stage.ask(&question.ask)?;
            let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
            let after = stage.held()?;
            let (answers, held) = (after.answers - before.answers, (after.seconds - before.seconds) * 1e3);
            raw.row(&[&round, &question.name, &format!("{milliseconds:.3}"), &bytes, &answers, &format!("{held:.3}")]);
            if round > 0 {
                times.push([milliseconds, held, answers]);
            }
        }
    }
    let memory = daemon.memory()?;
    drop(stage);
    daemon.end(Signal::SIGTERM)?;

    report.say(format!(
        "{} Services of {} endpoints, {} rounds.\n",
        options.services,
        cluster::ENDPOINTS,
        options.rounds
    ));
    let mut table =
        Table::new(&["question", "p50 ms", "p90 ms", "controller held, ms", "in pieces", "target", "verdict"]);
    for (question, times) in questions.iter().zip(&times) {
        let column = |index: usize| {
            let mut values: Vec<f64> = times.iter().map(|one| one[index]).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let (wall, held, pieces) = (column(0), column(1), column(2));
        let median = quantile(&wall, 0.5);
        let (target, verdict) = match question.target {
            Some(target) => (format!("< {target}"), if median < target { "met" } else { "MISSED" }),
            None => (String::new(), ""),
        };
        table.row(&[
            &question.name,
            &format!("{median:.1}"),
            &format!("{:.1}", quantile(&wall, 0.9)),
            &format!("{:.2}", quantile(&held, 0.5)),
            &quantile(&pieces, 0.5),
            &target,
            &verdict,
        ]);
    }
    report.say(&table);
    report.say(format!(
        "The daemon's memory afterwards: {} MB resident, {} at most.",
        memory[0] / 1000,
        memory[1] / 1000
    ));
    report.raw("status", &raw)?;
    lookers::measure(options.rounds, options.connections, &binary, &pointsman, &mut report)?;
    report.end()
}

fn questions(options: &Options) -> Vec<Question> {
    let command = |words: &str| Ask::Command(words.split(' ').map(str::to_owned).collect());
    let middle = options.services / 2;
    let hit = format!("explain {}:80", cluster::cluster_ip(middle));
    let nobody = "explain 203.0.113.9:80 --from 10.128.0.7";
    let mut questions = vec![
        Question { name: "list", ask: command("list"), target: Some(100.0) },
        Question { name: "list -o json", ask: command("list -o json"), target: None },
        Question { name: "get services", ask: command("get services"), target: None },
        Question { name: "get services: a search", ask: command("get services service-77"), target: None },
        Question { name: "explain", ask: command(&hit), target: None },
        Question { name: "explain: nobody's address", ask: command(nobody), target: None },
        Question { name: "/metrics", ask: Ask::Path("/metrics"), target: Some(100.0) },
    ];
    if !options.no_page {
        questions.push(Question { name: "the page's first view", ask: Ask::Page, target: Some(1000.0) });
    }
    questions
}

// === impl Stage ===

impl Stage<'_> {
    /// Asks, and says how much was answered, in bytes; of the page, how many rows are drawn.
    fn ask(&mut self, ask: &Ask) -> anyhow::Result<usize> {
        match ask {
            Ask::Command(words) => {
                let mut command = Command::new(&self.pointsman);
                command.args(words).arg("--socket").arg(&self.socket);
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let output = self.namespace.spawn(command)?.wait_with_output()?;
                // What explain explains may reach nobody, which is exit status 2.
                let fine = output.status.success() || output.status.code() == Some(2);
                anyhow::ensure!(
                    fine && !output.stdout.is_empty(),
                    "{words:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
                Ok(output.stdout.len())
            }
            Ask::Path(path) => Ok(self.get(path)?.len()),
            Ask::Page => {
                let browser = self.browser.as_mut().context("a browser")?;
                browser.open("about:blank");
                browser.open(&format!("http://127.0.0.1:{PORT}/ui/"));
                browser.wait("rows", "document.querySelectorAll('#rows a').length > 5");
                let rows = browser.eval("document.querySelectorAll('#rows [role=row]').length");
                Ok(rows.as_u64().unwrap_or(0).try_into()?)
            }
        }
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let talk = || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            std::io::Result::Ok(text)
        };
        self.namespace.run(talk).with_context(|| format!("asking for {path}"))
    }

    fn held(&self) -> anyhow::Result<Held> {
        let text = self.get("/metrics")?;
        let value = |suffix: &str| {
            let name = format!("pointsman_status_answer_duration_seconds_{suffix} ");
            let found = text.lines().find_map(|line| line.strip_prefix(&*name)?.parse().ok());
            found.with_context(|| format!("no {name}in the daemon's metrics"))
        };
        Ok(Held { answers: value("count")?, seconds: value("sum")? })
    }
}

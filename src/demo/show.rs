//! The course of the demo: set the stage, wait for the daemon, scale up and down under traffic, report.
//!
//! Everything happens on one thread that takes in what the customers see ([`Show::watch`]) and, between two of their reports, redraws
//! the board, looks whether the daemon is alive and whether somebody wants the end. An error anywhere unwinds through [`Show`],
//! whose fields go in the right order: customers, listeners, daemon, lab, files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::board::Board;
use super::commits::{Commits, RulesetSize};
use super::daemon::{self, Daemon};
use super::interrupt::Interrupt;
use super::leftovers;
use super::render::{self, Line, Style, duration};
use super::screen::Screen;
use super::shop::{self, NODE_NAME, SCALED, Shop};
use super::traffic::{Observation, Target, Traffic};
use super::{Options, PREFIX, pause};
use crate::lab::{Addresses, Lab, Listen, Namespace};

/// Directory of the manifests, within the demo's own.
const MANIFESTS: &str = "manifests";
/// How long the daemon may take until every frontend answers.
const START_PATIENCE: Duration = Duration::from_secs(15);
/// One try while the daemon starts: nothing answers before it is done, and then at once.
const START_TRY: Duration = Duration::from_millis(30);
/// How long a change may take.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);
/// A removed endpoint counts as gone when no new connection has reached it for so long.
const QUIET: Duration = Duration::from_millis(300);
/// How long to listen for the rest of a change after its first effects.
const SETTLE: Duration = Duration::from_millis(50);
/// Pauses of the customers between two connections.
const SWEEP_PAUSE: Duration = Duration::from_millis(1);
const REFUSED_PAUSE: Duration = Duration::from_millis(200);
const SCALED_PAUSE: Duration = Duration::from_micros(500);
/// Customers that stay with the scaled Service.
const SCALED_CUSTOMERS: usize = 2;

/// The demo on its stage; fields are dropped in this order.
pub struct Show {
    traffic: Traffic,
    commits: Commits,
    daemon: Daemon,
    lab: Lab,
    files: TempDir,
    board: Board,
    /// Pods behind the scaled Service.
    scaled: BTreeMap<String, Addresses>,
    /// How long each change took until the kernel had committed it.
    updates: Vec<Duration>,
    screen: Screen<std::io::Stdout>,
    interrupt: Interrupt,
}

impl Show {
    /// Makes the lab and starts the daemon.
    ///
    /// # Errors
    /// Without root, without the daemon's binary, and whatever else is missing.
    pub fn open() -> Result<Self> {
        daemon::binary()?;
        let interrupt = Interrupt::listen()?;
        let mut screen = Screen::stdout();
        let shop = Shop::embedded()?;
        let began = Instant::now();
        let mut lab = Lab::builder().prefix(PREFIX).build()?;
        for (name, pod) in &shop.pods {
            interrupt.check()?;
            lab.add_pod_at(name, pod.address.context("a pod without address")?)?;
            lab.serve(name, &pod.ports.iter().copied().collect::<Vec<_>>())?;
        }
        screen.say(&format!(
            "made a node, a client and {} pods as network namespaces {}-* in {}",
            shop.pods.len(),
            lab.name(),
            duration(began.elapsed())
        ));
        let files = leftovers::make_directory()?;
        let manifests = files.path().join(MANIFESTS);
        std::fs::create_dir(&manifests)?;
        shop::write_manifests(&manifests)?;
        let commits = Commits::listen(lab.node())?;
        let daemon = Daemon::start(lab.node(), &manifests, NODE_NAME, files.path().join("kube-proxy.log"))?;
        let scaled = shop.scaled().frontends.iter().flat_map(|frontend| &frontend.pods);
        let scaled = scaled.map(|pod| (pod.clone(), lab.pod(pod).addresses())).collect();
        let board = Board::new(&shop);
        Ok(Self {
            traffic: Traffic::default(),
            commits,
            daemon,
            lab,
            files,
            board,
            scaled,
            updates: Vec::new(),
            screen,
            interrupt,
        })
    }

    /// The demo itself; true if everything worked as it should.
    ///
    /// # Errors
    /// When the daemon died, the lab could not be changed, or somebody interrupted.
    pub fn perform(&mut self, options: &Options) -> Result<bool> {
        self.wait_until_programmed()?;
        self.start_traffic()?;
        self.watch(pause(options), |_, _| false)?;
        for _ in 0..options.rounds {
            self.scale_up(options.pods)?;
            self.watch(pause(options), |_, _| false)?;
            self.scale_down(options.pods)?;
            self.watch(pause(options), |_, _| false)?;
        }
        self.traffic = Traffic::default();
        self.board.check_distribution();
        self.board.check_coverage();
        self.daemon.check()?;
        let worked = self.report();
        if options.keep {
            self.keep()?;
        }
        Ok(worked)
    }

    /// Tries all frontends until each has done what it should.
    fn wait_until_programmed(&mut self) -> Result<()> {
        let began = Instant::now();
        let mut waiting = self.board.targets();
        // One that answers comes first: a try that is refused, or times out, says less.
        waiting.sort_by_key(|target| self.board.rows[target.service].members.is_empty());
        let mut first = None;
        while !waiting.is_empty() {
            self.interrupt.check()?;
            self.daemon.check()?;
            let batch: &[Target] = if first.is_some() { &waiting } else { &waiting[..1] };
            let client = self.lab.client(0);
            let seen: Vec<Observation> = client.run(|| batch.iter().map(|target| target.try_once(START_TRY)).collect());
            let mut complaint = None;
            for seen in &seen {
                match self.board.judge(seen) {
                    Ok(()) => {
                        first.get_or_insert(began.elapsed());
                        waiting.retain(|target| target.address != seen.target.address || target.udp != seen.target.udp);
                    }
                    Err(why) => complaint = Some(why),
                }
            }
            if began.elapsed() > START_PATIENCE {
                let why = complaint.unwrap_or_default();
                let log = std::fs::read_to_string(self.daemon.log()).unwrap_or_default();
                bail!("kube-proxy did not program everything within {START_PATIENCE:?}: {why}. Its log:\n{log}");
            }
        }
        self.screen.say(&format!(
            "kube-proxy runs (process {}); first connection through a ClusterIP after {}, all {} frontends after {}",
            self.daemon.pid(),
            duration(first.unwrap_or_default()),
            self.board.targets().len(),
            duration(began.elapsed())
        ));
        Ok(())
    }

    fn start_traffic(&mut self) -> Result<()> {
        let client = self.lab.client(0);
        let scaled: Vec<_> = self.board.row_mut(SCALED).frontends.iter().map(|frontend| frontend.target).collect();
        let all = self.board.targets();
        let refusing = |target: &Target| self.board.rows[target.service].members.is_empty();
        let (refused, answered): (Vec<_>, Vec<_>) = all.into_iter().partition(refusing);
        self.traffic.start(client, answered, SWEEP_PAUSE)?;
        // Apart from the others: after a burst, the kernel sends one ICMP error per second and client (`net.ipv4.icmp_ratelimit`), so
        // a refusal by ICMP may take as long as the client's second attempt.
        self.traffic.start(client, refused, REFUSED_PAUSE)?;
        for customer in 0..SCALED_CUSTOMERS {
            let mut targets = scaled.clone();
            targets.rotate_left(customer % scaled.len());
            self.traffic.start(client, targets, SCALED_PAUSE)?;
        }
        self.screen.say(&format!("connecting from {} to every Service, most of all to {SCALED}", client.role()));
        Ok(())
    }

    /// Takes in what customers see until `done` says so (true) or the time is over (false).
    fn watch(&mut self, at_most: Duration, mut done: impl FnMut(&Board, &Observation) -> bool) -> Result<bool> {
        let deadline = Instant::now() + at_most;
        loop {
            self.interrupt.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            match self.traffic.seen.recv_timeout(left.min(Duration::from_millis(50))) {
                Ok(seen) => {
                    self.board.record(&seen);
                    if done(&self.board, &seen) {
                        return Ok(true);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the customers are gone"),
            }
            if self.screen.wants_board() {
                self.daemon.check()?;
                let lines = render::board(&self.board, self.screen.width());
                self.screen.show(lines);
            }
        }
    }

    /// Adds pods, then tells the daemon, then waits for connections to all of them.
    fn scale_up(&mut self, count: u8) -> Result<()> {
        self.board.check_distribution();
        let before = self.scaled.len();
        let mut added = BTreeSet::new();
        for number in (before + 1..).take(usize::from(count)) {
            let name = format!("{SCALED}-{number}");
            let address = Ipv4Addr::new(10, 244, 0, 10 + u8::try_from(number)?);
            let addresses = self.lab.add_pod_at(&name, address)?.addresses();
            self.lab.serve(&name, &[Listen::Tcp(8080)])?;
            self.scaled.insert(name.clone(), addresses);
            added.insert(name);
        }
        self.board.row_mut(SCALED).also_allow(added.clone());
        let renamed = self.replace_endpoints()?;
        let mut took = None;
        let mut missing = added.clone();
        let complete = self.watch(CHANGE_PATIENCE, |_, seen| {
            if let Some(pod) = seen.outcome.as_ref().ok().map(|answer| &answer.pod).filter(|pod| added.contains(*pod)) {
                took.get_or_insert(seen.ended - renamed);
                missing.remove(pod);
            }
            missing.is_empty()
        })?;
        if !complete {
            let missing: Vec<_> = missing.into_iter().collect();
            self.board.complain(format!("no connection reached {} within {CHANGE_PATIENCE:?}", missing.join(", ")));
        }
        self.end_change(before, renamed, took, "first answer from a new pod")
    }

    /// Tells the daemon, waits until nobody connects to the pods any more, then removes them.
    fn scale_down(&mut self, count: u8) -> Result<()> {
        self.board.check_distribution();
        let before = self.scaled.len();
        let mut names: Vec<_> = self.scaled.keys().cloned().collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        let removed: BTreeSet<_> = names.split_off(before - usize::from(count)).into_iter().collect();
        self.scaled.retain(|name, _| !removed.contains(name));
        let renamed = self.replace_endpoints()?;
        let mut took = None;
        let mut last = renamed;
        let quiet = self.watch(CHANGE_PATIENCE, |_, seen| {
            if seen.outcome.as_ref().is_ok_and(|answer| removed.contains(&answer.pod)) && seen.started > renamed {
                last = seen.started;
                took = Some(last - renamed);
            }
            seen.started.saturating_duration_since(last) > QUIET
        })?;
        if !quiet {
            self.board
                .complain(format!("connections still reach removed endpoints {CHANGE_PATIENCE:?} after their removal"));
        }
        self.end_change(before, renamed, took, "last answer from a removed pod")?;
        for pod in &removed {
            self.lab.remove_pod(pod)?;
        }
        Ok(())
    }

    /// Replaces the file, and says when.
    fn replace_endpoints(&mut self) -> Result<Instant> {
        shop::replace_endpoints(&self.files.path().join(MANIFESTS), &self.scaled)?;
        Ok(Instant::now())
    }

    fn end_change(&mut self, before: usize, renamed: Instant, took: Option<Duration>, traffic: &str) -> Result<()> {
        // The families may be changed one after the other.
        self.watch(SETTLE, |_, _| false)?;
        let commits = self.commits.after(renamed);
        let kernel = match commits.first() {
            Some(first) => {
                self.updates.push(first.at - renamed);
                let changed: usize = commits.iter().map(|commit| commit.elements + commit.objects).sum();
                format!("in the kernel after {} ({changed} changes)", duration(first.at - renamed))
            }
            None => {
                self.board.complain(format!("the kernel announced no change of {SCALED}'s endpoints"));
                "not in the kernel".into()
            }
        };
        self.board.row_mut(SCALED).set_members(self.scaled.keys().cloned().collect());
        let after = self.scaled.len();
        self.screen.say(&format!(
            "scaled {SCALED} {} from {before} to {after}: {kernel}, {traffic} after {}",
            if after > before { "up" } else { "down" },
            took.map_or("never".into(), duration),
        ));
        Ok(())
    }

    /// The last board and the verdict.
    fn report(&mut self) -> bool {
        let size = match RulesetSize::of(self.lab.node()) {
            Ok(size) => Some(size),
            Err(error) => {
                self.board.complain(format!("{error:#}"));
                None
            }
        };
        let board = render::board(&self.board, self.screen.width());
        self.screen.finish(&board);
        let worked = self.board.failed == 0 && self.board.complaints.is_empty();
        let mut lines: Vec<Line> = Vec::new();
        self.updates.sort();
        if let (Some(median), Some(slowest)) =
            (self.updates.get(self.updates.len().saturating_sub(1) / 2), self.updates.last())
        {
            let (median, slowest) = (duration(*median), duration(*slowest));
            let text = format!(
                " {} changes of endpoints: from the renamed file to the kernel in {median} (median), {slowest} at most.",
                self.updates.len()
            );
            lines.push(vec![(Style::Plain, text)]);
        }
        if let Some(size) = size {
            lines.push(vec![(Style::Plain, format!(" The ruleset: {size}."))]);
        }
        if worked {
            lines.push(vec![(Style::Good, " Everything worked as it should.".into())]);
        } else {
            lines.push(vec![(Style::Bad, " This did not work as it should:".into())]);
            lines.extend(self.board.complaints.iter().map(|complaint| vec![(Style::Plain, format!("   {complaint}"))]));
        }
        lines.iter().for_each(|line| self.screen.print(line));
        worked
    }

    /// Leaves everything as it is until somebody asks for the end.
    fn keep(&mut self) -> Result<()> {
        for line in self.directions() {
            self.screen.print(&vec![(Style::Plain, line)]);
        }
        while !self.interrupt.wait(Duration::from_millis(500)) {
            self.daemon.check()?;
        }
        self.screen.print(&vec![(Style::Plain, "clearing up".into())]);
        Ok(())
    }

    fn directions(&self) -> Vec<String> {
        let name = |namespace: &Namespace| namespace.name().unwrap_or_default().to_owned();
        let (node, client) = (name(self.lab.node().namespace()), name(self.lab.client(0).namespace()));
        let path = self.files.path().display();
        // As a rule it was built a moment ago and is in no PATH.
        let program = std::env::current_exe().map_or("pointsman".to_owned(), |program| program.display().to_string());
        vec![
            String::new(),
            "The lab stays up until Ctrl-C. In another terminal, as root:".into(),
            format!("  the ruleset       ip netns exec {node} nft list ruleset"),
            format!(
                "  ask the daemon    ip netns exec {node} {program} --socket {} list",
                self.daemon.socket().display()
            ),
            format!("  be the client     ip netns exec {client} bash"),
            "    and connect     exec 3<>/dev/tcp/10.96.0.10/80; head -1 <&3    # says which pod answered".into(),
            format!("  without iproute2  nsenter --net=/run/netns/{node} bash"),
            format!("  the manifests     {path}/{MANIFESTS}    # edit them: the daemon follows"),
            format!("  the daemon's log  tail -f {}", self.daemon.log().display()),
        ]
    }
}

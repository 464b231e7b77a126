//! A directory of manifests as a source of objects.
//!
//! [`ManifestSource`] reads every `*.yaml`, `*.yml` and `*.json` of one directory (not of its subdirectories) and follows it live:
//! edits in place, files renamed over others, symlinks swapped as in a mounted ConfigMap, files and the directory itself going
//! and coming back. `v1` Services, `discovery.k8s.io/v1` EndpointSlices and our own `v1` Node are passed on, from documents and from
//! lists; other kinds are skipped with one line.
//!
//! How it is cut: `text` makes documents of text, `head` and `parse` make objects of documents, `inventory` makes changes of the
//! objects of all files; these are pure. `scan` looks at the directory, `watch` knows when to look, and the task here joins them
//! and logs each [`Problem`] once.
//!
//! Invariants:
//! - An edit is visible about 5 ms after the last write, and a batch of edits is one burst of changes.
//! - What inotify cannot see is found by a rescan every 2 s.
//! - Whatever cannot be read or understood leaves the last good content in force.
//!
//! Proven by `tests/source_manifests.rs` and by the tests of the modules.

mod head;
mod inventory;
mod parse;
mod problem;
mod scan;
pub(crate) mod text;
mod watch;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Change, Kind};
pub use problem::Problem;
use scan::{Outcome, Scanner};
use watch::Watcher;

/// After a notification, so long must nothing else happen before the directory is scanned.
const QUIET: Duration = Duration::from_millis(5);
/// A directory that never gets quiet is scanned at this interval.
const RESTLESS: Duration = Duration::from_millis(50);
/// The directory is scanned at least this often, unless told otherwise.
const RESCAN: Duration = Duration::from_secs(2);

/// A directory of manifests that is followed live.
#[derive(Debug)]
pub struct ManifestSource {
    dir: PathBuf,
    node_name: String,
    rescan: Duration,
    reports: Option<mpsc::UnboundedSender<Problem>>,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the manifest directory {}", .dir.display())]
pub struct ManifestError {
    /// The directory.
    pub dir: PathBuf,
    /// What listing it answered.
    #[source]
    pub source: io::Error,
}

/// What the task owns while it runs.
struct Follower {
    dir: PathBuf,
    /// None while a scan has it.
    scanner: Option<Scanner>,
    watcher: Option<Watcher>,
    /// The trouble with notifications that has been reported.
    deaf: Option<String>,
    rescan: Duration,
    reports: Option<mpsc::UnboundedSender<Problem>>,
    synced: bool,
}

// === impl ManifestSource ===

impl ManifestSource {
    /// A source for `dir` that passes on the Node called `node_name` and no other.
    ///
    /// # Errors
    /// The directory cannot be listed. Files in it are not looked at yet; what is wrong with them is reported later.
    pub fn new(dir: impl Into<PathBuf>, node_name: impl Into<String>) -> Result<Self, ManifestError> {
        let dir = dir.into();
        let fail = |source| ManifestError { dir: dir.clone(), source };
        let absolute = std::path::absolute(&dir).map_err(fail)?;
        std::fs::read_dir(&absolute).map_err(fail)?;
        Ok(ManifestSource { dir: absolute, node_name: node_name.into(), rescan: RESCAN, reports: None })
    }

    /// How often the directory is looked at without a notification; every 2 s when not called. It costs a `stat` per file.
    pub fn rescan_every(self, rescan: Duration) -> Self {
        ManifestSource { rescan, ..self }
    }

    /// Also sends each problem there. They are logged in any case.
    pub fn report_to(self, reports: mpsc::UnboundedSender<Problem>) -> Self {
        ManifestSource { reports: Some(reports), ..self }
    }

    /// Sends what the directory holds, then what changes, until `shutdown` is cancelled or nobody listens.
    pub async fn run(self, changes: mpsc::Sender<Change>, shutdown: CancellationToken) {
        let scanner = Scanner::new(self.dir.clone(), self.node_name);
        let mut follower = Follower {
            dir: self.dir,
            scanner: Some(scanner),
            watcher: None,
            deaf: None,
            rescan: self.rescan,
            reports: self.reports,
            synced: false,
        };
        // Dropping a scan half-way is fine: nothing is kept after shutdown.
        shutdown.run_until_cancelled(follower.follow(changes)).await;
    }
}

/// Sends what one scan found, as far as the channel's room goes in one go: who waits for the first change finds the others, too.
async fn send(changes: &mpsc::Sender<Change>, found: Vec<Change>) -> Result<(), mpsc::error::SendError<()>> {
    let mut found = found.into_iter();
    while found.len() > 0 {
        let room = found.len().min(changes.max_capacity());
        changes.reserve_many(room).await?.zip(found.by_ref()).for_each(|(place, change)| place.send(change));
    }
    Ok(())
}

// === impl Follower ===

impl Follower {
    async fn follow(&mut self, changes: mpsc::Sender<Change>) {
        match Watcher::new() {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.deafened(Some(format!("cannot use inotify: {error}"))),
        }
        self.aim(&BTreeSet::new());
        loop {
            let outcome = self.scan().await;
            // What is newly watched may have changed between the scan and the watch.
            let again = if self.aim(&outcome.outside) { Some(Duration::ZERO) } else { outcome.again };
            for problem in outcome.problems {
                self.report(problem);
            }
            let mut found = outcome.changes;
            if outcome.complete && !self.synced {
                self.synced = true;
                found.extend([Kind::Node, Kind::ServiceCIDR, Kind::EndpointSlice, Kind::Service].map(Change::Synced));
            }
            if send(&changes, found).await.is_err() {
                return;
            }
            self.rest(again.unwrap_or(self.rescan)).await;
        }
    }

    /// Waits until it is worth scanning again.
    async fn rest(&mut self, most: Duration) {
        let until = Instant::now() + most;
        let Some(watcher) = &mut self.watcher else { return sleep_until(until).await };
        let mut broken = match timeout_at(until, watcher.changed()).await {
            Err(_elapsed) => return,
            Ok(outcome) => outcome.err(),
        };
        let until = Instant::now() + RESTLESS;
        while broken.is_none() {
            match timeout_at(until.min(Instant::now() + QUIET), watcher.changed()).await {
                Err(_quiet) => return,
                Ok(_) if Instant::now() >= until => return,
                Ok(outcome) => broken = outcome.err(),
            }
        }
        self.watcher = None;
        self.deafened(broken.map(|error| format!("cannot read from inotify: {error}")));
    }

    async fn scan(&mut self) -> Outcome {
        let busy = self.watcher.as_ref().map(Watcher::busy).unwrap_or_default();
        let waiting = !busy.is_empty();
        let Some(mut scanner) = self.scanner.take() else { return Outcome::default() };
        let scanned = tokio::task::spawn_blocking(move || {
            let outcome = scanner.scan(&busy);
            (scanner, outcome)
        });
        match scanned.await {
            Ok((scanner, mut outcome)) => {
                self.scanner = Some(scanner);
                if waiting {
                    outcome.again = Some(outcome.again.unwrap_or(watch::PATIENCE).min(watch::PATIENCE));
                }
                outcome
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is going down, and this task with it.
            Err(_cancelled) => Outcome::default(),
        }
    }

    fn aim(&mut self, outside: &BTreeSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let (new, problem) = watcher.aim(&self.dir, outside);
        self.deafened(problem.err().map(|error| error.to_string()));
        new
    }

    fn deafened(&mut self, reason: Option<String>) {
        if let Some(reason) = reason.clone().filter(|_| self.deaf != reason) {
            self.report(Problem::NoNotifications { reason });
        }
        self.deaf = reason;
    }

    fn report(&self, problem: Problem) {
        if problem.is_trouble() {
            warn!(dir = %self.dir.display(), "{problem}");
        } else {
            info!(dir = %self.dir.display(), "{problem}");
        }
        if let Some(reports) = &self.reports {
            // Nobody listening is nobody's trouble.
            let _ = reports.send(problem);
        }
    }
}

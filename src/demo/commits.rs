//! The kernel's ruleset, seen from outside the daemon: when it changes, and how large it is.
//!
//! nf_tables announces every committed transaction to whoever listens: its changes object by object, then the new generation. That
//! tells the demo when a change was in force and how many elements it took. At the end the ruleset is read back and counted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nft::{Connection, Event, Monitor, SetRef};

use super::render::thousands;
use crate::lab::Host;

/// How often the listener looks whether it shall stop.
const LOOK_UP: Duration = Duration::from_millis(100);

/// A transaction that the kernel has committed.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// When we heard of it.
    pub at: Instant,
    /// Elements added and deleted.
    pub elements: usize,
    /// Other objects added and deleted: chains, rules, maps.
    pub objects: usize,
}

/// A running listener; it stops when this is dropped.
#[derive(Debug)]
pub struct Commits {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seen: Receiver<Commit>,
}

/// How much there is in all tables together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RulesetSize {
    tables: usize,
    chains: usize,
    rules: usize,
    maps: usize,
    elements: usize,
}

impl Commits {
    /// Listens inside a host's namespace.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or gives no more sockets.
    pub fn listen(host: &Host) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, seen) = channel();
        let (opened_sender, opened) = channel();
        let stopped = stop.clone();
        let thread = host.namespace().thread(move || {
            let mut monitor = match Monitor::open() {
                Ok(monitor) => {
                    let _ = opened_sender.send(Ok(()));
                    monitor
                }
                Err(error) => {
                    let _ = opened_sender.send(Err(error));
                    return;
                }
            };
            let (mut elements, mut objects) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                match monitor.next_timeout(LOOK_UP) {
                    Ok(Some(Event::Changed(change))) => match change.keys {
                        Some(keys) => elements += keys.len(),
                        None => objects += 1,
                    },
                    Ok(Some(Event::NewGeneration { .. })) => {
                        let commit = Commit { at: Instant::now(), elements, objects };
                        (elements, objects) = (0, 0);
                        if sender.send(commit).is_err() {
                            return;
                        }
                    }
                    // An overrun only makes a count too small, and only after a change far larger than a demo's.
                    Ok(Some(Event::Overrun) | None) => {}
                    Err(_) => return,
                }
            }
        })?;
        opened
            .recv()
            .map_err(|_| anyhow!("the listener ended"))?
            .context("cannot listen to the kernel's nf_tables notifications")?;
        Ok(Self { stop, thread: Some(thread), seen })
    }

    /// The commits after this time, among those not asked for yet.
    pub fn after(&self, time: Instant) -> Vec<Commit> {
        self.seen.try_iter().filter(|commit| commit.at > time).collect()
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl RulesetSize {
    /// Reads and counts the ruleset of a host.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn of(host: &Host) -> Result<Self> {
        let counted = host.run(|| {
            let mut size = Self::default();
            let mut kernel = Connection::open()?;
            for table in kernel.tables()? {
                size.tables += 1;
                size.chains += kernel.chains(table.family, &table.name)?.len();
                size.rules += kernel.rules(table.family, &table.name)?.len();
                for set in kernel.sets(table.family, &table.name)? {
                    size.maps += 1;
                    let set = SetRef { family: set.family, table: &set.table, name: &set.name };
                    kernel.elements(set, |_| size.elements += 1)?;
                }
            }
            Ok::<_, nft::Error>(size)
        });
        counted.context("cannot read the ruleset back")
    }
}

impl fmt::Display for RulesetSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |count: usize| thousands(count as u64);
        write!(
            f,
            "{} tables, {} chains, {} rules, {} maps and sets with {} elements",
            number(self.tables),
            number(self.chains),
            number(self.rules),
            number(self.maps),
            number(self.elements)
        )
    }
}

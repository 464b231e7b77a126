//! Noticing that somebody else changed our tables.
//!
//! Where tables can be owned (Linux 6.9), nobody but root with intent can; on older kernels one `nft flush ruleset` or a firewall's
//! reload is enough. The kernel tells every committed change to those who ask (`NFNLGRP_NFTABLES`); a [`Watch`] listens on a thread
//! of its own and reports a [`Disturbance`] per transaction of somebody else that touched a table of ours, or made chains in another. What is wrong is not
//! worked out from the notifications: whoever is told reads the tables and compares. So nothing depends on every notification being
//! heard, and when some were lost that is a disturbance, too.
//!
//! Our own transactions are not heard: a filter in the kernel drops what our connection caused, so that a large load does not come
//! back to us element by element.
//!
//! Proven by `tests/kernel/watch.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nft::{Action, Event, Monitor, ObjectKind};
use socket2::{SockFilter, SockRef};
use tracing::warn;

use crate::compile::layout::TABLE;

/// How long the end of a [`Watch`] may take to be noticed by its thread.
const ATTENTION: Duration = Duration::from_millis(250);

/// Pause after the socket failed.
const PAUSE: Duration = Duration::from_secs(1);

/// Kinds of things named in a [`Disturbance`], at most.
const NAMED: usize = 8;

/// Offset of `nlmsg_pid` in `struct nlmsghdr` (linux/netlink.h).
const NLMSG_PID: u32 = 12;

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K` (linux/filter.h).
const LOAD_WORD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// What somebody else did to our tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// One transaction.
    Changed {
        /// Name and number of the process; empty and 0 if the kernel did not say.
        by: (String, u32),
        /// What it changed, in words.
        what: Vec<String>,
    },
    /// Notifications were lost: there may have been one.
    Lost,
    /// Nothing of ours: somebody made a chain elsewhere, which may decide before ours.
    Elsewhere,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Changes of one transaction.
#[derive(Debug, Default)]
struct Changes {
    /// In our tables: action, kind and name, and how many elements.
    ours: BTreeMap<(bool, String), usize>,
    /// Whether a chain was made in another table.
    elsewhere: bool,
}

// === impl Watch ===

impl Watch {
    /// Listens in the calling thread's network namespace. `own` is the port of the connection whose changes are ours.
    pub fn start(own: u32, mut report: impl FnMut(Disturbance) + Send + 'static) -> Result<Self, nft::Error> {
        let mut monitor = Monitor::open()?;
        if let Err(error) = ignore(&monitor, own) {
            warn!(%error, "hearing our own changes, too, which costs time but does no harm");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let listen = move || {
            let mut changes = Changes::default();
            while !stopped.load(Ordering::Relaxed) {
                match monitor.next_timeout(ATTENTION) {
                    Ok(None) => {}
                    Ok(Some(event)) => take(event, own, &mut changes, &mut report),
                    Err(error) => {
                        warn!(%error, "listening for changes of the ruleset failed");
                        report(Disturbance::Lost);
                        thread::sleep(PAUSE);
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("watch".to_owned()).spawn(listen);
        let thread = thread.inspect_err(|error| warn!(%error, "no thread to listen for changes of the ruleset")).ok();
        Ok(Self { stop, thread })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Messages of one transaction come in datagrams of their own, all with the port of its author.
fn ignore(monitor: &Monitor, port: u32) -> std::io::Result<()> {
    // The filter reads words in network order.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    SockRef::from(monitor).attach_filter(&[
        SockFilter::new(LOAD_WORD, 0, 0, NLMSG_PID),
        SockFilter::new(JUMP_EQUAL, 0, 1, port),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])
}

fn take(event: Event, own: u32, changes: &mut Changes, report: &mut impl FnMut(Disturbance)) {
    match event {
        Event::Changed(change) if change.table == TABLE && change.port != own => {
            let (kind, elements) = match (change.kind, &change.keys) {
                (ObjectKind::Table, _) => ("table".to_owned(), 0),
                (ObjectKind::Chain, _) => (format!("chain {}", change.name), 0),
                (ObjectKind::Rule, _) => (format!("rules of chain {}", change.name), 0),
                (ObjectKind::Set, None) => (format!("map {}", change.name), 0),
                (ObjectKind::Set, Some(keys)) => (format!("map {}", change.name), keys.len()),
                _ => (format!("object {}", change.name), 0),
            };
            let what = format!("{}: {kind}", family(change.family));
            *changes.ours.entry((change.action == Action::Deleted, what)).or_default() += elements;
        }
        Event::Changed(change) => {
            changes.elsewhere |= change.table != TABLE
                && change.action == Action::Added
                && matches!(change.kind, ObjectKind::Chain | ObjectKind::Rule);
        }
        Event::NewGeneration { pid, process, .. } => {
            let Changes { ours, elsewhere } = std::mem::take(changes);
            if !ours.is_empty() {
                report(Disturbance::Changed { by: (process, pid), what: words(&ours) });
            }
            if elsewhere {
                report(Disturbance::Elsewhere);
            }
        }
        Event::Overrun => {
            *changes = Changes::default();
            report(Disturbance::Lost);
        }
    }
}

/// As nft spells it.
fn family(family: nft::Family) -> &'static str {
    if family == nft::Family::Ip6 { "ip6" } else { "ip" }
}

fn words(changes: &BTreeMap<(bool, String), usize>) -> Vec<String> {
    let word = |((deleted, what), elements): (&(bool, String), &usize)| {
        let action = if *deleted { "deleted" } else { "added" };
        if *elements > 0 { format!("{what}: {elements} elements {action}") } else { format!("{what} {action}") }
    };
    let mut words: Vec<_> = changes.iter().rev().map(word).take(NAMED).collect();
    if changes.len() > NAMED {
        words.push(format!("and {} more", changes.len() - NAMED));
    }
    words
}

// === impl Disturbance ===

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Disturbance::Changed { by: (process, pid), what } => {
                if *pid == 0 {
                    f.write_str("somebody")?
                } else {
                    write!(f, "{process} (process {pid})")?
                }
                write!(f, ": {}", what.join("; "))
            }
            Disturbance::Lost => f.write_str("notifications of changes were lost"),
            Disturbance::Elsewhere => f.write_str("somebody made chains in another table"),
        }
    }
}

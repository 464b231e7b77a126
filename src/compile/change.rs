//! What an update changed, for people: who joined, who left, what moved.
//!
//! A [`Delta`](super::Delta) says which elements differ; an element that changes hands may mean that an endpoint left, that the slots were
//! dealt anew, or that weights changed. Here it is said which, port by port. Only what changed is looked at, and only [`LISTED`] ports of a
//! compilation are described, so that a first load costs nothing.
//!
//! Proven by `engine/change_tests.rs` and, in the daemon, by `tests/e2e/observe.rs`.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use super::compiler::CompiledPort;
use crate::model::{Family, PortKey, plain};
use crate::policy::{Frontend, NodePort};
use crate::schedule::{Changed, Scheduler};

/// Ports described per compilation; the others are counted.
pub const LISTED: usize = 8;

/// Addresses named in a line; the others are counted.
const NAMED: usize = 3;

/// What a compilation changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The first [`LISTED`] ports that changed.
    pub ports: Vec<PortChange>,
    /// How many more did.
    pub more: usize,
}

/// What changed about a Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChange {
    /// Which port.
    pub port: PortKey,
    /// Which family.
    pub family: Family,
    /// Whether it was not there before.
    pub appeared: bool,
    /// Whether it is not there any more.
    pub gone: bool,
    /// Endpoints that get connections and got none before.
    pub added: Vec<SocketAddr>,
    /// Endpoints that get none any more.
    pub removed: Vec<SocketAddr>,
    /// Slots that went from one endpoint that stays to another: dealt anew, or other weights.
    pub moved: usize,
    /// Frontends that are new.
    pub opened: Vec<Entrance>,
    /// Frontends that are gone.
    pub closed: Vec<Entrance>,
    /// Another scheduler: before, after.
    pub scheduler: Option<(Scheduler, Scheduler)>,
    /// Whether traffic policies, source ranges or affinity differ.
    pub policy: bool,
}

/// Where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entrance {
    /// An address and port.
    Address(Frontend),
    /// A port on the node's addresses.
    NodePort(NodePort),
}

// === impl Changes ===

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.more == 0
    }

    /// Takes in what a later compilation of the same batch changed.
    pub fn append(&mut self, mut later: Self) {
        self.more += later.more;
        while self.ports.len() < LISTED && !later.ports.is_empty() {
            self.ports.push(later.ports.remove(0));
        }
        self.more += later.ports.len();
    }

    /// Takes in what became of a port.
    pub(super) fn note(&mut self, before: Option<&CompiledPort>, after: Option<&CompiledPort>) {
        if before == after {
            return;
        }
        match self.has_room() {
            true => self.ports.extend(PortChange::between(before, after)),
            false => self.more += 1,
        }
    }

    /// Takes in that endpoints of a port went and came: which slots of its pools changed hands, and who had them.
    pub(super) fn note_exchange(&mut self, after: &CompiledPort, changed: &[Changed<SocketAddr>; 2]) {
        match self.has_room() {
            true => self.ports.push(PortChange::exchanged(after, changed)),
            false => self.more += 1,
        }
    }

    /// Whether the next port that changes will be described.
    pub(super) fn has_room(&self) -> bool {
        self.ports.len() < LISTED
    }
}

// === impl PortChange ===

impl PortChange {
    fn between(before: Option<&CompiledPort>, after: Option<&CompiledPort>) -> Option<Self> {
        let known = after.or(before)?;
        let entrances = |port: Option<&CompiledPort>| -> BTreeSet<Entrance> {
            let frontends = port.into_iter().flat_map(|port| &port.frontends);
            let node_port = port.and_then(|port| port.node_port).map(Entrance::NodePort);
            frontends.map(|(frontend, _)| Entrance::Address(*frontend)).chain(node_port).collect()
        };
        let slots = |port: Option<&CompiledPort>| port.map(CompiledPort::slots).unwrap_or_default();
        let (old, new) = (slots(before), slots(after));
        let endpoints = |slots: &[Vec<SocketAddr>; 2]| slots.iter().flatten().copied().collect::<BTreeSet<_>>();
        let (had, has) = (endpoints(&old), endpoints(&new));
        // Slots that went from one endpoint that stays to another that was there.
        let slots = old.iter().zip(&new).flat_map(|(old, new)| old.iter().zip(new));
        let moved = slots.filter(|(old, new)| old != new && has.contains(old) && had.contains(new)).count();
        let (was, is) = (entrances(before), entrances(after));
        Some(Self {
            port: known.key.clone(),
            family: known.family,
            appeared: before.is_none(),
            gone: after.is_none(),
            added: has.difference(&had).copied().collect(),
            removed: had.difference(&has).copied().collect(),
            moved,
            opened: is.difference(&was).copied().collect(),
            closed: was.difference(&is).copied().collect(),
            scheduler: before
                .zip(after)
                .map(|(before, after)| (before.scheduler, after.scheduler))
                .filter(|(before, after)| before != after),
            policy: before.zip(after).is_some_and(|(before, after)| !before.admits_like(after)),
        })
    }

    /// The same without a look at slots that are as they were. Each endpoint has one slot of a pool.
    fn exchanged(after: &CompiledPort, changed: &[Changed<SocketAddr>; 2]) -> Self {
        // Of each pool, who has lost a slot and who has got one: whoever did both has moved.
        let lost = changed.each_ref().map(|changed| changed.values().copied().flatten().collect::<BTreeSet<_>>());
        let got = [false, true].map(|local| {
            let slots = changed[usize::from(local)].keys();
            slots.filter_map(|slot| after.slot(local, *slot)).collect::<BTreeSet<_>>()
        });
        let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
        for (pool, other) in [(0, 1), (1, 0)] {
            let is_in_other = |endpoint: &SocketAddr| after.has_slot(other == 1, *endpoint);
            let was_in_other =
                |endpoint: &SocketAddr| match (lost[other].contains(endpoint), got[other].contains(endpoint)) {
                    (false, false) => is_in_other(endpoint),
                    (lost, _) => lost,
                };
            added.extend(got[pool].difference(&lost[pool]).filter(|one| !was_in_other(one)));
            removed.extend(lost[pool].difference(&got[pool]).filter(|one| !is_in_other(one)));
        }
        let slots = [false, true].into_iter().zip(changed).flat_map(|(local, changed)| {
            changed.iter().filter_map(move |(slot, before)| Some(((*before)?, after.slot(local, *slot)?)))
        });
        let moved = slots.filter(|(old, new)| old != new && !removed.contains(old) && !added.contains(new)).count();
        Self {
            port: after.key.clone(),
            family: after.family,
            appeared: false,
            gone: false,
            added: added.into_iter().collect(),
            removed: removed.into_iter().collect(),
            moved,
            opened: Vec::new(),
            closed: Vec::new(),
            scheduler: None,
            policy: false,
        }
    }
}

impl fmt::Display for PortChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}): ", plain(&self.port.to_string()), self.port.protocol, self.family)?;
        if self.gone {
            return f.write_str("gone");
        }
        let mut parts = Vec::new();
        if self.appeared {
            parts.push("new".to_owned());
        }
        let some = |list: &[String], sign: &str, what: &str| {
            let rest = list.len().saturating_sub(NAMED);
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            let plural = if list.len() == 1 { "" } else { "s" };
            format!("{sign}{} {what}{plural} {}{more}", list.len(), list[..list.len().min(NAMED)].join(" "))
        };
        let entrances = |list: &[Entrance]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let addresses = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (list, sign, what) in [
            (entrances(&self.opened), "+", "frontend"),
            (entrances(&self.closed), "-", "frontend"),
            (addresses(&self.added), "+", "endpoint"),
            (addresses(&self.removed), "-", "endpoint"),
        ] {
            if !list.is_empty() {
                parts.push(some(&list, sign, what));
            }
        }
        if let Some((before, after)) = self.scheduler {
            parts.push(format!("scheduler {after} instead of {before}"));
        }
        if self.moved > 0 {
            parts.push(format!("{} slot{} dealt anew", self.moved, if self.moved == 1 { "" } else { "s" }));
        }
        if self.policy {
            parts.push("other policy".to_owned());
        }
        if parts.is_empty() {
            parts.push("other shares or local addresses".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

// === impl Entrance ===

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entrance::Address(frontend) => SocketAddr::new(frontend.address, frontend.port).fmt(f),
            Entrance::NodePort(node_port) => write!(f, "node port {}", node_port.port),
        }
    }
}

//! What a step means.
//!
//! Our rules are known by their chain and their place in it (`kernel::chains` makes them), and what a map answered is looked up in what was read of
//! the tables. Chains of plans say in their name how they pick. In `sources`, whose rules depend on the node's settings, a rule is known by what it asks for.

use std::net::SocketAddr;

use nft::{Hook, Trace, TraceAt, TraceVerdict};

use super::path::{Header, Met, StepTold};
use crate::compile::layout::{Decision, DedicatedChain, Plan, PoolId, StickyChain, TABLE};
use crate::compile::{Hop, Stage, TableImage};
use crate::forward::CLIENT_IP_TABLE;
use crate::kernel::glance;
use crate::kernel::redirects;
use crate::kernel::trap::{PREFIX, Ruleset};
use crate::model::Family;
use crate::policy::{Frontend, NodePort};

/// What a step begins with that hides the source.
pub(super) const HIDDEN: &str = "masqueraded";

/// What a step says after which slot 0 is taken.
const GONE: &str = "the slot has just gone";

/// Slots named of those that lead to one endpoint.
const NAMED: usize = 4;

/// The ruleset, and the elements of our tables.
#[derive(Debug)]
pub(super) struct Known {
    rules: Ruleset,
    tables: Vec<(Family, TableImage)>,
}

// === impl Known ===

impl Known {
    /// As they are now.
    pub(super) fn read() -> Result<Self, nft::Error> {
        // Others' rules are told without our elements, too.
        Ok(Self::new(Ruleset::read()?, glance::tables().unwrap_or_default()))
    }

    pub(super) fn tables(&self) -> &[(Family, TableImage)] {
        &self.tables
    }

    pub(super) fn new(rules: Ruleset, tables: Vec<(Family, TableImage)>) -> Self {
        Self { rules, tables }
    }

    /// Whether a step's rule is not known.
    pub(super) fn lacks(&self, trace: &Trace) -> bool {
        match trace.at {
            TraceAt::Rule { handle, .. } => {
                !trace.table.starts_with(PREFIX) && self.rules.rule(trace.family, &trace.table, handle).is_none()
            }
            _ => false,
        }
    }

    /// Where a base chain is hooked; those of the table that marks packets have the names of their hooks.
    pub(super) fn hook(&self, trace: &Trace) -> Option<Hook> {
        if trace.table.starts_with(PREFIX) {
            return match &*trace.chain {
                "prerouting" => Some(Hook::Prerouting),
                "output" => Some(Hook::Output),
                "input" => Some(Hook::Input),
                "forward" => Some(Hook::Forward),
                "postrouting" => Some(Hook::Postrouting),
                _ => None,
            };
        }
        self.rules.hook(trace.family, &trace.table, &trace.chain)
    }

    /// Whether a step is one of the table that Services are in.
    pub(super) fn is_ours(&self, trace: &Trace) -> bool {
        trace.table == TABLE
    }

    /// Whose frontend a packet goes to.
    pub(super) fn label(&self, header: &Header) -> Option<String> {
        Some(self.target(header)?.0)
    }

    /// The same with what the map says.
    fn target(&self, header: &Header) -> Option<(String, Decision)> {
        let to = header.destination;
        let table = self.table(Family::of(to.ip()))?;
        let frontend = Frontend { address: to.ip(), protocol: header.protocol, port: to.port() };
        let node_port = NodePort { protocol: header.protocol, port: to.port() };
        let found = table.services.get(&frontend).or_else(|| table.node_ports.get(&node_port))?;
        Some((found.label.to_string(), found.decision))
    }

    /// A step in words. `endpoint`: where the packet went in the end, if it was translated.
    pub(super) fn step(&self, met: &Met, first: &Header, endpoint: Option<SocketAddr>) -> StepTold {
        let trace = &met.trace;
        let (handle, verdict) = match &trace.at {
            TraceAt::Rule { handle, verdict } => (Some(*handle), verdict_words(verdict)),
            TraceAt::Return => (None, "return".to_owned()),
            TraceAt::Policy(verdict) => (None, format!("policy {}", verdict_words(verdict))),
        };
        let words = self.words(trace, first, endpoint, &verdict);
        StepTold {
            hook: met.hook.map_or("?", hook_name),
            table: format!("{} {}", family_name(trace.family), trace.table),
            chain: trace.chain.clone(),
            handle,
            verdict,
            words,
        }
    }

    fn words(&self, trace: &Trace, first: &Header, endpoint: Option<SocketAddr>, verdict: &str) -> String {
        let TraceAt::Rule { handle, .. } = trace.at else {
            return if matches!(trace.at, TraceAt::Return) {
                "back".to_owned()
            } else {
                format!("end of chain: {verdict}")
            };
        };
        let known = self.rules.rule(trace.family, &trace.table, handle);
        let meaning = match (&*trace.table, known) {
            (TABLE, Some((place, rule))) => self.ours(&trace.chain, *place, &rule.exprs, first, endpoint),
            (redirects::TABLE, _) => {
                let to = endpoint.map(|at| format!(" at {at}")).unwrap_or_default();
                Some(format!("the userspace forwarder is there: to its listener{to}"))
            }
            (CLIENT_IP_TABLE, _) => {
                Some("the forwarder's own connection, made to come from the client's address".to_owned())
            }
            _ => None,
        };
        meaning.unwrap_or_else(|| {
            let comment = known.and_then(|(_, rule)| rule.comment.as_deref());
            let comment = comment.map(|comment| format!(" {comment:?}")).unwrap_or_default();
            format!("rule handle {handle}{comment}: {verdict}")
        })
    }

    /// A rule of ours.
    fn ours(
        &self,
        chain: &str,
        place: usize,
        exprs: &[String],
        first: &Header,
        endpoint: Option<SocketAddr>,
    ) -> Option<String> {
        let (label, decision) = self.target(first).unzip();
        let label = label.unwrap_or_else(|| "a Service that was not there when we looked".to_owned());
        let to = first.destination;
        let found = |map: &str| {
            let decision = decision.map(|decision| format!(", {}", decided(decision))).unwrap_or_default();
            format!("{to} found in map {map}: {label}{decision}")
        };
        let slot = || {
            let Some(endpoint) = endpoint else { return "an endpoint".to_owned() };
            match self.slots(first, endpoint) {
                Some(slots) => format!("{slots} -> endpoint {endpoint}"),
                None => format!("endpoint {endpoint}"),
            }
        };
        Some(match (chain, place) {
            ("prerouting" | "output", _) => "every new connection: is it a Service's?".to_owned(),
            ("after-prerouting" | "after-output", _) => {
                "the userspace forwarder has not taken it: the kernel leads it".to_owned()
            }
            ("postrouting", _) => "its destination was translated: is its source to be hidden?".to_owned(),
            ("services", 0) => found("services"),
            ("services", 1) => found("node-ports"),
            ("services", 2) => format!("{} is a ClusterIP, and port {} is no Service's", to.ip(), to.port()),
            ("services", _) => format!("{} is in a network of ClusterIPs, and nobody's", to.ip()),
            ("refuse", 0) => format!("{label} has no endpoint: answered with a TCP reset"),
            ("refuse", _) => format!("{label} has no endpoint: answered with port unreachable"),
            ("discard", _) => format!("{label} has endpoints, but none that this connection may use: dropped"),
            ("dedicated", 0) => "this Service port picks by a chain of its own".to_owned(),
            ("source-ranges", 0) => {
                format!("{} is in none of the networks that may use {label}: dropped", first.source.ip())
            }
            ("source-ranges", 1) => format!("{} is in a network that may use {label}", first.source.ip()),
            ("source-ranges", 2) => "and a local traffic policy is to be looked at".to_owned(),
            ("source-ranges", _) => "and somebody is picked".to_owned(),
            ("local-policy", _) if exprs.len() > 4 => {
                "it comes from this node or its pods: decided by map inside".to_owned()
            }
            ("local-policy", _) => "it comes from outside: decided by map outside".to_owned(),
            ("userspace", _) => "left to the userspace forwarder".to_owned(),
            ("instead", 0) => "no userspace forwarder is there: decided by map instead".to_owned(),
            ("pick", _) => {
                self.next(first).map_or_else(|| "picked".to_owned(), |next| format!("decided again: {}", decided(next)))
            }
            ("slot", 0) => slot(),
            ("first-slot", _) => format!("slot 0 -> {}", slot()),
            ("slot" | "instead" | "dedicated", _) => GONE.to_owned(),
            ("sources", _) => sources(exprs, first),
            _ => return picking(chain, place, exprs, first, &slot()),
        })
    }

    /// The decision after a check, as far as that can be told from here.
    fn next(&self, first: &Header) -> Option<Decision> {
        let (_, mut decision) = self.target(first)?;
        let table = self.table(Family::of(first.destination.ip()))?;
        for _ in 0..2 {
            let stages: &[Stage] = match decision.plan {
                Plan::SourceRanges => &[Stage::Admitted],
                Plan::LocalPolicy => &[Stage::Outside, Stage::Inside],
                Plan::Userspace => &[Stage::Instead],
                _ => break,
            };
            let pool = decision.pool?;
            let mut found = stages.iter().filter_map(|stage| table.hops.get(&Hop { stage: *stage, pool }));
            decision = found.next()?.decision;
        }
        Some(decision)
    }

    /// Which slots of the packet's pools lead to an endpoint.
    fn slots(&self, first: &Header, endpoint: SocketAddr) -> Option<String> {
        let table = self.table(Family::of(first.destination.ip()))?;
        let (_, decision) = self.target(first)?;
        let last = self.next(first).unwrap_or(decision);
        let of = |pool: Option<PoolId>| {
            let mut slots: Vec<u32> = table
                .endpoints
                .iter()
                .filter(|(key, slot)| Some(key.pool) == pool && slot.endpoint == endpoint)
                .map(|(key, _)| key.slot)
                .chain(table.member_slots.iter().filter_map(|(key, member)| {
                    let is_its = Some(key.pool) == pool && table.members.get(member)?.endpoint == endpoint;
                    is_its.then_some(key.slot)
                }))
                .collect();
            slots.sort_unstable();
            slots
        };
        let mut slots = of(last.pool);
        if slots.is_empty() {
            slots = of(decision.pool);
        }
        let numbers: Vec<_> = slots.iter().take(NAMED).map(ToString::to_string).collect();
        let more = if slots.len() > NAMED { format!(" and {} more", slots.len() - NAMED) } else { String::new() };
        match slots.len() {
            0 => None,
            1 => Some(format!("slot {}", numbers.concat())),
            _ => Some(format!("one of its slots {}{more}", numbers.join(", "))),
        }
    }

    fn table(&self, family: Family) -> Option<&TableImage> {
        self.tables.iter().find(|(known, _)| *known == family).map(|(_, table)| table)
    }
}

/// A decision: which pool, and how one of it is picked.
fn decided(decision: Decision) -> String {
    let plan = match decision.plan {
        Plan::Random(slots) => format!("plan random over {slots}"),
        Plan::Dedicated => "plan of its own".to_owned(),
        plan => format!("plan {}", plan.chain()),
    };
    match decision.pool {
        Some(pool) => format!("pool {:#07x}, {plan}", pool.number()),
        None => plan,
    }
}

/// A chain that picks.
fn picking(chain: &str, place: usize, exprs: &[String], first: &Header, slot: &str) -> Option<String> {
    let client = first.source.ip();
    if let Some((part, seconds)) = StickyChain::from_name(chain) {
        return Some(match (part, place) {
            (StickyChain::Returning, 0) => format!("client {client} is remembered in map affinity and stays: {slot}"),
            (StickyChain::Returning, _) => {
                format!("client {client} is not remembered in map affinity, or whom it went to has gone")
            }
            (StickyChain::Newcomer, 0) => "the endpoint of that slot is taken".to_owned(),
            (StickyChain::Newcomer, _) => GONE.to_owned(),
            (StickyChain::Settle, 0) => format!("chosen now, and remembered for client {client} for {seconds} s"),
            (StickyChain::Settle, 1) => format!("chosen now: {slot}"),
            (StickyChain::Settle, _) => format!("the endpoint has just gone: slot 0 -> {slot}"),
        });
    }
    if let Some(dedicated) = DedicatedChain::from_name(chain) {
        let picked = format!("one of {} slots is picked", dedicated.slots);
        return Some(match (dedicated.affinity, place, exprs.last().map(String::as_str)) {
            (Some(_), 0, _) => format!("has client {client} been here before?"),
            (Some(_), 1, _) | (None, 0, Some("immediate")) => picked,
            (None, 0, _) => format!("{picked}: {slot}"),
            _ => GONE.to_owned(),
        });
    }
    let plan = Plan::from_chain(chain)?;
    Some(match (plan, place) {
        (Plan::Random(slots), 0) => format!("random over {slots}: {slot}"),
        (Plan::Hash(_, _), 0) => format!("by a hash of the packet: {slot}"),
        _ => GONE.to_owned(),
    })
}

/// Whether the source is hidden, and why.
fn sources(exprs: &[String], first: &Header) -> String {
    let count = |name: &str| exprs.iter().filter(|expr| *expr == name).count();
    if count("masq") == 0 {
        return "the source is kept".to_owned();
    }
    let why = match (count("ct"), count("lookup"), count("fib")) {
        (0, _, _) => "the endpoint is the client itself".to_owned(),
        (1, _, _) => format!("{} is a ClusterIP, and its client is to be hidden", first.destination.ip()),
        (_, 1, 0) => "the traffic policy of this frontend hides clients".to_owned(),
        (_, 1, _) => "the node itself connects to this frontend".to_owned(),
        (_, _, 0) => "the traffic policy of this node port hides clients".to_owned(),
        _ => "the node itself connects to this node port".to_owned(),
    };
    format!("{HIDDEN}: {why}")
}

fn verdict_words(verdict: &TraceVerdict) -> String {
    match verdict {
        TraceVerdict::Continue => "continue".to_owned(),
        TraceVerdict::Accept => "accept".to_owned(),
        TraceVerdict::Drop => "drop".to_owned(),
        TraceVerdict::Jump(chain) => format!("jump {chain}"),
        TraceVerdict::Goto(chain) => format!("goto {chain}"),
        TraceVerdict::Return => "return".to_owned(),
        TraceVerdict::Other(code) => format!("verdict {code}"),
    }
}

fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
    }
}

fn family_name(family: nft::Family) -> &'static str {
    match family {
        nft::Family::Ip => "ip",
        nft::Family::Ip6 => "ip6",
        nft::Family::Inet => "inet",
        nft::Family::Arp => "arp",
        nft::Family::Bridge => "bridge",
        nft::Family::Netdev => "netdev",
    }
}

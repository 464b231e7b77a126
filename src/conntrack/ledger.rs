//! How many connections each endpoint has, kept up by events.
//!
//! A flow counts for the endpoint that its reply names, whatever picked it. It is *active* as long as IPVS would count it so: TCP
//! from the first SYN until one side closes (`tcp_state_active` in net/netfilter/ipvs/ip_vs_proto_tcp.c; without the states before
//! the connection is established, a burst would meet endpoints that all look idle), UDP as long as the kernel remembers it. It is
//! *inactive* from then on until the kernel forgets it.
//!
//! Vocabulary: a *subject* is a Service port in one family; it is *dirty* from the first change of a count until it is reported,
//! and *due* as soon as a report is worth its price. A *review* compares with what the kernel has: flows that a walk through the
//! kernel's table does not find have ended without an event.
//!
//! Memory: 24 bytes per flow of a subject and nothing per flow of others. A flow's key is a 64-bit hash, with a key of its own per
//! process, of its original tuple, zones and number. The number makes a connection that took another's ports a different flow,
//! so that it does not matter whether the end of the old one or the beginning of the new one is heard first.
//!
//! Invariants (property test below): counts are those of the flows present, whatever the order of events and reviews; no I/O,
//! and time is what the caller says.

mod account;

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use account::Account;

use super::flow::{Destination, Flow};
use super::watch::{Interest, Interests, Subject};
use crate::compile::Ring;
use crate::model::{Family, Protocol};
use crate::schedule::live::{Loads, Rule};

/// What the kernel says about a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It began.
    New,
    /// It is there, in this state.
    Present,
    /// It ended, in whatever way.
    End,
}

/// The counts of a subject, to be dealt by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whose.
    pub subject: Subject,
    /// By which rule.
    pub rule: Rule,
    /// Of its candidates; those without connections are left out.
    pub loads: Loads,
    /// How many connections to expect until the next report.
    pub expected: usize,
    /// What is to be dealt, and how many picks had been made when these counts were true, if that is known.
    pub rings: Vec<(Ring, Option<u64>)>,
}

/// Counts of all subjects.
#[derive(Debug, Default)]
pub struct Ledger {
    subjects: HashMap<Subject, u32>,
    accounts: HashMap<u32, Account>,
    destinations: HashMap<(Protocol, Destination), u32>,
    flows: HashMap<u64, Tracked>,
    hasher: RandomState,
    /// Numbers of accounts are never used again.
    last: u32,
    dirty: BTreeSet<u32>,
    /// To be reviewed: what is there has never been looked at, or destinations changed.
    unreviewed: BTreeSet<u32>,
    /// The number of the last review that began, whatever became of it, and whom it is about.
    review: u32,
    reviewing: BTreeSet<u32>,
    /// Flows that no event has told of. The kernel may never tell of their end: it does so only for flows that began while
    /// somebody listened (`nf_ct_ecache_ext_add`).
    silent: usize,
}

/// A flow that counts.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    account: u32,
    endpoint: u32,
    active: bool,
    heard: bool,
    /// Its account's last review when it was last known to be there.
    review: u32,
}

// === impl Ledger ===

impl Ledger {
    /// Takes news about what is to be counted.
    pub fn watch(&mut self, news: Interests) {
        for (subject, interest) in news {
            match interest {
                Some(interest) => self.open(subject, interest),
                None => self.close(&subject),
            }
        }
    }

    fn open(&mut self, subject: Subject, interest: Interest) {
        let protocol = subject.protocol();
        let number = *self.subjects.entry(subject.clone()).or_insert_with(|| {
            self.last = self.last.checked_add(1).expect("four billion Services came and went");
            self.last
        });
        let account = self.accounts.entry(number).or_insert_with(|| Account {
            subject,
            interest: Interest {
                destinations: Vec::new(),
                candidates: Vec::new(),
                rule: interest.rule,
                rings: Vec::new(),
            },
            endpoints: Vec::new(),
            places: HashMap::new(),
            free: Vec::new(),
            changes: 0,
            arrivals: 0,
            expected: 0,
            reported: None,
            review: 0,
        });
        if account.interest.destinations != interest.destinations {
            for destination in &account.interest.destinations {
                let key = (protocol, *destination);
                if self.destinations.get(&key) == Some(&number) {
                    self.destinations.remove(&key);
                }
            }
            for destination in &interest.destinations {
                // Who has it now may not have heard of it yet: the newest word counts.
                self.destinations.insert((protocol, *destination), number);
            }
            self.unreviewed.insert(number);
        }
        account.interest = interest;
        // At once, as soon as it has been reviewed.
        account.reported = None;
        self.dirty.insert(number);
    }

    fn close(&mut self, subject: &Subject) {
        let Some(number) = self.subjects.remove(subject) else { return };
        self.accounts.remove(&number);
        self.destinations.retain(|_, owner| *owner != number);
        self.dirty.remove(&number);
        self.unreviewed.remove(&number);
        let silent = &mut self.silent;
        self.flows.retain(|_, flow| {
            let stays = flow.account != number;
            *silent -= usize::from(!stays && !flow.heard);
            stays
        });
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// How many flows are counted.
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Whether there are flows of whose end the kernel may not tell.
    pub fn has_silent(&self) -> bool {
        self.silent > 0
    }

    /// Where the flows that count are sent to, in no particular order.
    pub fn destinations(&self) -> impl Iterator<Item = (Protocol, Destination)> + '_ {
        self.destinations.keys().copied()
    }

    /// Takes what the kernel says about a flow. Those that do not count are passed over.
    pub fn take(&mut self, event: Event, flow: &Flow) {
        let key = self.hasher.hash_one((flow.protocol, flow.original, flow.zone, flow.id));
        if event == Event::End {
            if let Some(tracked) = self.flows.remove(&key) {
                self.silent -= usize::from(!tracked.heard);
                self.count(tracked.account, |account| account.leave(tracked.endpoint, tracked.active));
            }
            return;
        }
        self.note(key, flow, Some(event));
    }

    /// Takes a flow that a walk through the kernel's table found.
    pub fn found(&mut self, flow: &Flow) {
        let key = self.hasher.hash_one((flow.protocol, flow.original, flow.zone, flow.id));
        self.note(key, flow, None);
    }

    /// A flow is there, as an event or (`None`) a walk says.
    fn note(&mut self, key: u64, flow: &Flow, event: Option<Event>) {
        let told = event.is_some();
        let entry = match self.flows.entry(key) {
            Entry::Occupied(mut entry) => {
                let tracked = entry.get_mut();
                self.silent -= usize::from(told && !tracked.heard);
                tracked.heard |= told;
                let Some(account) = self.accounts.get_mut(&tracked.account) else { return };
                tracked.review = account.review;
                let active = if flow.state.is_some() { flow.is_active() } else { tracked.active };
                if active != tracked.active {
                    account.turn(tracked.endpoint, active);
                    tracked.active = active;
                    self.dirty.insert(tracked.account);
                }
                return;
            }
            Entry::Vacant(entry) => entry,
        };
        let (to, endpoint) = (flow.original.destination, flow.reply.source);
        let by_address = self.destinations.get(&(flow.protocol, Destination::Address(to)));
        let by_port = || self.destinations.get(&(flow.protocol, Destination::NodePort(Family::of(to.ip()), to.port())));
        let Some(number) = by_address.or_else(by_port).copied().filter(|_| to != endpoint) else { return };
        let Some(account) = self.accounts.get_mut(&number) else { return };
        let active = flow.is_active();
        let place = account.arrive(endpoint, active, event == Some(Event::New));
        entry.insert(Tracked { account: number, endpoint: place, active, heard: told, review: account.review });
        self.silent += usize::from(!told);
        self.dirty.insert(number);
    }

    fn count(&mut self, number: u32, change: impl FnOnce(&mut Account)) {
        if let Some(account) = self.accounts.get_mut(&number) {
            change(account);
            self.dirty.insert(number);
        }
    }

    // === reviews ===

    /// Whether there are subjects whose flows have never been looked for.
    pub fn wants_review(&self) -> bool {
        !self.unreviewed.is_empty()
    }

    /// How many subjects the next review is about.
    pub fn unreviewed(&self) -> usize {
        self.unreviewed.len()
    }

    /// How many subjects are counted.
    pub fn subjects(&self) -> usize {
        self.accounts.len()
    }

    /// Says that every flow has to be looked for again, because events were lost or some time has passed.
    pub fn doubt(&mut self) {
        self.unreviewed.extend(self.accounts.keys());
    }

    /// Begins a review. What is to be looked for: flows to these destinations. A review that began before and did not end never was.
    pub fn begin_review(&mut self) -> Vec<(Protocol, Destination)> {
        let mut wanted = Vec::new();
        self.review = self.review.wrapping_add(1);
        self.reviewing = self.unreviewed.clone();
        for number in &self.reviewing {
            if let Some(account) = self.accounts.get_mut(number) {
                account.review = self.review;
                let protocol = account.subject.protocol();
                wanted.extend(account.interest.destinations.iter().map(|destination| (protocol, *destination)));
            }
        }
        wanted
    }

    /// Ends a review: what was not found has ended. Returns how many flows that were.
    pub fn end_review(&mut self) -> usize {
        let mut gone = 0;
        let reviewed = std::mem::take(&mut self.reviewing);
        let (accounts, dirty, silent) = (&mut self.accounts, &mut self.dirty, &mut self.silent);
        self.flows.retain(|_, flow| {
            let Some(account) = accounts.get_mut(&flow.account) else { return false };
            let stays = flow.review == account.review || !reviewed.contains(&flow.account);
            if !stays {
                account.leave(flow.endpoint, flow.active);
                dirty.insert(flow.account);
                *silent -= usize::from(!flow.heard);
                gone += 1;
            }
            stays
        });
        self.unreviewed.retain(|number| !reviewed.contains(number));
        gone
    }

    // === reports ===

    /// How long until the next subject is due, if any is dirty.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let wait = |number: &u32| Some(self.accounts.get(number)?.due()?.saturating_duration_since(now));
        self.dirty.iter().map(|number| wait(number).unwrap_or_default()).min()
    }

    /// The rings of the subjects that are due; who has not been reported for longest comes first, so that nobody waits for ever where there is
    /// not room for all.
    pub fn due(&self, now: Instant) -> Vec<(&Subject, &[Ring])> {
        let accounts = self.dirty.iter().filter_map(|number| self.accounts.get(number));
        let mut due: Vec<_> = accounts.filter(|account| account.due().is_none_or(|due| due <= now)).collect();
        due.sort_by_key(|account| account.reported);
        due.into_iter().map(|account| (&account.subject, account.interest.rings.as_slice())).collect()
    }

    /// Hands out the reports that are due; a subject whose report `send` does not take stays due.
    pub fn report(&mut self, now: Instant, mut send: impl FnMut(Report) -> bool) {
        let accounts = &mut self.accounts;
        self.dirty.retain(|number| {
            let Some(account) = accounts.get_mut(number) else { return false };
            if account.due().is_some_and(|due| due > now) {
                return true;
            }
            let sent = send(account.report());
            if sent {
                account.expected = account.arrivals.max(account.expected / 2);
                (account.changes, account.arrivals, account.reported) = (0, 0, Some(now));
            }
            !sent
        });
    }

    /// Makes everything due at once, for a receiver that has missed reports.
    pub fn report_all(&mut self) {
        self.dirty.extend(self.accounts.keys());
        self.accounts.values_mut().for_each(|account| account.reported = None);
    }
}

#[cfg(test)]
mod tests;

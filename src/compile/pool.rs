//! One pool as it is to be programmed: its slots and, with session affinity, its members.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use super::elements::{Slot, SlotKey, TableDelta, TableImage};
use super::layout::{Decision, DedicatedChain, MAX_MEMBERS, MAX_SHARED_SLOTS, MemberId, Plan, PoolId};
use super::slots::Slots;
use crate::model::PortKey;
use crate::model::map::HashMap;
use crate::policy::Exchange;
use crate::schedule::{Buckets, Candidate, Changed, Pick, Scheduler, Swap};

/// The endpoints of a Service port in one family, or those of them that are on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pool {
    /// Kept while there are no endpoints, so that frontends find the same number when they come back.
    pub(super) id: Option<PoolId>,
    /// The comment of its endpoints. That of a local pool is made when there are any: most Services have none.
    pub(super) label: Arc<str>,
    pub(super) local: bool,
    pub(super) pick: Pick,
    /// Seconds of session affinity.
    pub(super) affinity: Option<u32>,
    pub(super) slots: Slots,
    /// How often there have been more or fewer slots than before.
    pub(super) changes: u64,
    /// Who may stand in the slots, for rings, which are dealt again; empty for all others.
    pub(super) candidates: Vec<Candidate>,
    pub(super) members: Members,
}

/// Who has which member number. Nobody has one but with session affinity, so this is small.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Members(Option<Box<Numbered>>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Numbered {
    /// Sorted by endpoint.
    numbers: Vec<(SocketAddr, u16)>,
    /// The number that was given last.
    last: Option<u16>,
}

// === impl Pool ===

impl Pool {
    pub(super) fn empty(label: Arc<str>, local: bool) -> Self {
        let (pick, members) = (Pick::Random, Members::default());
        Self {
            id: None,
            label,
            local,
            pick,
            affinity: None,
            slots: Slots::default(),
            changes: 0,
            candidates: Vec::new(),
            members,
        }
    }

    /// Takes over the slots and members that are under its number.
    pub(super) fn adopt_from(&mut self, table: &TableImage) {
        let Some(pool) = self.id else { return };
        let direct = |slot| table.endpoints.get(&SlotKey { pool, slot }).map(|slot| slot.endpoint);
        let member =
            |slot| table.members.get(table.member_slots.get(&SlotKey { pool, slot })?).map(|slot| slot.endpoint);
        let slots: Vec<_> = (0..).map_while(|slot| direct(slot).or_else(|| member(slot))).collect();
        self.slots = Slots::from(&*slots);
        if table.member_slots.contains_key(&SlotKey { pool, slot: 0 }) {
            let indexes = 0..u16::try_from(MAX_MEMBERS).expect("twelve bits");
            let member = |index| Some((table.members.get(&MemberId { pool, index })?.endpoint, index));
            self.members = Members::adopt(indexes.filter_map(member));
        }
    }

    /// The decision that leads here; `None` without endpoints.
    pub(super) fn decision(&self) -> Option<Decision> {
        let pool = Some(self.id.filter(|_| !self.slots.is_empty())?);
        Some(Decision { pool, plan: plan(self.pick, self.slots.len(), self.affinity.is_some())? })
    }

    pub(super) fn dedicated(&self, key: &PortKey) -> Option<DedicatedChain> {
        let pool = self.id.filter(|_| !self.slots.is_empty() && self.is_dedicated())?;
        let slots = u32::try_from(self.slots.len()).expect("a Service has less than 4 billion endpoints");
        let owner = DedicatedChain::owner(key, pool);
        Some(DedicatedChain { pick: self.pick, slots, affinity: self.affinity, local: self.local, pool, owner })
    }

    fn is_dedicated(&self) -> bool {
        is_dedicated(self.pick, self.slots.len(), self.affinity.is_some())
    }

    /// The endpoint of a slot, if slots lead to endpoints directly.
    fn slot(&self, slot: usize) -> Option<Slot> {
        let endpoint = self.slots.get(slot).filter(|_| self.affinity.is_none())?;
        // A table has many slots per endpoint; its first one says whose it is.
        let is_labelled = slot == 0 || !matches!(self.pick, Pick::Hash(_));
        Some(Slot { endpoint, label: if is_labelled { self.label.clone() } else { unlabelled() } })
    }

    /// The member of a slot, if there is affinity.
    fn member(&self, slot: usize) -> Option<MemberId> {
        let endpoint = self.slots.get(slot).filter(|_| self.affinity.is_some())?;
        Some(MemberId { pool: self.id?, index: self.members.index(&endpoint)? })
    }

    /// Takes other endpoints into its slots, of which there are as many as before, and notes those that differ.
    pub(super) fn deal_again(&mut self, slots: &[SocketAddr], delta: &mut TableDelta) {
        let Some(pool) = self.id else { return };
        let differs =
            |(slot, endpoint): (usize, &SocketAddr)| (self.slots.get(slot) != Some(*endpoint)).then_some(slot);
        let changed: Vec<usize> = slots.iter().enumerate().filter_map(differs).collect();
        let before: Vec<_> = changed.iter().map(|slot| (self.slot(*slot), self.member(*slot))).collect();
        self.slots = slots.into();
        for (slot, (endpoint, member)) in changed.into_iter().zip(before) {
            let key = SlotKey { pool, slot: u32::try_from(slot).expect("a ring is small") };
            if self.affinity.is_some() {
                delta.member_slots.note(key, member, self.member(slot));
            } else {
                delta.endpoints.note(key, endpoint, self.slot(slot));
            }
        }
    }

    /// Lets endpoints go and come and notes what differs; returns which slots do. `None`, with nothing changed, if all have to be dealt to.
    pub(super) fn exchange(
        &mut self,
        key: &PortKey,
        scheduler: Scheduler,
        exchange: &Exchange<SocketAddr>,
        seed: u64,
        delta: &mut TableDelta,
    ) -> Option<Changed<SocketAddr>> {
        if exchange.is_empty() {
            return Some(Changed::new());
        }
        let pool = self.id.filter(|_| self.affinity.is_none())?;
        let before = (self.dedicated(key), self.slots.len());
        let swap = Swap { gone: &exchange.gone, came: &exchange.came, seed, changes: self.changes };
        let changed = self.slots.exchange(scheduler, swap)?;
        if before.1 != self.slots.len() {
            self.changes += 1;
        }
        delta.dedicated.note(pool, before.0, self.dedicated(key));
        for (slot, endpoint) in &changed {
            let key =
                SlotKey { pool, slot: u32::try_from(*slot).expect("a Service has less than 4 billion endpoints") };
            let before = endpoint.map(|endpoint| Slot { endpoint, label: self.label.clone() });
            delta.endpoints.note(key, before, self.slot(*slot));
        }
        Some(changed)
    }

    fn members(&self) -> impl Iterator<Item = (MemberId, Slot)> + '_ {
        let pool = self.id.filter(|_| self.affinity.is_some());
        self.members.numbers().iter().filter_map(move |(endpoint, index)| {
            Some((MemberId { pool: pool?, index: *index }, Slot { endpoint: *endpoint, label: self.label.clone() }))
        })
    }
}

/// How one of so many slots is picked; `None` of tables that nobody can have.
pub(super) fn plan(pick: Pick, slots: usize, affinity: bool) -> Option<Plan> {
    if is_dedicated(pick, slots, affinity) {
        return Some(Plan::Dedicated);
    }
    Some(match pick {
        Pick::Hash(key) => Plan::Hash(key, Buckets::new(slots)?),
        Pick::Random | Pick::Counter | Pick::Ring => {
            Plan::Random(u16::try_from(slots).expect("not dedicated, so at most MAX_SHARED_SLOTS"))
        }
    })
}

fn is_dedicated(pick: Pick, slots: usize, affinity: bool) -> bool {
    let needs_its_own = match pick {
        Pick::Random => slots > MAX_SHARED_SLOTS,
        Pick::Counter | Pick::Ring => true,
        Pick::Hash(_) => false,
    };
    needs_its_own || affinity
}

/// Notes what differs between who is in two states of a pool. It keeps its number for life, so both are under the same.
pub(super) fn difference(before: Option<&Pool>, after: Option<&Pool>, delta: &mut TableDelta) {
    let id = |pool: Option<&Pool>| pool.and_then(|pool| pool.id);
    let Some(pool) = id(before).or(id(after)) else { return };
    let count = |pool: Option<&Pool>| pool.map_or(0, |pool| pool.slots.len());
    // Where nothing but slots can differ, equal slots are passed over without a look at their labels: tables are large.
    let alike = before
        .zip(after)
        .is_some_and(|(old, new)| (&old.label, old.pick, old.affinity) == (&new.label, new.pick, new.affinity));
    let endpoint = |pool: Option<&Pool>, slot: usize| pool.and_then(|pool| pool.slots.get(slot));
    for slot in 0..count(before).max(count(after)) {
        if alike && endpoint(before, slot) == endpoint(after, slot) {
            continue;
        }
        let number = u32::try_from(slot).expect("a Service has less than 4 billion endpoints");
        let key = SlotKey { pool, slot: number };
        let (old, new) = (before.and_then(|pool| pool.slot(slot)), after.and_then(|pool| pool.slot(slot)));
        if old != new {
            delta.endpoints.note(key, old, new);
        }
        let (old, new) = (before.and_then(|pool| pool.member(slot)), after.and_then(|pool| pool.member(slot)));
        if old != new {
            delta.member_slots.note(key, old, new);
        }
    }
    let members = |pool: Option<&Pool>| pool.into_iter().flat_map(Pool::members).collect::<Vec<_>>();
    let (old, new) = (members(before), members(after));
    if old == new {
        return;
    }
    // An index that goes from one endpoint to another is one edit; `note` joins the two halves, the newcomer first.
    let by_number = |members: &[(MemberId, Slot)]| members.iter().cloned().collect::<HashMap<_, _>>();
    let (had, has) = (by_number(&old), by_number(&new));
    for (member, slot) in new.into_iter().filter(|(member, slot)| had.get(member) != Some(slot)) {
        delta.members.note(member, None, Some(slot));
    }
    for (member, slot) in old.into_iter().filter(|(member, slot)| has.get(member) != Some(slot)) {
        delta.members.note(member, Some(slot), None);
    }
}

/// The comment of an element that has none. Made once: tables have thousands of them.
pub(super) fn unlabelled() -> Arc<str> {
    static NONE: LazyLock<Arc<str>> = LazyLock::new(|| "".into());
    NONE.clone()
}

// === impl Members ===

impl Members {
    /// As found in a kernel.
    pub(super) fn adopt(found: impl Iterator<Item = (SocketAddr, u16)>) -> Self {
        let mut numbers: Vec<_> = found.collect();
        let last = numbers.iter().map(|(_, index)| *index).max();
        numbers.sort();
        // Two numbers of one endpoint cannot be ours.
        numbers.dedup_by_key(|(endpoint, _)| *endpoint);
        Self(Some(Numbered { numbers, last }.into()))
    }

    fn numbers(&self) -> &[(SocketAddr, u16)] {
        self.0.as_ref().map_or(&[], |numbered| &numbered.numbers)
    }

    /// Keeps the numbers of those who stay and gives the others numbers that have not been used for as long as possible. At most
    /// [`MAX_MEMBERS`] get one.
    pub(super) fn settle(&mut self, wanted: &[SocketAddr]) {
        let Numbered { numbers, last } = &mut **self.0.get_or_insert_default();
        let mut wanted: Vec<_> = wanted.to_vec();
        wanted.sort();
        // An endpoint may have many slots; it is one member.
        wanted.dedup();
        numbers.retain(|(endpoint, _)| wanted.binary_search(endpoint).is_ok());
        let known = |numbers: &[(SocketAddr, u16)], endpoint| {
            numbers.binary_search_by_key(&endpoint, |(endpoint, _)| *endpoint).is_ok()
        };
        let new: Vec<_> = wanted.into_iter().filter(|endpoint| !known(numbers, *endpoint)).collect();
        if new.is_empty() {
            return;
        }
        let mut used = vec![false; MAX_MEMBERS];
        numbers.iter().for_each(|(_, index)| used[usize::from(*index)] = true);
        let first = last.map_or(0, |last| usize::from(last) + 1);
        let free = (first..first + MAX_MEMBERS).map(|index| index % MAX_MEMBERS).filter(|index| !used[*index]);
        for (endpoint, index) in new.into_iter().zip(free) {
            let index = u16::try_from(index).expect("below MAX_MEMBERS");
            numbers.push((endpoint, index));
            *last = Some(index);
        }
        numbers.sort();
    }

    fn index(&self, endpoint: &SocketAddr) -> Option<u16> {
        let numbers = self.numbers();
        let found = numbers.binary_search_by_key(endpoint, |(endpoint, _)| *endpoint).ok()?;
        Some(numbers[found].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(numbers: std::ops::Range<u16>) -> Vec<SocketAddr> {
        numbers.map(|number| SocketAddr::from(([10, 0, 0, 1], number))).collect()
    }

    #[test]
    fn members_keep_their_numbers_and_free_ones_are_used_late() {
        let mut members = Members::default();
        members.settle(&endpoints(0..3));
        assert_eq!(
            endpoints(0..3).iter().map(|one| members.index(one)).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2)]
        );
        members.settle(&endpoints(2..4));
        assert_eq!(
            endpoints(0..4).iter().map(|one| members.index(one)).collect::<Vec<_>>(),
            [None, None, Some(2), Some(3)]
        );
        members.settle(&endpoints(0..4));
        assert_eq!((members.index(&endpoints(0..1)[0]), members.index(&endpoints(2..3)[0])), (Some(4), Some(2)));
        let again = Members::adopt(members.numbers().iter().copied());
        assert_eq!(again.numbers(), members.numbers());
    }

    #[test]
    fn there_are_no_more_members_than_numbers() {
        let mut members = Members::default();
        members.settle(&endpoints(0..5000));
        assert_eq!(members.numbers().len(), MAX_MEMBERS);
        members.settle(&endpoints(100..5100));
        assert_eq!(members.numbers().len(), MAX_MEMBERS);
        let mut indexes: Vec<_> = members.numbers().iter().map(|(_, index)| *index).collect();
        indexes.sort_unstable();
        indexes.dedup();
        assert_eq!(indexes.len(), MAX_MEMBERS, "no number twice");
    }
}

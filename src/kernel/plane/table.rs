//! What is known of one family's table, and which of its parts a difference needs.
//!
//! Sizes and counts of maps are kept here, so that one about to be full is noticed before the kernel refuses an element; so are the
//! chains that are there, and those that nobody leads to any more. Nothing here talks to the kernel: operations are put into a
//! transaction that somebody else commits.

use std::collections::{BTreeMap, BTreeSet};

use nft::{Element, TableFlags, Transaction};

use crate::compile::layout::{DedicatedChain, Locality, Plan, StickyChain};
use crate::compile::{Edits, TableDelta, TableImage, each_map};
use crate::kernel::chains;
use crate::kernel::encode::Mapped;
use crate::kernel::error::KernelError;
use crate::kernel::read::{Remembered, Structure};
use crate::kernel::skeleton::{self, AFFINITY, Counts, Sizes, set_ref};
use crate::kernel::write::{self, add_chains, add_plans};
use crate::model::Family;

/// What we know of one family's table.
#[derive(Debug)]
pub(super) struct TableState {
    pub(super) family: Family,
    /// Whether the table is there in our layout; if not, the next load builds it.
    pub(super) whole: bool,
    /// Whether something of that name is there that has to go first.
    pub(super) occupied: bool,
    /// Whether the base chains are there.
    pub(super) active: bool,
    pub(super) sizes: Sizes,
    pub(super) counts: Counts,
    /// Shared and dedicated chains that are there.
    pub(super) chains: BTreeSet<String>,
    /// Chains that nobody refers to any more: dedicated ones, and those that such ones led to.
    pub(super) retired: BTreeSet<String>,
    /// Dedicated chains that are there, by how many seconds their clients stay.
    pub(super) sticky: BTreeMap<u32, usize>,
}

// === impl TableState ===

impl TableState {
    pub(super) fn absent(family: Family) -> Self {
        Self {
            family,
            whole: false,
            occupied: false,
            active: false,
            sizes: Sizes::for_counts(&Counts::default()),
            counts: Counts::default(),
            chains: BTreeSet::new(),
            retired: BTreeSet::new(),
            sticky: BTreeMap::new(),
        }
    }

    pub(super) fn adopt(&mut self, structure: Structure, image: &TableImage) {
        self.whole = true;
        self.active = structure.active;
        self.sizes = structure.sizes;
        self.counts = Counts::default();
        each_map!(TableImage, image, |map| tally(map.iter(), map.len(), 1, &mut self.counts));
        let used: BTreeSet<_> = image.dedicated.values().map(DedicatedChain::name).collect();
        let is_dedicated = |name: &String| DedicatedChain::from_name(name).is_some();
        self.retired =
            structure.chains.iter().filter(|name| is_dedicated(name) && !used.contains(*name)).cloned().collect();
        self.chains = structure.chains;
        self.sticky = BTreeMap::new();
        for seconds in self.chains.iter().filter_map(|name| DedicatedChain::from_name(name)?.affinity) {
            *self.sticky.entry(seconds).or_default() += 1;
        }
        let unused =
            |name: &&String| StickyChain::from_name(name).is_some_and(|(_, time)| !self.sticky.contains_key(&time));
        self.retired.extend(self.chains.iter().filter(unused).cloned());
    }

    /// A chain has been deleted. The last one of a timeout takes those with it that it led to: they are to be deleted next.
    pub(super) fn deleted(&mut self, name: &str) {
        if !self.chains.remove(name) {
            return;
        }
        let Some(seconds) = DedicatedChain::from_name(name).and_then(|chain| chain.affinity) else { return };
        if let Some(count) = self.sticky.get_mut(&seconds) {
            *count -= 1;
            if *count == 0 {
                self.sticky.remove(&seconds);
                self.retired.extend(StickyChain::ALL.map(|part| part.chain(seconds)));
            }
        }
    }

    pub(super) fn add_structure(&mut self, transaction: &mut Transaction, flags: TableFlags, locality: &Locality) {
        transaction.add_table(&skeleton::table(self.family, flags, locality));
        for set in skeleton::sets(self.family, &self.sizes) {
            transaction.add_set(&set);
        }
        add_chains(transaction, chains::fixed_chains(self.family, locality));
        let shared = chains::FIXED_PLANS.iter().filter_map(|plan| chains::shared_chain(self.family, *plan));
        for (chain, rules) in shared {
            self.chains.insert(chain.name.clone());
            add_chains(transaction, [(chain, rules)]);
        }
        add_plans(transaction, self.family, &chains::FIXED_PLANS);
    }

    /// Fills map `affinity` with what another table remembered.
    pub(super) fn remember(&self, transaction: &mut Transaction, remembered: &[Remembered]) {
        let fields = write::key_fields(self.family, AFFINITY);
        let elements = remembered.iter().map(|one| Element::value(&one.key, &one.member).timeout(one.left));
        transaction.add_elements(set_ref(self.family, AFFINITY), fields, elements);
    }

    /// Adds the chains that a difference needs and the table lacks.
    pub(super) fn add_missing_chains(&mut self, transaction: &mut Transaction, delta: &TableDelta) {
        let targets = delta.services.added().map(|(_, target)| target);
        let targets = targets.chain(delta.node_ports.added().map(|(_, target)| target));
        let targets = targets.chain(delta.hops.added().map(|(_, target)| target));
        let plans: BTreeSet<Plan> = targets.map(|target| target.decision.plan).collect();
        self.add_shared_chains(transaction, &plans);
        for (_, dedicated) in delta.dedicated.added() {
            let name = dedicated.name();
            self.retired.remove(&name);
            if self.chains.contains(&name) {
                continue;
            }
            if let Some(seconds) = dedicated.affinity {
                self.add_sticky(transaction, seconds);
            }
            self.chains.insert(name);
            add_chains(transaction, [chains::dedicated_chain(self.family, dedicated)]);
        }
    }

    /// One more dedicated chain leads to those of this timeout. The first one needs them.
    fn add_sticky(&mut self, transaction: &mut Transaction, seconds: u32) {
        let count = self.sticky.entry(seconds).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        for (chain, rules) in chains::sticky_chains(self.family, seconds) {
            // One that could not be deleted is there.
            self.retired.remove(&chain.name);
            if self.chains.insert(chain.name.clone()) {
                add_chains(transaction, [(chain, rules)]);
            }
        }
    }

    /// Adds the chains of plans that are not there. The kernel looks at all elements of a map when a rule comes that looks into it, so the
    /// fewer there are the better.
    pub(super) fn add_shared_chains(&mut self, transaction: &mut Transaction, plans: &BTreeSet<Plan>) {
        for plan in plans {
            let Some((chain, rules)) = chains::shared_chain(self.family, *plan) else { continue };
            if self.chains.insert(chain.name.clone()) {
                add_chains(transaction, [(chain, rules)]);
                add_plans(transaction, self.family, &[*plan]);
            }
        }
    }

    /// Adds elements, and the chains they need.
    pub(super) fn add_elements(&mut self, transaction: &mut Transaction, delta: &TableDelta) {
        self.add_missing_chains(transaction, delta);
        write::add_all(transaction, self.family, delta);
    }

    /// Whether what is added fits; with `overlap` before anything goes.
    pub(super) fn check_room(&self, delta: &TableDelta, overlap: bool) -> Result<(), KernelError> {
        let mut counts = self.counts.clone();
        if overlap {
            ahead(delta, &mut counts);
        } else {
            count(delta, &mut counts);
        }
        match self.sizes.exceeded_by(&counts) {
            Some((map, size)) => Err(KernelError::Outgrown { family: self.family, map, size }),
            None => Ok(()),
        }
    }

    pub(super) fn applied(&mut self, delta: &TableDelta) {
        count(delta, &mut self.counts);
        let used: BTreeSet<String> = delta.dedicated.added().map(|(_, chain)| chain.name()).collect();
        for (_, chain) in delta.dedicated.removed() {
            let name = chain.name();
            if !used.contains(&name) && self.chains.contains(&name) {
                self.retired.insert(name);
            }
        }
    }

    pub(super) fn installed(&mut self, everything: &TableDelta) {
        (self.whole, self.occupied, self.active) = (true, true, true);
        self.counts = Counts::default();
        self.applied(everything);
    }
}

// === counting ===

pub(super) fn sizes_for(delta: &TableDelta) -> Sizes {
    let mut counts = Counts::default();
    count(delta, &mut counts);
    Sizes::for_counts(&counts)
}

/// Follows a difference with numbers of elements.
pub(super) fn count(delta: &TableDelta, counts: &mut Counts) {
    fn follow<K: Mapped<V> + Ord, V: PartialEq>(edits: &Edits<K, V>, counts: &mut Counts) {
        if let [set] = K::SETS {
            return counts.add(set, edits.growth());
        }
        tally(edits.added(), edits.len(), 1, counts);
        tally(edits.removed(), edits.len(), -1, counts);
    }
    each_map!(TableDelta, delta, |edits| follow(edits, counts));
}

/// As [`count`], as if nothing were removed.
fn ahead(delta: &TableDelta, counts: &mut Counts) {
    each_map!(TableDelta, delta, |edits| tally(edits.created(), edits.created().count(), 1, counts));
}

/// Counts elements, of which there are so many, each in its set. Where there is but one, none of them is looked at.
fn tally<'a, K: Mapped<V> + 'a, V: 'a>(
    elements: impl Iterator<Item = (&'a K, &'a V)>,
    len: usize,
    each: isize,
    counts: &mut Counts,
) {
    if let [set] = K::SETS {
        return counts.add(set, len.cast_signed() * each);
    }
    elements.for_each(|(key, value)| counts.add(key.set(value), each));
}

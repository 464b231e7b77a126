//! Differences between two states of the data plane.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::hash::Hash;

use super::elements::{TableDelta, TableImage};
use crate::model::Family;
use crate::model::map::NearMap;

/// What one map element was and is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit<V> {
    /// What the kernel has.
    pub before: Option<V>,
    /// What it shall have; `None` removes the element.
    pub after: Option<V>,
}

/// The elements of one map that differ, in the order of their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edits<K, V> {
    edits: BTreeMap<K, Edit<V>>,
    /// How many of them have a `before`, and an `after`: a first load of 100,000 elements must not look for removals again and again.
    befores: usize,
    afters: usize,
}

/// What differs in both tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// The `ip` table.
    pub v4: TableDelta,
    /// The `ip6` table.
    pub v6: TableDelta,
}

/// The elements of both tables as a kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The `ip` table.
    pub v4: TableImage,
    /// The `ip6` table.
    pub v6: TableImage,
}

// === impl Edits ===

impl<K, V> Default for Edits<K, V> {
    fn default() -> Self {
        Self { edits: BTreeMap::new(), befores: 0, afters: 0 }
    }
}

impl<K: Ord, V: PartialEq> Edits<K, V> {
    /// Notes that an element goes from `before` to `after`. Edits of the same key run together: one that begins where an earlier
    /// one ended continues it, and when an element changes hands its new owner may speak before the old one. What leads back to
    /// where it began is forgotten.
    pub fn note(&mut self, key: K, before: Option<V>, after: Option<V>) {
        match self.edits.entry(key) {
            Entry::Vacant(entry) => {
                if before != after {
                    self.befores += usize::from(before.is_some());
                    self.afters += usize::from(after.is_some());
                    entry.insert(Edit { before, after });
                }
            }
            Entry::Occupied(mut entry) => {
                let edit = entry.get_mut();
                self.befores -= usize::from(edit.before.is_some());
                self.afters -= usize::from(edit.after.is_some());
                if edit.after == before {
                    edit.after = after;
                } else {
                    debug_assert!(edit.before.is_none() && after.is_none(), "the two halves of a move between owners");
                    edit.before = before;
                }
                if edit.before == edit.after {
                    entry.remove();
                } else {
                    self.befores += usize::from(edit.before.is_some());
                    self.afters += usize::from(edit.after.is_some());
                }
            }
        }
    }

    /// Notes what differs between two short lists of elements.
    pub(super) fn note_list(&mut self, old: &[(K, V)], new: &[(K, V)])
    where
        K: Clone,
        V: Clone,
    {
        for (key, value) in old.iter().filter(|(key, _)| new.iter().all(|(other, _)| other != key)) {
            self.note(key.clone(), Some(value.clone()), None);
        }
        for (key, value) in new {
            let known = old.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone());
            self.note(key.clone(), known, Some(value.clone()));
        }
    }

    /// Moves desired elements over: see [`TableDelta::take_differing`].
    pub(super) fn take_differing(&mut self, part: &mut Self, actual: &mut NearMap<K, V>)
    where
        K: Hash,
    {
        for (key, edit) in std::mem::take(part).edits {
            let before = actual.remove(&key);
            if before != edit.after {
                self.note(key, before, edit.after);
            }
        }
    }

    /// Adds to `differing` what a kernel has not like that: see [`TableDelta::differ_from`].
    pub(super) fn differ_from(self, actual: &NearMap<K, V>, differing: &mut Self) -> usize
    where
        K: Hash,
        V: Clone,
    {
        let mut met = 0;
        for (key, edit) in self.edits {
            let before = actual.get(&key);
            met += usize::from(before.is_some());
            if before != edit.after.as_ref() {
                differing.note(key, before.cloned(), edit.after);
            }
        }
        met
    }

    /// Whether all of it is new.
    pub(super) fn is_all_new(&self) -> bool {
        self.befores == 0
    }

    /// What a kernel has and nobody desires goes.
    pub(super) fn remove_rest(&mut self, actual: NearMap<K, V>) {
        actual.into_iter().for_each(|(key, value)| self.note(key, Some(value), None));
    }

    /// The edits, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Edit<V>)> + Clone {
        self.edits.iter()
    }

    /// Elements to remove: those that vanish and those whose value changes.
    pub fn removed(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.edits.iter().filter_map(|(key, edit)| Some((key, edit.before.as_ref()?))).take(self.befores)
    }

    /// Elements to add: those that are new and those whose value changes.
    pub fn added(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        self.edits.iter().filter_map(|(key, edit)| Some((key, edit.after.as_ref()?))).take(self.afters)
    }

    /// Elements that are not there yet.
    pub fn created(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        let new = self.len() - self.befores;
        let created = self.edits.iter().filter(|(_, edit)| edit.before.is_none());
        created.filter_map(|(key, edit)| Some((key, edit.after.as_ref()?))).take(new)
    }

    /// Elements that are there and get another value.
    pub fn changed(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        // Every edit has at least one side; those counted twice have both.
        let both = self.befores + self.afters - self.len();
        let changed = self.edits.iter().filter(|(_, edit)| edit.before.is_some());
        changed.filter_map(|(key, edit)| Some((key, edit.after.as_ref()?))).take(both)
    }

    /// Elements that vanish.
    pub fn vanished(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        let gone = self.len() - self.afters;
        let vanished = self.edits.iter().filter(|(_, edit)| edit.after.is_none());
        vanished.filter_map(|(key, edit)| Some((key, edit.before.as_ref()?))).take(gone)
    }

    /// What elements have that are there and get another value.
    pub fn replaced(&self) -> impl Iterator<Item = (&K, &V)> + Clone {
        let both = self.befores + self.afters - self.len();
        let replaced = self.edits.iter().filter(|(_, edit)| edit.after.is_some());
        replaced.filter_map(|(key, edit)| Some((key, edit.before.as_ref()?))).take(both)
    }

    /// Takes the edits out that are meant.
    pub(super) fn split_off(&mut self, mut is_meant: impl FnMut(&K, &Edit<V>) -> bool) -> Self {
        let all = std::mem::take(&mut self.edits);
        let (meant, rest) = all.into_iter().partition(|(key, edit)| is_meant(key, edit));
        *self = Self::counted(rest);
        Self::counted(meant)
    }

    /// Takes over edits of other elements.
    pub(super) fn append(&mut self, mut others: Self) {
        self.edits.append(&mut others.edits);
        (self.befores, self.afters) = (self.befores + others.befores, self.afters + others.afters);
    }

    fn counted(edits: BTreeMap<K, Edit<V>>) -> Self {
        let befores = edits.values().filter(|edit| edit.before.is_some()).count();
        let afters = edits.values().filter(|edit| edit.after.is_some()).count();
        Self { edits, befores, afters }
    }

    /// How many elements differ.
    pub fn len(&self) -> usize {
        self.edits.len()
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// By how much the map grows (or shrinks).
    pub fn growth(&self) -> isize {
        self.afters.cast_signed() - self.befores.cast_signed()
    }
}

// === impl Delta ===

impl Delta {
    /// The part of one family.
    pub fn table(&self, family: Family) -> &TableDelta {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The part of one family, to be changed.
    pub fn table_mut(&mut self, family: Family) -> &mut TableDelta {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// How many elements differ.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// What differs, in words: `IPv4: endpoints: 2 missing, 1 wrong, 3 too many`; by family and kind of element.
    pub fn summary(&self) -> String {
        let mut words = Vec::new();
        for family in Family::ALL {
            self.table(family).for_each_kind(|kind, created, changed, vanished| {
                let counts = [(created, "missing"), (changed, "wrong"), (vanished, "too many")];
                let counts = counts.iter().filter(|(count, _)| *count > 0);
                let counts: Vec<_> = counts.map(|(count, what)| format!("{count} {what}")).collect();
                if !counts.is_empty() {
                    words.push(format!("{family}: {}: {}", kind.replace('_', " "), counts.join(", ")));
                }
            });
        }
        words.join("; ")
    }
}

// === impl Image ===

impl Image {
    /// The part of one family.
    pub fn table(&self, family: Family) -> &TableImage {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The part of one family, to be changed.
    pub fn table_mut(&mut self, family: Family) -> &mut TableImage {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_of_one_key_run_together() {
        let mut edits = Edits::default();
        edits.note("a", Some(1), Some(2));
        edits.note("a", Some(2), Some(3));
        edits.note("b", None, Some(1));
        edits.note("b", Some(1), None);
        edits.note("c", Some(1), Some(1));
        edits.note("d", Some(1), None);
        edits.note("d", None, Some(2));
        edits.note("e", None, Some(2));
        edits.note("e", Some(1), None);
        let all: Vec<_> = edits.iter().map(|(key, edit)| (*key, edit.before, edit.after)).collect();
        assert_eq!(all, [("a", Some(1), Some(3)), ("d", Some(1), Some(2)), ("e", Some(1), Some(2))]);
        assert_eq!(edits.growth(), 0);
        let mut edits = Edits::default();
        for (key, before, after) in [("new", None, Some(1)), ("other", Some(1), Some(2)), ("gone", Some(3), None)] {
            edits.note(key, before, after);
        }
        let keys = |(key, value): (&&'static str, &i32)| (*key, *value);
        assert_eq!(edits.created().map(keys).collect::<Vec<_>>(), [("new", 1)]);
        assert_eq!(edits.changed().map(keys).collect::<Vec<_>>(), [("other", 2)]);
        assert_eq!(edits.vanished().map(keys).collect::<Vec<_>>(), [("gone", 3)]);
    }

    #[test]
    fn what_differs_is_said_in_words() {
        use super::super::{ClusterIp, Hairpin};
        let mut delta = Delta::default();
        assert_eq!(delta.summary(), "");
        let address = |last: u8| std::net::IpAddr::from([10, 0, 0, last]);
        delta.v4.cluster_ips.note(address(1), None, Some(ClusterIp));
        delta.v4.cluster_ips.note(address(2), None, Some(ClusterIp));
        delta.v4.cluster_ips.note(address(3), Some(ClusterIp), None);
        delta.v6.hairpins.note(address(4), None, Some(Hairpin));
        assert_eq!(delta.summary(), "IPv4: cluster ips: 2 missing, 1 too many; IPv6: hairpins: 1 missing");
    }

    #[test]
    fn what_a_kernel_has_already_is_no_difference() {
        let mut edits = Edits::default();
        let mut actual = NearMap::from_iter([("same", 1), ("other", 9), ("stale", 4)]);
        for (key, value) in [("same", 1), ("other", 2), ("new", 3)] {
            let mut part = Edits::default();
            part.note(key, None, Some(value));
            edits.take_differing(&mut part, &mut actual);
            assert!(part.is_empty());
        }
        edits.remove_rest(actual);
        let all: Vec<_> = edits.iter().map(|(key, edit)| (*key, edit.before, edit.after)).collect();
        assert_eq!(all, [("new", None, Some(3)), ("other", Some(9), Some(2)), ("stale", Some(4), None)]);
        assert_eq!(edits.removed().map(|(key, _)| *key).collect::<Vec<_>>(), ["other", "stale"]);
        assert_eq!(edits.added().map(|(key, _)| *key).collect::<Vec<_>>(), ["new", "other"]);
    }
}

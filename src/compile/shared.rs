//! Elements that several Service ports ask for: in the set as long as one of them does.

use std::hash::Hash;

use super::delta::Edits;
use crate::model::map::HashMap;

/// Counts who asks for each element.
#[derive(Debug)]
pub(super) struct Shared<K>(HashMap<K, usize>);

impl<K> Default for Shared<K> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<K: Copy + Ord + Hash> Shared<K> {
    /// One asks for other elements than before.
    pub(super) fn replace<V: PartialEq>(
        &mut self,
        before: &[K],
        after: &[K],
        mark: fn() -> V,
        edits: &mut Edits<K, V>,
    ) {
        if before == after {
            return;
        }
        for key in after {
            let count = self.0.entry(*key).or_default();
            *count += 1;
            if *count == 1 {
                edits.note(*key, None, Some(mark()));
            }
        }
        for key in before {
            let Some(count) = self.0.get_mut(key) else { continue };
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
                edits.note(*key, Some(mark()), None);
            }
        }
    }

    /// Whether anybody asks for this one.
    pub(super) fn contains(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    /// All elements asked for.
    pub(super) fn iter(&self) -> impl Iterator<Item = K> + '_ {
        self.0.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_stays_while_anyone_asks_for_it() {
        let mut shared = Shared::default();
        let mut replace = |before: &[u8], after: &[u8]| {
            let mut edits = Edits::default();
            shared.replace(before, after, || (), &mut edits);
            edits.iter().map(|(key, edit)| (*key, edit.after.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(replace(&[], &[1, 2]), [(1, true), (2, true)]);
        assert_eq!(replace(&[], &[2, 3]), [(3, true)]);
        assert_eq!(replace(&[1, 2], &[2]), [(1, false)]);
        assert_eq!(replace(&[2], &[]), []);
        assert_eq!(replace(&[2, 3], &[]), [(2, false), (3, false)]);
        assert!(shared.iter().count() == 0 && !shared.contains(&2));
    }
}

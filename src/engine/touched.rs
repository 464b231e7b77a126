//! Which Services a compilation has to look at, and how closely.
//!
//! Most changes are of endpoints. Of a Service that has a [`Roster`](crate::policy::Roster) it is remembered what each of its slices was
//! when it was last compiled: who went and came is then found from those slices alone. Of all others, and when that would be too much to
//! remember, everything is looked at again.
//!
//! Invariants: what is remembered is bounded by [`KEPT`] slices; a slice is remembered as it was compiled last, however often it has
//! changed since.

use std::collections::BTreeMap;

use crate::model::{ServiceKey, Slice};

/// Slices remembered in all, at most: some 15 MB if all of them are full. So many changes at once are a storm, and of a storm there is
/// little that is left to look at.
const KEPT: usize = 1024;

/// Touched Services, by key.
#[derive(Debug, Default)]
pub(super) struct Touched {
    services: BTreeMap<ServiceKey, Touch>,
    kept: usize,
}

/// What may differ about a Service.
#[derive(Debug)]
pub(super) enum Touch {
    /// Anything.
    Whole,
    /// Its slices.
    Slices(Slices),
}

/// Slices that changed: by name, what they were, `None` where there was none. Empty where it has not been remembered.
pub(super) type Slices = BTreeMap<Box<str>, Option<Slice>>;

// === impl Touched ===

impl Touched {
    /// Anything may differ about this Service.
    pub(super) fn whole(&mut self, key: ServiceKey) {
        if let Some(Touch::Slices(slices)) = self.services.insert(key, Touch::Whole) {
            self.kept -= slices.len();
        }
    }

    /// A slice of this Service differs. What it was is worth remembering if there is a `roster` of the Service, which then stays until
    /// the Service is compiled.
    pub(super) fn slice(&mut self, key: ServiceKey, name: &str, before: Option<Slice>, roster: bool) {
        if roster && self.kept >= KEPT {
            return self.whole(key);
        }
        let touch = self.services.entry(key).or_insert_with(|| Touch::Slices(Slices::new()));
        if let Touch::Slices(slices) = touch
            && roster
            && !slices.contains_key(name)
        {
            slices.insert(name.into(), before);
            self.kept += 1;
        }
    }

    /// Gives back what [`Touched::take`] took; nothing may have been added since.
    pub(super) fn put_back(&mut self, key: ServiceKey, touch: Touch) {
        if let Touch::Slices(slices) = &touch {
            self.kept += slices.len();
        }
        self.services.insert(key, touch);
    }

    /// All of them, which are no longer touched.
    pub(super) fn take(&mut self) -> BTreeMap<ServiceKey, Touch> {
        std::mem::take(self).services
    }

    pub(super) fn contains(&self, key: &ServiceKey) -> bool {
        self.services.contains_key(key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }
}

impl Extend<ServiceKey> for Touched {
    fn extend<I: IntoIterator<Item = ServiceKey>>(&mut self, keys: I) {
        keys.into_iter().for_each(|key| self.whole(key));
    }
}

impl FromIterator<ServiceKey> for Touched {
    fn from_iter<I: IntoIterator<Item = ServiceKey>>(keys: I) -> Self {
        let mut touched = Self::default();
        touched.extend(keys);
        touched
    }
}

//! Which Services a compilation has to look at, and how closely.
//!
//! Most changes are of endpoints. Of a Service that has a [`Roster`](crate::policy::Roster) it is remembered what each of its slices was
//! when it was last compiled: who went and came is then found from those slices alone. Of all others, and when that would be too much to
//! remember, everything is looked at again.
//!
//! A Service that anything may differ about asks for frontends, perhaps others than before, and what one gets another may lose. So all claims are
//! *settled* before any Service is compiled; after that each can wait for its turn by itself, and a storm is compiled in parts without a look at
//! all who wait.
//!
//! Invariants: what is remembered is bounded by [`KEPT`] slices; a slice is remembered as it was compiled last, however often it has
//! changed since; Services wait in the order in which they were touched.

use std::collections::BTreeMap;

use foldhash::fast::RandomState;
use hashlink::LinkedHashMap;

use crate::model::{ServiceKey, Slice};

/// Slices remembered in all, at most: some 15 MB if all of them are full. So many changes at once are a storm, and of a storm there is
/// little that is left to look at.
const KEPT: usize = 1024;

/// Touched Services.
#[derive(Debug, Default)]
pub(super) struct Touched {
    services: LinkedHashMap<ServiceKey, Touch, RandomState>,
    /// Those whose claims have to be settled.
    unsettled: Vec<ServiceKey>,
    kept: usize,
}

/// What may differ about a Service.
#[derive(Debug)]
pub(super) enum Touch {
    /// Anything.
    Whole {
        /// Whether what it asks for now has been taken note of.
        settled: bool,
    },
    /// Its slices.
    Slices(Slices),
}

/// Slices that changed: by name, what they were, `None` where there was none. Empty where it has not been remembered.
pub(super) type Slices = BTreeMap<Box<str>, Option<Slice>>;

// === impl Touched ===

impl Touched {
    /// Anything may differ about this Service.
    pub(super) fn whole(&mut self, key: ServiceKey) {
        let touch = self.services.entry(key.clone()).or_insert(Touch::Whole { settled: true });
        match touch {
            Touch::Whole { settled: false } => return,
            Touch::Whole { settled: true } => {}
            Touch::Slices(slices) => self.kept -= slices.len(),
        }
        *touch = Touch::Whole { settled: false };
        self.unsettled.push(key);
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

    /// The Services whose claims have to be settled: the caller does so before anything is compiled.
    pub(super) fn take_unsettled(&mut self) -> Vec<ServiceKey> {
        let unsettled = std::mem::take(&mut self.unsettled);
        for key in &unsettled {
            if let Some(Touch::Whole { settled }) = self.services.get_mut(key) {
                *settled = true;
            }
        }
        unsettled
    }

    /// Takes the Service out that has waited longest, and what is remembered of its slices if nothing else differs.
    pub(super) fn take_first(&mut self) -> Option<(ServiceKey, Option<Slices>)> {
        let (key, touch) = self.services.pop_front()?;
        Some((key, self.remembered(touch)))
    }

    /// Takes this Service out, if it is one of them.
    pub(super) fn remove(&mut self, key: &ServiceKey) {
        let touch = self.services.remove(key);
        touch.map(|touch| self.remembered(touch));
    }

    fn remembered(&mut self, touch: Touch) -> Option<Slices> {
        let Touch::Slices(slices) = touch else { return None };
        self.kept -= slices.len();
        Some(slices)
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

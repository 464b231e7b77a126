//! What is wrong with an object, as data.

use std::collections::HashMap;
use std::fmt;

use crate::source::{Kind, ObjectKey};

/// One thing wrong with one field of one object. The rest of the object is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The kind of the object.
    pub kind: Kind,
    /// Which object.
    pub object: ObjectKey,
    /// Path of the field, as in `spec.ports[1].port`.
    pub field: String,
    /// The value as the user wrote it.
    pub value: String,
    /// What is wrong with it and what happens instead.
    pub reason: String,
}

/// The problems already reported, per object, so that each is said once until the object changes for the better.
#[derive(Debug, Default)]
pub struct Problems {
    known: HashMap<(Kind, ObjectKey), Vec<Problem>>,
}

// === impl Problem ===

impl Problem {
    /// Whether the object is no mistake of anybody's and only not for us: to be logged as a matter of fact, and no Event.
    pub fn is_passed_over(&self) -> bool {
        self.kind == Kind::EndpointSlice && self.field == "addressType" && self.value == "FQDN"
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}` of the value: names and values come from users and may hold control characters.
        write!(f, "{} {}: {}: {:?}: {}", self.kind.name(), self.object, self.field, self.value, self.reason)
    }
}

// === impl Problems ===

impl Problems {
    /// Replaces what is known about an object and returns what is new.
    pub fn replace(&mut self, kind: Kind, object: &ObjectKey, now: Vec<Problem>) -> Vec<Problem> {
        let slot = (kind, object.clone());
        if now.is_empty() {
            self.known.remove(&slot);
            return now;
        }
        let before = self.known.insert(slot, now.clone()).unwrap_or_default();
        now.into_iter().filter(|problem| !before.contains(problem)).collect()
    }

    /// All problems standing now, in order.
    pub fn all(&self) -> Vec<&Problem> {
        let mut all: Vec<_> = self.known.values().flatten().collect();
        all.sort();
        all
    }

    /// What stands about one object.
    pub fn of(&self, kind: Kind, object: &ObjectKey) -> &[Problem] {
        self.known.get(&(kind, object.clone())).map_or(&[], Vec::as_slice)
    }

    /// How many problems stand now.
    pub fn len(&self) -> usize {
        self.known.values().map(Vec::len).sum()
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// Collects the problems of one object while it is parsed.
pub(super) struct Report {
    kind: Kind,
    object: ObjectKey,
    pub(super) problems: Vec<Problem>,
}

impl Report {
    pub(super) fn new(kind: Kind, object: ObjectKey) -> Self {
        Self { kind, object, problems: Vec::new() }
    }

    pub(super) fn add(&mut self, field: impl Into<String>, value: impl fmt::Display, reason: impl Into<String>) {
        self.problems.push(Problem {
            kind: self.kind,
            object: self.object.clone(),
            field: field.into(),
            value: value.to_string(),
            reason: reason.into(),
        });
    }
}

//! Which patterns of a list mean an endpoint, without asking each of them.
//!
//! A name can match only patterns that begin as it does, up to their first wildcard. So patterns are filed by what they look at (pod, node,
//! zone) and by that beginning, those without a wildcard by the whole name, and a name asks for as many beginnings as there are lengths.
//! What is no name (addresses, and `*`, which needs none) is asked each time. A thousand names cost an endpoint one look.
//!
//! Invariant (property test below): what is found is what [`Pattern::matches`] says, one by one.

use std::collections::{BTreeSet, HashMap};

use super::pattern::{Lead, Pattern};
use crate::model::slice::Endpoint;

/// Positions of patterns in their list, ready to be found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    pods: Names,
    nodes: Names,
    zones: Names,
    rest: Vec<usize>,
}

/// Patterns that look at one kind of name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    whole: HashMap<Box<str>, Vec<usize>>,
    /// By what comes before the first wildcard.
    beginning: HashMap<Box<str>, Vec<usize>>,
    /// The lengths of those beginnings.
    lengths: BTreeSet<usize>,
}

// === impl Index ===

impl Index {
    pub(super) fn new<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> Self {
        let mut index = Self::default();
        for (at, pattern) in patterns.enumerate() {
            match pattern.lead() {
                Lead::Pod(name) => index.pods.file(name, at),
                Lead::Node(name) => index.nodes.file(name, at),
                Lead::Zone(name) => index.zones.file(name, at),
                Lead::Other => index.rest.push(at),
            }
        }
        index
    }

    /// Names every pattern that means an endpoint, in no particular order. `pattern` knows them by position.
    pub(super) fn find<'a>(
        &self,
        endpoint: &Endpoint,
        pattern: impl Fn(usize) -> &'a Pattern,
        mut each: impl FnMut(usize),
    ) {
        let mut ask = |at: &usize| {
            if pattern(*at).matches(endpoint) {
                each(*at);
            }
        };
        self.pods.candidates(endpoint.pod.as_deref(), &mut ask);
        self.nodes.candidates(endpoint.node(), &mut ask);
        self.zones.candidates(endpoint.zone(), &mut ask);
        self.rest.iter().for_each(ask);
    }
}

// === impl Names ===

impl Names {
    fn file(&mut self, name: &str, at: usize) {
        match name.find(['*', '?']) {
            None => self.whole.entry(name.into()).or_default().push(at),
            Some(wildcard) => {
                self.lengths.insert(wildcard);
                self.beginning.entry(name[..wildcard].into()).or_default().push(at);
            }
        }
    }

    fn candidates(&self, name: Option<&str>, ask: &mut impl FnMut(&usize)) {
        let Some(name) = name else { return };
        self.whole.get(name).into_iter().flatten().for_each(&mut *ask);
        for length in &self.lengths {
            let begins_alike = name.get(..*length).and_then(|beginning| self.beginning.get(beginning));
            begins_alike.into_iter().flatten().for_each(&mut *ask);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(pod: Option<String>, node: Option<String>, zone: Option<String>, last: u8) -> Endpoint {
        let endpoint = Endpoint { pod: pod.map(Into::into), ..Endpoint::ready_at([10, 0, 0, last]) };
        endpoint.at(node.as_deref(), zone.as_deref())
    }

    proptest! {
        #[test]
        fn it_finds_what_asking_each_one_finds(
            patterns in proptest::collection::vec("(node: ?|zone:|)[ab*?]{1,4}|ip:10\\.0\\.0\\.[0-3]|ip:10\\.0\\.0\\.0/31", 0..40),
            names in proptest::collection::vec((proptest::option::of("[ab]{0,4}"), proptest::option::of("[ab]{1,3}"), proptest::option::of("[ab]{1,3}"), 0u8..4), 1..20),
        ) {
            let patterns: Vec<_> = patterns.iter().map(|text| Pattern::parse(text).expect(text)).collect();
            let index = Index::new(patterns.iter());
            for (pod, node, zone, last) in names {
                let endpoint = endpoint(pod, node, zone, last);
                let mut found = Vec::new();
                index.find(&endpoint, |at| &patterns[at], |at| found.push(at));
                found.sort_unstable();
                let wanted: Vec<_> = (0..patterns.len()).filter(|at| patterns[*at].matches(&endpoint)).collect();
                prop_assert_eq!(found, wanted);
            }
        }
    }

    /// What it is for: a name is asked only for what begins like it.
    #[test]
    fn few_are_asked() {
        let patterns: Vec<_> = (0..1000)
            .flat_map(|number| [format!("web-{number}-x"), format!("db-{number}-*"), format!("node:n{number}")])
            .map(|text| Pattern::parse(&text).expect("one"))
            .collect();
        let index = Index::new(patterns.iter());
        let asked = std::cell::Cell::new(0);
        let pattern = |at: usize| {
            asked.set(asked.get() + 1);
            &patterns[at]
        };
        let mut found = Vec::new();
        for (pod, node) in [("web-17-x", "n3"), ("db-999-q", "other"), ("cart-1", "n12")] {
            let endpoint = endpoint(Some(pod.to_owned()), Some(node.to_owned()), None, 1);
            index.find(&endpoint, pattern, |at| found.push(patterns[at].text().to_owned()));
        }
        assert_eq!(found, ["web-17-x", "node:n3", "db-999-*", "node:n12"]);
        assert_eq!(asked.get(), 4);
    }
}

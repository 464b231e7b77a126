//! The list of weights.

use super::index::Index;
use super::pattern::Pattern;
use super::{Remarks, assignments};
use crate::model::slice::Endpoint;

/// Weights by pattern; the first pattern that matches counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weights {
    rules: Vec<(Pattern, u16)>,
    index: Index,
}

// === impl Weights ===

impl Weights {
    /// Of an endpoint that neither the Service's list nor its slice says anything about.
    pub const DEFAULT: u16 = 1;

    pub(super) fn parse(text: &str, remarks: &mut Remarks<'_>) -> Self {
        let mut rules: Vec<(Pattern, u16)> = Vec::new();
        assignments(text, "PATTERN=WEIGHT", remarks, |pattern, number, entry, remarks| {
            rules.extend(weight(number, entry, remarks, "skipped").map(|weight| (pattern, weight)));
        });
        let index = Index::new(rules.iter().map(|(pattern, _)| pattern));
        Self { rules, index }
    }

    /// What an endpoint weighs: what the first pattern that matches says, or else its slice, or else [`Weights::DEFAULT`]. Names every
    /// pattern that matches, by its position.
    pub fn find(&self, endpoint: &Endpoint, mut each: impl FnMut(usize)) -> u16 {
        let mut first = None;
        self.index.find(
            endpoint,
            |at| &self.rules[at].0,
            |at| {
                first = Some(first.map_or(at, |first: usize| first.min(at)));
                each(at);
            },
        );
        first.map(|at| self.rules[at].1).or(endpoint.weight).unwrap_or(Self::DEFAULT)
    }

    /// How many patterns there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether the list says nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The patterns, in their order.
    pub fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.rules.iter().map(|(pattern, _)| pattern)
    }

    /// Whether it says more than who gets no connections: something that a scheduler which ignores weights would have to know.
    pub fn differ(&self) -> bool {
        self.rules.iter().any(|(_, weight)| !matches!(*weight, 0 | Self::DEFAULT))
    }
}

/// 0..65535. A larger number is taken as the largest; anything else is none, and `otherwise` happens.
pub(super) fn weight(text: &str, part: &str, remarks: &mut Remarks<'_>, otherwise: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        remarks.add(part, format!("not a weight in 0..65535; {otherwise}"));
        return None;
    }
    // Digits alone fail to parse only because there are too many of them.
    let weight = text.parse::<u16>();
    if weight.is_err() {
        remarks.add(part, "more than 65535; taken as 65535");
    }
    Some(weight.unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::WEIGHTS_ANNOTATION;
    use super::super::tests::parse;
    use super::*;

    fn endpoint(pod: &str, slice: Option<u16>) -> Endpoint {
        Endpoint { pod: Some(pod.into()), weight: slice, ..Endpoint::ready_at([10, 0, 0, 1]) }
    }

    #[test]
    fn the_first_match_counts_then_the_slice_then_one() {
        let (tuning, problems) = parse(&[(WEIGHTS_ANNOTATION, "web-1=5, web-2 = 0,\n web-*=3\n,")]);
        assert_eq!(problems, [""; 0]);
        let of = |pod, slice| tuning.weights.find(&endpoint(pod, slice), |_| {});
        assert_eq!([of("web-1", None), of("web-2", Some(9)), of("web-3", Some(9))], [5, 0, 3]);
        assert_eq!([of("db-1", None), of("db-1", Some(9)), of("db-1", Some(0))], [1, 9, 0]);
        assert!(tuning.is_weighted() && tuning.weights.differ());
        assert!(!parse(&[(WEIGHTS_ANNOTATION, "web-1=0,*=1")]).0.weights.differ());
    }

    #[test]
    fn each_bad_entry_is_named_and_the_rest_is_used() {
        let list = "web-1=5,web-1=6,web-2,web-3=-1,web-4=1.5,web-5=65536,web-6=99999999999,=3,cart:x=1,web-7=,web\u{1}=2,web-8=65535";
        let (tuning, problems) = parse(&[(WEIGHTS_ANNOTATION, list)]);
        let used: Vec<_> = tuning.weights.rules.iter().map(|(pattern, weight)| format!("{pattern}={weight}")).collect();
        assert_eq!(used, ["web-1=5", "web-5=65535", "web-6=65535", "web-8=65535"]);
        let prefix = "metadata.annotations[pointsman.dev/weights]: ";
        let said: Vec<_> = problems.iter().map(|problem| problem.trim_start_matches(prefix)).collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        "web-1=6": a second entry for this pattern; the first one counts
        "web-2": not PATTERN=WEIGHT; skipped
        "web-3=-1": not a weight in 0..65535; skipped
        "web-4=1.5": not a weight in 0..65535; skipped
        "web-5=65536": more than 65535; taken as 65535
        "web-6=99999999999": more than 65535; taken as 65535
        "=3": names no endpoints; skipped
        "cart:x=1": not pod name, node:, zone: or ip:; skipped
        "2": so many more parts of it are not as they should be, as those named (8)
        "#);
    }
}

//! Shares of groups of endpoints.

use super::index::Index;
use super::pattern::Pattern;
use super::{Remarks, assignments, percentage};
use crate::model::slice::Endpoint;

/// Sums that differ from 100 % by no more than this are rounding (`33.3%` three times), not a mistake: 0.1 %.
const ROUNDING: u64 = 1_000;

/// How connections are divided between groups, whatever the number of endpoints in each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    groups: Vec<Group>,
    index: Index,
}

/// Endpoints that have a share together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Who is in it, unless an earlier group has them.
    pub pattern: Pattern,
    /// Its share in millionths of the whole; 0 gets no new connections.
    pub share: u32,
}

// === impl Split ===

impl Split {
    /// The whole.
    pub const WHOLE: u32 = 1_000_000;

    /// `None` if nothing usable is left of it.
    pub(super) fn parse(text: &str, remarks: &mut Remarks<'_>) -> Option<Self> {
        let mut groups: Vec<Group> = Vec::new();
        assignments(text, "PATTERN=SHARE%", remarks, |pattern, share, entry, remarks| {
            match percentage(share, entry, remarks) {
                Some(share) => groups.push(Group { pattern, share }),
                None => remarks.add(entry, "not a share in 0%..100%; skipped"),
            }
        });
        let index = Index::new(groups.iter().map(|group| &group.pattern));
        let split = Self { groups, index };
        let sum = split.sum();
        // Less than all may be meant: the rest goes to whoever is in no group, if there is anybody. That is seen later.
        let covers = split.groups.iter().any(|group| group.pattern.is_everyone());
        if sum > u64::from(Self::WHOLE) + ROUNDING || (covers && sum + ROUNDING < u64::from(Self::WHOLE)) {
            remarks.add(text, format!("the shares are {}% together; taken in proportion", percent(sum)));
        }
        if sum == 0 {
            remarks.add(text, "no group has a share; ignored");
            return None;
        }
        Some(split)
    }

    /// The groups, in their order.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The first group that an endpoint is in. Names every group whose pattern matches it, by its position.
    pub fn find(&self, endpoint: &Endpoint, mut each: impl FnMut(usize)) -> Option<usize> {
        let mut first = None;
        self.index.find(
            endpoint,
            |at| &self.groups[at].pattern,
            |at| {
                first = Some(first.map_or(at, |first: usize| first.min(at)));
                each(at);
            },
        );
        first
    }

    /// What the groups leave to endpoints that are in none, in millionths; nothing if they leave no more than rounding.
    pub fn rest(&self) -> u32 {
        let sum = self.sum();
        let rest = u64::from(Self::WHOLE).saturating_sub(sum);
        if rest <= ROUNDING { 0 } else { u32::try_from(rest).expect("below a million") }
    }

    fn sum(&self) -> u64 {
        self.groups.iter().map(|group| u64::from(group.share)).sum()
    }
}

/// Millionths as per cent, without needless zeroes.
pub(super) fn percent(millionths: u64) -> String {
    let text = format!("{}.{:04}", millionths / 10_000, millionths % 10_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::SPLIT_ANNOTATION;
    use super::super::tests::parse;

    #[test]
    fn shares() {
        let table: [(&str, &[u32], u32, &[&str]); 18] = [
            ("web-canary-*=5%, *=95%", &[50_000, 950_000], 0, &[]),
            ("a=0.5%\n*=99.5%\n", &[5_000, 995_000], 0, &[]),
            ("a=.5%, *=99.50000%", &[5_000, 995_000], 0, &[]),
            ("a=5 %,*=95 %", &[50_000, 950_000], 0, &[]),
            ("a=33.3%,b=33.3%,*=33.3%", &[333_000, 333_000, 333_000], 0, &[]),
            ("a=0.00001%,*=100%", &[1, 1_000_000], 0, &[]),
            ("a=0%,*=100%", &[0, 1_000_000], 0, &[]),
            ("a=5%", &[50_000], 950_000, &[]),
            ("a=60%,*=60%", &[600_000, 600_000], 0, &["the shares are 120% together; taken in proportion"]),
            ("a=10%,*=20.5%", &[100_000, 205_000], 695_000, &["the shares are 30.5% together; taken in proportion"]),
            (
                "a=500%,*=50%",
                &[1_000_000, 500_000],
                0,
                &["more than 100%; taken as 100%", "the shares are 150% together; taken in proportion"],
            ),
            ("a=99999999999999999%", &[1_000_000], 0, &["more than 100%; taken as 100%"]),
            ("a=5,*=95%", &[50_000, 950_000], 0, &["a share without %; taken as per cent"]),
            ("a=5%,a=7%,*=95%", &[50_000, 950_000], 0, &["a second entry for this pattern; the first one counts"]),
            ("a=-5%,*=100%", &[1_000_000], 0, &["not a share in 0%..100%; skipped"]),
            ("a=5%%,*=100%", &[1_000_000], 0, &["not a share in 0%..100%; skipped"]),
            ("a,*=100%", &[1_000_000], 0, &["not PATTERN=SHARE%; skipped"]),
            ("a:b=4%,*=100%", &[1_000_000], 0, &["not pod name, node:, zone: or ip:; skipped"]),
        ];
        for (text, shares, rest, said) in table {
            let (tuning, problems) = parse(&[(SPLIT_ANNOTATION, text)]);
            let split = tuning.split.expect(text);
            assert_eq!(split.groups().iter().map(|group| group.share).collect::<Vec<_>>(), shares, "{text}");
            assert_eq!(split.rest(), rest, "{text}");
            assert_eq!(problems.len(), said.len(), "{text}: {problems:?}");
            for (problem, said) in problems.iter().zip(said) {
                assert!(problem.ends_with(said) && problem.contains(SPLIT_ANNOTATION), "{text}: {problem}");
            }
        }
        for nothing in ["a=0%", "a", "=", "%", ",,"] {
            let (tuning, problems) = parse(&[(SPLIT_ANNOTATION, nothing)]);
            assert!(tuning.split.is_none() && !problems.is_empty(), "{nothing}");
        }
    }
}

//! Taking turns: smooth weighted round robin among those who come into question.
//!
//! Each time, everybody in question is credited its weight, the one with the highest credit goes, and pays the sum of the weights.
//! So after as many turns as all weights add up to, each has had exactly its share, and a heavy one's turns are spread over the
//! round. With equal weights it is plain round robin. Those who do not come into question neither gain nor lose.

use super::member::{Member, Share};

/// Whose turn it is among `eligible`; of equals, the first.
///
/// # Panics
/// If nobody is eligible.
pub(super) fn next(members: &mut [Member], eligible: &[usize], weight: impl Fn(&Member) -> u32) -> usize {
    let mut total = 0;
    let mut best: Option<usize> = None;
    for place in eligible {
        let weight = i64::from(weight(&members[*place]));
        members[*place].credit += weight;
        total += weight;
        if best.is_none_or(|best| members[*place].credit > members[best].credit) {
            best = Some(*place);
        }
    }
    let best = best.expect("somebody is eligible");
    members[best].credit -= total;
    best
}

/// Whose turn it is among those with the least cost.
///
/// # Panics
/// If nobody is eligible.
pub(super) fn next_of_least(
    members: &mut [Member],
    eligible: &[usize],
    weight: impl Fn(&Member) -> u32,
    cost: impl Fn(&Member) -> Share,
) -> usize {
    let costs = || eligible.iter().map(|place| (*place, cost(&members[*place])));
    let least = costs().map(|(_, cost)| cost).min().expect("somebody is eligible");
    let tied: Vec<usize> = costs().filter(|(_, cost)| *cost == least).map(|(place, _)| place).collect();
    match tied[..] {
        // Nobody's turn is used up where there was no choice.
        [only] => only,
        _ => next(members, &tied, weight),
    }
}

/// Brings credits back around zero after members came or went, so that a newcomer is neither ahead nor behind.
pub(super) fn level(members: &mut [Member]) {
    let total: i64 = members.iter().map(|member| member.credit).sum();
    if let Ok(count @ 1..) = i64::try_from(members.len()) {
        let mean = total / count;
        members.iter_mut().for_each(|member| member.credit -= mean);
    }
}

//! What is to be said about weights once it is known whom they concern.
//!
//! Parsing an annotation cannot tell that a pattern matches nobody, that everybody is drained, or that the scheduler does not look at
//! weights. Each is a standing problem of the Service: said once, gone when it is mended.

use std::collections::{BTreeMap, BTreeSet};

use super::weigh::{all_drained, scheduler, share_of};
use super::{Assessment, Context, ResolvedPort};
use crate::model::map::HashMap;
use crate::model::tuning::{SLOW_START_ANNOTATION, SPLIT_ANNOTATION, Split, WEIGHT_ANNOTATION, WEIGHTS_ANNOTATION};
use crate::model::{Endpoint, Problem, Service, Slice};
use crate::schedule::live::Rule;
use crate::schedule::{Candidate, share};
use crate::source::Kind;

/// Patterns without anybody that are named; the last of them says how many there are.
const NAMED: usize = 4;

/// The field of a problem that is not in an object: what was said by hand.
const BY_HAND: &str = "weight by hand";

/// Shares of groups that are further off than this part of themselves are told about.
const NOTED: f64 = 0.1;

/// Everything there is to say about a Service that was decided as `resolved`.
pub fn tuning_problems<'a>(
    service: &'a Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    resolved: &[ResolvedPort],
    context: Context<'_>,
) -> Vec<Problem> {
    let mut problems = super::path::problems(service, context.settings);
    let tuning = &service.tuning;
    let own = context.assessment.is_none().then(|| Assessment::new(service, slices.clone(), context.overrides));
    let Some(assessment) = context.assessment.or(own.as_ref()).filter(|one| one.is_weighted()) else {
        return problems;
    };
    let mut say = |annotation: &str, value: String, reason: String| {
        let field = match annotation {
            BY_HAND => BY_HAND.to_owned(),
            annotation => format!("metadata.annotations[{annotation}]"),
        };
        let problem = Problem { kind: Kind::Service, object: service.key.object(), field, value, reason };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    };
    let endpoints = || slices.clone().flat_map(|slice| &slice.endpoints);
    for (annotation, idle) in
        [(WEIGHTS_ANNOTATION, assessment.idle_weights()), (SPLIT_ANNOTATION, assessment.idle_groups())]
    {
        let more = idle.len().saturating_sub(NAMED);
        for (index, pattern) in idle.iter().take(NAMED).enumerate() {
            let others =
                if index + 1 == NAMED && more > 0 { format!("; {more} more match none either") } else { String::new() };
            say(annotation, pattern.to_string(), format!("matches no endpoint of this Service{others}"));
        }
    }
    let dealer = scheduler(service, context.scheduler, assessment.asks_for_weights());
    if !dealer.heeds_weights() {
        let slices_differ = endpoints().any(|endpoint| !matches!(endpoint.weight, None | Some(0 | 1)));
        for (annotation, given) in [
            (WEIGHTS_ANNOTATION, tuning.weights.differ()),
            (WEIGHT_ANNOTATION, slices_differ),
            (SPLIT_ANNOTATION, tuning.split.is_some()),
            (SLOW_START_ANNOTATION, tuning.slow_start.is_some()),
            (BY_HAND, assessment.asks_for_weights_by_hand()),
        ] {
            if given {
                let reason = "this scheduler ignores weights, only 0 counts; endpoints are used alike".to_owned();
                say(annotation, dealer.to_string(), reason);
            }
        }
    }
    // They take whoever is idle or heaviest as long as there is little to do, as IPVS's do, and never look at who has had how much.
    if tuning.split.is_some() && dealer.live().is_some_and(Rule::forgets_shares) {
        let reason = "this scheduler keeps shares only as far as connections last; wrr and wlc keep them".to_owned();
        say(SPLIT_ANNOTATION, dealer.to_string(), reason);
    }
    for port in resolved {
        for candidates in [&port.cluster, &port.local] {
            // Only addresses matter: an endpoint weighs the same on all of its ports.
            let chosen: BTreeSet<_> = candidates.iter().map(|candidate| candidate.endpoint.ip()).collect();
            let chosen = || endpoints().filter(|endpoint| chosen.contains(&endpoint.address));
            let by_address: HashMap<_, _> = chosen().map(|endpoint| (endpoint.address, endpoint)).collect();
            let known = candidates.iter().filter_map(|one| Some((one.endpoint, *by_address.get(&one.endpoint.ip())?)));
            if all_drained(assessment, known) {
                let annotation = match tuning.weights.is_empty() {
                    _ if assessment.is_overridden() => BY_HAND,
                    true => WEIGHT_ANNOTATION,
                    false => WEIGHTS_ANNOTATION,
                };
                say(
                    annotation,
                    "0".to_owned(),
                    "all qualifying endpoints have weight 0; all are used alike".to_owned(),
                );
            }
            let Some(split) = &tuning.split else { continue };
            if dealer.deals_weights() {
                for (group, share) in misfits(split, assessment, candidates, chosen()) {
                    let pattern = split.groups().get(group).map_or("all others", |group| group.pattern.text());
                    let reason =
                        format!("its share comes to {share}: slots are rounded, and each endpoint has one or more");
                    say(SPLIT_ANNOTATION, pattern.to_owned(), reason);
                }
            }
            if chosen().next().is_some() && chosen().all(|one| share_of(split, assessment.said(one).group) == 0) {
                let reason = "no endpoint that qualifies is in a group with a share; all are used by weight".to_owned();
                say(SPLIT_ANNOTATION, "0%".to_owned(), reason);
            }
        }
    }
    if let Some(split) = &tuning.split {
        let outsider =
            endpoints().find(|endpoint| endpoint.ready && assessment.said(endpoint).group == split.groups().len());
        let name = |endpoint: &Endpoint| endpoint.pod.as_deref().map_or(endpoint.address.to_string(), str::to_owned);
        match outsider {
            Some(outsider) if split.rest() == 0 => {
                let reason = "this endpoint, and maybe others, is in no group: it gets no new connections".to_owned();
                say(SPLIT_ANNOTATION, name(outsider), reason);
            }
            None if split.rest() > 0 && !split.groups().iter().any(|group| group.pattern.is_everyone()) => {
                let sum = format!("{}%", f64::from(1_000_000 - split.rest()) / 10_000.0);
                let reason =
                    "the shares are less than 100% together and no other endpoint is there; taken in proportion";
                say(SPLIT_ANNOTATION, sum, reason.to_owned());
            }
            _ => {}
        }
    }
    problems
}

/// The groups whose share comes to something else in slots, and to what, in proportion to the groups that are there.
fn misfits<'a>(
    split: &Split,
    assessment: &Assessment<'_>,
    candidates: &[Candidate],
    chosen: impl Iterator<Item = &'a Endpoint>,
) -> Vec<(usize, String)> {
    let groups: HashMap<_, _> = chosen.map(|one| (one.address, assessment.said(one).group)).collect();
    let weights: Vec<u32> = candidates.iter().map(|candidate| candidate.weight).collect();
    let dealt = share(&weights).slots;
    let mut slots: BTreeMap<usize, u32> = BTreeMap::new();
    for (candidate, dealt) in candidates.iter().zip(&dealt) {
        let Some(group) = groups.get(&candidate.endpoint.ip()) else { continue };
        *slots.entry(*group).or_default() += dealt;
    }
    let all = f64::from(dealt.iter().sum::<u32>().max(1));
    let whole: f64 = slots.keys().map(|group| f64::from(share_of(split, *group))).sum();
    let off = |(group, slots): (&usize, &u32)| {
        let wanted = f64::from(share_of(split, *group)) / whole.max(1.0);
        let got = f64::from(*slots) / all;
        (wanted > 0.0 && (got / wanted - 1.0).abs() > NOTED).then(|| (*group, format!("{:.2}%", got * 100.0)))
    };
    slots.iter().filter_map(off).collect()
}

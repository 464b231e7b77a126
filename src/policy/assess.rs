//! What a Service's annotations say about each of its endpoints, found out once for all of its ports.
//!
//! Lists may have a thousand patterns and Services thousands of endpoints, behind many ports, in two sets each. Whom a pattern means is the
//! same for all of them, so it is asked once per endpoint and compilation, and which patterns mean nobody comes of the same pass.

use std::collections::HashMap;

use super::weigh::is_weighted;
use crate::model::tuning::Pattern;
use crate::model::{Endpoint, Service, Slice, Tuning};

/// The annotations of a Service, applied to its endpoints.
#[derive(Clone, Debug)]
pub struct Assessment<'a> {
    tuning: &'a Tuning,
    weighted: bool,
    /// By where the endpoint is in memory: of two entries for one address each has its own.
    known: HashMap<usize, Said>,
    /// Patterns that mean nobody.
    idle_weights: Vec<&'a Pattern>,
    idle_groups: Vec<&'a Pattern>,
}

/// What is said about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// 0..65535.
    pub(super) weight: u16,
    /// One of the split's groups, or that of all others, which is the last.
    pub(super) group: usize,
}

// === impl Assessment ===

impl<'a> Assessment<'a> {
    /// Looks at all endpoints of a Service. Where nothing could make them differ, that is next to no work.
    pub fn new(service: &'a Service, slices: impl Iterator<Item = &'a Slice> + Clone) -> Self {
        if is_weighted(service, slices.clone()) {
            Self::of(&service.tuning, slices.flat_map(|slice| &slice.endpoints))
        } else {
            let known = HashMap::new();
            Self { tuning: &service.tuning, weighted: false, known, idle_weights: Vec::new(), idle_groups: Vec::new() }
        }
    }

    /// The same for endpoints that may differ.
    pub(super) fn of<'b>(tuning: &'a Tuning, endpoints: impl Iterator<Item = &'b Endpoint>) -> Self {
        let groups = tuning.split.as_ref().map_or(&[][..], |split| split.groups());
        let mut means_somebody = (vec![false; tuning.weights.len()], vec![false; groups.len()]);
        let mut known = HashMap::new();
        for endpoint in endpoints {
            let said = assess(tuning, endpoint, |at| means_somebody.0[at] = true, |at| means_somebody.1[at] = true);
            known.insert(place(endpoint), said);
        }
        let mut assessment = Self { tuning, weighted: true, known, idle_weights: Vec::new(), idle_groups: Vec::new() };
        // A Service without endpoints is no reason to doubt its patterns.
        if !assessment.known.is_empty() {
            let idle = |(pattern, means): (&'a Pattern, &bool)| (!means).then_some(pattern);
            let (weights, shares) = &means_somebody;
            assessment.idle_weights = tuning.weights.patterns().zip(weights).filter_map(idle).collect();
            assessment.idle_groups = groups.iter().map(|group| &group.pattern).zip(shares).filter_map(idle).collect();
        }
        assessment
    }

    /// The annotations.
    pub(super) fn tuning(&self) -> &'a Tuning {
        self.tuning
    }

    /// Whether anything could make endpoints differ.
    pub(super) fn is_weighted(&self) -> bool {
        self.weighted
    }

    /// What is said about an endpoint, which is at best one of those looked at.
    pub(super) fn said(&self, endpoint: &Endpoint) -> Said {
        let known = self.known.get(&place(endpoint)).copied();
        known.unwrap_or_else(|| assess(self.tuning, endpoint, |_| {}, |_| {}))
    }

    /// The patterns of weights that mean nobody.
    pub(super) fn idle_weights(&self) -> &[&'a Pattern] {
        &self.idle_weights
    }

    /// The patterns of shares that mean nobody.
    pub(super) fn idle_groups(&self) -> &[&'a Pattern] {
        &self.idle_groups
    }
}

fn place(endpoint: &Endpoint) -> usize {
    std::ptr::from_ref(endpoint).addr()
}

fn assess(
    tuning: &Tuning,
    endpoint: &Endpoint,
    each_weight: impl FnMut(usize),
    mut each_group: impl FnMut(usize),
) -> Said {
    let weight = tuning.weights.find(endpoint, each_weight);
    let group =
        tuning.split.as_ref().map_or(0, |split| split.find(endpoint, &mut each_group).unwrap_or(split.groups().len()));
    Said { weight, group }
}

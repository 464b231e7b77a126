//! What a Service's annotations say about each of its endpoints, found out once for all of its ports.
//!
//! Lists may have a thousand patterns and Services thousands of endpoints, behind many ports, in two sets each. Whom a pattern means is the
//! same for all of them, so it is asked once per endpoint and compilation, and which patterns mean nobody comes of the same pass. What was said by hand
//! ([`Override`]) may be about one port of an endpoint, and is few: it is looked up each time.

use std::net::SocketAddr;

use super::overrides::{Override, add_weights, weight_of};
use super::weigh::is_weighted;
use crate::model::map::HashMap;
use crate::model::tuning::Pattern;
use crate::model::{Endpoint, Service, Slice, Tuning};

/// The annotations of a Service, applied to its endpoints.
#[derive(Clone, Debug)]
pub struct Assessment<'a> {
    tuning: &'a Tuning,
    overrides: &'a [Override],
    weighted: bool,
    /// Whether weights differ, or may, so that who deals should look at them.
    asks_for_weights: bool,
    overrides_weigh: bool,
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
    pub fn new<'s>(
        service: &'a Service,
        slices: impl Iterator<Item = &'s Slice> + Clone,
        overrides: &'a [Override],
    ) -> Self {
        let by_objects = is_weighted(service, slices.clone());
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        if by_objects || !overrides.is_empty() {
            let overrides_weigh = add_weights(overrides, endpoints.clone());
            let asks_for_weights = by_objects || overrides_weigh;
            Self { overrides, asks_for_weights, overrides_weigh, ..Self::of(&service.tuning, endpoints) }
        } else {
            Self {
                tuning: &service.tuning,
                overrides,
                weighted: false,
                asks_for_weights: false,
                overrides_weigh: false,
                known: HashMap::default(),
                idle_weights: Vec::new(),
                idle_groups: Vec::new(),
            }
        }
    }

    /// The same for endpoints that may differ.
    pub(super) fn of<'b>(tuning: &'a Tuning, endpoints: impl Iterator<Item = &'b Endpoint>) -> Self {
        let groups = tuning.split.as_ref().map_or(&[][..], |split| split.groups());
        let mut means_somebody = (vec![false; tuning.weights.len()], vec![false; groups.len()]);
        let mut known = HashMap::default();
        for endpoint in endpoints {
            let said = assess(tuning, endpoint, |at| means_somebody.0[at] = true, |at| means_somebody.1[at] = true);
            known.insert(place(endpoint), said);
        }
        let mut assessment = Self {
            tuning,
            overrides: &[],
            weighted: true,
            asks_for_weights: true,
            overrides_weigh: false,
            known,
            idle_weights: Vec::new(),
            idle_groups: Vec::new(),
        };
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
    pub fn is_weighted(&self) -> bool {
        self.weighted
    }

    /// Whether who deals should look at weights. A drain by hand does not ask for that.
    pub(super) fn asks_for_weights(&self) -> bool {
        self.asks_for_weights
    }

    /// What an endpoint weighs on one of its ports: what was said by hand, or what annotations say.
    pub(super) fn weight(&self, at: SocketAddr, endpoint: &Endpoint) -> u16 {
        weight_of(self.overrides, at, endpoint).unwrap_or_else(|| self.said(endpoint).weight)
    }

    /// Whether something said by hand asks for that.
    pub(super) fn asks_for_weights_by_hand(&self) -> bool {
        self.overrides_weigh
    }

    /// Whether anything was said by hand.
    pub(super) fn is_overridden(&self) -> bool {
        !self.overrides.is_empty()
    }

    /// What annotations say about an endpoint, which is at best one of those looked at.
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

//! What decisions will come to, before they are taken: how many frontends, and endpoints at most.
//!
//! Maps of the kernel have a size that is declared when they are made, and elements go into them while the rest is still being decided. A
//! [`Prospect`] costs a fraction of a decision: nobody is sorted, and hints count for nothing; weights do, because they make more slots than
//! there are endpoints.
//!
//! Invariant: no decision on the same Service has more of anything, unless somebody says otherwise by hand or starts slowly; proven by
//! `engine/forecast.rs`.

use super::select::{Tally, gather, is_local};
use super::{Assessment, Context, Path, Role, Warming, frontends, is_external, node_port, uses, weigh};
use crate::model::{Family, Service, ServicePort, Slice};
use crate::schedule::{Candidate, Scheduler};

/// What a decision for a Service port in one family will come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// Which family.
    pub family: Family,
    /// Cluster addresses.
    pub internal: usize,
    /// All other frontends, node ports aside.
    pub external: usize,
    /// Whether it asks for a node port.
    pub node_port: bool,
    /// The source of external connections stays what it is.
    pub keeps_source: bool,
    /// Whether not everybody may use its load balancer addresses.
    pub has_ranges: bool,
    /// Endpoints that may be in the cluster set.
    pub cluster: Hopefuls,
    /// Endpoints that may be in the local set.
    pub local: Hopefuls,
    /// Endpoints on this node that may be in either.
    pub here: usize,
    /// Who shall answer next.
    pub scheduler: Scheduler,
    /// Whether a client stays with its endpoint.
    pub affinity: bool,
    /// Who carries its connections.
    pub path: Path,
}

/// Who may get slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hopefuls {
    /// So many that weigh the same.
    Equals(usize),
    /// These.
    Weighted(Vec<Candidate>),
}

// === impl Hopefuls ===

impl Hopefuls {
    /// How many.
    pub fn count(&self) -> usize {
        match self {
            Self::Equals(count) => *count,
            Self::Weighted(candidates) => candidates.len(),
        }
    }
}

/// What decisions for all ports of a Service will come to, whoever has the frontends.
pub fn prospects<'a>(
    service: &'a Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    context: Context<'_>,
) -> Vec<Prospect> {
    let assessment = Assessment::new(service, slices.clone(), &[]);
    let mut prospects = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| service.serves(*family)) {
        for port in &service.ports {
            let slices = slices.clone().filter(|slice| slice.family == family);
            prospects.extend(prospect(service, port, family, slices, context, &assessment));
        }
    }
    prospects
}

fn prospect<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    context: Context<'_>,
    assessment: &Assessment<'_>,
) -> Option<Prospect> {
    let frontends = frontends(service, port, family, context.settings);
    let node_port = node_port(port).is_some();
    if frontends.is_empty() && !node_port {
        return None;
    }
    let of_role = |role: Role| frontends.iter().filter(|(_, of)| *of == role).count();
    let internal = of_role(Role::Cluster);
    let external = is_external(service, port, family);
    let uses = uses(service, external);
    let node = &*context.settings.node;
    let mut tally = Tally::default();
    for slice in slices.clone() {
        // The same for each of the ports that a slice has under this name.
        let ports = slice.ports.iter().filter(|one| one.name == port.name && one.protocol == port.protocol);
        ports.for_each(|_| slice.endpoints.iter().for_each(|endpoint| tally.add(endpoint, context.place())));
    }
    let scheduler = weigh::scheduler(service, context.scheduler, assessment.asks_for_weights());
    let hopefuls = |used: bool, local: bool| match used {
        false => Hopefuls::Equals(0),
        true if assessment.is_weighted() => {
            let known = gather(port, slices.clone());
            let known: Vec<_> = known.into_iter().filter(|(_, endpoint)| !local || is_local(endpoint, node)).collect();
            Hopefuls::Weighted(weigh::weigh(assessment, &known, &Warming::default(), scheduler.deals_weights()))
        }
        true => Hopefuls::Equals(tally.usable(local)),
    };
    Some(Prospect {
        family,
        internal,
        external: frontends.len() - internal,
        node_port,
        keeps_source: service.external_local && external,
        has_ranges: !service.source_ranges.is_empty() && of_role(Role::LoadBalancer) > 0,
        cluster: hopefuls(uses.cluster, false),
        local: hopefuls(uses.local, true),
        here: tally.here(),
        scheduler,
        affinity: service.affinity.is_some(),
        path: Path::of(service, port.protocol, context.settings),
    })
}

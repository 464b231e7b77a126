//! What the engine knows of one Service, for people who look.
//!
//! Nothing here changes anything, and nothing is kept for it but the times of changes: what is asked for is worked out when it is asked for, by the
//! functions that decide ([`policy::survey`]), as of the time of the last compilation.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{Engine, Leaving};
use crate::compile::TableImage;
use crate::forward::RouteId;
use crate::model::map::HashMap;
use crate::model::{Family, PortKey, Problem, Service, ServiceKey};
use crate::policy::{self, Assessment, Claim, Context, Override, ResolvedPort, Surveyed, Warming};
use crate::schedule::Scheduler;
use crate::source::{Kind, ObjectKey};

/// One Service, seen from all sides.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// What it asks for.
    pub service: &'a Service,
    /// Its ports, each in each family that the Service has.
    pub ports: Vec<Surveyed<'a>>,
    /// Who is in slow start, and how far.
    pub warming: Warming,
    /// Who is leaving, of those with a drain time.
    pub leaving: Vec<Leaving>,
    /// Who serves Services that choose nobody.
    pub default_scheduler: Scheduler,
    /// What was said by hand.
    pub overrides: &'a [Override],
    /// When its data plane last changed; `None` before everything was compiled once.
    pub changed: Option<Instant>,
}

/// When the data plane of Services changed. What the first load brought has no time of its own, so it takes no memory either.
#[derive(Debug, Default)]
pub(super) struct Changes {
    settled: Option<Instant>,
    times: HashMap<ServiceKey, Instant>,
}

// === impl Changes ===

impl Changes {
    /// Everything known has been compiled.
    pub(super) fn settle(&mut self, now: Option<Instant>) {
        self.settled = self.settled.or(now);
    }

    /// A Service was compiled.
    pub(super) fn note(&mut self, key: &ServiceKey, exists: bool, differs: bool, now: Option<Instant>) {
        if !exists {
            self.times.remove(key);
        } else if let (true, Some(_), Some(now)) = (differs, self.settled, now) {
            self.times.insert(key.clone(), now);
        }
    }

    fn of(&self, key: &ServiceKey) -> Option<Instant> {
        self.times.get(key).copied().or(self.settled)
    }
}

// === impl Engine ===

impl Engine {
    /// Looks at a Service that is served here.
    pub fn look(&self, key: &ServiceKey) -> Option<Seen<'_>> {
        let service = self.store.service(key)?;
        let slices = self.store.slices(key);
        let warming = self.warmth.warming(key, service, self.now);
        let overrides = self.overrides.of(key);
        let assessment = Assessment::new(service, slices.clone(), overrides);
        let context =
            Context { warming: Some(&warming), assessment: Some(&assessment), overrides, ..super::context!(self) };
        let ports = policy::survey(service, slices, context);
        Some(Seen {
            service,
            ports,
            leaving: self.drains.leaving(key),
            default_scheduler: self.scheduler,
            changed: self.changes.of(key),
            warming,
            overrides,
        })
    }

    /// Looks at the frontends of a Service and at who answers there, if there is no more to say of its endpoints: none weighs anything, none leaves,
    /// and nothing was said by hand. Then candidates are all that [`Engine::look`] would show, and no survey is taken.
    pub fn look_briefly(&self, key: &ServiceKey) -> Option<(&Service, Vec<ResolvedPort>)> {
        let service = self.store.service(key)?;
        let slices = self.store.slices(key);
        if !self.overrides.of(key).is_empty() {
            return None;
        }
        let assessment = Assessment::new(service, slices.clone(), &[]);
        let mut endpoints = slices.clone().flat_map(|slice| &slice.endpoints);
        if assessment.is_weighted() || endpoints.any(|endpoint| endpoint.terminating) {
            return None;
        }
        let context = Context { assessment: Some(&assessment), ..super::context!(self) };
        Some((service, policy::resolve(service, slices, context)))
    }

    /// The Service that has a frontend or node port, as of the last compilation.
    pub fn holder(&self, claim: &Claim) -> Option<&ServiceKey> {
        self.claims.holder(claim)
    }

    /// Whether this is the cluster address of a Service that has one of its ports there, as of the last compilation.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.compiler.is_cluster_ip(address)
    }

    /// The slots of a Service port: see [`Compiler::slots`](crate::compile::Compiler::slots). Of what goes through the forwarder, slots lead to
    /// its listener.
    pub fn slots(&self, port: &PortKey, family: Family, local: bool) -> Vec<SocketAddr> {
        self.compiler.slots(port, family, local)
    }

    /// Everything that a Service port wants in the kernel: see [`Compiler::elements`](crate::compile::Compiler::elements).
    pub fn elements(&self, port: &PortKey, family: Family) -> TableImage {
        self.compiler.elements(port, family)
    }

    /// Where the forwarder takes the connections of a Service port, if it does.
    pub fn listener(&self, port: &PortKey, family: Family, local: bool) -> Option<SocketAddr> {
        self.routes.listener(&RouteId { port: port.clone(), family, local })
    }

    /// What stands about a Service and its slices: mistakes in the objects, and what could not be done.
    pub fn problems_of(&self, key: &ServiceKey) -> impl Iterator<Item = &Problem> {
        let service = key.object();
        let own = self.store.problems().of(Kind::Service, &service);
        let conflicts = self.conflicts.of(Kind::Service, &service);
        let slices = self.store.slice_names(key).flat_map(move |name| {
            let slice = ObjectKey { namespace: service.namespace.clone(), name: name.to_owned() };
            self.store.problems().of(Kind::EndpointSlice, &slice)
        });
        own.iter().chain(conflicts).chain(slices)
    }

    /// How many endpoints there are in all slices, not telling ports apart.
    pub fn endpoint_count(&self) -> usize {
        let slices = self.store.services().flat_map(|service| self.store.slices(&service.key));
        slices.map(|slice| slice.endpoints.len()).sum()
    }
}

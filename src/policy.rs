//! Which endpoints each frontend may use.
//!
//! [`resolve`] is a pure function of one Service, its slices, our Node, the [`Settings`] and the claims on frontends: it names, per
//! Service port and family, the frontends that are this Service's to serve, what happens to connections from inside and from
//! outside, and the endpoints that qualify. It knows neither schedulers nor nftables.
//!
//! Vocabulary:
//! - a *frontend* is what clients connect to: address, protocol, port. A [`NodePort`] is one on every address of the node. Two
//!   Services may ask for the same one ([`Claim`]); [`Claims`] keeps who asks and decides who has it;
//! - *internal* traffic goes to the cluster address, *external* traffic to all other frontends; each has its traffic policy, and a
//!   [`Verdict`] says what comes of it;
//! - the *cluster set* and the *local set* are the endpoints that a policy may choose from; `select` has the table.
//!
//! Rules in force: spec of kube-proxy 1.36, sections 4.2 to 4.5 and 5.4. Where two frontends of one Service are the same address
//! and port, it is served as cluster address, then as load balancer address, then as external address.
//!
//! Invariants: the result depends on the objects only, and endpoints come sorted. Table tests here and in `select`, `settings`,
//! `claims`; `tests/conformance/README.md` lists them row by row.

mod assess;
mod claims;
mod overrides;
mod path;
mod proportion;
mod prospect;
mod remarks;
mod roster;
mod select;
mod serving;
mod settings;
mod survey;
#[cfg(test)]
mod tests;
mod weigh;

use std::net::{IpAddr, SocketAddr};

pub use assess::Assessment;
pub use claims::{Claims, Passed};
pub use overrides::{Override, Subject};
pub use path::{Path, Reason};
pub use prospect::{Hopefuls, Prospect, prospects};
pub use remarks::tuning_problems;
pub use roster::{Exchange, PortExchange, Roster, SliceChange};
pub use select::Topology;
pub use settings::{
    DetectLocal, Detector, NodeAddresses, NodePortAddresses, Settings, detector, localhost_node_port, node_port_ranges,
    restricted_node_ports,
};
pub use survey::{Standing, Surveyed, SurveyedEndpoint, survey};
pub use weigh::Warming;

use crate::model::{AddressRange, Affinity, Family, Node, PortKey, Problem, Protocol, Service, ServicePort, Slice};
use crate::schedule::{Candidate, Scheduler};
use crate::source::Kind;
use select::{Place, Uses, select};

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Destination address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// What clients connect to on every address that serves node ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// Something that only one Service can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// An address and port.
    Frontend(Frontend),
    /// A port of the node, in one family.
    NodePort(Family, NodePort),
}

/// What kind of address a frontend has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A cluster address: internal traffic.
    Cluster,
    /// A load balancer's address: external traffic, subject to source ranges.
    LoadBalancer,
    /// An address of `spec.externalIPs`: external traffic.
    External,
}

/// What comes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It is rejected: nobody anywhere could serve.
    Refuse,
    /// It is dropped: somebody could, but not here.
    Discard,
    /// An endpoint of the cluster set gets it.
    Cluster,
    /// An endpoint of the local set gets it.
    Local,
}

/// The decision for one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPort {
    /// Which Service port.
    pub key: PortKey,
    /// Which family.
    pub family: Family,
    /// Where clients may connect.
    pub frontends: Vec<(Frontend, Role)>,
    /// On which port of the node.
    pub node_port: Option<NodePort>,
    /// Connections to the cluster address.
    pub internal: Verdict,
    /// Connections to all other frontends that come from outside.
    pub outside: Verdict,
    /// Connections to all other frontends that come from the node itself or from its pods.
    pub inside: Verdict,
    /// The source of external connections stays what it is, except for the node's own (`externalTrafficPolicy: Local`).
    pub keeps_source: bool,
    /// Who may use the load balancer addresses; `None` is everybody.
    pub source_ranges: Option<Vec<AddressRange>>,
    /// Sorted and without duplicates; empty unless a verdict leads there.
    pub cluster: Vec<Candidate>,
    /// Sorted and without duplicates; empty unless a verdict leads there.
    pub local: Vec<Candidate>,
    /// Who may go on answering: ready endpoints and those that still serve while they terminate, sorted and without duplicates.
    /// UDP only: no other flows are ended.
    pub serving: Vec<SocketAddr>,
    /// Addresses of endpoints on this node: pods that may meet themselves behind the Service.
    pub local_addresses: Vec<IpAddr>,
    /// Who shall answer next.
    pub scheduler: Scheduler,
    /// Whether a client stays with its endpoint.
    pub affinity: Option<Affinity>,
    /// Who carries its connections.
    pub path: Path,
}

/// What load balancers are told who ask whether this node has endpoints of a Service (spec section 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Where they ask.
    pub port: u16,
    /// Ready IPv4 endpoints on this node.
    pub local_v4: usize,
    /// Ready IPv6 endpoints on this node.
    pub local_v6: usize,
}

/// What decisions depend on besides the Service and its slices.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What the operator wants.
    pub settings: &'a Settings,
    /// Our Node, once it is known.
    pub node: Option<&'a Node>,
    /// Who has which frontend.
    pub claims: &'a Claims,
    /// For Services that choose none.
    pub scheduler: Scheduler,
    /// Who of this Service's endpoints is in slow start; `None`: nobody.
    pub warming: Option<&'a Warming>,
    /// What this Service's annotations say about its endpoints; `None`: to be found out.
    pub assessment: Option<&'a Assessment<'a>>,
    /// What was said by hand about this Service's endpoints, and is in force.
    pub overrides: &'a [Override],
}

// === impl Frontend ===

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.address, self.port))
    }
}

// === impl Claim ===

impl std::fmt::Display for Claim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Claim::Frontend(frontend) => frontend.fmt(f),
            Claim::NodePort(family, node_port) => {
                write!(f, "{} node port {} ({family})", node_port.protocol, node_port.port)
            }
        }
    }
}

// === impl ResolvedPort ===

impl ResolvedPort {
    /// Whether a Local policy, the internal and the external one, keeps traffic from endpoints that are elsewhere because there are
    /// none on this node. Only a Local policy discards: see the verdict table.
    pub fn lacks_local(&self) -> [bool; 2] {
        [self.internal == Verdict::Discard, self.keeps_source && self.outside == Verdict::Discard]
    }
}

// === impl HealthCheck ===

impl HealthCheck {
    /// The answer for a Service, if anybody asks for it.
    pub fn of<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        settings: &Settings,
    ) -> Option<Self> {
        let port = service.health_check_port?;
        let [local_v4, local_v6] = Family::ALL.map(|family| {
            if service.serves(family) {
                select::local_ready(&service.ports, slices.clone(), &settings.node, family)
            } else {
                0
            }
        });
        Some(Self { port, local_v4, local_v6 })
    }
}

// === impl Context ===

impl<'a> Context<'a> {
    fn place(&self) -> Place<'a> {
        let zone = self.node.and_then(|node| node.zone.as_deref());
        Place { node: &self.settings.node, zone }
    }
}

// === resolving ===

/// Everything that a Service asks for, whoever gets it in the end.
pub fn wanted(service: &Service, settings: &Settings) -> Vec<(Claim, Role)> {
    let mut wanted = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| service.serves(*family)) {
        for port in &service.ports {
            wanted.extend(
                frontends(service, port, family, settings).into_iter().map(|(one, role)| (Claim::Frontend(one), role)),
            );
            // A node port is as good as any other.
            wanted.extend(node_port(port).map(|node_port| (Claim::NodePort(family, node_port), Role::Cluster)));
        }
    }
    wanted
}

/// What a Service asks for and another has, as problems of the one that lost.
pub fn lost_frontends(service: &Service, context: Context<'_>) -> Vec<Problem> {
    let asked = wanted(service, context.settings).into_iter();
    let lost = asked.filter_map(|(claim, _)| Some((claim, context.claims.holder(&claim)?)));
    lost.filter(|(_, holder)| **holder != service.key)
        .map(|(claim, holder)| Problem {
            kind: Kind::Service,
            object: service.key.object(),
            field: "spec.ports".to_owned(),
            value: claim.to_string(),
            reason: format!(
                "already served for Service {holder}, which goes first (by kind of address, age, name); not served"
            ),
        })
        .collect()
}

/// Decides for all ports of a Service. What [`Claims`] give to another Service is left out.
pub fn resolve<'a>(
    service: &'a Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    context: Context<'_>,
) -> Vec<ResolvedPort> {
    let mut resolved = Vec::new();
    let own = context.assessment.is_none().then(|| Assessment::new(service, slices.clone(), context.overrides));
    let Some(assessment) = context.assessment.or(own.as_ref()) else { return resolved };
    for family in Family::ALL.into_iter().filter(|family| service.serves(*family)) {
        let source_ranges = source_ranges(service, family, context);
        for port in &service.ports {
            let slices = slices.clone().filter(|slice| slice.family == family);
            resolved.extend(resolve_port(service, port, family, slices, &source_ranges, context, assessment));
        }
    }
    resolved
}

fn resolve_port<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    source_ranges: &Option<Vec<AddressRange>>,
    context: Context<'_>,
    assessment: &Assessment<'_>,
) -> Option<ResolvedPort> {
    let holds = |claim: Claim| context.claims.holds(&service.key, &claim);
    let mut frontends = frontends(service, port, family, context.settings);
    frontends.retain(|(frontend, _)| holds(Claim::Frontend(*frontend)));
    let node_port = node_port(port).filter(|node_port| holds(Claim::NodePort(family, *node_port)));
    if frontends.is_empty() && node_port.is_none() {
        return None;
    }
    let external = is_external(service, port, family);
    let keeps_source = service.external_local && external;
    let uses = uses(service, external);
    let serving = match port.protocol {
        Protocol::Udp => serving::serving(port, slices.clone()),
        Protocol::Tcp | Protocol::Sctp => Vec::new(),
    };
    let selection = select(port, slices.clone(), context.place(), uses);
    let cluster = if selection.cluster.is_empty() { Verdict::Discard } else { Verdict::Cluster };
    let local = if selection.local.is_empty() { Verdict::Discard } else { Verdict::Local };
    let (internal, outside, inside) = if !selection.any {
        (Verdict::Refuse, Verdict::Refuse, Verdict::Refuse)
    } else {
        let internal = if service.internal_local { local } else { cluster };
        (internal, if keeps_source { local } else { cluster }, cluster)
    };
    let served = |role: fn(&Role) -> bool| frontends.iter().any(|(_, of)| role(of));
    let externally = node_port.is_some() || served(|role| *role != Role::Cluster);
    let internally = served(|role| *role == Role::Cluster);
    let leads_to = |verdict: Verdict| {
        (internally && internal == verdict) || (externally && (outside == verdict || inside == verdict))
    };
    let scheduler = weigh::scheduler(service, context.scheduler, assessment.asks_for_weights());
    let weigh = |endpoints: Vec<SocketAddr>| -> Vec<Candidate> {
        if !assessment.is_weighted() {
            return endpoints.into_iter().map(Candidate::equal).collect();
        }
        let known = select::gather(port, slices.clone());
        let endpoints: Vec<weigh::Known<'_>> = endpoints.into_iter().map(|at| (at, known[&at])).collect();
        weigh::weigh(assessment, &endpoints, context.warming.unwrap_or(&Warming::default()), scheduler.deals_weights())
    };
    Some(ResolvedPort {
        key: service.port_key(port),
        family,
        internal,
        outside,
        inside,
        keeps_source,
        source_ranges: source_ranges.clone().filter(|_| served(|role| *role == Role::LoadBalancer)),
        cluster: if leads_to(Verdict::Cluster) { weigh(selection.cluster) } else { Vec::new() },
        local: if leads_to(Verdict::Local) { weigh(selection.local) } else { Vec::new() },
        serving,
        local_addresses: selection.local_addresses,
        scheduler,
        affinity: service.affinity,
        path: Path::of(service, port.protocol, context.settings),
        frontends,
        node_port,
    })
}

/// Whether a Service port means to be reached from outside, whatever becomes of it here.
fn is_external(service: &Service, port: &ServicePort, family: Family) -> bool {
    let of_family = |addresses: &[IpAddr]| addresses.iter().any(|address| Family::of(*address) == family);
    port.node_port.is_some() || of_family(&service.load_balancer_ips) || of_family(&service.external_ips)
}

/// Which sets its policies need.
fn uses(service: &Service, external: bool) -> Uses {
    let keeps_source = service.external_local && external;
    Uses { cluster: !service.internal_local || external, local: service.internal_local || keeps_source }
}

fn frontends(service: &Service, port: &ServicePort, family: Family, settings: &Settings) -> Vec<(Frontend, Role)> {
    let external: &[IpAddr] = if settings.ignore_external_ips { &[] } else { &service.external_ips };
    let roles = [
        (Role::Cluster, service.cluster_ips.as_slice()),
        (Role::LoadBalancer, &service.load_balancer_ips),
        (Role::External, external),
    ];
    let mut frontends: Vec<(Frontend, Role)> = Vec::new();
    for (role, addresses) in roles {
        for address in addresses.iter().filter(|address| Family::of(**address) == family) {
            let frontend = Frontend { address: *address, protocol: port.protocol, port: port.port };
            if frontends.iter().all(|(known, _)| *known != frontend) {
                frontends.push((frontend, role));
            }
        }
    }
    frontends
}

fn node_port(port: &ServicePort) -> Option<NodePort> {
    port.node_port.map(|number| NodePort { protocol: port.protocol, port: number })
}

/// Who may use the load balancer addresses of a family: nobody in particular if there is no range of the family, or one that
/// covers all of it. If a range covers our own address, connections that bear a load balancer address as source are let in too:
/// that is what the node's own look like where the address is bound to the node.
fn source_ranges(service: &Service, family: Family, context: Context<'_>) -> Option<Vec<AddressRange>> {
    let ranges: Vec<_> =
        service.source_ranges.iter().filter(|range| Family::of(range.addr()) == family).copied().collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let mut admitted: Vec<AddressRange> = ranges.into_iter().map(AddressRange::from).collect();
    let own = NodeAddresses::new(context.settings, context.node).known(family);
    if own.is_some_and(|own| admitted.iter().any(|range| range.contains(own))) {
        admitted.extend(service.load_balancer_ips.iter().copied().map(AddressRange::single));
    }
    Some(AddressRange::merged(family, admitted))
}

/// Whether decisions for a Service depend on our Node's addresses.
pub fn depends_on_node_addresses(service: &Service) -> bool {
    !service.source_ranges.is_empty()
}

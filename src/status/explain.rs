//! What becomes of a connection, and why: a walk through the same decisions that the kernel was given.
//!
//! A [`Question`] names a target and perhaps a client. The [`Explanation`] has an [`Answer`] for each frontend that this can mean. Everything in it
//! comes from [`Engine::look`] (who qualifies, and why the others do not), from who holds which frontend, and from the very elements that the
//! compiler wants in the kernel ([`Engine::elements`]); there is no second opinion on what should happen.
//!
//! What cannot be known here: which interface a packet comes in by. Where local pods are told by interfaces, a client counts as a pod if it is an
//! endpoint of this node, and else as somebody from outside.
//!
//! Proven by `tests.rs` beside this, a table of cases from the conformance rows, and by `tests/e2e/operator.rs` against a kernel.

mod question;
mod ruleset;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use question::{Question, Target};
pub use ruleset::{DifferenceView, StepView, VerificationView};

use super::{EndpointView, FrontendView, PortView, ServiceView, StandingView, VERSION, VerdictView, view};
use crate::compile::TableImage;
use crate::engine::Engine;
use crate::model::{AddressRange, Family, Protocol, ServiceKey};
use crate::policy::{
    Claim, Detector, Frontend, NodePort, Role, Surveyed, detector, localhost_node_port, node_port_ranges,
};

/// What becomes of connections to a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// [`super::VERSION`].
    pub version: String,
    /// What was asked for.
    pub target: String,
    /// The client, if one was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// One per frontend that the target can mean, one at least.
    pub answers: Vec<Answer>,
}

/// What becomes of connections to one frontend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Namespace, name and port of the Service that it belongs to; left out if it is nobody's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// `TCP`, `UDP` or `SCTP`; left out where nobody was found by any of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The frontend, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend: Option<FrontendView>,
    /// Who the client is taken for.
    pub client: Client,
    /// What becomes of the connection.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Why the source is hidden, or not; left out where the connection goes nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceReason>,
    /// What another client meets: this node and its pods, or somebody from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otherwise: Option<Otherwise>,
    /// Networks whose clients may use this frontend; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<String>,
    /// Who chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// How long a client stays with its endpoint, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// Whether the local set is chosen from, rather than that of the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Everybody behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<EndpointView>,
    /// What a packet meets in the ruleset, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ruleset: Vec<StepView>,
    /// What the kernel has, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<VerificationView>,
}

/// Who a client is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Client {
    /// The node itself.
    Node,
    /// A pod of this node.
    Pod,
    /// Anybody else.
    Outside,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The kernel sends it to an endpoint.
    Endpoint,
    /// The userspace forwarder takes it, and connects to an endpoint.
    Forwarder,
    /// It is rejected.
    Refused,
    /// It is dropped without a word.
    Dropped,
    /// It is left as it is: nothing here is about it.
    Untouched,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The policy allows all endpoints.
    ClusterPolicy,
    /// The policy asks for endpoints on this node, and there are some.
    LocalPolicy,
    /// The external policy is Local, but this node and its pods are spared it.
    ShortCircuit,
    /// No endpoint anywhere could serve.
    NoEndpoints,
    /// The policy asks for endpoints on this node, and all are elsewhere.
    NoLocalEndpoints,
    /// The client is in none of the source ranges.
    SourceRanges,
    /// Another Service has the frontend.
    HeldByOther,
    /// The address is a cluster address, with other ports or protocols only.
    NoSuchPort,
    /// The address is in a network for cluster addresses, and no Service has it.
    Unallocated,
    /// The port is a node port, but not on this address.
    NotANodePortAddress,
    /// No Service has this address and port.
    NoFrontend,
    /// There is no such Service, or not one that is served.
    NoService,
    /// The Service has no such port.
    NoPort,
    /// The Service port has no frontend, e.g. none of its addresses is usable.
    NothingServed,
}

/// Whether the source is hidden, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SourceReason {
    /// Hidden: all to cluster addresses is (`masqueradeAll`).
    HiddenByMasqueradeAll,
    /// Hidden: a client that is none of this node's pods uses a cluster address.
    HiddenOffCluster,
    /// Hidden: an external frontend with policy Cluster.
    HiddenByClusterPolicy,
    /// Hidden: the node's own connection to an external frontend.
    HiddenForNode,
    /// Hidden: the forwarder connects by itself.
    HiddenByForwarder,
    /// Kept: a cluster address. Hidden only from the client itself, should it be chosen.
    KeptInCluster,
    /// Kept: external policy Local.
    KeptByLocalPolicy,
}

/// What another client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Otherwise {
    /// Who.
    pub client: Client,
    /// What becomes of its connection.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
}

/// The elements that an answer stands for, by its index.
pub type Expected = Vec<(usize, Family, TableImage)>;

/// Answers a question. `addresses` are those of this host; with `verify`, what the kernel should have comes along.
pub fn explain(
    engine: &Engine,
    question: &Question,
    addresses: &BTreeSet<IpAddr>,
    verify: bool,
) -> (Explanation, Expected) {
    let walk = Walk { engine, question, addresses };
    let mut expected = Expected::new();
    let answers = match &question.target {
        Target::Address(address) => walk.address(*address),
        Target::NodePort(port) => walk.node_port(*port),
        Target::Service { key, port } => walk.service(key, port.as_deref()),
    };
    let answers = answers.into_iter().enumerate().map(|(index, (answer, image))| {
        expected.extend(image.filter(|_| verify).map(|(family, image)| (index, family, image)));
        answer
    });
    let explanation = Explanation {
        version: VERSION.to_owned(),
        target: question.target.to_string(),
        from: question.from,
        answers: answers.collect(),
    };
    (explanation, expected)
}

type Answered = (Answer, Option<(Family, TableImage)>);

struct Walk<'a> {
    engine: &'a Engine,
    question: &'a Question,
    addresses: &'a BTreeSet<IpAddr>,
}

// === impl Walk ===

impl Walk<'_> {
    fn protocols(&self) -> Vec<Protocol> {
        let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        all.into_iter().filter(|one| self.question.protocol.is_none_or(|asked| asked == *one)).collect()
    }

    fn address(&self, address: SocketAddr) -> Vec<Answered> {
        let claim = |protocol| Claim::Frontend(Frontend { address: address.ip(), protocol, port: address.port() });
        let found: Vec<_> = self.protocols().into_iter().filter_map(|one| self.claim(&claim(one))).collect();
        if !found.is_empty() {
            return found;
        }
        let family = Family::of(address.ip());
        let node_ports = self.node_port_of(address.port(), &[family]);
        let settings = self.engine.settings();
        let ranges = node_port_ranges(settings, self.engine.store().node(), family);
        let serves = ranges.iter().any(|range| range.contains(address.ip())) && self.addresses.contains(&address.ip());
        let by_forwarder = localhost_node_port(settings, family) == Some(address.ip());
        if !node_ports.is_empty() {
            if serves || by_forwarder {
                return node_ports;
            }
            if self.addresses.contains(&address.ip()) || address.ip().is_loopback() {
                return vec![self.nobody(Outcome::Untouched, Reason::NotANodePortAddress)];
            }
        }
        let is_cluster_address = self.engine.is_cluster_ip(address.ip());
        let networks = self.engine.store().service_networks().map(AddressRange::from).collect::<Vec<_>>();
        let (outcome, reason) = if self.addresses.contains(&address.ip()) {
            (Outcome::Untouched, Reason::NoFrontend)
        } else if is_cluster_address {
            (Outcome::Refused, Reason::NoSuchPort)
        } else if networks.iter().any(|network| network.contains(address.ip())) {
            (Outcome::Dropped, Reason::Unallocated)
        } else {
            (Outcome::Untouched, Reason::NoFrontend)
        };
        vec![self.nobody(outcome, reason)]
    }

    fn node_port(&self, port: u16) -> Vec<Answered> {
        let found = self.node_port_of(port, &Family::ALL);
        if found.is_empty() { vec![self.nobody(Outcome::Untouched, Reason::NoFrontend)] } else { found }
    }

    fn node_port_of(&self, port: u16, families: &[Family]) -> Vec<Answered> {
        // A client has one family.
        let fits = |family: &Family| self.question.from.is_none_or(|from| Family::of(from) == *family);
        let mut found = Vec::new();
        for family in families.iter().copied().filter(fits) {
            for protocol in self.protocols() {
                found.extend(self.claim(&Claim::NodePort(family, NodePort { protocol, port })));
            }
        }
        found
    }

    fn service(&self, key: &ServiceKey, port: Option<&str>) -> Vec<Answered> {
        let Some(seen) = self.engine.look(key) else { return vec![self.nobody(Outcome::Untouched, Reason::NoService)] };
        let wanted = |one: &&Surveyed<'_>| {
            self.question.protocol.is_none_or(|protocol| one.port.protocol == protocol)
                && port.is_none_or(|port| *one.port.name == *port || one.port.port.to_string() == port)
        };
        let ports: Vec<_> = seen.ports.iter().filter(wanted).collect();
        if ports.is_empty() {
            return vec![self.nobody(Outcome::Untouched, Reason::NoPort)];
        }
        let fits = |family| self.question.from.is_none_or(|from| Family::of(from) == family);
        let mut found = Vec::new();
        for one in ports.into_iter().filter(|one| fits(one.family)) {
            for (claim, _) in &one.claims {
                found.extend(self.about(key, claim));
            }
        }
        if found.is_empty() { vec![self.nobody(Outcome::Untouched, Reason::NothingServed)] } else { found }
    }

    /// What becomes of connections to something that a Service has.
    fn claim(&self, claim: &Claim) -> Option<Answered> {
        self.about(&self.engine.holder(claim)?.clone(), claim)
    }

    fn about(&self, key: &ServiceKey, claim: &Claim) -> Option<Answered> {
        let seen = self.engine.look(key)?;
        let (surveyed, role) = seen.ports.iter().find_map(|one| {
            let (_, role) = one.claims.iter().find(|(other, _)| other == claim)?;
            Some((one, *role))
        })?;
        let whole = view(self.engine, key, Instant::now(), Timestamp::now())?;
        let port = port_of(&whole, surveyed)?;
        let frontend = frontend_of(port, claim)?;
        let client = self.client(surveyed.family);
        let name = seen.service.port_key(surveyed.port).to_string();
        let base = Answer {
            service: Some(name),
            protocol: Some(surveyed.port.protocol.to_string()),
            frontend: Some(frontend.clone()),
            scheduler: Some(whole.scheduler.used.clone()),
            affinity_seconds: whole.session_affinity_seconds,
            endpoints: port.endpoints.clone(),
            ..self.nobody(Outcome::Untouched, Reason::HeldByOther).0
        };
        if frontend.held_by.is_some() {
            return Some((base, None));
        }
        let resolved = surveyed.resolved.as_ref()?;
        let ranges = resolved.source_ranges.as_deref().filter(|_| role == Role::LoadBalancer);
        let admitted = |from: IpAddr| ranges.is_none_or(|ranges| ranges.iter().any(|range| range.contains(from)));
        let decide = |client: Client| {
            let inside = client != Client::Outside;
            let verdict = match role {
                Role::Cluster => port.internal,
                _ if inside => port.inside,
                _ => port.outside,
            };
            let external = role != Role::Cluster;
            let keeps = external && resolved.keeps_source;
            let carried = if port.path.listeners.is_empty() { Outcome::Endpoint } else { Outcome::Forwarder };
            match verdict {
                Some(VerdictView::Refuse) | None => (Outcome::Refused, Reason::NoEndpoints, false),
                Some(VerdictView::Discard) => (Outcome::Dropped, Reason::NoLocalEndpoints, false),
                Some(VerdictView::Cluster) if keeps && inside => (carried, Reason::ShortCircuit, false),
                Some(VerdictView::Cluster) => (carried, Reason::ClusterPolicy, false),
                Some(VerdictView::Local) => (carried, Reason::LocalPolicy, true),
            }
        };
        let refused_by_range = self.question.from.is_some_and(|from| !admitted(from));
        let (outcome, reason, local) =
            if refused_by_range { (Outcome::Dropped, Reason::SourceRanges, false) } else { decide(client) };
        let others = if client == Client::Outside { Client::Pod } else { Client::Outside };
        let otherwise = decide(others);
        let differs = !refused_by_range && (otherwise.0, otherwise.1) != (outcome, reason);
        let goes = matches!(outcome, Outcome::Endpoint | Outcome::Forwarder);
        let image = self.engine.elements(&resolved.key, resolved.family);
        let answer = Answer {
            outcome,
            reason,
            local,
            client,
            source: goes.then(|| self.source(role, client, resolved.keeps_source, outcome, surveyed.family)),
            otherwise: differs.then_some(Otherwise { client: others, outcome: otherwise.0, reason: otherwise.1 }),
            source_ranges: if ranges.is_some() { whole.source_ranges.clone() } else { Vec::new() },
            ruleset: ruleset::steps(&image, claim, client, refused_by_range),
            ..base
        };
        Some((answer, Some((surveyed.family, image))))
    }

    fn client(&self, family: Family) -> Client {
        let Some(from) = self.question.from else { return Client::Outside };
        if from.is_loopback() || self.addresses.contains(&from) {
            return Client::Node;
        }
        let is_pod = match detector(self.engine.settings(), self.engine.store().node(), family) {
            Detector::None => false,
            Detector::Network(network) => network.contains(&from),
            Detector::Interface(_) | Detector::InterfacePrefix(_) => self.is_endpoint_here(from),
        };
        if is_pod { Client::Pod } else { Client::Outside }
    }

    fn is_endpoint_here(&self, address: IpAddr) -> bool {
        let store = self.engine.store();
        let mut slices = store.services().flat_map(|service| store.slices(&service.key));
        slices.any(|slice| {
            let mut endpoints = slice.endpoints.iter();
            endpoints.any(|one| one.address == address && one.node() == Some(self.engine.node_name()))
        })
    }

    /// As chain `sources` decides it.
    fn source(&self, role: Role, client: Client, keeps: bool, outcome: Outcome, family: Family) -> SourceReason {
        let settings = self.engine.settings();
        if outcome == Outcome::Forwarder {
            return SourceReason::HiddenByForwarder;
        }
        match role {
            Role::Cluster if settings.masquerade_all => SourceReason::HiddenByMasqueradeAll,
            Role::Cluster => {
                let told = detector(settings, self.engine.store().node(), family) != Detector::None;
                if told && client != Client::Pod { SourceReason::HiddenOffCluster } else { SourceReason::KeptInCluster }
            }
            _ if !keeps => SourceReason::HiddenByClusterPolicy,
            _ if client == Client::Node => SourceReason::HiddenForNode,
            _ => SourceReason::KeptByLocalPolicy,
        }
    }

    fn nobody(&self, outcome: Outcome, reason: Reason) -> Answered {
        let family = self.question.from.map_or(Family::V4, Family::of);
        let answer = Answer {
            service: None,
            protocol: self.question.protocol.map(|protocol| protocol.to_string()),
            frontend: None,
            client: self.client(family),
            outcome,
            reason,
            source: None,
            otherwise: None,
            source_ranges: Vec::new(),
            scheduler: None,
            affinity_seconds: None,
            local: false,
            endpoints: Vec::new(),
            ruleset: Vec::new(),
            verification: None,
        };
        (answer, None)
    }
}

fn port_of<'a>(whole: &'a ServiceView, surveyed: &Surveyed<'_>) -> Option<&'a PortView> {
    let (family, protocol) = (surveyed.family.to_string(), surveyed.port.protocol.to_string());
    let is = |one: &&PortView| *one.name == *surveyed.port.name && one.protocol == protocol && one.family == family;
    whole.ports.iter().find(is)
}

fn frontend_of<'a>(port: &'a PortView, claim: &Claim) -> Option<&'a FrontendView> {
    port.frontends.iter().find(|one| match claim {
        Claim::Frontend(frontend) => one.address == Some(frontend.address) && one.port == frontend.port,
        Claim::NodePort(_, node_port) => one.address.is_none() && one.port == node_port.port,
    })
}

// === impl Answer ===

impl Answer {
    /// Those who may get the connection.
    pub fn candidates(&self) -> impl Iterator<Item = &EndpointView> {
        let goes = matches!(self.outcome, Outcome::Endpoint | Outcome::Forwarder);
        self.endpoints.iter().filter(move |one| goes && self.standing(one) == StandingView::Chosen)
    }

    /// What an endpoint is to the set that is chosen from.
    pub fn standing(&self, one: &EndpointView) -> StandingView {
        if self.is_about_local() { one.local.standing } else { one.cluster.standing }
    }

    /// Its part of new connections, 0 to 1.
    pub fn share(&self, one: &EndpointView) -> f64 {
        if self.is_about_local() { one.local.share } else { one.cluster.share }
    }

    fn is_about_local(&self) -> bool {
        self.local || self.reason == Reason::NoLocalEndpoints
    }
}

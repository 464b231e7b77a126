//! Every frontend with its endpoints, in the short form that lists of a whole cluster can afford.
//!
//! What `ipvsadm -ln` shows: virtual services and their real servers. An endpoint that gets nothing because it weighs 0 or drains is
//! shown with weight 0, as IPVS does; one that is not ready, or is for others, is not shown.
//!
//! The controller makes a [`ListedFrontend`], which holds no text and, of Services whose endpoints are all alike, takes no survey
//! ([`Engine::look_briefly`]); who asked makes a [`VirtualView`] or rows of it elsewhere.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Sums;
use super::rows::{self, EndpointRows};
use crate::engine::{Engine, Seen};
use crate::model::{Family, PortKey, Protocol, Service, ServiceKey};
use crate::policy::{Claim, Frontend, NodePort, ResolvedPort, Role, Standing, Surveyed, SurveyedEndpoint, Verdict};
use crate::schedule::{Exact, Scheduler};

/// All frontends that were asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualList {
    /// [`super::VERSION`].
    pub version: String,
    /// By namespace, name and port of the Service.
    pub services: Vec<VirtualView>,
}

/// A frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualView {
    /// Namespace and name of the Service, and the port's name if it has one: `shop/web:http`.
    pub service: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Its address; that of a node port is unspecified.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether it is a port of the node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_port: bool,
    /// Who chooses.
    pub scheduler: String,
    /// Seconds of session affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<u32>,
    /// `refuse` or `discard` where nobody answers; left out otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Those who answer.
    pub endpoints: Vec<DestinationView>,
}

/// An endpoint behind a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationView {
    /// Where it is.
    pub address: SocketAddr,
    /// What it weighs; 0: only connections that it has.
    pub weight: u16,
    /// Whether that was said by hand.
    #[serde(default, skip_serializing_if = "std::ops::Not::not", rename = "byHand")]
    pub by_hand: bool,
}

/// A frontend as the controller hands it over: nothing is written out yet.
#[derive(Clone, Debug)]
pub struct ListedFrontend {
    /// The Service port.
    key: PortKey,
    claim: Claim,
    scheduler: Chooser,
    persistent: Option<u32>,
    verdict: Verdict,
    endpoints: Vec<DestinationView>,
}

/// Who chooses among endpoints.
#[derive(Clone, Copy, Debug)]
enum Chooser {
    Kernel(Scheduler),
    Forwarder(Exact),
}

/// All frontends of a Service.
pub fn list(engine: &Engine, key: &ServiceKey) -> Vec<ListedFrontend> {
    briefly(engine, key).unwrap_or_else(|| thoroughly(engine, key))
}

/// Without a survey, where nothing makes endpoints differ.
pub(crate) fn briefly(engine: &Engine, key: &ServiceKey) -> Option<Vec<ListedFrontend>> {
    let (service, ports) = engine.look_briefly(key)?;
    let mut listed = Vec::new();
    for port in &ports {
        let frontends = port.frontends.iter().map(|(frontend, role)| (Claim::Frontend(*frontend), *role));
        let node_port = port.node_port.map(|node_port| (Claim::NodePort(port.family, node_port), Role::External));
        let whom = |verdict| alike(port, verdict);
        listed.extend(frontends.chain(node_port).map(|asked| ListedFrontend::new(service, port, asked, whom)));
    }
    Some(listed)
}

/// By what a survey says of each endpoint.
pub(crate) fn thoroughly(engine: &Engine, key: &ServiceKey) -> Vec<ListedFrontend> {
    let mut listed = Vec::new();
    let Some(seen) = engine.look(key) else { return listed };
    for port in &seen.ports {
        let Some(resolved) = &port.resolved else { continue };
        let whom = |verdict| destinations(&seen, port, verdict);
        let held = port.claims.iter().filter(|(claim, _)| engine.holder(claim) == Some(key));
        listed.extend(held.map(|asked| ListedFrontend::new(seen.service, resolved, *asked, whom)));
    }
    listed
}

fn verdict(port: &ResolvedPort, role: Role) -> Verdict {
    if role == Role::Cluster { port.internal } else { port.outside }
}

/// Whom a verdict leads to where nothing makes endpoints differ.
fn alike(port: &ResolvedPort, verdict: Verdict) -> Vec<DestinationView> {
    let chosen = match verdict {
        Verdict::Cluster => &port.cluster[..],
        Verdict::Local => &port.local,
        Verdict::Refuse | Verdict::Discard => &[],
    };
    chosen.iter().map(|one| DestinationView { address: one.endpoint, weight: 1, by_hand: false }).collect()
}

fn destinations(seen: &Seen<'_>, port: &Surveyed<'_>, verdict: Verdict) -> Vec<DestinationView> {
    let standing = |one: &SurveyedEndpoint<'_>| match verdict {
        Verdict::Cluster => Some(one.cluster),
        Verdict::Local => Some(one.local),
        Verdict::Refuse | Verdict::Discard => None,
    };
    let shown = port.endpoints.iter().filter_map(|one| {
        let weight = match standing(one)? {
            // If all of them weigh 0, all of them are used alike.
            Standing::Chosen(_) => one.weight.max(1),
            Standing::Drained | Standing::NoShare | Standing::Leaving => 0,
            _ => return None,
        };
        let by_hand = seen.overrides.iter().any(|said| said.subject.is(one.address, one.endpoint));
        Some(DestinationView { address: one.address, weight, by_hand })
    });
    shown.collect()
}

// === impl ListedFrontend ===

impl ListedFrontend {
    fn new(
        service: &Service,
        port: &ResolvedPort,
        (claim, role): (Claim, Role),
        whom: impl Fn(Verdict) -> Vec<DestinationView>,
    ) -> Self {
        let exact = service.exact.filter(|_| port.path.reason().is_some());
        let verdict = verdict(port, role);
        Self {
            key: port.key.clone(),
            claim,
            scheduler: exact.map_or(Chooser::Kernel(port.scheduler), Chooser::Forwarder),
            persistent: port.affinity.map(|affinity| affinity.seconds),
            verdict,
            endpoints: whom(verdict),
        }
    }

    fn frontend(&self) -> SocketAddr {
        match self.claim {
            Claim::Frontend(frontend) => SocketAddr::new(frontend.address, frontend.port),
            Claim::NodePort(family, node_port) => SocketAddr::new(family.unspecified(), node_port.port),
        }
    }

    fn is_node_port(&self) -> bool {
        matches!(self.claim, Claim::NodePort(..))
    }

    fn refusal(&self) -> Option<&'static str> {
        match self.verdict {
            Verdict::Refuse => Some("refuse"),
            Verdict::Discard => Some("discard"),
            Verdict::Cluster | Verdict::Local => None,
        }
    }

    /// For lists that tell everything.
    pub fn into_view(self) -> VirtualView {
        let frontend = self.frontend();
        VirtualView {
            service: self.key.to_string(),
            protocol: self.key.protocol.to_string(),
            address: frontend.ip(),
            port: frontend.port(),
            node_port: self.is_node_port(),
            scheduler: self.scheduler.to_string(),
            persistent: self.persistent,
            verdict: self.refusal().map(str::to_owned),
            endpoints: self.endpoints,
        }
    }

    /// As rows, with connections. `crossed`: frontends whose port is a node port, too ([`crossed`]).
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(
        &self,
        out: &mut impl Write,
        rows: &mut EndpointRows,
        census: &Sums,
        crossed: &[(Protocol, SocketAddr)],
    ) -> io::Result<()> {
        let (protocol, frontend) = (self.key.protocol, self.frontend());
        let count = |at: SocketAddr| {
            if !self.is_node_port() {
                let counters = census.pair(protocol, frontend, at);
                return (counters.active, counters.inactive);
            }
            let all = census.by_port(protocol, frontend.port(), at);
            let others = crossed.iter().filter(|(of, other)| *of == protocol && other.port() == frontend.port());
            others.fold((all.active, all.inactive), |(active, inactive), (_, other)| {
                let theirs = census.pair(protocol, *other, at);
                (active.saturating_sub(theirs.active), inactive.saturating_sub(theirs.inactive))
            })
        };
        let scheduler = self.scheduler.to_string();
        rows::frontend(out, &protocol.to_string(), frontend, &scheduler, self.persistent, self.refusal())?;
        for one in &self.endpoints {
            let (active, inactive) = if census.is_empty() { (0, 0) } else { count(one.address) };
            rows.write(out, one.address, (one.weight, active, inactive))?;
        }
        Ok(())
    }
}

/// Of these destinations those that are a frontend's own, though their port is a node port, too: connections there are not the node port's.
pub fn crossed(engine: &Engine, destinations: &[(Protocol, SocketAddr)]) -> Vec<(Protocol, SocketAddr)> {
    let is_crossed = |(protocol, to): &&(Protocol, SocketAddr)| {
        let (protocol, port) = (*protocol, to.port());
        let node_port = Claim::NodePort(Family::of(to.ip()), NodePort { protocol, port });
        let frontend = Claim::Frontend(Frontend { address: to.ip(), protocol, port });
        engine.holder(&node_port).is_some() && engine.holder(&frontend).is_some()
    };
    destinations.iter().filter(is_crossed).copied().collect()
}

impl fmt::Display for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chooser::Kernel(scheduler) => scheduler.fmt(f),
            Chooser::Forwarder(exact) => exact.fmt(f),
        }
    }
}

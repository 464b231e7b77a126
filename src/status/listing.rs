//! Every frontend with its endpoints, in the short form that lists of a whole cluster can afford.
//!
//! What `ipvsadm -ln` shows: virtual services and their real servers. An endpoint that gets nothing because it weighs 0 or drains is
//! shown with weight 0, as IPVS does; one that is not ready, or is for others, is not shown.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::engine::{Engine, Seen};
use crate::model::ServiceKey;
use crate::policy::{Claim, ResolvedPort, Role, Standing, Surveyed, SurveyedEndpoint, Verdict};

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

/// All frontends of a Service.
pub fn list(engine: &Engine, key: &ServiceKey) -> Vec<VirtualView> {
    let Some(seen) = engine.look(key) else { return Vec::new() };
    let mut listed = Vec::new();
    for port in &seen.ports {
        let Some(resolved) = &port.resolved else { continue };
        let scheduler = seen.service.exact.filter(|_| resolved.path.reason().is_some());
        let scheduler = scheduler.map_or_else(|| resolved.scheduler.to_string(), |exact| exact.to_string());
        for (claim, role) in port.claims.iter().filter(|(claim, _)| engine.holder(claim) == Some(key)) {
            let (address, number) = match claim {
                Claim::Frontend(frontend) => (frontend.address, frontend.port),
                Claim::NodePort(family, node_port) => (family.unspecified(), node_port.port),
            };
            let verdict = verdict(resolved, *role);
            listed.push(VirtualView {
                service: resolved.key.to_string(),
                protocol: resolved.key.protocol.to_string(),
                address,
                port: number,
                node_port: matches!(claim, Claim::NodePort(..)),
                scheduler: scheduler.clone(),
                persistent: resolved.affinity.map(|affinity| affinity.seconds),
                verdict: match verdict {
                    Verdict::Refuse => Some("refuse".to_owned()),
                    Verdict::Discard => Some("discard".to_owned()),
                    Verdict::Cluster | Verdict::Local => None,
                },
                endpoints: destinations(&seen, port, verdict),
            });
        }
    }
    listed
}

fn verdict(port: &ResolvedPort, role: Role) -> Verdict {
    if role == Role::Cluster { port.internal } else { port.outside }
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

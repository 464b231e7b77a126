//! Whose connections are counted, and what changes about that.
//!
//! Only Service ports whose scheduler goes by counts are in here ([`crate::schedule::live`]); a Service without one costs a look at
//! its ports.

use std::net::SocketAddr;

use super::flow::Destination;
use crate::compile::Ring;
use crate::model::map::HashMap;
use crate::model::{Family, PortKey, Protocol, ServiceKey};
use crate::policy::ResolvedPort;
use crate::schedule::Candidate;
use crate::schedule::live::Rule;

/// A Service port in one family: its connections are counted together, whichever frontend they came by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Which Service port.
    pub port: PortKey,
    /// Which family.
    pub family: Family,
}

/// What is counted for a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Where clients send to.
    pub destinations: Vec<Destination>,
    /// Who may be picked, sorted by endpoint and without duplicates.
    pub candidates: Vec<Candidate>,
    /// What the counts are for.
    pub rule: Rule,
    /// What is dealt by them.
    pub rings: Vec<Ring>,
}

/// News about subjects, in the order in which they happened; `None` ends an interest.
pub type Interests = Vec<(Subject, Option<Interest>)>;

/// Remembers what is counted. Owned by the task that owns the model.
#[derive(Debug, Default)]
pub struct WatchBook {
    services: HashMap<ServiceKey, Vec<(Subject, Interest)>>,
    changed: Interests,
}

// === impl Subject ===

impl Subject {
    /// The transport protocol of its connections.
    pub fn protocol(&self) -> Protocol {
        self.port.protocol
    }
}

// === impl WatchBook ===

impl WatchBook {
    /// Takes the new decisions for all ports of a Service; none: the Service is gone.
    /// `rings` knows what they were compiled to.
    pub fn update(&mut self, service: &ServiceKey, resolved: &[ResolvedPort], rings: impl Fn(&Subject) -> Vec<Ring>) {
        let now: Vec<_> = resolved.iter().filter_map(|port| interest(port, &rings)).collect();
        let before = if now.is_empty() {
            self.services.remove(service)
        } else {
            self.services.insert(service.clone(), now.clone())
        };
        let before = before.unwrap_or_default();
        for (subject, _) in before.iter().filter(|(subject, _)| now.iter().all(|(other, _)| other != subject)) {
            self.changed.push((subject.clone(), None));
        }
        for entry in now.into_iter().filter(|entry| !before.contains(entry)) {
            self.changed.push((entry.0, Some(entry.1)));
        }
    }

    /// What changed since the last call.
    pub fn take_changed(&mut self) -> Interests {
        std::mem::take(&mut self.changed)
    }
}

/// What is counted for a Service port, if anything.
fn interest(port: &ResolvedPort, rings: impl Fn(&Subject) -> Vec<Ring>) -> Option<(Subject, Interest)> {
    let rule = port.scheduler.live()?;
    let addresses = port.frontends.iter().map(|(frontend, _)| SocketAddr::new(frontend.address, frontend.port));
    let node_port = port.node_port.map(|node_port| Destination::NodePort(port.family, node_port.port));
    let destinations = addresses.map(Destination::Address).chain(node_port).collect();
    let mut candidates = [port.cluster.as_slice(), &port.local].concat();
    candidates.sort();
    candidates.dedup_by_key(|candidate| candidate.endpoint);
    let subject = Subject { port: port.key.clone(), family: port.family };
    let rings = rings(&subject);
    Some((subject, Interest { destinations, candidates, rule, rings }))
}

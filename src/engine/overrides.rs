//! What was said by hand about endpoints on this node: who is drained, who weighs something else, and until when.
//!
//! An order names an endpoint ([`Who`]) and perhaps a Service. It is worked out once, when it comes, for each Service that the endpoint is behind, into
//! [`Override`]s, which are inputs of the decision like everything else. Each ends at its time, through the same deadlines as slow start and
//! drains; what is placed or taken back is a deadline that has come, so it is programmed even while changes are held back.
//!
//! A Service that goes, or an endpoint, takes nothing along: if it comes back before the time is over, what was said holds again.
//!
//! Invariants: no clock; a Service about which nothing was said costs nothing; whatever happened meanwhile, what is desired is what a fresh engine
//! would desire that was told the same, and after the last end what one would that was told nothing. Proven by `engine/override_tests.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::SignedDuration;

use super::Engine;
use super::drains::destinations;
use crate::conntrack::Cut;
use crate::model::{Endpoint, Family, ServiceKey, Slice, parse_address, plain};
use crate::policy::{Override, ResolvedPort, Subject};

/// Overrides that stand at a time, at most: they are few, said by people.
pub const MOST_OVERRIDES: usize = 1_000;

/// An endpoint as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// By its address, on all of its ports.
    Address(IpAddr),
    /// By its address and port.
    Port(SocketAddr),
    /// By its pod's name.
    Pod {
        /// The namespace, if it was said.
        namespace: Option<String>,
        /// The name.
        name: String,
    },
}

/// A Service as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceName {
    /// The namespace, if it was said.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

/// What is to become of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Who.
    pub who: Who,
    /// Behind which Service; `None`: all of them.
    pub service: Option<ServiceName>,
    /// What it shall weigh; 0: no new connections.
    pub weight: u16,
    /// For how long.
    pub lasts: Duration,
    /// Whether the connections that it has are ended.
    pub cut: bool,
}

/// Why an order cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Nobody is meant.
    #[error("{} is behind no Service here{}", plain(who), within(service))]
    Nobody {
        /// Who was asked for.
        who: String,
        /// Behind which Service.
        service: Option<String>,
    },
    /// There is no such Service.
    #[error("no Service {} is served here", plain(.0))]
    NoService(String),
    /// More than one pod is meant.
    #[error("{} is in several namespaces: say NAMESPACE/POD or NAMESPACE/SERVICE: {}", plain(who), plain(namespaces))]
    Ambiguous {
        /// Who was asked for.
        who: String,
        /// Some of the namespaces.
        namespaces: String,
    },
    /// There is nothing to be taken back.
    #[error("nothing was said by hand about {}{}", plain(who), within(service))]
    Nothing {
        /// Who was asked for.
        who: String,
        /// Behind which Service.
        service: Option<String>,
    },
    /// There are too many.
    #[error("no more than {MOST_OVERRIDES} endpoints can be drained or weighted by hand at a time")]
    TooMany,
}

fn within(service: &Option<String>) -> String {
    service.as_deref().map(|service| format!(" as far as Service {} goes", plain(service))).unwrap_or_default()
}

/// What was said, by Service.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    services: BTreeMap<ServiceKey, Vec<Override>>,
    /// Whose connections are to be ended with the next decision.
    cuts: BTreeMap<ServiceKey, Vec<Subject>>,
    /// What became of them, in words, for who asks.
    notes: Vec<String>,
}

/// Connections of endpoints that are to be ended, where no new ones go to them.
pub(super) fn cuts<'a>(
    subjects: &[Subject],
    slices: impl Iterator<Item = &'a Slice> + Clone,
    resolved: &[ResolvedPort],
) -> Vec<Cut> {
    let mut cuts = Vec::new();
    for port in resolved.iter().filter(|_| !subjects.is_empty()) {
        let used = |at: &SocketAddr| port.cluster.iter().chain(&port.local).any(|one| one.endpoint == *at);
        let slices = slices.clone().filter(|slice| slice.family == port.family);
        let meant = slices.flat_map(|slice| {
            let named =
                move |one: &&crate::model::SlicePort| one.name == port.key.name && one.protocol == port.key.protocol;
            let targets = slice.ports.iter().filter(named);
            targets
                .flat_map(|target| slice.endpoints.iter().map(|one| (SocketAddr::new(one.address, target.port), one)))
        });
        let meant = meant.filter(|(at, endpoint)| subjects.iter().any(|subject| subject.is(*at, endpoint)));
        let endpoints: BTreeSet<SocketAddr> = meant.map(|(at, _)| at).filter(|at| !used(at)).collect();
        if !endpoints.is_empty() {
            cuts.push(Cut {
                protocol: port.key.protocol,
                family: port.family,
                destinations: destinations(port).into_iter().collect(),
                endpoints,
                node_port_ranges: Arc::default(),
            });
        }
    }
    cuts
}

/// `1h 30m`.
fn span(time: Duration) -> String {
    let rounded = Duration::from_secs(time.as_secs_f64().round() as u64);
    SignedDuration::try_from(rounded).map_or_else(|_| format!("{rounded:?}"), |time| format!("{time:#}"))
}

// === impl Who ===

impl Who {
    /// `10.1.0.7`, `10.1.0.7:8080`, `[fd00::7]:8080`, `web-1` or `shop/web-1`.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some(address) = parse_address(text) {
            return Some(Self::Address(address));
        }
        if let Ok(at) = text.parse() {
            return Some(Self::Port(at));
        }
        let ServiceName { namespace, name } = ServiceName::parse(text)?;
        Some(Self::Pod { namespace, name })
    }

    /// Who is meant by this of an endpoint.
    fn subject(&self, key: &ServiceKey, at: SocketAddr, endpoint: &Endpoint) -> Option<Subject> {
        let pod = || endpoint.pod.as_deref().map(Into::into);
        match self {
            Who::Address(address) if *address == endpoint.address => {
                Some(Subject::Address { address: *address, port: None, pod: pod() })
            }
            Who::Port(asked) if *asked == at => {
                Some(Subject::Address { address: at.ip(), port: Some(at.port()), pod: pod() })
            }
            Who::Pod { namespace, name } => {
                let here = namespace.as_deref().is_none_or(|namespace| *namespace == *key.namespace);
                pod().filter(|pod| here && **pod == **name).map(Subject::Pod)
            }
            _ => None,
        }
    }

    /// Whether it names this subject, whoever is there now.
    fn names(&self, key: &ServiceKey, subject: &Subject) -> bool {
        match (self, subject) {
            (Who::Address(asked), Subject::Address { address, .. }) => asked == address,
            (Who::Port(asked), Subject::Address { address, port, .. }) => {
                asked.ip() == *address && port.is_none_or(|port| port == asked.port())
            }
            (Who::Pod { namespace, name }, Subject::Pod(pod) | Subject::Address { pod: Some(pod), .. }) => {
                namespace.as_deref().is_none_or(|namespace| *namespace == *key.namespace) && **pod == **name
            }
            _ => false,
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Address(address) => address.fmt(f),
            Who::Port(at) => at.fmt(f),
            Who::Pod { namespace: Some(namespace), name } => write!(f, "pod {namespace}/{name}"),
            Who::Pod { namespace: None, name } => write!(f, "pod {name}"),
        }
    }
}

// === impl ServiceName ===

impl ServiceName {
    /// `web` or `shop/web`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let said = namespace != Some("") && !name.is_empty() && !name.contains(['/', ':']);
        said.then(|| Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }

    fn names(&self, key: &ServiceKey) -> bool {
        *self.name == *key.name && self.namespace.as_deref().is_none_or(|namespace| *namespace == *key.namespace)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

// === impl Overrides ===

impl Overrides {
    /// What was said about the endpoints of a Service, and is in force as of its last decision.
    pub(super) fn of(&self, key: &ServiceKey) -> &[Override] {
        self.services.get(key).map_or(&[], Vec::as_slice)
    }

    /// When the next one of a Service ends.
    pub(super) fn next(&self, key: &ServiceKey) -> Option<Instant> {
        self.of(key).iter().map(|one| one.until).min()
    }

    /// Takes away what has ended.
    pub(super) fn expire(&mut self, key: &ServiceKey, now: Option<Instant>) {
        let (Some(now), Some(known)) = (now, self.services.get_mut(key)) else { return };
        for ended in known.extract_if(.., |one| one.until <= now) {
            let what = if ended.is_drain() { "is drained by hand no longer" } else { "has its own weight again" };
            self.notes.push(format!("{}: {} {what}: its time is over", plain(&key.to_string()), ended.subject));
        }
        if known.is_empty() {
            self.services.remove(key);
        }
    }

    pub(super) fn take_cuts(&mut self, key: &ServiceKey) -> Vec<Subject> {
        self.cuts.remove(key).unwrap_or_default()
    }

    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn len(&self) -> usize {
        self.services.values().map(Vec::len).sum()
    }

    /// In the place of what was said about the same subject.
    fn place(&mut self, key: &ServiceKey, one: Override) {
        let known = self.services.entry(key.clone()).or_default();
        known.retain(|known| known.subject != one.subject);
        known.push(one);
    }
}

// === impl Engine ===

impl Engine {
    /// Carries an order out, as far as a decision goes that is due at once ([`Engine::next_deadline`]); says for which Services and subjects.
    ///
    /// # Errors
    /// Nobody is meant, or more than one pod, or there are too many; nothing is changed then.
    pub fn place_override(&mut self, order: &Order, now: Instant) -> Result<Vec<(ServiceKey, Subject)>, OrderError> {
        let Order { who, service, weight, lasts, cut } = order;
        let named = |key: &ServiceKey| service.as_ref().is_none_or(|service| service.names(key));
        let (mut found, mut any) = (BTreeSet::new(), false);
        for known in self.store.services().filter(|known| named(&known.key)) {
            any = true;
            for (at, endpoint) in self.store.slices(&known.key).flat_map(listed) {
                found.extend(who.subject(&known.key, at, endpoint).map(|subject| (known.key.clone(), subject)));
            }
        }
        let service = || service.as_ref().map(ToString::to_string);
        if let (false, Some(service)) = (any, service()) {
            return Err(OrderError::NoService(service));
        }
        let namespaces: BTreeSet<_> = found.iter().map(|(key, _)| &*key.namespace).collect();
        if found.is_empty() {
            return Err(OrderError::Nobody { who: who.to_string(), service: service() });
        }
        if matches!(who, Who::Pod { .. }) && namespaces.len() > 1 {
            let some: Vec<_> = namespaces.into_iter().take(4).collect();
            return Err(OrderError::Ambiguous { who: who.to_string(), namespaces: some.join(", ") });
        }
        let is_new = |(key, subject): &&(ServiceKey, Subject)| {
            self.overrides.of(key).iter().all(|known| known.subject != *subject)
        };
        if self.overrides.len() + found.iter().filter(is_new).count() > MOST_OVERRIDES {
            return Err(OrderError::TooMany);
        }
        for (key, subject) in &found {
            let one = Override { subject: subject.clone(), weight: *weight, since: now, until: now + *lasts };
            let what = if one.is_drain() { "drained".to_owned() } else { format!("given weight {weight}") };
            let cuts = if *cut { ", its connections ended" } else { "" };
            let text = format!("{}: {subject} {what} by hand for {}{cuts}", plain(&key.to_string()), span(*lasts));
            self.overrides.notes.push(text);
            self.overrides.place(key, one);
            if *cut {
                self.overrides.cuts.entry(key.clone()).or_default().push(subject.clone());
            }
            self.deadlines.set(key, Some(now));
        }
        Ok(found.into_iter().collect())
    }

    /// Takes back what was said about an endpoint, or about all of them, behind one Service or all; says what that was.
    ///
    /// # Errors
    /// Nothing was said.
    pub fn lift_overrides(
        &mut self,
        who: Option<&Who>,
        service: Option<&ServiceName>,
        now: Instant,
    ) -> Result<Vec<(ServiceKey, Subject)>, OrderError> {
        let mut lifted = Vec::new();
        let Self { overrides, store, deadlines, .. } = self;
        let named = |key: &&ServiceKey| service.is_none_or(|service| service.names(key));
        let keys: Vec<_> = overrides.services.keys().filter(named).cloned().collect();
        for key in keys {
            let is_behind = |who: &Who, subject: &Subject| {
                let mut endpoints = store.slices(&key).flat_map(listed);
                endpoints.any(|(at, one)| subject.is(at, one) && who.subject(&key, at, one).is_some())
            };
            let is_meant = |one: &mut Override| {
                who.is_none_or(|who| who.names(&key, &one.subject) || is_behind(who, &one.subject))
            };
            let Some(known) = overrides.services.get_mut(&key) else { continue };
            for one in known.extract_if(.., is_meant) {
                let what = if one.is_drain() { "is drained no longer" } else { "has its own weight again" };
                overrides.notes.push(format!(
                    "{}: {} {what}: taken back by hand",
                    plain(&key.to_string()),
                    one.subject
                ));
                lifted.push((key.clone(), one.subject));
            }
            if known.is_empty() {
                overrides.services.remove(&key);
            }
            deadlines.set(&key, Some(now));
        }
        if lifted.is_empty() {
            let who = who.map_or_else(|| "any endpoint".to_owned(), ToString::to_string);
            return Err(OrderError::Nothing { who, service: service.map(ToString::to_string) });
        }
        Ok(lifted)
    }

    /// What a predecessor was told by hand; before the first compilation. What has ended meanwhile is told and has no effect.
    pub fn restore_override(&mut self, key: &ServiceKey, one: Override) {
        if self.overrides.len() < MOST_OVERRIDES {
            self.overrides.place(key, one);
            // Also if there is no such Service any more, it ends in time.
            self.deadlines.set(key, self.overrides.next(key));
        }
    }

    /// All that was said by hand and is in force.
    pub fn overrides(&self) -> impl Iterator<Item = (&ServiceKey, &Override)> {
        self.overrides.services.iter().flat_map(|(key, all)| all.iter().map(move |one| (key, one)))
    }

    /// What was said by hand about a Service's endpoints.
    pub fn overrides_of(&self, key: &ServiceKey) -> &[Override] {
        self.overrides.of(key)
    }
}

/// The endpoints in a slice, on each of its ports.
fn listed(slice: &Slice) -> impl Iterator<Item = (SocketAddr, &Endpoint)> {
    debug_assert!(slice.endpoints.iter().all(|one| Family::of(one.address) == slice.family));
    let ports = slice.ports.iter();
    ports.flat_map(|port| slice.endpoints.iter().map(|one| (SocketAddr::new(one.address, port.port), one)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_as_people_name_them() {
        let pod = |namespace: Option<&str>, name: &str| {
            Some(Who::Pod { namespace: namespace.map(str::to_owned), name: name.to_owned() })
        };
        let address = |text: &str| text.parse().map(Who::Address).ok();
        let port = |text: &str| text.parse().map(Who::Port).ok();
        for (text, want) in [
            ("10.1.0.7", address("10.1.0.7")),
            (" fd00::7 ", address("fd00::7")),
            ("10.1.0.7:8080", port("10.1.0.7:8080")),
            ("[fd00::7]:8080", port("[fd00::7]:8080")),
            ("web-1", pod(None, "web-1")),
            ("shop/web-1", pod(Some("shop"), "web-1")),
            ("", None),
            ("/web-1", None),
            ("shop/", None),
            ("a/b/c", None),
            ("10.1.0.7:80800", None),
            ("web-1:80", None),
        ] {
            assert_eq!(Who::parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn times_as_people_say_them() {
        let said: Vec<_> = [1, 90, 3600, 5400].map(|seconds| span(Duration::from_secs(seconds))).into();
        assert_eq!(said, ["1s", "1m 30s", "1h", "1h 30m"]);
    }
}

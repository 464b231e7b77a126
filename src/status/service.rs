//! One Service from all sides.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{ByHandView, Counters};
use crate::engine::{Engine, Leaving, Seen};
use crate::model::{Family, Problem, Protocol, ServiceKey, ServiceKind};
use crate::policy::{Claim, Path, Role, Standing, Surveyed, SurveyedEndpoint, Topology, Verdict};

/// A page of Services, in the order of namespaces and names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePage {
    /// [`super::VERSION`].
    pub version: String,
    /// How many Services there are that were asked for, on all pages.
    pub total: usize,
    /// Which page this is, from 1.
    pub page: usize,
    /// How many there are, 1 or more.
    pub pages: usize,
    /// The Services.
    pub services: Vec<ServiceView>,
}

/// A Service that is served here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.type`.
    #[serde(rename = "type")]
    pub kind: ServiceKind,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// `Cluster` or `Local`.
    pub external_traffic_policy: String,
    /// How long a client stays with its endpoint, in seconds; left out without session affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_affinity_seconds: Option<u32>,
    /// Who chooses.
    pub scheduler: SchedulerView,
    /// Networks whose clients may use load balancer addresses; empty: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_ranges: Vec<String>,
    /// Where load balancers ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// The window of slow start, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start_seconds: Option<f64>,
    /// The drain time, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<f64>,
    /// When its data plane last changed; the first load counts as one. Left out before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_change: Option<Timestamp>,
    /// What is wrong with it, or with its slices, now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemView>,
    /// Its ports, each in each of its families.
    pub ports: Vec<PortView>,
}

/// Who chooses endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulerView {
    /// What the Service asks for; left out if that is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
    /// What it has.
    pub used: String,
}

/// Something wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemView {
    /// Kind, namespace and name of the object.
    pub object: String,
    /// The field.
    pub field: String,
    /// Its value.
    pub value: String,
    /// What is wrong, and what happens instead.
    pub reason: String,
}

/// A Service port in one family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortView {
    /// Its name; empty for the unnamed port.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// Its number on the frontends.
    pub port: u16,
    /// Where clients connect to.
    pub frontends: Vec<FrontendView>,
    /// Connections to the cluster address; left out where no frontend is this Service's, as the two that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<VerdictView>,
    /// Connections to other frontends, from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<VerdictView>,
    /// Connections to other frontends, from this node and its pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<VerdictView>,
    /// Who carries its connections.
    pub path: PathView,
    /// What came of topology hints: `anywhere`, `zone` or `node`.
    pub topology: String,
    /// Everybody behind it, also those who get nothing.
    pub endpoints: Vec<EndpointView>,
}

/// What clients connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendView {
    /// Its address; left out for a node port, which is on every address that serves them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// `cluster`, `loadBalancer`, `external` or `nodePort`.
    pub role: String,
    /// The other Service that has it; left out where it is this one's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
}

/// What comes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VerdictView {
    /// Rejected: nobody anywhere could serve.
    Refuse,
    /// Dropped: somebody could, but not here.
    Discard,
    /// An endpoint of the cluster set.
    Cluster,
    /// An endpoint of the local set.
    Local,
}

/// Who carries connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CarrierView {
    /// The kernel alone.
    Kernel,
    /// The userspace forwarder.
    Userspace,
}

/// Who carries connections, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathView {
    /// Who is to.
    pub carrier: CarrierView,
    /// Why not the kernel: `proxy_protocol`, `scheduler`, `annotation` or `mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where the forwarder listens for it. While it should and does not, the kernel carries what it can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<SocketAddr>,
    /// Connections to those listeners, if they were asked for: all together, those that are counted for an endpoint, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Counters>,
}

/// Somebody behind a port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointView {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Whether it is on this node.
    pub here: bool,
    /// What its slice says.
    pub ready: bool,
    /// What its slice says.
    pub serving: bool,
    /// What its slice says.
    pub terminating: bool,
    /// Whether it is in no slice any more and only drains.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// What it weighs: 0..65535; what was said by hand or, if that is nothing, by annotations; 1 if nobody says anything.
    pub weight: u16,
    /// What was said by hand, on this node and for a while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<ByHandView>,
    /// In slow start: the per cent of its weight that it has, 1..99.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start_percent: Option<u32>,
    /// Since when it drains, of Services with a drain time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining_since: Option<Timestamp>,
    /// When its connections are ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining_until: Option<Timestamp>,
    /// What it is in the cluster set.
    pub cluster: MembershipView,
    /// What it is in the local set.
    pub local: MembershipView,
    /// Its connections by this port, if they were asked for, those through the forwarder included. What the forwarder does not have any more and the
    /// kernel still remembers is told in [`PathView::connections`] alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Counters>,
}

/// What an endpoint is to a set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MembershipView {
    /// Whether it gets connections, or why not.
    pub standing: StandingView,
    /// How many of the slots in the kernel lead to it; of what goes through the forwarder, 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slots: usize,
    /// Its part of new connections, 0 to 1, as slots or weights say. Schedulers that go by live counts keep to it in the long run.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub share: f64,
}

/// What an endpoint is to a set, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StandingView {
    /// It gets connections.
    Chosen,
    /// No traffic policy leads to this set.
    Unused,
    /// It is not ready.
    NotReady,
    /// It terminates and does not serve any more.
    Stopped,
    /// It terminates, and others are ready.
    Leaving,
    /// Topology hints keep it for other zones.
    OtherZone,
    /// Topology hints keep it for other nodes.
    OtherNode,
    /// It is on another node, and a Local policy asks for this one's.
    NotHere,
    /// It weighs 0.
    Drained,
    /// Its group has no share.
    NoShare,
    /// It is in no slice any more.
    Gone,
}

/// Looks at a Service. `now` and `wall` are the same moment.
pub fn view(engine: &Engine, key: &ServiceKey, now: Instant, wall: Timestamp) -> Option<ServiceView> {
    let seen = engine.look(key)?;
    let service = seen.service;
    let at = |time: Instant| moment(time, now, wall);
    let policy = |local: bool| if local { "Local" } else { "Cluster" }.to_owned();
    let asked = service.exact.map(|exact| exact.to_string()).or(service.scheduler.map(|asked| asked.to_string()));
    let used = seen.ports.iter().find_map(|port| Some(port.resolved.as_ref()?.scheduler));
    let used = service
        .exact
        .filter(|_| carried_in_userspace(&seen))
        .map(|exact| exact.to_string())
        .unwrap_or_else(|| used.or(service.scheduler).unwrap_or(seen.default_scheduler).to_string());
    Some(ServiceView {
        namespace: service.key.namespace.to_string(),
        name: service.key.name.to_string(),
        kind: service.kind,
        internal_traffic_policy: policy(service.internal_local),
        external_traffic_policy: policy(service.external_local),
        session_affinity_seconds: service.affinity.map(|affinity| affinity.seconds),
        scheduler: SchedulerView { asked, used },
        source_ranges: service.source_ranges.iter().map(ToString::to_string).collect(),
        health_check_node_port: service.health_check_port,
        slow_start_seconds: service.tuning.slow_start.map(|slow_start| slow_start.window.as_secs_f64()),
        drain_seconds: service.tuning.drain.map(|drain| drain.as_secs_f64()),
        last_change: seen.changed.map(at),
        problems: engine.problems_of(key).map(ProblemView::from).collect(),
        ports: seen.ports.iter().map(|port| port_view(engine, &seen, port, &at)).collect(),
    })
}

fn carried_in_userspace(seen: &Seen<'_>) -> bool {
    let mut decided = seen.ports.iter().filter_map(|port| port.resolved.as_ref());
    decided.any(|port| port.path != Path::Kernel)
}

fn port_view(
    engine: &Engine,
    seen: &Seen<'_>,
    surveyed: &Surveyed<'_>,
    at: &impl Fn(Instant) -> Timestamp,
) -> PortView {
    let key = seen.service.port_key(surveyed.port);
    let decided = surveyed.resolved.as_ref();
    let path = decided.map_or(Path::Kernel, |decided| decided.path);
    let sets = [false, true].map(|local| {
        // What the forwarder carries has slots for the time that it does not: nobody is chosen by them.
        let slots = if path == Path::Kernel { engine.slots(&key, surveyed.family, local) } else { Vec::new() };
        Dealt::of(&slots, surveyed, local)
    });
    let leaving: Vec<&Leaving> = seen
        .leaving
        .iter()
        .filter(|one| {
            *one.port == *key.name && one.protocol == key.protocol && Family::of(one.endpoint.ip()) == surveyed.family
        })
        .collect();
    let leaves = |address: SocketAddr| leaving.iter().find(|one| one.endpoint == address);
    let by_hand = |one: &SurveyedEndpoint<'_>| {
        seen.overrides.iter().rev().find(|said| said.subject.is(one.address, one.endpoint))
    };
    let mut endpoints: Vec<_> = surveyed
        .endpoints
        .iter()
        .map(|one| EndpointView {
            by_hand: by_hand(one).map(|said| ByHandView::new(said, at)),
            slow_start_percent: seen.warming.0.get(&one.address.ip()).copied(),
            draining_since: leaves(one.address).map(|leaving| at(leaving.since)),
            draining_until: leaves(one.address).map(|leaving| at(leaving.until)),
            cluster: sets[0].membership(one.address, one.cluster),
            local: sets[1].membership(one.address, one.local),
            ..EndpointView::of(one)
        })
        .collect();
    let listed = |address| surveyed.endpoints.iter().any(|one| one.address == address);
    endpoints.extend(leaving.iter().filter(|one| !listed(one.endpoint)).map(|one| EndpointView::gone(one, at)));
    let listeners = [false, true].map(|local| engine.listener(&key, surveyed.family, local));
    PortView {
        name: key.name.to_string(),
        protocol: key.protocol.to_string(),
        family: surveyed.family.to_string(),
        port: surveyed.port.port,
        frontends: surveyed.claims.iter().map(|claim| frontend_view(engine, &seen.service.key, claim)).collect(),
        internal: decided.map(|decided| decided.internal.into()),
        outside: decided.map(|decided| decided.outside.into()),
        inside: decided.map(|decided| decided.inside.into()),
        path: PathView {
            carrier: if path == Path::Kernel { CarrierView::Kernel } else { CarrierView::Userspace },
            reason: path.reason().map(|reason| reason.label().to_owned()),
            listeners: listeners.into_iter().flatten().collect(),
            connections: None,
        },
        topology: match surveyed.topology {
            Topology::Anywhere => "anywhere",
            Topology::Zone => "zone",
            Topology::Node => "node",
        }
        .to_owned(),
        endpoints,
    }
}

fn frontend_view(engine: &Engine, service: &ServiceKey, (claim, role): &(Claim, Role)) -> FrontendView {
    let (address, port, role) = match (claim, role) {
        (Claim::NodePort(_, node_port), _) => (None, node_port.port, "nodePort"),
        (Claim::Frontend(frontend), Role::Cluster) => (Some(frontend.address), frontend.port, "cluster"),
        (Claim::Frontend(frontend), Role::LoadBalancer) => (Some(frontend.address), frontend.port, "loadBalancer"),
        (Claim::Frontend(frontend), Role::External) => (Some(frontend.address), frontend.port, "external"),
    };
    let held_by = engine.holder(claim).filter(|holder| *holder != service).map(ToString::to_string);
    FrontendView { address, port, role: role.to_owned(), held_by }
}

/// A moment on the wall clock.
pub(super) fn moment(time: Instant, now: Instant, wall: Timestamp) -> Timestamp {
    let shifted = match now.checked_duration_since(time) {
        Some(ago) => SignedDuration::try_from(ago).ok().and_then(|ago| wall.checked_sub(ago).ok()),
        None => SignedDuration::try_from(time - now).ok().and_then(|ahead| wall.checked_add(ahead).ok()),
    };
    shifted.unwrap_or(wall)
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn is_nothing(share: &f64) -> bool {
    *share == 0.0
}

/// How the slots of one set are dealt.
struct Dealt {
    slots: HashMap<SocketAddr, usize>,
    total: usize,
    /// All weights together, for what has no slots of its own in the kernel.
    weight: u64,
}

// === impl ProblemView ===

impl From<&Problem> for ProblemView {
    fn from(problem: &Problem) -> Self {
        Self {
            object: format!("{} {}", problem.kind.name(), problem.object),
            field: problem.field.clone(),
            value: problem.value.clone(),
            reason: problem.reason.clone(),
        }
    }
}

// === impl VerdictView ===

impl From<Verdict> for VerdictView {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Refuse => Self::Refuse,
            Verdict::Discard => Self::Discard,
            Verdict::Cluster => Self::Cluster,
            Verdict::Local => Self::Local,
        }
    }
}

// === impl EndpointView ===

impl EndpointView {
    fn of(one: &SurveyedEndpoint<'_>) -> Self {
        let endpoint = one.endpoint;
        Self {
            address: one.address.ip(),
            port: one.address.port(),
            pod: endpoint.pod.as_deref().map(Into::into),
            node: endpoint.node().map(Into::into),
            zone: endpoint.zone().map(Into::into),
            here: one.here,
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            gone: false,
            weight: one.weight,
            by_hand: None,
            slow_start_percent: None,
            draining_since: None,
            draining_until: None,
            cluster: MembershipView::none(StandingView::Unused),
            local: MembershipView::none(StandingView::Unused),
            connections: None,
        }
    }

    /// Somebody who is in no slice any more.
    fn gone(leaving: &Leaving, at: &impl Fn(Instant) -> Timestamp) -> Self {
        Self {
            address: leaving.endpoint.ip(),
            port: leaving.endpoint.port(),
            pod: None,
            node: None,
            zone: None,
            here: false,
            ready: false,
            serving: false,
            terminating: true,
            gone: true,
            weight: 0,
            by_hand: None,
            slow_start_percent: None,
            draining_since: Some(at(leaving.since)),
            draining_until: Some(at(leaving.until)),
            cluster: MembershipView::none(StandingView::Gone),
            local: MembershipView::none(StandingView::Gone),
            connections: None,
        }
    }

    /// Where it is.
    pub fn socket(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

// === impl PortView ===

impl PortView {
    /// The protocol, typed.
    pub fn transport(&self) -> Option<Protocol> {
        Protocol::from_kubernetes(Some(&self.protocol))
    }
}

// === impl MembershipView ===

impl MembershipView {
    fn none(standing: StandingView) -> Self {
        Self { standing, slots: 0, share: 0.0 }
    }
}

// === impl StandingView ===

impl From<Standing> for StandingView {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Chosen(_) => Self::Chosen,
            Standing::Unused => Self::Unused,
            Standing::NotReady => Self::NotReady,
            Standing::Stopped => Self::Stopped,
            Standing::Leaving => Self::Leaving,
            Standing::OtherZone => Self::OtherZone,
            Standing::OtherNode => Self::OtherNode,
            Standing::NotHere => Self::NotHere,
            Standing::Drained => Self::Drained,
            Standing::NoShare => Self::NoShare,
        }
    }
}

// === impl Dealt ===

impl Dealt {
    fn of(all: &[SocketAddr], surveyed: &Surveyed<'_>, local: bool) -> Self {
        let mut slots: HashMap<SocketAddr, usize> = HashMap::new();
        all.iter().for_each(|endpoint| *slots.entry(*endpoint).or_default() += 1);
        let weight = |one: &SurveyedEndpoint<'_>| match if local { one.local } else { one.cluster } {
            Standing::Chosen(weight) => u64::from(weight),
            _ => 0,
        };
        Self { slots, total: all.len(), weight: surveyed.endpoints.iter().map(weight).sum() }
    }

    fn membership(&self, endpoint: SocketAddr, standing: Standing) -> MembershipView {
        let Standing::Chosen(weight) = standing else { return MembershipView::none(standing.into()) };
        let part = |some: f64, all: f64| if all > 0.0 { (some / all * 1e6).round() / 1e6 } else { 0.0 };
        match self.slots.get(&endpoint) {
            Some(slots) => {
                let share = part(*slots as f64, self.total as f64);
                MembershipView { standing: StandingView::Chosen, slots: *slots, share }
            }
            None => {
                let share = part(f64::from(weight), self.weight as f64);
                MembershipView { standing: StandingView::Chosen, slots: 0, share }
            }
        }
    }
}

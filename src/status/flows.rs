//! Connections one by one: client, frontend, endpoint, and whose that is.
//!
//! Connection tracking knows addresses. To whom they belong is told by the model ([`name`]): a frontend is a Service port's, an endpoint
//! of that port is a pod on a node. What ends at a listener of the userspace forwarder goes on to an endpoint that the forwarder's
//! [`Register`](crate::forward::Register) knows, and is one connection here, not two: the forwarder's own to the endpoint was not translated, and is nobody's.
//!
//! Where things are: here the views and how a pair gets its names; `filter` which connections are wanted; [`teller`] events with names, for
//! who follows.
//!
//! Proven by the tests of each file and by `tests/e2e/flows.rs`.

mod filter;
pub mod teller;

pub use filter::FlowFilter;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Traffic;
use crate::conntrack::Record;
use crate::engine::Engine;
use crate::forward::{Carried, CarriedKey};
use crate::model::{Family, Protocol};
use crate::policy::{Claim, Frontend, NodePort};

/// Connections that were asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// [`super::VERSION`].
    pub version: String,
    /// What the kernel is set to tell.
    #[serde(flatten)]
    pub settings: FlowSettings,
    /// Entries of the table that were looked at.
    pub read: usize,
    /// Whether the table changed so fast that some may have been missed.
    pub partial: bool,
    /// How many more there are than these.
    pub more: usize,
    /// The open ones first, then by client.
    pub flows: Vec<FlowView>,
}

/// What connection tracking is set to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowSettings {
    /// Whether packets and bytes are counted (`net.netfilter.nf_conntrack_acct`).
    pub accounting: bool,
    /// Whether beginnings are written down (`net.netfilter.nf_conntrack_timestamp`).
    pub timestamps: bool,
    /// Whether it tells of what happens (`net.netfilter.nf_conntrack_events`); else the table is read once a second.
    pub events: bool,
}

/// A connection, or a flow of datagrams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Who connected.
    pub client: SocketAddr,
    /// To what.
    pub frontend: SocketAddr,
    /// Who answers; left out while the forwarder looks for somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Whether the userspace forwarder carries it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub userspace: bool,
    /// The Service's namespace; left out, as what follows, where nobody is known to have that frontend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Arc<str>>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    /// The Service port's name, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Arc<str>>,
    /// The pod that answers; left out where no slice knows that endpoint (any more).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
    /// The node that it is on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Arc<str>>,
    /// As the kernel names it (`nf_conntrack_proto_tcp.c`), `active` where the protocol has none.
    pub state: String,
    /// Whether it is open.
    pub active: bool,
    /// What it carried; left out where the kernel does not account.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// When it began; left out where nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<Timestamp>,
    /// Since then, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Seconds until the kernel forgets it, if nothing happens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<u32>,
}

/// What somebody who follows is told: a line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowEvent {
    /// What happened.
    pub event: FlowWord,
    /// When.
    pub at: Timestamp,
    /// To which connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<FlowView>,
    /// With [`FlowWord::Begin`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<FlowSettings>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowWord {
    /// Following begins.
    Begin,
    /// A connection was there when following began, or was found after a loss.
    Present,
    /// A connection began.
    New,
    /// It is in another state, or another endpoint answers.
    Update,
    /// It has ended.
    End,
    /// Events were lost: ends are found out, short connections are not.
    Lost,
}

/// What has to be named: who answers at a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The protocol.
    pub protocol: Protocol,
    /// What the client connected to.
    pub frontend: SocketAddr,
    /// Who answers: an endpoint, or a listener of the forwarder.
    pub answers: SocketAddr,
}

/// The names that belong to a [`Pair`]; none where nobody has such a frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The Service's namespace.
    pub namespace: Option<Arc<str>>,
    /// Its name.
    pub service: Option<Arc<str>>,
    /// Its port's name, if it has one.
    pub port: Option<Arc<str>>,
    /// The pod.
    pub pod: Option<Arc<str>>,
    /// The node.
    pub node: Option<Arc<str>>,
    /// Whether a listener of the forwarder answers.
    pub listener: bool,
}

/// Who that is, as the model has it now.
pub fn name(engine: &Engine, pair: &Pair) -> Named {
    let Pair { protocol, frontend, answers } = *pair;
    let family = Family::of(frontend.ip());
    let by_address = Claim::Frontend(Frontend { address: frontend.ip(), protocol, port: frontend.port() });
    let by_port = Claim::NodePort(family, NodePort { protocol, port: frontend.port() });
    let is_node_port = engine.holder(&by_address).is_none();
    let holder = engine.holder(if is_node_port { &by_port } else { &by_address });
    let Some(service) = holder.and_then(|holder| engine.store().service(holder)) else { return Named::default() };
    let mut ports = service.ports.iter().filter(|port| port.protocol == protocol);
    let port = ports.find(|port| match is_node_port {
        true => port.node_port == Some(frontend.port()),
        false => port.port == frontend.port(),
    });
    let mut named = Named {
        namespace: Some(service.key.namespace.clone()),
        service: Some(service.key.name.clone()),
        port: port.map(|port| port.name.clone()).filter(|name| !name.is_empty()),
        ..Named::default()
    };
    let Some(port) = port else { return named };
    let listeners = [false, true].map(|local| engine.listener(&service.port_key(port), family, local));
    named.listener = listeners.iter().flatten().any(|listener| listener.port() == answers.port());
    let endpoints = engine.store().slices(&service.key).filter(|slice| slice.family == Family::of(answers.ip()));
    let fitting = endpoints.filter(|slice| {
        let fits = |one: &crate::model::SlicePort| one.name == port.name && one.protocol == protocol;
        slice.ports.iter().any(|one| fits(one) && one.port == answers.port())
    });
    let mut known = fitting.flat_map(|slice| &slice.endpoints).filter(|one| one.address == answers.ip());
    if let Some(endpoint) = known.next() {
        (named.pod, named.node) = (
            endpoint.pod.as_deref().map(Into::into),
            endpoint.location.as_ref().and_then(|location| location.node.clone()),
        );
        named.listener = false;
    }
    named
}

/// What has to be named of these, and of what the forwarder carries.
pub fn pairs(records: &[Record], carried: &HashMap<CarriedKey, Carried>) -> Vec<Pair> {
    let mut pairs: HashSet<Pair> = records.iter().map(Pair::of).collect();
    for record in records {
        let behind = carried.get(&CarriedKey::of(&record.sighting.flow)).map(|one| one.endpoint);
        pairs.extend(behind.map(|answers| Pair { answers, ..Pair::of(record) }));
    }
    pairs.extend(carried.iter().filter_map(|(key, carried)| carried.pair(key)));
    pairs.into_iter().collect()
}

/// These with their names, and those that only the forwarder knows; the open ones first, then by client.
pub fn views(
    records: &[Record],
    carried: &HashMap<CarriedKey, Carried>,
    names: &HashMap<Pair, Named>,
    now: Timestamp,
) -> Vec<FlowView> {
    let none = Named::default();
    let named = |pair: &Pair| names.get(pair).unwrap_or(&none);
    let tracked = records.iter().map(|record| {
        let pair = Pair::of(record);
        let first = named(&pair);
        if !first.listener {
            return FlowView::new(record, Some(pair.answers), false, first, now);
        }
        match carried.get(&CarriedKey::of(&record.sighting.flow)).map(|one| one.endpoint) {
            Some(answers) => FlowView::new(record, Some(answers), true, named(&Pair { answers, ..pair }), now),
            None => FlowView::new(record, None, true, first, now),
        }
    });
    let untracked = carried.iter().filter_map(|(key, carried)| carried.view(key, named(&carried.pair(key)?), now));
    let mut views: Vec<_> = tracked.chain(untracked).collect();
    views.sort_by_key(|flow| (!flow.active, flow.client, flow.frontend));
    views
}

// === impl FlowView ===

impl FlowView {
    /// A connection with its names. `endpoint`: who answers in the end.
    pub fn new(record: &Record, endpoint: Option<SocketAddr>, userspace: bool, named: &Named, now: Timestamp) -> Self {
        let flow = &record.sighting.flow;
        let until = record.ended.unwrap_or(now);
        let named = named.clone();
        Self {
            protocol: flow.protocol.to_string(),
            client: flow.original.source,
            frontend: flow.original.destination,
            endpoint,
            userspace,
            namespace: named.namespace,
            service: named.service,
            port: named.port,
            pod: named.pod,
            node: named.node,
            state: flow.state_name().to_owned(),
            active: flow.is_active() && record.ended.is_none(),
            traffic: record.traffic,
            began: record.began,
            age_seconds: record.began.map(|began| until.duration_since(began).as_secs_f64().max(0.0)),
            left_seconds: (record.sighting.left > 0).then_some(record.sighting.left),
        }
    }

    /// `namespace/name:port`, as far as it is known.
    pub fn service_port(&self) -> Option<String> {
        let (namespace, name) = (self.namespace.as_ref()?, self.service.as_ref()?);
        let port = self.port.as_ref().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{namespace}/{name}{port}"))
    }
}

// === impl Pair ===

impl Pair {
    /// As connection tracking has it.
    pub fn of(record: &Record) -> Self {
        let flow = &record.sighting.flow;
        Self { protocol: flow.protocol, frontend: flow.original.destination, answers: flow.reply.source }
    }
}

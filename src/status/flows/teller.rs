//! What happens to connections, with names, for somebody who follows.
//!
//! Happenings come from the kernel one by one and at any rate; names come from whoever knows the model, by the batch ([`Teller::tell`]). A connection
//! keeps the names that it had when it was first told: the pod that answered is the one it reached, also when it has gone. What has been asked is good for `FRESH`.
//!
//! A connection through the forwarder is in connection tracking before the forwarder has found an endpoint for it. Until it has, for
//! `PATIENCE` at most, what happens to that connection waits, so that it is told once, and whole. Those to node ports on loopback addresses are not in
//! connection tracking as translated at all: they are what the register says, each time somebody asks; very short ones are not seen.
//!
//! Invariants: what happens to one connection is told in its order; memory is bounded by what the follower knows.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::{FlowEvent, FlowFilter, FlowView, FlowWord, Named, Pair};
use crate::conntrack::following::{Happening, What};
use crate::conntrack::{Flow, Record};
use crate::forward::{Carried, CarriedKey, Following, Register};
use crate::model::Protocol;

/// How long a name is believed. Addresses of pods are used again, but not at once.
const FRESH: Duration = Duration::from_secs(1);

/// How long the forwarder may take to find an endpoint before a connection is told without.
const PATIENCE: Duration = Duration::from_secs(2);

/// Names kept at a time, and connections that wait.
const NAMES: usize = 16_384;
const WAITING: usize = 16_384;

/// Connections whose names are kept.
const KEPT: usize = 100_000;

/// Gives names to what happens; see the module.
#[derive(Debug)]
pub struct Teller {
    filter: FlowFilter,
    register: Register,
    /// Those who leave the forwarder are remembered while this is here.
    _following: Following,
    names: HashMap<Pair, (Instant, Arc<Named>)>,
    kept: HashMap<Id, Kept>,
    waiting: VecDeque<(Instant, Happening)>,
    direct: HashMap<CarriedKey, Carried>,
}

/// A connection as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Id {
    protocol: Protocol,
    client: SocketAddr,
    frontend: SocketAddr,
    number: Option<u32>,
}

#[derive(Clone, Debug)]
struct Kept {
    named: Arc<Named>,
    endpoint: Option<SocketAddr>,
}

// === impl Teller ===

impl Teller {
    /// For connections that this filter wants.
    pub fn new(filter: FlowFilter, register: Register) -> Self {
        Self {
            filter,
            _following: register.follow(),
            register,
            names: HashMap::new(),
            kept: HashMap::new(),
            waiting: VecDeque::new(),
            direct: HashMap::new(),
        }
    }

    /// Whether something waits for the forwarder: ask again soon.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Tells what has happened, and what has waited. `ask` gives names to pairs, in their order.
    pub fn tell(
        &mut self,
        happened: Vec<Happening>,
        now: Instant,
        ask: &mut dyn FnMut(Vec<Pair>) -> Vec<Named>,
    ) -> Vec<FlowEvent> {
        let mut due: VecDeque<(Instant, Happening)> = std::mem::take(&mut self.waiting);
        due.extend(happened.into_iter().map(|happening| (now, happening)));
        self.learn(due.iter().map(|(_, happening)| Pair::of(&happening.record)).collect(), now, ask);
        // Who answers in the end behind a listener, as far as the forwarder knows, needs a name of its own.
        let behind = due.iter().filter_map(|(_, happening)| {
            let pair = Pair::of(&happening.record);
            let endpoint = self.behind(&happening.record)?;
            Some(Pair { answers: endpoint, ..pair })
        });
        let behind: Vec<_> = behind.collect();
        self.learn(behind, now, ask);
        let mut told = Vec::new();
        let mut stuck = HashSet::new();
        let is_end = |(_, happening): &&(Instant, Happening)| happening.what == What::End;
        let ended: HashSet<_> = due.iter().filter(is_end).map(|(_, happening)| Id::of(&happening.record)).collect();
        for (since, happening) in due {
            let id = Id::of(&happening.record);
            // Nobody will be found for what has ended.
            let impatient =
                ended.contains(&id) || now.duration_since(since) >= PATIENCE || self.waiting.len() >= WAITING;
            match self.kept_for(&happening, &id) {
                Some(kept) if !stuck.contains(&id) || impatient => self.say(&happening, &id, kept, &mut told),
                None if impatient => {
                    let named = self.named(&Pair::of(&happening.record));
                    self.say(&happening, &id, Kept { named, endpoint: None }, &mut told);
                }
                _ => {
                    stuck.insert(id);
                    self.waiting.push_back((since, happening));
                }
            }
        }
        self.tell_direct(now, ask, &mut told);
        told
    }

    /// What is known of a connection; `None` if the forwarder has not said yet who answers.
    fn kept_for(&self, happening: &Happening, id: &Id) -> Option<Kept> {
        let record = &happening.record;
        let pair = Pair::of(record);
        let known = self.kept.get(id);
        let named = self.named(&pair);
        if !named.listener {
            return Some(match known {
                Some(known) => known.clone(),
                None => Kept { named, endpoint: Some(pair.answers) },
            });
        }
        // UDP flows may move to another endpoint; the register is right as long as it knows.
        match self.behind(record) {
            Some(endpoint) if known.is_none_or(|known| known.endpoint != Some(endpoint)) => {
                let named = self.named(&Pair { answers: endpoint, ..pair });
                Some(Kept { named, endpoint: Some(endpoint) })
            }
            _ => known.filter(|known| known.endpoint.is_some()).cloned(),
        }
    }

    fn say(&mut self, happening: &Happening, id: &Id, kept: Kept, told: &mut Vec<FlowEvent>) {
        let userspace = self.names.get(&Pair::of(&happening.record)).is_some_and(|(_, named)| named.listener);
        let view = FlowView::new(&happening.record, kept.endpoint, userspace, &kept.named, happening.at);
        if happening.what == What::End {
            self.kept.remove(id);
        } else if self.kept.len() < KEPT {
            self.kept.insert(*id, kept);
        }
        if self.filter.wants(&view) {
            told.push(FlowEvent::of(happening.what.into(), happening.at, view));
        }
    }

    /// Connections that only the register knows.
    fn tell_direct(&mut self, now: Instant, ask: &mut dyn FnMut(Vec<Pair>) -> Vec<Named>, told: &mut Vec<FlowEvent>) {
        let current = self.register.direct();
        if current.is_empty() && self.direct.is_empty() {
            return;
        }
        let news: Vec<_> = current.iter().filter(|(key, carried)| self.direct.get(key) != Some(carried)).collect();
        let pairs: Vec<_> = news.iter().filter_map(|(key, carried)| carried.pair(key)).collect();
        self.learn(pairs, now, ask);
        let before = std::mem::take(&mut self.direct);
        let at = Timestamp::now();
        for (key, carried) in &before {
            if !current.contains_key(key) {
                self.say_direct(FlowWord::End, at, key, carried, told);
            }
        }
        for (key, carried) in &current {
            match before.get(key) {
                Some(known) if known == carried => {}
                Some(_) => self.say_direct(FlowWord::Update, at, key, carried, told),
                None => self.say_direct(FlowWord::New, carried.since, key, carried, told),
            }
        }
        self.direct = current;
    }

    fn say_direct(
        &self,
        word: FlowWord,
        at: Timestamp,
        key: &CarriedKey,
        carried: &Carried,
        told: &mut Vec<FlowEvent>,
    ) {
        let Some(pair) = carried.pair(key) else { return };
        let Some(mut view) = carried.view(key, &self.named(&pair), at) else { return };
        if word == FlowWord::End {
            view.active = false;
            view.state = "closed".to_owned();
        }
        if self.filter.wants(&view) {
            told.push(FlowEvent::of(word, at, view));
        }
    }

    fn behind(&self, record: &Record) -> Option<SocketAddr> {
        self.named(&Pair::of(record))
            .listener
            .then(|| self.register.find(&CarriedKey::of(&record.sighting.flow)))??
            .endpoint
            .into()
    }

    fn named(&self, pair: &Pair) -> Arc<Named> {
        self.names.get(pair).map(|(_, named)| named.clone()).unwrap_or_default()
    }

    /// Asks for the names of those that are not known, or not any more.
    fn learn(&mut self, mut pairs: Vec<Pair>, now: Instant, ask: &mut dyn FnMut(Vec<Pair>) -> Vec<Named>) {
        let mut seen = HashSet::new();
        pairs.retain(|pair| {
            let known = self.names.get(pair).is_some_and(|(at, _)| now.duration_since(*at) < FRESH);
            !known && seen.insert(*pair)
        });
        if pairs.is_empty() {
            return;
        }
        if self.names.len() + pairs.len() > NAMES {
            self.names.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        }
        let named = ask(pairs.clone());
        self.names.extend(pairs.into_iter().zip(named).map(|(pair, named)| (pair, (now, Arc::new(named)))));
    }
}

// === impl FlowEvent ===

impl FlowEvent {
    /// Of a connection.
    pub fn of(event: FlowWord, at: Timestamp, flow: FlowView) -> Self {
        Self { event, at, flow: Some(flow), settings: None }
    }

    /// Of nobody.
    pub fn plain(event: FlowWord) -> Self {
        Self { event, at: Timestamp::now(), flow: None, settings: None }
    }
}

impl From<What> for FlowWord {
    fn from(what: What) -> Self {
        match what {
            What::Present => FlowWord::Present,
            What::New => FlowWord::New,
            What::Update => FlowWord::Update,
            What::End => FlowWord::End,
        }
    }
}

// === impl CarriedKey, Carried ===

impl CarriedKey {
    /// By what the forwarder knows a connection that leads to a listener.
    pub fn of(flow: &Flow) -> Self {
        Self { protocol: flow.protocol, client: flow.reply.destination, listener: flow.reply.source.port() }
    }
}

impl Carried {
    /// A connection that was made to the listener itself.
    pub fn pair(&self, key: &CarriedKey) -> Option<Pair> {
        Some(Pair { protocol: key.protocol, frontend: self.direct?, answers: self.endpoint })
    }

    /// The same with its names.
    pub fn view(&self, key: &CarriedKey, named: &Named, now: Timestamp) -> Option<FlowView> {
        let named = named.clone();
        Some(FlowView {
            protocol: key.protocol.to_string(),
            client: key.client,
            frontend: self.direct?,
            endpoint: Some(self.endpoint),
            userspace: true,
            namespace: named.namespace,
            service: named.service,
            port: named.port,
            pod: named.pod,
            node: named.node,
            state: if key.protocol == Protocol::Tcp { "established" } else { "active" }.to_owned(),
            active: true,
            traffic: None,
            began: Some(self.since),
            age_seconds: Some(now.duration_since(self.since).as_secs_f64().max(0.0)),
            left_seconds: None,
        })
    }
}

// === impl Id ===

impl Id {
    fn of(record: &Record) -> Self {
        let flow = &record.sighting.flow;
        let (client, frontend) = (flow.original.source, flow.original.destination);
        Self { protocol: flow.protocol, client, frontend, number: flow.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::Tuple;
    use crate::conntrack::census::Sighting;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn happening(what: What, port: u16, by: &str) -> Happening {
        let client = SocketAddr::from(([10, 9, 0, 1], port));
        let flow = Flow {
            protocol: Protocol::Tcp,
            original: Tuple { source: client, destination: at("10.96.0.1:80"), zone: None },
            reply: Tuple { source: at(by), destination: client, zone: None },
            zone: None,
            id: Some(1),
            state: Some(3),
        };
        let record =
            Record { sighting: Sighting { flow, status: 0, left: 9 }, traffic: None, began: None, ended: None };
        Happening { what, at: Timestamp::UNIX_EPOCH, record }
    }

    /// `10.1.0.N` is pod N; `192.168.0.1` listens.
    fn names(pairs: Vec<Pair>) -> Vec<Named> {
        let named = pairs.iter().map(|pair| {
            let listener = pair.answers.ip() == at("192.168.0.1:1").ip();
            let pod = (!listener).then(|| format!("pod-{}", pair.answers.ip()).as_str().into());
            Named { service: Some("web".into()), pod, listener, ..Named::default() }
        });
        named.collect()
    }

    fn told(events: &[FlowEvent]) -> Vec<(FlowWord, Option<&str>)> {
        events.iter().map(|event| (event.event, event.flow.as_ref().and_then(|flow| flow.pod.as_deref()))).collect()
    }

    #[test]
    fn who_answered_stays_who_answered() {
        let mut teller = Teller::new(FlowFilter::default(), Register::default());
        let now = Instant::now();
        let begin = teller.tell(vec![happening(What::New, 1, "10.1.0.1:8080")], now, &mut names);
        assert_eq!(told(&begin), [(FlowWord::New, Some("pod-10.1.0.1"))]);
        let mut gone = |pairs: Vec<Pair>| vec![Named::default(); pairs.len()];
        let end = teller.tell(vec![happening(What::End, 1, "10.1.0.1:8080")], now + FRESH * 2, &mut gone);
        assert_eq!(told(&end), [(FlowWord::End, Some("pod-10.1.0.1"))]);
        assert!(teller.kept.is_empty());
    }

    #[test]
    fn what_the_forwarder_carries_waits_for_its_endpoint() {
        let register = Register::default();
        let mut teller = Teller::new(FlowFilter::default(), register.clone());
        let now = Instant::now();
        let listener = "192.168.0.1:40000";
        let first = teller.tell(vec![happening(What::New, 1, listener)], now, &mut names);
        assert!(first.is_empty() && teller.waits());
        let key = CarriedKey::of(&happening(What::New, 1, listener).record.sighting.flow);
        drop(register.enter(key, at("10.1.0.7:8080"), None, None));
        // It is over already: the register remembers for a while.
        let then = teller.tell(vec![happening(What::Update, 1, listener)], now, &mut names);
        assert_eq!(told(&then), [(FlowWord::New, Some("pod-10.1.0.7")), (FlowWord::Update, Some("pod-10.1.0.7"))]);
        assert!(then.iter().all(|event| event.flow.as_ref().is_some_and(|flow| flow.userspace)));
        // One that finds nobody is told in the end.
        teller.tell(vec![happening(What::New, 2, listener)], now, &mut names);
        let late = teller.tell(Vec::new(), now + PATIENCE, &mut names);
        assert_eq!(told(&late), [(FlowWord::New, None)]);
        assert!(!teller.waits());
    }
}

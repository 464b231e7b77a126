//! The owner of all state: changes go in, deltas come out.
//!
//! One task owns an [`Engine`] and feeds it what the sources say. [`Engine::take`] files a change and remembers which Services it
//! touches; [`Engine::compile`] decides and compiles those Services, all in one [`Outcome`] that the kernel applies in one
//! transaction. Between the two any number of changes may be taken: that is how a burst becomes one transaction.
//!
//! Invariants: no I/O; work is proportional to what was touched; whatever the history, the result is that of the last state of all
//! objects. The property test below replays random histories onto simulated maps and compares with a fresh engine.

#[cfg(test)]
mod change_tests;
mod deadlines;
mod drains;
mod exchange;
mod fallback;
mod forecast;
mod look;
#[cfg(test)]
mod look_tests;
#[cfg(test)]
mod override_tests;
mod overrides;
#[cfg(test)]
mod passage_tests;
#[cfg(test)]
mod route_tests;
mod routes;
mod touched;
mod triggers;
#[cfg(test)]
mod tuning_tests;
mod warmth;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;

use crate::compile::layout::{Locality, PoolId};
use crate::compile::{self, Compiler, Delta, Image};
use crate::conntrack::ledger::Report;
use crate::conntrack::{Cut, Destination, Directory, Entrances, FlowBook, Interests, View, WatchBook, census};
use crate::forward::RouteId;
use crate::model::map::HashMap;
use crate::model::{AddressRange, Families, Family, Node, Problem, Problems, Protocol, Service, ServiceKey, Store};
use crate::policy::{self, Claim, Claims, Context, Frontend, HealthCheck, NodePort, ResolvedPort, Roster, Settings};
use crate::schedule::Scheduler;
use crate::source::{Change, Kind, Object};
use deadlines::Deadlines;
use drains::Drains;
use look::Changes;
use overrides::Overrides;
use routes::Routes;
use touched::{Slices, Touched};
use triggers::Triggers;
use warmth::Warmth;

pub use drains::Leaving;
pub use fallback::{Fallback, Learned};
pub use look::Seen;
pub use overrides::{MOST_OVERRIDES, Order, OrderError, ServiceName, Who};
pub use routes::{ListenerKey, Wish};

/// Model, policy, schedule and compile under one roof.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    claims: Claims,
    compiler: Compiler,
    flows: FlowBook,
    watch: WatchBook,
    settings: Settings,
    scheduler: Scheduler,
    health: BTreeMap<ServiceKey, HealthCheck>,
    /// Since somebody asked.
    health_changed: bool,
    /// Services with ports whose Local policy finds nobody here, and their sum.
    lacking: BTreeMap<ServiceKey, NoLocalEndpoints>,
    no_local_endpoints: NoLocalEndpoints,
    touched: Touched,
    /// The endpoints of large Services of which some have changed.
    rosters: HashMap<ServiceKey, Roster>,
    /// Endpoints from which on a Service has a roster.
    roster_from: usize,
    /// Services compiled by their rosters.
    exchanges: u64,
    /// Whether there has been a compilation.
    compiled: bool,
    /// Node port addresses and service networks have to be looked at again.
    networks_touched: bool,
    /// Problems that no single object has: frontends asked for twice, pools exhausted.
    conflicts: Problems,
    fresh_problems: Vec<Problem>,
    /// The families of what was touched.
    families: Families,
    triggers: Triggers,
    /// What time it is, if anybody said so: without it nothing starts slowly and nothing drains.
    now: Option<Instant>,
    warmth: Warmth,
    drains: Drains,
    routes: Routes,
    deadlines: Deadlines,
    cuts: Vec<Cut>,
    changes: Changes,
    /// What was said by hand.
    overrides: Overrides,
    /// Where clients of Services connect to, where that changed; `None`: nobody wants to know.
    directory: Option<Directory>,
}

/// What came of everything taken since the last compilation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What differs in the data plane.
    pub delta: Delta,
    /// The same for people.
    pub changes: compile::Changes,
    /// The Services looked at.
    pub services: Vec<ServiceKey>,
    /// What was said by hand, taken back or has ended, in words; safe to print.
    pub overridden: Vec<String>,
    /// Problems not reported before.
    pub problems: Vec<Problem>,
    /// The families that the changes concern, whether the data plane differs or not.
    pub touched: Families,
    /// When the changes of endpoints happened, as far as their slices say: to be measured once they are programmed.
    pub triggers: Vec<(Family, Timestamp)>,
}

/// What decisions depend on, without a Service's own; a macro, because other parts of the engine change meanwhile.
macro_rules! context {
    ($engine:ident) => {
        Context {
            settings: &$engine.settings,
            node: $engine.store.node(),
            claims: &$engine.claims,
            scheduler: $engine.scheduler,
            warming: None,
            assessment: None,
            overrides: &[],
        }
    };
}
use context;

/// Service ports with a Local policy and endpoints, none of them on this node. Per family (IPv4, IPv6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// By `internalTrafficPolicy`.
    pub internal: [usize; 2],
    /// By `externalTrafficPolicy`.
    pub external: [usize; 2],
}

// === impl NoLocalEndpoints ===

impl NoLocalEndpoints {
    fn of(ports: &[ResolvedPort]) -> Self {
        let mut counts = Self::default();
        for port in ports {
            let [internal, external] = port.lacks_local();
            counts.internal[port.family as usize] += usize::from(internal);
            counts.external[port.family as usize] += usize::from(external);
        }
        counts
    }

    /// One Service's part is now another one.
    fn replace(&mut self, before: Self, after: Self) {
        for index in 0..2 {
            self.internal[index] = self.internal[index] - before.internal[index] + after.internal[index];
            self.external[index] = self.external[index] - before.external[index] + after.external[index];
        }
    }
}

// === impl Engine ===

impl Engine {
    /// An engine for the node of this name that knows nothing yet. `scheduler` serves whoever asks for none.
    pub fn new(node: &str, scheduler: Scheduler) -> Self {
        Self::with_settings(Settings { node: node.into(), ..Settings::default() }, scheduler)
    }

    /// An engine with settings of its own.
    pub fn with_settings(settings: Settings, scheduler: Scheduler) -> Self {
        Self {
            store: Store::default(),
            claims: Claims::default(),
            compiler: Compiler::new(&settings.node).with_tables(settings.tables),
            flows: FlowBook::default(),
            watch: WatchBook::default(),
            settings,
            scheduler,
            health: BTreeMap::new(),
            health_changed: true,
            lacking: BTreeMap::new(),
            no_local_endpoints: NoLocalEndpoints::default(),
            touched: Touched::default(),
            rosters: HashMap::default(),
            roster_from: exchange::ROSTER_FROM,
            exchanges: 0,
            compiled: false,
            networks_touched: true,
            conflicts: Problems::default(),
            fresh_problems: Vec::new(),
            families: Families::default(),
            triggers: Triggers::default(),
            now: None,
            warmth: Warmth::default(),
            drains: Drains::default(),
            routes: Routes::default(),
            deadlines: Deadlines::default(),
            cuts: Vec::new(),
            changes: Changes::default(),
            overrides: Overrides::default(),
            directory: None,
        }
    }

    /// Collects, from now on, the times of changes that happened after `start`: see [`Outcome::triggers`].
    pub fn measure_since(&mut self, start: Timestamp) {
        self.triggers.measure_since(start);
    }

    /// Remembers, from now on, where clients of Services connect to: see [`Engine::take_directory`].
    pub fn keep_directory(&mut self) {
        self.directory = Some(Directory::new());
    }

    /// Which Services have other frontends than before, or none any more, since the last call.
    pub fn take_directory(&mut self) -> Directory {
        self.directory.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Tells the engine what a kernel already has, before the first compilation: the same numbers will be used again.
    pub fn adopt(&mut self, found: Image) {
        self.flows.adopt(&found);
        self.compiler.adopt(found);
    }

    /// Takes a change in.
    pub fn take(&mut self, change: Change) {
        let trigger = if self.triggers.is_on() { triggers::of(&change) } else { None };
        let before = match &change {
            Change::Apply(Object::Node(_)) => self.store.node().cloned(),
            _ => None,
        };
        let name = match &change {
            Change::Apply(Object::EndpointSlice(slice)) => slice.metadata.name.clone(),
            Change::Delete(Kind::EndpointSlice, key) => Some(key.name.clone()),
            _ => None,
        };
        let effect = self.store.apply(change);
        if effect.node || effect.service_networks {
            self.networks_touched = true;
            self.families = Families::ALL;
        }
        if effect.node {
            self.node_changed(before.unwrap_or_default());
        }
        match effect.slice {
            Some(mut slice) => {
                self.families.insert(slice.family);
                let before = slice.before.take();
                match (effect.services.as_slice(), name) {
                    ([service], Some(name)) => self.touch_slice(service, &name, before),
                    _ => self.touched.extend(effect.services),
                }
                self.fresh_problems.extend(self.triggers.note(slice, trigger));
            }
            None if !effect.services.is_empty() => {
                self.families = Families::ALL;
                self.touched.extend(effect.services);
            }
            None => {}
        }
        self.fresh_problems.extend(effect.problems);
    }

    /// Says what time it is: before each compilation, and when [`Engine::next_deadline`] has come. Time must not go backwards.
    pub fn take_time(&mut self, now: Instant) {
        self.now = Some(now);
        self.touched.extend(self.deadlines.due(now).cloned());
    }

    /// When something is to be done even if nothing changes: an endpoint in slow start gets more, or one that left has drained. `None`
    /// almost always. After [`Engine::take_time`] and a compilation it is later than that time. Services that changed since the last
    /// compilation have none: they wait for the next one.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.iter().find(|(_, key)| !self.touched.contains(key)).map(|(at, _)| at)
    }

    /// The connections to be ended since the last call; to be done when the kernel has what was compiled before.
    pub fn take_cuts(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cuts)
    }

    /// The families that the next compilation concerns.
    pub fn touched(&self) -> Families {
        self.families
    }

    /// Whether a compilation would have anything to do or to say.
    pub fn is_idle(&self) -> bool {
        self.touched.is_empty() && self.fresh_problems.is_empty() && !self.networks_touched
    }

    /// Decides and compiles every Service touched since the last call.
    pub fn compile(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        self.compile_with(&mut outcome, true, usize::MAX);
        outcome
    }

    /// The same on top of what came of an earlier call, with which it becomes one: nothing of that must have been applied. As long as fewer
    /// than `elements` differ.
    pub fn compile_into(&mut self, outcome: &mut Outcome, elements: usize) {
        self.compile_with(outcome, true, elements);
    }

    /// As [`Engine::compile`], as long as fewer than `elements` differ; the rest is for the next call, which [`Engine::has_more`] asks
    /// for. Services among which frontends may have moved are never parted; each Service is compiled as a whole.
    pub fn compile_part(&mut self, elements: usize) -> Outcome {
        let mut outcome = Outcome::default();
        self.compile_with(&mut outcome, true, elements);
        outcome
    }

    /// Whether nothing has been compiled yet, so that whatever is from now on comes of [`Engine::compile_part`].
    pub fn is_blank(&self) -> bool {
        !self.compiled
    }

    /// Whether there are Services that [`Engine::compile_part`] left for later.
    pub fn has_more(&self) -> bool {
        !self.touched.is_empty()
    }

    /// As [`Engine::compile`], handed out in parts of about `elements`. Ends with the first error, and the rest is for another call.
    ///
    /// # Errors
    /// What `take` ended with.
    pub fn compile_in_parts<E>(
        &mut self,
        elements: usize,
        take: &mut dyn FnMut(Delta) -> Result<(), E>,
    ) -> Result<(), E> {
        take(self.compile_part(elements).delta)?;
        while self.has_more() {
            take(self.compile_part(elements).delta)?;
        }
        Ok(())
    }

    /// As [`Engine::compile`], without the delta: for those who ask for [`Engine::difference`] afterwards. What is compiled first
    /// is everything, and need not be in memory twice.
    pub fn catch_up(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        self.compile_with(&mut outcome, false, usize::MAX);
        outcome
    }

    /// As [`Engine::take_time`] and [`Engine::compile`], but of nothing else than what time brings: all that was taken waits on, with
    /// the Services that it touched.
    pub fn compile_timed(&mut self, now: Instant) -> Outcome {
        self.now = Some(now);
        let due = self.deadlines.due(now).filter(|key| !self.touched.contains(key)).cloned().collect();
        let waiting = std::mem::replace(&mut self.touched, due);
        let networks_touched = std::mem::take(&mut self.networks_touched);
        let (families, triggers) = (std::mem::take(&mut self.families), std::mem::take(&mut self.triggers));
        let outcome = self.compile();
        (self.touched, self.networks_touched) = (waiting, networks_touched);
        (self.families, self.triggers) = (families, triggers);
        outcome
    }

    fn compile_with(&mut self, outcome: &mut Outcome, keep_delta: bool, elements: usize) {
        self.compiled = true;
        let moving = self.settle_claims();
        outcome.problems.append(&mut self.fresh_problems);
        outcome.touched = outcome.touched.union(std::mem::take(&mut self.families));
        outcome.triggers.extend(self.triggers.take());
        if std::mem::take(&mut self.networks_touched) {
            self.compile_networks(&mut outcome.delta);
        }
        for key in moving {
            self.touched.remove(&key);
            self.compile_service(key, None, true, outcome);
            if !keep_delta {
                outcome.delta = Delta::default();
            }
        }
        while outcome.delta.len() < elements
            && let Some((key, slices)) = self.touched.take_first()
        {
            self.compile_service(key, slices, false, outcome);
            if !keep_delta {
                outcome.delta = Delta::default();
            }
        }
        outcome.changes.append(self.compiler.take_changes());
        outcome.overridden.append(&mut self.overrides.take_notes());
        outcome.services.sort();
        outcome.services.dedup();
    }

    /// Takes note of what touched Services ask for, all of them: whether one gets a frontend may depend on another that is touched in the
    /// same batch. Returns those between whom frontends may pass, which are not to be parted.
    fn settle_claims(&mut self) -> BTreeSet<ServiceKey> {
        let (mut moving, mut others) = (BTreeSet::new(), Vec::new());
        let mut released: HashMap<Claim, ServiceKey> = HashMap::default();
        for key in self.touched.take_unsettled() {
            let (created, wanted) = match self.store.service(&key) {
                Some(service) => (service.created, policy::wanted(service, &self.settings)),
                None => (0, Vec::new()),
            };
            let Some(passed) = self.claims.set(&key, created, wanted) else { continue };
            released.extend(passed.released.into_iter().map(|claim| (claim, key.clone())));
            if passed.others.is_empty() {
                others.push(key);
            } else {
                moving.extend(passed.others);
                moving.insert(key);
            }
        }
        if released.is_empty() {
            return moving;
        }
        // What one gave up another may have taken after it, in the same batch.
        for key in others {
            let from = self.claims.asked(&key).filter_map(|claim| released.get(claim));
            let from: Vec<_> = from.filter(|from| **from != key).cloned().collect();
            if !from.is_empty() {
                moving.extend(from);
                moving.insert(key);
            }
        }
        moving
    }

    /// Decides and compiles one Service. `slices`: nothing else of it has changed. `moving`: frontends may pass between it and others.
    fn compile_service(&mut self, key: ServiceKey, slices: Option<Slices>, moving: bool, outcome: &mut Outcome) {
        let before = outcome.delta.len();
        let done = slices.as_ref().is_some_and(|slices| self.exchange(&key, slices, &mut outcome.delta));
        if !done {
            let resolved = self.decide(&key, outcome);
            self.enroll(&key, &resolved, slices.is_some());
        }
        // Two halves of a frontend that moves may be one edit in the end: neither Service has more edits then.
        let differs = moving || outcome.delta.len() != before;
        self.changes.note(&key, self.store.service(&key).is_some(), differs, self.now);
        outcome.services.push(key);
    }

    /// Decides and compiles one Service, whatever has changed about it. Returns what was decided.
    fn decide(&mut self, key: &ServiceKey, outcome: &mut Outcome) -> Vec<ResolvedPort> {
        let service = self.store.service(key);
        let slices = self.store.slices(key);
        let health = service.and_then(|service| HealthCheck::of(service, slices.clone(), &self.settings));
        let before = match health {
            Some(health) => self.health.insert(key.clone(), health),
            None => self.health.remove(key),
        };
        self.health_changed |= before != health;
        let progress = self.warmth.update(key, service, slices.clone(), self.now);
        self.overrides.expire(key, self.now);
        let to_cut = self.overrides.take_cuts(key);
        let overrides = self.overrides.of(key);
        let assessment = service.map(|service| policy::Assessment::new(service, slices.clone(), overrides));
        let context =
            Context { warming: Some(&progress.warming), assessment: assessment.as_ref(), overrides, ..context!(self) };
        let mut resolved = service.map(|service| policy::resolve(service, slices.clone(), context)).unwrap_or_default();
        let tuning = service.map(|service| policy::tuning_problems(service, slices.clone(), &resolved, context));
        let due = self.drains.update(key, service, slices.clone(), &resolved, self.now);
        let ranges = self.flows.node_port_ranges();
        let by_hand = overrides::cuts(&to_cut, slices.clone(), &resolved);
        let cuts = due.cuts.into_iter().chain(by_hand).map(|mut cut| {
            let protocol = cut.protocol;
            cut.destinations.retain(|to| {
                let holder = self.claims.holder(&claim_on(*to, protocol));
                holder.is_none_or(|holder| holder == key)
            });
            Cut { node_port_ranges: ranges.clone(), ..cut }
        });
        self.cuts.extend(cuts.filter(|cut| !cut.destinations.is_empty()));
        self.deadlines.set(key, [progress.next, due.next, self.overrides.next(key)].into_iter().flatten().min());
        let lacking = NoLocalEndpoints::of(&resolved);
        let before = match lacking == NoLocalEndpoints::default() {
            true => self.lacking.remove(key),
            false => self.lacking.insert(key.clone(), lacking),
        };
        self.no_local_endpoints.replace(before.unwrap_or_default(), lacking);
        self.routes.update(key, service, &mut resolved, &self.settings);
        self.flows.update(key, &resolved);
        let shortages = self.compiler.update(key, &resolved, &mut outcome.delta);
        if let Some(mut left) = self.compiler.take_redirected()
            && let Some(directory) = &mut self.directory
        {
            let entries = census::entries(&resolved);
            let stays = |(protocol, at): &(Protocol, Destination)| {
                entries.iter().any(|(destination, port)| destination == at && port.protocol == *protocol)
            };
            left.retain(|place| !stays(place));
            directory.push(Entrances { service: key.clone(), entries, left });
        }
        self.watch.update(key, &resolved, |subject| self.compiler.rings(&subject.port, subject.family));
        let mut problems: Vec<_> = service.map(|service| policy::lost_frontends(service, context)).unwrap_or_default();
        problems.extend(tuning.unwrap_or_default());
        problems.extend(shortages.into_iter().map(|shortage| Problem {
            kind: Kind::Service,
            object: key.object(),
            field: "spec.ports".to_owned(),
            value: shortage.port.to_string(),
            reason: shortage.reason,
        }));
        outcome.problems.extend(self.conflicts.replace(Kind::Service, &key.object(), problems));
        resolved
    }

    /// What the userspace forwarder is to do, where that changed since the last call. What it shall do anew may be done at once, what
    /// it shall not do any more when the kernel has what was compiled before. `None` ends it.
    pub fn take_wishes(&mut self) -> Vec<(ListenerKey, Option<Wish>)> {
        self.routes.take_changed()
    }

    /// Which Services became the forwarder's, for which reason, and which the kernel's again (`None`) since the last call.
    pub fn take_fallbacks(&mut self) -> Vec<(ServiceKey, Option<Fallback>)> {
        self.routes.take_fallbacks()
    }

    /// All Services of the forwarder.
    pub fn fallbacks(&self) -> &BTreeMap<ServiceKey, Fallback> {
        self.routes.fallbacks()
    }

    /// The listeners that a Service wishes for now.
    pub fn listeners(&self, service: &ServiceKey) -> impl Iterator<Item = &ListenerKey> {
        self.routes.listeners(service)
    }

    /// The number by which packets for a route are known, as of the last compilation.
    pub fn pool(&self, route: &RouteId) -> Option<PoolId> {
        self.compiler.pool(&route.port, route.family, route.local)
    }

    /// A route's listener is open at this address, which packets can be sent to; or there is none. Whether that makes a difference to
    /// what is expected of flows: then its Service is to be compiled again.
    pub fn set_listener(&mut self, route: &RouteId, listener: Option<SocketAddr>) -> bool {
        let differs = self.routes.set_listener(route, listener);
        if differs {
            self.touched.whole(route.port.service.clone());
        }
        differs
    }

    /// Nobody is sent to the forwarder any more: flows through it are stale from the next compilation on.
    pub fn leave_forwarder(&mut self) {
        self.touched.extend(self.routes.stop());
    }

    /// What is expected of existing UDP flows, where that changed since the last call; to be enforced when the kernel has what
    /// was compiled before.
    pub fn take_flow_changes(&mut self) -> View {
        self.flows.take_changed()
    }

    /// Whose connections are to be counted, where that changed since the last call; to be counted when the kernel has what was
    /// compiled before.
    pub fn take_interests(&mut self) -> Interests {
        self.watch.take_changed()
    }

    /// Deals the rings of a report again; `picks` says how many picks each has made by now. What differs is noted in `delta`. No other
    /// decision is taken anew.
    pub fn redeal(&mut self, report: &Report, picks: &[u64], delta: &mut Delta) {
        self.compiler.redeal(report, picks, delta);
    }

    /// Everything desired now, as a delta to nothing. What has been taken but not compiled is not in it.
    pub fn everything(&self) -> Delta {
        self.compiler.everything()
    }

    /// The same, in parts of about `size` elements.
    pub fn everything_in_parts<E>(&self, size: usize, take: &mut dyn FnMut(Delta) -> Result<(), E>) -> Result<(), E> {
        self.compiler.everything_in_parts(size, take)
    }

    /// What has to change where a kernel has this. What has been taken but not compiled is not in it.
    pub fn difference(&self, found: impl Into<Arc<Image>>) -> Delta {
        self.compiler.difference(found)
    }

    /// The adopted image, until [`Engine::settle`] hands it back.
    pub fn adopted(&self) -> Arc<Image> {
        self.compiler.adopted()
    }

    /// Hands back the adopted image; to be called after the first complete compilation.
    pub fn settle(&mut self) -> Arc<Image> {
        self.changes.settle(self.now);
        self.compiler.settle()
    }

    /// Whether what [`Engine::health`] says has changed since the last call.
    pub fn take_health_changed(&mut self) -> bool {
        std::mem::take(&mut self.health_changed)
    }

    /// What load balancers are to be told, per Service that has a `healthCheckNodePort`; as of the last compilation.
    pub fn health(&self) -> &BTreeMap<ServiceKey, HealthCheck> {
        &self.health
    }

    /// How many Service ports a Local policy cuts off, as of the last compilation.
    pub fn no_local_endpoints(&self) -> NoLocalEndpoints {
        self.no_local_endpoints
    }

    /// What the fixed chains of the tables depend on; changes with our Node in mode NodeCIDR only.
    pub fn locality(&self) -> Locality {
        Locality::new(&self.settings, self.store.node())
    }

    /// What the operator wants.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Who serves Services that choose nobody.
    pub fn default_scheduler(&self) -> Scheduler {
        self.scheduler
    }

    /// The node we act as.
    pub fn node_name(&self) -> &str {
        &self.settings.node
    }

    /// Where node ports are served, IPv4 and IPv6; `None` where that is on all addresses.
    pub fn restricted_node_ports(&self) -> [Option<Vec<AddressRange>>; 2] {
        Family::ALL.map(|family| policy::restricted_node_ports(&self.settings, self.store.node(), family))
    }

    fn compile_networks(&mut self, delta: &mut Delta) {
        let mut served = Vec::new();
        for family in Family::ALL {
            let node_ports = policy::node_port_ranges(&self.settings, self.store.node(), family);
            served.extend(node_ports.iter().copied());
            self.compiler.set_node_port_addresses(family, node_ports, delta);
            let networks = AddressRange::merged(family, self.store.service_networks().map(AddressRange::from));
            self.compiler.set_service_networks(family, networks, delta);
        }
        self.flows.set_node_port_ranges(served);
    }

    /// Decides again whatever depends on our Node.
    fn node_changed(&mut self, before: Node) {
        let Some(now) = self.store.node() else { return };
        let depends: fn(&Service) -> bool = if before.zone != now.zone {
            |_| true
        } else if before.addresses != now.addresses {
            policy::depends_on_node_addresses
        } else {
            return;
        };
        let depending = self.store.services().filter(|service| depends(service));
        // In an order that does not depend on chance.
        let depending: BTreeSet<_> = depending.map(|service| service.key.clone()).collect();
        self.touched.extend(depending);
    }

    /// Everything known.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// How many problems stand now.
    pub fn standing_problems(&self) -> usize {
        self.store.problems().len() + self.conflicts.len()
    }
}

/// What a Service asks for that connections to this go to.
fn claim_on(destination: Destination, protocol: Protocol) -> Claim {
    match destination {
        Destination::Address(to) => Claim::Frontend(Frontend { address: to.ip(), protocol, port: to.port() }),
        Destination::NodePort(family, port) => Claim::NodePort(family, NodePort { protocol, port }),
    }
}

#[cfg(test)]
mod tests;

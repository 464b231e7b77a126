//! Remembers what was desired last and answers each update with what differs.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use super::delta::{Delta, Image, Slot, SlotKey, TableDelta, Target};
use super::layout::{self, Decision, DedicatedChain, MAX_SHARED_SLOTS, Plan, PoolId};
use super::pools::Pools;
use crate::model::{Family, PortKey, ServiceKey};
use crate::policy::{Frontend, ResolvedPort, Role, Verdict};
use crate::schedule::{Hand, Pick};

/// The desired state of the data plane. Owned by the task that owns the model.
#[derive(Debug)]
pub struct Compiler {
    /// Differs between nodes.
    seed: u64,
    ports: HashMap<ServiceKey, Vec<CompiledPort>>,
    pools: Pools,
    /// What a kernel had when we started, until the first complete compilation has used it.
    found: Image,
}

/// One Service port in one family, as it is to be programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CompiledPort {
    key: PortKey,
    family: Family,
    label: Arc<str>,
    frontends: Vec<Frontend>,
    /// Kept while the port has no endpoints, so that frontends find the same number when they come back.
    pool: Option<PoolId>,
    pick: Pick,
    slots: Vec<SocketAddr>,
}

// === impl Compiler ===

impl Compiler {
    /// A compiler for the node of this name, with nothing desired.
    pub fn new(node: &str) -> Self {
        Self { seed: hash(&node), ports: HashMap::new(), pools: Pools::default(), found: Image::default() }
    }

    /// Remembers what a kernel has, so that the numbers and slots found there are used again where they fit. To be called before
    /// the first update.
    pub fn adopt(&mut self, found: Image) {
        // Numbers in use by leftovers must not be taken by somebody else in the very transaction that removes them.
        let highest = Family::ALL.iter().flat_map(|family| {
            let table = found.table(*family);
            table
                .services
                .values()
                .filter_map(|target| target.decision.pool)
                .chain(table.endpoints.keys().map(|key| key.pool))
        });
        if let Some(highest) = highest.max() {
            self.pools.start_after(highest);
        }
        self.found = found;
    }

    /// Forgets what [`Compiler::adopt`] brought; to be called when everything known has been compiled once.
    pub fn settle(&mut self) {
        self.found = Image::default();
    }

    /// Takes the new decisions for all ports of a Service (none: the Service is gone) and notes in `delta` what differs. Returns
    /// the ports that have to reject connections because a million pools are in use.
    pub fn update(&mut self, service: &ServiceKey, resolved: &[ResolvedPort], delta: &mut Delta) -> Vec<PortKey> {
        let mut before = self.ports.remove(service).unwrap_or_default();
        let mut after = Vec::with_capacity(resolved.len());
        let mut homeless = Vec::new();
        for port in resolved {
            let previous = before
                .iter()
                .position(|known| known.key == port.key && known.family == port.family)
                .map(|index| before.swap_remove(index));
            let compiled = self.compile(previous.as_ref(), port);
            if compiled.pool.is_none() && !internal_endpoints(port).is_empty() {
                homeless.push(port.key.clone());
            }
            difference(previous.as_ref(), Some(&compiled), delta.table_mut(port.family));
            after.push(compiled);
        }
        for gone in before {
            difference(Some(&gone), None, delta.table_mut(gone.family));
            if let Some(pool) = gone.pool {
                self.pools.give_back(pool);
            }
        }
        if !after.is_empty() {
            self.ports.insert(service.clone(), after);
        }
        homeless
    }

    /// Everything desired, as a delta to nothing.
    pub fn everything(&self) -> Delta {
        let mut delta = Delta::default();
        for port in self.ports.values().flatten() {
            difference(None, Some(port), delta.table_mut(port.family));
        }
        delta
    }

    /// How many pools are in use.
    pub fn pools(&self) -> usize {
        self.pools.len()
    }

    fn compile(&mut self, previous: Option<&CompiledPort>, port: &ResolvedPort) -> CompiledPort {
        let label = previous.map_or_else(|| layout::label(&port.key), |known| known.label.clone());
        let (known_pool, known_slots) = match previous {
            Some(known) => (known.pool, known.slots.clone()),
            None => self.find(port, &label),
        };
        let mut compiled = CompiledPort {
            key: port.key.clone(),
            family: port.family,
            label,
            frontends: internal_frontends(port).collect(),
            pool: known_pool,
            pick: Pick::Random,
            slots: Vec::new(),
        };
        let endpoints = internal_endpoints(port);
        if endpoints.is_empty() {
            return compiled;
        }
        compiled.pool = known_pool.or_else(|| self.pools.take());
        if compiled.pool.is_some() {
            let seed = self.seed ^ hash(&port.key);
            let deal = port.scheduler.deal(Hand { endpoints, previous: &known_slots, seed });
            compiled.pick = deal.pick;
            compiled.slots = deal.slots;
        }
        compiled
    }

    /// The pool and slots that a kernel already has for a port: those its frontends refer to.
    fn find(&mut self, port: &ResolvedPort, label: &Arc<str>) -> (Option<PoolId>, Vec<SocketAddr>) {
        let table = self.found.table(port.family);
        let target = internal_frontends(port).find_map(|frontend| table.services.get(&frontend));
        let Some(pool) = target.filter(|target| target.label == *label).and_then(|target| target.decision.pool) else {
            return (None, Vec::new());
        };
        if !self.pools.claim(pool) {
            return (None, Vec::new());
        }
        let slots = (0..).map_while(|slot| table.endpoints.get(&SlotKey { pool, slot })).map(|slot| slot.endpoint);
        (Some(pool), slots.collect())
    }
}

fn internal_frontends(port: &ResolvedPort) -> impl Iterator<Item = Frontend> + '_ {
    port.frontends.iter().filter(|(_, role)| *role == Role::Cluster).map(|(frontend, _)| *frontend)
}

fn internal_endpoints(port: &ResolvedPort) -> &[SocketAddr] {
    match port.internal {
        Verdict::Cluster => &port.cluster,
        Verdict::Local => &port.local,
        Verdict::Refuse | Verdict::Discard => &[],
    }
}

// === impl CompiledPort ===

impl CompiledPort {
    fn decision(&self) -> Decision {
        match (self.pool, self.dedicated()) {
            (Some(pool), Some(_)) => Decision { pool: Some(pool), plan: Plan::Dedicated },
            (Some(pool), None) if !self.slots.is_empty() => {
                let slots = u16::try_from(self.slots.len()).expect("not dedicated, so at most MAX_SHARED_SLOTS");
                Decision { pool: Some(pool), plan: Plan::Random(slots) }
            }
            // The pool's number stays in the decision, so that a restarted process finds it there.
            (pool, None) => Decision { pool, plan: Plan::Refuse },
            (None, Some(_)) => unreachable!("slots are only dealt to ports with a pool"),
        }
    }

    fn dedicated(&self) -> Option<DedicatedChain> {
        let dedicated = !self.slots.is_empty() && (self.pick == Pick::Counter || self.slots.len() > MAX_SHARED_SLOTS);
        dedicated
            .then(|| DedicatedChain::new(self.pick, self.slots.len(), &self.key, self.pool.expect("slots have a pool")))
    }

    fn slot(&self, slot: usize) -> Option<Slot> {
        self.slots.get(slot).map(|endpoint| Slot { endpoint: *endpoint, label: self.label.clone() })
    }
}

// === differences ===

fn difference(before: Option<&CompiledPort>, after: Option<&CompiledPort>, delta: &mut TableDelta) {
    let target = |port: &CompiledPort| Target { decision: port.decision(), label: port.label.clone() };
    let (old_target, new_target) = (before.map(target), after.map(target));
    let frontends = |port: Option<&CompiledPort>| port.map(|port| port.frontends.clone()).unwrap_or_default();
    let (old_frontends, new_frontends) = (frontends(before), frontends(after));
    for frontend in old_frontends.iter().filter(|frontend| !new_frontends.contains(frontend)) {
        delta.services.note(*frontend, old_target.clone(), None);
    }
    for frontend in &new_frontends {
        let known = old_frontends.contains(frontend).then(|| old_target.clone()).flatten();
        delta.services.note(*frontend, known, new_target.clone());
    }
    // A port keeps its pool for life, so slots and chains of both sides are under the same number.
    let Some(pool) = before.and_then(|port| port.pool).or(after.and_then(|port| port.pool)) else { return };
    delta.dedicated.note(pool, before.and_then(CompiledPort::dedicated), after.and_then(CompiledPort::dedicated));
    let count = |port: Option<&CompiledPort>| port.map_or(0, |port| port.slots.len());
    for slot in 0..count(before).max(count(after)) {
        let (old, new) = (before.and_then(|port| port.slot(slot)), after.and_then(|port| port.slot(slot)));
        if old != new {
            let slot = u32::try_from(slot).expect("a Service has less than 4 billion endpoints");
            delta.endpoints.note(SlotKey { pool, slot }, old, new);
        }
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

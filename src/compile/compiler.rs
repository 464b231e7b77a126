//! Remembers what was desired last and answers each update with what differs.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::change::Changes;
use super::delta::{Delta, Image};
use super::elements::{
    ClusterIp, Hairpin, Hop, Label, Masquerade, NodePortAddress, ServiceNetwork, SlotKey, SourceRange, Stage,
    TableDelta, TableImage, Target,
};
use super::layout::{self, Decision, DedicatedChain, MAX_MEMBERS, Plan, PoolId};
use super::pool::{self, Members, Pool};
use super::pools::Pools;
use super::shared::Shared;
use super::slots::Slots;
use crate::conntrack::ledger::Report;
use crate::conntrack::{Destination, Subject};
use crate::model::map::HashMap;
use crate::model::{AddressRange, Family, PortKey, Protocol, ServiceKey};
use crate::policy::{Exchange, Frontend, NodePort, Path, PortExchange, ResolvedPort, Role, Verdict};
use crate::schedule::live::Redeal;
use crate::schedule::{Candidate, Changed, Hand, Pick, Scheduler, TableSizes};

/// The desired state of the data plane. Owned by the task that owns the model.
#[derive(Debug)]
pub struct Compiler {
    /// Differs between nodes.
    seed: u64,
    /// How large hash tables are.
    tables: TableSizes,
    ports: HashMap<ServiceKey, Vec<CompiledPort>>,
    pools: Pools,
    /// What several ports ask for, per family.
    common: [Common; 2],
    /// What a kernel had when we started, until the first complete compilation has used it.
    found: Arc<Image>,
    /// What the updates since the last call of [`Compiler::take_changes`] changed.
    changes: Changes,
    /// Where clients connected to those of the Service's ports for which the last update changed that; `None`: for no port.
    redirected: Option<Vec<(Protocol, Destination)>>,
}

/// A Service port that gets less than it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Which one.
    pub port: PortKey,
    /// What is missing and what happens instead.
    pub reason: String,
}

/// A pool that is dealt again while the kernel walks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Whether it is the one of the endpoints on this node.
    pub local: bool,
    /// The chain that walks it.
    pub chain: DedicatedChain,
}

/// The elements of one table that belong to no port in particular.
#[derive(Debug, Default)]
struct Common {
    cluster_ips: Shared<IpAddr>,
    hairpins: Shared<IpAddr>,
    node_port_addresses: Vec<AddressRange>,
    service_networks: Vec<AddressRange>,
}

/// One Service port in one family, as it is to be programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CompiledPort {
    pub(super) key: PortKey,
    pub(super) family: Family,
    label: Arc<str>,
    pub(super) scheduler: Scheduler,
    pub(super) frontends: Vec<(Frontend, Role)>,
    pub(super) node_port: Option<NodePort>,
    internal: Verdict,
    outside: Verdict,
    inside: Verdict,
    keeps_source: bool,
    source_ranges: Option<Vec<AddressRange>>,
    local_addresses: Vec<IpAddr>,
    path: Path,
    /// Its number stands in all decisions that check something first, too.
    cluster: Pool,
    local: Pool,
}

// === impl Compiler ===

impl Compiler {
    /// A compiler for the node of this name, with nothing desired.
    pub fn new(node: &str) -> Self {
        Self {
            seed: hash(&node),
            tables: TableSizes::default(),
            ports: HashMap::default(),
            pools: Pools::default(),
            common: Default::default(),
            found: Arc::default(),
            changes: Changes::default(),
            redirected: None,
        }
    }

    /// The same with hash tables of these sizes. To be called before the first update.
    pub fn with_tables(self, tables: TableSizes) -> Self {
        Self { tables, ..self }
    }

    /// Remembers what a kernel has, so that the numbers and slots found there are used again where they fit. To be called before
    /// the first update.
    pub fn adopt(&mut self, found: Image) {
        // Numbers in use by leftovers must not be taken by somebody else in the very transaction that removes them.
        let highest = Family::ALL.iter().flat_map(|family| {
            let table = found.table(*family);
            let decided = table.services.values().chain(table.node_ports.values()).chain(table.hops.values());
            decided
                .filter_map(|target| target.decision.pool)
                .chain(table.endpoints.keys().map(|key| key.pool))
                .chain(table.members.keys().map(|member| member.pool))
        });
        if let Some(highest) = highest.max() {
            self.pools.start_after(highest);
        }
        self.found = found.into();
    }

    /// What [`Compiler::adopt`] brought.
    pub fn adopted(&self) -> Arc<Image> {
        self.found.clone()
    }

    /// Hands back what [`Compiler::adopt`] brought; to be called when everything known has been compiled once.
    pub fn settle(&mut self) -> Arc<Image> {
        std::mem::take(&mut self.found)
    }

    /// Takes the new decisions for all ports of a Service (none: the Service is gone) and notes in `delta` what differs. Returns
    /// what could not be done.
    pub fn update(&mut self, service: &ServiceKey, resolved: &[ResolvedPort], delta: &mut Delta) -> Vec<Shortage> {
        let mut before = self.ports.remove(service).unwrap_or_default();
        let mut after = Vec::with_capacity(resolved.len());
        let mut shortages = Vec::new();
        let mut redirected: Option<Vec<_>> = None;
        for port in resolved {
            let previous = before
                .iter()
                .position(|known| known.key == port.key && known.family == port.family)
                .map(|index| before.swap_remove(index));
            let (compiled, shortage) = self.compile(previous.as_ref(), port);
            shortages.extend(shortage.map(|reason| Shortage { port: port.key.clone(), reason }));
            if previous.as_ref().is_none_or(|previous| !previous.is_entered_like(&compiled)) {
                redirected.get_or_insert_default().extend(previous.iter().flat_map(CompiledPort::entrances));
            }
            self.note(previous.as_ref(), Some(&compiled), delta.table_mut(port.family));
            self.changes.note(previous.as_ref(), Some(&compiled));
            after.push(compiled);
        }
        for gone in before {
            redirected.get_or_insert_default().extend(gone.entrances());
            self.note(Some(&gone), None, delta.table_mut(gone.family));
            self.changes.note(Some(&gone), None);
            for pool in [gone.cluster.id, gone.local.id].into_iter().flatten() {
                self.pools.give_back(pool);
            }
        }
        if !after.is_empty() {
            self.ports.insert(service.clone(), after);
        }
        self.redirected = redirected;
        shortages
    }

    /// What updates changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Whether the last update changed where a Service's clients connect to: then, where they connected to before, as far as that may
    /// differ. Only the first time after an update.
    pub fn take_redirected(&mut self) -> Option<Vec<(Protocol, Destination)>> {
        self.redirected.take()
    }

    /// Lets endpoints of a Service's ports go and come, as far as [`Compiler::update`] was told of those that were there, and notes in
    /// `delta` what differs: the same as `update` would. `false`: everything has to be updated; what was noted by then stays noted.
    pub fn exchange(&mut self, service: &ServiceKey, exchanges: &[PortExchange], delta: &mut Delta) -> bool {
        let Some(ports) = self.ports.get_mut(service) else { return false };
        let changes = &mut self.changes;
        exchanges.iter().filter(|exchange| !exchange.is_empty()).all(|exchange| {
            let seed = self.seed ^ hash(&exchange.port);
            let port = ports.iter_mut().find(|one| one.key == exchange.port && one.family == exchange.family);
            let table = delta.table_mut(exchange.family);
            let hairpins = &mut self.common[exchange.family as usize].hairpins;
            port.is_some_and(|port| {
                let Exchange { gone, came } = &exchange.local_addresses;
                hairpins.replace(gone, came, || Hairpin, &mut table.hairpins);
                let (done, changed) = port.exchange(exchange, seed, table);
                // Of two sets one may have been done; the rest is noted by who updates the whole.
                if done || changed.iter().any(|changed| !changed.is_empty()) {
                    changes.note_exchange(port, &changed);
                }
                done
            })
        })
    }

    /// Takes the addresses on which a family's node ports are served; ranges must not touch each other.
    pub fn set_node_port_addresses(&mut self, family: Family, ranges: Vec<AddressRange>, delta: &mut Delta) {
        let known = &mut self.common[family as usize].node_port_addresses;
        let edits = &mut delta.table_mut(family).node_port_addresses;
        replace_ranges(known, ranges, |range, before, after| edits.note(range, before, after), NodePortAddress);
    }

    /// Takes the networks that a family's cluster addresses are from; ranges must not touch each other.
    pub fn set_service_networks(&mut self, family: Family, ranges: Vec<AddressRange>, delta: &mut Delta) {
        let known = &mut self.common[family as usize].service_networks;
        let edits = &mut delta.table_mut(family).service_networks;
        replace_ranges(known, ranges, |range, before, after| edits.note(range, before, after), ServiceNetwork);
    }

    /// The rings of a Service port, each to be dealt again: their chains, by which the kernel says how far it is.
    pub fn rings(&self, port: &PortKey, family: Family) -> Vec<Ring> {
        let Some(compiled) = self.port(port, family) else { return Vec::new() };
        let rings = compiled.pools().into_iter().filter(|pool| pool.pick == Pick::Ring);
        rings.filter_map(|pool| Some(Ring { local: pool.local, chain: pool.dedicated(port)? })).collect()
    }

    /// The number of a Service port's pool, if it has endpoints: by it the userspace forwarder's packets are known.
    pub fn pool(&self, port: &PortKey, family: Family, local: bool) -> Option<PoolId> {
        let compiled = self.port(port, family)?;
        let pool = if local { &compiled.local } else { &compiled.cluster };
        pool.id.filter(|_| !pool.slots.is_empty())
    }

    /// Deals the rings of a Service port again by the connections that its endpoints have, and notes in `delta` which slots differ.
    /// `picks` says how many picks each ring has made by now; those made since the counts were true went where the slots say.
    /// Nothing else of the port is looked at. Does nothing about a ring that is not there any more.
    pub fn redeal(&mut self, report: &Report, picks: &[u64], delta: &mut Delta) {
        let Report { subject: Subject { port, family }, rule, loads, expected, rings } = report;
        let seed = self.seed(port);
        let ports = self.ports.get_mut(&port.service).into_iter().flatten();
        let Some(compiled) = ports.into_iter().find(|known| known.key == *port && known.family == *family) else {
            return;
        };
        let mut loads = loads.clone();
        let rings: Vec<_> = rings.iter().zip(picks).filter(|((ring, _), _)| compiled.has(ring)).collect();
        for ((ring, then), now) in &rings {
            let slots = compiled.ring(ring).slots.to_vec();
            let size = slots.len() as u64;
            let unheard = then.unwrap_or(**now)..**now;
            for pick in unheard.take(slots.len()) {
                loads.entry(slots[usize::try_from(pick % size).expect("below a length")]).or_default().active += 1;
            }
        }
        for ((ring, _), picks) in rings {
            let (pool, picks) = (compiled.ring(ring), *picks);
            let before = pool.slots.to_vec();
            let redeal = Redeal {
                rule: *rule,
                candidates: &pool.candidates,
                ring: &before,
                picks,
                loads: &loads,
                expected: *expected,
                seed,
            };
            let slots = redeal.deal();
            let pool = if ring.local { &mut compiled.local } else { &mut compiled.cluster };
            pool.deal_again(&slots, delta.table_mut(*family));
        }
    }

    /// Whether this is the cluster address of a Service: connections to its other ports are refused.
    pub fn is_cluster_ip(&self, address: IpAddr) -> bool {
        self.common[Family::of(address) as usize].cluster_ips.contains(&address)
    }

    /// The slots of a Service port as they are desired in the kernel, those of the local set or of the cluster set. Without endpoints,
    /// and of what is not known, there are none.
    pub fn slots(&self, port: &PortKey, family: Family, local: bool) -> Vec<SocketAddr> {
        let pool = self.port(port, family).map(|port| if local { &port.local } else { &port.cluster });
        pool.map_or_else(Vec::new, |pool| pool.slots.to_vec())
    }

    /// Everything that a Service port wants in the table of a family, what others want as well included.
    pub fn elements(&self, port: &PortKey, family: Family) -> TableImage {
        let Some(port) = self.port(port, family) else { return TableImage::default() };
        let mut delta = TableDelta::default();
        difference(None, Some(port), &mut delta);
        port.cluster_ips().into_iter().for_each(|address| delta.cluster_ips.note(address, None, Some(ClusterIp)));
        port.local_addresses.iter().for_each(|address| delta.hairpins.note(*address, None, Some(Hairpin)));
        delta.added()
    }

    fn port(&self, port: &PortKey, family: Family) -> Option<&CompiledPort> {
        self.ports.get(&port.service)?.iter().find(|known| known.key == *port && known.family == family)
    }

    /// Where the first round of a Service port begins.
    fn seed(&self, port: &PortKey) -> u64 {
        self.seed ^ hash(port)
    }

    /// Everything desired, as a delta to nothing.
    pub fn everything(&self) -> Delta {
        self.difference(Image::default())
    }

    /// Everything desired, handed out in parts of about `size` elements: a delta of a whole cluster takes more memory than all that
    /// the engine remembers of it. Ends with the first error.
    pub fn everything_in_parts<E>(&self, size: usize, take: &mut dyn FnMut(Delta) -> Result<(), E>) -> Result<(), E> {
        let mut part = Delta::default();
        let mut hand_out = |part: &mut Delta, size| {
            if part.len() < size {
                return Ok(());
            }
            take(std::mem::take(part))
        };
        for port in self.ports.values().flatten() {
            difference(None, Some(port), part.table_mut(port.family));
            hand_out(&mut part, size)?;
        }
        for family in Family::ALL {
            let common = &self.common[family as usize];
            for address in common.cluster_ips.iter() {
                part.table_mut(family).cluster_ips.note(address, None, Some(ClusterIp));
                hand_out(&mut part, size)?;
            }
            common.note_rest(part.table_mut(family));
            hand_out(&mut part, size)?;
        }
        hand_out(&mut part, 0)
    }

    /// What has to change where a kernel has this. Takes the image apart as it goes, so that what agrees is held only once.
    pub fn difference(&self, found: impl Into<Arc<Image>>) -> Delta {
        let mut found = Arc::unwrap_or_clone(found.into());
        let mut delta = Delta::default();
        let mut part = TableDelta::default();
        for port in self.ports.values().flatten() {
            difference(None, Some(port), &mut part);
            delta.table_mut(port.family).take_differing(&mut part, found.table_mut(port.family));
        }
        for family in Family::ALL {
            let common = &self.common[family as usize];
            common.cluster_ips.iter().for_each(|address| part.cluster_ips.note(address, None, Some(ClusterIp)));
            common.note_rest(&mut part);
            let table = delta.table_mut(family);
            table.take_differing(&mut part, found.table_mut(family));
            table.remove_rest(std::mem::take(found.table_mut(family)));
        }
        delta
    }

    /// How many pools are in use.
    pub fn pools(&self) -> usize {
        self.pools.len()
    }

    fn compile(&mut self, previous: Option<&CompiledPort>, port: &ResolvedPort) -> (CompiledPort, Option<String>) {
        let label = previous.map_or_else(|| layout::label(&port.key), |known| known.label.clone());
        let (mut cluster, mut local) = match previous {
            Some(known) => (known.cluster.clone(), known.local.clone()),
            None => self.find(port, &label),
        };
        let external = port.node_port.is_some() || port.frontends.iter().any(|(_, role)| *role != Role::Cluster);
        let checks = port.source_ranges.is_some() || (external && port.inside != port.outside);
        let mut shortage = self.deal(&mut cluster, port, &port.cluster, checks);
        if local.label.is_empty() && !port.local.is_empty() {
            local.label = layout::local_label(&label);
        }
        shortage = self.deal(&mut local, port, &port.local, false).or(shortage);
        let compiled = CompiledPort {
            key: port.key.clone(),
            family: port.family,
            label,
            scheduler: port.scheduler,
            frontends: port.frontends.clone(),
            node_port: port.node_port,
            internal: port.internal,
            outside: port.outside,
            inside: port.inside,
            keeps_source: port.keeps_source,
            source_ranges: port.source_ranges.clone(),
            local_addresses: port.local_addresses.clone(),
            path: port.path,
            cluster,
            local,
        };
        (compiled, shortage)
    }

    /// Brings a pool up to date; what it has been tells who keeps which slot.
    fn deal(
        &mut self,
        pool: &mut Pool,
        port: &ResolvedPort,
        candidates: &[Candidate],
        needs_number: bool,
    ) -> Option<String> {
        let previous = std::mem::take(&mut pool.slots).to_vec();
        let mut shortage = None;
        if pool.id.is_none() && (needs_number || !candidates.is_empty()) {
            pool.id = self.pools.take();
            if pool.id.is_none() {
                shortage = Some("all pool numbers are in use; connections are rejected".to_owned());
            }
        }
        pool.affinity = port.affinity.map(|affinity| affinity.seconds);
        let mut candidates = std::borrow::Cow::Borrowed(candidates);
        if pool.affinity.is_some() && candidates.len() > MAX_MEMBERS {
            candidates.to_mut().truncate(MAX_MEMBERS);
            shortage = Some("session affinity reaches 4096 endpoints at most; the others are not used".to_owned());
        }
        pool.candidates.clear();
        if pool.id.is_some() && !candidates.is_empty() {
            let seed = self.seed(&port.key);
            let (previous, changes) = (&previous, pool.changes);
            let hand = Hand { candidates: &candidates, previous, seed, changes, tables: self.tables };
            let deal = port.scheduler.deal(hand);
            shortage = port.scheduler.remark(hand, &deal).or(shortage);
            pool.pick = deal.pick;
            pool.slots = Slots::from(&*deal.slots);
            if pool.pick == Pick::Ring {
                pool.candidates = candidates.to_vec();
            }
        }
        if !previous.is_empty() && previous.len() != pool.slots.len() {
            pool.changes += 1;
        }
        if pool.affinity.is_some() {
            // A ring may have no slot for one of them at the moment; its clients come back to it all the same.
            let all = pool.candidates.iter().map(|candidate| candidate.endpoint);
            let members: Vec<_> = if pool.candidates.is_empty() { pool.slots.to_vec() } else { all.collect() };
            pool.members.settle(&members);
        } else {
            pool.members = Members::default();
        }
        shortage
    }

    /// The pools that a kernel already has for a port: those its frontends lead to.
    fn find(&mut self, port: &ResolvedPort, label: &Arc<str>) -> (Pool, Pool) {
        let mut cluster = Pool::empty(label.clone(), false);
        let mut local = Pool::empty(pool::unlabelled(), true);
        let table = self.found.table(port.family);
        if table.is_empty() {
            return (cluster, local);
        }
        let local_label = layout::local_label(label);
        let frontends = port.frontends.iter().filter_map(|(frontend, _)| table.services.get(frontend));
        let node_port = port.node_port.and_then(|node_port| table.node_ports.get(&node_port));
        let mut decisions: Vec<Decision> =
            frontends.chain(node_port).filter(|target| target.label == *label).map(|target| target.decision).collect();
        let mut next = 0;
        while let Some(decision) = decisions.get(next).copied() {
            next += 1;
            let Some(pool) = decision.pool else { continue };
            let stages: &[Stage] = match decision.plan {
                Plan::SourceRanges => &[Stage::Admitted],
                Plan::LocalPolicy => &[Stage::Inside, Stage::Outside],
                Plan::Userspace => &[Stage::Instead],
                Plan::Random(_) | Plan::Hash(..) | Plan::Refuse | Plan::Dedicated | Plan::Discard => &[],
            };
            for stage in stages {
                let after = table.hops.get(&Hop { stage: *stage, pool }).map(|target| target.decision);
                decisions.extend(after.filter(|after| !decisions.contains(after)));
            }
            let slot = SlotKey { pool, slot: 0 };
            let found = match decision.plan {
                Plan::Random(_) | Plan::Hash(..) | Plan::Dedicated | Plan::Userspace => {
                    let member = || table.members.get(table.member_slots.get(&slot)?);
                    match table.endpoints.get(&slot).or_else(member).map(|slot| &slot.label) {
                        Some(found) if found == label => Some(&mut cluster),
                        Some(found) if *found == local_label => Some(&mut local),
                        _ => None,
                    }
                }
                // Whatever checks or refuses bears the number of the cluster's pool.
                Plan::Refuse | Plan::Discard | Plan::SourceRanges | Plan::LocalPolicy => Some(&mut cluster),
            };
            if let Some(known) = found.filter(|known| known.id.is_none())
                && self.pools.claim(pool)
            {
                known.id = Some(pool);
                known.adopt_from(table);
            }
        }
        (cluster, local)
    }

    fn note(&mut self, before: Option<&CompiledPort>, after: Option<&CompiledPort>, delta: &mut TableDelta) {
        let Some(family) = before.or(after).map(|port| port.family) else { return };
        let common = &mut self.common[family as usize];
        let cluster_ips = |port: Option<&CompiledPort>| port.map(CompiledPort::cluster_ips).unwrap_or_default();
        common.cluster_ips.replace(&cluster_ips(before), &cluster_ips(after), || ClusterIp, &mut delta.cluster_ips);
        let local = |port: Option<&CompiledPort>| port.map(|port| port.local_addresses.clone()).unwrap_or_default();
        common.hairpins.replace(&local(before), &local(after), || Hairpin, &mut delta.hairpins);
        difference(before, after, delta);
    }
}

// === impl Common ===

impl Common {
    /// All but the cluster addresses, which are many.
    fn note_rest(&self, table: &mut TableDelta) {
        self.hairpins.iter().for_each(|address| table.hairpins.note(address, None, Some(Hairpin)));
        for range in &self.node_port_addresses {
            table.node_port_addresses.note(*range, None, Some(NodePortAddress));
        }
        for range in &self.service_networks {
            table.service_networks.note(*range, None, Some(ServiceNetwork));
        }
    }
}

// === impl CompiledPort ===

impl CompiledPort {
    fn decision(&self, verdict: Verdict) -> Decision {
        let decided = match verdict {
            Verdict::Cluster => self.lead_to(&self.cluster),
            Verdict::Local => self.lead_to(&self.local),
            Verdict::Discard => Some(Decision { pool: self.cluster.id, plan: Plan::Discard }),
            Verdict::Refuse => None,
        };
        // The pool's number stays in the decision, so that a restarted process finds it there.
        decided.unwrap_or(Decision { pool: self.cluster.id, plan: Plan::Refuse })
    }

    /// The decision that leads to a pool; `None` without endpoints.
    fn lead_to(&self, pool: &Pool) -> Option<Decision> {
        let decision = pool.decision()?;
        Some(match self.path {
            Path::Kernel => decision,
            Path::Userspace(_) => Decision { plan: Plan::Userspace, ..decision },
        })
    }

    /// The first decision for external frontends, source ranges aside.
    fn external(&self) -> Decision {
        match self.cluster.id {
            Some(_) if self.inside != self.outside => Decision { pool: self.cluster.id, plan: Plan::LocalPolicy },
            _ => self.decision(self.outside),
        }
    }

    /// The pool of a ring.
    fn ring(&self, ring: &Ring) -> &Pool {
        if ring.local { &self.local } else { &self.cluster }
    }

    /// Whether a ring is still the same.
    fn has(&self, ring: &Ring) -> bool {
        let pool = self.ring(ring);
        !pool.candidates.is_empty() && pool.dedicated(&self.key).as_ref() == Some(&ring.chain)
    }

    /// Who stands in a slot of the cluster's pool, or of the local one.
    pub(super) fn slot(&self, local: bool, slot: usize) -> Option<SocketAddr> {
        self.pools()[usize::from(local)].slots.get(slot)
    }

    /// Whether somebody stands in a slot of that pool.
    pub(super) fn has_slot(&self, local: bool, endpoint: SocketAddr) -> bool {
        self.pools()[usize::from(local)].slots.iter().any(|slot| slot == endpoint)
    }

    /// Who stands in the slots, pool by pool.
    pub(super) fn slots(&self) -> [Vec<SocketAddr>; 2] {
        self.pools().map(|pool| pool.slots.to_vec())
    }

    /// Where clients connect to.
    fn entrances(&self) -> impl Iterator<Item = (Protocol, Destination)> {
        let all = Destination::all(&self.frontends, self.family, self.node_port);
        all.map(|destination| (self.key.protocol, destination))
    }

    /// Whether clients connect to the same addresses.
    fn is_entered_like(&self, other: &Self) -> bool {
        self.frontends == other.frontends && self.node_port == other.node_port
    }

    /// Whether the same clients are let in, keep their address, and stay with whom they had.
    pub(super) fn admits_like(&self, other: &Self) -> bool {
        (self.keeps_source, self.cluster.affinity) == (other.keeps_source, other.cluster.affinity)
            && self.source_ranges == other.source_ranges
    }

    /// Lets endpoints go and come, and notes what differs; also says which slots of its pools do. `false`: not all of it could be done.
    fn exchange(
        &mut self,
        exchange: &PortExchange,
        seed: u64,
        delta: &mut TableDelta,
    ) -> (bool, [Changed<SocketAddr>; 2]) {
        let PortExchange { cluster, local, local_addresses: Exchange { gone, came }, .. } = exchange;
        // Who decides depends on how many slots there are, and on nothing else of them.
        let differs = [cluster, local].iter().any(|one| one.gone.len() != one.came.len());
        let before = differs.then(|| (self.services(), self.node_ports(), self.hops()));
        let in_cluster = self.cluster.exchange(&self.key, exchange.scheduler, cluster, seed, delta);
        let in_local = match in_cluster {
            Some(_) => self.local.exchange(&self.key, exchange.scheduler, local, seed, delta),
            None => None,
        };
        let done = in_local.is_some();
        if let Some((services, node_ports, hops)) = before {
            delta.services.note_list(&services, &self.services());
            delta.node_ports.note_list(&node_ports, &self.node_ports());
            delta.hops.note_list(&hops, &self.hops());
        }
        if !gone.is_empty() || !came.is_empty() {
            self.local_addresses.retain(|address| gone.binary_search(address).is_err());
            self.local_addresses.extend(came);
            self.local_addresses.sort_unstable();
        }
        (done, [in_cluster, in_local].map(Option::unwrap_or_default))
    }

    fn pools(&self) -> [&Pool; 2] {
        [&self.cluster, &self.local]
    }

    fn target(&self, role: Role) -> Target {
        let decision = match (role, &self.source_ranges) {
            (Role::Cluster, _) => self.decision(self.internal),
            (Role::LoadBalancer, Some(_)) => match self.cluster.id {
                Some(_) => Decision { pool: self.cluster.id, plan: Plan::SourceRanges },
                None => Decision::REFUSE,
            },
            (Role::LoadBalancer | Role::External, _) => self.external(),
        };
        self.labelled(decision)
    }

    fn labelled(&self, decision: Decision) -> Target {
        Target { decision, label: self.label.clone() }
    }

    fn is_external(&self) -> bool {
        self.node_port.is_some() || self.frontends.iter().any(|(_, role)| *role != Role::Cluster)
    }

    fn hops(&self) -> Vec<(Hop, Target)> {
        let mut hops = Vec::new();
        if let Path::Userspace(reason) = self.path {
            for decision in self.pools().into_iter().filter_map(Pool::decision) {
                let Some(pool) = decision.pool else { continue };
                let refused = Decision { plan: Plan::Refuse, ..decision };
                let instead = if reason.has_kernel_path() { decision } else { refused };
                hops.push((Hop { stage: Stage::Instead, pool }, self.labelled(instead)));
            }
        }
        let Some(pool) = self.cluster.id else { return hops };
        let mut hop = |stage, decision| hops.push((Hop { stage, pool }, self.labelled(decision)));
        if self.source_ranges.is_some() {
            hop(Stage::Admitted, self.external());
        }
        if self.is_external() && self.external().plan == Plan::LocalPolicy {
            hop(Stage::Inside, self.decision(self.inside));
            hop(Stage::Outside, self.decision(self.outside));
        }
        hops
    }

    fn ranges(&self) -> Vec<(SourceRange, Label)> {
        let Some(pool) = self.cluster.id else { return Vec::new() };
        let ranges = self.source_ranges.iter().flatten();
        ranges.map(|range| (SourceRange { pool, range: *range }, Label(self.label.clone()))).collect()
    }

    fn masquerade(&self) -> Masquerade {
        Masquerade { from_host_only: self.keeps_source, label: self.label.clone() }
    }

    fn services(&self) -> Vec<(Frontend, Target)> {
        self.frontends.iter().map(|(frontend, role)| (*frontend, self.target(*role))).collect()
    }

    fn node_ports(&self) -> Vec<(NodePort, Target)> {
        self.node_port.map(|node_port| (node_port, self.labelled(self.external()))).into_iter().collect()
    }

    fn masqueraded(&self) -> Vec<(Frontend, Masquerade)> {
        let external = self.frontends.iter().filter(|(_, role)| *role != Role::Cluster);
        external.map(|(frontend, _)| (*frontend, self.masquerade())).collect()
    }

    fn masqueraded_node_ports(&self) -> Vec<(NodePort, Masquerade)> {
        self.node_port.map(|node_port| (node_port, self.masquerade())).into_iter().collect()
    }

    fn cluster_ips(&self) -> Vec<IpAddr> {
        let internal = self.frontends.iter().filter(|(_, role)| *role == Role::Cluster);
        internal.map(|(frontend, _)| frontend.address).collect()
    }
}

// === differences ===

/// What belongs to one port alone.
fn difference(before: Option<&CompiledPort>, after: Option<&CompiledPort>, delta: &mut TableDelta) {
    macro_rules! compare {
        ($($edits:ident: $list:ident),*) => {$(
            let list = |port: Option<&CompiledPort>| port.map(CompiledPort::$list).unwrap_or_default();
            delta.$edits.note_list(&list(before), &list(after));
        )*};
    }
    compare!(
        services: services,
        node_ports: node_ports,
        hops: hops,
        source_ranges: ranges,
        masqueraded: masqueraded,
        masqueraded_node_ports: masqueraded_node_ports
    );
    let Some(key) = before.or(after).map(|port| &port.key) else { return };
    fn pools(port: Option<&CompiledPort>) -> [Option<&Pool>; 2] {
        port.map_or([None; 2], |port| port.pools().map(Some))
    }
    // A pool keeps its number for life, so both states are under the same.
    for (old, new) in pools(before).into_iter().zip(pools(after)) {
        let chain = |pool: Option<&Pool>| pool.and_then(|pool| pool.dedicated(key));
        if let Some(id) = old.and_then(|pool| pool.id).or(new.and_then(|pool| pool.id)) {
            delta.dedicated.note(id, chain(old), chain(new));
        }
        pool::difference(old, new, delta);
    }
}

fn replace_ranges<V: Copy>(
    known: &mut Vec<AddressRange>,
    wanted: Vec<AddressRange>,
    mut note: impl FnMut(AddressRange, Option<V>, Option<V>),
    mark: V,
) {
    known.iter().filter(|range| !wanted.contains(range)).for_each(|range| note(*range, Some(mark), None));
    wanted.iter().filter(|range| !known.contains(range)).for_each(|range| note(*range, None, Some(mark)));
    *known = wanted;
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

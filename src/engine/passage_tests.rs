//! Packets that are on their way while a change is committed.
//!
//! A packet asks map after map, and each answer may be from before a transaction or from after it, but never from before an earlier answer.
//! Here every frontend is followed through all such ways, over the phases in which the data plane commits a batch ([`Phases`]). Wherever it
//! comes out, that is an endpoint of the Service that had the frontend before the batch or has it after: never anybody else's. And it is
//! never nowhere, or refused, unless it would have been so before or after, or is so by now at the Service that it was led to: one that
//! gives a frontend away and loses its endpoints in the same batch refuses, and so does, without a forwarder, one that only a forwarder can
//! serve by now.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::tests::{any_change, apply, rich_service, slice, small_engine};
use super::*;
use crate::compile::layout::{Decision, Plan, PoolId};
use crate::compile::{Hop, Phases, Slot, SlotKey, Stage, TableImage};
use crate::schedule::Pick;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Endpoint(SocketAddr),
    Refused,
    Dropped,
    /// No rule took it: it goes on untranslated.
    Astray,
}

/// The states that a table goes through, and what a packet may meet that asks while it does.
struct Passage<'a>(&'a [TableImage]);

// === impl Passage ===

impl Passage<'_> {
    /// All ends of a packet whose first answer is `first`, for each state in which it may have got it.
    fn ends(&self, first: impl Fn(&TableImage) -> Option<Decision>) -> BTreeSet<End> {
        let mut ends = BTreeSet::new();
        for (now, table) in self.0.iter().enumerate() {
            match first(table) {
                Some(decision) => self.decided(decision, now, &mut ends),
                None => drop(ends.insert(End::Astray)),
            }
        }
        ends
    }

    /// Each state from `now` on, with its number.
    fn from(&self, now: usize) -> impl Iterator<Item = (usize, &TableImage)> {
        self.0.iter().enumerate().skip(now)
    }

    fn decided(&self, decision: Decision, now: usize, ends: &mut BTreeSet<End>) {
        let pool = || decision.pool.expect("a pool");
        match decision.plan {
            Plan::Refuse => drop(ends.insert(End::Refused)),
            Plan::Discard => drop(ends.insert(End::Dropped)),
            Plan::Random(slots) => self.slots(pool(), slots.into(), now, ends),
            Plan::Hash(_, buckets) => self.slots(pool(), buckets.count(), now, ends),
            Plan::SourceRanges => self.hop(pool(), &[Stage::Admitted], now, ends),
            Plan::LocalPolicy => self.hop(pool(), &[Stage::Inside, Stage::Outside], now, ends),
            // With no forwarder to take it.
            Plan::Userspace => self.hop(pool(), &[Stage::Instead], now, ends),
            Plan::Dedicated => {
                for (next, table) in self.from(now) {
                    match table.dedicated.get(&pool()) {
                        None => self.slot(SlotKey { pool: pool(), slot: 0 }, next, ends),
                        Some(chain) if chain.affinity.is_some() => self.member_slots(pool(), chain.slots, next, ends),
                        Some(chain) => self.slots(pool(), chain.slots, next, ends),
                    }
                }
            }
        }
    }

    fn hop(&self, pool: PoolId, stages: &[Stage], now: usize, ends: &mut BTreeSet<End>) {
        for stage in stages {
            for (next, table) in self.from(now) {
                match table.hops.get(&Hop { stage: *stage, pool }) {
                    Some(target) => self.decided(target.decision, next, ends),
                    None => drop(ends.insert(End::Astray)),
                }
            }
        }
    }

    /// A slot of the pool, and slot 0 if it is not there.
    fn slots(&self, pool: PoolId, count: u32, now: usize, ends: &mut BTreeSet<End>) {
        for slot in 0..count {
            for (next, table) in self.from(now) {
                match table.endpoints.get(&SlotKey { pool, slot }) {
                    Some(Slot { endpoint, .. }) => drop(ends.insert(End::Endpoint(*endpoint))),
                    None => self.slot(SlotKey { pool, slot: 0 }, next, ends),
                }
            }
        }
    }

    fn slot(&self, key: SlotKey, now: usize, ends: &mut BTreeSet<End>) {
        let found = self.from(now).map(|(_, table)| table.endpoints.get(&key));
        ends.extend(found.map(|slot| slot.map_or(End::Astray, |slot| End::Endpoint(slot.endpoint))));
    }

    /// As [`Passage::slots`], by way of members. Slot 0 is asked once more even by who has asked it.
    fn member_slots(&self, pool: PoolId, count: u32, now: usize, ends: &mut BTreeSet<End>) {
        for slot in 0..count {
            for last in self.member_slot(SlotKey { pool, slot }, now, ends) {
                for _ in self.member_slot(SlotKey { pool, slot: 0 }, last, ends) {
                    ends.insert(End::Astray);
                }
            }
        }
    }

    /// The endpoints of a slot's member; the answer is in which states there was none.
    fn member_slot(&self, key: SlotKey, now: usize, ends: &mut BTreeSet<End>) -> BTreeSet<usize> {
        let mut missed = BTreeSet::new();
        for (next, table) in self.from(now) {
            let member = table.member_slots.get(&key);
            for (last, table) in self.from(next) {
                match member.and_then(|member| table.members.get(member)) {
                    Some(slot) => drop(ends.insert(End::Endpoint(slot.endpoint))),
                    None => drop(missed.insert(last)),
                }
            }
        }
        missed
    }

    /// All endpoints, by slot or as members, of the pools that this decision leads to; and the refusal, if that is what a forwarder's
    /// absence means in the end.
    fn owned(&self, decision: Decision) -> BTreeSet<End> {
        let mut pools: BTreeSet<_> = decision.pool.into_iter().collect();
        let hops = self.0.iter().flat_map(|table| &table.hops);
        pools.extend(hops.filter(|(hop, _)| decision.pool == Some(hop.pool)).filter_map(|(_, to)| to.decision.pool));
        let last = self.0.last().expect("one");
        let instead = pools.iter().filter_map(|pool| last.hops.get(&Hop { stage: Stage::Instead, pool: *pool }));
        let refused = instead.filter(|to| to.decision.plan == Plan::Refuse).map(|_| End::Refused);
        let slots = self.0.iter().flat_map(|table| &table.endpoints).map(|(key, slot)| (key.pool, slot));
        let members = self.0.iter().flat_map(|table| &table.members).map(|(member, slot)| (member.pool, slot));
        let own = slots.chain(members).filter(|(pool, _)| pools.contains(pool));
        own.map(|(_, slot)| End::Endpoint(slot.endpoint)).chain(refused).collect()
    }
}

/// The states of the kernel from before a change until it is programmed as far as packets can tell.
fn states(before: &Image, phases: &Phases<'_>) -> Vec<Image> {
    let mut states = vec![before.clone()];
    for phase in [&phases.ahead, &*phases.now] {
        let mut next = states.last().expect("one").clone();
        apply(&mut next, phase);
        states.push(next);
    }
    states
}

/// Fails if a packet can end where neither the state before nor the one after would have it.
fn check(states: &[Image], what: &str) -> Result<(), TestCaseError> {
    for family in Family::ALL {
        let tables: Vec<TableImage> = states.iter().map(|image| image.table(family).clone()).collect();
        let [first, .., last] = &tables[..] else { panic!("two states at least") };
        let one = |table: &TableImage, first: &dyn Fn(&TableImage) -> Option<Decision>| {
            Passage(std::slice::from_ref(table)).ends(first)
        };
        let follow = |name: String, decide: &dyn Fn(&TableImage) -> Option<Decision>| {
            // A frontend that passes from one Service to another may still reach endpoints that the first gets in the same batch.
            let owned =
                [first, last].into_iter().filter_map(decide).flat_map(|decision| Passage(&tables).owned(decision));
            let mut by_now = BTreeSet::new();
            if let Some(decision) = decide(first) {
                Passage(std::slice::from_ref(last)).decided(decision, 0, &mut by_now);
                by_now.retain(|end| matches!(end, End::Refused | End::Dropped));
            }
            let allowed: BTreeSet<End> =
                (one(first, decide).into_iter()).chain(one(last, decide)).chain(owned).chain(by_now).collect();
            let ends = Passage(&tables).ends(decide);
            let wrong: Vec<_> = ends.difference(&allowed).collect();
            prop_assert!(wrong.is_empty(), "{}: {}: {:?}, but may {:?}", what, name, wrong, allowed);
            Ok(())
        };
        let frontends: BTreeSet<_> = tables.iter().flat_map(|table| table.services.keys()).collect();
        for frontend in frontends {
            follow(frontend.to_string(), &|table| Some(table.services.get(frontend)?.decision))?;
        }
        let ports: BTreeSet<_> = tables.iter().flat_map(|table| table.node_ports.keys()).collect();
        for port in ports {
            follow(format!("{port:?}"), &|table| Some(table.node_ports.get(port)?.decision))?;
        }
    }
    Ok(())
}

/// Programs what was taken, and looks at what packets can meet meanwhile, whichever way the change is committed.
fn program(engine: &mut Engine, kernel: &mut Image) -> Result<(), TestCaseError> {
    let delta = engine.compile().delta;
    for (phases, what) in [(Phases::of_small(&delta), "at once"), (Phases::of_large(&delta), "in phases")] {
        let mut states = states(kernel, &phases);
        check(&states, what)?;
        // Then what nobody is led to any more goes.
        let mut end = states.pop().expect("one");
        let settled = end.clone();
        apply(&mut end, &phases.behind);
        check(&[settled, end.clone()], "afterwards")?;
        let mut wanted = kernel.clone();
        apply(&mut wanted, &delta);
        prop_assert_eq!(&end, &wanted, "all phases together are the change");
    }
    apply(kernel, &delta);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Random histories in random batches: Services that are deleted and come again with another address, that swap addresses, claim
    /// what another one has, change scheduler, affinity and policies; slices that come, go and pass to another Service.
    #[test]
    fn no_packet_is_led_astray_or_to_anybody_elses_endpoint(
        history in proptest::collection::vec((any_change(), any::<bool>()), 1..40),
    ) {
        let (mut engine, mut kernel) = (small_engine(), Image::default());
        for (change, batch_ends) in history {
            engine.take(change);
            if batch_ends {
                program(&mut engine, &mut kernel)?;
            }
        }
        program(&mut engine, &mut kernel)?;
    }
}

/// What the property must be able to see: each of these led packets nowhere when it was committed at once.
#[test]
fn changes_that_leave_pools_have_something_behind() {
    let here = || slice("s", "a", false, &(1..=3).collect());
    let plain = |name: &str, ip: u8| rich_service(name, &[format!("10.0.0.{ip}")], 0, &[1]);
    let sticky = |ip: u8| rich_service("a", &[format!("10.0.0.{ip}")], 1 << 7, &[1]);
    let gone =
        |kind, name: &str| Change::Delete(kind, crate::source::ObjectKey { namespace: "ns".into(), name: name.into() });
    let cases: [(&str, Vec<Change>, bool); 6] = [
        ("a frontend passes to another Service", vec![gone(Kind::Service, "a"), plain("b", 1)], true),
        ("the last endpoint leaves", vec![gone(Kind::EndpointSlice, "s")], true),
        ("affinity is asked for", vec![sticky(1)], true),
        ("a Service is deleted: nobody is served", vec![gone(Kind::Service, "a")], false),
        ("a Service moves", vec![plain("a", 2)], false),
        ("an endpoint leaves", vec![slice("s", "a", false, &(1..=2).collect())], false),
    ];
    for (what, changes, leaves) in cases {
        let (mut engine, mut kernel) = (small_engine(), Image::default());
        [plain("a", 1), here()].into_iter().for_each(|change| engine.take(change));
        apply(&mut kernel, &engine.compile().delta);
        changes.into_iter().for_each(|change| engine.take(change));
        let delta = engine.compile().delta;
        let phases = Phases::of_small(&delta);
        assert_eq!(!phases.behind.is_empty(), leaves, "{what}: {:?}", phases.behind);
        // As it would be without phases.
        let mut at_once = kernel.clone();
        apply(&mut at_once, &delta);
        assert_eq!(check(&[kernel, at_once], what).is_err(), leaves, "{what}");
    }
}

/// The slots of a ring keep their pool, so the property holds for it as for any other way to pick.
#[test]
fn rings_are_followed_like_any_other_way_to_pick() {
    let mut engine = small_engine();
    engine.take(rich_service("a", &["10.0.0.1".to_owned()], 6 << 9 | 1 << 4, &[1]));
    engine.take(slice("s", "a", false, &(1..=3).collect()));
    let mut kernel = Image::default();
    apply(&mut kernel, &engine.compile().delta);
    assert!(kernel.v4.dedicated.values().all(|chain| chain.pick == Pick::Ring), "{:?}", kernel.v4.dedicated);
    let frontend = *kernel.v4.services.keys().next().expect("one");
    let ends = Passage(std::slice::from_ref(&kernel.v4)).ends(|table| Some(table.services.get(&frontend)?.decision));
    assert_eq!(ends.len(), 3, "{ends:?}");
}

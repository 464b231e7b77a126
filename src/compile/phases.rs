//! What of a change comes before the rest, and what after it.
//!
//! A packet asks several maps, one after the other, and a commit may come between two questions: it then has an answer from before the
//! commit and asks on with it. So what such an answer leads to has to outlive the change that leads nobody there any more, by a moment.
//! That is the case when a frontend is led away from a pool that goes or that is kept in other maps from now on: its Service lost its
//! last endpoint, the frontend passes to another Service or port, session affinity or a traffic policy changes. What was led to goes in a
//! transaction of its own then, [`Phases::behind`]. Where a frontend vanishes with its pool, nobody has to be led anywhere.
//!
//! A change too large for one transaction has its new slots [`Phases::ahead`], which nobody refers to yet, and all that vanishes behind.
//!
//! Invariant: whenever a packet asks, it is led to an endpoint that was its frontend's before the change or is after it, and never to
//! nothing as long as the frontend is served. What it may meet is the Service it was led to as that is by now: one that gives its frontend
//! away and has nobody left in the same batch refuses the packets that were on their way to it. Proven by `engine/passage_tests.rs`, which
//! asks every map before and after each phase, and with real packets by `tests/kernel/change.rs`.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::delta::Delta;
use super::elements::{SlotKey, TableDelta};
use super::layout::PoolId;
use crate::model::Family;

/// A change in the order in which it is to be committed.
#[derive(Debug)]
pub struct Phases<'a> {
    /// Slots and members that were not there: before everything else.
    pub ahead: Delta,
    /// All that has to happen at once.
    pub now: Cow<'a, Delta>,
    /// What nobody is led to any more, once packets that are on their way have passed.
    pub behind: Delta,
}

// === impl Phases ===

impl<'a> Phases<'a> {
    /// In one transaction, if packets on their way allow it.
    pub fn of_small(delta: &'a Delta) -> Self {
        let left = Family::ALL.map(|family| delta.table(family).left());
        let (mut now, mut behind) = (Cow::Borrowed(delta), Delta::default());
        for (family, pools) in Family::ALL.into_iter().zip(left).filter(|(_, pools)| !pools.is_empty()) {
            *behind.table_mut(family) = now.to_mut().table_mut(family).split_off_left(&pools);
        }
        Self { ahead: Delta::default(), now, behind }
    }

    /// So that as little as possible has to happen at once.
    pub fn of_large(delta: &Delta) -> Phases<'static> {
        let (mut ahead, mut now, mut behind) = (Delta::default(), delta.clone(), Delta::default());
        for family in Family::ALL {
            let left = delta.table(family).left();
            let table = now.table_mut(family);
            *behind.table_mut(family) = table.split_off_left(&left);
            macro_rules! part {
                ($($map:ident),*) => {$(
                    ahead.table_mut(family).$map = table.$map.split_off(|_, edit| edit.before.is_none());
                    let vanished = table.$map.split_off(|_, edit| edit.after.is_none());
                    behind.table_mut(family).$map.append(vanished);
                )*};
            }
            part!(endpoints, members, member_slots);
        }
        Phases { ahead, now: Cow::Owned(now), behind }
    }
}

// === impl TableDelta: what is left ===

impl TableDelta {
    /// The pools that frontends are led away from and that lose what leads on from there.
    fn left(&self) -> BTreeSet<PoolId> {
        let first = |key: &SlotKey| (key.slot == 0).then_some(key.pool);
        let losing: BTreeSet<PoolId> = (self.endpoints.vanished().filter_map(|(key, _)| first(key)))
            .chain(self.member_slots.vanished().filter_map(|(key, _)| first(key)))
            .chain(self.hops.vanished().map(|(hop, _)| hop.pool))
            .collect();
        // Nearly always: a change of endpoints leaves slot 0 where it is.
        if losing.is_empty() {
            return losing;
        }
        let led_away = (self.services.replaced().map(|(_, target)| target))
            .chain(self.node_ports.replaced().map(|(_, target)| target))
            .chain(self.hops.replaced().map(|(_, target)| target));
        // A chain that is another one from now on may look into another map.
        let turned = self.dedicated.replaced().map(|(pool, _)| *pool);
        let mut left: BTreeSet<_> = led_away.filter_map(|target| target.decision.pool).chain(turned).collect();
        // Who checks something first may go on to the pool of the endpoints on this node, by a hop that vanishes as well.
        let onwards = self.hops.vanished().filter(|(hop, _)| left.contains(&hop.pool));
        let onwards: Vec<_> = onwards.filter_map(|(_, target)| target.decision.pool).collect();
        left.extend(onwards);
        left.retain(|pool| losing.contains(pool));
        left
    }

    /// Takes out what vanishes of these pools.
    fn split_off_left(&mut self, pools: &BTreeSet<PoolId>) -> Self {
        Self {
            hops: self.hops.split_off(|hop, edit| edit.after.is_none() && pools.contains(&hop.pool)),
            endpoints: self.endpoints.split_off(|key, edit| edit.after.is_none() && pools.contains(&key.pool)),
            members: self.members.split_off(|member, edit| edit.after.is_none() && pools.contains(&member.pool)),
            member_slots: self.member_slots.split_off(|key, edit| edit.after.is_none() && pools.contains(&key.pool)),
            dedicated: self.dedicated.split_off(|pool, edit| edit.after.is_none() && pools.contains(pool)),
            ..Self::default()
        }
    }
}

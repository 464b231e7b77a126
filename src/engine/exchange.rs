//! Large Services of which a few endpoints change: who went and came is all that is looked at.
//!
//! A Service gets a [`Roster`] when slices of it have changed and it has many endpoints, and loses it when anything else about it
//! changes. What an exchange leaves alone needs no look: claims, health checks, routes through the forwarder, flows of UDP, slow start
//! and drains, problems. [`Roster::of`] makes sure that there are none that depend on single endpoints.
//!
//! Proven by the property tests below: an engine that exchanges wherever it can answers every history with the same differences as one
//! that never does.

use super::{Engine, Slices};
use crate::compile::Delta;
use crate::model::{ServiceKey, Slice};
use crate::policy::{Assessment, Context, ResolvedPort, Roster, SliceChange};

/// A Service of so many endpoints has a roster: below, looking at all of them takes no longer than the kernel does with the answer.
pub(super) const ROSTER_FROM: usize = 64;

impl Engine {
    /// Nothing but this slice of a Service has changed, as far as this change goes.
    pub(super) fn touch_slice(&mut self, service: &ServiceKey, name: &str, before: Option<Slice>) {
        let roster = self.rosters.contains_key(service);
        self.touched.slice(service.clone(), name, before, roster);
    }

    /// Compiles what follows from slices of a Service that have changed; `false`, if all of it has to be decided again.
    pub(super) fn exchange(&mut self, key: &ServiceKey, slices: &Slices, delta: &mut Delta) -> bool {
        let (Some(roster), false) = (self.rosters.get_mut(key), slices.is_empty()) else { return false };
        let store = &self.store;
        let changes: Vec<SliceChange<'_>> =
            slices.iter().map(|(name, before)| (before.as_ref(), store.slice(key, name))).collect();
        let exchanged = roster.exchange(&changes, super::context!(self));
        let done = exchanged.is_some_and(|exchanges| self.compiler.exchange(key, &exchanges, delta));
        self.exchanges += u64::from(done);
        done
    }

    /// After a decision on the whole: whether a roster is of use from now on.
    pub(super) fn enroll(&mut self, key: &ServiceKey, resolved: &[ResolvedPort], slices_changed: bool) {
        let slices = self.store.slices(key);
        let endpoints = || slices.clone().map(|slice| slice.endpoints.len()).sum::<usize>();
        let service = self.store.service(key).filter(|_| slices_changed && endpoints() >= self.roster_from);
        let roster = service.filter(|_| self.routes.listeners(key).next().is_none()).and_then(|service| {
            let overrides = self.overrides.of(key);
            let assessment = Assessment::new(service, slices.clone(), overrides);
            Roster::of(
                service,
                slices.clone(),
                resolved,
                Context { assessment: Some(&assessment), overrides, ..super::context!(self) },
            )
        });
        match roster {
            Some(roster) => drop(self.rosters.insert(key.clone(), roster)),
            None => drop(self.rosters.remove(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::compile::Image;
    use crate::engine::Engine;
    use crate::engine::tests::{apply, delete, node, rich_service, rich_slice, small_engine};
    use crate::model::Family;
    use crate::source::{Change, Kind};

    /// One that has rosters of everything, and one that has none.
    fn pair() -> [Engine; 2] {
        let with = |roster_from| Engine { roster_from, ..small_engine() };
        [with(0), with(usize::MAX)]
    }

    /// Compiles both, and demands the same of them.
    fn compile([with, without]: &mut [Engine; 2]) -> crate::compile::Delta {
        let before = with.exchanges;
        let (by_rosters, whole) = (with.compile(), without.compile());
        assert_eq!(by_rosters.delta, whole.delta);
        let problems = |outcome: &crate::engine::Outcome| format!("{:?}", outcome.problems);
        assert_eq!(problems(&by_rosters), problems(&whole));
        if with.exchanges - before == by_rosters.services.len() as u64 {
            // What was exchanged in part and then decided as a whole is told in two parts.
            assert_eq!(by_rosters.changes, whole.changes);
        }
        assert_eq!((by_rosters.services, by_rosters.touched), (whole.services, whole.touched));
        assert_eq!((with.health(), with.no_local_endpoints()), (without.health(), without.no_local_endpoints()));
        assert_eq!(with.take_interests(), without.take_interests());
        assert_eq!(with.take_wishes(), without.take_wishes());
        assert!(with.everything() == without.everything(), "what is remembered is the same, too");
        by_rosters.delta
    }

    fn take(engines: &mut [Engine; 2], change: &Change) {
        engines.iter_mut().for_each(|engine| engine.take(change.clone()));
    }

    /// Endpoint by endpoint: one for another, then more and more, then many fewer at once. How many of the 79 events were exchanges.
    fn roll(flavour: u16) -> u64 {
        let mut engines = pair();
        let mut change = |change: Change| {
            take(&mut engines, &change);
            let delta = compile(&mut engines);
            (delta.len(), engines[0].exchanges)
        };
        let slice = |name: &str, endpoints: BTreeSet<u8>| rich_slice(name, "web", false, &endpoints, 0);
        change(rich_service("web", &["10.0.0.1".into()], flavour, &[1]));
        change(slice("b", (101..150).collect()));
        change(slice("a", (1..50).collect()));
        let begin = change(slice("a", (1..51).collect())).1;
        for step in 1..40 {
            let (elements, _) = change(slice("a", (1 + step..51 + step).collect()));
            assert!(elements <= 3, "one for one: a slot, and maybe addresses here: {elements}");
        }
        for step in 1..40 {
            change(slice("b", (101..150 + step).collect()));
        }
        let (_, end) = change(slice("b", (101..150).collect()));
        end - begin
    }

    #[test]
    fn a_rolling_restart_is_exchanges_all_the_way() {
        // random and rr; with a node port; with a Local policy for internal traffic.
        assert_eq!([0, 0b1_0000, 0b1, 0b10_0000].map(roll), [79; 4]);
        assert_eq!(
            roll(0b100_0000),
            0,
            "a Local policy for external traffic has a health check, which counts endpoints"
        );
    }

    #[test]
    fn what_couples_endpoints_is_looked_at_as_a_whole() {
        let mut engines = pair();
        let mut exchanged = |changes: &[Change]| {
            let before = engines[0].exchanges;
            changes.iter().for_each(|change| take(&mut engines, change));
            compile(&mut engines);
            engines[0].exchanges - before
        };
        let slice = |name: &str, endpoints: &[u8], flavour| {
            rich_slice(name, "web", false, &endpoints.iter().copied().collect(), flavour)
        };
        exchanged(&[node(1, "east"), rich_service("web", &["10.0.0.1".into()], 0, &[1])]);
        exchanged(&[slice("a", &[1, 2, 3], 0)]);
        assert_eq!(exchanged(&[slice("a", &[1, 2, 3, 4], 0)]), 1);
        assert_eq!(exchanged(&[slice("b", &[5, 6], 0)]), 1, "a slice more");
        assert_eq!(exchanged(&[slice("a", &[1, 2, 3], 0), slice("b", &[4, 5, 6], 0)]), 1, "from one slice to another");
        assert_eq!(exchanged(&[slice("b", &[3, 4, 5, 6], 0)]), 0, "in two slices at a time");
        assert_eq!(exchanged(&[slice("a", &[1, 2], 0)]), 0, "and in one again");
        assert_eq!(exchanged(&[slice("a", &[1, 2, 3], 3)]), 0, "in two again, and hints");
        assert_eq!(exchanged(&[slice("b", &[5, 6], 3)]), 0, "everybody has hints: they count");
        assert_eq!(exchanged(&[slice("b", &[5, 6, 8], 3)]), 1, "and still do");
        assert_eq!(exchanged(&[slice("b", &[5, 6, 8, 9], 0)]), 0, "they do no more");
        assert_eq!(exchanged(&[slice("a", &[1, 2, 3], 2), slice("b", &[], 0)]), 0, "nobody is ready");
        assert_eq!(exchanged(&[slice("a", &[1, 2], 2)]), 1);
        assert_eq!(exchanged(&[rich_service("web", &["10.0.0.2".into()], 0, &[1])]), 0);
        assert_eq!(exchanged(&[slice("a", &[1, 2, 3], 2)]), 0, "the first time after a change of the Service");
        assert_eq!(exchanged(&[slice("a", &[1, 2], 2)]), 1);
        assert_eq!(exchanged(&[delete(Kind::EndpointSlice, "b")]), 1, "it was empty");
        assert_eq!(exchanged(&[delete(Kind::EndpointSlice, "a")]), 0, "nobody is left");
    }

    /// Two Services, of kinds that have rosters and some that have none, with two slices each that overlap a little.
    fn any_change() -> impl Strategy<Value = Change> {
        let service = (any::<bool>(), 1u8..3, 0u16..128, any::<bool>()).prop_map(|(b, ip, flavour, two)| {
            let (name, ports) = if b { ("b", [2, 3]) } else { ("a", [1, 2]) };
            let ips = [format!("10.0.0.{ip}"), format!("fd00::{ip}")];
            rich_service(name, &ips, flavour, &ports[..if two { 2 } else { 1 }])
        });
        let endpoints = proptest::collection::btree_set(0u8..24, 0..20);
        let slice =
            (0u8..4, 0u8..8, endpoints, 0u8..8, any::<bool>()).prop_map(|(slice, owner, endpoints, flavour, v6)| {
                let (name, home) = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")][usize::from(slice)];
                let owner = if owner == 0 { "b" } else { home };
                let endpoints = endpoints.into_iter().map(|one| 1 + slice % 2 * 20 + one).collect();
                rich_slice(name, owner, v6 && flavour == 0, &endpoints, flavour.saturating_sub(4))
            });
        let deleted = prop_oneof![Just("a1"), Just("a2"), Just("b1")];
        prop_oneof![
            2 => service,
            24 => slice,
            1 => deleted.prop_map(|name| delete(Kind::EndpointSlice, name)),
            1 => any::<bool>().prop_map(|b| delete(Kind::Service, if b { "b" } else { "a" })),
            1 => any::<bool>().prop_map(|east| node(1, if east { "east" } else { "west" })),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Whatever the history, however it is cut into batches and the batches into parts.
        #[test]
        fn an_exchange_differs_in_nothing_from_a_decision_on_the_whole(
            history in proptest::collection::vec((any_change(), any::<bool>()), 1..60),
            parts in any::<bool>(),
        ) {
            let mut engines = pair();
            let mut kernel = Image::default();
            for (change, batch_ends) in history {
                take(&mut engines, &change);
                if !batch_ends {
                    continue;
                }
                if parts {
                    let [first, second] = engines.each_mut().map(|engine| engine.compile_part(1));
                    prop_assert_eq!(&first.delta, &second.delta);
                    apply(&mut kernel, &first.delta);
                }
                let delta = compile(&mut engines);
                apply(&mut kernel, &delta);
                for family in Family::ALL {
                    let table = kernel.table(family);
                    prop_assert!(engines[0].difference(kernel.clone()).is_empty(), "{family}: {table:?}");
                }
            }
        }
    }
}

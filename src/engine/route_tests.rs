//! The engine together with a forwarder that opens listeners, fails to, and closes them: whatever the history, what is left to the
//! forwarder has a pool by which its listener is found, the kernel knows what to do instead, and everything else is as ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

use super::tests::{any_change, apply, is_clean, observable, rich_service, slice, small_engine};
use super::*;
use crate::compile::layout::{Plan, PoolId};
use crate::compile::{Image, TableImage};
use crate::policy::{NodePortAddresses, Reason};

const LISTENER_V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 9, 9));
const LISTENER_V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 9));

/// As the daemon's, without sockets.
#[derive(Default)]
struct Forwarder {
    open: BTreeMap<ListenerKey, (Wish, u16)>,
    failed: BTreeMap<ListenerKey, Wish>,
    closing: BTreeSet<ListenerKey>,
    last_port: u16,
}

impl Forwarder {
    /// Opens what is wished for; a listener whose turn is a multiple of `fails` cannot be opened.
    fn follow(&mut self, engine: &mut Engine, outcome: &mut Outcome, fails: u16) {
        let retried = std::mem::take(&mut self.failed).into_iter().map(|(listener, wish)| (listener, Some(wish)));
        for (listener, wish) in retried.collect::<Vec<_>>().into_iter().chain(engine.take_wishes()) {
            let Some(wish) = wish else {
                self.failed.remove(&listener);
                if self.open.contains_key(&listener) {
                    self.closing.insert(listener);
                }
                continue;
            };
            self.closing.remove(&listener);
            self.failed.remove(&listener);
            self.last_port += 1;
            let known = self.open.get(&listener).map(|(_, port)| *port);
            if known.is_none() && fails != 0 && self.last_port.is_multiple_of(fails) {
                self.failed.insert(listener, wish);
                continue;
            }
            let port = known.unwrap_or(10_000 + self.last_port);
            self.open.insert(listener.clone(), (wish, port));
            if listener.loopback.is_none() {
                engine.set_listener(&listener.route, Some(at(&listener, port)));
            }
        }
        if !engine.is_idle() {
            engine.compile_into(outcome, usize::MAX);
        }
    }

    fn committed(&mut self, engine: &mut Engine) {
        for listener in std::mem::take(&mut self.closing) {
            self.open.remove(&listener);
            if listener.loopback.is_none() {
                engine.set_listener(&listener.route, None);
            }
        }
    }

    /// The pools by which packets for listeners are known, of all that are wished for.
    fn pools(&self, engine: &Engine) -> BTreeSet<(Family, PoolId)> {
        let wished = self.open.keys().chain(self.failed.keys()).filter(|listener| listener.loopback.is_none());
        wished.filter_map(|listener| Some((listener.route.family, engine.pool(&listener.route)?))).collect()
    }
}

fn at(listener: &ListenerKey, port: u16) -> SocketAddr {
    SocketAddr::new(if listener.route.family == Family::V4 { LISTENER_V4 } else { LISTENER_V6 }, port)
}

/// The pools that a kernel leaves to the forwarder, in each family.
fn left_to_it(kernel: &Image) -> BTreeSet<(Family, PoolId)> {
    let targets = |family| {
        let table: &TableImage = kernel.table(family);
        table.services.values().chain(table.node_ports.values()).chain(table.hops.values())
    };
    let left = |family| targets(family).filter(|target| target.decision.plan == Plan::Userspace);
    let pools = |family| left(family).filter_map(move |target| Some((family, target.decision.pool?)));
    Family::ALL.into_iter().flat_map(pools).collect()
}

fn engine() -> Engine {
    let mut engine = small_engine();
    engine.settings.localhost_node_ports = true;
    engine.settings.node_port_addresses = NodePortAddresses::All;
    engine
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_left_to_the_forwarder_has_a_wish_and_the_last_state_counts(
        history in proptest::collection::vec((any_change(), any::<bool>()), 1..30),
        fails in 0u16..4,
        restart_at in 0usize..30,
    ) {
        let (mut engine, mut forwarder, mut kernel) = (engine(), Forwarder::default(), Image::default());
        let mut past = Vec::new();
        for (step, (change, batch_ends)) in history.into_iter().enumerate() {
            past.push(change.clone());
            engine.take(change);
            if !batch_ends {
                continue;
            }
            if step == restart_at {
                // Died and started again: all listeners are gone.
                engine = self::engine();
                (forwarder.open, forwarder.failed) = Default::default();
                engine.adopt(kernel.clone());
                past.iter().cloned().for_each(|change| engine.take(change));
                let mut outcome = engine.compile();
                forwarder.follow(&mut engine, &mut outcome, fails);
                engine.settle();
                let difference = engine.difference(kernel.clone());
                apply(&mut kernel, &difference);
            } else {
                let mut outcome = engine.compile();
                forwarder.follow(&mut engine, &mut outcome, fails);
                apply(&mut kernel, &outcome.delta);
            }
            forwarder.committed(&mut engine);
            let pools = forwarder.pools(&engine);
            prop_assert!(left_to_it(&kernel).is_subset(&pools), "{:?} of {:?}", left_to_it(&kernel), pools);

            let mut fresh = self::engine();
            past.iter().cloned().for_each(|change| fresh.take(change));
            for (listener, (_, port)) in forwarder.open.iter().filter(|(listener, _)| listener.loopback.is_none()) {
                fresh.set_listener(&listener.route, Some(at(listener, *port)));
            }
            fresh.compile();
            let mut wanted = Image::default();
            apply(&mut wanted, &fresh.everything());
            for family in Family::ALL {
                prop_assert_eq!(observable(kernel.table(family)), observable(wanted.table(family)));
            }
            let wishes: BTreeMap<_, _> = fresh.take_wishes().into_iter().filter_map(|(key, wish)| Some((key, wish?))).collect();
            let open = forwarder.open.iter().map(|(listener, (wish, _))| (listener.clone(), wish.clone()));
            let known: BTreeMap<_, _> = open.chain(forwarder.failed.clone()).collect();
            prop_assert_eq!(known, wishes);
            prop_assert_eq!(fresh.fallbacks(), engine.fallbacks());
        }
        // A stop changes no element: who leads to listeners is gone. And nothing is left of what was deleted.
        apply(&mut kernel, &engine.compile().delta);
        engine.leave_forwarder();
        prop_assert!(engine.compile().delta.is_empty());
        for name in ["a", "b", "c"] {
            for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCIDR] {
                engine.take(Change::Delete(kind, crate::source::ObjectKey { namespace: "ns".into(), name: name.into() }));
            }
        }
        apply(&mut kernel, &engine.compile().delta);
        prop_assert!(is_clean(&kernel.v4) && is_clean(&kernel.v6), "{:?}", kernel);
        prop_assert!(engine.fallbacks().is_empty());
        prop_assert_eq!(engine.compiler.pools(), 0);
    }
}

const USERSPACE: u16 = 1 << 12;
const EXACT: u16 = 2 << 12;
const PROXY_PROTOCOL: u16 = 3 << 12;

fn reached(engine: &Engine) -> Vec<SocketAddr> {
    let everything = engine.everything();
    let slots = everything.v4.endpoints.added().map(|(_, slot)| slot.endpoint);
    slots
        .chain(everything.v4.members.added().map(|(_, slot)| slot.endpoint))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

#[test]
fn a_port_is_the_forwarders_by_its_decision_and_the_kernel_has_the_endpoints_too() {
    let (mut engine, mut forwarder) = (Engine::new("n1", Scheduler::Random), Forwarder::default());
    engine.take(rich_service("web", &["10.0.0.1".into()], USERSPACE, &[1]));
    engine.take(slice("s", "web", false, &(1..=5).collect()));
    let mut outcome = engine.compile();
    forwarder.follow(&mut engine, &mut outcome, 0);
    assert_eq!(outcome.delta.v4.endpoints.added().count(), 5, "as if there were no forwarder");
    let decisions =
        |outcome: &Outcome| outcome.delta.v4.services.added().map(|(_, target)| target.decision).collect::<Vec<_>>();
    let decided = decisions(&outcome);
    assert_eq!(decided.iter().map(|decision| decision.plan).collect::<Vec<_>>(), [Plan::Userspace]);
    let route = forwarder.open.keys().next().expect("a listener").route.clone();
    assert_eq!(engine.pool(&route), decided[0].pool);
    assert_eq!(engine.take_fallbacks()[0].1.as_ref().map(|fallback| fallback.reason), Some(Reason::Annotation));
    // One that is elsewhere: nobody on this node could meet itself less.
    engine.take(slice("s", "web", false, &[1, 3, 4, 5].into()));
    let mut outcome = engine.compile();
    forwarder.follow(&mut engine, &mut outcome, 0);
    assert!(decisions(&outcome).is_empty() && engine.take_fallbacks().is_empty());
    assert_eq!(forwarder.open.values().next().map(|(wish, _)| wish.route.candidates.len()), Some(4));
}

#[test]
fn without_a_listener_the_kernel_picks_at_random_or_refuses() {
    let endpoints: Vec<SocketAddr> = (1..=3).map(|last| SocketAddr::from(([10, 1, 0, last], 8001))).collect();
    for (flavour, serves) in [(USERSPACE | 1 << 4, true), (EXACT, true), (PROXY_PROTOCOL, false)] {
        let mut engine = Engine::new("n1", Scheduler::Random);
        engine.take(rich_service("web", &["10.0.0.1".into()], flavour, &[1]));
        engine.take(slice("s", "web", false, &(1..=3).collect()));
        let outcome = engine.compile();
        let everything = engine.everything();
        let instead: Vec<_> = everything.v4.hops.added().map(|(_, target)| target.decision.plan).collect();
        assert_eq!(instead, [if serves { Plan::Random(3) } else { Plan::Refuse }]);
        if serves {
            assert_eq!(reached(&engine), endpoints);
        }
        assert!(outcome.delta.v4.dedicated.is_empty(), "no chain of its own: random");
        assert_eq!(engine.take_wishes().len(), 1, "and the wish stands");
    }
}

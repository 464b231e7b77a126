//! The owner of all state: changes go in, deltas come out.
//!
//! One task owns an [`Engine`] and feeds it what the sources say. [`Engine::take`] files a change and remembers which Services it
//! touches; [`Engine::compile`] decides and compiles those Services, all in one [`Outcome`] that the kernel applies in one
//! transaction. Between the two any number of changes may be taken: that is how a burst becomes one transaction.
//!
//! Invariants: no I/O; work is proportional to what was touched; whatever the history, the result is that of the last state of all
//! objects. The property test below replays random histories onto simulated maps and compares with a fresh engine.

use std::collections::{BTreeMap, BTreeSet};

use crate::compile::{Compiler, Delta, Image};
use crate::model::{Node, Problem, Problems, ServiceKey, Store};
use crate::policy::{self, Claims, Context, HealthCheck, Settings};
use crate::schedule::Scheduler;
use crate::source::{Change, Kind, Object};

/// Model, policy, schedule and compile under one roof.
#[derive(Debug)]
pub struct Engine {
    store: Store,
    claims: Claims,
    compiler: Compiler,
    settings: Settings,
    scheduler: Scheduler,
    health: BTreeMap<ServiceKey, HealthCheck>,
    touched: BTreeSet<ServiceKey>,
    /// Problems that no single object has: frontends asked for twice, pools exhausted.
    conflicts: Problems,
    fresh_problems: Vec<Problem>,
}

/// What came of everything taken since the last compilation.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What differs in the data plane.
    pub delta: Delta,
    /// The Services looked at.
    pub services: Vec<ServiceKey>,
    /// Problems not reported before.
    pub problems: Vec<Problem>,
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
            compiler: Compiler::new(&settings.node),
            settings,
            scheduler,
            health: BTreeMap::new(),
            touched: BTreeSet::new(),
            conflicts: Problems::default(),
            fresh_problems: Vec::new(),
        }
    }

    /// Tells the engine what a kernel already has, before the first compilation: the same numbers will be used again.
    pub fn adopt(&mut self, found: Image) {
        self.compiler.adopt(found);
    }

    /// Takes a change in.
    pub fn take(&mut self, change: Change) {
        let before = match &change {
            Change::Apply(Object::Node(_)) => self.store.node().cloned(),
            _ => None,
        };
        let effect = self.store.apply(change);
        if effect.node {
            self.node_changed(before.unwrap_or_default());
        }
        self.touched.extend(effect.services);
        self.fresh_problems.extend(effect.problems);
    }

    /// Whether a compilation would have anything to do or to say.
    pub fn is_idle(&self) -> bool {
        self.touched.is_empty() && self.fresh_problems.is_empty()
    }

    /// Decides and compiles every Service touched since the last call.
    pub fn compile(&mut self) -> Outcome {
        let touched = std::mem::take(&mut self.touched);
        let mut services = touched.clone();
        for key in &touched {
            // All claims first: whether one Service gets a frontend may depend on another that is touched in the same batch.
            let others = match self.store.service(key) {
                Some(service) => self.claims.set(key, service.created, policy::wanted(service, &self.settings)),
                None => self.claims.set(key, 0, std::iter::empty()),
            };
            services.extend(others);
        }
        let mut outcome = Outcome { problems: std::mem::take(&mut self.fresh_problems), ..Outcome::default() };
        let context = Context {
            settings: &self.settings,
            node: self.store.node(),
            claims: &self.claims,
            scheduler: self.scheduler,
        };
        for key in &services {
            let service = self.store.service(key);
            let slices = self.store.slices(key);
            let health = service.and_then(|service| HealthCheck::of(service, slices.clone(), &self.settings));
            match health {
                Some(health) => self.health.insert(key.clone(), health),
                None => self.health.remove(key),
            };
            let resolved = service.map(|service| policy::resolve(service, slices, context)).unwrap_or_default();
            let homeless = self.compiler.update(key, &resolved, &mut outcome.delta);
            let mut problems: Vec<_> =
                service.map(|service| policy::lost_frontends(service, context)).unwrap_or_default();
            problems.extend(homeless.iter().map(|port| Problem {
                kind: Kind::Service,
                object: key.object(),
                field: "spec.ports".to_owned(),
                value: port.to_string(),
                reason: "all pool numbers are in use; connections are rejected".to_owned(),
            }));
            outcome.problems.extend(self.conflicts.replace(Kind::Service, &key.object(), problems));
        }
        outcome.services = services.into_iter().collect();
        outcome
    }

    /// Everything desired now, as a delta to nothing. What has been taken but not compiled is not in it.
    pub fn everything(&self) -> Delta {
        self.compiler.everything()
    }

    /// Forgets the adopted image; to be called after the first complete compilation.
    pub fn settle(&mut self) {
        self.compiler.settle();
    }

    /// What load balancers are to be told, per Service that has a `healthCheckNodePort`; as of the last compilation.
    pub fn health(&self) -> &BTreeMap<ServiceKey, HealthCheck> {
        &self.health
    }

    /// Decides again whatever depends on our Node.
    fn node_changed(&mut self, before: Node) {
        let Some(now) = self.store.node() else { return };
        if before.zone != now.zone {
            self.touched.extend(self.store.services().map(|service| service.key.clone()));
        } else if before.addresses != now.addresses {
            let depending = self.store.services().filter(|service| policy::depends_on_node_addresses(service));
            self.touched.extend(depending.map(|service| service.key.clone()));
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::compile::layout::{Decision, Plan};
    use crate::compile::{Edits, SlotKey, TableImage};
    use crate::model::Family;
    use crate::policy::Frontend;
    use crate::source::{Object, ObjectKey};

    /// Applies edits as a kernel would, refusing what a kernel would refuse.
    fn apply_edits<K: Ord + std::hash::Hash + Clone + std::fmt::Debug, V: PartialEq + Clone + std::fmt::Debug>(
        map: &mut std::collections::HashMap<K, V>,
        edits: &Edits<K, V>,
    ) {
        for (key, before) in edits.removed() {
            assert_eq!(map.remove(key).as_ref(), Some(before), "removes what is there: {key:?}");
        }
        for (key, after) in edits.added() {
            assert_eq!(map.insert(key.clone(), after.clone()), None, "adds what is not there: {key:?}");
        }
    }

    fn apply(image: &mut Image, delta: &Delta) {
        for family in Family::ALL {
            let (table, edits) = (image.table_mut(family), delta.table(family));
            apply_edits(&mut table.services, &edits.services);
            apply_edits(&mut table.endpoints, &edits.endpoints);
            apply_edits(&mut table.dedicated, &edits.dedicated);
        }
    }

    /// What a client of each frontend can reach: the slots' endpoints, sorted; `None` for reject.
    fn reachable(table: &TableImage) -> BTreeMap<Frontend, (String, Vec<SocketAddr>)> {
        let reach = |decision: Decision| {
            let slots = match decision.plan {
                Plan::Refuse => return ("refuse".to_owned(), Vec::new()),
                Plan::Random(slots) => u32::from(slots),
                Plan::Dedicated => table.dedicated[&decision.pool.expect("dedicated has a pool")].slots,
            };
            let pool = decision.pool.expect("slots have a pool");
            let mut endpoints: Vec<_> = (0..slots)
                .map(|slot| table.endpoints.get(&SlotKey { pool, slot }).expect("every slot is there").endpoint)
                .collect();
            endpoints.sort();
            let plan = if decision.plan == Plan::Dedicated { "dedicated" } else { "random" };
            (plan.to_owned(), endpoints)
        };
        table.services.iter().map(|(frontend, target)| (*frontend, reach(target.decision))).collect()
    }

    fn service(name: &str, ips: &[String], rr: bool, ports: &[u16]) -> Change {
        let ports: Vec<_> = ports.iter().map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
        let scheduler = if rr { "rr" } else { "random" };
        let value = json!({
            "metadata": {"namespace": "ns", "name": name, "annotations": {"pointsman.dev/scheduler": scheduler}},
            "spec": {"clusterIPs": ips, "ports": ports},
        });
        Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
    }

    fn slice(name: &str, owner: &str, v6: bool, endpoints: &BTreeSet<u8>) -> Change {
        let prefix = if v6 { "fd00:1::" } else { "10.1.0." };
        let endpoints: Vec<_> =
            endpoints.iter().map(|last| json!({"addresses": [format!("{prefix}{last}")]})).collect();
        let value = json!({
            "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": owner}},
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "ports": [{"name": "p1", "port": 8001}, {"name": "p2", "port": 8002}], "endpoints": endpoints,
        });
        Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
    }

    fn delete(kind: Kind, name: &str) -> Change {
        Change::Delete(kind, ObjectKey { namespace: "ns".into(), name: name.into() })
    }

    #[test]
    fn a_departure_costs_three_endpoint_edits_and_one_frontend_edit() {
        let mut engine = Engine::new("n1", Scheduler::Random);
        engine.take(service("web", &["10.0.0.1".into()], false, &[1]));
        engine.take(slice("s", "web", false, &(1..=50).collect()));
        engine.compile();
        engine.take(slice("s", "web", false, &(1..=50).filter(|last| *last != 7).collect()));
        let delta = engine.compile().delta;
        assert_eq!((delta.v4.services.len(), delta.v4.endpoints.len(), delta.v6.len()), (1, 2, 0));
        engine.take(slice("s", "web", false, &(1..=50).collect()));
        let delta = engine.compile().delta;
        assert_eq!((delta.v4.services.len(), delta.v4.endpoints.len()), (1, 1));
        assert!(engine.is_idle());
        engine.take(slice("s", "web", false, &(1..=50).collect()));
        assert!(engine.is_idle(), "the same again is no work");
    }

    #[test]
    fn two_services_that_claim_one_frontend_are_told_apart_and_reported() {
        let mut engine = Engine::new("n1", Scheduler::Random);
        engine.take(service("b", &["10.0.0.1".into()], false, &[1]));
        engine.take(service("a", &["10.0.0.1".into()], false, &[1, 2]));
        let outcome = engine.compile();
        let problems: Vec<_> = outcome.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            problems,
            [
                r#"Service ns/b: spec.ports: "TCP 10.0.0.1:1": already served for Service ns/a, which is older or first by name; not served"#
            ]
        );
        engine.take(delete(Kind::Service, "a"));
        let outcome = engine.compile();
        assert!(outcome.problems.is_empty());
        assert_eq!(engine.standing_problems(), 0);
        assert_eq!(outcome.delta.v4.services.len(), 2, "b takes over in the same transaction");
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let name = prop_oneof![Just("a"), Just("b"), Just("c")];
        let ips = prop_oneof![
            (1u8..4).prop_map(|ip| vec![format!("10.0.0.{ip}")]),
            (1u8..4).prop_map(|ip| vec![format!("10.0.0.{ip}"), format!("fd00::{ip}")]),
        ];
        let ports = prop_oneof![Just(vec![1u16]), Just(vec![1, 2]), Just(vec![2, 3])];
        let endpoints = proptest::collection::btree_set(1u8..9, 0..6);
        prop_oneof![
            3 => (name.clone(), ips, any::<bool>(), ports).prop_map(|(name, ips, rr, ports)| service(name, &ips, rr, &ports)),
            5 => (name.clone(), name.clone(), any::<bool>(), endpoints).prop_map(|(name, owner, v6, endpoints)| slice(name, owner, v6, &endpoints)),
            1 => name.clone().prop_map(|name| delete(Kind::Service, name)),
            1 => name.prop_map(|name| delete(Kind::EndpointSlice, name)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Random histories, cut into random batches, with a restart at a random point that adopts what the kernel has: after each
        /// batch every frontend reaches exactly what a fresh engine would let it reach.
        #[test]
        fn the_last_state_counts_whatever_the_history(
            history in proptest::collection::vec((any_change(), any::<bool>()), 1..40),
            restart_at in 0usize..40,
        ) {
            let mut engine = Engine::new("n1", Scheduler::Random);
            let mut kernel = Image::default();
            let mut past: Vec<Change> = Vec::new();
            for (step, (change, batch_ends)) in history.into_iter().enumerate() {
                past.push(change.clone());
                engine.take(change);
                if !batch_ends {
                    continue;
                }
                if step == restart_at {
                    engine = Engine::new("n1", Scheduler::Random);
                    engine.adopt(kernel.clone());
                    past.iter().cloned().for_each(|change| engine.take(change));
                    engine.compile();
                    engine.settle();
                    let difference = engine.everything().rebase(kernel.clone());
                    apply(&mut kernel, &difference);
                } else {
                    apply(&mut kernel, &engine.compile().delta);
                }
                let mut fresh = Engine::new("n1", Scheduler::Random);
                past.iter().cloned().for_each(|change| fresh.take(change));
                fresh.compile();
                let mut wanted = Image::default();
                apply(&mut wanted, &fresh.everything());
                for family in Family::ALL {
                    prop_assert_eq!(reachable(kernel.table(family)), reachable(wanted.table(family)));
                    prop_assert_eq!(kernel.table(family).endpoints.len(), wanted.table(family).endpoints.len());
                    prop_assert_eq!(kernel.table(family).dedicated.len(), wanted.table(family).dedicated.len());
                }
                // What the engine believes is what the kernel has.
                let drift = engine.everything().rebase(kernel.clone());
                prop_assert!(drift.is_empty(), "{:?}", drift);
            }
        }

        /// A restart with nothing changed rewrites nothing.
        #[test]
        fn a_restart_changes_nothing(history in proptest::collection::vec(any_change(), 1..30)) {
            let mut engine = Engine::new("n1", Scheduler::Random);
            history.iter().cloned().for_each(|change| engine.take(change));
            let mut kernel = Image::default();
            apply(&mut kernel, &engine.compile().delta);
            let mut next = Engine::new("n1", Scheduler::Random);
            next.adopt(kernel.clone());
            history.into_iter().for_each(|change| next.take(change));
            next.compile();
            let delta = next.everything().rebase(kernel);
            prop_assert!(delta.is_empty(), "{:?}", delta);
        }
    }
}

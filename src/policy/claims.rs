//! Who gets a frontend or node port that several Services ask for.
//!
//! The API server hands out each ClusterIP once, but manifests, restored backups and races can ask for one frontend twice. A
//! ClusterIP goes before a load balancer's address, and that before one of `externalIPs`, which anybody may write into a Service: nobody
//! can take what the API server gave to another. Among equals the oldest Service has it, then the first by name; the others are told. When the holder goes, the next in line takes over.

use std::collections::BTreeSet;

use super::{Claim, Role};
use crate::model::ServiceKey;
use crate::model::map::HashMap;

/// The order of precedence: what kind of address it is, creation time, then name.
type Rank = (Role, i64, ServiceKey);

/// What a Service asks for: sorted, each claim once.
type Asked = Box<[(Claim, Role)]>;

/// All claims on all frontends.
#[derive(Debug, Default)]
pub struct Claims {
    /// Single claims, which is nearly all of them, need no tree.
    holders: HashMap<Claim, Rank>,
    /// Those that wait, in order of precedence.
    waiting: HashMap<Claim, BTreeSet<Rank>>,
    by_service: HashMap<ServiceKey, (i64, Asked)>,
}

/// Between whom frontends passed when a Service asked for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The other Services that gained or lost one.
    pub others: Vec<ServiceKey>,
    /// What it asks for no more, or not in the same way: whoever asks for that next gets it from this one.
    pub released: Vec<Claim>,
}

// === impl Claims ===

impl Claims {
    /// Replaces all claims of a Service; `None` if it asks for just what it asked for before.
    pub fn set(
        &mut self,
        service: &ServiceKey,
        created: i64,
        wanted: impl IntoIterator<Item = (Claim, Role)>,
    ) -> Option<Passed> {
        let wanted = sorted(wanted);
        let before = self.by_service.get(service).cloned();
        let is_same = match &before {
            Some((since, had)) => *since == created && **had == *wanted,
            None => wanted.is_empty(),
        };
        if is_same {
            return None;
        }
        let (mut others, mut released) = (BTreeSet::new(), Vec::new());
        if let Some((since, had)) = before {
            let lasts = |had: &(Claim, Role)| since == created && wanted.binary_search(had).is_ok();
            for (frontend, role) in had.iter().filter(|had| !lasts(had)) {
                self.release(frontend, &(*role, since, service.clone()), &mut others);
                released.push(*frontend);
            }
        }
        for (frontend, role) in &wanted {
            self.claim(frontend, &(*role, created, service.clone()), &mut others);
        }
        if wanted.is_empty() {
            self.by_service.remove(service);
        } else {
            self.by_service.insert(service.clone(), (created, wanted.into()));
        }
        others.remove(service);
        Some(Passed { others: others.into_iter().collect(), released })
    }

    /// What a Service asks for, whoever has it.
    pub fn asked(&self, service: &ServiceKey) -> impl Iterator<Item = &Claim> {
        self.by_service.get(service).into_iter().flat_map(|(_, asked)| asked.iter().map(|(claim, _)| claim))
    }

    /// Whether this Service has the frontend.
    pub fn holds(&self, service: &ServiceKey, frontend: &Claim) -> bool {
        self.holder(frontend) == Some(service)
    }

    /// Who has the frontend.
    pub fn holder(&self, frontend: &Claim) -> Option<&ServiceKey> {
        self.holders.get(frontend).map(|(_, _, service)| service)
    }

    fn claim(&mut self, frontend: &Claim, rank: &Rank, others: &mut BTreeSet<ServiceKey>) {
        match self.holders.get_mut(frontend) {
            None => {
                self.holders.insert(*frontend, rank.clone());
            }
            Some(holder) if holder == rank => {}
            Some(holder) if rank < holder => {
                let loser = std::mem::replace(holder, rank.clone());
                others.insert(loser.2.clone());
                let line = self.waiting.entry(*frontend).or_default();
                line.remove(rank);
                line.insert(loser);
            }
            Some(_) => {
                self.waiting.entry(*frontend).or_default().insert(rank.clone());
            }
        }
    }

    fn release(&mut self, frontend: &Claim, rank: &Rank, others: &mut BTreeSet<ServiceKey>) {
        let next = if self.holders.get(frontend) == Some(rank) {
            self.holders.remove(frontend);
            self.waiting.get_mut(frontend).and_then(BTreeSet::pop_first)
        } else {
            if let Some(line) = self.waiting.get_mut(frontend) {
                line.remove(rank);
            }
            None
        };
        if self.waiting.get(frontend).is_some_and(BTreeSet::is_empty) {
            self.waiting.remove(frontend);
        }
        if let Some(next) = next {
            others.insert(next.2.clone());
            self.holders.insert(*frontend, next);
        }
    }
}

/// Each claim once. Of two by one Service the better role counts, which is the first.
fn sorted(wanted: impl IntoIterator<Item = (Claim, Role)>) -> Vec<(Claim, Role)> {
    let mut wanted: Vec<_> = wanted.into_iter().collect();
    wanted.sort_unstable();
    wanted.dedup_by_key(|(claim, _)| *claim);
    wanted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Protocol;
    use crate::policy::Frontend;

    const ROLES: [Role; 3] = [Role::Cluster, Role::LoadBalancer, Role::External];

    fn frontend(port: u16) -> Claim {
        Claim::Frontend(Frontend { address: [10, 0, 0, 1].into(), protocol: Protocol::Tcp, port })
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey::new("ns", name)
    }

    fn names(passed: Option<Passed>) -> Vec<String> {
        passed.unwrap_or_default().others.iter().map(|service| service.name.to_string()).collect()
    }

    #[test]
    fn the_oldest_wins_then_the_name_and_the_next_in_line_follows() {
        let mut claims = Claims::default();
        let set = |claims: &mut Claims, name: &str, created: i64, ports: &[u16]| {
            names(claims.set(&key(name), created, ports.iter().map(|port| (frontend(*port), Role::Cluster))))
        };
        assert_eq!(set(&mut claims, "young", 20, &[80]), [""; 0]);
        assert_eq!(set(&mut claims, "old", 10, &[80, 81]), ["young"], "an older one takes it");
        assert_eq!(set(&mut claims, "a", 10, &[80]), ["old"], "same age: by name");
        assert_eq!(set(&mut claims, "z", 30, &[80]), [""; 0], "the youngest waits");
        assert_eq!(claims.holder(&frontend(80)), Some(&key("a")));
        assert_eq!(set(&mut claims, "a", 10, &[]), ["old"]);
        assert_eq!(set(&mut claims, "old", 10, &[81]), ["young"]);
        assert_eq!(set(&mut claims, "young", 40, &[80]), ["z"], "recreated later: behind");
        assert_eq!(set(&mut claims, "z", 30, &[]), ["young"]);
        assert_eq!(set(&mut claims, "young", 40, &[]), [""; 0]);
        assert_eq!(set(&mut claims, "old", 10, &[]), [""; 0]);
        assert!(claims.holders.is_empty() && claims.waiting.is_empty() && claims.by_service.is_empty());
    }

    #[test]
    fn nobody_takes_a_cluster_address_by_external_ips_whatever_the_age() {
        let mut claims = Claims::default();
        let mut ask = |name: &str, created, role| names(claims.set(&key(name), created, [(frontend(80), role)]));
        assert_eq!(ask("old", 1, Role::External), [""; 0]);
        assert_eq!(ask("balanced", 2, Role::LoadBalancer), ["old"]);
        assert_eq!(ask("young", 3, Role::Cluster), ["balanced"]);
        assert_eq!(ask("older", 0, Role::External), [""; 0]);
        assert_eq!(claims.holder(&frontend(80)), Some(&key("young")));
        let mut ask = |name: &str, created, role| names(claims.set(&key(name), created, [(frontend(80), role)]));
        assert_eq!(ask("young", 3, Role::External), ["balanced"], "the role counts, not who it was");
        assert_eq!(claims.holder(&frontend(80)), Some(&key("balanced")));
        claims.set(&key("balanced"), 0, []);
        assert_eq!(claims.holder(&frontend(80)), Some(&key("older")));
        // One Service with one address in two roles has it in the better one.
        let twice = [Role::External, Role::Cluster].map(|role| (frontend(80), role));
        assert_eq!(names(claims.set(&key("twice"), 9, twice)), ["older"]);
    }

    proptest! {
        /// After any history each frontend is with the best of those who ask for it, and whoever gained or lost one was named.
        #[test]
        fn the_best_claim_always_holds(history in proptest::collection::vec((0u8..4, 0i64..3, proptest::collection::hash_map(1u16..4, 0usize..3, 0..3)), 1..30)) {
            let mut claims = Claims::default();
            let mut asks: HashMap<ServiceKey, (i64, std::collections::HashMap<u16, usize>)> = HashMap::default();
            for (name, created, ports) in history {
                let service = key(&name.to_string());
                let before: HashMap<_, _> = (1..4).map(|port| (port, claims.holder(&frontend(port)).cloned())).collect();
                let told = claims.set(&service, created, ports.iter().map(|(port, role)| (frontend(*port), ROLES[*role])));
                let told = told.unwrap_or_default().others;
                asks.insert(service.clone(), (created, ports));
                for port in 1..4 {
                    let best = asks.iter().filter_map(|(key, (created, ports))| Some((*ports.get(&port)?, *created, key.clone()))).min();
                    let holder = claims.holder(&frontend(port)).cloned();
                    prop_assert_eq!(&holder, &best.map(|(_, _, key)| key));
                    if holder != before[&port] {
                        for party in [holder, before[&port].clone()].into_iter().flatten() {
                            prop_assert!(party == service || told.contains(&party));
                        }
                    }
                }
            }
        }
    }
}

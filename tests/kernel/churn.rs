//! The long tail: after thousands of changes the kernel has what a fresh start would make, and no slot, number or chain is left over.

use std::collections::BTreeMap;

use pointsman::compile::Image;
use pointsman::lab::Namespace;
use serde_json::Value;

use super::proxy::Proxy;
use super::support::beds::pods;
use super::support::objects::{DNS, HTTP, service, slices};
use super::support::oracle::chains;

/// Services that change, each with ten endpoints at most.
const SERVICES: u8 = 60;

const SCHEDULERS: [&str; 6] = ["random", "random", "rr", "wrr", "lc", "sh"];

/// All objects as they are now, and what happens to them.
struct Churn {
    random: fastrand::Rng,
    objects: BTreeMap<String, Vec<Value>>,
    /// Which address a Service has.
    addresses: Vec<u8>,
}

// === impl Churn ===

impl Churn {
    fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, objects: BTreeMap::new(), addresses: (0..SERVICES).map(|number| number + 1).collect() }
    }

    /// What an API server would tell now.
    fn all(&self) -> Vec<Value> {
        self.objects.values().flatten().cloned().collect()
    }

    fn event(&mut self, proxy: &mut Proxy) {
        let number = self.random.usize(0..SERVICES.into());
        match self.random.u32(0..20) {
            0..13 => {
                let ready = (1..=10).filter(|_| self.random.bool()).collect::<Vec<_>>();
                self.put(proxy, format!("slices-{number}"), slices(&format!("s-{number}"), &pods(ready)).to_vec());
            }
            13 => self.delete(proxy, &format!("slices-{number}")),
            14 => self.delete(proxy, &format!("service-{number}")),
            15 => {
                let other = self.random.usize(0..SERVICES.into());
                self.addresses.swap(number, other);
                [number, other].into_iter().for_each(|number| self.put_service(proxy, number));
            }
            _ => self.put_service(proxy, number),
        }
    }

    fn put_service(&mut self, proxy: &mut Proxy, number: usize) {
        let ports: &[_] = if self.random.bool() { &[HTTP, DNS] } else { &[HTTP] };
        let mut object = service(&format!("s-{number}"), self.addresses[number], ports);
        let scheduler = SCHEDULERS[self.random.usize(0..SCHEDULERS.len())];
        object["metadata"]["annotations"] = serde_json::json!({"pointsman.dev/scheduler": scheduler});
        if self.random.u32(0..5) == 0 {
            object["spec"]["sessionAffinity"] = "ClientIP".into();
        }
        if self.random.u32(0..5) == 0 {
            object["spec"]["externalIPs"] = serde_json::json!([format!("198.51.100.{}", number + 1)]);
        }
        self.put(proxy, format!("service-{number}"), vec![object]);
    }

    fn put(&mut self, proxy: &mut Proxy, key: String, objects: Vec<Value>) {
        proxy.take(&objects);
        self.objects.insert(key, objects);
    }

    fn delete(&mut self, proxy: &mut Proxy, key: &str) {
        self.objects.remove(key).into_iter().flatten().for_each(|object| proxy.forget(&object));
    }
}

/// What there is to be, by family and map, in numbers; and how many pools have endpoints.
fn numbers(proxy: &Proxy) -> (String, usize) {
    let everything = proxy.engine.everything();
    let slots = everything.v4.endpoints.added().map(|(key, _)| key.pool);
    let members = everything.v4.members.added().map(|(member, _)| member.pool);
    let pools: std::collections::BTreeSet<_> = slots.chain(members).collect();
    (everything.summary(), pools.len())
}

fn churn(events: usize, seed: u64) {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut proxy = Proxy::start(&inside);
    let mut churn = Churn::new(seed);
    for done in 1..=events {
        churn.event(&mut proxy);
        if churn.random.u32(0..4) == 0 {
            proxy.apply();
        }
        if done % (events / 4) == 0 {
            proxy.apply();
            proxy.assert_exact(&format!("after {done} events"));
            // A restart goes on with the numbers that it finds.
            proxy.die(&inside);
            proxy = Proxy::succeeding(&inside, &churn.all()).0;
            proxy.assert_exact(&format!("restarted after {done} events"));
        }
    }
    let mut fresh_inside = Proxy::start(&Namespace::anonymous().expect("another one"));
    fresh_inside.put(&churn.all());
    assert_eq!(numbers(&proxy), numbers(&fresh_inside), "as many of everything as a fresh start has");
    let dedicated = |image: &Image| image.v4.dedicated.values().map(|chain| chain.name()).collect::<Vec<_>>();
    let used = dedicated(&proxy.image()).len();
    let there = chains(&inside, "ip").iter().filter(|chain| chain.contains("-shop/")).count();
    assert_eq!(there, used, "a chain for each pool that needs one, and no other");
    churn.all().iter().for_each(|object| proxy.forget(object));
    proxy.apply();
    assert_eq!(numbers(&proxy).1, 0, "nothing is left of all of them");
    assert_eq!(numbers(&proxy).0, numbers(&Proxy::serving(&Namespace::anonymous().expect("one more"), &[])).0);
    proxy.assert_exact("in the end");
}

#[test]
fn thousands_of_changes_leave_what_a_fresh_start_would_make() {
    churn(4000, 1);
}

/// Ten hours of a busy cluster. Takes some ten minutes: `cargo test --release --test kernel a_million -- --ignored`.
#[test]
#[ignore = "takes minutes; `bench churn` does the same to the daemon, and looks at its memory"]
fn a_million_changes_leave_what_a_fresh_start_would_make() {
    churn(1_000_000, 2);
}

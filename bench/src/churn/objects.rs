//! A cluster that never rests, in two copies: the API server double's, and ours to compare with.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use api_double::{ApiDouble, endpoint_slice, service};
use nft::Key;
use pointsman::engine::Engine;
use pointsman::schedule::Scheduler;
use pointsman::source::{Change, Object};
use serde_json::{Value, json};

use crate::cluster;

/// The port of the marker, and of all others.
pub const MARKER_PORT: u16 = cluster::SERVICE_PORT;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NAMESPACE: &str = "bench";
const ENDPOINTS: u32 = 10;

/// Tables of `sh` have 1,024 slots, so few Services have one.
const SCHEDULERS: [&str; 8] = ["random", "random", "random", "random", "random", "rr", "wrr", "lc"];

/// All objects as they are now.
pub struct Cluster {
    random: fastrand::Rng,
    services: u32,
    /// By path and name.
    objects: BTreeMap<(&'static str, String), Value>,
    /// Which address a Service has: a permutation, so that swaps are swaps.
    addresses: Vec<u32>,
    marks: u32,
}

// === impl Cluster ===

impl Cluster {
    pub fn new(services: u32, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, services, objects: BTreeMap::new(), addresses: (0..services).collect(), marks: 0 }
    }

    /// All Services with all their endpoints.
    pub fn fill(&mut self, double: &ApiDouble) {
        for number in 0..self.services {
            self.put(double, SERVICES, service_object(number, number, "random", false));
            self.put(double, SLICES, slice(number, 0x3ff));
        }
    }

    /// One event.
    pub fn step(&mut self, double: &ApiDouble) {
        let number = self.random.u32(0..self.services);
        match self.random.u32(0..100) {
            // One endpoint more or less, or any number of them: pods that flap, roll or scale.
            0..80 => {
                let bits = self.random.u32(0..1 << ENDPOINTS);
                let all = (1 << ENDPOINTS) - 1;
                let bits = if self.random.bool() { all & !(1 << (bits % ENDPOINTS)) } else { bits };
                self.put(double, SLICES, slice(number, bits));
            }
            80..84 => self.delete(double, SLICES, format!("service-{number}-a")),
            84..88 => self.delete(double, SERVICES, format!("service-{number}")),
            // Back again, or changed in whatever it is.
            88..96 => {
                let scheduler = SCHEDULERS[self.random.usize(0..SCHEDULERS.len())];
                let sticky = self.random.u32(0..8) == 0;
                self.put(double, SERVICES, service_object(number, self.addresses[number as usize], scheduler, sticky));
            }
            // Two Services swap addresses, in two events.
            _ => {
                let other = self.random.u32(0..self.services);
                self.addresses.swap(number as usize, other as usize);
                for number in [number, other] {
                    let address = self.addresses[number as usize];
                    self.put(double, SERVICES, service_object(number, address, "random", false));
                }
            }
        }
    }

    /// Moves the marker to an address that it did not have lately.
    pub fn mark(&mut self, double: &ApiDouble) {
        self.marks += 1;
        let object = service(NAMESPACE, "marker", &self.marker().to_string(), &[("", "TCP", MARKER_PORT)]);
        self.put(double, SERVICES, object);
    }

    fn marker(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::new(10, 112, 0, 0).to_bits() + self.marks)
    }

    /// The marker's element in map `services`.
    pub fn marker_key(&self) -> Key {
        super::frontend(self.marker())
    }

    /// An engine that has been told of everything there is now, and nothing else.
    pub fn engine(&self) -> Engine {
        let mut engine = Engine::new("n1", Scheduler::Random);
        for ((path, _), value) in &self.objects {
            let decode = |value: &Value| match *path {
                SERVICES => serde_json::from_value(value.clone()).map(|object| Object::Service(Box::new(object))),
                _ => serde_json::from_value(value.clone()).map(|object| Object::EndpointSlice(Box::new(object))),
            };
            engine.take(Change::Apply(decode(value).expect("our own objects decode")));
        }
        let node = api_double::node("n1", &[("InternalIP", "192.168.50.1")]);
        let node = serde_json::from_value(node).expect("our own Node decodes");
        engine.take(Change::Apply(Object::Node(Box::new(node))));
        engine
    }

    fn put(&mut self, double: &ApiDouble, path: &'static str, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        double.apply(object.clone());
        self.objects.insert((path, name), object);
    }

    fn delete(&mut self, double: &ApiDouble, path: &'static str, name: String) {
        double.delete(path, NAMESPACE, &name);
        self.objects.remove(&(path, name));
    }
}

fn service_object(number: u32, address: u32, scheduler: &str, sticky: bool) -> Value {
    let (name, address) = (format!("service-{number}"), cluster::cluster_ip(address).to_string());
    let mut object = service(NAMESPACE, &name, &address, &[("", "TCP", cluster::SERVICE_PORT)]);
    object["metadata"]["annotations"] = json!({"pointsman.dev/scheduler": scheduler});
    if sticky {
        object["spec"]["sessionAffinity"] = "ClientIP".into();
    }
    object
}

/// A Service's slice with those of its ten pods whose bits are set.
fn slice(number: u32, bits: u32) -> Value {
    let pods = (0..ENDPOINTS).filter(|pod| bits & 1 << pod != 0).map(|pod| cluster::pod(number * ENDPOINTS + pod));
    let pods: Vec<_> = pods.map(|pod| pod.to_string()).collect();
    let pods: Vec<_> = pods.iter().map(String::as_str).collect();
    let (service, name) = (format!("service-{number}"), format!("service-{number}-a"));
    endpoint_slice(NAMESPACE, &name, &service, &pods, &[("", "TCP", cluster::TARGET_PORT)])
}

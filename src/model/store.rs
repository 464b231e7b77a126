//! Everything known, and which Services a change touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::Family;
use super::names::Names;
use super::network::parse_network;
use super::node::Node;
use super::problem::{Problem, Problems, Report};
use super::service::{Service, ServiceKey};
use super::slice::Slice;
use crate::model::map::HashMap;
use crate::source::{Change, Kind, Object, ObjectKey};

/// The objects known now. Owned and changed by a single task.
#[derive(Debug, Default)]
pub struct Store {
    /// Boxed: a third of a table's places and more are empty.
    services: HashMap<ServiceKey, Box<Service>>,
    /// Slices by the Service they belong to, then by name: the name's order decides between duplicate endpoints, so that the
    /// outcome does not depend on which slice came first.
    ///
    /// Sorted lists: nearly all Services have one slice or a few, and a tree takes room for eleven.
    slices: HashMap<ServiceKey, Vec<Filed>>,
    /// Which Service a slice was last filed under; both are in one namespace.
    filed: HashMap<Arc<str>, HashMap<Box<str>, Arc<str>>>,
    node: Option<Node>,
    /// What each ServiceCIDR object says.
    service_networks: BTreeMap<String, Vec<IpNet>>,
    problems: Problems,
    names: Names,
}

/// A slice and its name.
type Filed = (Box<str>, Slice);

/// What a change touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Services whose data plane may differ now; empty if the change changed nothing that matters.
    pub services: Vec<ServiceKey>,
    /// Problems of the changed object that have not been reported yet.
    pub problems: Vec<Problem>,
    /// The slice, if the change was one of a slice and changed anything.
    pub slice: Option<SliceEffect>,
    /// Whether our Node is another than before.
    pub node: bool,
    /// Whether the networks of cluster addresses are others than before.
    pub service_networks: bool,
}

/// What happened to a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEffect {
    /// The family of its addresses.
    pub family: Family,
    /// The Service it belongs to, or belonged to.
    pub service: ServiceKey,
    /// Whether it is gone.
    pub removed: bool,
    /// What it was, if it belonged to the same Service then.
    pub before: Option<Slice>,
}

// === impl Store ===

impl Store {
    /// Takes a change in. [`Change::Synced`] changes nothing here.
    pub fn apply(&mut self, change: Change) -> Effect {
        match change {
            Change::Apply(object) => {
                let key = object.key();
                match object {
                    Object::Service(service) => {
                        let (parsed, problems) = Service::parse(&key, &service);
                        self.put_service(&key, parsed, problems)
                    }
                    Object::EndpointSlice(slice) => {
                        let (parsed, problems) = Slice::parse(&key, &slice, &mut self.names);
                        self.put_slice(&key, parsed, problems)
                    }
                    Object::Node(node) => {
                        let (parsed, problems) = Node::parse(&key, &node);
                        let problems = self.problems.replace(Kind::Node, &key, problems);
                        let changed = self.node.as_ref() != Some(&parsed);
                        self.node = Some(parsed);
                        Effect { node: changed, problems, ..Effect::default() }
                    }
                    Object::ServiceCIDR(cidr) => {
                        let mut report = Report::new(Kind::ServiceCIDR, key.clone());
                        let mut networks = Vec::new();
                        for (index, text) in cidr.spec.cidrs.iter().enumerate() {
                            match parse_network(text) {
                                Some(network) => networks.push(network),
                                None => report.add(format!("spec.cidrs[{index}]"), text, "not a CIDR; skipped"),
                            }
                        }
                        self.put_service_networks(&key, Some(networks), report.problems)
                    }
                }
            }
            Change::Delete(Kind::Service, key) => self.put_service(&key, None, Vec::new()),
            Change::Delete(Kind::EndpointSlice, key) => self.put_slice(&key, None, Vec::new()),
            Change::Delete(Kind::Node, key) => {
                // A Node that is deleted under our feet leaves us with what we knew: kube-proxy keeps running too.
                Effect { problems: self.problems.replace(Kind::Node, &key, Vec::new()), ..Effect::default() }
            }
            Change::Delete(Kind::ServiceCIDR, key) => self.put_service_networks(&key, None, Vec::new()),
            Change::Synced(_) => Effect::default(),
        }
    }

    /// The Service of this name, if it is served here.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        self.services.get(key).map(|service| &**service)
    }

    /// All Services served here, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|service| &**service)
    }

    /// The slices of a Service, in the order of their names.
    pub fn slices(&self, key: &ServiceKey) -> impl Iterator<Item = &Slice> + Clone {
        self.slices.get(key).into_iter().flatten().map(|(_, slice)| slice)
    }

    /// The names of a Service's slices, in order.
    pub fn slice_names(&self, key: &ServiceKey) -> impl Iterator<Item = &str> {
        self.slices.get(key).into_iter().flatten().map(|(name, _)| &**name)
    }

    /// A slice of a Service, by its name.
    pub fn slice(&self, key: &ServiceKey, name: &str) -> Option<&Slice> {
        let slices = self.slices.get(key)?;
        position(slices, name).ok().map(|index| &slices[index].1)
    }

    /// Our Node, once it has been seen.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The networks that cluster addresses are taken from, as far as ServiceCIDR objects say.
    pub fn service_networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.service_networks.values().flatten().copied()
    }

    /// All standing problems of objects.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    fn put_service_networks(&mut self, key: &ObjectKey, now: Option<Vec<IpNet>>, problems: Vec<Problem>) -> Effect {
        let problems = self.problems.replace(Kind::ServiceCIDR, key, problems);
        let before = match now.clone() {
            Some(networks) => self.service_networks.insert(key.name.clone(), networks),
            None => self.service_networks.remove(&key.name),
        };
        Effect { service_networks: before != now, problems, ..Effect::default() }
    }

    fn put_service(&mut self, key: &ObjectKey, now: Option<Service>, problems: Vec<Problem>) -> Effect {
        let problems = self.problems.replace(Kind::Service, key, problems);
        let key = ServiceKey { namespace: self.names.get(&key.namespace), name: self.names.get(&key.name) };
        let changed = self.service(&key) != now.as_ref();
        match now {
            Some(mut service) => {
                service.key = key.clone();
                service.ports.iter_mut().for_each(|port| port.name = self.names.get(&port.name));
                drop(self.services.insert(key.clone(), Box::new(service)));
            }
            None => drop(self.services.remove(&key)),
        }
        let services = if changed { vec![key] } else { Vec::new() };
        Effect { services, problems, ..Effect::default() }
    }

    fn put_slice(&mut self, key: &ObjectKey, now: Option<Slice>, problems: Vec<Problem>) -> Effect {
        let problems = self.problems.replace(Kind::EndpointSlice, key, problems);
        let mut effect = Effect { problems, ..Effect::default() };
        if let Some(old_owner) = self.owner(key)
            && now.as_ref().is_none_or(|slice| slice.service != old_owner)
        {
            self.forget_owner(key);
            let before = self.take_slice(&old_owner, &key.name);
            effect.slice = before.map(|before| SliceEffect {
                family: before.family,
                service: old_owner.clone(),
                removed: true,
                before: Some(before),
            });
            effect.services.push(old_owner);
        }
        if let Some(now) = now {
            let (owner, family) = (now.service.clone(), now.family);
            self.remember_owner(&key.name, &owner);
            let slices = self.slices.entry(owner.clone()).or_insert_with(|| Vec::with_capacity(1));
            let before = match position(slices, &key.name) {
                Ok(index) if slices[index].1 == now => return effect,
                Ok(index) => Some(std::mem::replace(&mut slices[index].1, now)),
                Err(index) => {
                    slices.insert(index, (key.name.as_str().into(), now));
                    None
                }
            };
            effect.slice = Some(SliceEffect { family, service: owner.clone(), removed: false, before });
            effect.services.push(owner);
        }
        effect
    }

    /// Which Service a slice was last filed under.
    fn owner(&self, slice: &ObjectKey) -> Option<ServiceKey> {
        let (namespace, filed) = self.filed.get_key_value(&*slice.namespace)?;
        Some(ServiceKey { namespace: namespace.clone(), name: filed.get(&*slice.name)?.clone() })
    }

    fn remember_owner(&mut self, slice: &str, owner: &ServiceKey) {
        let filed = self.filed.entry(owner.namespace.clone()).or_default();
        if !filed.contains_key(slice) {
            filed.insert(slice.into(), owner.name.clone());
        }
    }

    fn forget_owner(&mut self, slice: &ObjectKey) {
        let Some(filed) = self.filed.get_mut(&*slice.namespace) else { return };
        filed.remove(&*slice.name);
        if filed.is_empty() {
            self.filed.remove(&*slice.namespace);
        }
    }

    /// Takes a slice out from among those of its Service.
    fn take_slice(&mut self, owner: &ServiceKey, name: &str) -> Option<Slice> {
        let slices = self.slices.get_mut(owner)?;
        let slice = position(slices, name).ok().map(|index| slices.remove(index).1);
        if slices.is_empty() {
            self.slices.remove(owner);
        }
        slice
    }
}

/// Where a slice of this name is, or would be.
fn position(slices: &[Filed], name: &str) -> Result<usize, usize> {
    slices.binary_search_by(|(known, _)| (**known).cmp(name))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::object;

    fn slice(name: &str, service: &str, address: &str) -> Change {
        let value = json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": [address]}],
        });
        Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
    }

    fn service(name: &str, ip: &str) -> Change {
        let value = json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        let object: object::Service = serde_json::from_value(value).expect("decodes");
        Change::Apply(Object::Service(Box::new(object)))
    }

    fn delete(kind: Kind, name: &str) -> Change {
        Change::Delete(kind, ObjectKey { namespace: "shop".into(), name: name.into() })
    }

    fn touched(effect: Effect) -> Vec<String> {
        effect.services.iter().map(|key| key.name.to_string()).collect()
    }

    #[test]
    fn a_change_names_the_services_it_touches() {
        let mut store = Store::default();
        assert_eq!(touched(store.apply(service("web", "10.0.0.1"))), ["web"]);
        assert_eq!(touched(store.apply(service("web", "10.0.0.1"))), [""; 0], "the same again");
        assert_eq!(touched(store.apply(slice("s1", "web", "10.1.0.1"))), ["web"]);
        assert_eq!(touched(store.apply(slice("s1", "web", "10.1.0.1"))), [""; 0], "the same again");
        assert_eq!(touched(store.apply(slice("s1", "web", "10.1.0.2"))), ["web"]);
        assert_eq!(touched(store.apply(slice("s1", "cart", "10.1.0.2"))), ["web", "cart"], "a slice changes hands");
        assert_eq!(store.slices(&ServiceKey::new("shop", "web")).count(), 0);
        assert_eq!(touched(store.apply(delete(Kind::EndpointSlice, "s1"))), ["cart"]);
        assert_eq!(touched(store.apply(delete(Kind::EndpointSlice, "s1"))), [""; 0], "unknown by now");
        assert_eq!(touched(store.apply(delete(Kind::Service, "web"))), ["web"]);
        assert_eq!(touched(store.apply(delete(Kind::Service, "web"))), [""; 0]);
        assert!(
            store.services.is_empty() && store.slices.is_empty() && store.filed.is_empty(),
            "nothing is left behind"
        );
    }

    #[test]
    fn a_problem_is_reported_once_and_again_after_it_was_mended() {
        let mut store = Store::default();
        assert_eq!(store.apply(service("web", "nonsense")).problems.len(), 1);
        assert_eq!(store.apply(service("web", "nonsense")).problems.len(), 0);
        assert_eq!(store.problems().len(), 1);
        assert_eq!(store.apply(service("web", "10.0.0.1")).problems.len(), 0);
        assert!(store.problems().is_empty());
        assert_eq!(store.apply(service("web", "nonsense")).problems.len(), 1);
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let name = prop_oneof![Just("a"), Just("b"), Just("c")];
        prop_oneof![
            (name.clone(), 1u8..4).prop_map(|(name, ip)| service(name, &format!("10.0.0.{ip}"))),
            (name.clone(), name.clone(), 1u8..4).prop_map(|(name, owner, ip)| slice(
                name,
                owner,
                &format!("10.1.0.{ip}")
            )),
            name.clone().prop_map(|name| delete(Kind::Service, name)),
            name.prop_map(|name| delete(Kind::EndpointSlice, name)),
        ]
    }

    proptest! {
        /// The store after any history equals a store that saw only each object's last word, in any order.
        #[test]
        fn only_the_last_word_on_each_object_counts(history in proptest::collection::vec(any_change(), 0..40)) {
            let mut store = Store::default();
            let mut last: BTreeMap<(Kind, ObjectKey), Change> = BTreeMap::new();
            for change in history {
                let slot = match &change {
                    Change::Apply(object) => (object.kind(), object.key()),
                    Change::Delete(kind, key) => (*kind, key.clone()),
                    Change::Synced(_) => unreachable!(),
                };
                last.insert(slot, change.clone());
                store.apply(change);
            }
            let mut fresh = Store::default();
            for change in last.into_values().rev() {
                fresh.apply(change);
            }
            prop_assert_eq!(&store.services, &fresh.services);
            prop_assert_eq!(&store.slices, &fresh.slices);
            prop_assert_eq!(&store.filed, &fresh.filed);
        }
    }
}

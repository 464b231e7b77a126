//! An EndpointSlice: who stands behind a Service.

use std::net::IpAddr;
use std::sync::Arc;

use super::address::{Family, Protocol, parse_address, unusable};
use super::names::Names;
use super::problem::{Problem, Report};
use super::service::{ServiceKey, port_number};
use super::tuning;
use crate::source::object::{self, labels};
use crate::source::{Kind, ObjectKey};

/// Label that ties a slice to its Service (`discovery.k8s.io/v1`).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Label on the slices of headless Services; such slices are none of our business.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// A slice of one family that belongs to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: ServiceKey,
    /// The family of all its addresses.
    pub family: Family,
    /// Usable ports.
    pub ports: Vec<SlicePort>,
    /// Usable endpoints, in the order of the object.
    pub endpoints: Vec<Endpoint>,
}

/// A port that every endpoint of a slice listens on: the resolved target port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The Service port's name it belongs to; empty for the unnamed one.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the endpoint, 1..65535.
    pub port: u16,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its (first) address.
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, even if it is not ready because it terminates.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// Where it runs, if that is known; all endpoints there share it.
    pub location: Option<Arc<Location>>,
    /// The pod behind it.
    pub pod: Option<Box<str>>,
    /// What its slice says that it weighs.
    pub weight: Option<u16>,
    /// Who shall use it, if somebody said so; neighbours in a slice share it.
    pub hints: Option<Arc<Hints>>,
}

/// Where endpoints run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Location {
    /// The node.
    pub node: Option<Arc<str>>,
    /// The zone.
    pub zone: Option<Arc<str>>,
}

/// Where the control plane wants an endpoint used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// Zones whose nodes shall use it.
    pub zones: Vec<Arc<str>>,
    /// Nodes that shall use it.
    pub nodes: Vec<Arc<str>>,
}

// === impl Slice ===

impl Slice {
    /// Parses a slice. `None` means it is none of our business or not usable as a whole (the latter is reported).
    pub fn parse(key: &ObjectKey, slice: &object::EndpointSlice, names: &mut Names) -> (Option<Self>, Vec<Problem>) {
        let labels = labels(&slice.metadata);
        if labels.contains_key(HEADLESS_LABEL) {
            return (None, Vec::new());
        }
        let mut report = Report::new(Kind::EndpointSlice, key.clone());
        // Not a mistake: slices may be made for other purposes than Services.
        let Some(service) = labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty()) else {
            return (None, Vec::new());
        };
        let Some(family) = Family::from_kubernetes(&slice.address_type) else {
            report.add("addressType", &slice.address_type, "only IPv4 and IPv6 slices can be programmed; ignored");
            return (None, report.problems);
        };
        let parsed = Self {
            service: ServiceKey { namespace: names.get(&key.namespace), name: names.get(service) },
            family,
            ports: ports(slice, names, &mut report),
            endpoints: endpoints(slice, family, names, &mut report),
        };
        (Some(parsed), report.problems)
    }
}

fn ports(slice: &object::EndpointSlice, names: &mut Names, report: &mut Report) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(slice.ports.len());
    for (index, port) in slice.ports.iter().enumerate() {
        let Some(name) = &port.name else {
            report.add(format!("ports[{index}].name"), "", "a port without a name matches no Service port; skipped");
            continue;
        };
        let Some(protocol) = Protocol::from_kubernetes(port.protocol.as_deref()) else {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            report.add(format!("ports[{index}].protocol"), protocol, "not TCP, UDP or SCTP; skipped");
            continue;
        };
        let Some(number) = port.port.and_then(port_number) else {
            let number = port.port.map(|port| port.to_string()).unwrap_or_default();
            report.add(format!("ports[{index}].port"), number, "not in 1..65535; skipped");
            continue;
        };
        ports.push(SlicePort { name: names.get(name), protocol, port: number });
    }
    ports
}

fn endpoints(slice: &object::EndpointSlice, family: Family, names: &mut Names, report: &mut Report) -> Vec<Endpoint> {
    let weight = tuning::slice_weight(slice.metadata.annotations.as_ref(), report);
    let mut last: Option<Arc<Hints>> = None;
    let mut endpoints = Vec::with_capacity(slice.endpoints.len());
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let Some(text) = endpoint.addresses.first() else {
            report.add(format!("endpoints[{index}].addresses"), "[]", "an endpoint without an address; skipped");
            continue;
        };
        let field = || format!("endpoints[{index}].addresses[0]");
        let Some(address) = parse_address(text) else {
            report.add(field(), text, "not an IP address; skipped");
            continue;
        };
        if let Some(why) = unusable(address) {
            report.add(field(), text, format!("{why} cannot be an endpoint; skipped"));
            continue;
        }
        if Family::of(address) != family {
            report.add(field(), text, format!("the slice's addressType is {family}; skipped"));
            continue;
        }
        let hints = hints(&endpoint.hints, last.as_ref(), names);
        last = hints.clone().or(last);
        endpoints.push(Endpoint {
            address,
            ready: endpoint.conditions.ready.unwrap_or(true),
            serving: endpoint.conditions.serving.unwrap_or(true),
            terminating: endpoint.conditions.terminating.unwrap_or(false),
            location: names.location(endpoint.node_name.as_deref(), endpoint.zone.as_deref()),
            pod: endpoint.target_ref.as_ref().and_then(|target| target.name.as_deref()).map(Into::into),
            weight,
            hints,
        });
    }
    endpoints
}

/// What an endpoint's hints say; those of the endpoint before, if they say the same.
fn hints(hints: &object::EndpointHints, before: Option<&Arc<Hints>>, names: &mut Names) -> Option<Arc<Hints>> {
    if hints.for_zones.is_empty() && hints.for_nodes.is_empty() {
        return None;
    }
    let mut list = |named: &[object::Named]| named.iter().map(|one| names.get(&one.name)).collect();
    let now = Hints { zones: list(&hints.for_zones), nodes: list(&hints.for_nodes) };
    Some(before.filter(|before| ***before == now).cloned().unwrap_or_else(|| now.into()))
}

// === impl Endpoint ===

impl Endpoint {
    /// The node it runs on.
    pub fn node(&self) -> Option<&str> {
        self.location.as_ref()?.node.as_deref()
    }

    /// The zone it is in.
    pub fn zone(&self) -> Option<&str> {
        self.location.as_ref()?.zone.as_deref()
    }

    /// Zones whose nodes shall use it; empty without hints.
    pub fn zones(&self) -> &[Arc<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.zones)
    }

    /// Nodes that shall use it; empty without hints.
    pub fn nodes(&self) -> &[Arc<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.nodes)
    }
}

#[cfg(test)]
impl Endpoint {
    /// A ready one of which nothing else is known, for tests.
    pub(crate) fn ready_at(address: impl Into<IpAddr>) -> Self {
        Self {
            address: address.into(),
            ready: true,
            serving: true,
            terminating: false,
            location: None,
            pod: None,
            weight: None,
            hints: None,
        }
    }

    /// The same in some place.
    pub(crate) fn at(self, node: Option<&str>, zone: Option<&str>) -> Self {
        let name = |name: Option<&str>| name.map(Into::into);
        Self { location: Some(Location { node: name(node), zone: name(zone) }.into()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> (Option<Slice>, Vec<String>) {
        let object: object::EndpointSlice = serde_json::from_value(value).expect("decodes");
        let key = ObjectKey { namespace: "shop".into(), name: "web-1".into() };
        let (slice, problems) = Slice::parse(&key, &object, &mut Names::default());
        (slice, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn conditions_default_as_the_api_says() {
        let (slice, problems) = parse(json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.0.0.1", "10.0.0.99"]},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true},
                 "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "web-abc"}},
            ],
        }));
        let slice = slice.expect("usable");
        assert_eq!(problems, Vec::<String>::new());
        let first = &slice.endpoints[0];
        assert_eq!((first.ready, first.serving, first.terminating), (true, true, false));
        let second = &slice.endpoints[1];
        assert_eq!((second.ready, second.serving, second.terminating), (false, true, true));
        assert_eq!((second.node(), second.pod.as_deref()), (Some("n1"), Some("web-abc")));
        assert_eq!(slice.service, ServiceKey::new("shop", "web"));
    }

    #[test]
    fn each_bad_field_is_named_and_the_rest_is_used() {
        let (slice, problems) = parse(json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"port": 80}, {"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": 1, "protocol": "tcp"}, {"name": "d", "port": 9}],
            "endpoints": [
                {"addresses": []}, {"addresses": ["fd00::1"]}, {"addresses": ["pod-7"]}, {"addresses": ["0.0.0.0"]},
                {"addresses": ["10.0.0.7"], "conditions": null},
            ],
        }));
        let slice = slice.expect("usable");
        assert_eq!((slice.ports.len(), slice.endpoints.len()), (1, 1));
        insta::assert_snapshot!(problems.join("\n"), @r#"
        EndpointSlice shop/web-1: ports[0].name: "": a port without a name matches no Service port; skipped
        EndpointSlice shop/web-1: ports[1].port: "": not in 1..65535; skipped
        EndpointSlice shop/web-1: ports[2].port: "0": not in 1..65535; skipped
        EndpointSlice shop/web-1: ports[3].protocol: "tcp": not TCP, UDP or SCTP; skipped
        EndpointSlice shop/web-1: endpoints[0].addresses: "[]": an endpoint without an address; skipped
        EndpointSlice shop/web-1: endpoints[1].addresses[0]: "fd00::1": the slice's addressType is IPv4; skipped
        EndpointSlice shop/web-1: endpoints[2].addresses[0]: "pod-7": not an IP address; skipped
        EndpointSlice shop/web-1: endpoints[3].addresses[0]: "0.0.0.0": the unspecified address cannot be an endpoint; skipped
        "#);
    }

    #[test]
    fn a_slice_may_have_a_weight_for_all_its_endpoints() {
        let weights = |text: &str| {
            let (slice, problems) = parse(json!({
                "metadata": {"labels": {"kubernetes.io/service-name": "web"}, "annotations": {"pointsman.dev/weight": text}},
                "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "zone": "eu-1a"}, {"addresses": ["10.0.0.2"]}],
            }));
            let slice = slice.expect("usable");
            assert_eq!(slice.endpoints[0].zone(), Some("eu-1a"));
            (slice.endpoints.iter().map(|one| one.weight).collect::<Vec<_>>(), problems.join(""))
        };
        assert_eq!(weights(" 7\n"), (vec![Some(7); 2], String::new()));
        assert_eq!(weights("0"), (vec![Some(0); 2], String::new()));
        let problem = |text: &str, reason: &str| {
            format!("EndpointSlice shop/web-1: metadata.annotations[pointsman.dev/weight]: {text:?}: {reason}")
        };
        let none = |text| (vec![None; 2], problem(text, "not a weight in 0..65535; the weight is 1"));
        for text in ["", "heavy", "-1", "1.5", "1\u{1b}[0m"] {
            assert_eq!(weights(text), none(text));
        }
        assert_eq!(weights("70000"), (vec![Some(65535); 2], problem("70000", "more than 65535; taken as 65535")));
    }

    #[test]
    fn slices_that_cannot_be_used_at_all() {
        let fqdn = json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "FQDN",
            "endpoints": [{"addresses": ["example.org"]}]});
        assert_eq!(
            parse(fqdn),
            (None, vec![r#"EndpointSlice shop/web-1: addressType: "FQDN": only IPv4 and IPv6 slices can be programmed; ignored"#.into()])
        );
        let (slice, problems) = parse(json!({"metadata": {}, "addressType": "IPv4"}));
        assert!(slice.is_none() && problems.is_empty(), "of no Service, which is no mistake");
        let headless = json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}, "addressType": "IPv4"});
        assert_eq!(parse(headless), (None, Vec::new()));
    }
}

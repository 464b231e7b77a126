//! A Service: its frontend addresses and ports.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::address::{Family, Protocol, parse_address, unusable};
use super::problem::{Problem, Report};
use crate::schedule::Scheduler;
use crate::source::object::{self, labels};
use crate::source::{Kind, ObjectKey};

/// Label whose presence hands a Service to another proxy (KEP-2447).
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Annotation that chooses the scheduler of one Service.
pub const SCHEDULER_ANNOTATION: &str = "pointsman.dev/scheduler";

/// Namespace and name of a Service, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

/// A port of a Service, by what identifies it across changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The Service.
    pub service: ServiceKey,
    /// The port's name; empty when the Service has a single, unnamed port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
}

/// A Service that this proxy serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// `metadata.creationTimestamp` in seconds since 1970: decides who keeps a frontend that two Services claim.
    /// An object without one (a manifest) counts as created last.
    pub created: i64,
    /// At most one cluster address per family.
    pub cluster_ips: Vec<IpAddr>,
    /// The usable ports.
    pub ports: Vec<ServicePort>,
    /// What the annotation asks for; `None` takes the cluster's default.
    pub scheduler: Option<Scheduler>,
}

/// One usable port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for an unnamed port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port on the frontend, 1..65535.
    pub port: u16,
}

// === impl ServiceKey ===

impl ServiceKey {
    /// From plain strings.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The same key as sources spell it.
    pub fn object(&self) -> ObjectKey {
        ObjectKey { namespace: self.namespace.to_string(), name: self.name.to_string() }
    }
}

impl From<&ObjectKey> for ServiceKey {
    fn from(key: &ObjectKey) -> Self {
        Self::new(&key.namespace, &key.name)
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl PortKey ===

impl fmt::Display for PortKey {
    /// `namespace/name:port`, or `namespace/name` for an unnamed port: how kube-proxy displays it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if !self.name.is_empty() {
            write!(f, ":{}", self.name)?;
        }
        Ok(())
    }
}

// === impl Service ===

impl Service {
    /// Parses a Service. `None` means it is none of our business: headless, ExternalName, or another proxy's by label.
    pub fn parse(key: &ObjectKey, service: &object::Service) -> (Option<Self>, Vec<Problem>) {
        let spec = &service.spec;
        let headless = |ip: &str| ip.is_empty() || ip == "None";
        let nothing_to_serve = spec.type_.as_deref() == Some("ExternalName")
            || labels(&service.metadata).contains_key(SERVICE_PROXY_NAME_LABEL)
            || (spec.cluster_ip.as_deref().is_none_or(headless) && spec.cluster_ips.iter().all(|ip| headless(ip)));
        if nothing_to_serve {
            return (None, Vec::new());
        }
        let mut report = Report::new(Kind::Service, key.clone());
        let parsed = Self {
            key: key.into(),
            created: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            cluster_ips: cluster_ips(spec, &mut report),
            ports: ports(spec, &mut report),
            scheduler: scheduler(service, &mut report),
        };
        (Some(parsed), report.problems)
    }

    /// The key of one of its ports.
    pub fn port_key(&self, port: &ServicePort) -> PortKey {
        PortKey { service: self.key.clone(), name: port.name.clone(), protocol: port.protocol }
    }
}

/// Which address serves which family: `ipFamilies[i]` names the family of `clusterIPs[i]`; objects that carry only `clusterIP`
/// (older ones, and manifests written by hand) are served at that.
fn cluster_ips(spec: &object::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let listed: Vec<(String, &str)> = if spec.cluster_ips.is_empty() {
        spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip.as_str())).collect()
    } else {
        let name = |index| format!("spec.clusterIPs[{index}]");
        spec.cluster_ips.iter().enumerate().map(|(index, ip)| (name(index), ip.as_str())).collect()
    };
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (index, (field, text)) in listed.into_iter().enumerate() {
        let Some(address) = parse_address(text) else {
            report.add(field, text, "not an IP address; not served");
            continue;
        };
        if let Some(why) = unusable(address) {
            report.add(field, text, format!("{why} cannot be a cluster address; not served"));
            continue;
        }
        let declared = spec.ip_families.get(index).map(String::as_str);
        if let Some(declared) = declared
            && Family::from_kubernetes(declared) != Some(Family::of(address))
        {
            report.add(field, text, format!("spec.ipFamilies[{index}] says {declared}; not served"));
            continue;
        }
        if addresses.iter().any(|other| Family::of(*other) == Family::of(address)) {
            report.add(field, text, format!("a second {} cluster address; not served", Family::of(address)));
            continue;
        }
        addresses.push(address);
    }
    addresses
}

fn ports(spec: &object::ServiceSpec, report: &mut Report) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let Some(protocol) = Protocol::from_kubernetes(port.protocol.as_deref()) else {
            let protocol = port.protocol.as_deref().unwrap_or_default();
            report.add(format!("spec.ports[{index}].protocol"), protocol, "not TCP, UDP or SCTP; port not served");
            continue;
        };
        let Some(number) = port_number(port.port) else {
            report.add(format!("spec.ports[{index}].port"), port.port, "not in 1..65535; port not served");
            continue;
        };
        let name = port.name.as_deref().unwrap_or_default();
        if !names.insert((name, protocol)) {
            report.add(format!("spec.ports[{index}].name"), name, "a second port of that name; port not served");
            continue;
        }
        if !numbers.insert((number, protocol)) {
            report.add(format!("spec.ports[{index}].port"), number, "a second port of that number; port not served");
            continue;
        }
        ports.push(ServicePort { name: name.into(), protocol, port: number });
    }
    ports
}

fn scheduler(service: &object::Service, report: &mut Report) -> Option<Scheduler> {
    let name = service.metadata.annotations.as_ref()?.get(SCHEDULER_ANNOTATION)?;
    let scheduler = name.trim().parse().ok();
    if scheduler.is_none() {
        let known = Scheduler::NAMES.join(", ");
        report.add(
            format!("metadata.annotations[{SCHEDULER_ANNOTATION}]"),
            name,
            format!("not a scheduler ({known}); the default is used"),
        );
    }
    scheduler
}

/// A port as objects carry it, if it is one.
pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> (Option<Service>, Vec<String>) {
        let object: object::Service = serde_json::from_value(value).expect("decodes");
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        let (service, problems) = Service::parse(&key, &object);
        (service, problems.iter().map(ToString::to_string).collect())
    }

    fn ips(service: &Service) -> Vec<String> {
        service.cluster_ips.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dual_stack_service_has_one_address_per_family() {
        let (service, problems) = parse(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"pointsman.dev/scheduler": "rr"}},
            "spec": {
                "clusterIP": "10.96.0.041", "clusterIPs": ["10.96.0.041", "fd00:10:96::29"],
                "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            },
        }));
        let service = service.expect("served");
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(ips(&service), ["10.96.0.41", "fd00:10:96::29"]);
        assert_eq!(service.scheduler, Some(Scheduler::RoundRobin));
        assert_eq!(service.port_key(&service.ports[1]).to_string(), "shop/web:dns");
    }

    #[test]
    fn what_is_not_ours_is_ignored_without_a_word() {
        for value in [
            json!({"metadata": {}, "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}),
            json!({"metadata": {}, "spec": {"ports": [{"port": 80}]}}),
            json!({"metadata": {}, "spec": {"clusterIP": "", "clusterIPs": null, "ports": null}}),
            json!({"metadata": {}, "spec": {"type": "ExternalName", "clusterIP": "10.0.0.1"}}),
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}},
                   "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
        ] {
            assert_eq!(parse(value.clone()), (None, Vec::new()), "{value}");
        }
    }

    #[test]
    fn each_bad_field_is_named_and_the_rest_is_served() {
        let (service, problems) = parse(json!({
            "metadata": {"annotations": {"pointsman.dev/scheduler": "fastest"}},
            "spec": {
                "clusterIPs": ["10.96.0.300", "fd00::1", "fd00::2", "127.0.0.1"],
                "ports": [
                    {"name": "a", "port": 0}, {"name": "b", "port": 65536}, {"name": "c", "port": 80, "protocol": "QUIC"},
                    {"name": "d", "port": 80}, {"name": "e", "port": 80}, {"name": "d", "port": 81}, {"name": "d", "port": 80, "protocol": "UDP"},
                ],
            },
        }));
        let service = service.expect("served");
        assert_eq!(ips(&service), ["fd00::1"]);
        assert_eq!(service.ports.len(), 2);
        insta::assert_snapshot!(problems.join("\n"), @r#"
        Service shop/web: spec.clusterIPs[0]: "10.96.0.300": not an IP address; not served
        Service shop/web: spec.clusterIPs[2]: "fd00::2": a second IPv6 cluster address; not served
        Service shop/web: spec.clusterIPs[3]: "127.0.0.1": a loopback address cannot be a cluster address; not served
        Service shop/web: spec.ports[0].port: "0": not in 1..65535; port not served
        Service shop/web: spec.ports[1].port: "65536": not in 1..65535; port not served
        Service shop/web: spec.ports[2].protocol: "QUIC": not TCP, UDP or SCTP; port not served
        Service shop/web: spec.ports[4].port: "80": a second port of that number; port not served
        Service shop/web: spec.ports[5].name: "d": a second port of that name; port not served
        Service shop/web: metadata.annotations[pointsman.dev/scheduler]: "fastest": not a scheduler (random, rr); the default is used
        "#);
    }

    #[test]
    fn an_address_of_another_family_than_declared_is_not_served() {
        let (service, problems) =
            parse(json!({"metadata": {}, "spec": {"clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv6"], "ports": []}}));
        assert!(service.expect("parsed").cluster_ips.is_empty());
        assert_eq!(
            problems,
            [r#"Service shop/web: spec.clusterIPs[0]: "10.0.0.1": spec.ipFamilies[0] says IPv6; not served"#]
        );
    }
}

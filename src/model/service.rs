//! A Service: its frontend addresses and ports.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::address::{Family, Protocol, parse_address, unusable};
use super::network::parse_network;
use super::problem::{Problem, Report};
use super::tuning::Tuning;
use crate::schedule::{Choice, Exact, Scheduler, SchedulerError};
use crate::source::object::{self, labels};
use crate::source::{Kind, ObjectKey};

/// Label whose presence hands a Service to another proxy (KEP-2447).
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Annotation that chooses the scheduler of one Service.
pub const SCHEDULER_ANNOTATION: &str = "pointsman.dev/scheduler";

/// kube-router's annotation for the same, read where ours is not given. Its names are those of IPVS, as ours.
pub const KUBE_ROUTER_SCHEDULER_ANNOTATION: &str = "kube-router.io/service.scheduler";

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
    /// `spec.type`. Decides nothing here: what is served follows from the other fields.
    pub kind: ServiceKind,
    /// `metadata.creationTimestamp` in seconds since 1970: decides who keeps a frontend that two Services claim.
    /// An object without one (a manifest) counts as created last.
    pub created: i64,
    /// At most one cluster address per family.
    pub cluster_ips: Vec<IpAddr>,
    /// Addresses that somebody routes to the nodes.
    pub external_ips: Vec<IpAddr>,
    /// Addresses of load balancers that hand packets on unchanged (`ipMode` VIP).
    pub load_balancer_ips: Vec<IpAddr>,
    /// Whether clients in the cluster may only reach endpoints of their own node.
    pub internal_local: bool,
    /// Whether clients from outside may only reach endpoints of the node they come by.
    pub external_local: bool,
    /// Whether a client stays with its endpoint.
    pub affinity: Option<Affinity>,
    /// Networks whose clients may use the load balancers' addresses; none of a family: all of that family.
    pub source_ranges: Vec<IpNet>,
    /// Where load balancers ask whether this node has endpoints.
    pub health_check_port: Option<u16>,
    /// The usable ports.
    pub ports: Vec<ServicePort>,
    /// What the annotation asks for; `None` takes the cluster's default.
    pub scheduler: Option<Scheduler>,
    /// What the same annotation asks for that only the userspace forwarder has.
    pub exact: Option<Exact>,
    /// What the other annotations ask for: weights, shares, slow start, drain.
    pub tuning: Arc<Tuning>,
}

/// `spec.type` of a Service that can be served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Reached from within the cluster; also whatever is no known type.
    #[default]
    ClusterIP,
    /// Reached by a port of every node, too.
    NodePort,
    /// Reached by load balancers, too.
    LoadBalancer,
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
    /// The port on the nodes' own addresses.
    pub node_port: Option<u16>,
}

/// Session affinity of kind `ClientIP`: a client address stays with its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// How long after its last new connection, in seconds, 1..=86400 (API validation).
    pub seconds: u32,
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
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let external_local = is_local(spec.external_traffic_policy.as_deref())
            && (["LoadBalancer", "NodePort"].contains(&kind) || (kind == "ClusterIP" && !spec.external_ips.is_empty()));
        let mut parsed = Self {
            key: key.into(),
            kind: match kind {
                "NodePort" => ServiceKind::NodePort,
                "LoadBalancer" => ServiceKind::LoadBalancer,
                _ => ServiceKind::ClusterIP,
            },
            created: service.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            cluster_ips: cluster_ips(spec, &mut report),
            external_ips: external_ips(spec, &mut report),
            load_balancer_ips: load_balancer_ips(service, &mut report),
            internal_local: is_local(spec.internal_traffic_policy.as_deref()),
            external_local,
            affinity: affinity(spec, &mut report),
            source_ranges: source_ranges(spec, &mut report),
            health_check_port: health_check_port(spec, kind, external_local, &mut report),
            ports: ports(spec, &mut report),
            scheduler: None,
            exact: None,
            tuning: Arc::default(),
        };
        if let Some(choice) = scheduler(service, &mut report) {
            (parsed.scheduler, parsed.exact) = (Some(choice.scheduler), choice.exact);
        }
        parsed.tuning = Tuning::parse(service.metadata.annotations.as_ref(), &mut report);
        (Some(parsed), report.problems)
    }

    /// Whether it is served in a family: it has a cluster address of it.
    pub fn serves(&self, family: Family) -> bool {
        self.cluster_ips.iter().any(|address| Family::of(*address) == family)
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
    addresses.shrink_to_fit();
    addresses
}

fn ports(spec: &object::ServiceSpec, report: &mut Report) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
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
        let mut node_port = None;
        if port.node_port != 0 {
            let field = || format!("spec.ports[{index}].nodePort");
            node_port = port_number(port.node_port);
            if node_port.is_none() {
                report.add(field(), port.node_port, "not in 1..65535; no node port served");
            } else if !node_ports.insert((node_port, protocol)) {
                report.add(field(), port.node_port, "a second node port of that number; not served");
                node_port = None;
            }
        }
        ports.push(ServicePort { name: name.into(), protocol, port: number, node_port });
    }
    ports.shrink_to_fit();
    ports
}

/// The affinity timeout that the API server fills in (`DefaultClientIPServiceAffinitySeconds`, core/v1).
const DEFAULT_AFFINITY_SECONDS: i64 = 10_800;

/// The longest affinity timeout that the API allows (`MaxClientIPServiceAffinitySeconds`, core/v1).
const MAX_AFFINITY_SECONDS: i64 = 86_400;

fn is_local(policy: Option<&str>) -> bool {
    policy == Some("Local")
}

/// Blanks are ignored without a word, as kube-proxy does.
fn external_ips(spec: &object::ServiceSpec, report: &mut Report) -> Vec<IpAddr> {
    let listed = spec.external_ips.iter().enumerate().filter(|(_, text)| !text.trim().is_empty());
    frontend_addresses(listed.map(|(index, text)| (format!("spec.externalIPs[{index}]"), text.trim())), report)
}

fn load_balancer_ips(service: &object::Service, report: &mut Report) -> Vec<IpAddr> {
    let ingress = service.status.load_balancer.ingress.iter().enumerate();
    let listed = ingress.filter(|(_, entry)| entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    let listed = listed.filter_map(|(index, entry)| Some((index, entry.ip.as_deref()?)));
    let listed = listed.filter(|(_, text)| !text.is_empty());
    let field = |index| format!("status.loadBalancer.ingress[{index}].ip");
    frontend_addresses(listed.map(|(index, text)| (field(index), text)), report)
}

fn frontend_addresses<'a>(listed: impl Iterator<Item = (String, &'a str)>, report: &mut Report) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (field, text) in listed {
        match parse_address(text) {
            None => report.add(field, text, "not an IP address; not served"),
            Some(address) => match unusable(address) {
                Some(why) => report.add(field, text, format!("{why} cannot be a frontend; not served")),
                None if addresses.contains(&address) => {}
                None => addresses.push(address),
            },
        }
    }
    addresses.shrink_to_fit();
    addresses
}

fn affinity(spec: &object::ServiceSpec, report: &mut Report) -> Option<Affinity> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            report.add("spec.sessionAffinity", other, "neither None nor ClientIP; taken as None");
            return None;
        }
    }
    let asked = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(DEFAULT_AFFINITY_SECONDS);
    let seconds = asked.clamp(1, MAX_AFFINITY_SECONDS);
    if seconds != asked {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        report.add(field, asked, format!("not in 1..{MAX_AFFINITY_SECONDS}; taken as {seconds}"));
    }
    Some(Affinity { seconds: u32::try_from(seconds).expect("clamped") })
}

fn source_ranges(spec: &object::ServiceSpec, report: &mut Report) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (index, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        match parse_network(text) {
            Some(range) => ranges.push(range),
            None => report.add(format!("spec.loadBalancerSourceRanges[{index}]"), text, "not a CIDR; skipped"),
        }
    }
    ranges
}

fn health_check_port(spec: &object::ServiceSpec, kind: &str, external_local: bool, report: &mut Report) -> Option<u16> {
    if kind != "LoadBalancer" || !external_local {
        return None;
    }
    let port = port_number(spec.health_check_node_port);
    if port.is_none() {
        let why = "a load balancer with externalTrafficPolicy Local needs a port in 1..65535; no health check served";
        report.add("spec.healthCheckNodePort", spec.health_check_node_port, why);
    }
    port
}

fn scheduler(service: &object::Service, report: &mut Report) -> Option<Choice> {
    let annotations = service.metadata.annotations.as_ref()?;
    let choices = [SCHEDULER_ANNOTATION, KUBE_ROUTER_SCHEDULER_ANNOTATION];
    let (annotation, name) = choices.into_iter().find_map(|choice| Some((choice, annotations.get(choice)?)))?;
    match name.parse() {
        Ok(choice) => Some(choice),
        Err(error) => {
            let reason = match error {
                SchedulerError::Unknown { .. } => format!("not a scheduler ({})", Choice::names()),
                SchedulerError::Flag { .. } => error.to_string(),
            };
            report.add(format!("metadata.annotations[{annotation}]"), name, format!("{reason}; the default is used"));
            None
        }
    }
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
    fn kube_routers_annotation_is_read_where_ours_is_not_given() {
        let given = |annotations: serde_json::Value| {
            let spec = json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]});
            let (service, problems) = parse(json!({"metadata": {"annotations": annotations}, "spec": spec}));
            (service.expect("served").scheduler, problems)
        };
        let theirs = "kube-router.io/service.scheduler";
        assert_eq!(given(json!({theirs: "rr"})), (Some(Scheduler::RoundRobin), vec![]));
        assert_eq!(given(json!({theirs: "rr", SCHEDULER_ANNOTATION: "random"})), (Some(Scheduler::Random), vec![]));
        assert_eq!(given(json!({theirs: "rr", SCHEDULER_ANNOTATION: ""})).0, None, "ours counts, right or wrong");
        let (scheduler, problems) = given(json!({theirs: "fastest"}));
        assert!(scheduler.is_none() && problems.len() == 1);
        assert!(
            problems[0]
                .starts_with(r#"Service shop/web: metadata.annotations[kube-router.io/service.scheduler]: "fastest""#)
        );
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
        Service shop/web: metadata.annotations[pointsman.dev/scheduler]: "fastest": not a scheduler (random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh, ewma, p2c); the default is used
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

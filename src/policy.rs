//! Which endpoints each frontend may use.
//!
//! [`resolve`] is a pure function of one Service, its slices and the claims on frontends: it names, per Service port and family,
//! the frontends that are this Service's to serve and the endpoints that qualify. It knows neither schedulers nor nftables.
//!
//! Vocabulary: a *frontend* is what clients connect to (address, protocol, port). Two Services may ask for the same one;
//! [`Claims`] keeps who asks and decides who has it.
//!
//! Rules in force (spec of kube-proxy 1.36, sections 4.2 to 4.5, as far as ClusterIP Services need them):
//! - a slice port serves a Service port of the same name and protocol;
//! - only the first address of an endpoint counts, and only ready endpoints qualify;
//! - the same address and port in several entries or slices is one endpoint; of two, the one that does not terminate is believed;
//! - no qualifying endpoint: connections are rejected.
//!
//! Invariants: the result depends on the objects only, and endpoints come sorted. Table tests below.

mod claims;
mod serving;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

pub use claims::Claims;

use crate::model::{Endpoint, Family, PortKey, Problem, Protocol, Service, ServicePort, Slice};
use crate::schedule::Scheduler;
use crate::source::Kind;

/// What clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Destination address.
    pub address: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// The decision for one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPort {
    /// Which Service port.
    pub key: PortKey,
    /// Which family.
    pub family: Family,
    /// Where clients may connect; never empty.
    pub frontends: Vec<Frontend>,
    /// Who may answer, sorted and without duplicates; empty means that connections are rejected.
    pub endpoints: Vec<SocketAddr>,
    /// Who may go on answering: ready endpoints and those that still serve while they terminate, sorted and without duplicates.
    /// UDP only: no other flows are ended.
    pub serving: Vec<SocketAddr>,
    /// Who shall answer next.
    pub scheduler: Scheduler,
}

// === impl Frontend ===

impl std::fmt::Display for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.address, self.port))
    }
}

// === resolving ===

/// Every frontend that a Service asks for, whoever gets it in the end.
pub fn frontends(service: &Service) -> impl Iterator<Item = Frontend> + '_ {
    service.ports.iter().flat_map(|port| port_frontends(service, port))
}

fn port_frontends<'a>(service: &'a Service, port: &'a ServicePort) -> impl Iterator<Item = Frontend> + 'a {
    let (protocol, port) = (port.protocol, port.port);
    service.cluster_ips.iter().map(move |address| Frontend { address: *address, protocol, port })
}

/// The frontends that a Service asks for and another has, as problems of the one that lost.
pub fn lost_frontends(service: &Service, claims: &Claims) -> Vec<Problem> {
    let lost = frontends(service).filter_map(|frontend| Some((frontend, claims.holder(&frontend)?)));
    lost.filter(|(_, holder)| **holder != service.key)
        .map(|(frontend, holder)| Problem {
            kind: Kind::Service,
            object: service.key.object(),
            field: "spec.ports".to_owned(),
            value: frontend.to_string(),
            reason: format!("already served for Service {holder}, which is older or first by name; not served"),
        })
        .collect()
}

/// Decides for all ports of a Service. Frontends that [`Claims`] give to another Service are left out.
pub fn resolve<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    claims: &Claims,
    default: Scheduler,
) -> Vec<ResolvedPort> {
    let mut resolved = Vec::new();
    for port in &service.ports {
        for family in Family::ALL {
            let frontends: Vec<_> = port_frontends(service, port)
                .filter(|frontend| Family::of(frontend.address) == family && claims.holds(&service.key, frontend))
                .collect();
            if frontends.is_empty() {
                continue;
            }
            let slices = slices.clone().filter(|slice| slice.family == family);
            let serving = match port.protocol {
                Protocol::Udp => serving::serving(port, slices.clone()),
                Protocol::Tcp | Protocol::Sctp => Vec::new(),
            };
            resolved.push(ResolvedPort {
                key: service.port_key(port),
                family,
                frontends,
                endpoints: qualifying(port, slices),
                serving,
                scheduler: service.scheduler.unwrap_or(default),
            });
        }
    }
    resolved
}

/// The endpoints that may serve a port now: sorted, without duplicates.
fn qualifying<'a>(port: &ServicePort, slices: impl Iterator<Item = &'a Slice>) -> Vec<SocketAddr> {
    let mut seen: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports =
            slice.ports.iter().filter(|candidate| candidate.name == port.name && candidate.protocol == port.protocol);
        for target in ports {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.address, target.port);
                let known = seen.entry(address).or_insert(endpoint);
                if !endpoint.terminating {
                    *known = endpoint;
                }
            }
        }
    }
    seen.into_iter().filter(|(_, endpoint)| endpoint.ready).map(|(address, _)| address).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::ServiceKey;
    use crate::source::ObjectKey;

    fn service(value: serde_json::Value) -> Service {
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served")
    }

    fn slice(family: &str, ports: serde_json::Value, endpoints: serde_json::Value) -> Slice {
        let key = ObjectKey { namespace: "shop".into(), name: "web-1".into() };
        let value = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family, "ports": ports, "endpoints": endpoints,
        });
        Slice::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("usable")
    }

    fn decide(service: &Service, slices: &[Slice]) -> Vec<String> {
        let mut claims = Claims::default();
        claims.set(&service.key, service.created, frontends(service));
        resolve(service, slices.iter(), &claims, Scheduler::Random)
            .iter()
            .map(|port| {
                let list = |items: Vec<String>| items.join(" ");
                format!(
                    "{} [{}] -> [{}]",
                    port.key,
                    list(port.frontends.iter().map(ToString::to_string).collect()),
                    list(port.endpoints.iter().map(ToString::to_string).collect())
                )
            })
            .collect()
    }

    #[test]
    fn ports_match_by_name_and_protocol_across_slices() {
        let service = service(json!({"metadata": {}, "spec": {
            "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}],
        }}));
        let slices = [
            slice(
                "IPv4",
                json!([{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]),
                json!([{"addresses": ["10.1.0.2"]}]),
            ),
            slice(
                "IPv4",
                json!([{"name": "http", "port": 9090}]),
                json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.2"]}]),
            ),
            slice("IPv6", json!([{"name": "dns-tcp", "port": 53}]), json!([{"addresses": ["fd00:1::1"]}])),
        ];
        insta::assert_snapshot!(decide(&service, &slices).join("\n"), @r"
        shop/web:http [TCP 10.0.0.1:80] -> [10.1.0.1:9090 10.1.0.2:8080 10.1.0.2:9090]
        shop/web:http [TCP [fd00::1]:80] -> []
        shop/web:dns [UDP 10.0.0.1:53] -> [10.1.0.2:5353]
        shop/web:dns [UDP [fd00::1]:53] -> []
        shop/web:dns-tcp [TCP 10.0.0.1:53] -> []
        shop/web:dns-tcp [TCP [fd00::1]:53] -> [[fd00:1::1]:53]
        ");
    }

    #[test]
    fn only_ready_endpoints_qualify_and_duplicates_are_one() {
        let service = service(json!({"metadata": {}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}));
        let port = json!([{"name": "", "port": 80}]);
        let one = |ready: bool, terminating: bool| {
            slice(
                "IPv4",
                port.clone(),
                json!([{"addresses": ["10.1.0.1"], "conditions": {"ready": ready, "serving": true, "terminating": terminating}}]),
            )
        };
        let used = "shop/web [TCP 10.0.0.1:80] -> [10.1.0.1:80]";
        let unused = "shop/web [TCP 10.0.0.1:80] -> []";
        let table = [
            (vec![one(true, false)], used),
            (vec![one(false, false)], unused),
            (vec![one(false, true)], unused),
            (vec![one(true, false), one(true, false)], used),
            (vec![one(false, true), one(true, false)], used),
            (vec![one(true, false), one(false, true)], used),
            (vec![], unused),
        ];
        for (slices, want) in table {
            assert_eq!(decide(&service, &slices), [want], "{slices:?}");
        }
    }

    #[test]
    fn a_frontend_lost_to_another_service_is_left_out() {
        let service = service(
            json!({"metadata": {}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}]}}),
        );
        let mut claims = Claims::default();
        claims.set(&service.key, service.created, frontends(&service));
        claims.set(&ServiceKey::new("shop", "older"), 7, frontends(&service).take(1));
        let resolved = resolve(&service, [].iter(), &claims, Scheduler::Random);
        assert_eq!(resolved.len(), 1);
        assert_eq!(&*resolved[0].key.name, "b");
    }
}

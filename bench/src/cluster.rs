//! Kubernetes objects for measurements: Services with EndpointSlices, by the thousand, all of one shape.
//!
//! Service number `n` is `bench/service-<n>` at `10.96.0.0 + n`, port 80, unnamed. Two kinds of endpoints: [`Endpoints::Spread`]
//! gives every Service ten addresses of its own in `10.128.0.0/9`, in one slice, as a cluster would; [`Endpoints::OnePod`] makes
//! every Service reachable in a lab with a single pod: ten ports of that pod, one slice each, since a slice has one port number for
//! all its addresses.
//!
//! Objects are made in the form in which sources deliver them, so that what is measured behind them is the product's own path.

use std::net::Ipv4Addr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use pointsman::source::object::{Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceSpec};
use pointsman::source::{Change, Object};

/// Endpoints of every Service.
pub const ENDPOINTS: u16 = 10;

/// The port of every Service.
pub const SERVICE_PORT: u16 = 80;

/// The (first) port of every endpoint.
pub const TARGET_PORT: u16 = 8080;

/// Where a Service's endpoints are.
#[derive(Debug, Clone, Copy)]
pub enum Endpoints {
    /// Everywhere in the pods' network.
    Spread,
    /// Ports 8080 to 8089 of this pod.
    OnePod(Ipv4Addr),
}

/// The cluster address of a Service.
pub fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + service + 1)
}

/// Everything a source would say about these Services.
pub fn changes(services: u32, endpoints: Endpoints) -> Vec<Change> {
    (0..services)
        .flat_map(|number| {
            let slices = match endpoints {
                Endpoints::Spread => vec![spread_slice(number, ENDPOINTS)],
                Endpoints::OnePod(pod) => (0..ENDPOINTS).map(|port| pod_slice(number, pod, port)).collect(),
            };
            std::iter::once(service(number)).chain(slices)
        })
        .collect()
}

/// The slice of a Service of kind [`Endpoints::Spread`], with the first `count` endpoints.
pub fn spread_slice(service: u32, count: u16) -> Change {
    wide_slice(service, "a", service * u32::from(ENDPOINTS)..service * u32::from(ENDPOINTS) + u32::from(count))
}

/// A slice of a Service with the pods of these numbers, below 8 million.
pub fn wide_slice(service: u32, suffix: &str, pods: impl IntoIterator<Item = u32>) -> Change {
    slice(service, suffix, TARGET_PORT, pods.into_iter().map(pod))
}

/// The address of a pod.
pub fn pod(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + number)
}

/// The same whose clients stay with their endpoints.
pub fn sticky(mut service: Change) -> Change {
    if let Change::Apply(Object::Service(service)) = &mut service {
        service.spec.session_affinity = Some("ClientIP".to_owned());
    }
    service
}

/// A Service with a cluster address.
pub fn service(number: u32) -> Change {
    let port = ServicePort { port: SERVICE_PORT.into(), ..ServicePort::default() };
    let spec =
        ServiceSpec { cluster_ips: vec![cluster_ip(number).to_string()], ports: vec![port], ..ServiceSpec::default() };
    Change::Apply(Object::Service(Box::new(Service {
        metadata: metadata(format!("service-{number}")),
        spec,
        ..Service::default()
    })))
}

fn pod_slice(service: u32, pod: Ipv4Addr, port: u16) -> Change {
    slice(service, &port.to_string(), TARGET_PORT + port, std::iter::once(pod))
}

fn slice(service: u32, suffix: &str, port: u16, addresses: impl Iterator<Item = Ipv4Addr>) -> Change {
    let mut metadata = metadata(format!("service-{service}-{suffix}"));
    let label = ("kubernetes.io/service-name".to_owned(), format!("service-{service}"));
    metadata.labels = Some([label].into());
    let endpoint = |address: Ipv4Addr| Endpoint { addresses: vec![address.to_string()], ..Endpoint::default() };
    Change::Apply(Object::EndpointSlice(Box::new(EndpointSlice {
        metadata,
        address_type: "IPv4".to_owned(),
        ports: vec![EndpointPort { name: Some(String::new()), protocol: None, port: Some(port.into()) }],
        endpoints: addresses.map(endpoint).collect(),
    })))
}

fn metadata(name: String) -> ObjectMeta {
    ObjectMeta { namespace: Some("bench".to_owned()), name: Some(name), ..ObjectMeta::default() }
}

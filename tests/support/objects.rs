//! Kubernetes objects as JSON, in namespace `shop`.
//!
//! Service ports are `(name, protocol, number)`. Nearly every Service of the tests has [`HTTP`] or [`DNS`], whose target ports
//! are those that the pods of a bed listen on.

use std::net::{IpAddr, SocketAddr};

use pointsman::lab::Addresses;
use serde_json::{Value, json};

use super::beds::{TCP, UDP};

/// A port: name, protocol, number.
pub type Port<'a> = (&'a str, &'a str, u16);

/// `http`, TCP 80.
pub const HTTP: Port<'static> = ("http", "TCP", 80);
/// `dns`, UDP 53.
pub const DNS: Port<'static> = ("dns", "UDP", 53);

/// The cluster addresses of the Service with this number, 1 to 99.
pub fn cluster_ips(number: u8) -> [String; 2] {
    [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")]
}

/// Where clients find port `port` of the Service with this number: IPv4, then IPv6.
pub fn frontends(number: u8, port: u16) -> [SocketAddr; 2] {
    cluster_ips(number).map(|ip| SocketAddr::new(ip.parse().expect("an address"), port))
}

/// A dual-stack Service at [`cluster_ips`] of `number`.
pub fn service(name: &str, number: u8, ports: &[Port<'_>]) -> Value {
    service_at(name, &cluster_ips(number), ports)
}

/// A Service at these addresses.
pub fn service_at<S: AsRef<str>>(name: &str, ips: &[S], ports: &[Port<'_>]) -> Value {
    let ips: Vec<&str> = ips.iter().map(AsRef::as_ref).collect();
    let families: Vec<_> = ips.iter().map(|ip| if ip.contains(':') { "IPv6" } else { "IPv4" }).collect();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {"type": "ClusterIP", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families, "ports": port_list(ports)},
    })
}

/// The same Service, asking for a scheduler.
pub fn scheduled(mut service: Value, scheduler: &str) -> Value {
    service["metadata"]["annotations"] = json!({"pointsman.dev/scheduler": scheduler});
    service
}

/// The slices of a dual-stack Service whose `http` goes to [`TCP`] and whose `dns` goes to [`UDP`] of these pods.
pub fn slices(service: &str, pods: &[Addresses]) -> [Value; 2] {
    let ports = [("http", "TCP", TCP), ("dns", "UDP", UDP)];
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = pods.iter().map(|pod| (IpAddr::V4(pod.v4), IpAddr::V6(pod.v6))).unzip();
    [slice_of(service, "IPv4", &v4, &ports), slice_of(service, "IPv6", &v6, &ports)]
}

/// One slice, called `<service>-<family>`.
pub fn slice_of(service: &str, family: &str, addresses: &[IpAddr], ports: &[Port<'_>]) -> Value {
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"addresses": [address], "conditions": {"ready": true}})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "shop", "name": format!("{service}-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family, "ports": port_list(ports), "endpoints": endpoints,
    })
}

/// A Service and its slices.
pub fn shop(name: &str, number: u8, pods: &[Addresses]) -> Vec<Value> {
    [vec![service(name, number, &[HTTP, DNS])], slices(name, pods).to_vec()].concat()
}

/// `count` small Services without pods: each a frontend and two endpoints, none of which exists.
pub fn crowd(count: usize) -> Vec<Value> {
    let part = |number: usize, shift: usize| u8::try_from(number >> shift & 0xff).expect("a byte");
    (0..count)
        .flat_map(|number| {
            let name = format!("crowd-{number}");
            let low = [part(number, 8), part(number, 0)];
            let endpoint = |side: u8| IpAddr::from([10, side, low[0], low[1]]);
            [
                service_at(&name, &[format!("10.97.{}.{}", low[0], low[1])], &[HTTP]),
                slice_of(&name, "IPv4", &[endpoint(200), endpoint(201)], &[("http", "TCP", TCP)]),
            ]
        })
        .collect()
}

fn port_list(ports: &[Port<'_>]) -> Vec<Value> {
    ports.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).collect()
}

//! Ready-made objects, the way a cluster would hold them, as plain JSON.
//!
//! They carry what a proxy reads and a little of what it must ignore. Everything else is a matter of editing the returned
//! [`Value`]: `object["spec"]["externalTrafficPolicy"] = "Local".into()`.

use serde_json::{Value, json};

/// A ClusterIP Service. Each port is name, protocol and number; an empty name leaves the field out.
pub fn service(namespace: &str, name: &str, cluster_ip: &str, ports: &[(&str, &str, u16)]) -> Value {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, protocol, port)| {
            let mut entry = json!({"protocol": protocol, "port": port, "targetPort": port});
            if !name.is_empty() {
                entry["name"] = (*name).into();
            }
            entry
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": [if cluster_ip.contains(':') { "IPv6" } else { "IPv4" }],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": ports,
        },
    })
}

/// An EndpointSlice `name` of `service`, with one ready endpoint per address. Ports as in [`service`], but an empty name is
/// written out, as the EndpointSlice controller does. The address type follows the first address (IPv4 when there is none).
pub fn endpoint_slice(
    namespace: &str,
    name: &str,
    service: &str,
    addresses: &[&str],
    ports: &[(&str, &str, u16)],
) -> Value {
    let ports: Vec<Value> =
        ports.iter().map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port})).collect();
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| {
            json!({
                "addresses": [address],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node-1",
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("{service}-{address}")},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": namespace, "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": if addresses.first().is_some_and(|address| address.contains(':')) { "IPv6" } else { "IPv4" },
        "ports": ports,
        "endpoints": endpoints,
    })
}

/// A Node with these addresses, each an address type (`InternalIP`...) and an address.
pub fn node(name: &str, addresses: &[(&str, &str)]) -> Value {
    let addresses: Vec<Value> =
        addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"addresses": addresses},
    })
}

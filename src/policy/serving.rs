//! Which endpoints may keep the flows they have.
//!
//! A wider set than those that qualify for new connections: an endpoint that terminates but still answers finishes what it began
//! (KEP-1669), and neither traffic policy nor topology takes flows away that exist. A ready endpoint counts even where it says
//! that it does not serve: `publishNotReadyAddresses` makes such ones, and new connections go there.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::model::{ServicePort, Slice};

/// The endpoints that may keep the flows of a port: sorted, without duplicates.
pub(super) fn serving<'a>(port: &ServicePort, slices: impl Iterator<Item = &'a Slice>) -> Vec<SocketAddr> {
    let mut serving = BTreeSet::new();
    for slice in slices {
        let ports =
            slice.ports.iter().filter(|candidate| candidate.name == port.name && candidate.protocol == port.protocol);
        for target in ports {
            let endpoints = slice.endpoints.iter().filter(|endpoint| endpoint.serving || endpoint.ready);
            serving.extend(endpoints.map(|endpoint| SocketAddr::new(endpoint.address, target.port)));
        }
    }
    serving.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Names, Protocol};
    use crate::source::ObjectKey;

    #[test]
    fn who_still_answers_keeps_its_flows() {
        let endpoint = |last: u8, ready: bool, serving: bool, terminating: bool| {
            json!({"addresses": [format!("10.1.0.{last}")],
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        };
        let value = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "dns"}}, "addressType": "IPv4",
            "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns", "port": 5354, "protocol": "TCP"}],
            "endpoints": [
                endpoint(1, true, true, false), endpoint(2, false, true, true), endpoint(3, false, false, true),
                endpoint(4, false, false, false), endpoint(5, true, false, false), endpoint(6, true, true, true),
            ],
        });
        let key = ObjectKey { namespace: "shop".into(), name: "dns-1".into() };
        let slice = Slice::parse(&key, &serde_json::from_value(value).expect("decodes"), &mut Names::default())
            .0
            .expect("usable");
        let port = ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: None };
        let got: Vec<_> = serving(&port, [&slice, &slice].into_iter()).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["10.1.0.1:5353", "10.1.0.2:5353", "10.1.0.5:5353", "10.1.0.6:5353"]);
    }
}

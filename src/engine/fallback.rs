//! A Service that the kernel does not carry alone: why, and what its endpoints learn of their clients.
//!
//! Ports of one Service may differ in both: a PROXY protocol header is for TCP, and only TCP can come from the client's address. So
//! each port is told by itself where they are not all the same. Pure; proven by the tests below and `tests/e2e/forward.rs`.

use std::collections::BTreeMap;

use crate::forward::ClientIp;
use crate::model::{PortKey, Protocol, Service};
use crate::policy::{Path, Reason, ResolvedPort};

/// Why a Service is the forwarder's, all of it or some, and what its users should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// The first reason of all its ports.
    pub reason: Reason,
    /// What endpoints learn of clients, for each port that the forwarder carries.
    pub clients: BTreeMap<PortKey, Learned>,
}

/// What an endpoint learns of the client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Learned {
    /// Nothing: connections come from an address of the node.
    Nothing,
    /// Connections come from it.
    Source,
    /// The PROXY protocol says it.
    Header,
}

// === impl Fallback ===

impl Fallback {
    /// Of a Service with these decisions; none if the kernel carries all of it. `loopback`: whether any of its node ports is served on
    /// loopback addresses, which is nothing that the kernel could do.
    pub(super) fn of(service: &Service, resolved: &[ResolvedPort], loopback: bool) -> Option<Self> {
        let mut reasons = resolved.iter().filter_map(|port| Some((port, port.path.reason()?))).peekable();
        if reasons.peek().is_none() {
            return loopback.then(|| Self { reason: Reason::LoopbackNodePort, clients: BTreeMap::new() });
        }
        let (mut first, mut clients) = (Reason::LoopbackNodePort, BTreeMap::new());
        for (port, reason) in reasons {
            first = first.min(reason);
            clients.insert(port.key.clone(), Learned::of(service, port));
        }
        Some(Self { reason: first, clients })
    }

    /// Both, in a sentence.
    pub fn note(&self) -> String {
        let label = self.reason.label();
        if self.reason == Reason::LoopbackNodePort {
            return format!(
                "NodePorts on loopback addresses are carried by the userspace forwarder ({label}), all others by the kernel"
            );
        }
        let mut by_view: BTreeMap<Learned, Vec<&PortKey>> = BTreeMap::new();
        for (port, learned) in &self.clients {
            by_view.entry(*learned).or_default().push(port);
        }
        let alike = by_view.len() == 1;
        let told = by_view.into_iter().map(|(learned, ports)| {
            let ports: Vec<_> = ports.into_iter().map(name).collect();
            let of = if alike { String::new() } else { format!(" of {}", ports.join(", ")) };
            format!("endpoints{of} {}", learned.says())
        });
        format!("carried by the userspace forwarder ({label}); {}", told.collect::<Vec<_>>().join("; "))
    }
}

/// As a Service's author knows a port: `dns/UDP`, or `UDP` if it has no name.
fn name(port: &PortKey) -> String {
    match port.name.is_empty() {
        true => port.protocol.to_string(),
        false => format!("{}/{}", port.name, port.protocol),
    }
}

// === impl Learned ===

impl Learned {
    fn of(service: &Service, port: &ResolvedPort) -> Self {
        match port.path {
            Path::Userspace(Reason::ProxyProtocol) => Learned::Header,
            _ if port.key.protocol != Protocol::Tcp => Learned::Nothing,
            _ if service.tuning.forwarding.client_ip == ClientIp::Preserve => Learned::Source,
            _ => Learned::Nothing,
        }
    }

    fn says(self) -> &'static str {
        match self {
            Learned::Nothing => "see an address of the node instead of the client's",
            Learned::Source => "see the client's address",
            Learned::Header => "are told the client's address by the PROXY protocol",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    #[test]
    fn ports_are_told_by_themselves_where_they_differ() {
        let port =
            |name: &str, protocol| PortKey { service: ServiceKey::new("shop", "web"), name: name.into(), protocol };
        let note = |reason, clients: &[(PortKey, Learned)]| {
            Fallback { reason, clients: clients.iter().cloned().collect() }.note()
        };
        let (http, https, dns) =
            (port("http", Protocol::Tcp), port("https", Protocol::Tcp), port("dns", Protocol::Udp));
        assert_eq!(
            note(Reason::Mode, &[(http.clone(), Learned::Nothing), (dns.clone(), Learned::Nothing)]),
            "carried by the userspace forwarder (mode); endpoints see an address of the node instead of the client's"
        );
        let both = [(https, Learned::Source), (http.clone(), Learned::Source), (dns, Learned::Nothing)];
        assert_eq!(
            note(Reason::Annotation, &both),
            "carried by the userspace forwarder (annotation); endpoints of dns/UDP see an address of the node instead of the \
             client's; endpoints of http/TCP, https/TCP see the client's address"
        );
        assert_eq!(
            note(Reason::ProxyProtocol, &[(http, Learned::Header), (port("", Protocol::Udp), Learned::Nothing)]),
            "carried by the userspace forwarder (proxy_protocol); endpoints of UDP see an address of the node instead of the \
             client's; endpoints of http/TCP are told the client's address by the PROXY protocol"
        );
        assert!(note(Reason::LoopbackNodePort, &[]).starts_with("NodePorts on loopback addresses are carried"));
    }
}

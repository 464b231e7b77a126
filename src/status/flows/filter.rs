//! Which connections are wanted.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::FlowView;
use crate::conntrack::Flow;
use crate::model::Protocol;
use crate::status::query::{self, Parameters, QueryError};

/// What a connection must be. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    target: Option<Target>,
    client: Option<IpNet>,
    endpoint: Option<Who>,
    protocol: Option<Protocol>,
    state: Option<String>,
    node: Option<String>,
}

/// Whom it is to, or who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// Namespace (any, if none is said), name, and the port's name or number.
    Service(Option<String>, String, Option<String>),
    /// A frontend's or an endpoint's.
    Address(IpAddr, Option<u16>),
    /// A frontend's.
    Port(u16),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Address(IpAddr, Option<u16>),
    Pod(String),
}

// === impl FlowFilter ===

impl FlowFilter {
    /// From the parameters of a query; those that it does not know are passed over, and so are empty ones.
    ///
    /// # Errors
    /// A value that cannot be read.
    pub fn of(parameters: &Parameters) -> Result<Self, QueryError> {
        let no_target = "neither a Service ([NAMESPACE/]NAME[:PORT]), an ADDRESS[:PORT] nor a port";
        let network = |text: &str| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok();
        let who = |text: &str| match address(text) {
            Some((address, port)) => Who::Address(address, port),
            None => Who::Pod(text.to_owned()),
        };
        let no_state = "neither open, closing nor a state of TCP or SCTP, as `established` or `time-wait`";
        let state = |text: &str| {
            let state = letters(text);
            let is_known = ["open", "closing"].contains(&&*state) || states().any(|one| letters(one) == state);
            is_known.then_some(state)
        };
        Ok(Self {
            target: query::read(parameters, "target", no_target, Target::parse)?,
            client: query::read(parameters, "client", "neither an address nor a network", network)?,
            endpoint: query::get(parameters, "endpoint").map(who),
            protocol: query::protocol(parameters)?,
            state: query::read(parameters, "state", no_state, state)?,
            node: query::get(parameters, "node").map(str::to_owned),
        })
    }

    /// All of one Service, whatever its name looks like.
    pub fn of_service(namespace: &str, name: &str) -> Self {
        let target = Target::Service(Some(namespace.to_owned()), name.to_owned(), None);
        Self { target: Some(target), ..Self::default() }
    }

    /// Whether a connection may be wanted, as far as that can be said before it is known whose it is.
    pub fn may_want(&self, flow: &Flow) -> bool {
        self.protocol.is_none_or(|protocol| protocol == flow.protocol)
            && self.client.is_none_or(|client| client.contains(&flow.original.source.ip()))
    }

    /// Whether it takes names, or the forwarder's knowledge, to decide.
    pub fn needs_names(&self) -> bool {
        self.target.is_some() || self.endpoint.is_some() || self.node.is_some() || self.state.is_some()
    }

    /// The one Service that is asked for, if that is known: namespace and name.
    pub fn service(&self) -> Option<(&str, &str)> {
        match &self.target {
            Some(Target::Service(Some(namespace), name, _)) => Some((namespace, name)),
            _ => None,
        }
    }

    /// Whether a connection is wanted; one without an endpoint yet may be.
    pub fn wants(&self, flow: &FlowView) -> bool {
        let is_at =
            |at: SocketAddr, ip: IpAddr, port: Option<u16>| at.ip() == ip && port.is_none_or(|port| port == at.port());
        let target = self.target.as_ref().is_none_or(|target| match target {
            Target::Service(namespace, name, port) => {
                let is = |wanted: &str, known: &Option<_>| known.as_deref().is_some_and(|known: &str| known == wanted);
                namespace.as_deref().is_none_or(|wanted| is(wanted, &flow.namespace))
                    && is(name, &flow.service)
                    && port.as_deref().is_none_or(|port| {
                        is(port, &flow.port) || port.parse().is_ok_and(|port: u16| port == flow.frontend.port())
                    })
            }
            Target::Address(ip, port) => {
                is_at(flow.frontend, *ip, *port) || flow.endpoint.is_some_and(|at| is_at(at, *ip, *port))
            }
            Target::Port(port) => flow.frontend.port() == *port,
        });
        let endpoint = self.endpoint.as_ref().is_none_or(|who| match who {
            Who::Address(ip, port) => flow.endpoint.is_some_and(|at| is_at(at, *ip, *port)),
            Who::Pod(pod) => flow.pod.as_deref() == Some(pod),
        });
        let state = self.state.as_deref().is_none_or(|state| match state {
            "open" => flow.active,
            "closing" => !flow.active,
            state => letters(&flow.state) == state,
        });
        let node = self.node.as_deref().is_none_or(|node| flow.node.as_deref() == Some(node));
        let protocol = self.protocol.is_none_or(|protocol| protocol.to_string() == flow.protocol);
        let client = self.client.is_none_or(|client| client.contains(&flow.client.ip()));
        target && endpoint && state && node && protocol && client
    }
}

// === impl Target ===

impl Target {
    fn parse(text: &str) -> Option<Self> {
        if let Some((ip, port)) = address(text) {
            return Some(Target::Address(ip, port));
        }
        if let Ok(port) = text.parse::<u16>() {
            return (port > 0).then_some(Target::Port(port));
        }
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => (Some(namespace.to_owned()), rest),
            None => (None, text),
        };
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port.to_owned())),
            None => (rest, None),
        };
        let is_empty = |text: &Option<String>| text.as_deref().is_some_and(str::is_empty);
        let usable = !name.is_empty() && !is_empty(&namespace) && !is_empty(&port) && !rest.contains('/');
        usable.then(|| Target::Service(namespace, name.to_owned(), port))
    }
}

/// `ADDRESS`, `ADDRESS:PORT`, with brackets around IPv6 if need be.
fn address(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Some((socket.ip(), Some(socket.port())));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().map(|ip| (ip, None))
}

/// Spaces, strokes and capitals do not matter.
fn letters(text: &str) -> String {
    text.chars().filter(|one| one.is_ascii_alphanumeric()).map(|one| one.to_ascii_lowercase()).collect()
}

/// Every state that there is.
fn states() -> impl Iterator<Item = &'static str> {
    let of = |protocol: Protocol, count: u8| (0..count).map(move |state| Flow::name_of(protocol, Some(state)));
    of(Protocol::Tcp, 10).chain(of(Protocol::Sctp, 9)).chain(["active"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> FlowView {
        serde_json::from_value(serde_json::json!({
            "protocol": "TCP", "client": "10.9.0.1:4000", "frontend": "10.96.0.1:80", "endpoint": "10.1.0.1:8080",
            "namespace": "shop", "service": "web", "port": "http", "pod": "web-1", "node": "n1", "state": "FIN wait",
            "active": false,
        }))
        .expect("a view")
    }

    fn filter(name: &str, value: &str) -> Result<FlowFilter, QueryError> {
        FlowFilter::of(&[(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn each_filter_takes_what_it_says() {
        let taken = [
            (
                "target",
                "web shop/web shop/web:http shop/web:80 web:http 10.96.0.1 10.96.0.1:80 10.1.0.1 10.1.0.1:8080 80",
            ),
            ("client", "10.9.0.1 10.9.0.0/16"),
            ("endpoint", "10.1.0.1 10.1.0.1:8080 web-1"),
            ("protocol", "tcp TCP"),
            ("state", "fin-wait FIN_WAIT finwait closing"),
            ("node", "n1"),
        ];
        for (name, values) in taken {
            for value in values.split(' ') {
                assert!(filter(name, value).expect("fine").wants(&view()), "{name}={value}");
            }
        }
        let left = [
            ("target", "web2 other/web shop/web:dns shop/web:81 10.96.0.1:81 10.9.0.1 8080 [fd00::1]:80"),
            ("client", "10.9.0.2 10.8.0.0/16 fd00::/8"),
            ("endpoint", "10.1.0.2 10.1.0.1:80 web-10"),
            ("protocol", "udp"),
            ("state", "established open time-wait"),
            ("node", "n2"),
        ];
        for (name, values) in left {
            for value in values.split(' ') {
                assert!(!filter(name, value).expect("fine").wants(&view()), "{name}={value}");
            }
        }
        assert!(FlowFilter::default().wants(&view()));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (name, value) in [
            ("target", "a/b/c"),
            ("target", "0"),
            ("target", "/web"),
            ("target", "web:"),
            ("client", "10.0.0.0/99"),
            ("client", "web"),
            ("protocol", "icmp"),
            ("state", "happy"),
        ] {
            let error = filter(name, value).expect_err("wrong").to_string();
            assert!(error.starts_with(&format!("{name}={value:?}: neither")), "{error}");
        }
        assert_eq!(filter("target", " "), Ok(FlowFilter::default()));
    }
}

//! What can be asked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::model::{Protocol, ServiceKey, parse_address};
use crate::status::query::{self, Parameters, QueryError};

/// Which connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// To where.
    pub target: Target,
    /// By whom; somebody from outside if it is not said.
    pub from: Option<IpAddr>,
    /// By which protocol; all if it is not said.
    pub protocol: Option<Protocol>,
}

/// Where a connection goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address and port.
    Address(SocketAddr),
    /// A port of the node.
    NodePort(u16),
    /// All frontends of a Service, or of one of its ports.
    Service {
        /// Which Service.
        key: ServiceKey,
        /// The name or number of the port.
        port: Option<String>,
    },
}

// === impl Question ===

impl Question {
    /// From the parameters `target`, `from` and `protocol`.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn of(parameters: &Parameters) -> Result<Self, QueryError> {
        let target = query::get(parameters, "target").unwrap_or_default();
        let target = Target::parse(target).ok_or_else(|| {
            query::wrong("target", target, "neither ADDRESS:PORT, a node port's number, nor NAMESPACE/NAME[:PORT]")
        })?;
        let from = query::read(parameters, "from", "not an IP address", parse_address)?;
        if let (Target::Address(address), Some(from)) = (&target, from)
            && address.is_ipv4() != from.is_ipv4()
        {
            return Err(query::wrong("from", &from.to_string(), "not of the target's family"));
        }
        let protocol = query::protocol(parameters)?;
        Ok(Self { target, from, protocol })
    }
}

// === impl Target ===

impl Target {
    /// `10.96.0.1:80`, `[fd00::1]:80`, `30080`, `shop/web`, `shop/web:http` or `shop/web:80`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
            return (port > 0).then_some(Self::NodePort(port));
        }
        let (namespace, rest) = text.split_once('/')?;
        let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port.to_owned())));
        let said = !namespace.is_empty() && !name.is_empty() && port.as_deref() != Some("");
        said.then(|| Self::Service { key: ServiceKey::new(namespace, name), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Address(address) => address.fmt(f),
            Target::NodePort(port) => write!(f, "node port {port}"),
            Target::Service { key, port: None } => key.fmt(f),
            Target::Service { key, port: Some(port) } => write!(f, "{key}:{port}"),
        }
    }
}

//! What the forwarder is told about a Service port.
//!
//! A *route* stands for one pool: the endpoints of one Service port in one family, for clients of everywhere or for those that
//! local policy applies to. Each route has a listener of its own, so the listener is all that identifies it: a connection needs no
//! lookup, and the kernel needs no more than one dnat to one address and port.

use std::time::Duration;

use super::balance::Method;
pub use crate::model::tuning::{ClientIp, ProxyProtocol};
use crate::model::{Family, PortKey};
use crate::schedule::Candidate;

/// What a route is known by, across all changes to it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteId {
    /// The Service port, and with it the protocol.
    pub port: PortKey,
    /// The family of clients and endpoints.
    pub family: Family,
    /// Whether this is the pool of the node's own endpoints.
    pub local: bool,
}

/// Where connections go, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The endpoints that may be picked: of the route's family, sorted, without duplicates. None: every connection is refused.
    pub candidates: Vec<Candidate>,
    /// Who of them is picked.
    pub method: Method,
    /// How long a client keeps its endpoint after its latest connection; none: each connection is picked for anew.
    pub affinity: Option<Duration>,
    /// How connections are made.
    pub options: Options,
}

/// How connections of a route are made and kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether the endpoint is told the client's address in front of the first byte; what it sees is the node's.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Whose address the endpoint sees.
    pub client_ip: ClientIp,
    /// How long the first, second... attempt to connect may take. After the last one the client is refused. Attempts that are
    /// refused take no time and use none of these up.
    pub connect_timeouts: Vec<Duration>,
    /// How long a connection may be silent in both directions; none: for ever, as long as both ends answer keepalives.
    pub idle_timeout: Option<Duration>,
    /// The same once one of both ends has finished sending.
    pub half_closed_timeout: Option<Duration>,
    /// How many connections this route may have at once; none: only the process has a limit.
    pub max_connections: Option<usize>,
}

// === impl Options ===

impl Options {
    /// The timeouts of kube-proxy's former mode `userspace` (`EndpointDialTimeouts`).
    pub const CONNECT_TIMEOUTS: [Duration; 4] =
        [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2)];

    /// As kube-proxy's `--conntrack-tcp-timeout-close-wait`, which the kernel path has.
    pub const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(3600);
}

impl Default for Options {
    /// A plain connection that may be silent for ever: a Service does not cut what its ends keep open. HAProxy has no default
    /// either; nginx cuts after ten minutes.
    fn default() -> Self {
        Self {
            proxy_protocol: None,
            client_ip: ClientIp::Masked,
            connect_timeouts: Self::CONNECT_TIMEOUTS.to_vec(),
            idle_timeout: None,
            half_closed_timeout: Some(Self::HALF_CLOSED_TIMEOUT),
            max_connections: None,
        }
    }
}

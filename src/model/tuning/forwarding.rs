//! What annotations say about the userspace forwarder: whether a Service goes through it, and how its connections are made there.

use std::time::Duration;

use super::{Remarks, time};

/// Who carries a Service, if it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datapath {
    /// The kernel, whatever the proxy's mode and the other annotations.
    Kernel,
    /// The userspace forwarder.
    Userspace,
}

/// Whose address connections to endpoints come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientIp {
    /// The node's.
    #[default]
    Masked,
    /// The client's, if that can be: the endpoint's replies must pass this node. The node's where the client is on the loopback or is
    /// the endpoint itself, and where the kernel refuses what is needed.
    Preserve,
}

/// The version of the PROXY protocol (haproxy.org, `proxy-protocol.txt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
}

/// What annotations ask of the forwarder. `None` everywhere: its defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Who carries the Service.
    pub datapath: Option<Datapath>,
    /// Whether endpoints are told the client's address in front of the first byte.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Whose address endpoints see.
    pub client_ip: ClientIp,
    /// How long each attempt to connect to an endpoint may take, not zero.
    pub connect_timeout: Option<Duration>,
    /// How long a connection or UDP flow may be silent, not zero.
    pub idle_timeout: Option<Duration>,
    /// How many connections or UDP flows the Service port may have at once in each family, 1 or more.
    pub max_connections: Option<usize>,
}

// === impl Datapath ===

impl Datapath {
    pub(super) fn parse(text: &str, remarks: &mut Remarks<'_>) -> Option<Self> {
        match text {
            "kernel" => Some(Datapath::Kernel),
            "userspace" => Some(Datapath::Userspace),
            _ => {
                remarks.add(text, "neither kernel nor userspace; ignored");
                None
            }
        }
    }
}

// === impl ProxyProtocol ===

impl ProxyProtocol {
    pub(super) fn parse(text: &str, remarks: &mut Remarks<'_>) -> Option<Self> {
        match text {
            "v1" => Some(ProxyProtocol::V1),
            "v2" => Some(ProxyProtocol::V2),
            _ => {
                remarks.add(text, "neither v1 nor v2; endpoints are told nothing");
                None
            }
        }
    }
}

// === impl ClientIp ===

impl ClientIp {
    pub(super) fn parse(text: &str, remarks: &mut Remarks<'_>) -> Self {
        if text == "preserve" {
            return ClientIp::Preserve;
        }
        remarks.add(text, "not preserve; ignored");
        ClientIp::Masked
    }
}

// === impl Forwarding ===

impl Forwarding {
    /// A time that is not zero; 0 is no time, as if nothing were said.
    pub(super) fn timeout(text: &str, remarks: &mut Remarks<'_>) -> Option<Duration> {
        let parsed = time(text, remarks, "the default is used")?;
        if parsed.is_zero() {
            remarks.add(text, "no time at all; the default is used");
        }
        Some(parsed).filter(|time| !time.is_zero())
    }

    /// A number of connections.
    pub(super) fn limit(text: &str, remarks: &mut Remarks<'_>) -> Option<usize> {
        let limit = text.parse::<u32>().ok().filter(|limit| *limit > 0);
        if limit.is_none() {
            remarks.add(text, "not a number in 1..4294967295; no limit");
        }
        limit.map(|limit| limit as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::super::*;
    use super::*;

    #[test]
    fn each_annotation_has_its_values_and_others_are_named() {
        let (tuning, said) = parse(&[
            (DATAPATH_ANNOTATION, " userspace "),
            (PROXY_PROTOCOL_ANNOTATION, "v2"),
            (CLIENT_IP_ANNOTATION, "preserve"),
            (CONNECT_TIMEOUT_ANNOTATION, "1500ms"),
            (IDLE_TIMEOUT_ANNOTATION, "300"),
            (MAX_CONNECTIONS_ANNOTATION, "1000"),
        ]);
        assert_eq!(said, Vec::<String>::new());
        let asked = Forwarding {
            datapath: Some(Datapath::Userspace),
            proxy_protocol: Some(ProxyProtocol::V2),
            client_ip: ClientIp::Preserve,
            connect_timeout: Some(Duration::from_millis(1500)),
            idle_timeout: Some(Duration::from_secs(300)),
            max_connections: Some(1000),
        };
        assert_eq!(tuning.forwarding, asked);
        assert!(!tuning.is_weighted(), "endpoints do not differ by it");
        let table = [
            (DATAPATH_ANNOTATION, "user", "neither kernel nor userspace; ignored"),
            (PROXY_PROTOCOL_ANNOTATION, "2", "neither v1 nor v2; endpoints are told nothing"),
            (CLIENT_IP_ANNOTATION, "keep", "not preserve; ignored"),
            (CONNECT_TIMEOUT_ANNOTATION, "0s", "no time at all; the default is used"),
            (IDLE_TIMEOUT_ANNOTATION, "long", "not a time such as 30s or 1m30s; the default is used"),
            (MAX_CONNECTIONS_ANNOTATION, "0", "not a number in 1..4294967295; no limit"),
            (MAX_CONNECTIONS_ANNOTATION, "-1", "not a number in 1..4294967295; no limit"),
        ];
        for (annotation, value, reason) in table {
            let (tuning, said) = parse(&[(annotation, value)]);
            assert_eq!(said, [format!("metadata.annotations[{annotation}]: {value:?}: {reason}")]);
            assert_eq!(tuning.forwarding, Forwarding::default());
        }
        assert_eq!(parse(&[(DATAPATH_ANNOTATION, "kernel")]).0.forwarding.datapath, Some(Datapath::Kernel));
    }
}

//! Who carries a Service port's connections: the kernel, or the userspace forwarder and why.
//!
//! | what the Service or the operator says | path |
//! |---|---|
//! | SCTP | kernel: the forwarder does not speak it |
//! | `pointsman.dev/datapath: kernel` | kernel, whatever else is asked |
//! | `pointsman.dev/proxy-protocol`, TCP | userspace: nobody else can write a header |
//! | a scheduler that only the forwarder has | userspace |
//! | `pointsman.dev/datapath: userspace` | userspace |
//! | `--proxy-mode=userspace` | userspace |
//!
//! The first row that fits decides. What is asked for and does not come is said by [`problems`].

use crate::model::tuning::{
    CLIENT_IP_ANNOTATION, CONNECT_TIMEOUT_ANNOTATION, ClientIp, DATAPATH_ANNOTATION, Datapath, Forwarding,
    IDLE_TIMEOUT_ANNOTATION, MAX_CONNECTIONS_ANNOTATION, PROXY_PROTOCOL_ANNOTATION,
};
use crate::model::{Problem, Protocol, Service, ServicePort};
use crate::source::Kind;

use super::Settings;

/// Who carries connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// The kernel alone.
    #[default]
    Kernel,
    /// The userspace forwarder: the kernel sends them to a listener of ours.
    Userspace(Reason),
}

/// Why the kernel does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Endpoints want a PROXY protocol header. There is no kernel path instead: without the header they would not understand a word.
    ProxyProtocol,
    /// The scheduler looks at each connection.
    Scheduler,
    /// The Service says so.
    Annotation,
    /// The operator says so for all.
    Mode,
    /// Only its node ports on loopback addresses, where no rule can lead packets anywhere else; never a [`Path`]'s.
    LoopbackNodePort,
}

// === impl Path ===

impl Path {
    /// Of a port of a Service.
    pub fn of(service: &Service, protocol: Protocol, settings: &Settings) -> Self {
        let forwarding = &service.tuning.forwarding;
        if protocol == Protocol::Sctp || forwarding.datapath == Some(Datapath::Kernel) {
            return Path::Kernel;
        }
        let asked = [
            (Reason::ProxyProtocol, forwarding.proxy_protocol.is_some() && protocol == Protocol::Tcp),
            (Reason::Scheduler, service.exact.is_some()),
            (Reason::Annotation, forwarding.datapath == Some(Datapath::Userspace)),
            (Reason::Mode, settings.userspace),
        ];
        let reason = asked.into_iter().find_map(|(reason, asked)| asked.then_some(reason));
        reason.map_or(Path::Kernel, Path::Userspace)
    }

    /// Why it is not the kernel's.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Path::Kernel => None,
            Path::Userspace(reason) => Some(reason),
        }
    }
}

// === impl Reason ===

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 5] =
        [Reason::ProxyProtocol, Reason::Scheduler, Reason::Annotation, Reason::Mode, Reason::LoopbackNodePort];

    /// As a label of a metric and in log lines.
    pub fn label(self) -> &'static str {
        match self {
            Reason::ProxyProtocol => "proxy_protocol",
            Reason::Scheduler => "scheduler",
            Reason::Annotation => "annotation",
            Reason::Mode => "mode",
            Reason::LoopbackNodePort => "loopback_node_port",
        }
    }

    /// Whether the kernel can carry the connections while the forwarder cannot.
    pub fn has_kernel_path(self) -> bool {
        self != Reason::ProxyProtocol
    }
}

/// What a Service asks of the forwarder and does not get.
pub(super) fn problems(service: &Service, settings: &Settings) -> Vec<Problem> {
    let forwarding = &service.tuning.forwarding;
    let problem = |field: String, value: &str, reason: String| Problem {
        kind: Kind::Service,
        object: service.key.object(),
        field,
        value: value.to_owned(),
        reason,
    };
    let annotation = |name: &str| format!("metadata.annotations[{name}]");
    let mut problems = Vec::new();
    let is_kernel = |port: &ServicePort| Path::of(service, port.protocol, settings) == Path::Kernel;
    if forwarding.datapath != Some(Datapath::Userspace) && service.ports.iter().all(is_kernel) {
        let unheeded = for_the_forwarder(forwarding).into_iter();
        problems.extend(unheeded.filter_map(|(name, value)| {
            let reason = "only the userspace forwarder heeds it, and the kernel carries this Service but for NodePorts on loopback \
                          addresses; pointsman.dev/datapath: userspace changes that";
            Some(problem(annotation(name), &value?, reason.to_owned()))
        }));
    }
    if forwarding.datapath == Some(Datapath::Kernel) {
        let asked = [
            (forwarding.proxy_protocol.is_some(), "a PROXY protocol header"),
            (service.exact.is_some(), "the scheduler asked for"),
        ];
        for (_, what) in asked.into_iter().filter(|(asked, _)| *asked) {
            let reason = format!("the kernel has no way to do {what}; it is left out");
            problems.push(problem(annotation(DATAPATH_ANNOTATION), "kernel", reason));
        }
        return problems;
    }
    let asked = forwarding.datapath.is_some()
        || forwarding.proxy_protocol.is_some()
        || service.exact.is_some()
        || settings.userspace;
    for (index, port) in service.ports.iter().enumerate() {
        match port.protocol {
            Protocol::Sctp if asked => {
                let reason = "the userspace forwarder does not speak it; the kernel carries this port".to_owned();
                problems.push(problem(format!("spec.ports[{index}].protocol"), "SCTP", reason));
            }
            Protocol::Udp if forwarding.proxy_protocol.is_some() => {
                let reason = format!("TCP only; endpoints of UDP port {} are told nothing", port.port);
                problems.push(problem(annotation(PROXY_PROTOCOL_ANNOTATION), "UDP", reason));
            }
            _ => {}
        }
        let masked = Path::of(service, port.protocol, settings) != Path::Kernel && port.protocol == Protocol::Udp;
        if masked && forwarding.client_ip == ClientIp::Preserve {
            let reason = format!("TCP only; endpoints of UDP port {} see an address of the node", port.port);
            problems.push(problem(annotation(CLIENT_IP_ANNOTATION), "UDP", reason));
        }
    }
    problems
}

/// What annotations say that does not choose the path, and matters only to the forwarder.
fn for_the_forwarder(forwarding: &Forwarding) -> [(&'static str, Option<String>); 4] {
    let preserves = forwarding.client_ip == ClientIp::Preserve;
    [
        (CLIENT_IP_ANNOTATION, preserves.then(|| "preserve".to_owned())),
        (CONNECT_TIMEOUT_ANNOTATION, forwarding.connect_timeout.map(|timeout| format!("{timeout:?}"))),
        (IDLE_TIMEOUT_ANNOTATION, forwarding.idle_timeout.map(|timeout| format!("{timeout:?}"))),
        (MAX_CONNECTIONS_ANNOTATION, forwarding.max_connections.map(|limit| limit.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::ObjectKey;

    fn service(annotations: serde_json::Value) -> Service {
        let value = json!({"metadata": {"annotations": annotations}, "spec": {"clusterIP": "10.96.0.1", "ports": [
            {"name": "t", "port": 1}, {"name": "u", "port": 2, "protocol": "UDP"}, {"name": "s", "port": 3, "protocol": "SCTP"},
        ]}});
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served")
    }

    #[test]
    fn the_first_reason_counts_and_what_does_not_come_is_said() {
        use Path::{Kernel, Userspace};
        use Reason::{Annotation, Mode, ProxyProtocol, Scheduler};
        let table = [
            (json!({}), false, [Kernel, Kernel], 0),
            (json!({}), true, [Userspace(Mode); 2], 1),
            (json!({"pointsman.dev/datapath": "userspace"}), true, [Userspace(Annotation); 2], 1),
            (json!({"pointsman.dev/datapath": "kernel"}), true, [Kernel, Kernel], 0),
            (json!({"pointsman.dev/datapath": "nonsense"}), false, [Kernel, Kernel], 0),
            (json!({"pointsman.dev/scheduler": "lc"}), false, [Kernel, Kernel], 0),
            (json!({"pointsman.dev/scheduler": "lc,exact"}), false, [Userspace(Scheduler); 2], 1),
            (
                json!({"pointsman.dev/scheduler": "ewma", "pointsman.dev/datapath": "userspace"}),
                false,
                [Userspace(Scheduler); 2],
                1,
            ),
            (json!({"pointsman.dev/scheduler": "p2c", "pointsman.dev/datapath": "kernel"}), false, [Kernel, Kernel], 1),
            (json!({"pointsman.dev/proxy-protocol": "v1"}), false, [Userspace(ProxyProtocol), Kernel], 2),
            (
                json!({"pointsman.dev/proxy-protocol": "v2", "pointsman.dev/scheduler": "nq,exact"}),
                false,
                [Userspace(ProxyProtocol), Userspace(Scheduler)],
                2,
            ),
            (
                json!({"pointsman.dev/max-connections": "9", "pointsman.dev/client-ip": "preserve",
                    "pointsman.dev/idle-timeout": "1h", "pointsman.dev/connect-timeout": "2s"}),
                false,
                [Kernel, Kernel],
                4,
            ),
            (json!({"pointsman.dev/max-connections": "9", "pointsman.dev/datapath": "kernel"}), true, [Kernel; 2], 1),
            (json!({"pointsman.dev/max-connections": "9"}), true, [Userspace(Mode); 2], 1),
        ];
        for (annotations, userspace, [tcp, udp], said) in table {
            let (service, settings) = (service(annotations.clone()), Settings { userspace, ..Settings::default() });
            assert_eq!(Path::of(&service, Protocol::Tcp, &settings), tcp, "{annotations}");
            assert_eq!(Path::of(&service, Protocol::Udp, &settings), udp, "{annotations}");
            assert_eq!(Path::of(&service, Protocol::Sctp, &settings), Kernel, "{annotations}");
            let problems = problems(&service, &settings);
            assert_eq!(problems.len(), said, "{annotations}: {problems:?}");
        }
    }
}

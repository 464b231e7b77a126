//! A lab with our tables in its node, and the words to ask it questions.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use pointsman::engine::Engine;
use pointsman::kernel::{DataPlane, KernelError};
use pointsman::lab::{ConnectError, Host, Lab, Listen};
use pointsman::policy::Settings;
use pointsman::schedule::Scheduler;
use pointsman::source::{Change, Kind, Object, ObjectKey};
use serde_json::{Value, json};

/// For connections that should be dropped: answers inside a machine come within a millisecond.
const SHORT: Duration = Duration::from_millis(300);

/// The node's own name.
pub const NODE_NAME: &str = "me";

/// Where every pod serves TCP and UDP, telling who asked.
pub const POD_PORT: u16 = 8080;

/// What the node's source looks like to a pod when it is hidden: the address of the link to the pod.
pub const HIDDEN: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];

/// A node that serves.
pub struct Bed {
    pub lab: Lab,
    settings: Settings,
    engine: Engine,
    /// None only while one process hands over to the next.
    plane: Option<DataPlane>,
    /// What was said so far, for a process that starts anew.
    past: Vec<Change>,
}

impl Bed {
    /// Two clients, and three pods that tell who asked.
    pub fn new(settings: Settings) -> Self {
        let pods = ["web-1", "web-2", "web-3"];
        let mut lab = Lab::builder().prefix("pmsvc").clients(2).pods(pods).build().expect("a lab");
        for pod in pods {
            lab.serve(pod, &[Listen::TcpPeer(POD_PORT), Listen::UdpPeer(POD_PORT)]).expect("servers");
        }
        // Refusals of UDP are ICMP errors, and a host sends only a few of them per second to one peer.
        let unlimited = [("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")];
        lab.node().namespace().sysctls(&unlimited).expect("a sysctl");
        let settings = Settings { node: NODE_NAME.into(), ..settings };
        let mut plane = lab.node().run(DataPlane::open).expect("a data plane");
        let engine = Engine::with_settings(settings.clone(), Scheduler::Random);
        let _ = plane.set_locality(engine.locality());
        plane.read().expect("nothing there yet");
        let mut bed = Self { lab, settings, engine, plane: Some(plane), past: Vec::new() };
        bed.apply([node(&["192.168.50.1", "fd00:50::1"])]);
        bed
    }

    /// Applies objects, all in one transaction, and checks that nft can list the result.
    pub fn apply(&mut self, objects: impl IntoIterator<Item = Value>) {
        self.take(objects.into_iter().map(|object| Change::Apply(decode(object))).collect());
    }

    /// Deletes an object.
    pub fn delete(&mut self, kind: Kind, name: &str) {
        let namespace = if matches!(kind, Kind::Node | Kind::ServiceCIDR) { "" } else { "shop" };
        self.take(vec![Change::Delete(kind, ObjectKey { namespace: namespace.into(), name: name.into() })]);
    }

    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.past.push(change.clone());
            self.engine.take(change);
        }
        let outcome = self.engine.compile();
        self.plane.as_mut().expect("open").apply(&outcome.delta).expect("the kernel takes the difference");
        self.check_listing();
    }

    /// Another process takes over. Returns how many elements it had to change.
    pub fn restart(&mut self) -> usize {
        // The old process lets go of the tables first.
        self.plane = None;
        self.plane = Some(self.lab.node().run(DataPlane::open).expect("a data plane"));
        self.engine = Engine::with_settings(self.settings.clone(), Scheduler::Random);
        self.past.iter().cloned().for_each(|change| self.engine.take(change));
        let _ = self.plane.as_mut().expect("open").set_locality(self.engine.locality());
        // A program that another test starts at this very moment may hold the old process's socket for an instant.
        let begin = std::time::Instant::now();
        let found = loop {
            match self.plane.as_mut().expect("open").read() {
                Err(KernelError::Nft(nft::Error::Owned { .. })) if begin.elapsed().as_secs() < 5 => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                result => break result.expect("readable"),
            }
        };
        assert!(found.existed && found.rejected.is_empty(), "{:?}", found.rejected);
        self.engine.adopt(found.image.clone());
        self.engine.compile();
        self.engine.settle();
        let difference = self.engine.difference(found.image);
        self.plane.as_mut().expect("open").apply(&difference).expect("the kernel takes the difference");
        self.check_listing();
        difference.len()
    }

    /// Replaces the tables by larger ones, as when a map has outgrown its size.
    pub fn replace(&mut self) {
        self.plane.as_mut().expect("open").replace(&self.engine.everything()).expect("the kernel takes new tables");
        self.check_listing();
    }

    /// What the tables look like now.
    pub fn listing(&self) -> String {
        self.nft(&["list", "ruleset"])
    }

    fn check_listing(&self) {
        self.nft(&["list", "ruleset"]);
        self.nft(&["-j", "list", "ruleset"]);
    }

    fn nft(&self, args: &[&str]) -> String {
        let mut command = Command::new("nft");
        command.args(args).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let output = self.lab.node().spawn(command).and_then(|child| child.wait_with_output()).expect("nft runs");
        let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // nft 1.0.6 writes an update of a map into its JSON as text, and says so.
        let known = |line: &str| line == "warning: stmt ops map have no json callback";
        assert!(output.status.success() && error.lines().all(known), "nft {args:?}: {}: {error}", output.status);
        text.into_owned()
    }

    /// Who answers a TCP connection and whom it sees: `web-1 192.168.50.2`, or `refused`, or `dropped`.
    pub fn tcp(&self, from: &Host, to: &str, port: u16) -> String {
        let to = SocketAddr::new(address(to), port);
        outcome(from.connect(to, SHORT).map(|answer| answer.pod))
    }

    /// The same for UDP.
    pub fn udp(&self, from: &Host, to: &str, port: u16) -> String {
        let to = SocketAddr::new(address(to), port);
        outcome(from.ask(to, SHORT).map(|answer| answer.pod))
    }

    /// What comes of an ICMP echo request: `answered`, `refused` (port unreachable), or `dropped`.
    pub fn ping(&self, from: &Host, to: &str) -> String {
        let to = address(to);
        from.run(|| ping(to)).unwrap_or_else(|error| match error.raw_os_error() {
            Some(nix::libc::ECONNREFUSED) => "refused".to_owned(),
            Some(nix::libc::EAGAIN) => "dropped".to_owned(),
            _ => error.to_string(),
        })
    }

    /// Everybody who answers in so many connections, sorted, without what they see.
    pub fn answering(&self, from: &Host, to: &str, port: u16) -> String {
        let pod = |text: String| text.split(' ').next().unwrap_or_default().to_owned();
        let first = pod(self.tcp(from, to, port));
        if !first.starts_with("web-") {
            return first;
        }
        let mut pods: Vec<_> = (0..24).map(|_| pod(self.tcp(from, to, port))).collect();
        pods.sort();
        pods.dedup();
        pods.join(" ")
    }

    pub fn client(&self) -> &Host {
        self.lab.client(0)
    }

    pub fn node(&self) -> &Host {
        self.lab.node()
    }

    pub fn pod(&self, name: &str) -> &Host {
        self.lab.pod(name)
    }
}

fn outcome(result: Result<String, ConnectError>) -> String {
    match result {
        Ok(text) => text,
        Err(ConnectError::Refused) => "refused".to_owned(),
        Err(ConnectError::TimedOut) => "dropped".to_owned(),
        // A datagram that the host itself sends does not even leave `send`, be it dropped or refused.
        Err(ConnectError::Other(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => "barred".to_owned(),
        Err(error) => format!("{error}"),
    }
}

/// A raw socket that is connected hears of ICMP errors, too.
fn ping(to: IpAddr) -> std::io::Result<String> {
    use socket2::{Domain, Protocol, Socket, Type};
    let (protocol, request, reply) = if to.is_ipv4() { (Protocol::ICMPV4, 8, 0) } else { (Protocol::ICMPV6, 128, 129) };
    let socket = Socket::new(Domain::for_address(SocketAddr::new(to, 0)), Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(SHORT))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    let mut message = [request, 0, 0, 0, 0x70, 0x6d, 0, 1];
    // The kernel fills in the checksum of ICMPv6 alone: the inverse of the sum of all 16-bit words.
    let sum: u32 = message.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    message[2..4].copy_from_slice(&(!u16::try_from(sum).expect("a few small words")).to_be_bytes());
    socket.send(&message)?;
    let begin = std::time::Instant::now();
    while begin.elapsed() < SHORT {
        let mut buffer = [0u8; 256];
        let heard = std::io::Read::read(&mut &socket, &mut buffer)?;
        // IPv4 comes with its header.
        let at = if to.is_ipv4() { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        if heard > at && buffer[at] == reply {
            return Ok("answered".to_owned());
        }
    }
    Ok("dropped".to_owned())
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn decode(object: Value) -> Object {
    let kind = object["kind"].as_str().expect("a kind").to_owned();
    match kind.as_str() {
        "Service" => Object::Service(Box::new(serde_json::from_value(object).expect("decodes"))),
        "EndpointSlice" => Object::EndpointSlice(Box::new(serde_json::from_value(object).expect("decodes"))),
        "Node" => Object::Node(Box::new(serde_json::from_value(object).expect("decodes"))),
        "ServiceCIDR" => Object::ServiceCIDR(Box::new(serde_json::from_value(object).expect("decodes"))),
        other => panic!("{other}"),
    }
}

// === objects ===

/// A Service `shop/NAME` on port 80, TCP and UDP; `extra` goes over its spec, `ingress` is what its load balancer reports.
pub fn service(name: &str, ips: &[&str], extra: Value, ingress: &[&str]) -> Value {
    let mut spec = json!({"clusterIPs": ips, "ports": [{"name": "tcp", "port": 80}, {"name": "udp", "port": 80, "protocol": "UDP"}]});
    for (key, value) in extra.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    let ingress: Vec<_> = ingress.iter().map(|ip| json!({"ip": ip})).collect();
    json!({"kind": "Service", "metadata": {"namespace": "shop", "name": name}, "spec": spec, "status": {"loadBalancer": {"ingress": ingress}}})
}

/// Both ports with a node port.
pub fn with_node_port(port: u16) -> Value {
    json!([
        {"name": "tcp", "port": 80, "nodePort": port},
        {"name": "udp", "port": 80, "protocol": "UDP", "nodePort": port},
    ])
}

/// An endpoint: a pod of the lab, and whether it counts as one of this node.
#[derive(Clone, Copy)]
pub struct At(pub &'static str, pub bool, pub State);

/// How far an endpoint is on its way.
#[derive(Clone, Copy, PartialEq)]
pub enum State {
    Ready,
    Leaving,
    Dead,
}

/// The slices of a Service in both families.
pub fn slices(bed: &Lab, service: &str, endpoints: &[At]) -> Vec<Value> {
    let endpoint = |at: &At, v6: bool| {
        let addresses = bed.pod(at.0).addresses();
        let address: IpAddr = if v6 { addresses.v6.into() } else { addresses.v4.into() };
        json!({
            "addresses": [address.to_string()], "nodeName": if at.1 { NODE_NAME } else { "other" },
            "conditions": {"ready": at.2 == State::Ready, "serving": at.2 != State::Dead, "terminating": at.2 != State::Ready},
        })
    };
    [false, true]
        .into_iter()
        .map(|v6| {
            let family = if v6 { "IPv6" } else { "IPv4" };
            json!({
                "kind": "EndpointSlice",
                "metadata": {"namespace": "shop", "name": format!("{service}-{family}"), "labels": {"kubernetes.io/service-name": service}},
                "addressType": family,
                "ports": [{"name": "tcp", "port": POD_PORT}, {"name": "udp", "port": POD_PORT, "protocol": "UDP"}],
                "endpoints": endpoints.iter().map(|at| endpoint(at, v6)).collect::<Vec<_>>(),
            })
        })
        .collect()
}

/// Our Node.
pub fn node(addresses: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    json!({"kind": "Node", "metadata": {"name": NODE_NAME}, "status": {"addresses": addresses}})
}

/// The networks that cluster addresses are from.
pub fn service_networks(name: &str, cidrs: &[&str]) -> Value {
    json!({"kind": "ServiceCIDR", "metadata": {"name": name}, "spec": {"cidrs": cidrs}})
}

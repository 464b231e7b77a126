//! A cluster on one machine: a node, its clients and its pods as network namespaces.
//!
//! The demo, the kernel tests and the benches all need the same thing: real packets that pass a real node. [`Lab`] makes it out of
//! nothing but the kernel (rtnetlink, bind mounts, `/proc/sys`), and takes it away again when it is dropped.
//!
//! ```text
//!   client0 192.168.50.2 ──┐              ┌── web-1   10.244.0.2
//!           fd00:50::2     │    node      │           fd00:10:244::2
//!                          ├──────────────┤
//!   client1 192.168.50.3 ──┘ 192.168.50.1 └── web-2   10.244.0.3
//!           fd00:50::3       fd00:50::1               fd00:10:244::3
//! ```
//!
//! Every host has one veth pair to the node, an address of its own (`/32`, `/128`) and its default route by way of the node, so the
//! node routes every packet in both directions and can translate it. There is no bridge. The node's own default route leads to
//! the first client, so that a process on the node can open connections to addresses that exist only as Services.
//!
//! Vocabulary: a *host* is a namespace with addresses; a *role* is its name within the lab (`node`, `client0`, a pod's name); the
//! *prefix* and our process id make its name on the machine (`pm-4711-web-1`).
//!
//! Invariants:
//! - Labs do not touch each other or the machine's own network: every packet stays inside a lab's namespaces.
//! - After a lab is dropped, nothing of it is left; after `kill -9`, the next lab with the same prefix removes what is left.
//! - An IPv6 address has the digits of the IPv4 one: `10.244.1.12` is `fd00:10:244::1:12`.
//!
//! Proven by `tests/lab.rs`, which needs root.

mod client;
mod error;
mod leftovers;
mod namespace;
mod rtnetlink;
mod server;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use client::{Answer, ConnectError, ask, connect};
pub use error::LabError;
pub use leftovers::{Leftover, clear as clear_leftovers, find as find_leftovers};
pub use namespace::{NETNS_DIR, Namespace};
pub use rtnetlink::{Route, Rtnl, VethEnd};
pub use server::{Listen, Served, Servers};

/// The node's own addresses, and the router of every client.
pub const NODE: Addresses = Addresses::new(Ipv4Addr::new(192, 168, 50, 1), [0xfd00, 0x50, 0]);
/// The router of every pod: also an address of the node.
pub const POD_GATEWAY: Addresses = Addresses::new(Ipv4Addr::new(10, 244, 0, 1), POD_NETWORK_V6);

const POD_NETWORK_V6: [u16; 3] = [0xfd00, 0x10, 0x244];
const CLIENT_NETWORK_V6: [u16; 3] = [0xfd00, 0x50, 0];
/// What an Ethernet carries.
const MTU: u32 = 1500;
/// Interface names are at most this long (`IFNAMSIZ` less the NUL).
const LINK_NAME_MAX: usize = 15;

/// An address of either family that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addresses {
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6. Made up even where the kernel has no IPv6; see [`has_ipv6`].
    pub v6: Ipv6Addr,
}

/// A namespace with addresses.
#[derive(Debug)]
pub struct Host {
    role: String,
    link: String,
    addresses: Addresses,
    namespace: Namespace,
}

/// What to make; see [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct LabBuilder {
    prefix: String,
    clients: u8,
    pods: Vec<String>,
}

/// A running lab; see the module.
#[derive(Debug)]
pub struct Lab {
    name: String,
    // Dropped in this order: servers close their sockets, then pods and clients go, then the node.
    served: BTreeMap<String, Vec<Served>>,
    servers: Servers,
    pods: BTreeMap<String, Host>,
    clients: Vec<Host>,
    node_links: Rtnl,
    node: Host,
}

/// Whether the kernel has IPv6 at all. Where it has none, labs are IPv4 only.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").exists()
}

// === impl Addresses ===

impl Addresses {
    const fn new(v4: Ipv4Addr, network: [u16; 3]) -> Self {
        let octets = v4.octets();
        // Client addresses leave the third octet out: `192.168.50.x` is `fd00:50::x`.
        let high = if network[1] == 0x50 { 0 } else { same_digits(octets[2]) };
        let v6 = Ipv6Addr::new(network[0], network[1], network[2], 0, 0, 0, high, same_digits(octets[3]));
        Self { v4, v6 }
    }

    /// The addresses of the pod that has this IPv4 address.
    pub fn of_pod(v4: Ipv4Addr) -> Self {
        Self::new(v4, POD_NETWORK_V6)
    }

    /// Both, or the IPv4 one alone where the kernel has no IPv6.
    pub fn usable(self) -> impl Iterator<Item = IpAddr> {
        std::iter::once(IpAddr::V4(self.v4)).chain(has_ipv6().then_some(IpAddr::V6(self.v6)))
    }
}

// === impl Host ===

impl Host {
    /// Name within the lab.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its namespace, to run things in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs a closure inside; see [`Namespace::run`].
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(work)
    }

    /// Starts a child process inside; see [`Namespace::spawn`].
    ///
    /// # Errors
    /// Those of [`Command::spawn`].
    pub fn spawn(&self, command: Command) -> io::Result<Child> {
        self.namespace.spawn(command)
    }

    /// Asks over TCP who answers at `to`, from here. Costs a thread each time; a worker that asks often calls [`connect`] itself.
    ///
    /// # Errors
    /// Why nobody answered.
    pub fn connect(&self, to: SocketAddr, timeout: Duration) -> Result<Answer, ConnectError> {
        self.run(|| connect(to, timeout))
    }

    /// Asks over UDP who answers at `to`, from here.
    ///
    /// # Errors
    /// Why nobody answered.
    pub fn ask(&self, to: SocketAddr, timeout: Duration) -> Result<Answer, ConnectError> {
        self.run(|| ask(to, timeout))
    }
}

// === impl LabBuilder ===

impl LabBuilder {
    /// First part of every namespace's name; `pm` if not said. Leftovers are looked for under the same prefix only.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// How many clients, 1 to 200; 1 if not said.
    pub fn clients(mut self, count: u8) -> Self {
        self.clients = count.clamp(1, 200);
        self
    }

    /// Pods to begin with, addressed in this order from `10.244.0.2` on.
    pub fn pods<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.pods.extend(names.into_iter().map(Into::into));
        self
    }

    /// Clears leftovers, then makes everything.
    ///
    /// # Errors
    /// Without root, and whatever else the kernel refuses; nothing stays behind then.
    pub fn build(self) -> Result<Lab, LabError> {
        if !nix::unistd::geteuid().is_root() {
            let source = io::Error::from_raw_os_error(nix::libc::EPERM);
            return Err(LabError::new("make network namespaces", "of a lab", source));
        }
        leftovers::clear(&self.prefix);
        let name = lab_name(&self.prefix);
        let namespace = Namespace::named(&format!("{name}-node"))?;
        namespace.prepare()?;
        namespace.sysctls(&[
            ("ipv4/ip_forward", "1"),
            // A node that does not route every network it hears from would drop what the lab wants to see.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // Two hosts that talk by way of the node do so on purpose.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
        ])?;
        if has_ipv6() {
            namespace.sysctls(&[("ipv6/conf/all/forwarding", "1")])?;
        }
        let node_links = namespace.rtnl()?;
        let node = Host { role: "node".into(), link: "lo".into(), addresses: NODE, namespace };
        let mut lab = Lab {
            name,
            served: BTreeMap::new(),
            servers: Servers::start()?,
            pods: BTreeMap::new(),
            clients: Vec::new(),
            node_links,
            node,
        };
        for number in 0..self.clients {
            lab.add_client(number)?;
        }
        for pod in &self.pods {
            lab.add_pod(pod)?;
        }
        Ok(lab)
    }
}

// === impl Lab ===

impl Lab {
    /// A lab with one client and no pods; say more before building it.
    pub fn builder() -> LabBuilder {
        LabBuilder { prefix: "pm".into(), clients: 1, pods: Vec::new() }
    }

    /// First part of the names of all its namespaces: `pm-4711`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node.
    pub fn node(&self) -> &Host {
        &self.node
    }

    /// A client, counted from 0.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn client(&self, number: usize) -> &Host {
        &self.clients[number]
    }

    /// A pod.
    ///
    /// # Panics
    /// If there is none of this name; see [`Lab::pods`].
    pub fn pod(&self, name: &str) -> &Host {
        self.pods.get(name).unwrap_or_else(|| panic!("lab {} has no pod {name}", self.name))
    }

    /// All pods, by name.
    pub fn pods(&self) -> impl Iterator<Item = &Host> {
        self.pods.values()
    }

    /// Adds a pod at the first free address.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn add_pod(&mut self, name: &str) -> Result<&Host, LabError> {
        let used: Vec<Ipv4Addr> = self.pods.values().map(|pod| pod.addresses.v4).collect();
        let free = (2..u16::MAX)
            .map(|number| Ipv4Addr::new(10, 244, number.to_be_bytes()[0], number.to_be_bytes()[1]))
            .find(|address| !used.contains(address) && ![0, 255].contains(&address.octets()[3]))
            .ok_or_else(|| LabError::new("find an address for pod", name, io::ErrorKind::AddrNotAvailable.into()))?;
        self.add_pod_at(name, free)
    }

    /// Adds a pod at an address of its own choice, inside `10.244.0.0/16`; the IPv6 one follows from it.
    ///
    /// # Errors
    /// When name or address are taken or the kernel refuses.
    pub fn add_pod_at(&mut self, name: &str, address: Ipv4Addr) -> Result<&Host, LabError> {
        let refused = |kind: io::ErrorKind| LabError::new("add pod", format!("{name} at {address}"), kind.into());
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') {
            return Err(refused(io::ErrorKind::InvalidInput));
        }
        let [10, 244, high, low] = address.octets() else { return Err(refused(io::ErrorKind::InvalidInput)) };
        if self.pods.values().any(|pod| pod.role == name || pod.addresses.v4 == address) || address == POD_GATEWAY.v4 {
            return Err(refused(io::ErrorKind::AlreadyExists));
        }
        let link = if name.len() <= LINK_NAME_MAX { name.to_owned() } else { format!("pod-{high}-{low}") };
        let host = self.attach(name, &link, Addresses::of_pod(address), POD_GATEWAY, [1, high, low])?;
        Ok(self.pods.entry(name.to_owned()).or_insert(host))
    }

    /// Removes a pod at once, with its servers, connections and link, as a crash would. False if there was none.
    ///
    /// # Errors
    /// When the kernel refuses to remove the link.
    pub fn remove_pod(&mut self, name: &str) -> Result<bool, LabError> {
        self.served.remove(name);
        let Some(host) = self.pods.remove(name) else { return Ok(false) };
        self.node_links.delete_link(&host.link)?;
        Ok(true)
    }

    /// Starts servers in a pod that answer with its name; they stay until [`Lab::stop_serving`] or the pod goes.
    ///
    /// # Errors
    /// When a port is taken.
    ///
    /// # Panics
    /// If there is no such pod.
    pub fn serve(&mut self, pod: &str, ports: &[Listen]) -> Result<(), LabError> {
        let served = self.servers.serve(self.pod(pod).namespace(), pod, ports)?;
        self.served.entry(pod.to_owned()).or_default().push(served);
        Ok(())
    }

    /// Closes all servers and connections of a pod, which itself stays: connections to it are refused from now on.
    pub fn stop_serving(&mut self, pod: &str) {
        self.served.remove(pod);
    }

    fn add_client(&mut self, number: u8) -> Result<(), LabError> {
        let role = format!("client{number}");
        let addresses = Addresses::new(Ipv4Addr::new(192, 168, 50, number + 2), CLIENT_NETWORK_V6);
        let host = self.attach(&role, &role, addresses, NODE, [2, 0, number + 2])?;
        // All ports but the well-known ones, for clients that open many connections.
        host.namespace.sysctls(&[("ipv4/ip_local_port_range", "1024 65535")])?;
        if number == 0 {
            for via in addresses.usable() {
                self.node_links.add_route(Route { to: (any(via), 0), via: Some(via), link: &role })?;
            }
        }
        self.clients.push(host);
        Ok(())
    }

    /// Makes a namespace with `eth0`, and `link` on the node as its other end.
    fn attach(
        &mut self,
        role: &str,
        link: &str,
        addresses: Addresses,
        router: Addresses,
        [kind, high, low]: [u8; 3],
    ) -> Result<Host, LabError> {
        let namespace = Namespace::named(&format!("{}-{role}", self.name))?;
        namespace.prepare()?;
        // 02: locally administered. The last byte tells the node's end from the host's.
        let end = |name, side| VethEnd { name, mac: [0x02, kind, 0, high, low, side], mtu: MTU };
        self.node_links.add_veth(end(link, 1), end("eth0", 2), &namespace)?;
        let mut inside = namespace.rtnl()?;
        self.node_links.set_up(link)?;
        inside.set_up("eth0")?;
        for (own, router) in addresses.usable().zip(router.usable()) {
            let host_route = if own.is_ipv4() { 32 } else { 128 };
            self.node_links.add_address(link, router, host_route)?;
            self.node_links.add_route(Route { to: (own, host_route), via: None, link })?;
            inside.add_address("eth0", own, host_route)?;
            inside.add_route(Route { to: (router, host_route), via: None, link: "eth0" })?;
            inside.add_route(Route { to: (any(own), 0), via: Some(router), link: "eth0" })?;
        }
        Ok(Host { role: role.to_owned(), link: link.to_owned(), addresses, namespace })
    }
}

/// `prefix-pid`, and a number behind it from the second lab of this process on.
fn lab_name(prefix: &str) -> String {
    static LABS: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    match LABS.fetch_add(1, Ordering::Relaxed) {
        0 => format!("{prefix}-{pid}"),
        number => format!("{prefix}-{pid}.{number}"),
    }
}

/// The unspecified address of the same family.
fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// The number whose hexadecimal digits are the decimal digits of this one: 12 gives 0x12.
const fn same_digits(octet: u8) -> u16 {
    let octet = octet as u16;
    (octet / 100) << 8 | (octet / 10 % 10) << 4 | (octet % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_have_the_same_digits() {
        let of = |v4: [u8; 4]| Addresses::of_pod(v4.into()).v6.to_string();
        assert_eq!(of([10, 244, 0, 12]), "fd00:10:244::12");
        assert_eq!(of([10, 244, 3, 254]), "fd00:10:244::3:254");
        assert_eq!(NODE.v6.to_string(), "fd00:50::1");
        assert_eq!(POD_GATEWAY.v6.to_string(), "fd00:10:244::1");
    }
}

//! The addresses of this host's interfaces, as they are now, in the calling thread's network namespace.
//!
//! Packets are matched by routing tables and need none of this. What does: sockets that listen on some addresses only, and telling
//! a flow to this host from one that passes through.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use tracing::warn;

/// All but loopback and IPv6 link-local ones (which mean nothing without their interface); none if they cannot be read.
pub fn interface_addresses() -> BTreeSet<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().inspect_err(|error| warn!(%error, "cannot read this host's addresses"));
    let addresses = interfaces.into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let scoped = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if Ipv6Addr::is_unicast_link_local(v6));
    addresses.filter(|address| !address.is_loopback() && !scoped(address)).collect()
}

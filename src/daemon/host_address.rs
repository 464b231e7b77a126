//! Which of this host's addresses the kernel sends connections to that the forwarder carries.
//!
//! A plain `dnat` must reach it from pods, from the host itself and from outside, so it cannot be a loopback address. It is our Node's
//! address of the family (`--bind-address` replaces it) if that is an address of this host. Without a Node (a directory of manifests), or
//! where the Node's addresses are somewhere else, it is the one that the routing table chooses for the way out, or else the first of
//! the host's addresses that is neither loopback nor link-local.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;

use crate::model::Family;

/// An address of this host of the family, if it has any that can be used.
pub(super) fn host_address(family: Family, known: Option<IpAddr>) -> Option<IpAddr> {
    known.filter(|address| is_ours(*address)).or_else(|| way_out(family)).or_else(|| any(family))
}

/// Whether a socket can be bound there.
fn is_ours(address: IpAddr) -> bool {
    UdpSocket::bind(SocketAddr::new(address, 0)).is_ok()
}

/// The source that the kernel would choose. Connecting a UDP socket sends nothing; the addresses are for documentation (RFC 5737,
/// RFC 3849), so nobody has a route of their own to them.
fn way_out(family: Family) -> Option<IpAddr> {
    let (any, far): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), [192, 0, 2, 1].into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(far, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| is_usable(*address))
}

fn any(family: Family) -> Option<IpAddr> {
    let all = getifaddrs().ok()?.filter_map(|interface| interface.address);
    let addresses = all.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let mut usable = addresses.filter(|address| Family::of(*address) == family && is_usable(*address));
    usable.find(|address| is_ours(*address))
}

fn is_usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !link_local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_somebody_else_is_not_ours() {
        assert!(is_ours([127, 0, 0, 1].into()) && !is_ours([192, 0, 2, 77].into()));
        let found = host_address(Family::V4, Some([192, 0, 2, 77].into()));
        assert_ne!(found, Some([192, 0, 2, 77].into()), "the Node's address is elsewhere");
        assert!(found.is_none_or(|address| is_usable(address) && is_ours(address)), "{found:?}");
        assert!(!is_usable([169, 254, 1, 1].into()) && !is_usable([0xfe80, 0, 0, 0, 0, 0, 0, 1].into()));
    }
}

//! Which of this host's addresses the kernel sends connections to that the forwarder carries.
//!
//! A plain `dnat` must reach it from pods, from the host itself and from outside, so it cannot be a loopback address. It is our Node's
//! address of the family (`--bind-address` replaces it) if that is an address of this host. Without a Node (a directory of manifests), or
//! where the Node's addresses are somewhere else, it is the one that the routing table chooses for the way out, or else the first of
//! the host's addresses that is neither loopback nor link-local.
//!
//! That takes some sockets to find out, so it is found out again only after something has changed: our Node, or the host's addresses or
//! routes, of which the kernel tells. Proven by `tests/e2e/forward.rs`.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tracing::debug;

use crate::model::Family;

/// What makes us look again: addresses and routes of both families.
const NEWS: i32 =
    libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR | libc::RTMGRP_IPV4_ROUTE | libc::RTMGRP_IPV6_ROUTE;
/// How long it is believed that the host has no address of a family.
const DOUBT: Duration = Duration::from_secs(1);
/// Messages read at a time; whether one is left does not matter, and the next look reads on.
const PIECE: usize = 1024;

/// This host's addresses, as far as they were found.
#[derive(Debug, Default)]
pub(super) struct HostAddresses {
    /// What the kernel tells us by; without it we look each time.
    news: Option<OwnedFd>,
    found: Option<Found>,
}

/// What the last look found.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// For which of the Node's addresses, IPv4 and IPv6.
    known: [Option<IpAddr>; 2],
    addresses: [Option<IpAddr>; 2],
    /// None may mean that no port or descriptor was left to find out with, so it is not believed for long.
    until: Option<Instant>,
}

// === impl HostAddresses ===

impl HostAddresses {
    /// The addresses, IPv4 and IPv6, of the calling thread's network namespace, given what is known of our Node.
    pub(super) fn look(&mut self, known: [Option<IpAddr>; 2]) -> [Option<IpAddr>; 2] {
        let now = Instant::now();
        if let (Some(found), Some(news)) = (self.found, &self.news)
            && found.known == known
            && found.until.is_none_or(|until| now < until)
            && !is_there_any(news)
        {
            return found.addresses;
        }
        if self.news.is_none() {
            // Before we look, or a change in between would be missed.
            self.news = listen().inspect_err(|errno| debug!(%errno, "changes of addresses are not heard of")).ok();
        }
        let [v4, v6] = known;
        let addresses = [host_address(Family::V4, v4), host_address(Family::V6, v6)];
        let until = addresses.contains(&None).then(|| now + DOUBT);
        self.found = Some(Found { known, addresses, until });
        addresses
    }
}

fn listen() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let news = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(news.as_raw_fd(), &NetlinkAddr::new(0, NEWS.cast_unsigned()))?;
    Ok(news)
}

/// Takes what the kernel told. Whether it was anything; also if it was more than could be kept.
fn is_there_any(news: &OwnedFd) -> bool {
    // What is said is not read: the rest of a message goes with its first byte.
    let told = |_: &usize| recv(news.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT) != Err(Errno::EAGAIN);
    (0..PIECE).take_while(told).count() > 0
}

/// An address of this host of the family, if it has any that can be used.
fn host_address(family: Family, known: Option<IpAddr>) -> Option<IpAddr> {
    known.filter(|address| is_ours(*address)).or_else(|| way_out(family)).or_else(|| any(family))
}

/// Whether a socket can be bound there.
fn is_ours(address: IpAddr) -> bool {
    // All its ports may be taken.
    UdpSocket::bind(SocketAddr::new(address, 0)).map_or_else(|error| error.kind() == ErrorKind::AddrInUse, |_| true)
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

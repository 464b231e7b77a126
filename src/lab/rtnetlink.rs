//! The little of rtnetlink that a lab needs: links, addresses, routes.
//!
//! One [`Rtnl`] is one `NETLINK_ROUTE` socket. It acts on the namespace in which it was opened, from whichever thread it is used
//! later; that is why it is a plain descriptor of ours rather than a libmnl socket, which cannot change threads. Requests are
//! written by [`nft::netlink::Writer`], carry `NLM_F_ACK` and are answered one by one, so an error belongs to the request just made.
//!
//! Numbers and layouts are those of `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h` and `linux/veth.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nft::netlink::{Writer, messages};
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use super::LabError;

const VETH_INFO_PEER: u16 = 1;
/// `IFA_F_NODAD`: usable at once, without asking the link whether somebody else has the address.
const IFA_F_NODAD: u8 = 0x02;
const LINK_HEADER: usize = 16;

/// A routing socket; see the module.
#[derive(Debug)]
pub struct Rtnl {
    fd: OwnedFd,
    seq: u32,
    writer: Writer,
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Interface name, at most 15 bytes.
    pub name: &'a str,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet in bytes, link header not counted.
    pub mtu: u32,
}

/// A route by way of an interface.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// Destination and its prefix length; `0.0.0.0/0` or `::/0` for the default route.
    pub to: (IpAddr, u8),
    /// The router, which must be reachable by an earlier route; `None` when the destination itself is on the link.
    pub via: Option<IpAddr>,
    /// The interface.
    pub link: &'a str,
}

impl Rtnl {
    /// Opens a socket in the calling thread's namespace.
    ///
    /// # Errors
    /// When the system gives no more sockets.
    pub fn open() -> Result<Self, LabError> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .map_err(|errno| LabError::new("open", "a routing socket", errno.into()))?;
        Ok(Self { fd, seq: 0, writer: Writer::new() })
    }

    /// The index of the interface with this name.
    ///
    /// # Errors
    /// `ENODEV` when there is none.
    pub fn index(&mut self, link: &str) -> Result<u32, LabError> {
        let answer = self
            .request(libc::RTM_GETLINK, 0, &link_header(0, 0), |writer| writer.attr_str(libc::IFLA_IFNAME, link))
            .map_err(|source| LabError::new("find interface", link, source))?;
        Ok(answer.unwrap_or_default())
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn set_up(&mut self, link: &str) -> Result<(), LabError> {
        let index = self.index(link)?;
        self.request(libc::RTM_NEWLINK, 0, &link_header(index, libc::IFF_UP as u32), |_| {})
            .map_err(|source| LabError::new("bring up interface", link, source))?;
        Ok(())
    }

    /// Makes a veth pair: `here` in this socket's namespace, `there` in `other`. Both are down.
    ///
    /// # Errors
    /// `EEXIST` when either name is taken, `ENOTSUP` when the kernel has no veth.
    pub fn add_veth(&mut self, here: VethEnd, there: VethEnd, other: &impl AsFd) -> Result<(), LabError> {
        let other = other.as_fd().as_raw_fd() as u32;
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.request(libc::RTM_NEWLINK, create, &link_header(0, 0), |writer| {
            veth_end(writer, here);
            let info = writer.begin_nest(libc::IFLA_LINKINFO);
            writer.attr_str(libc::IFLA_INFO_KIND, "veth");
            let data = writer.begin_nest(libc::IFLA_INFO_DATA);
            let peer = writer.begin_nest(VETH_INFO_PEER);
            writer.raw(&link_header(0, 0));
            veth_end(writer, there);
            writer.attr_ne32(libc::IFLA_NET_NS_FD, other);
            writer.end_nest(peer);
            writer.end_nest(data);
            writer.end_nest(info);
        })
        .map_err(|source| LabError::new("make veth pair", format!("{} - {}", here.name, there.name), source))?;
        Ok(())
    }

    /// Removes an interface; a veth takes its peer along.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn delete_link(&mut self, link: &str) -> Result<(), LabError> {
        let index = self.index(link)?;
        self.request(libc::RTM_DELLINK, 0, &link_header(index, 0), |_| {})
            .map_err(|source| LabError::new("remove interface", link, source))?;
        Ok(())
    }

    /// Gives an interface an address. IPv6 addresses skip duplicate detection.
    ///
    /// # Errors
    /// `EEXIST` when it has it already.
    pub fn add_address(&mut self, link: &str, address: IpAddr, prefix: u8) -> Result<(), LabError> {
        let index = self.index(link)?;
        let flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
        let mut header = vec![family(address), prefix, flags, 0];
        header.extend_from_slice(&index.to_ne_bytes());
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.request(libc::RTM_NEWADDR, create, &header, |writer| {
            let bytes = octets(address);
            writer.attr(libc::IFA_LOCAL, &bytes);
            writer.attr(libc::IFA_ADDRESS, &bytes);
        })
        .map_err(|source| LabError::new("add address", format!("{address}/{prefix} dev {link}"), source))?;
        Ok(())
    }

    /// Adds a route to the main table.
    ///
    /// # Errors
    /// `ENETUNREACH` when the router cannot be reached, `ENETDOWN` when the interface is down.
    pub fn add_route(&mut self, route: Route) -> Result<(), LabError> {
        let index = self.index(route.link)?;
        let (to, prefix) = route.to;
        let scope = if route.via.is_none() && to.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
        let mut header =
            vec![family(to), prefix, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, scope, libc::RTN_UNICAST];
        header.extend_from_slice(&0u32.to_ne_bytes());
        let create = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
        self.request(libc::RTM_NEWROUTE, create, &header, |writer| {
            if prefix > 0 {
                writer.attr(libc::RTA_DST, &octets(to));
            }
            if let Some(via) = route.via {
                writer.attr(libc::RTA_GATEWAY, &octets(via));
            }
            writer.attr_ne32(libc::RTA_OIF, index);
        })
        .map_err(|source| LabError::new("add route", format!("{to}/{prefix} dev {}", route.link), source))?;
        Ok(())
    }

    /// Sends one request and waits for its answer: the index of the link that it described, if it described one.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Writer),
    ) -> io::Result<Option<u32>> {
        self.seq += 1;
        self.writer.clear();
        let flags = flags | libc::NLM_F_REQUEST as u16 | libc::NLM_F_ACK as u16;
        let message = self.writer.begin(kind, flags, self.seq, header);
        attributes(&mut self.writer);
        self.writer.end(message);
        send(self.fd.as_raw_fd(), self.writer.as_bytes(), MsgFlags::empty())?;

        let mut buffer = [0u8; 16 * 1024];
        let mut index = None;
        loop {
            let received = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for message in messages(&buffer[..received]).filter(|message| message.seq == self.seq) {
                if message.kind == libc::NLMSG_ERROR as u16 {
                    let errno = message.payload.get(..4).map(|b| i32::from_ne_bytes(b.try_into().expect("four bytes")));
                    return match errno {
                        Some(0) => Ok(index),
                        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                if message.kind == libc::RTM_NEWLINK {
                    index = message.payload.get(4..8).map(|b| u32::from_ne_bytes(b.try_into().expect("four bytes")));
                }
            }
        }
    }
}

/// `struct ifinfomsg`; `flags` are both set and masked.
fn link_header(index: u32, flags: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn veth_end(writer: &mut Writer, end: VethEnd) {
    writer.attr_str(libc::IFLA_IFNAME, end.name);
    writer.attr(libc::IFLA_ADDRESS, &end.mac);
    writer.attr_ne32(libc::IFLA_MTU, end.mtu);
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use nft::netlink::{HEADER_LEN, find};

    use super::*;

    #[test]
    fn a_link_request_has_the_kernels_layout() {
        let mut writer = Writer::new();
        let message = writer.begin(libc::RTM_NEWLINK, 0, 1, &link_header(7, 1));
        veth_end(&mut writer, VethEnd { name: "eth0", mac: [2, 0, 0, 0, 0, 1], mtu: 1500 });
        writer.end(message);
        let bytes = writer.as_bytes();
        assert_eq!(bytes.len(), HEADER_LEN + LINK_HEADER + 12 + 12 + 8);
        let attributes = &bytes[HEADER_LEN + LINK_HEADER..];
        assert_eq!(find(attributes, libc::IFLA_IFNAME).and_then(|a| a.str()), Some("eth0"));
        assert_eq!(find(attributes, libc::IFLA_MTU).and_then(|a| a.ne32()), Some(1500));
    }
}

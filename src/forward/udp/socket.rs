//! Sockets of the forwarder, and what they are set to.

use std::io;
use std::net::SocketAddr;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// What a listener may hold while its task is busy: some ten thousand small datagrams. The kernel counts its own overhead, too.
const LISTENER_BUFFER: usize = 8 << 20;

/// A socket on which clients' datagrams arrive. With `shared`, several may listen at the same address, and the kernel gives each
/// client to one of them.
///
/// # Errors
/// When the address is taken or not ours.
pub(super) fn listen(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = new(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if shared {
        socket.set_reuse_port(true)?;
    }
    // Above the administrator's limit this takes a privilege that the program has; without it, the limit will do.
    if setsockopt(&socket, sockopt::RcvBufForce, &LISTENER_BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(LISTENER_BUFFER);
    }
    let _ = socket.set_send_buffer_size(LISTENER_BUFFER);
    // Several datagrams of a client as one, where the kernel knows how (5.0).
    let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A socket from which an endpoint is asked, and on which only it can answer.
///
/// # Errors
/// When there are no more descriptors or ports, and when no route leads to the endpoint.
pub(super) fn dial(endpoint: SocketAddr) -> io::Result<Socket> {
    let socket = new(endpoint)?;
    socket.connect(&endpoint.into())?;
    Ok(socket)
}

fn new(like: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(like), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))
}

//! The PROXY protocol: who the client is, in front of its first byte.
//!
//! Source of both formats: haproxy.org, `proxy-protocol.txt`, sections 2.1 and 2.2.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::forward::route::ProxyProtocol;

/// What every header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_COMMAND: u8 = 0x21;
/// AF_INET, STREAM.
const TCP4: u8 = 0x11;
/// AF_INET6, STREAM.
const TCP6: u8 = 0x21;

/// The header of a TCP connection from `source`, which wanted to reach `destination`. At most 107 bytes.
pub(super) fn header(version: ProxyProtocol, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => text(source, destination),
        ProxyProtocol::V2 => binary(source, destination),
    }
}

fn text(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let mut header = Vec::with_capacity(107);
    let (from, to) = (source.ip(), destination.ip());
    write!(header, "PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).expect("memory");
    header
}

fn binary(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::with_capacity(36);
    for address in [source, destination] {
        match address.ip() {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
    }
    addresses.extend(source.port().to_be_bytes());
    addresses.extend(destination.port().to_be_bytes());
    let family = if source.is_ipv4() { TCP4 } else { TCP6 };
    let length = u16::try_from(addresses.len()).expect("12 or 36").to_be_bytes();
    [&SIGNATURE[..], &[VERSION_COMMAND, family], &length, &addresses].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_is_a_line() {
        let header = |source: &str, destination: &str| {
            let parsed = (source.parse().expect("an address"), destination.parse().expect("an address"));
            String::from_utf8(header(ProxyProtocol::V1, parsed.0, parsed.1)).expect("text")
        };
        assert_eq!(header("192.168.0.1:56324", "10.96.0.1:443"), "PROXY TCP4 192.168.0.1 10.96.0.1 56324 443\r\n");
        assert_eq!(header("[fd00::1]:1", "[fd00:10::]:65535"), "PROXY TCP6 fd00::1 fd00:10:: 1 65535\r\n");
    }

    #[test]
    fn version_2_is_binary() {
        let (source, destination) =
            (SocketAddr::from(([1, 2, 3, 4], 0x1112)), SocketAddr::from(([5, 6, 7, 8], 0x2122)));
        let short = header(ProxyProtocol::V2, source, destination);
        let rest = [0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x21, 0x22];
        assert_eq!(short, [&b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"[..], &rest].concat());
        let six = "[fd00::1]:80".parse().expect("an address");
        let long = header(ProxyProtocol::V2, six, six);
        assert_eq!((long.len(), &long[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
    }
}

//! The endpoint is told who the client is, in front of the first byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use pointsman::forward::{Options, ProxyProtocol};
use pointsman::model::Family;

use super::bed::{Bed, assert_echo, echo, server, vip};

/// Hears a line, says it again, then echoes.
fn line(stream: TcpStream) {
    let mut reader = BufReader::new(stream.try_clone().expect("a stream"));
    let mut header = String::new();
    reader.read_line(&mut header).expect("a header");
    assert!(reader.buffer().is_empty(), "the client has not spoken yet");
    let mut writer = &stream;
    writer.write_all(header.as_bytes()).expect("said again");
    echo(stream);
}

/// Hears a binary header and tells what it says, then echoes.
fn binary(mut stream: TcpStream) {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).expect("a header");
    assert_eq!(&fixed[..12], b"\r\n\r\n\0\r\nQUIT\n");
    let mut rest = vec![0; u16::from_be_bytes([fixed[14], fixed[15]]).into()];
    stream.read_exact(&mut rest).expect("addresses");
    let octets = (rest.len() - 4) / 2;
    let address = |at: usize| -> IpAddr {
        match <[u8; 4]>::try_from(&rest[at..at + octets]) {
            Ok(four) => four.into(),
            Err(_) => <[u8; 16]>::try_from(&rest[at..at + octets]).expect("4 or 16").into(),
        }
    };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let source = SocketAddr::new(address(0), port(octets * 2));
    let destination = SocketAddr::new(address(octets), port(octets * 2 + 2));
    writeln!(stream, "{:02x}{:02x} {source} {destination}", fixed[12], fixed[13]).expect("told");
    echo(stream);
}

fn hear_line(stream: &mut TcpStream) -> String {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text").trim_end().to_owned()
}

#[test]
fn both_versions_tell_client_and_service_in_both_families() {
    let mut bed = Bed::new(2);
    let _servers = [server(&bed.lab, 1, line), server(&bed.lab, 2, binary)];
    for (family, word, number) in [(Family::V4, "TCP4", "2111"), (Family::V6, "TCP6", "2121")] {
        for (pod, version) in [(1, ProxyProtocol::V1), (2, ProxyProtocol::V2)] {
            let options = Options { proxy_protocol: Some(version), ..Options::default() };
            bed.serve(family, &[bed.endpoint(pod, family)], options);
            let mut stream = bed.connect(family);
            let (source, to) = (stream.local_addr().expect("bound"), vip(family));
            let expected = match version {
                ProxyProtocol::V1 => {
                    format!("PROXY {word} {} {} {} {}", source.ip(), to.ip(), source.port(), to.port())
                }
                ProxyProtocol::V2 => format!("{number} {source} {to}"),
            };
            assert_eq!(hear_line(&mut stream), expected, "{version:?} over {family}");
            assert_echo(&mut stream, "after the header");
        }
    }
}

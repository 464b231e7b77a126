//! Connections to endpoints that come from the client's address.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use nft::{Connection, Table, Transaction};
use pointsman::forward::{CLIENT_IP_TABLE, ClientIp, Options};
use pointsman::lab::{Host, POD_GATEWAY};
use pointsman::model::Family;

use super::bed::{Bed, assert_echo, connect, echo, eventually, server, vip};

/// Says who it is connected to, then echoes.
fn tell(mut stream: TcpStream) {
    let peer = stream.peer_addr().expect("connected").ip().to_canonical();
    writeln!(stream, "{peer}").expect("told");
    echo(stream);
}

fn hear(stream: &mut TcpStream) -> IpAddr {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" {
        stream.read_exact(&mut byte).expect("a line");
        line.push(byte[0]);
    }
    String::from_utf8(line).expect("text").trim_end().parse().expect("an address")
}

fn preserve() -> Options {
    Options { client_ip: ClientIp::Preserve, ..Options::default() }
}

fn nft_family(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    }
}

fn has_table(node: &Host, family: Family) -> bool {
    let table = node.run(|| Connection::open().and_then(|mut nft| nft.table(nft_family(family), CLIENT_IP_TABLE)));
    table.expect("an answer").is_some()
}

/// The address of a pod, or of the client.
fn address(host: &Host, family: Family) -> IpAddr {
    host.addresses().usable().find(|address| Family::of(*address) == family).expect("an address")
}

#[test]
fn the_endpoint_sees_the_client_wherever_that_is() {
    let mut bed = Bed::new(2);
    let _server = server(&bed.lab, 1, tell);
    for family in Family::ALL {
        let endpoint = bed.endpoint(1, family);
        bed.serve(family, &[endpoint], Options::default());
        let gateway = POD_GATEWAY.usable().find(|address| Family::of(*address) == family);
        let seen = hear(&mut bed.connect(family));
        assert_ne!(seen, address(bed.lab.client(0), family), "the default hides it behind {gateway:?}");
        assert!(!has_table(bed.lab.node(), family) || family == Family::V6, "made when it is needed");

        bed.serve(family, &[endpoint], preserve());
        for from in [bed.lab.client(0), bed.lab.pod("web-2")] {
            let mut held = Vec::new();
            for number in 0..20 {
                let mut stream = connect(from, vip(family));
                assert_eq!(hear(&mut stream), address(from, family), "connection {number}");
                held.push(stream);
            }
            // The elements have gone by then, or go: the connections stay.
            held.iter_mut().for_each(|stream| assert_echo(stream, "later"));
            held.iter_mut().for_each(|stream| assert_echo(stream, "and again"));
        }
        assert_eq!((bed.status(family).unpreserved, bed.status(family).refused.len()), (0, 0));
        assert!(has_table(bed.lab.node(), family));
    }
    bed.wait_for_silence();
    drop(bed.forwarder.take());
    for family in Family::ALL {
        eventually("the end of the table", || !has_table(bed.lab.node(), family));
    }
}

#[test]
fn a_client_that_is_the_endpoint_is_hidden_and_counted() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, tell);
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], preserve());
        let mut stream = connect(bed.lab.pod("web-1"), vip(family));
        assert_ne!(hear(&mut stream), address(bed.lab.pod("web-1"), family));
        assert_echo(&mut stream, "it answers itself");
        assert_eq!(bed.status(family).unpreserved, 1);
    }
}

#[test]
fn what_cannot_be_set_up_makes_plain_connections_which_are_counted() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, tell);
    let mut somebody = bed.lab.node().run(|| {
        let mut kernel = Connection::open().expect("a socket");
        let mut table = Table::new(nft::Family::Ip, CLIENT_IP_TABLE);
        table.flags.owner = true;
        let mut transaction = Transaction::new();
        transaction.add_table(&table);
        kernel.commit(&transaction).expect("a table of this name");
        kernel
    });
    bed.serve(Family::V4, &[bed.endpoint(1, Family::V4)], preserve());
    let mut stream = bed.connect(Family::V4);
    assert_ne!(hear(&mut stream), address(bed.lab.client(0), Family::V4));
    assert_echo(&mut stream, "a plain connection");
    assert_eq!(bed.status(Family::V4).unpreserved, 1);

    let mut transaction = Transaction::new();
    transaction.delete_table(nft::Family::Ip, CLIENT_IP_TABLE);
    bed.lab.node().run(|| somebody.commit(&transaction)).expect("its owner may");
    assert_eq!(hear(&mut bed.connect(Family::V4)), address(bed.lab.client(0), Family::V4), "tried anew each time");
    assert_eq!(bed.status(Family::V4).unpreserved, 1);
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_the_next_sees_the_client() {
    let mut bed = Bed::new(2);
    // web-1 has no server.
    let _server = server(&bed.lab, 2, tell);
    for family in Family::ALL {
        let endpoints: [SocketAddr; 2] = [bed.endpoint(1, family), bed.endpoint(2, family)];
        bed.serve(family, &endpoints, preserve());
        for _ in 0..4 {
            assert_eq!(hear(&mut bed.connect(family)), address(bed.lab.client(0), family));
        }
        assert!(bed.endpoint_status(1, family).failures > 0);
    }
}

#[test]
fn nft_lists_what_is_programmed() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, tell);
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], preserve());
        hear(&mut bed.connect(family));
    }
    for arguments in [&["list", "ruleset"][..], &["-j", "list", "ruleset"]] {
        let output = bed.lab.node().run(|| std::process::Command::new("nft").args(arguments).output()).expect("nft");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(CLIENT_IP_TABLE) && text.contains("snat"), "{output:?}");
    }
}

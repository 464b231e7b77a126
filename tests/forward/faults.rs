//! Endpoints that refuse, hang, reset and stall; clients that vanish.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use pointsman::forward::{Options, Refusal};
use pointsman::model::Family;
use socket2::SockRef;

use super::bed::{Bed, PATIENCE, assert_echo, assert_reset, echo, eventually, server};

const V4: Family = Family::V4;

/// Nobody has this address; the node sends what is for it to where it is dropped.
fn nowhere(family: Family) -> SocketAddr {
    match family {
        Family::V4 => "10.244.9.9:8080".parse().expect("an address"),
        Family::V6 => "[fd00:10:244::9:9]:8080".parse().expect("an address"),
    }
}

fn abort(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_counted() {
    let mut bed = Bed::new(2);
    // web-1 has no server.
    let _server = server(&bed.lab, 2, echo);
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family), bed.endpoint(2, family)], Options::default());
        for number in 0..20 {
            assert_echo(&mut bed.connect(family), &format!("connection {number}"));
        }
        let (refusing, serving) = (bed.endpoint_status(1, family), bed.endpoint_status(2, family));
        assert!(refusing.failures > 0 && refusing.connections == 0, "{refusing:?}");
        assert_eq!((serving.failures, serving.connections), (0, 20));
        assert!(bed.status(family).refused.is_empty());
    }
}

#[test]
fn an_endpoint_that_hangs_is_passed_over_after_the_first_timeout() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    for family in Family::ALL {
        bed.serve(family, &[nowhere(family), bed.endpoint(1, family)], Options::default());
        // One of the first two connections, at the latest, is for the endpoint that hangs.
        for number in 0..4 {
            assert_echo(&mut bed.connect(family), &format!("connection {number}"));
        }
        let status = bed.status(family);
        assert!(status.endpoints[&nowhere(family)].failures > 0, "{status:?}");
        assert_eq!(status.endpoints[&bed.endpoint(1, family)].connections, 4);
    }
}

#[test]
fn when_nobody_answers_the_client_is_reset() {
    let mut bed = Bed::new(2);
    bed.serve(V4, &[bed.endpoint(1, V4), bed.endpoint(2, V4)], Options::default());
    bed.assert_refused(V4, "both refuse");
    for pod in [1, 2] {
        assert_eq!(bed.endpoint_status(pod, V4).failures, 1, "each was tried once");
    }
    let connect_timeouts = vec![Duration::from_millis(50), Duration::from_millis(100)];
    bed.serve(V4, &[nowhere(V4)], Options { connect_timeouts, ..Options::default() });
    let begin = Instant::now();
    bed.assert_refused(V4, "silence");
    assert!(begin.elapsed() >= Duration::from_millis(150), "two attempts");
    let status = bed.status(V4);
    assert_eq!((status.endpoints[&nowhere(V4)].failures, status.refused[&Refusal::Unreachable]), (2, 2));
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    let mut bed = Bed::new(2);
    let _breaks_off = server(&bed.lab, 1, |mut stream| {
        stream.read_exact(&mut [0; 4]).expect("a request");
        abort(stream);
    });
    let (told, heard) = mpsc::channel();
    let _listens = server(&bed.lab, 2, move |mut stream| {
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).expect("a request");
        told.send(None).expect("heard");
        told.send(Some(stream.read(&mut buffer).map_err(|error| error.kind()))).expect("heard");
    });
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], Options::default());
        let mut stream = bed.connect(family);
        stream.write_all(b"ping").expect("sent");
        assert_reset(&mut stream, "the server has broken off");

        bed.serve(family, &[bed.endpoint(2, family)], Options::default());
        let mut stream = bed.connect(family);
        stream.write_all(b"ping").expect("sent");
        assert_eq!(heard.recv_timeout(PATIENCE).expect("a request"), None);
        abort(stream);
        assert_eq!(heard.recv_timeout(PATIENCE).expect("an end"), Some(Err(ErrorKind::ConnectionReset)));
        bed.wait_for_silence();
    }
}

#[test]
fn a_client_that_resets_while_its_server_does_not_read_is_noticed() {
    let mut bed = Bed::new(1);
    // It keeps its connections, and reads nothing.
    let (keep, kept) = mpsc::channel();
    let _server = server(&bed.lab, 1, move |stream| keep.send(stream).expect("kept"));
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], Options::default());
        let mut stream = bed.connect(family);
        stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let bytes = vec![7; 1 << 20];
        // Until all buffers on the way are full.
        while stream.write(&bytes).is_ok() {}
        let server = kept.recv_timeout(PATIENCE).expect("a connection");
        abort(stream);
        bed.wait_for_silence();
        drop(server);
    }
}

#[test]
fn an_answer_that_was_sent_before_a_reset_arrives() {
    let mut bed = Bed::new(1);
    // As a web server that refuses a large upload: it answers, does not read, and closes.
    let _server = server(&bed.lab, 1, |mut stream| {
        stream.read_exact(&mut [0; 4]).expect("the first of it");
        stream.write_all(b"413 too large").expect("an answer");
    });
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    for _ in 0..20 {
        let mut stream = bed.connect(V4);
        stream.write_all(&[7; 10_000]).expect("sent");
        let mut answer = [0; 13];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"413 too large");
    }
    bed.wait_for_silence();
}

#[test]
fn a_client_that_vanishes_takes_its_connection_along() {
    let mut bed = Bed::new(1);
    // Sends for ever, whoever listens.
    let _server = server(&bed.lab, 1, |mut stream| while stream.write_all(&[1; 50_000]).is_ok() {});
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    for unread in [0, 1, 1_000_000] {
        let mut stream = bed.connect(V4);
        let mut some = vec![0; unread];
        stream.read_exact(&mut some).expect("some of it");
        drop(stream);
    }
    bed.wait_for_silence();
    assert_eq!(bed.endpoint_status(1, V4).active, 0);
}

#[test]
fn a_reader_that_stalls_costs_bounded_memory_and_gets_everything_in_the_end() {
    /// What two sockets hold at most (`net.ipv4.tcp_rmem`, `tcp_wmem`), twice, and generously.
    const BOUND: u64 = 256 << 20;
    let mut bed = Bed::new(1);
    let (resume, resumed) = mpsc::channel::<()>();
    let resumed = std::sync::Arc::new(std::sync::Mutex::new(resumed));
    let _server = server(&bed.lab, 1, move |mut stream| {
        // Until the test says so: nothing is read.
        resumed.lock().expect("not poisoned").recv_timeout(PATIENCE * 3).expect("told");
        let (mut buffer, mut total, mut sum) = (vec![0; 1 << 16], 0_u64, 0_u64);
        while let Ok(heard @ 1..) = stream.read(&mut buffer) {
            total += heard as u64;
            sum = buffer[..heard].iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add((*byte).into()));
        }
        let _ = stream.write_all(&[total.to_be_bytes(), sum.to_be_bytes()].concat());
    });
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    let mut stream = bed.connect(V4);
    stream.set_nonblocking(true).expect("a socket");
    let piece: Vec<u8> = (0..10_007_u32).map(|number| ((number * number) >> 5) as u8).collect();
    let (mut total, mut sum) = (0_u64, 0_u64);
    let mut stalled = None::<Instant>;
    // Nothing has been taken for two seconds: all buffers are full.
    while stalled.is_none_or(|since| since.elapsed() < Duration::from_secs(2)) {
        let at = total as usize % piece.len();
        match stream.write(&piece[at..]) {
            Ok(written) => {
                total += written as u64;
                sum =
                    piece[at..at + written].iter().fold(sum, |s, byte| s.wrapping_mul(31).wrapping_add((*byte).into()));
                stalled = None;
                assert!(total < BOUND, "somebody takes bytes that nobody reads");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                stalled.get_or_insert_with(Instant::now);
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    // Others are not kept waiting by it.
    let _other = super::bed::server_on(bed.lab.pod("web-1"), 8081, echo);
    let taken = bed.status(V4);
    assert_eq!(taken.active, 1);
    resume.send(()).expect("somebody waits");
    stream.set_nonblocking(false).expect("a socket");
    stream.shutdown(std::net::Shutdown::Write).expect("finished");
    let mut verdict = [0; 16];
    stream.read_exact(&mut verdict).expect("a verdict");
    assert_eq!(verdict[..], [total.to_be_bytes(), sum.to_be_bytes()].concat());
    eventually("its end", || bed.forwarder.as_ref().expect("there").connections() == 0);
}

//! Every byte arrives, once and in order, in both directions, and so does the end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use pointsman::forward::Options;
use pointsman::model::Family;

use super::bed::{Bed, assert_echo, echo, eventually, server};

const BIG: usize = 64 << 20;

/// Bytes that differ at every distance: a piece lost, doubled or moved is seen.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&(self.0 ^ (self.0 >> 29)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Sends noise, in pieces of this size, and finishes.
fn blast(mut stream: &TcpStream, seed: u64, length: usize, piece: usize) {
    let (mut noise, mut buffer, mut sent) = (Noise(seed), vec![0; piece], 0);
    while sent < length {
        let piece = piece.min(length - sent);
        noise.fill(&mut buffer[..piece]);
        stream.write_all(&buffer[..piece]).expect("sent");
        sent += piece;
    }
    stream.shutdown(Shutdown::Write).expect("finished");
}

/// Hears noise to its end, read in pieces of `piece`; it must be what [`blast`] sent.
fn hear(mut stream: &TcpStream, seed: u64, length: usize, piece: usize) {
    let (mut noise, mut buffer, mut expected, mut heard) = (Noise(seed), vec![0; piece], vec![0; piece], 0);
    while heard < length {
        let piece = piece.min(length - heard);
        stream.read_exact(&mut buffer[..piece]).unwrap_or_else(|error| panic!("after {heard} bytes: {error}"));
        noise.fill(&mut expected[..piece]);
        assert!(buffer[..piece] == expected[..piece], "between bytes {heard} and {}", heard + piece);
        heard += piece;
    }
    assert_eq!(stream.read(&mut buffer).expect("the end"), 0, "nothing follows");
}

#[test]
fn small_requests_are_answered_in_both_families() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], Options::default());
        let mut streams: Vec<_> = (0..3).map(|_| bed.connect(family)).collect();
        for stream in &mut streams {
            (0..5).for_each(|_| assert_echo(stream, "forwarded"));
        }
        let status = bed.status(family);
        assert_eq!((status.active, status.accepted, status.refused.len()), (3, 3, 0));
        let endpoint = bed.endpoint_status(1, family);
        assert_eq!((endpoint.active, endpoint.connections, endpoint.failures), (3, 3, 0));
        // The last answer is with the client before it is counted.
        eventually("all bytes to be counted", || {
            let endpoint = bed.endpoint_status(1, family);
            (endpoint.received, endpoint.sent) == (60, 60)
        });
        drop(streams);
        bed.wait_for_silence();
        assert_eq!(bed.endpoint_status(1, family).active, 0);
    }
}

#[test]
fn who_speaks_first_does_not_matter() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, |mut stream| {
        let _ = stream.write_all(b"220 ready\r\n");
        echo(stream);
    });
    bed.serve(Family::V4, &[bed.endpoint(1, Family::V4)], Options::default());
    let mut stream = bed.connect(Family::V4);
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"220 ready\r\n");
    assert_echo(&mut stream, "after the greeting");
}

#[test]
fn much_passes_both_ways_at_once_and_nothing_is_lost() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, |stream| {
        let other = stream.try_clone().expect("a stream");
        let sender = thread::spawn(move || blast(&other, 2, BIG, 100_000));
        hear(&stream, 1, BIG, 4096);
        sender.join().expect("sent");
    });
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], Options::default());
        let stream = bed.connect(family);
        thread::scope(|scope| {
            scope.spawn(|| blast(&stream, 1, BIG, 65_536));
            hear(&stream, 2, BIG, 4096);
        });
        drop(stream);
        bed.wait_for_silence();
        let status = bed.endpoint_status(1, family);
        assert_eq!((status.received, status.sent), (BIG as u64, BIG as u64));
    }
}

#[test]
fn sizes_around_every_buffer_arrive() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    bed.serve(Family::V4, &[bed.endpoint(1, Family::V4)], Options::default());
    let mut stream = bed.connect(Family::V4);
    // Small and large in turn: copied, then spliced, then copied again on one connection.
    for size in
        [1, 4095, 4097, 16_383, 16_384, 16_385, 3, 65_536, 262_145, 1_000_000, 5, 32_768, 1, 1, 1, 1, 1, 1, 20_000]
    {
        let (mut sent, mut heard) = (vec![0; size], vec![0; size]);
        Noise(size as u64).fill(&mut sent);
        let mut writer = stream.try_clone().expect("a stream");
        thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&sent).expect("sent"));
            stream.read_exact(&mut heard).unwrap_or_else(|error| panic!("{size} bytes: {error}"));
        });
        assert!(sent == heard, "{size} bytes");
    }
}

#[test]
fn an_end_in_one_direction_leaves_the_other_open() {
    let mut bed = Bed::new(2);
    // Answers only when the request has ended.
    let _client_first = server(&bed.lab, 1, |mut stream| {
        let mut request = Vec::new();
        stream.read_to_end(&mut request).expect("a request");
        stream.write_all(&request).expect("an answer");
    });
    // Ends its own direction first, and goes on listening.
    let _server_first = server(&bed.lab, 2, |mut stream| {
        stream.write_all(b"bye").expect("sent");
        stream.shutdown(Shutdown::Write).expect("finished");
        hear(&stream, 7, 1 << 20, 4096);
    });
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], Options::default());
        let mut stream = bed.connect(family);
        stream.write_all(b"all of it").expect("sent");
        stream.shutdown(Shutdown::Write).expect("finished");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "all of it");

        bed.serve(family, &[bed.endpoint(2, family)], Options::default());
        let mut stream = bed.connect(family);
        let mut farewell = String::new();
        stream.read_to_string(&mut farewell).expect("a farewell");
        assert_eq!(farewell, "bye");
        blast(&stream, 7, 1 << 20, 10_000);
        bed.wait_for_silence();
        assert_eq!(bed.endpoint_status(2, family).received, 1 << 20);
    }
}

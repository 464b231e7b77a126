//! Clients that open connections at a fixed rate.
//!
//! A number of threads share the rate; each opens its connections at times that were fixed beforehand, so that one that hangs delays
//! only those of its own thread, and how late they came is known. A connection is opened, hears the server's name, sends a request, hears it
//! back, and is closed by a reset, because `TIME_WAIT` would use up the client's ports within seconds.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use pointsman::lab::Host;
use socket2::{Domain, Protocol, Socket, Type};

/// For each step of a connection; a lost packet is sent again after 1, 3 and 7 s.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A first packet that is lost is sent again after a second (RFC 6298), so whatever takes longer lost one, and nothing else does.
pub const SLOW: Duration = Duration::from_millis(900);

/// A connection that begins so long after its time.
pub const LATE: Duration = Duration::from_millis(20);

/// Enough for all to be waiting for somebody at once without the rate suffering.
const THREADS: u32 = 40;

const REQUEST: &[u8; 64] = &[b'.'; 64];

/// One connection.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// When it was due, since the beginning.
    pub at: Duration,
    /// How long after that it began.
    pub late: Duration,
    /// From `connect` to the last byte of the answer, or to the failure.
    pub took: Duration,
    pub frontend: SocketAddr,
    pub end: End,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Answered,
    Refused,
    Reset,
    TimedOut,
    Unreachable,
    Other,
}

/// Clients at work.
pub struct Load(Vec<JoinHandle<Vec<Sample>>>);

// === impl Load ===

impl Load {
    /// From this host to all of these in turn.
    pub fn start(from: &Host, frontends: Vec<SocketAddr>, rate: u32, time: Duration) -> anyhow::Result<Self> {
        let begin = Instant::now() + Duration::from_millis(100);
        let gap = Duration::from_secs(1) / rate;
        let threads = (0..THREADS).map(|thread| {
            let frontends = frontends.clone();
            from.namespace().thread(move || work(&frontends, begin, gap, time, thread))
        });
        Ok(Self(threads.collect::<Result<_, _>>()?))
    }

    /// Waits for the end of all connections; in the order in which they were due.
    pub fn finish(self) -> anyhow::Result<Vec<Sample>> {
        let mut all = Vec::new();
        for thread in self.0 {
            all.append(&mut thread.join().map_err(|_| anyhow!("it panicked"))?);
        }
        all.sort_by_key(|sample| sample.at);
        Ok(all)
    }
}

// === impl Sample ===

impl Sample {
    /// Answered, but not without a packet being lost.
    pub fn is_slow(&self) -> bool {
        self.end == End::Answered && self.took >= SLOW
    }
}

fn work(frontends: &[SocketAddr], begin: Instant, gap: Duration, time: Duration, thread: u32) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut number = thread;
    loop {
        let at = gap * number;
        if at >= time {
            return samples;
        }
        std::thread::sleep((begin + at).saturating_duration_since(Instant::now()));
        let late = Instant::now().saturating_duration_since(begin + at);
        // Steps of its own for each thread: not always the same one for the same frontend.
        let frontend = frontends[(number / THREADS + thread) as usize % frontends.len()];
        let start = Instant::now();
        let end = exchange(frontend).map_or_else(|error| End::of(&error), |()| End::Answered);
        samples.push(Sample { at, late, took: start.elapsed(), frontend, end });
        number += THREADS;
    }
}

/// One connection from its beginning to its end.
fn exchange(to: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_tcp_nodelay(true)?;
    let mut stream: TcpStream = socket.into();
    stream.write_all(REQUEST)?;
    let mut heard = Vec::with_capacity(256);
    let mut buffer = [0; 256];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => heard.extend_from_slice(&buffer[..more]),
        }
        let greeted = heard.iter().position(|byte| *byte == b'\n');
        if greeted.is_some_and(|end| heard.len() > end + REQUEST.len()) {
            return Ok(());
        }
    }
}

// === impl End ===

impl End {
    fn of(error: &std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other,
        }
    }
}

//! Connections that come and go by a schedule, both of whose ends one thread holds.
//!
//! The thread connects, then accepts on the endpoints' listeners until the connection turns up: so whose it is is known at once, without
//! a word on the wire, and the number of open connections per endpoint is exact at any time. A userspace proxy, which makes the second
//! connection in its own time, is waited for just so. Connections are reset at their end, so that no port is left waiting.
//!
//! Used by `least-connections` and `compare`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::stats::Evenness;

/// Samples per second of who has how many.
pub const SAMPLES: f64 = 50.0;

/// Until a connection that was made counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Until connecting counts as failed.
const CONNECT: Duration = Duration::from_secs(2);

/// A connection of a schedule: when it begins, in seconds, and how long it lasts.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    pub at: f64,
    pub holding: f64,
}

/// Where clients connect to, and where their connections turn up.
#[derive(Clone, Copy)]
pub struct Door<'a> {
    /// Of the endpoints; non-blocking.
    pub listeners: &'a [Socket],
    /// The Service.
    pub to: SocketAddr,
    /// The number of the endpoint, from the number of the listener and the accepted socket.
    pub endpoint: fn(usize, &Socket) -> usize,
}

/// An open connection: both ends. Reset when it is dropped.
pub struct Open {
    pub client: Socket,
    pub server: Socket,
    pub endpoint: usize,
}

/// What came of a schedule.
pub struct Carried {
    /// Of open connections over endpoints, mean over time.
    pub even: Evenness,
    /// As they really came.
    pub visits: Vec<Visit>,
    pub failures: usize,
    /// How late 99 of 100 were at most.
    pub late: Duration,
}

/// A listener for endpoints, in the calling thread's namespace.
pub fn listen(port: u16) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    // Their connections are reset as well.
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(socket)
}

/// Whether the other side has neither closed nor reset it; nobody sends anything.
fn is_open(client: &Socket) -> io::Result<bool> {
    client.set_nonblocking(true)?;
    let waits = client.peek(&mut [std::mem::MaybeUninit::uninit()]);
    client.set_nonblocking(false)?;
    Ok(waits.is_err_and(|error| error.kind() == ErrorKind::WouldBlock))
}

// === impl Door ===

impl Door<'_> {
    /// Opens a connection and finds out whose it is.
    pub fn open(&self) -> anyhow::Result<Open> {
        self.open_from(None, CONNECT)
    }

    /// The same, from this address of the client's, and with this much patience.
    pub fn open_from(&self, source: Option<Ipv4Addr>, patience: Duration) -> anyhow::Result<Open> {
        let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        client.set_linger(Some(Duration::ZERO))?;
        if let Some(source) = source {
            client.bind(&SockAddr::from(SocketAddr::from((source, 0))))?;
        }
        client.connect_timeout(&self.to.into(), patience)?;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE.min(patience * 5) {
            if let Some((listener, server)) = self.accept()? {
                let endpoint = (self.endpoint)(listener, &server);
                return Ok(Open { client, server, endpoint });
            }
            if begin.elapsed() > Duration::from_millis(1) {
                anyhow::ensure!(is_open(&client)?, "whoever took the connection ended it");
                // A proxy in user space needs the CPU more than this loop.
                std::thread::yield_now();
            }
        }
        anyhow::bail!("nobody accepted a connection")
    }

    /// Accepts and drops what nobody waits for any more.
    pub fn clear(&self) -> anyhow::Result<()> {
        while self.accept()?.is_some() {}
        Ok(())
    }

    fn accept(&self) -> io::Result<Option<(usize, Socket)>> {
        for (number, listener) in self.listeners.iter().enumerate() {
            match listener.accept() {
                Ok((server, _)) => return Ok(Some((number, server))),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Carries a schedule out, with so many endpoints; what is before `warm` seconds does not count.
    pub fn carry_out(&self, visits: &[Visit], warm: f64, seconds: f64, endpoints: usize) -> Carried {
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let mut open = vec![0u32; endpoints];
        let mut held: Vec<Option<Open>> = Vec::new();
        let mut ends: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
        let (mut real, mut late, mut failures) = (Vec::new(), Vec::new(), 0);
        let (mut samples, mut next) = (Vec::new(), warm);
        let mut coming = visits.iter().peekable();
        while next < seconds {
            let arrival = coming.peek().map(|visit| at(visit.at));
            let end = ends.peek().map(|Reverse((end, _))| *end);
            let soonest = [arrival, end, Some(at(next))].into_iter().flatten().min().expect("a sample");
            if let Some(wait) = soonest.checked_duration_since(Instant::now()) {
                std::thread::sleep(wait);
            }
            if end == Some(soonest) {
                let Some(Reverse((_, number))) = ends.pop() else { continue };
                if let Some(closed) = held[number].take() {
                    open[closed.endpoint] -= 1;
                }
            } else if arrival == Some(soonest) {
                let visit = coming.next().expect("peeked");
                let now = begin.elapsed();
                late.push(now.saturating_sub(Duration::from_secs_f64(visit.at)));
                match self.open() {
                    Ok(opened) if opened.endpoint < endpoints => {
                        open[opened.endpoint] += 1;
                        ends.push(Reverse((begin + now + Duration::from_secs_f64(visit.holding.min(1e6)), held.len())));
                        held.push(Some(opened));
                        real.push(Visit { at: now.as_secs_f64(), holding: visit.holding });
                    }
                    _ => failures += 1,
                }
            } else {
                samples.extend(Evenness::of(&open));
                next += 1.0 / SAMPLES;
            }
        }
        late.sort();
        let late = late.get(late.len() * 99 / 100).copied().unwrap_or_default();
        let mut even = Evenness::default();
        samples.iter().for_each(|sample| even.add(*sample, 1.0 / samples.len() as f64));
        Carried { even, visits: real, failures, late }
    }
}

// === impl Open ===

impl Open {
    /// Whether a byte still passes in both directions.
    pub fn alive(&self) -> bool {
        let pass = |from: &Socket, to: &Socket| -> io::Result<bool> {
            to.set_nonblocking(false)?;
            to.set_read_timeout(Some(Duration::from_secs(1)))?;
            from.send(b"!")?;
            let mut byte = [0; 1];
            Ok(io::Read::read(&mut &*to, &mut byte)? == 1)
        };
        matches!(pass(&self.client, &self.server), Ok(true)) && matches!(pass(&self.server, &self.client), Ok(true))
    }
}

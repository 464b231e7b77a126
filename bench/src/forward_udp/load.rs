//! What clients do.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::stats::quantile;

/// The payload of requests and replies.
const PAYLOAD: [u8; 64] = [7; 64];
/// The payload of a datagram of the bulk load.
const BULK: usize = 1_200;
/// When nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(150);
/// When a request counts as lost, in milliseconds.
const LOST: u16 = 200;

/// A way to load a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// 64 sockets.
    Standing,
    /// One socket.
    PingPong,
    /// A new socket for each request.
    Fresh,
    /// One way.
    Bulk,
}

/// What came of a block.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub took: Duration,
    /// Replies, or datagrams that arrived. Of `bulk` it may be none: a proxy has no descriptor left for a session.
    pub datagrams: u64,
    pub lost: u64,
    pub p50: Duration,
    pub p99: Duration,
    /// CPU time of the proxy's threads.
    pub proxy: Duration,
}

impl Load {
    pub const ALL: [Self; 4] = [Self::Standing, Self::PingPong, Self::Fresh, Self::Bulk];

    pub fn name(self) -> &'static str {
        match self {
            Load::Standing => "standing-64",
            Load::PingPong => "ping-pong",
            Load::Fresh => "fresh-32",
            Load::Bulk => "bulk",
        }
    }

    pub fn description(self) -> &'static str {
        match self {
            Load::Standing => "64 client sockets, each with one 64-byte request under way: pairs of request and reply",
            Load::PingPong => "1 client socket with one 64-byte request under way: pairs, and what each takes",
            Load::Fresh => "a new client socket for each 64-byte request, 32 under way: pairs",
            Load::Bulk => "1 client socket sends 1,200-byte datagrams as fast as it can: those that arrive at the pod",
        }
    }

    pub fn has_latency(self) -> bool {
        self != Self::Bulk
    }
}

impl Block {
    /// Per second.
    pub fn rate(&self) -> f64 {
        self.datagrams as f64 / self.took.as_secs_f64()
    }

    /// CPU time of the proxy per datagram that arrived, in microseconds.
    pub fn cpu(&self) -> f64 {
        self.proxy.as_secs_f64() * 1e6 / self.datagrams.max(1) as f64
    }

    pub fn lost_per_cent(&self) -> f64 {
        100.0 * self.lost as f64 / (self.datagrams + self.lost).max(1) as f64
    }
}

/// Loads the path to `to` from the calling thread's namespace.
pub fn run(load: Load, to: SocketAddr, length: Duration, sunk: &AtomicU64) -> anyhow::Result<Block> {
    match load {
        Load::Standing => pairs(to, length, 64, false),
        Load::PingPong => pairs(to, length, 1, false),
        Load::Fresh => pairs(to, length, 32, true),
        Load::Bulk => bulk(to, length, sunk),
    }
}

struct Client {
    socket: UdpSocket,
    asked: Instant,
}

/// Each client asks, waits for the reply, and asks again; with `fresh`, from a new socket each time.
fn pairs(to: SocketAddr, length: Duration, clients: usize, fresh: bool) -> anyhow::Result<Block> {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let make = |number: usize| -> anyhow::Result<Client> {
        let socket = UdpSocket::bind("0.0.0.0:0").context("a client's socket")?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        let asked = Instant::now();
        socket.send(&PAYLOAD)?;
        Ok(Client { socket, asked })
    };
    let begin = Instant::now();
    let mut sockets = (0..clients).map(make).collect::<anyhow::Result<Vec<_>>>()?;
    let mut events = vec![EpollEvent::empty(); clients];
    let mut buffer = [0; 2_048];
    let mut samples = Vec::with_capacity(1 << 16);
    let mut lost = 0;
    while begin.elapsed() < length {
        let ready = epoll.wait(&mut events, EpollTimeout::from(LOST))?;
        if ready == 0 {
            // Nothing came for anybody.
            for client in &mut sockets {
                lost += 1;
                client.asked = Instant::now();
                client.socket.send(&PAYLOAD)?;
            }
        }
        for event in &events[..ready] {
            let number = event.data() as usize;
            let client = &mut sockets[number];
            let Ok(length) = client.socket.recv(&mut buffer) else { continue };
            anyhow::ensure!(buffer[..length] == PAYLOAD, "{to} replied something else");
            samples.push(client.asked.elapsed());
            if fresh {
                *client = make(number)?;
            } else {
                client.asked = Instant::now();
                client.socket.send(&PAYLOAD)?;
            }
        }
    }
    let took = begin.elapsed();
    anyhow::ensure!(!samples.is_empty(), "{to} never replied");
    samples.sort_unstable();
    let (p50, p99) = (quantile(&samples, 0.5), quantile(&samples, 0.99));
    Ok(Block { took, datagrams: samples.len() as u64, lost, p50, p99, proxy: Duration::ZERO })
}

/// Sends without waiting for anything.
fn bulk(to: SocketAddr, length: Duration, sunk: &AtomicU64) -> anyhow::Result<Block> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    let datagram = [9; BULK];
    let before = sunk.load(Ordering::Relaxed);
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < length {
        for _ in 0..32 {
            // ENOBUFS is a loss like any other.
            let _ = socket.send(&datagram);
            sent += 1;
        }
    }
    let took = begin.elapsed();
    // What is still on its way in buffers counts: until nothing has come for a while.
    let mut datagrams = 0;
    let mut last = Instant::now();
    while last.elapsed() < if datagrams == 0 { QUIET * 10 } else { QUIET } {
        std::thread::sleep(QUIET / 10);
        let now = sunk.load(Ordering::Relaxed) - before;
        if now != datagrams {
            (datagrams, last) = (now, Instant::now());
        }
    }
    let zero = Duration::ZERO;
    Ok(Block { took, datagrams, lost: sent - datagrams.min(sent), p50: zero, p99: zero, proxy: zero })
}

//! The load: clients in one namespace, a server in another, all of them in this process.
//!
//! The first byte of a connection tells the server what to do: send for ever, or echo. Clients of the throughput measurement have
//! the kernel throw away what they receive (`MSG_TRUNC`), so that two cores are left to what is measured.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::socket::{MsgFlags, recv};
use pointsman::lab::Host;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream as AsyncStream};

/// Where the pod listens.
pub const PORT: u16 = 8080;
const SEND: u8 = b'S';
const ECHO: u8 = b'E';
/// Bytes of a request and of its answer.
const REQUEST: usize = 64;
/// Where streams have reached full speed.
const WARM_UP: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);

/// The server; its runtime's threads live in the pod.
pub struct Server(Option<tokio::runtime::Runtime>);

impl Server {
    /// In this pod, at [`PORT`].
    pub fn start(pod: &Host) -> anyhow::Result<Self> {
        pod.run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let listener = runtime.block_on(async {
                let socket = tokio::net::TcpSocket::new_v4()?;
                socket.set_reuseaddr(true)?;
                socket.bind(([0, 0, 0, 0], PORT).into())?;
                socket.listen(4096)
            })?;
            runtime.spawn(accept(listener));
            Ok(Self(Some(runtime)))
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream))),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn answer(mut stream: AsyncStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    if stream.read_u8().await? == SEND {
        let bytes = vec![0; 256 * 1024];
        loop {
            stream.write_all(&bytes).await?;
        }
    }
    loop {
        // Not on the task for longer than needed: thousands of them are idle.
        let mut buffer = [0; REQUEST];
        let heard = stream.read(&mut buffer).await?;
        if heard == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..heard]).await?;
    }
}

fn open(to: SocketAddr, command: u8) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[command])?;
    Ok(stream)
}

/// What so many streams received together in a time.
pub struct Received<T> {
    pub gigabits_per_second: f64,
    pub gigabytes: f64,
    /// What the meter said when it began, and when it ended.
    pub meter: [T; 2],
}

/// Receives by so many streams, and reads a meter before and after.
pub fn throughput<T: Send>(
    from: &Host,
    to: SocketAddr,
    streams: usize,
    span: Duration,
    meter: impl Fn() -> anyhow::Result<T> + Send + Sync,
) -> anyhow::Result<Received<T>> {
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let receive = || -> anyhow::Result<()> {
        let stream = open(to, SEND)?;
        let mut buffer = vec![0; 256 * 1024];
        while !stop.load(Ordering::Relaxed) {
            let heard = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
            anyhow::ensure!(heard > 0, "the stream ended");
            received.fetch_add(heard as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    from.run(|| {
        thread::scope(|scope| {
            let clients: Vec<_> = (0..streams).map(|_| scope.spawn(receive)).collect();
            thread::sleep(WARM_UP);
            let first = meter();
            let (begin, before) = (Instant::now(), received.load(Ordering::Relaxed));
            thread::sleep(span);
            let gigabytes = (received.load(Ordering::Relaxed) - before) as f64 / 1e9;
            let seconds = begin.elapsed().as_secs_f64();
            let last = meter();
            stop.store(true, Ordering::Relaxed);
            clients.into_iter().try_for_each(|client| client.join().expect("no panic"))?;
            Ok(Received { gigabits_per_second: gigabytes * 8.0 / seconds, gigabytes, meter: [first?, last?] })
        })
    })
}

fn exchange(stream: &mut TcpStream) -> anyhow::Result<()> {
    let mut buffer = [7; REQUEST];
    stream.write_all(&buffer)?;
    stream.read_exact(&mut buffer)?;
    Ok(())
}

/// Connects, asks, is answered and closes, by so many clients at once: the time of each, sorted, and how many per second.
pub fn transactions(
    from: &Host,
    to: SocketAddr,
    clients: usize,
    span: Duration,
) -> anyhow::Result<(Vec<Duration>, f64)> {
    let work = || -> anyhow::Result<Vec<Duration>> {
        let (begin, mut times) = (Instant::now(), Vec::new());
        while begin.elapsed() < span {
            let start = Instant::now();
            let mut stream = open(to, ECHO)?;
            exchange(&mut stream)?;
            // To the last byte: the server has closed too.
            stream.shutdown(std::net::Shutdown::Write)?;
            anyhow::ensure!(stream.read(&mut [0])? == 0, "more than the answer");
            times.push(start.elapsed());
        }
        Ok(times)
    };
    from.run(|| {
        let begin = Instant::now();
        let times = thread::scope(|scope| {
            let workers: Vec<_> = (0..clients).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(|worker| worker.join().expect("no panic")).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let elapsed = begin.elapsed().as_secs_f64();
        let mut times = times.concat();
        times.sort();
        let rate = times.len() as f64 / elapsed;
        Ok((times, rate))
    })
}

/// One request after the other on one connection: the time of each, sorted.
pub fn ping_pong(from: &Host, to: SocketAddr, span: Duration) -> anyhow::Result<Vec<Duration>> {
    from.run(|| {
        let mut stream = open(to, ECHO)?;
        for _ in 0..200 {
            exchange(&mut stream)?;
        }
        let (begin, mut times) = (Instant::now(), Vec::new());
        while begin.elapsed() < span {
            let start = Instant::now();
            exchange(&mut stream)?;
            times.push(start.elapsed());
        }
        times.sort();
        Ok(times)
    })
}

/// So many connections, each used once and then left alone.
pub fn hold(from: &Host, to: SocketAddr, count: usize) -> anyhow::Result<Vec<TcpStream>> {
    from.run(|| {
        let one = |number: usize| {
            let mut stream = open(to, ECHO).with_context(|| format!("connection {number}"))?;
            exchange(&mut stream)?;
            Ok(stream)
        };
        (0..count).map(one).collect()
    })
}

/// How many of these still answer.
pub fn ask_again(held: &mut [TcpStream]) -> usize {
    held.iter_mut().map(exchange).filter(Result::is_ok).count()
}

/// Ends connections by resets, which leave nothing behind that waits.
pub fn abort(held: Vec<TcpStream>) -> anyhow::Result<()> {
    held.iter().try_for_each(|stream| Ok(SockRef::from(stream).set_linger(Some(Duration::ZERO))?))
}

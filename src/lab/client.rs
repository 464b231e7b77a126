//! Asking who answers at an address, from the calling thread's namespace.
//!
//! One question is one new connection (or one new UDP socket): Services choose an endpoint per connection. A question costs a
//! handful of system calls and no thread; a worker that asks often enters its namespace once ([`super::Namespace::thread`]).
//! Connections are closed with a reset, so that no `TIME_WAIT` uses up the client's ports: tens of thousands of questions a second
//! to one address are fine.

use std::fmt;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::server::NONCE_LEN;

/// Longest name that a server may have.
const NAME_MAX: usize = 256;

/// Who answered, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod that answered.
    pub pod: String,
    /// TCP: until the connection was established. UDP: until the answer was there.
    pub latency: Duration,
}

/// Why nobody answered.
#[derive(Debug)]
pub enum ConnectError {
    /// Refused at once: a closed port, or a Service without endpoints that rejects.
    Refused,
    /// No answer in time: dropped on the way.
    TimedOut,
    /// No route to there, said by us or by a router.
    Unreachable,
    /// The connection was established, then broke before the server had said its name.
    Broken(io::Error),
    /// Anything else, such as running out of ports.
    Other(io::Error),
}

impl ConnectError {
    fn classify(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNREFUSED) => Self::Refused,
            Some(libc::ETIMEDOUT | libc::EAGAIN) => Self::TimedOut,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES) => Self::Unreachable,
            Some(libc::ECONNRESET | libc::EPIPE) => Self::Broken(error),
            _ if error.kind() == io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Other(error),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Broken(source) => write!(f, "connection broke: {source}"),
            Self::Other(source) => write!(f, "{source}"),
        }
    }
}

impl std::error::Error for ConnectError {}

/// Opens a TCP connection, hears the server's name, and resets the connection. `timeout` holds for each of the two steps.
///
/// # Errors
/// Why nobody answered.
pub fn connect(to: SocketAddr, timeout: Duration) -> Result<Answer, ConnectError> {
    let (mut stream, latency) = open(to, timeout)?;
    let pod = greeting(&mut stream)?;
    Ok(Answer { pod, latency })
}

fn open(to: SocketAddr, timeout: Duration) -> Result<(TcpStream, Duration), ConnectError> {
    let socket =
        Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).map_err(ConnectError::Other)?;
    socket.set_linger(Some(Duration::ZERO)).map_err(ConnectError::Other)?;
    let start = Instant::now();
    socket.connect_timeout(&to.into(), timeout).map_err(ConnectError::classify)?;
    let latency = start.elapsed();
    socket.set_read_timeout(Some(timeout)).map_err(ConnectError::Other)?;
    Ok((socket.into(), latency))
}

/// Reads the line with which a server greets.
fn greeting(stream: &mut TcpStream) -> Result<String, ConnectError> {
    let mut buffer = [0; NAME_MAX];
    let mut have = 0;
    loop {
        match stream.read(&mut buffer[have..]) {
            Ok(0) => return Err(ConnectError::Broken(io::ErrorKind::UnexpectedEof.into())),
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(ConnectError::classify(error)),
        }
        if let Some(end) = buffer[..have].iter().position(|byte| *byte == b'\n') {
            return Ok(String::from_utf8_lossy(&buffer[..end]).into_owned());
        }
    }
}

/// Sends a datagram from a fresh port and waits for the answer to it.
///
/// # Errors
/// Why nobody answered; a lost datagram is [`ConnectError::TimedOut`].
pub fn ask(to: SocketAddr, timeout: Duration) -> Result<Answer, ConnectError> {
    static QUESTIONS: AtomicU64 = AtomicU64::new(0);
    let nonce: [u8; NONCE_LEN] = QUESTIONS.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
    let from: SocketAddr =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(from).map_err(ConnectError::Other)?;
    socket.set_read_timeout(Some(timeout)).map_err(ConnectError::Other)?;
    let start = Instant::now();
    socket.connect(to).map_err(ConnectError::classify)?;
    socket.send(&nonce).map_err(ConnectError::classify)?;
    let mut buffer = [0; NONCE_LEN + NAME_MAX];
    while start.elapsed() < timeout {
        let heard = match socket.recv(&mut buffer) {
            Ok(heard) => heard,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ConnectError::classify(error)),
        };
        if let Some(name) = buffer[..heard].strip_prefix(&nonce) {
            return Ok(Answer { pod: String::from_utf8_lossy(name).into_owned(), latency: start.elapsed() });
        }
    }
    Err(ConnectError::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_port_refuses() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
        assert!(matches!(connect(free, Duration::from_secs(5)), Err(ConnectError::Refused)));
        assert!(matches!(ask(free, Duration::from_secs(5)), Err(ConnectError::Refused)));
    }
}

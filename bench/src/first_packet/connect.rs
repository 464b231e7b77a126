//! Opening connections, one after the other, and timing nothing but that.
//!
//! A sample is the time that `connect` takes on a blocking socket. Over veth the kernel carries the whole handshake, through the
//! node and back, within that call and on the caller's CPU: no other thread takes part, so none can be late. The pod's listeners
//! belong to the same thread, which accepts and closes what has piled up now and then, outside of the timed part. Every connection
//! is reset instead of closed, so that no port is left waiting.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

/// Long enough for anything but a lost packet.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections between two visits to the listeners; far below their backlog.
const PILE: usize = 64;

/// Connections in front of every block that do not count: they warm caches and neighbour tables.
const WARM_UP: usize = 200;

/// The samples of one block.
#[derive(Debug)]
pub struct Block {
    /// In ascending order.
    pub sorted: Vec<Duration>,
}

/// Opens `samples` connections to each of `targets` in turn, from the calling thread's namespace.
pub fn measure(
    targets: &mut dyn Iterator<Item = SocketAddr>,
    listeners: &[Socket],
    samples: usize,
) -> anyhow::Result<Block> {
    let mut sorted = Vec::with_capacity(samples);
    for number in 0..WARM_UP + samples {
        let target = targets.next().expect("targets never end");
        let took = connect(target).with_context(|| format!("connecting to {target}"))?;
        if number >= WARM_UP {
            sorted.push(took);
        }
        if number % PILE == 0 {
            drain(listeners)?;
        }
    }
    drain(listeners)?;
    sorted.sort();
    Ok(Block { sorted })
}

/// A listener on this port, in the calling thread's namespace.
pub fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn connect(target: SocketAddr) -> io::Result<Duration> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    // For a blocking connect this is the timeout.
    socket.set_write_timeout(Some(PATIENCE))?;
    let address = target.into();
    let begin = Instant::now();
    socket.connect(&address)?;
    Ok(begin.elapsed())
}

/// Accepts and closes whatever was connected.
fn drain(listeners: &[Socket]) -> anyhow::Result<()> {
    for listener in listeners {
        loop {
            match listener.accept() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error).context("accepting connections"),
            }
        }
    }
    Ok(())
}

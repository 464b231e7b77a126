//! Servers inside pods that say who they are.
//!
//! A TCP server greets every connection with its pod's name and a newline, then echoes what it hears until the client closes: enough
//! to see where a connection landed, and whether it still lands there later. A UDP responder answers every datagram with the
//! datagram's first eight bytes (so that a late answer is recognised) and its pod's name.
//!
//! All servers of one [`Servers`] share one thread. A socket is created inside its pod's namespace and stays there, whichever thread
//! serves it. The server never closes first: `TIME_WAIT` would stay in the pod and slow later connections from the same port.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::{AbortHandle, JoinSet};

use super::{LabError, Namespace, has_ipv6};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Bytes of a datagram that come back in front of the name.
pub(super) const NONCE_LEN: usize = 8;

/// A port to serve, on all addresses of a pod and both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listen {
    /// Greet and echo.
    Tcp(u16),
    /// Answer every datagram.
    Udp(u16),
    /// As [`Listen::Tcp`], and the greeting ends with a blank and the client's address as the server sees it.
    TcpPeer(u16),
    /// As [`Listen::Udp`], and the answer ends with a blank and the client's address as the server sees it.
    UdpPeer(u16),
}

/// The thread that serves; see the module.
#[derive(Debug)]
pub struct Servers {
    handle: Handle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Open server sockets; dropping it closes them and all their connections.
#[derive(Debug)]
#[must_use = "servers stop when this is dropped"]
pub struct Served {
    tasks: Vec<AbortHandle>,
}

// === impl Servers ===

impl Servers {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no more threads or descriptors.
    pub fn start() -> Result<Self, LabError> {
        let failed = |source| LabError::new("start", "the servers' thread", source);
        let runtime: Runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::Builder::new()
            .name("lab-servers".into())
            .spawn(move || {
                let _ = runtime.block_on(stopped);
                // Dropping the runtime here drops its tasks, and with them their sockets.
            })
            .map_err(failed)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Opens these ports inside a namespace; `name` is what the servers answer.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn serve(&self, namespace: &Namespace, name: &str, ports: &[Listen]) -> Result<Served, LabError> {
        let sockets = namespace.run(|| {
            let opened = ports.iter().map(|port| {
                open(*port).map_err(|source| LabError::new("listen on", format!("{port:?} of {name}"), source))
            });
            opened.collect::<Result<Vec<_>, _>>()
        })?;
        // From here on a failure drops `served`, which stops what has been started.
        let mut served = Served { tasks: Vec::new() };
        let _runtime = self.handle.enter();
        let name: Arc<str> = name.into();
        for (port, socket) in ports.iter().zip(sockets) {
            let failed = |source| LabError::new("serve", format!("{port:?} of {name}"), source);
            let task = match port {
                Listen::Tcp(_) | Listen::TcpPeer(_) => {
                    let listener = TcpListener::from_std(socket.into()).map_err(failed)?;
                    self.handle.spawn(greet_all(listener, name.clone(), matches!(port, Listen::TcpPeer(_))))
                }
                Listen::Udp(_) | Listen::UdpPeer(_) => {
                    let socket = UdpSocket::from_std(socket.into()).map_err(failed)?;
                    self.handle.spawn(answer_all(socket, name.clone(), matches!(port, Listen::UdpPeer(_))))
                }
            };
            served.tasks.push(task.abort_handle());
        }
        Ok(served)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl Served ===

impl Drop for Served {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A bound, non-blocking socket in the calling thread's namespace.
fn open(port: Listen) -> io::Result<Socket> {
    let (kind, protocol, number) = match port {
        Listen::Tcp(number) | Listen::TcpPeer(number) => (Type::STREAM, Protocol::TCP, number),
        Listen::Udp(number) | Listen::UdpPeer(number) => (Type::DGRAM, Protocol::UDP, number),
    };
    let domain = if has_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, kind, Some(protocol))?;
    let address: SocketAddr = if has_ipv6() {
        socket.set_only_v6(false)?;
        (Ipv6Addr::UNSPECIFIED, number).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, number).into()
    };
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Accepts until aborted; the connections end with it.
async fn greet_all(listener: TcpListener, name: Arc<str>, tell_peer: bool) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    connections.spawn(greet(stream, format!("{}\n", introduction(&name, from, tell_peer)).into()));
                }
                // Out of descriptors, or a client that was gone before it was accepted: both pass.
                Err(_) => tokio::task::yield_now().await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection. Errors are the client's going away, which is how every connection ends.
async fn greet(mut stream: TcpStream, greeting: Arc<str>) {
    if stream.write_all(greeting.as_bytes()).await.is_err() {
        return;
    }
    let mut buffer = [0; 1024];
    while let Ok(heard @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..heard]).await.is_err() {
            return;
        }
    }
}

/// What a server says of itself, and of the client if asked to.
fn introduction(name: &str, from: SocketAddr, tell_peer: bool) -> String {
    if tell_peer { format!("{name} {}", from.ip().to_canonical()) } else { name.to_owned() }
}

async fn answer_all(socket: UdpSocket, name: Arc<str>, tell_peer: bool) {
    let mut buffer = [0; 1500];
    loop {
        // An error here is an ICMP answer to an earlier datagram of ours: that client is gone.
        let Ok((heard, from)) = socket.recv_from(&mut buffer).await else { continue };
        let mut answer = buffer[..heard.min(NONCE_LEN)].to_vec();
        answer.extend_from_slice(introduction(&name, from, tell_peer).as_bytes());
        let _ = socket.send_to(&answer, from).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::lab::{ask, connect};

    #[test]
    fn a_server_says_its_name_on_loopback() {
        let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
        let addresses = runtime.block_on(async {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            let addresses = (tcp.local_addr().expect("bound"), udp.local_addr().expect("bound"));
            tokio::spawn(greet_all(tcp, "web-1".into(), false));
            tokio::spawn(answer_all(udp, "dns-1".into(), false));
            addresses
        });
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        assert_eq!(connect(addresses.0, Duration::from_secs(5)).expect("an answer").pod, "web-1");
        assert_eq!(ask(addresses.1, Duration::from_secs(5)).expect("an answer").pod, "dns-1");
    }
}

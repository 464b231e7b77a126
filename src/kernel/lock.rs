//! One process per network namespace, where tables cannot be owned.
//!
//! Since 6.9 the kernel itself keeps others out of a table that has a living owner. Before that two instances would overwrite each
//! other's elements. An abstract Unix socket is the right lock for this: its name space is the network namespace, and it vanishes
//! with the process that holds it.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::error::KernelError;

const NAME: &[u8] = b"pointsman/data-plane";

/// The lock; dropping it, or dying, releases it.
#[derive(Debug)]
pub(super) struct InstanceLock {
    _held: UnixListener,
}

impl InstanceLock {
    /// Takes the lock in the calling thread's network namespace.
    pub(super) fn take() -> Result<Self, KernelError> {
        let name = SocketAddr::from_abstract_name(NAME).map_err(KernelError::Lock)?;
        match UnixListener::bind_addr(&name) {
            Ok(listener) => Ok(Self { _held: listener }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let holder = UnixStream::connect_addr(&name).ok();
                let pid = holder.and_then(|stream| getsockopt(&stream, PeerCredentials).ok()).map(|peer| peer.pid());
                Err(KernelError::Locked { pid: pid.filter(|pid| *pid > 0) })
            }
            Err(error) => Err(KernelError::Lock(error)),
        }
    }
}

//! When the kernel commits changes of its ruleset, seen from outside the daemon.
//!
//! nf_tables announces every committed transaction to whoever listens (`NFNLGRP_NFTABLES`) and closes the announcement with a
//! `NFT_MSG_NEWGEN` message. The demo only wants to know when that was; what changed is the daemon's business.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use nft::netlink::messages;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::lab::Host;

/// The multicast groups to join, as a bit mask (`linux/netfilter/nfnetlink.h`).
const GROUPS: u32 = 1 << (libc::NFNLGRP_NFTABLES - 1);
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_NEWGEN` in one message type.
const NEW_GENERATION: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_NEWGEN as u16;

/// A running listener; it stops when this is dropped.
#[derive(Debug)]
pub struct Commits {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seen: Receiver<Instant>,
}

impl Commits {
    /// Listens inside a host's namespace.
    ///
    /// # Errors
    /// When the kernel has no nf_tables or gives no more sockets.
    pub fn listen(host: &Host) -> Result<Self> {
        let socket = host.run(open).context("cannot listen to the kernel's nf_tables notifications")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, seen) = channel();
        let stopped = stop.clone();
        let work = move || {
            let mut buffer = vec![0; 64 * 1024];
            while !stopped.load(Ordering::Relaxed) {
                match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(heard) => {
                        let now = Instant::now();
                        if messages(&buffer[..heard]).any(|message| message.kind == NEW_GENERATION)
                            && sender.send(now).is_err()
                        {
                            return;
                        }
                    }
                    // EAGAIN: nothing for a while. ENOBUFS: a change so large that some of it was not kept for us.
                    Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => {}
                    Err(_) => return,
                }
            }
        };
        let thread = std::thread::Builder::new().name("commits".into()).spawn(work)?;
        Ok(Self { stop, thread: Some(thread), seen })
    }

    /// The first commit after this time, among those not asked for yet.
    pub fn first_after(&self, time: Instant) -> Option<Instant> {
        self.seen.try_iter().find(|commit| *commit > time)
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listening socket in the calling thread's namespace, whose reads end after a tenth of a second.
fn open() -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
    Ok(socket)
}

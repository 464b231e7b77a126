//! Hearing of everybody's changes to the ruleset.
//!
//! The kernel multicasts every committed change (`NFNLGRP_NFTABLES`), object by object, and then the new generation with the process
//! that caused it.
//!
//! Invariants: events come in the kernel's order; none is dropped silently: if the socket's buffer overflows, [`Event::Overrun`]
//! says so, and what was missed has to be read back. Changes of our own are included; their port is that of our
//! [`crate::Connection`]. Proven by the kernel test `monitor`.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};

use crate::dump::list;
use crate::error::{Error, ObjectKind};
use crate::key::Key;
use crate::netlink::{self, Message, find};
use crate::sys::Socket;
use crate::table::Family;
use crate::transaction::place;
use crate::uapi;

const RECEIVE_LEN: usize = 64 << 10;

/// Room for the events of one large transaction; each costs the kernel about 800 bytes of it.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A subscription to changes in the network namespace it was opened in.
pub struct Monitor {
    socket: Socket,
    receive: Vec<u8>,
    pending: VecDeque<Event>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An object was added or deleted.
    Changed(Change),
    /// A transaction is complete; the changes before belong to it.
    NewGeneration {
        /// The generation's number.
        id: u32,
        /// The process that caused it.
        pid: u32,
        /// Its name.
        process: String,
    },
    /// Events were lost.
    Overrun,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Action {
    Added,
    Deleted,
}

/// One object's change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which way; changed objects are reported as added.
    pub action: Action,
    /// Kind of the object. Sets and maps are both [`ObjectKind::Set`].
    pub kind: ObjectKind,
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name of the object, the chain of a rule, empty for a table.
    pub name: String,
    /// The kernel's number of the object.
    pub handle: Option<u64>,
    /// The keys, if it is elements of the set that were added or deleted; `None` if it is the object itself.
    pub keys: Option<Vec<Key>>,
    /// Port of the socket that caused it.
    pub port: u32,
}

/// A socket that hears of what the kernel tells a group, with so much room in bytes.
pub(crate) fn subscribe(group: u32, room: usize) -> Result<Socket, Error> {
    let socket = Socket::open(1 << (group - 1)).map_err(|error| match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => {
            Error::Unavailable(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
        }
        Some(libc::EPERM) => Error::Permission,
        _ => Error::socket("subscribe", &error),
    })?;
    if setsockopt(&socket, sockopt::RcvBufForce, &room).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &room);
    }
    Ok(socket)
}

// === impl Monitor ===

impl Monitor {
    /// Subscribes in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = subscribe(uapi::NFNLGRP_NFTABLES, RECEIVE_BUFFER)?;
        Ok(Self { socket, receive: vec![0; RECEIVE_LEN], pending: VecDeque::new() })
    }

    /// The next event, as soon as there is one.
    #[expect(clippy::should_implement_trait, reason = "it fails, and never ends")]
    pub fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.wait(PollTimeout::NONE)? {
                return Ok(event);
            }
        }
    }

    /// The next event, or `None` after this time.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to spin through the last millisecond.
            let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
            let wait = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            if let Some(event) = self.wait(wait)? {
                return Ok(Some(event));
            }
            if left.is_zero() {
                return Ok(None);
            }
        }
    }

    /// The next event, or `None` if none has arrived; for use with readiness of the descriptor.
    pub fn try_next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            match recv(self.socket.as_fd().as_raw_fd(), &mut self.receive, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => {
                    self.pending.extend(netlink::messages(&self.receive[..len]).filter_map(|m| Event::decode(&m)))
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::ENOBUFS) => return Ok(Some(Event::Overrun)),
                Err(errno) => return Err(Error::Socket { action: "receive events", errno }),
            }
        }
    }

    fn wait(&mut self, timeout: PollTimeout) -> Result<Option<Event>, Error> {
        if let Some(event) = self.try_next()? {
            return Ok(Some(event));
        }
        match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => self.try_next(),
            Err(errno) => Err(Error::Socket { action: "wait for events", errno }),
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Monitor").field("port", &self.socket.port()).field("pending", &self.pending.len()).finish()
    }
}

// === impl Event ===

impl Event {
    /// `None` for messages that are neither a change of an object known here nor a generation.
    fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind >> 8 != uapi::NFNL_SUBSYS_NFTABLES {
            return None;
        }
        let kind = message.kind & 0xff;
        let attributes = message.payload.get(4..)?;
        if kind == uapi::NFT_MSG_NEWGEN {
            let process = find(attributes, uapi::NFTA_GEN_PROC_NAME).and_then(|name| name.str());
            return Some(Self::NewGeneration {
                id: find(attributes, uapi::NFTA_GEN_ID)?.be32()?,
                pid: find(attributes, uapi::NFTA_GEN_PROC_PID).and_then(|pid| pid.be32()).unwrap_or(0),
                process: process.unwrap_or_default().to_owned(),
            });
        }
        let (action, object, handle) = match kind {
            uapi::NFT_MSG_NEWTABLE => (Action::Added, ObjectKind::Table, uapi::NFTA_TABLE_HANDLE),
            uapi::NFT_MSG_DELTABLE => (Action::Deleted, ObjectKind::Table, uapi::NFTA_TABLE_HANDLE),
            uapi::NFT_MSG_NEWCHAIN => (Action::Added, ObjectKind::Chain, uapi::NFTA_CHAIN_HANDLE),
            uapi::NFT_MSG_DELCHAIN => (Action::Deleted, ObjectKind::Chain, uapi::NFTA_CHAIN_HANDLE),
            uapi::NFT_MSG_NEWRULE => (Action::Added, ObjectKind::Rule, uapi::NFTA_RULE_HANDLE),
            uapi::NFT_MSG_DELRULE => (Action::Deleted, ObjectKind::Rule, uapi::NFTA_RULE_HANDLE),
            uapi::NFT_MSG_NEWSET => (Action::Added, ObjectKind::Set, uapi::NFTA_SET_HANDLE),
            uapi::NFT_MSG_DELSET => (Action::Deleted, ObjectKind::Set, uapi::NFTA_SET_HANDLE),
            uapi::NFT_MSG_NEWSETELEM => (Action::Added, ObjectKind::Set, 0),
            uapi::NFT_MSG_DELSETELEM => (Action::Deleted, ObjectKind::Set, 0),
            uapi::NFT_MSG_NEWOBJ => (Action::Added, stateful(attributes)?, uapi::NFTA_OBJ_HANDLE),
            uapi::NFT_MSG_DELOBJ => (Action::Deleted, stateful(attributes)?, uapi::NFTA_OBJ_HANDLE),
            _ => return None,
        };
        let (table, name) = place(kind, attributes);
        let keys =
            (handle == 0).then(|| list(message.payload).filter_map(|element| Key::from_bytes(element.key)).collect());
        Some(Self::Changed(Change {
            action,
            kind: object,
            family: Family::from_number(*message.payload.first()?)?,
            table: table.to_owned(),
            name: name.to_owned(),
            handle: if handle == 0 { None } else { find(attributes, handle).and_then(|handle| handle.be64()) },
            keys,
            port: message.port,
        }))
    }
}

fn stateful(attributes: &[u8]) -> Option<ObjectKind> {
    Some(match find(attributes, uapi::NFTA_OBJ_TYPE)?.be32()? {
        uapi::NFT_OBJECT_COUNTER => ObjectKind::Counter,
        uapi::NFT_OBJECT_QUOTA => ObjectKind::Quota,
        uapi::NFT_OBJECT_LIMIT => ObjectKind::Limit,
        _ => return None,
    })
}

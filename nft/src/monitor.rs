//! Hearing of everybody's changes to the ruleset.
//!
//! The kernel multicasts every committed change (`NFNLGRP_NFTABLES`), object by object, and then the new generation with the process
//! that caused it.
//!
//! Invariants: events come in the kernel's order; none is dropped silently: if the socket's buffer overflows, [`Event::Overrun`]
//! says so, and what was missed has to be read back. Changes of our own are included; their port is that of our
//! [`crate::Connection`]. Proven by the kernel test `monitor`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::dump::list;
use crate::error::{Error, ObjectKind};
use crate::key::Key;
use crate::netlink::{Message, find};
use crate::subscription::{Subscription, Told};
use crate::table::Family;
use crate::transaction::place;
use crate::uapi;

/// A subscription to changes in the network namespace it was opened in.
#[derive(Debug)]
pub struct Monitor(Subscription<Event>);

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

// === impl Monitor ===

impl Monitor {
    /// Subscribes in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Subscription::open(uapi::NFNLGRP_NFTABLES).map(Self)
    }

    /// The next event, as soon as there is one.
    #[expect(clippy::should_implement_trait, reason = "it fails, and never ends")]
    pub fn next(&mut self) -> Result<Event, Error> {
        self.0.next()
    }

    /// The next event, or `None` after this time.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        self.0.next_timeout(timeout)
    }

    /// The next event, or `None` if none has arrived; for use with readiness of the descriptor.
    pub fn try_next(&mut self) -> Result<Option<Event>, Error> {
        self.0.try_next()
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

// === impl Event ===

impl Told for Event {
    const LOST: Self = Self::Overrun;
    const ACTIONS: [&'static str; 2] = ["receive events", "wait for events"];

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

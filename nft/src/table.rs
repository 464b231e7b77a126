//! Tables: the outermost objects, and the address families they belong to.
//!
//! Vocabulary: an *owned* table (`NFT_TABLE_F_OWNER`) can only be changed through the netlink socket that created it; *persist*
//! (kernel 6.9) keeps it when that socket closes, as an *orphan* that the next socket adopts by adding it again with both flags.
//!
//! Invariant: what [`Table`] declares, [`TableInfo`] reports. Proven by the kernel tests `ownership` and `dump`.

use std::fmt;

use nftnl::nftnl_sys as ffi;

use crate::error::{InvalidReason, comment_data, name};
use crate::netlink::attributes;
use crate::sys::TableObject;
use crate::{uapi, userdata};

/// The address family of a table and everything in it (`NFPROTO_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 packets.
    Ip,
    /// IPv6 packets.
    Ip6,
    /// Both.
    Inet,
    /// ARP packets.
    Arp,
    /// Bridged packets.
    Bridge,
    /// Packets of one device.
    Netdev,
}

/// A table to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Address family.
    pub family: Family,
    /// Name, at most 255 bytes.
    pub name: String,
    /// Ownership.
    pub flags: TableFlags,
    /// Free text, at most 251 bytes.
    pub comment: Option<String>,
}

/// Ownership of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct TableFlags {
    /// Only the socket that created it may change it (kernel 5.12).
    pub owner: bool,
    /// It outlives its owner (kernel 6.9); asks for `owner`.
    pub persist: bool,
}

/// A table as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    /// Address family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// Ownership.
    pub flags: TableFlags,
    /// The netlink port of the owner, if it has one now.
    pub owner: Option<u32>,
    /// Free text.
    pub comment: Option<String>,
    /// The kernel's number for it.
    pub handle: u64,
    /// How many chains, sets and objects it holds.
    pub use_count: u32,
}

// === impl Family ===

impl Family {
    /// The kernel's number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Ip => uapi::NFPROTO_IPV4,
            Self::Ip6 => uapi::NFPROTO_IPV6,
            Self::Inet => uapi::NFPROTO_INET,
            Self::Arp => uapi::NFPROTO_ARP,
            Self::Bridge => uapi::NFPROTO_BRIDGE,
            Self::Netdev => uapi::NFPROTO_NETDEV,
        }
    }

    /// The family of a number, if tables of it exist.
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            uapi::NFPROTO_IPV4 => Self::Ip,
            uapi::NFPROTO_IPV6 => Self::Ip6,
            uapi::NFPROTO_INET => Self::Inet,
            uapi::NFPROTO_ARP => Self::Arp,
            uapi::NFPROTO_BRIDGE => Self::Bridge,
            uapi::NFPROTO_NETDEV => Self::Netdev,
            _ => return None,
        })
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
            Self::Arp => "arp",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        })
    }
}

// === impl Table ===

impl Table {
    /// A table with neither flags nor comment.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), flags: TableFlags::default(), comment: None }
    }

    pub(crate) fn object(&self) -> Result<TableObject, InvalidReason> {
        let mut object = TableObject::new();
        object.str(ffi::NFTNL_TABLE_NAME, &name(&self.name)?);
        object.u32(ffi::NFTNL_TABLE_FLAGS, self.flags.bits());
        if let Some(comment) = &self.comment {
            object.data(ffi::NFTNL_TABLE_USERDATA, &comment_data(comment)?);
        }
        Ok(object)
    }
}

// === impl TableFlags ===

impl TableFlags {
    /// `NFT_TABLE_F_*`.
    pub const fn bits(self) -> u32 {
        (if self.owner { uapi::NFT_TABLE_F_OWNER } else { 0 })
            | (if self.persist { uapi::NFT_TABLE_F_PERSIST } else { 0 })
    }
}

// === impl TableInfo ===

impl TableInfo {
    pub(crate) fn decode(family: u8, bytes: &[u8]) -> Option<Self> {
        let mut info = Self {
            family: Family::from_number(family)?,
            name: String::new(),
            flags: TableFlags::default(),
            owner: None,
            comment: None,
            handle: 0,
            use_count: 0,
        };
        for attribute in attributes(bytes) {
            match attribute.kind {
                uapi::NFTA_TABLE_NAME => info.name = attribute.str()?.to_owned(),
                uapi::NFTA_TABLE_FLAGS => {
                    let bits = attribute.be32()?;
                    info.flags.owner = bits & uapi::NFT_TABLE_F_OWNER != 0;
                    info.flags.persist = bits & uapi::NFT_TABLE_F_PERSIST != 0;
                }
                uapi::NFTA_TABLE_USE => info.use_count = attribute.be32()?,
                uapi::NFTA_TABLE_HANDLE => info.handle = attribute.be64()?,
                uapi::NFTA_TABLE_OWNER => info.owner = attribute.be32().filter(|port| *port != 0),
                uapi::NFTA_TABLE_USERDATA => {
                    info.comment = userdata::comment(attribute.value, uapi::UDATA_COMMENT).map(str::to_owned);
                }
                _ => {}
            }
        }
        Some(info)
    }
}

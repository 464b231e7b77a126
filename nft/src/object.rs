//! Stateful objects: named counters, quotas and limits that several rules and elements share.
//!
//! Proven by the kernel test `expressions`.

use nftnl::nftnl_sys as ffi;

use crate::error::{InvalidReason, comment_data, name};
use crate::expr::LimitUnit;
use crate::sys::StatefulObject;
use crate::table::Family;
use crate::uapi;

/// The kind of a stateful object (`NFT_OBJECT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum StatefulKind {
    Counter,
    Quota,
    Limit,
}

/// A stateful object to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stateful {
    /// Counts packets and bytes.
    Counter {
        /// Address family of the table.
        family: Family,
        /// Name of the table.
        table: String,
        /// Name.
        name: String,
        /// Free text.
        comment: Option<String>,
    },
    /// Matches until a number of bytes has passed, or from then on.
    Quota {
        /// Address family of the table.
        family: Family,
        /// Name of the table.
        table: String,
        /// Name.
        name: String,
        /// The quota.
        bytes: u64,
        /// Match once it is used up.
        over: bool,
    },
    /// Matches up to a rate of packets.
    Limit {
        /// Address family of the table.
        family: Family,
        /// Name of the table.
        table: String,
        /// Name.
        name: String,
        /// Packets per unit.
        rate: u64,
        /// The unit.
        unit: LimitUnit,
        /// Packets beyond the rate at once.
        burst: u32,
        /// Match above the rate instead.
        over: bool,
    },
}

impl StatefulKind {
    /// The kernel's number.
    pub const fn number(self) -> u32 {
        match self {
            Self::Counter => uapi::NFT_OBJECT_COUNTER,
            Self::Quota => uapi::NFT_OBJECT_QUOTA,
            Self::Limit => uapi::NFT_OBJECT_LIMIT,
        }
    }
}

impl Stateful {
    /// Its kind.
    pub const fn kind(&self) -> StatefulKind {
        match self {
            Self::Counter { .. } => StatefulKind::Counter,
            Self::Quota { .. } => StatefulKind::Quota,
            Self::Limit { .. } => StatefulKind::Limit,
        }
    }

    /// Family, table and name.
    pub fn place(&self) -> (Family, &str, &str) {
        match self {
            Self::Counter { family, table, name, .. }
            | Self::Quota { family, table, name, .. }
            | Self::Limit { family, table, name, .. } => (*family, table, name),
        }
    }

    pub(crate) fn object(&self) -> Result<StatefulObject, InvalidReason> {
        let (_, table, own) = self.place();
        let mut object = StatefulObject::new();
        object.str(ffi::NFTNL_OBJ_TABLE, &name(table)?);
        object.str(ffi::NFTNL_OBJ_NAME, &name(own)?);
        // The type decides what the following attributes mean, so it comes first.
        object.u32(ffi::NFTNL_OBJ_TYPE, self.kind().number());
        match self {
            Self::Counter { comment, .. } => {
                object.u64(ffi::NFTNL_OBJ_CTR_PKTS, 0);
                object.u64(ffi::NFTNL_OBJ_CTR_BYTES, 0);
                if let Some(comment) = comment {
                    object.data(ffi::NFTNL_OBJ_USERDATA, &comment_data(comment)?);
                }
            }
            Self::Quota { bytes, over, .. } => {
                object.u64(ffi::NFTNL_OBJ_QUOTA_BYTES, *bytes);
                object.u32(ffi::NFTNL_OBJ_QUOTA_FLAGS, if *over { uapi::NFT_QUOTA_F_INV } else { 0 });
            }
            Self::Limit { rate, unit, burst, over, .. } => {
                object.u64(ffi::NFTNL_OBJ_LIMIT_RATE, *rate);
                object.u64(ffi::NFTNL_OBJ_LIMIT_UNIT, unit.seconds());
                object.u32(ffi::NFTNL_OBJ_LIMIT_BURST, *burst);
                object.u32(ffi::NFTNL_OBJ_LIMIT_TYPE, 0);
                object.u32(ffi::NFTNL_OBJ_LIMIT_FLAGS, if *over { uapi::NFT_LIMIT_F_INV } else { 0 });
            }
        }
        Ok(object)
    }
}

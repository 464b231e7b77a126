//! Sets and maps: their declaration. Their contents are [`crate::element`].
//!
//! Vocabulary: a *map* is a set whose elements carry data, a verdict or the name of a stateful object.
//!
//! Invariants: a declaration fits what nft can print: at most five fields (six bits each in a 32-bit type number) and 64 bytes.
//! Host-endian fields are announced in the set's user data, because nft otherwise prints a lone `mark` byte-swapped and a lone `ifname` empty. Proven by the
//! unit tests below and the kernel tests `listing` and `dump`.

use std::time::Duration;

use nftnl::nftnl_sys as ffi;

use crate::error::{InvalidReason, check_comment, name};
use crate::key::Field;
use crate::netlink::{attributes, find};
use crate::object::StatefulKind;
use crate::sys::SetObject;
use crate::table::Family;
use crate::{uapi, userdata};

/// nft joins type numbers of six bits into 32.
const MAX_FIELDS: usize = 5;

/// The register file (`NFT_DATA_VALUE_MAXLEN`).
const MAX_LEN: usize = 64;

/// A set or map to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name, at most 255 bytes.
    pub name: String,
    /// The key's parts.
    pub key: Vec<Field>,
    /// What an element carries.
    pub data: SetData,
    /// Most elements it may hold; declared, the kernel uses its fixed-size hash, which loads two to three times faster.
    pub size: Option<u32>,
    /// Life time of elements that do not state their own, in whole milliseconds.
    pub timeout: Option<Duration>,
    /// Whether elements may have life times of their own.
    pub has_timeouts: bool,
    /// Whether rules may add elements (`dynset`).
    pub dynamic: bool,
    /// Whether elements are ranges.
    pub interval: bool,
    /// Free text, at most 251 bytes; 12 less if key or data is a lone number.
    pub comment: Option<String>,
}

/// What the elements of a set carry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SetData {
    /// Nothing: a plain set.
    #[default]
    None,
    /// A value: a data map.
    Value(Vec<Field>),
    /// A verdict: a verdict map.
    Verdict,
    /// The name of a stateful object.
    Object(StatefulKind),
}

/// Names a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SetRef<'a> {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: &'a str,
    /// Name of the set.
    pub name: &'a str,
}

/// A set as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetInfo {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name.
    pub name: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// `NFT_SET_*` flags.
    pub flags: u32,
    /// nft's type number of the key.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// nft's type number of the data, 0xffffff00 for verdicts; `None` for plain sets.
    pub data_type: Option<u32>,
    /// Bytes of a value.
    pub data_len: u32,
    /// Declared size.
    pub size: Option<u32>,
    /// How many elements it has; `None` from kernels before 6.17, which do not tell.
    pub count: Option<u32>,
    /// Default life time.
    pub timeout: Option<Duration>,
    /// Free text.
    pub comment: Option<String>,
}

// === impl Set ===

impl Set {
    /// A plain set without any option.
    pub fn new(family: Family, table: impl Into<String>, name: impl Into<String>, key: impl Into<Vec<Field>>) -> Self {
        Self {
            family,
            table: table.into(),
            name: name.into(),
            key: key.into(),
            data: SetData::None,
            size: None,
            timeout: None,
            has_timeouts: false,
            dynamic: false,
            interval: false,
            comment: None,
        }
    }

    /// A map from key to data without any option.
    pub fn map(
        family: Family,
        table: impl Into<String>,
        name: impl Into<String>,
        key: impl Into<Vec<Field>>,
        data: SetData,
    ) -> Self {
        Self { data, ..Self::new(family, table, name, key) }
    }

    /// Whether elements carry anything.
    pub fn is_map(&self) -> bool {
        self.data != SetData::None
    }

    fn flags(&self) -> u32 {
        let mut flags = match self.data {
            SetData::None => 0,
            SetData::Value(_) | SetData::Verdict => uapi::NFT_SET_MAP,
            SetData::Object(_) => uapi::NFT_SET_OBJECT,
        };
        if self.timeout.is_some() || self.has_timeouts {
            flags |= uapi::NFT_SET_TIMEOUT;
        }
        if self.dynamic {
            flags |= uapi::NFT_SET_EVAL;
        }
        if self.interval {
            flags |= uapi::NFT_SET_INTERVAL;
            if self.key.len() > 1 {
                flags |= uapi::NFT_SET_CONCAT;
            }
        }
        flags
    }

    fn userdata(&self) -> Result<Vec<u8>, InvalidReason> {
        let mut bytes = Vec::new();
        if is_host_endian(&self.key) {
            userdata::put(&mut bytes, uapi::UDATA_SET_KEYBYTEORDER, &uapi::UDATA_HOST_ENDIAN.to_ne_bytes());
        }
        if matches!(&self.data, SetData::Value(fields) if is_host_endian(fields)) {
            userdata::put(&mut bytes, uapi::UDATA_SET_DATABYTEORDER, &uapi::UDATA_HOST_ENDIAN.to_ne_bytes());
        }
        if let Some(comment) = &self.comment {
            check_comment(comment, bytes.len())?;
            userdata::put_comment(&mut bytes, uapi::UDATA_SET_COMMENT, comment);
        }
        Ok(bytes)
    }

    pub(crate) fn object(&self, id: u32) -> Result<SetObject, InvalidReason> {
        check_fields(&self.key)?;
        let mut object = SetObject::new();
        object.str(ffi::NFTNL_SET_TABLE, &name(&self.table)?);
        object.str(ffi::NFTNL_SET_NAME, &name(&self.name)?);
        object.u32(ffi::NFTNL_SET_ID, id);
        object.u32(ffi::NFTNL_SET_FLAGS, self.flags());
        object.u32(ffi::NFTNL_SET_KEY_TYPE, Field::joined_type(&self.key));
        object.u32(ffi::NFTNL_SET_KEY_LEN, Field::key_len(&self.key) as u32);
        match &self.data {
            SetData::None => {}
            SetData::Value(fields) => {
                check_fields(fields)?;
                object.u32(ffi::NFTNL_SET_DATA_TYPE, Field::joined_type(fields));
                object.u32(ffi::NFTNL_SET_DATA_LEN, Field::key_len(fields) as u32);
            }
            SetData::Verdict => {
                object.u32(ffi::NFTNL_SET_DATA_TYPE, uapi::NFT_DATA_VERDICT);
                object.u32(ffi::NFTNL_SET_DATA_LEN, 0);
            }
            SetData::Object(kind) => object.u32(ffi::NFTNL_SET_OBJ_TYPE, kind.number()),
        }
        if self.interval && self.key.len() > 1 {
            let lens: Vec<u8> = self.key.iter().map(|field| field.byte_len() as u8).collect();
            object.data(ffi::NFTNL_SET_DESC_CONCAT, &lens);
        }
        if let Some(size) = self.size {
            object.u32(ffi::NFTNL_SET_DESC_SIZE, size);
        }
        if let Some(timeout) = self.timeout {
            object.u64(ffi::NFTNL_SET_TIMEOUT, timeout.as_millis() as u64);
        }
        let userdata = self.userdata()?;
        if !userdata.is_empty() {
            object.data(ffi::NFTNL_SET_USERDATA, &userdata);
        }
        Ok(object)
    }
}

impl<'a> From<&'a Set> for SetRef<'a> {
    fn from(set: &'a Set) -> Self {
        Self { family: set.family, table: &set.table, name: &set.name }
    }
}

/// nft reads the byte order of concatenations from their parts, that of a lone field from the user data.
fn is_host_endian(fields: &[Field]) -> bool {
    matches!(fields, [field] if field.host_endian())
}

fn check_fields(fields: &[Field]) -> Result<(), InvalidReason> {
    let len = Field::key_len(fields);
    if fields.is_empty() || fields.len() > MAX_FIELDS {
        Err(InvalidReason::FieldCount(fields.len()))
    } else if len > MAX_LEN {
        Err(InvalidReason::KeyLength(len))
    } else {
        Ok(())
    }
}

// === impl SetRef ===

impl<'a> SetRef<'a> {
    /// Names a set.
    pub const fn new(family: Family, table: &'a str, name: &'a str) -> Self {
        Self { family, table, name }
    }
}

// === impl SetInfo ===

impl SetInfo {
    pub(crate) fn decode(family: u8, bytes: &[u8]) -> Option<Self> {
        let mut info = Self {
            family: Family::from_number(family)?,
            table: String::new(),
            name: String::new(),
            handle: 0,
            flags: 0,
            key_type: 0,
            key_len: 0,
            data_type: None,
            data_len: 0,
            size: None,
            count: None,
            timeout: None,
            comment: None,
        };
        for attribute in attributes(bytes) {
            match attribute.kind {
                uapi::NFTA_SET_TABLE => info.table = attribute.str()?.to_owned(),
                uapi::NFTA_SET_NAME => info.name = attribute.str()?.to_owned(),
                uapi::NFTA_SET_HANDLE => info.handle = attribute.be64()?,
                uapi::NFTA_SET_FLAGS => info.flags = attribute.be32()?,
                uapi::NFTA_SET_KEY_TYPE => info.key_type = attribute.be32()?,
                uapi::NFTA_SET_KEY_LEN => info.key_len = attribute.be32()?,
                uapi::NFTA_SET_DATA_TYPE => info.data_type = attribute.be32(),
                uapi::NFTA_SET_DATA_LEN => info.data_len = attribute.be32()?,
                uapi::NFTA_SET_DESC => {
                    info.size = find(attribute.value, uapi::NFTA_SET_DESC_SIZE).and_then(|size| size.be32());
                }
                uapi::NFTA_SET_COUNT => info.count = attribute.be32(),
                uapi::NFTA_SET_TIMEOUT => info.timeout = attribute.be64().map(Duration::from_millis),
                uapi::NFTA_SET_USERDATA => {
                    info.comment = userdata::comment(attribute.value, uapi::UDATA_SET_COMMENT).map(str::to_owned);
                }
                _ => {}
            }
        }
        Some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_listing_could_show_is_refused() {
        let set = |key: &[Field]| Set::new(Family::Ip, "t", "s", key).object(1).err();
        assert_eq!(set(&[]), Some(InvalidReason::FieldCount(0)));
        assert_eq!(set(&[Field::Mark; 6]), Some(InvalidReason::FieldCount(6)));
        assert_eq!(set(&[Field::Ipv6Addr; 5]), Some(InvalidReason::KeyLength(80)));
        assert_eq!(set(&[Field::Ipv6Addr; 4]), None);
    }

    #[test]
    fn lone_marks_announce_their_byte_order() {
        let map = |key: &[Field], data: &[Field]| {
            Set::map(Family::Ip, "t", "s", key, SetData::Value(data.to_vec())).userdata().expect("valid")
        };
        let one = 1u32.to_ne_bytes();
        assert_eq!(map(&[Field::Mark], &[Field::Ipv4Addr]), [&[0, 4][..], &one].concat());
        assert_eq!(map(&[Field::Ipv4Addr], &[Field::Mark]), [&[1, 4][..], &one].concat());
        assert!(map(&[Field::Mark, Field::Mark], &[Field::Mark, Field::Mark]).is_empty());
    }
}

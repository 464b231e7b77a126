//! Keys and values as the kernel's registers hold them, and the fields that give their bytes a meaning.
//!
//! Vocabulary: a [`Field`] is one typed part (`ipv4_addr`, `inet_service`...); several fields make a *concatenation*, in which
//! every part starts on a four-byte boundary (one 32-bit register slot); a [`Key`] is the bytes of all parts.
//!
//! Invariants: a key of one field has exactly that field's length (a lone port is two bytes, as the kernel demands); from the
//! second field on every part is padded to four bytes. A key never exceeds 64 bytes, the whole register file. Bytes behind the
//! key's end are zero, so that equality, order and hash are those of the bytes. Proven by the property tests below.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The register file: 16 slots of 4 bytes (`NFT_DATA_VALUE_MAXLEN`).
const CAPACITY: usize = 64;

/// A typed part of a key or of a value. The numbers are nft's own (`enum datatypes`, nftables include/datatype.h); the kernel only
/// stores them for whoever lists the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// `ipv4_addr`
    Ipv4Addr,
    /// `ipv6_addr`
    Ipv6Addr,
    /// `inet_proto`: a layer 4 protocol number.
    InetProto,
    /// `inet_service`: a port, big-endian.
    InetService,
    /// `mark`: a 32-bit number in host byte order.
    Mark,
    /// `ifname`: an interface name, 16 bytes, padded with zeros.
    IfName,
    /// `iface_index`: an interface's index in host byte order.
    IfIndex,
}

/// Up to 64 bytes of key or value, inline and `Copy`.
///
/// ```
/// use nft::{Field, Key};
/// let key = Key::new().ipv4([10, 96, 0, 9].into()).proto(6).port(80);
/// assert_eq!(key.as_bytes(), [10, 96, 0, 9, 6, 0, 0, 0, 0, 80, 0, 0]);
/// assert_eq!(key.display(&[Field::Ipv4Addr, Field::InetProto, Field::InetService]).to_string(), "10.96.0.9 . tcp . 80");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    bytes: [u8; CAPACITY],
    len: u8,
}

/// Prints a key in nft's spelling; see [`Key::display`].
#[derive(Debug, Clone, Copy)]
pub struct DisplayKey<'a> {
    bytes: &'a [u8],
    fields: &'a [Field],
}

// === impl Field ===

impl Field {
    /// nft's number for the type, 6 bits.
    pub const fn type_number(self) -> u32 {
        match self {
            Self::Ipv4Addr => 7,
            Self::Ipv6Addr => 8,
            Self::InetProto => 12,
            Self::InetService => 13,
            Self::Mark => 19,
            Self::IfIndex => 20,
            Self::IfName => 41,
        }
    }

    /// Bytes of the bare field.
    pub const fn byte_len(self) -> usize {
        match self {
            Self::InetProto => 1,
            Self::InetService => 2,
            Self::Ipv4Addr | Self::Mark | Self::IfIndex => 4,
            Self::Ipv6Addr | Self::IfName => 16,
        }
    }

    /// Bytes in a concatenation: whole 4-byte slots.
    pub const fn padded_len(self) -> usize {
        self.byte_len().next_multiple_of(4)
    }

    /// Whether nft takes the bytes for host byte order: numbers, and names too.
    pub const fn host_endian(self) -> bool {
        matches!(self, Self::Mark | Self::IfIndex | Self::IfName)
    }

    /// nft's name for the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
            Self::InetProto => "inet_proto",
            Self::InetService => "inet_service",
            Self::Mark => "mark",
            Self::IfName => "ifname",
            Self::IfIndex => "iface_index",
        }
    }

    /// Bytes of a key made of these fields.
    pub fn key_len(fields: &[Field]) -> usize {
        match fields {
            [one] => one.byte_len(),
            several => several.iter().map(|field| field.padded_len()).sum(),
        }
    }

    /// The type number of a concatenation: six bits per field, the first highest.
    pub(crate) fn joined_type(fields: &[Field]) -> u32 {
        fields.iter().fold(0, |joined, field| joined << 6 | field.type_number())
    }

    fn render(self, bytes: &[u8], out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
        match self {
            Self::Ipv4Addr => {
                write!(out, "{}", Ipv4Addr::from(<[u8; 4]>::try_from(bytes).expect("four bytes")))
            }
            Self::Ipv6Addr => {
                write!(out, "{}", Ipv6Addr::from(<[u8; 16]>::try_from(bytes).expect("sixteen bytes")))
            }
            Self::InetProto => match i32::from(bytes[0]) {
                libc::IPPROTO_TCP => out.write_str("tcp"),
                libc::IPPROTO_UDP => out.write_str("udp"),
                libc::IPPROTO_SCTP => out.write_str("sctp"),
                libc::IPPROTO_ICMP => out.write_str("icmp"),
                libc::IPPROTO_ICMPV6 => out.write_str("ipv6-icmp"),
                other => write!(out, "{other}"),
            },
            Self::InetService => write!(out, "{}", u16::from_be_bytes([bytes[0], bytes[1]])),
            Self::Mark => write!(out, "{:#010x}", number(bytes)),
            Self::IfIndex => write!(out, "{}", number(bytes)),
            Self::IfName => {
                let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                write!(out, "\"{}\"", String::from_utf8_lossy(name))
            }
        }
    }
}

// === impl Key ===

impl Key {
    /// No bytes.
    pub const fn new() -> Self {
        Self { bytes: [0; CAPACITY], len: 0 }
    }

    /// Bytes as they are, one field whatever its length.
    ///
    /// # Panics
    /// Above 64 bytes.
    pub fn raw(bytes: &[u8]) -> Self {
        Self::new().part(bytes)
    }

    /// Bytes received from the kernel; `None` above 64.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= CAPACITY).then(|| Self::new().part(bytes))
    }

    /// Appends an IPv4 address (as every builder: panics when the key would exceed 64 bytes).
    #[inline]
    pub fn ipv4(self, address: Ipv4Addr) -> Self {
        self.part(&address.octets())
    }

    /// Appends an IPv6 address.
    #[inline]
    pub fn ipv6(self, address: Ipv6Addr) -> Self {
        self.part(&address.octets())
    }

    /// Appends a layer 4 protocol number.
    #[inline]
    pub fn proto(self, number: u8) -> Self {
        self.part(&[number])
    }

    /// Appends a port.
    #[inline]
    pub fn port(self, port: u16) -> Self {
        self.part(&port.to_be_bytes())
    }

    /// Appends a 32-bit number in host byte order.
    #[inline]
    pub fn mark(self, mark: u32) -> Self {
        self.part(&mark.to_ne_bytes())
    }

    /// Appends an interface name (at most 15 bytes; longer ones are cut, as the kernel could not know them).
    pub fn ifname(self, name: &str) -> Self {
        let mut bytes = [0; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        self.part(&bytes)
    }

    /// Appends one field's bytes; from the second on all are padded to whole 4-byte slots.
    ///
    /// # Panics
    /// When the key would exceed 64 bytes.
    #[inline]
    pub fn part(mut self, bytes: &[u8]) -> Self {
        let start = usize::from(self.len).next_multiple_of(4);
        let end = start + bytes.len();
        assert!(end <= CAPACITY, "a key has at most {CAPACITY} bytes");
        self.bytes[start..end].copy_from_slice(bytes);
        self.len = if start == 0 { end } else { end.next_multiple_of(4) } as u8;
        self
    }

    /// The bytes, as long as the kernel wants them.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Number of bytes.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of a key, read as these fields, in nft's spelling: `10.96.0.9 . tcp . 80 . 0x00000003`. Bytes that do not fit the
    /// fields are printed in hexadecimal.
    pub fn display<'a>(&'a self, fields: &'a [Field]) -> DisplayKey<'a> {
        Self::display_bytes(self.as_bytes(), fields)
    }

    /// As [`Key::display`], for bytes that are not in a `Key`.
    pub fn display_bytes<'a>(bytes: &'a [u8], fields: &'a [Field]) -> DisplayKey<'a> {
        DisplayKey { bytes, fields }
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Key({})", DisplayKey { bytes: self.as_bytes(), fields: &[] })
    }
}

// === impl DisplayKey ===

impl fmt::Display for DisplayKey<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fields.is_empty() || Field::key_len(self.fields) != self.bytes.len() {
            out.write_str("0x")?;
            return self.bytes.iter().try_for_each(|byte| write!(out, "{byte:02x}"));
        }
        let mut at = 0;
        for (index, field) in self.fields.iter().enumerate() {
            if index > 0 {
                out.write_str(" . ")?;
            }
            field.render(&self.bytes[at..at + field.byte_len()], out)?;
            at += field.padded_len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_field_is_exact_and_several_are_padded() {
        assert_eq!(Key::new().port(80).as_bytes(), [0, 80]);
        assert_eq!(Key::new().proto(6).as_bytes(), [6]);
        assert_eq!(Key::new().port(80).proto(6).as_bytes(), [0, 80, 0, 0, 6, 0, 0, 0]);
        assert_eq!(Key::new().mark(3).as_bytes(), 3u32.to_ne_bytes());
    }

    #[test]
    fn keys_print_as_nft_prints_them() {
        use Field::*;
        let key = Key::new().ipv4([10, 96, 0, 9].into()).proto(6).port(80).mark(3);
        assert_eq!(
            key.display(&[Ipv4Addr, InetProto, InetService, Mark]).to_string(),
            "10.96.0.9 . tcp . 80 . 0x00000003"
        );
        let key = Key::new().ipv6("fd00::9".parse().expect("address")).proto(132).port(53);
        assert_eq!(key.display(&[Ipv6Addr, InetProto, InetService]).to_string(), "fd00::9 . sctp . 53");
        assert_eq!(
            key.display(&[Ipv6Addr]).to_string(),
            "0xfd000000000000000000000000000009840000000035000 0".replace(' ', "")
        );
        assert_eq!(Key::new().ifname("eth0").display(&[IfName]).to_string(), "\"eth0\"");
    }

    proptest! {
        #[test]
        fn length_is_that_of_the_fields(choice in proptest::collection::vec(0usize..5, 1..=4)) {
            let all = [Field::Ipv4Addr, Field::InetProto, Field::InetService, Field::Mark, Field::Ipv6Addr];
            let fields: Vec<_> = choice.iter().map(|i| all[*i]).collect();
            let key = fields.iter().fold(Key::new(), |key, field| key.part(&vec![7; field.byte_len()]));
            prop_assert_eq!(key.len(), Field::key_len(&fields));
            prop_assert_eq!(Key::from_bytes(key.as_bytes()), Some(key));
            prop_assert!(!key.display(&fields).to_string().starts_with("0x070707070707070707"));
        }

        #[test]
        fn rendering_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..=64), n in 0usize..5) {
            let all = [Field::Ipv4Addr, Field::InetProto, Field::IfName, Field::Mark, Field::Ipv6Addr];
            let _ = Key::display_bytes(&bytes, &all[..n]).to_string();
            let _ = Key::display_bytes(&bytes, &all[n..]).to_string();
        }
    }
}

//! Netlink messages as bytes: writing them without allocation per message, reading them without trusting them.
//!
//! This module owns the framing that every netlink family shares (`linux/netlink.h`): a 16-byte header, a family-specific fixed
//! part, attributes of type, length and value, each padded to four bytes, nested where the family says so. It knows no nf_tables
//! and does no I/O; sockets are [`mnl::Socket`]s elsewhere.
//!
//! Vocabulary: a *message* is one header with its payload; a *nest* is an attribute whose value is attributes.
//!
//! Invariants: what [`Writer`] wrote, [`messages`] and [`attributes`] read back; the readers stop at the first malformed length
//! instead of reading past it (property test at the end of the file).

/// Size of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;

/// `NLA_F_NESTED`: set on attributes whose value is a list of attributes.
pub const NESTED: u16 = 0x8000;

/// The bits of an attribute's type field that are the type (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;

/// Length of an attribute's own header.
const ATTR_HEADER_LEN: usize = 4;

/// Appends netlink messages to one growing buffer.
///
/// The buffer can be reused through [`Writer::clear`], so that a steady stream of small transactions allocates nothing.
#[derive(Debug, Default, Clone)]
pub struct Writer {
    buf: Vec<u8>,
}

/// An open message; give it back to [`Writer::end`].
#[derive(Debug)]
#[must_use = "a message that is not ended has no length"]
pub struct OpenMessage(usize);

/// An open nest; give it back to [`Writer::end_nest`].
#[derive(Debug)]
#[must_use = "a nest that is not ended has no length"]
pub struct OpenNest(usize);

/// One received message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: which request this answers.
    pub seq: u32,
    /// `nlmsg_pid`: the port of the socket that caused it, 0 for the kernel itself.
    pub port: u32,
    /// Everything behind the header.
    pub payload: &'a [u8],
}

/// One attribute of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Type without the nested and byte-order bits.
    pub kind: u16,
    /// The value, without padding.
    pub value: &'a [u8],
}

/// Iterator over the messages of one datagram; see [`messages`].
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

/// Iterator over attributes; see [`attributes`].
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

// === impl Writer ===

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// All messages ended so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buf
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.buf.clear();
    }

    /// Starts a message: header and the family's fixed part (`struct nfgenmsg`, `struct ifinfomsg`...).
    pub fn begin(&mut self, kind: u16, flags: u16, seq: u32, fixed: &[u8]) -> OpenMessage {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(fixed);
        self.pad();
        OpenMessage(start)
    }

    /// Ends a message by writing its length.
    pub fn end(&mut self, message: OpenMessage) {
        let len = u32::try_from(self.buf.len() - message.0).expect("a netlink message is far below 4 GiB");
        self.buf[message.0..message.0 + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Bytes written since `message` was begun.
    pub fn message_len(&self, message: &OpenMessage) -> usize {
        self.buf.len() - message.0
    }

    /// Takes back everything since `message` was begun.
    pub fn abandon(&mut self, message: OpenMessage) {
        self.buf.truncate(message.0);
    }

    /// Appends already framed bytes, for instance messages that libnftnl serialised.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    /// An attribute with these bytes as value.
    ///
    /// # Panics
    /// If the value is longer than an attribute's 16-bit length allows (65,531 bytes).
    #[inline]
    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(ATTR_HEADER_LEN + value.len()).expect("attribute value fits 16 bits");
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// An attribute whose value is these parts, one behind the other.
    ///
    /// # Panics
    /// As [`Writer::attr`].
    #[inline]
    pub fn attr_parts<const N: usize>(&mut self, kind: u16, parts: [&[u8]; N]) {
        let len = parts.iter().map(|part| part.len()).sum::<usize>() + ATTR_HEADER_LEN;
        let len = u16::try_from(len).expect("attribute value fits 16 bits");
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        parts.iter().for_each(|part| self.buf.extend_from_slice(part));
        self.pad();
    }

    /// A 32-bit number in network byte order, as nf_tables wants all of its numbers.
    #[inline]
    pub fn attr_be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A 64-bit number in network byte order.
    #[inline]
    pub fn attr_be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// A 32-bit number in host byte order, as rtnetlink wants it.
    #[inline]
    pub fn attr_ne32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// A string with its terminating NUL.
    #[inline]
    pub fn attr_str(&mut self, kind: u16, value: &str) {
        let len = u16::try_from(ATTR_HEADER_LEN + value.len() + 1).expect("attribute value fits 16 bits");
        self.buf.extend_from_slice(&len.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.pad();
    }

    /// Starts a nest.
    #[inline]
    pub fn begin_nest(&mut self, kind: u16) -> OpenNest {
        let start = self.buf.len();
        self.buf.extend_from_slice(&0u16.to_ne_bytes());
        self.buf.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        OpenNest(start)
    }

    /// Ends a nest by writing its length.
    ///
    /// # Panics
    /// If the nest grew beyond an attribute's 16-bit length; see [`Writer::nest_len`].
    #[inline]
    pub fn end_nest(&mut self, nest: OpenNest) {
        let len = u16::try_from(self.buf.len() - nest.0).expect("nest fits 16 bits");
        self.buf[nest.0..nest.0 + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Bytes in an open nest so far, its header included; the limit is 65,535.
    pub fn nest_len(&self, nest: &OpenNest) -> usize {
        self.buf.len() - nest.0
    }

    #[inline]
    fn pad(&mut self) {
        let missing = self.buf.len().wrapping_neg() % 4;
        self.buf.extend_from_slice(&[0; 3][..missing]);
    }
}

// === impl Attribute ===

impl<'a> Attribute<'a> {
    /// The value as a number in network byte order; `None` if it is not four bytes.
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a number in network byte order; `None` if it is not eight bytes.
    pub fn be64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a number in host byte order; `None` if it is not four bytes.
    pub fn ne32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.value.try_into().ok()?))
    }

    /// The value as a string, up to its NUL; `None` if it is not UTF-8.
    pub fn str(&self) -> Option<&'a str> {
        let text = self.value.split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(text).ok()
    }

    /// The value as attributes.
    pub fn nested(&self) -> Attributes<'a> {
        attributes(self.value)
    }
}

// === reading ===

/// The messages of a received datagram, up to the first malformed one.
pub fn messages(datagram: &[u8]) -> Messages<'_> {
    Messages { rest: datagram }
}

/// The attributes in a byte string, up to the first malformed one.
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

/// The first attribute of this type in a byte string.
pub fn find(bytes: &[u8], kind: u16) -> Option<Attribute<'_>> {
    attributes(bytes).find(|attribute| attribute.kind == kind)
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.rest.get(..HEADER_LEN)?;
        let u32_at = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let u16_at = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().expect("two bytes"));
        let len = u32_at(0) as usize;
        let payload = self.rest.get(HEADER_LEN..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind: u16_at(4), flags: u16_at(6), seq: u32_at(8), port: u32_at(12), payload })
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    #[inline]
    fn next(&mut self) -> Option<Attribute<'a>> {
        let header = self.rest.get(..ATTR_HEADER_LEN)?;
        let len = u16::from_ne_bytes([header[0], header[1]]) as usize;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.rest.get(ATTR_HEADER_LEN..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            kinds in proptest::collection::vec((1u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            seq in any::<u32>(),
        ) {
            let mut writer = Writer::new();
            for offset in 0..2 {
                let message = writer.begin(7, 5, seq.wrapping_add(offset), &[1, 2, 3, 4]);
                let nest = writer.begin_nest(9);
                for (kind, value) in &kinds {
                    writer.attr(*kind, value);
                }
                writer.end_nest(nest);
                writer.end(message);
            }
            let read: Vec<_> = messages(writer.as_bytes()).collect();
            prop_assert_eq!(read.len(), 2);
            prop_assert_eq!(read[1].seq, seq.wrapping_add(1));
            let nest = find(&read[0].payload[4..], 9).expect("the nest");
            let back: Vec<_> = nest.nested().map(|a| (a.kind, a.value.to_vec())).collect();
            prop_assert_eq!(back, kinds);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                for attribute in attributes(message.payload) {
                    let _ = (attribute.be32(), attribute.str(), attribute.nested().count());
                }
            }
        }
    }
}

//! Elements of sets and maps: the direct encoder of the bulk path, and the decoder of what the kernel reports.
//!
//! Elements are the one object that comes in hundreds of thousands, so they are written straight into the transaction's buffer,
//! without an allocation and without libnftnl.
//!
//! Vocabulary: the element *list* is the nest `NFTA_SET_ELEM_LIST_ELEMENTS` of one message; its 16-bit length is why a long list
//! becomes several messages.
//!
//! Invariants: [`encoded_len`] is exactly what [`encode`] writes, so that a list is closed before it overflows; what is encoded is
//! decoded equal; decoding arbitrary bytes never panics. Proven by the property tests below, by `transaction::tests` for the
//! splitting and by the kernel test `elements`.

use std::time::Duration;

use crate::netlink::{Writer, attributes};
use crate::verdict::Verdict;
use crate::{uapi, userdata};

/// An element to add or delete, borrowed from wherever the caller keeps it.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// The key ([`crate::Key::as_bytes`]).
    pub key: &'a [u8],
    /// What it carries; ignored on deletion of all but maps.
    pub data: ElementData<'a>,
    /// Free text, at most 251 bytes.
    pub comment: Option<&'a str>,
    /// Life time, in whole milliseconds.
    pub timeout: Option<Duration>,
    /// The last key of a range, in sets that were declared `interval`.
    pub key_end: Option<&'a [u8]>,
}

/// What an element carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ElementData<'a> {
    /// Nothing.
    #[default]
    None,
    /// A value.
    Value(&'a [u8]),
    /// A verdict.
    Verdict(&'a Verdict),
    /// The name of a stateful object.
    Object(&'a str),
}

/// An element as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementView<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The last key of a range in a concatenated interval set. In an interval set of one field the kernel reports the end as an
    /// element of its own, see `interval_end`.
    pub key_end: Option<&'a [u8]>,
    /// What it carries.
    pub data: ViewData<'a>,
    /// Free text.
    pub comment: Option<&'a str>,
    /// Life time it was given.
    pub timeout: Option<Duration>,
    /// Life time that is left.
    pub expires: Option<Duration>,
    /// The key is the first one behind a range.
    pub interval_end: bool,
}

/// What a reported element carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewData<'a> {
    /// Nothing.
    None,
    /// A value.
    Value(&'a [u8]),
    /// A verdict.
    Verdict(Verdict),
    /// The name of a stateful object.
    Object(&'a str),
}

// === impl Element ===

impl<'a> Element<'a> {
    /// A bare key.
    pub const fn new(key: &'a [u8]) -> Self {
        Self { key, data: ElementData::None, comment: None, timeout: None, key_end: None }
    }

    /// An element of a data map.
    pub const fn value(key: &'a [u8], value: &'a [u8]) -> Self {
        Self { data: ElementData::Value(value), ..Self::new(key) }
    }

    /// An element of a verdict map.
    pub const fn verdict(key: &'a [u8], verdict: &'a Verdict) -> Self {
        Self { data: ElementData::Verdict(verdict), ..Self::new(key) }
    }

    /// The same with a comment.
    pub const fn comment(mut self, comment: &'a str) -> Self {
        self.comment = Some(comment);
        self
    }

    /// The same with a life time.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The range from the key to this one, inclusive.
    pub const fn until(mut self, end: &'a [u8]) -> Self {
        self.key_end = Some(end);
        self
    }
}

// === encoding ===

/// Header and padding of an attribute with this many bytes.
const fn attr(len: usize) -> usize {
    4 + len.next_multiple_of(4)
}

/// Bytes that [`encode`] writes for an element.
pub(crate) fn encoded_len(element: &Element<'_>) -> usize {
    let mut len = attr(attr(element.key.len()));
    if let Some(end) = element.key_end {
        len += attr(attr(end.len()));
    }
    len += match element.data {
        ElementData::None => 0,
        ElementData::Value(value) => attr(attr(value.len())),
        ElementData::Verdict(verdict) => attr(attr(attr(4) + verdict.chain().map_or(0, |chain| attr(chain.len() + 1)))),
        ElementData::Object(name) => attr(name.len() + 1),
    };
    if element.timeout.is_some() {
        len += attr(8);
    }
    if let Some(comment) = element.comment {
        len += attr(comment.len() + 3);
    }
    attr(len)
}

/// Appends one element to an open list.
#[inline]
pub(crate) fn encode(writer: &mut Writer, element: &Element<'_>) {
    let item = writer.begin_nest(uapi::NFTA_LIST_ELEM);
    value(writer, uapi::NFTA_SET_ELEM_KEY, element.key);
    if let Some(end) = element.key_end {
        value(writer, uapi::NFTA_SET_ELEM_KEY_END, end);
    }
    match element.data {
        ElementData::None => {}
        ElementData::Value(bytes) => value(writer, uapi::NFTA_SET_ELEM_DATA, bytes),
        ElementData::Verdict(verdict) => {
            let data = writer.begin_nest(uapi::NFTA_SET_ELEM_DATA);
            let nest = writer.begin_nest(uapi::NFTA_DATA_VERDICT);
            verdict.encode(writer);
            writer.end_nest(nest);
            writer.end_nest(data);
        }
        ElementData::Object(name) => writer.attr_str(uapi::NFTA_SET_ELEM_OBJREF, name),
    }
    if let Some(timeout) = element.timeout {
        writer.attr_be64(uapi::NFTA_SET_ELEM_TIMEOUT, timeout.as_millis() as u64);
    }
    if let Some(comment) = element.comment {
        let head = [uapi::UDATA_COMMENT, (comment.len() + 1) as u8];
        writer.attr_parts(uapi::NFTA_SET_ELEM_USERDATA, [&head, comment.as_bytes(), &[0]]);
    }
    writer.end_nest(item);
}

/// Appends the element that ends a range in an interval set of one field.
pub(crate) fn encode_interval_end(writer: &mut Writer, key: &[u8]) {
    let item = writer.begin_nest(uapi::NFTA_LIST_ELEM);
    value(writer, uapi::NFTA_SET_ELEM_KEY, key);
    writer.attr_be32(uapi::NFTA_SET_ELEM_FLAGS, uapi::NFT_SET_ELEM_INTERVAL_END);
    writer.end_nest(item);
}

#[inline]
fn value(writer: &mut Writer, kind: u16, bytes: &[u8]) {
    let nest = writer.begin_nest(kind);
    writer.attr(uapi::NFTA_DATA_VALUE, bytes);
    writer.end_nest(nest);
}

// === impl ElementView ===

impl<'a> ElementView<'a> {
    /// Reads the content of one `NFTA_LIST_ELEM`; `None` if it has no key (a catch-all) or is malformed.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let mut view = Self {
            key: &[],
            key_end: None,
            data: ViewData::None,
            comment: None,
            timeout: None,
            expires: None,
            interval_end: false,
        };
        let mut has_key = false;
        for attribute in attributes(bytes) {
            match attribute.kind {
                uapi::NFTA_SET_ELEM_KEY => {
                    view.key = attribute.nested().find(|part| part.kind == uapi::NFTA_DATA_VALUE)?.value;
                    has_key = true;
                }
                uapi::NFTA_SET_ELEM_KEY_END => {
                    view.key_end = Some(attribute.nested().find(|part| part.kind == uapi::NFTA_DATA_VALUE)?.value);
                }
                uapi::NFTA_SET_ELEM_DATA => {
                    let part = attribute.nested().next()?;
                    view.data = match part.kind {
                        uapi::NFTA_DATA_VALUE => ViewData::Value(part.value),
                        _ => ViewData::Verdict(Verdict::decode(part.nested())?),
                    };
                }
                uapi::NFTA_SET_ELEM_OBJREF => view.data = ViewData::Object(attribute.str()?),
                uapi::NFTA_SET_ELEM_TIMEOUT => view.timeout = attribute.be64().map(Duration::from_millis),
                uapi::NFTA_SET_ELEM_EXPIRATION => view.expires = attribute.be64().map(Duration::from_millis),
                uapi::NFTA_SET_ELEM_USERDATA => {
                    view.comment = userdata::comment(attribute.value, uapi::UDATA_COMMENT);
                }
                uapi::NFTA_SET_ELEM_FLAGS => {
                    view.interval_end = attribute.be32()? & uapi::NFT_SET_ELEM_INTERVAL_END != 0;
                }
                _ => {}
            }
        }
        has_key.then_some(view)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdicts() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Accept),
            Just(Verdict::Drop),
            Just(Verdict::Return),
            Just(Verdict::Continue),
            "[a-z-]{1,60}".prop_map(Verdict::Goto),
            "[a-z-]{1,60}".prop_map(Verdict::Jump),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            key in proptest::collection::vec(any::<u8>(), 1..=64),
            end in proptest::option::of(proptest::collection::vec(any::<u8>(), 1..=64)),
            bytes in proptest::collection::vec(any::<u8>(), 1..=64),
            verdict in verdicts(),
            which in 0..4,
            comment in proptest::option::of("[a-z/:]{0,251}"),
            timeout in proptest::option::of(0u64..1 << 40),
        ) {
            let (data, expected) = match which {
                0 => (ElementData::None, ViewData::None),
                1 => (ElementData::Value(&bytes), ViewData::Value(&bytes)),
                2 => (ElementData::Verdict(&verdict), ViewData::Verdict(verdict.clone())),
                _ => (ElementData::Object("name"), ViewData::Object("name")),
            };
            let timeout = timeout.map(Duration::from_millis);
            let element = Element { key: &key, data, comment: comment.as_deref(), timeout, key_end: end.as_deref() };
            let mut writer = Writer::new();
            encode(&mut writer, &element);
            prop_assert_eq!(writer.len(), encoded_len(&element));
            let item = attributes(writer.as_bytes()).next().expect("one item");
            let view = ElementView::decode(item.value).expect("decodable");
            prop_assert_eq!(view.key, &key[..]);
            prop_assert_eq!(view.key_end, end.as_deref());
            prop_assert_eq!(view.data, expected);
            prop_assert_eq!(view.comment, comment.as_deref());
            prop_assert_eq!(view.timeout, timeout);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ElementView::decode(&bytes);
        }
    }
}

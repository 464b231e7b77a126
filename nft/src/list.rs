//! Lists of elements, written one by one into a transaction.
//!
//! A list in netlink is one attribute of a message, and its length has 16 bits: a long list becomes several messages. The caller
//! sees one [`ElementList`], pushes elements whose bytes may be gone right afterwards, and drops it when done; nothing is kept but
//! the encoded form.
//!
//! Invariants: a list is closed before it overflows; an element that cannot be encoded is remembered by the transaction and left
//! out; a list that nothing was pushed to leaves no trace. Proven by `transaction::tests` and the kernel test `elements`.

use crate::element::{self, Element, ElementData};
use crate::error::{InvalidReason, ObjectKind, Operation, check_comment, name};
use crate::key::{Field, Key};
use crate::netlink::{OpenMessage, OpenNest};
use crate::set::SetRef;
use crate::transaction::{Record, Transaction, begin};
use crate::uapi;

/// The most that a list can hold: the length of an attribute is 16 bits.
const MAX_LEN: usize = u16::MAX as usize;

/// Elements on their way into a transaction; made by [`Transaction::add_to`] and [`Transaction::delete_from`].
#[derive(Debug)]
pub struct ElementList<'a> {
    transaction: &'a mut Transaction,
    set: SetRef<'a>,
    fields: &'a [Field],
    key_len: usize,
    kind: u16,
    flags: u16,
    operation: Operation,
    /// Set or map, as the first element says.
    object: ObjectKind,
    pushed: usize,
    /// The set's name cannot be encoded: nothing is written.
    nameless: bool,
    open: Option<Open>,
}

/// A message that is being written.
#[derive(Debug)]
struct Open {
    message: OpenMessage,
    nest: OpenNest,
}

// === impl ElementList ===

impl<'a> ElementList<'a> {
    pub(crate) fn new(
        transaction: &'a mut Transaction,
        set: SetRef<'a>,
        fields: &'a [Field],
        (kind, flags, operation): (u16, u16, Operation),
    ) -> Self {
        let key_len = Field::key_len(fields);
        let object = ObjectKind::Set;
        Self {
            transaction,
            set,
            fields,
            key_len,
            kind,
            flags,
            operation,
            object,
            pushed: 0,
            nameless: false,
            open: None,
        }
    }

    /// Appends an element.
    pub fn push(&mut self, element: &Element<'_>) {
        let index = self.pushed;
        self.pushed += 1;
        if index == 0 {
            self.first(element);
        }
        if self.nameless {
            return;
        }
        if let Err(reason) = check(element, index, self.key_len) {
            return self.invalid(reason);
        }
        // The only field of an interval set: the kernel wants the range's end as an element of its own.
        match element.key_end {
            Some(end) if self.fields.len() == 1 => {
                let end = successor(end);
                let extra = if end.is_some() { 24 + self.key_len } else { 0 };
                let start = Element { key_end: None, ..*element };
                self.make_room(element::encoded_len(&start) + extra, index);
                element::encode(&mut self.transaction.writer, &start);
                if let Some(end) = end {
                    element::encode_interval_end(&mut self.transaction.writer, end.as_bytes());
                }
            }
            _ => {
                self.make_room(element::encoded_len(element), index);
                element::encode(&mut self.transaction.writer, element);
            }
        }
        self.transaction.operations += 1;
    }

    /// Sees to it that there is an open message with this many bytes left in its list.
    fn make_room(&mut self, len: usize, index: usize) {
        if let Some(open) = &self.open
            && self.transaction.writer.nest_len(&open.nest) + len <= MAX_LEN
        {
            return;
        }
        self.close();
        self.begin(index);
    }

    /// What only the first element tells.
    fn first(&mut self, element: &Element<'_>) {
        if element.data != ElementData::None {
            self.object = ObjectKind::Map;
        }
        if let Err(reason) = name(self.set.table).and(name(self.set.name)) {
            self.nameless = true;
            self.invalid(reason);
        }
    }

    #[cold]
    fn begin(&mut self, index: usize) {
        let transaction = &mut *self.transaction;
        if transaction.fields.last().is_none_or(|last| last != self.fields) {
            transaction.fields.push(self.fields.to_vec());
        }
        transaction.records.push(Record {
            start: transaction.writer.len(),
            operation: self.operation,
            kind: self.object,
            fields: transaction.fields.len() as u32 - 1,
            first: index as u32,
        });
        let seq = transaction.records.len() as u32;
        let message = begin(&mut transaction.writer, self.kind, self.flags, seq, self.set.family);
        transaction.writer.attr_str(uapi::NFTA_SET_ELEM_LIST_TABLE, self.set.table);
        transaction.writer.attr_str(uapi::NFTA_SET_ELEM_LIST_SET, self.set.name);
        let nest = transaction.writer.begin_nest(uapi::NFTA_SET_ELEM_LIST_ELEMENTS);
        self.open = Some(Open { message, nest });
    }

    fn close(&mut self) {
        if let Some(open) = self.open.take() {
            self.transaction.writer.end_nest(open.nest);
            self.transaction.writer.end(open.message);
        }
    }

    #[cold]
    fn invalid(&mut self, reason: InvalidReason) {
        self.transaction.invalid((self.object, self.set.family, self.set.table, self.set.name), reason);
    }
}

impl Drop for ElementList<'_> {
    fn drop(&mut self) {
        self.close();
    }
}

fn check(element: &Element<'_>, index: usize, expected: usize) -> Result<(), InvalidReason> {
    for key in [Some(element.key), element.key_end].into_iter().flatten() {
        if key.len() != expected {
            return Err(InvalidReason::ElementKey { index, len: key.len(), expected });
        }
    }
    match element.data {
        ElementData::Value(value) if value.len() > 64 => return Err(InvalidReason::KeyLength(value.len())),
        ElementData::Object(own) => drop(name(own)?),
        ElementData::Verdict(verdict) => {
            if let Some(chain) = verdict.chain() {
                name(chain)?;
            }
        }
        _ => {}
    }
    element.comment.map_or(Ok(()), |comment| check_comment(comment, 0))
}

/// The key behind this one, read as a big-endian number; `None` behind the last.
fn successor(key: &[u8]) -> Option<Key> {
    let mut bytes = [0; 64];
    let bytes = &mut bytes[..key.len()];
    bytes.copy_from_slice(key);
    for byte in bytes.iter_mut().rev() {
        let (next, carry) = byte.overflowing_add(1);
        *byte = next;
        if !carry {
            return Some(Key::raw(bytes));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Family;

    #[test]
    fn the_key_behind_a_range() {
        assert_eq!(successor(&[10, 255]).map(|key| key.as_bytes().to_vec()), Some(vec![11, 0]));
        assert_eq!(successor(&[255, 255]), None);
    }

    #[test]
    fn a_list_without_elements_leaves_no_trace() {
        let mut transaction = Transaction::new();
        drop(transaction.add_to(SetRef::new(Family::Ip, "t", "s"), &[Field::Mark]));
        assert!(transaction.is_empty() && transaction.as_bytes().is_empty());
    }
}

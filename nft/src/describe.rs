//! From an answer back to what was asked: which operation, object and element a refusal is about.
//!
//! The kernel answers with the sequence number of a message and the offset of the offending attribute in it. The number finds the
//! transaction's record, the message's own bytes give the names, and the offset gives the element.
//!
//! Invariant: every offset within an element's attribute, wherever the list was split, leads to that element. Proven by the
//! property test below and the kernel test `errors`.

use crate::element::ElementView;
use crate::error::{Object, Operation, RefusedElement};
use crate::key::Key;
use crate::netlink::{self, HEADER_LEN, find};
use crate::table::Family;
use crate::transaction::{NFGEN_LEN, Record, Transaction, place};
use crate::uapi;

impl Transaction {
    /// What message `seq` was about, and the element at byte `offset` of it.
    pub(crate) fn describe(
        &self,
        seq: u32,
        offset: Option<u32>,
    ) -> Option<(Operation, Object, Option<RefusedElement>)> {
        let record = self.records.get((seq as usize).checked_sub(1)?)?;
        let bytes = self.as_bytes().get(record.start..)?;
        let message = netlink::messages(bytes).next()?;
        let family = Family::from_number(*message.payload.first()?)?;
        let attributes = message.payload.get(NFGEN_LEN..)?;
        let (table, own) = place(message.kind, attributes);
        let object = Object::new(record.kind, family, table, own);
        let element = offset.and_then(|offset| self.element(record, attributes, offset as usize));
        Some((record.operation, object, element))
    }

    fn element(&self, record: &Record, message: &[u8], offset: usize) -> Option<RefusedElement> {
        if !matches!(record.operation, Operation::AddElements | Operation::DeleteElements) {
            return None;
        }
        let list = find(message, uapi::NFTA_SET_ELEM_LIST_ELEMENTS)?.value;
        let list_start = HEADER_LEN + NFGEN_LEN + (list.as_ptr() as usize - message.as_ptr() as usize);
        let mut at = list_start;
        let mut index = record.first as usize;
        let mut found = None;
        for item in netlink::attributes(list) {
            if at > offset {
                break;
            }
            let end = at + (4 + item.value.len()).next_multiple_of(4);
            let view = ElementView::decode(item.value)?;
            if !view.interval_end {
                found = Some((index, view));
                index += 1;
            }
            if offset < end {
                let (index, view) = found?;
                let fields = self.fields.get(record.fields as usize)?;
                return Some(RefusedElement {
                    index,
                    key: Key::display_bytes(view.key, fields).to_string(),
                    comment: view.comment.map(str::to_owned),
                });
            }
            at = end;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::element::Element;
    use crate::key::Field;
    use crate::set::SetRef;

    const FIELDS: [Field; 3] = [Field::Ipv4Addr, Field::InetProto, Field::InetService];

    fn key(n: u32) -> Key {
        Key::new().ipv4((0x0a00_0000 + n).into()).proto(6).port(80)
    }

    /// Byte offset of element `index` of the whole operation, and the message it is in, found by a second way.
    fn locate(transaction: &Transaction, wanted: &[u8]) -> (u32, u32) {
        let bytes = transaction.as_bytes();
        let at = bytes.windows(wanted.len()).position(|window| window == wanted).expect("the key is in there");
        // In front of the key's bytes: value, key and item headers.
        let item = at - 12;
        let mut start = 0;
        for message in netlink::messages(bytes) {
            let end = start + HEADER_LEN + message.payload.len();
            if item < end {
                return (message.seq, (item - start) as u32);
            }
            start = end;
        }
        panic!("outside of all messages");
    }

    proptest! {
        #[test]
        fn an_offset_leads_to_its_element(count in 1u32..4000, pick in any::<prop::sample::Index>(), within in 0u32..24) {
            let keys: Vec<Key> = (0..count).map(key).collect();
            let index = pick.index(keys.len());
            let mut transaction = Transaction::new();
            transaction.delete_table(Family::Ip, "other");
            let set = SetRef::new(Family::Ip, "t", "s");
            let element = |key| Element::new(Key::as_bytes(key)).comment("why");
            transaction.add_elements(set, &FIELDS, keys.iter().map(element));
            let (seq, offset) = locate(&transaction, keys[index].as_bytes());
            let (operation, object, element) = transaction.describe(seq, Some(offset + within)).expect("described");
            prop_assert_eq!(operation, Operation::AddElements);
            prop_assert_eq!(object.to_string(), "set ip t s");
            let element = element.expect("an element");
            prop_assert_eq!(element.index, index);
            prop_assert_eq!(element.key, keys[index].display(&FIELDS).to_string());
            prop_assert_eq!(element.comment.as_deref(), Some("why"));
        }
    }
}

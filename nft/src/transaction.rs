//! Transactions: an ordered list of additions and deletions that the kernel applies as a whole or not at all.
//!
//! Vocabulary: a transaction is a run of netlink *messages* in one buffer; an *operation* is what the caller asked for, which for
//! elements can take several messages and for everything else is one.
//!
//! Invariants: message `n` (from 1) carries sequence number `n` and is described by record `n - 1`, so that a refusal leads back to
//! the operation; names and keys are read from the messages themselves, never stored twice. Something that cannot be encoded is
//! remembered instead of sent: [`Connection::commit`](crate::Connection::commit) returns it as [`Error::Invalid`] before anything
//! reaches the kernel. Proven by the unit tests below and the kernel tests `errors` and `elements`.

use nftnl::nftnl_sys as ffi;

use crate::chain::Chain;
use crate::element::Element;
use crate::error::{Error, InvalidReason, Object, ObjectKind, Operation, name};
use crate::key::Field;
use crate::list::ElementList;
use crate::netlink::{OpenMessage, Writer, find};
use crate::object::{Stateful, StatefulKind};
use crate::rule::Rule;
use crate::set::{Set, SetRef};
use crate::sys::Scratch;
use crate::table::{Family, Table};
use crate::uapi;

/// Length of `struct nfgenmsg`, which every message of netfilter begins with.
pub(crate) const NFGEN_LEN: usize = 4;

/// An atomic change of the ruleset, built once and committed as often as wanted.
#[derive(Debug, Default, Clone)]
pub struct Transaction {
    pub(crate) writer: Writer,
    pub(crate) records: Vec<Record>,
    /// Key fields of the element operations, for rendering keys in errors.
    pub(crate) fields: Vec<Vec<Field>>,
    pub(crate) operations: usize,
    sets: u32,
    scratch: Scratch,
    invalid: Option<Error>,
}

/// What a message is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub start: usize,
    pub operation: Operation,
    pub kind: ObjectKind,
    /// For elements: where in `fields`, and the place of the message's first element in its operation.
    pub fields: u32,
    pub first: u32,
}

// === impl Transaction ===

impl Transaction {
    /// Nothing to do.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.writer.clear();
        self.records.clear();
        self.fields.clear();
        self.operations = 0;
        self.sets = 0;
        self.invalid = None;
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.invalid.is_none()
    }

    /// Bytes that will be sent, without the batch's own two messages.
    pub fn len(&self) -> usize {
        self.writer.len()
    }

    /// Number of things asked for: one per definition, flush or deletion, and one per element.
    pub fn operations(&self) -> usize {
        self.operations
    }

    /// Number of netlink messages.
    pub fn messages(&self) -> usize {
        self.records.len()
    }

    /// The messages.
    pub fn as_bytes(&self) -> &[u8] {
        self.writer.as_bytes()
    }

    /// The first thing that could not be encoded, if any.
    pub fn check(&self) -> Result<(), Error> {
        self.invalid.clone().map_or(Ok(()), Err)
    }

    /// Adds a table unless it exists; an orphan with the same flags is adopted.
    pub fn add_table(&mut self, table: &Table) {
        self.table(table, uapi::NLM_F_CREATE);
    }

    /// Adds a table that must not exist.
    pub fn create_table(&mut self, table: &Table) {
        self.table(table, uapi::NLM_F_CREATE | uapi::NLM_F_EXCL);
    }

    /// Deletes a table with everything in it.
    pub fn delete_table(&mut self, family: Family, table: &str) {
        let object = (ObjectKind::Table, family, table, "");
        self.plain(uapi::NFT_MSG_DELTABLE, Operation::Delete, object, &[(uapi::NFTA_TABLE_NAME, table)], None);
    }

    /// Adds a chain unless it exists (a base chain's policy is updated).
    pub fn add_chain(&mut self, chain: &Chain) {
        self.chain(chain, uapi::NLM_F_CREATE);
    }

    /// Adds a chain that must not exist.
    pub fn create_chain(&mut self, chain: &Chain) {
        self.chain(chain, uapi::NLM_F_CREATE | uapi::NLM_F_EXCL);
    }

    /// Deletes a chain; nothing may lead to it any more. Kernels before 6.3 or so ask for its rules to be flushed first.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &str) {
        let attributes = [(uapi::NFTA_CHAIN_TABLE, table), (uapi::NFTA_CHAIN_NAME, chain)];
        let object = (ObjectKind::Chain, family, table, chain);
        self.plain(uapi::NFT_MSG_DELCHAIN, Operation::Delete, object, &attributes, None);
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &str) {
        let attributes = [(uapi::NFTA_RULE_TABLE, table), (uapi::NFTA_RULE_CHAIN, chain)];
        let object = (ObjectKind::Chain, family, table, chain);
        self.plain(uapi::NFT_MSG_DELRULE, Operation::Flush, object, &attributes, None);
    }

    /// Appends a rule to its chain.
    pub fn add_rule(&mut self, rule: &Rule) {
        self.rule(rule, uapi::NLM_F_CREATE | uapi::NLM_F_APPEND, Operation::Add, None);
    }

    /// Puts a rule before the others of its chain.
    pub fn insert_rule(&mut self, rule: &Rule) {
        self.rule(rule, uapi::NLM_F_CREATE, Operation::Add, None);
    }

    /// Puts a rule in the place of another of the same chain.
    pub fn replace_rule(&mut self, handle: u64, rule: &Rule) {
        self.rule(rule, uapi::NLM_F_REPLACE, Operation::Replace, Some(handle));
    }

    /// Deletes a rule by the kernel's handle.
    pub fn delete_rule(&mut self, family: Family, table: &str, chain: &str, handle: u64) {
        let attributes = [(uapi::NFTA_RULE_TABLE, table), (uapi::NFTA_RULE_CHAIN, chain)];
        let object = (ObjectKind::Rule, family, table, chain);
        let handle = Some((uapi::NFTA_RULE_HANDLE, handle));
        self.plain(uapi::NFT_MSG_DELRULE, Operation::Delete, object, &attributes, handle);
    }

    /// Adds a set or map unless it exists.
    pub fn add_set(&mut self, set: &Set) {
        self.set(set, uapi::NLM_F_CREATE);
    }

    /// Adds a set or map that must not exist.
    pub fn create_set(&mut self, set: &Set) {
        self.set(set, uapi::NLM_F_CREATE | uapi::NLM_F_EXCL);
    }

    /// Deletes a set; no rule may use it any more.
    pub fn delete_set<'a>(&mut self, set: impl Into<SetRef<'a>>) {
        let set = set.into();
        let attributes = [(uapi::NFTA_SET_TABLE, set.table), (uapi::NFTA_SET_NAME, set.name)];
        let object = (ObjectKind::Set, set.family, set.table, set.name);
        self.plain(uapi::NFT_MSG_DELSET, Operation::Delete, object, &attributes, None);
    }

    /// Deletes all elements of a set.
    pub fn flush_set<'a>(&mut self, set: impl Into<SetRef<'a>>) {
        let set = set.into();
        let attributes = [(uapi::NFTA_SET_ELEM_LIST_TABLE, set.table), (uapi::NFTA_SET_ELEM_LIST_SET, set.name)];
        let object = (ObjectKind::Set, set.family, set.table, set.name);
        self.plain(uapi::NFT_MSG_DELSETELEM, Operation::Flush, object, &attributes, None);
    }

    /// Adds a named counter, quota or limit unless it exists.
    pub fn add_stateful(&mut self, stateful: &Stateful) {
        let (family, table, own) = stateful.place();
        let object = (stateful.kind().into(), family, table, own);
        match stateful.object() {
            Ok(mut definition) => self.push(Operation::Add, object.0, |seq, scratch, writer| {
                let flags = uapi::NLM_F_REQUEST | uapi::NLM_F_CREATE;
                writer.raw(definition.message(scratch, uapi::NFT_MSG_NEWOBJ, family.number(), flags, seq));
            }),
            Err(reason) => self.invalid(object, reason),
        }
    }

    /// Deletes a named counter, quota or limit; nothing may use it any more.
    pub fn delete_stateful(&mut self, family: Family, table: &str, kind: StatefulKind, own: &str) {
        let object = (kind.into(), family, table, own);
        if let Err(reason) = name(table).and(name(own)) {
            return self.invalid(object, reason);
        }
        self.push(Operation::Delete, object.0, |seq, _, writer| {
            let message = begin(writer, uapi::NFT_MSG_DELOBJ, 0, seq, family);
            writer.attr_str(uapi::NFTA_OBJ_TABLE, table);
            writer.attr_str(uapi::NFTA_OBJ_NAME, own);
            writer.attr_be32(uapi::NFTA_OBJ_TYPE, kind.number());
            writer.end(message);
        });
    }

    /// Adds elements that must not be there; `fields` are the set's key fields.
    ///
    /// To give a key other data, delete it first in the same transaction.
    pub fn add_elements<'a, 'e>(
        &mut self,
        set: impl Into<SetRef<'a>>,
        fields: &[Field],
        elements: impl IntoIterator<Item = Element<'e>>,
    ) {
        let set: SetRef<'_> = set.into();
        let mut list = self.add_to(set, fields);
        elements.into_iter().for_each(|element| list.push(&element));
    }

    /// Deletes elements, which must be there.
    pub fn delete_elements<'a, 'e>(
        &mut self,
        set: impl Into<SetRef<'a>>,
        fields: &[Field],
        elements: impl IntoIterator<Item = Element<'e>>,
    ) {
        let set: SetRef<'_> = set.into();
        let mut list = self.delete_from(set, fields);
        elements.into_iter().for_each(|element| list.push(&element));
    }

    /// As [`Transaction::add_elements`], for a caller that makes keys one at a time.
    pub fn add_to<'a>(&'a mut self, set: impl Into<SetRef<'a>>, fields: &'a [Field]) -> ElementList<'a> {
        let flags = uapi::NLM_F_CREATE | uapi::NLM_F_EXCL;
        ElementList::new(self, set.into(), fields, (uapi::NFT_MSG_NEWSETELEM, flags, Operation::AddElements))
    }

    /// As [`Transaction::delete_elements`], for a caller that makes keys one at a time.
    pub fn delete_from<'a>(&'a mut self, set: impl Into<SetRef<'a>>, fields: &'a [Field]) -> ElementList<'a> {
        ElementList::new(self, set.into(), fields, (uapi::NFT_MSG_DELSETELEM, 0, Operation::DeleteElements))
    }

    fn table(&mut self, table: &Table, flags: u16) {
        match table.object() {
            Ok(mut object) => self.push(Operation::Add, ObjectKind::Table, |seq, scratch, writer| {
                let flags = uapi::NLM_F_REQUEST | flags;
                writer.raw(object.message(scratch, uapi::NFT_MSG_NEWTABLE, table.family.number(), flags, seq));
            }),
            Err(reason) => self.invalid((ObjectKind::Table, table.family, &table.name, ""), reason),
        }
    }

    fn chain(&mut self, chain: &Chain, flags: u16) {
        match chain.object() {
            Ok(mut object) => self.push(Operation::Add, ObjectKind::Chain, |seq, scratch, writer| {
                let flags = uapi::NLM_F_REQUEST | flags;
                writer.raw(object.message(scratch, uapi::NFT_MSG_NEWCHAIN, chain.family.number(), flags, seq));
            }),
            Err(reason) => self.invalid((ObjectKind::Chain, chain.family, &chain.table, &chain.name), reason),
        }
    }

    fn set(&mut self, set: &Set, flags: u16) {
        let kind = if set.is_map() { ObjectKind::Map } else { ObjectKind::Set };
        self.sets += 1;
        match set.object(self.sets) {
            Ok(mut object) => self.push(Operation::Add, kind, |seq, scratch, writer| {
                let flags = uapi::NLM_F_REQUEST | flags;
                writer.raw(object.message(scratch, uapi::NFT_MSG_NEWSET, set.family.number(), flags, seq));
            }),
            Err(reason) => self.invalid((kind, set.family, &set.table, &set.name), reason),
        }
    }

    fn rule(&mut self, rule: &Rule, flags: u16, operation: Operation, handle: Option<u64>) {
        match rule.object() {
            Ok(mut object) => {
                if let Some(handle) = handle {
                    object.u64(ffi::NFTNL_RULE_HANDLE, handle);
                }
                self.push(operation, ObjectKind::Rule, |seq, scratch, writer| {
                    let flags = uapi::NLM_F_REQUEST | flags;
                    writer.raw(object.message(scratch, uapi::NFT_MSG_NEWRULE, rule.family.number(), flags, seq));
                });
            }
            Err(reason) => self.invalid((ObjectKind::Rule, rule.family, &rule.table, &rule.chain), reason),
        }
    }

    /// A message that only names things.
    fn plain(
        &mut self,
        kind: u16,
        operation: Operation,
        object: (ObjectKind, Family, &str, &str),
        attributes: &[(u16, &str)],
        handle: Option<(u16, u64)>,
    ) {
        if let Some(reason) = attributes.iter().find_map(|(_, text)| name(text).err()) {
            return self.invalid(object, reason);
        }
        self.push(operation, object.0, |seq, _, writer| {
            let message = begin(writer, kind, 0, seq, object.1);
            for (attribute, text) in attributes {
                writer.attr_str(*attribute, text);
            }
            if let Some((attribute, handle)) = handle {
                writer.attr_be64(attribute, handle);
            }
            writer.end(message);
        });
    }

    fn push(&mut self, operation: Operation, kind: ObjectKind, write: impl FnOnce(u32, &mut Scratch, &mut Writer)) {
        self.records.push(Record { start: self.writer.len(), operation, kind, fields: 0, first: 0 });
        self.operations += 1;
        write(self.records.len() as u32, &mut self.scratch, &mut self.writer);
    }

    #[cold]
    pub(crate) fn invalid(
        &mut self,
        (kind, family, table, own): (ObjectKind, Family, &str, &str),
        reason: InvalidReason,
    ) {
        if self.invalid.is_none() {
            self.invalid = Some(Error::Invalid { object: Box::new(Object::new(kind, family, table, own)), reason });
        }
    }
}

/// Starts a message of nf_tables.
pub(crate) fn begin(writer: &mut Writer, kind: u16, flags: u16, seq: u32, family: Family) -> OpenMessage {
    let kind = uapi::NFNL_SUBSYS_NFTABLES << 8 | kind;
    writer.begin(kind, uapi::NLM_F_REQUEST | flags, seq, &[family.number(), 0, 0, 0])
}

/// Table and own name in a message's attributes; the own name is empty for tables, the chain's for rules.
pub(crate) fn place(kind: u16, attributes: &[u8]) -> (&str, &str) {
    let text = |kind| find(attributes, kind).and_then(|attribute| attribute.str()).unwrap_or_default();
    match kind & 0xff {
        uapi::NFT_MSG_NEWTABLE | uapi::NFT_MSG_DELTABLE => (text(uapi::NFTA_TABLE_NAME), ""),
        uapi::NFT_MSG_NEWCHAIN | uapi::NFT_MSG_DELCHAIN => (text(uapi::NFTA_CHAIN_TABLE), text(uapi::NFTA_CHAIN_NAME)),
        // Rules, sets, element lists and stateful objects: 1 is the table, 2 the chain's, set's or object's name.
        _ => (text(uapi::NFTA_SET_TABLE), text(uapi::NFTA_SET_NAME)),
    }
}

impl From<StatefulKind> for ObjectKind {
    fn from(kind: StatefulKind) -> Self {
        match kind {
            StatefulKind::Counter => Self::Counter,
            StatefulKind::Quota => Self::Quota,
            StatefulKind::Limit => Self::Limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::ElementView;
    use crate::key::Key;
    use crate::netlink::{self, find};

    const FIELDS: [Field; 3] = [Field::Ipv4Addr, Field::InetProto, Field::InetService];

    fn key(n: u32) -> Key {
        Key::new().ipv4((0x0a00_0000 + n).into()).proto(6).port(80)
    }

    #[test]
    fn long_lists_become_several_messages() {
        let keys: Vec<Key> = (0..5000).map(key).collect();
        let mut transaction = Transaction::new();
        let set = SetRef::new(Family::Ip, "t", "s");
        transaction.add_elements(set, &FIELDS, keys.iter().map(|key| Element::new(key.as_bytes())));
        assert_eq!(transaction.operations(), 5000);
        // 24 bytes an element: headers of item, key and value, and 12 of key.
        assert_eq!(transaction.messages(), (5000usize * 24).div_ceil(65_531 / 24 * 24));
        let mut read = 0;
        for (index, message) in netlink::messages(transaction.as_bytes()).enumerate() {
            assert_eq!(message.seq as usize, index + 1);
            let list = find(&message.payload[NFGEN_LEN..], uapi::NFTA_SET_ELEM_LIST_ELEMENTS).expect("list");
            for item in list.nested() {
                assert_eq!(ElementView::decode(item.value).expect("element").key, keys[read].as_bytes());
                read += 1;
            }
        }
        assert_eq!(read, 5000);
    }

    #[test]
    fn what_cannot_be_encoded_is_remembered() {
        let mut transaction = Transaction::new();
        transaction.add_table(&Table::new(Family::Ip, "a\0b"));
        let error = transaction.check().expect_err("NUL in a name");
        assert!(matches!(&error, Error::Invalid { reason: InvalidReason::Name(_), .. }), "{error:?}");
        transaction.clear();
        let short = Key::new().port(80);
        let set = SetRef::new(Family::Ip, "t", "s");
        transaction.add_elements(set, &FIELDS, [Element::new(short.as_bytes())]);
        assert_eq!(
            transaction.check().expect_err("short key").to_string(),
            "set ip t s: the key of element 0 has 2 bytes, the set's 12"
        );
        assert!(!transaction.is_empty());
    }
}

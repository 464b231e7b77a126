//! Reading the ruleset back.
//!
//! Invariants: a listing is of one generation: if the ruleset changes while it is read, reading starts again, and callers see only
//! the complete attempt (at most ten, then [`Error::Interrupted`]). Reading a large set is slow in the kernel (quadratic: 8 s for
//! 500,000 elements); [`Connection::lookup`] is for those who know the keys. Proven by the kernel test `dump`.

use nix::errno::Errno;

use crate::chain::ChainInfo;
use crate::connection::Connection;
use crate::element::ElementView;
use crate::error::{Error, Object, ObjectKind};
use crate::netlink::{self, Writer, find};
use crate::rule::RuleInfo;
use crate::set::{SetInfo, SetRef};
use crate::table::{Family, TableInfo};
use crate::uapi;

/// Bytes of memory kept for the next answer.
const KEPT: usize = 1 << 18;

impl Connection {
    /// All tables of all families.
    pub fn tables(&mut self) -> Result<Vec<TableInfo>, Error> {
        self.dump(Object::ruleset(), uapi::NFT_MSG_GETTABLE, 0, |_| {})?;
        Ok(self.collect(TableInfo::decode))
    }

    /// All chains of a table, in the order of their creation.
    pub fn chains(&mut self, family: Family, table: &str) -> Result<Vec<ChainInfo>, Error> {
        self.dump(place(family, table), uapi::NFT_MSG_GETCHAIN, family.number(), |writer| {
            writer.attr_str(uapi::NFTA_CHAIN_TABLE, table);
        })?;
        // Kernels do not filter chains by table.
        Ok(self.collect(ChainInfo::decode).into_iter().filter(|chain| chain.table == table).collect())
    }

    /// All sets and maps of a table.
    pub fn sets(&mut self, family: Family, table: &str) -> Result<Vec<SetInfo>, Error> {
        self.dump(place(family, table), uapi::NFT_MSG_GETSET, family.number(), |writer| {
            writer.attr_str(uapi::NFTA_SET_TABLE, table);
        })?;
        Ok(self.collect(SetInfo::decode).into_iter().filter(|set| set.table == table).collect())
    }

    /// All rules of a table, in order within each chain.
    pub fn rules(&mut self, family: Family, table: &str) -> Result<Vec<RuleInfo>, Error> {
        self.dump(place(family, table), uapi::NFT_MSG_GETRULE, family.number(), |writer| {
            writer.attr_str(uapi::NFTA_RULE_TABLE, table);
        })?;
        Ok(self.collect(RuleInfo::decode).into_iter().filter(|rule| rule.table == table).collect())
    }

    /// What the rules of a chain have counted, in their order, as far as they count. Asks once: the counters may go on meanwhile,
    /// and a ruleset that changes elsewhere does not matter.
    pub fn counters(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<u64>, Error> {
        let object = Object::new(ObjectKind::Chain, family, table, chain);
        self.question(&object, uapi::NFT_MSG_GETRULE, uapi::NLM_F_DUMP, family.number(), &|writer: &mut Writer| {
            writer.attr_str(uapi::NFTA_RULE_TABLE, table);
            writer.attr_str(uapi::NFTA_RULE_CHAIN, chain);
        })?;
        // Kernels filter by chain; should one not, the others' are left out.
        let rules = self.collect(RuleInfo::decode).into_iter();
        Ok(rules.filter(|rule| rule.table == table && rule.chain == chain).filter_map(|rule| rule.packets).collect())
    }

    /// Shows each element of a set once.
    pub fn elements<'a>(
        &mut self,
        set: impl Into<SetRef<'a>>,
        mut show: impl FnMut(ElementView<'_>),
    ) -> Result<(), Error> {
        let set = set.into();
        let object = Object::new(ObjectKind::Set, set.family, set.table, set.name);
        self.dump(object, uapi::NFT_MSG_GETSETELEM, set.family.number(), |writer| name(writer, set))?;
        for message in netlink::messages(&self.dumped) {
            list(message.payload).for_each(&mut show);
        }
        // A large one is not likely to be followed by another.
        self.dumped.clear();
        self.dumped.shrink_to(KEPT);
        Ok(())
    }

    /// One element, if it is there; `show` sees it and its result is returned.
    pub fn element<'a, T>(
        &mut self,
        set: impl Into<SetRef<'a>>,
        key: &[u8],
        show: impl FnOnce(ElementView<'_>) -> T,
    ) -> Result<Option<T>, Error> {
        let set = set.into();
        let object = Object::new(ObjectKind::Set, set.family, set.table, set.name);
        let asked = self.ask(object, uapi::NFT_MSG_GETSETELEM, set.family.number(), |writer| {
            name(writer, set);
            let elements = writer.begin_nest(uapi::NFTA_SET_ELEM_LIST_ELEMENTS);
            crate::element::encode(writer, &crate::element::Element::new(key));
            writer.end_nest(elements);
        });
        match asked {
            // ENOENT also says that the set is missing; then nothing is in it either.
            Err(Error::Query { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => {
                let found = netlink::messages(&self.dumped).find_map(|message| list(message.payload).next());
                Ok(found.map(show))
            }
        }
    }

    fn collect<T>(&self, decode: fn(u8, &[u8]) -> Option<T>) -> Vec<T> {
        netlink::messages(&self.dumped)
            .filter_map(|message| decode(*message.payload.first()?, message.payload.get(4..)?))
            .collect()
    }
}

fn place(family: Family, table: &str) -> Object {
    Object::new(ObjectKind::Table, family, table, "")
}

pub(crate) fn name(writer: &mut Writer, set: SetRef<'_>) {
    writer.attr_str(uapi::NFTA_SET_ELEM_LIST_TABLE, set.table);
    writer.attr_str(uapi::NFTA_SET_ELEM_LIST_SET, set.name);
}

/// The elements in a message.
pub(crate) fn list(payload: &[u8]) -> impl Iterator<Item = ElementView<'_>> {
    let elements = payload.get(4..).and_then(|bytes| find(bytes, uapi::NFTA_SET_ELEM_LIST_ELEMENTS));
    netlink::attributes(elements.map_or(&[], |elements| elements.value))
        .filter_map(|item| ElementView::decode(item.value))
}

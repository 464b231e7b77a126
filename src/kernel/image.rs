//! The elements of a table, read back.
//!
//! Two ways. A *listing* shows everything in a set, and is quadratic: half a million elements take the kernel seven seconds. *By key* an
//! element costs the same in a set of any size, but somebody has to know the keys. We do: the small maps are listed, and their
//! decisions say which pools there are and how many slots each has, so that they name all that anybody can reach in the three maps that
//! hold something per endpoint (`endpoints`, `member-slots`, `members`).
//!
//! What nobody can reach is to be found all the same, and removed: the leftover of a process that was killed in the middle of a large
//! change, or what somebody put there between two lives. So a set that was read by key must have exactly as many elements as were found.
//! Linux tells since 6.17 (`NFTA_SET_COUNT`); if the numbers differ, or on a kernel that does not tell, the set is listed. That is slow
//! for large sets on older kernels, once per start, and meanwhile what is programmed goes on serving.
//!
//! Why not a digest of each pool beside it in the kernel, or state saved in a file: a digest that is checked without looking at the
//! elements proves only what its writer believed, it would make every change write more, and slots in their order have to be read for
//! the next change anyway; a file can be older than the tables, or be another node's.
//!
//! Proven by `tests/kernel/adopt.rs` and `tests/kernel/reading.rs`; the figures are `bench read`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;
use std::sync::Arc;

use nft::{Connection, ElementView, SetInfo, ViewData};

use super::both::both;
use super::encode::{Mapped, member_key, slot_key};
use super::error::KernelError;
use super::skeleton::{self, ENDPOINTS, MEMBER_SLOTS, MEMBERS, Sizes, set_ref};
use crate::compile::layout::Plan;
use crate::compile::{SlotKey, TableImage, each_map};
use crate::model::Family;
use crate::model::map::{HashSet, NearMap};

/// From so many elements on, asking for them by key is faster than a listing (`bench read`: the lines cross between 50,000 and
/// 100,000).
const BY_KEY_FROM: usize = 1 << 16;

/// What the second of two who read is called, so that one sees in `top` who is busy.
const READER: &str = "reader";

/// What was found by key: the elements, and how many there were, ours or not.
type Part<K, V> = (NearMap<K, V>, usize);

/// How the maps that hold something per endpoint are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// Whichever is faster for their size.
    #[default]
    BySize,
    /// All of it in one go.
    Listing,
    /// By key, where the kernel tells how many elements there are.
    ByKey,
}

/// Comments of elements, each kept once: the elements of a Service share it.
#[derive(Debug, Default)]
pub(super) struct Labels {
    known: HashSet<Arc<str>>,
    last: Arc<str>,
}

/// Reads one table.
pub(super) struct Reader<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) family: Family,
    /// The table's sets.
    pub(super) sets: &'a [SetInfo],
    pub(super) reading: Reading,
    labels: Labels,
    /// Elements that cannot be ours.
    unknown: usize,
}

// === impl Labels ===

impl Labels {
    /// The shared form of this text.
    pub(super) fn get(&mut self, text: &str) -> Arc<str> {
        if *self.last != *text {
            self.last = match self.known.get(text) {
                Some(known) => known.clone(),
                None => text.into(),
            };
            self.known.insert(self.last.clone());
        }
        self.last.clone()
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(connection: &'a mut Connection, family: Family, sets: &'a [SetInfo], reading: Reading) -> Self {
        Self { connection, family, sets, reading, labels: Labels::default(), unknown: 0 }
    }

    /// Reads all elements.
    pub(super) fn read(mut self) -> Result<TableImage, KernelError> {
        let mut image = TableImage::default();
        each_map!(TableImage, &mut image, |map| {
            if !is_per_endpoint(map) {
                self.list_all(map)?;
            }
        });
        let slots = slots(&image);
        let direct = slots.iter().filter(|(_, sticky)| !sticky).map(|(slot, _)| *slot);
        self.per_endpoint(ENDPOINTS, direct, slot_key, &mut image.endpoints)?;
        let sticky = slots.iter().filter(|(_, sticky)| *sticky).map(|(slot, _)| *slot);
        self.per_endpoint(MEMBER_SLOTS, sticky, slot_key, &mut image.member_slots)?;
        // Several slots may lead to one member.
        let members: BTreeSet<_> = image.member_slots.values().copied().collect();
        self.per_endpoint(MEMBERS, members.iter().copied(), member_key, &mut image.members)?;
        match self.unknown {
            0 => Ok(image),
            count => {
                let what = format!("{count} elements are none of ours");
                Err(KernelError::Foreign { family: self.family, what })
            }
        }
    }

    /// Reads a map that holds something per endpoint; the keys are those that the other maps lead to.
    fn per_endpoint<K: Mapped<V> + Eq + Hash + Send, V: Send>(
        &mut self,
        set: &'static str,
        keys: impl Iterator<Item = K> + Clone + Sync,
        encode: fn(&K) -> nft::Key,
        map: &mut NearMap<K, V>,
    ) -> Result<(), KernelError> {
        let told = self.sets.iter().find(|info| info.name == set).and_then(|info| info.count);
        let asked = keys.clone().count();
        let by_key = told.filter(|told| match self.reading {
            Reading::Listing => false,
            Reading::ByKey => true,
            // With less to ask for than there is, a listing is certain.
            Reading::BySize => (BY_KEY_FROM..=asked).contains(&(*told as usize)),
        });
        let Some(told) = by_key else { return self.list_all(map) };
        let (before, unknown) = (self.connection.settled_generation()?, self.unknown);
        let (family, labels, connection) = (self.family, &mut self.labels, &mut *self.connection);
        // Two ask for half of them each: the kernel answers both at once.
        let mine = asked.div_ceil(2);
        let look_up = |connection: &mut Connection, labels: &mut Labels, (first, count): (usize, usize)| {
            let (mut found, mut counted) = (NearMap::default(), 0);
            // The first has room for all.
            found.reserve(if first == 0 { told as usize } else { count });
            let keys = keys.clone().skip(first).take(count);
            connection.lookup(set_ref(family, set), keys.map(|key| encode(&key)), |element| {
                counted += 1;
                found.extend(K::decode(family, set, &element, labels));
            })?;
            Ok::<Part<K, V>, KernelError>((found, counted))
        };
        let rest = (mine, asked - mine);
        let other = || look_up(&mut Connection::open()?, &mut Labels::default(), rest);
        let (second, first) = both(READER, other, || look_up(connection, labels, (0, mine)));
        let mut counted;
        (*map, counted) = first?;
        // Without a second connection, all of it is read by this one.
        let (found, more) = second.or_else(|_| look_up(connection, labels, rest))?;
        counted += more;
        map.extend(found);
        self.unknown += counted - map.len();
        // Something that nothing leads to, or somebody who wrote meanwhile, which an owner need not fear.
        if counted != told as usize || self.connection.settled_generation()? != before {
            tracing::debug!(%family, set, told, counted, "reading by key was not enough: listing the set");
            self.unknown = unknown;
            map.clear();
            return self.list_all(map);
        }
        Ok(())
    }

    /// Lists the sets of one kind of element.
    fn list_all<K: Mapped<V> + Eq + Hash, V>(&mut self, map: &mut NearMap<K, V>) -> Result<(), KernelError> {
        let (family, labels) = (self.family, &mut self.labels);
        let mut counted = 0;
        for set in K::SETS.iter().copied() {
            let declared = skeleton::sets(family, &Sizes::default()).into_iter().find(|declared| declared.name == set);
            if declared.is_some_and(|set| set.interval && set.key.len() == 1) {
                counted += list_ranges(self.connection, family, set, labels, map)?;
                continue;
            }
            self.connection.elements(set_ref(family, set), |element| {
                counted += 1;
                map.extend(K::decode(family, set, &element, labels));
            })?;
        }
        self.unknown += counted - map.len();
        Ok(())
    }
}

/// Whether elements of this kind are as many as endpoints.
fn is_per_endpoint<K: Mapped<V>, V>(_: &NearMap<K, V>) -> bool {
    K::SETS.iter().any(|set| [ENDPOINTS, MEMBER_SLOTS, MEMBERS].contains(set))
}

/// The slots that decisions lead to, pool by pool, and whether they are in map `member-slots`.
fn slots(image: &TableImage) -> Vec<(SlotKey, bool)> {
    let targets = image.services.values().chain(image.node_ports.values()).chain(image.hops.values());
    let mut pools: BTreeMap<_, u32> = BTreeMap::new();
    for target in targets {
        let Some(pool) = target.decision.pool else { continue };
        let (slots, sticky) = match target.decision.plan {
            Plan::Random(slots) => (u32::from(slots), false),
            Plan::Hash(_, buckets) => (buckets.count(), false),
            Plan::Dedicated => match image.dedicated.get(&pool) {
                Some(chain) => (chain.slots, chain.affinity.is_some()),
                None => continue,
            },
            // One at least; what follows instead may say more.
            Plan::Userspace => (1, false),
            Plan::Refuse | Plan::Discard | Plan::SourceRanges | Plan::LocalPolicy => continue,
        };
        // Decisions that nobody desires any more may say another number; it is the largest that leaves nothing out.
        let known = pools.entry((pool, sticky)).or_default();
        *known = slots.max(*known);
    }
    let slots = |((pool, sticky), count)| (0..count).map(move |slot| (SlotKey { pool, slot }, sticky));
    pools.into_iter().flat_map(slots).collect()
}

/// Lists a set of ranges with a single field: the kernel reports where a range begins and what comes behind it.
fn list_ranges<K: Mapped<V> + Eq + Hash, V>(
    connection: &mut Connection,
    family: Family,
    set: &'static str,
    labels: &mut Labels,
    map: &mut NearMap<K, V>,
) -> Result<usize, KernelError> {
    let mut bounds: Vec<(Vec<u8>, bool)> = Vec::new();
    connection.elements(set_ref(family, set), |element| bounds.push((element.key.to_vec(), !element.interval_end)))?;
    // At the same key one range ends before the next begins.
    bounds.sort();
    let mut bounds = bounds.into_iter().peekable();
    let mut counted = 0;
    while let Some((first, begins)) = bounds.next() {
        if !begins {
            // What comes before the first range.
            continue;
        }
        counted += 1;
        let last = match bounds.next_if(|(_, begins)| !begins) {
            Some((behind, _)) => before(behind),
            None => vec![0xff; first.len()],
        };
        let view = ElementView {
            key: &first,
            key_end: Some(&last),
            data: ViewData::None,
            comment: None,
            timeout: None,
            expires: None,
            interval_end: false,
        };
        map.extend(K::decode(family, set, &view, labels));
    }
    Ok(counted)
}

/// The big-endian number before.
fn before(mut number: Vec<u8>) -> Vec<u8> {
    for byte in number.iter_mut().rev() {
        let (less, borrow) = byte.overflowing_sub(1);
        *byte = less;
        if !borrow {
            break;
        }
    }
    number
}

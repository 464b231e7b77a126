//! Which operation goes into which transaction.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nft::{Connection, Element, Table, TableFlags, Transaction};
use nix::errno::Errno;

use super::encode::Mapped;
use super::encode::nft_family;
use super::error::KernelError;
use super::lock::InstanceLock;
use super::read::{self, Structure};
use super::skeleton::{self, AFFINITY, Counts, Sizes, set_ref};
use super::write::{self, add_chains, add_plans};
use super::{chains, read::Remembered};
use crate::compile::layout::{DedicatedChain, Locality, Plan, TABLE};
use crate::compile::{Delta, Edits, Image, TableDelta, TableImage, each_map};
use crate::model::Family;

/// Elements per transaction of a large load: the netlink lock is then held for well under 10 ms.
const CHUNK: usize = 8192;

/// The tables of this network namespace.
///
/// Belongs to one thread: every call waits for the kernel, for the time of a commit.
#[derive(Debug)]
pub struct DataPlane {
    connection: Connection,
    /// Held where tables cannot be owned.
    _lock: Option<InstanceLock>,
    flags: TableFlags,
    /// What the fixed chains are made for.
    locality: Locality,
    tables: Vec<TableState>,
    transaction: Transaction,
}

/// Reads how far rings are, for somebody who does not own the tables.
#[derive(Debug)]
pub struct PickReader(Connection);

/// What a start found.
#[derive(Debug, Default)]
pub struct Found {
    /// The elements that can be adopted.
    pub image: Image,
    /// Whether tables of ours were there.
    pub existed: bool,
    /// Why a table that was there could not be adopted; it will be replaced in one transaction.
    pub rejected: Vec<String>,
}

/// What applying a difference took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Elements added and removed.
    pub elements: usize,
    /// Transactions committed.
    pub transactions: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// Time from the first byte encoded to the last acknowledgement.
    pub duration: Duration,
    /// The longest single transaction.
    pub longest: Duration,
    /// Chains that nobody uses any more and that the kernel would not delete yet, per family: the next call tries again.
    pub stuck: [usize; 2],
}

/// What we know of one family's table.
#[derive(Debug)]
struct TableState {
    family: Family,
    /// Whether the table is there in our layout; if not, the next load builds it.
    whole: bool,
    /// Whether something of that name is there that has to go first.
    occupied: bool,
    /// Whether the base chains are there.
    active: bool,
    sizes: Sizes,
    counts: Counts,
    /// Shared and dedicated chains that are there.
    chains: BTreeSet<String>,
    /// Dedicated chains that nobody refers to any more.
    retired: BTreeSet<String>,
}

// === impl DataPlane ===

impl DataPlane {
    /// Opens the netlink connection in the calling thread's network namespace and finds out what the kernel offers. Nothing is
    /// changed yet.
    pub fn open() -> Result<Self, KernelError> {
        let mut connection = Connection::open()?;
        let features = connection.probe()?;
        let flags = TableFlags { owner: features.owner_persist, persist: features.owner_persist };
        let lock = if features.owner_persist { None } else { Some(InstanceLock::take()?) };
        let mut tables = Vec::new();
        for family in Family::ALL {
            match probe_family(&mut connection, family) {
                Ok(()) => tables.push(TableState::absent(family)),
                Err(error) if family_missing(&error) => {
                    tracing::warn!(%family, %error, "this kernel has no nftables for the family; it is not served");
                }
                Err(error) => return Err(error.into()),
            }
        }
        if tables.is_empty() {
            return Err(KernelError::NoFamily);
        }
        let locality = Locality::default();
        Ok(Self { connection, _lock: lock, flags, locality, tables, transaction: Transaction::new() })
    }

    /// Says what the fixed chains are to be made for. `true` means that tables are there that were made for something else: only
    /// [`DataPlane::replace`] can bring them there.
    #[must_use = "tables made for something else have to be replaced"]
    pub fn set_locality(&mut self, locality: Locality) -> bool {
        let stale = locality != self.locality && self.tables.iter().any(|state| state.occupied);
        self.locality = locality;
        stale
    }

    /// Takes possession of our tables, without reading them: a table that somebody else owns is known at once. Returns how many
    /// there are.
    pub fn claim(&mut self) -> Result<usize, KernelError> {
        let mut claimed = 0;
        for info in self.connection.tables()? {
            if info.name == TABLE && self.tables.iter().any(|state| nft_family(state.family) == info.family) {
                claim(&mut self.connection, &mut self.transaction, &info, self.flags)?;
                claimed += 1;
            }
        }
        Ok(claimed)
    }

    /// Reads what is there, and takes possession of it. A table of ours in another layout, or one that somebody changed, is not
    /// read: the next load replaces it.
    pub fn read(&mut self) -> Result<Found, KernelError> {
        let mut found = Found::default();
        let present = self.connection.tables()?;
        for state in &mut self.tables {
            let family = state.family;
            *state = TableState::absent(family);
            let Some(info) = present.iter().find(|table| table.name == TABLE && table.family == nft_family(family))
            else {
                continue;
            };
            found.existed = true;
            state.occupied = true;
            claim(&mut self.connection, &mut self.transaction, info, self.flags)?;
            match read::table(&mut self.connection, family, info, &self.locality) {
                Ok((structure, image)) => {
                    state.adopt(structure, &image);
                    *found.image.table_mut(family) = image;
                }
                Err(KernelError::Foreign { what, .. }) => found.rejected.push(format!("{family}: {what}")),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Applies a difference to what [`DataPlane::read`] found and earlier calls left. On an error nothing of the transaction that
    /// failed was applied; read again before trying again.
    pub fn apply(&mut self, delta: &Delta) -> Result<Applied, KernelError> {
        let mut work = Work::begin();
        let done = if self.tables.iter().all(|state| state.whole && state.active) {
            self.update(delta, &mut work)
        } else {
            self.load(delta, &mut work)
        };
        done.map_err(|error| self.outgrown(error))?;
        self.delete_retired(&mut work);
        Ok(work.end())
    }

    /// Replaces the tables as a whole, in one transaction, by what `everything` says: for a map that outgrew its size and for a
    /// table of another layout. Connections being set up see the old table or the new one. Clients stay with their endpoints as far
    /// as the new table has those under the same numbers.
    pub fn replace(&mut self, everything: &Delta) -> Result<Applied, KernelError> {
        let families: Vec<_> = self.families().collect();
        self.replace_tables(&families, everything)
    }

    /// Replaces the tables of these families, in one transaction.
    fn replace_tables(&mut self, families: &[Family], everything: &Delta) -> Result<Applied, KernelError> {
        let mut work = Work::begin();
        self.transaction.clear();
        for state in self.tables.iter_mut().filter(|state| families.contains(&state.family)) {
            let delta = everything.table(state.family);
            let occupied = state.occupied;
            let remembered = if occupied { read::affinity(&mut self.connection, state.family) } else { Vec::new() };
            *state = TableState { sizes: sizes_for(delta), ..TableState::absent(state.family) };
            if occupied {
                self.transaction.delete_table(nft_family(state.family), TABLE);
            }
            state.add_structure(&mut self.transaction, self.flags, &self.locality);
            state.add_elements(&mut self.transaction, delta);
            state.remember(&mut self.transaction, &remembered);
            add_chains(&mut self.transaction, chains::base_chains(state.family));
            work.elements += delta.len();
        }
        self.commit(&mut work)?;
        for state in self.tables.iter_mut().filter(|state| families.contains(&state.family)) {
            state.installed(everything.table(state.family));
        }
        Ok(work.end())
    }

    /// How many packets have picked by a ring's chain; its next pick takes the slot of that number, modulo the size of the ring.
    pub fn picks(&mut self, family: Family, ring: &DedicatedChain) -> Result<u64, KernelError> {
        Ok(picks(&mut self.connection, family, ring)?)
    }

    /// Removes our tables. Returns how many there were.
    pub fn remove(&mut self) -> Result<usize, KernelError> {
        let present = self.connection.tables()?;
        let ours: Vec<_> = present
            .into_iter()
            .filter(|info| {
                info.name == TABLE && self.tables.iter().any(|state| nft_family(state.family) == info.family)
            })
            .collect();
        for info in &ours {
            claim(&mut self.connection, &mut self.transaction, info, self.flags)?;
        }
        if !ours.is_empty() {
            self.transaction.clear();
            for info in &ours {
                self.transaction.delete_table(info.family, TABLE);
            }
            self.connection.commit(&self.transaction)?;
        }
        for state in &mut self.tables {
            *state = TableState::absent(state.family);
        }
        Ok(ours.len())
    }

    /// The families served.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.tables.iter().map(|state| state.family)
    }

    /// Builds what is missing: structure, then elements in chunks, then the base chains, so that no packet meets half a table.
    /// What a predecessor left unfinished is finished.
    fn load(&mut self, delta: &Delta, work: &mut Work) -> Result<(), KernelError> {
        let in_the_way: Vec<_> =
            self.tables.iter().filter(|state| state.occupied && !state.whole).map(|state| state.family).collect();
        if !in_the_way.is_empty() {
            // Something stands in our place: only one transaction can replace it without a gap. Nothing was adopted from it, so its
            // part of the difference is everything; the part of a table that was adopted is not.
            let applied = self.replace_tables(&in_the_way, delta)?;
            work.add(applied);
            let mut rest = delta.clone();
            for family in in_the_way {
                *rest.table_mut(family) = TableDelta::default();
            }
            return self.load(&rest, work);
        }
        self.transaction.clear();
        for state in self.tables.iter_mut().filter(|state| !state.whole) {
            state.sizes = sizes_for(delta.table(state.family));
            state.add_structure(&mut self.transaction, self.flags, &self.locality);
        }
        self.commit(work)?;
        for state in self.tables.iter_mut().filter(|state| !state.whole) {
            (state.whole, state.occupied) = (true, true);
        }
        self.update(delta, work)?;
        self.transaction.clear();
        for state in self.tables.iter().filter(|state| !state.active) {
            add_chains(&mut self.transaction, chains::base_chains(state.family));
        }
        self.commit(work)?;
        for state in &mut self.tables {
            state.active = true;
        }
        Ok(())
    }

    /// Changes elements of tables that are whole.
    fn update(&mut self, delta: &Delta, work: &mut Work) -> Result<(), KernelError> {
        for state in &self.tables {
            state.check_room(delta.table(state.family))?;
        }
        work.elements += self.tables.iter().map(|state| delta.table(state.family).len()).sum::<usize>();
        // Chains first, before anything leads to them: a packet keeps the generation of rules that it began with, while every lookup
        // sees the newest elements. One that is on its way during a commit would find a chain of the same commit still empty.
        self.transaction.clear();
        for state in &mut self.tables {
            state.add_missing_chains(&mut self.transaction, delta.table(state.family));
        }
        self.commit(work)?;
        if delta.len() <= CHUNK {
            self.transaction.clear();
            for state in &mut self.tables {
                let delta = delta.table(state.family);
                write::remove_all(&mut self.transaction, state.family, delta);
                state.add_elements(&mut self.transaction, delta);
            }
            self.commit(work)?;
        } else {
            self.update_in_phases(delta, work)?;
        }
        for state in &mut self.tables {
            state.applied(delta.table(state.family));
        }
        Ok(())
    }

    /// A large difference. First come slots that were not there: no frontend refers to them yet. Then, in one transaction, all
    /// that changes or is referred to. Last go slots that nobody refers to any more. Into a table that no packet sees yet
    /// everything comes in small pieces.
    fn update_in_phases(&mut self, delta: &Delta, work: &mut Work) -> Result<(), KernelError> {
        let unseen = |state: &TableState| !state.active && state.counts.is_empty();
        if self.tables.iter().all(unseen) {
            for index in 0..self.tables.len() {
                let family = self.tables[index].family;
                each_map!(TableDelta, delta.table(family), |edits| self.add_in_chunks(family, edits.added(), work)?);
            }
            return Ok(());
        }
        let mut middle = delta.clone();
        for family in self.families().collect::<Vec<_>>() {
            let (whole, table) = (delta.table(family), middle.table_mut(family));
            macro_rules! add_ahead {
                ($($map:ident),*) => {$(
                    self.add_in_chunks(family, whole.$map.created(), work)?;
                    table.$map.retain_changing();
                )*};
            }
            add_ahead!(endpoints, members, member_slots);
        }
        self.transaction.clear();
        for state in &mut self.tables {
            write::remove_all(&mut self.transaction, state.family, middle.table(state.family));
            state.add_elements(&mut self.transaction, middle.table(state.family));
        }
        self.commit(work)?;
        for family in self.families().collect::<Vec<_>>() {
            let table = delta.table(family);
            self.remove_in_chunks(family, table.endpoints.vanished(), work)?;
            self.remove_in_chunks(family, table.member_slots.vanished(), work)?;
            self.remove_in_chunks(family, table.members.vanished(), work)?;
        }
        Ok(())
    }

    /// Writes elements, in transactions of a size that the netlink lock is not held for long.
    fn in_chunks<'a, K: 'a, V: 'a>(
        &mut self,
        elements: impl Iterator<Item = (&'a K, &'a V)>,
        work: &mut Work,
        write: impl Fn(&mut Transaction, &mut dyn Iterator<Item = (&'a K, &'a V)>),
    ) -> Result<(), KernelError> {
        let mut elements = elements.peekable();
        while elements.peek().is_some() {
            self.transaction.clear();
            write(&mut self.transaction, &mut elements.by_ref().take(CHUNK));
            self.commit(work)?;
        }
        Ok(())
    }

    fn add_in_chunks<'a, K: Mapped<V> + 'a, V: 'a>(
        &mut self,
        family: Family,
        elements: impl Iterator<Item = (&'a K, &'a V)>,
        work: &mut Work,
    ) -> Result<(), KernelError> {
        self.in_chunks(elements, work, |transaction, chunk| write::add(transaction, family, chunk))
    }

    fn remove_in_chunks<'a, K: Mapped<V> + 'a, V: 'a>(
        &mut self,
        family: Family,
        elements: impl Iterator<Item = (&'a K, &'a V)>,
        work: &mut Work,
    ) -> Result<(), KernelError> {
        self.in_chunks(elements, work, |transaction, chunk| write::remove(transaction, family, chunk))
    }

    /// A set that is full says so by ENFILE (`nft_add_set_elem`): the count here was wrong, and the remedy is the same.
    fn outgrown(&self, error: KernelError) -> KernelError {
        let KernelError::Nft(refused) = &error else { return error };
        let (Some(Errno::ENFILE), Some(object)) = (refused.errno(), refused.object()) else { return error };
        let Some(map) = skeleton::growing().find(|map| *map == object.name) else { return error };
        let state = self.tables.iter().find(|state| Some(nft_family(state.family)) == object.family);
        let Some(state) = state else { return error };
        KernelError::Outgrown { family: state.family, map, size: state.sizes.get(map).unwrap_or_default() }
    }

    /// Deletes chains that nobody refers to any more, without waiting. A refusal is no failure: kernels before
    /// 6.2 drop references late, and the next call tries again.
    fn delete_retired(&mut self, work: &mut Work) {
        if self.tables.iter().all(|state| state.retired.is_empty()) {
            return;
        }
        let retired: Vec<_> = self
            .tables
            .iter_mut()
            .flat_map(|state| std::mem::take(&mut state.retired).into_iter().map(|name| (state.family, name)))
            .collect();
        // All at once if possible; if one of them is stuck, the others need not stay.
        if self.delete_chains(&retired, work).is_err() {
            for one in &retired {
                if let Err(error) = self.delete_chains(std::slice::from_ref(one), work) {
                    tracing::debug!(%error, "a chain that is no longer used stays until later");
                    let (family, name) = one.clone();
                    work.stuck[family as usize] += 1;
                    self.tables.iter_mut().filter(|state| state.family == family).for_each(|state| {
                        state.retired.insert(name.clone());
                    });
                }
            }
        }
    }

    fn delete_chains(&mut self, chains: &[(Family, String)], work: &mut Work) -> Result<(), KernelError> {
        self.transaction.clear();
        for (family, name) in chains {
            self.transaction.flush_chain(nft_family(*family), TABLE, name);
            self.transaction.delete_chain(nft_family(*family), TABLE, name);
        }
        self.connection.commit_once(&self.transaction)?;
        work.transactions += 1;
        for (family, name) in chains {
            self.tables.iter_mut().filter(|state| state.family == *family).for_each(|state| {
                state.chains.remove(name);
            });
        }
        Ok(())
    }

    fn commit(&mut self, work: &mut Work) -> Result<(), KernelError> {
        if self.transaction.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        self.connection.commit(&self.transaction)?;
        work.longest = work.longest.max(begin.elapsed());
        work.bytes += self.transaction.len();
        work.transactions += 1;
        Ok(())
    }
}

/// What the one rule of a ring's chain that counts has counted.
fn picks(connection: &mut Connection, family: Family, ring: &DedicatedChain) -> Result<u64, nft::Error> {
    let counters = connection.counters(nft_family(family), TABLE, &ring.name())?;
    Ok(counters.into_iter().next().unwrap_or_default())
}

// === impl PickReader ===

impl PickReader {
    /// Opens a netlink connection in the calling thread's network namespace.
    pub fn open() -> Result<Self, KernelError> {
        Ok(Self(Connection::open()?))
    }

    /// As [`DataPlane::picks`].
    pub fn picks(&mut self, family: Family, ring: &DedicatedChain) -> Result<u64, KernelError> {
        Ok(picks(&mut self.0, family, ring)?)
    }
}

// === impl TableState ===

impl TableState {
    fn absent(family: Family) -> Self {
        Self {
            family,
            whole: false,
            occupied: false,
            active: false,
            sizes: Sizes::for_counts(&Counts::default()),
            counts: Counts::default(),
            chains: BTreeSet::new(),
            retired: BTreeSet::new(),
        }
    }

    fn adopt(&mut self, structure: Structure, image: &TableImage) {
        self.whole = true;
        self.active = structure.active;
        self.sizes = structure.sizes;
        self.counts = Counts::default();
        each_map!(TableImage, image, |map| tally(map.iter(), map.len(), 1, &mut self.counts));
        let used: BTreeSet<_> = image.dedicated.values().map(DedicatedChain::name).collect();
        let is_dedicated = |name: &String| DedicatedChain::from_name(name).is_some();
        self.retired =
            structure.chains.iter().filter(|name| is_dedicated(name) && !used.contains(*name)).cloned().collect();
        self.chains = structure.chains;
    }

    fn add_structure(&mut self, transaction: &mut Transaction, flags: TableFlags, locality: &Locality) {
        transaction.add_table(&skeleton::table(self.family, flags, locality));
        for set in skeleton::sets(self.family, &self.sizes) {
            transaction.add_set(&set);
        }
        add_chains(transaction, chains::fixed_chains(self.family, locality));
        let shared = chains::FIXED_PLANS.iter().filter_map(|plan| chains::shared_chain(self.family, *plan));
        for (chain, rules) in shared {
            self.chains.insert(chain.name.clone());
            add_chains(transaction, [(chain, rules)]);
        }
        add_plans(transaction, self.family, &chains::FIXED_PLANS);
    }

    /// Fills map `affinity` with what another table remembered.
    fn remember(&self, transaction: &mut Transaction, remembered: &[Remembered]) {
        let fields = write::key_fields(self.family, AFFINITY);
        let elements = remembered.iter().map(|one| Element::value(&one.key, &one.member).timeout(one.left));
        transaction.add_elements(set_ref(self.family, AFFINITY), fields, elements);
    }

    /// Adds the chains that a difference needs and the table lacks.
    fn add_missing_chains(&mut self, transaction: &mut Transaction, delta: &TableDelta) {
        let targets = delta.services.added().map(|(_, target)| target);
        let targets = targets.chain(delta.node_ports.added().map(|(_, target)| target));
        let targets = targets.chain(delta.hops.added().map(|(_, target)| target));
        let plans: BTreeSet<Plan> = targets.map(|target| target.decision.plan).collect();
        for plan in plans {
            let Some((chain, rules)) = chains::shared_chain(self.family, plan) else { continue };
            if self.chains.insert(chain.name.clone()) {
                add_chains(transaction, [(chain, rules)]);
                add_plans(transaction, self.family, &[plan]);
            }
        }
        for (_, dedicated) in delta.dedicated.added() {
            let name = dedicated.name();
            self.retired.remove(&name);
            if self.chains.insert(name) {
                add_chains(transaction, [chains::dedicated_chain(self.family, dedicated)]);
            }
        }
    }

    /// Adds elements, and the chains they need.
    fn add_elements(&mut self, transaction: &mut Transaction, delta: &TableDelta) {
        self.add_missing_chains(transaction, delta);
        write::add_all(transaction, self.family, delta);
    }

    fn check_room(&self, delta: &TableDelta) -> Result<(), KernelError> {
        let mut counts = self.counts.clone();
        if delta.len() > CHUNK {
            // In phases, slots that are new come before slots that go.
            ahead(delta, &mut counts);
        } else {
            count(delta, &mut counts);
        }
        for map in skeleton::growing() {
            let size = self.sizes.get(map).unwrap_or(u32::MAX);
            if counts.get(map) > size as usize {
                return Err(KernelError::Outgrown { family: self.family, map, size });
            }
        }
        Ok(())
    }

    fn applied(&mut self, delta: &TableDelta) {
        count(delta, &mut self.counts);
        let used: BTreeSet<String> = delta.dedicated.added().map(|(_, chain)| chain.name()).collect();
        for (_, chain) in delta.dedicated.removed() {
            let name = chain.name();
            if !used.contains(&name) && self.chains.contains(&name) {
                self.retired.insert(name);
            }
        }
    }

    fn installed(&mut self, everything: &TableDelta) {
        (self.whole, self.occupied, self.active) = (true, true, true);
        self.counts = Counts::default();
        self.applied(everything);
    }
}

// === impl Work ===

/// Adds up what an operation took.
struct Work {
    begin: Instant,
    applied: Applied,
}

impl std::ops::Deref for Work {
    type Target = Applied;

    fn deref(&self) -> &Applied {
        &self.applied
    }
}

impl std::ops::DerefMut for Work {
    fn deref_mut(&mut self) -> &mut Applied {
        &mut self.applied
    }
}

impl Work {
    fn begin() -> Self {
        Self { begin: Instant::now(), applied: Applied::default() }
    }

    fn add(&mut self, other: Applied) {
        self.elements += other.elements;
        self.transactions += other.transactions;
        self.bytes += other.bytes;
        self.longest = self.longest.max(other.longest);
        for (stuck, more) in self.stuck.iter_mut().zip(other.stuck) {
            *stuck += more;
        }
    }

    fn end(mut self) -> Applied {
        self.applied.duration = self.begin.elapsed();
        self.applied
    }
}

// === asking ===

fn sizes_for(delta: &TableDelta) -> Sizes {
    let mut counts = Counts::default();
    count(delta, &mut counts);
    Sizes::for_counts(&counts)
}

/// Follows a difference with numbers of elements.
fn count(delta: &TableDelta, counts: &mut Counts) {
    fn follow<K: Mapped<V> + Ord, V: PartialEq>(edits: &Edits<K, V>, counts: &mut Counts) {
        if let [set] = K::SETS {
            return counts.add(set, edits.growth());
        }
        tally(edits.added(), edits.len(), 1, counts);
        tally(edits.removed(), edits.len(), -1, counts);
    }
    each_map!(TableDelta, delta, |edits| follow(edits, counts));
}

/// As [`count`], as if nothing were removed.
fn ahead(delta: &TableDelta, counts: &mut Counts) {
    each_map!(TableDelta, delta, |edits| tally(edits.created(), edits.created().count(), 1, counts));
}

/// Counts elements, of which there are so many, each in its set. Where there is but one, none of them is looked at.
fn tally<'a, K: Mapped<V> + 'a, V: 'a>(
    elements: impl Iterator<Item = (&'a K, &'a V)>,
    len: usize,
    each: isize,
    counts: &mut Counts,
) {
    if let [set] = K::SETS {
        return counts.add(set, len.cast_signed() * each);
    }
    elements.for_each(|(key, value)| counts.add(key.set(value), each));
}

fn probe_family(connection: &mut Connection, family: Family) -> Result<(), nft::Error> {
    let scratch = Table::new(nft_family(family), format!("{TABLE}-probe-{}", std::process::id()));
    let mut transaction = Transaction::new();
    transaction.add_table(&scratch);
    transaction.delete_table(scratch.family, &scratch.name);
    connection.commit(&transaction)
}

fn family_missing(error: &nft::Error) -> bool {
    use nix::errno::Errno;
    matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT))
}

/// Makes an orphaned table ours, if tables can be owned here.
fn claim(
    connection: &mut Connection,
    transaction: &mut Transaction,
    info: &nft::TableInfo,
    flags: TableFlags,
) -> Result<(), KernelError> {
    if let Some(port) = info.owner.filter(|port| *port != connection.port()) {
        return Err(nft::Error::Owned { family: info.family, table: info.name.clone(), port }.into());
    }
    // When an owner ends, the kernel takes the flag OWNER away and leaves PERSIST; only such a table can be given a new owner.
    if flags.owner && info.flags.persist && !info.flags.owner {
        transaction.clear();
        transaction.add_table(&Table { flags, ..Table::new(info.family, info.name.clone()) });
        connection.commit(transaction)?;
    }
    Ok(())
}

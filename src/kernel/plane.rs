//! The tables of a network namespace: opening, adopting, replacing and removing them, and which operation goes into which transaction.
//!
//! [`DataPlane`] is in four parts: here are the operations on tables as a whole; `update` is the order in which a difference reaches
//! tables that stay; `pipeline` has the next part of a large one made meanwhile; `table` is what is known of one of them. `work` adds up what an
//! operation took.
//!
//! Proven by `tests/kernel/`: `adopt` for tables as a whole, `change` and `large` for differences.

mod pipeline;
mod table;
mod update;
mod work;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nft::{Connection, Table, TableFlags, Transaction};

use self::table::{TableState, sizes_for};
use self::work::Work;
use super::chains;
use super::encode::nft_family;
use super::error::KernelError;
use super::image::Reading;
use super::lock::InstanceLock;
use super::read;
use super::shadows::{self, Shadow};
use super::write::add_chains;
use crate::compile::layout::{DedicatedChain, Locality, TABLE};
use crate::compile::{Delta, Image};
use crate::model::Family;

pub use self::work::Applied;

/// Elements per transaction of a large load: the netlink lock is then held for well under 10 ms.
const CHUNK: usize = 8192;

/// Bytes of a transaction's memory that are kept for the next one. Chunks of a large load fit; only the replacement of a large table
/// does not.
const KEPT: usize = 2 << 20;

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
    /// The ruleset's generation when the tables were read.
    generation: Option<u32>,
    transaction: Transaction,
    /// Hears of each transaction that the kernel took: time and bytes.
    measure: Measure,
}

/// Hears how long a transaction took and how many bytes it had.
pub type Measure = fn(Duration, usize);

/// Who may change our tables while we live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody else, where the kernel has owners of tables (Linux 6.9).
    #[default]
    WherePossible,
    /// Anybody, as on older kernels. What somebody else changes is noticed ([`super::watch`]).
    Shared,
}
/// Reads how far rings are, for somebody who does not own the tables.
#[derive(Debug)]
pub struct PickReader(Connection);

/// Elements per part that [`DataPlane::build`] likes best: each is one transaction.
pub const PART: usize = CHUNK / 2;

/// Elements that differ after which one transaction is enough and another takes the rest of a storm: some 4 ms in the kernel.
pub const SHARE: usize = 2048;

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

// === impl DataPlane ===

impl DataPlane {
    /// Opens the netlink connection in the calling thread's network namespace and finds out what the kernel offers. Nothing is
    /// changed yet.
    pub fn open() -> Result<Self, KernelError> {
        Self::open_as(Ownership::WherePossible)
    }

    /// As [`DataPlane::open`], with a say in who else may change our tables.
    pub fn open_as(ownership: Ownership) -> Result<Self, KernelError> {
        let mut connection = Connection::open()?;
        let owned = ownership == Ownership::WherePossible && connection.probe()?.owner_persist;
        let flags = TableFlags { owner: owned, persist: owned };
        let lock = if owned { None } else { Some(InstanceLock::take()?) };
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
        let (transaction, measure): (_, Measure) = (Transaction::new(), |_, _| {});
        Ok(Self { connection, _lock: lock, flags, locality, tables, generation: None, transaction, measure })
    }

    /// Has each transaction reported from now on.
    pub fn measured_by(&mut self, measure: Measure) {
        self.measure = measure;
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
        self.read_by(Reading::BySize)
    }

    /// As [`DataPlane::read`], with a say in how large maps are read. What is found is the same.
    pub fn read_by(&mut self, reading: Reading) -> Result<Found, KernelError> {
        let mut found = Found::default();
        self.claim()?;
        self.generation = Some(self.connection.settled_generation()?);
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
            match read::table(&mut self.connection, family, info, &self.locality, reading) {
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

    /// Whether the tables are still as [`DataPlane::read`] found them: nobody else can change what we own, and where tables have no
    /// owners nobody must have changed anything. To be asked before the first change.
    pub fn is_as_read(&mut self) -> Result<bool, KernelError> {
        if self.generation == Some(self.connection.settled_generation()?) {
            return Ok(true);
        }
        let (port, present) = (self.connection.port(), self.connection.tables()?);
        let as_found = |state: &TableState| {
            let info = present.iter().find(|info| info.name == TABLE && info.family == nft_family(state.family));
            info.map_or(!state.occupied, |info| state.occupied && info.owner == Some(port))
        };
        Ok(self.generation.is_some() && self.tables.iter().all(as_found))
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

    /// Whether there is no table of ours, as far as we know.
    pub fn is_vacant(&self) -> bool {
        self.tables.iter().all(|state| !state.occupied)
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

    /// Chains of others that may translate connections to Services before ours are asked.
    pub fn shadows(&mut self) -> Result<BTreeSet<Shadow>, KernelError> {
        shadows::find(&mut self.connection)
    }

    /// The netlink port of our connection, by which the kernel tells our changes from those of others.
    pub fn port(&self) -> u32 {
        self.connection.port()
    }

    /// How many elements of ours the tables have, as far as we know.
    pub fn elements(&self) -> usize {
        self.tables.iter().map(|state| state.counts.total()).sum()
    }

    /// The families served.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.tables.iter().map(|state| state.family)
    }

    fn commit(&mut self, work: &mut Work) -> Result<(), KernelError> {
        if self.transaction.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        self.connection.commit(&self.transaction)?;
        let took = begin.elapsed();
        (self.measure)(took, self.transaction.len());
        work.longest = work.longest.max(took);
        work.bytes += self.transaction.len();
        work.transactions += 1;
        if self.transaction.len() > KEPT {
            self.transaction = Transaction::new();
        }
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

// === asking ===

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

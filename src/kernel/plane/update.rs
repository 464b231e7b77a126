//! The order in which a difference reaches the kernel: the first load, changes of ordinary size, large ones in phases, and the chains
//! that are left over.

use std::thread;
use std::time::Duration;

use nft::Transaction;
use nix::errno::Errno;

use super::table::{TableState, sizes_for};
use super::work::Work;
use super::{CHUNK, DataPlane};
use crate::compile::layout::TABLE;
use crate::compile::{Delta, Phases, TableDelta, each_map};
use crate::kernel::chains;
use crate::kernel::encode::{Mapped, nft_family};
use crate::kernel::error::KernelError;
use crate::kernel::skeleton;
use crate::kernel::write::{self, add_chains};
use crate::model::Family;

/// Before what packets on their way may still look for is taken away. Between two of their questions lies less than a microsecond, unless the
/// host takes the CPU away just then.
const PASSAGE: Duration = Duration::from_millis(1);

impl DataPlane {
    /// Builds what is missing: structure, then elements in chunks, then the base chains, so that no packet meets half a table.
    /// What a predecessor left unfinished is finished.
    pub(super) fn load(&mut self, delta: &Delta, work: &mut Work) -> Result<(), KernelError> {
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
        for state in self.tables.iter_mut().filter(|state| !state.whole) {
            state.sizes = sizes_for(delta.table(state.family));
        }
        self.found(work)?;
        self.update(delta, work)?;
        self.activate(work)
    }

    /// Makes the tables that are missing, without elements and base chains.
    pub(super) fn found(&mut self, work: &mut Work) -> Result<(), KernelError> {
        self.transaction.clear();
        for state in self.tables.iter_mut().filter(|state| !state.whole) {
            state.add_structure(&mut self.transaction, self.flags, &self.locality);
        }
        self.commit(work)?;
        for state in self.tables.iter_mut().filter(|state| !state.whole) {
            (state.whole, state.occupied) = (true, true);
        }
        Ok(())
    }

    /// Adds the base chains where they are missing: from now on packets see the table.
    pub(super) fn activate(&mut self, work: &mut Work) -> Result<(), KernelError> {
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
    pub(super) fn update(&mut self, delta: &Delta, work: &mut Work) -> Result<(), KernelError> {
        // Everything at once, unless it is too much, or packets may be on their way to what goes.
        let small = (delta.len() <= CHUNK).then(|| Phases::of_small(delta));
        let overlap = small.as_ref().is_none_or(|phases| !phases.behind.is_empty());
        for state in &self.tables {
            state.check_room(delta.table(state.family), overlap)?;
        }
        work.elements += self.tables.iter().map(|state| delta.table(state.family).len()).sum::<usize>();
        // Chains first, before anything leads to them: a packet keeps the generation of rules that it began with, while every lookup
        // sees the newest elements. One that is on its way during a commit would find a chain of the same commit still empty.
        self.transaction.clear();
        for state in &mut self.tables {
            state.add_missing_chains(&mut self.transaction, delta.table(state.family));
        }
        self.commit(work)?;
        // Into tables that no packet sees yet everything comes in small pieces.
        let unseen = |state: &TableState| !state.active && state.counts.is_empty();
        match small {
            Some(phases) => self.update_in_phases(&phases, work)?,
            None if self.tables.iter().all(unseen) => {
                for family in self.families().collect::<Vec<_>>() {
                    each_map!(TableDelta, delta.table(family), |edits| self.add_in_chunks(
                        family,
                        edits.added(),
                        work
                    )?);
                }
            }
            None => self.update_in_phases(&Phases::of_large(delta), work)?,
        }
        for state in &mut self.tables {
            state.applied(delta.table(state.family));
        }
        Ok(())
    }

    /// First slots that were not there: no frontend refers to them yet. Then, in one transaction, all that changes or is referred to.
    /// Last what nobody refers to any more.
    fn update_in_phases(&mut self, phases: &Phases<'_>, work: &mut Work) -> Result<(), KernelError> {
        for family in self.families().collect::<Vec<_>>() {
            let table = phases.ahead.table(family);
            each_map!(TableDelta, table, |edits| self.add_in_chunks(family, edits.added(), work)?);
        }
        self.transaction.clear();
        for state in &mut self.tables {
            write::remove_all(&mut self.transaction, state.family, phases.now.table(state.family));
            state.add_elements(&mut self.transaction, phases.now.table(state.family));
        }
        self.commit(work)?;
        if phases.behind.is_empty() {
            return Ok(());
        }
        thread::sleep(PASSAGE);
        if phases.behind.len() <= CHUNK {
            self.transaction.clear();
            for state in &self.tables {
                write::remove_all(&mut self.transaction, state.family, phases.behind.table(state.family));
            }
            return self.commit(work);
        }
        for family in self.families().collect::<Vec<_>>() {
            let table = phases.behind.table(family);
            each_map!(TableDelta, table, |edits| self.remove_in_chunks(family, edits.removed(), work)?);
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
    pub(super) fn outgrown(&self, error: KernelError) -> KernelError {
        let KernelError::Nft(refused) = &error else { return error };
        let (Some(Errno::ENFILE), Some(object)) = (refused.errno(), refused.object()) else { return error };
        let Some(map) = skeleton::growing().find(|map| *map == object.name) else { return error };
        let state = self.tables.iter().find(|state| Some(nft_family(state.family)) == object.family);
        let Some(state) = state else { return error };
        KernelError::Outgrown { family: state.family, map, size: state.sizes.get(map).unwrap_or_default() }
    }

    /// Deletes chains that nobody refers to any more, without waiting. A refusal is no failure: kernels before
    /// 6.2 drop references late, and the next call tries again.
    pub(super) fn delete_retired(&mut self, work: &mut Work) {
        self.delete_all_retired(work);
        if work.stuck == [0, 0] {
            // Those that the last ones led to.
            self.delete_all_retired(work);
        }
    }

    fn delete_all_retired(&mut self, work: &mut Work) {
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
                state.deleted(name);
            });
        }
        Ok(())
    }
}

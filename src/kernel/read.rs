//! A table as it is in the kernel, read back and checked.
//!
//! A table is adopted only if everything in it is what we would have made: layout version, maps, chains and their rule counts, and
//! elements that decode. Anything else is [`KernelError::Foreign`], and the table will be replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};

use nft::{Connection, Field, SetData, SetInfo, TableInfo, ViewData};

use super::encode::{foreign, nft_family, read_decision, read_endpoint, read_frontend, read_number, read_slot_key};
use super::error::KernelError;
use super::skeleton::{self, DEDICATED, ENDPOINTS, FIXED_CHAINS, PLANS, SERVICES, Sizes, set_ref};
use crate::compile::layout::{DedicatedChain, Plan, TABLE};
use crate::compile::{Slot, TableImage, Target};
use crate::model::Family;

/// `NFT_DATA_VERDICT` (linux/netfilter/nf_tables.h).
const VERDICT_TYPE: u32 = 0xffff_ff00;

/// What a table has besides its elements.
#[derive(Debug)]
pub(super) struct Structure {
    /// Whether the base chains are there; without them the table is half a first load.
    pub(super) active: bool,
    pub(super) sizes: Sizes,
    /// Shared and dedicated picking chains.
    pub(super) chains: BTreeSet<String>,
}

/// Reads and checks a whole table.
pub(super) fn table(
    connection: &mut Connection,
    family: Family,
    info: &TableInfo,
) -> Result<(Structure, TableImage), KernelError> {
    let foreign = |what: String| KernelError::Foreign { family, what };
    if info.comment.as_deref() != Some(&*skeleton::table_comment()) {
        let comment = info.comment.as_deref().unwrap_or("none");
        return Err(foreign(format!("its layout is {comment:?}, ours is {:?}", skeleton::table_comment())));
    }
    let structure = structure(connection, family)?;
    let image = elements(connection, family)?;
    let plans = plans(connection, family)?;
    let needed = image.services.values().map(|target| target.decision.plan).chain(skeleton::FIXED_PLANS);
    for plan in needed.collect::<BTreeSet<_>>() {
        let chain = plan.chain();
        if plans.get(&plan) != Some(&chain) {
            return Err(foreign(format!("map {PLANS} does not lead to chain {chain}")));
        }
    }
    let shared = plans.keys().filter(|plan| matches!(plan, Plan::Random(_))).map(|plan| plan.chain());
    let dedicated = image.dedicated.values().map(DedicatedChain::name);
    if let Some(missing) = shared.chain(dedicated).find(|name| !structure.chains.contains(name)) {
        return Err(foreign(format!("chain {missing} is missing")));
    }
    if let Some(stray) = structure.chains.iter().find(|name| !is_known(name, &plans)) {
        return Err(foreign(format!("chain {stray} is none of ours")));
    }
    Ok((structure, image))
}

/// Whether a picking chain is one that a plan leads to, or a dedicated one (whether used or left over).
fn is_known(chain: &str, plans: &BTreeMap<Plan, String>) -> bool {
    plans.values().any(|name| name == chain) || DedicatedChain::from_name(chain).is_some()
}

fn structure(connection: &mut Connection, family: Family) -> Result<Structure, KernelError> {
    let foreign = |what: String| KernelError::Foreign { family, what };
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    for rule in connection.rules(nft_family(family), TABLE)? {
        *rules.entry(rule.chain).or_default() += 1;
    }
    let mut chains: BTreeSet<String> =
        connection.chains(nft_family(family), TABLE)?.into_iter().map(|chain| chain.name).collect();
    let mut active = true;
    for (name, expected) in FIXED_CHAINS {
        let there = chains.remove(name);
        if !there && skeleton::is_base(name) {
            active = false;
        } else if !there {
            return Err(foreign(format!("chain {name} is missing")));
        } else if rules.get(name) != Some(&expected) {
            return Err(foreign(format!("chain {name} does not have {expected} rules")));
        }
    }
    if let Some(chain) = chains.iter().find(|name| rules.get(*name) != Some(&skeleton::PICKING_RULES)) {
        return Err(foreign(format!("chain {chain} does not have {} rules", skeleton::PICKING_RULES)));
    }
    let sets = connection.sets(nft_family(family), TABLE)?;
    let size = |name: &str| {
        let set = sets.iter().find(|set| set.name == name).ok_or_else(|| foreign(format!("map {name} is missing")))?;
        check_map(family, set).map_err(foreign)?;
        set.size.ok_or_else(|| foreign(format!("map {name} has no declared size")))
    };
    size(PLANS)?;
    let sizes = Sizes { services: size(SERVICES)?, endpoints: size(ENDPOINTS)?, dedicated: size(DEDICATED)? };
    Ok(Structure { active, sizes, chains })
}

/// Whether a map has the types we would give it.
fn check_map(family: Family, set: &SetInfo) -> Result<(), String> {
    let wanted = skeleton::maps(family, Sizes::for_counts(0, 0, 0)).into_iter().find(|map| map.name == set.name);
    let wanted = wanted.ok_or_else(|| format!("map {} is none of ours", set.name))?;
    let data = match &wanted.data {
        SetData::Value(fields) => set.data_len as usize == Field::key_len(fields),
        SetData::Verdict => set.data_type == Some(VERDICT_TYPE),
        SetData::None | SetData::Object(_) => false,
    };
    if data && Field::key_len(&wanted.key) == set.key_len as usize {
        Ok(())
    } else {
        Err(format!("map {} has other types", set.name))
    }
}

fn elements(connection: &mut Connection, family: Family) -> Result<TableImage, KernelError> {
    let mut image = TableImage::default();
    let mut counted = 0;
    connection.elements(set_ref(family, SERVICES), |element| {
        counted += 1;
        let ViewData::Value(value) = element.data else { return };
        if let (Some(frontend), Some(decision)) = (read_frontend(family, element.key), read_decision(value)) {
            image.services.insert(frontend, Target { decision, label: element.comment.unwrap_or_default().into() });
        }
    })?;
    connection.elements(set_ref(family, ENDPOINTS), |element| {
        counted += 1;
        let ViewData::Value(value) = element.data else { return };
        if let (Some(key), Some(endpoint)) = (read_slot_key(element.key), read_endpoint(family, value)) {
            image.endpoints.insert(key, Slot { endpoint, label: element.comment.unwrap_or_default().into() });
        }
    })?;
    connection.elements(set_ref(family, DEDICATED), |element| {
        counted += 1;
        let ViewData::Verdict(verdict) = element.data else { return };
        let pool = read_decision(element.key).and_then(|decision| decision.pool);
        if let (Some(pool), Some(chain)) = (pool, verdict.chain().and_then(DedicatedChain::from_name)) {
            image.dedicated.insert(pool, chain);
        }
    })?;
    match foreign(&image, counted) {
        0 => Ok(image),
        unknown => Err(KernelError::Foreign { family, what: format!("{unknown} elements are none of ours") }),
    }
}

/// Which chain each plan leads to.
fn plans(connection: &mut Connection, family: Family) -> Result<BTreeMap<Plan, String>, KernelError> {
    let mut plans = BTreeMap::new();
    connection.elements(set_ref(family, PLANS), |element| {
        let ViewData::Verdict(verdict) = element.data else { return };
        let plan = read_number(element.key).and_then(Plan::from_number);
        if let (Some(plan), Some(chain)) = (plan, verdict.chain()) {
            plans.insert(plan, chain.to_owned());
        }
    })?;
    Ok(plans)
}

//! A table as it is in the kernel, read back and checked.
//!
//! A table is adopted only if everything in it looks as we would have made it: layout version, maps, chains with their hooks and the
//! kinds of expressions in their rules, and elements that decode. Anything else is [`KernelError::Foreign`], and the table will be
//! replaced as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nft::{BaseChain, Chain, Connection, Field, Rule, SetData, SetInfo, TableInfo, ViewData};

use super::chains;
use super::encode::{nft_family, read_number};
use super::error::KernelError;
use super::image::{Reader, Reading};
use super::skeleton::{self, AFFINITY, PICKS, PLANS, Sizes, set_ref};
use super::write::key_fields;
use crate::compile::TableImage;
use crate::compile::layout::{DedicatedChain, Locality, Plan, StickyChain, TABLE};
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

/// A client that stays with an endpoint.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) key: Vec<u8>,
    pub(super) member: Vec<u8>,
    pub(super) left: Duration,
}

/// Reads and checks a whole table.
pub(super) fn table(
    connection: &mut Connection,
    family: Family,
    info: &TableInfo,
    locality: &Locality,
    reading: Reading,
) -> Result<(Structure, TableImage), KernelError> {
    let foreign = |what: String| KernelError::Foreign { family, what };
    let wanted = locality.comment(family);
    if info.comment.as_deref() != Some(&*wanted) {
        let comment = info.comment.as_deref().unwrap_or("none");
        return Err(foreign(format!("its layout is {comment:?}, ours is {wanted:?}")));
    }
    let sets = connection.sets(nft_family(family), TABLE)?;
    let structure = structure(connection, family, locality, &sets)?;
    let image = Reader::new(connection, family, &sets, reading).read()?;
    let plans = plans(connection, family, PLANS)?;
    let decided = image.services.values().chain(image.node_ports.values()).chain(image.hops.values());
    let needed: BTreeSet<Plan> = decided.map(|target| target.decision.plan).chain(chains::FIXED_PLANS).collect();
    for plan in &needed {
        if plans.get(plan) != Some(&plan.chain()) {
            return Err(foreign(format!("map {PLANS} does not lead to chain {}", plan.chain())));
        }
    }
    let last: BTreeMap<_, _> = plans.iter().filter(|(plan, _)| plan.is_final()).map(|(a, b)| (*a, b.clone())).collect();
    if self::plans(connection, family, PICKS)? != last {
        return Err(foreign(format!("maps {PLANS} and {PICKS} differ")));
    }
    let shared = plans.keys().filter(|plan| plan.is_shared()).map(|plan| plan.chain());
    let dedicated = image.dedicated.values().map(DedicatedChain::name);
    if let Some(missing) = shared.chain(dedicated).find(|name| !structure.chains.contains(name)) {
        return Err(foreign(format!("chain {missing} is missing")));
    }
    if let Some(stray) = structure.chains.iter().find(|name| !is_known(name, &plans)) {
        return Err(foreign(format!("chain {stray} is none of ours")));
    }
    Ok((structure, image))
}

/// What map `affinity` remembers, in any table that has one of our kind; nothing otherwise.
pub(super) fn affinity(connection: &mut Connection, family: Family) -> Vec<Remembered> {
    let mut remembered = Vec::new();
    let read = connection.elements(set_ref(family, AFFINITY), |element| {
        if let (ViewData::Value(member), Some(left)) = (&element.data, element.expires) {
            remembered.push(Remembered { key: element.key.to_vec(), member: member.to_vec(), left });
        }
    });
    let key_len = Field::key_len(key_fields(family, AFFINITY));
    let fits = |one: &Remembered| one.key.len() == key_len && one.member.len() == 4 && !one.left.is_zero();
    match read {
        Ok(_) if remembered.iter().all(fits) => each_once(remembered),
        _ => Vec::new(),
    }
}

/// Each client once, by what lasts longest. A packet that comes while a transaction is under way may not see the element that is there, and adds
/// another; the kernel takes no key twice from us.
fn each_once(mut remembered: Vec<Remembered>) -> Vec<Remembered> {
    remembered.sort_by(|one, other| (&one.key, other.left).cmp(&(&other.key, one.left)));
    remembered.dedup_by(|one, other| one.key == other.key);
    remembered
}

/// Whether a picking chain is one that a plan leads to, or a dedicated one or what such a one needs (whether used or left over).
fn is_known(chain: &str, plans: &BTreeMap<Plan, String>) -> bool {
    plans.values().any(|name| name == chain)
        || DedicatedChain::from_name(chain).is_some()
        || StickyChain::from_name(chain).is_some()
}

fn structure(
    connection: &mut Connection,
    family: Family,
    locality: &Locality,
    found: &[SetInfo],
) -> Result<Structure, KernelError> {
    let foreign = |what: String| KernelError::Foreign { family, what };
    let mut rules: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for rule in connection.rules(nft_family(family), TABLE)? {
        rules.entry(rule.chain).or_default().push(rule.exprs);
    }
    let check = |chain: &Chain, expected: &[Rule]| {
        let found = rules.get(&chain.name).map(Vec::as_slice).unwrap_or_default();
        if same_shape(found, expected) { Ok(()) } else { Err(foreign(format!("chain {} has other rules", chain.name))) }
    };
    let mut chains: BTreeMap<String, Option<BaseChain>> =
        connection.chains(nft_family(family), TABLE)?.into_iter().map(|chain| (chain.name, chain.base)).collect();
    let mut missing_bases = 0;
    let fixed = chains::fixed_chains(family, locality).into_iter().chain(chains::base_chains(family));
    for (chain, expected) in fixed {
        match chains.remove(&chain.name) {
            Some(base) if base == chain.base => check(&chain, &expected)?,
            Some(_) => return Err(foreign(format!("chain {} is hooked elsewhere", chain.name))),
            None if chains::is_base(&chain.name) => missing_bases += 1,
            None => return Err(foreign(format!("chain {} is missing", chain.name))),
        }
    }
    // They come in one transaction: all of them or none, which is half a first load.
    if missing_bases > 0 && missing_bases < chains::base_chains(family).len() {
        return Err(foreign("some of the base chains are missing".to_owned()));
    }
    let active = missing_bases == 0;
    for name in chains.keys() {
        let (chain, expected) =
            chains::by_name(family, name).ok_or_else(|| foreign(format!("chain {name} is none of ours")))?;
        check(&chain, &expected)?;
    }
    let chains: BTreeSet<String> = chains.into_keys().collect();
    for wanted in skeleton::sets(family, &Sizes::default()) {
        let set = found.iter().find(|set| set.name == wanted.name);
        let set = set.ok_or_else(|| foreign(format!("set {} is missing", wanted.name)))?;
        check_set(&wanted, set).map_err(foreign)?;
    }
    let mut sizes = Vec::new();
    for name in skeleton::growing() {
        let size = found.iter().find(|set| set.name == name).and_then(|set| set.size);
        sizes.push(size.ok_or_else(|| foreign(format!("set {name} has no declared size")))?);
    }
    Ok(Structure { active, sizes: Sizes::found(sizes.into_iter()), chains })
}

/// Whether rules consist of the expressions that ours do, one by one. What is in them is not compared: nobody mends a rule in place.
fn same_shape(found: &[Vec<String>], expected: &[Rule]) -> bool {
    let names = |rule: &Rule| rule.exprs.iter().map(nft::Expr::kernel_name).collect::<Vec<_>>();
    found.len() == expected.len() && found.iter().zip(expected).all(|(found, expected)| *found == names(expected))
}

/// Whether a set has the types we would give it.
fn check_set(wanted: &nft::Set, set: &SetInfo) -> Result<(), String> {
    let data = match &wanted.data {
        SetData::Value(fields) => set.data_len as usize == Field::key_len(fields),
        SetData::Verdict => set.data_type == Some(VERDICT_TYPE),
        SetData::None => set.data_type.is_none(),
        SetData::Object(_) => false,
    };
    if data && Field::key_len(&wanted.key) == set.key_len as usize {
        Ok(())
    } else {
        Err(format!("set {} has other types", set.name))
    }
}

/// Which chain each plan leads to.
fn plans(
    connection: &mut Connection,
    family: Family,
    map: &'static str,
) -> Result<BTreeMap<Plan, String>, KernelError> {
    let mut plans = BTreeMap::new();
    connection.elements(set_ref(family, map), |element| {
        let ViewData::Verdict(verdict) = element.data else { return };
        let plan = read_number(element.key).and_then(Plan::from_number);
        if let (Some(plan), Some(chain)) = (plan, verdict.chain()) {
            plans.insert(plan, chain.to_owned());
        }
    })?;
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_remembered_twice_is_remembered_by_what_lasts_longest() {
        let one = |key: u8, member: u8, left: u64| Remembered {
            key: vec![key; 8],
            member: vec![member; 4],
            left: Duration::from_secs(left),
        };
        let once = each_once(vec![one(2, 1, 5), one(1, 1, 3), one(2, 2, 9), one(2, 3, 7), one(1, 2, 3)]);
        let told: Vec<_> = once.iter().map(|one| (one.key[0], one.left.as_secs())).collect();
        assert_eq!(told, [(1, 3), (2, 9)]);
        assert_eq!(once[1].member, [2; 4]);
    }
}

//! Map elements and chains, written into a transaction.

use nft::{Chain, Element, Field, Key, Rule, Transaction, Verdict};

use super::encode::{DECISION_FIELDS, SLOT_FIELDS, endpoint_value, frontend_fields, frontend_key, number, slot_key};
use super::skeleton::{DEDICATED, ENDPOINTS, PLANS, SERVICES, set_ref};
use crate::compile::layout::{Decision, Plan, PoolId};
use crate::compile::{Slot, SlotKey, TableDelta, Target};
use crate::model::Family;
use crate::policy::Frontend;

pub(super) fn add_chains(transaction: &mut Transaction, chains: impl IntoIterator<Item = (Chain, Vec<Rule>)>) {
    // All chains before all rules: rules refer to chains.
    let chains: Vec<_> = chains.into_iter().collect();
    for (chain, _) in &chains {
        transaction.add_chain(chain);
    }
    for rule in chains.iter().flat_map(|(_, rules)| rules) {
        transaction.add_rule(rule);
    }
}

pub(super) fn add_plans(transaction: &mut Transaction, family: Family, plans: &[Plan]) {
    let plans: Vec<_> = plans.iter().map(|plan| (number(plan.number()), Verdict::Goto(plan.chain()))).collect();
    let elements = plans.iter().map(|(key, verdict)| Element::verdict(key.as_bytes(), verdict));
    transaction.add_elements(set_ref(family, PLANS), &DECISION_FIELDS, elements);
}

pub(super) fn add_dedicated(transaction: &mut Transaction, family: Family, delta: &TableDelta) {
    let added = delta.dedicated.added();
    let added: Vec<_> = added.map(|(pool, chain)| (dedicated_key(*pool), Verdict::Goto(chain.name()))).collect();
    let elements = added.iter().map(|(key, verdict)| Element::verdict(key.as_bytes(), verdict));
    transaction.add_elements(set_ref(family, DEDICATED), &DECISION_FIELDS, elements);
}

pub(super) fn remove_dedicated(transaction: &mut Transaction, family: Family, delta: &TableDelta) {
    remove(
        transaction,
        family,
        DEDICATED,
        &DECISION_FIELDS,
        delta.dedicated.removed().map(|(pool, _)| dedicated_key(*pool)),
    );
}

pub(super) fn add_services<'a>(
    transaction: &mut Transaction,
    family: Family,
    services: impl Iterator<Item = (&'a Frontend, &'a Target)>,
) {
    let values =
        services.map(|(frontend, target)| (frontend_key(frontend), number(target.decision.value()), &*target.label));
    add(transaction, family, SERVICES, &frontend_fields(family), values);
}

pub(super) fn remove_services(transaction: &mut Transaction, family: Family, delta: &TableDelta) {
    let keys = delta.services.removed().map(|(frontend, _)| frontend_key(frontend));
    remove(transaction, family, SERVICES, &frontend_fields(family), keys);
}

pub(super) fn add_endpoints<'a>(
    transaction: &mut Transaction,
    family: Family,
    slots: impl Iterator<Item = (&'a SlotKey, &'a Slot)>,
) {
    let values = slots.map(|(key, slot)| (slot_key(key), endpoint_value(slot.endpoint), &*slot.label));
    add(transaction, family, ENDPOINTS, &SLOT_FIELDS, values);
}

pub(super) fn remove_endpoints<'a>(
    transaction: &mut Transaction,
    family: Family,
    slots: impl Iterator<Item = &'a SlotKey>,
) {
    remove(transaction, family, ENDPOINTS, &SLOT_FIELDS, slots.map(slot_key));
}

/// Key, value and comment of each element.
fn add<'a>(
    transaction: &mut Transaction,
    family: Family,
    map: &'static str,
    fields: &[Field],
    elements: impl Iterator<Item = (Key, Key, &'a str)>,
) {
    let mut list = transaction.add_to(set_ref(family, map), fields);
    for (key, value, label) in elements {
        list.push(&Element::value(key.as_bytes(), value.as_bytes()).comment(label));
    }
}

fn remove(
    transaction: &mut Transaction,
    family: Family,
    map: &'static str,
    fields: &[Field],
    keys: impl Iterator<Item = Key>,
) {
    let mut list = transaction.delete_from(set_ref(family, map), fields);
    for key in keys {
        list.push(&Element::new(key.as_bytes()));
    }
}

/// The key of map `dedicated`: the whole decision, which is what is at hand in the packet's priority.
fn dedicated_key(pool: PoolId) -> Key {
    number(Decision { pool: Some(pool), plan: Plan::Dedicated }.value())
}

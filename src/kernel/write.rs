//! Map elements and chains, written into a transaction.

use nft::{Chain, Element, Field, Rule, Transaction, Verdict};

use super::encode::{Datum, Encoded, Mapped, number};
use super::skeleton::{self, NUMBER, PICKS, PLANS, Sizes, set_ref};
use crate::compile::layout::Plan;
use crate::compile::{TableDelta, each_map};
use crate::model::Family;

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
    let verdicts: Vec<_> =
        plans.iter().map(|plan| (*plan, number(plan.number()), Verdict::Goto(plan.chain()))).collect();
    let elements = verdicts.iter().map(|(_, key, verdict)| Element::verdict(key.as_bytes(), verdict));
    transaction.add_elements(set_ref(family, PLANS), &NUMBER, elements);
    let last = verdicts.iter().filter(|(plan, _, _)| plan.is_final());
    let elements = last.map(|(_, key, verdict)| Element::verdict(key.as_bytes(), verdict));
    transaction.add_elements(set_ref(family, PICKS), &NUMBER, elements);
}

/// Removes everything that vanishes or changes.
pub(super) fn remove_all(transaction: &mut Transaction, family: Family, delta: &TableDelta) {
    each_map!(TableDelta, delta, |edits| remove(transaction, family, edits.removed()));
}

/// Adds everything that is new or changes.
pub(super) fn add_all(transaction: &mut Transaction, family: Family, delta: &TableDelta) {
    each_map!(TableDelta, delta, |edits| add(transaction, family, edits.added()));
}

pub(super) fn add<'a, K: Mapped<V> + 'a, V: 'a>(
    transaction: &mut Transaction,
    family: Family,
    elements: impl Iterator<Item = (&'a K, &'a V)>,
) {
    let encoded = encode(elements);
    by_set::<K, V>(family, &encoded, |set, fields, chosen| {
        transaction.add_elements(set_ref(family, set), fields, chosen.map(element));
    });
}

pub(super) fn remove<'a, K: Mapped<V> + 'a, V: 'a>(
    transaction: &mut Transaction,
    family: Family,
    elements: impl Iterator<Item = (&'a K, &'a V)>,
) {
    let encoded = encode(elements);
    by_set::<K, V>(family, &encoded, |set, fields, chosen| {
        let keys = chosen.map(|encoded| Element { key_end: end(encoded), ..Element::new(encoded.key.as_bytes()) });
        transaction.delete_elements(set_ref(family, set), fields, keys);
    });
}

fn encode<'a, K: Mapped<V> + 'a, V: 'a>(
    elements: impl Iterator<Item = (&'a K, &'a V)>,
) -> Vec<(&'static str, Encoded)> {
    elements.map(|(key, value)| (key.set(value), key.encode(value))).collect()
}

/// Hands out the elements set by set.
fn by_set<'e, K: Mapped<V>, V>(
    family: Family,
    encoded: &'e [(&'static str, Encoded)],
    mut write: impl FnMut(&'static str, &[Field], &mut dyn Iterator<Item = &'e Encoded>),
) {
    if encoded.is_empty() {
        return;
    }
    for set in K::SETS.iter().copied() {
        let mut chosen = encoded.iter().filter(|(of, _)| *of == set).map(|(_, encoded)| encoded).peekable();
        if chosen.peek().is_some() {
            write(set, &key_fields(family, set), &mut chosen);
        }
    }
}

fn element(encoded: &Encoded) -> Element<'_> {
    let key = encoded.key.as_bytes();
    let element = match &encoded.data {
        Datum::Nothing => Element::new(key),
        Datum::Value(value) => Element::value(key, value.as_bytes()),
        Datum::Verdict(verdict) => Element::verdict(key, verdict),
    };
    Element { key_end: end(encoded), comment: encoded.label.as_deref(), ..element }
}

fn end(encoded: &Encoded) -> Option<&[u8]> {
    encoded.end.as_ref().map(nft::Key::as_bytes)
}

/// The fields of a set's key.
pub(super) fn key_fields(family: Family, set: &str) -> Vec<Field> {
    let sets = skeleton::sets(family, &Sizes::default());
    sets.into_iter().find(|declared| declared.name == set).map(|declared| declared.key).unwrap_or_default()
}

//! Map elements and chains, written into a transaction.

use std::collections::BTreeMap;
use std::sync::LazyLock;

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
    by_set(family, elements, |set, fields, chosen| {
        let mut list = transaction.add_to(set_ref(family, set), fields);
        chosen.for_each(|(key, value)| list.push(&element(&key.encode(value))));
    });
}

pub(super) fn remove<'a, K: Mapped<V> + 'a, V: 'a>(
    transaction: &mut Transaction,
    family: Family,
    elements: impl Iterator<Item = (&'a K, &'a V)>,
) {
    by_set(family, elements, |set, fields, chosen| {
        let mut list = transaction.delete_from(set_ref(family, set), fields);
        chosen.for_each(|(key, value)| {
            let encoded = key.encode(value);
            list.push(&Element { key_end: end(&encoded), ..Element::new(encoded.key.as_bytes()) });
        });
    });
}

/// Hands out the elements set by set. Most kinds have one set only, and large loads consist of those: they are not collected.
fn by_set<'a, K: Mapped<V> + 'a, V: 'a>(
    family: Family,
    elements: impl Iterator<Item = (&'a K, &'a V)>,
    mut write: impl FnMut(&'static str, &'static [Field], &mut dyn Iterator<Item = (&'a K, &'a V)>),
) {
    let mut elements = elements.peekable();
    if elements.peek().is_none() {
        return;
    }
    if let [set] = K::SETS {
        return write(set, key_fields(family, set), &mut elements);
    }
    let elements: Vec<_> = elements.collect();
    for set in K::SETS.iter().copied() {
        let mut chosen = elements.iter().copied().filter(|(key, value)| key.set(value) == set);
        write(set, key_fields(family, set), &mut chosen);
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

/// The fields of a set's key. The declarations are made once: a change of one element must not pay for all of them.
pub(super) fn key_fields(family: Family, set: &str) -> &'static [Field] {
    static KEYS: LazyLock<[BTreeMap<String, Vec<Field>>; 2]> = LazyLock::new(|| {
        Family::ALL.map(|family| {
            let sets = skeleton::sets(family, &Sizes::default());
            sets.into_iter().map(|declared| (declared.name, declared.key)).collect()
        })
    });
    KEYS[family as usize].get(set).map(Vec::as_slice).unwrap_or_default()
}

//! Looking at our tables without taking possession of them: for people who look, while a daemon runs or none does.
//!
//! Reading is allowed to everybody with `CAP_NET_ADMIN`, also where another process owns the table. Nothing is changed here.
//!
//! Proven by `tests/e2e/operator.rs`.

use std::collections::BTreeSet;
use std::fmt::Debug;

use nft::Connection;

use super::encode::{Datum, Mapped, nft_family};
use super::error::KernelError;
use super::image::{Labels, Reader, Reading};
use super::shadows::{self, Shadow};
use super::skeleton::{SOURCE_RANGES, set_ref};
use crate::compile::layout::{TABLE, VERSION};
use crate::compile::{TableImage, each_map};
use crate::model::Family;
use crate::model::map::NearMap;

/// An element that the kernel does not have as it is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The family of its table.
    pub family: Family,
    /// The map or set.
    pub set: &'static str,
    /// What is expected: key and value.
    pub expected: String,
    /// What the kernel has instead; `None`: no such element.
    pub found: Option<String>,
}

/// What came of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Elements looked up, one by one.
    pub looked_up: usize,
    /// Those that differ.
    pub differences: Vec<Difference>,
}

/// The elements of our tables in the calling thread's network namespace, whoever owns them; none where there is no table of this layout.
///
/// # Errors
/// Whatever the kernel answers, and elements that are none of ours.
pub fn tables() -> Result<Vec<(Family, TableImage)>, KernelError> {
    let mut connection = Connection::open()?;
    let present = connection.tables()?;
    let mut read = Vec::new();
    for family in Family::ALL {
        let ours = present.iter().find(|info| info.name == TABLE && info.family == nft_family(family));
        let Some(info) = ours else { continue };
        let layout = format!("pointsman layout {VERSION}");
        // What the fixed chains are made for comes behind, and does not matter to elements.
        let known = info.comment.as_deref().and_then(|comment| comment.strip_prefix(&layout));
        if known.is_none_or(|rest| rest.starts_with(|next: char| next.is_ascii_digit())) {
            let comment = info.comment.as_deref().unwrap_or("none");
            return Err(KernelError::Foreign {
                family,
                what: format!("its layout is {comment:?}, this program reads {layout:?}"),
            });
        }
        let sets = connection.sets(nft_family(family), TABLE)?;
        read.push((family, Reader::new(&mut connection, family, &sets, Reading::BySize).read()?));
    }
    Ok(read)
}

/// Chains of others that may translate connections to Services before ours are asked.
///
/// # Errors
/// Whatever the kernel answers.
pub fn shadows(connection: &mut Connection) -> Result<BTreeSet<Shadow>, KernelError> {
    shadows::find(connection)
}

/// Looks up each of these elements by its key, in the calling thread's network namespace. Of ranges only those of sources are looked up, by their first
/// address; those that no Service has for itself (node port addresses, service networks) are left out.
///
/// # Errors
/// Whatever the kernel answers, but that there is no such element.
pub fn compare(family: Family, expected: &TableImage) -> Result<Comparison, KernelError> {
    let mut connection = Connection::open()?;
    let mut comparison = Comparison::default();
    each_map!(TableImage, expected, |map| look_up(&mut connection, family, map, &mut comparison)?);
    Ok(comparison)
}

fn look_up<K: Mapped<V> + Eq + Debug, V: PartialEq + Debug>(
    connection: &mut Connection,
    family: Family,
    map: &NearMap<K, V>,
    comparison: &mut Comparison,
) -> Result<(), KernelError> {
    let mut labels = Labels::default();
    for (key, value) in map {
        let (encoded, set) = (key.encode(value), key.set(value));
        let is_range = encoded.end.is_some();
        if is_range && set != SOURCE_RANGES {
            continue;
        }
        comparison.looked_up += 1;
        let seen = connection.element(set_ref(family, set), encoded.key.as_bytes(), |element| {
            K::decode(family, set, &element, &mut labels)
        })?;
        let is_marker = matches!(encoded.data, Datum::Nothing);
        let found = match seen {
            // Of ranges the kernel finds whatever contains the key.
            Some(Some((as_key, found))) if found == *value && (!is_range || as_key == *key) => continue,
            Some(Some((as_key, found))) if is_range => Some(format!("{as_key:?}: {found:?}")),
            Some(Some((_, found))) => Some(format!("{found:?}")),
            Some(None) if is_marker => continue,
            Some(None) => Some("something that is none of ours".to_owned()),
            None => None,
        };
        comparison.differences.push(Difference { family, set, expected: format!("{key:?}: {value:?}"), found });
    }
    Ok(())
}

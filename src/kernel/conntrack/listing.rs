//! Connections one by one, for people who look: those that are wanted, up to a number.

use std::collections::HashSet;

use super::{ConntrackError, ConntrackTable};
use crate::conntrack::{Flow, Record};

/// Connections that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// The open ones first, then by client.
    pub records: Vec<Record>,
    /// How many more there are.
    pub more: usize,
    /// Entries that were looked at.
    pub read: usize,
    /// Whether the table changed so fast that some may have been missed.
    pub partial: bool,
}

/// What connection tracking has of those connections that are wanted, among those whose destination was translated, in the calling thread's network namespace. One
/// walk through the table: not for a thread that others wait for. Holds no more than some thousand beyond `most` at a time.
///
/// # Errors
/// Whatever the kernel answers.
pub fn list_flows(wants: impl Fn(&Flow) -> bool, most: usize) -> Result<Listing, ConntrackError> {
    // An entry may come twice, and what is not shown is only counted.
    let (mut listing, mut seen) = (Listing::default(), HashSet::new());
    let records = &mut listing.records;
    let order = |record: &Record| {
        let flow = record.sighting.flow;
        (!flow.is_active(), flow.original.source, flow.original.destination, flow.protocol)
    };
    let mut found = 0;
    let dump = ConntrackTable::open()?.walk_records(|record| {
        let flow = record.sighting.flow;
        let is_wanted = flow.is_translated() && wants(&flow);
        if !is_wanted || !seen.insert((flow.protocol, flow.original, flow.zone)) {
            return;
        }
        found += 1;
        records.push(*record);
        if records.len() >= most.saturating_mul(2).saturating_add(4096) {
            records.sort_by_key(order);
            records.truncate(most);
        }
    })?;
    records.sort_by_key(order);
    records.truncate(most);
    listing.more = found - records.len();
    (listing.read, listing.partial) = (dump.read, dump.partial);
    Ok(listing)
}

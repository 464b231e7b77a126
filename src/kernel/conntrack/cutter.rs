//! Ends the connections of endpoints that have left for good.
//!
//! Removing the entry of a connection is all that has to be done, and all that can be. For UDP the client's next datagram is decided
//! anew. For TCP, measured on 6.18 (`tests/conntrack/drain.rs`):
//! - the client's next segment has no entry, so the kernel takes it for a connection that it has not seen the beginning of, and asks
//!   our chains, which send it to an endpoint of the same Service as it is now. That one knows nothing of it and answers with a
//!   reset, which the client believes, because its number is the one that the client has just acknowledged. Where nobody serves, the
//!   chain for that resets it. It never reaches another Service: the address and port that it was sent to have not changed;
//! - the endpoint's next segment, if it still lives, is translated by nobody and comes from an address that the client has no
//!   connection with; the client's host resets it, and the endpoint is rid of it;
//! - a side that says nothing hears nothing, until its keep-alive does.
//!
//! What the userspace forwarder carries has two connections of its own: it is told to reset both ([`Carrier`]).
//!
//! All this rests on `nf_conntrack_tcp_loose`, which is 1 unless somebody changed it. With 0, segments in the midst of a connection pass
//! our chains by, and would be routed to the Service's address itself: then TCP is left alone, but for the forwarder's, and that is said.

use std::time::Instant;

use tracing::{info, warn};

use super::cleaner::Tables;
use super::table::{ConntrackError, Deleted, Filter};
use crate::conntrack::{Carrier, Cut, Destination};
use crate::model::Protocol;

/// Up to so many destinations are asked for one by one, as for stale flows; more are asked for by their ports.
const ONE_BY_ONE: usize = 4;

/// Removes the entries of these connections, and has those ended that are carried.
pub(super) fn cut(tables: &mut Tables, cuts: &[Cut], carrier: &dyn Carrier) -> Result<(), ConntrackError> {
    for cut in cuts {
        let is_left = cut.protocol == Protocol::Tcp && !is_loose();
        if is_left {
            warn!(
                endpoints = ?cut.endpoints,
                "connections that should be ended by now are left: with net.netfilter.nf_conntrack_tcp_loose 0 they could not be reset"
            );
        }
        let begin = Instant::now();
        let (mut read, mut deleted, mut carried) = (0, Deleted::default(), carrier.end_untracked(cut));
        for filter in filters(cut) {
            let mut failure = Ok(());
            let Tables { reading, removing } = tables;
            let dump = reading.dump(&filter, |flows| {
                carried += flows.iter().filter(|flow| cut.leads_through(flow) && carrier.end(cut, flow)).count();
                let concerned = flows.iter().filter(|flow| !is_left && cut.concerns(flow));
                let concerned: Vec<_> = concerned.copied().collect();
                if !concerned.is_empty() && failure.is_ok() {
                    failure = removing.delete(&concerned).map(|outcome| deleted.add(outcome));
                }
            })?;
            failure?;
            read += dump.read;
            if !dump.filtered {
                // That was everything.
                break;
            }
        }
        info!(
            target: "pointsman::programmed",
            protocol = %cut.protocol,
            endpoints = ?cut.endpoints,
            read,
            deleted = deleted.deleted,
            carried,
            total_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
            "connections of endpoints that left are ended"
        );
        if let Some(errno) = deleted.refusal {
            warn!(flows = deleted.refused, %errno, "the kernel would not end connections of endpoints that left");
        }
    }
    Ok(())
}

/// Whether the kernel takes segments in the midst of a connection for the beginning of one; it does where it cannot be asked.
fn is_loose() -> bool {
    std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").map_or(true, |text| text.trim() != "0")
}

fn filters(cut: &Cut) -> Vec<Filter> {
    let by_port = cut.destinations.len() > ONE_BY_ONE;
    let filter = |destination: &Destination| {
        let filter = Filter { protocol: cut.protocol, ..Filter::to(destination) };
        if by_port { Filter { address: None, ..filter } } else { filter }
    };
    let mut filters: Vec<_> = cut.destinations.iter().map(filter).collect();
    filters.sort();
    filters.dedup();
    filters
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;

    #[test]
    fn few_destinations_are_asked_for_by_address_and_many_by_port() {
        let cut = |addresses: u8| Cut {
            protocol: Protocol::Tcp,
            family: Family::V4,
            destinations: (1..=addresses)
                .map(|last| Destination::Address(([10, 96, 0, last], 80).into()))
                .chain([Destination::NodePort(Family::V4, 30080)])
                .collect(),
            endpoints: Default::default(),
            node_port_ranges: Default::default(),
        };
        assert_eq!(filters(&cut(3)).len(), 4);
        assert!(filters(&cut(3)).iter().all(|filter| filter.protocol == Protocol::Tcp));
        let many = filters(&cut(9));
        let ports: Vec<_> = many.iter().map(|filter| (filter.address, filter.port)).collect();
        assert_eq!(ports, [(None, Some(80)), (None, Some(30080))]);
    }
}

//! Frontends and endpoints as the kernel's tables have them, where no daemon can be asked.
//!
//! The tables know who is behind a frontend and in how many slots, and no reasons: who is not ready, or drains, is not there. A weight
//! is a number of slots here. What goes through the userspace forwarder leads to its listener.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::compile::layout::{Decision, Plan, PoolId};
use crate::compile::{Hop, SlotKey, Stage, TableImage};
use crate::model::Family;
use crate::status::{DestinationView, VERSION, VirtualList, VirtualView};

/// All frontends of these tables.
pub(super) fn list(tables: &[(Family, TableImage)]) -> VirtualList {
    let mut services = Vec::new();
    for (family, table) in tables {
        let mut behind: BTreeMap<PoolId, BTreeMap<SocketAddr, u16>> = BTreeMap::new();
        let direct = table.endpoints.iter().map(|(key, slot)| (key, slot.endpoint));
        let sticky =
            table.member_slots.iter().filter_map(|(key, member)| Some((key, table.members.get(member)?.endpoint)));
        for (SlotKey { pool, .. }, endpoint) in direct.chain(sticky) {
            let slots = behind.entry(*pool).or_default().entry(endpoint).or_default();
            *slots = slots.saturating_add(1);
        }
        let frontends = table
            .services
            .iter()
            .map(|(frontend, target)| (frontend.address, frontend.protocol, frontend.port, false, target));
        let node_ports = table
            .node_ports
            .iter()
            .map(|(node_port, target)| (family.unspecified(), node_port.protocol, node_port.port, true, target));
        for (address, protocol, port, node_port, target) in frontends.chain(node_ports) {
            let last = last(table, target.decision);
            let chain = last.pool.and_then(|pool| table.dedicated.get(&pool)).filter(|_| last.plan == Plan::Dedicated);
            let name = chain.map_or_else(|| last.plan.chain(), |chain| chain.name());
            let verdict = match last.plan {
                Plan::Refuse => Some("refuse".to_owned()),
                Plan::Discard => Some("discard".to_owned()),
                _ => None,
            };
            let endpoints = last.pool.filter(|_| verdict.is_none()).and_then(|pool| behind.get(&pool));
            services.push(VirtualView {
                service: target.label.to_string(),
                protocol: protocol.to_string(),
                address,
                port,
                node_port,
                scheduler: scheduler(&name).to_owned(),
                persistent: chain.and_then(|chain| chain.affinity),
                verdict,
                endpoints: endpoints
                    .into_iter()
                    .flatten()
                    .map(|(address, slots)| DestinationView { address: *address, weight: *slots, by_hand: false })
                    .collect(),
            });
        }
    }
    services.sort_by(|a, b| {
        (&a.service, a.address, a.port, &a.protocol).cmp(&(&b.service, b.address, b.port, &b.protocol))
    });
    VirtualList { version: VERSION.to_owned(), services }
}

/// Where connections from outside end up, by clients whom source ranges admit.
fn last(table: &TableImage, first: Decision) -> Decision {
    let mut decision = first;
    // Source ranges, then a local policy: there is no third check.
    for _ in 0..2 {
        let stage = match decision.plan {
            Plan::SourceRanges => Stage::Admitted,
            Plan::LocalPolicy => Stage::Outside,
            _ => break,
        };
        let next = decision.pool.and_then(|pool| table.hops.get(&Hop { stage, pool }));
        let Some(next) = next else { break };
        decision = next.decision;
    }
    decision
}

/// The scheduler that a chain's name begins with.
fn scheduler(chain: &str) -> &str {
    let name = chain.strip_prefix("local-").unwrap_or(chain);
    let name = match name.strip_prefix("sticky-") {
        Some(rest) if rest.starts_with(|next: char| next.is_ascii_digit()) => return "random",
        Some(rest) => rest,
        None => name,
    };
    ["sh-port", "mh-port"]
        .into_iter()
        .find(|word| name.starts_with(word))
        .unwrap_or_else(|| name.split('-').next().unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_say_who_chooses() {
        let of = [
            "random-4",
            "mh-port-4093",
            "local-sticky-4-10800s-00012-shop/web/tcp",
            "rr-4-00012-shop/web/tcp",
            "sticky-rr-4-9s-00012-x",
        ];
        assert_eq!(of.map(scheduler), ["random", "mh-port", "random", "rr", "rr"]);
    }
}

//! Where in the ruleset a decision is.

use serde::{Deserialize, Serialize};

use super::Client;
use crate::compile::layout::{Decision, Plan, PoolId};
use crate::compile::{Hop, Stage, TableImage};
use crate::policy::Claim;

/// A look into a map, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepView {
    /// The map or set.
    pub set: String,
    /// The key, as nft prints it.
    pub key: String,
    /// What stands there: a decision (pool and plan), or so many slots.
    pub value: String,
    /// The chain that it leads to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
}

/// What came of looking elements up in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerificationView {
    /// Elements looked up, one by one: all that the Service port wants in this family, but for source ranges.
    pub looked_up: usize,
    /// Those that are not as they should be. While a change is on its way to the kernel, there may be some.
    pub differences: Vec<DifferenceView>,
}

/// An element that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferenceView {
    /// The map or set.
    pub set: String,
    /// What should be there.
    pub expected: String,
    /// What is; left out: nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
}

/// What the first packet of a connection meets.
pub(super) fn steps(image: &TableImage, claim: &Claim, client: Client, stops_at_ranges: bool) -> Vec<StepView> {
    let mut steps = Vec::new();
    let (set, key, first) = match claim {
        Claim::Frontend(frontend) => {
            let key = format!("{} . {} . {}", frontend.address, frontend.protocol.lower(), frontend.port);
            ("services", key, image.services.get(frontend))
        }
        Claim::NodePort(_, node_port) => {
            let key = format!("{} . {}", node_port.protocol.lower(), node_port.port);
            ("node-ports", key, image.node_ports.get(node_port))
        }
    };
    let Some(first) = first else { return steps };
    let mut decision = first.decision;
    steps.push(step(set, key, decision));
    // Source ranges, then a local policy, then an end.
    for _ in 0..2 {
        let Some(pool) = decision.pool else { break };
        let (set, stage) = match decision.plan {
            Plan::SourceRanges if stops_at_ranges => return steps,
            Plan::SourceRanges => ("admitted", Stage::Admitted),
            Plan::LocalPolicy if client == Client::Outside => ("outside", Stage::Outside),
            Plan::LocalPolicy => ("inside", Stage::Inside),
            _ => break,
        };
        let Some(next) = image.hops.get(&Hop { stage, pool }) else { break };
        let plan = if stage == Stage::Admitted { Plan::SourceRanges } else { Plan::LocalPolicy };
        steps.push(step(set, hexadecimal(Decision { pool: Some(pool), plan }.value()), next.decision));
        decision = next.decision;
    }
    // A pool's number stands in refusals, too.
    if let Some(pool) = decision.pool.filter(|_| !matches!(decision.plan, Plan::Refuse | Plan::Discard)) {
        steps.extend(dedicated(image, decision, pool));
        steps.extend(slots(image, pool));
    }
    steps
}

fn step(set: &str, key: String, decision: Decision) -> StepView {
    StepView { set: set.to_owned(), key, value: hexadecimal(decision.value()), chain: Some(decision.plan.chain()) }
}

fn dedicated(image: &TableImage, decision: Decision, pool: PoolId) -> Option<StepView> {
    let chain = image.dedicated.get(&pool).filter(|_| decision.plan == Plan::Dedicated)?;
    let key = hexadecimal(decision.value());
    Some(StepView {
        set: "dedicated".to_owned(),
        key,
        value: format!("goto {}", chain.name()),
        chain: Some(chain.name()),
    })
}

fn slots(image: &TableImage, pool: PoolId) -> Option<StepView> {
    let direct = image.endpoints.keys().filter(|key| key.pool == pool).count();
    let sticky = image.member_slots.keys().filter(|key| key.pool == pool).count();
    let (set, count) = if direct > 0 { ("endpoints", direct) } else { ("member-slots", sticky) };
    let (keys, value) = match count.checked_sub(1)? {
        0 => ("0".to_owned(), "1 slot".to_owned()),
        last => (format!("0-{last}"), format!("{count} slots")),
    };
    let key = format!("{} . {keys}", hexadecimal(pool.key()));
    Some(StepView { set: set.to_owned(), key, value, chain: None })
}

fn hexadecimal(number: u32) -> String {
    format!("{number:#010x}")
}

//! What the data plane looks like, in numbers and names.
//!
//! One table `pointsman` per family, the same in both:
//!
//! ```text
//! map services  { address . protocol . port : decision }     one element per frontend
//! map plans     { plan : goto chain }                         one per plan in use: a few dozen, changes rarely
//! map endpoints { pool . slot : address . port }              one element per slot
//! map dedicated { decision : goto chain }                     one per pool with a chain of its own
//!
//! chain services:  meta priority set (map services)   meta priority & 0xfff  vmap @plans
//! chain random-4:  dnat to  (meta priority & 0xfffff000) . (numgen random mod 4)  map @endpoints
//!                  dnat to  (meta priority & 0xfffff000) . (numgen random mod 1)  map @endpoints
//! chain refuse:    reject, TCP with a reset
//! chain dedicated: meta priority vmap @dedicated
//! chain rr-4-shop/web/tcp/http:  like random-4 with numgen inc
//! ```
//!
//! `meta priority` (`skb->priority`) carries the decision from one lookup to the next: nft 1.0.6 can print it, packet marks belong
//! to network plugins, and routing overwrites the priority of a forwarded packet anyway. It is set for the first packet of a
//! connection only, the one that passes a nat chain.
//!
//! Why pools have numbers instead of being keyed by frontend: a Service port has many frontends (cluster address, node ports, load
//! balancer addresses) and one set of endpoints; a key of two numbers is 8 bytes in both families; and a Service that changes its
//! address changes one element.
//!
//! Why each picking chain has a second rule: a packet may read the number of slots before a transaction commits and the slot after
//! it. Slot 0 exists as long as the pool has endpoints, so such a packet still reaches an endpoint of its Service.
//!
//! Numbers are written with their meaning readable in hexadecimal: `0x00012004` is pool `0x00012`, plan `0x004`: random of 4.

use std::fmt;
use std::sync::Arc;

use crate::model::PortKey;
use crate::schedule::Pick;

/// The name of our table in every family.
pub const TABLE: &str = "pointsman";

/// Version of the layout, kept in the table's comment. A table of another version is replaced as a whole.
pub const VERSION: u32 = 1;

/// Bits of a decision that are the plan.
pub const PLAN_MASK: u32 = 0xfff;

/// Bits of a decision that are the pool.
pub const POOL_MASK: u32 = !PLAN_MASK;

/// Highest pool number.
pub const MAX_POOL: u32 = POOL_MASK >> PLAN_BITS;

/// Most slots a shared plan can have; more need a dedicated chain.
pub const MAX_SHARED_SLOTS: usize = 1023;

const PLAN_BITS: u32 = 12;

/// Longest chain name we make (`NFT_NAME_MAXLEN` is 256 with the NUL, linux/netfilter/nf_tables.h).
const MAX_CHAIN_NAME: usize = 240;

/// Longest comment nft prints (`NFTNL_UDATA_COMMENT_MAXLEN`, libnftnl udata.h).
const MAX_LABEL: usize = 127;

/// Number of a pool, 1..=[`MAX_POOL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(u32);

/// How a slot is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plan {
    /// One of this many slots (1..=[`MAX_SHARED_SLOTS`]) at random.
    Random(u16),
    /// No endpoint: reject the connection.
    Refuse,
    /// By the pool's own chain.
    Dedicated,
}

/// What map `services` says about a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decision {
    /// Where the slots are; `None` only with [`Plan::Refuse`].
    pub pool: Option<PoolId>,
    /// How one of them is picked.
    pub plan: Plan,
}

/// A chain that picks for one pool alone. Its name says all that is in it, so a chain of the right name is the right chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DedicatedChain {
    /// How it picks.
    pub pick: Pick,
    /// Of how many slots.
    pub slots: u32,
    /// Whose chain it is, as it stands in the name.
    pub owner: Arc<str>,
}

// === impl PoolId ===

impl PoolId {
    /// A pool number, if it is in range.
    pub fn new(number: u32) -> Option<Self> {
        (1..=MAX_POOL).contains(&number).then_some(Self(number))
    }

    /// The number, 1..=[`MAX_POOL`].
    pub fn number(self) -> u32 {
        self.0
    }

    /// The number where map `endpoints` and decisions have it: above the plan's bits.
    pub fn key(self) -> u32 {
        self.0 << PLAN_BITS
    }

    /// The pool of a key of map `endpoints`.
    pub fn from_key(key: u32) -> Option<Self> {
        (key & PLAN_MASK == 0).then(|| Self::new(key >> PLAN_BITS))?
    }
}

// === impl Plan ===

impl Plan {
    /// Bits 11..10 are the kind of plan, bits 9..0 its number of slots. Kinds 1 and 2 are free for schedulers to come.
    const SPECIAL: u32 = 3 << 10;

    /// The plan's number, below 4096.
    pub fn number(self) -> u32 {
        match self {
            Plan::Random(slots) => u32::from(slots),
            Plan::Refuse => Self::SPECIAL | 1,
            Plan::Dedicated => Self::SPECIAL | 2,
        }
    }

    /// The plan of a number.
    pub fn from_number(number: u32) -> Option<Self> {
        const REFUSE: u32 = Plan::SPECIAL | 1;
        const DEDICATED: u32 = Plan::SPECIAL | 2;
        match number {
            1..=0x3ff => Some(Plan::Random(u16::try_from(number).expect("ten bits"))),
            REFUSE => Some(Plan::Refuse),
            DEDICATED => Some(Plan::Dedicated),
            _ => None,
        }
    }

    /// The name of its chain.
    pub fn chain(self) -> String {
        match self {
            Plan::Random(slots) => format!("random-{slots}"),
            Plan::Refuse => "refuse".to_owned(),
            Plan::Dedicated => "dedicated".to_owned(),
        }
    }
}

// === impl Decision ===

impl Decision {
    /// Reject.
    pub const REFUSE: Decision = Decision { pool: None, plan: Plan::Refuse };

    /// The 32-bit number.
    pub fn value(self) -> u32 {
        self.pool.map_or(0, PoolId::key) | self.plan.number()
    }

    /// The decision of a number; `None` if it is none of ours.
    pub fn from_value(value: u32) -> Option<Self> {
        let plan = Plan::from_number(value & PLAN_MASK)?;
        let pool = PoolId::from_key(value & POOL_MASK);
        (pool.is_some() || plan == Plan::Refuse).then_some(Self { pool, plan })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.value())
    }
}

// === impl DedicatedChain ===

impl DedicatedChain {
    /// The chain of a Service port.
    pub fn new(pick: Pick, slots: usize, port: &PortKey, pool: PoolId) -> Self {
        let slots = u32::try_from(slots).expect("a Service has less than 4 billion endpoints");
        let mut owner = format!("{}/{}/{}", port.service.namespace, port.service.name, port.protocol.lower());
        if !port.name.is_empty() {
            owner.push('/');
            owner.push_str(&port.name);
        }
        // Names that the API server would not have let through come from manifests; nft's command line could not say them.
        if owner.len() > MAX_CHAIN_NAME - 20 || !owner.bytes().all(|byte| is_plain(byte) && byte != b':') {
            owner = format!("pool-{:05x}", pool.number());
        }
        Self { pick, slots, owner: owner.into() }
    }

    /// The chain's name.
    pub fn name(&self) -> String {
        format!("{}{}-{}", Self::prefix(self.pick), self.slots, self.owner)
    }

    /// The chain of this name, if it is one that this function's counterpart names.
    pub fn from_name(name: &str) -> Option<Self> {
        [Pick::Random, Pick::Counter].into_iter().find_map(|pick| {
            let (slots, owner) = name.strip_prefix(Self::prefix(pick))?.split_once('-')?;
            Some(Self { pick, slots: slots.parse().ok()?, owner: owner.into() })
        })
    }

    fn prefix(pick: Pick) -> &'static str {
        match pick {
            Pick::Random => "random-",
            Pick::Counter => "rr-",
        }
    }
}

/// The comment on the elements of a Service port: `namespace/name:port`, as kube-proxy displays it, made safe for listings.
pub fn label(port: &PortKey) -> Arc<str> {
    let mut label = port.to_string();
    if label.len() > MAX_LABEL || !label.bytes().all(is_plain) {
        label =
            label.chars().map(|c| if c.is_ascii() && is_plain(c as u8) { c } else { '_' }).take(MAX_LABEL).collect();
    }
    label.into()
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._/:".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceKey};

    fn port(namespace: &str, name: &str, port: &str) -> PortKey {
        PortKey { service: ServiceKey::new(namespace, name), name: port.into(), protocol: Protocol::Tcp }
    }

    #[test]
    fn decisions_are_numbers_and_back() {
        let pool = PoolId::new(0x12).expect("in range");
        let table = [
            (Decision { pool: Some(pool), plan: Plan::Random(4) }, "0x00012004"),
            (Decision { pool: Some(pool), plan: Plan::Random(1023) }, "0x000123ff"),
            (Decision { pool: Some(pool), plan: Plan::Dedicated }, "0x00012c02"),
            (Decision { pool: PoolId::new(MAX_POOL), plan: Plan::Random(1) }, "0xfffff001"),
            (Decision::REFUSE, "0x00000c01"),
        ];
        for (decision, text) in table {
            assert_eq!(decision.to_string(), text);
            assert_eq!(Decision::from_value(decision.value()), Some(decision));
        }
        for value in [0, 4, 0x0001_2000, 0x0001_2400, 0xc02, 0xc03] {
            assert_eq!(Decision::from_value(value), None, "{value:#x}");
        }
        assert_eq!(PoolId::new(0), None);
        assert_eq!(PoolId::new(MAX_POOL + 1), None);
    }

    #[test]
    fn chains_are_named_after_what_they_do() {
        let pool = PoolId::new(7).expect("in range");
        let chain = DedicatedChain::new(Pick::Counter, 3, &port("shop", "web", "http"), pool);
        assert_eq!(chain.name(), "rr-3-shop/web/tcp/http");
        assert_eq!(DedicatedChain::from_name(&chain.name()), Some(chain));
        let unnamed = DedicatedChain::new(Pick::Random, 2000, &port("shop", "web-2", ""), pool);
        assert_eq!(unnamed.name(), "random-2000-shop/web-2/tcp");
        assert_eq!(DedicatedChain::from_name(&unnamed.name()), Some(unnamed));
        let hostile = DedicatedChain::new(Pick::Counter, 3, &port("shop", "we\"b\n", &"x".repeat(300)), pool);
        assert_eq!(hostile.name(), "rr-3-pool-00007");
        assert_eq!(DedicatedChain::from_name("random-4"), None, "a shared plan's chain is not dedicated");
    }

    #[test]
    fn labels_are_safe_to_print() {
        assert_eq!(&*label(&port("shop", "web", "http")), "shop/web:http");
        assert_eq!(&*label(&port("shop", "we\"b\u{1b}[31mé", "")), "shop/we_b__31m_");
        assert_eq!(label(&port("n", &"x".repeat(300), "")).len(), MAX_LABEL);
    }
}

//! The table without its elements: maps, fixed chains, base chains, and the chains of plans.
//!
//! Priorities and hooks are kube-proxy's own for nat (`-100` in prerouting and output, its spec section 5.2), so that tables of
//! others keep their place relative to ours.

use nft::{
    Chain, ChainKind, Expr, Hook, Key, MetaKey, NatFlags, NatKind, NumgenKind, PayloadBase, Reg, Reject, Rule, Set,
    SetData, SetRef, Table, TableFlags, Verdict,
};

use super::encode::{DECISION_FIELDS, SLOT_FIELDS, endpoint_fields, frontend_fields, nft_family};
use crate::compile::layout::{DedicatedChain, PLAN_MASK, POOL_MASK, Plan, TABLE, VERSION};
use crate::model::{Family, Protocol};
use crate::schedule::Pick;

pub(super) const SERVICES: &str = "services";
pub(super) const PLANS: &str = "plans";
pub(super) const ENDPOINTS: &str = "endpoints";
pub(super) const DEDICATED: &str = "dedicated";

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";

/// `NF_IP_PRI_NAT_DST` (linux/netfilter_ipv4.h).
const PRIORITY_DNAT: i32 = -100;

/// Plans that fit: their numbers have 12 bits.
const PLANS_SIZE: u32 = PLAN_MASK + 1;

/// The chains every table has, each with its number of rules: what an adopted table is checked against.
pub(super) const FIXED_CHAINS: [(&str, usize); 5] =
    [(SERVICES, 1), ("refuse", 2), (DEDICATED, 1), (PREROUTING, 1), (OUTPUT, 1)];

/// The plans every table has, whether in use or not.
///
/// `random-1` is among them for its `dnat`: a nat chain sees nothing before something in the namespace asks for connection tracking
/// in its family, and rules that translate do, while rules that reject do not. Without it, a family in which no Service has an
/// endpoint would not reject anything.
pub(super) const FIXED_PLANS: [Plan; 3] = [Plan::Refuse, Plan::Dedicated, Plan::Random(1)];

/// Rules of every picking chain.
pub(super) const PICKING_RULES: usize = 2;

/// Whether a chain carries packets into the table.
pub(super) fn is_base(chain: &str) -> bool {
    [PREROUTING, OUTPUT].contains(&chain)
}

/// Declared sizes of the maps that grow with the cluster. The kernel then uses its fixed hash, whose buckets are allocated once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) services: u32,
    pub(super) endpoints: u32,
    pub(super) dedicated: u32,
}

impl Sizes {
    const SMALLEST: u32 = 1 << 16;
    const SMALLEST_DEDICATED: u32 = 1 << 12;

    /// Room for twice these numbers of elements.
    pub(super) fn for_counts(services: usize, endpoints: usize, dedicated: usize) -> Self {
        let room = |count: usize, smallest: u32| {
            u32::try_from(count.saturating_mul(2)).unwrap_or(u32::MAX / 2).max(smallest).next_power_of_two()
        };
        Self {
            services: room(services, Self::SMALLEST),
            endpoints: room(endpoints, Self::SMALLEST),
            dedicated: room(dedicated, Self::SMALLEST_DEDICATED),
        }
    }
}

/// The comment of the table: the layout's version, which decides whether a table can be adopted.
pub(super) fn table_comment() -> String {
    format!("pointsman layout {VERSION}")
}

pub(super) fn table(family: Family, flags: TableFlags) -> Table {
    Table { flags, comment: Some(table_comment()), ..Table::new(nft_family(family), TABLE) }
}

pub(super) fn set_ref(family: Family, name: &'static str) -> SetRef<'static> {
    SetRef::new(nft_family(family), TABLE, name)
}

pub(super) fn maps(family: Family, sizes: Sizes) -> [Set; 4] {
    let map = |name: &str, key: &[nft::Field], data, size| Set {
        size: Some(size),
        ..Set::map(nft_family(family), TABLE, name, key, data)
    };
    [
        map(SERVICES, &frontend_fields(family), SetData::Value(DECISION_FIELDS.to_vec()), sizes.services),
        map(PLANS, &DECISION_FIELDS, SetData::Verdict, PLANS_SIZE),
        map(ENDPOINTS, &SLOT_FIELDS, SetData::Value(endpoint_fields(family)), sizes.endpoints),
        map(DEDICATED, &DECISION_FIELDS, SetData::Verdict, sizes.dedicated),
    ]
}

/// The chains that are always there, with their rules, but not the base chains.
pub(super) fn fixed_chains(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    let services = vec![
        load_destination(family),
        Expr::MetaLoad { key: MetaKey::L4Proto, dreg: Reg::slot(address_slots(family)) },
        Expr::PayloadLoad {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            dreg: Reg::slot(address_slots(family) + 1),
        },
        lookup(SERVICES, Some(Reg::slot(0))),
        Expr::MetaSet { key: MetaKey::Priority, sreg: Reg::slot(0) },
        Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::slot(0) },
        mask(PLAN_MASK),
        lookup(PLANS, Some(Reg::VERDICT)),
    ];
    // ICMP errors are limited to one a second per client (icmp_ratelimit), and a connect() that is still in the kernel when one
    // arrives ignores it: it would be refused only after the next SYN, a second later. A reset is always heard.
    let refuse_tcp = vec![
        Expr::MetaLoad { key: MetaKey::L4Proto, dreg: Reg::slot(0) },
        Expr::eq(Reg::slot(0), Key::new().proto(Protocol::Tcp.number())),
        Expr::Reject(Reject::TcpReset),
    ];
    let refuse_others = match family {
        Family::V4 => Reject::Icmp(ICMP_PORT_UNREACHABLE),
        Family::V6 => Reject::Icmpv6(ICMP6_PORT_UNREACHABLE),
    };
    let dedicated =
        vec![Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::slot(0) }, lookup(DEDICATED, Some(Reg::VERDICT))];
    vec![
        chain(family, SERVICES.to_owned(), vec![services]),
        chain(family, Plan::Refuse.chain(), vec![refuse_tcp, vec![Expr::Reject(refuse_others)]]),
        chain(family, Plan::Dedicated.chain(), vec![dedicated]),
    ]
}

/// `ICMP_PORT_UNREACH` (linux/icmp.h).
const ICMP_PORT_UNREACHABLE: u8 = 3;

/// `ICMPV6_PORT_UNREACH` (linux/icmpv6.h).
const ICMP6_PORT_UNREACHABLE: u8 = 4;

/// The chains that packets enter by, to be added last.
pub(super) fn base_chains(family: Family) -> Vec<(Chain, Vec<Rule>)> {
    [(PREROUTING, Hook::Prerouting), (OUTPUT, Hook::Output)]
        .into_iter()
        .map(|(name, hook)| {
            let (base, rules) =
                chain(family, name.to_owned(), vec![vec![Expr::Verdict(Verdict::Goto(SERVICES.to_owned()))]]);
            (base.hooked(ChainKind::Nat, hook, PRIORITY_DNAT), rules)
        })
        .collect()
}

/// The chain of a plan that Services share.
pub(super) fn shared_chain(family: Family, plan: Plan) -> Option<(Chain, Vec<Rule>)> {
    match plan {
        Plan::Random(slots) => Some(picking_chain(family, plan.chain(), Pick::Random, slots.into())),
        Plan::Refuse | Plan::Dedicated => None,
    }
}

/// The chain of one pool.
pub(super) fn dedicated_chain(family: Family, dedicated: &DedicatedChain) -> (Chain, Vec<Rule>) {
    picking_chain(family, dedicated.name(), dedicated.pick, dedicated.slots)
}

/// Picks a slot and sends the connection to its endpoint; slot 0 catches packets that a commit overtook (see `layout`).
fn picking_chain(family: Family, name: String, pick: Pick, slots: u32) -> (Chain, Vec<Rule>) {
    let kind = match pick {
        Pick::Random => NumgenKind::Random,
        Pick::Counter => NumgenKind::Incremental,
    };
    let picked = Expr::Numgen { kind, modulus: slots, offset: 0, dreg: Reg::slot(1) };
    // A constant would do, but nft 1.0.6 cannot print one inside a concatenation; the only number below 1 prints well.
    let first = Expr::Numgen { kind: NumgenKind::Random, modulus: 1, offset: 0, dreg: Reg::slot(1) };
    let to_slot = |slot: Expr| {
        vec![
            Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::slot(0) },
            mask(POOL_MASK),
            slot,
            lookup(ENDPOINTS, Some(Reg::slot(0))),
            Expr::Nat {
                kind: NatKind::Dnat,
                family: nft_family(family),
                addr: Some(Reg::slot(0)),
                addr_max: None,
                port: Some(Reg::slot(address_slots(family))),
                port_max: None,
                flags: NatFlags::default(),
            },
        ]
    };
    chain(family, name, vec![to_slot(picked), to_slot(first)])
}

fn chain(family: Family, name: String, rules: Vec<Vec<Expr>>) -> (Chain, Vec<Rule>) {
    let rules = rules.into_iter().map(|exprs| Rule::new(nft_family(family), TABLE, name.clone(), exprs)).collect();
    (Chain::new(nft_family(family), TABLE, name), rules)
}

/// Four-byte register slots that an address takes.
fn address_slots(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

/// Destination address: bytes 16..20 of the IPv4 header (RFC 791), 24..40 of the IPv6 header (RFC 8200).
fn load_destination(family: Family) -> Expr {
    let (offset, len) = match family {
        Family::V4 => (16, 4),
        Family::V6 => (24, 16),
    };
    Expr::PayloadLoad { base: PayloadBase::Network, offset, len, dreg: Reg::slot(0) }
}

fn lookup(set: &str, dreg: Option<Reg>) -> Expr {
    Expr::Lookup { set: set.to_owned(), sreg: Reg::slot(0), dreg, inverted: false }
}

fn mask(bits: u32) -> Expr {
    Expr::Bitwise { sreg: Reg::slot(0), dreg: Reg::slot(0), mask: Key::new().mark(bits), xor: Key::new().mark(0) }
}

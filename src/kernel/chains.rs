//! The chains: base chains, fixed chains, and the chains of plans. `compile::layout` says what each is for.
//!
//! Priorities and hooks are kube-proxy's own for nat (`-100` in prerouting and output, `100` in postrouting, its spec section 5.2),
//! so that tables of others keep their place relative to ours.

use std::time::Duration;

use ipnet::IpNet;
use nft::{
    Chain, ChainKind, CmpOp, CtKey, Direction, DynsetOp, Expr, FibFlags, FibResult, Hook, Key, MetaKey, NatFlags,
    NumgenKind, PayloadBase, Reg, Reject, Rule, Verdict,
};

use super::encode::nft_family;
use super::skeleton::*;
use crate::compile::layout::{
    DedicatedChain, HASH_SEED, Locality, MAX_MEMBERS, PLAN_MASK, POOL_MASK, Plan, PoolId, StickyChain, TABLE,
};
use crate::model::{Family, Protocol};
use crate::policy::Detector;
use crate::schedule::{HashKey, Pick};

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";
const AFTER_PREROUTING: &str = "after-prerouting";
const AFTER_OUTPUT: &str = "after-output";
const PICK: &str = "pick";
const SLOT: &str = "slot";
const FIRST_SLOT: &str = "first-slot";
const SOURCES: &str = "sources";

/// `NF_IP_PRI_NAT_DST` (linux/netfilter_ipv4.h).
pub(super) const PRIORITY_DNAT: i32 = -100;

/// Where the userspace forwarder's own table has its turn, and where we have ours again.
pub(super) const PRIORITY_FORWARDER: i32 = PRIORITY_DNAT + 1;
const PRIORITY_AFTER: i32 = PRIORITY_DNAT + 2;

/// `NF_IP_PRI_NAT_SRC` (linux/netfilter_ipv4.h).
const PRIORITY_SNAT: i32 = 100;

/// `ICMP_PORT_UNREACH` (linux/icmp.h).
const ICMP_PORT_UNREACHABLE: u8 = 3;

/// `ICMPV6_PORT_UNREACH` (linux/icmpv6.h).
const ICMP6_PORT_UNREACHABLE: u8 = 4;

/// `RTN_LOCAL` (linux/rtnetlink.h).
const ROUTE_LOCAL: u32 = 2;

/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h).
const STATUS_DNAT: u32 = 1 << 5;

/// The plans every table has, whether in use or not.
///
/// `random-1` is among them for its `dnat`: a nat chain sees nothing before something in the namespace asks for connection tracking
/// in its family, and rules that translate do, while rules that reject do not. Without it, a family in which no Service has an
/// endpoint would not reject anything.
pub(super) const FIXED_PLANS: [Plan; 7] = [
    Plan::Refuse,
    Plan::Dedicated,
    Plan::Discard,
    Plan::SourceRanges,
    Plan::LocalPolicy,
    Plan::Userspace,
    Plan::Random(1),
];

/// Chains with their rules.
pub(super) type Chains = Vec<(Chain, Vec<Rule>)>;

/// Whether a chain carries packets into the table.
pub(super) fn is_base(chain: &str) -> bool {
    [PREROUTING, OUTPUT, POSTROUTING, AFTER_PREROUTING, AFTER_OUTPUT].contains(&chain)
}

/// The chains that packets enter by, to be added last.
pub(super) fn base_chains(family: Family) -> Chains {
    // Only a connection that was sent elsewhere can need another source.
    let mut translated = vec![
        Expr::CtLoad { key: CtKey::Status, direction: None, dreg: Reg::slot(0) },
        mask(0, STATUS_DNAT),
        Expr::Cmp { sreg: Reg::slot(0), op: CmpOp::Neq, data: Key::new().mark(0) },
    ];
    translated.extend(go_to(SOURCES));
    let not_taken = || {
        let mut rule = is_plan(Plan::Userspace);
        rule.extend(go_to(INSTEAD));
        rule
    };
    [
        (PREROUTING, Hook::Prerouting, PRIORITY_DNAT, go_to(SERVICES)),
        (OUTPUT, Hook::Output, PRIORITY_DNAT, go_to(SERVICES)),
        (AFTER_PREROUTING, Hook::Prerouting, PRIORITY_AFTER, not_taken()),
        (AFTER_OUTPUT, Hook::Output, PRIORITY_AFTER, not_taken()),
        (POSTROUTING, Hook::Postrouting, PRIORITY_SNAT, translated),
    ]
    .into_iter()
    .map(|(name, hook, priority, rule)| {
        let (base, rules) = chain(family, name.to_owned(), vec![rule]);
        (base.hooked(ChainKind::Nat, hook, priority), rules)
    })
    .collect()
}

/// The chains that are always there, with their rules, but not the base chains.
pub(super) fn fixed_chains(family: Family, locality: &Locality) -> Chains {
    let detector = locality.detector(family);
    vec![
        chain(family, SERVICES.to_owned(), services(family)),
        chain(family, Plan::Refuse.chain(), refuse(family)),
        chain(family, Plan::Discard.chain(), vec![vec![Expr::Verdict(Verdict::Drop)]]),
        chain(family, Plan::Dedicated.chain(), dedicated()),
        chain(family, Plan::SourceRanges.chain(), source_ranges(family)),
        chain(family, Plan::LocalPolicy.chain(), local_policy(family, detector)),
        chain(family, Plan::Userspace.chain(), vec![vec![Expr::Verdict(Verdict::Accept)]]),
        chain(family, INSTEAD.to_owned(), instead()),
        chain(family, PICK.to_owned(), vec![vec![load_priority(0), mask(0, PLAN_MASK), lookup(PICKS, Reg::VERDICT)]]),
        chain(family, SLOT.to_owned(), slot(family)),
        chain(family, FIRST_SLOT.to_owned(), vec![to_slot(family, first_slot())]),
        chain(family, SOURCES.to_owned(), sources(family, detector, locality.masquerade_all)),
    ]
}

/// The chain of a plan that Services share.
pub(super) fn shared_chain(family: Family, plan: Plan) -> Option<(Chain, Vec<Rule>)> {
    match plan {
        Plan::Random(slots) => Some(chain(family, plan.chain(), picking_rules(family, Pick::Random, slots.into()))),
        Plan::Hash(key, buckets) => {
            Some(chain(family, plan.chain(), picking_rules(family, Pick::Hash(key), buckets.count())))
        }
        Plan::Refuse | Plan::Dedicated | Plan::Discard | Plan::SourceRanges | Plan::LocalPolicy | Plan::Userspace => {
            None
        }
    }
}

/// The chain of one pool. What it leads to besides fixed chains is in [`sticky_chains`].
pub(super) fn dedicated_chain(family: Family, dedicated: &DedicatedChain) -> (Chain, Vec<Rule>) {
    let (pick, slots) = (dedicated.pick, dedicated.slots);
    let fits = slots as usize <= MAX_MEMBERS;
    let number = || numbering_rule(family, dedicated.pool, pick, slots);
    let rules = match dedicated.affinity {
        None if fits => vec![[number(), go_to(SLOT)].concat()],
        None => picking_rules(family, pick, slots),
        Some(seconds) => {
            let returning = vec![Expr::Verdict(Verdict::Jump(StickyChain::Returning.chain(seconds)))];
            if fits {
                vec![returning, [number(), go_to(&StickyChain::Newcomer.chain(seconds))].concat()]
            } else {
                [vec![returning], choosing_rules(number_of(family, pick, slots), seconds)].concat()
            }
        }
    };
    chain(family, dedicated.name(), rules)
}

/// The chains that those of pools lead to in which clients stay for so many seconds; each leads to earlier ones only.
pub(super) fn sticky_chains(family: Family, seconds: u32) -> [(Chain, Vec<Rule>); 3] {
    StickyChain::ALL.map(|part| sticky_chain(family, part, seconds))
}

/// The picking chain of this name, or one that leads there: its name says all that is in it.
pub(super) fn by_name(family: Family, name: &str) -> Option<(Chain, Vec<Rule>)> {
    if let Some(dedicated) = DedicatedChain::from_name(name) {
        return Some(dedicated_chain(family, &dedicated));
    }
    if let Some((part, seconds)) = StickyChain::from_name(name) {
        return Some(sticky_chain(family, part, seconds));
    }
    shared_chain(family, Plan::from_chain(name)?)
}

// === deciding ===

fn services(family: Family) -> Vec<Vec<Expr>> {
    let addresses = address_slots(family);
    let decide = |set, mut key: Vec<Expr>| {
        key.extend([lookup(set, Reg::slot(0)), set_priority(), load_priority(0)]);
        key.extend([mask(0, PLAN_MASK), lookup(PLANS, Reg::VERDICT)]);
        key
    };
    let by_address = decide(SERVICES, vec![destination(family), l4proto(addresses), destination_port(addresses + 1)]);
    let mut by_port = vec![destination(family), find(NODE_PORT_ADDRESSES)];
    by_port.extend(destination_is_local(CmpOp::Eq));
    by_port.extend(decide(NODE_PORTS, vec![l4proto(0), destination_port(1)]));
    let guard = |set, verdict| {
        let mut rule = vec![destination(family), find(set)];
        rule.extend(destination_is_local(CmpOp::Neq));
        rule.push(verdict);
        rule
    };
    vec![
        by_address,
        by_port,
        guard(CLUSTER_IPS, Expr::Verdict(Verdict::Goto(Plan::Refuse.chain()))),
        guard(SERVICE_NETWORKS, Expr::Verdict(Verdict::Drop)),
    ]
}

/// ICMP errors are limited to one a second per client (icmp_ratelimit), and a connect() that is still in the kernel when one arrives
/// ignores it: it would be refused only after the next SYN, a second later. A reset is always heard.
fn refuse(family: Family) -> Vec<Vec<Expr>> {
    let others = match family {
        Family::V4 => Reject::Icmp(ICMP_PORT_UNREACHABLE),
        Family::V6 => Reject::Icmpv6(ICMP6_PORT_UNREACHABLE),
    };
    let tcp = Expr::eq(Reg::slot(0), Key::new().proto(Protocol::Tcp.number()));
    vec![vec![l4proto(0), tcp, Expr::Reject(Reject::TcpReset)], vec![Expr::Reject(others)]]
}

fn source_ranges(family: Family) -> Vec<Vec<Expr>> {
    let not_admitted = Expr::Lookup { set: SOURCE_RANGES.to_owned(), sreg: Reg::slot(0), dreg: None, inverted: true };
    vec![
        vec![source(family), load_priority(address_slots(family)), not_admitted, Expr::Verdict(Verdict::Drop)],
        vec![load_priority(0), lookup(ADMITTED, Reg::slot(0)), set_priority()],
        [is_plan(Plan::LocalPolicy), vec![Expr::Verdict(Verdict::Goto(Plan::LocalPolicy.chain()))]].concat(),
        vec![Expr::Verdict(Verdict::Goto(PICK.to_owned()))],
    ]
}

fn local_policy(family: Family, detector: &Detector) -> Vec<Vec<Expr>> {
    let then = |mut condition: Vec<Expr>, set| {
        condition.extend([load_priority(0), lookup(set, Reg::slot(0)), set_priority()]);
        condition.push(Expr::Verdict(Verdict::Goto(PICK.to_owned())));
        condition
    };
    let mut rules = Vec::new();
    if let Some(condition) = from_pod(family, detector, CmpOp::Eq) {
        rules.push(then(condition, INSIDE));
    }
    rules.push(then(source_is_local().to_vec(), INSIDE));
    rules.push(then(Vec::new(), OUTSIDE));
    rules
}

/// What the forwarder should have taken; slot 0 catches packets that a commit overtook.
fn instead() -> Vec<Vec<Expr>> {
    vec![
        vec![
            load_priority(0),
            lookup(INSTEAD, Reg::slot(0)),
            set_priority(),
            Expr::Verdict(Verdict::Goto(PICK.to_owned())),
        ],
        go_to(FIRST_SLOT),
    ]
}

/// Whether the decision that the priority holds is of this plan.
fn is_plan(plan: Plan) -> Vec<Expr> {
    vec![load_priority(0), mask(0, PLAN_MASK), Expr::eq(Reg::slot(0), Key::new().mark(plan.number()))]
}

// === picking ===

/// Picks a slot and sends the connection to its endpoint; slot 0 catches packets that a commit overtook (see `layout`).
fn picking_rules(family: Family, pick: Pick, slots: u32) -> Vec<Vec<Expr>> {
    vec![to_slot(family, number_of(family, pick, slots)), go_to(FIRST_SLOT)]
}

/// Picks a slot of one pool and puts both numbers into the priority.
fn numbering_rule(family: Family, pool: PoolId, pick: Pick, slots: u32) -> Vec<Expr> {
    let mut rule = number(family, pick, slots, pool.key(), 0);
    rule.push(set_priority());
    rule
}

/// A pool may cease to have a chain of its own between two lookups of a packet, which then goes to slot 0, as everywhere.
fn dedicated() -> Vec<Vec<Expr>> {
    vec![vec![load_priority(0), lookup(DEDICATED, Reg::VERDICT)], go_to(FIRST_SLOT)]
}

/// Sends the connection to the endpoint of the slot that the priority names; slot 0 as everywhere.
fn slot(family: Family) -> Vec<Vec<Expr>> {
    vec![to_slot(family, vec![load_priority(1), mask(1, PLAN_MASK)]), go_to(FIRST_SLOT)]
}

/// What happens to a client that is to stay with an endpoint, the pool and its slots aside.
fn sticky_chain(family: Family, part: StickyChain, seconds: u32) -> (Chain, Vec<Rule>) {
    let pool = address_slots(family);
    // The key of map `affinity`: client and pool.
    let client = || [source(family), load_priority(pool), mask(pool, POOL_MASK)];
    let remember = |op, timeout| {
        let mut rule = client().to_vec();
        rule.push(load_priority(pool + 1));
        rule.push(Expr::Dynset {
            op,
            set: AFFINITY.to_owned(),
            key: Reg::slot(0),
            data: Some(Reg::slot(pool + 1)),
            timeout,
            stateful: None,
        });
        rule
    };
    let update = || remember(DynsetOp::Update, Some(Duration::from_secs(seconds.into())));
    let to_member = || vec![load_priority(0), lookup(MEMBERS, Reg::slot(0)), dnat(family)];
    let rules = match part {
        StickyChain::Returning => vec![
            [client().to_vec(), vec![lookup(AFFINITY, Reg::slot(0)), set_priority()], update(), to_member()].concat(),
            // The member is gone: forget it, because an update keeps the data of an element that is there.
            remember(DynsetOp::Delete, None),
        ],
        StickyChain::Newcomer => choosing_rules(vec![load_priority(1), mask(1, PLAN_MASK)], seconds),
        StickyChain::Settle => vec![
            // If the map is full, the choice stands and is not remembered.
            update(),
            to_member(),
            // A commit overtook the packet.
            [pool_and(first_slot()), vec![lookup(MEMBER_SLOTS, Reg::slot(0)), set_priority()], to_member()].concat(),
        ],
    };
    chain(family, part.chain(seconds), rules)
}

/// Takes the member of a slot of the pool that the priority names; slot 0 as everywhere.
fn choosing_rules(slot: Vec<Expr>, seconds: u32) -> Vec<Vec<Expr>> {
    let choose = |slot| {
        let member = vec![lookup(MEMBER_SLOTS, Reg::slot(0)), set_priority()];
        [pool_and(slot), member, go_to(&StickyChain::Settle.chain(seconds))].concat()
    };
    vec![choose(slot), choose(first_slot())]
}

// === hiding sources ===

fn sources(family: Family, detector: &Detector, masquerade_all: bool) -> Vec<Vec<Expr>> {
    let addresses = address_slots(family);
    let masquerade = || Expr::Masquerade { flags: NatFlags { fully_random: true, ..NatFlags::default() } };
    let original_address = || Expr::CtLoad {
        key: if family == Family::V4 { CtKey::DstIp } else { CtKey::DstIp6 },
        direction: Some(Direction::Original),
        dreg: Reg::slot(0),
    };
    let original_port =
        |slot| Expr::CtLoad { key: CtKey::ProtoDst, direction: Some(Direction::Original), dreg: Reg::slot(slot) };
    let to_cluster_ip = || vec![original_address(), find(CLUSTER_IPS)];
    let to_frontend = |set| vec![original_address(), l4proto(addresses), original_port(addresses + 1), find(set)];
    let to_node_port =
        |set| vec![original_address(), find(NODE_PORT_ADDRESSES), l4proto(0), original_port(1), find(set)];
    let hide = |mut condition: Vec<Expr>| {
        condition.push(masquerade());
        condition
    };
    let done = |mut condition: Vec<Expr>| {
        condition.push(Expr::Verdict(Verdict::Return));
        condition
    };
    let from_host = |mut condition: Vec<Expr>| {
        condition.extend(source_is_local());
        condition
    };
    let itself = vec![source(family), destination_at(family, addresses), find(HAIRPINS)];
    let mut rules = vec![hide(itself)];
    if masquerade_all {
        rules.push(hide(to_cluster_ip()));
    } else if let Some(elsewhere) = from_pod(family, detector, CmpOp::Neq) {
        rules.push(hide([to_cluster_ip(), elsewhere].concat()));
    }
    rules.extend([
        hide(to_frontend(MASQUERADED)),
        hide(from_host(to_frontend(MASQUERADED_FROM_HOST))),
        // What follows goes by port alone where all addresses serve node ports, so what had another address is done.
        done(to_cluster_ip()),
        done(to_frontend(MASQUERADED_FROM_HOST)),
        hide(to_node_port(MASQUERADED_NODE_PORTS)),
        hide(from_host(to_node_port(MASQUERADED_NODE_PORTS_FROM_HOST))),
    ]);
    rules
}

/// Whether (`Eq`) or not (`Neq`) the connection is a local pod's; `None` if there is no telling, or if the answer is always no.
fn from_pod(family: Family, detector: &Detector, op: CmpOp) -> Option<Vec<Expr>> {
    match detector {
        Detector::None => None,
        Detector::Network(network) if network.prefix_len() == 0 => (op == CmpOp::Eq).then(Vec::new),
        Detector::Network(network) => {
            let mut condition = vec![source(family)];
            let (mask, address) = match network {
                IpNet::V4(network) => (Key::new().ipv4(network.netmask()), Key::new().ipv4(network.network())),
                IpNet::V6(network) => (Key::new().ipv6(network.netmask()), Key::new().ipv6(network.network())),
            };
            if network.prefix_len() < network.max_prefix_len() {
                let xor = Key::raw(&vec![0; mask.as_bytes().len()]);
                condition.push(Expr::Bitwise { sreg: Reg::slot(0), dreg: Reg::slot(0), mask, xor });
            }
            condition.push(Expr::Cmp { sreg: Reg::slot(0), op, data: address });
            Some(condition)
        }
        Detector::Interface(name) => Some(by_interface(Key::new().ifname(name), op)),
        Detector::InterfacePrefix(prefix) => {
            Some(by_interface(Key::raw(&prefix.as_bytes()[..prefix.len().min(15)]), op))
        }
    }
}

/// The interface a packet came in by is known in postrouting, too, since Linux 5.7 (28f8bfd1ac94); there is none if the host sent it.
fn by_interface(name: Key, op: CmpOp) -> Vec<Expr> {
    vec![Expr::MetaLoad { key: MetaKey::IifName, dreg: Reg::slot(0) }, Expr::Cmp { sreg: Reg::slot(0), op, data: name }]
}

// === parts ===

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

/// Source address: bytes 12..16 of the IPv4 header (RFC 791), 8..24 of the IPv6 header (RFC 8200).
fn source(family: Family) -> Expr {
    source_at(family, 0)
}

fn source_at(family: Family, slot: u32) -> Expr {
    match family {
        Family::V4 => Expr::ip_saddr(Reg::slot(slot)),
        Family::V6 => Expr::ip6_saddr(Reg::slot(slot)),
    }
}

fn destination(family: Family) -> Expr {
    destination_at(family, 0)
}

fn destination_at(family: Family, slot: u32) -> Expr {
    match family {
        Family::V4 => Expr::ip_daddr(Reg::slot(slot)),
        Family::V6 => Expr::ip6_daddr(Reg::slot(slot)),
    }
}

fn l4proto(slot: u32) -> Expr {
    Expr::l4proto(Reg::slot(slot))
}

fn destination_port(slot: u32) -> Expr {
    Expr::PayloadLoad { base: PayloadBase::Transport, offset: 2, len: 2, dreg: Reg::slot(slot) }
}

fn source_port(slot: u32) -> Expr {
    Expr::PayloadLoad { base: PayloadBase::Transport, offset: 0, len: 2, dreg: Reg::slot(slot) }
}

fn destination_is_local(op: CmpOp) -> [Expr; 2] {
    is_local(FibFlags { daddr: true, ..FibFlags::default() }, op)
}

fn source_is_local() -> [Expr; 2] {
    is_local(FibFlags { saddr: true, ..FibFlags::default() }, CmpOp::Eq)
}

fn is_local(flags: FibFlags, op: CmpOp) -> [Expr; 2] {
    [
        Expr::Fib { result: FibResult::AddrType, flags, dreg: Reg::slot(0) },
        Expr::Cmp { sreg: Reg::slot(0), op, data: Key::new().mark(ROUTE_LOCAL) },
    ]
}

fn load_priority(slot: u32) -> Expr {
    Expr::MetaLoad { key: MetaKey::Priority, dreg: Reg::slot(slot) }
}

fn set_priority() -> Expr {
    Expr::MetaSet { key: MetaKey::Priority, sreg: Reg::slot(0) }
}

fn mask(slot: u32, bits: u32) -> Expr {
    Expr::mask(Reg::slot(slot), bits)
}

fn go_to(chain: &str) -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Goto(chain.to_owned()))]
}

fn find(set: &str) -> Expr {
    Expr::lookup(set, Reg::slot(0))
}

fn lookup(map: &str, dreg: Reg) -> Expr {
    Expr::map(map, Reg::slot(0), dreg)
}

/// To the endpoint of a slot of the pool that the priority names, if it is there.
fn to_slot(family: Family, slot: Vec<Expr>) -> Vec<Expr> {
    [pool_and(slot), vec![lookup(ENDPOINTS, Reg::slot(0)), dnat(family)]].concat()
}

/// The key of maps `endpoints` and `member-slots`.
fn pool_and(slot: Vec<Expr>) -> Vec<Expr> {
    [vec![load_priority(0), mask(0, POOL_MASK)], slot].concat()
}

/// The number of a slot, in register slot 1, behind the pool's.
fn number_of(family: Family, pick: Pick, slots: u32) -> Vec<Expr> {
    number(family, pick, slots, 0, 1)
}

/// One of so many numbers from `offset` on, in this register slot; nothing behind it is kept.
fn number(family: Family, pick: Pick, slots: u32, offset: u32, slot: u32) -> Vec<Expr> {
    match pick {
        Pick::Random | Pick::Counter | Pick::Ring => numgen(pick, slots, offset, slot),
        Pick::Hash(key) => hash(family, key, slots, offset, slot),
    }
}

/// Drawn or counted.
fn numgen(pick: Pick, slots: u32, offset: u32, slot: u32) -> Vec<Expr> {
    let kind = if pick == Pick::Random { NumgenKind::Random } else { NumgenKind::Incremental };
    let number = Expr::Numgen { kind, modulus: slots, offset, dreg: Reg::slot(slot) };
    match pick {
        // Both begin at nothing in a new rule and go on together, so the number of packets tells which slot is next.
        Pick::Ring => vec![Expr::counter(), number],
        Pick::Random | Pick::Counter | Pick::Hash(_) => vec![number],
    }
}

/// What is hashed is loaded where the number takes its place.
fn hash(family: Family, key: HashKey, slots: u32, offset: u32, slot: u32) -> Vec<Expr> {
    let addresses = address_slots(family);
    let mut exprs = vec![match key {
        HashKey::Source | HashKey::SourcePort => source_at(family, slot),
        HashKey::Destination => destination_at(family, slot),
    }];
    // A port is padded to four bytes, by the kernel as by nft.
    let mut len = 4 * addresses;
    if key == HashKey::SourcePort {
        exprs.push(source_port(slot + addresses));
        len += 4;
    }
    let (sreg, dreg) = (Reg::slot(slot), Reg::slot(slot));
    exprs.push(Expr::Jhash { sreg, len, modulus: slots, seed: Some(HASH_SEED), offset, dreg });
    exprs
}

/// A constant would do, but nft 1.0.6 cannot print one inside a concatenation; the only number below 1 prints well.
fn first_slot() -> Vec<Expr> {
    numgen(Pick::Random, 1, 0, 1)
}

fn dnat(family: Family) -> Expr {
    Expr::dnat(nft_family(family), Reg::slot(0), Some(Reg::slot(address_slots(family))))
}

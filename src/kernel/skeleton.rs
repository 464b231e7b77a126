//! The table without its elements: its maps and sets. Its chains are in `chains`.

use nft::{Field, Set, SetData, SetRef, Table, TableFlags};

use super::encode::{address_field, nft_family};
use crate::compile::Forecast;
use crate::compile::layout::{Locality, PLAN_MASK, TABLE};
use crate::model::Family;

pub(super) const SERVICES: &str = "services";
pub(super) const NODE_PORTS: &str = "node-ports";
pub(super) const PLANS: &str = "plans";
pub(super) const PICKS: &str = "picks";
pub(super) const ADMITTED: &str = "admitted";
pub(super) const INSIDE: &str = "inside";
pub(super) const OUTSIDE: &str = "outside";
pub(super) const INSTEAD: &str = "instead";
pub(super) const ENDPOINTS: &str = "endpoints";
pub(super) const DEDICATED: &str = "dedicated";
pub(super) const MEMBERS: &str = "members";
pub(super) const MEMBER_SLOTS: &str = "member-slots";
pub(super) const AFFINITY: &str = "affinity";
pub(super) const SOURCE_RANGES: &str = "source-ranges";
pub(super) const CLUSTER_IPS: &str = "cluster-ips";
pub(super) const HAIRPINS: &str = "hairpins";
pub(super) const MASQUERADED: &str = "masqueraded";
pub(super) const MASQUERADED_FROM_HOST: &str = "masqueraded-from-host";
pub(super) const MASQUERADED_NODE_PORTS: &str = "masqueraded-node-ports";
pub(super) const MASQUERADED_NODE_PORTS_FROM_HOST: &str = "masqueraded-node-ports-from-host";
pub(super) const NODE_PORT_ADDRESSES: &str = "node-port-addresses";
pub(super) const SERVICE_NETWORKS: &str = "service-networks";

/// Plans that fit: their numbers have 12 bits.
const PLANS_SIZE: u32 = PLAN_MASK + 1;

/// Clients remembered, on all Services with session affinity together. Beyond that, new clients are served and not remembered.
const AFFINITY_SIZE: u32 = 1 << 20;

/// Fields of a decision, a plan, a member.
pub(super) const NUMBER: [Field; 1] = [Field::Mark];

/// Sets that hold what the cluster has, those first that have a declared size.
const COUNTED: [&str; 19] = [
    SERVICES,
    NODE_PORTS,
    ADMITTED,
    INSIDE,
    OUTSIDE,
    INSTEAD,
    ENDPOINTS,
    DEDICATED,
    MEMBERS,
    MEMBER_SLOTS,
    CLUSTER_IPS,
    HAIRPINS,
    MASQUERADED,
    MASQUERADED_FROM_HOST,
    MASQUERADED_NODE_PORTS,
    MASQUERADED_NODE_PORTS_FROM_HOST,
    SOURCE_RANGES,
    NODE_PORT_ADDRESSES,
    SERVICE_NETWORKS,
];

/// How many of [`COUNTED`] have a declared size: ranges have none.
const GROWING: usize = 16;

/// Declared sizes of the sets that grow with the cluster. The kernel then uses its fixed hash, whose buckets are allocated once.
///
/// By place in [`COUNTED`], as [`Counts`]: both are asked about every set with each transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes([u32; GROWING]);

/// Numbers of elements per set.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts([usize; COUNTED.len()]);

/// Sets whose elements depend on the cluster, and that have a declared size.
pub(super) fn growing() -> impl Iterator<Item = &'static str> {
    COUNTED.into_iter().take(GROWING)
}

fn place(set: &str) -> Option<usize> {
    COUNTED.iter().position(|known| *known == set)
}

/// Buckets are 8 bytes each, so even a node that uses nothing else pays less than 3 MB.
fn smallest(set: &str) -> u32 {
    match set {
        SERVICES | ENDPOINTS => 1 << 16,
        CLUSTER_IPS | MEMBERS | MEMBER_SLOTS => 1 << 14,
        _ => 1 << 12,
    }
}

// === impl Sizes ===

impl Sizes {
    /// Room for twice these numbers of elements.
    pub(super) fn for_counts(counts: &Counts) -> Self {
        let mut sizes = [0; GROWING];
        for ((size, set), count) in sizes.iter_mut().zip(COUNTED).zip(counts.0) {
            let wanted = u32::try_from(count.saturating_mul(2)).unwrap_or(u32::MAX / 2);
            *size = wanted.max(smallest(set)).next_power_of_two();
        }
        Self(sizes)
    }

    /// As declared in a kernel, in the order of [`growing`].
    pub(super) fn found(sizes: impl Iterator<Item = u32>) -> Self {
        let mut found = [0; GROWING];
        found.iter_mut().zip(sizes).for_each(|(size, declared)| *size = declared);
        Self(found)
    }

    /// The declared size of a set, if it grows.
    pub(super) fn get(&self, set: &str) -> Option<u32> {
        self.0.get(place(set)?).copied()
    }

    /// The first set, in order, for which so many elements are too many, and its size.
    pub(super) fn exceeded_by(&self, counts: &Counts) -> Option<(&'static str, u32)> {
        let both = COUNTED.into_iter().zip(self.0).zip(counts.0);
        both.filter(|((_, size), count)| *count > *size as usize).map(|(set, _)| set).next()
    }
}

impl From<&Forecast> for Counts {
    fn from(forecast: &Forecast) -> Self {
        let [masqueraded, from_host] = forecast.masqueraded;
        let [node_ports, node_ports_from_host] = forecast.masqueraded_node_ports;
        let mut counts = Self::default();
        let all = [
            (SERVICES, forecast.services),
            (NODE_PORTS, forecast.node_ports),
            (ADMITTED, forecast.admitted),
            (INSIDE, forecast.local_policy),
            (OUTSIDE, forecast.local_policy),
            (INSTEAD, forecast.instead),
            (ENDPOINTS, forecast.endpoints),
            (DEDICATED, forecast.dedicated),
            (MEMBERS, forecast.members),
            (MEMBER_SLOTS, forecast.member_slots),
            (CLUSTER_IPS, forecast.cluster_ips),
            (HAIRPINS, forecast.hairpins),
            (MASQUERADED, masqueraded),
            (MASQUERADED_FROM_HOST, from_host),
            (MASQUERADED_NODE_PORTS, node_ports),
            (MASQUERADED_NODE_PORTS_FROM_HOST, node_ports_from_host),
        ];
        all.into_iter().for_each(|(set, number)| counts.add(set, number.cast_signed()));
        counts
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn total(&self) -> usize {
        self.0.iter().sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.total() == 0
    }

    pub(super) fn add(&mut self, set: &'static str, more: isize) {
        if more != 0
            && let Some(count) = place(set).and_then(|place| self.0.get_mut(place))
        {
            *count = count.saturating_add_signed(more);
        }
    }
}

// === the table ===

pub(super) fn table(family: Family, flags: TableFlags, locality: &Locality) -> Table {
    Table { flags, comment: Some(locality.comment(family)), ..Table::new(nft_family(family), TABLE) }
}

pub(super) fn set_ref(family: Family, name: &'static str) -> SetRef<'static> {
    SetRef::new(nft_family(family), TABLE, name)
}

/// All maps and sets.
pub(super) fn sets(family: Family, sizes: &Sizes) -> Vec<Set> {
    let address = address_field(family);
    let frontend = [address, Field::InetProto, Field::InetService];
    let node_port = [Field::InetProto, Field::InetService];
    let slot = [Field::Mark, Field::Mark];
    let decision = || SetData::Value(NUMBER.to_vec());
    let endpoint = || SetData::Value(vec![address, Field::InetService]);
    let map = |name: &str, key: &[Field], data| Set {
        size: sizes.get(name),
        ..Set::map(nft_family(family), TABLE, name, key, data)
    };
    let set = |name: &str, key: &[Field]| map(name, key, SetData::None);
    let plans = |name| Set { size: Some(PLANS_SIZE), ..map(name, &NUMBER, SetData::Verdict) };
    let ranges = |name: &str, key: &[Field]| Set { interval: true, ..set(name, key) };
    let affinity = map(AFFINITY, &[address, Field::Mark], decision());
    vec![
        map(SERVICES, &frontend, decision()),
        map(NODE_PORTS, &node_port, decision()),
        plans(PLANS),
        plans(PICKS),
        map(ADMITTED, &NUMBER, decision()),
        map(INSIDE, &NUMBER, decision()),
        map(OUTSIDE, &NUMBER, decision()),
        map(INSTEAD, &NUMBER, decision()),
        map(ENDPOINTS, &slot, endpoint()),
        map(DEDICATED, &NUMBER, SetData::Verdict),
        map(MEMBERS, &NUMBER, endpoint()),
        map(MEMBER_SLOTS, &slot, decision()),
        Set { dynamic: true, has_timeouts: true, size: Some(AFFINITY_SIZE), ..affinity },
        ranges(SOURCE_RANGES, &[address, Field::Mark]),
        set(CLUSTER_IPS, &[address]),
        set(HAIRPINS, &[address, address]),
        set(MASQUERADED, &frontend),
        set(MASQUERADED_FROM_HOST, &frontend),
        set(MASQUERADED_NODE_PORTS, &node_port),
        set(MASQUERADED_NODE_PORTS_FROM_HOST, &node_port),
        ranges(NODE_PORT_ADDRESSES, &[address]),
        ranges(SERVICE_NETWORKS, &[address]),
    ]
}

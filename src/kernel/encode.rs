//! Keys and values of our maps and sets, as bytes and back.
//!
//! [`Mapped`] says for each kind of element in which set it stands, what its key and its value look like there, and how it is read
//! back. A table whose bytes do not read back is not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use nft::{ElementView, Field, Key, Verdict, ViewData};

use super::image::Labels;
use super::skeleton::*;
use crate::compile::layout::{Decision, DedicatedChain, MemberId, Plan, PoolId};
use crate::compile::{
    ClusterIp, Hairpin, Hop, Label, Masquerade, NodePortAddress, ServiceNetwork, Slot, SlotKey, SourceRange, Stage,
    Target,
};
use crate::model::{AddressRange, Family, Protocol};
use crate::policy::{Frontend, NodePort};

/// An element as the kernel wants it.
pub(super) struct Encoded {
    pub(super) key: Key,
    /// The last key, in sets of ranges.
    pub(super) end: Option<Key>,
    pub(super) data: Datum,
    pub(super) label: Option<Arc<str>>,
}

/// What an element carries.
pub(super) enum Datum {
    Nothing,
    Value(Key),
    Verdict(Verdict),
}

/// A kind of element: this is the key, `V` the value.
pub(super) trait Mapped<V>: Sized {
    /// The sets these elements stand in.
    const SETS: &'static [&'static str];

    /// Which of them this one stands in.
    fn set(&self, _value: &V) -> &'static str {
        Self::SETS[0]
    }

    fn encode(&self, value: &V) -> Encoded;

    /// Reads an element of one of the sets; `None` if it cannot be ours. In sets of ranges with a single field the end is given by
    /// the reader, as the kernel reports it by an element of its own.
    fn decode(family: Family, set: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, V)>;
}

/// The type of an address.
pub(super) fn address_field(family: Family) -> Field {
    match family {
        Family::V4 => Field::Ipv4Addr,
        Family::V6 => Field::Ipv6Addr,
    }
}

/// The nf_tables family of a family.
pub(super) fn nft_family(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ip,
        Family::V6 => nft::Family::Ip6,
    }
}

pub(super) fn number(number: u32) -> Key {
    Key::new().mark(number)
}

fn address(key: Key, address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => key.ipv4(address),
        IpAddr::V6(address) => key.ipv6(address),
    }
}

// === impl Encoded ===

impl Encoded {
    fn new(key: Key) -> Self {
        Self { key, end: None, data: Datum::Nothing, label: None }
    }

    fn value(key: Key, value: Key) -> Self {
        Self { data: Datum::Value(value), ..Self::new(key) }
    }

    fn label(mut self, label: &Arc<str>) -> Self {
        self.label = Some(label.clone()).filter(|label| !label.is_empty());
        self
    }
}

// === frontends ===

impl Mapped<Target> for Frontend {
    const SETS: &'static [&'static str] = &[SERVICES];

    fn encode(&self, target: &Target) -> Encoded {
        Encoded::value(frontend_key(self), number(target.decision.value())).label(&target.label)
    }

    fn decode(family: Family, _: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Target)> {
        Some((read_frontend(family, element.key)?, read_target(element, labels)?))
    }
}

impl Mapped<Target> for NodePort {
    const SETS: &'static [&'static str] = &[NODE_PORTS];

    fn encode(&self, target: &Target) -> Encoded {
        Encoded::value(node_port_key(self), number(target.decision.value())).label(&target.label)
    }

    fn decode(_: Family, _: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Target)> {
        Some((read_node_port(element.key)?, read_target(element, labels)?))
    }
}

impl Mapped<Target> for Hop {
    const SETS: &'static [&'static str] = &[ADMITTED, INSIDE, OUTSIDE, INSTEAD];

    fn set(&self, _: &Target) -> &'static str {
        Self::SETS[self.stage as usize]
    }

    fn encode(&self, target: &Target) -> Encoded {
        let plan = match self.stage {
            Stage::Admitted => Plan::SourceRanges,
            Stage::Inside | Stage::Outside => Plan::LocalPolicy,
            Stage::Instead => Plan::Userspace,
        };
        let key = Decision { pool: Some(self.pool), plan };
        Encoded::value(number(key.value()), number(target.decision.value())).label(&target.label)
    }

    fn decode(_: Family, set: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Target)> {
        let stages = [Stage::Admitted, Stage::Inside, Stage::Outside, Stage::Instead];
        let stage = stages.into_iter().zip(Self::SETS).find(|(_, name)| **name == set)?.0;
        Some((Hop { stage, pool: read_decision(element.key)?.pool? }, read_target(element, labels)?))
    }
}

impl Mapped<Masquerade> for Frontend {
    const SETS: &'static [&'static str] = &[MASQUERADED, MASQUERADED_FROM_HOST];

    fn set(&self, masquerade: &Masquerade) -> &'static str {
        <Self as Mapped<Masquerade>>::SETS[usize::from(masquerade.from_host_only)]
    }

    fn encode(&self, masquerade: &Masquerade) -> Encoded {
        Encoded::new(frontend_key(self)).label(&masquerade.label)
    }

    fn decode(family: Family, set: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Masquerade)> {
        let masquerade =
            Masquerade { from_host_only: set == MASQUERADED_FROM_HOST, label: read_label(element, labels) };
        Some((read_frontend(family, element.key)?, masquerade))
    }
}

impl Mapped<Masquerade> for NodePort {
    const SETS: &'static [&'static str] = &[MASQUERADED_NODE_PORTS, MASQUERADED_NODE_PORTS_FROM_HOST];

    fn set(&self, masquerade: &Masquerade) -> &'static str {
        <Self as Mapped<Masquerade>>::SETS[usize::from(masquerade.from_host_only)]
    }

    fn encode(&self, masquerade: &Masquerade) -> Encoded {
        Encoded::new(node_port_key(self)).label(&masquerade.label)
    }

    fn decode(_: Family, set: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Masquerade)> {
        let from_host_only = set == MASQUERADED_NODE_PORTS_FROM_HOST;
        Some((read_node_port(element.key)?, Masquerade { from_host_only, label: read_label(element, labels) }))
    }
}

// === endpoints ===

impl Mapped<Slot> for SlotKey {
    const SETS: &'static [&'static str] = &[ENDPOINTS];

    fn encode(&self, slot: &Slot) -> Encoded {
        Encoded::value(slot_key(self), endpoint_value(slot.endpoint)).label(&slot.label)
    }

    fn decode(family: Family, _: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Slot)> {
        Some((read_slot_key(element.key)?, read_slot(family, element, labels)?))
    }
}

impl Mapped<Slot> for MemberId {
    const SETS: &'static [&'static str] = &[MEMBERS];

    fn encode(&self, slot: &Slot) -> Encoded {
        Encoded::value(member_key(self), endpoint_value(slot.endpoint)).label(&slot.label)
    }

    fn decode(family: Family, _: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Slot)> {
        Some((MemberId::from_value(read_number(element.key)?)?, read_slot(family, element, labels)?))
    }
}

impl Mapped<MemberId> for SlotKey {
    const SETS: &'static [&'static str] = &[MEMBER_SLOTS];

    fn encode(&self, member: &MemberId) -> Encoded {
        Encoded::value(slot_key(self), number(member.value()))
    }

    fn decode(_: Family, _: &str, element: &ElementView<'_>, _: &mut Labels) -> Option<(Self, MemberId)> {
        Some((read_slot_key(element.key)?, MemberId::from_value(read_number(value(element)?)?)?))
    }
}

/// The key is the whole decision, which is what is at hand in the packet's priority.
impl Mapped<DedicatedChain> for PoolId {
    const SETS: &'static [&'static str] = &[DEDICATED];

    fn encode(&self, chain: &DedicatedChain) -> Encoded {
        let key = Decision { pool: Some(*self), plan: Plan::Dedicated };
        Encoded { data: Datum::Verdict(Verdict::Goto(chain.name())), ..Encoded::new(number(key.value())) }
    }

    fn decode(_: Family, _: &str, element: &ElementView<'_>, _: &mut Labels) -> Option<(Self, DedicatedChain)> {
        let ViewData::Verdict(verdict) = &element.data else { return None };
        Some((read_decision(element.key)?.pool?, DedicatedChain::from_name(verdict.chain()?)?))
    }
}

// === addresses ===

impl Mapped<Label> for SourceRange {
    const SETS: &'static [&'static str] = &[SOURCE_RANGES];

    fn encode(&self, label: &Label) -> Encoded {
        let decision = Decision { pool: Some(self.pool), plan: Plan::SourceRanges };
        let key = |end| address(Key::new(), end).mark(decision.value());
        Encoded { end: Some(key(self.range.last)), ..Encoded::new(key(self.range.first)).label(&label.0) }
    }

    fn decode(family: Family, _: &str, element: &ElementView<'_>, labels: &mut Labels) -> Option<(Self, Label)> {
        let (first, rest) = read_address(family, element.key)?;
        let (last, _) = read_address(family, element.key_end.unwrap_or(element.key))?;
        let pool = read_decision(rest)?.pool?;
        Some((SourceRange { pool, range: AddressRange { first, last } }, Label(read_label(element, labels))))
    }
}

impl Mapped<ClusterIp> for IpAddr {
    const SETS: &'static [&'static str] = &[CLUSTER_IPS];

    fn encode(&self, _: &ClusterIp) -> Encoded {
        Encoded::new(address(Key::new(), *self))
    }

    fn decode(family: Family, _: &str, element: &ElementView<'_>, _: &mut Labels) -> Option<(Self, ClusterIp)> {
        Some((read_address(family, element.key)?.0, ClusterIp))
    }
}

/// Source and destination: the same address twice.
impl Mapped<Hairpin> for IpAddr {
    const SETS: &'static [&'static str] = &[HAIRPINS];

    fn encode(&self, _: &Hairpin) -> Encoded {
        Encoded::new(address(address(Key::new(), *self), *self))
    }

    fn decode(family: Family, _: &str, element: &ElementView<'_>, _: &mut Labels) -> Option<(Self, Hairpin)> {
        let (source, rest) = read_address(family, element.key)?;
        (read_address(family, rest)?.0 == source).then_some((source, Hairpin))
    }
}

macro_rules! address_ranges {
    ($mark:ident in $set:ident) => {
        impl Mapped<$mark> for AddressRange {
            const SETS: &'static [&'static str] = &[$set];

            fn encode(&self, _: &$mark) -> Encoded {
                Encoded { end: Some(address(Key::new(), self.last)), ..Encoded::new(address(Key::new(), self.first)) }
            }

            fn decode(family: Family, _: &str, element: &ElementView<'_>, _: &mut Labels) -> Option<(Self, $mark)> {
                let (first, _) = read_address(family, element.key)?;
                let (last, _) = read_address(family, element.key_end?)?;
                Some((AddressRange { first, last }, $mark))
            }
        }
    };
}

address_ranges!(NodePortAddress in NODE_PORT_ADDRESSES);
address_ranges!(ServiceNetwork in SERVICE_NETWORKS);

// === parts ===

fn frontend_key(frontend: &Frontend) -> Key {
    address(Key::new(), frontend.address).proto(frontend.protocol.number()).port(frontend.port)
}

fn node_port_key(node_port: &NodePort) -> Key {
    // One byte of protocol, padded because another field follows.
    Key::new().part(&[node_port.protocol.number(), 0, 0, 0]).port(node_port.port)
}

/// The key of map `members`.
pub(super) fn member_key(member: &MemberId) -> Key {
    number(member.value())
}

/// The key of maps `endpoints` and `member-slots`.
pub(super) fn slot_key(key: &SlotKey) -> Key {
    Key::new().mark(key.pool.key()).mark(key.slot)
}

fn endpoint_value(endpoint: SocketAddr) -> Key {
    address(Key::new(), endpoint.ip()).port(endpoint.port())
}

fn read_frontend(family: Family, bytes: &[u8]) -> Option<Frontend> {
    let (address, rest) = read_address(family, bytes)?;
    let NodePort { protocol, port } = read_node_port(rest)?;
    Some(Frontend { address, protocol, port })
}

fn read_node_port(bytes: &[u8]) -> Option<NodePort> {
    let protocol = Protocol::from_number(*bytes.first()?)?;
    Some(NodePort { protocol, port: read_port(bytes.get(4..)?)? })
}

fn read_slot_key(bytes: &[u8]) -> Option<SlotKey> {
    let pool = PoolId::from_key(read_number(bytes)?)?;
    Some(SlotKey { pool, slot: read_number(bytes.get(4..)?)? })
}

fn read_slot(family: Family, element: &ElementView<'_>, labels: &mut Labels) -> Option<Slot> {
    let (address, rest) = read_address(family, value(element)?)?;
    Some(Slot { endpoint: SocketAddr::new(address, read_port(rest)?), label: read_label(element, labels) })
}

fn read_target(element: &ElementView<'_>, labels: &mut Labels) -> Option<Target> {
    Some(Target { decision: read_decision(value(element)?)?, label: read_label(element, labels) })
}

fn read_decision(bytes: &[u8]) -> Option<Decision> {
    Decision::from_value(read_number(bytes)?)
}

fn read_label(element: &ElementView<'_>, labels: &mut Labels) -> Arc<str> {
    labels.get(element.comment.unwrap_or_default())
}

fn value<'a>(element: &ElementView<'a>) -> Option<&'a [u8]> {
    if let ViewData::Value(value) = element.data { Some(value) } else { None }
}

/// Reads a number in host byte order.
pub(super) fn read_number(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

/// Reads an address; the rest begins behind it.
pub(super) fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => {
            let (octets, rest) = bytes.split_first_chunk::<4>()?;
            Some((Ipv4Addr::from(*octets).into(), rest))
        }
        Family::V6 => {
            let (octets, rest) = bytes.split_first_chunk::<16>()?;
            Some((Ipv6Addr::from(*octets).into(), rest))
        }
    }
}

fn read_port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::schedule::Buckets;

    /// Encodes, reads what the kernel would report, decodes.
    fn journey<K: Mapped<V>, V>(family: Family, key: &K, value: &V) -> Option<(K, V)> {
        let encoded = key.encode(value);
        let data = match &encoded.data {
            Datum::Nothing => ViewData::None,
            Datum::Value(value) => ViewData::Value(value.as_bytes()),
            Datum::Verdict(verdict) => ViewData::Verdict(verdict.clone()),
        };
        let element = ElementView {
            key: encoded.key.as_bytes(),
            key_end: encoded.end.as_ref().map(Key::as_bytes),
            data,
            comment: encoded.label.as_deref(),
            timeout: None,
            expires: None,
            interval_end: false,
        };
        K::decode(family, key.set(value), &element, &mut Labels::default())
    }

    proptest! {
        #[test]
        fn keys_and_values_survive_the_journey(
            address in any::<IpAddr>(), protocol in 0usize..3, port in any::<u16>(), pool in 1u32..=0xf_ffff, number in any::<u32>(), flag in any::<bool>(),
        ) {
            let family = Family::of(address);
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][protocol];
            let label: Arc<str> = "shop/web:http".into();
            let pool = PoolId::new(pool).expect("in range");
            let plans = [Plan::Random(7), Plan::Hash(crate::schedule::HashKey::SourcePort, Buckets::new(1024).expect("a size"))];
            let plan = *plans.iter().chain(&Plan::FIXED).nth(number as usize % 8).expect("eight plans");
            let target = Target { decision: Decision { pool: Some(pool), plan }, label: label.clone() };
            let masquerade = Masquerade { from_host_only: flag, label: label.clone() };
            let slot = Slot { endpoint: SocketAddr::new(address, port), label: label.clone() };
            let member = MemberId { pool, index: number as u16 & 0xfff };
            let (frontend, node_port) = (Frontend { address, protocol, port }, NodePort { protocol, port });
            let range = AddressRange { first: address, last: AddressRange::everything(family).last };
            let chain = DedicatedChain { pick: crate::schedule::Pick::Counter, slots: number, affinity: flag.then_some(9), local: !flag, pool, owner: label.clone() };
            let stage = [Stage::Admitted, Stage::Inside, Stage::Outside, Stage::Instead][number as usize % 4];
            macro_rules! check {
                ($($key:expr => $value:expr),* $(,)?) => {$(
                    let (key, value) = ($key, $value);
                    let arrived = journey(family, &key, &value);
                    prop_assert_eq!(arrived, Some((key, value)));
                )*};
            }
            check!(
                frontend => target.clone(), node_port => target.clone(), Hop { stage, pool } => target, frontend => masquerade.clone(),
                node_port => masquerade, SlotKey { pool, slot: number } => slot.clone(), member => slot, SlotKey { pool, slot: number } => member,
                pool => chain, SourceRange { pool, range } => Label(label), address => ClusterIp, address => Hairpin,
                range => NodePortAddress, range => ServiceNetwork,
            );
        }

        #[test]
        fn foreign_bytes_are_refused_and_never_panic(key in proptest::collection::vec(any::<u8>(), 0..40), data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let element = ElementView {
                key: &key, key_end: Some(&data), data: ViewData::Value(&data), comment: None, timeout: None, expires: None, interval_end: false,
            };
            for family in Family::ALL {
                let _ = <Frontend as Mapped<Target>>::decode(family, SERVICES, &element, &mut Labels::default());
                let _ = <NodePort as Mapped<Target>>::decode(family, NODE_PORTS, &element, &mut Labels::default());
                let _ = Hop::decode(family, INSIDE, &element, &mut Labels::default());
                let _ = <SlotKey as Mapped<Slot>>::decode(family, ENDPOINTS, &element, &mut Labels::default());
                let _ = <SlotKey as Mapped<MemberId>>::decode(family, MEMBER_SLOTS, &element, &mut Labels::default());
                let _ = MemberId::decode(family, MEMBERS, &element, &mut Labels::default());
                let _ = PoolId::decode(family, DEDICATED, &element, &mut Labels::default());
                let _ = SourceRange::decode(family, SOURCE_RANGES, &element, &mut Labels::default());
                let _ = <IpAddr as Mapped<Hairpin>>::decode(family, HAIRPINS, &element, &mut Labels::default());
                let _ = <AddressRange as Mapped<ServiceNetwork>>::decode(family, SERVICE_NETWORKS, &element, &mut Labels::default());
            }
        }
    }
}

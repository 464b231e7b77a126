//! The elements of our maps and sets: keys, values, and all of them together.
//!
//! One field of [`TableDelta`] and [`TableImage`] per kind of element. `each_map!` goes through all of them, so that whoever
//! applies, reads or compares tables cannot forget one.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::delta::Edits;
use super::layout::{Decision, DedicatedChain, MemberId, PoolId};
use crate::model::AddressRange;
use crate::model::map::NearMap;
use crate::policy::{Frontend, NodePort};

/// Where a connection goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Pool and plan.
    pub decision: Decision,
    /// The element's comment: whose frontend this is.
    pub label: Arc<str>,
}

/// Key of maps `admitted`, `inside`, `outside` and `instead`: a second decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// After which check.
    pub stage: Stage,
    /// For which Service port, by the pool of the decision before.
    pub pool: PoolId,
}

/// When a second decision is due; each has a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// The client's address is in the source ranges.
    Admitted,
    /// The connection is the node's own or of one of its pods.
    Inside,
    /// It is not.
    Outside,
    /// No userspace forwarder has taken it.
    Instead,
}

/// Key of maps `endpoints` and `member-slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotKey {
    /// The pool.
    pub pool: PoolId,
    /// Number of the slot, from 0.
    pub slot: u32,
}

impl Hash for SlotKey {
    /// In two parts, so that slots of a pool are neighbours in a `NearMap`.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.pool.hash(state);
        let [_, _, upper, lower] = self.slot.to_be_bytes();
        state.write_u32(self.slot >> 16);
        state.write_u16(u16::from_be_bytes([upper, lower]));
    }
}

/// Value of maps `endpoints` and `members`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The endpoint that stands in the slot.
    pub endpoint: SocketAddr,
    /// The element's comment: whose endpoint this is.
    pub label: Arc<str>,
}

/// Key of set `source-ranges`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceRange {
    /// The Service port whose load balancer addresses these clients may use.
    pub pool: PoolId,
    /// The clients.
    pub range: AddressRange,
}

/// The comment on an element that says no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(pub Arc<str>);

/// Whose source is hidden; each has a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masquerade {
    /// Only connections that the node itself opens, instead of all.
    pub from_host_only: bool,
    /// The element's comment.
    pub label: Arc<str>,
}

/// Marks the elements of set `cluster-ips`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterIp;

/// Marks the elements of set `hairpins`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hairpin;

/// Marks the elements of set `node-port-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePortAddress;

/// Marks the elements of set `service-networks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceNetwork;

macro_rules! maps {
    ($($(#[$doc:meta])* $field:ident: $key:ty => $value:ty,)*) => {
        /// What differs in the table of one family.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct TableDelta {
            $($(#[$doc])* pub $field: Edits<$key, $value>,)*
        }

        /// The elements of one table as a kernel has them.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct TableImage {
            $($(#[$doc])* pub $field: NearMap<$key, $value>,)*
        }

        impl TableDelta {
            /// How many elements differ.
            pub fn len(&self) -> usize {
                0 $(+ self.$field.len())*
            }

            /// Whether nothing differs.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Tells of each kind of element how many are new, get another value, and vanish.
            pub(super) fn for_each_kind(&self, mut tell: impl FnMut(&str, usize, usize, usize)) {
                $({
                    let edits = &self.$field;
                    let (new, gone) = (edits.created().count(), edits.vanished().count());
                    tell(stringify!($field), new, edits.len() - new - gone, gone);
                })*
            }

            /// What is there afterwards, of that which differs.
            pub fn added(&self) -> TableImage {
                TableImage { $($field: self.$field.added().map(|(key, value)| (key.clone(), value.clone())).collect(),)* }
            }

            /// Moves the desired elements of `part` (every `before` empty) over, except those that a kernel already has like that;
            /// what it has otherwise is taken along. Leaves in `actual` what `part` says nothing of.
            pub(super) fn take_differing(&mut self, part: &mut TableDelta, actual: &mut TableImage) {
                $(self.$field.take_differing(&mut part.$field, &mut actual.$field);)*
            }

            /// Adds those of these desired elements (every `before` empty) to `differing` that a kernel has not, or otherwise. Returns how many
            /// of them it has, like that or otherwise.
            pub(super) fn differ_from(self, actual: &TableImage, differing: &mut TableDelta) -> usize {
                0 $(+ self.$field.differ_from(&actual.$field, &mut differing.$field))*
            }

            /// Whether everything in here is new.
            pub(super) fn is_all_new(&self) -> bool {
                true $(&& self.$field.is_all_new())*
            }

            /// Removes what a kernel has and nobody desires.
            pub(super) fn remove_rest(&mut self, actual: TableImage) {
                $(self.$field.remove_rest(actual.$field);)*
            }
        }

        impl TableImage {
            /// How many elements there are.
            pub fn len(&self) -> usize {
                0 $(+ self.$field.len())*
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }
    };
}

maps! {
    /// Map `services`.
    services: Frontend => Target,
    /// Map `node-ports`.
    node_ports: NodePort => Target,
    /// Maps `admitted`, `inside`, `outside` and `instead`.
    hops: Hop => Target,
    /// Map `endpoints`.
    endpoints: SlotKey => Slot,
    /// Map `members`.
    members: MemberId => Slot,
    /// Map `member-slots`.
    member_slots: SlotKey => MemberId,
    /// Map `dedicated`, and the chains it refers to.
    dedicated: PoolId => DedicatedChain,
    /// Set `source-ranges`.
    source_ranges: SourceRange => Label,
    /// Set `cluster-ips`.
    cluster_ips: IpAddr => ClusterIp,
    /// Set `hairpins`.
    hairpins: IpAddr => Hairpin,
    /// Sets `masqueraded` and `masqueraded-from-host`.
    masqueraded: Frontend => Masquerade,
    /// Sets `masqueraded-node-ports` and `masqueraded-node-ports-from-host`.
    masqueraded_node_ports: NodePort => Masquerade,
    /// Set `node-port-addresses`.
    node_port_addresses: AddressRange => NodePortAddress,
    /// Set `service-networks`.
    service_networks: AddressRange => ServiceNetwork,
}

/// Does something with each kind of element: `each_map!(TableDelta, &delta, |edits| ...)` borrows every field in turn.
macro_rules! each_map {
    ($type:ident, $of:expr, |$field:ident| $body:expr) => {
        each_map!(@ $type, $of, $field, $body, services, node_ports, hops, endpoints, members, member_slots, dedicated,
            source_ranges, cluster_ips, hairpins, masqueraded, masqueraded_node_ports, node_port_addresses,
            service_networks)
    };
    (@ $type:ident, $of:expr, $field:ident, $body:expr, $($map:ident),*) => {{
        // A field that is missing in the list above does not compile.
        let $type { $($map),* } = $of;
        $({ let $field = $map; $body; })*
    }};
}
pub(crate) use each_map;

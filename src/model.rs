//! Services, EndpointSlices and Nodes as the proxy means them.
//!
//! [`crate::source`] delivers objects as Kubernetes spells them; this module parses each of them once into what the proxy needs
//! and nothing else: addresses that are addresses, ports that are ports, names that can be compared. Whatever cannot be used
//! becomes a [`Problem`] that names the object, the field and the value, and the rest of the object is kept.
//!
//! Vocabulary:
//! - a *Service port* is one entry of `spec.ports`, identified by Service, port name and protocol ([`PortKey`]);
//! - an *endpoint* is an address of a slice with its conditions; together with a slice port it becomes a socket address;
//! - [`Store`] holds everything known and says which Services a change touches.
//!
//! Invariants: parsing never fails as a whole; a problem is reported once per object until the object changes; the store's
//! content depends on the objects alone and not on the order in which they came (property test in `store.rs`).

mod address;
mod families;
pub(crate) mod map;
mod names;
mod network;
mod node;
mod plain;
mod problem;
mod service;
mod slice;
mod store;
pub mod tuning;

pub use address::{Family, Protocol, parse_address};
pub use families::Families;
pub use names::Names;
pub use network::{AddressRange, parse_network};
pub use node::Node;
pub use plain::plain;
pub use problem::{Problem, Problems};
pub use service::{Affinity, PortKey, Service, ServiceKey, ServiceKind, ServicePort};
pub use slice::{Endpoint, Hints, Location, Slice, SlicePort};
pub use store::{Effect, SliceEffect, Store};
pub use tuning::Tuning;

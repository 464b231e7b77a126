//! From decisions to the desired state of the data plane, and the difference between two desired states.
//!
//! [`layout`] says what the data plane looks like: which maps there are, what a key and a value mean, what chains are called.
//! [`Compiler`] remembers what was desired last for every Service port, deals numbers and slots so that changes stay small, and
//! answers each update with a [`Delta`]: the map elements that differ. [`crate::kernel`] applies deltas; nothing here knows
//! netlink, and nothing here reads what the update does not touch.
//!
//! Vocabulary:
//! - a *pool* is the numbered set of slots of one Service port in one family; frontends refer to it by number. A port whose traffic
//!   policy says so has a second one for the endpoints of this node;
//! - a *plan* is the way a slot is picked; one chain per plan, shared by all Services that use it, or *dedicated* to one pool
//!   when the way has a memory (round robin);
//! - a *decision* is pool and plan in one 32-bit number: the value of a frontend in map `services`;
//! - a *hop* is a second decision, taken after a check of where the connection comes from;
//! - a *member* is an endpoint of a pool with session affinity, by a number that it keeps;
//! - an [`Image`] is the same state as read back from a kernel, for the first difference after a start.
//!
//! Invariants (property tests in `compiler.rs`): applying the deltas one after the other gives the same state as compiling the
//! last objects from nothing, up to pool numbers and the order of slots; a pool number is never reused while a packet could still
//! carry it; a frontend never refers to a slot that is not there.

mod change;
mod comparison;
mod compiler;
mod delta;
mod elements;
mod forecast;
pub mod layout;
mod phases;
mod pool;
mod pools;
mod shared;
mod slots;

pub use change::{Changes, Entrance, LISTED, PortChange};
pub use comparison::Comparison;
pub use compiler::{Compiler, Ring, Shortage};
pub use delta::{Delta, Edit, Edits, Image};
pub(crate) use elements::each_map;
pub use elements::{
    ClusterIp, Hairpin, Hop, Label, Masquerade, NodePortAddress, ServiceNetwork, Slot, SlotKey, SourceRange, Stage,
    TableDelta, TableImage, Target,
};
pub use forecast::Forecast;
pub use phases::Phases;

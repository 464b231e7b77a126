//! The kernel's side: applying differences, adopting what is there, removing it again.
//!
//! [`DataPlane`] owns the netlink connection and the tables of both families. It turns a [`crate::compile::Delta`] into
//! transactions, and a kernel's tables back into an [`crate::compile::Image`]. It knows no Kubernetes: names reach it as chain
//! names and comments only.
//!
//! Where things are: `skeleton` defines tables, maps and sets, `chains` their chains and rules; `encode` translates keys and values,
//! `write` puts them into transactions, `image` gets them back, `read` checks a table that was there; `plane` decides what goes into
//! which transaction; `lock` keeps two processes apart where the kernel cannot;
//! [`redirects`] is the forwarder's own table, which goes with the process;
//! [`watch`] notices what others do to our tables, [`Shadow`]s are tables of others that decide before ours. [`conntrack`] is the other table of the kernel that
//! concerns us: the connections that exist.
//!
//! Invariants:
//! - the elements of one [`DataPlane::apply`] of ordinary size change in one transaction: all of them or none. Chains that they lead to
//!   are made in a transaction before, because a packet that is on its way during a commit would find them empty;
//! - the first load comes in chunks with the base chains last, so that no packet meets half a table;
//! - element deletions and additions are ordered so that a packet between two chunks of a large difference finds either the old or
//!   the new endpoints of its frontend, never another's;
//! - chains never change: their names say what they do, and a chain that is no longer used is deleted after the transaction that
//!   stopped using it, because kernels before 6.2 release references late.
//!
//! Proven by `tests/kernel/`.

pub mod addresses;
mod both;
mod chains;
pub mod conntrack;
mod encode;
mod error;
pub mod glance;
mod image;
mod lock;
mod plane;
mod read;
pub mod redirects;
mod shadows;
mod skeleton;
pub mod trap;
pub mod watch;
mod write;

pub use both::{Receive, Refused, compare_in_turn};
pub use error::KernelError;
pub use image::Reading;
pub use plane::{Applied, DataPlane, Found, Ownership, PART, PickReader, SHARE};
pub use shadows::Shadow;

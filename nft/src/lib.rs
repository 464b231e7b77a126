//! nf_tables over netlink: typed objects, one atomic transaction type, errors as data.
//!
//! The crate speaks to the kernel directly through nftnl, nftnl-sys and mnl; the `nft` program is not involved. It knows nothing
//! of what its tables are for.
//!
//! Vocabulary: a [`Table`] holds [`Chain`]s of [`Rule`]s made of [`Expr`]essions, and [`Set`]s of [`Element`]s; a *map* is a set
//! whose elements carry data or a [`Verdict`]. A [`Transaction`] collects additions and deletions, a [`Connection`] commits it in
//! one datagram: all of it happens or none. A [`Monitor`] hears of everybody's changes, a [`Tracer`] of
//! the rules that packets take.
//!
//! Invariants: definitions are serialised by libnftnl, elements by our own encoder; both end up in one buffer. `unsafe` is
//! confined to the private module `sys`. What the kernel refuses comes back as an [`Error`] that names the object and, for
//! elements, the key. Proven by the tests in each module and, on the real kernel, by `tests/kernel.rs`.
#![deny(unsafe_code)]

mod chain;
mod connection;
mod describe;
mod dump;
mod element;
mod error;
mod expr;
mod expr_encode;
mod key;
mod list;
mod lookup;
mod monitor;
pub mod netlink;
mod object;
mod rule;
mod set;
mod subscription;
#[allow(unsafe_code)]
mod sys;
mod table;
mod trace;
mod transaction;
pub mod uapi;
mod userdata;
mod verdict;

pub use chain::{BaseChain, Chain, ChainInfo, ChainKind, Hook, Policy};
pub use connection::{Connection, Features};
pub use element::{Element, ElementData, ElementView, ViewData};
pub use error::{Error, InvalidReason, Object, ObjectKind, Operation, Refusal, RefusedElement, Retry};
pub use expr::{
    Checksum, ChecksumKind, CmpOp, CtKey, Direction, DynsetOp, Expr, FibFlags, FibResult, LimitUnit, MetaKey, NatFlags,
    NatKind, NumgenKind, PayloadBase, Reg, Reject,
};
pub use key::{Field, Key};
pub use list::ElementList;
pub use monitor::{Action, Change, Event, Monitor};
pub use object::{Stateful, StatefulKind};
pub use rule::{Rule, RuleInfo};
pub use set::{Set, SetData, SetInfo, SetRef};
pub use table::{Family, Table, TableFlags, TableInfo};
pub use trace::{Step, Trace, TraceAt, TraceVerdict, Tracer};
pub use transaction::Transaction;
pub use verdict::Verdict;

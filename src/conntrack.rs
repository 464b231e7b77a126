//! Which tracked connections contradict the data plane, and what the kernel's connection tracking is to be set to.
//!
//! A nat rule is asked once per connection; afterwards the connection tracking entry, the *flow*, decides. TCP notices a dead
//! endpoint by itself. A UDP client that keeps its port keeps its flow, and its datagrams go to an endpoint that is gone for as
//! long as it sends. So after each change of the data plane the flows it contradicts are removed: the client's next datagram is
//! decided anew.
//!
//! Here is the deciding; the reading and removing is in [`crate::kernel::conntrack`].
//!
//! Vocabulary: a [`Flow`] has an *original* tuple, as the client sent it, and a *reply* tuple, as the answer comes; the source of
//! the reply is where the flow really goes. A [`View`] says for some destinations what is [`Expected`] of flows to them;
//! [`FlowBook`] makes views out of the decisions of [`crate::policy`].
//!
//! Rules: a flow is stale if the data plane would not send a new one where this one goes, with one exception: an endpoint that
//! still serves keeps its flows, ready or not. In detail ([`View::judge`]):
//! - destination served: stale unless the reply comes from a serving endpoint. That covers the endpoint that is gone, the Service
//!   scaled to zero (k/k 139628), and the flow that was never translated because the Service had not been there (k/k 48370);
//! - destination no longer served: stale if it was translated (k/k 141371). An untranslated flow is what a new one would be, too;
//! - anything else, TCP and SCTP always: not ours.
//!
//! A second matter is how many connections each endpoint has, for schedulers that go by counts: [`WatchBook`] says whose
//! connections are counted, [`Ledger`] counts them.
//!
//! A third is who is connected to whom, for people who follow: [`following`]; and how many connections come per second: [`rates`].
//!
//! Invariants: no I/O; a Service without UDP ports costs nothing; only destinations whose expectation changed are looked at, so a
//! restart removes no flow that is fine (k/k 122740). Tables in `flow.rs`, `book.rs` and `settings.rs`; on the real kernel
//! `tests/conntrack.rs`.

mod book;
pub mod census;
mod cut;
mod flow;
pub mod following;
pub mod ledger;
pub mod rates;
mod settings;
mod watch;

pub use book::FlowBook;
pub use census::{Census, Directory, Entrances};
pub use cut::{Carrier, Cut};
pub use flow::{Destination, Expected, Flow, Judgement, Tuple, View};
pub use following::Record;
pub use ledger::Ledger;
pub use settings::{Settings, Sysctl, Write, count_cpus};
pub use watch::{Interest, Interests, Subject, WatchBook};

//! The kernel's connection tracking: reading it, removing entries, setting its parameters.
//!
//! [`ConntrackTable`] speaks ctnetlink (linux/netfilter/nfnetlink_conntrack.h). [`Cleaner`] is the thread that removes the UDP
//! flows which the data plane contradicts; what contradicts it is decided in [`crate::conntrack`]. [`apply_sysctls`] writes kernel
//! parameters.
//!
//! [`Counts`] is the thread that counts connections for schedulers that go by counts; `events` hears of them, `program` is the filter
//! that spares us those of other Services.
//!
//! [`take_census`] and [`Measuring`] sum up for people who look: how many connections there are, and how many come.
//!
//! [`list_flows`] and [`Follower`] are for people who want to see connections one by one: once, or as they come and go.
//!
//! [`CensusTaker`] is the thread that walks through the table for metrics and for people, while somebody looks.
//!
//! Reading little: the table of a busy node has hundreds of thousands of entries, nearly all TCP. The kernel walks all of them for
//! any dump, but hands out only what a filter lets through (kernel 5.8 on), so a filter on protocol and destination spares
//! nearly all of the work ([`Filter::to`] on what IPv6 lacks). Kernels that do not know the filter ignore it in silence; that shows in the first entry that does not
//! match, and from then on there is one dump per pass, judged here.
//!
//! Removing exactly: an entry is named by its original tuple, its zones and its number, so a flow that took its place meanwhile
//! stays. A request without a tuple would flush the table, so none can be written: [`ConntrackTable::delete`] takes flows.
//!
//! Invariants: nothing but UDP entries is ever removed, except where a Service says when its connections end (`cutter`), and only in the network namespace in which the table was opened; the table
//! is never collected in memory; the controller never waits for a pass. Proven by `tests/conntrack.rs`.

mod census;
mod cleaner;
mod counts;
mod cutter;
mod events;
mod follower;
mod listing;
mod program;
mod rates;
mod reviews;
mod settings;
mod sysctl;
mod table;
mod tally;
mod waker;
mod walks;
mod wire;

pub use census::take_census;
pub use cleaner::{Cleaner, Pass};
pub use counts::Counts;
pub use events::{ConntrackEvents, Heard};
pub use follower::{Follower, News};
pub use listing::{Listing, list_flows};
pub use rates::Measuring;
pub use settings::{accounting, tells, timestamps};
pub use sysctl::{AppliedSysctls, SysctlError, apply_sysctls, online_cpus};
pub use table::{ConntrackError, ConntrackTable, Deleted, Dump, Filter};
pub use tally::Tally;
pub use walks::{CensusTaker, Snapshot};

//! The kernel tier: engine and data plane on a real kernel, with real packets. Needs root, and fails without it.
//!
//! What the daemon does with changes is done here by hand, step by step ([`proxy::Proxy`]): compile, apply, look at what `nft` lists
//! and at who answers. Every test has namespaces of its own, so all of them run at once. A test without traffic makes do with a
//! bare namespace.
//!
//! Where things are: `traffic` who answers; `schedulers` who answers whom; `rings` slots that are dealt again; `change` how changes look from
//! outside; `large` what needs many elements; `churn` what thousands of changes leave; `adopt` what a start makes of what is there, `reading`
//! the two ways of finding out; `watch` what others do to our tables; `redirects` who carries what is left to the forwarder; `golden` how
//! the ruleset reads.

#[path = "kernel/adopt.rs"]
mod adopt;
#[path = "kernel/change.rs"]
mod change;
#[path = "kernel/churn.rs"]
mod churn;
#[path = "kernel/golden.rs"]
mod golden;
#[path = "kernel/large.rs"]
mod large;
#[path = "kernel/proxy.rs"]
mod proxy;
#[path = "kernel/reading.rs"]
mod reading;
#[path = "kernel/redirects.rs"]
mod redirects;
#[path = "kernel/rings.rs"]
mod rings;
#[path = "kernel/schedulers.rs"]
mod schedulers;
#[allow(dead_code, reason = "the end-to-end tier uses the rest")]
mod support;
#[path = "kernel/traffic.rs"]
mod traffic;
#[path = "kernel/watch.rs"]
mod watch;

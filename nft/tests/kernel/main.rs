//! The crate against the real kernel.
//!
//! Every test runs on a thread of its own in a fresh network namespace ([`support::in_namespace`]) and fails without root. The `nft`
//! program (1.0.6) is the oracle: whatever is programmed must be listed by it, as text and as JSON.
mod commit;
mod dump;
mod elements;
mod errors;
mod expressions;
mod layout;
mod lookup;
mod monitor;
mod ownership;
mod support;

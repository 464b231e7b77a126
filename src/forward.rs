//! The userspace forwarder: what the kernel cannot express.
//!
//! Connections of a Service that asks for what nftables cannot do are sent, by a rule, to a listener of this process, which carries
//! them to an endpoint itself. [`balance`] decides to which one; it is pure. [`udp`] carries datagrams.

pub mod balance;
pub mod udp;

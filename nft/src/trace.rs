//! Hearing which rules packets take.
//!
//! A packet that some rule has marked (`meta nftrace set 1`, [`crate::MetaKey::NfTrace`]) is *traced* from there on, in all tables: the kernel tells of
//! each rule whose expressions all held, and of each base chain's end (`NFNLGRP_NFTRACE`). It does so only while somebody listens.
//!
//! Of a packet's headers each run through a base chain tells once. The number of a packet tells it from others that are under way, and is used
//! again later.
//!
//! Invariants: steps come in the packet's order; if the socket's buffer overflows, [`Step::Lost`] says so. Proven by the tests below and, with
//! real packets, by `tests/e2e/trace.rs` of the program that uses it.

use std::time::Duration;

use crate::error::Error;
use crate::netlink::{Message, find};
use crate::subscription::{Subscription, Told};
use crate::table::Family;
use crate::uapi;

/// A subscription to traces in the network namespace it was opened in.
#[derive(Debug)]
pub struct Tracer(Subscription<Step>);

/// What happened to a traced packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It met a rule, or the end of a chain.
    Met(Box<Trace>),
    /// Steps were lost.
    Lost,
}

/// A step of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Which packet.
    pub packet: u32,
    /// Family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
    /// What it met there.
    pub at: TraceAt,
    /// Index of the interface it came in by, if that is told.
    pub iif: Option<u32>,
    /// Index of the interface it goes out by, if that is told.
    pub oif: Option<u32>,
    /// The beginning of the network header, once per run through a base chain.
    pub network: Option<Vec<u8>>,
    /// The beginning of the transport header, likewise.
    pub transport: Option<Vec<u8>>,
}

/// What a packet met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceAt {
    /// A rule, all of it.
    Rule {
        /// The rule's handle.
        handle: u64,
        /// What came of it.
        verdict: TraceVerdict,
    },
    /// The end of a chain that was jumped to.
    Return,
    /// The end of a base chain: its policy decided.
    Policy(TraceVerdict),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceVerdict {
    /// On with the next rule.
    Continue,
    /// On with the next base chain.
    Accept,
    /// It is gone.
    Drop,
    /// On in another chain, and back.
    Jump(String),
    /// On in another chain.
    Goto(String),
    /// Back to the chain that jumped here.
    Return,
    /// Something else: the kernel's number.
    Other(i32),
}

// === impl Tracer ===

impl Tracer {
    /// Subscribes in the calling thread's network namespace.
    ///
    /// # Errors
    /// When that is not allowed or the kernel has no nf_tables.
    pub fn open() -> Result<Self, Error> {
        Subscription::open(uapi::NFNLGRP_NFTRACE).map(Self)
    }

    /// The next step, or `None` after this time.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Option<Step>, Error> {
        self.0.next_timeout(timeout)
    }
}

impl Told for Step {
    const LOST: Self = Self::Lost;
    const ACTIONS: [&'static str; 2] = ["receive traces", "wait for traces"];

    fn decode(message: &Message<'_>) -> Option<Self> {
        Trace::decode(message).map(|trace| Self::Met(Box::new(trace)))
    }
}

// === impl Trace ===

impl Trace {
    /// `None` for messages that are no step, or of a family not known here.
    fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind != uapi::NFNL_SUBSYS_NFTABLES << 8 | uapi::NFT_MSG_TRACE {
            return None;
        }
        let attributes = message.payload.get(4..)?;
        let text = |kind| Some(find(attributes, kind)?.str()?.to_owned());
        let number = |kind| find(attributes, kind)?.be32();
        let bytes = |kind| Some(find(attributes, kind)?.value.to_vec());
        let verdict =
            find(attributes, uapi::NFTA_TRACE_VERDICT).and_then(|verdict| TraceVerdict::decode(verdict.value));
        let at = match number(uapi::NFTA_TRACE_TYPE)? {
            uapi::NFT_TRACETYPE_POLICY => {
                let policy = number(uapi::NFTA_TRACE_POLICY)?;
                TraceAt::Policy(TraceVerdict::of(policy as i32, String::new()))
            }
            uapi::NFT_TRACETYPE_RETURN => TraceAt::Return,
            uapi::NFT_TRACETYPE_RULE => {
                let handle = find(attributes, uapi::NFTA_TRACE_RULE_HANDLE)?.be64()?;
                TraceAt::Rule { handle, verdict: verdict? }
            }
            _ => return None,
        };
        Some(Self {
            packet: number(uapi::NFTA_TRACE_ID)?,
            family: Family::from_number(*message.payload.first()?)?,
            table: text(uapi::NFTA_TRACE_TABLE).unwrap_or_default(),
            chain: text(uapi::NFTA_TRACE_CHAIN).unwrap_or_default(),
            at,
            iif: number(uapi::NFTA_TRACE_IIF),
            oif: number(uapi::NFTA_TRACE_OIF),
            network: bytes(uapi::NFTA_TRACE_NETWORK_HEADER),
            transport: bytes(uapi::NFTA_TRACE_TRANSPORT_HEADER),
        })
    }
}

// === impl TraceVerdict ===

impl TraceVerdict {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let code = find(bytes, uapi::NFTA_VERDICT_CODE)?.be32()? as i32;
        let chain = find(bytes, uapi::NFTA_VERDICT_CHAIN).and_then(|chain| chain.str()).unwrap_or_default();
        Some(Self::of(code, chain.to_owned()))
    }

    fn of(code: i32, chain: String) -> Self {
        match code {
            uapi::NFT_CONTINUE => Self::Continue,
            uapi::NF_ACCEPT => Self::Accept,
            uapi::NF_DROP => Self::Drop,
            uapi::NFT_JUMP => Self::Jump(chain),
            uapi::NFT_GOTO => Self::Goto(chain),
            uapi::NFT_RETURN => Self::Return,
            code => Self::Other(code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Writer, messages};

    const KIND: u16 = uapi::NFNL_SUBSYS_NFTABLES << 8 | uapi::NFT_MSG_TRACE;

    fn told(write: impl FnOnce(&mut Writer)) -> Option<Trace> {
        let mut writer = Writer::new();
        let message = writer.begin(KIND, 0, 0, &[uapi::NFPROTO_IPV4, 0, 0, 0]);
        writer.attr(uapi::NFTA_TRACE_TABLE, b"t\0");
        writer.attr(uapi::NFTA_TRACE_CHAIN, b"c\0");
        writer.attr_be32(uapi::NFTA_TRACE_ID, 7);
        write(&mut writer);
        writer.end(message);
        Trace::decode(&messages(writer.as_bytes()).next()?)
    }

    #[test]
    fn steps_are_read_as_the_kernel_writes_them() {
        let rule = told(|writer| {
            writer.attr_be32(uapi::NFTA_TRACE_TYPE, uapi::NFT_TRACETYPE_RULE);
            writer.attr(uapi::NFTA_TRACE_RULE_HANDLE, &9u64.to_be_bytes());
            let nest = writer.begin_nest(uapi::NFTA_TRACE_VERDICT);
            writer.attr_be32(uapi::NFTA_VERDICT_CODE, uapi::NFT_GOTO as u32);
            writer.attr(uapi::NFTA_VERDICT_CHAIN, b"next\0");
            writer.end_nest(nest);
        });
        let rule = rule.expect("a step");
        assert_eq!((rule.packet, &*rule.table, &*rule.chain, rule.family), (7, "t", "c", Family::Ip));
        assert_eq!(rule.at, TraceAt::Rule { handle: 9, verdict: TraceVerdict::Goto("next".into()) });
        let policy = told(|writer| {
            writer.attr_be32(uapi::NFTA_TRACE_TYPE, uapi::NFT_TRACETYPE_POLICY);
            writer.attr_be32(uapi::NFTA_TRACE_POLICY, uapi::NF_DROP as u32);
            writer.attr(uapi::NFTA_TRACE_NETWORK_HEADER, &[0x45; 20]);
        });
        let policy = policy.expect("a step");
        assert_eq!((policy.at, policy.network), (TraceAt::Policy(TraceVerdict::Drop), Some(vec![0x45; 20])));
        assert_eq!(
            told(|writer| writer.attr_be32(uapi::NFTA_TRACE_TYPE, uapi::NFT_TRACETYPE_RULE)),
            None,
            "no verdict"
        );
        assert_eq!(told(|_| {}), None);
    }
}

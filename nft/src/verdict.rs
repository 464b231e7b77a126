//! What a rule or a map element decides for a packet.
//!
//! Owns the mapping between [`Verdict`] and the kernel's codes (`enum nft_verdicts`, `NF_*`), both ways. Invariant: every verdict
//! written is read back equal (test `element::tests`).

use std::fmt;

use crate::netlink::{Attributes, Writer};
use crate::uapi;

/// A decision; jumps and gotos name a chain of the same table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The packet passes this hook's chain.
    Accept,
    /// The packet is discarded.
    Drop,
    /// Back to the calling chain, or the base chain's policy.
    Return,
    /// On with the next rule.
    Continue,
    /// To another chain, without coming back here.
    Goto(String),
    /// To another chain and back.
    Jump(String),
}

impl Verdict {
    /// The kernel's number.
    pub fn code(&self) -> i32 {
        match self {
            Self::Accept => uapi::NF_ACCEPT,
            Self::Drop => uapi::NF_DROP,
            Self::Return => uapi::NFT_RETURN,
            Self::Continue => uapi::NFT_CONTINUE,
            Self::Goto(_) => uapi::NFT_GOTO,
            Self::Jump(_) => uapi::NFT_JUMP,
        }
    }

    /// The chain that a goto or jump names.
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Goto(chain) | Self::Jump(chain) => Some(chain),
            _ => None,
        }
    }

    /// Writes the content of an `NFTA_DATA_VERDICT` nest.
    pub(crate) fn encode(&self, writer: &mut Writer) {
        writer.attr_be32(uapi::NFTA_VERDICT_CODE, self.code() as u32);
        if let Some(chain) = self.chain() {
            writer.attr_str(uapi::NFTA_VERDICT_CHAIN, chain);
        }
    }

    /// Reads the content of an `NFTA_DATA_VERDICT` nest; `None` for verdicts that no map element has.
    pub(crate) fn decode(attributes: Attributes<'_>) -> Option<Self> {
        let (mut code, mut chain) = (None, None);
        for attribute in attributes {
            match attribute.kind {
                uapi::NFTA_VERDICT_CODE => code = attribute.be32(),
                uapi::NFTA_VERDICT_CHAIN => chain = attribute.str(),
                _ => {}
            }
        }
        Some(match code? as i32 {
            uapi::NF_ACCEPT => Self::Accept,
            uapi::NF_DROP => Self::Drop,
            uapi::NFT_RETURN => Self::Return,
            uapi::NFT_CONTINUE => Self::Continue,
            uapi::NFT_GOTO => Self::Goto(chain?.to_owned()),
            uapi::NFT_JUMP => Self::Jump(chain?.to_owned()),
            _ => return None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => out.write_str("accept"),
            Self::Drop => out.write_str("drop"),
            Self::Return => out.write_str("return"),
            Self::Continue => out.write_str("continue"),
            Self::Goto(chain) => write!(out, "goto {chain}"),
            Self::Jump(chain) => write!(out, "jump {chain}"),
        }
    }
}

//! Chains: ordered rules, reached from a hook (base chains) or by a verdict.
//!
//! Invariant: what [`Chain`] declares, [`ChainInfo`] reports. Proven by the kernel tests `expressions` and `dump`.

use nftnl::nftnl_sys as ffi;

use crate::error::{InvalidReason, comment_data, name};
use crate::netlink::attributes;
use crate::sys::ChainObject;
use crate::table::Family;
use crate::{uapi, userdata};

/// A chain to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name, at most 255 bytes; not an nft keyword, or nft's command line cannot address it.
    pub name: String,
    /// Where it is hooked, if it is.
    pub base: Option<BaseChain>,
    /// Free text, at most 251 bytes.
    pub comment: Option<String>,
}

/// How a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// What its rules may do.
    pub kind: ChainKind,
    /// When packets reach it.
    pub hook: Hook,
    /// Order among the chains of one hook, lowest first (`enum nf_ip_hook_priorities`: -100 is dstnat, 0 filter, 100 srcnat).
    pub priority: i32,
    /// What becomes of packets that no rule decided.
    pub policy: Policy,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainKind {
    /// Accepts, drops, rejects, marks.
    Filter,
    /// Sees the first packet of a connection and may translate its addresses.
    Nat,
    /// As filter on output, with rerouting afterwards.
    Route,
}

/// `enum nf_inet_hooks`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// The verdict at a base chain's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub enum Policy {
    #[default]
    Accept,
    Drop,
}

/// A chain as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainInfo {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name.
    pub name: String,
    /// The kernel's number for it.
    pub handle: u64,
    /// How many rules it holds and how many verdicts lead to it.
    pub use_count: u32,
    /// Where it is hooked; `None` also for hooks of other families than ours.
    pub base: Option<BaseChain>,
    /// Free text.
    pub comment: Option<String>,
}

// === impl Chain ===

impl Chain {
    /// A chain without hook or comment.
    pub fn new(family: Family, table: impl Into<String>, name: impl Into<String>) -> Self {
        Self { family, table: table.into(), name: name.into(), base: None, comment: None }
    }

    /// The same chain, hooked, with policy accept.
    pub fn hooked(mut self, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        self.base = Some(BaseChain { kind, hook, priority, policy: Policy::Accept });
        self
    }

    pub(crate) fn object(&self) -> Result<ChainObject, InvalidReason> {
        let mut object = ChainObject::new();
        object.str(ffi::NFTNL_CHAIN_TABLE, &name(&self.table)?);
        object.str(ffi::NFTNL_CHAIN_NAME, &name(&self.name)?);
        if let Some(base) = &self.base {
            object.str(ffi::NFTNL_CHAIN_TYPE, &name(base.kind.name())?);
            object.u32(ffi::NFTNL_CHAIN_HOOKNUM, base.hook as u32);
            // Same width and encoding as libnftnl's signed setter.
            object.u32(ffi::NFTNL_CHAIN_PRIO, base.priority as u32);
            object.u32(ffi::NFTNL_CHAIN_POLICY, base.policy.verdict());
        }
        if let Some(comment) = &self.comment {
            object.data(ffi::NFTNL_CHAIN_USERDATA, &comment_data(comment)?);
        }
        Ok(object)
    }
}

// === impl ChainKind ===

impl ChainKind {
    /// The kernel's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
            Self::Route => "route",
        }
    }
}

// === impl Policy ===

impl Policy {
    const fn verdict(self) -> u32 {
        match self {
            Self::Accept => uapi::NF_ACCEPT as u32,
            Self::Drop => uapi::NF_DROP as u32,
        }
    }

    fn of(verdict: u32) -> Self {
        if verdict == Self::Drop.verdict() { Self::Drop } else { Self::Accept }
    }
}

// === impl ChainInfo ===

impl ChainInfo {
    pub(crate) fn decode(family: u8, bytes: &[u8]) -> Option<Self> {
        let mut info = Self {
            family: Family::from_number(family)?,
            table: String::new(),
            name: String::new(),
            handle: 0,
            use_count: 0,
            base: None,
            comment: None,
        };
        let (mut kind, mut hook, mut priority, mut policy) = (None, None, None, Policy::Accept);
        for attribute in attributes(bytes) {
            match attribute.kind {
                uapi::NFTA_CHAIN_TABLE => info.table = attribute.str()?.to_owned(),
                uapi::NFTA_CHAIN_NAME => info.name = attribute.str()?.to_owned(),
                uapi::NFTA_CHAIN_HANDLE => info.handle = attribute.be64()?,
                uapi::NFTA_CHAIN_USE => info.use_count = attribute.be32()?,
                uapi::NFTA_CHAIN_TYPE => {
                    kind = [ChainKind::Filter, ChainKind::Nat, ChainKind::Route]
                        .into_iter()
                        .find(|kind| attribute.str() == Some(kind.name()));
                }
                uapi::NFTA_CHAIN_POLICY => policy = Policy::of(attribute.be32()?),
                uapi::NFTA_CHAIN_HOOK => {
                    for part in attribute.nested() {
                        match part.kind {
                            uapi::NFTA_HOOK_HOOKNUM => hook = part.be32(),
                            uapi::NFTA_HOOK_PRIORITY => priority = part.be32(),
                            _ => {}
                        }
                    }
                }
                uapi::NFTA_CHAIN_USERDATA => {
                    info.comment = userdata::comment(attribute.value, uapi::UDATA_COMMENT).map(str::to_owned);
                }
                _ => {}
            }
        }
        let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
        let hook = hook.and_then(|number| hooks.get(number as usize).copied());
        if let (Some(kind), Some(hook), Some(priority)) = (kind, hook, priority) {
            info.base = Some(BaseChain { kind, hook, priority: priority as i32, policy });
        }
        Some(info)
    }
}

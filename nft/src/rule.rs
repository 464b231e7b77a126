//! Rules: expressions evaluated in order, in a chain.
//!
//! Invariants: at most 128 expressions, as the kernel has it. A rule has no name; the kernel's handle, read back with
//! [`crate::Connection::rules`], addresses it. Proven by the kernel tests `expressions` and `dump`.

use nftnl::nftnl_sys as ffi;

use crate::error::{InvalidReason, comment_data, name};
use crate::expr::Expr;
use crate::netlink::{attributes, find};
use crate::sys::RuleObject;
use crate::table::Family;
use crate::{uapi, userdata};

/// A rule to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
    /// Evaluated from first to last, until one does not match.
    pub exprs: Vec<Expr>,
    /// Free text, at most 251 bytes.
    pub comment: Option<String>,
}

/// A rule as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleInfo {
    /// Address family of the table.
    pub family: Family,
    /// Name of the table.
    pub table: String,
    /// Name of the chain.
    pub chain: String,
    /// The kernel's number for it, unique in its table.
    pub handle: u64,
    /// Free text.
    pub comment: Option<String>,
    /// The kernel's names of its expressions (`payload`, `cmp`...).
    pub exprs: Vec<String>,
    /// What its first `counter` has counted, if it has one.
    pub packets: Option<u64>,
}

impl Rule {
    /// A rule without comment.
    pub fn new(family: Family, table: impl Into<String>, chain: impl Into<String>, exprs: Vec<Expr>) -> Self {
        Self { family, table: table.into(), chain: chain.into(), exprs, comment: None }
    }

    pub(crate) fn object(&self) -> Result<RuleObject, InvalidReason> {
        if self.exprs.len() > uapi::NFT_RULE_MAXEXPRS {
            return Err(InvalidReason::ExprCount(self.exprs.len()));
        }
        let mut object = Self::named(&self.table, &self.chain)?;
        for expr in &self.exprs {
            object.push(expr.object()?);
        }
        if let Some(comment) = &self.comment {
            object.data(ffi::NFTNL_RULE_USERDATA, &comment_data(comment)?);
        }
        Ok(object)
    }

    /// A rule object that names only its chain.
    pub(crate) fn named(table: &str, chain: &str) -> Result<RuleObject, InvalidReason> {
        let mut object = RuleObject::new();
        object.str(ffi::NFTNL_RULE_TABLE, &name(table)?);
        object.str(ffi::NFTNL_RULE_CHAIN, &name(chain)?);
        Ok(object)
    }
}

impl RuleInfo {
    pub(crate) fn decode(family: u8, bytes: &[u8]) -> Option<Self> {
        let mut info = Self {
            family: Family::from_number(family)?,
            table: String::new(),
            chain: String::new(),
            handle: 0,
            comment: None,
            exprs: Vec::new(),
            packets: None,
        };
        for attribute in attributes(bytes) {
            match attribute.kind {
                uapi::NFTA_RULE_TABLE => info.table = attribute.str()?.to_owned(),
                uapi::NFTA_RULE_CHAIN => info.chain = attribute.str()?.to_owned(),
                uapi::NFTA_RULE_HANDLE => info.handle = attribute.be64()?,
                uapi::NFTA_RULE_USERDATA => {
                    info.comment = userdata::comment(attribute.value, uapi::UDATA_COMMENT).map(str::to_owned);
                }
                uapi::NFTA_RULE_EXPRESSIONS => {
                    info.exprs = attribute
                        .nested()
                        .filter_map(|expr| find(expr.value, uapi::NFTA_EXPR_NAME)?.str())
                        .map(str::to_owned)
                        .collect();
                    info.packets = attribute.nested().find_map(|expr| packets(expr.value));
                }
                _ => {}
            }
        }
        Some(info)
    }
}

/// The packets of an expression, if it is a counter.
fn packets(expr: &[u8]) -> Option<u64> {
    find(expr, uapi::NFTA_EXPR_NAME)?.str().filter(|name| *name == "counter")?;
    find(find(expr, uapi::NFTA_EXPR_DATA)?.value, uapi::NFTA_COUNTER_PACKETS)?.be64()
}

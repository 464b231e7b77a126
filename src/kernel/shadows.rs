//! Chains of others that translate destinations before ours are asked.
//!
//! The first rule that translates a connection's destination has decided; every nat chain after it in the same hook is passed
//! over. A table of somebody else with such rules and a lower priority (or the same, and a later registration, which the kernel
//! does not tell) can take connections to our Services. Often that is meant, as with host ports of a network plugin; when it is
//! not, as with another kube-proxy's rules, nothing in our own table shows it. So it is said, and nothing is done about it.
//!
//! What is left to the userspace forwarder is translated a step later (`redirects`), so for that chains of our own priority decide
//! before, however they were registered (`tests/kernel/redirects.rs`).
//!
//! Proven by `tests/kernel/watch.rs`.

use std::collections::BTreeSet;
use std::fmt;

use nft::{ChainKind, Connection, Hook};

use super::chains::PRIORITY_DNAT;
use super::error::KernelError;
use crate::compile::layout::TABLE;

/// The kernel's names of the expressions that translate a destination. `target` is iptables' DNAT and REDIRECT, among others.
const TRANSLATING: [&str; 3] = ["nat", "redir", "target"];

/// A base chain that may decide before ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shadow {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Its priority; ours is -100.
    pub priority: i32,
}

/// What is there now.
pub(super) fn find(connection: &mut Connection) -> Result<BTreeSet<Shadow>, KernelError> {
    let mut found = BTreeSet::new();
    for (family, name) in [(nft::Family::Ip, "ip"), (nft::Family::Ip6, "ip6"), (nft::Family::Inet, "inet")] {
        for table in connection.tables()?.into_iter().filter(|table| table.family == family && table.name != TABLE) {
            let before_ours = |base: &nft::BaseChain| {
                base.kind == ChainKind::Nat
                    && matches!(base.hook, Hook::Prerouting | Hook::Output)
                    && base.priority <= PRIORITY_DNAT
            };
            let chains = connection.chains(family, &table.name)?;
            let chains: Vec<_> =
                chains.into_iter().filter(|chain| chain.base.as_ref().is_some_and(before_ours)).collect();
            if chains.is_empty() {
                continue;
            }
            // Base chains jump to others, so any rule of the table will do.
            let rules = connection.rules(family, &table.name)?;
            if !rules.iter().flat_map(|rule| &rule.exprs).any(|expr| TRANSLATING.contains(&expr.as_str())) {
                continue;
            }
            found.extend(chains.into_iter().filter_map(|chain| {
                let priority = chain.base?.priority;
                Some(Shadow { family: name, table: table.name.clone(), chain: chain.name, priority })
            }));
        }
    }
    Ok(found)
}

// === impl Shadow ===

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}, chain {} (priority {})", self.family, self.table, self.chain, self.priority)
    }
}

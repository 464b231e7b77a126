//! The removal of what kube-proxy leaves behind, so that switching from it works.
//!
//! kube-proxy leaves its rules in the kernel when it ends, as we do. Left there they would decide about connections beside ours, with
//! endpoints that grow stale. What each of its modes leaves: tables `kube-proxy` (`nftables`); chains in iptables of either kind
//! (`iptables`); virtual servers, an interface and ipsets (`ipvs`), beside iptables chains.
//!
//! When: `--cleanup` removes all of it; a start that follows an API server does so once, after the first load is programmed, so that
//! there is no moment without rules. kube-proxy must not run at the same time: it would put back what is removed, and the two would
//! take turns.
//!
//! nf_tables, interfaces and virtual servers are reached through netlink. iptables and ipsets are reached by the programs that manage
//! them, if these are installed; a program that is not there is no error.
//!
//! Invariants: what is not kube-proxy's stays, in particular kubelet's chains; one thing that fails keeps no other from being
//! removed; where there is nothing to remove, nothing is changed. `KUBE-FIREWALL`, kernel parameters and connection tracking entries
//! stay.
//!
//! Proven by the tables in `iptables` and `ipvs`, by `tests/cleanup.rs` on a real kernel, and by `tests/leftovers.rs` on one that has
//! IPVS and the older ip_tables.

mod iptables;
mod ipvs;
mod nftables;
mod program;

use std::fmt;

use crate::kernel::KernelError;
use crate::lab::LabError;
pub use program::ProgramError;

/// Who wants the leftovers removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// An operator: everything that kube-proxy's own clean-up removes.
    Explicitly,
    /// Nobody, by a start: what is known to be kube-proxy's, so IPVS virtual servers only beside its interface.
    ByStart,
}

/// Something that could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// Our own tables.
    #[error(transparent)]
    Own(#[from] KernelError),
    /// kube-proxy's nftables tables.
    #[error(transparent)]
    Nftables(#[from] nft::Error),
    /// Its interface.
    #[error(transparent)]
    Interface(#[from] LabError),
    /// IPVS virtual servers.
    #[error("IPVS virtual servers: {0}")]
    Servers(std::io::Error),
    /// What a program was to remove.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// All that could not be removed; the rest was.
#[derive(Debug)]
pub struct CleanupErrors(pub Vec<CleanupError>);

/// Removes kube-proxy's leftovers of all modes in the calling thread's network namespace, and logs each. Returns what could not be.
pub fn remove_leftovers(asked: Asked) -> Vec<CleanupError> {
    let mut errors = Vec::new();
    nftables::remove(&mut errors);
    for program in ["iptables", "ip6tables"] {
        iptables::remove(program, &mut errors);
    }
    ipvs::remove_servers(asked == Asked::Explicitly, &mut errors);
    ipvs::remove_sets(&mut errors);
    errors
}

// === impl CleanupError ===

impl CleanupError {
    /// Whether the process may not change the network at all, so that nothing else can be removed either.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::Own(KernelError::Nft(nft::Error::Permission)) | Self::Nftables(nft::Error::Permission))
    }
}

// === impl CleanupErrors ===

impl std::error::Error for CleanupErrors {}

impl fmt::Display for CleanupErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(out, "{}{error}", if index > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

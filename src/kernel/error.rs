//! What can go wrong at the kernel's side, as data.

use crate::model::Family;

/// A failure of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither family's table type is there.
    #[error("this kernel offers nftables for neither IPv4 nor IPv6")]
    NoFamily,
    /// Another instance holds the lock, on a kernel whose tables have no owners.
    #[error("another instance serves this network namespace{}", .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// Its process id, if it is in a process namespace that we see.
        pid: Option<i32>,
    },
    /// The lock could not be tried.
    #[error("taking the instance lock: {0}")]
    Lock(#[source] std::io::Error),
    /// A map would outgrow its declared size: the table has to be replaced by a larger one.
    #[error("map {map} of the {family} table would outgrow its declared size of {size} elements")]
    Outgrown {
        /// The family.
        family: Family,
        /// The map.
        map: &'static str,
        /// Its declared size.
        size: u32,
    },
    /// The table is not as we left it: somebody else changed it.
    #[error("the {family} table is not as it was left: {what}")]
    Foreign {
        /// The family.
        family: Family,
        /// What differs.
        what: String,
    },
    /// A transaction or a dump failed.
    #[error(transparent)]
    Nft(#[from] nft::Error),
}

// === impl KernelError ===

impl KernelError {
    /// Whether another instance stands in the way, which may be about to end.
    pub fn is_rival(&self) -> bool {
        matches!(self, Self::Locked { .. } | Self::Nft(nft::Error::Owned { .. }))
    }

    /// Whether trying again cannot help, because it is not ours to change what stands in the way.
    pub fn is_hopeless(&self) -> bool {
        match self {
            Self::NoFamily | Self::Locked { .. } | Self::Lock(_) => true,
            Self::Outgrown { .. } | Self::Foreign { .. } => false,
            Self::Nft(error) => {
                matches!(error, nft::Error::Permission | nft::Error::Unavailable(_) | nft::Error::Owned { .. })
            }
        }
    }
}

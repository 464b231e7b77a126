//! What the kernel's connection tracking is set to tell, in the calling thread's network namespace.

use std::fs;
use std::path::Path;

/// Whether packets and bytes are counted for connections that begin now.
pub fn accounting() -> bool {
    is("nf_conntrack_acct", "1")
}

/// Whether it is written down when connections begin that begin now.
pub fn timestamps() -> bool {
    is("nf_conntrack_timestamp", "1")
}

/// Whether it tells of connections that come and go.
pub fn tells() -> bool {
    !is("nf_conntrack_events", "0")
}

fn is(parameter: &str, value: &str) -> bool {
    // Of this thread's namespace, where `/proc` allows: `/proc/sys/net` follows who reads.
    let path = Path::new("/proc/sys/net/netfilter").join(parameter);
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

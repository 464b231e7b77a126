//! What the kernel's connection tracking is to be set to, computed.
//!
//! The rules are those of kube-proxy 1.36 (its `conntrack` configuration): the table grows with the machine up to a cap, a zero
//! leaves the kernel's own value alone, and with everything at zero nothing is written, which is what unprivileged and nested
//! environments need. The effect is in [`crate::kernel::conntrack::apply_sysctls`].

use std::path::PathBuf;
use std::time::Duration;

/// Above this the table does not grow with the number of CPUs: 2^20 entries take some 300 MiB.
const MAX_SCALED: u64 = 1 << 20;

/// Entries per hash bucket that are aimed at.
const ENTRIES_PER_BUCKET: u64 = 4;

/// The settings, with kube-proxy's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Entries per CPU; 0 leaves the size of the table alone.
    pub max_per_core: u32,
    /// The least number of entries, however few CPUs.
    pub min: u32,
    /// How long an idle TCP connection is remembered; whole seconds count, 0 leaves it alone. So do the following.
    pub tcp_established_timeout: Duration,
    /// How long a half-closed TCP connection is remembered.
    pub tcp_close_wait_timeout: Duration,
    /// Whether out-of-window TCP segments are let through. `false` leaves it alone.
    pub tcp_be_liberal: bool,
    /// How long a UDP flow without an answer is remembered.
    pub udp_timeout: Duration,
    /// How long an answered UDP flow is remembered.
    pub udp_stream_timeout: Duration,
}

/// One kernel parameter to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// The file.
    pub path: PathBuf,
    /// The number in it.
    pub value: u64,
    /// Whether it has to be written.
    pub write: Write,
}

/// When a kernel parameter is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// If it is another number now.
    IfDifferent,
    /// If it is a smaller number now.
    IfSmaller,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established_timeout: Duration::from_secs(24 * 60 * 60),
            tcp_close_wait_timeout: Duration::from_secs(60 * 60),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

impl Settings {
    /// The size of the table on a machine with this many CPUs; `None` leaves it alone.
    pub fn max_entries(&self, cpus: u32) -> Option<u64> {
        let scaled = u64::from(self.max_per_core) * u64::from(cpus);
        match scaled {
            _ if self.max_per_core == 0 => None,
            _ if scaled > MAX_SCALED => Some(MAX_SCALED),
            _ => Some(scaled.max(self.min.into())),
        }
    }

    /// What has to be set on a machine with this many CPUs, in this order.
    pub fn sysctls(&self, cpus: u32) -> Vec<Sysctl> {
        let mut all = Vec::new();
        if let Some(max) = self.max_entries(cpus) {
            all.push(netfilter("nf_conntrack_max", max));
            all.push(Sysctl {
                path: "/sys/module/nf_conntrack/parameters/hashsize".into(),
                value: max / ENTRIES_PER_BUCKET,
                write: Write::IfSmaller,
            });
        }
        let timeouts = [
            ("nf_conntrack_tcp_timeout_established", self.tcp_established_timeout),
            ("nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait_timeout),
            ("nf_conntrack_udp_timeout", self.udp_timeout),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream_timeout),
        ];
        let set = timeouts.iter().filter(|(_, timeout)| !timeout.is_zero());
        all.extend(set.map(|(name, timeout)| netfilter(name, timeout.as_secs())));
        if self.tcp_be_liberal {
            all.push(netfilter("nf_conntrack_tcp_be_liberal", 1));
        }
        all
    }
}

fn netfilter(name: &str, value: u64) -> Sysctl {
    Sysctl { path: PathBuf::from("/proc/sys/net/netfilter").join(name), value, write: Write::IfDifferent }
}

/// How many CPUs a list names, as the kernel writes it (`/sys/devices/system/cpu/online`): `0-3,8` is five. `None` if it is no
/// such list.
pub fn count_cpus(list: &str) -> Option<u32> {
    let mut count: u32 = 0;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn max(max_per_core: u32, min: u32, cpus: u32) -> Option<u64> {
        Settings { max_per_core, min, ..Settings::default() }.max_entries(cpus)
    }

    #[test]
    fn get_conntrack_max() {
        let table = [
            ((0, 0, 8), None),
            ((0, 123_456, 8), None),
            ((67_890, 0, 8), Some(543_120)),
            ((1, 123_456, 8), Some(123_456)),
            ((32_768, 131_072, 2), Some(131_072)),
            ((32_768, 131_072, 16), Some(524_288)),
        ];
        for ((max_per_core, min, cpus), want) in table {
            assert_eq!(max(max_per_core, min, cpus), want, "{max_per_core} {min} {cpus}");
        }
    }

    #[test]
    fn get_conntrack_max_capped() {
        assert_eq!(max(32_768, 131_072, 32), Some(1_048_576));
        assert_eq!(max(32_768, 131_072, 33), Some(1_048_576));
        assert_eq!(max(32_768, 2_000_000, 256), Some(1_048_576), "the cap beats the minimum when both apply");
        assert_eq!(max(32_768, 2_000_000, 1), Some(2_000_000), "the minimum itself is not capped");
        assert_eq!(max(u32::MAX, 0, u32::MAX), Some(1_048_576));
    }

    #[test]
    fn setup_conntrack() {
        let list = |settings: Settings| {
            let line = |sysctl: Sysctl| {
                let relation = if sysctl.write == Write::IfSmaller { ">=" } else { "=" };
                format!("{} {relation} {}", sysctl.path.display(), sysctl.value)
            };
            settings.sysctls(2).into_iter().map(line).collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(list(Settings::default()), @r"
        /proc/sys/net/netfilter/nf_conntrack_max = 131072
        /sys/module/nf_conntrack/parameters/hashsize >= 32768
        /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established = 86400
        /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait = 3600
        ");
        let nothing = Settings {
            max_per_core: 0,
            min: 131_072,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
            ..Settings::default()
        };
        assert_eq!(list(nothing.clone()), "");
        insta::assert_snapshot!(list(Settings {
            tcp_be_liberal: true,
            udp_timeout: Duration::from_millis(10_999),
            udp_stream_timeout: Duration::from_secs(120),
            ..nothing
        }), @r"
        /proc/sys/net/netfilter/nf_conntrack_udp_timeout = 10
        /proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream = 120
        /proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal = 1
        ");
    }

    #[test]
    fn cpus_are_counted_as_the_kernel_lists_them() {
        for (list, want) in
            [("0\n", Some(1)), ("0-1\n", Some(2)), ("0-3,8,10-11", Some(7)), ("", None), ("3-1", None), ("x", None)]
        {
            assert_eq!(count_cpus(list), want, "{list:?}");
        }
    }
}

//! Writing kernel parameters.
//!
//! As in kube-proxy a parameter that cannot be set ends the start. The exception is ours: `nf_conntrack_max` and `hashsize` belong to the
//! machine and can be set from its first network namespace only, so anywhere else they are left alone and named.
//!
//! Proven by the tests here and by `kernel_parameters_*` in `tests/conntrack.rs`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use nix::libc;

use super::ConntrackTable;
use crate::conntrack::{Sysctl, Write, count_cpus};

/// A kernel parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}{}: {reason}", .value.map(|value| format!(" = {value}")).unwrap_or_default())]
pub struct SysctlError {
    /// `read` or `set`.
    pub action: &'static str,
    /// The parameter's file.
    pub path: PathBuf,
    /// The number that was to be written, if it came to that.
    pub value: Option<u64>,
    /// Why not.
    pub reason: io::Error,
}

/// What became of kernel parameters that were not as they should be.
#[derive(Debug, Default)]
pub struct AppliedSysctls {
    /// Those that were written.
    pub written: Vec<Sysctl>,
    /// Those that nobody can write here: the machine's own, seen from a network namespace that is not its first.
    pub fixed: Vec<Sysctl>,
}

/// Sets kernel parameters of the calling thread's network namespace, where they differ. Connection tracking is loaded if it is a module
/// that nobody has needed since the machine started.
///
/// # Errors
/// The first one that could not be set; those before it are set.
pub fn apply_sysctls(sysctls: &[Sysctl]) -> Result<AppliedSysctls, SysctlError> {
    let mut applied = AppliedSysctls::default();
    if sysctls.iter().any(|sysctl| !sysctl.path.exists())
        && let Err(error) = ConntrackTable::open().and_then(|mut table| table.load_module())
    {
        tracing::warn!(%error, "the kernel does not load its connection tracking");
    }
    for sysctl in sysctls {
        let due = match (read(&sysctl.path), sysctl.write) {
            (Ok(current), Write::IfDifferent) => current != sysctl.value,
            (Ok(current), Write::IfSmaller) => current < sysctl.value,
            // What cannot be read is written, and fails there if it is not there at all.
            (Err(_), Write::IfDifferent) => true,
            (Err(source), Write::IfSmaller) => {
                return Err(SysctlError { action: "read", path: sysctl.path.clone(), value: None, reason: source });
            }
        };
        // `nf_conntrack_max` belongs to the machine: in namespaces other than the first its file has no permission to write at all.
        if due && fs::metadata(&sysctl.path).is_ok_and(|file| file.permissions().readonly()) {
            applied.fixed.push(sysctl.clone());
        } else if due {
            match fs::write(&sysctl.path, sysctl.value.to_string()) {
                Ok(()) => applied.written.push(sysctl.clone()),
                // What `hashsize` answers there, whose file can be written (`nf_conntrack_set_hashsize`).
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => applied.fixed.push(sysctl.clone()),
                Err(reason) => {
                    let (path, value) = (sysctl.path.clone(), Some(sysctl.value));
                    return Err(SysctlError { action: "set", path, value, reason });
                }
            }
        }
    }
    Ok(applied)
}

/// How many CPUs are online, by sysfs: the machine's, whatever cgroup or affinity mask this process is confined to.
pub fn online_cpus() -> u32 {
    let listed = fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| count_cpus(&list));
    listed.unwrap_or_else(|| thread::available_parallelism().map_or(1, |count| count.get() as u32))
}

fn read(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(path: &Path, value: u64, write: Write) -> Sysctl {
        Sysctl { path: path.to_owned(), value, write }
    }

    #[test]
    fn only_what_differs_is_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).expect("written");
            path
        };
        let table = [
            ("same", "7\n", Write::IfDifferent, false),
            ("other", "9\n", Write::IfDifferent, true),
            ("small", "6\n", Write::IfSmaller, true),
            ("large", "9\n", Write::IfSmaller, false),
        ];
        for (name, content, write, due) in table {
            let path = at(name, content);
            let written = apply_sysctls(&[sysctl(&path, 7, write)]).expect("applied").written;
            assert_eq!(written.len(), usize::from(due), "{name}");
            assert_eq!(fs::read_to_string(&path).expect("there"), if due { "7" } else { content }, "{name}");
        }
        assert!((1..=4096).contains(&online_cpus()));
    }

    #[test]
    fn an_error_names_parameter_and_value() {
        let absent = Path::new("/proc/sys/net/netfilter/no_such_parameter");
        let error = apply_sysctls(&[sysctl(absent, 7, Write::IfDifferent)]).expect_err("absent").to_string();
        assert!(error.starts_with("cannot set /proc/sys/net/netfilter/no_such_parameter = 7"), "{error}");
        let error = apply_sysctls(&[sysctl(absent, 7, Write::IfSmaller)]).expect_err("absent").to_string();
        assert!(error.starts_with("cannot read /proc/sys/net/netfilter/no_such_parameter"), "{error}");
    }
}

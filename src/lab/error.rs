//! What went wrong while making or changing a lab: what was tried, on what, and what the system said.

use std::fmt;
use std::io;

/// An effect that the system refused. Displayed with advice where we have some.
#[derive(Debug)]
pub struct LabError {
    tried: &'static str,
    object: String,
    source: io::Error,
}

impl LabError {
    pub(super) fn new(tried: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self { tried, object: object.into(), source }
    }

    /// The system's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.tried, self.object, self.source)?;
        match self.source.raw_os_error() {
            Some(nix::libc::EPERM | nix::libc::EACCES) => write!(
                f,
                "; network namespaces need root (try sudo), and inside a container CAP_SYS_ADMIN and CAP_NET_ADMIN \
                 (docker run --privileged)"
            ),
            Some(nix::libc::EROFS) => write!(f, "; it is mounted read-only here (docker run --privileged)"),
            Some(nix::libc::EOPNOTSUPP) => write!(f, "; the kernel lacks it (try: modprobe veth)"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for LabError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_rights_come_with_advice() {
        let error = LabError::new("make network namespace", "pm-1-node", io::Error::from_raw_os_error(1));
        let text = error.to_string();
        assert!(
            text.starts_with("cannot make network namespace pm-1-node: Operation not permitted (os error 1); network"),
            "{text}"
        );
    }
}

//! The demo's files, and those of demos that were killed.
//!
//! Namespaces that a killed demo leaves are cleared by [`crate::lab::clear_leftovers`]; its directory of manifests is found the same
//! way, by the process id in its name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

const PREFIX: &str = "pointsman-demo-";

/// A directory for this demo, after clearing those of dead ones.
pub(super) fn make_directory() -> io::Result<TempDir> {
    clear();
    tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir()
}

/// Removes directories of ours whose maker is dead. What cannot be removed stays.
pub(super) fn clear() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let Some(maker) = entry.file_name().to_str().and_then(maker) else { continue };
        let own = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == geteuid().as_raw());
        if own && kill(Pid::from_raw(maker), None) == Err(Errno::ESRCH) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn maker(name: &str) -> Option<i32> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maker_is_read_from_names_of_ours_only() {
        assert_eq!(maker("pointsman-demo-4711-Xy3"), Some(4711));
        for other in ["pointsman-demo-Xy3", "pointsman-demo--1-x", "pointsman-demo-4711", "demo-4711-x"] {
            assert_eq!(maker(other), None, "{other}");
        }
    }
}

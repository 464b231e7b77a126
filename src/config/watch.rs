//! Notices, through inotify, that the configuration file was edited.
//!
//! kube-proxy ends when its file is written or renamed, so that whoever supervises it starts it with the new one. What it watches
//! is the file that the path resolves to, not the path: a ConfigMap is updated by swapping a symlink and removing the old file, and
//! that must not restart a whole DaemonSet at once. So of all that can happen, removal and changes of attributes are ignored.
//!
//! The watch begins before the file is read: an edit in between is seen.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

/// A configuration file under watch.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    inotify: Inotify,
}

/// What happened to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Its content.
    Written,
    /// Its name.
    Renamed,
}

// === impl FileWatch ===

impl FileWatch {
    /// Watches the file that `path` resolves to now.
    ///
    /// # Errors
    /// There is no such file, or no inotify instance left (`fs.inotify.max_user_instances`).
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(&path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVE_SELF)?;
        Ok(FileWatch { path, inotify })
    }

    /// The file, symlinks resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for an edit, possibly forever. Must be called inside a tokio runtime with I/O.
    ///
    /// # Errors
    /// inotify cannot be read.
    pub async fn edited(self) -> io::Result<Edit> {
        #[expect(deprecated, reason = "its successor is unsafe; `Fd` owns its descriptor and never changes it")]
        let fd = AsyncFd::new(Fd(self.inotify))?;
        loop {
            let mut ready = fd.readable().await?;
            let events = match ready.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from)) {
                Ok(events) => events?,
                Err(_would_block) => continue,
            };
            // Anything else says that the watch ended with its file, which is no edit.
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_MODIFY) {
                    return Ok(Edit::Written);
                }
                if event.mask.contains(AddWatchFlags::IN_MOVE_SELF) {
                    return Ok(Edit::Renamed);
                }
            }
        }
    }
}

/// `AsyncFd` wants `AsRawFd`, which `Inotify` has not.
struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl std::fmt::Display for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Edit::Written => "written",
            Edit::Renamed => "renamed",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use super::*;

    /// Whether an edit is seen when `act` does something to a file, which `path` leads to by a symlink of a symlink, as in a Pod.
    async fn seen(act: impl FnOnce(&Path)) -> Option<Edit> {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        fs::create_dir(dir.join("..1")).expect("created");
        fs::write(dir.join("..1/config.conf"), "old").expect("written");
        symlink("..1", dir.join("..data")).expect("linked");
        symlink("..data/config.conf", dir.join("config.conf")).expect("linked");
        let watch = FileWatch::new(&dir.join("config.conf")).expect("watched");
        assert!(watch.path().ends_with("..1/config.conf"));
        act(dir);
        let edited = tokio::time::timeout(Duration::from_millis(200), watch.edited()).await;
        edited.ok().map(|edit| edit.expect("readable"))
    }

    #[tokio::test]
    async fn edits_are_seen_and_swaps_are_not() {
        let write = |dir: &Path| fs::write(dir.join("config.conf"), "new").expect("written");
        assert_eq!(seen(write).await, Some(Edit::Written));
        let rename = |dir: &Path| fs::rename(dir.join("..1/config.conf"), dir.join("..1/x")).expect("renamed");
        assert_eq!(seen(rename).await, Some(Edit::Renamed));
        let swap = |dir: &Path| {
            fs::create_dir(dir.join("..2")).expect("created");
            fs::write(dir.join("..2/config.conf"), "new").expect("written");
            symlink("..2", dir.join("..tmp")).expect("linked");
            fs::rename(dir.join("..tmp"), dir.join("..data")).expect("swapped");
            fs::remove_dir_all(dir.join("..1")).expect("removed");
        };
        assert_eq!(seen(swap).await, None);
        let attributes = |dir: &Path| {
            fs::set_permissions(dir.join("config.conf"), fs::Permissions::from_mode(0o600)).expect("changed");
        };
        assert_eq!(seen(attributes).await, None);
    }
}

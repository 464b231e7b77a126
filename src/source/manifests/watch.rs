//! Notices, through inotify, that a directory of manifests may have changed.
//!
//! A [`Watcher`] only ever says "look again": what happened is found out by scanning, so a lost or spurious notification is
//! harmless. It watches three things. The directory itself: edits, renames, the `..data` link of a mounted ConfigMap. The
//! directories that hold it, as named and as resolved: that is where a link is swapped and a removed directory comes back.
//! The directories that its symlinks point into. inotify watches inodes, not names, so [`Watcher::aim`] is called with each scan
//! and says when it had to watch something new: what happened there before needs another look.
//!
//! What it cannot see (a change of a path further up, network file systems, no watches left), the slow rescan finds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;

/// A file that is open for writing is left alone for so long; after that, it is read as it is.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// An inotify instance and what it is aimed at.
pub struct Watcher {
    fd: AsyncFd<Fd>,
    watches: BTreeMap<i32, Watch>,
    /// Files of the directory that were modified and not closed yet, since when.
    writing: BTreeMap<String, Instant>,
}

struct Watch {
    descriptor: WatchDescriptor,
    interest: Interest,
}

/// What matters in a watched directory.
#[derive(Clone, Debug, Default, PartialEq)]
struct Interest {
    /// The manifests directory: who writes what is remembered.
    home: bool,
    /// Anything that happens inside.
    content: bool,
    /// These entries coming and going.
    entries: BTreeSet<OsString>,
}

/// `AsyncFd` wants `AsRawFd`, which `Inotify` has not.
struct Fd(Inotify);

// === impl Watcher ===

impl Watcher {
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// No inotify instances left (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        #[expect(deprecated, reason = "its successor is unsafe; `Fd` owns its descriptor and never changes it")]
        let fd = AsyncFd::new(Fd(inotify))?;
        Ok(Watcher { fd, watches: BTreeMap::new(), writing: BTreeMap::new() })
    }

    /// Watches what matters for `dir` now and nothing else. Returns whether anything is watched that was not before.
    ///
    /// # Errors
    /// The first directory that exists and cannot be watched; the others are watched all the same.
    pub fn aim(&mut self, dir: &Path, outside: &BTreeSet<PathBuf>) -> (bool, io::Result<()>) {
        let mut targets: BTreeMap<PathBuf, Interest> = BTreeMap::new();
        let real = dir.canonicalize().ok();
        for path in [Some(dir), real.as_deref()].into_iter().flatten() {
            if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
                && let Ok(parent) = parent.canonicalize()
            {
                targets.entry(parent).or_default().entries.insert(name.to_owned());
            }
        }
        for path in outside {
            targets.entry(path.clone()).or_default().content = true;
        }
        if let Some(real) = real {
            let home = targets.entry(real).or_default();
            (home.home, home.content) = (true, true);
        }
        let mut problem = Ok(());
        let mut watches = BTreeMap::new();
        let mut new = false;
        for (path, interest) in targets {
            match self.fd.get_ref().0.add_watch(&path, interest.mask()) {
                Ok(descriptor) => {
                    let known = self.watches.get(&descriptor.as_raw());
                    new |= known.is_none_or(|watch| watch.interest != interest);
                    watches.insert(descriptor.as_raw(), Watch { descriptor, interest });
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) if problem.is_ok() => {
                    let text = format!("cannot watch {}: {}", path.display(), errno.desc());
                    problem = Err(io::Error::new(io::Error::from(errno).kind(), text));
                }
                Err(_) => {}
            }
        }
        for (raw, watch) in &self.watches {
            if !watches.contains_key(raw) {
                // It may be gone by itself already, with its inode.
                let _ = self.fd.get_ref().0.rm_watch(watch.descriptor);
            }
        }
        self.watches = watches;
        (new, problem)
    }

    /// Waits until something may have changed. Cancellation safe.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let events = {
                let mut ready = self.fd.readable().await?;
                match ready.try_io(|fd| fd.get_ref().0.read_events().map_err(io::Error::from)) {
                    Ok(events) => events?,
                    Err(_would_block) => continue,
                }
            };
            // No short circuit: each event is taken note of.
            if events.into_iter().fold(false, |relevant, event| self.note(&event) | relevant) {
                return Ok(());
            }
        }
    }

    /// The files that someone has been writing for less than [`PATIENCE`].
    pub fn busy(&self) -> BTreeSet<String> {
        let busy = self.writing.iter().filter(|(_, since)| since.elapsed() < PATIENCE);
        busy.map(|(name, _)| name.clone()).collect()
    }

    fn note(&mut self, event: &InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.writing.clear();
            return true;
        }
        let Some(watch) = self.watches.get(&event.wd.as_raw()) else { return false };
        if watch.interest.home {
            match event.name.as_ref().and_then(|name| name.to_str()) {
                None if event.mask.contains(AddWatchFlags::IN_IGNORED) => self.writing.clear(),
                None => {}
                Some(name) if event.mask.contains(AddWatchFlags::IN_MODIFY) => {
                    self.writing.entry(name.to_owned()).or_insert_with(Instant::now);
                }
                // Attributes change while one writes; everything else means that it is another file or closed.
                Some(_) if event.mask.contains(AddWatchFlags::IN_ATTRIB) => {}
                Some(name) => drop(self.writing.remove(name)),
            }
        }
        watch.interest.content || event.name.as_ref().is_none_or(|name| watch.interest.entries.contains(name))
    }
}

// === impl Interest ===

impl Interest {
    fn mask(&self) -> AddWatchFlags {
        let entries = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        if !self.content {
            return entries;
        }
        entries | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB
    }
}

// === impl Fd ===

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

//! Looks at the directory and says what changed since the last look.
//!
//! A [`Scanner`] lists the directory and compares each manifest's stamp (device, inode, size, mtime, ctime; behind symlinks) with
//! the one it remembers. Only what differs is read, and only content that differs is parsed; the [`Inventory`] makes changes of it.
//! It blocks on the file system and knows neither time-outs nor notifications: its owner calls it whenever something may have
//! happened, and calling it once too often costs a `stat` per file.
//!
//! Rules, proven below and, with everything alive, in `tests/source_manifests.rs`:
//! - A manifest is `*.yaml`, `*.yml` or `*.json` with a UTF-8 name that begins with neither `.` nor `#`.
//! - Whatever goes wrong with a file, its last good content stays; a file that is gone (or a link to nothing) holds no objects.
//! - A directory that cannot be listed changes nothing at all. When it is back it is given a moment ([`SETTLE`]) to be filled.
//! - A file that was just emptied is about to be written; it is empty only after [`SETTLE`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::inventory::{FileName, Inventory};
use super::parse::{self, ParseError, Parsed};
use super::problem::Problem;
use crate::source::{Change, Object};

/// Largest manifest that is read. etcd holds objects of up to 1.5 MiB, so this is hundreds of the largest.
pub const MAX_BYTES: u64 = 64 << 20;
/// How long a directory that came back, or a file that was emptied, is left alone.
pub const SETTLE: Duration = Duration::from_millis(150);
/// Timestamps come from a clock that ticks every few milliseconds (1/CONFIG_HZ): content read so shortly after its mtime may
/// change again without its stamp changing.
const CLOCK_TICK: Duration = Duration::from_millis(50);

/// Remembers a directory between scans.
#[derive(Debug)]
pub struct Scanner {
    dir: PathBuf,
    node_name: String,
    presence: Presence,
    files: BTreeMap<FileName, Remembered>,
    inventory: Inventory,
}

/// What one scan found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What the model has to be told, in order.
    pub changes: Vec<Change>,
    /// What the user has to be told.
    pub problems: Vec<Problem>,
    /// The directory was there and all of it was looked at.
    pub complete: bool,
    /// Something was left for later: scan again after this time.
    pub again: Option<Duration>,
    /// Directories outside that hold what symlinks point to.
    pub outside: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Presence {
    There,
    Gone,
    BackSince(Instant),
}

/// What is known of a file.
#[derive(Debug, Default)]
struct Remembered {
    /// None: must be read again in any case.
    stamp: Option<Stamp>,
    /// Of the content last read, good or bad.
    digest: Option<u64>,
    trouble: Option<Problem>,
    /// Foreign kinds that have been reported.
    skipped: BTreeSet<String>,
}

/// Identity and version of a file's content, as far as `stat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A manifest as the directory lists it.
struct Listed {
    path: PathBuf,
    meta: io::Result<Metadata>,
}

// === impl Scanner ===

impl Scanner {
    /// Starts with an empty memory: the first scan finds everything new.
    pub fn new(dir: PathBuf, node_name: String) -> Self {
        Scanner { dir, node_name, presence: Presence::There, files: BTreeMap::new(), inventory: Inventory::default() }
    }

    /// Looks at everything. Files in `busy` are being written by someone who has not closed them yet and are left alone.
    pub fn scan(&mut self, busy: &BTreeSet<String>) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(listing) = self.list(&mut outcome) else { return outcome };
        outcome.complete = true;
        let mut contents = Vec::new();
        let gone = self.files.keys().filter(|file| !listing.contains_key(*file)).cloned().collect::<Vec<_>>();
        for file in gone {
            self.files.remove(&file);
            contents.push((file, Vec::new()));
        }
        for (file, listed) in listing {
            if busy.contains(&*file) {
                continue;
            }
            let kept = self.inventory.count(&file) > 0;
            let remembered = self.files.entry(file.clone()).or_default();
            match remembered.look(&file, listed, kept, &mut outcome) {
                Some(objects) => contents.push((file, self.wanted(objects))),
                None => continue,
            }
        }
        let (changes, duplicates) = self.inventory.update(contents);
        outcome.changes = changes;
        outcome.problems.extend(duplicates);
        outcome
    }

    /// Everything that is called like a manifest and exists.
    fn list(&mut self, outcome: &mut Outcome) -> Option<BTreeMap<FileName, Listed>> {
        let listing = match self.list_one_directory(outcome) {
            Ok(listing) => listing,
            Err(error) => {
                if self.presence != Presence::Gone {
                    self.presence = Presence::Gone;
                    outcome.problems.push(Problem::DirectoryGone {
                        dir: self.dir.clone(),
                        reason: format!("cannot list it: {error}"),
                    });
                }
                return None;
            }
        };
        match self.presence {
            Presence::There => {}
            Presence::BackSince(since) if since.elapsed() >= SETTLE => {
                self.presence = Presence::There;
                outcome.problems.push(Problem::DirectoryBack { dir: self.dir.clone() });
            }
            Presence::BackSince(since) => {
                outcome.again = Some(SETTLE.saturating_sub(since.elapsed()));
                return None;
            }
            Presence::Gone => {
                self.presence = Presence::BackSince(Instant::now());
                outcome.again = Some(SETTLE);
                return None;
            }
        }
        Some(listing)
    }

    /// The path may be a symlink that someone swaps while we look: then we look again, so as not to mix two directories.
    fn list_one_directory(&self, outcome: &mut Outcome) -> io::Result<BTreeMap<FileName, Listed>> {
        let identity = |meta: Metadata| (meta.dev(), meta.ino());
        let mut before = identity(fs::metadata(&self.dir)?);
        for _ in 0..10 {
            outcome.outside.clear();
            let listing = self.list_once(&mut outcome.outside)?;
            let after = identity(fs::metadata(&self.dir)?);
            if after == before {
                return Ok(listing);
            }
            before = after;
        }
        Err(io::Error::other("it is replaced all the time"))
    }

    fn list_once(&self, outside: &mut BTreeSet<PathBuf>) -> io::Result<BTreeMap<FileName, Listed>> {
        let mut listing = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_manifest(name)) else { continue };
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                // Where the file is, and where a link to nothing waits for one.
                let there = path.canonicalize().ok();
                let named = fs::read_link(&path).ok().map(|target| self.dir.join(target));
                let parents =
                    [there, named].into_iter().flatten().filter_map(|path| path.parent()?.canonicalize().ok());
                outside.extend(parents);
            }
            match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(meta) if meta.is_dir() => {}
                meta => drop(listing.insert(name.into(), Listed { path, meta })),
            }
        }
        Ok(listing)
    }

    /// Other nodes are none of our business.
    fn wanted(&self, mut objects: Vec<(Object, usize)>) -> Vec<(Object, usize)> {
        objects.retain(|(object, _)| match object {
            Object::Node(node) => node.metadata.name.as_deref() == Some(&*self.node_name),
            _ => true,
        });
        objects
    }
}

/// Hidden files, Kubernetes' `..data` among them, and the temporary files of editors are none.
fn is_manifest(name: &str) -> bool {
    !name.starts_with(['.', '#']) && [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

// === impl Remembered ===

impl Remembered {
    /// The objects of the file, if they may differ from what it held before.
    fn look(
        &mut self,
        file: &FileName,
        listed: Listed,
        kept: bool,
        outcome: &mut Outcome,
    ) -> Option<Vec<(Object, usize)>> {
        let meta = match listed.meta {
            Ok(meta) => meta,
            Err(error) => return self.unreadable(file, format!("cannot stat it: {error}"), kept, outcome),
        };
        let stamp = Stamp::of(&meta);
        let stuck = matches!(self.trouble, Some(Problem::Unreadable { .. }));
        if self.stamp == Some(stamp) && !stuck {
            return None;
        }
        if stamp.size == 0 && kept && stamp.age().is_some_and(|age| age < SETTLE) {
            outcome.again = Some(outcome.again.map_or(SETTLE, |again| again.min(SETTLE)));
            return None;
        }
        let (bytes, stamp) = match read(&listed.path, &meta) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                outcome.again = Some(Duration::ZERO);
                return None;
            }
            Err(error) => return self.unreadable(file, format!("cannot read it: {error}"), kept, outcome),
        };
        self.stamp = stamp;
        let digest = digest(&bytes);
        if self.digest == Some(digest) {
            return None;
        }
        self.digest = Some(digest);
        match understand(file, bytes) {
            Ok(parsed) => {
                if self.trouble.take().is_some() {
                    outcome.problems.push(Problem::Recovered { file: file.to_string() });
                }
                self.report_skipped(file, &parsed, outcome);
                Some(parsed.objects)
            }
            Err((line, reason)) => {
                let problem = Problem::Broken { file: file.to_string(), line, reason, kept };
                self.trouble = Some(problem.clone());
                outcome.problems.push(problem);
                None
            }
        }
    }

    fn unreadable<T>(&mut self, file: &FileName, reason: String, kept: bool, outcome: &mut Outcome) -> Option<T> {
        let problem = Problem::Unreadable { file: file.to_string(), reason, kept };
        if self.trouble.as_ref() != Some(&problem) {
            outcome.problems.push(problem.clone());
        }
        // Whatever it holds when it can be read again is looked at afresh.
        *self = Remembered { trouble: Some(problem), skipped: std::mem::take(&mut self.skipped), ..Default::default() };
        None
    }

    fn report_skipped(&mut self, file: &FileName, parsed: &Parsed, outcome: &mut Outcome) {
        let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for skipped in &parsed.skipped {
            kinds.entry(&skipped.what).or_insert((skipped.line, 0)).1 += 1;
        }
        for (what, (line, count)) in kinds {
            if self.skipped.insert(what.to_owned()) {
                outcome.problems.push(Problem::Skipped { file: file.to_string(), line, what: what.to_owned(), count });
            }
        }
    }
}

/// The content and the stamp that stands for it; no stamp when a later change might not show in it.
fn read(path: &Path, listed: &Metadata) -> io::Result<(Vec<u8>, Option<Stamp>)> {
    let regular = |meta: &Metadata| {
        if !meta.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        if meta.len() > MAX_BYTES {
            let mib = meta.len() >> 20;
            return Err(io::Error::other(format!("it has {mib} MiB, a manifest may have {} MiB", MAX_BYTES >> 20)));
        }
        Ok(())
    };
    regular(listed)?;
    // Should it have become a FIFO since, opening it must not block.
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    regular(&meta)?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0));
    (&file).take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    let after = file.metadata()?;
    regular(&after)?;
    let stamp = Stamp::of(&meta);
    let settled = stamp == Stamp::of(&after) && stamp.age().is_none_or(|age| age > CLOCK_TICK);
    Ok((bytes, settled.then_some(stamp)))
}

fn understand(file: &str, bytes: Vec<u8>) -> Result<Parsed, (Option<usize>, String)> {
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        (Some(line), "not UTF-8 text".to_owned())
    })?;
    parse::parse(file, &text).map_err(|ParseError { line, reason }| (Some(line), reason))
}

/// Only compared within this process.
fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

// === impl Stamp ===

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Time since the last change; None when that lies in the future.
    fn age(&self) -> Option<Duration> {
        let (seconds, nanos) = self.modified.max(self.changed);
        let changed = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
        SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "{apiVersion: v1, kind: Service, metadata: {name: a}}";

    fn scanner(dir: &Path) -> Scanner {
        Scanner::new(dir.to_owned(), "n1".to_owned())
    }

    /// As if nobody had touched it for an hour, so that its stamp can be trusted.
    fn write_old(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        std::thread::sleep(CLOCK_TICK + Duration::from_millis(5));
    }

    fn calm() -> BTreeSet<String> {
        BTreeSet::new()
    }

    #[test]
    fn names_of_manifests() {
        for name in ["a.yaml", "a.yml", "a.json", "a b.yaml", "a.yaml.json"] {
            assert!(is_manifest(name), "{name}");
        }
        for name in
            ["a", "a.YAML", ".a.yaml", "..data", "a.yaml~", "#a.yaml#", ".#a.yaml", "4913", ".a.yaml.swp", "yaml"]
        {
            assert!(!is_manifest(name), "{name}");
        }
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        write_old(&dir.path().join("a.yaml"), A);
        let mut scanner = scanner(dir.path());
        assert_eq!(scanner.scan(&calm()).changes.len(), 1);
        let known = scanner.files["a.yaml"].stamp;
        assert!(known.is_some());
        // Were it read, this digest would be put right.
        scanner.files.get_mut("a.yaml").unwrap().digest = None;
        assert!(scanner.scan(&calm()).changes.is_empty());
        assert_eq!(scanner.files["a.yaml"].digest, None);
    }

    #[test]
    fn a_fresh_file_is_read_again_but_says_nothing_new() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), A).unwrap();
        let mut scanner = scanner(dir.path());
        assert_eq!(scanner.scan(&calm()).changes.len(), 1);
        assert_eq!(scanner.files["a.yaml"].stamp, None, "its next edit might leave the same stamp");
        assert!(scanner.scan(&calm()).changes.is_empty());
    }

    #[test]
    fn a_busy_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, A).unwrap();
        let mut scanner = scanner(dir.path());
        let busy = BTreeSet::from(["a.yaml".to_owned()]);
        assert!(scanner.scan(&busy).changes.is_empty());
        assert_eq!(scanner.scan(&calm()).changes.len(), 1);
        fs::write(&file, "").unwrap();
        assert!(scanner.scan(&busy).changes.is_empty());
        fs::remove_file(&file).unwrap();
        assert_eq!(scanner.scan(&busy).changes.len(), 1, "gone is gone");
    }

    #[test]
    fn an_emptied_file_is_empty_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        fs::write(&file, A).unwrap();
        let mut scanner = scanner(dir.path());
        scanner.scan(&calm());
        fs::write(&file, "").unwrap();
        let outcome = scanner.scan(&calm());
        assert_eq!((outcome.changes.len(), outcome.again), (0, Some(SETTLE)));
        std::thread::sleep(SETTLE);
        assert_eq!(scanner.scan(&calm()).changes.len(), 1);
    }
}

//! What can be wrong with a directory of manifests, as data.
//!
//! Scanning and comparing return problems, they never log: a test asserts on them, and the source's task renders each one once.
//! Every problem names the file it is about, and the line where there is one. A problem is made when it begins and, as
//! [`Problem::Recovered`] or [`Problem::DirectoryBack`], when it ends; not on every rescan in between. The tests of
//! [`super::scan`] prove that.

use std::fmt;
use std::path::PathBuf;

use crate::source::{Kind, ObjectKey};

/// One thing a user should know about the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The file's content cannot be understood.
    Broken {
        /// File name inside the directory.
        file: String,
        /// 1-based; absent when the trouble has no place.
        line: Option<usize>,
        /// Object, field and what is wrong with it.
        reason: String,
        /// Objects from the last good content of this file stay in force.
        kept: bool,
    },
    /// The file cannot be read at all.
    Unreadable {
        /// File name inside the directory.
        file: String,
        /// What was tried and what the system answered.
        reason: String,
        /// Objects from the last good content of this file stay in force.
        kept: bool,
    },
    /// A broken or unreadable file is fine again.
    Recovered {
        /// File name inside the directory.
        file: String,
    },
    /// Objects of a kind that a proxy has no use for.
    Skipped {
        /// File name inside the directory.
        file: String,
        /// Of the first such object, 1-based.
        line: usize,
        /// `apiVersion` and `kind`, joined by a blank.
        what: String,
        /// How many there are in this file.
        count: usize,
    },
    /// An object that is already there: the first file by name wins, and within a file the first object.
    Duplicate {
        /// Kind of the object.
        kind: Kind,
        /// Which object.
        key: ObjectKey,
        /// The file whose object is ignored.
        file: String,
        /// Where it is, 1-based.
        line: usize,
        /// The file whose object is used.
        winner: String,
        /// Where that is, 1-based.
        winner_line: usize,
    },
    /// The directory cannot be listed; all objects stay in force.
    DirectoryGone {
        /// The directory.
        dir: PathBuf,
        /// What the system answered.
        reason: String,
    },
    /// The directory can be listed again.
    DirectoryBack {
        /// The directory.
        dir: PathBuf,
    },
    /// No (complete) notifications from inotify: edits are still seen, by the slow rescan.
    NoNotifications {
        /// What was tried and what the system answered.
        reason: String,
    },
}

// === impl Problem ===

impl Problem {
    /// Whether something needs a human: the end of a trouble and skipped kinds do not.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Problem::Recovered { .. } | Problem::DirectoryBack { .. } | Problem::Skipped { .. })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = |kept: &bool| if *kept { "its last good content stays in force" } else { "nothing of it is used" };
        match self {
            Problem::Broken { file, line: Some(line), reason, kept } => {
                write!(f, "{file}:{line}: {reason}; {}", fate(kept))
            }
            Problem::Broken { file, line: None, reason, kept } | Problem::Unreadable { file, reason, kept } => {
                write!(f, "{file}: {reason}; {}", fate(kept))
            }
            Problem::Recovered { file } => write!(f, "{file}: fine again"),
            Problem::Skipped { file, line, what, count: 1 } => write!(f, "{file}:{line}: {what} skipped"),
            Problem::Skipped { file, line, what, count } => {
                write!(f, "{file}:{line}: {what} skipped ({count} of them in this file)")
            }
            Problem::Duplicate { kind, key, file, line, winner, winner_line } => {
                write!(f, "{file}:{line}: {} {key} ignored: {winner}:{winner_line} has it already", kind.name())
            }
            Problem::DirectoryGone { dir, reason } => {
                write!(f, "{}: {reason}; all objects from it stay in force", dir.display())
            }
            Problem::DirectoryBack { dir } => write!(f, "{}: back again", dir.display()),
            Problem::NoNotifications { reason } => {
                write!(f, "{reason}; edits are seen by the slow rescan only")
            }
        }
    }
}

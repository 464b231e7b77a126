//! Errors as data: what was tried, on which object and element, what the kernel said, whether trying again can help.
//!
//! Vocabulary: a *refusal* is the kernel's answer to one message of a transaction; the whole transaction was then undone.
//!
//! Invariants: an error names objects as an operator types them to nft (`map ip pointsman endpoints`); nothing is rendered before
//! it is displayed, except the key of a refused element, whose bytes end with the transaction. Proven by the kernel test `errors`.

use std::ffi::CString;
use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::table::Family;
use crate::{uapi, userdata};

/// Anything that keeps this crate from doing what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// No `CAP_NET_ADMIN` in the user namespace that owns the network namespace.
    Permission,
    /// The kernel has no nf_tables (or no netfilter netlink at all).
    Unavailable(Errno),
    /// The table belongs to another process, by its netlink port.
    Owned {
        /// Address family of the table.
        family: Family,
        /// Name of the table.
        table: String,
        /// Port of the owner.
        port: u32,
    },
    /// The ruleset is no longer of the generation that [`crate::Connection::commit_at`] was told. Nothing was applied.
    Stale {
        /// The generation expected.
        generation: u32,
    },
    /// The kernel refused a message of the transaction and applied nothing of it.
    Refused(Box<Refusal>),
    /// Something that cannot be sent; found before sending anything.
    Invalid {
        /// What was wrong with it.
        object: Box<Object>,
        /// Why.
        reason: InvalidReason,
    },
    /// A question to the kernel failed.
    Query {
        /// What was asked about.
        object: Box<Object>,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The ruleset kept changing while it was being read.
    Interrupted,
    /// The kernel's answer was lost, so that the outcome is unknown: read back the state or load it again.
    AnswerLost,
    /// The socket itself failed.
    Socket {
        /// What was tried.
        action: &'static str,
        /// How it failed.
        errno: Errno,
    },
}

/// What was tried on an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Operation {
    Add,
    Replace,
    Delete,
    Flush,
    AddElements,
    DeleteElements,
    /// The transaction as a whole.
    Commit,
    Read,
}

/// The kind of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ObjectKind {
    Table,
    Chain,
    Rule,
    Set,
    Map,
    Counter,
    Quota,
    Limit,
    /// Everything.
    Ruleset,
}

/// Names an object; `name` is empty for tables, the chain's for rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its kind.
    pub kind: ObjectKind,
    /// Address family of its table; `None` for the ruleset.
    pub family: Option<Family>,
    /// Name of its table.
    pub table: String,
    /// Its own name.
    pub name: String,
}

/// One refused message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What was tried.
    pub operation: Operation,
    /// On what.
    pub object: Object,
    /// The element that the kernel pointed at, if it did.
    pub element: Option<RefusedElement>,
    /// The kernel's answer.
    pub errno: Errno,
    /// The kernel's own words, which nf_tables rarely has.
    pub message: Option<String>,
    /// How many further messages of the transaction were refused.
    pub further: usize,
}

/// The element of an operation that the kernel pointed at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedElement {
    /// Its place among the elements of that operation, from 0.
    pub index: usize,
    /// Its key in nft's spelling.
    pub key: String,
    /// Its comment.
    pub comment: Option<String>,
}

/// Why something cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidReason {
    /// A name is empty, longer than 255 bytes or contains a NUL.
    Name(String),
    /// A comment of this many bytes; at most 251 fit.
    Comment(usize),
    /// A comment contains a NUL.
    CommentNul,
    /// A key or value of this many bytes; the registers hold 64.
    KeyLength(usize),
    /// A concatenation of this many fields; nft prints one to five.
    FieldCount(usize),
    /// An element whose key has this many bytes, in a set whose key has that many.
    ElementKey {
        /// Place among the elements, from 0.
        index: usize,
        /// Bytes it has.
        len: usize,
        /// Bytes the set's fields have.
        expected: usize,
    },
    /// A rule of this many expressions; the kernel takes 128.
    ExprCount(usize),
    /// libnftnl does not know this expression.
    UnknownExpr(String),
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once, after reading what has changed.
    Now,
    /// After a while.
    Backoff,
    /// No: somebody has to change something.
    Never,
}

// === impl Error ===

impl Error {
    /// The kernel's error number, if one is behind this.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Permission | Self::Owned { .. } => Some(Errno::EPERM),
            Self::Stale { .. } => Some(Errno::ERESTART),
            Self::Interrupted => Some(Errno::EINTR),
            Self::AnswerLost => Some(Errno::ENOBUFS),
            Self::Refused(refusal) => Some(refusal.errno),
            Self::Unavailable(errno) | Self::Query { errno, .. } | Self::Socket { errno, .. } => Some(*errno),
            Self::Invalid { .. } => None,
        }
    }

    /// Whether trying again can help. The connection has already tried as often as makes sense without knowing more.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Stale { .. } => Retry::Now,
            Self::Interrupted | Self::AnswerLost => Retry::Backoff,
            Self::Permission | Self::Unavailable(_) | Self::Owned { .. } | Self::Invalid { .. } => Retry::Never,
            Self::Refused(refusal) => retry_of(refusal.errno),
            Self::Query { errno, .. } | Self::Socket { errno, .. } => retry_of(*errno),
        }
    }

    /// The object that the error is about.
    pub fn object(&self) -> Option<&Object> {
        match self {
            Self::Refused(refusal) => Some(&refusal.object),
            Self::Invalid { object, .. } | Self::Query { object, .. } => Some(object),
            _ => None,
        }
    }

    /// The refusal, if that is what it is.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    pub(crate) fn socket(action: &'static str, error: &io::Error) -> Self {
        Self::Socket { action, errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) }
    }
}

/// What to do about an error number.
pub(crate) fn retry_of(errno: Errno) -> Retry {
    match errno {
        Errno::ERESTART | Errno::EINTR | Errno::EAGAIN => Retry::Now,
        Errno::ENOBUFS | Errno::EBUSY | Errno::ENOMEM => Retry::Backoff,
        _ => Retry::Never,
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permission => out.write_str(
                "no permission to change nf_tables (EPERM): CAP_NET_ADMIN is needed in this network namespace",
            ),
            Self::Unavailable(errno) => {
                write!(out, "the kernel offers no nf_tables: {}", Said(*errno))
            }
            Self::Owned { family, table, port } => {
                write!(out, "table {family} {table} is owned by another process (netlink port {port})")
            }
            Self::Stale { generation } => {
                write!(out, "the ruleset has changed since generation {generation} (ERESTART)")
            }
            Self::Refused(refusal) => refusal.fmt(out),
            Self::Invalid { object, reason } => write!(out, "{object}: {reason}"),
            Self::Query { object, errno } => write!(out, "read {object}: {}", Said(*errno)),
            Self::Interrupted => out.write_str("the ruleset kept changing while it was read (EINTR)"),
            Self::AnswerLost => out.write_str("the kernel's answer to the transaction was lost (ENOBUFS)"),
            Self::Socket { action, errno } => write!(out, "netlink socket: {action}: {}", Said(*errno)),
        }
    }
}

/// `File exists (EEXIST)`
struct Said(Errno);

impl fmt::Display for Said {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({:?})", self.0.desc(), self.0)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.operation, self.object)?;
        if let Some(element) = &self.element {
            write!(out, ", element {}", element.key)?;
            if let Some(comment) = &element.comment {
                write!(out, " (\"{comment}\")")?;
            }
        }
        match (self.operation, self.errno) {
            // What the kernel means by it in a set (nft_add_set_elem).
            (Operation::AddElements, Errno::ENFILE) => out.write_str(": the set is full (ENFILE)")?,
            _ => write!(out, ": {}", Said(self.errno))?,
        }
        if let Some(message) = &self.message {
            write!(out, ": {message}")?;
        }
        match self.further {
            0 => Ok(()),
            1 => out.write_str("; 1 further refusal"),
            further => write!(out, "; {further} further refusals"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Add => "add",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::Flush => "flush",
            Self::AddElements => "add elements to",
            Self::DeleteElements => "delete elements from",
            Self::Commit => "commit",
            Self::Read => "read",
        })
    }
}

// === impl Object ===

impl Object {
    /// Everything in the network namespace.
    pub fn ruleset() -> Self {
        Self { kind: ObjectKind::Ruleset, family: None, table: String::new(), name: String::new() }
    }

    /// An object of a table, or with an empty name the table.
    pub fn new(kind: ObjectKind, family: Family, table: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind, family: Some(family), table: table.into(), name: name.into() }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self.kind {
            ObjectKind::Table => "table",
            ObjectKind::Chain => "chain",
            ObjectKind::Rule => "rule in chain",
            ObjectKind::Set => "set",
            ObjectKind::Map => "map",
            ObjectKind::Counter => "counter",
            ObjectKind::Quota => "quota",
            ObjectKind::Limit => "limit",
            ObjectKind::Ruleset => "ruleset",
        })?;
        if let Some(family) = self.family {
            write!(out, " {family}")?;
        }
        [&self.table, &self.name]
            .into_iter()
            .filter(|part| !part.is_empty())
            .try_for_each(|part| write!(out, " {part}"))
    }
}

// === impl InvalidReason ===

impl fmt::Display for InvalidReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(out, "{name:?} is not a name: 1 to 255 bytes without NUL"),
            Self::Comment(len) => write!(out, "a comment of {len} bytes is too long (251; 239 for sets of numbers)"),
            Self::CommentNul => out.write_str("a comment contains a NUL"),
            Self::KeyLength(len) => {
                write!(out, "a key or value of {len} bytes is longer than the 64 bytes of registers")
            }
            Self::FieldCount(count) => write!(out, "{count} fields in a concatenation; nft prints 1 to 5"),
            Self::ElementKey { index, len, expected } => {
                write!(out, "the key of element {index} has {len} bytes, the set's {expected}")
            }
            Self::ExprCount(count) => write!(out, "{count} expressions in a rule; the kernel takes 128"),
            Self::UnknownExpr(name) => write!(out, "libnftnl does not know the expression {name}"),
        }
    }
}

// === checks that definitions share ===

/// A name as libnftnl wants it.
pub(crate) fn name(text: &str) -> Result<CString, InvalidReason> {
    if text.is_empty() || text.len() >= uapi::NFT_NAME_MAXLEN {
        return Err(InvalidReason::Name(text.to_owned()));
    }
    CString::new(text).map_err(|_| InvalidReason::Name(text.to_owned()))
}

/// Whether a comment fits behind this many bytes of other user data.
pub(crate) fn check_comment(comment: &str, before: usize) -> Result<(), InvalidReason> {
    if comment.len() + before > userdata::MAX_COMMENT {
        Err(InvalidReason::Comment(comment.len()))
    } else if comment.bytes().any(|byte| byte == 0) {
        Err(InvalidReason::CommentNul)
    } else {
        Ok(())
    }
}

/// The user data of an object that has nothing but a comment.
pub(crate) fn comment_data(comment: &str) -> Result<Vec<u8>, InvalidReason> {
    check_comment(comment, 0)?;
    let mut bytes = Vec::with_capacity(comment.len() + 3);
    userdata::put_comment(&mut bytes, uapi::UDATA_COMMENT, comment);
    Ok(bytes)
}

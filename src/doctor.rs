//! `pointsman doctor`: is everything here as it has to be, and if not, what is to be done?
//!
//! Three steps that know nothing of each other's business: `facts` looks (at the kernel, at files, at the daemon over its socket) and judges nothing;
//! [`judge()`] is a pure function from [`Facts`] to [`Finding`]s, a line each; the operator's command shows them. What cannot be looked at is a fact, too:
//! without a daemon, without root or in a container the rest is judged as far as it goes.
//!
//! `trial` loads a small ruleset of every kind into a network namespace of its own, so what the kernel can do is not guessed from versions or modules.
//! Nothing else is changed by looking, and nothing at all in the namespace that is looked at.
//!
//! Invariants: every finding that is not [`Verdict::Ok`] says what to do; judging does no I/O.
//!
//! Proven by the table in `judge` and by `tests/e2e/doctor.rs`.

pub mod facts;
pub mod judge;
mod trial;

use serde::{Deserialize, Serialize};

pub use facts::{Facts, gather};
pub use judge::judge;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at, in a word or two; stable, for scripts.
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do; left out where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How it is. The worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and somebody should know.
    Warn,
    /// It does not work, or not as it should.
    Fail,
}

/// All lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`crate::status::VERSION`].
    pub version: String,
    /// The worst verdict.
    pub verdict: Verdict,
    /// In the order in which they build upon each other.
    pub findings: Vec<Finding>,
}

// === impl Report ===

impl Report {
    /// What is to be said about these facts.
    pub fn of(facts: &Facts) -> Self {
        let findings = judge(facts);
        let verdict = findings.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        Self { version: crate::status::VERSION.to_owned(), verdict, findings }
    }
}

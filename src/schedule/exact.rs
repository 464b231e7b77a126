//! Ways to choose that look at each connection by itself: the kernel has none of them, the userspace forwarder has.
//!
//! Written where a scheduler is written: `lc,exact` (and `wlc`, `sed`, `nq`) goes by counts that are right for every single
//! connection, where the kernel's rings are dealt again after the fact; `ewma` and `p2c` have no kernel twin at all.

use super::{Scheduler, SchedulerError};

/// A way to choose that takes the userspace forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exact {
    /// `lc,exact`.
    LeastConnection,
    /// `wlc,exact`.
    WeightedLeastConnection,
    /// `sed,exact`.
    ShortestExpectedDelay,
    /// `nq,exact`.
    NeverQueue,
    /// `ewma`: by the peak-sensitive moving average of connect latency.
    PeakEwma,
    /// `p2c`: the better of two drawn at random, by connections.
    TwoChoices,
}

/// What an annotation chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What comes nearest in the kernel.
    pub scheduler: Scheduler,
    /// What is asked for, if the kernel does not have it.
    pub exact: Option<Exact>,
}

// === impl Exact ===

impl Exact {
    /// The names that stand alone: no scheduler of the kernel path has them.
    pub const NAMES: [&'static str; 2] = ["ewma", "p2c"];
}

impl std::fmt::Display for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Exact::LeastConnection => "lc,exact",
            Exact::WeightedLeastConnection => "wlc,exact",
            Exact::ShortestExpectedDelay => "sed,exact",
            Exact::NeverQueue => "nq,exact",
            Exact::PeakEwma => "ewma",
            Exact::TwoChoices => "p2c",
        })
    }
}

// === impl Choice ===

impl Choice {
    /// All names, for messages.
    pub fn names() -> String {
        [&Scheduler::NAMES[..], &Exact::NAMES].concat().join(", ")
    }
}

impl std::str::FromStr for Choice {
    type Err = SchedulerError;

    /// `NAME[,FLAG...]`, spaces aside.
    fn from_str(text: &str) -> Result<Self, SchedulerError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let own = match name {
            "ewma" => Some((Exact::PeakEwma, "ewma")),
            "p2c" => Some((Exact::TwoChoices, "p2c")),
            _ => None,
        };
        if let Some((exact, scheduler)) = own {
            return match parts.find(|flag| *flag != "exact") {
                Some(flag) => Err(SchedulerError::Flag { scheduler, flag: flag.to_owned() }),
                None => Ok(Self { scheduler: Scheduler::Random, exact: Some(exact) }),
            };
        }
        let (flags, others): (Vec<&str>, Vec<&str>) = parts.partition(|flag| *flag == "exact");
        let scheduler: Scheduler = [&[name][..], &others].concat().join(",").parse()?;
        if flags.is_empty() {
            return Ok(Self { scheduler, exact: None });
        }
        let exact = match scheduler {
            Scheduler::LeastConnection => Exact::LeastConnection,
            Scheduler::WeightedLeastConnection => Exact::WeightedLeastConnection,
            Scheduler::ShortestExpectedDelay => Exact::ShortestExpectedDelay,
            Scheduler::NeverQueue => Exact::NeverQueue,
            _ => return Err(SchedulerError::Flag { scheduler: scheduler.name(), flag: "exact".to_owned() }),
        };
        Ok(Self { scheduler, exact: Some(exact) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_is_a_flag_of_those_who_count_and_two_names_stand_alone() {
        let read = |text: &str| text.parse::<Choice>();
        for text in ["lc,exact", "wlc,exact", "sed,exact", "nq,exact", "ewma", "p2c"] {
            let choice = read(text).expect("known");
            assert_eq!(choice.exact.map(|exact| exact.to_string()).as_deref(), Some(text));
        }
        assert_eq!(read(" lc , exact ").map(|choice| choice.scheduler), Ok(Scheduler::LeastConnection));
        assert_eq!(read("ewma").map(|choice| choice.scheduler), Ok(Scheduler::Random));
        let plain = Choice { scheduler: Scheduler::SourceHash { port: true }, exact: None };
        assert_eq!(read("sh,sh-port"), Ok(plain));
        for refused in ["rr,exact", "exact", "", "lc,exactly", "ewma,fast", "EWMA"] {
            assert!(read(refused).is_err(), "{refused:?}");
        }
    }
}

//! How schedulers are written: `NAME[,FLAG...]`, in annotations, flags and the configuration file alike.
//!
//! Names and flags are those of `ipvsadm --scheduler` and `--sched-flags`. The fallback flags are accepted and change nothing:
//! endpoints that take no new connections have no slot, so there is always a fallback.

use std::fmt;
use std::str::FromStr;

use super::Scheduler;

/// The text that names no scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchedulerError {
    /// There is none of this name.
    #[error("unknown scheduler {name:?}: one of {}", Scheduler::NAMES.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It has no such flag.
    #[error("scheduler {scheduler} has no flag {flag:?}{}", known_flags(scheduler))]
    Flag {
        /// The scheduler, by its name.
        scheduler: &'static str,
        /// The flag asked for.
        flag: String,
    },
}

fn known_flags(scheduler: &str) -> String {
    match scheduler {
        "sh" | "mh" => format!(": {scheduler}-port and {scheduler}-fallback are there"),
        _ => String::new(),
    }
}

impl Scheduler {
    /// All names that [`FromStr`] takes, for messages.
    pub const NAMES: [&'static str; 10] = ["random", "rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "dh", "mh"];

    /// The name without flags, as annotations and command line spell it.
    pub fn name(self) -> &'static str {
        match self {
            Scheduler::Random => "random",
            Scheduler::RoundRobin => "rr",
            Scheduler::WeightedRoundRobin => "wrr",
            Scheduler::LeastConnection => "lc",
            Scheduler::WeightedLeastConnection => "wlc",
            Scheduler::ShortestExpectedDelay => "sed",
            Scheduler::NeverQueue => "nq",
            Scheduler::SourceHash { .. } => "sh",
            Scheduler::DestinationHash => "dh",
            Scheduler::Maglev { .. } => "mh",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "random" => Scheduler::Random,
            "rr" => Scheduler::RoundRobin,
            "wrr" => Scheduler::WeightedRoundRobin,
            "lc" => Scheduler::LeastConnection,
            "wlc" => Scheduler::WeightedLeastConnection,
            "sed" => Scheduler::ShortestExpectedDelay,
            "nq" => Scheduler::NeverQueue,
            "sh" => Scheduler::SourceHash { port: false },
            "dh" => Scheduler::DestinationHash,
            "mh" => Scheduler::Maglev { port: false },
            _ => return None,
        })
    }

    /// The same scheduler with a flag; `None` if it has none of this name.
    fn with_flag(self, flag: &str) -> Option<Self> {
        match (self, flag) {
            (Scheduler::SourceHash { .. }, "sh-port") => Some(Scheduler::SourceHash { port: true }),
            (Scheduler::Maglev { .. }, "mh-port") => Some(Scheduler::Maglev { port: true }),
            (Scheduler::SourceHash { .. }, "sh-fallback") | (Scheduler::Maglev { .. }, "mh-fallback") => Some(self),
            _ => None,
        }
    }
}

impl FromStr for Scheduler {
    type Err = SchedulerError;

    /// Spaces around names and flags do not count.
    fn from_str(text: &str) -> Result<Self, SchedulerError> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let scheduler = Scheduler::from_name(name).ok_or_else(|| SchedulerError::Unknown { name: name.to_owned() })?;
        parts.try_fold(scheduler, |scheduler, flag| {
            let error = || SchedulerError::Flag { scheduler: scheduler.name(), flag: flag.to_owned() };
            scheduler.with_flag(flag).ok_or_else(error)
        })
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Scheduler::SourceHash { port: true } | Scheduler::Maglev { port: true } => write!(f, "{name},{name}-port"),
            _ => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_scheduler_and_back() {
        for name in Scheduler::NAMES {
            let scheduler: Scheduler = name.parse().expect("known");
            assert_eq!((scheduler.name(), scheduler.to_string()), (name, name.to_owned()));
        }
    }

    #[test]
    fn flags_are_those_of_the_scheduler() {
        let read = |text: &str| text.parse::<Scheduler>().map(|scheduler| scheduler.to_string());
        let refused = |text: &str| read(text).expect_err("refused").to_string();
        for (text, means) in [
            ("sh,sh-port", "sh,sh-port"),
            ("sh,sh-fallback", "sh"),
            (" sh , sh-fallback,sh-port,sh-port ", "sh,sh-port"),
            ("mh,mh-port,mh-fallback", "mh,mh-port"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(means), "{text}");
            assert_eq!(read(means).as_deref(), Ok(means), "what is written can be read");
        }
        let names = "one of random, rr, wrr, lc, wlc, sed, nq, sh, dh, mh";
        assert_eq!(refused("RR"), format!("unknown scheduler \"RR\": {names}"), "case matters, as for IPVS");
        assert_eq!(refused(""), format!("unknown scheduler \"\": {names}"));
        let of_sh = "sh-port and sh-fallback are there";
        assert_eq!(refused("sh,mh-port"), format!("scheduler sh has no flag \"mh-port\": {of_sh}"));
        assert_eq!(refused("sh,"), format!("scheduler sh has no flag \"\": {of_sh}"));
        assert_eq!(refused("rr,sh-port"), "scheduler rr has no flag \"sh-port\"");
    }
}

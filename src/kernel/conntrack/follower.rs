//! Following connections as they come and go, while somebody wants to know.
//!
//! A subscription to the kernel's events is there from [`Follower::open`] until the value is dropped: while nobody follows, the kernel makes no event for
//! us. Events are taken first and the table is read second, so that nothing falls in between. Lost events are told and followed by another reading;
//! where the kernel tells of nothing (`nf_conntrack_events` is 0), the table is read once a second.
//!
//! What a connection carried is in the event of its end, which comes when the kernel forgets it, two minutes late for TCP. So for a connection that is over the
//! entry is asked for, if the kernel accounts at all.
//!
//! Proven by `tests/e2e/flows.rs`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::events::{ConntrackEvents, Heard};
use super::settings::{accounting, tells};
use super::table::{ConntrackError, ConntrackTable};
use crate::conntrack::Flow;
use crate::conntrack::following::{Happening, Known, What};

/// Room for events that nobody has taken yet: 10,000.
const BUFFER: usize = 8 << 20;

/// Connections known at a time, of some 250 bytes each.
const MOST: usize = 100_000;

/// Between two readings, where the kernel tells of nothing.
const PACE: Duration = Duration::from_secs(1);

/// Between two readings after losses at least.
const RECOVERY: Duration = Duration::from_millis(250);

/// When the table is read again after a reading: where the kernel tells of nothing, and where others disturbed this one, because ends that fell
/// into it are not known yet.
fn next_review(now: Instant, partial: bool, tells: bool) -> Option<Instant> {
    (partial || !tells).then(|| now + PACE)
}

/// Follows connections in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Follower {
    events: ConntrackEvents,
    table: ConntrackTable,
    known: Known,
    accounting: bool,
    /// When the table is to be read.
    review_at: Option<Instant>,
    reviewed: Option<Instant>,
}

/// What there is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// Something happened to a connection.
    Flow(Box<Happening>),
    /// Events were lost; what they were is found out as far as the table tells.
    Lost,
}

// === impl Follower ===

impl Follower {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system gives no more sockets or the kernel has no conntrack events.
    pub fn open() -> Result<Self, ConntrackError> {
        Self::with_room(BUFFER, MOST)
    }

    /// The same with so many bytes of room for events, and for so many connections.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn with_room(buffer: usize, most: usize) -> Result<Self, ConntrackError> {
        Ok(Self {
            events: ConntrackEvents::open_all(buffer)?,
            table: ConntrackTable::open()?,
            known: Known::new(most),
            accounting: accounting(),
            review_at: Some(Instant::now()),
            reviewed: None,
        })
    }

    /// Connections that came while there was no room for them.
    pub fn unknown(&self) -> u64 {
        self.known.unknown()
    }

    /// Waits for so long at most, and tells what has happened to those that are wanted.
    ///
    /// # Errors
    /// When the table cannot be read or the socket fails.
    pub fn step(
        &mut self,
        wait: Duration,
        wants: impl Fn(&Flow) -> bool,
        mut tell: impl FnMut(News),
    ) -> Result<(), ConntrackError> {
        let now = Instant::now();
        let until = self.review_at.map_or(wait, |at| wait.min(at.saturating_duration_since(now)));
        let timeout = PollTimeout::try_from(until.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ConntrackError { action: "hear of changes of", errno }),
        }
        // First the table, at the beginning: what happens meanwhile waits as events.
        if self.review_at.is_some_and(|at| at <= Instant::now()) {
            self.review(&wants, &mut tell)?;
        }
        let known = &mut self.known;
        let mut heard_of = Vec::new();
        let heard = self.events.take_records(|event, record| {
            if wants(&record.sighting.flow) {
                heard_of.extend(known.hear(event, record, Timestamp::now()));
            }
        })?;
        for happening in heard_of {
            tell(News::Flow(Box::new(self.with_traffic(happening)?)));
        }
        if heard == Heard::Lost {
            tell(News::Lost);
            let soonest = self.reviewed.map(|at| at + RECOVERY);
            self.review_at = Some(soonest.map_or_else(Instant::now, |at| at.max(Instant::now())));
        }
        Ok(())
    }

    fn review(&mut self, wants: &impl Fn(&Flow) -> bool, tell: &mut impl FnMut(News)) -> Result<(), ConntrackError> {
        self.accounting = accounting();
        self.known.begin_review();
        let (known, at) = (&mut self.known, Timestamp::now());
        let dump = self.table.walk_records(|record| {
            if wants(&record.sighting.flow) {
                known.found(record, at).into_iter().for_each(|happening| tell(News::Flow(Box::new(happening))));
            }
        })?;
        // Who was missed by a reading that others disturbed has not ended for that.
        if !dump.partial {
            self.known.end_review(at).into_iter().for_each(|happening| tell(News::Flow(Box::new(happening))));
        }
        self.reviewed = Some(Instant::now());
        self.review_at = next_review(Instant::now(), dump.partial, tells());
        Ok(())
    }

    /// What a connection carried that is over, and is still remembered.
    fn with_traffic(&mut self, mut happening: Happening) -> Result<Happening, ConntrackError> {
        let record = &mut happening.record;
        if happening.what == What::End && record.traffic.is_none() && self.accounting {
            let entry = self.table.get(&record.sighting.flow)?;
            record.traffic = entry.and_then(|entry| entry.traffic);
        }
        Ok(happening)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_that_was_disturbed_is_not_the_last() {
        let now = Instant::now();
        assert_eq!(next_review(now, false, true), None);
        assert_eq!([next_review(now, true, true), next_review(now, false, false)], [Some(now + PACE); 2]);
    }
}

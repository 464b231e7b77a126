//! What came between two walks through the table: connections opened, and what all of them carried meanwhile.
//!
//! An entry that the first walk did not meet was opened since: the kernel remembers TCP for 120 s after its end (10 s after a reset) and UDP for
//! 30 s, so within the seconds between two walks hardly a connection comes and goes unseen, however short it is. One that is refused leaves no entry
//! behind. What was carried by an entry that has been forgotten meanwhile is not known.
//!
//! Invariants: no I/O, no clock; an entry counts once per walk, however often the walk meets it. Memory: some 80 bytes per entry. Table below; on the real
//! kernel `tests/e2e/operator.rs`.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use super::census::Age;
use super::following::Record;
use crate::status::Traffic;

/// Entries of the first walk, and those of the second as it goes on.
#[derive(Debug, Default)]
pub struct Between {
    seen: HashMap<u64, Seen>,
    hasher: RandomState,
}

/// What came of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Came {
    /// Whether it was opened since.
    pub opened: bool,
    /// What it carried since; `None` where the kernel does not account.
    pub traffic: Option<Traffic>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    age: Age,
    traffic: Option<Traffic>,
    /// Whether the second walk has met it.
    again: bool,
}

// === impl Between ===

impl Between {
    /// The first walk met this one.
    pub fn before(&mut self, record: &Record) {
        let seen = Seen { again: false, ..Seen::of(record) };
        self.seen.insert(self.key(record), seen);
    }

    /// The second walk met this one; nothing, if it did so before.
    pub fn after(&mut self, record: &Record) -> Option<Came> {
        let now = Seen::of(record);
        let before = self.seen.insert(self.key(record), now);
        if before.is_some_and(|before| before.again) {
            return None;
        }
        // Another connection that goes by the same number has carried all of it since.
        let before = before.filter(|before| !now.age.is_later_than(&before.age));
        let earlier = before.and_then(|before| before.traffic).unwrap_or_default();
        Some(Came { opened: before.is_none(), traffic: now.traffic.map(|traffic| traffic.since(&earlier)) })
    }

    fn key(&self, record: &Record) -> u64 {
        self.hasher.hash_one(record.sighting.flow.identity())
    }
}

// === impl Seen ===

impl Seen {
    fn of(record: &Record) -> Self {
        Self { age: Age::of(&record.sighting), traffic: record.traffic, again: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::census::{SEEN_REPLY, Sighting};
    use crate::conntrack::{Flow, Tuple};
    use crate::model::Protocol;

    const ESTABLISHED: u8 = 3;
    const TIME_WAIT: u8 = 7;

    fn record(client: u16, id: u32, state: u8, left: u32, packets: u64) -> Record {
        let client = ([10, 9, 0, 1], client).into();
        let flow = Flow {
            protocol: Protocol::Tcp,
            original: Tuple { source: client, destination: ([10, 96, 0, 1], 80).into(), zone: None },
            reply: Tuple { source: ([10, 1, 0, 1], 8080).into(), destination: client, zone: None },
            zone: None,
            id: Some(id),
            state: Some(state),
        };
        let traffic = Traffic { packets_in: packets, packets_out: packets, bytes_in: 0, bytes_out: 60 * packets };
        Record {
            sighting: Sighting { flow, status: SEEN_REPLY, left },
            traffic: Some(traffic),
            began: None,
            ended: None,
        }
    }

    #[test]
    fn what_was_not_there_before_was_opened() {
        let mut between = Between::default();
        for there in [record(1, 1, ESTABLISHED, 400, 5), record(2, 2, TIME_WAIT, 60, 8), record(3, 3, TIME_WAIT, 1, 9)]
        {
            between.before(&there);
            between.before(&there);
        }
        let mut came =
            |record: Record| between.after(&record).map(|came| (came.opened, came.traffic.map(|t| t.packets_in)));
        let table = [
            ("it goes on", record(1, 1, ESTABLISHED, 400, 7), Some((false, Some(2)))),
            ("a walk may meet it twice", record(1, 1, ESTABLISHED, 400, 7), None),
            ("it waits to be forgotten", record(2, 2, TIME_WAIT, 59, 8), Some((false, Some(0)))),
            ("its port and number are another's now", record(3, 3, TIME_WAIT, 120, 4), Some((true, Some(4)))),
            ("it came, and is over", record(4, 4, TIME_WAIT, 119, 6), Some((true, Some(6)))),
            ("the same port, another number", record(1, 5, ESTABLISHED, 400, 1), Some((true, Some(1)))),
            ("nobody accounts", Record { traffic: None, ..record(6, 6, ESTABLISHED, 400, 0) }, Some((true, None))),
        ];
        for (case, after, want) in table {
            assert_eq!(came(after), want, "{case}");
        }
    }
}

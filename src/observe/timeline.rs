//! What was programmed lately, for people.
//!
//! The controller pushes an [`Entry`] per batch that changed the kernel, or that the kernel refused; the newest [`KEPT`] are there to be read
//! by whoever shows them. An entry is in words already, and names [`crate::compile::LISTED`] Service ports at most, so neither keeping nor reading costs
//! anything that grows with the cluster.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

/// Entries kept.
pub const KEPT: usize = 256;

/// What a batch was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    /// Everything known at the start.
    Load,
    /// Something changed.
    Change,
    /// The tables were compared with what is desired.
    Repair,
    /// The kernel refused; it will be tried again.
    Refused,
}

/// A batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts up from 1.
    pub number: u64,
    /// When the kernel had it.
    #[serde(serialize_with = "text")]
    pub time: Timestamp,
    /// What it was about.
    pub occasion: Occasion,
    /// Services looked at.
    pub services: usize,
    /// Some of them, as `namespace/name`.
    pub named: Vec<String>,
    /// What changed, a line per Service port; safe to print.
    pub what: Vec<String>,
    /// Service ports that changed and have no line.
    pub more: usize,
    /// Objects taken in.
    pub changes: usize,
    /// Elements added and removed in the kernel.
    pub elements: usize,
    /// Transactions.
    pub transactions: usize,
    /// Time that the kernel and talking to it took, in microseconds.
    #[serde(serialize_with = "micros", rename = "kernelMicros")]
    pub kernel: Duration,
    /// Time from the first change of the batch to the kernel's answer, in microseconds.
    #[serde(serialize_with = "micros", rename = "totalMicros")]
    pub total: Duration,
}

/// The newest entries. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Timeline {
    entries: Arc<watch::Sender<VecDeque<Arc<Entry>>>>,
}

fn text<S: serde::Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

fn micros<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

// === impl Timeline ===

impl Default for Timeline {
    fn default() -> Self {
        Self { entries: Arc::new(watch::Sender::new(VecDeque::new())) }
    }
}

impl Timeline {
    /// Adds an entry, and gives it its number.
    pub fn push(&self, entry: Entry) {
        self.entries.send_modify(|entries| {
            let number = entries.back().map_or(0, |last| last.number) + 1;
            if entries.len() == KEPT {
                entries.pop_front();
            }
            entries.push_back(Arc::new(Entry { number, ..entry }));
        });
    }

    /// The entries after that number, oldest first; 0: all that are kept.
    pub fn after(&self, number: u64) -> Vec<Arc<Entry>> {
        let entries = self.entries.borrow();
        let new = entries.partition_point(|entry| entry.number <= number);
        entries.range(new..).cloned().collect()
    }

    /// The number of the newest entry; 0: there is none.
    pub fn newest(&self) -> u64 {
        self.entries.borrow().back().map_or(0, |entry| entry.number)
    }

    /// Hears of further entries.
    pub fn subscribe(&self) -> watch::Receiver<VecDeque<Arc<Entry>>> {
        self.entries.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay_and_numbers_go_on() {
        let timeline = Timeline::default();
        assert_eq!((timeline.newest(), timeline.after(0).len()), (0, 0));
        let entry = Entry {
            number: 0,
            time: Timestamp::UNIX_EPOCH,
            occasion: Occasion::Change,
            services: 1,
            named: vec!["shop/web".to_owned()],
            what: vec!["shop/web:http (TCP, IPv4): +1 endpoint 10.1.0.2:8080".to_owned()],
            more: 0,
            changes: 1,
            elements: 3,
            transactions: 1,
            kernel: Duration::from_micros(120),
            total: Duration::from_micros(340),
        };
        for _ in 0..KEPT + 10 {
            timeline.push(entry.clone());
        }
        let numbers = |after| timeline.after(after).iter().map(|entry| entry.number).collect::<Vec<_>>();
        assert_eq!(numbers(0), (11..=KEPT as u64 + 10).collect::<Vec<_>>());
        assert_eq!(numbers(264), [265, 266]);
        assert_eq!(numbers(timeline.newest()), [0u64; 0]);
        let json = serde_json::to_value(&*timeline.after(265)[0]).expect("JSON");
        assert_eq!(
            (&json["kernelMicros"], &json["occasion"], &json["time"]),
            (&120.into(), &"change".into(), &"1970-01-01T00:00:00Z".into())
        );
    }
}

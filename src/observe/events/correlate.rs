//! Which Events are new, which are repetitions, and which are too many.
//!
//! The rules are client-go's (`tools/events`): the second occurrence makes a series and is told at once, further ones are counted
//! and told every [`HEARTBEAT`]; an Event that has not recurred for [`FINISH`] is told for the last time and forgotten. Unlike there,
//! the note belongs to the identity: two different complaints about one Service are two Events.
//!
//! A node must not flood the cluster's store when ten thousand Services are odd at once, so Events about anything but our own Node
//! are limited to a burst of [`BURST`] and one in [`REFILL`] after that, and at most [`REMEMBERED`] are remembered.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event as Wire, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use super::{CONTROLLER, Event, Severity};
use crate::observe::health::Moment;

/// A running series is told this often.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(30 * 60);
/// A series that has been silent for so long is over.
pub(super) const FINISH: Duration = Duration::from_secs(6 * 60);
/// New Events at once.
pub(super) const BURST: u32 = 50;
/// One more after this time.
pub(super) const REFILL: Duration = Duration::from_secs(10);
/// Events that may recur.
pub(super) const REMEMBERED: usize = 1024;

/// Notes may have 1 KiB.
const NOTE: usize = 1024;
/// Names of objects may have 253 characters; the time takes 17 of them.
const NAME: usize = 253 - 17;
/// `reportingInstance` may have 128 characters.
const INSTANCE: usize = 128;

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Write {
    /// A new Event.
    Create(Box<Wire>),
    /// The series of an Event created earlier; the whole Event is at hand in case the server has forgotten it.
    Series(Box<Wire>),
}

/// Remembers what was told.
pub(super) struct Correlator {
    instance: String,
    series: HashMap<Event, Series>,
    tokens: f64,
    refilled: Moment,
}

struct Series {
    wire: Wire,
    count: i32,
    last: Moment,
    told: Moment,
    told_count: i32,
}

// === impl Correlator ===

impl Correlator {
    pub(super) fn new(instance: &str, now: Moment) -> Self {
        Self {
            instance: cut(instance, INSTANCE).to_owned(),
            series: HashMap::new(),
            tokens: f64::from(BURST),
            refilled: now,
        }
    }

    /// What an occurrence calls for.
    pub(super) fn take(&mut self, event: Event, now: Moment) -> Option<Write> {
        if let Some(series) = self.series.get_mut(&event) {
            series.count += 1;
            series.last = now;
            let due = series.count == 2 || since(series.told, now) >= HEARTBEAT;
            return due.then(|| series.tell(now));
        }
        if event.regarding.kind != "Node" && !self.spend(now) {
            return None;
        }
        if self.series.len() >= REMEMBERED
            && let Some(oldest) = self.series.iter().min_by_key(|(_, series)| series.last.steady)
        {
            let oldest = oldest.0.clone();
            self.series.remove(&oldest);
        }
        let wire = self.write_down(&event, now);
        self.series.insert(event, Series { wire: wire.clone(), count: 1, last: now, told: now, told_count: 1 });
        Some(Write::Create(Box::new(wire)))
    }

    /// What the passing of time calls for.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<Write> {
        let mut writes = Vec::new();
        self.series.retain(|_, series| {
            let over = since(series.last, now) >= FINISH;
            let untold = series.count > series.told_count;
            if untold && (over || since(series.told, now) >= HEARTBEAT) {
                writes.push(series.tell(now));
            }
            !over
        });
        writes
    }

    /// Whether one more new Event is within the limit.
    fn spend(&mut self, now: Moment) -> bool {
        let earned = since(self.refilled, now).as_secs_f64() / REFILL.as_secs_f64();
        self.tokens = (self.tokens + earned).min(f64::from(BURST));
        self.refilled = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    fn write_down(&self, event: &Event, now: Moment) -> Wire {
        let regarding = &event.regarding;
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let namespace = some(&regarding.namespace).unwrap_or_else(|| "default".to_owned());
        let name = cut(&regarding.name, NAME).trim_end_matches(['.', '-']);
        let severity = match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        Wire {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{:x}", now.wall.as_nanosecond())),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            event_time: Some(micro(now.wall)),
            reporting_controller: some(CONTROLLER),
            reporting_instance: some(&self.instance),
            action: some(event.action),
            reason: some(event.reason),
            regarding: Some(ObjectReference {
                api_version: some(regarding.api_version),
                kind: some(regarding.kind),
                namespace: some(&regarding.namespace),
                name: some(&regarding.name),
                ..ObjectReference::default()
            }),
            note: some(cut(&event.note, NOTE)),
            type_: some(severity),
            ..Wire::default()
        }
    }
}

// === impl Series ===

impl Series {
    fn tell(&mut self, now: Moment) -> Write {
        (self.told, self.told_count) = (now, self.count);
        self.wire.series = Some(EventSeries { count: self.count, last_observed_time: micro(self.last.wall) });
        Write::Series(Box::new(self.wire.clone()))
    }
}

fn since(earlier: Moment, later: Moment) -> Duration {
    later.steady.saturating_duration_since(earlier.steady)
}

fn micro(time: Timestamp) -> MicroTime {
    MicroTime(time)
}

/// The beginning of a text, at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceKey;

    fn event(service: &str, note: &str) -> Event {
        Event::service_health_failed(&ServiceKey::new("shop", service), note.to_owned())
    }

    /// `create name note` or `series count`.
    fn brief(write: Option<Write>) -> Option<String> {
        Some(match write? {
            Write::Create(wire) => format!("create {}", wire.note.unwrap_or_default()),
            Write::Series(wire) => format!("series {}", wire.series.expect("a series").count),
        })
    }

    #[test]
    fn repetitions_become_a_series() {
        let begin = Moment::now();
        let mut correlator = Correlator::new("kube-proxy-n1", begin);
        let mut take = |minutes: u64, note: &str| {
            brief(correlator.take(event("web", note), begin.after(Duration::from_secs(60 * minutes))))
        };
        assert_eq!(take(0, "a").as_deref(), Some("create a"));
        assert_eq!(take(0, "b").as_deref(), Some("create b"), "another complaint is another Event");
        assert_eq!(take(1, "a").as_deref(), Some("series 2"));
        for minute in 2..31 {
            assert_eq!(take(minute, "a"), None, "{minute}");
        }
        assert_eq!(take(31, "a").as_deref(), Some("series 32"), "the heartbeat");
        assert_eq!(take(32, "a"), None);
        let at = |minutes: u64| begin.after(Duration::from_secs(60 * minutes));
        assert_eq!(correlator.tick(at(33)).len(), 0);
        let last = correlator.tick(at(38)).pop();
        assert_eq!(brief(last).as_deref(), Some("series 33"), "the end");
        assert!(correlator.series.is_empty());
        assert_eq!(brief(correlator.take(event("web", "a"), at(39))).as_deref(), Some("create a"));
    }

    #[test]
    fn a_flood_is_limited_and_the_node_is_heard() {
        let begin = Moment::now();
        let mut correlator = Correlator::new("kube-proxy-n1", begin);
        let told = (0..5000).filter(|n| correlator.take(event(&format!("s{n}"), ""), begin).is_some()).count();
        assert_eq!(told, BURST as usize);
        assert!(correlator.take(Event::starting("n1"), begin).is_some());
        let later = begin.after(REFILL);
        assert!(correlator.take(event("later", ""), later).is_some());
        assert!(correlator.take(event("too-early", ""), later).is_none());
        for n in 0..3000 {
            correlator.take(event(&format!("t{n}"), ""), begin.after(REFILL * n));
        }
        assert!(correlator.series.len() <= REMEMBERED);
    }

    #[test]
    fn lengths_are_within_the_limits_of_the_api() {
        let now = Moment::now();
        let correlator = Correlator::new(&"h".repeat(300), now);
        let wire = correlator.write_down(&Event::ipvs_deprecated(&"n".repeat(253), "ü".repeat(2000)), now);
        assert!(wire.metadata.name.is_some_and(|name| name.len() <= 253));
        assert!(wire.note.is_some_and(|note| note.len() == 1024));
        assert!(wire.reporting_instance.is_some_and(|instance| instance.len() == 128));
    }
}

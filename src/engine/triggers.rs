//! When the changes happened that wait to be programmed: what network_programming_duration is measured from.
//!
//! The EndpointSlice controller annotates a slice with the time of the pod or Service change that made it write the slice. The
//! rules are kube-proxy's: only a slice that changes something counts; a missing time, one that is no time, and one from before we
//! started are ignored; a slice that is removed takes the waiting times of its Service along, because its annotation tells
//! of its last change and not of its removal. Times are handed out with the next compilation, once: those of a failed transaction
//! are lost.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::model::{Family, Problem, ServiceKey, SliceEffect};
use crate::source::{Change, Kind, Object, ObjectKey};

/// The annotation, RFC 3339 with up to nine digits of a second.
pub const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Times that wait.
#[derive(Debug, Default)]
pub(super) struct Triggers {
    /// Nothing is measured without it.
    since: Option<Timestamp>,
    waiting: BTreeMap<(Family, ServiceKey), Vec<Timestamp>>,
}

/// What a slice says about its last change.
#[derive(Debug)]
pub(super) struct Trigger {
    slice: ObjectKey,
    annotation: String,
}

/// The annotation of a slice that comes in.
pub(super) fn of(change: &Change) -> Option<Trigger> {
    let Change::Apply(object @ Object::EndpointSlice(slice)) = change else { return None };
    let annotation = slice.metadata.annotations.as_ref()?.get(ANNOTATION)?.clone();
    Some(Trigger { slice: object.key(), annotation })
}

// === impl Triggers ===

impl Triggers {
    /// Measures changes from this time on.
    pub(super) fn measure_since(&mut self, since: Timestamp) {
        self.since = Some(since);
    }

    /// Whether anything is measured at all.
    pub(super) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// A slice changed; returns what is wrong with its annotation.
    pub(super) fn note(&mut self, change: SliceEffect, trigger: Option<Trigger>) -> Option<Problem> {
        let slot = (change.family, change.service);
        if change.removed {
            self.waiting.remove(&slot);
            return None;
        }
        let Trigger { slice, annotation } = trigger?;
        match annotation.parse::<Timestamp>() {
            Ok(time) => {
                if self.since.is_some_and(|since| time > since) {
                    self.waiting.entry(slot).or_default().push(time);
                }
                None
            }
            Err(_) => Some(Problem {
                kind: Kind::EndpointSlice,
                object: slice,
                field: format!("metadata.annotations[{ANNOTATION}]"),
                value: annotation,
                reason: "not a time as in RFC 3339; how long this change takes is not measured".to_owned(),
            }),
        }
    }

    /// Everything that waits, which it does no longer.
    pub(super) fn take(&mut self) -> Vec<(Family, Timestamp)> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().flat_map(|((family, _), times)| times.into_iter().map(move |time| (family, time))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::engine::Engine;
    use crate::model::{Families, Family};
    use crate::schedule::Scheduler;
    use crate::source::{Change, Kind, Object, ObjectKey};

    fn slice(name: &str, family: Family, last: u8, annotation: Option<&str>) -> Change {
        let address = if family == Family::V4 { format!("10.1.0.{last}") } else { format!("fd00::{last}") };
        let mut value = json!({
            "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": family.to_string(), "ports": [{"name": "", "port": 80}], "endpoints": [{"addresses": [address]}],
        });
        if let Some(time) = annotation {
            value["metadata"]["annotations"] = json!({ super::ANNOTATION: time });
        }
        Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
    }

    fn delete(name: &str) -> Change {
        Change::Delete(Kind::EndpointSlice, ObjectKey { namespace: "ns".into(), name: name.into() })
    }

    fn engine() -> Engine {
        let mut engine = Engine::new("n1", Scheduler::Random);
        engine.measure_since("2026-01-01T00:00:00Z".parse().expect("a time"));
        engine
    }

    const LATER: Option<&str> = Some("2026-01-01T00:00:01.123456789Z");

    #[test]
    fn which_times_count() {
        for (annotation, times, problems) in [
            (LATER, 1, 0),
            (Some("2026-01-01T01:00:01+01:00"), 1, 0),
            (None, 0, 0),
            (Some("2025-12-31T23:59:59.999999999Z"), 0, 0),
            (Some("2026-01-01T00:00:00Z"), 0, 0),
            (Some("yesterday"), 0, 1),
            (Some(""), 0, 1),
        ] {
            let mut engine = engine();
            engine.take(slice("a", Family::V4, 1, annotation));
            let outcome = engine.compile();
            assert_eq!((outcome.triggers.len(), outcome.problems.len()), (times, problems), "{annotation:?}");
            assert_eq!(outcome.touched, Families::from(Family::V4));
        }
    }

    #[test]
    fn only_changes_count_each_once_and_a_removal_discards() {
        let mut engine = engine();
        engine.take(slice("a", Family::V4, 1, LATER));
        engine.take(slice("a", Family::V4, 1, LATER));
        engine.take(slice("a", Family::V4, 2, LATER));
        engine.take(slice("b", Family::V6, 1, LATER));
        let families: Vec<_> = engine.compile().triggers.into_iter().map(|(family, _)| family).collect();
        assert_eq!(families, [Family::V4, Family::V4, Family::V6]);
        assert_eq!(engine.compile().triggers, []);

        engine.take(slice("a", Family::V4, 3, LATER));
        engine.take(slice("b", Family::V6, 2, LATER));
        engine.take(delete("a"));
        let outcome = engine.compile();
        assert_eq!(outcome.triggers.len(), 1, "IPv6 has its own");
        assert_eq!(outcome.touched, Families::ALL);
        engine.take(delete("a"));
        assert_eq!(engine.compile().touched, Families::default());
    }

    #[test]
    fn nothing_is_measured_unless_asked_for() {
        let mut engine = Engine::new("n1", Scheduler::Random);
        engine.take(slice("a", Family::V4, 1, Some("nonsense")));
        let outcome = engine.compile();
        assert_eq!((outcome.triggers.len(), outcome.problems.len()), (0, 0));
    }
}

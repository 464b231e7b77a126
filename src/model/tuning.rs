//! What annotations say about the weights of endpoints and the ends of their connections, parsed once into typed values.
//!
//! Vocabulary:
//! - a [`Pattern`] names endpoints: by pod name, node, zone or address;
//! - a *weight* is an endpoint's share relative to its neighbours, 0..65535; 0 *drains*: no new connections, and none is ended.
//!   [`Weights`] is the Service's list; an EndpointSlice may carry one weight for all its endpoints;
//! - a [`Split`] divides connections between *groups* of endpoints, whatever the number of their endpoints;
//! - during [`SlowStart`] an endpoint that became ready grows from a part of its weight to all of it;
//! - *drain* is the time after which the connections of an endpoint that leaves are ended.
//!
//! | annotation | on | value |
//! |---|---|---|
//! | [`WEIGHTS_ANNOTATION`] | Service | `PATTERN=WEIGHT`, comma or newline separated; the first match counts, 1 if none does |
//! | [`WEIGHT_ANNOTATION`] | EndpointSlice | `WEIGHT`, where the Service's list says nothing |
//! | [`SPLIT_ANNOTATION`] | Service | `PATTERN=SHARE%`, comma or newline separated; the first match counts |
//! | [`SLOW_START_ANNOTATION`] | Service | `TIME[,aggression=NUMBER][,min=PERCENT%]` |
//! | [`DRAIN_ANNOTATION`] | Service | `TIME` |
//! | [`DATAPATH_ANNOTATION`] | Service | `kernel` or `userspace` |
//! | [`PROXY_PROTOCOL_ANNOTATION`] | Service | `v1` or `v2` |
//! | [`CLIENT_IP_ANNOTATION`] | Service | `preserve` |
//! | [`CONNECT_TIMEOUT_ANNOTATION`], [`IDLE_TIMEOUT_ANNOTATION`] | Service | `TIME`, not zero |
//! | [`MAX_CONNECTIONS_ANNOTATION`] | Service | a number, 1 or more |
//!
//! Invariants: parsing never fails as a whole, and what it leaves out is a [`Problem`](super::Problem) that names annotation and part;
//! lists are bounded ([`MAX_ENTRIES`]), and so is what is said about one annotation. What weights mean for a set of endpoints is
//! decided in [`crate::policy`]. Tables in each file here.

mod forwarding;
mod index;
mod pattern;
mod slow_start;
mod split;
mod weights;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::SignedDuration;

pub use forwarding::{ClientIp, Datapath, Forwarding, ProxyProtocol};
pub use pattern::Pattern;
pub use slow_start::SlowStart;
pub use split::{Group, Split};
pub use weights::Weights;

use super::problem::Report;

/// Weights of endpoints, on a Service.
pub const WEIGHTS_ANNOTATION: &str = "pointsman.dev/weights";

/// The weight of all endpoints of an EndpointSlice.
pub const WEIGHT_ANNOTATION: &str = "pointsman.dev/weight";

/// Shares of groups of endpoints, on a Service.
pub const SPLIT_ANNOTATION: &str = "pointsman.dev/split";

/// How endpoints that became ready grow into their weight, on a Service.
pub const SLOW_START_ANNOTATION: &str = "pointsman.dev/slow-start";

/// When the connections of endpoints that leave are ended, on a Service.
pub const DRAIN_ANNOTATION: &str = "pointsman.dev/drain";

/// Who carries a Service: the kernel or the userspace forwarder.
pub const DATAPATH_ANNOTATION: &str = "pointsman.dev/datapath";

/// Which version of the PROXY protocol endpoints are spoken to in.
pub const PROXY_PROTOCOL_ANNOTATION: &str = "pointsman.dev/proxy-protocol";

/// Whose address endpoints see behind the forwarder.
pub const CLIENT_IP_ANNOTATION: &str = "pointsman.dev/client-ip";

/// How long the forwarder tries to connect to an endpoint.
pub const CONNECT_TIMEOUT_ANNOTATION: &str = "pointsman.dev/connect-timeout";

/// How long a connection through the forwarder may be silent.
pub const IDLE_TIMEOUT_ANNOTATION: &str = "pointsman.dev/idle-timeout";

/// How many connections the forwarder takes for a Service port.
pub const MAX_CONNECTIONS_ANNOTATION: &str = "pointsman.dev/max-connections";

/// Entries of one list that are used; what follows is not.
pub const MAX_ENTRIES: usize = 1_000;

/// The longest time that slow start or drain can take: a day. It keeps times within what timers take, and nobody waits longer.
const LONGEST: Duration = Duration::from_secs(86_400);

/// What is said about one annotation, at most; then how much more there would be.
const MAX_REMARKS: usize = 8;

/// How much of a value is repeated in a problem, in characters.
const QUOTED: usize = 80;

/// All that a Service's annotations ask for beyond a scheduler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Weights by pattern.
    pub weights: Weights,
    /// Shares of groups.
    pub split: Option<Split>,
    /// How endpoints start.
    pub slow_start: Option<SlowStart>,
    /// How long connections outlive the departure of their endpoint; `None`: TCP as long as both ends like.
    pub drain: Option<Duration>,
    /// What is asked of the userspace forwarder.
    pub forwarding: Forwarding,
}

/// What is wrong with one annotation, within limits.
struct Remarks<'a> {
    report: &'a mut Report,
    annotation: &'static str,
    made: usize,
    left_out: usize,
}

// === impl Tuning ===

impl Tuning {
    /// Reads a Service's annotations. All that ask for nothing, which is nearly all of them, share one: it is a kilobyte.
    pub(super) fn parse(annotations: Option<&BTreeMap<String, String>>, report: &mut Report) -> Arc<Self> {
        static NOTHING: LazyLock<Arc<Tuning>> = LazyLock::new(Arc::default);
        let Some(annotations) = annotations else { return NOTHING.clone() };
        let mut tuning = Self::default();
        let mut read = |annotation: &'static str, parse: &mut dyn FnMut(&str, &mut Remarks<'_>)| {
            let Some(text) = annotations.get(annotation) else { return };
            let mut remarks = Remarks { report, annotation, made: 0, left_out: 0 };
            match text.trim() {
                "" => remarks.add(text, "empty; ignored"),
                text => parse(text, &mut remarks),
            }
            remarks.finish();
        };
        read(WEIGHTS_ANNOTATION, &mut |text, remarks| tuning.weights = Weights::parse(text, remarks));
        read(SPLIT_ANNOTATION, &mut |text, remarks| tuning.split = Split::parse(text, remarks));
        read(SLOW_START_ANNOTATION, &mut |text, remarks| tuning.slow_start = SlowStart::parse(text, remarks));
        read(DRAIN_ANNOTATION, &mut |text, remarks| {
            tuning.drain = time(text, remarks, "connections are not ended");
            if tuning.drain.is_some_and(|time| time.is_zero()) {
                remarks.add(text, "no time at all; connections are ended as soon as their endpoint terminates");
            }
        });
        let forwarding = &mut tuning.forwarding;
        read(DATAPATH_ANNOTATION, &mut |text, remarks| forwarding.datapath = Datapath::parse(text, remarks));
        read(PROXY_PROTOCOL_ANNOTATION, &mut |text, remarks| {
            forwarding.proxy_protocol = ProxyProtocol::parse(text, remarks);
        });
        read(CLIENT_IP_ANNOTATION, &mut |text, remarks| forwarding.client_ip = ClientIp::parse(text, remarks));
        read(CONNECT_TIMEOUT_ANNOTATION, &mut |text, remarks| {
            forwarding.connect_timeout = Forwarding::timeout(text, remarks);
        });
        read(IDLE_TIMEOUT_ANNOTATION, &mut |text, remarks| {
            forwarding.idle_timeout = Forwarding::timeout(text, remarks);
        });
        read(MAX_CONNECTIONS_ANNOTATION, &mut |text, remarks| {
            forwarding.max_connections = Forwarding::limit(text, remarks);
        });
        if tuning == **NOTHING { NOTHING.clone() } else { tuning.into() }
    }

    /// Whether it can make endpoints differ.
    pub fn is_weighted(&self) -> bool {
        !self.weights.is_empty() || self.split.is_some() || self.slow_start.is_some()
    }
}

/// The weight that an EndpointSlice gives to its endpoints.
pub(super) fn slice_weight(annotations: Option<&BTreeMap<String, String>>, report: &mut Report) -> Option<u16> {
    let text = annotations?.get(WEIGHT_ANNOTATION)?;
    let mut remarks = Remarks { report, annotation: WEIGHT_ANNOTATION, made: 0, left_out: 0 };
    weights::weight(text.trim(), text, &mut remarks, "the weight is 1")
}

/// The entries of a list: what is between commas and newlines. Empty ones are no mistake: lists end with a comma or a newline.
fn entries<'a>(text: &'a str, remarks: &mut Remarks<'_>) -> Vec<&'a str> {
    let mut all = text.split([',', '\n']).map(str::trim).filter(|entry| !entry.is_empty());
    let used: Vec<_> = all.by_ref().take(MAX_ENTRIES).collect();
    if let Some(first_unused) = all.next() {
        remarks.add(first_unused, format!("beyond {MAX_ENTRIES} entries; it and what follows is not used"));
    }
    used
}

/// Reads a list of `PATTERN=VALUE`, which `form` names: hands out each usable pattern with its value and the entry it is from, each pattern
/// once.
fn assignments<'a>(
    text: &'a str,
    form: &str,
    remarks: &mut Remarks<'_>,
    mut each: impl FnMut(Pattern, &'a str, &'a str, &mut Remarks<'_>),
) {
    let mut seen = HashSet::new();
    for entry in entries(text, remarks) {
        let Some((pattern, value)) = entry.rsplit_once('=') else {
            remarks.add(entry, format!("not {form}; skipped"));
            continue;
        };
        match Pattern::parse(pattern.trim()) {
            Err(why) => remarks.add(entry, format!("{why}; skipped")),
            Ok(pattern) if !seen.insert(pattern.text().to_owned()) => {
                remarks.add(entry, "a second entry for this pattern; the first one counts");
            }
            Ok(pattern) => each(pattern, value.trim(), entry, remarks),
        }
    }
}

/// A time as in Kubernetes (`90s`, `1m30s`, `500ms`); a bare number is seconds. `otherwise` is what happens if it is none.
fn time(text: &str, remarks: &mut Remarks<'_>, otherwise: &str) -> Option<Duration> {
    let seconds = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok().map(Duration::from_secs));
    let parsed = seconds.unwrap_or_else(|| Duration::try_from(text.parse::<SignedDuration>().ok()?).ok());
    match parsed {
        None => remarks.add(text, format!("not a time such as 30s or 1m30s; {otherwise}")),
        Some(time) if time > LONGEST => remarks.add(text, "longer than 24h; taken as 24h"),
        Some(_) => {}
    }
    parsed.map(|time| time.min(LONGEST))
}

/// A percentage in millionths of the whole, 0..1,000,000; more decimals than that make the smallest share there is. Without `%`, and
/// beyond 100, it is taken for what is nearest.
fn percentage(text: &str, entry: &str, remarks: &mut Remarks<'_>) -> Option<u32> {
    const PER_CENT: u64 = 10_000;
    let number = text.strip_suffix('%').map(str::trim_end);
    if number.is_none() {
        remarks.add(entry, "a share without %; taken as per cent");
    }
    let number = number.unwrap_or(text);
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && decimals.is_empty()) || !digits(whole) || !digits(decimals) {
        return None;
    }
    let whole = whole.trim_start_matches('0').get(..6).unwrap_or(whole).parse::<u64>().unwrap_or(0);
    let padded: String = decimals.chars().chain("0000".chars()).take(4).collect();
    let mut share = whole * PER_CENT + padded.parse::<u64>().unwrap_or(0);
    if share == 0 && decimals.bytes().any(|byte| byte != b'0') {
        share = 1;
    }
    if share > 100 * PER_CENT {
        remarks.add(entry, "more than 100%; taken as 100%");
    }
    u32::try_from(share.min(100 * PER_CENT)).ok()
}

/// The beginning of a text.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

// === impl Remarks ===

impl Remarks<'_> {
    fn add(&mut self, part: &str, reason: impl Into<String>) {
        if self.made == MAX_REMARKS {
            self.left_out += 1;
            return;
        }
        self.made += 1;
        self.report.add(format!("metadata.annotations[{}]", self.annotation), quoted(part), reason);
    }

    fn finish(self) {
        if self.left_out > 0 {
            let reason = format!("so many more parts of it are not as they should be, as those named ({MAX_REMARKS})");
            self.report.add(format!("metadata.annotations[{}]", self.annotation), self.left_out, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Kind, ObjectKey};

    /// What comes of annotations, and what is said.
    pub(super) fn parse(annotations: &[(&str, &str)]) -> (Tuning, Vec<String>) {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut report = Report::new(Kind::Service, ObjectKey { namespace: "shop".into(), name: "web".into() });
        let tuning = Tuning::parse(Some(&annotations), &mut report);
        let said =
            |problem: &crate::model::Problem| format!("{}: {:?}: {}", problem.field, problem.value, problem.reason);
        (Arc::unwrap_or_clone(tuning), report.problems.iter().map(said).collect())
    }

    #[test]
    fn times() {
        let table = [
            ("30s", Some(30_000), ""),
            (" 1m30s ", Some(90_000), ""),
            ("500ms", Some(500), ""),
            ("45", Some(45_000), ""),
            ("0s", Some(0), "\"0s\": no time at all; connections are ended as soon as their endpoint terminates"),
            ("48h", Some(86_400_000), "\"48h\": longer than 24h; taken as 24h"),
            (
                "99999999999999999999",
                None,
                "\"99999999999999999999\": not a time such as 30s or 1m30s; connections are not ended",
            ),
            ("-5s", None, "\"-5s\": not a time such as 30s or 1m30s; connections are not ended"),
            ("soon", None, "\"soon\": not a time such as 30s or 1m30s; connections are not ended"),
            ("", None, "\"\": empty; ignored"),
            (" \n", None, "\" \\n\": empty; ignored"),
        ];
        for (text, millis, said) in table {
            let (tuning, problems) = parse(&[(DRAIN_ANNOTATION, text)]);
            assert_eq!(tuning.drain, millis.map(Duration::from_millis), "{text:?}");
            let prefix = format!("metadata.annotations[{DRAIN_ANNOTATION}]: ");
            let problems: Vec<_> = problems.iter().map(|problem| problem.trim_start_matches(&prefix)).collect();
            assert_eq!(problems.join(""), said, "{text:?}");
        }
    }

    #[test]
    fn lists_are_bounded_and_so_is_what_is_said_about_them() {
        let list = |count: usize, weight: &str| {
            (0..count).map(|number| format!("web-{number}={weight}")).collect::<Vec<_>>().join("\n")
        };
        let (tuning, problems) = parse(&[(WEIGHTS_ANNOTATION, &list(1_000, "2"))]);
        assert_eq!((tuning.weights.patterns().count(), problems.len()), (1_000, 0));
        let (tuning, problems) = parse(&[(WEIGHTS_ANNOTATION, &list(5_000, "2"))]);
        assert_eq!(tuning.weights.patterns().count(), 1_000);
        assert_eq!(
            problems,
            [
                r#"metadata.annotations[pointsman.dev/weights]: "web-1000=2": beyond 1000 entries; it and what follows is not used"#
            ]
        );
        let (tuning, problems) = parse(&[(WEIGHTS_ANNOTATION, &list(500, "heavy"))]);
        assert_eq!((tuning.weights.patterns().count(), problems.len()), (0, MAX_REMARKS + 1));
        assert!(problems[MAX_REMARKS].contains("\"492\""), "{problems:?}");
        let (_, problems) = parse(&[(WEIGHTS_ANNOTATION, &"x".repeat(200_000))]);
        assert!(problems.len() == 1 && problems[0].len() < 300, "{problems:?}");
    }

    #[test]
    fn nothing_asked_for_is_nothing_said() {
        assert_eq!(parse(&[("pointsman.dev/scheduler", "rr"), ("other", "x")]), (Tuning::default(), Vec::new()));
        assert!(!Tuning::default().is_weighted());
    }
}

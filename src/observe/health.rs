//! Whether the proxy does its work: the judgement, and the port where it can be asked for.
//!
//! The question is not whether the kernel's tables are right but whether we keep up. A request to synchronise a family stamps the
//! family as waiting, unless it waits already; success clears the stamp. A family that has waited for twice the sync period is
//! unhealthy, and so is the proxy (`/livez`). `/healthz` asks for more: that load balancers should send traffic here at all,
//! which ends before the node does ([`crate::model::Node::eligible`], KEP-3836).
//!
//! `/readyz` is ours and asks something else: whether everything known at the start is programmed.
//!
//! The judgement ([`ProxyHealth`]) is a value and its functions take the time as a parameter; the controller changes it through a
//! [`HealthReporter`], servers look at it through a `watch` channel.
//!
//! Invariants: a process in which nothing ever happens is healthy from the loop's start on; periodic runs and retries neither
//! make nor mend anything; time is measured on the monotonic clock, so setting the clock changes no judgement.
//!
//! Proven by `health/tests.rs`: tables with a clock of their own, and real requests.

use std::time::{Duration, Instant};

use hyper::{Request, StatusCode, body::Bytes};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use super::http::{Answer, Handler, answer, at_once, not_found, text};
use super::metrics::{self, Probe};
use crate::model::Family;

/// What Go prints for a time that was never set.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A point in time by both clocks: one to show, one to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the time of day is.
    pub wall: Timestamp,
    /// What durations are taken from.
    pub steady: Instant,
}

/// How each family fares, and the node.
#[derive(Clone, Debug)]
pub struct ProxyHealth {
    /// How long a family may wait.
    patience: Duration,
    families: [FamilyHealth; 2],
    eligible: bool,
    /// Everything known at the start is programmed.
    loaded: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct FamilyHealth {
    /// Last success, or the start of the loop.
    updated: Option<Moment>,
    /// The oldest request that has not been served.
    waiting_since: Option<Moment>,
}

/// The judgement at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Every family keeps up.
    pub healthy: bool,
    /// Load balancers may send traffic to this node.
    pub eligible: bool,
    now: Timestamp,
    last_updated: Option<Timestamp>,
    status: [Option<FamilyStatus>; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FamilyStatus {
    last_updated: Timestamp,
    healthy: bool,
}

/// Changes the health. Cheap to clone; never blocks.
#[derive(Clone, Debug)]
pub struct HealthReporter {
    state: watch::Sender<ProxyHealth>,
}

/// The body of an answer, in the order of its keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<StatusBody>,
}

#[derive(Serialize)]
struct StatusBody {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

/// Answers `/healthz`, `/livez` and `/readyz`.
pub(super) fn handler(state: watch::Receiver<ProxyHealth>) -> Handler {
    at_once(move |request: &Request<Bytes>| {
        let probe = match request.uri().path() {
            "/healthz" => Probe::Healthz,
            "/livez" => Probe::Livez,
            "/readyz" => return ready(state.borrow().loaded()),
            _ => return not_found(),
        };
        let verdict = state.borrow().verdict(Moment::now());
        let answer = verdict.answer(probe);
        metrics::probed(probe, answer.status().as_u16());
        answer
    })
}

/// Whether the first load is programmed: what a rollout has to wait for. Kube-proxy has no such question; `/healthz` and `/livez` keep
/// its meanings, by which a proxy that has not heard of a single Service yet is well.
fn ready(loaded: bool) -> Answer {
    match loaded {
        true => text(StatusCode::OK, "ok"),
        false => text(StatusCode::SERVICE_UNAVAILABLE, "the first load is not programmed yet\n"),
    }
}

// === impl Moment ===

impl Moment {
    /// Now.
    pub fn now() -> Self {
        Self { wall: Timestamp::now(), steady: Instant::now() }
    }

    /// So much later.
    pub fn after(self, duration: Duration) -> Self {
        Self { wall: self.wall + duration, steady: self.steady + duration }
    }
}

// === impl ProxyHealth ===

impl ProxyHealth {
    /// Nothing has been reported. A family that waits for twice `sync_period` is unhealthy.
    pub fn new(sync_period: Duration, eligible: bool) -> Self {
        Self { patience: sync_period * 2, families: Default::default(), eligible, loaded: false }
    }

    /// A synchronisation of the family is asked for.
    pub fn queued(&mut self, family: Family, now: Moment) {
        self.families[index(family)].waiting_since.get_or_insert(now);
    }

    /// The family was synchronised, or its loop starts.
    pub fn updated(&mut self, family: Family, now: Moment) {
        self.families[index(family)] = FamilyHealth { updated: Some(now), waiting_since: None };
    }

    /// Whether load balancers may send traffic to this node.
    pub fn set_eligible(&mut self, eligible: bool) {
        self.eligible = eligible;
    }

    /// Everything known at the start is programmed.
    pub fn set_loaded(&mut self) {
        self.loaded = true;
    }

    /// Whether it is. Never taken back: what is programmed stays, whatever happens later.
    pub fn loaded(&self) -> bool {
        self.loaded
    }

    /// The judgement at this moment.
    pub fn verdict(&self, now: Moment) -> Verdict {
        let keeps_up = |family: &FamilyHealth| {
            family.waiting_since.is_none_or(|since| now.steady.saturating_duration_since(since.steady) < self.patience)
        };
        let status = self.families.each_ref().map(|family| {
            family.updated.map(|updated| FamilyStatus { last_updated: updated.wall, healthy: keeps_up(family) })
        });
        Verdict {
            healthy: self.families.iter().all(keeps_up),
            eligible: self.eligible,
            now: now.wall,
            last_updated: status.iter().flatten().map(|status| status.last_updated).max(),
            status,
        }
    }
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

// === impl Verdict ===

impl Verdict {
    /// The answer to a probe.
    pub(super) fn answer(&self, probe: Probe) -> Answer {
        let node_eligible = (probe == Probe::Healthz).then_some(self.eligible);
        let good = self.healthy && node_eligible.unwrap_or(true);
        // Once the proxy was restamped by every run of its loop, so that a healthy one was always up to date; that is what
        // clients expect to see.
        let last_updated = if good { Some(self.now) } else { self.last_updated };
        let family = |status: FamilyStatus| FamilyBody {
            last_updated: status.last_updated.to_string(),
            healthy: status.healthy,
        };
        let [v4, v6] = self.status.map(|status| status.map(family));
        let body = Body {
            last_updated: last_updated.map_or_else(|| NEVER.to_owned(), |time| time.to_string()),
            current_time: self.now.to_string(),
            node_eligible,
            healthy: self.healthy,
            status: (v4.is_some() || v6.is_some()).then_some(StatusBody { v4, v6 }),
        };
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let json = serde_json::to_string(&body).expect("strings and booleans can be written");
        answer(status, "application/json", json)
    }
}

// === impl HealthReporter ===

impl HealthReporter {
    /// Begins with this.
    pub fn new(health: ProxyHealth) -> Self {
        Self { state: watch::Sender::new(health) }
    }

    /// A synchronisation of these families is asked for.
    pub fn queued(&self, families: impl IntoIterator<Item = Family>, now: Moment) {
        self.state.send_modify(|health| families.into_iter().for_each(|family| health.queued(family, now)));
    }

    /// These families were synchronised, or their loop starts.
    pub fn updated(&self, families: impl IntoIterator<Item = Family>, now: Moment) {
        self.state.send_modify(|health| families.into_iter().for_each(|family| health.updated(family, now)));
    }

    /// Whether load balancers may send traffic to this node.
    pub fn set_eligible(&self, eligible: bool) {
        self.state.send_modify(|health| health.set_eligible(eligible));
    }

    /// Everything known at the start is programmed.
    pub fn loaded(&self) {
        self.state.send_modify(ProxyHealth::set_loaded);
    }

    /// To look at it.
    pub(super) fn watch(&self) -> watch::Receiver<ProxyHealth> {
        self.state.subscribe()
    }
}

#[cfg(test)]
mod tests;

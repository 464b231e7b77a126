//! `explain --probe`: a real connection, from the network namespace of this command, and who answered it by connection tracking.
//!
//! One TCP connection per frontend that was explained, opened and closed at once: nothing is sent. Of a node port, to one of this host's addresses. What
//! came of it is set beside what was explained; a difference is what this is for.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::conntrack::Flow;
use crate::kernel::addresses::interface_addresses;
use crate::kernel::conntrack::list_flows;
use crate::model::Protocol;
use crate::status::explain::{Answer, Outcome};

/// How long a connection may take. A SYN that is lost is sent again after a second.
const PATIENCE: Duration = Duration::from_secs(3);

/// What came of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProbeView {
    /// Where to.
    pub(super) target: SocketAddr,
    /// From where; left out if it did not come about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<SocketAddr>,
    /// Who answered, as connection tracking has it; left out if it is not known, or was nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<SocketAddr>,
    /// That endpoint's pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pod: Option<String>,
    /// `connected`, `refused`, `silent` or `failed`.
    pub(super) result: String,
    /// What the system said, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// How long it took, in milliseconds.
    pub(super) milliseconds: f64,
    /// Whether that is what was explained. Who asks is this host itself, whatever `--from` says: where that makes a difference it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) as_explained: Option<bool>,
}

/// Connects to what an answer is about; `None` where that is not TCP, or nothing.
pub(super) fn probe(answer: &Answer) -> Option<ProbeView> {
    let frontend = answer.frontend.as_ref()?;
    if answer.protocol.as_deref() != Some("TCP") || frontend.held_by.is_some() {
        return None;
    }
    let v6 = answer.endpoints.iter().any(|one| one.address.is_ipv6());
    let address = frontend.address.or_else(|| host_address(v6))?;
    let target = SocketAddr::new(address, frontend.port);
    let begin = Instant::now();
    let connected = TcpStream::connect_timeout(&target, PATIENCE);
    let milliseconds = begin.elapsed().as_secs_f64() * 1e3;
    let mut view = ProbeView {
        target,
        from: None,
        endpoint: None,
        pod: None,
        result: "connected".to_owned(),
        error: None,
        milliseconds,
        as_explained: None,
    };
    match connected {
        Ok(stream) => {
            view.from = stream.local_addr().ok();
            view.endpoint = view.from.and_then(|from| answered_by(from, target));
            let known = answer.endpoints.iter().find(|one| Some(one.socket()) == view.endpoint);
            view.pod = known.and_then(|one| one.pod.clone());
        }
        Err(error) => {
            view.result = match error.kind() {
                ErrorKind::ConnectionRefused => "refused",
                ErrorKind::TimedOut | ErrorKind::WouldBlock => "silent",
                _ => "failed",
            }
            .to_owned();
            view.error = (view.result == "failed").then(|| error.to_string());
        }
    }
    view.as_explained = judge(answer, &view);
    Some(view)
}

fn judge(answer: &Answer, seen: &ProbeView) -> Option<bool> {
    // We are the node; others are told something else here.
    if answer.otherwise.is_some() || !answer.source_ranges.is_empty() {
        return None;
    }
    Some(match (answer.outcome, &*seen.result) {
        // An endpoint may refuse by itself, and a pod may be gone without anybody knowing.
        (Outcome::Endpoint, "connected") => {
            let mut candidates = answer.candidates().map(|one| one.socket());
            seen.endpoint.is_none_or(|endpoint| candidates.any(|one| one == endpoint))
        }
        (Outcome::Forwarder, "connected") | (Outcome::Refused, "refused") | (Outcome::Dropped, "silent") => true,
        (Outcome::Untouched, _) => return None,
        _ => false,
    })
}

/// Who answers a connection, as connection tracking has it.
fn answered_by(from: SocketAddr, target: SocketAddr) -> Option<SocketAddr> {
    let is_ours = |flow: &Flow| {
        flow.protocol == Protocol::Tcp && flow.original.source == from && flow.original.destination == target
    };
    Some(list_flows(is_ours, 1).ok()?.records.first()?.sighting.flow.reply.source)
}

fn host_address(v6: bool) -> Option<IpAddr> {
    interface_addresses().into_iter().find(|address| address.is_ipv6() == v6)
}

// === impl ProbeView ===

impl ProbeView {
    /// In words.
    pub(super) fn words(&self) -> String {
        let time = format!("after {:.1} ms", self.milliseconds);
        match (&*self.result, self.from, self.endpoint) {
            ("connected", Some(from), Some(endpoint)) => {
                let pod = self.pod.as_deref().map(|pod| format!(" ({pod})")).unwrap_or_default();
                format!("{from} to {}: answered by {endpoint}{pod} {time}", self.target)
            }
            ("connected", ..) => {
                format!("to {}: answered {time}, and connection tracking does not say by whom", self.target)
            }
            ("refused", ..) => format!("to {}: refused {time}", self.target),
            ("silent", ..) => format!("to {}: no answer {time}", self.target),
            _ => format!("to {}: {}", self.target, self.error.as_deref().unwrap_or("failed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judged(answer: Value, result: &str, endpoint: Option<&str>) -> Option<bool> {
        let answer: Answer = serde_json::from_value(answer).expect("an answer");
        let endpoint = endpoint.map(|text| text.parse().expect("an address"));
        let target = "10.96.0.1:80".parse().expect("an address");
        let view = ProbeView {
            target,
            from: None,
            endpoint,
            pod: None,
            result: result.to_owned(),
            error: None,
            milliseconds: 1.0,
            as_explained: None,
        };
        judge(&answer, &view)
    }

    #[test]
    fn what_was_explained_is_what_was_met_or_not() {
        let endpoint = json!({"address": "10.1.0.1", "port": 80, "here": true, "ready": true, "serving": true, "terminating": false,
            "weight": 1, "cluster": {"standing": "chosen"}, "local": {"standing": "unused"}});
        let reaches =
            json!({"client": "outside", "outcome": "endpoint", "reason": "clusterPolicy", "endpoints": [endpoint]});
        let refused = json!({"client": "outside", "outcome": "refused", "reason": "noEndpoints"});
        let dropped = json!({"client": "outside", "outcome": "dropped", "reason": "noLocalEndpoints"});
        assert_eq!(judged(reaches.clone(), "connected", Some("10.1.0.1:80")), Some(true));
        assert_eq!(judged(reaches.clone(), "connected", Some("10.1.0.9:80")), Some(false), "somebody else");
        assert_eq!(judged(reaches.clone(), "refused", None), Some(false));
        assert_eq!(judged(refused.clone(), "refused", None), Some(true));
        assert_eq!(judged(refused, "silent", None), Some(false));
        assert_eq!(judged(dropped.clone(), "silent", None), Some(true));
        let mut other = dropped;
        other["otherwise"] = json!({"client": "pod", "outcome": "endpoint", "reason": "shortCircuit"});
        assert_eq!(judged(other, "connected", None), None, "this host is another client");
    }
}

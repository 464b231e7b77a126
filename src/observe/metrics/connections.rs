//! Connections per Service port, and per endpoint if that is wanted: series made of what the census found.
//!
//! Written by hand and not through the registry: which series there are changes with the Services, and ten thousand of them have to be
//! written in some milliseconds. Cardinality is bounded: as many Service ports as the settings say get series of their own, first come, first
//! served; they keep them as long as they are there. Everybody is in the sums.
//!
//! Label values are names of other people. They are made [`plain`], and then backslash, quote and newline are escaped as the text format
//! wants it, so a name cannot end its value, its line or anything else.

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::ConnectionMetrics;
use crate::conntrack::census::{Account, Connections};
use crate::kernel::conntrack::{CensusTaker, Snapshot};
use crate::model::{PortKey, plain};

/// Writes series of connections.
#[derive(Clone, Debug)]
pub struct ConnectionSeries {
    census: CensusTaker,
    settings: ConnectionMetrics,
    /// Who has series of their own.
    chosen: Arc<Mutex<HashSet<PortKey>>>,
}

/// A number of each Service port or endpoint.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    number: fn(&Connections) -> u64,
}

const OPENED: fn(&Connections) -> u64 = |of| of.opened;
const ACTIVE: fn(&Connections) -> u64 = |of| of.active;
const UNANSWERED: fn(&Connections) -> u64 = |of| of.unanswered;

const SERVICE: [Family; 3] = [
    Family {
        name: "pointsman_service_connections_opened_total",
        kind: "counter",
        help: "Connections opened through a Service port, since connections are counted",
        number: OPENED,
    },
    Family {
        name: "pointsman_service_connections_active",
        kind: "gauge",
        help: "Open connections of a Service port: TCP until one side closes, UDP as long as it is remembered",
        number: ACTIVE,
    },
    Family {
        name: "pointsman_service_connections_unanswered_total",
        kind: "counter",
        help: "TCP connections through a Service port that an endpoint left without an answer for seconds",
        number: UNANSWERED,
    },
];

const ENDPOINT: [Family; 2] = [
    Family {
        name: "pointsman_endpoint_connections_opened_total",
        kind: "counter",
        help: "Connections opened to an endpoint of a Service port: how often it was picked",
        number: OPENED,
    },
    Family {
        name: "pointsman_endpoint_connections_active",
        kind: "gauge",
        help: "Open connections to an endpoint of a Service port",
        number: ACTIVE,
    },
];

// === impl ConnectionSeries ===

impl ConnectionSeries {
    /// Of what this census finds.
    pub fn new(census: CensusTaker, settings: ConnectionMetrics) -> Self {
        Self { census, settings, chosen: Arc::default() }
    }

    /// Who counts.
    pub(crate) fn census(&self) -> CensusTaker {
        self.census.clone()
    }

    /// Appends the series as the last walk has it, and has further walks made.
    pub(crate) fn write(&self, text: &mut String) {
        let snapshot = self.census.look();
        let chosen = self.choose(&snapshot);
        write(&snapshot, &chosen, self.settings.endpoints, text);
    }

    /// Who gets series: who had them goes first.
    fn choose<'a>(&self, snapshot: &'a Snapshot) -> Vec<&'a (PortKey, Account)> {
        let accounts = &snapshot.accounts;
        if accounts.len() <= self.settings.services {
            return accounts.iter().collect();
        }
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        chosen.retain(|port| snapshot.account(port).is_some());
        for (port, _) in accounts {
            if chosen.len() >= self.settings.services {
                break;
            }
            chosen.insert(port.clone());
        }
        accounts.iter().filter(|(port, _)| chosen.contains(port)).collect()
    }
}

fn write(snapshot: &Snapshot, chosen: &[&(PortKey, Account)], endpoints: bool, text: &mut String) {
    let labels: Vec<String> = chosen.iter().map(|(port, _)| labels(port)).collect();
    for Family { name, kind, help, number } in SERVICE {
        head(text, name, kind, help);
        for ((_, account), labels) in chosen.iter().zip(&labels) {
            let _ = writeln!(text, "{name}{{{labels}}} {}", number(&account.total));
        }
    }
    for Family { name, kind, help, number } in ENDPOINT.into_iter().filter(|_| endpoints) {
        head(text, name, kind, help);
        for ((_, account), labels) in chosen.iter().zip(&labels) {
            for (endpoint, connections) in &account.endpoints {
                let _ = writeln!(text, "{name}{{{labels},endpoint=\"{endpoint}\"}} {}", number(connections));
            }
        }
    }
    let left_out = snapshot.accounts.len() - chosen.len();
    let Connections { opened, active, unanswered, .. } = snapshot.totals;
    for (name, kind, help, value) in [
        (
            "pointsman_connections_opened_total",
            "counter",
            "Connections opened through all Services, since connections are counted",
            opened as f64,
        ),
        ("pointsman_connections_active", "gauge", "Open connections of all Services", active as f64),
        (
            "pointsman_connections_unanswered_total",
            "counter",
            "TCP connections through all Services that were left without an answer for seconds",
            unanswered as f64,
        ),
        (
            "pointsman_service_metrics_left_out",
            "gauge",
            "Service ports with connections that have no series of their own, because --metrics-services is less",
            left_out as f64,
        ),
        (
            "pointsman_connection_walks_total",
            "counter",
            "Walks through the connection tracking table, made while somebody looks at these numbers",
            snapshot.walk as f64,
        ),
        ("pointsman_connection_walk_entries", "gauge", "Entries that the last walk met", snapshot.entries as f64),
        ("pointsman_connection_walk_seconds", "gauge", "CPU time of the last walk", snapshot.took.as_secs_f64()),
    ] {
        head(text, name, kind, help);
        let _ = writeln!(text, "{name} {value}");
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn labels(port: &PortKey) -> String {
    let mut labels = String::new();
    for (name, value) in [("namespace", &port.service.namespace), ("service", &port.service.name), ("port", &port.name)]
    {
        let _ = write!(labels, "{name}=\"");
        for c in plain(value).chars() {
            match c {
                '\\' => labels.push_str("\\\\"),
                '"' => labels.push_str("\\\""),
                '\n' => labels.push_str("\\n"),
                c => labels.push(c),
            }
        }
        labels.push_str("\",");
    }
    let _ = write!(labels, "protocol=\"{}\"", port.protocol);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, ServiceKey};

    fn account(namespace: &str, service: &str, port: &str) -> (PortKey, Account) {
        let port = PortKey { service: ServiceKey::new(namespace, service), name: port.into(), protocol: Protocol::Tcp };
        let total = Connections { opened: 7, active: 2, ..Connections::default() };
        (port, Account { total, endpoints: [("[fd00::1]:80".parse().expect("an address"), total)].into() })
    }

    fn written(accounts: Vec<(PortKey, Account)>, services: usize, endpoints: bool) -> String {
        let mut text = String::new();
        let snapshot = Snapshot { accounts, ..Snapshot::default() };
        let chosen: Vec<_> = snapshot.accounts.iter().take(services).collect();
        write(&snapshot, &chosen, endpoints, &mut text);
        text
    }

    #[test]
    fn hostile_names_stay_values() {
        let evil = "x\"} 1\npointsman_fake{a=\"\\\u{1b}[2J\u{202e}";
        let text = written(vec![account("n", evil, "http")], 9, true);
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).expect("there").to_owned();
        assert_eq!(
            line("pointsman_service_connections_opened_total{"),
            r#"pointsman_service_connections_opened_total{namespace="n",service="x\"} 1\\u{a}pointsman_fake{a=\"\\\\u{1b}[2J\\u{202e}",port="http",protocol="TCP"} 7"#
        );
        assert!(
            line("pointsman_endpoint_connections_active{").ends_with(r#",protocol="TCP",endpoint="[fd00::1]:80"} 2"#)
        );
        assert!(!text.lines().any(|line| line.starts_with("pointsman_fake")), "{text}");
    }

    #[test]
    fn the_rest_is_counted_and_endpoints_are_asked_for() {
        let accounts = vec![account("a", "one", ""), account("b", "two", ""), account("c", "three", "")];
        let text = written(accounts, 2, false);
        assert!(text.contains("pointsman_service_metrics_left_out 1\n"), "{text}");
        assert!(text.contains("service=\"two\"") && !text.contains("three") && !text.contains("endpoint="), "{text}");
    }
}

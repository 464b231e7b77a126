//! Does this kernel take our rulesets? Asked by loading one, in a network namespace that goes when this is over.

use std::fmt;

use serde_json::{Value, json};

use crate::engine::Engine;
use crate::kernel::{DataPlane, PART};
use crate::lab::Namespace;
use crate::model::Family;
use crate::schedule::Scheduler;
use crate::source::{Change, Object};

use super::facts::Probe;

/// Services of every kind that has rules of its own: each expression that we ever write is in one of them.
const SCHEDULERS: [&str; 6] = ["random", "rr", "wrr", "sh", "mh", "lc"];

/// Loads it, and says how that went.
pub(super) fn run() -> Probe {
    let namespace = match Namespace::anonymous() {
        Ok(namespace) => namespace,
        Err(error) => return Probe::Untried(format!("no network namespace of its own can be made: {error}")),
    };
    namespace.run(|| load().map_or_else(Probe::Failed, Probe::Fine))
}

fn load() -> Result<String, String> {
    let said = |error: &dyn fmt::Display| error.to_string();
    let mut plane = DataPlane::open().map_err(|error| said(&error))?;
    let families: Vec<_> = plane.families().collect();
    let mut engine = Engine::new("doctor", Scheduler::Random);
    for (number, scheduler) in (1u8..).zip(SCHEDULERS) {
        for (kind, object) in objects(number, scheduler) {
            engine.take(Change::Apply(decode(kind, object).map_err(|error| said(&error))?));
        }
    }
    plane.read().map_err(|error| said(&error))?;
    let forecast = engine.forecast();
    let applied = plane.build(&forecast, |take| engine.compile_in_parts(PART, take)).map_err(|error| said(&error))?;
    let families = families.iter().map(Family::to_string).collect::<Vec<_>>().join(" and ");
    Ok(format!("a ruleset of every kind was accepted for {families} ({} elements)", applied.elements))
}

fn decode(kind: &str, object: Value) -> serde_json::Result<Object> {
    Ok(match kind {
        "Service" => Object::Service(Box::new(serde_json::from_value(object)?)),
        _ => Object::EndpointSlice(Box::new(serde_json::from_value(object)?)),
    })
}

fn objects(number: u8, scheduler: &str) -> [(&'static str, Value); 3] {
    let name = format!("trial-{number}");
    let affinity = if number == 1 { "ClientIP" } else { "None" };
    let service = json!({
        "metadata": {"namespace": "doctor", "name": name, "annotations": {"pointsman.dev/scheduler": scheduler}},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")],
            "ports": [{"name": "p", "port": 80, "nodePort": 30_000 + u32::from(number)}],
            "externalTrafficPolicy": if number == 2 { "Local" } else { "Cluster" }, "sessionAffinity": affinity,
            "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8::/64"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": format!("198.51.100.{number}")}]}},
    });
    let slice = |family: &str, prefix: &str| {
        let endpoints: Vec<_> =
            (1..=3).map(|last| json!({"addresses": [format!("{prefix}{last}")], "nodeName": "doctor"})).collect();
        json!({
            "metadata": {"namespace": "doctor", "name": format!("{name}-{family}"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": family, "ports": [{"name": "p", "port": 8080}], "endpoints": endpoints,
        })
    };
    let slices = [slice("IPv4", "10.244.0."), slice("IPv6", "fd00:10:244::")];
    let [v4, v6] = slices;
    [("Service", service), ("EndpointSlice", v4), ("EndpointSlice", v6)]
}

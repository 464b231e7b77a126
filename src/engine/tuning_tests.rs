//! Weights, slow start and drain through the engine, with a time of our own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::conntrack::Destination;
use crate::source::{Change, Kind, Object, ObjectKey};

const S: Duration = Duration::from_secs(1);

/// An engine, and the time of day.
struct Watch {
    engine: Engine,
    now: Instant,
    problems: Vec<String>,
}

impl Watch {
    fn new() -> Self {
        Self { engine: Engine::new("n1", Scheduler::Random), now: Instant::now(), problems: Vec::new() }
    }

    /// Takes changes, at once.
    fn take(&mut self, changes: impl IntoIterator<Item = Change>) {
        changes.into_iter().for_each(|change| self.engine.take(change));
        self.compile();
    }

    fn compile(&mut self) -> Outcome {
        self.engine.take_time(self.now);
        let outcome = self.engine.compile();
        self.problems = outcome.problems.iter().map(ToString::to_string).collect();
        if let Some(next) = self.engine.next_deadline() {
            assert!(next > self.now, "a deadline that is over would be asked for again and again");
        }
        outcome
    }

    /// Lets time pass as the controller does, and says how often it woke up.
    fn pass(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut woken = 0;
        while let Some(next) = self.engine.next_deadline().filter(|next| *next <= end) {
            self.now = next;
            let outcome = self.compile();
            assert_eq!(outcome.services.len(), 1, "only who is concerned is looked at");
            woken += 1;
        }
        self.now = end;
        woken
    }

    /// What policy says now, by the last number of the endpoints' addresses.
    fn weights(&mut self) -> String {
        let key = ServiceKey::new("shop", "web");
        let service = self.engine.store.service(&key).expect("known").clone();
        let slices: Vec<_> = self.engine.store.slices(&key).cloned().collect();
        let progress = self.engine.warmth.update(&key, Some(&service), slices.iter(), Some(self.now));
        let context = Context {
            settings: &self.engine.settings,
            node: None,
            claims: &self.engine.claims,
            scheduler: self.engine.scheduler,
            warming: Some(&progress.warming),
            assessment: None,
            overrides: self.engine.overrides.of(&key),
        };
        let resolved = policy::resolve(&service, slices.iter(), context);
        let last = |address: std::net::IpAddr| address.to_string().rsplit('.').next().unwrap_or_default().to_owned();
        let one =
            |candidate: &crate::schedule::Candidate| format!("{}:{}", last(candidate.endpoint.ip()), candidate.weight);
        resolved[0].cluster.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// The cuts since last time: `TCP 1,2` for those to endpoints 10.1.0.1 and .2.
    fn cuts(&mut self) -> Vec<String> {
        let last =
            |address: &std::net::SocketAddr| address.ip().to_string().rsplit('.').next().unwrap_or_default().to_owned();
        let cuts = self.engine.take_cuts();
        cuts.iter()
            .map(|cut| format!("{} {}", cut.protocol, cut.endpoints.iter().map(last).collect::<Vec<_>>().join(",")))
            .collect()
    }
}

fn service(annotations: &[(&str, &str)]) -> Change {
    let annotations: BTreeMap<_, _> =
        annotations.iter().map(|(key, value)| (format!("pointsman.dev/{key}"), value)).collect();
    let value = json!({
        "metadata": {"namespace": "shop", "name": "web", "annotations": annotations},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

/// `1` is ready, `1n` is not, `1t` terminates and serves, `1/b` is ready with another pod's name.
fn slice(endpoints: &[&str]) -> Change {
    let endpoint = |text: &&str| -> Value {
        let (text, suffix) = text.split_once('/').unwrap_or((text, "a"));
        let number = text.trim_end_matches(char::is_alphabetic);
        let state = &text[number.len()..];
        json!({
            "addresses": [format!("10.1.0.{number}")], "targetRef": {"name": format!("web-{number}-{suffix}")},
            "conditions": {"ready": state.is_empty(), "serving": state != "n", "terminating": state == "t"},
        })
    };
    let value = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    });
    Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
}

fn delete() -> Change {
    Change::Delete(Kind::Service, ObjectKey { namespace: "shop".into(), name: "web".into() })
}

#[test]
fn a_newcomer_grows_in_few_steps_and_then_nobody_wakes() {
    let mut watch = Watch::new();
    watch.take([service(&[("slow-start", "64s")]), slice(&["1", "2"])]);
    assert_eq!(watch.weights(), "1:1 2:1", "who is there at the start is warm");
    assert_eq!(watch.engine.next_deadline(), None);
    watch.pass(100 * S);
    watch.take([slice(&["1", "2", "3"])]);
    assert_eq!(watch.weights(), "1:10 2:10 3:1");
    let mut woken = watch.pass(16 * S);
    assert_eq!(watch.weights(), "1:4 2:4 3:1");
    woken += watch.pass(16 * S);
    assert_eq!(watch.weights(), "1:2 2:2 3:1");
    woken += watch.pass(40 * S);
    assert_eq!(watch.weights(), "1:1 2:1 3:1");
    assert!((20..=32).contains(&woken), "{woken}");
    assert_eq!((watch.engine.next_deadline(), watch.engine.is_idle()), (None, true));
}

#[test]
fn time_goes_on_for_others_while_changes_wait() {
    let other = |annotations: &[(&str, &str)]| {
        let annotations: BTreeMap<_, _> =
            annotations.iter().map(|(key, value)| (format!("pointsman.dev/{key}"), value)).collect();
        let value = json!({
            "metadata": {"namespace": "shop", "name": "other", "annotations": annotations},
            "spec": {"clusterIP": "10.96.0.2", "ports": [{"port": 80}]},
        });
        Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
    };
    let mut watch = Watch::new();
    watch.take([service(&[("slow-start", "64s")]), other(&[]), slice(&["1", "2"])]);
    watch.take([slice(&["1", "2", "3"])]);
    let step = watch.engine.next_deadline().expect("somebody grows");
    // A change of another Service is taken, and not yet compiled.
    watch.engine.take(other(&[("scheduler", "rr")]));
    assert_eq!(watch.engine.next_deadline(), Some(step));
    let mut steps = 0;
    while let Some(next) = watch.engine.next_deadline() {
        watch.now = next;
        let outcome = watch.engine.compile_timed(next);
        assert_eq!(outcome.services, [ServiceKey::new("shop", "web")]);
        assert!(!watch.engine.is_idle() && watch.engine.has_more(), "the change still waits");
        steps += 1;
    }
    assert!((20..=32).contains(&steps), "{steps}");
    assert_eq!(watch.weights(), "1:1 2:1 3:1");
    // A change of its own waits, and with it what time would bring.
    watch.take([slice(&["1", "2", "3", "4"])]);
    watch.engine.take(service(&[("slow-start", "64s"), ("scheduler", "wrr")]));
    assert_eq!(watch.engine.next_deadline(), None);
    assert_eq!(watch.engine.compile_timed(watch.now + 9 * S).services, []);
    assert_eq!(watch.compile().services, [ServiceKey::new("shop", "web")]);
    assert!(watch.engine.next_deadline().is_some());
}

#[test]
fn all_new_is_all_equal_and_services_without_it_have_no_time() {
    let mut watch = Watch::new();
    watch.take([service(&[("slow-start", "60s")]), slice(&[])]);
    watch.take([slice(&["1", "2", "3"])]);
    assert_eq!(watch.weights(), "1:1 2:1 3:1");
    watch.pass(30 * S);
    assert_eq!(watch.weights(), "1:1 2:1 3:1");
    watch.take([service(&[])]);
    assert_eq!((watch.engine.next_deadline(), watch.engine.warmth.len()), (None, 0));
    watch.take([slice(&["1", "2", "3", "4"])]);
    assert_eq!((watch.weights().as_str(), watch.engine.warmth.len()), ("1:1 2:1 3:1 4:1", 0));
    watch.take([service(&[("slow-start", "60s")])]);
    assert_eq!(watch.weights(), "1:1 2:1 3:1 4:1", "who was there when the annotation came is warm");
    watch.take([delete()]);
    assert_eq!((watch.engine.next_deadline(), watch.engine.warmth.len()), (None, 0), "nothing is left behind");
}

#[test]
fn flapping_neither_gains_nor_loses() {
    let mut watch = Watch::new();
    watch.take([service(&[("slow-start", "64s")]), slice(&["1"])]);
    watch.take([slice(&["1", "2"])]);
    watch.pass(32 * S);
    assert_eq!(watch.weights(), "1:2 2:1");
    // Away for a moment, in either way: goes on where it was.
    for away in [slice(&["1", "2n"]), slice(&["1"])] {
        watch.take([away]);
        watch.now += S / 100;
        watch.take([slice(&["1", "2"])]);
        watch.now += S / 100;
        watch.compile();
        assert_eq!(watch.weights(), "1:2 2:1");
    }
    // Time away is no time of growth: what was gained goes as fast as it came.
    watch.take([slice(&["1"])]);
    watch.pass(16 * S);
    watch.take([slice(&["1", "2"])]);
    assert_eq!(watch.weights(), "1:4 2:1");
    watch.take([slice(&["1"])]);
    watch.pass(17 * S);
    watch.take([slice(&["1", "2"])]);
    assert_eq!(watch.weights(), "1:10 2:1", "away for as long as it was there: begins anew");
    // Fully grown, it is away for a moment, and is full; away for the window, and begins anew.
    watch.pass(64 * S);
    watch.take([slice(&["1"])]);
    watch.pass(S);
    watch.take([slice(&["1", "2"])]);
    watch.pass(2 * S);
    assert_eq!(watch.weights(), "1:1 2:1");
    watch.take([slice(&["1"])]);
    watch.pass(64 * S);
    watch.take([slice(&["1", "2"])]);
    assert_eq!(watch.weights(), "1:10 2:1");
    // Another pod at the same address is another endpoint.
    watch.pass(64 * S);
    watch.take([slice(&["1", "2/b"])]);
    assert_eq!(watch.weights(), "1:10 2:1");
    watch.take([slice(&["1"])]);
    watch.pass(200 * S);
    watch.take([slice(&["1", "9"])]);
    assert_eq!(watch.engine.warmth.len(), 2, "who is gone is forgotten");
}

#[test]
fn without_a_time_nobody_starts_slowly() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.take(service(&[("slow-start", "64s"), ("drain", "5s")]));
    engine.take(slice(&["1"]));
    engine.compile();
    engine.take(slice(&["2"]));
    engine.compile();
    assert_eq!((engine.next_deadline(), engine.take_cuts()), (None, Vec::new()));
}

#[test]
fn who_leaves_is_cut_once_after_the_time() {
    let mut watch = Watch::new();
    watch.take([service(&[("drain", "30s")]), slice(&["1", "2", "3", "4"])]);
    assert_eq!((watch.engine.next_deadline(), watch.cuts()), (None, vec![]));
    watch.take([slice(&["1", "2t", "3"])]);
    watch.pass(29 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    watch.take([slice(&["1", "3"])]);
    watch.pass(2 * S);
    assert_eq!(watch.cuts(), ["TCP 2,4"], "the one that terminated and the one that was removed, both long enough");
    watch.pass(100 * S);
    assert_eq!((watch.cuts(), watch.engine.drains.len()), (vec![], 2), "once");
    // Not ready, and weight 0, is no leaving.
    watch.take([slice(&["1", "3n"])]);
    watch.take([service(&[("drain", "30s"), ("weights", "web-1-*=0")])]);
    watch.pass(100 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    // Who comes back in time is spared.
    watch.take([slice(&["1"])]);
    watch.pass(20 * S);
    watch.take([slice(&["1", "3"])]);
    watch.pass(100 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    // Still listed as terminating after its time: once.
    watch.take([slice(&["1", "3t"])]);
    watch.pass(31 * S);
    assert_eq!(watch.cuts(), ["TCP 3"]);
    watch.take([slice(&["1", "3t", "5"])]);
    watch.take([slice(&["1", "5"])]);
    watch.pass(100 * S);
    assert_eq!(watch.cuts(), [""; 0]);
}

#[test]
fn behind_a_port_or_a_service_that_is_gone_all_have_left() {
    let forgotten = |watch: &Watch| (watch.engine.drains.len(), watch.engine.next_deadline()) == (0, None);
    let mut watch = Watch::new();
    watch.take([service(&[("drain", "30s")]), slice(&["1", "2"])]);
    watch.take([delete()]);
    watch.pass(29 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    watch.pass(2 * S);
    assert_eq!(watch.cuts(), ["TCP 1,2"]);
    assert!(forgotten(&watch));
    // One that comes back in time keeps its connections.
    watch.take([service(&[("drain", "30s")])]);
    watch.take([delete()]);
    watch.pass(20 * S);
    watch.take([service(&[("drain", "30s")])]);
    watch.pass(100 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    // A port that changes its name leaves all its connections behind.
    let value = json!({
        "metadata": {"namespace": "shop", "name": "web", "annotations": {"pointsman.dev/drain": "30s"}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "other", "port": 81}]},
    });
    watch.take([Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))]);
    watch.pass(29 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    watch.pass(2 * S);
    let cuts = watch.engine.take_cuts();
    assert_eq!((cuts.len(), cuts[0].endpoints.len()), (1, 2));
    let at = Destination::Address("10.96.0.1:80".parse().expect("an address"));
    assert_eq!(cuts[0].destinations, [at].into_iter().collect(), "where they came from");
    // What another Service has by then is no longer ours to cut.
    watch.take([service(&[("drain", "30s")])]);
    watch.take([delete()]);
    let value = json!({
        "metadata": {"namespace": "shop", "name": "heir"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    watch.take([Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))]);
    watch.pass(31 * S);
    assert_eq!(watch.cuts(), [""; 0]);
    assert!(forgotten(&watch));
}

#[test]
fn who_new_connections_go_to_is_not_cut() {
    let mut watch = Watch::new();
    watch.take([service(&[("drain", "30s")]), slice(&["1", "2"])]);
    watch.take([slice(&["1t"])]);
    watch.pass(60 * S);
    assert_eq!(watch.cuts(), ["TCP 2"], "the other one is all there is");
    watch.take([slice(&["1t", "3"])]);
    assert_eq!(watch.cuts(), ["TCP 1"], "now there is another, and the time is over");
}

#[test]
fn without_the_annotation_nothing_is_ever_cut() {
    let mut watch = Watch::new();
    watch.take([service(&[]), slice(&["1", "2"])]);
    watch.take([slice(&["1t"])]);
    watch.take([slice(&[])]);
    watch.pass(100_000 * S);
    assert_eq!((watch.cuts(), watch.engine.drains.len(), watch.engine.next_deadline()), (vec![], 0, None));
}

#[test]
fn a_cut_names_every_frontend_of_its_port_and_nothing_else() {
    let mut watch = Watch::new();
    let value = json!({
        "metadata": {"namespace": "shop", "name": "web", "annotations": {"pointsman.dev/drain": "0s"}},
        "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.1", "fd00::1"], "externalIPs": ["192.0.2.1"], "ports": [
            {"name": "", "port": 80, "nodePort": 30080}, {"name": "other", "port": 81},
        ]},
    });
    watch.take([
        Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes")))),
        slice(&["1"]),
    ]);
    watch.take([slice(&[])]);
    let cuts = watch.engine.take_cuts();
    let at = |text: &str| Destination::Address(text.parse().expect("an address"));
    let expected = [at("10.96.0.1:80"), at("192.0.2.1:80"), Destination::NodePort(Family::V4, 30080)];
    assert_eq!(cuts.len(), 1);
    assert_eq!(cuts[0].destinations, expected.into_iter().collect());
}

#[test]
fn what_is_said_about_weights_stands_until_it_is_mended() {
    let said = |watch: &Watch| {
        watch.problems.iter().map(|line| line.replace("Service shop/web: metadata.annotations", "")).collect::<Vec<_>>()
    };
    let mut watch = Watch::new();
    watch.take([
        service(&[("weights", "web-1-*=5,web-7-*=2,ip:10.9.0.0/16=1"), ("split", "db-*=5%,*=95%")]),
        slice(&[]),
    ]);
    assert_eq!(said(&watch), [""; 0], "nobody there, nobody to match");
    watch.take([slice(&["1", "2"])]);
    assert_eq!(
        said(&watch),
        [
            r#"[pointsman.dev/weights]: "web-7-*": matches no endpoint of this Service"#,
            r#"[pointsman.dev/weights]: "ip:10.9.0.0/16": matches no endpoint of this Service"#,
            r#"[pointsman.dev/split]: "db-*": matches no endpoint of this Service"#
        ]
    );
    assert_eq!(watch.engine.standing_problems(), 3);
    watch.take([slice(&["1", "7"])]);
    assert_eq!((said(&watch).len(), watch.engine.standing_problems()), (0, 2), "one is mended");
    watch.take([service(&[("weights", "*=0")])]);
    assert_eq!(
        said(&watch),
        [r#"[pointsman.dev/weights]: "0": all qualifying endpoints have weight 0; all are used alike"#]
    );
    assert_eq!(watch.weights(), "1:1 7:1");
    watch.take([service(&[("weights", "web-1-*=0")])]);
    assert_eq!((watch.weights().as_str(), watch.engine.standing_problems()), ("7:1", 0));
    watch.take([service(&[
        ("scheduler", "rr"),
        ("weights", "web-1-*=5"),
        ("split", "web-1-*=5%"),
        ("slow-start", "5s"),
    ])]);
    assert_eq!(
        said(&watch),
        [
            r#"[pointsman.dev/weights]: "rr": this scheduler ignores weights, only 0 counts; endpoints are used alike"#,
            r#"[pointsman.dev/split]: "rr": this scheduler ignores weights, only 0 counts; endpoints are used alike"#,
            r#"[pointsman.dev/slow-start]: "rr": this scheduler ignores weights, only 0 counts; endpoints are used alike"#
        ]
    );
    watch.take([service(&[("scheduler", "rr"), ("weights", "web-1-*=0")])]);
    assert_eq!(watch.engine.standing_problems(), 0, "every scheduler knows 0");
    for (scheduler, told) in [("sed", 1), ("nq", 1), ("wlc", 0), ("wrr", 0), ("mh", 0)] {
        watch.take([service(&[("scheduler", scheduler), ("split", "web-1-*=5%,*=95%")])]);
        let wanted = format!(
            r#"[pointsman.dev/split]: "{scheduler}": this scheduler keeps shares only as far as connections last; wrr and wlc keep them"#
        );
        assert_eq!(
            said(&watch).iter().filter(|line| **line == wanted).count(),
            told,
            "{scheduler}: {:?}",
            said(&watch)
        );
        assert_eq!(watch.engine.standing_problems(), told, "{scheduler}");
    }
    for (scheduler, share, told) in
        [("random", "0.05%", 1), ("wrr", "0.05%", 1), ("wrr", "0.2%", 0), ("wlc", "0.05%", 0)]
    {
        let split =
            format!("web-1-*={share},*={}%", 100.0 - share.trim_end_matches('%').parse::<f64>().expect("a number"));
        watch.take([service(&[])]);
        watch.take([service(&[("scheduler", scheduler), ("split", &split)])]);
        let wanted = r#"[pointsman.dev/split]: "web-1-*": its share comes to 0.10%: slots are rounded, and each endpoint has one or more"#;
        assert_eq!(said(&watch).iter().filter(|line| *line == wanted).count(), told, "{scheduler}: {:?}", said(&watch));
        assert_eq!(watch.engine.standing_problems(), told, "{scheduler}");
    }
    watch.take([service(&[("split", "web-1-*=50%,web-9-*=50%")])]);
    assert_eq!(
        said(&watch),
        [
            r#"[pointsman.dev/split]: "web-9-*": matches no endpoint of this Service"#,
            r#"[pointsman.dev/split]: "web-7-a": this endpoint, and maybe others, is in no group: it gets no new connections"#
        ]
    );
    watch.take([service(&[("split", "web-1-*=20%,web-7-*=20%")])]);
    assert_eq!(
        said(&watch),
        [
            r#"[pointsman.dev/split]: "40%": the shares are less than 100% together and no other endpoint is there; taken in proportion"#
        ]
    );
    watch.take([service(&[("split", "web-1-*=0%,web-7-*=0%,web-3-*=100%")])]);
    assert_eq!(
        said(&watch),
        [
            r#"[pointsman.dev/split]: "web-3-*": matches no endpoint of this Service"#,
            r#"[pointsman.dev/split]: "0%": no endpoint that qualifies is in a group with a share; all are used by weight"#
        ]
    );
}

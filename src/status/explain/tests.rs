//! A table of cases, row by row what `tests/conformance/README.md` has of verdicts, frontends, source ranges, masquerade, the guard and
//! node ports. What is asserted is the reason as scripts read it, in JSON.

use serde_json::{Value, json};

use super::*;
use crate::policy::{DetectLocal, NodePortAddresses, Settings};
use crate::schedule::Scheduler;
use crate::source::{Change, Object};

const HOST: &str = "192.168.0.1";
const OTHER: &str = "192.168.9.1";
const POD: &str = "10.1.0.9";
const STRANGER: &str = "203.0.113.5";

fn service(name: &str, number: u8, spec: Value) -> Change {
    let mut value = json!({
        "metadata": {"namespace": "ns", "name": name, "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z")},
        "spec": {"clusterIP": format!("10.96.0.{number}"), "ports": [{"port": 80}]},
    });
    for (key, field) in spec.as_object().expect("fields") {
        match key.as_str() {
            "ingress" => value["status"]["loadBalancer"]["ingress"] = json!([{"ip": field}]),
            "annotations" => value["metadata"]["annotations"] = field.clone(),
            _ => value["spec"][key] = field.clone(),
        }
    }
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

/// `h` ready here, `t` ready there, `l` leaving here, `m` leaving there, `n` not ready, `d` dead, `w` ready there and called `lame`.
fn slice(name: &str, endpoints: &str) -> Change {
    let conditions = |ready: bool, serving: bool, terminating: bool| json!({"ready": ready, "serving": serving, "terminating": terminating});
    let endpoints = endpoints.chars().enumerate().map(|(index, kind)| {
        let (node, conditions) = match kind {
            'h' => ("me", conditions(true, true, false)),
            't' | 'w' => ("other", conditions(true, true, false)),
            'l' => ("me", conditions(false, true, true)),
            'm' => ("other", conditions(false, true, true)),
            'n' => ("me", conditions(false, false, false)),
            _ => ("me", conditions(false, false, true)),
        };
        let pod = if kind == 'w' { "lame".to_owned() } else { format!("{name}-{index}") };
        json!({"addresses": [format!("10.1.{}.{}", name.len(), index + 1)], "nodeName": node, "conditions": conditions,
               "targetRef": {"kind": "Pod", "name": pod}})
    });
    let value = json!({
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}], "endpoints": endpoints.collect::<Vec<_>>(),
    });
    Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
}

fn settings() -> Settings {
    let pods = "10.1.0.0/16".parse().expect("a network");
    let served = "192.168.0.0/24".parse().expect("a network");
    Settings {
        node: "me".into(),
        detect_local: DetectLocal::Networks(vec![pods]),
        node_port_addresses: NodePortAddresses::Networks(vec![served]),
        ..Settings::default()
    }
}

fn engine(settings: Settings) -> Engine {
    let mut engine = Engine::with_settings(settings, Scheduler::Random);
    let network = json!({"metadata": {"name": "k"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
    engine.take(Change::Apply(Object::ServiceCIDR(Box::new(serde_json::from_value(network).expect("decodes")))));
    // Named by policies, internal and external, and by who is there.
    for (index, (policies, endpoints)) in [
        ("cc", ""),
        ("ll", ""),
        ("ll", "d"),
        ("cc", "ht"),
        ("cc", "m"),
        ("lc", "ht"),
        ("lc", "t"),
        ("lc", "lt"),
        ("cl", "ht"),
        ("cl", "t"),
        ("cl", "m"),
        ("cl", "lt"),
        ("ll", "ht"),
        ("ll", "t"),
        ("ll", "l"),
    ]
    .into_iter()
    .enumerate()
    {
        let number = index as u8 + 1;
        let policy = |at: usize| if &policies[at..=at] == "l" { "Local" } else { "Cluster" };
        let name = format!("{policies}-{}", if endpoints.is_empty() { "none" } else { endpoints });
        let spec = json!({"type": "NodePort", "internalTrafficPolicy": policy(0), "externalTrafficPolicy": policy(1),
            "ports": [{"port": 80, "nodePort": 30000 + u16::from(number)}]});
        engine.take(service(&name, number, spec));
        engine.take(slice(&name, endpoints));
    }
    let ranges = json!({"type": "LoadBalancer", "ingress": "198.51.100.1", "loadBalancerSourceRanges": ["203.0.113.0/24"],
        "externalIPs": ["192.0.2.1"], "ports": [{"port": 80, "nodePort": 30050}]});
    engine.take(service("ranges", 50, ranges));
    engine.take(slice("ranges", "ht"));
    let empty =
        json!({"type": "LoadBalancer", "ingress": "198.51.100.2", "loadBalancerSourceRanges": ["203.0.113.0/24"]});
    engine.take(service("empty", 51, empty));
    engine.take(service("second", 52, json!({"externalIPs": ["192.0.2.1"]})));
    engine.take(slice("second", "t"));
    engine.take(service("weights", 53, json!({"annotations": {"pointsman.dev/weights": "lame=0,*=2"}})));
    engine.take(slice("weights", "hwtnd"));
    let sticky = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
    engine.take(service("sticky", 54, sticky));
    engine.take(slice("sticky", "ht"));
    engine.compile();
    engine
}

fn asked(engine: &Engine, target: &str, from: Option<&str>, more: &[(&str, &str)]) -> Value {
    let mut parameters = vec![("target".to_owned(), target.to_owned())];
    parameters.extend(from.map(|from| ("from".to_owned(), from.to_owned())));
    parameters.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let question = Question::of(&parameters).expect("a question");
    let addresses = [HOST, OTHER].map(|address| address.parse().expect("an address")).into();
    serde_json::to_value(explain(engine, &question, &addresses, false).0).expect("JSON")
}

/// `outcome reason source` of the only answer.
fn told(engine: &Engine, target: &str, from: Option<&str>) -> String {
    let value = asked(engine, target, from, &[]);
    let answers = value["answers"].as_array().expect("a list");
    assert_eq!(answers.len(), 1, "{target} {value:#}");
    let word = |name: &str| answers[0][name].as_str().unwrap_or("-").to_owned();
    format!("{} {} {}", word("outcome"), word("reason"), word("source"))
}

#[test]
fn the_table_of_reasons() {
    let engine = engine(settings());
    let (outside, pod, host) = (Some(STRANGER), Some(POD), Some(HOST));
    let table = [
        // 4.5, cluster addresses: by the internal policy, whoever asks.
        ("10.96.0.1:80", pod, "refused noEndpoints -"),
        ("10.96.0.1:80", outside, "refused noEndpoints -"),
        ("10.96.0.2:80", pod, "refused noEndpoints -"),
        ("10.96.0.3:80", pod, "refused noEndpoints -"),
        ("10.96.0.4:80", pod, "endpoint clusterPolicy keptInCluster"),
        ("10.96.0.4:80", host, "endpoint clusterPolicy hiddenOffCluster"),
        ("10.96.0.4:80", outside, "endpoint clusterPolicy hiddenOffCluster"),
        ("10.96.0.4:80", None, "endpoint clusterPolicy hiddenOffCluster"),
        ("10.96.0.5:80", pod, "endpoint clusterPolicy keptInCluster"),
        ("10.96.0.6:80", pod, "endpoint localPolicy keptInCluster"),
        ("10.96.0.7:80", pod, "dropped noLocalEndpoints -"),
        ("10.96.0.8:80", pod, "endpoint localPolicy keptInCluster"),
        ("10.96.0.9:80", pod, "endpoint clusterPolicy keptInCluster"),
        ("10.96.0.10:80", pod, "endpoint clusterPolicy keptInCluster"),
        ("10.96.0.13:80", pod, "endpoint localPolicy keptInCluster"),
        ("10.96.0.14:80", pod, "dropped noLocalEndpoints -"),
        ("10.96.0.14:80", host, "dropped noLocalEndpoints -"),
        ("10.96.0.15:80", pod, "endpoint localPolicy keptInCluster"),
        // 4.5, node ports: by the external policy, and this node and its pods are spared a Local one.
        ("192.168.0.1:30001", outside, "refused noEndpoints -"),
        ("192.168.0.1:30002", outside, "refused noEndpoints -"),
        ("192.168.0.1:30003", host, "refused noEndpoints -"),
        ("192.168.0.1:30004", outside, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("192.168.0.1:30004", pod, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("192.168.0.1:30005", outside, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("192.168.0.1:30007", outside, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("192.168.0.1:30009", outside, "endpoint localPolicy keptByLocalPolicy"),
        ("192.168.0.1:30009", pod, "endpoint shortCircuit keptByLocalPolicy"),
        ("192.168.0.1:30009", host, "endpoint shortCircuit hiddenForNode"),
        ("192.168.0.1:30010", outside, "dropped noLocalEndpoints -"),
        ("192.168.0.1:30010", pod, "endpoint shortCircuit keptByLocalPolicy"),
        ("192.168.0.1:30010", host, "endpoint shortCircuit hiddenForNode"),
        ("192.168.0.1:30011", outside, "dropped noLocalEndpoints -"),
        ("192.168.0.1:30012", outside, "endpoint localPolicy keptByLocalPolicy"),
        ("192.168.0.1:30013", outside, "endpoint localPolicy keptByLocalPolicy"),
        ("192.168.0.1:30014", outside, "dropped noLocalEndpoints -"),
        ("192.168.0.1:30014", pod, "endpoint shortCircuit keptByLocalPolicy"),
        ("192.168.0.1:30015", outside, "endpoint localPolicy keptByLocalPolicy"),
        ("30010", outside, "dropped noLocalEndpoints -"),
        // 5.6: where node ports are.
        ("192.168.9.1:30004", outside, "untouched notANodePortAddress -"),
        ("127.0.0.1:30004", None, "untouched notANodePortAddress -"),
        ("192.168.0.77:30004", outside, "untouched noFrontend -"),
        ("31999", outside, "untouched noFrontend -"),
        // 5.5: source ranges first, for load balancer addresses alone.
        ("198.51.100.1:80", outside, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("198.51.100.1:80", pod, "dropped sourceRanges -"),
        ("198.51.100.1:80", host, "dropped sourceRanges -"),
        ("198.51.100.1:80", None, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("192.168.0.1:30050", pod, "endpoint clusterPolicy hiddenByClusterPolicy"),
        ("10.96.0.50:80", pod, "endpoint clusterPolicy keptInCluster"),
        ("198.51.100.2:80", pod, "dropped sourceRanges -"),
        ("198.51.100.2:80", outside, "refused noEndpoints -"),
        // Who has a frontend.
        ("192.0.2.1:80", outside, "endpoint clusterPolicy hiddenByClusterPolicy"),
        // 5.6: the guard of cluster addresses; others have none.
        ("10.96.0.4:81", pod, "refused noSuchPort -"),
        ("10.96.0.200:80", pod, "dropped unallocated -"),
        ("198.51.100.1:81", outside, "untouched noFrontend -"),
        ("8.8.8.8:53", pod, "untouched noFrontend -"),
        // Names.
        ("ns/nobody", None, "untouched noService -"),
        ("ns/cc-ht:81", None, "untouched noPort -"),
    ];
    assert!(table.len() >= 50, "{}", table.len());
    let wrong: Vec<_> = table
        .into_iter()
        .filter_map(|(target, from, want)| {
            let told = told(&engine, target, from);
            (told != want).then(|| format!("{target} from {from:?}: {told}, want {want}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_name_means_all_its_frontends() {
    let engine = engine(settings());
    let value = asked(&engine, "ns/second", None, &[]);
    let reasons: Vec<_> = value["answers"].as_array().expect("a list").iter().map(|one| &one["reason"]).collect();
    assert_eq!(reasons, ["clusterPolicy", "heldByOther"]);
    assert_eq!(value["answers"][1]["frontend"]["heldBy"], "ns/ranges");
    let value = asked(&engine, "ns/cl-t", Some(STRANGER), &[]);
    let reasons: Vec<_> = value["answers"].as_array().expect("a list").iter().map(|one| &one["reason"]).collect();
    assert_eq!(reasons, ["clusterPolicy", "noLocalEndpoints"]);
    assert_eq!(
        value["answers"][1]["otherwise"],
        json!({"client": "pod", "outcome": "endpoint", "reason": "shortCircuit"})
    );
    let value = asked(&engine, "10.96.0.4:80", None, &[("protocol", "udp")]);
    assert_eq!(value["answers"][0]["reason"], "noSuchPort");
}

#[test]
fn who_qualifies_and_where_it_stands_in_the_ruleset() {
    let engine = engine(settings());
    let answer = asked(&engine, "10.96.0.53:80", None, &[])["answers"][0].take();
    let standings: Vec<_> =
        answer["endpoints"].as_array().expect("a list").iter().map(|one| &one["cluster"]["standing"]).collect();
    assert_eq!(standings, ["chosen", "drained", "chosen", "notReady", "stopped"]);
    let sets = |value: &Value| {
        let steps = value["ruleset"].as_array().expect("a list").iter();
        steps
            .map(|one| format!("{} {}", one["set"].as_str().expect("a set"), one["chain"].as_str().unwrap_or("-")))
            .collect::<Vec<_>>()
    };
    assert_eq!(answer["ruleset"][0]["key"], "10.96.0.53 . tcp . 80");
    assert_eq!(sets(&answer)[0].split(' ').next(), Some("services"));
    assert_eq!(sets(&answer).last().expect("a step"), "endpoints -");
    // Every check has its step, and who is stopped by one meets no more.
    let walk = |target: &str, from: &str| sets(&asked(&engine, target, Some(from), &[])["answers"][0]);
    assert_eq!(walk("192.168.0.1:30010", STRANGER), ["node-ports local-policy", "outside discard"]);
    assert_eq!(walk("192.168.0.1:30010", POD), ["node-ports local-policy", "inside random-1", "endpoints -"]);
    assert_eq!(walk("198.51.100.1:80", STRANGER), ["services source-ranges", "admitted random-2", "endpoints -"]);
    assert_eq!(walk("198.51.100.1:80", POD), ["services source-ranges"]);
    assert_eq!(walk("10.96.0.1:80", POD), ["services refuse"]);
    let sticky = asked(&engine, "10.96.0.54:80", None, &[])["answers"][0].take();
    assert_eq!(sticky["affinitySeconds"], 60);
    let steps = sets(&sticky);
    assert!(steps[1].starts_with("dedicated sticky-2-60s-") && steps[2] == "member-slots -", "{steps:?}");
}

#[test]
fn settings_decide_about_sources_and_loopback() {
    let all = engine(Settings { masquerade_all: true, ..settings() });
    assert_eq!(told(&all, "10.96.0.4:80", Some(POD)), "endpoint clusterPolicy hiddenByMasqueradeAll");
    let none = engine(Settings { detect_local: DetectLocal::Unknown, ..settings() });
    assert_eq!(told(&none, "10.96.0.4:80", Some(STRANGER)), "endpoint clusterPolicy keptInCluster");
    assert_eq!(told(&none, "192.168.0.1:30010", Some(POD)), "dropped noLocalEndpoints -", "pods cannot be told");
    let by_interface = engine(Settings { detect_local: DetectLocal::InterfacePrefix("veth".into()), ..settings() });
    // The first endpoint of cl-lt, and an address that no endpoint has.
    assert_eq!(told(&by_interface, "192.168.0.1:30010", Some("10.1.5.1")), "endpoint shortCircuit keptByLocalPolicy");
    assert_eq!(told(&by_interface, "192.168.0.1:30010", Some("10.1.200.1")), "dropped noLocalEndpoints -");
    let everywhere = NodePortAddresses::All;
    let local = engine(Settings { node_port_addresses: everywhere, localhost_node_ports: true, ..settings() });
    assert_eq!(told(&local, "127.0.0.1:30004", None).split(' ').nth(1), Some("clusterPolicy"));
}

#[test]
fn questions_that_cannot_be_read() {
    let asked = |parameters: &[(&str, &str)]| {
        let parameters: Vec<_> = parameters.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        Question::of(&parameters).map(|question| question.target.to_string()).map_err(|error| error.to_string())
    };
    assert_eq!(asked(&[("target", "[fd00::1]:80")]), Ok("[fd00::1]:80".into()));
    assert_eq!(asked(&[("target", ":30080")]), Ok("node port 30080".into()));
    assert_eq!(asked(&[("target", "shop/web:http")]), Ok("shop/web:http".into()));
    for wrong in ["", "web", "10.0.0.1", "0", "70000", "/x", "x/", "x/y:"] {
        let said = asked(&[("target", wrong)]).expect_err(wrong);
        assert!(said.contains("NAMESPACE/NAME"), "{said}");
    }
    let said = asked(&[("target", "10.0.0.1:80"), ("from", "fd00::1")]);
    assert_eq!(said, Err("from=\"fd00::1\": not of the target's family".into()));
    assert!(asked(&[("target", "10.0.0.1:80"), ("protocol", "icmp")]).is_err());
}

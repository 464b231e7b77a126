//! Input that is not wrong but unreasonable, and what must not happen then: no crash, no leak, nobody else disturbed.
//!
//! The real binary in the node of a lab, fed by an API server double or by manifests. Each test pushes in one direction: objects of
//! more than a megabyte, thousands of endpoints, names at and beyond their limits, a Service that never rests, slices without a Service,
//! Services that want what another one has. Each ends alike: when all of it is deleted, what `nft` lists is what it listed before any of
//! it came ([`Quiet`]), so nothing leaks. Only the plans that all Services share may stay: at most 1,023 per family, however many Services
//! come and go. An unrelated Service is used all the time and may not notice. Needs root, and fails without it.

#[path = "e2e/daemon.rs"]
#[allow(dead_code, reason = "the end-to-end tier uses the rest")]
mod daemon;
#[allow(dead_code, reason = "the other tiers use the rest")]
mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use api_double::{ApiDouble, StreamingLists, node};
use nix::sys::signal::Signal;
use pointsman::lab::{Lab, Namespace};
use serde_json::{Value, json};
use tempfile::TempDir;

use daemon::{Daemon, Manifests};
use support::beds::{TCP, bed, pods};
use support::eventually;
use support::objects::{DNS, HTTP, frontends, scheduled, service, service_at, shop, slice_of, slices};
use support::oracle::{nft, ruleset};
use support::traffic::{Held, Restless, assert_refused, assert_silent, names, tally};

/// An API server inside the node, the objects it has, and the daemon that follows it.
struct Cluster {
    double: ApiDouble,
    daemon: Daemon,
    _directory: TempDir,
}

/// What is listed when there is nothing but what stays: its lines, sorted, without shared plans.
#[derive(Clone, Debug, PartialEq)]
struct Quiet(Vec<String>);

/// Every element of a map, as `nft` writes it, without comments.
fn elements(inside: &Namespace, family: &str, map: &str) -> BTreeSet<String> {
    let text = nft(inside, &["list", "map", family, "pointsman", map]);
    let Some((_, text)) = text.split_once("elements = {") else { return BTreeSet::new() };
    let text = text.split_once('}').expect("its end").0;
    let plain = text.split(',').map(|element| {
        let (before, after) = element.split_once(" comment \"").unwrap_or((element, ""));
        let value = after.split_once('"').map_or("", |(_, value)| value);
        format!("{}{value}", before.trim())
    });
    plain.collect()
}

/// The frontends in a map, without what they lead to.
fn keys(inside: &Namespace, map: &str) -> BTreeSet<String> {
    let all = elements(inside, "ip", map);
    all.iter().map(|element| element.split(" : ").next().unwrap_or_default().trim().to_owned()).collect()
}

// === impl Cluster ===

impl Cluster {
    fn start(lab: &Lab, dialect: StreamingLists, objects: &[Value]) -> Self {
        let double = lab.node().run(ApiDouble::start);
        double.streaming_lists(dialect);
        double.apply(node("n1", &[("InternalIP", "192.168.50.1")]));
        for object in objects {
            double.apply(object.clone());
        }
        let directory = tempfile::tempdir().expect("a directory");
        let kubeconfig = double.kubeconfig(directory.path());
        let mut daemon = Daemon::start(lab.node(), &["--kubeconfig", kubeconfig.to_str().expect("UTF-8")]);
        daemon.programmed();
        Self { double, daemon, _directory: directory }
    }

    fn apply(&self, objects: &[Value]) {
        for object in objects {
            self.double.apply(object.clone());
        }
    }

    fn delete(&self, objects: &[Value]) {
        for object in objects {
            let path = match object["kind"].as_str() {
                Some("Service") => "/api/v1/services",
                Some("EndpointSlice") => "/apis/discovery.k8s.io/v1/endpointslices",
                other => panic!("{other:?}"),
            };
            let text = |field: &str| object["metadata"][field].as_str().expect("text").to_owned();
            self.double.delete(path, &text("namespace"), &text("name"));
        }
    }
}

// === impl Quiet ===

impl Quiet {
    /// Remembers what is listed now.
    fn now(lab: &Lab) -> Self {
        let text = ruleset(lab.node().namespace());
        // A shared plan is a chain `random-N` and an element in each of two maps; one with more in its name is some Service's own.
        let shared = |name: &str| name.strip_prefix("random-").is_some_and(|count| count.parse::<u32>().is_ok());
        let mut kept = Vec::new();
        let mut in_shared = false;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("\tchain ").and_then(|line| line.strip_suffix(" {")) {
                in_shared = shared(name);
            }
            if !in_shared {
                let line = line.trim().trim_start_matches("elements = {").trim_end_matches('}');
                let parts = line.split(", ").map(|part| part.trim().trim_end_matches(','));
                let parts = parts.filter(|part| !part.rsplit(" : goto ").next().is_some_and(shared));
                kept.extend(parts.filter(|part| !part.is_empty()).map(str::to_owned));
            }
            in_shared &= line != "\t}";
        }
        kept.sort();
        Self(kept)
    }

    /// Waits until it is listed again.
    fn comes_back(&self, lab: &Lab) {
        let begin = Instant::now();
        loop {
            let now = Self::now(lab);
            if now == *self {
                return;
            }
            if begin.elapsed() > Duration::from_secs(10) {
                let only = |one: &Self, other: &Self| -> Vec<String> {
                    one.0.iter().filter(|line| !other.0.contains(line)).cloned().collect()
                };
                panic!("left behind: {:#?}; missing: {:#?}", only(&now, self), only(self, &now));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The same object, more than 1 MiB of it annotations; each serial makes another object.
fn heavy(mut object: Value, serial: usize) -> Value {
    let text = "x\"\\\n\u{2603}".repeat((1 << 20) / 8);
    object["metadata"]["annotations"]["example.org/blob"] = text.into();
    object["metadata"]["annotations"]["example.org/serial"] = serial.to_string().into();
    assert!(object.to_string().len() > 1 << 20);
    object
}

/// Objects of more than a megabyte arrive by both ways of listing and by watch, and count like small ones.
fn heavy_objects(dialect: StreamingLists) {
    let lab = bed(3);
    let rest = shop("rest", 9, &pods([3]));
    let first: Vec<Value> =
        shop("web", 1, &pods(1..=2)).into_iter().enumerate().map(|(n, object)| heavy(object, n)).collect();
    let mut cluster = Cluster::start(&lab, dialect, &[rest.clone(), first.clone()].concat());
    let asked = || tally(lab.client(0), frontends(1, 80)[0], 30);
    assert_eq!(names(&asked()), ["web-1", "web-2"], "{dialect:?}: listed");
    let client = Restless::start(lab.client(0), &frontends(9, 80));
    let second: Vec<Value> = slices("web", &pods(2..=3)).into_iter().map(|slice| heavy(slice, 9)).collect();
    cluster.apply(&second);
    eventually("the endpoints of a heavy update", || names(&asked()) == ["web-2", "web-3"]);
    cluster.delete(&first);
    eventually("its end", || keys(lab.node().namespace(), "services").len() == 2);
    assert_eq!(elements(lab.node().namespace(), "ip", "endpoints").len(), 2, "what is left is the unrelated Service's");
    client.assert_uninterrupted("heavy objects");
    assert_eq!(cluster.daemon.count(&["WARN"]), 0, "{dialect:?}: {:#?}", cluster.daemon.said());
    cluster.daemon.assert_alive();
}

#[test]
fn objects_larger_than_a_megabyte_are_streamed() {
    heavy_objects(StreamingLists::Supported);
}

#[test]
fn objects_larger_than_a_megabyte_are_listed() {
    heavy_objects(StreamingLists::Refused);
}

#[test]
fn five_thousand_endpoints_come_and_go() {
    let lab = bed(2);
    let cluster = Cluster::start(&lab, StreamingLists::Supported, &shop("rest", 9, &pods([2])));
    let (quiet, inside) = (Quiet::now(&lab), lab.node().namespace());
    let client = Restless::start(lab.client(0), &frontends(9, 80));
    let address = |number: u32| IpAddr::from(Ipv4Addr::from(0x0a80_0000 + number));
    // 100 endpoints per slice, as the controller makes them.
    let mut all: Vec<Value> = (0..50)
        .map(|slice| {
            let addresses: Vec<_> = (1..=100).map(|number| address(slice * 256 + number)).collect();
            let mut value = slice_of("big", "IPv4", &addresses, &[("http", "TCP", TCP)]);
            value["metadata"]["name"] = json!(format!("big-{slice}"));
            value
        })
        .collect();
    all.insert(0, service_at("big", &["10.96.0.1"], &[HTTP]));
    // Ready endpoints of the unrelated Service: one per protocol.
    let count = || elements(inside, "ip", "endpoints").len() - 2;
    cluster.apply(&all);
    eventually("5,000 endpoints", || count() == 5000);
    cluster.delete(&all[1..=25]);
    eventually("half of them", || count() == 2500);
    cluster.delete(&all);
    quiet.comes_back(&lab);
    client.assert_uninterrupted("5,000 endpoints");
}

#[test]
fn names_at_their_limits_and_beyond_are_served_listed_and_adopted() {
    let lab = bed(2);
    let manifests = Manifests::of(&shop("rest", 9, &pods([2])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let quiet = Quiet::now(&lab);
    // A label may have 63 characters, a subdomain 253 (RFC 1035, RFC 1123). The rest no API server would take, but a manifest may say it.
    let cases = [(63, 63, 63, 253), (253, 253, 63, 253), (300, 1000, 300, 4000)];
    let objects: Vec<Value> = (1u8..)
        .zip(cases)
        .flat_map(|(number, (namespace, name, port, slice))| {
            let (namespace, name, port) = ("s".repeat(namespace), "n".repeat(name), "p".repeat(port));
            let mut made = vec![scheduled(service(&name, number, &[(&port, "TCP", 80)]), "rr")];
            for (family, address) in [("IPv4", IpAddr::from(pods([1])[0].v4)), ("IPv6", pods([1])[0].v6.into())] {
                let mut object = slice_of(&name, family, &[address], &[(&port, "TCP", TCP)]);
                object["metadata"]["name"] = format!("{family}{}", "e".repeat(slice - 4)).to_lowercase().into();
                made.push(object);
            }
            made.iter_mut().for_each(|object| object["metadata"]["namespace"] = namespace.clone().into());
            made
        })
        .collect();
    manifests.write("long.json", &objects);
    daemon.programmed();
    let served = |what: &str| {
        for number in 1..=3 {
            for to in frontends(number, 80) {
                assert_eq!(names(&tally(lab.client(0), to, 3)), ["web-1"], "{what}: names of case {number}");
            }
        }
    };
    served("at first");
    let before = ruleset(lab.node().namespace());
    daemon.end(Signal::SIGKILL);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    let line = daemon.programmed();
    assert!(line.contains(" elements=0 "), "what is there is known by its cut names: {line}");
    assert_eq!(ruleset(lab.node().namespace()), before);
    served("after a restart");
    manifests.remove("long.json");
    quiet.comes_back(&lab);
    daemon.assert_alive();
}

#[test]
fn a_service_that_changes_its_type_every_10_ms_disturbs_nobody() {
    let lab = bed(3);
    let mut cluster = Cluster::start(&lab, StreamingLists::Supported, &shop("rest", 9, &pods([3])));
    let (quiet, inside) = (Quiet::now(&lab), lab.node().namespace());
    let mut held = Held::open(lab.client(0), frontends(9, 80)[0]);
    let client = Restless::start(lab.client(0), &frontends(9, 80));
    let endpoints = slices("flip", &pods(1..=2));
    cluster.apply(&endpoints);
    let kind = |turn: usize| {
        let mut flip = service("flip", 1, &[HTTP, DNS]);
        let spec = &mut flip["spec"];
        match turn % 5 {
            0 => {}
            1 => {
                spec["type"] = "NodePort".into();
                spec["ports"][0]["nodePort"] = 30_080.into();
            }
            2 => {
                spec["type"] = "LoadBalancer".into();
                spec["ports"][0]["nodePort"] = (30_080 + turn % 7).into();
                spec["loadBalancerSourceRanges"] = json!(["192.168.50.0/24"]);
                spec["externalIPs"] = json!(["198.51.100.7"]);
                spec["sessionAffinity"] = "ClientIP".into();
                flip["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
            }
            3 => {
                *spec = json!({"type": "ExternalName", "externalName": "example.org", "ports": spec["ports"]});
            }
            _ => {
                spec["clusterIP"] = "None".into();
                spec["clusterIPs"] = json!(["None"]);
            }
        }
        flip
    };
    let begin = Instant::now();
    let mut turn = 0;
    while begin.elapsed() < Duration::from_secs(2) {
        cluster.apply(&[kind(turn)]);
        turn += 1;
        std::thread::sleep(Duration::from_millis(10));
    }
    // The last word: a node port that none of the others had.
    let mut last = kind(1);
    last["spec"]["ports"][0]["nodePort"] = 30_099.into();
    cluster.apply(&[last.clone()]);
    let wanted = |map: &str, those: &[&str]| keys(inside, map) == those.iter().map(|key| (*key).to_owned()).collect();
    eventually("the last state", || wanted("node-ports", &["tcp . 30099"]));
    let services = ["10.96.0.1 . tcp . 80", "10.96.0.1 . udp . 53", "10.96.0.9 . tcp . 80", "10.96.0.9 . udp . 53"];
    assert!(wanted("services", &services), "{:?}", elements(inside, "ip", "services"));
    // Two ports of two pods, and of the one of the unrelated Service.
    assert_eq!(elements(inside, "ip", "endpoints").len(), 6, "{:?}", elements(inside, "ip", "endpoints"));
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 30)), ["web-1", "web-2"]);
    let node_port = "192.168.50.1:30099".parse().expect("an address");
    assert_eq!(names(&tally(lab.client(0), node_port, 30)), ["web-1", "web-2"]);
    assert_refused(pointsman::lab::connect, lab.client(0), "192.168.50.1:30080".parse().expect("one"), "a former port");

    cluster.delete(&[vec![last], endpoints.to_vec()].concat());
    quiet.comes_back(&lab);
    held.assert_alive("a Service that never rests");
    client.assert_uninterrupted("a Service that never rests");
    assert_eq!(cluster.daemon.count(&["WARN"]) + cluster.daemon.count(&["ERROR"]), 0, "{:#?}", cluster.daemon.said());
    cluster.daemon.assert_alive();
}

#[test]
fn a_slice_whose_thousand_endpoints_flap_every_10_ms_disturbs_nobody() {
    let lab = bed(3);
    let mut cluster = Cluster::start(&lab, StreamingLists::Supported, &shop("rest", 9, &pods([3])));
    let (quiet, inside) = (Quiet::now(&lab), lab.node().namespace());
    let client = Restless::start(lab.client(0), &frontends(9, 80));
    // As many as a slice may have, the two that are there among them.
    let here: Vec<IpAddr> = pods(1..=2).iter().map(|pod| pod.v4.into()).collect();
    let all: Vec<IpAddr> = (2..1000u32).map(|number| IpAddr::from(Ipv4Addr::from(0x0a80_0000 + number))).collect();
    let all = [here.clone(), all].concat();
    let flapping = |ready: &[IpAddr]| slice_of("flap", "IPv4", ready, &[("http", "TCP", TCP)]);
    let service = service_at("flap", &["10.96.0.1"], &[HTTP]);
    cluster.apply(&[service.clone(), flapping(&all)]);
    let begin = Instant::now();
    let mut turn = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        turn += 1;
        // All of them, every other, none, and all but one.
        let ready: Vec<_> = match turn % 4 {
            0 => all.clone(),
            1 => all.iter().copied().step_by(2).collect(),
            2 => Vec::new(),
            _ => all[1..].to_vec(),
        };
        cluster.apply(&[flapping(&ready)]);
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.apply(&[flapping(&here)]);
    let rest = 2;
    eventually("the last state", || elements(inside, "ip", "endpoints").len() == here.len() + rest);
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 30)), ["web-1", "web-2"]);
    cluster.delete(&[service, flapping(&here)]);
    quiet.comes_back(&lab);
    client.assert_uninterrupted("a slice that flaps");
    assert_eq!(cluster.daemon.count(&["WARN"]) + cluster.daemon.count(&["ERROR"]), 0, "{:#?}", cluster.daemon.said());
    cluster.daemon.assert_alive();
}

#[test]
fn slices_of_a_service_that_never_comes_leave_no_trace() {
    let lab = bed(2);
    let mut cluster = Cluster::start(&lab, StreamingLists::Supported, &shop("rest", 9, &pods([2])));
    let quiet = Quiet::now(&lab);
    let orphans: Vec<Value> =
        (0..500).flat_map(|number| slices(&format!("never-{number}"), &pods(1..=2)).to_vec()).collect();
    cluster.apply(&orphans);
    // What comes after them is programmed, so they have been looked at.
    let after = shop("after", 1, &pods([1]));
    cluster.apply(&after);
    let to = frontends(1, 80)[0];
    eventually("what came after", || lab.client(0).connect(to, Duration::from_millis(100)).is_ok());
    cluster.delete(&after);
    quiet.comes_back(&lab);
    // The Service may come after all, and go.
    let late = service("never-7", 2, &[HTTP]);
    cluster.apply(std::slice::from_ref(&late));
    let to = frontends(2, 80)[0];
    eventually("a Service that did come", || lab.client(0).connect(to, Duration::from_millis(100)).is_ok());
    assert_eq!(names(&tally(lab.client(0), to, 30)), ["web-1", "web-2"]);
    cluster.delete(&[vec![late], orphans].concat());
    quiet.comes_back(&lab);
    assert_eq!(cluster.daemon.count(&["WARN"]), 0, "{:#?}", cluster.daemon.said());
    cluster.daemon.assert_alive();
}

#[test]
fn a_service_all_of_whose_ports_collide_waits_for_its_turn() {
    let lab = bed(3);
    let mut cluster = Cluster::start(&lab, StreamingLists::Supported, &shop("rest", 9, &pods([3])));
    let quiet = Quiet::now(&lab);
    // Cluster address, node ports, external address: everything is another's, in both families.
    let claim = |name: &str, created: &str, pod: usize| {
        let mut service = service(name, 1, &[HTTP, DNS]);
        service["metadata"]["creationTimestamp"] = created.into();
        service["spec"]["type"] = "NodePort".into();
        service["spec"]["externalIPs"] = json!(["198.51.100.7"]);
        for (index, port) in [30_080, 30_053].into_iter().enumerate() {
            service["spec"]["ports"][index]["nodePort"] = port.into();
        }
        [vec![service], slices(name, &pods([pod])).to_vec()].concat()
    };
    let first = claim("first", "2026-01-01T00:00:00Z", 1);
    let second = claim("second", "2026-02-01T00:00:00Z", 2);
    // The younger one comes first and has to give way.
    cluster.apply(&second);
    let [v4, v6] = frontends(1, 80);
    // A Service may come before its slices, or go after them: for that moment nobody answers.
    let asked = |to| lab.client(0).connect(to, Duration::from_millis(100)).map(|answer| answer.pod);
    let answers = |pod: &str| [v4, v6].iter().cycle().take(10).all(|to| asked(*to).is_ok_and(|name| name == pod));
    eventually("the younger one alone", || answers("web-2"));
    cluster.apply(&first);
    eventually("the older one", || answers("web-1"));
    let node_port = "192.168.50.1:30080".parse().expect("an address");
    assert_eq!(names(&tally(lab.client(0), node_port, 5)), ["web-1"], "the node port, too");
    let collision = r#""TCP 10.96.0.1:80": already served for Service shop/first"#;
    eventually("one warning", || cluster.daemon.count(&["WARN", "shop/second", collision]) == 1);
    cluster.delete(&first);
    eventually("the next in line", || answers("web-2"));
    assert_eq!(names(&tally(lab.client(0), node_port, 5)), ["web-2"]);
    cluster.delete(&second);
    quiet.comes_back(&lab);
    assert_silent(lab.client(0), v4, "nobody's");
    cluster.daemon.assert_alive();
}

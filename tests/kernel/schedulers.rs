//! Who answers whom, scheduler by scheduler: in turn by weight, by hash of client, port or address, and the same on every node.
//!
//! Weights are given to the compiler directly ([`Weighted`]), as policy would give them. Clients with many addresses are one client
//! that has them all: the node sends everything it does not know to the first client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use pointsman::compile::layout::Plan;
use pointsman::compile::{Compiler, Delta};
use pointsman::engine::Engine;
use pointsman::kernel::DataPlane;
use pointsman::lab::{Host, Lab, Namespace, connect};
use pointsman::model::{Family, PortKey, Protocol, ServiceKey};
use pointsman::policy::{Frontend, Path, ResolvedPort, Role, Settings, Verdict};
use pointsman::schedule::{Buckets, Candidate, Scheduler, TableSizes};
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::{PATIENCE, TCP, bed, pods};
use super::support::objects::{HTTP, frontends, scheduled, service_at, shop, slice_of, slices};
use super::support::oracle::{chain_handle, chains, elements, nft, ruleset};
use super::support::traffic::{Held, Restless, Tally, assert_even, tally};

/// Addresses of the clients that hashing schedulers are asked about.
fn sources(family: usize) -> Vec<IpAddr> {
    let source = |number: u8| match family {
        0 => IpAddr::from([198, 51, 100, number]),
        _ => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)]),
    };
    (1..=40).map(source).collect()
}

/// Gives the first client all addresses of [`sources`].
fn be_many(lab: &Lab) {
    let mut links = lab.client(0).namespace().rtnl().expect("a netlink socket");
    for (family, prefix) in [(0, 32), (1, 128)] {
        for address in sources(family) {
            links.add_address("eth0", address, prefix).expect("an address");
        }
    }
}

/// Who answers a datagram from this address and port; 0 is any port.
fn asked_from(source: IpAddr, port: u16, to: SocketAddr) -> String {
    let socket = UdpSocket::bind((source, port)).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(to).expect("a route");
    socket.send(b"question").expect("sent");
    let mut answer = [0; 64];
    let len = socket.recv(&mut answer).unwrap_or_else(|error| panic!("{source} should be answered at {to}: {error}"));
    let pod = answer[..len].strip_prefix(b"question").expect("an answer to the question");
    String::from_utf8(pod.to_vec()).expect("a name")
}

/// Who answers each of the [`sources`].
fn homes(lab: &Lab, family: usize) -> BTreeMap<IpAddr, String> {
    let to = frontends(1, 53)[family];
    lab.client(0).run(|| sources(family).into_iter().map(|source| (source, asked_from(source, 0, to))).collect())
}

fn shop_by(scheduler: &str, ready: impl IntoIterator<Item = usize>) -> Vec<Value> {
    let mut objects = shop("web", 1, &pods(ready));
    objects[0] = scheduled(objects[0].take(), scheduler);
    objects
}

/// Small tables: what is asked here does not depend on their size.
fn small() -> TableSizes {
    sizes(64, 509)
}

fn sizes(hash: usize, maglev: usize) -> TableSizes {
    let buckets = |count| Buckets::new(count).expect("a size");
    TableSizes { hash: buckets(hash), maglev: buckets(maglev) }
}

/// An engine for the node of this name.
fn engine(node: &str, tables: TableSizes) -> Engine {
    Engine::with_settings(Settings { node: node.into(), tables, ..Settings::default() }, Scheduler::Random)
}

fn serving(inside: &Namespace, node: &str, tables: TableSizes, objects: &[Value]) -> Proxy {
    let mut proxy = Proxy::start(inside);
    proxy.engine = engine(node, tables);
    proxy.put(objects);
    proxy
}

/// A TCP Service of both families whose endpoints have weights.
struct Weighted {
    scheduler: Scheduler,
    compiler: Compiler,
    plane: DataPlane,
}

impl Weighted {
    fn start(inside: &Namespace, scheduler: &str) -> Self {
        let mut plane = inside.run(DataPlane::open).expect("a data plane, which needs root");
        plane.read().expect("readable");
        Self { scheduler: scheduler.parse().expect("a scheduler"), compiler: Compiler::new("n1"), plane }
    }

    /// Programs pods by number with weights. Returns what differed.
    fn put(&mut self, weights: &[(usize, u32)]) -> Delta {
        let key = PortKey { service: ServiceKey::new("shop", "web"), name: "http".into(), protocol: Protocol::Tcp };
        let port = |family: Family| {
            let frontend = frontends(1, 80)[family as usize];
            let mut cluster: Vec<Candidate> = weights
                .iter()
                .map(|(pod, weight)| {
                    let pod = pods([*pod])[0];
                    let address = if family == Family::V4 { IpAddr::V4(pod.v4) } else { IpAddr::V6(pod.v6) };
                    Candidate { endpoint: SocketAddr::new(address, TCP), weight: *weight }
                })
                .collect();
            cluster.sort();
            let frontend = Frontend { address: frontend.ip(), protocol: Protocol::Tcp, port: frontend.port() };
            ResolvedPort {
                key: key.clone(),
                family,
                frontends: vec![(frontend, Role::Cluster)],
                node_port: None,
                internal: Verdict::Cluster,
                outside: Verdict::Cluster,
                inside: Verdict::Cluster,
                keeps_source: false,
                source_ranges: None,
                cluster,
                local: Vec::new(),
                serving: Vec::new(),
                local_addresses: Vec::new(),
                scheduler: self.scheduler,
                affinity: None,
                path: Path::Kernel,
            }
        };
        let mut delta = Delta::default();
        self.compiler.update(&key.service, &Family::ALL.map(port), &mut delta);
        self.plane.apply(&delta).expect("the kernel takes the change");
        delta
    }
}

/// Who answers each of so many connections, in their order.
fn answers(from: &Host, to: SocketAddr, count: usize) -> Vec<String> {
    from.run(|| (0..count).map(|_| connect(to, PATIENCE).expect("an answer").pod).collect())
}

fn tallied(answers: &[String]) -> Vec<(&str, usize)> {
    let mut tally = BTreeMap::new();
    answers.iter().for_each(|pod| *tally.entry(pod.as_str()).or_default() += 1);
    tally.into_iter().collect()
}

#[test]
fn weighted_round_robin_is_exact_in_every_cycle() {
    let lab = bed(3);
    let mut service = Weighted::start(lab.node().namespace(), "wrr");
    service.put(&[(1, 5), (2, 2), (3, 1)]);
    for to in frontends(1, 80) {
        let answers = answers(lab.client(0), to, 40);
        for cycle in answers.windows(8) {
            assert_eq!(tallied(cycle), [("web-1", 5), ("web-2", 2), ("web-3", 1)], "any eight in a row: {answers:?}");
        }
        let longest = answers.chunk_by(|a, b| a == b).map(<[String]>::len).max();
        assert_eq!(longest, Some(2), "turns are spread, from one cycle to the next too: {answers:?}");
    }
    ruleset(lab.node().namespace());
}

#[test]
fn a_change_of_weights_touches_the_slots_that_differ_and_nothing_else() {
    let lab = bed(3);
    let inside = lab.node().namespace();
    let mut service = Weighted::start(inside, "wrr");
    service.put(&[(1, 5), (2, 2), (3, 1)]);
    let chain = chain_handle(inside, "ip", "rr-8-00001-shop/web/tcp/http").expect("a chain of its own");
    let mut held = Held::open(lab.client(0), frontends(1, 80)[0]);
    let delta = service.put(&[(1, 4), (2, 3), (3, 1)]);
    let of_v4 = &delta.v4;
    assert!((1..8).contains(&of_v4.endpoints.len()), "some of eight slots: {:?}", of_v4.endpoints);
    assert_eq!(of_v4.len(), of_v4.endpoints.len(), "nothing but slots");
    let answers = answers(lab.client(0), frontends(1, 80)[0], 8);
    assert_eq!(tallied(&answers), [("web-1", 4), ("web-2", 3), ("web-3", 1)]);
    assert_eq!(chain_handle(inside, "ip", "rr-8-00001-shop/web/tcp/http"), Some(chain), "so the counter goes on");
    assert!(service.put(&[(1, 40), (2, 30), (3, 10)]).is_empty(), "the same shares");
    held.assert_alive("weights changed");
}

#[test]
fn random_goes_by_weight() {
    let lab = bed(3);
    let mut service = Weighted::start(lab.node().namespace(), "random");
    service.put(&[(1, 6), (2, 3), (3, 1)]);
    for to in frontends(1, 80) {
        let answers = answers(lab.client(0), to, 600);
        for (pod, count) in tallied(&answers) {
            let due = match pod {
                "web-1" => 360.0,
                "web-2" => 180.0,
                _ => 60.0,
            };
            // Five standard deviations.
            let slack = 5.0 * f64::sqrt(due * (1.0 - due / 600.0));
            assert!((count as f64 - due).abs() < slack, "{pod}: {count} of 600, {due} are due");
        }
    }
}

#[test]
fn round_robin_differs_by_one_at_most_over_ten_thousand_connections_in_lock_step_with_another() {
    let lab = bed(3);
    let mut cart = shop("cart", 2, &pods(1..=2));
    cart[0] = scheduled(cart[0].take(), "rr");
    let _proxy = Proxy::serving(lab.node().namespace(), &[shop_by("rr", 1..=3), cart].concat());
    let targets = [frontends(1, 53)[0], frontends(2, 53)[0]];
    let mut tallies = [Tally::new(), Tally::new()];
    let own = lab.client(0).addresses().v4.into();
    lab.client(0).run(|| {
        // Each from a port of its own: a flow that is known is no new connection, and a child process that another test is just
        // starting may hold a socket for a moment longer.
        for number in 0..10_000 {
            for ((target, tally), first) in targets.iter().zip(&mut tallies).zip([10_000, 30_000]) {
                *tally.entry(asked_from(own, first + number, *target)).or_default() += 1;
            }
        }
    });
    assert_even(&tallies[0], 3, "10,000 connections to web");
    assert_even(&tallies[1], 2, "10,000 connections to cart");
}

#[test]
fn a_client_has_the_same_endpoint_on_every_node_and_only_the_leavers_clients_move() {
    // Two nodes, which learn of the endpoints in another order.
    let labs = [bed(4), bed(4)];
    labs.iter().for_each(be_many);
    for scheduler in ["sh", "mh"] {
        let mut nodes: Vec<Proxy> = Vec::new();
        for (lab, node) in labs.iter().zip(["n1", "n2"]) {
            let mut objects = shop_by(scheduler, 1..=4);
            if node == "n2" {
                objects = shop_by(scheduler, 3..=4);
            }
            let mut proxy = serving(lab.node().namespace(), node, small(), &objects);
            proxy.put(&slices("web", &pods([4, 2, 1, 3])));
            nodes.push(proxy);
        }
        for family in 0..2 {
            for proxy in &mut nodes {
                proxy.put(&slices("web", &pods(1..=4)));
            }
            let before = homes(&labs[0], family);
            let pods_of: BTreeSet<_> = before.values().collect();
            assert_eq!(pods_of.len(), 4, "{scheduler}: 40 clients should meet all of 4 endpoints: {before:?}");
            assert_eq!(before, homes(&labs[1], family), "{scheduler}: the same on both nodes");
            assert_eq!(before, homes(&labs[0], family), "{scheduler}: and again");
            // web-2 is drained: it takes no new connections, and its clients fall through to others.
            for proxy in &mut nodes {
                let mut drained = slices("web", &pods(1..=4));
                for slice in &mut drained {
                    slice["endpoints"][1]["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
                }
                proxy.put(&drained);
            }
            let after = homes(&labs[0], family);
            assert_eq!(after, homes(&labs[1], family), "{scheduler}: the same on both nodes, too");
            assert!(after.values().all(|pod| pod != "web-2"), "{scheduler}: {after:?}");
            let moved = before.iter().filter(|(source, pod)| *pod != "web-2" && after[source] != **pod).count();
            let most = if scheduler == "sh" { 0 } else { 6 };
            assert!(moved <= most, "{scheduler}: {moved} clients of others moved");
        }
        for (proxy, lab) in nodes.into_iter().zip(&labs) {
            let mut proxy = proxy;
            proxy.assert_exact(scheduler);
            ruleset(lab.node().namespace());
            proxy.plane.remove().expect("removed");
        }
    }
}

#[test]
fn with_the_port_one_client_meets_all_endpoints_and_the_same_ones_on_every_node() {
    let labs = [bed(3), bed(3)];
    for scheduler in ["sh,sh-port", "mh,mh-port"] {
        let mut seen = Vec::new();
        for (lab, node) in labs.iter().zip(["n1", "n2"]) {
            let mut proxy = serving(lab.node().namespace(), node, small(), &shop_by(scheduler, 1..=3));
            for family in 0..2 {
                let own = lab.client(0).addresses().usable().nth(family).expect("both families");
                let to = frontends(1, 53)[family];
                // Ports that no question has used before: a flow that is known keeps its endpoint.
                let first = if scheduler.starts_with("sh") { 20_000 } else { 21_000 };
                let answered: Vec<String> =
                    lab.client(0).run(|| (first..first + 40).map(|port| asked_from(own, port, to)).collect());
                let distinct: BTreeSet<_> = answered.iter().cloned().collect();
                assert_eq!(distinct.len(), 3, "{scheduler}: 40 ports should meet all of 3 endpoints: {answered:?}");
                seen.push(answered);
            }
            ruleset(lab.node().namespace());
            proxy.plane.remove().expect("removed");
        }
        assert_eq!(seen[..2], seen[2..], "{scheduler}: the same on both nodes");
    }
}

#[test]
fn by_destination_everybody_meets_the_same_endpoint() {
    let lab = bed(3);
    be_many(&lab);
    let mut objects = shop_by("dh", 1..=3);
    let addresses: Vec<IpAddr> = (1..=12)
        .flat_map(|number: u8| {
            [IpAddr::from([203, 0, 113, number]), IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)])]
        })
        .collect();
    objects[0]["spec"]["externalIPs"] = json!(addresses);
    let _proxy = serving(lab.node().namespace(), "n1", small(), &objects);
    for family in 0..2 {
        let to = addresses.iter().filter(|address| address.is_ipv4() == (family == 0));
        let served: Vec<String> = to
            .map(|address| {
                let to = SocketAddr::new(*address, 53);
                let sources = sources(family);
                let ask = || sources.iter().take(6).map(|source| asked_from(*source, 0, to)).collect::<BTreeSet<_>>();
                let answered = lab.client(0).run(ask);
                assert_eq!(answered.len(), 1, "{to}: everybody should meet one endpoint: {answered:?}");
                answered.into_iter().next().expect("one")
            })
            .collect();
        let distinct: BTreeSet<_> = served.iter().collect();
        // Twelve addresses that all go to one of three endpoints: once in 10^5.
        assert!(distinct.len() > 1, "addresses should be spread: {served:?}");
    }
}

#[test]
fn one_endpoint_needs_no_table_and_a_table_comes_and_goes_unnoticed() {
    let lab = bed(3);
    let inside = lab.node().namespace();
    let mut proxy = serving(inside, "n1", TableSizes::default(), &shop_by("sh", [1]));
    assert_eq!(elements(inside, "ip", "endpoints"), 2, "one slot per port");
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    for ready in [vec![1, 2], vec![2], vec![1, 2, 3], vec![3], vec![1]] {
        proxy.put(&slices("web", &pods(ready.iter().copied())));
        client.wait_for(3);
        let wanted = if ready.len() == 1 { 2 } else { 2048 };
        assert_eq!(elements(inside, "ip", "endpoints"), wanted);
        for to in frontends(1, 80) {
            let answered = tally(lab.client(0), to, 3);
            assert_eq!(answered.len(), 1, "always the same one: {answered:?}");
        }
    }
    client.assert_uninterrupted("a table comes and goes");
    proxy.assert_exact("one endpoint");
}

#[test]
fn a_table_larger_than_a_transaction() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let slice = |ready: std::ops::Range<u8>| {
        let addresses: Vec<IpAddr> = ready.map(|last| [10, 244, 0, last].into()).collect();
        slice_of("six", "IPv4", &addresses, &[("http", "TCP", TCP)])
    };
    let service = scheduled(service_at("six", &["10.96.0.6"], &[HTTP]), "mh");
    let mut proxy = serving(&inside, "n1", sizes(16, 32749), &[service, slice(2..12)]);
    proxy.assert_exact("the first table");
    let applied = proxy.put(&[slice(2..11)]);
    assert!((3000..5000).contains(&applied.elements), "the leaver's tenth, and few others: {applied:?}");
    proxy.assert_exact("one left");
    let applied = proxy.put(&[slice(20..30)]);
    assert_eq!(applied.elements, 32749, "all are others");
    proxy.assert_exact("ten others");
    let applied = proxy.put(&[slice(20..21)]);
    assert!(applied.transactions > 3, "a frontend, then the table in pieces: {applied:?}");
    proxy.assert_exact("a single one");
}

#[test]
fn a_restart_adopts_every_scheduler_and_rewrites_nothing() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let names = Scheduler::NAMES.into_iter().chain(["sh,sh-port", "mh,mh-port"]);
    let mut objects = Vec::new();
    for (number, name) in names.enumerate() {
        for (sticky, shift) in [(false, 1), (true, 41)] {
            let number = u8::try_from(number).expect("few") + shift;
            let called = format!("s{number}");
            let mut of_one = shop(&called, number, &pods(1..=3));
            of_one[0] = scheduled(of_one[0].take(), name);
            if sticky {
                of_one[0]["spec"]["sessionAffinity"] = json!("ClientIP");
            }
            objects.extend(of_one);
        }
    }
    let first = serving(&inside, "n1", small(), &objects);
    let before = ruleset(&inside);
    first.die(&inside);
    let mut next = Proxy::start(&inside);
    assert!(next.found.rejected.is_empty(), "{:?}", next.found.rejected);
    next.engine = engine("n1", small());
    next.engine.adopt(next.found.image.clone());
    let difference = next.difference(&objects);
    assert!(difference.is_empty(), "{difference:?}");
    next.plane.apply(&difference).expect("nothing to do");
    assert_eq!(ruleset(&inside), before);
    // With tables of other sizes only tables change.
    next.die(&inside);
    let mut other = Proxy::start(&inside);
    other.engine = engine("n1", sizes(32, 251));
    other.engine.adopt(other.found.image.clone());
    let difference = other.difference(&objects);
    let moved: BTreeSet<Plan> = difference.v4.services.added().map(|(_, target)| target.decision.plan).collect();
    assert!(moved.iter().all(|plan| matches!(plan, Plan::Hash(..))) && moved.len() == 5, "{moved:?}");
    other.plane.apply(&difference).expect("the kernel takes the difference");
    other.assert_exact("other sizes");
}

#[test]
fn affinity_begins_with_the_schedulers_choice() {
    let lab = bed(3);
    be_many(&lab);
    let inside = lab.node().namespace();
    let mut objects = shop_by("sh", 1..=3);
    let mut proxy = serving(inside, "n1", small(), &objects);
    let by_hash = homes(&lab, 0);
    objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    proxy.put(&objects);
    assert!(
        chains(inside, "ip").contains(&"sticky-sh-64-10800s-00002-shop/web/udp/dns".to_owned()),
        "{:?}",
        chains(inside, "ip")
    );
    assert_eq!(elements(inside, "ip", "members"), 6, "an endpoint in many slots is one member");
    assert_eq!(homes(&lab, 0), by_hash, "the first choice");
    // An endpoint joins: the table gives it clients, affinity keeps them where they are.
    let only_two = slices("web", &pods([1, 3]));
    proxy.put(&only_two);
    let kept = homes(&lab, 0);
    assert!(kept.iter().all(|(source, pod)| by_hash[source] == *pod || by_hash[source] == "web-2"), "{kept:?}");
    proxy.put(&slices("web", &pods(1..=3)));
    assert_eq!(homes(&lab, 0), kept, "stay where they went");
    proxy.assert_exact("affinity");
    ruleset(inside);
}

#[test]
fn shared_chains_of_hashes_are_shared() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut objects = Vec::new();
    for number in 1..=8 {
        let mut of_one = shop(&format!("s{number}"), number, &pods(1..=2));
        of_one[0] = scheduled(of_one[0].take(), if number % 2 == 0 { "sh" } else { "dh" });
        objects.extend(of_one);
    }
    let _proxy = serving(&inside, "n1", small(), &objects);
    let chains = chains(&inside, "ip");
    let by_hash: BTreeSet<_> = chains.iter().filter(|name| name.ends_with("-64")).map(String::as_str).collect();
    assert_eq!(by_hash, BTreeSet::from(["dh-64", "sh-64"]), "{chains:?}");
    let listed = nft(&inside, &["list", "chain", "ip6", "pointsman", "sh-64"]);
    assert!(listed.contains("jhash ip6 saddr mod 64 seed 0x706f696e"), "{listed}");
}

/// The kernel checks elements against rules that look into their map, and rules against elements: where each Service had such rules, many
/// Services would cost the square of their number.
#[test]
fn however_many_services_have_chains_of_their_own_few_rules_look_into_maps() {
    let rules = |services: u8| {
        let inside = Namespace::anonymous().expect("a namespace, which needs root");
        let mut objects = Vec::new();
        for number in 1..=services {
            let mut of_one = shop(&format!("s{number}"), number, &pods(1..=2));
            let scheduler = ["random", "rr", "lc", "sh", "mh,mh-port"][usize::from(number % 5)];
            of_one[0] = scheduled(of_one[0].take(), scheduler);
            if number > 5 || scheduler != "random" {
                of_one[0]["spec"]["sessionAffinity"] = json!(if number % 2 == 0 { "ClientIP" } else { "None" });
            }
            objects.extend(of_one);
        }
        let _proxy = serving(&inside, "n1", small(), &objects);
        let text = ruleset(&inside);
        let own = text.matches("\tchain sticky-").count();
        let maps = ["@endpoints", "@members", "@member-slots", "@affinity", "@services"];
        (
            own,
            maps.map(|map| {
                text.lines().filter(|line| line.contains(&format!("{map} ")) || line.ends_with(map)).count()
            }),
        )
    };
    let ((few, by_few), (many, by_many)) = (rules(10), rules(60));
    assert!(few >= 8 && many >= 100, "chains of their own: {few} and {many}");
    assert_eq!(by_few, by_many, "rules that look into a map");
    assert!(by_few.iter().all(|count| (1..40).contains(count)), "{by_few:?}");
}

/// What clients that stay need is there for each time that they stay, and goes with the last Service that has it.
#[test]
fn chains_of_a_timeout_go_with_the_last_service_that_has_it() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let sticky = |number: u8, seconds: u32| {
        let mut of_one = shop(&format!("s{number}"), number, &pods(1..=2));
        of_one[0]["spec"]["sessionAffinity"] = json!("ClientIP");
        of_one[0]["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        of_one
    };
    let shared = || -> Vec<String> {
        let parts = ["returning-", "newcomer-", "settle-"];
        let mut all = chains(&inside, "ip6");
        all.retain(|name| parts.iter().any(|part| name.starts_with(part)));
        all.sort();
        all
    };
    let of = |seconds: u32| ["newcomer", "returning", "settle"].map(|part| format!("{part}-{seconds}s"));
    let both = |one: u32, other: u32| {
        let mut both = [of(one), of(other)].concat();
        both.sort();
        both
    };
    let mut proxy = serving(&inside, "n1", small(), &[sticky(1, 60), sticky(2, 60), sticky(3, 9)].concat());
    assert_eq!(shared(), both(60, 9));
    proxy.put(&sticky(3, 7));
    assert_eq!(shared(), both(60, 7));
    proxy.put(&sticky(1, 7));
    assert_eq!(shared(), both(60, 7), "another has it");
    proxy.put(&sticky(2, 7));
    assert_eq!(shared(), of(7));
    for number in 1..=3 {
        proxy.delete(&sticky(number, 7));
    }
    assert_eq!(shared(), [""; 0]);
}

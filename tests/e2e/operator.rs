//! The operator's command against a running daemon, and without one.

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pointsman::kernel::glance;
use pointsman::lab::{Host, connect};
use serde_json::{Value, json};

use super::status::{Bed, ask};
use super::support::beds::{PATIENCE, TCP, bed, pods};
use super::support::objects::{cluster_ips, crowd, frontends, shop};
use super::support::oracle::nft;
use super::support::traffic::Held;

/// Runs `pointsman` in the node, and says how it ended and what it said.
pub fn pointsman(node: &Host, bed: &Bed, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.args(args).arg("--socket").arg(bed.socket());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = node.spawn(command).expect("the binary runs");
    let Output { status, stdout, stderr } = child.wait_with_output().expect("its end");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

pub fn said(node: &Host, bed: &Bed, args: &[&str]) -> String {
    let (code, out, error) = pointsman(node, bed, args);
    assert_eq!((code, &*error), (Some(0), ""), "{args:?}: {out}");
    out
}

pub fn json_of(node: &Host, bed: &Bed, args: &[&str]) -> Value {
    let out = said(node, bed, &[args, &["-o", "json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
}

/// A script as people have them for `ipvsadm -ln`: `FRONTEND ENDPOINT WEIGHT ACTIVE` per line.
fn as_scripts_read_it(listing: &str) -> Vec<String> {
    let script = r#"$1 ~ /^(TCP|UDP|SCTP)$/ { service = $1 " " $2 " " $3 }
        $1 == "->" && $2 != "RemoteAddress:Port" { print service, $2, $3, $4, $5, $6 }"#;
    let mut awk = Command::new("awk");
    awk.arg(script).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = awk.spawn().expect("awk is there");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), listing.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("its end");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn list_is_read_by_scripts_with_and_without_a_daemon() {
    let lab = bed(2);
    lab.node().namespace().sysctls(&[("netfilter/nf_conntrack_acct", "1")]).expect("a parameter");
    let mut objects = shop("web", 1, &pods([1, 2]));
    objects[0]["spec"]["type"] = json!("NodePort");
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    objects[0]["metadata"]["annotations"] = json!({"pointsman.dev/weights": "web-1=3"});
    objects[1]["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": "web-1"});
    let bed = Bed::of(&objects);
    let daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    let [v4, v6] = frontends(1, 80);
    let mut held: Vec<Held> = (0..4).map(|_| Held::open(lab.client(0), v4)).collect();
    held.push(Held::open(lab.client(0), (lab.node().addresses().v4, 30080).into()));
    let [first, second] =
        [1, 2].map(|index: usize| objects[1]["endpoints"][index - 1]["addresses"][0].as_str().expect("one").to_owned());
    let find = |rows: &[String], start: &str| {
        let row = rows.iter().find(|row| row.starts_with(start));
        row.unwrap_or_else(|| panic!("{start}: {rows:#?}")).clone()
    };
    let listing = said(lab.node(), &bed, &["list"]);
    assert!(listing.contains("\nProt LocalAddress:Port Scheduler Flags\n") && !listing.contains('\u{1b}'), "{listing}");
    let rows = as_scripts_read_it(&listing);
    let port = TCP;
    assert_eq!(find(&rows, &format!("TCP {v4} wrr {first}")), format!("TCP {v4} wrr {first}:{port} Masq 3 3 0"));
    assert_eq!(find(&rows, &format!("TCP {v4} wrr {second}")), format!("TCP {v4} wrr {second}:{port} Masq 1 1 0"));
    find(&rows, &format!("TCP {v6} wrr ["));
    let by_port = rows.iter().filter(|row| row.starts_with("TCP 0.0.0.0:30080 wrr") && row.ends_with(" 1 0")).count();
    assert_eq!(by_port, 1, "{rows:#?}");
    let stats = said(lab.node(), &bed, &["list", "--stats"]);
    let total = stats.lines().find(|line| line.starts_with(&format!("TCP  {v4} "))).expect("the Service");
    let numbers: Vec<u64> = total.split_whitespace().skip(2).map(|word| word.parse().expect("a number")).collect();
    assert!(numbers[0] == 4 && numbers[1..].iter().all(|number| *number >= 8), "{stats}");
    let value = json_of(lab.node(), &bed, &["list"]);
    assert_eq!((&value["source"], &value["services"][0]["service"]), (&json!("daemon"), &json!("shop/web:http")));
    assert_eq!(value["services"][0]["endpoints"][0]["connections"]["active"], 3);
    let yaml = said(lab.node(), &bed, &["list", "-o", "yaml"]);
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).expect("YAML")["version"], "v1");
    assert!(said(lab.node(), &bed, &["list", "--connections"]).contains("shop/web:http"));
    let connections = |search: &str| json_of(lab.node(), &bed, &["list", "--connections", search]);
    let told = connections("web");
    assert!(told.as_array().is_some_and(|rows| rows.len() >= 3) && connections("nobody") == json!([]), "{told:#}");
    assert_eq!(value["partial"], false);
    let (code, nobody, error) = pointsman(lab.node(), &bed, &["list", "nobody"]);
    assert_eq!((code, &*error), (Some(0), "pointsman: no Service matches \"nobody\"\n"));
    assert_eq!(as_scripts_read_it(&nobody), [""; 0]);

    // Without a daemon the tables say the same of frontends and endpoints.
    daemon.end(Signal::SIGKILL);
    let (code, listing, error) = pointsman(lab.node(), &bed, &["list"]);
    assert!(code == Some(0) && error.contains("no daemon runs here"), "{error}");
    assert_eq!(as_scripts_read_it(&listing).len(), rows.len(), "{listing}");
    let rows = as_scripts_read_it(&listing);
    assert_eq!(find(&rows, &format!("TCP {v4} rr {first}")), format!("TCP {v4} rr {first}:{port} Masq 3 3 0"));
    for args in [&["get", "services"][..], &["explain", "10.96.0.1:80"]] {
        let (code, out, error) = pointsman(lab.node(), &bed, args);
        assert_eq!((code, &*out), (Some(1), ""), "{args:?}");
        assert!(error.starts_with("pointsman: no daemon runs here") && error.lines().count() == 1, "{error}");
    }
}

/// What is printed while it is made, and what is summed up by the command, also where a frontend's port is a node port, too.
#[test]
fn both_ways_to_list_agree() {
    let lab = bed(2);
    let (node, elsewhere) = (lab.node().addresses().v4, "10.77.0.1");
    let mut command = Command::new("ip");
    command.args(["address", "add", &format!("{elsewhere}/32"), "dev", "lo"]);
    assert!(lab.node().spawn(command).expect("ip is there").wait().expect("its end").success());
    let mut objects = [shop("web", 1, &pods([1, 2])), shop("own", 2, &pods([1, 2]))].concat();
    objects[0]["spec"]["type"] = json!("NodePort");
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    objects[3]["spec"]["externalIPs"] = json!([node]);
    objects[3]["spec"]["ports"][0]["port"] = json!(30080);
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    let client = lab.client(0);
    let to = |address: &str, count: usize| -> Vec<Held> {
        let at = format!("{address}:30080").parse().expect("an address");
        (0..count).map(|_| Held::open(client, at)).collect()
    };
    let _to_own = to(&node.to_string(), 3);
    let _to_node_port = to(elsewhere, 2);
    let _to_cluster_ip = Held::open(client, frontends(1, 80)[0]);

    let mut printed = as_scripts_read_it(&said(lab.node(), &bed, &["list"]));
    let listed = json_of(lab.node(), &bed, &["list"]);
    let row = |service: &Value, one: &Value| {
        let at = SocketAddr::new(
            service["address"].as_str().expect("one").parse().expect("an address"),
            u16::try_from(service["port"].as_u64().expect("one")).expect("a port"),
        );
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let connections = &one["connections"];
        let (active, inactive) = (&connections["active"], &connections["inactive"]);
        let (protocol, scheduler) = (text(&service["protocol"]), text(&service["scheduler"]));
        format!("{protocol} {at} {scheduler} {} Masq {} {active} {inactive}", text(&one["address"]), one["weight"])
    };
    let services = listed["services"].as_array().expect("a list").iter();
    let mut summed: Vec<_> = services
        .flat_map(|service| service["endpoints"].as_array().expect("a list").iter().map(move |one| row(service, one)))
        .collect();
    printed.sort();
    summed.sort();
    assert_eq!(printed, summed);
    let active = |start: &str| -> u64 {
        let rows = printed.iter().filter(|row| row.starts_with(start));
        rows.map(|row| row.split_whitespace().nth(6).expect("a number").parse::<u64>().expect("a number")).sum()
    };
    let counts = [format!("TCP {node}:30080 "), "TCP 0.0.0.0:30080 ".into(), "TCP 10.96.0.1:80 ".into()];
    assert_eq!(counts.map(|start| active(&start)), [3, 2, 1], "each where it was made to: {printed:#?}");
}

/// Opens connections, some each second, to each of these in turn, until it is stopped.
struct Steady {
    made: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Between two connections to the same address.
const PACE: Duration = Duration::from_millis(20);

// === impl Steady ===

impl Steady {
    fn start(from: &Host, to: &[SocketAddr]) -> Self {
        let (made, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped, to) = (made.clone(), stop.clone(), to.to_vec());
        let work = move || {
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                for to in &to {
                    connect(*to, PATIENCE).expect("somebody answers");
                }
                count.fetch_add(1, Ordering::Relaxed);
                next = (next + PACE).max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        };
        Self { made, stop, thread: Some(from.namespace().thread(work).expect("a thread")) }
    }

    /// How many per second came to each address meanwhile.
    fn during<T>(&self, what: impl FnOnce() -> T) -> (T, f64) {
        let (begin, before) = (Instant::now(), self.made.load(Ordering::Relaxed));
        let done = what();
        (done, (self.made.load(Ordering::Relaxed) - before) as f64 / begin.elapsed().as_secs_f64())
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("running").join();
        assert!(std::thread::panicking() || ended.is_ok(), "every connection was answered");
    }
}

/// What scripts get, of the IPv4 frontend of a Service: rates of its first endpoint.
fn rates_of(listed: &Value, service: &str) -> Value {
    let mut services = listed["services"].as_array().expect("a list").iter();
    let is = |one: &&Value| one["service"] == service && one["address"].as_str().is_some_and(|at| at.contains('.'));
    services.find(is).expect("the Service")["endpoints"][0]["rates"].clone()
}

/// In a steady state there are always as many connections, and none of them lasts.
#[test]
fn rates_count_what_is_opened_however_short() {
    let lab = bed(3);
    let set = |name: &str, value: &str| {
        lab.node().namespace().sysctls(&[(&format!("netfilter/{name}"), value)]).expect("a parameter");
    };
    set("nf_conntrack_acct", "1");
    // The kernel forgets as fast as clients come.
    set("nf_conntrack_tcp_timeout_time_wait", "2");
    let mut objects = [shop("web", 1, &pods([1])), shop("api", 2, &pods([2])), shop("own", 3, &pods([3]))].concat();
    objects[6]["metadata"]["annotations"] = json!({"pointsman.dev/datapath": "userspace"});
    let bed = Bed::of(&objects);
    let daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let [web, api, own] = [1, 2, 3].map(|number| frontends(number, 80)[0]);
    let mut standing = Held::open(lab.client(0), api);
    let steady = Steady::start(lab.client(0), &[web, own]);
    std::thread::sleep(Duration::from_secs(3));

    let (listed, came) = steady.during(|| json_of(lab.node(), &bed, &["list", "--rate"]));
    assert!(listed["seconds"].as_f64().is_some_and(|seconds| (1.0..5.0).contains(&seconds)), "{listed:#}");
    assert_eq!(listed["accounting"], true);
    for service in ["shop/web:http", "shop/own:http"] {
        let rates = rates_of(&listed, service);
        let rate = rates["connections"].as_f64().expect("a number");
        assert!((0.6 * came..1.6 * came).contains(&rate), "{service}: {rate} of {came} per second");
        let packets = rates["packetsIn"].as_f64().expect("counted");
        assert!(packets >= 3.0 * rate, "{service}: a connection has at least that many: {rates}");
    }
    assert_eq!(rates_of(&listed, "shop/api:http"), json!({"connections": 0.0}), "nothing came");
    let (screen, came) = steady.during(|| said(lab.node(), &bed, &["list", "--rate", "web"]));
    let row = screen.lines().find(|line| line.starts_with(&format!("TCP  {web} "))).expect("the Service");
    let rate: f64 = row.split_whitespace().nth(2).expect("CPS").parse().expect("a number");
    assert!((0.6 * came..1.6 * came).contains(&rate), "{rate} of {came} per second: {screen}");
    standing.assert_alive("that one was there before");

    // What the kernel does not count is said, and left out of what scripts read.
    set("nf_conntrack_acct", "0");
    for option in ["--rate", "--stats"] {
        let (code, _, error) = pointsman(lab.node(), &bed, &["list", option, "web"]);
        let want = "pointsman: packets and bytes are not counted: net.netfilter.nf_conntrack_acct is 0\n";
        assert_eq!((code, &*error), (Some(0), want), "{option}");
        assert_eq!(json_of(lab.node(), &bed, &["list", option])["accounting"], false);
    }
    for wrong in ["0", "5", "x"] {
        let (status, body) = ask(&bed.socket(), &format!("/v1/rates?seconds={wrong}"));
        assert_eq!((status, &body["error"]), (400, &json!(format!("seconds={wrong:?}: not a number from 0.1 to 4"))));
    }

    // Without a daemon the kernel is read, which leads everybody to endpoints then. Whoever is carried while it is killed is reset.
    drop(steady);
    daemon.end(Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(1));
    let steady = Steady::start(lab.client(0), &[web, own]);
    let ((code, out, error), came) = steady.during(|| pointsman(lab.node(), &bed, &["list", "--rate", "-o", "json"]));
    assert!(code == Some(0) && error.contains("no daemon runs here"), "{error}");
    let listed: Value = serde_json::from_str(&out).expect("JSON");
    let rate = rates_of(&listed, "shop/web:http")["connections"].as_f64().expect("a number");
    assert!((0.6 * came..1.6 * came).contains(&rate), "{rate} of {came} per second");
}

#[test]
fn nothing_found_is_said_beside_and_changes_nothing_for_scripts() {
    let lab = bed(1);
    lab.node()
        .namespace()
        .sysctls(&[("netfilter/nf_conntrack_acct", "1"), ("netfilter/nf_conntrack_timestamp", "1")])
        .expect("parameters");
    let mut objects = shop("web", 1, &pods([1]));
    objects.push(shop("none", 2, &[]).swap_remove(0));
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    for (args, heading, want) in [
        (&["list", "x", "-n", "shop"][..], "IP Virtual", "no Service matches \"x\" in namespace shop"),
        (&["list", "--stats", "-n", "x"], "IP Virtual", "there is no Service in namespace x"),
        (&["list", "--connections"], "SERVICE", "there is no connection to any of them"),
        (&["get", "services", "x\u{1b}"], "SERVICE", "no Service matches \"x\\u{1b}\""),
        (&["get", "services", "--only", "problems"], "SERVICE", "there is no Service (--only problems)"),
        (&["get", "endpoints", "shop/none"], "SERVICE", "the Services that match have no endpoint"),
        (&["get", "overrides"], "SERVICE", "there is no drain or weight by hand"),
        (&["get", "overrides", "web"], "SERVICE", "no drain or weight by hand matches \"web\""),
        (&["flows"], "PROTO", "there is no connection to a Service"),
        (&["flows", "shop/web", "--protocol", "udp"], "PROTO", "no connection is as asked for"),
    ] {
        let (code, out, error) = pointsman(lab.node(), &bed, args);
        assert_eq!((code, &*error), (Some(0), &*format!("pointsman: {want}\n")), "{args:?}");
        assert!(out.starts_with(heading) && out.lines().count() <= 3, "{args:?}: {out}");
        // Who reads JSON finds an empty list, and nothing beside it.
        json_of(lab.node(), &bed, args);
    }
}

#[test]
fn get_shows_what_was_decided() {
    let lab = bed(2);
    let mut objects = [shop("web", 1, &pods([1, 2])), crowd(1100)].concat();
    objects[1]["endpoints"][1]["conditions"] = json!({"ready": false});
    objects[0]["metadata"]["annotations"] = json!({"pointsman.dev/scheduler": "nonsense\u{1b}[31m"});
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let services = said(lab.node(), &bed, &["get", "services", "shop/web"]);
    assert!(services.lines().next().expect("a heading").starts_with("SERVICE"), "{services}");
    assert!(
        services.contains("shop/web:http") && services.contains("1/2") && services.contains("kernel"),
        "{services}"
    );
    let endpoints = said(lab.node(), &bed, &["get", "endpoints", "shop/web"]);
    assert!(
        endpoints.contains("not ready") && endpoints.contains("in use") && endpoints.contains("100.0%"),
        "{endpoints}"
    );
    let port = said(lab.node(), &bed, &["get", "services", "shop/web:http"]);
    assert!(
        port.contains("shop/web:http") && !port.contains("shop/web:dns") && services.contains("shop/web:dns"),
        "{port}"
    );
    let (code, _, error) = pointsman(lab.node(), &bed, &["get", "services", "shop/web:nobody"]);
    assert!(code == Some(1) && error.contains("Service shop/web has no port nobody"), "{error}");
    let hostile = [services, endpoints, said(lab.node(), &bed, &["get", "services", "--only", "problems"])].concat();
    assert!(hostile.contains("pointsman.dev/scheduler") && !hostile.contains('\u{1b}'), "{hostile}");
    // More than a page.
    let all = json_of(lab.node(), &bed, &["get", "services"]);
    assert_eq!(all["services"].as_array().expect("a list").len(), 1101);
    let (code, _, error) = pointsman(lab.node(), &bed, &["get", "services", "shop/nobody"]);
    assert_eq!((code, &*error), (Some(1), "pointsman: the daemon says: no Service shop/nobody is served here\n"));
}

#[test]
fn explain_says_what_packets_meet_and_compares_with_the_kernel() {
    let lab = bed(2);
    let mut objects = shop("web", 1, &pods([1, 2]));
    objects[0]["spec"]["type"] = json!("NodePort");
    objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    let mut none = shop("none", 2, &[]);
    none.truncate(1);
    objects.extend(none);
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let [v4, _] = frontends(1, 80);
    let client = lab.client(0).addresses().v4.to_string();
    let reason = |args: &[&str]| {
        let (code, out, error) = pointsman(lab.node(), &bed, &[&["explain", "-o", "json"], args].concat());
        let value: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {out}{error}"));
        (code, value["answers"][0]["reason"].as_str().expect("a reason").to_owned(), value)
    };
    // What is said, and what a connection meets.
    let (code, why, value) = reason(&[&v4.to_string(), "--from", &client, "--verify"]);
    assert_eq!((code, &*why), (Some(0), "clusterPolicy"));
    drop(Held::open(lab.client(0), v4));
    let seen = &value["answers"][0]["verification"];
    assert_eq!(seen["differences"], json!([]));
    assert!(seen["lookedUp"].as_u64() >= Some(5), "{seen}");
    let node_port = format!("{}:30080", lab.node().addresses().v4);
    let (code, why, value) = reason(&[&node_port, "--from", &client]);
    assert_eq!((code, &*why), (Some(2), "noLocalEndpoints"), "nobody is on this node: {value:#}");
    let own = lab.node().addresses().v4.to_string();
    assert_eq!(reason(&[&node_port, "--from", &own]).1, "shortCircuit");
    let [nobody, _] = cluster_ips(2);
    assert_eq!(reason(&[&format!("{nobody}:80")]).1, "noEndpoints");
    assert_eq!(reason(&[&format!("{nobody}:81")]).1, "noSuchPort");
    // A real connection, set beside what was explained.
    let (code, _, value) = reason(&[&v4.to_string(), "--probe"]);
    let probe = &value["probes"][0];
    assert_eq!(
        (code, &probe["result"], &probe["asExplained"]),
        (Some(0), &json!("connected"), &json!(true)),
        "{probe}"
    );
    let endpoint = probe["endpoint"].as_str().expect("who answered").to_owned();
    assert!(
        value["answers"][0]["endpoints"].to_string().contains(endpoint.split(':').next().expect("an address")),
        "{value:#}"
    );
    let (code, _, value) = reason(&[&format!("{nobody}:80"), "--probe"]);
    assert_eq!((code, &value["probes"][0]["result"]), (Some(2), &json!("refused")), "{value:#}");
    let words = said(lab.node(), &bed, &["explain", "shop/web:dns"]);
    assert!(words.contains("reaches an endpoint") && words.contains("ruleset    services {"), "{words}");
    // Who has a name for itself needs no namespace.
    assert_eq!(said(lab.node(), &bed, &["explain", "web:dns"]), words);
    for (target, says) in
        [("10.96.0.1", "\"10.96.0.1\" is neither"), ("nobody", "no Service nobody"), ("web:", "\"web:\" is neither")]
    {
        let (code, _, error) = pointsman(lab.node(), &bed, &["explain", target]);
        assert!(code == Some(1) && error.contains(says), "{target}: {error}");
    }
}

/// The kernel is asked, not believed: an element that is not there is told.
#[test]
fn what_the_kernel_lacks_is_told() {
    let lab = bed(2);
    let mut objects = shop("web", 1, &pods([1, 2]));
    objects[0]["spec"]["type"] = json!("LoadBalancer");
    objects[0]["spec"]["loadBalancerSourceRanges"] = json!(["192.0.2.0/24", "198.51.100.0/25"]);
    objects[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
    let bed = Bed::of(&objects);
    let daemon = bed.start(lab.node(), &[]);
    let node = lab.node().namespace();
    // While the daemon owns the tables, others may read them, and nothing else.
    let tables = node.run(glance::tables).expect("the tables can be read");
    assert_eq!(tables.len(), 2);
    daemon.end(Signal::SIGKILL);
    let compare = |index: usize| {
        let (family, image) = &tables[index];
        node.run(|| glance::compare(*family, image)).expect("elements can be looked up")
    };
    let seen = compare(0);
    assert!(seen.differences.is_empty() && seen.looked_up > 6, "{seen:?}");
    let ranges = tables[0].1.source_ranges.len();
    assert!(ranges >= 2, "source ranges are among what is looked up");
    nft(node, &["flush", "set", "ip", "pointsman", "source-ranges"]);
    let lacking = compare(0).differences;
    assert!(lacking.len() == ranges && lacking.iter().all(|one| one.set == "source-ranges"), "{lacking:?}");
    nft(node, &["flush", "map", "ip", "pointsman", "endpoints"]);
    let seen = compare(0);
    assert_eq!(seen.differences.len(), tables[0].1.endpoints.len() + ranges, "{seen:?}");
    assert!(seen.differences.iter().all(|one| one.found.is_none()), "{seen:?}");
    assert!(compare(1).differences.is_empty());
}

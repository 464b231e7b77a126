//! What the daemon tells over its socket, and to whom.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pointsman::lab::Host;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::daemon::{Daemon, Manifests};
use super::observe::metric;
use super::orders::page;
use super::support::beds::{PATIENCE, TCP, bed, pods};
use super::support::eventually;
use super::support::objects::{HTTP, cluster_ips, crowd, frontends, service, shop, slice_of};
use super::support::traffic::Held;

/// A daemon that can be asked.
pub struct Bed {
    directory: TempDir,
    manifests: Manifests,
}

// === impl Bed ===

impl Bed {
    pub fn of(objects: &[Value]) -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), manifests: Manifests::of(objects) }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("run/pointsman.sock")
    }

    pub fn start(&self, node: &Host, more: &[&str]) -> Daemon {
        let flag = format!("--status-socket={}", self.socket().display());
        let mut daemon = Daemon::serving(node, &self.manifests, &[&[flag.as_str()], more].concat());
        daemon.hear(&["first load programmed"]);
        daemon
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, body) = ask(&self.socket(), path);
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn refused(&self, path: &str) -> (u16, String) {
        let (status, body) = ask(&self.socket(), path);
        (status, body["error"].as_str().unwrap_or_default().to_owned())
    }
}

/// Sends a request, word for word; status 0 if it is not answered.
pub fn say(socket: &Path, request: &str) -> (u16, String) {
    let begin = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            // It may not be open yet.
            Err(_) if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("somebody should listen: {error}"),
        }
    };
    stream.set_read_timeout(Some(PATIENCE * 3)).expect("a socket");
    let _ = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    (head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), body.to_owned())
}

pub fn ask(socket: &Path, path: &str) -> (u16, Value) {
    let (status, body) = say(socket, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

/// The endpoints of a port by the last part of their address: what `field` says.
fn by_endpoint(port: &Value, field: &str) -> Vec<(String, Value)> {
    let endpoints = port["endpoints"].as_array().expect("a list").iter();
    let last =
        |address: &Value| address.as_str().expect("an address").rsplit(['.', ':']).next().expect("parts").to_owned();
    endpoints.map(|one| (last(&one["address"]), one.pointer(field).cloned().unwrap_or(Value::Null))).collect()
}

fn port<'a>(service: &'a Value, name: &str, family: &str) -> &'a Value {
    let mut ports = service["ports"].as_array().expect("a list").iter();
    ports.find(|port| port["name"] == name && port["family"] == family).expect("the port")
}

#[test]
fn a_service_is_told_from_all_sides() {
    let lab = bed(3);
    let mut objects = shop("web", 1, &pods([1, 2, 3]));
    objects[0]["metadata"]["annotations"] =
        json!({"pointsman.dev/weights": "web-2=0,web-1=3", "pointsman.dev/drain": "1h"});
    objects[0]["spec"]["type"] = json!("NodePort");
    objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    for slice in &mut objects[1..] {
        for (index, endpoint) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().enumerate() {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": format!("web-{}", index + 1)});
            endpoint["nodeName"] = json!(if index == 0 { "n1" } else { "n2" });
        }
    }
    let bed = Bed::of(&objects);
    let mut daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    let web = bed.get("/v1/services/shop/web");
    assert_eq!((&web["type"], &web["externalTrafficPolicy"]), (&json!("NodePort"), &json!("Local")));
    assert_eq!(web["scheduler"], json!({"used": "wrr"}), "weights make it so");
    assert_eq!((&web["drainSeconds"], web["problems"].as_array()), (&json!(3600.0), None));
    let http = port(&web, "http", "IPv4");
    let [address, _] = cluster_ips(1);
    let want = json!([{"address": address, "port": 80, "role": "cluster"}, {"port": 30080, "role": "nodePort"}]);
    assert_eq!(http["frontends"], want);
    assert_eq!(
        (&http["internal"], &http["outside"], &http["inside"]),
        (&json!("cluster"), &json!("local"), &json!("cluster"))
    );
    assert_eq!((&http["path"], &http["topology"]), (&json!({"carrier": "kernel"}), &json!("anywhere")));
    let tell = |field: &str| by_endpoint(http, field).into_iter().map(|(_, value)| value).collect::<Vec<_>>();
    assert_eq!(tell("/cluster/standing"), ["chosen", "drained", "chosen"]);
    assert_eq!(tell("/local/standing"), ["chosen", "notHere", "notHere"]);
    assert_eq!(tell("/weight"), [3, 0, 1]);
    assert_eq!(tell("/cluster/slots"), [json!(3), Value::Null, json!(1)]);
    assert_eq!(tell("/cluster/share"), [json!(0.75), Value::Null, json!(0.25)]);
    assert_eq!(tell("/local/share"), [json!(1.0), Value::Null, Value::Null]);
    assert_eq!(tell("/pod"), ["web-1", "web-2", "web-3"]);
    assert_eq!(tell("/here"), [true, false, false]);
    assert_eq!(port(&web, "dns", "IPv6")["endpoints"].as_array().expect("a list").len(), 3);

    // Who leaves drains, and is told until then; and a change has a time.
    let before = web["lastChange"].as_str().expect("a time").to_owned();
    for slice in &mut objects[1..] {
        slice["endpoints"].as_array_mut().expect("a list").remove(2);
    }
    bed.manifests.write("all.json", &objects);
    daemon.programmed();
    let web = bed.get("/v1/services/shop/web");
    assert!(web["lastChange"].as_str().expect("a time") > before.as_str(), "{before} {web}");
    let http = port(&web, "http", "IPv4");
    assert_eq!(
        by_endpoint(http, "/cluster/standing").iter().map(|(_, is)| is).collect::<Vec<_>>(),
        ["chosen", "drained", "gone"]
    );
    assert!(http["endpoints"][2]["drainingUntil"].as_str() > http["endpoints"][2]["drainingSince"].as_str());

    let health = bed.get("/v1/health");
    assert_eq!(
        (&health["version"], &health["node"], &health["mode"]),
        (&json!("v1"), &json!("n1"), &json!("iptables"))
    );
    assert_eq!((&health["loaded"], &health["trusted"], &health["services"]), (&json!(true), &json!(true), &json!(1)));
    assert_eq!((&health["endpoints"], &health["defaultScheduler"]), (&json!(4), &json!("rr")));
    assert_eq!(health["families"][0], json!({"family": "IPv4", "table": "ip pointsman"}));
    assert_eq!(health["lastSync"]["kind"], "partial");
    assert!(health["elements"].as_u64() > Some(10) && health["pid"] == daemon.id());
}

#[test]
fn connections_are_told_by_endpoint() {
    let lab = bed(2);
    lab.node().namespace().sysctls(&[("netfilter/nf_conntrack_acct", "1")]).expect("a parameter");
    let mut objects = shop("web", 1, &pods([1, 2]));
    objects[0]["spec"]["type"] = json!("NodePort");
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    let [v4, v6] = frontends(1, 80);
    let mut held: Vec<Held> = (0..6).map(|_| Held::open(lab.client(0), v4)).collect();
    held.extend((0..2).map(|_| Held::open(lab.client(0), v6)));
    let node_port = (lab.node().addresses().v4, 30080).into();
    held.extend((0..2).map(|_| Held::open(lab.client(0), node_port)));
    let active = |web: &Value, family: &str| {
        let told = by_endpoint(port(web, "http", family), "/connections/active");
        told.into_iter().map(|(_, count)| count.as_u64().expect("a number")).collect::<Vec<_>>()
    };
    for path in ["/v1/services/shop/web?connections=true", "/v1/services?search=WEB&connections=true"] {
        let told = bed.get(path);
        let web = if path.contains('?') && told["services"].is_array() { &told["services"][0] } else { &told };
        assert_eq!((active(web, "IPv4"), active(web, "IPv6")), (vec![4, 4], vec![1, 1]), "{path}");
        let told = &port(web, "http", "IPv4")["endpoints"][0]["connections"];
        assert!(told["packetsIn"].as_u64() >= Some(12) && told["bytesOut"].as_u64() > Some(0), "{told}");
    }
    assert_eq!(
        bed.get("/v1/services/shop/web")["ports"][0]["endpoints"][0]["connections"],
        Value::Null,
        "nobody asked"
    );
    let told = bed.get("/v1/connections");
    let rows = told["connections"].as_array().expect("a list");
    assert_eq!((&told["accounting"], rows.len()), (&json!(true), 6), "{told:#}");
    let to = |row: &&Value| row["destination"] == v4.to_string();
    assert_eq!(rows.iter().filter(to).map(|row| row["active"].as_u64().expect("a number")).sum::<u64>(), 6);
    held.truncate(8);
    eventually("the end of connections is told", || {
        let web = bed.get("/v1/services/shop/web?connections=true");
        active(&web, "IPv4") == [3, 3] && port(&web, "http", "IPv4")["endpoints"][0]["connections"]["inactive"] == 1
    });
    let list = bed.get("/v1/list");
    let rows = list["services"].as_array().expect("a list");
    assert_eq!(rows.len(), 6, "two frontends, a node port in two families, and dns: {list:#}");
    assert_eq!((&rows[0]["service"], &rows[0]["scheduler"]), (&json!("shop/web:http"), &json!("rr")));
    assert_eq!(rows[0]["endpoints"].as_array().expect("a list").len(), 2);
    // As rows it is the same list, with connections.
    let text = || {
        let (status, text) = say(&bed.socket(), "GET /v1/list?rows=true HTTP/1.0\r\nHost: x\r\n\r\n");
        assert_eq!(status, 200, "{text}");
        text
    };
    let words = |row: &str| row.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let told: Vec<_> = text().lines().map(words).collect();
    let mut want = Vec::new();
    for row in rows {
        let at = SocketAddr::new(
            row["address"].as_str().and_then(|address| address.parse().ok()).expect("an address"),
            row["port"].as_u64().and_then(|port| port.try_into().ok()).expect("a port"),
        );
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        want.push(vec![text(&row["protocol"]), at.to_string(), text(&row["scheduler"])]);
        for one in row["endpoints"].as_array().expect("a list") {
            want.push(vec!["->".to_owned(), text(&one["address"]), "Masq".to_owned(), one["weight"].to_string()]);
        }
    }
    let without_counts: Vec<_> = told.iter().map(|row| row[..row.len().min(4)].to_vec()).collect();
    assert_eq!(without_counts, want, "{told:#?}");
    let counted = |at: &str| {
        let text = text();
        let mine = text.lines().map(words).skip_while(|row| row[1] != at).skip(1).take_while(|row| row[0] == "->");
        let numbers: Vec<_> =
            mine.map(|row| [&row[4], &row[5]].map(|number| number.parse().expect("a number"))).collect();
        [0, 1].map(|column| numbers.iter().map(|row: &[u64; 2]| row[column]).sum::<u64>())
    };
    // What was counted not long ago is good enough, for half a second.
    eventually("connections are told in rows", || {
        counted(&v4.to_string()) == [6, 0] && counted(&v6.to_string()) == [2, 0] && counted("0.0.0.0:30080") == [0, 2]
    });
}

#[test]
fn connections_through_the_forwarder_are_told_by_endpoint_and_in_sum() {
    let lab = bed(2);
    let mut objects = shop("web", 1, &pods([1, 2]));
    objects[0]["metadata"]["annotations"] = json!({"pointsman.dev/datapath": "userspace"});
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &[]);
    let [v4, v6] = frontends(1, 80);
    let held: Vec<Held> = [v4, v4, v4, v6].map(|to| Held::open(lab.client(0), to)).into();
    let web = bed.get("/v1/services/shop/web?connections=true");
    for (family, count) in [("IPv4", 3), ("IPv6", 1)] {
        let port = port(&web, "http", family);
        assert_eq!(port["path"]["connections"]["active"], count, "{port:#}");
        let number = if family == "IPv4" { &held[..3] } else { &held[3..] };
        for (index, one) in port["endpoints"].as_array().expect("two").iter().enumerate() {
            let mine = number.iter().filter(|held| held.pod == format!("web-{}", index + 1)).count();
            assert_eq!(one["connections"]["active"], mine, "{port:#}");
        }
    }
    assert!(port(&bed.get("/v1/services/shop/web"), "http", "IPv4")["path"]["connections"].is_null(), "nobody asked");
    drop(held);
}

#[test]
fn pages_searches_and_mistakes() {
    let lab = bed(1);
    let hostile = "<script>\u{1b}[2J\"\n";
    let mut objects = [crowd(600), vec![service("lonely", 7, &[HTTP])]].concat();
    let mut broken = service("broken", 8, &[HTTP]);
    broken["metadata"]["annotations"] =
        json!({"pointsman.dev/weights": hostile, "pointsman.dev/datapath": "userspace"});
    objects.push(broken);
    objects.push(slice_of("broken", "IPv4", &["10.77.0.1".parse().expect("an address")], &[("http", "TCP", TCP)]));
    let bed = Bed::of(&objects);
    let mut daemon = bed.start(lab.node(), &[]);
    let names = |page: &Value| {
        let services = page["services"].as_array().expect("a list").iter();
        services.map(|one| one["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let (mut all, mut number) = (Vec::new(), 1);
    loop {
        let page = bed.get(&format!("/v1/services?perPage=250&page={number}"));
        assert_eq!((&page["total"], &page["pages"], &page["page"]), (&json!(602), &json!(3), &json!(number)));
        all.extend(names(&page));
        number += 1;
        if number > 3 {
            break;
        }
    }
    let mut sorted = all.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!((all.len(), &all), (602, &sorted));
    assert_eq!(names(&bed.get("/v1/services?page=9")), [""; 0]);
    for (query, want) in [
        ("search=LONE", &["lonely"][..]),
        ("search=10.96.0.7", &["lonely"]),
        ("search=10.96.0.7:80", &["lonely"]),
        ("search=10.96.0.7:81", &[]),
        ("search=10.77.0.1", &["broken"]),
        ("only=problems", &["broken"]),
        ("only=userspace", &["broken"]),
        ("only=unready", &["lonely"]),
        ("only=unready&namespace=other", &[]),
        ("search=%3Cscript%3E", &[]),
    ] {
        assert_eq!(names(&bed.get(&format!("/v1/services?{query}"))), want, "{query}");
    }
    let problems = &bed.get("/v1/services/shop/broken")["problems"];
    assert!(problems.as_array().expect("a list").iter().any(|one| one["value"] == hostile.trim()), "{problems}");
    let (_, body) = say(&bed.socket(), "GET /v1/services/shop/broken HTTP/1.0\r\n\r\n");
    assert!(!body.contains('\u{1b}'), "JSON has no control characters");

    assert_eq!(bed.refused("/v1/services/shop/nobody"), (404, "no Service shop/nobody is served here".into()));
    assert_eq!(bed.refused("/v1/services?page=0"), (400, "page=\"0\": not a number from 1 on".into()));
    let wrong = (400, "only=\"x\": neither problems, userspace nor unready".to_owned());
    assert_eq!(bed.refused("/v1/services?only=x"), wrong);
    for path in ["/", "/v1", "/v2/health", "/metrics", "/../../etc/passwd", "/v1/services/../../etc/passwd"] {
        assert_eq!(bed.refused(path).0, 404, "{path}");
    }
    let request = |method: &str| format!("{method} /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(say(&bed.socket(), &request("POST")).0, 405);
    assert_eq!(say(&bed.socket(), &request("HEAD")), (200, String::new()));
    let long = format!("GET /v1/services?search={} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    assert!(matches!(say(&bed.socket(), &long).0, 0 | 414 | 431), "refused, and no more");
    // Who says nothing keeps nobody from being answered, however many there are.
    let _silent: Vec<_> = (0..400).map(|_| UnixStream::connect(bed.socket()).expect("somebody listens")).collect();
    assert_eq!(bed.get("/v1/health")["services"], 602);
    daemon.assert_alive();
}

#[test]
fn only_root_is_told() {
    let lab = bed(1);
    let bed = Bed::of(&shop("web", 1, &pods([1])));
    let _daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(bed.socket().parent().expect("a parent")), mode(&bed.socket())), (0o700, 0o600));
    let script = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or print('no way in') && exit; \
        print $s \"GET /v1/health HTTP/1.0\\r\\n\\r\\n\"; local $/; print <$s>;";
    let as_user = |user: u32| {
        let mut perl = Command::new("perl");
        perl.args(["-e", script]).arg(bed.socket()).uid(user).gid(user);
        String::from_utf8(perl.output().expect("perl is there").stdout).expect("text")
    };
    assert!(as_user(0).starts_with("HTTP/1.0 200"), "{}", as_user(0));
    assert_eq!(as_user(65534), "no way in");
    // Even where somebody opened the doors.
    for (path, mode) in
        [(bed.directory.path(), 0o755), (bed.socket().parent().expect("a parent"), 0o755), (&bed.socket(), 0o666)]
    {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    let told = as_user(65534);
    assert!(told.starts_with("HTTP/1.0 403") && !told.contains("n1"), "{told}");
}

#[test]
fn a_socket_has_one_owner_at_a_time() {
    let (first_lab, second_lab) = (bed(1), bed(1));
    let bed = Bed::of(&shop("web", 1, &pods([1])));
    let first = bed.start(first_lab.node(), &[]);
    assert_eq!(bed.get("/v1/health")["pid"], first.id());
    let mut second = bed.start(second_lab.node(), &[]);
    let said = second.said();
    assert!(said.iter().any(|line| line.contains("another process serves it")), "{said:#?}");
    assert_eq!(bed.get("/v1/health")["pid"], first.id());
    first.end(Signal::SIGKILL);
    second.hear_within(Duration::from_secs(30), &["`pointsman` may ask"]);
    assert_eq!(bed.get("/v1/health")["pid"], second.id());
}

/// However many ask at once, connection tracking is walked through a few times.
#[test]
fn twenty_who_ask_at_once_share_what_is_found() {
    const WALKS: &str = "pointsman_status_walks_total";
    let lab = bed(2);
    let bed = Bed::of(&[shop("web", 1, &pods([1, 2])), shop("api", 2, &pods([1, 2]))].concat());
    let _daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let held: Vec<_> = (0..4).map(|_| Held::open(lab.client(0), frontends(1, 80)[0])).collect();
    let at_once = |path: &(dyn Fn(usize) -> String + Sync), by_page: bool| {
        // What others found before is old by then.
        std::thread::sleep(Duration::from_millis(600));
        let (begin, before) = (Instant::now(), metric(&lab, WALKS));
        let answers: Vec<_> = std::thread::scope(|scope| {
            let ask = |number| {
                let (path, lab, bed) = (path(number), &lab, &bed);
                scope.spawn(move || match by_page {
                    true => {
                        let answer = page(lab, "GET", &path);
                        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
                        (if head.starts_with("HTTP/1.1 200") { 200 } else { 0 }, body.to_owned())
                    }
                    false => say(&bed.socket(), &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n")),
                })
            };
            let asked: Vec<_> = (0..20).map(ask).collect();
            asked.into_iter().map(|asked| asked.join().expect("no panic")).collect()
        });
        // Whatever is older than half a second is found anew.
        let rounds = 1.0 + (begin.elapsed().as_secs_f64() / 0.5).floor();
        for (status, body) in &answers {
            assert_eq!(*status, 200, "{body}");
        }
        (answers, metric(&lab, WALKS) - before, rounds)
    };
    let named = |number: usize| if number.is_multiple_of(2) { "web" } else { "api" };
    let (answers, walks, rounds) = at_once(&|_| "/v1/services/shop/web?connections=true".to_owned(), false);
    assert!((1.0..=rounds).contains(&walks), "one Service: {walks} walks in {rounds} rounds");
    let active = |body: &str| -> u64 {
        let service: Value = serde_json::from_str(body).expect("JSON");
        let endpoints = service["ports"]
            .as_array()
            .expect("ports")
            .iter()
            .flat_map(|port| port["endpoints"].as_array().expect("a list"));
        endpoints.filter_map(|one| one["connections"]["active"].as_u64()).sum()
    };
    assert!(answers.iter().all(|(_, body)| active(body) == 4), "everybody sees all connections");
    let services = |number| format!("/v1/services/shop/{}?connections=true", named(number));
    let (answers, walks, rounds) = at_once(&services, false);
    assert!((1.0..=2.0 * rounds).contains(&walks), "two Services: {walks} walks in {rounds} rounds");
    for (number, (_, body)) in answers.iter().enumerate() {
        assert_eq!(active(body), if named(number) == "web" { 4 } else { 0 }, "{body}");
    }
    let (answers, walks, rounds) = at_once(&|number| format!("/ui/v1/flows/shop/{}", named(number)), true);
    assert!((1.0..=2.0 * rounds).contains(&walks), "the page: {walks} walks in {rounds} rounds");
    for (number, (_, body)) in answers.iter().enumerate() {
        let list: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(
            list["flows"].as_array().map(Vec::len),
            Some(if named(number) == "web" { 4 } else { 0 }),
            "{list:#}"
        );
    }
    drop(held);
}

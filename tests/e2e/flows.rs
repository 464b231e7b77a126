//! `pointsman flows`: who reached which pod, as it is and as it happens; its log; what goes through the forwarder; and that nobody listens
//! while nobody looks.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::{Host, Lab};
use serde_json::{Value, json};

use super::operator::{json_of, pointsman, said};
use super::status::Bed;
use super::support::beds::{PATIENCE, TCP, UDP, bed, pods};
use super::support::eventually;
use super::support::objects::{frontends, shop};
use super::support::traffic::Held;

/// A name that would clear a screen.
const HOSTILE: &str = "web-1\u{1b}[2J\r\n";

/// Somebody who follows.
struct Following {
    child: Child,
    lines: Receiver<Value>,
    /// What is said beside, line by line.
    remarks: Receiver<String>,
}

impl Following {
    fn start(node: &Host, bed: &Bed, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
        command.args(["flows"]).args(args).arg("--socket").arg(bed.socket());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = node.spawn(command).expect("the binary runs");
        let beside = BufReader::new(child.stderr.take().expect("a pipe"));
        let (said, remarks) = mpsc::channel();
        std::thread::spawn(move || beside.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        let out: ChildStdout = child.stdout.take().expect("a pipe");
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
                if send.send(value).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, remarks }
    }

    /// What is said beside next, whatever that is.
    fn remark(&self, patience: Duration) -> Option<String> {
        self.remarks.recv_timeout(patience).ok()
    }

    /// The next event about a client's port that is such; what comes before is passed over.
    fn event(&self, word: &str, client: u16) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(event) = self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            let port = event["flow"]["client"].as_str().and_then(|at| at.rsplit(':').next()?.parse::<u16>().ok());
            if event["event"] == word && (client == 0 || port == Some(client)) {
                return event;
            }
            seen.push(event);
        }
        panic!("no {word} of {client}: {seen:#?}")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a number")), signal).expect("it lives");
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shop whose first pod has a name that nobody should have.
fn shopping(node_names: bool) -> Vec<Value> {
    let mut objects = shop("web", 1, &pods([1, 2]));
    for slice in &mut objects[1..] {
        for (index, endpoint) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().enumerate() {
            let name = if index == 0 { HOSTILE.to_owned() } else { format!("web-{}", index + 1) };
            endpoint["targetRef"] = json!({"kind": "Pod", "name": name});
            if node_names {
                endpoint["nodeName"] = json!(format!("n{}", index + 1));
            }
        }
    }
    objects
}

/// Sockets that hear of connections, in the node's network namespace.
fn listeners(lab: &Lab) -> usize {
    let table = lab.node().run(|| fs::read_to_string("/proc/thread-self/net/netlink").expect("a table"));
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // Columns: sk, Eth (the protocol; NETLINK_NETFILTER is 12), Pid, Groups: conntrack's are the lowest three.
    rows.filter(|row| row[1] == "12" && u32::from_str_radix(row[3], 16).is_ok_and(|groups| groups & 7 != 0)).count()
}

fn port_of(held: &Held) -> u16 {
    held.local().port()
}

#[test]
fn who_reached_which_pod() {
    let lab = bed(2);
    let sysctls = [("netfilter/nf_conntrack_acct", "1"), ("netfilter/nf_conntrack_timestamp", "1")];
    lab.node().namespace().sysctls(&sysctls).expect("parameters");
    let mut objects = shopping(true);
    objects[0]["metadata"]["annotations"] = json!({"pointsman.dev/scheduler": "rr"});
    let bed = Bed::of(&objects);
    let daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let [v4, v6] = frontends(1, 80);
    let held: Vec<Held> = [v4, v4, v6].map(|to| Held::open(lab.client(0), to)).into();
    let list = json_of(lab.node(), &bed, &["flows", "shop/web"]);
    assert_eq!((&list["accounting"], &list["timestamps"], &list["more"]), (&json!(true), &json!(true), &json!(0)));
    let flows = list["flows"].as_array().expect("a list");
    assert_eq!(flows.len(), 3, "{list:#}");
    for (held, to) in held.iter().zip([v4, v4, v6]) {
        let flow = flows.iter().find(|flow| flow["client"] == held.local().to_string());
        let flow = flow.unwrap_or_else(|| panic!("{}: {list:#}", held.local()));
        let (pod, node) = if held.pod == "web-1" { (HOSTILE, "n1") } else { ("web-2", "n2") };
        assert_eq!((&flow["pod"], &flow["node"], &flow["frontend"]), (&json!(pod), &json!(node), &json!(to)));
        assert_eq!(
            (&flow["service"], &flow["port"], &flow["state"]),
            (&json!("web"), &json!("http"), &json!("established"))
        );
        assert!(flow["bytesOut"].as_u64() > Some(100) && flow["ageSeconds"].as_f64() < Some(60.0), "{flow:#}");
    }
    // Filters, and what cannot be one.
    let client = lab.client(0).addresses().v4.to_string();
    let count = |args: &[&str]| {
        let list = json_of(lab.node(), &bed, &[&["flows"], args].concat());
        list["flows"].as_array().expect("a list").len()
    };
    assert_eq!(count(&[]), 3);
    assert_eq!(count(&["--client", &client]), 2);
    assert_eq!(count(&["web:http", "--node", "n2", "--client", &client]), 1);
    assert_eq!(count(&["--endpoint", "web-2", "--client", &client]), 1);
    assert_eq!(count(&[&v6.to_string(), "--state", "open"]), 1);
    assert_eq!((count(&["--state", "time-wait"]), count(&["--protocol", "udp"]), count(&["shop/web:dns"])), (0, 0, 0));
    for (args, why) in [
        (["flows", "--client", "nobody"], "client=\"nobody\": neither an address nor a network"),
        (["flows", "shop/nobody", "--follow"], "no Service shop/nobody is served here"),
        (["flows", "--state", "happy"], "state=\"happy\": neither"),
    ] {
        let (code, _, error) = pointsman(lab.node(), &bed, &args);
        assert!(code == Some(1) && error.contains(why) && error.lines().count() == 1, "{args:?}: {error}");
    }
    let table = said(lab.node(), &bed, &["flows", "web"]);
    assert!(table.contains("web-1\\u{1b}[2J\\r\\n") && !table.contains('\u{1b}'), "{table}");
    assert_eq!(table.lines().count(), 4, "{table}");
    assert_eq!(listeners(&lab), 0);

    // Without a daemon, Services are known and pods are not.
    daemon.end(Signal::SIGKILL);
    let (code, out, error) = pointsman(lab.node(), &bed, &["flows", "shop/web:http", "-o", "json"]);
    assert!(code == Some(0) && error.contains("which know no pods"), "{error}");
    let list: Value = serde_json::from_str(&out).expect("JSON");
    let flows = list["flows"].as_array().expect("a list");
    assert!(flows.len() == 3 && flows.iter().all(|flow| flow["pod"].is_null() && flow["service"] == "web"), "{list:#}");
    let follow = Following::start(lab.node(), &bed, &["--follow", "-o", "json"]);
    follow.event("present", port_of(&held[0]));
    let more = Held::open(lab.client(0), v4);
    assert_eq!(follow.event("new", port_of(&more))["flow"]["service"], "web");
    drop(held);
}

#[test]
fn connections_are_followed_from_beginning_to_end() {
    let lab = bed(2);
    lab.node().namespace().sysctls(&[("netfilter/nf_conntrack_acct", "1")]).expect("a parameter");
    let bed = Bed::of(&shopping(true));
    let daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let [v4, _] = frontends(1, 80);
    let first = Held::open(lab.client(0), v4);
    assert_eq!(listeners(&lab), 0, "nobody listens while nobody looks");
    let follow = Following::start(lab.node(), &bed, &["shop/web", "--follow", "-o", "json"]);
    assert_eq!(follow.event("begin", 0)["settings"]["accounting"], true);
    let present = follow.event("present", port_of(&first));
    assert_eq!(present["flow"]["state"], "established");
    assert_eq!(listeners(&lab), 1);
    let mut second = Held::open(lab.client(0), v4);
    let port = port_of(&second);
    let new = follow.event("new", port);
    let pod = if second.pod == "web-1" { HOSTILE } else { "web-2" };
    assert_eq!((&new["flow"]["pod"], &new["flow"]["frontend"]), (&json!(pod), &json!(v4)));
    assert_eq!(follow.event("update", port)["flow"]["state"], "SYN received");
    assert_eq!(follow.event("update", port)["flow"]["state"], "established");
    assert!(second.echoes());
    drop(second);
    let end = follow.event("end", port);
    assert_eq!((&end["flow"]["pod"], &end["flow"]["active"]), (&json!(pod), &json!(false)));
    assert!(end["flow"]["bytesIn"].as_u64() > Some(100) && end["flow"]["ageSeconds"].as_f64() >= Some(0.0), "{end:#}");
    let third = Held::open(lab.client(0), v4);
    follow.event("new", port_of(&third));
    // A daemon that hangs says so by its silence; once, and what happened meanwhile is told afterwards.
    daemon.signal(Signal::SIGSTOP);
    let begin = Instant::now();
    let fourth = Held::open(lab.client(0), v4);
    let silence = follow.remark(PATIENCE + Duration::from_secs(15)).expect("it is noticed");
    assert!(silence.contains("the daemon has said nothing for 15 s"), "{silence}");
    assert!(begin.elapsed() > Duration::from_secs(9), "not before the next sign of life is long overdue");
    daemon.signal(Signal::SIGCONT);
    assert_eq!(follow.remark(PATIENCE).as_deref(), Some("pointsman: the daemon speaks again"));
    follow.event("new", port_of(&fourth));
    // Whoever is killed takes the listener along.
    follow.signal(Signal::SIGKILL);
    eventually("nobody listens any more", || listeners(&lab) == 0);
}

#[test]
fn ends_are_logged_under_names_that_traces_have_also_when_files_move() {
    let lab = bed(2);
    lab.node().namespace().sysctls(&[("netfilter/nf_conntrack_acct", "1")]).expect("a parameter");
    let bed = Bed::of(&shopping(true));
    let daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let [v4, _] = frontends(1, 80);
    let directory = tempfile::tempdir().expect("a directory");
    let log = directory.path().join("flows.jsonl");
    let follow = Following::start(lab.node(), &bed, &["--log", log.to_str().expect("a path")]);
    eventually("somebody listens", || listeners(&lab) == 1);
    let lines = |name: &str| -> Vec<Value> {
        let text = fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    };
    let connect = || {
        let mut held = (0..20).map(|_| Held::open(lab.client(0), v4)).find(|held| held.pod == "web-1").expect("web-1");
        assert!(held.echoes());
        port_of(&held)
    };
    let logged = |name: &str, port: u16| {
        let find = || lines(name).into_iter().find(|line| line["client.port"] == port);
        eventually(&format!("a line in {name}"), || find().is_some());
        find().expect("a line")
    };
    let line = logged("flows.jsonl", connect());
    let peer = pods([1])[0].v4;
    for (name, want) in [
        ("client.address", json!(lab.client(0).addresses().v4)),
        ("server.address", json!(v4.ip())),
        ("server.port", json!(80)),
        ("network.peer.address", json!(peer)),
        ("network.peer.port", json!(TCP)),
        ("network.transport", json!("tcp")),
        ("network.type", json!("ipv4")),
        ("k8s.namespace.name", json!("shop")),
        ("k8s.service.name", json!("web")),
        ("k8s.pod.name", json!(HOSTILE)),
        ("k8s.node.name", json!("n1")),
    ] {
        assert_eq!(line[name], want, "{name}: {line:#}");
    }
    for name in ["pointsman.bytes.from_client", "pointsman.bytes.to_client"] {
        assert!(line[name].as_u64() > Some(100), "{name}: {line:#}");
    }
    assert!(line["pointsman.duration"].as_f64() >= Some(0.0) && line["timestamp"].is_string(), "{line:#}");
    // Rotated by whoever says so, and by whoever does not.
    fs::rename(&log, directory.path().join("1")).expect("moved");
    follow.signal(Signal::SIGHUP);
    eventually("a new file", || log.exists());
    logged("flows.jsonl", connect());
    fs::rename(&log, directory.path().join("2")).expect("moved");
    eventually("a new file", || log.exists());
    logged("flows.jsonl", connect());
    // A daemon that comes again is followed again.
    daemon.end(Signal::SIGKILL);
    let _daemon = bed.start(lab.node(), &[]);
    eventually("somebody listens", || listeners(&lab) == 1);
    logged("flows.jsonl", connect());
}

#[test]
fn what_the_forwarder_carries_is_one_connection_with_its_endpoint() {
    let lab = bed(2);
    let mut objects = shopping(false);
    objects[0]["metadata"]["annotations"] = json!({"pointsman.dev/datapath": "userspace"});
    objects[0]["spec"]["type"] = json!("NodePort");
    objects[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &["--iptables-localhost-nodeports=true"]);
    bed.get("/v1/health");
    let [v4, _] = frontends(1, 80);
    let mut first = Held::open(lab.client(0), v4);
    first.assert_alive("the forwarder carries it");
    let local = Held::open(lab.node(), ([127, 0, 0, 1], 30080).into());
    let dns = frontends(1, 53)[0];
    let asked = lab.client(0).ask(dns, PATIENCE).expect("an answer");
    let list = json_of(lab.node(), &bed, &["flows", "shop/web"]);
    let flows = list["flows"].as_array().expect("a list");
    let of = |held: &Held| {
        let mut mine = flows.iter().filter(|flow| flow["client"] == held.local().to_string());
        let flow = mine.next().unwrap_or_else(|| panic!("{}: {list:#}", held.local()));
        assert!(mine.next().is_none(), "one, not two: {list:#}");
        let at = pods([if held.pod == "web-1" { 1 } else { 2 }])[0].v4;
        assert_eq!((&flow["endpoint"], &flow["userspace"]), (&json!(format!("{at}:{TCP}")), &json!(true)), "{flow:#}");
        assert_eq!(flow["pod"], if held.pod == "web-1" { HOSTILE } else { "web-2" });
        flow.clone()
    };
    assert_eq!(of(&first)["frontend"], json!(v4));
    assert_eq!(of(&local)["frontend"], "127.0.0.1:30080");
    let by_udp: Vec<_> = flows.iter().filter(|flow| flow["protocol"] == "UDP").collect();
    let at = pods([if asked.pod == "web-1" { 1 } else { 2 }])[0].v4;
    assert!(by_udp.len() == 1 && by_udp[0]["endpoint"] == format!("{at}:{UDP}"), "{list:#}");
    assert_eq!(flows.len(), 3, "{list:#}");
    // Counted where they end.
    let counted = said(lab.node(), &bed, &["list", "--connections"]);
    assert!(
        counted.contains(&format!("{v4}")) && counted.contains("127.0.0.1") | counted.contains("0.0.0.0:30080"),
        "{counted}"
    );
    let web = bed.get("/v1/services/shop/web?connections=true");
    let port = &web["ports"][0];
    let active: u64 =
        port["endpoints"].as_array().expect("two").iter().filter_map(|one| one["connections"]["active"].as_u64()).sum();
    assert_eq!((active, &port["path"]["connections"]["active"]), (2, &json!(1)), "{port:#}");
    // Followed, also those that are over before anybody could ask.
    let follow = Following::start(lab.node(), &bed, &["--follow", "-o", "json"]);
    follow.event("present", port_of(&first));
    for _ in 0..10 {
        let held = Held::open(lab.client(0), v4);
        let (port, pod) = (port_of(&held), if held.pod == "web-1" { HOSTILE } else { "web-2" });
        drop(held);
        let new = follow.event("new", port);
        assert_eq!((&new["flow"]["pod"], &new["flow"]["userspace"]), (&json!(pod), &json!(true)), "{new:#}");
        assert_eq!(follow.event("end", port)["flow"]["pod"], pod);
    }
    let late = local.local().port();
    drop(local);
    follow.event("end", late);
}

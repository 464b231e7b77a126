//! `pointsman drain`, `weight` and `undrain` against a running daemon: what clients meet, and where it is said.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pointsman::lab::{Host, Lab};
use serde_json::{Value, json};

use super::observe::{METRICS, local, metric};
use super::operator::{json_of, pointsman, said};
use super::status::{Bed, say};
use super::support::beds::{PATIENCE, TCP, bed, pods};
use super::support::eventually;
use super::support::objects::{frontends, shop};
use super::support::oracle::nft;
use super::support::traffic::{Held, assert_even, names, tally};

/// Services `web` and `api`, both of these pods, which have names.
fn objects(count: usize) -> Vec<Value> {
    let mut all = [shop("web", 1, &pods(1..=count)), shop("api", 2, &pods(1..=count))].concat();
    for slice in all.iter_mut().filter(|one| one["kind"] == "EndpointSlice") {
        for (index, endpoint) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().enumerate() {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": format!("web-{}", index + 1)});
        }
    }
    all
}

/// A request to the page's port, and the whole answer.
pub fn page(lab: &Lab, method: &str, path: &str) -> String {
    lab.node().run(|| {
        let mut stream = TcpStream::connect(local(METRICS)).expect("a listener");
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("sent");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        text
    })
}

fn who_answers(lab: &Lab, number: u8) -> Vec<String> {
    let [v4, v6] = frontends(number, 80);
    let [by_v4, by_v6] = [v4, v6].map(|to| tally(lab.client(0), to, 30));
    assert_eq!(names(&by_v4), names(&by_v6), "in both families");
    names(&by_v4).into_iter().map(str::to_owned).collect()
}

#[test]
fn a_drain_is_obeyed_told_everywhere_and_outlives_the_daemon() {
    let lab = bed(3);
    let bed = Bed::of(&objects(3));
    let mut daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    let pointsman = |args: &[&str]| pointsman(lab.node(), &bed, args);
    let said = |args: &[&str]| said(lab.node(), &bed, args);
    let web = frontends(1, 80)[0];
    let mut held: Vec<Held> = (0..6).map(|_| Held::open(lab.client(0), web)).collect();

    // A pod, behind one of its Services.
    let table = said(&["drain", "web-1", "web", "--for", "30m"]);
    assert!(table.contains("shop/web") && table.contains("drained") && table.lines().count() == 2, "{table}");
    let line = daemon.hear(&["shop/web: pod web-1 drained by hand for 30m"]);
    assert!(line.starts_with('I'), "{line}");
    assert_eq!(who_answers(&lab, 1), ["web-2", "web-3"]);
    assert_eq!(who_answers(&lab, 2), ["web-1", "web-2", "web-3"], "the other Service's");
    held.iter_mut().for_each(|one| one.assert_alive("a drain ends nothing"));

    // Wherever somebody may look.
    let address = objects(3)[1]["endpoints"][0]["addresses"][0].as_str().expect("one").to_owned();
    let listing = said(&["list", "shop/web"]);
    let row = listing.lines().find(|line| line.contains(&format!("-> {address}:{TCP} "))).expect("the endpoint");
    assert_eq!(row.split_whitespace().nth(3), Some("0"), "weight 0, as ipvsadm has it: {listing}");
    let endpoints = said(&["get", "endpoints", "shop/web"]);
    assert!(
        endpoints.contains("drained by hand, 29m left") || endpoints.contains("drained by hand, 30m left"),
        "{endpoints}"
    );
    assert!(said(&["get", "services", "shop/web"]).contains("2/3, 1 by hand"));
    let why = said(&["explain", "shop/web:http"]);
    assert!(why.contains("weight 0, drained by hand, "), "{why}");
    let view = bed.get("/v1/services/shop/web");
    let first = &view["ports"][0]["endpoints"][0];
    assert_eq!(
        (&first["weight"], &first["byHand"]["weight"], &first["cluster"]["standing"]),
        (&json!(0), &json!(0), &json!("drained"))
    );
    let list = bed.get("/v1/overrides");
    assert_eq!(
        (&list["overrides"][0]["pod"], list["overrides"][0]["endpoints"].as_array().map(Vec::len)),
        (&json!("web-1"), Some(4))
    );
    assert_eq!(metric(&lab, "pointsman_endpoint_overrides{kind=\"drain\"}"), 1.0);
    let timeline = page(&lab, "GET", "/ui/v1/timeline");
    assert!(timeline.contains("shop/web: pod web-1 drained by hand for 30m"), "{timeline}");

    // A weight, by address, behind all of its Services.
    let (code, _, error) = pointsman(&["weight", &address, "5", "--for", "1h"]);
    assert_eq!((code, &*error), (Some(0), ""));
    let of_web = tally(lab.client(0), frontends(2, 80)[0], 70);
    assert_eq!(
        of_web.iter().map(|(pod, count)| (pod.as_str(), *count)).collect::<Vec<_>>(),
        [("web-1", 50), ("web-2", 10), ("web-3", 10)]
    );
    assert_eq!(said(&["get", "overrides"]).lines().count(), 4, "a heading, and what stands");
    assert_eq!(json_of(lab.node(), &bed, &["get", "overrides"])["overrides"].as_array().map(Vec::len), Some(3));

    // Whoever is killed leaves it to the next one, which programs it with the first load.
    drop(held);
    daemon.end(Signal::SIGKILL);
    let mut daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    assert_eq!(daemon.count(&["what was said by hand before still holds for its time", "count=3"]), 1);
    let before: Vec<_> = who_answers(&lab, 2);
    assert_eq!(before, ["web-1", "web-2", "web-3"]);
    let again = tally(lab.client(0), frontends(2, 80)[0], 70);
    assert_eq!(again.values().copied().max(), Some(50), "{again:?}");

    // Taken back: by pod what was said by address, too.
    let left = said(&["undrain", "web-1"]);
    assert!(left.contains("nothing that was said by hand stands"), "{left}");
    daemon.hear(&["shop/web: pod web-1 is drained no longer: taken back by hand"]);
    assert_even(&tally(lab.client(0), web, 30), 3, "as before");
    let (code, _, error) = pointsman(&["undrain", "web-1"]);
    assert_eq!((code, &*error), (Some(1), "pointsman: the daemon says: nothing was said by hand about pod web-1\n"));
    assert!(!bed.socket().with_extension("overrides.json").exists(), "nothing is left");
}

#[test]
fn a_drain_ends_in_time_and_connections_at_once_if_asked() {
    let lab = bed(2);
    let bed = Bed::of(&objects(2));
    let mut daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    let client = lab.client(0);
    let web = frontends(1, 80)[0];
    let mut held: Vec<Held> = (0..4).map(|_| Held::open(client, web)).collect();
    said(lab.node(), &bed, &["drain", "shop/web-1", "--cut", "--for", "2s"]);
    let begin = Instant::now();
    for one in &mut held {
        if one.pod == "web-2" {
            one.assert_alive("another's connection");
            continue;
        }
        while one.echoes() {
            assert!(begin.elapsed() < PATIENCE, "it should be reset");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    // The last one: said, without effect, and that is an exit status of its own.
    let (code, table, error) = pointsman(lab.node(), &bed, &["drain", "web-2", "web", "--for", "1h", "--cut"]);
    assert_eq!(code, Some(2), "{table} {error}");
    assert!(error.contains("all qualifying endpoints weigh 0, so all are used alike"), "{error}");
    assert_even(&tally(client, web, 20), 2, "a drain never leaves nobody");
    daemon.hear(&["WARN", "Service shop/web", "weight by hand", "all qualifying endpoints have weight 0"]);
    // The first ends by itself, and then the second has its effect.
    daemon.hear(&["shop/web: pod web-1 is drained by hand no longer: its time is over"]);
    assert!(begin.elapsed() > Duration::from_millis(1_500), "not before its time");
    daemon.hear(&["\"programmed\" "]);
    assert_eq!(names(&tally(client, web, 20)), ["web-1"]);
    said(lab.node(), &bed, &["undrain", "--all"]);
    assert_even(&tally(client, web, 20), 2, "as before");
}

/// Connections that a pod has open on the port that it serves, as it sees them.
fn open_at(pod: &Host) -> usize {
    // State 01 is ESTABLISHED (include/net/tcp_states.h).
    sockets(pod, |row| row[1].ends_with(&format!(":{TCP:04X}")) && row[3] == "01")
}

/// Its sockets, of both families, whose row is such: slot, local and remote address, state.
fn sockets(host: &Host, is_such: impl Fn(&[&str]) -> bool) -> usize {
    let tables = ["tcp", "tcp6"].map(|table| format!("/proc/thread-self/net/{table}"));
    let text = host.run(|| tables.map(|table| std::fs::read_to_string(table).expect("its sockets")).concat());
    text.lines().filter(|line| is_such(&line.split_whitespace().collect::<Vec<_>>())).count()
}

/// What the userspace forwarder carries is ended as well, at both ends; also what came by a loopback address; and a client by UDP goes elsewhere.
#[test]
fn what_the_forwarder_carries_is_cut_too() {
    let lab = bed(2);
    let mut all = objects(2);
    all[0]["metadata"]["annotations"] = json!({"pointsman.dev/datapath": "userspace"});
    all[0]["spec"]["type"] = json!("NodePort");
    all[0]["spec"]["ports"][0]["nodePort"] = json!(30080);
    let bed = Bed::of(&all);
    let mut daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    let client = lab.client(0);
    let [web, api] = [1, 2].map(|number| frontends(number, 80)[0]);
    let node_port = (Ipv4Addr::LOCALHOST, 30080).into();
    let held = [(client, web), (lab.node(), node_port), (client, api)];
    let [carried, local, others] = held.map(|(from, to)| (0..4).map(|_| Held::open(from, to)).collect::<Vec<_>>());
    let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a port");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let ask = || {
        let (mut answer, nonce) = ([0; 64], [7; 8]);
        socket.send_to(&nonce, frontends(1, 53)[0]).expect("sent");
        let heard = socket.recv(&mut answer).expect("an answer");
        String::from_utf8_lossy(answer[..heard].strip_prefix(&nonce).expect("the nonce")).into_owned()
    };
    let first = ask();
    assert_eq!(ask(), first, "it stays");
    let other = if first == "web-1" { "web-2" } else { "web-1" };
    let before = [other, &*first].map(|pod| open_at(lab.pod(pod)));
    assert_eq!(before, [6, 6], "half of each");

    // A drain alone ends nothing.
    said(lab.node(), &bed, &["drain", &first, "web"]);
    assert_eq!((ask(), open_at(lab.pod(&first))), (first.clone(), 6));
    said(lab.node(), &bed, &["drain", &first, "web", "--cut"]);
    let (cut, mut kept): (Vec<_>, Vec<_>) = carried.into_iter().chain(local).partition(|held| held.pod == first);
    cut.into_iter().for_each(|held| held.assert_reset("cut"));
    kept.iter_mut().for_each(|held| held.assert_alive("the other endpoint's"));
    eventually("the endpoint hears of it", || open_at(lab.pod(&first)) == 2);
    let counts = [&*first, other].map(|pod| open_at(lab.pod(pod)));
    assert_eq!(counts, [2, 6], "those of the other Service, and all of the other endpoint's");
    others.into_iter().for_each(|mut held| held.assert_alive("through another Service"));
    daemon.hear(&["connections of endpoints that left are ended", "protocol=\"TCP\"", "carried=4"]);
    assert_eq!(ask(), other, "by UDP, too");
    let flows = bed.get("/v1/flows?target=shop/web");
    let mut endpoints = flows["flows"].as_array().expect("a list").iter().filter(|flow| flow["active"] == true);
    assert!(endpoints.all(|flow| flow["pod"] == other), "{flows:#}");
}

/// Who is still being connected to the endpoint is among nobody's connections yet; it ends when it is.
#[test]
fn who_is_being_connected_to_a_cut_endpoint_ends_too() {
    let lab = bed(2);
    let mut all = objects(2);
    let annotations = json!({"pointsman.dev/datapath": "userspace", "pointsman.dev/connect-timeout": "20s"});
    all[0]["metadata"]["annotations"] = annotations;
    let bed = Bed::of(&all);
    let mut daemon = bed.start(lab.node(), &["--ipvs-scheduler=rr"]);
    bed.get("/v1/health");
    let silent = lab.pod("web-1").namespace();
    let hook = "type filter hook input priority filter";
    nft(silent, &[&format!("table inet silent {{ chain input {{ {hook}; tcp dport {TCP} drop\n }}\n }}")]);
    let web = frontends(1, 80)[0];
    let connect = || lab.client(0).run(|| TcpStream::connect(web)).expect("the forwarder accepts");
    let streams: Vec<_> = (0..4).map(|_| connect()).collect();
    // State 02 is SYN_SENT.
    let dialled = || sockets(lab.node(), |row| row[2].ends_with(&format!(":{TCP:04X}")) && row[3] == "02");
    eventually("half of them wait for the silent one", || dialled() == 2);
    said(lab.node(), &bed, &["drain", "web-1", "web", "--cut"]);
    daemon.hear(&["connections of endpoints that left are ended", "carried=0"]);
    // The kernel asks again a second after it has asked first.
    nft(silent, &["delete", "table", "inet", "silent"]);
    let said = streams.into_iter().map(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.read(&mut [0; 64]).map_err(|error| error.kind())
    });
    let (answered, ended): (Vec<_>, Vec<_>) = said.partition(Result::is_ok);
    assert_eq!(ended, [Err(ErrorKind::ConnectionReset); 2], "{answered:?}");
    eventually("nothing is left of them", || open_at(lab.pod("web-1")) == 0);
}

/// Whoever gives an order need not wait: what stands is kept, at whatever moment they go away.
#[test]
fn an_order_whose_sender_has_gone_is_kept_like_any_other() {
    let lab = bed(2);
    let bed = Bed::of(&objects(2));
    let daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    let weight = |list: &Value| list["overrides"][0]["weight"].as_u64();
    let kept = || {
        let text = std::fs::read_to_string(bed.socket().with_extension("overrides.json")).unwrap_or_default();
        serde_json::from_str(&text).ok().and_then(|list| weight(&list))
    };
    let mut obeyed = 0;
    for step in 0..60 {
        let mut stream = UnixStream::connect(bed.socket()).expect("a listener");
        let path = format!("/v1/overrides?endpoint=web-1&service=web&weight={}", step + 2);
        stream.write_all(format!("POST {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
        std::thread::sleep(Duration::from_micros(100 * step));
        drop(stream);
        // Long enough for an order to be carried out, or never to be.
        std::thread::sleep(Duration::from_millis(40));
        let mut stands = None;
        eventually("what stands is kept", || {
            stands = weight(&bed.get("/v1/overrides"));
            stands == kept()
        });
        obeyed += u64::from(stands == Some(step + 2));
    }
    assert!(obeyed > 10, "most of them should have been heard: {obeyed} of 60");
    let last = weight(&bed.get("/v1/overrides"));
    daemon.end(Signal::SIGKILL);
    let _daemon = bed.start(lab.node(), &[]);
    assert_eq!((weight(&bed.get("/v1/overrides")), last.is_some()), (last, true), "after a restart, too");
}

#[test]
fn what_cannot_be_done_is_said_and_the_page_changes_nothing() {
    let lab = bed(1);
    let bed = Bed::of(&objects(1));
    let _daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    for (args, want) in [
        (&["drain", "10.9.9.9"][..], "the daemon says: 10.9.9.9 is behind no Service here"),
        (&["drain", "web-1", "nobody"], "the daemon says: no Service nobody is served here"),
        (&["drain", "a/b/c"], "the daemon says: endpoint=\"a/b/c\": not an endpoint"),
        (&["undrain", "10.9.9.9"], "the daemon says: nothing was said by hand about 10.9.9.9"),
    ] {
        let (code, out, error) = pointsman(lab.node(), &bed, args);
        assert_eq!((code, &*out, error.lines().count()), (Some(1), "", 1), "{args:?}: {error}");
        assert!(error.starts_with(&format!("pointsman: {want}")), "{args:?}: {error}");
    }
    for args in
        [&["drain", "web-1", "--for", "2d"][..], &["weight", "web-1"], &["weight", "web-1", "70000"], &["undrain"]]
    {
        let (code, _, error) = pointsman(lab.node(), &bed, args);
        assert_eq!(code, Some(2), "clap's own: {args:?}: {error}");
    }
    // Orders go to root's socket; on the page's port nothing can be changed.
    let order = "POST /v1/overrides?endpoint=web-1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for method in ["POST", "DELETE", "PUT", "PATCH"] {
        let answer = page(&lab, method, "/ui/v1/overrides?endpoint=web-1&all=true");
        assert!(answer.starts_with("HTTP/1.1 405"), "{method}: {answer}");
    }
    assert_eq!(bed.get("/v1/overrides")["overrides"], json!([]));
    let (status, body) = say(&bed.socket(), order);
    assert_eq!(status, 200, "{body}");
    let (status, _) = say(&bed.socket(), &order.replace("POST /v1/overrides", "POST /v1/services"));
    assert_eq!(status, 405, "nothing else can be changed");
    assert_eq!(bed.get("/v1/overrides")["overrides"].as_array().map(Vec::len), Some(2));
}

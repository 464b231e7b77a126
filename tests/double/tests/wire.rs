//! The double, seen from the wire: what a client with nothing but a socket gets.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use api_double::{ApiDouble, GoneStyle, StreamingLists, node, service};
use serde_json::Value;

/// An answer that is still being read.
struct Answer {
    status: u16,
    body: BufReader<TcpStream>,
    /// Decoded, not yet handed out.
    text: String,
}

fn open(double: &ApiDouble, target: &str) -> Answer {
    let address = double.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).expect("the double listens");
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer t1\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut body = BufReader::new(stream);
    let mut line = String::new();
    body.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    while line.trim() != "" {
        line.clear();
        body.read_line(&mut line).unwrap();
    }
    Answer { status, body, text: String::new() }
}

impl Answer {
    /// Decodes one more chunk; `false` at the end of the body, `Err` when the connection broke.
    fn chunk(&mut self) -> std::io::Result<bool> {
        let mut line = String::new();
        if self.body.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let size = usize::from_str_radix(line.trim(), 16).expect("a chunk size");
        let mut chunk = vec![0; size + 2];
        self.body.read_exact(&mut chunk)?;
        self.text.push_str(std::str::from_utf8(&chunk[..size]).expect("UTF-8"));
        Ok(size > 0)
    }

    fn json(mut self) -> Value {
        while self.chunk().unwrap() {}
        serde_json::from_str(&self.text).unwrap()
    }

    /// The next watch event in short form, `None` at the end.
    fn event(&mut self) -> Option<String> {
        while !self.text.contains('\n') {
            if !self.chunk().unwrap() {
                return None;
            }
        }
        let (line, rest) = self.text.split_once('\n').map(|(line, rest)| (line.to_owned(), rest.to_owned())).unwrap();
        self.text = rest;
        let event: Value = serde_json::from_str(&line).unwrap();
        let metadata = &event["object"]["metadata"];
        let mark = if metadata["annotations"]["k8s.io/initial-events-end"] == "true" { " end" } else { "" };
        let code = event["object"]["code"].as_u64().map(|code| format!(" {code}")).unwrap_or_default();
        let name = metadata["name"].as_str().map(|name| format!(" {name}")).unwrap_or_default();
        Some(format!("{}{name}{mark}{code}", event["type"].as_str().unwrap()))
    }
}

const SERVICES: &str = "/api/v1/services";
const STREAMING: &str =
    "/api/v1/services?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";

fn web() -> Value {
    service("default", "web", "10.96.0.10", &[("http", "TCP", 80)])
}

#[test]
fn lists_gets_and_the_rest() {
    let double = ApiDouble::start();
    double.apply(web());
    double.apply(service("other", "none", "None", &[]));
    double.apply(node("n1", &[("InternalIP", "192.0.2.1")]));
    let list = open(&double, &format!("{SERVICES}?fieldSelector=spec.clusterIP%21%3DNone")).json();
    assert_eq!(list["kind"], "ServiceList");
    assert_eq!(list["metadata"]["resourceVersion"], double.version().to_string());
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(open(&double, "/api/v1/namespaces/other/services").json()["items"][0]["metadata"]["name"], "none");
    assert_eq!(open(&double, "/api/v1/nodes/n1").json()["status"]["addresses"][0]["address"], "192.0.2.1");
    assert_eq!(open(&double, "/version").json()["major"], "1");
    assert_eq!(open(&double, "/api/v1/nodes/n2").status, 404);
    assert_eq!(open(&double, "/apis/example.org/v1/things").status, 404);
    assert_eq!(open(&double, &format!("{SERVICES}?labelSelector=%21")).status, 400);
    let first = &double.requests()[0];
    assert_eq!((first.method.as_str(), first.path.as_str()), ("GET", SERVICES));
    assert_eq!((first.param("fieldSelector"), first.token.as_deref()), (Some("spec.clusterIP!=None"), Some("t1")));
}

#[test]
fn streaming_list_then_events_then_the_timeout() {
    let double = ApiDouble::start();
    double.apply(web());
    let mut watch = open(&double, &format!("{STREAMING}&timeoutSeconds=1"));
    assert_eq!(watch.event().unwrap(), "ADDED web");
    assert_eq!(watch.event().unwrap(), "BOOKMARK end");
    double.apply(web());
    assert_eq!(watch.event().unwrap(), "MODIFIED web");
    double.delete(SERVICES, "default", "web");
    assert_eq!(watch.event().unwrap(), "DELETED web");
    assert_eq!(watch.event().unwrap(), "BOOKMARK");
    assert_eq!(watch.event(), None);
}

#[test]
fn servers_that_refuse_or_ignore_streaming_lists() {
    let double = ApiDouble::start();
    double.apply(web());
    double.streaming_lists(StreamingLists::Refused);
    assert_eq!(open(&double, STREAMING).status, 422);
    double.streaming_lists(StreamingLists::Ignored);
    let mut watch = open(&double, &format!("{STREAMING}&resourceVersion=0&timeoutSeconds=1"));
    assert_eq!(watch.event().unwrap(), "ADDED web");
    assert_eq!(watch.event().unwrap(), "BOOKMARK");
    assert_eq!(watch.event(), None);
}

#[test]
fn versions_too_old_and_too_new() {
    let double = ApiDouble::start();
    let old = double.apply(web());
    let mut open_watch = open(&double, &format!("{SERVICES}?watch=true&resourceVersion={old}"));
    double.compact();
    let target = format!("{SERVICES}?watch=true&resourceVersion={old}");
    let mut watch = open(&double, &target);
    assert_eq!((watch.status, watch.event().unwrap().as_str()), (200, "ERROR 410"));
    double.gone_style(GoneStyle::Status);
    assert_eq!(open(&double, &target).status, 410);
    assert_eq!(open(&double, &format!("{SERVICES}?watch=true&resourceVersion={}", old + 100)).status, 504);
    double.apply(web());
    assert_eq!(open_watch.event().unwrap(), "MODIFIED web", "an open watch outlives a compaction");
}

#[test]
fn faults() {
    let double = ApiDouble::start();
    double.apply(web());
    double.fail_next(2, 503);
    assert_eq!([open(&double, SERVICES).status, open(&double, SERVICES).status], [503, 503]);
    assert_eq!(open(&double, SERVICES).status, 200);

    double.require_token(Some("t2"));
    assert_eq!(open(&double, SERVICES).status, 401);
    double.require_token(Some("t1"));
    assert_eq!(open(&double, SERVICES).status, 200);

    let target = format!("{SERVICES}?watch=true&resourceVersion={}", double.version());
    let mut broken = open(&double, &target);
    let mut frozen = open(&double, &target);
    wait_for(|| double.open_watches() == 2);
    double.inject_line(SERVICES, r#"{"type":"ERROR","object":{"code":500}}"#);
    assert_eq!(broken.event().unwrap(), "ERROR 500");
    assert_eq!(frozen.event().unwrap(), "ERROR 500");
    double.drop_watches();
    assert_eq!(broken.chunk().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    let mut ended = open(&double, &target);
    wait_for(|| double.open_watches() == 1);
    double.end_watches();
    assert_eq!(ended.event(), None);

    double.trickle(Some((100, Duration::from_millis(1))));
    assert_eq!(open(&double, SERVICES).json()["items"].as_array().unwrap().len(), 1);
    double.trickle(None);

    double.stop_listening();
    let address = double.url().trim_start_matches("http://").to_owned();
    assert_eq!(TcpStream::connect(&address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    double.resume_listening();
    assert_eq!(open(&double, SERVICES).json()["items"][0]["metadata"]["name"], "web");
}

#[test]
fn a_kubeconfig_with_a_token() {
    let dir = std::env::temp_dir().join(format!("api-double-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let double = ApiDouble::start();
    double.require_token(Some("t1"));
    let config: Value = serde_json::from_slice(&std::fs::read(double.kubeconfig(&dir)).unwrap()).unwrap();
    assert_eq!(config["clusters"][0]["cluster"]["server"], double.url());
    let token = config["users"][0]["user"]["tokenFile"].as_str().unwrap();
    assert_eq!(std::fs::read_to_string(token).unwrap(), "t1");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn ten_thousand_services_are_no_burden() {
    let double = ApiDouble::start();
    let mut watch = open(&double, STREAMING);
    assert_eq!(watch.event().unwrap(), "BOOKMARK end");
    for n in 0..10_000 {
        double.apply(service("default", &format!("s{n}"), "10.96.0.10", &[("http", "TCP", 80)]));
    }
    for n in 0..10_000 {
        assert_eq!(watch.event().unwrap(), format!("ADDED s{n}"));
    }
    let page = open(&double, &format!("{SERVICES}?limit=500")).json();
    assert_eq!(page["metadata"]["remainingItemCount"], 9_500);
}

fn wait_for(condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain");
        std::thread::sleep(Duration::from_millis(5));
    }
}

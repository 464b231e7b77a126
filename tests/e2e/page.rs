//! The page under `/ui/`, in a real browser: found, searched, opened, changed under the reader's eyes; and what it refuses.
//!
//! With `POINTSMAN_PICTURES=DIR`, pictures of what was seen are left there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pointsman::lab::Lab;
use serde_json::{Value, json};

use super::browser::Browser;
use super::daemon::{Daemon, Manifests};
use super::observe::{METRICS, get, local};
use super::support::beds::{bed, pods};
use super::support::objects::{crowd, frontends, shop};
use super::support::traffic::tally;

const PAGE: &str = "http://127.0.0.1:10249/ui/";
const EVIL: &str = "<img src=x onerror=alert(1)>\u{1b}[2J\u{202e}=1+1";

/// Names of rows that can be seen.
const ROWS: &str = "[...document.querySelectorAll('#rows a')].map(a => a.textContent)";

fn keep(browser: &mut Browser, name: &str) {
    let Some(directory) = std::env::var_os("POINTSMAN_PICTURES") else { return };
    let picture = browser.picture();
    let mut decode = Command::new("base64");
    decode
        .arg("-d")
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(Path::new(&directory).join(name)).expect("a file"));
    let mut decode = decode.spawn().expect("base64");
    decode.stdin.take().expect("piped").write_all(picture.as_bytes()).expect("taken");
    assert!(decode.wait().expect("its end").success());
}

/// Objects with a name that would like to be more than text.
fn evil(number: u8) -> Vec<Value> {
    let mut objects = shop("evil", number, &pods([1]));
    objects[0]["metadata"]["name"] = EVIL.into();
    for slice in &mut objects[1..] {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = EVIL.into();
        slice["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": EVIL});
    }
    objects
}

#[test]
fn a_reader_finds_a_service_and_sees_it_change() {
    let lab = bed(3);
    let manifests = Manifests::of(&[crowd(1500), evil(9)].concat());
    manifests.write("web.json", &shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let mut browser = Browser::start(lab.node().namespace());
    browser.open(PAGE);
    browser.wait("the first page", "document.querySelectorAll('#rows a').length > 5");
    browser.wait("the state", "document.getElementById('state').textContent === 'n1: up to date'");
    assert_eq!(browser.eval("document.getElementById('count').textContent"), "1,502 Services");
    let drawn = browser.eval("document.querySelectorAll('#rows [role=row]').length").as_u64().expect("a number");
    assert!(drawn < 60, "{drawn} rows of 1,502 are in the document");
    keep(&mut browser, "services-light.png");
    // To the very end, which comes from another page of the server's.
    browser.eval("document.getElementById('window').scrollTop = 1e9");
    browser.wait("the last row", "[...document.querySelectorAll('#rows a')].some(a => a.textContent === 'shop/web')");

    // By keyboard alone.
    browser.press("/");
    browser.wait("the search", "document.activeElement.id === 'search'");
    browser.write("shop/we");
    browser.wait("what was searched", &format!("{ROWS}.join() === 'shop/web'"));
    assert_eq!(browser.eval("document.getElementById('count').textContent"), "1 Service");
    browser.press("ArrowDown");
    browser.wait("the row's link", "document.activeElement.textContent === 'shop/web'");
    browser.press("Enter");
    browser.wait("the Service", "document.querySelectorAll('.port').length === 4");
    assert_eq!(browser.eval("document.activeElement.id"), "service-title", "readers begin at the title");
    let endpoints = "document.querySelectorAll('.port')[0].querySelectorAll('tbody tr').length";
    assert_eq!(browser.eval(endpoints), 2);

    // A change, and connections, without a reload.
    browser.eval("window.same = true");
    manifests.write("web.json", &shop("web", 1, &pods(1..=3)));
    browser.wait("the third endpoint", &format!("{endpoints} === 3"));
    browser.wait(
        "the announcement",
        "document.getElementById('live').textContent.includes('+1 endpoint 10.244.0.4:8080')",
    );
    tally(lab.client(0), frontends(1, 80)[0], 30);
    browser.wait("flows", "document.querySelectorAll('#flows tbody tr').length > 10");
    browser.wait("a rate", "[...document.querySelectorAll('.port td.number')].some(td => /^[0-9]*[1-9]\\.|^0\\.[1-9]/.test(td.textContent))");
    keep(&mut browser, "service-light.png");
    browser.eval("location.hash = '#/changes'");
    browser.wait(
        "the timeline",
        "document.getElementById('timeline').textContent.includes('+1 endpoint 10.244.0.4:8080')",
    );
    browser.prefer("dark");
    keep(&mut browser, "changes-dark.png");
    let dark = browser.eval("getComputedStyle(document.body).backgroundColor");
    browser.prefer("light");
    assert_ne!(browser.eval("getComputedStyle(document.body).backgroundColor"), dark);
    browser.eval("location.hash = '#/health'");
    browser.wait("the chart", "document.querySelectorAll('#chart circle').length >= 2");
    browser.prefer("dark");
    keep(&mut browser, "health-dark.png");
    assert_eq!(browser.eval("window.same"), true, "nothing was loaded anew");

    // Names are text.
    browser.eval("location.hash = '#/services'");
    browser.eval(
        "(f => { f.value = 'onerror'; f.dispatchEvent(new Event('input')); })(document.getElementById('search'))",
    );
    browser.wait("the hostile name", &format!("{ROWS}.join().includes('<img src=x onerror=alert(1)>')"));
    let name = browser.eval(&format!("{ROWS}[0]"));
    assert_eq!(name, "shop/<img src=x onerror=alert(1)>\\u{1b}[2J\\u{202e}=1+1");
    browser.eval("document.querySelector('#rows a').click()");
    browser.wait("its endpoint", "document.querySelectorAll('.port tbody tr').length > 0");
    assert_eq!(browser.eval("document.images.length"), 0);
    manifests.write("web.json", &[]);
    browser.eval("location.hash = '#/service/shop/web'");
    browser
        .wait("the end of a Service", "document.getElementById('service-body').textContent.includes('not any more')");
    let complaints: Vec<_> = browser.complaints().iter().filter(|one| !one.contains("404 (Not Found)")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// A request as somebody might write it; the answer's first line, or what came of it.
fn raw(lab: &Lab, request: &str) -> String {
    lab.node().run(|| {
        let mut stream = TcpStream::connect(local(METRICS)).expect("a listener");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    })
}

#[test]
fn what_is_not_for_readers_is_refused() {
    let lab = bed(1);
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let head = |path: &str, host: &str, more: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
    };
    let here = "127.0.0.1:10249";
    for (request, status) in [
        (head("/ui/", here, ""), "200"),
        (head("/ui", here, ""), "308"),
        (head("/ui/v1/services", "localhost:10249", ""), "200"),
        (head("/ui/", "evil.example:10249", ""), "403"),
        (head("/ui/v1/services", "evil.example", ""), "403"),
        (head("/ui/v1/services", here, "Origin: http://evil.example\r\n"), "403"),
        (head("/ui/../../etc/passwd", here, ""), "404"),
        (head("/ui/..%2f..%2fetc/passwd", here, ""), "404"),
        (head("/ui/page.css/../page.rs", here, ""), "404"),
        (head("/ui/%2e%2e/metrics", here, ""), "404"),
        (head("/ui/v1/services/../../../metrics", here, ""), "404"),
        (head("/ui/v1/services/shop/none", here, ""), "404"),
        (head("/ui/v1/flows/shop/none", here, ""), "404"),
        (head("/ui/v1/flows", here, ""), "404"),
        (head("/ui/v1/rates", here, ""), "404"),
        (head("/ui/v1/explain?target=10.96.0.1:80", here, ""), "404"),
        (head("/ui/v1/services?only=nonsense", here, ""), "400"),
        (head(&format!("/ui/{}", "x".repeat(40_000)), here, ""), "4"),
        (head("/ui/", here, &format!("X-Long: {}\r\n", "x".repeat(40_000))), "431"),
        (head("/ui/", here, "").replace("GET", "POST"), "405"),
        (head("/ui/v1/services/shop/web", here, "").replace("GET", "DELETE"), "405"),
        (head("/ui/", here, "").replace("GET", "BREW"), "405"),
    ] {
        let line = raw(&lab, &request);
        let short: String = request.chars().take(90).collect();
        assert!(line.starts_with(&format!("HTTP/1.1 {status}")), "{short:?}: {line:?}");
    }
    let text = get(&lab, local(METRICS), "/metrics").1;
    assert!(!text.is_empty(), "names do not matter to metrics, which no browser can read across origins");
    drop(daemon);
    let daemon = Daemon::serving(lab.node(), &manifests, &["--ui=false"]);
    super::support::eventually("the port", || get(&lab, local(METRICS), "/healthz").0 == 200);
    assert!(raw(&lab, &head("/ui/", here, "")).starts_with("HTTP/1.1 404"));
    drop(daemon);
}

/// Who connects a thousand times and says nothing does not keep a reader from being answered.
#[test]
fn slow_clients_do_not_keep_readers_out() {
    let lab = bed(1);
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let mut slow = Vec::new();
    for _ in 0..2000 {
        let stream = lab.node().run(|| TcpStream::connect(local(METRICS)));
        let Ok(mut stream) = stream else { break };
        let _ = stream.write_all(b"GET /ui/ HTTP/1.1\r\nHost: 127");
        slow.push(stream);
    }
    assert!(slow.len() > 900, "{}", slow.len());
    let answer = raw(&lab, "GET /ui/v1/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    daemon.assert_alive();
}

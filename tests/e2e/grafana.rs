//! `examples/grafana/`: a real Prometheus scrapes the daemon in its node, and answers every query of the dashboard and the alert rules.
//! Needs Debian's package `prometheus`, and fails without it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pointsman::lab::Lab;
use serde_json::{Value, json};

use super::daemon::{Daemon, Manifests};
use super::observe::{METRICS, get, get_by, local};
use super::support::beds::{PATIENCE, bed, pods};
use super::support::objects::{DNS, HTTP, crowd, frontends, scheduled, service, shop, slices};
use super::support::traffic::{tally, tally_by};

const PROMETHEUS: u16 = 9090;

/// Metrics that are not there before something fails that cannot be made to fail here; `observe/metrics/tests.rs` knows their names.
const NEVER_HERE: [&str; 1] = ["kubeproxy_sync_proxy_rules_nftables_sync_failures_total"];

fn example(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "examples", "grafana", name].iter().collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(example("dashboard.json")).expect("readable")).expect("JSON")
}

/// A Prometheus in the node; dropping it kills it.
struct Prometheus {
    child: Child,
    _data: tempfile::TempDir,
}

impl Prometheus {
    fn start(lab: &Lab) -> Self {
        let data = tempfile::tempdir().expect("a directory");
        let config = data.path().join("prometheus.yml");
        let job = json!({"job_name": "pointsman", "static_configs": [{"targets": [format!("127.0.0.1:{METRICS}")]}]});
        let all = json!({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [job]});
        fs::write(&config, all.to_string()).expect("written");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"))
            .args(["--log.level=warn", "--query.lookback-delta=1m"])
            .stdin(Stdio::null());
        let child = lab.node().spawn(command).expect("prometheus, of Debian's package prometheus");
        Self { child, _data: data }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// The series that a query gives, as their labels.
fn query(lab: &Lab, query: &str) -> Vec<Value> {
    let (status, body) = get_by("HTTP/1.0", lab, local(PROMETHEUS), &format!("/api/v1/query?query={}", encoded(query)));
    let answer: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{query}: {status} {error}: {body}"));
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer["data"]["result"].as_array().expect("a vector").clone()
}

/// Each `sum by (a, b) (...)` in an expression, with its labels.
fn aggregations(expr: &str) -> Vec<(&str, Vec<&str>)> {
    let mut found = Vec::new();
    for (at, _) in expr.match_indices(" by (") {
        let begin = expr[..at].rfind(|c: char| !c.is_ascii_alphabetic()).map_or(0, |before| before + 1);
        let (labels, rest) = expr[at + " by (".len()..].split_once(") (").expect("closed, and an argument");
        let mut depth = 1;
        let closed = |(at, c): (usize, char)| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            (depth == 0).then_some(at)
        };
        let length = rest.char_indices().find_map(closed).expect("closed");
        let end = expr.len() - rest.len() + length + 1;
        found.push((&expr[begin..end], labels.split(',').map(str::trim).collect()));
    }
    found
}

/// Fails unless the query finds something, and each part of it has the labels that it is grouped by.
fn assert_answers(lab: &Lab, what: &str, expr: &str) {
    assert!(!query(lab, expr).is_empty(), "{what}: finds nothing: {expr}");
    for (part, labels) in aggregations(expr) {
        let found = query(lab, part);
        for label in labels {
            let has = found.iter().all(|series| series["metric"].get(label).is_some());
            assert!(has, "{what}: there is no label {label}: {part}: {found:?}");
        }
    }
}

#[test]
fn every_query_of_dashboard_and_alerts_finds_something_in_a_real_scrape() {
    let lab = bed(3);
    let web = scheduled(service("web", 1, &[HTTP, DNS]), "lc");
    // Number 0 is the pods' router, where nobody listens: attempts to reach it fail.
    let mut forwarded = shop("forwarded", 2, &pods(0..=2));
    forwarded[0]["metadata"]["annotations"] = json!({"pointsman.dev/datapath": "userspace"});
    let manifests = Manifests::of(&[vec![web], forwarded, crowd(20)].concat());
    manifests.write("web.json", &slices("web", &pods(1..=2)));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--metrics-endpoints", "--metrics-services=1"]);
    daemon.programmed();
    let prometheus = Prometheus::start(&lab);
    let mut changed = slices("web", &pods(1..=3));
    changed[0]["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": jiff::Timestamp::now().to_string()});
    manifests.write("web.json", &changed);
    // Until two walks have seen connections, and two scrapes the second walk and what the forwarder says every five seconds.
    let begin = Instant::now();
    let opened = "increase(pointsman_service_connections_opened_total[1m]) > 0";
    loop {
        tally(lab.client(0), frontends(1, 80)[0], 20);
        tally(lab.client(0), frontends(2, 80)[0], 5);
        tally_by(pointsman::lab::ask, lab.client(0), frontends(1, 53)[0], 5);
        std::thread::sleep(Duration::from_millis(300));
        let up = get(&lab, local(PROMETHEUS), "/-/ready").0 == 200;
        let forwarded = "rate(pointsman_userspace_endpoint_failures_total[1m])";
        if up && !query(&lab, opened).is_empty() && !query(&lab, forwarded).is_empty() {
            break;
        }
        assert!(begin.elapsed() < PATIENCE * 2, "connections should be counted; prometheus is up: {up}");
    }
    let fill = |expr: &str| {
        let expr = expr.replace("$job", "pointsman").replace("$__rate_interval", "1m");
        expr.replace("$instance", ".*").replace("$namespace", ".*").replace("$service", ".*")
    };
    let dashboard = dashboard();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_answers(
                &lab,
                panel["title"].as_str().expect("a title"),
                &fill(target["expr"].as_str().expect("a query")),
            );
            queries += 1;
        }
    }
    assert!(queries > 25, "{queries}");
    for variable in dashboard["templating"]["list"].as_array().expect("variables").iter().skip(1) {
        let text = fill(variable["definition"].as_str().expect("a definition"));
        let inside = text.strip_prefix("label_values(").and_then(|text| text.strip_suffix(')')).expect("a call");
        let (selector, label) = inside.rsplit_once(", ").expect("two arguments");
        let found = query(&lab, &format!("count by ({label}) ({selector})"));
        assert!(found.iter().any(|series| series["metric"].get(label).is_some()), "{text}: {found:?}");
    }
    let alerts: Value =
        serde_saphyr::from_str(&fs::read_to_string(example("alerts.yaml")).expect("readable")).expect("YAML");
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules");
    assert!(rules.len() >= 10);
    for rule in rules {
        let expr = rule["expr"].as_str().expect("an expression");
        let known = NEVER_HERE.iter().any(|name| expr.contains(name));
        let measured = expr.rsplit_once([' ']).and_then(|(left, _)| left.strip_suffix(|c| ">=<".contains(c)));
        let measured = measured.expect("a comparison").trim_end_matches(['=', ' ']);
        match known {
            true => drop(query(&lab, measured)),
            false => assert_answers(&lab, rule["alert"].as_str().expect("a name"), measured),
        }
    }
    drop(prometheus);
}

/// What Grafana checks when a dashboard is imported, and what it would complain about in silence.
#[test]
fn the_dashboard_is_whole() {
    let dashboard = dashboard();
    for field in ["title", "uid", "schemaVersion", "time", "templating", "panels"] {
        assert!(!dashboard[field].is_null(), "{field}");
    }
    assert!(dashboard["id"].is_null(), "an id is the database's of whoever exported it");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = &panel["gridPos"];
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| place[side].as_u64().expect("a number"));
        assert!(x + w <= 24, "{panel}");
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(taken.insert(cell), "panels overlap at {cell:?}: {}", panel["title"]);
        }
        for target in panel["targets"].as_array().into_iter().flatten() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "whoever imports it chooses: {}", panel["title"]);
        }
    }
}

#[test]
fn the_alert_rules_fire_when_they_should() {
    for args in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        let done = Command::new("promtool").args(args).current_dir(example("")).output();
        let done = done.expect("promtool, of Debian's package prometheus");
        let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "promtool {args:?}: {said}");
    }
}

/// Whatever Services are called, a scrape parses, and what it says of them is in their labels.
#[test]
fn hostile_names_do_not_break_a_scrape() {
    let lab = bed(1);
    let evil = "x\"} 1\npointsman_fake{a=\"\\\u{1b}[2J<b>,=1+1";
    let mut objects = shop("web", 1, &pods([1]));
    for object in &mut objects {
        let kind = object["kind"].as_str().expect("a kind").to_owned();
        match kind.as_str() {
            "Service" => object["metadata"]["name"] = evil.into(),
            _ => object["metadata"]["labels"]["kubernetes.io/service-name"] = evil.into(),
        }
    }
    let manifests = Manifests::of(&objects);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--metrics-endpoints"]);
    daemon.programmed();
    tally(lab.client(0), frontends(1, 80)[0], 3);
    let begin = Instant::now();
    let series = loop {
        let text = get(&lab, local(METRICS), "/metrics").1;
        if let Some(series) = text.lines().find(|line| line.starts_with("pointsman_endpoint_connections_active{")) {
            assert!(!text.lines().any(|line| line.starts_with("pointsman_fake")), "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
            let mut check = Command::new("promtool");
            check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut check = check.spawn().expect("promtool, of Debian's package prometheus");
            let mut input = check.stdin.take().expect("piped");
            std::io::Write::write_all(&mut input, text.as_bytes()).expect("taken");
            drop(input);
            let said = check.wait_with_output().expect("its end");
            let said = String::from_utf8_lossy(&said.stderr).into_owned();
            // Lints about kube-proxy's names are not ours to heed; what does not parse is.
            assert!(!said.contains("error while linting"), "{said}");
            break series.to_owned();
        }
        assert!(begin.elapsed() < PATIENCE, "connections should be counted: {text}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(series.contains(r#"service="x\"} 1\\u{a}pointsman_fake"#), "{series}");
}

//! `pointsman trace`: the rules that packets took, what became of them, and that nothing of it stays.

use std::io::BufRead;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pointsman::lab::{Host, Lab};
use serde_json::{Value, json};

use super::operator::pointsman;
use super::status::Bed;
use super::support::beds::{PATIENCE, SHORT, TCP, bed, pods};
use super::support::eventually;
use super::support::objects::{cluster_ips, frontends, shop};
use super::support::oracle::nft;
use super::support::traffic::Held;

/// Starts a trace, and waits until the kernel has its table.
fn trace(node: &Host, lab: &Lab, bed: &Bed, args: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pointsman"));
    command.arg("trace").args(args).args(["-o", "json", "--for", "60s"]).arg("--socket").arg(bed.socket());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = node.spawn(command).expect("the binary runs");
    eventually("the table that traces", || tables(lab).contains("pointsman-trace-"));
    child
}

fn tables(lab: &Lab) -> String {
    nft(lab.node().namespace(), &["list", "tables"])
}

/// What a trace told, of one packet each.
fn told(child: Child) -> Vec<Value> {
    let output = child.wait_with_output().expect("its end");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{error}");
    let lines = output.stdout.lines().map(|line| line.expect("text"));
    lines.map(|line| serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn words(packet: &Value) -> String {
    let steps = packet["steps"].as_array().expect("steps").iter();
    steps
        .map(|step| {
            format!("{}: {}\n", step["chain"].as_str().expect("a chain"), step["words"].as_str().expect("words"))
        })
        .collect()
}

fn has(packet: &Value, parts: &[&str]) {
    let words = words(packet);
    for part in parts {
        assert!(words.contains(part), "{part:?} is missing:\n{words}{packet:#}");
    }
}

#[test]
fn packets_are_told_with_the_rules_they_took() {
    let lab = bed(2);
    let mut objects = shop("web", 1, &pods([1, 2]));
    for slice in &mut objects[1..] {
        for (index, endpoint) in slice["endpoints"].as_array_mut().expect("a list").iter_mut().enumerate() {
            endpoint["targetRef"] = json!({"kind": "Pod", "name": format!("web-{}", index + 1)});
        }
    }
    let mut none = shop("none", 2, &[]);
    none.truncate(1);
    objects.extend(none);
    let mut sticky = shop("sticky", 3, &pods([1, 2]));
    sticky[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    objects.extend(sticky);
    let bed = Bed::of(&objects);
    let _daemon = bed.start(lab.node(), &["--cluster-cidr=10.244.0.0/16,fd00:10:244::/64"]);
    bed.get("/v1/health");
    let [v4, v6] = frontends(1, 80);
    let client = lab.client(0).addresses().v4.to_string();

    // Served, from outside the cluster: the source is hidden.
    let tracing = trace(lab.node(), &lab, &bed, &["shop/web:http", "--from", &client, "-c", "1"]);
    let held = Held::open(lab.client(0), v4);
    let packets = told(tracing);
    let [packet] = &packets[..] else { panic!("{packets:#?}") };
    let endpoint = format!("{}:{TCP}", pods([if held.pod == "web-1" { 1 } else { 2 }])[0].v4);
    assert_eq!((&packet["outcome"], &packet["endpoint"]), (&json!("endpoint"), &json!(endpoint)), "{packet:#}");
    assert_eq!((&packet["pod"], &packet["service"]), (&json!(held.pod), &json!("shop/web:http")), "{packet:#}");
    assert_eq!((&packet["client"], &packet["target"]), (&json!(held.local().to_string()), &json!(v4)), "{packet:#}");
    has(
        packet,
        &[
            "found in map services: shop/web:http, pool 0x",
            "random over 2",
            &format!("-> endpoint {endpoint}"),
            "masqueraded: 10.96.0.1 is a ClusterIP",
        ],
    );
    assert!(!packet["source"].as_str().unwrap_or_default().starts_with(&client), "{packet:#}");
    assert!(packet["summary"].as_str().expect("a sentence").contains("masqueraded"), "{packet:#}");
    assert!(packet["summary"].as_str().expect("a sentence").contains("was sent to endpoint"), "{packet:#}");
    assert!(!tables(&lab).contains("trace"), "the table has gone with the process");

    // IPv6, and of another client nothing.
    let tracing = trace(lab.node(), &lab, &bed, &[&v6.to_string(), "-c", "1"]);
    let held = Held::open(lab.client(0), v6);
    let packets = told(tracing);
    assert_eq!((&packets[0]["outcome"], &packets[0]["pod"]), (&json!("endpoint"), &json!(held.pod)), "{packets:#?}");

    // Refused, in words and as data.
    let [nobody, _] = cluster_ips(2);
    let tracing = trace(lab.node(), &lab, &bed, &[&format!("{nobody}:80"), "--proto", "tcp", "-c", "1"]);
    let refused = lab.client(0).connect(format!("{nobody}:80").parse().expect("an address"), PATIENCE);
    assert!(refused.is_err());
    let packets = told(tracing);
    assert_eq!((&packets[0]["outcome"], &packets[0]["service"]), (&json!("refused"), &json!("shop/none:http")));
    has(&packets[0], &["answered with a TCP reset"]);

    // With session affinity: chosen once, remembered then.
    let [sticky, _] = frontends(3, 80);
    let tracing = trace(lab.node(), &lab, &bed, &["shop/sticky", "--from", &client, "-c", "2"]);
    let first = Held::open(lab.client(0), sticky);
    let second = Held::open(lab.client(0), sticky);
    let packets = told(tracing);
    assert_eq!(packets.len(), 2, "{packets:#?}");
    assert_eq!(first.pod, second.pod);
    has(&packets[0], &["chosen now, and remembered for client"]);
    has(&packets[1], &["is remembered in map affinity and stays"]);
    assert_eq!(packets[0]["endpoint"], packets[1]["endpoint"]);

    // Somebody else's table drops it, and is named.
    let others = "table ip firewall {\n chain wall {\n type filter hook forward priority 0\n ip daddr 10.244.0.0/16 tcp dport 8080 drop comment \"no way\"\n }\n}";
    nft(lab.node().namespace(), &[others]);
    let tracing = trace(lab.node(), &lab, &bed, &["shop/web", "--from", &client, "-c", "1"]);
    assert!(lab.client(0).connect(v4, SHORT).is_err());
    let packets = told(tracing);
    assert_eq!(packets[0]["outcome"], "dropped", "{packets:#?}");
    let summary = packets[0]["summary"].as_str().expect("a sentence");
    assert!(summary.contains("by ip firewall, chain wall"), "{summary}");
    has(&packets[0], &["wall: rule handle", "\"no way\""]);
}

#[test]
fn nothing_of_a_trace_stays_and_mistakes_are_named() {
    let lab = bed(1);
    let bed = Bed::of(&shop("web", 1, &pods([1])));
    let daemon = bed.start(lab.node(), &[]);
    bed.get("/v1/health");
    for (args, why) in [
        (&["trace", "10.96.0.1"][..], "\"10.96.0.1\" is neither ADDRESS:PORT"),
        (&["trace", "shop/nobody"], "no Service shop/nobody is served here"),
        (
            &["trace", "10.96.0.1:80", "--from", "fd00::9"],
            "--from fd00::9: 10.96.0.1:80 has no frontend of that family",
        ),
        (&["trace", "shop/web:ftp"], "shop/web:ftp has no frontend that could be traced here"),
    ] {
        let (code, out, error) = pointsman(lab.node(), &bed, args);
        assert_eq!((code, &*out), (Some(1), ""), "{args:?}");
        assert!(error.contains(why) && error.lines().count() == 1, "{args:?}: {error}");
    }
    let mut tracing = trace(lab.node(), &lab, &bed, &["shop/web"]);
    kill(Pid::from_raw(i32::try_from(tracing.id()).expect("a number")), Signal::SIGKILL).expect("it lives");
    tracing.wait().expect("its end");
    eventually("the table to be gone", || !tables(&lab).contains("trace"));
    // Without a daemon the kernel's labels say which frontends a Service has.
    daemon.end(Signal::SIGKILL);
    let tracing = trace(lab.node(), &lab, &bed, &["shop/web:http", "-c", "1"]);
    let [v4, _] = frontends(1, 80);
    let held = Held::open(lab.client(0), v4);
    let packets = told(tracing);
    assert_eq!((&packets[0]["outcome"], &packets[0]["pod"]), (&json!("endpoint"), &Value::Null), "{packets:#?}");
    drop(held);
    assert!(!tables(&lab).contains("trace"));
}

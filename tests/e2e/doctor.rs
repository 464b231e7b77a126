//! `pointsman doctor` in a node: with a daemon, with trouble, and without one.

use nix::sys::signal::Signal;
use pointsman::lab::Host;
use serde_json::Value;

use super::operator::pointsman;
use super::status::Bed;
use super::support::beds::{bed, pods};
use super::support::objects::shop;
use super::support::oracle::nft;

/// The verdict and what was seen of a check, the exit status, and the worst verdict.
fn report(node: &Host, bed: &Bed) -> (Option<i32>, Value) {
    let (code, out, error) = pointsman(node, bed, &["doctor", "-o", "json"]);
    assert_eq!(error, "");
    (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}")))
}

fn verdict<'a>(report: &'a Value, check: &str) -> &'a str {
    let findings = report["findings"].as_array().expect("a list");
    let found = findings.iter().find(|one| one["check"] == check);
    found.unwrap_or_else(|| panic!("{check}: {report:#}"))["verdict"].as_str().expect("a word")
}

#[test]
fn what_is_wrong_is_found_and_what_is_right_is_said() {
    let lab = bed(1);
    let node = lab.node();
    let bed = Bed::of(&shop("web", 1, &pods([1])));
    // Tables that anybody may change, so that they can be.
    let daemon = bed.start(node, &["--own-tables=false"]);
    bed.get("/v1/health");
    let (_, seen) = report(node, &bed);
    for check in [
        "kernel",
        "privileges",
        "nf_tables",
        "ruleset",
        "forwarding IPv4",
        "conntrack",
        "leftovers",
        "daemon",
        "version",
        "drift",
        "objects",
        "API server",
        "port",
        "descriptors",
    ] {
        assert_eq!(verdict(&seen, check), "ok", "{check}: {seen:#}");
    }
    assert_ne!(seen["verdict"], "fail", "{seen:#}");
    assert!(
        seen["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|one| one["check"] == "ruleset"
                && one["seen"].as_str().is_some_and(|seen| seen.contains("IPv4 and IPv6"))),
        "{seen:#}"
    );

    // Trouble, of several kinds at once.
    node.namespace().sysctls(&[("ipv4/ip_forward", "0")]).expect("a parameter");
    nft(node.namespace(), &["add table ip kube-proxy"]);
    nft(
        node.namespace(),
        &["add table ip early { chain pre { type nat hook prerouting priority -150; dnat to 10.9.9.9; }; }"],
    );
    super::operator::said(node, &bed, &["weight", pods([1])[0].v4.to_string().as_str(), "1"]);
    let (code, seen) = report(node, &bed);
    assert_eq!((code, &seen["verdict"]), (Some(2), &"fail".into()));
    for (check, want) in [
        ("forwarding IPv4", "fail"),
        ("leftovers", "fail"),
        ("nat chains", "warn"),
        ("by hand", "warn"),
        ("drift", "ok"),
    ] {
        assert_eq!(verdict(&seen, check), want, "{check}: {seen:#}");
    }
    let (code, lines, _) = pointsman(node, &bed, &["doctor", "--quiet"]);
    assert_eq!(code, Some(2));
    assert!(
        lines.contains("FAIL forwarding IPv4")
            && lines.contains("-> sysctl -w net.ipv4.ip_forward=1")
            && !lines.contains("ok  "),
        "{lines}"
    );

    // Without a daemon the rest is said, and that its tables are there.
    daemon.end(Signal::SIGKILL);
    let (code, seen) = report(node, &bed);
    assert_eq!(
        (code, verdict(&seen, "daemon"), verdict(&seen, "leftovers"), verdict(&seen, "ruleset")),
        (Some(2), "fail", "warn", "ok")
    );
    assert!(seen.to_string().contains("ip pointsman, ip6 pointsman"), "{seen:#}");
}

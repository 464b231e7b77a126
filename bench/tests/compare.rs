//! A quick comparison, looked at for completeness: not for speed.
//!
//! Needs root, nft, iptables and `kube-proxy` beside this test's program (`cargo test --workspace` builds it). Where HAProxy, nginx or IPVS
//! are missing, the run must say so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const BY_SIZE: [&str; 5] = ["first-sync", "cost", "setup", "requests", "one-change"];
const AT_BASE: [&str; 7] = ["throughput", "udp", "packets", "balance", "moved", "disruption", "removal"];
const CONTENDERS: [&str; 13] = [
    "direct",
    "dnat-rule",
    "pointsman",
    "nftables-shape",
    "iptables-nft-shape",
    "iptables-legacy-shape",
    "ipvs-shape",
    "pointsman-userspace",
    "haproxy",
    "nginx",
    "kube-proxy-nftables",
    "kube-proxy-iptables",
    "kube-proxy-ipvs",
];
/// The size at which everything is measured, and another one.
const BASE: u64 = 20;
const OTHER: u64 = 1;

fn kube_proxy() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_bench")).with_file_name("kube-proxy");
    assert!(path.exists(), "no {}: cargo build --bin kube-proxy", path.display());
    path
}

/// Our own program stands in for a real kube-proxy.
fn compare(out: &Path, more: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(["compare", "--quick", "--rounds", "1", "--attempts", "1"]);
    command.args(["--base", &BASE.to_string(), "--sizes", &OTHER.to_string()]);
    command.arg("--kube-proxy").arg(kube_proxy()).arg("--out").arg(out).args(more);
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}\n{said}", output.status);
}

fn lines(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("compare-host.jsonl")).expect("a journal");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn matches(line: &Value, contender: &str, services: u64, measurement: &str) -> bool {
    line["contender"] == contender && line["services"] == services && line["measurement"] == measurement
}

#[test]
fn everything_has_rows_or_a_reason_and_a_run_that_was_broken_off_goes_on() {
    let out = tempfile::tempdir().expect("a directory");
    let out = out.path();
    compare(out, &[]);
    let all = lines(out);
    let manifest = &all[0]["manifest"];
    let named: Vec<_> = manifest["contenders"].as_array().expect("contenders").iter().collect();
    assert_eq!(named.iter().map(|one| one["name"].as_str().expect("a name")).collect::<Vec<_>>(), CONTENDERS);
    for one in &named {
        assert!(one["kind"].is_string() && !one["title"].as_str().expect("a title").is_empty(), "{one}");
    }
    let of = |name: &str| named.iter().find(|one| one["name"] == name).expect("it takes part");
    assert_eq!(of("pointsman")["unavailable"], Value::Null);
    assert_eq!(of("nftables-shape")["unavailable"], Value::Null);
    // The report says what a binary says of itself.
    let version = of("kube-proxy-iptables")["version"].as_str().expect("a version");
    assert!(version.starts_with("Kubernetes v"), "{version}");

    for contender in CONTENDERS {
        for measurement in BY_SIZE.iter().chain(&AT_BASE) {
            for services in [BASE, OTHER].into_iter().filter(|size| *size == BASE || BY_SIZE.contains(measurement)) {
                let found: Vec<_> = all.iter().filter(|line| matches(line, contender, services, measurement)).collect();
                assert!(
                    !found.is_empty(),
                    "{measurement} of {contender} with {services}: no row, no failure, no reason"
                );
                for line in found {
                    let values = line["values"].as_object().is_some_and(|values| values.values().all(Value::is_number));
                    let declined = line["declined"].as_str().is_some_and(|reason| reason.len() > 10);
                    assert!(values || declined, "{line}");
                }
            }
        }
    }
    let variants = |contender: &str, measurement: &str| -> BTreeSet<String> {
        let found = all.iter().filter(|line| matches(line, contender, BASE, measurement));
        found.map(|line| line["variant"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(variants("pointsman", "balance"), ["default", "lc", "rr"].map(str::to_owned).into());
    let events = ["scale-up", "scale-down", "rolling", "restart"].map(str::to_owned);
    assert_eq!(variants("pointsman", "disruption"), events.into());

    let page = fs::read_to_string(out.join("compare.html")).expect("a report");
    for contender in CONTENDERS {
        assert!(page.contains(&format!("<td>{contender}<")), "{contender} is not in the report");
    }
    assert!(page.contains("Where we are worse") && page.contains(version) && page.contains("<svg"));
    assert!(!page.contains("src=") && !page.contains("<script") && !page.contains("@import"), "it needs nothing else");
    let table = fs::read_to_string(out.join("compare.csv")).expect("a table");
    assert!(
        table.lines().any(|line| line.starts_with("host,pointsman,\"real binary, ours\",20,setup,\"\",p50_ratio,"))
    );
    for picture in
        ["compare-setup.png", "compare-setup-dark.png", "compare-one-change.png", "compare-one-change-dark.png"]
    {
        assert!(fs::read(out.join(picture)).expect(picture).starts_with(b"\x89PNG"));
    }
    // Rows that can be linked to.
    let text = fs::read_to_string(out.join("compare.md")).expect("the tables");
    for anchor in ["host-setup-p50_ratio-pointsman", "host-balance-pointsman-lc", "host-disruption-haproxy-rolling"] {
        assert!(text.contains(&format!("<a id=\"{anchor}\">")), "{anchor} is not in the tables");
    }

    // As after a crash: the last lines are missing or torn.
    let path = out.join("compare-host.jsonl");
    let text = fs::read_to_string(&path).expect("the journal");
    let kept = text.lines().take(all.len() - 5).collect::<Vec<_>>().join("\n");
    fs::write(&path, &kept[..kept.len() - 10]).expect("written");
    compare(out, &["--resume"]);
    let keys = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let key = |line: Value| format!("{} {} {}", line["contender"], line["services"], line["measurement"]);
        lines.filter(|line| line["manifest"].is_null()).map(key).collect()
    };
    let now = fs::read_to_string(&path).expect("the journal");
    assert!(keys(&kept[..kept.len() - 10]).len() < keys(&text).len(), "something was missing");
    assert_eq!(keys(&now), keys(&text));
    assert!(now.lines().count() < all.len() + 20, "what was there is not measured again");
}

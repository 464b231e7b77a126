//! What `nft` says is in the kernel.
//!
//! nft 1.0.6 is the witness: whatever is programmed must be listable by it, as text and as JSON. It is needed for tests only.

use std::process::{Command, Output, Stdio};

use pointsman::lab::Namespace;
use serde_json::Value;

/// Runs `nft` inside a namespace; success is the caller's to judge.
pub fn try_nft(inside: &Namespace, args: &[&str]) -> Output {
    let mut command = Command::new("nft");
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = inside.spawn(command).expect("the nft program, which these tests need (package nftables)");
    child.wait_with_output().expect("the end of nft")
}

/// Runs `nft` inside a namespace and returns what it printed; it must succeed.
pub fn nft(inside: &Namespace, args: &[&str]) -> String {
    let output = try_nft(inside, args);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {args:?} should succeed: {}: {complaint}", output.status);
    String::from_utf8(output.stdout).expect("nft prints UTF-8")
}

/// `nft list ruleset`, without what depends on the kernel (who owns the table); fails unless the JSON listing is sound too.
pub fn ruleset(inside: &Namespace) -> String {
    json(inside, &["list", "ruleset"]);
    let text = nft(inside, &["list", "ruleset"]);
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines().map(|line| line.split(" # progname").next().unwrap_or_default()) {
        let heads_table = kept.last().is_some_and(|last| last.starts_with("\tcomment \"pointsman layout"));
        if heads_table && !line.is_empty() && !line.starts_with("\tflags ") {
            // Where tables have flags, an empty line follows them.
            kept.push("");
        }
        if !line.trim_start().starts_with("flags ") {
            kept.push(line);
        }
    }
    kept.join("\n")
}

/// What `nft -j` prints for a question, as a list of objects.
pub fn json(inside: &Namespace, args: &[&str]) -> Vec<Value> {
    let text = nft(inside, &[&["-j"], args].concat());
    let mut value: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("nft -j {args:?} prints JSON: {error}: {text:?}"));
    match value["nftables"].take() {
        Value::Array(objects) => objects,
        other => panic!("nft -j should print a list of objects, not {other}"),
    }
}

/// How many elements a map has.
pub fn elements(inside: &Namespace, family: &str, map: &str) -> usize {
    let objects = json(inside, &["list", "map", family, "pointsman", map]);
    let map = objects.iter().find_map(|object| object.get("map")).expect("the map in its own listing");
    map.get("elem").and_then(Value::as_array).map_or(0, Vec::len)
}

/// The kernel's number for a chain, if there is one of this name: a chain that was made anew has another one.
pub fn chain_handle(inside: &Namespace, family: &str, name: &str) -> Option<u64> {
    let chains = json(inside, &["list", "chains", family]);
    let mut chains = chains.iter().filter_map(|object| object.get("chain"));
    chains.find(|chain| chain["name"] == name && chain["table"] == "pointsman")?["handle"].as_u64()
}

/// Names of all chains of our table.
pub fn chains(inside: &Namespace, family: &str) -> Vec<String> {
    // Not `list table`: of a table whose owner is dead only the flag PERSIST is left, and nft 1.0.6 uses memory after freeing it when
    // it writes a single table flag as JSON, so that what comes out depends on the rest of the table.
    let objects = json(inside, &["list", "chains", family]);
    let chains = objects.iter().filter_map(|object| object.get("chain"));
    chains
        .filter(|chain| chain["table"] == "pointsman")
        .filter_map(|chain| chain["name"].as_str().map(str::to_owned))
        .collect()
}

/// Every table, as `family name`.
pub fn tables(inside: &Namespace) -> Vec<String> {
    nft(inside, &["list", "tables"]).lines().map(|line| line.trim_start_matches("table ").to_owned()).collect()
}

//! What every kernel test needs: a namespace, the oracle, and the usual objects.

use std::process::Command;
use std::thread;

use nft::{Chain, Connection, Family, Field, Key, Rule, Set, SetData, Table, Transaction};
use nix::sched::{CloneFlags, unshare};

pub const FIELDS: [Field; 3] = [Field::Ipv4Addr, Field::InetProto, Field::InetService];

/// Runs a test in a network namespace that vanishes with its thread.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root: a network namespace of their own");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// What the `nft` program prints in the calling thread's namespace; it must neither fail nor complain.
pub fn nft(args: &[&str]) -> String {
    let (out, complaint) = nft_with_complaint(args);
    assert!(complaint.is_empty(), "nft {args:?} complains: {complaint}");
    out
}

/// What the `nft` program prints, and what it complains about without failing.
pub fn nft_with_complaint(args: &[&str]) -> (String, String) {
    let output = Command::new("nft").args(args).output().expect("the nft program, version 1.0.6");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "nft {args:?}: {}: {complaint}", output.status);
    (String::from_utf8(output.stdout).expect("UTF-8"), complaint)
}

/// The whole ruleset as text, after checking that it can be had as JSON too.
pub fn listing() -> String {
    let json = nft(&["-j", "list", "ruleset"]);
    assert!(json.starts_with("{\"nftables\""), "{json}");
    nft(&["list", "ruleset"])
}

/// Commits what the closure adds.
pub fn commit(connection: &mut Connection, build: impl FnOnce(&mut Transaction)) {
    let mut transaction = Transaction::new();
    build(&mut transaction);
    connection.commit(&transaction).unwrap_or_else(|error| panic!("{error}\n{error:?}"));
}

/// The error of committing what the closure adds.
pub fn refuse(connection: &mut Connection, build: impl FnOnce(&mut Transaction)) -> nft::Error {
    let mut transaction = Transaction::new();
    build(&mut transaction);
    connection.commit(&transaction).expect_err("the kernel refuses this")
}

pub fn table() -> Table {
    Table::new(Family::Ip, "t")
}

pub fn chain(name: &str) -> Chain {
    Chain::new(Family::Ip, "t", name)
}

pub fn rule(chain: &str, exprs: Vec<nft::Expr>) -> Rule {
    Rule::new(Family::Ip, "t", chain, exprs)
}

/// `map endpoints { ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }`
pub fn endpoints(size: Option<u32>) -> Set {
    let data = SetData::Value(vec![Field::Ipv4Addr, Field::InetService]);
    Set { size, ..Set::map(Family::Ip, "t", "endpoints", FIELDS, data) }
}

pub fn key(n: u32) -> Key {
    Key::new().ipv4((0x0a60_0000 + n).into()).proto(6).port(80)
}

pub fn value(n: u32) -> Key {
    Key::new().ipv4((0x0af4_0000 + n).into()).port(8080)
}

/// A namespace with table and `endpoints`, and a connection in it.
pub fn with_endpoints(size: Option<u32>) -> (Connection, Set) {
    let mut connection = Connection::open().expect("root");
    let set = endpoints(size);
    commit(&mut connection, |transaction| {
        transaction.add_table(&table());
        transaction.add_set(&set);
    });
    (connection, set)
}

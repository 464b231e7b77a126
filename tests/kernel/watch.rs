//! What others do to our tables is noticed, and what we do ourselves is not taken for it.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use pointsman::kernel::watch::{Disturbance, Watch};
use pointsman::lab::Namespace;

use super::proxy::Proxy;
use super::support::beds::{PATIENCE, pods};
use super::support::objects::{crowd, shop, slices};
use super::support::oracle::nft;

/// Long enough for what should not come.
const SILENCE: Duration = Duration::from_millis(300);

fn watch(inside: &Namespace, proxy: &Proxy) -> (Watch, Receiver<Disturbance>) {
    let (sender, heard) = channel();
    let port = proxy.plane.port();
    let start = || Watch::start(port, move |disturbance| drop(sender.send(disturbance)));
    (inside.run(start).expect("a watch"), heard)
}

/// What was done, and that it was nft.
fn done(heard: &Receiver<Disturbance>) -> String {
    match heard.recv_timeout(PATIENCE).expect("a disturbance") {
        Disturbance::Changed { by: (process, pid), what } => {
            assert!(process == "nft" && pid > 0, "by nft: {process} {pid}");
            what.join("; ")
        }
        other => panic!("a change of our tables, not {other:?}"),
    }
}

#[test]
fn what_others_change_is_told_once_per_transaction() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let proxy = Proxy::exposed(&inside, &shop("web", 1, &pods(1..=3)));
    let (_watch, heard) = watch(&inside, &proxy);
    nft(&inside, &["delete element ip pointsman endpoints { 0x1000 . 0, 0x1000 . 1 }"]);
    assert_eq!(done(&heard), "ip: map endpoints: 2 elements deleted");
    nft(&inside, &["add rule ip pointsman services counter"]);
    assert_eq!(done(&heard), "ip: rules of chain services added");
    nft(&inside, &["flush chain ip pointsman random-3"]);
    assert_eq!(done(&heard), "ip: rules of chain random-3 deleted");
    nft(&inside, &["flush ruleset"]);
    let what = done(&heard);
    assert!(what.contains("table deleted") && what.contains("and "), "{what}");
}

#[test]
fn what_we_change_and_what_is_not_ours_is_not_told() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut proxy = Proxy::exposed(&inside, &shop("web", 1, &pods(1..=3)));
    let (_watch, heard) = watch(&inside, &proxy);
    proxy.put(&slices("web", &pods(1..=2)));
    proxy.put(&crowd(2000));
    nft(&inside, &["add table ip other; add chain ip other services; add rule ip other services counter"]);
    assert_eq!(heard.recv_timeout(PATIENCE).ok(), Some(Disturbance::Elsewhere), "all that was done was done elsewhere");
    nft(&inside, &["delete table ip other"]);
    assert_eq!(heard.recv_timeout(SILENCE).ok(), None, "nothing that concerns us happened");
    nft(&inside, &["delete table ip pointsman"]);
    assert!(done(&heard).contains("ip: table deleted"));
}

#[test]
fn who_decides_before_us_is_known() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut proxy = Proxy::serving(&inside, &shop("web", 1, &pods(1..=3)));
    let mut shadows = || proxy.plane.shadows().expect("a listing").iter().map(ToString::to_string).collect::<Vec<_>>();
    let table = |name: &str, hook: &str, priority: i32, rule: &str| {
        format!(
            "add table ip {name}; add chain ip {name} first {{ type nat hook {hook} priority {priority}; }}; \
             add chain ip {name} second; add rule ip {name} first jump second; add rule ip {name} second {rule}"
        )
    };
    for harmless in [
        table("later", "prerouting", -99, "tcp dport 80 dnat to 10.0.0.1"),
        table("counting", "prerouting", -150, "counter"),
        table("sources", "postrouting", -150, "masquerade"),
    ] {
        nft(&inside, &[&harmless]);
    }
    assert_eq!(shadows(), [""; 0]);
    nft(&inside, &[&table("earlier", "prerouting", -101, "tcp dport 80 dnat to 10.0.0.1")]);
    nft(&inside, &[&table("equal", "output", -100, "tcp dport 80 redirect to 81")]);
    assert_eq!(
        shadows(),
        ["table ip earlier, chain first (priority -101)", "table ip equal, chain first (priority -100)"]
    );
}

//! Taking over from another proxy and handing back: whose rules decide while those of both are in the kernel.
//!
//! Of two nat chains at one hook and priority, the one that was made last sees a connection first, and the first translation counts.
//! `examples/kubeadm/MIGRATE.md` relies on it: no connection fails between the swap and the clean-up.

use nix::sys::signal::Signal;
use pointsman::lab::Namespace;

use super::daemon::{Daemon, Manifests};
use super::support::beds::{bed, pods};
use super::support::eventually;
use super::support::objects::{frontends, shop};
use super::support::oracle::{nft, tables, try_nft};
use super::support::traffic::{Restless, names, tally};

/// What another proxy makes of Service 1, in the form of its nftables mode: everything goes to `web-2`.
fn program_another(inside: &Namespace) {
    let rules = "table ip kube-proxy {
        chain nat-prerouting {
            type nat hook prerouting priority -100
            ip daddr 10.96.0.1 tcp dport 80 dnat to 10.244.0.3:8080
        }
    }";
    nft(inside, &[rules]);
}

#[test]
fn who_comes_last_is_asked_first_so_a_swap_has_no_gap() {
    let lab = bed(2);
    let (inside, to) = (lab.node().namespace(), frontends(1, 80)[0]);
    let asked = || tally(lab.client(0), to, 10);
    program_another(inside);
    assert_eq!(names(&asked()), ["web-2"], "the other proxy's");
    let client = Restless::start(lab.client(0), &[to]);
    let manifests = Manifests::of(&shop("web", 1, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_eq!(names(&asked()), ["web-1"], "what the other proxy left no longer counts");
    nft(inside, &["delete", "table", "ip", "kube-proxy"]);
    assert_eq!(names(&asked()), ["web-1"], "cleaned up");

    // And back: the other one starts, then what we left is cleaned up.
    daemon.end(Signal::SIGTERM);
    assert_eq!(names(&asked()), ["web-1"], "served without a daemon");
    program_another(inside);
    assert_eq!(names(&asked()), ["web-2"], "what we left no longer counts");
    // Not by `--cleanup`, which would take the other's rules along.
    for family in ["ip", "ip6"] {
        eventually("a table that nobody owns any more to be deleted", || {
            try_nft(inside, &["delete", "table", family, "pointsman"]).status.success()
        });
    }
    assert_eq!(tables(inside), ["ip kube-proxy"], "only ours are gone");
    assert_eq!(names(&asked()), ["web-2"]);
    client.assert_uninterrupted("there and back");
}

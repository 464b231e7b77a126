//! What the command line does, and how a start fails: with one clear message, exit code 1 and nothing half done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;
use pointsman::lab::{Lab, Namespace};

use super::daemon::{Daemon, Manifests, command, command_at, run, stderr};
use super::support::beds::{bed, pods};
use super::support::objects::{crowd, frontends, scheduled, shop};
use super::support::oracle::{nft, ruleset, tables};
use super::support::traffic::{Restless, Tally, assert_even, names, tally};

/// A node alone.
fn node() -> Lab {
    Lab::builder().prefix("pmtier").build().expect("a lab, which needs root")
}

#[test]
fn a_start_that_cannot_work_says_why_and_leaves_no_trace() {
    let lab = node();
    let manifests = Manifests::of(&crowd(2));
    let not_a_directory = manifests.file("all.json");
    let not_a_directory = not_a_directory.to_str().expect("UTF-8");
    for (args, wanted) in [
        (vec![], vec!["neither --kubeconfig nor --master", "not a pod"]),
        (vec!["--kubeconfig", "/nowhere/kubeconfig"], vec!["/nowhere/kubeconfig", "No such file"]),
        (vec!["--kubeconfig", not_a_directory], vec!["all.json"]),
        (vec!["--manifests", "/nowhere/manifests"], vec!["/nowhere/manifests", "No such file"]),
        (vec!["--manifests", not_a_directory], vec!["all.json", "directory"]),
        (vec!["--manifests", manifests.path(), "--kubeconfig", "/k"], vec!["--manifests", "excludes --kubeconfig"]),
        (vec!["--manifests", manifests.path(), "--ipvs-scheduler", "fastest"], vec!["fastest", "random, rr"]),
        (vec!["--manifests", manifests.path(), "--hostname-override", " "], vec!["--hostname-override", "invalid"]),
        (vec!["--manifests", manifests.path(), "--no-such-flag"], vec!["--no-such-flag"]),
    ] {
        let output = run(lab.node(), command(), &args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?} should fail: {said}");
        for part in wanted {
            assert!(said.contains(part), "{args:?} should be told about {part:?}: {said}");
        }
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert!(said.matches("No such file").count() <= 1, "{args:?}: each cause is told once: {said}");
        assert_eq!(tables(lab.node().namespace()), [""; 0], "{args:?} should leave no trace");
    }
}

#[test]
fn help_and_version() {
    let lab = node();
    let output = run(lab.node(), command(), &["--help"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    for flag in
        ["--manifests", "--kubeconfig", "--master", "--hostname-override", "--ipvs-scheduler", "--cleanup", "--v"]
    {
        assert!(said.contains(flag), "--help should tell of {flag}: {said}");
    }
    let output = run(lab.node(), command(), &["--version"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains(env!("CARGO_PKG_VERSION")), "{said}");
}

#[test]
fn an_output_that_nobody_reads_is_an_error_and_no_panic() {
    let lab = node();
    for argument in ["--help", "--version"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = command();
        command.arg(argument).stdout(writer);
        let output = lab.node().spawn(command).and_then(|child| child.wait_with_output()).expect("it runs");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{argument}: {said}");
        assert!(said.starts_with("Error: writing to standard output"), "{argument}: {said}");
    }
}

#[test]
fn without_the_right_to_change_the_network_it_says_so() {
    let lab = node();
    let manifests = Manifests::of(&crowd(2));
    // Another user has no capabilities, and may not reach this build's directory.
    let place = tempfile::tempdir().expect("a directory");
    let binary = place.path().join("kube-proxy");
    fs::copy(env!("CARGO_BIN_EXE_kube-proxy"), &binary).expect("a copy");
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.path(), open.clone()).expect("permissions");
    fs::set_permissions(&binary, open.clone()).expect("permissions");
    fs::set_permissions(manifests.path(), open).expect("permissions");
    for args in [vec!["--manifests", manifests.path()], vec!["--cleanup"]] {
        let mut command = command_at(&binary);
        command.uid(65534).gid(65534);
        let output = run(lab.node(), command, &args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("CAP_NET_ADMIN"), "{args:?} should name what is missing: {said}");
        assert_eq!(said.matches("Error:").count(), 1, "{args:?}: one message: {said}");
        assert_eq!(tables(lab.node().namespace()), [""; 0], "{args:?} should leave no trace");
    }
}

#[test]
fn a_second_daemon_and_cleanup_are_refused_while_one_lives() {
    let lab = bed(2);
    let inside = lab.node().namespace();
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let others = Manifests::of(&shop("other", 2, &pods([1])));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    let before = ruleset(inside);
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    // Also after a restart, when the tables are adopted ones.
    for _ in 0..2 {
        for args in [vec!["--manifests", others.path()], vec!["--cleanup"]] {
            let output = run(lab.node(), command(), &args);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?} should be refused: {said}");
            assert!(said.contains("table ip pointsman") || said.contains("another instance"), "{args:?}: {said}");
            assert_eq!(ruleset(inside), before, "{args:?} should change nothing");
        }
        daemon.assert_alive();
        daemon.end(Signal::SIGTERM);
        daemon = Daemon::serving(lab.node(), &manifests, &[]);
        daemon.programmed();
    }
    client.assert_uninterrupted("refused rivals");
}

#[test]
fn cleanup_removes_what_is_ours_and_nothing_else() {
    let lab = bed(2);
    let inside = lab.node().namespace();
    nft(inside, &["add", "table", "ip", "somebody-elses"]);
    let output = run(lab.node(), command(), &["--cleanup"]);
    assert!(output.status.success(), "nothing to do is no error: {}", stderr(&output));
    let manifests = Manifests::of(&shop("web", 1, &pods(1..=2)));
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_eq!(tables(inside), ["ip somebody-elses", "ip pointsman", "ip6 pointsman"]);
    daemon.end(Signal::SIGTERM);
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 30)), ["web-1", "web-2"], "served without a daemon");
    let output = run(lab.node(), command(), &["--cleanup"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(tables(inside), ["ip somebody-elses"]);
}

#[test]
fn schedulers_are_chosen_by_flag_and_by_annotation() {
    let lab = bed(3);
    let mut objects =
        [shop("plain", 1, &pods(1..=3)), shop("turn", 2, &pods(1..=3)), shop("dice", 3, &pods(1..=3))].concat();
    objects[3] = scheduled(objects[3].take(), "rr");
    objects[6] = scheduled(objects[6].take(), "random");
    let manifests = Manifests::of(&objects);
    let asked = |number: u8| -> Tally { tally(lab.client(0), frontends(number, 80)[0], 31) };
    let chains = |inside: &Namespace| -> Vec<String> {
        let text = nft(inside, &["list", "table", "ip", "pointsman"]);
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("chain rr-")?.strip_suffix(" {"));
        // Slots, pool, owner; which number a pool has is not the point here.
        let without_pool = |name: &str| {
            name.splitn(3, '-')
                .enumerate()
                .filter(|(part, _)| *part != 1)
                .map(|(_, part)| part)
                .collect::<Vec<_>>()
                .join("-")
        };
        names.map(without_pool).collect()
    };
    let mut daemon = Daemon::serving(lab.node(), &manifests, &["--ipvs-scheduler=rr"]);
    daemon.programmed();
    assert_even(&asked(1), 3, "by flag");
    assert_even(&asked(2), 3, "by annotation");
    let mut rr = chains(lab.node().namespace());
    rr.sort();
    assert_eq!(rr, ["3-shop/plain/tcp/http", "3-shop/plain/udp/dns", "3-shop/turn/tcp/http", "3-shop/turn/udp/dns"]);
    daemon.end(Signal::SIGTERM);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_even(&asked(2), 3, "by annotation");
    let mut rr = chains(lab.node().namespace());
    rr.sort();
    assert_eq!(rr, ["3-shop/turn/tcp/http", "3-shop/turn/udp/dns"], "random is the default");
    assert_eq!(names(&tally(lab.client(0), frontends(3, 80)[0], 60)), ["web-1", "web-2", "web-3"]);
}

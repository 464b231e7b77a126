//! The lab on the real kernel. Needs root, and fails without it.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pointsman::lab::{ConnectError, Host, Lab, Listen, NETNS_DIR, NODE, Namespace, find_leftovers};

/// Generous: nothing here waits for it unless something is broken.
const PATIENCE: Duration = Duration::from_secs(5);
/// For questions that nobody is meant to answer.
const SHORT: Duration = Duration::from_millis(200);
/// Names the prefix under which the helper makes its lab.
const HELPER_PREFIX: &str = "POINTSMAN_TEST_LAB_PREFIX";

fn each_family(host: &Host, port: u16) -> Vec<SocketAddr> {
    host.addresses().usable().map(|address| SocketAddr::new(address, port)).collect()
}

fn namespaces_of(lab: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    names.filter(|name| name.starts_with(&format!("{lab}-"))).collect()
}

#[test]
fn clients_reach_pods_by_way_of_the_node_in_both_families_and_protocols() {
    let mut lab = Lab::builder().prefix("pmtest").clients(2).pods(["web-1", "web-2"]).build().expect("a lab");
    for pod in ["web-1", "web-2"] {
        lab.serve(pod, &[Listen::Tcp(8080), Listen::Tcp(8443), Listen::Udp(5353)]).expect("servers");
    }
    for (client, pod) in [(0, "web-1"), (0, "web-2"), (1, "web-1"), (1, "web-2")] {
        for port in [8080, 8443] {
            for to in each_family(lab.pod(pod), port) {
                assert_eq!(lab.client(client).connect(to, PATIENCE).expect("an answer").pod, pod, "tcp {to}");
            }
        }
        for to in each_family(lab.pod(pod), 5353) {
            assert_eq!(lab.client(client).ask(to, PATIENCE).expect("an answer").pod, pod, "udp {to}");
        }
    }
    // The node itself and pods among themselves.
    for to in each_family(lab.pod("web-2"), 8080) {
        assert_eq!(lab.node().connect(to, PATIENCE).expect("an answer").pod, "web-2");
        assert_eq!(lab.pod("web-1").connect(to, PATIENCE).expect("an answer").pod, "web-2");
    }
    // The node's addresses are reachable, and closed.
    for to in each_family(lab.node(), 1) {
        assert!(matches!(lab.client(1).connect(to, PATIENCE), Err(ConnectError::Refused)), "{to}");
        assert!(matches!(lab.pod("web-1").ask(to, PATIENCE), Err(ConnectError::Refused)), "{to}");
    }
}

#[test]
fn the_node_sees_every_packet() {
    let mut lab = Lab::builder().prefix("pmtest").pods(["web-1"]).build().expect("a lab");
    lab.serve("web-1", &[Listen::Tcp(80)]).expect("a server");
    let to = each_family(lab.pod("web-1"), 80);
    // A node that does not forward cuts the client off: there is no other way.
    lab.node().namespace().sysctls(&[("ipv4/ip_forward", "0")]).expect("a sysctl");
    assert!(lab.client(0).connect(to[0], SHORT).is_err());
    lab.node().namespace().sysctls(&[("ipv4/ip_forward", "1")]).expect("a sysctl");
    assert!(lab.client(0).connect(to[0], PATIENCE).is_ok());
}

#[test]
fn refused_unreachable_and_silent_are_told_apart() {
    let lab = Lab::builder().prefix("pmtest").pods(["web-1"]).build().expect("a lab");
    for to in each_family(lab.pod("web-1"), 81) {
        assert!(matches!(lab.client(0).connect(to, PATIENCE), Err(ConnectError::Refused)), "{to}");
        assert!(matches!(lab.client(0).ask(to, PATIENCE), Err(ConnectError::Refused)), "{to}");
    }
    // An address that only a Service could have: the node sends it out to its own router, which drops it.
    let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), 80);
    assert!(matches!(lab.client(0).connect(nobody, SHORT), Err(ConnectError::TimedOut)));
    let alone = Namespace::anonymous().expect("a namespace");
    let unreachable = alone.run(|| pointsman::lab::connect(nobody, SHORT));
    assert!(matches!(unreachable, Err(ConnectError::Unreachable)), "{unreachable:?}");
}

#[test]
fn two_labs_with_the_same_addresses_do_not_meet() {
    let build = || {
        let mut lab = Lab::builder().prefix("pmtest").pods(["a"]).build().expect("a lab");
        lab.serve("a", &[Listen::Tcp(80)]).expect("a server");
        lab
    };
    let (one, mut two) = (build(), build());
    assert_ne!(one.name(), two.name());
    let to = each_family(one.pod("a"), 80)[0];
    assert!(two.client(0).connect(to, PATIENCE).is_ok());
    two.stop_serving("a");
    assert!(one.client(0).connect(to, PATIENCE).is_ok());
    let closed = Instant::now();
    while two.client(0).connect(to, PATIENCE).is_ok() {
        assert!(closed.elapsed() < PATIENCE, "the server goes on answering");
    }
    drop(two);
    assert!(one.client(0).connect(to, PATIENCE).is_ok());
}

#[test]
fn pods_come_and_go_while_the_lab_runs() {
    let mut lab = Lab::builder().prefix("pmtest").pods(["web-1"]).build().expect("a lab");
    for round in 0..3 {
        let address = lab.add_pod("web-2").expect("a pod").addresses();
        assert_eq!(address.v4, Ipv4Addr::new(10, 244, 0, 3), "round {round}");
        lab.serve("web-2", &[Listen::Tcp(80)]).expect("a server");
        for to in each_family(lab.pod("web-2"), 80) {
            assert_eq!(lab.client(0).connect(to, PATIENCE).expect("an answer").pod, "web-2", "round {round}");
        }
        assert!(lab.remove_pod("web-2").expect("removed"));
        assert!(!lab.remove_pod("web-2").expect("nothing to remove"));
        assert!(lab.client(0).connect(SocketAddr::new(address.v4.into(), 80), SHORT).is_err(), "round {round}");
    }
    let name = "a-pod-with-a-name-as-long-as-deployments-make-them-7d4b9c";
    lab.add_pod_at(name, Ipv4Addr::new(10, 244, 3, 77)).expect("a pod");
    lab.serve(name, &[Listen::Tcp(80)]).expect("a server");
    for to in each_family(lab.pod(name), 80) {
        assert_eq!(lab.client(0).connect(to, PATIENCE).expect("an answer").pod, name);
    }
    let refused = lab.add_pod_at("other", Ipv4Addr::new(10, 244, 3, 77)).expect_err("taken").to_string();
    assert!(refused.starts_with("cannot add pod other at 10.244.3.77:"), "{refused}");
    assert!(lab.add_pod_at("other", Ipv4Addr::new(10, 96, 0, 1)).is_err(), "not a pod address");
    assert!(lab.add_pod("../other").is_err(), "not a name");
}

#[test]
fn children_and_threads_live_inside() {
    let lab = Lab::builder().prefix("pmtest").build().expect("a lab");
    let own = |path: &str| std::fs::read_link(path).expect("a link").to_string_lossy().into_owned();
    let outside = own("/proc/thread-self/ns/net");
    let inside = lab.node().run(|| own("/proc/thread-self/ns/net"));
    assert_ne!(outside, inside);
    assert_eq!(outside, own("/proc/thread-self/ns/net"), "the caller stays where it was");
    let thread = lab.node().namespace().thread(move || own("/proc/thread-self/ns/net")).expect("a thread");
    assert_eq!(thread.join().expect("no panic"), inside);
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net").stdout(Stdio::piped());
    let output = lab.node().spawn(command).and_then(|child| child.wait_with_output()).expect("a child");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), inside);
    let panic = std::panic::catch_unwind(AssertUnwindSafe(|| lab.node().run(|| panic!("inside"))));
    assert_eq!(panic.expect_err("goes on here").downcast_ref(), Some(&"inside"));
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let mut lab = Lab::builder().prefix("pmtest").clients(2).pods(["a", "b"]).build().expect("a lab");
    lab.serve("a", &[Listen::Tcp(80)]).expect("a server");
    let name = lab.name().to_owned();
    let mut made = namespaces_of(&name);
    made.sort();
    assert_eq!(made, ["a", "b", "client0", "client1", "node"].map(|role| format!("{name}-{role}")));
    drop(lab);
    assert_eq!(namespaces_of(&name), [""; 0]);
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&name), "{mounts}");
}

#[test]
fn a_killed_labs_leftovers_are_cleared_by_the_next_one() {
    let prefix = "pmkilled";
    let mut helper = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", "helper_that_is_killed", "--ignored", "--nocapture"])
        .env(HELPER_PREFIX, prefix)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the helper");
    let pid = helper.id();
    let lines = BufReader::new(helper.stdout.take().expect("its output")).lines();
    let inhabitant = lines
        .map(|line| line.expect("a line"))
        .find_map(|line| line.split_once("inhabitant ").map(|(_, pid)| pid.trim().to_owned()))
        .expect("the helper made its lab");
    let before = find_leftovers(prefix);
    assert!(before.iter().all(|leftover| leftover.maker != pid as i32), "a living lab is no leftover: {before:?}");
    helper.kill().expect("killed");
    helper.wait().expect("reaped");

    let left: Vec<_> = find_leftovers(prefix).into_iter().filter(|l| l.maker == pid as i32).collect();
    assert_eq!(left.len(), 3, "{left:?}");
    let lab = Lab::builder().prefix(prefix).build().expect("the next lab");
    assert_eq!(find_leftovers(prefix), []);
    assert_eq!(namespaces_of(&format!("{prefix}-{pid}")), [""; 0]);
    assert!(lab.client(0).connect(SocketAddr::new(NODE.v4.into(), 1), PATIENCE).is_err());
    let state = std::fs::read_to_string(Path::new("/proc").join(inhabitant).join("stat"));
    assert!(state.is_err() || state.is_ok_and(|stat| stat.contains(") Z ")), "the process inside is ended too");
}

/// What `ip netns add` does before it makes a name, wherever it runs first (iproute2, `netns_add`).
fn share_names_as_iproute2() {
    let none = None::<&str>;
    let share = || mount(none, NETNS_DIR, none, MsFlags::MS_SHARED | MsFlags::MS_REC, none);
    if share().is_err() {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(NETNS_DIR), NETNS_DIR, none, bind, none).expect("names over themselves");
        share().expect("it is a mount point now");
    }
}

#[test]
fn names_can_be_removed_after_somebody_else_made_one_with_ip_netns_add() {
    // In a mount namespace of its own, where nobody has done so before.
    let apart = std::thread::spawn(|| {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).expect("nobody else sees what follows");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).expect("an empty /run");
        let namespace = Namespace::named("pmtest-covered").expect("a namespace");
        share_names_as_iproute2();
        drop(namespace);
        assert_eq!(namespaces_of("pmtest"), [""; 0]);
        // A name that somebody mounted on once more.
        let namespace = Namespace::named("pmtest-twice").expect("a namespace");
        let path = Path::new(NETNS_DIR).join("pmtest-twice");
        mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none).expect("another mount");
        drop(namespace);
        assert_eq!(namespaces_of("pmtest"), [""; 0]);
    });
    apart.join().expect("names go");
}

/// Not a test: the process that [`a_killed_labs_leftovers_are_cleared_by_the_next_one`] kills.
#[test]
#[ignore = "a helper of another test"]
fn helper_that_is_killed() {
    let Ok(prefix) = std::env::var(HELPER_PREFIX) else { return };
    let lab = Lab::builder().prefix(&prefix).pods(["a"]).build().expect("a lab");
    let mut sleep = Command::new("sleep");
    sleep.arg("60").stdout(Stdio::null());
    let mut child = lab.node().spawn(sleep).expect("a process inside");
    println!("inhabitant {}", child.id());
    child.wait().expect("its end, unless this process is killed before");
}

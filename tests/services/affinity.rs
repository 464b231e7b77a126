//! Session affinity (spec 5.6): per client and Service port, whatever the frontend; it survives restarts, other changes and new
//! tables, and ends with its time or its endpoint.

use std::thread::sleep;
use std::time::Duration;

use pointsman::policy::Settings;
use serde_json::{Value, json};

use crate::bed::{At, Bed, State, service, slices, with_node_port};

const CLUSTER: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const EXTERNAL: [&str; 2] = ["192.0.2.10", "2001:db8::10"];

const ALL: [At; 3] =
    [At("web-1", true, State::Ready), At("web-2", true, State::Ready), At("web-3", false, State::Ready)];

fn sticky(seconds: u32, scheduler: &str) -> Value {
    let extra = json!({
        "type": "NodePort", "externalIPs": EXTERNAL, "ports": with_node_port(30080), "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
    });
    let mut service = service("web", &CLUSTER, extra, &[]);
    service["metadata"]["annotations"] = json!({"pointsman.dev/scheduler": scheduler});
    service
}

fn bed(seconds: u32, scheduler: &str) -> Bed {
    let mut bed = Bed::new(Settings::default());
    let mut objects = slices(&bed.lab, "web", &ALL);
    objects.push(sticky(seconds, scheduler));
    bed.apply(objects);
    bed
}

/// The pod that answers the first client; all connections go there.
fn home(bed: &Bed, family: usize) -> String {
    let pods = bed.answering(bed.client(), CLUSTER[family], 80);
    assert!(!pods.contains(' ') && pods.starts_with("web-"), "stays with one endpoint: {pods}");
    pods
}

#[test]
fn a_client_stays_whatever_address_it_uses_and_clients_differ() {
    let bed = bed(10_800, "random");
    for (family, node) in [(0, "192.168.50.1"), (1, "fd00:50::1")] {
        let pod = home(&bed, family);
        assert_eq!(bed.answering(bed.client(), EXTERNAL[family], 80), pod);
        assert_eq!(bed.answering(bed.client(), node, 30080), pod);
        for host in [bed.lab.client(1), bed.node(), bed.pod("web-1"), bed.pod("web-2")] {
            assert!(!bed.answering(host, CLUSTER[family], 80).contains(' '), "{} stays, too", host.role());
        }
        // UDP is another Service port, with an affinity of its own.
        let udp: Vec<_> = (0..9).map(|_| bed.udp(bed.client(), CLUSTER[family], 80)).collect();
        assert!(udp.iter().all(|answer| *answer == udp[0]) && udp[0].starts_with("web-"), "{udp:?}");
    }
}

#[test]
fn the_first_choice_is_the_schedulers() {
    let bed = bed(10_800, "rr");
    // Five clients in turn over three endpoints: nobody is left out, nobody has more than two.
    let hosts = [bed.lab.client(0), bed.lab.client(1), bed.node(), bed.pod("web-1"), bed.pod("web-2")];
    let first = |host| bed.tcp(host, CLUSTER[0], 80).split(' ').next().unwrap_or_default().to_owned();
    let mut homes: Vec<_> = hosts.into_iter().map(first).collect();
    homes.sort();
    homes.dedup();
    assert_eq!(homes, ["web-1", "web-2", "web-3"]);
}

#[test]
fn it_survives_a_restart_other_changes_and_new_tables() {
    let mut bed = bed(10_800, "random");
    let pods = [home(&bed, 0), home(&bed, 1)];
    assert_eq!(bed.restart(), 0, "a restart changes nothing");
    assert_eq!([home(&bed, 0), home(&bed, 1)], pods, "after a restart");
    let other = service("other", &["10.96.0.99"], json!({}), &[]);
    bed.apply([other]);
    assert_eq!([home(&bed, 0), home(&bed, 1)], pods, "another Service came");
    // Endpoints leave and come back; slots move, members do not.
    for pod in ["web-1", "web-2", "web-3"] {
        let rest: Vec<_> = ALL.into_iter().filter(|at| at.0 != pod).collect();
        if pods.contains(&pod.to_owned()) {
            continue;
        }
        bed.apply(slices(&bed.lab, "web", &rest));
        assert_eq!([home(&bed, 0), home(&bed, 1)], pods, "{pod} left");
        bed.apply(slices(&bed.lab, "web", &ALL));
        assert_eq!([home(&bed, 0), home(&bed, 1)], pods, "{pod} came back");
    }
    bed.replace();
    assert_eq!([home(&bed, 0), home(&bed, 1)], pods, "new tables");
}

#[test]
fn who_loses_the_endpoint_gets_another_and_stays_there() {
    let mut bed = bed(10_800, "random");
    for _ in 0..3 {
        let lost = home(&bed, 0);
        let rest: Vec<_> = ALL.into_iter().filter(|at| at.0 != lost).collect();
        bed.apply(slices(&bed.lab, "web", &rest));
        let found = home(&bed, 0);
        assert_ne!(found, lost);
        bed.apply(slices(&bed.lab, "web", &ALL));
        assert_eq!(home(&bed, 0), found, "the old one came back, the client stays with the new one");
    }
    // Nobody is left, then all are back.
    bed.apply(slices(&bed.lab, "web", &[]));
    assert_eq!(bed.tcp(bed.client(), CLUSTER[0], 80), "refused");
    bed.apply(slices(&bed.lab, "web", &ALL));
    home(&bed, 0);
}

#[test]
fn it_ends_with_its_time_and_each_connection_begins_the_time_again() {
    let mut bed = bed(2, "rr");
    let first = |bed: &Bed| bed.tcp(bed.client(), CLUSTER[0], 80);
    let home = first(&bed);
    for _ in 0..3 {
        sleep(Duration::from_millis(1200));
        assert_eq!(first(&bed), home, "refreshed by the last connection");
    }
    sleep(Duration::from_millis(2600));
    assert_ne!(first(&bed), home, "two seconds of silence, and it is the next one's turn");
    // A longer time counts from the next connection on.
    bed.apply([sticky(3600, "rr")]);
    let home = first(&bed);
    sleep(Duration::from_millis(2600));
    assert_eq!(first(&bed), home);
    // A shorter one too.
    bed.apply([sticky(1, "rr")]);
    assert_eq!(first(&bed), home);
    sleep(Duration::from_millis(1600));
    assert_ne!(first(&bed), home);
    // And none at all.
    let mut plain = sticky(1, "rr");
    plain["spec"]["sessionAffinity"] = json!("None");
    bed.apply([plain]);
    assert_eq!(bed.answering(bed.client(), CLUSTER[0], 80), "web-1 web-2 web-3");
}

#[test]
fn with_a_local_policy_clients_stay_with_a_local_endpoint() {
    let mut bed = bed(10_800, "random");
    let mut local = sticky(10_800, "random");
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    bed.apply([local]);
    for (family, external) in EXTERNAL.into_iter().enumerate() {
        let pod = bed.answering(bed.client(), external, 80);
        assert!(["web-1", "web-2"].contains(&&*pod), "one of this node's: {pod}");
        assert!(!bed.answering(bed.node(), external, 80).contains(' '), "the host stays, anywhere");
        home(&bed, family);
    }
    assert_eq!(bed.restart(), 0);
}

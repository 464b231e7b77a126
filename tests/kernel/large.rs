//! What needs many elements: changes that do not fit one transaction, maps that are outgrown, Services with thousands of endpoints.

use std::net::{IpAddr, Ipv4Addr};

use pointsman::compile::{ClusterIp, Delta};
use pointsman::kernel::{KernelError, Receive};
use pointsman::lab::Namespace;
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::{TCP, bed, pods};
use super::support::objects::{HTTP, crowd, frontends, scheduled, service_at, shop, slice_of, slices};
use super::support::oracle::{chains, elements, nft, ruleset};
use super::support::traffic::{Restless, names, tally};

/// 12,000 elements: more than one transaction takes.
const CROWD: usize = 4000;

#[test]
fn a_change_too_large_for_one_transaction_interrupts_nobody() {
    let lab = bed(3);
    let mut proxy = Proxy::serving(lab.node().namespace(), &shop("web", 1, &pods(1..=3)));
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    let crowd = crowd(CROWD);
    // The Service that is being connected to changes in the same batch: a slot removed, a slot refilled, the plan changed.
    let applied = proxy.put(&[crowd.clone(), slices("web", &pods(2..=3)).to_vec()].concat());
    assert!(applied.elements > 8192 && applied.transactions >= 3, "in phases: {applied:?}");
    proxy.assert_exact("after growing");
    client.wait_for(5);
    let moved: Vec<Value> = (0..CROWD)
        .map(|number| {
            let address = |side: u8| {
                let [.., high, low] = u32::try_from(number).expect("small").to_be_bytes();
                IpAddr::from([10, side, high, low])
            };
            slice_of(
                &format!("crowd-{number}"),
                "IPv4",
                &[address(210), address(211), address(212)],
                &[("http", "TCP", TCP)],
            )
        })
        .collect();
    let applied = proxy.put(&[moved, slices("web", &pods(1..=1)).to_vec()].concat());
    assert!(applied.elements > 16_000 && applied.transactions >= 3, "every endpoint moves: {applied:?}");
    proxy.assert_exact("after moving");
    client.wait_for(5);
    crowd.iter().for_each(|object| proxy.forget(object));
    let applied = proxy.put(&slices("web", &pods(1..=3)));
    assert!(applied.elements > 8192 && applied.transactions >= 3, "in phases: {applied:?}");
    client.assert_uninterrupted("large changes");
    proxy.assert_exact("after shrinking");
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 60)), ["web-1", "web-2", "web-3"]);
}

#[test]
fn a_large_first_load_has_its_base_chains_last() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut proxy = Proxy::start(&inside);
    proxy.take(&crowd(CROWD));
    let applied = proxy.apply();
    assert!(applied.transactions >= 5, "structure, chunks of endpoints and frontends, base chains: {applied:?}");
    proxy.assert_exact("after the first load");
    let chains = chains(&inside, "ip");
    assert_eq!(
        chains[chains.len() - 5..],
        ["prerouting", "output", "after-prerouting", "after-output", "postrouting"],
        "the last chains made"
    );
    assert_eq!(elements(&inside, "ip", "services"), CROWD);
    assert_eq!(elements(&inside, "ip", "endpoints"), 2 * CROWD);
}

#[test]
fn tables_built_in_parts_are_what_one_load_would_make() {
    build_in_parts(false);
    build_in_parts(true);
}

fn build_in_parts(compiled: bool) {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let many: Vec<_> = (0..900u32).map(|number| IpAddr::from([10, 120, (number >> 8) as u8, number as u8])).collect();
    let many = slice_of("cart", "IPv4", &many, &[("http", "TCP", TCP)]);
    let objects = [crowd(CROWD), shop("web", 1, &pods(1..=3)), shop("cart", 2, &pods([1])), vec![many]].concat();
    let mut proxy = Proxy::start(&inside);
    proxy.take(&objects);
    assert!(proxy.plane.is_vacant() && proxy.engine.is_blank(), "nothing is there");
    let forecast = proxy.engine.forecast();
    // Parts smaller than the largest pool, made while the first ones are programmed, or of what is compiled already.
    let built = if compiled {
        let outcome = proxy.engine.catch_up();
        assert!(
            outcome.delta.is_empty() && outcome.services.len() == CROWD + 2,
            "everything is compiled, nothing is held"
        );
        proxy.plane.build(&forecast, |take| proxy.engine.everything_in_parts(500, take))
    } else {
        proxy.plane.build(&forecast, |take| proxy.engine.compile_in_parts(500, take))
    };
    let applied = built.expect("built");
    assert!(applied.transactions >= 20 && applied.elements > 3 * CROWD, "in many parts: {applied:?}");
    assert!(!proxy.plane.is_vacant());
    proxy.assert_exact("built in parts");
    let chains = chains(&inside, "ip");
    assert_eq!(
        chains[chains.len() - 5..],
        ["prerouting", "output", "after-prerouting", "after-output", "postrouting"],
        "the last chains made"
    );
    proxy.put(&slices("web", &pods(1..=1)));
    proxy.assert_exact("after a change");
}

#[test]
fn tables_that_were_built_half_are_finished_by_the_next() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let objects = [crowd(CROWD), shop("web", 1, &pods(1..=3))].concat();
    for survived in [0, 1, 7] {
        let mut first = Proxy::start(&inside);
        first.take(&objects);
        let (forecast, engine) = (first.engine.forecast(), &mut first.engine);
        let mut parts = 0;
        let cut_short = |take: Receive<'_>| {
            engine.compile_in_parts(500, &mut |mut part| {
                if parts == survived {
                    // Nothing that the kernel has: it refuses to delete that.
                    part = Delta::default();
                    part.v4.cluster_ips.note(IpAddr::from([192, 0, 2, 1]), Some(ClusterIp), None);
                }
                parts += 1;
                take(part)
            })
        };
        let ended = first.plane.build(&forecast, cut_short);
        assert!(matches!(ended, Err(KernelError::Nft(_))), "refused: {ended:?}");
        assert!(first.engine.has_more(), "what is refused already is not made to the end");
        assert!(!chains(&inside, "ip").contains(&"prerouting".to_owned()), "no packet sees half a table");
        first.die(&inside);
        let (mut second, _) = Proxy::succeeding(&inside, &objects);
        assert!(second.found.rejected.is_empty(), "half a load can be adopted: {:?}", second.found.rejected);
        second.assert_exact(&format!("finished after {survived} parts"));
        second.plane.remove().expect("removed");
        second.die(&inside);
    }
}

#[test]
fn a_map_that_is_outgrown_is_replaced_without_a_gap() {
    let lab = bed(2);
    let node = lab.node().namespace();
    let mut proxy = Proxy::serving(node, &shop("web", 1, &pods(1..=2)));
    let client = Restless::start(lab.client(0), &frontends(1, 80));
    // Frontends without endpoints are the cheapest elements: 66 Services of 1,000 ports.
    let wide: Vec<Value> = (0..66)
        .map(|number| {
            let ports: Vec<_> = (1..=1000).map(|port| json!({"name": format!("p{port}"), "port": port})).collect();
            let mut service = service_at(&format!("wide-{number}"), &[format!("10.98.0.{number}")], &[]);
            service["spec"]["ports"] = ports.into();
            service
        })
        .collect();
    proxy.take(&wide);
    match proxy.try_apply() {
        Err(KernelError::Outgrown { map: "services", size: 65_536, .. }) => {}
        other => panic!("map services should be outgrown: {other:?}"),
    }
    client.wait_for(3);
    let applied = proxy.plane.replace(&proxy.engine.everything()).expect("replaced by larger ones");
    assert_eq!(applied.transactions, 1, "in one transaction: {applied:?}");
    client.wait_for(3);
    proxy.assert_exact("after replacing");
    let applied = proxy.put(&slices("web", &pods(1..=1)));
    assert!(applied.transactions <= 2, "a chain, if it is needed, and elements: {applied:?}");
    client.assert_uninterrupted("replacing the tables");
    proxy.assert_exact("after a change of the new tables");
}

#[test]
fn a_cluster_replaced_by_another_as_large_finds_room() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    // 35,000 endpoints go and as many come, in one batch: more than fit beside each other, though the number stays.
    let cluster = |name: &str, side: u8| -> Vec<Value> {
        (0..350u16)
            .flat_map(|number| {
                let [high, low] = number.to_be_bytes();
                let name = format!("{name}-{number}");
                let endpoints: Vec<_> = (1..=100).map(|last| IpAddr::from([10, side + high, low, last])).collect();
                [
                    service_at(&name, &[format!("10.97.{}.{low}", side + high)], &[HTTP]),
                    slice_of(&name, "IPv4", &endpoints, &[("http", "TCP", TCP)]),
                ]
            })
            .collect()
    };
    let (blue, green) = (cluster("blue", 100), cluster("green", 200));
    // The first load decides how large the maps are made.
    let mut proxy = Proxy::serving(&inside, &shop("web", 1, &pods(1..=2)));
    proxy.put(&blue);
    blue.iter().for_each(|object| proxy.forget(object));
    proxy.take(&green);
    match proxy.try_apply() {
        Err(KernelError::Outgrown { map: "endpoints", size: 65_536, .. }) => {}
        other => panic!("map endpoints should not take both: {other:?}"),
    }
    proxy.plane.replace(&proxy.engine.everything()).expect("replaced in one transaction");
    proxy.assert_exact("the other cluster");
    assert_eq!(elements(&inside, "ip", "endpoints"), 35_000 + 4);
}

#[test]
fn more_endpoints_than_a_shared_chain_takes_have_a_chain_of_their_own() {
    let lab = bed(2);
    for pod in lab.pods() {
        // One server answers at all these ports: a socket for each would be too many.
        let everywhere = "table ip everywhere {
            chain prerouting {
                type nat hook prerouting priority dstnat
                tcp dport 20001-20520 redirect to :8080
            }
        }";
        nft(pod.namespace(), &[everywhere]);
    }
    let node = lab.node().namespace();
    let all: Vec<IpAddr> = pods(1..=2).iter().map(|pod| pod.v4.into()).collect();
    // A slice per port: 1,040 endpoints of two pods.
    let wide = |count: u16| -> Vec<Value> {
        let slice = |port: u16| {
            let mut slice = slice_of("web", "IPv4", &all, &[("http", "TCP", 20_000 + port)]);
            slice["metadata"]["name"] = json!(format!("web-{port}"));
            slice
        };
        (1..=count).map(slice).collect()
    };
    let service = service_at("web", &["10.96.0.1"], &[HTTP]);
    let mut proxy = Proxy::serving(node, &[vec![service.clone()], wide(520)].concat());
    assert!(chains(node, "ip").contains(&"random-1040-00001-shop/web/tcp/http".to_owned()), "{:?}", chains(node, "ip"));
    let to = frontends(1, 80)[0];
    let client = Restless::start(lab.client(0), &[to]);
    assert_eq!(names(&tally(lab.client(0), to, 60)), ["web-1", "web-2"]);
    // Down across the border and up again.
    for gone in wide(520).iter().skip(511) {
        proxy.forget(gone);
    }
    proxy.apply();
    assert!(chains(node, "ip").contains(&"random-1022".to_owned()), "{:?}", chains(node, "ip"));
    assert!(
        !chains(node, "ip").contains(&"random-1040-00001-shop/web/tcp/http".to_owned()),
        "{:?}",
        chains(node, "ip")
    );
    assert_eq!(names(&tally(lab.client(0), to, 60)), ["web-1", "web-2"]);
    proxy.put(&wide(520));
    proxy.put(&[scheduled(service, "rr")]);
    assert!(chains(node, "ip").contains(&"rr-1040-00001-shop/web/tcp/http".to_owned()), "{:?}", chains(node, "ip"));
    // Slots are dealt by address: the first 520 connections in turn are one pod's.
    assert_eq!(names(&tally(lab.client(0), to, 1040)), ["web-1", "web-2"]);
    client.assert_uninterrupted("crossing the border of shared chains");
    proxy.assert_exact("in the end");
}

#[test]
fn five_thousand_endpoints_in_one_service() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let address = |number: u32| IpAddr::from(Ipv4Addr::from(0x0a80_0000 + number));
    // Slices hold 100 endpoints each, as the controller makes them.
    let all: Vec<Value> = (0..50)
        .map(|slice| {
            let addresses: Vec<_> = (1..=100).map(|number| address(slice * 256 + number)).collect();
            let mut value = slice_of("big", "IPv4", &addresses, &[("http", "TCP", TCP)]);
            value["metadata"]["name"] = json!(format!("big-{slice}"));
            value
        })
        .collect();
    let mut proxy = Proxy::serving(&inside, &[vec![service_at("big", &["10.96.0.1"], &[HTTP])], all.clone()].concat());
    assert_eq!(elements(&inside, "ip", "endpoints"), 5000);
    proxy.assert_exact("5,000 endpoints");
    let mut fewer = all[17].clone();
    fewer["endpoints"].as_array_mut().expect("a list").remove(3);
    let applied = proxy.put(&[fewer]);
    assert!(applied.elements <= 4, "a departure costs what it costs with five: {applied:?}");
    assert!(ruleset(&inside).contains("chain random-4999-00001-shop/big/tcp/http {"), "listable");
    assert!(
        !chains(&inside, "ip").contains(&"random-5000-00001-shop/big/tcp/http".to_owned()),
        "the old chain is swept up"
    );
    proxy.assert_exact("4,999 endpoints");
}

//! Who carries connections that are left to the userspace forwarder: a listener while its process leads there, the kernel otherwise.
//!
//! A pod plays the listener: to the kernel, both are an address and a port.

use std::net::SocketAddr;

use pointsman::forward::RouteId;
use pointsman::kernel::redirects::{Redirect, Redirects};
use pointsman::lab::{Lab, NODE, ask, connect};
use pointsman::model::{Family, PortKey, Protocol, ServiceKey};
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::{TCP, UDP, bed, pods};
use super::support::flush::flush_conntrack;
use super::support::objects::{frontends, shop};
use super::support::oracle::{json, nft};
use super::support::traffic::{assert_refused, names, tally, tally_by};

/// The pod that plays all listeners.
const LISTENER: &str = "web-3";

/// A Service of the first two pods, with these annotations.
fn annotated(annotations: Value) -> Vec<Value> {
    let mut objects = shop("web", 1, &pods(1..=2));
    objects[0]["metadata"]["annotations"] = annotations;
    objects
}

fn userspace() -> Vec<Value> {
    annotated(json!({"pointsman.dev/datapath": "userspace"}))
}

/// Leads all that is left to a forwarder to the listener.
fn redirects(proxy: &Proxy) -> Vec<Redirect> {
    let addresses = pods([3])[0];
    let mut redirects = Vec::new();
    for (protocol, name, port) in [(Protocol::Tcp, "http", TCP), (Protocol::Udp, "dns", UDP)] {
        for (family, address) in [(Family::V4, addresses.v4.into()), (Family::V6, addresses.v6.into())] {
            for local in [false, true] {
                let service = ServiceKey::new("shop", "web");
                let route = RouteId { port: PortKey { service, name: name.into(), protocol }, family, local };
                let to = SocketAddr::new(address, port);
                redirects.extend(proxy.engine.pool(&route).map(|pool| Redirect { pool, to }));
            }
        }
    }
    redirects
}

fn lead(lab: &Lab, proxy: &Proxy) -> Redirects {
    let mut leading = lab.node().run(Redirects::open).expect("a netlink socket");
    leading.change(&[], &redirects(proxy)).expect("the kernel takes redirects");
    leading
}

fn assert_reached(lab: &Lab, pods: &[&str], when: &str) {
    for host in [lab.client(0), lab.node()] {
        // A client's port may come again, and would lead to whom it led before.
        lab.node().run(flush_conntrack);
        for family in [0, 1] {
            assert_eq!(names(&tally(host, frontends(1, 80)[family], 30)), pods, "{when}: TCP from {}", host.role());
            assert_eq!(names(&tally_by(ask, host, frontends(1, 53)[family], 30)), pods, "{when}: UDP");
        }
    }
}

#[test]
fn a_listener_has_them_while_somebody_leads_there_and_the_kernel_otherwise() {
    let lab = bed(3);
    let mut proxy = Proxy::serving(lab.node().namespace(), &userspace());
    assert_reached(&lab, &["web-1", "web-2"], "before there is a listener");
    let mut leading = lead(&lab, &proxy);
    assert_reached(&lab, &[LISTENER], "while there is one");
    proxy.assert_exact("listeners are none of our tables' business");
    let all = redirects(&proxy);
    leading.change(&all, &[]).expect("the kernel takes them back");
    assert_reached(&lab, &["web-1", "web-2"], "taken back");
    leading.change(&[], &all).expect("the kernel takes them again");
    assert_reached(&lab, &[LISTENER], "again");
    // What the kernel does when a process dies: its sockets are closed.
    drop(leading);
    assert_reached(&lab, &["web-1", "web-2"], "nobody lives who led there");
    let inside = lab.node().namespace();
    assert!(!nft(inside, &["list", "tables"]).contains("pointsman-userspace"));
    proxy.die(inside);
    let (proxy, applied) = Proxy::succeeding(inside, &userspace());
    assert_eq!(applied.elements, 0, "a restart changes nothing");
    let _leading = lead(&lab, &proxy);
    assert_reached(&lab, &[LISTENER], "the next process");
}

#[test]
fn what_the_kernel_cannot_do_it_refuses() {
    let lab = bed(3);
    let proxy = Proxy::serving(lab.node().namespace(), &annotated(json!({"pointsman.dev/proxy-protocol": "v1"})));
    let to = frontends(1, 80);
    to.iter().for_each(|to| assert_refused(connect, lab.client(0), *to, "nobody can write a header"));
    let leading = lead(&lab, &proxy);
    to.iter().for_each(|to| assert_eq!(names(&tally(lab.client(0), *to, 10)), [LISTENER]));
    drop(leading);
    to.iter().for_each(|to| assert_refused(connect, lab.client(0), *to, "again"));
}

/// Affinity, source ranges and local policies, each of which decides twice.
#[test]
fn policies_decide_before_and_affinity_holds_instead() {
    let lab = bed(3);
    let mut objects = userspace();
    objects[0]["spec"]["type"] = "LoadBalancer".into();
    objects[0]["spec"]["ports"][0]["nodePort"] = 30080.into();
    objects[0]["spec"]["externalTrafficPolicy"] = "Local".into();
    objects[0]["spec"]["sessionAffinity"] = "ClientIP".into();
    objects[0]["spec"]["loadBalancerSourceRanges"] = json!([format!("{}/32", lab.client(0).addresses().v4)]);
    objects[0]["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
    for slice in &mut objects[1..] {
        slice["endpoints"][1]["nodeName"] = "n1".into();
    }
    let proxy = Proxy::serving(lab.node().namespace(), &objects);
    let at_node = SocketAddr::new(NODE.v4.into(), 30080);
    let balancer: SocketAddr = "203.0.113.7:80".parse().expect("an address");
    let assert_kernel = || {
        for to in [at_node, balancer] {
            assert_eq!(names(&tally(lab.client(0), to, 20)), ["web-2"], "{to}: only who is here");
        }
        assert_eq!(tally(lab.client(0), frontends(1, 80)[0], 20).len(), 1, "a client stays");
    };
    assert_kernel();
    let leading = lead(&lab, &proxy);
    for to in [at_node, balancer, frontends(1, 80)[0]] {
        assert_eq!(names(&tally(lab.client(0), to, 20)), [LISTENER], "{to}");
    }
    drop(leading);
    assert_kernel();
}

/// A published port of somebody else that is a node port of ours, too: of two chains of one priority the kernel asks the newer one first,
/// and the forwarder's has its turn after all of them.
#[test]
fn a_chain_of_somebody_else_for_the_same_port_decides_by_its_age_or_before_the_forwarder() {
    for (early, forwarded) in [(true, false), (false, false), (true, true), (false, true)] {
        let lab = bed(3);
        let inside = lab.node().namespace();
        let publish = || {
            let pod = pods([2])[0].v4;
            nft(inside, &["add", "table", "ip", "published"]);
            nft(inside, &["add", "chain", "ip", "published", "in", "{ type nat hook prerouting priority -100; }"]);
            let rule = format!("fib daddr type local tcp dport 30080 dnat to {pod}:{TCP}");
            nft(inside, &["add", "rule", "ip", "published", "in", &rule]);
        };
        let mut objects = if forwarded { userspace() } else { annotated(json!({})) };
        // Of pod 1 alone.
        for slice in &mut objects[1..] {
            slice["endpoints"].as_array_mut().expect("endpoints").truncate(1);
        }
        objects[0]["spec"]["type"] = "NodePort".into();
        objects[0]["spec"]["ports"][0]["nodePort"] = 30080.into();
        if early {
            publish();
        }
        let proxy = Proxy::serving(inside, &objects);
        if !early {
            publish();
        }
        let at_node = SocketAddr::new(NODE.v4.into(), 30080);
        let cluster_ip = frontends(1, 80)[0];
        if forwarded {
            let _leading = lead(&lab, &proxy);
            assert_eq!(names(&tally(lab.client(0), at_node, 10)), ["web-2"], "theirs, early: {early}");
            assert_eq!(names(&tally(lab.client(0), cluster_ip, 10)), [LISTENER], "what they do not claim");
        } else {
            let by_age = if early { "web-1" } else { "web-2" };
            assert_eq!(names(&tally(lab.client(0), at_node, 10)), [by_age], "by the kernel, early: {early}");
            assert_eq!(names(&tally(lab.client(0), cluster_ip, 10)), ["web-1"], "what they do not claim");
        }
    }
}

#[test]
fn it_reads_well() {
    let lab = bed(1);
    let inside = lab.node().namespace();
    let mut objects = userspace();
    objects[1]["endpoints"] = json!([{"addresses": ["10.244.0.2"]}]);
    let proxy = Proxy::serving(inside, &objects);
    let _leading = lead(&lab, &proxy);
    json(inside, &["list", "ruleset"]);
    let listed = nft(inside, &["list", "table", "ip", "pointsman-userspace"]);
    let listed: Vec<&str> = listed.lines().map(|line| line.split(" # progname").next().unwrap_or(line)).collect();
    insta::assert_snapshot!(listed.join("\n"), @r"
    table ip pointsman-userspace {
    	flags owner

    	map listeners {
    		type mark : ipv4_addr . inet_service
    		elements = { 0x00001c06 : 10.244.0.4 . 8080, 0x00002c06 : 10.244.0.4 . 5353 }
    	}

    	chain prerouting {
    		type nat hook prerouting priority dstnat + 1; policy accept;
    		dnat ip to meta priority map @listeners
    	}

    	chain output {
    		type nat hook output priority -99; policy accept;
    		dnat ip to meta priority map @listeners
    	}
    }
    ");
}

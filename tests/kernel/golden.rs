//! How the ruleset reads: snapshots of `nft list ruleset` for a set of states.
//!
//! To add one, call [`golden`] with a name and the objects of the state, run the test with `INSTA_UPDATE=always` and read the new file
//! in `snapshots/` as an operator would. Every state is also listed as JSON, and read back by us.
//!
//! SCTP is here because it can be programmed and listed; it cannot be sent on the kernels that these tests run on.

use pointsman::engine::Engine;
use pointsman::lab::Namespace;
use pointsman::policy::Settings;
use pointsman::schedule::{Buckets, Scheduler, TableSizes};
use serde_json::{Value, json};

use super::proxy::Proxy;
use super::support::beds::pods;
use super::support::objects::{HTTP, cluster_ips, scheduled, service, service_at, shop, slice_of, slices};
use super::support::oracle::{json as nft_json, nft, ruleset};

/// Programs the objects on an empty namespace and compares the listing with the snapshot of this name.
fn golden(name: &str, objects: &[Value]) -> String {
    golden_after(name, &[objects.to_vec()])
}

/// The same after several batches, for states that have a history.
fn golden_after(name: &str, batches: &[Vec<Value>]) -> String {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut proxy = Proxy::start(&inside);
    for batch in batches {
        proxy.put(batch);
    }
    proxy.assert_exact(name);
    let text = ruleset(&inside);
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, text);
    });
    text
}

#[test]
fn empty() {
    golden("empty", &[]);
}

#[test]
fn one_service() {
    golden("one-service", &shop("web", 1, &pods(1..=3)));
}

#[test]
fn no_endpoints() {
    golden("no-endpoints", &[service("web", 1, &[HTTP])]);
}

/// Rings are walked by a rule that counts its packets in front of `numgen inc`.
#[test]
fn rings() {
    let mut web = shop("web", 1, &pods(1..=2));
    web[0] = scheduled(web[0].take(), "lc");
    let mut cart = shop("cart", 2, &pods(1..=2));
    cart[0] = scheduled(cart[0].take(), "wlc");
    cart[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    let text = golden("rings", &[web, cart].concat());
    for chain in ["ring-64-00001-shop/web/tcp/http", "sticky-ring-64-10800s-00005-shop/cart/tcp/http"] {
        let rules = text.split_once(&format!("chain {chain} {{")).expect(chain).1;
        let rules = rules.split_once("\n\t}").expect("an end").0;
        assert_eq!(rules.matches("counter packets 0 bytes 0").count(), 1, "{chain}: {rules}");
    }
}

#[test]
fn round_robin_beside_random() {
    let mut cart = shop("cart", 2, &pods(2..=3));
    cart[0] = scheduled(cart[0].take(), "rr");
    golden("round-robin", &[shop("web", 1, &pods(1..=2)), cart].concat());
}

/// All that hash, in both families, with tables as small as they can be; `mh` has so large a one that only its chains are shown.
#[test]
fn hashing() {
    let mut objects = Vec::new();
    for (number, scheduler) in [(1, "sh"), (2, "sh,sh-port"), (3, "dh")] {
        let name = scheduler.replace(',', "-");
        let service = service(&name, number, &[HTTP]);
        objects.push(scheduled(service, scheduler));
        objects.extend(slices(&name, &pods(1..=2)));
    }
    objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let buckets = |count| Buckets::new(count).expect("a size");
    let tables = TableSizes { hash: buckets(16), maglev: buckets(251) };
    let mut proxy = Proxy::start(&inside);
    proxy.engine =
        Engine::with_settings(Settings { node: "n1".into(), tables, ..Settings::default() }, Scheduler::Random);
    proxy.put(&objects);
    proxy.assert_exact("hashing");
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("hashing", ruleset(&inside));
    });
    for (number, scheduler) in [(4, "mh"), (5, "mh,mh-port")] {
        proxy.put(
            &[vec![scheduled(service("mh", number, &[HTTP]), scheduler)], slices("mh", &pods(1..=2)).to_vec()].concat(),
        );
        proxy.assert_exact(scheduler);
        ruleset(&inside);
    }
    let rules = |family, chain| nft(&inside, &["list", "chain", family, "pointsman", chain]);
    let all = [("ip", "mh-251"), ("ip6", "mh-251"), ("ip", "mh-port-251"), ("ip6", "mh-port-251")];
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("hashing-maglev", all.map(|(family, chain)| rules(family, chain)).join(""));
    });
}

#[test]
fn scaled_down() {
    let after = [shop("web", 1, &pods(1..=4)), slices("web", &pods([1, 3, 4])).to_vec()];
    golden_after("scaled-down", &after);
}

#[test]
fn one_family_only() {
    let slice = slice_of("six", "IPv6", &["fd00:10:244::2".parse().expect("an address")], &[("http", "TCP", 8080)]);
    golden("ipv6-only", &[service_at("six", &["fd00:10:96::6"], &[HTTP]), slice]);
}

#[test]
fn sctp() {
    let service = service("signal", 1, &[("sigtran", "SCTP", 2905), ("sigtran-tcp", "TCP", 2905)]);
    let slice = slice_of(
        "signal",
        "IPv4",
        &[[10, 244, 0, 2].into()],
        &[("sigtran", "SCTP", 2906), ("sigtran-tcp", "TCP", 2907)],
    );
    let text = golden("sctp", &[service, slice]);
    assert!(text.contains("10.96.0.1 . sctp . 2905"), "an SCTP frontend: {text}");
}

#[test]
fn a_single_unnamed_port() {
    let mut slice = slice_of("plain", "IPv4", &[[10, 244, 0, 2].into()], &[("", "TCP", 8080)]);
    let mut service = service_at("plain", &["10.96.0.1"], &[("", "TCP", 80)]);
    service["spec"]["ports"][0].as_object_mut().expect("a port").remove("name");
    slice["ports"][0]["name"] = json!("");
    golden("unnamed-port", &[scheduled(service, "rr"), slice]);
}

/// Names that no API server would let through, but a manifest may hold.
#[test]
fn hostile_names() {
    let names = [
        "quote\"; flush ruleset; \"",
        "line\nbreak\ttab",
        "\u{1b}[31mred\u{7f}",
        "back\\slash $dollar `tick` {brace} # hash",
        "ünï©ode \u{202e}rtl",
        "nul\u{0}byte",
        "@endpoints",
        "refuse",
    ];
    let mut objects = Vec::new();
    for (number, name) in
        names.iter().map(|name| (*name).to_owned()).chain([format!("long-{}", "x".repeat(300))]).enumerate()
    {
        let number = u8::try_from(number + 1).expect("few");
        let port_name = if number % 2 == 0 { name.as_str() } else { "http" };
        let ports = [(port_name, "TCP", 80)];
        objects.push(scheduled(
            service_at(&name, &cluster_ips(number), &ports),
            if number % 2 == 0 { "random" } else { "rr" },
        ));
        objects.push(slice_of(&name, "IPv4", &[[10, 244, 0, number].into()], &ports));
    }
    let text = golden("hostile-names", &objects);
    assert!(
        text.bytes().all(|byte| byte == b'\n' || byte == b'\t' || (b' '..=b'~').contains(&byte)),
        "plain text: {text}"
    );
}

/// nft may also be asked for parts, by an operator in a hurry.
#[test]
fn parts_can_be_listed() {
    let inside = Namespace::anonymous().expect("a namespace, which needs root");
    let mut objects = shop("web", 1, &pods(1..=2));
    objects[0] = scheduled(objects[0].take(), "rr");
    let _proxy = Proxy::serving(&inside, &objects);
    for family in ["ip", "ip6"] {
        for map in ["services", "plans", "endpoints", "dedicated"] {
            assert!(!nft_json(&inside, &["list", "map", family, "pointsman", map]).is_empty(), "map {map}");
        }
        let own = if family == "ip" { "rr-2-00001-shop/web/tcp/http" } else { "rr-2-00003-shop/web/tcp/http" };
        for chain in ["services", "refuse", "dedicated", "slot", "prerouting", "output", own] {
            assert!(!nft_json(&inside, &["list", "chain", family, "pointsman", chain]).is_empty(), "chain {chain}");
        }
    }
}

//! Objects that are wrong: each is named once, with the field and the value, and everything else works.

use serde_json::{Value, json};

use super::daemon::{Daemon, Manifests};
use super::support::beds::{TCP, bed, pods};
use super::support::objects::{HTTP, frontends, scheduled, service, service_at, shop, slice_of, slices};
use super::support::traffic::{assert_refused, assert_silent, names, tally};

/// An object, edited.
fn with(mut object: Value, edit: impl FnOnce(&mut Value)) -> Value {
    edit(&mut object);
    object
}

#[test]
fn every_bad_field_is_named_once_and_the_rest_is_served() {
    let lab = bed(3);
    let [web1, web2] = [pods([1])[0], pods([2])[0]];
    let http = [("http", "TCP", TCP)];
    let aged = |object: Value, when: &str| with(object, |object| object["metadata"]["creationTimestamp"] = when.into());
    let mut objects = shop("good", 1, &pods(1..=2));
    // Half good: one family, one port, one endpoint of each is served.
    objects.push(service_at("bad-ip", &["10.96.0.300".to_owned(), "fd00:10:96::2".to_owned()], &[HTTP]));
    objects.extend(slices("bad-ip", &pods([3])));
    objects.push(service("bad-port", 3, &[HTTP, ("zero", "TCP", 0)]));
    objects.extend(slices("bad-port", &pods([3])));
    objects.push(service("bad-protocol", 4, &[HTTP, ("quic", "QUIC", 443)]));
    objects.extend(slices("bad-protocol", &pods([3])));
    objects.push(scheduled(service("bad-scheduler", 5, &[HTTP]), "fastest"));
    objects.extend(slices("bad-scheduler", &pods([3])));
    objects.push(service("bad-slices", 6, &[HTTP]));
    objects.push(slice_of("bad-slices", "IPv4", &[web1.v6.into(), web1.v4.into()], &http));
    objects.push(with(slice_of("bad-slices", "FQDN", &[], &http), |slice| {
        slice["endpoints"] = json!([{"addresses": ["example.org"]}]);
    }));
    objects.push(with(slice_of("bad-slices", "IPv6", &[web2.v6.into()], &http), |slice| {
        slice["endpoints"].as_array_mut().expect("a list").insert(0, json!({"addresses": []}));
    }));
    objects.push(aged(service("late", 7, &[HTTP]), "2026-02-01T00:00:00Z"));
    objects.extend(slices("late", &pods([1])));
    objects.push(aged(service_at("z-early", &["10.96.0.7"], &[HTTP]), "2026-01-01T00:00:00Z"));
    objects.extend(slices("z-early", &pods([2])));
    let manifests = Manifests::of(&objects);
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();

    let wanted = [
        r#"Service shop/bad-ip: spec.clusterIPs[0]: "10.96.0.300": not an IP address"#,
        r#"Service shop/bad-port: spec.ports[1].port: "0": not in 1..65535"#,
        r#"Service shop/bad-protocol: spec.ports[1].protocol: "QUIC": not TCP, UDP or SCTP"#,
        r#"Service shop/bad-scheduler: metadata.annotations[pointsman.dev/scheduler]: "fastest": not a scheduler"#,
        r#"EndpointSlice shop/bad-slices-ipv4: endpoints[0].addresses[0]: "fd00:10:244::2": the slice's addressType is IPv4"#,
        r#"EndpointSlice shop/bad-slices-ipv6: endpoints[0].addresses: "[]": an endpoint without an address"#,
        r#"Service shop/late: spec.ports: "TCP 10.96.0.7:80": already served for Service shop/z-early"#,
    ];
    for text in wanted {
        assert_eq!(daemon.count(&["WARN", text]), 1, "one line with {text}: {:#?}", daemon.said());
    }
    // Somebody else's kind of slice is no mistake.
    let passed_over = r#"EndpointSlice shop/bad-slices-fqdn: addressType: "FQDN": only IPv4 and IPv6"#;
    assert_eq!((daemon.count(&[passed_over]), daemon.count(&["WARN", passed_over])), (1, 0), "{:#?}", daemon.said());
    assert_eq!(daemon.count(&["WARN"]), wanted.len(), "and no other complaint: {:#?}", daemon.said());

    let client = lab.client(0);
    let asked = |number: u8, family: usize| tally(client, frontends(number, 80)[family], 30);
    for family in 0..2 {
        assert_eq!(names(&asked(1, family)), ["web-1", "web-2"], "the good one");
        assert_eq!(names(&asked(3, family)), ["web-3"], "the good port");
        assert_eq!(names(&asked(4, family)), ["web-3"], "the good protocol");
        assert_eq!(names(&asked(5, family)), ["web-3"], "the default scheduler");
    }
    assert_eq!(names(&asked(2, 1)), ["web-3"], "the good address");
    assert_eq!(names(&asked(6, 0)), ["web-1"], "the endpoint of the right family");
    assert_eq!(names(&asked(6, 1)), ["web-2"], "the endpoint that has an address");
    assert_eq!(names(&asked(7, 0)), ["web-2"], "the older claim");
    assert_eq!(names(&asked(7, 1)), ["web-1"], "what the younger one does not lose");
    assert_refused(pointsman::lab::connect, client, frontends(4, 443)[0], "the port of an unknown protocol");

    // Nothing of it is said again when something else changes; and a claim that is free is taken.
    manifests.write("more.json", &[service("more", 8, &[HTTP])]);
    daemon.programmed();
    assert_eq!(daemon.count(&["WARN"]), wanted.len(), "said once: {:#?}", daemon.said());
    manifests.write("all.json", &objects[..objects.len() - 3]);
    daemon.programmed();
    assert_eq!(names(&asked(7, 0)), ["web-1"], "the next in line");
}

#[test]
fn what_is_not_ours_is_passed_over_in_silence() {
    let lab = bed(1);
    let mut objects = shop("good", 1, &pods([1]));
    objects.push(with(service("headless", 2, &[HTTP]), |service| {
        service["spec"]["clusterIP"] = "None".into();
        service["spec"]["clusterIPs"] = json!(["None"]);
    }));
    objects.push(with(service("external", 3, &[HTTP]), |service| {
        service["spec"]["type"] = "ExternalName".into();
        service["spec"]["externalName"] = "example.org".into();
    }));
    objects.push(with(service("other-proxys", 4, &[HTTP]), |service| {
        service["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    }));
    for name in ["headless", "external", "other-proxys"] {
        objects.extend(slices(name, &pods([1])));
    }
    let manifests = Manifests::of(&objects);
    manifests.write_text("deployment.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n");
    let mut daemon = Daemon::serving(lab.node(), &manifests, &[]);
    daemon.programmed();
    assert_eq!(daemon.count(&["WARN"]), 0, "{:#?}", daemon.said());
    assert_eq!(daemon.count(&["deployment.yaml", "apps/v1 Deployment"]), 1, "one line: {:#?}", daemon.said());
    assert_eq!(names(&tally(lab.client(0), frontends(1, 80)[0], 5)), ["web-1"]);
    for number in 2..=4 {
        assert_silent(lab.client(0), frontends(number, 80)[0], "none of ours");
    }
}

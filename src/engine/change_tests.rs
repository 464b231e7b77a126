//! What compilations say they changed.

use serde_json::json;

use super::*;

fn service(name: &str, number: u8, scheduler: &str) -> Change {
    let value = json!({
        "metadata": {"namespace": "shop", "name": name, "annotations": {"pointsman.dev/scheduler": scheduler}},
        "spec": {"type": "NodePort", "clusterIP": format!("10.96.0.{number}"), "ports": [{"name": "http", "port": 80, "nodePort": 30000 + u16::from(number)}]},
    });
    Change::Apply(Object::Service(Box::new(serde_json::from_value(value).expect("decodes"))))
}

fn slice(endpoints: &[u8]) -> Change {
    let endpoints: Vec<_> = endpoints.iter().map(|number| json!({"addresses": [format!("10.1.0.{number}")]})).collect();
    let value = json!({
        "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
    });
    Change::Apply(Object::EndpointSlice(Box::new(serde_json::from_value(value).expect("decodes"))))
}

#[test]
fn changes_read_like_what_happened() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    let mut said = Vec::new();
    let mut step = |what: &str, changes: Vec<Change>| {
        changes.into_iter().for_each(|change| engine.take(change));
        let changes = engine.compile().changes;
        said.push(format!("# {what}"));
        said.extend(changes.ports.iter().map(ToString::to_string));
        if changes.more > 0 {
            said.push(format!("and {} more", changes.more));
        }
    };
    step("a Service", vec![service("web", 1, "rr"), slice(&[1, 2])]);
    step("one endpoint more", vec![slice(&[1, 2, 3])]);
    step("one endpoint less", vec![slice(&[2, 3])]);
    step("another scheduler", vec![service("web", 1, "random")]);
    step("another address", vec![service("web", 2, "random")]);
    step("nothing", vec![service("web", 2, "random"), slice(&[3, 2])]);
    step("many", vec![slice(&[2, 3, 4, 5, 6, 7, 8])]);
    step("no endpoints", vec![slice(&[])]);
    step(
        "gone",
        vec![Change::Delete(Kind::Service, crate::source::ObjectKey { namespace: "shop".into(), name: "web".into() })],
    );
    step(
        "a crowd with a hostile name",
        (10..30).map(|number| service(&format!("a\u{1b}[2J{number}"), number, "rr")).collect(),
    );
    insta::assert_snapshot!(said.join("\n"), @r"
    # a Service
    shop/web:http (TCP, IPv4): new, +2 frontends 10.96.0.1:80 node port 30001, +2 endpoints 10.1.0.1:8080 10.1.0.2:8080
    # one endpoint more
    shop/web:http (TCP, IPv4): +1 endpoint 10.1.0.3:8080, 1 slot dealt anew
    # one endpoint less
    shop/web:http (TCP, IPv4): -1 endpoint 10.1.0.1:8080, 2 slots dealt anew
    # another scheduler
    shop/web:http (TCP, IPv4): scheduler random instead of rr
    # another address
    shop/web:http (TCP, IPv4): +2 frontends 10.96.0.2:80 node port 30002, -2 frontends 10.96.0.1:80 node port 30001
    # nothing
    # many
    shop/web:http (TCP, IPv4): +5 endpoints 10.1.0.4:8080 10.1.0.5:8080 10.1.0.6:8080 and 2 more
    # no endpoints
    shop/web:http (TCP, IPv4): -7 endpoints 10.1.0.2:8080 10.1.0.3:8080 10.1.0.4:8080 and 4 more
    # gone
    shop/web:http (TCP, IPv4): gone
    # a crowd with a hostile name
    shop/a\u{1b}[2J10:http (TCP, IPv4): new, +2 frontends 10.96.0.10:80 node port 30010
    shop/a\u{1b}[2J11:http (TCP, IPv4): new, +2 frontends 10.96.0.11:80 node port 30011
    shop/a\u{1b}[2J12:http (TCP, IPv4): new, +2 frontends 10.96.0.12:80 node port 30012
    shop/a\u{1b}[2J13:http (TCP, IPv4): new, +2 frontends 10.96.0.13:80 node port 30013
    shop/a\u{1b}[2J14:http (TCP, IPv4): new, +2 frontends 10.96.0.14:80 node port 30014
    shop/a\u{1b}[2J15:http (TCP, IPv4): new, +2 frontends 10.96.0.15:80 node port 30015
    shop/a\u{1b}[2J16:http (TCP, IPv4): new, +2 frontends 10.96.0.16:80 node port 30016
    shop/a\u{1b}[2J17:http (TCP, IPv4): new, +2 frontends 10.96.0.17:80 node port 30017
    and 12 more
    ");
}

#[test]
fn the_directory_is_told_of_frontends_and_of_nothing_else() {
    let mut engine = Engine::new("n1", Scheduler::Random);
    engine.take(service("web", 1, "rr"));
    engine.compile();
    assert!(engine.take_directory().is_empty(), "nobody asked");
    engine.keep_directory();
    let mut told = |change: Change| {
        engine.take(change);
        engine.compile();
        let news = engine.take_directory();
        let words = news.iter().map(|of| format!("{} {} -{}", of.service, of.entries.len(), of.left.len()));
        words.collect::<Vec<_>>()
    };
    assert!(told(slice(&[1, 2])).is_empty());
    assert_eq!(told(service("web", 2, "rr")), ["shop/web 2 -2"], "an address and a node port");
    assert!(told(service("web", 2, "random")).is_empty());
    let key = crate::source::ObjectKey { namespace: "shop".into(), name: "web".into() };
    assert_eq!(told(Change::Delete(Kind::Service, key)), ["shop/web 0 -2"]);
}

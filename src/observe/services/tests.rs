//! Ports that open, answer, move and close. Names of upstream's tests where they test the same.

use std::net::TcpListener as StdListener;

use tokio::time::{Instant, sleep};

use super::super::events::Recorded;
use super::super::health::HealthReporter;
use super::super::http::tests::{Said, ask, get};
use super::*;

struct Fixture {
    health: HealthReporter,
    services: ServiceHealth,
    events: Recorded,
    _servers: ServiceServers,
}

fn fixture() -> Fixture {
    let health = HealthReporter::new(ProxyHealth::new(Duration::from_secs(30), true));
    let (sink, events) = EventSink::recorded();
    let (services, servers) = start("n1", &[Family::V4], health.watch(), sink);
    Fixture { health, services, events, _servers: servers }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name)
}

/// A port nobody uses just now.
fn free_port() -> u16 {
    StdListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn ports(wanted: &[(&str, u16, usize)]) -> HealthPorts {
    let one = |(name, port, local): &(&str, u16, usize)| {
        (key(name), HealthPort { port: *port, local_endpoints: [*local, 0] })
    };
    wanted.iter().map(one).collect()
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(8);
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain for: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn listens(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

async fn opened(port: u16) {
    until("the port to open", || listens(at(port))).await;
}

fn brief(said: &Said) -> (u16, Option<&str>) {
    (said.status, said.header("x-load-balancing-endpoint-weight"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn test_server() {
    let fixture = fixture();
    let [web, cart] = [free_port(), free_port()];
    fixture.services.sync(ports(&[("web", web, 0)]), [None, None]);
    opened(web).await;
    assert_eq!(brief(&get(at(web), "/").await), (503, Some("0")));
    fixture.services.sync(ports(&[("web", web, 18), ("cart", cart, 1)]), [None, None]);
    opened(cart).await;
    let said = get(at(web), "/any/path?at=all").await;
    assert_eq!(brief(&said), (200, Some("18")));
    assert_eq!(said.header("content-type"), Some("application/json"));
    assert_eq!(said.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(
        said.body,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
         \t\"localEndpoints\": 18,\n\t\"serviceProxyHealthy\": true\n}"
    );
    assert_eq!(brief(&ask(at(cart), "POST", "/", &[], "x").await), (200, Some("1")));
    assert_eq!(brief(&ask(at(cart), "DELETE", "/healthz", &[], "").await), (200, Some("1")));

    // A port changes: the old one closes.
    let moved = free_port();
    fixture.services.sync(ports(&[("web", moved, 2), ("cart", cart, 0)]), [None, None]);
    opened(moved).await;
    until("the old port to close", || !listens(at(web))).await;
    assert_eq!(brief(&get(at(cart), "/").await), (503, Some("0")));

    // A proxy that does not keep up has no good endpoints; an ineligible node does.
    fixture.health.set_eligible(false);
    assert_eq!(brief(&get(at(moved), "/").await), (200, Some("2")));
    let now = Moment::now();
    let long_ago = now.steady.checked_sub(Duration::from_secs(61)).expect("up for a minute");
    fixture.health.queued([Family::V6], Moment { steady: long_ago, ..now });
    let said = get(at(moved), "/").await;
    assert_eq!(brief(&said), (503, Some("2")));
    assert!(said.body.ends_with("\"serviceProxyHealthy\": false\n}"), "{}", said.body);

    fixture.services.sync(HealthPorts::new(), [None, None]);
    until("all ports to close", || !listens(at(moved)) && !listens(at(cart))).await;
    assert_eq!(fixture.events.all().len(), 0);
}

/// Loopback addresses are never among them, so real listeners are seen by `tests/e2e/settings.rs`.
#[test]
fn ports_are_on_all_addresses_or_on_those_that_the_host_has() {
    let host = interface_addresses();
    let desired = |restricted| Desired { ports: ports(&[("web", 1, 1)]), restricted };
    let [v4, v6] = [Family::V4, Family::V6].map(AddressRange::everything);
    let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    assert_eq!(addresses(&Family::ALL, &desired([None, None])), everywhere);
    assert_eq!(addresses(&[Family::V4], &desired([None, None])), everywhere[..1]);
    let all = addresses(&Family::ALL, &desired([Some(vec![v4]), Some(vec![v6])]));
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), host);
    let nobodys = AddressRange::single("192.0.2.77".parse().expect("an address"));
    assert_eq!(addresses(&Family::ALL, &desired([Some(vec![nobodys]), None])), everywhere[1..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_taken_is_an_event_and_is_tried_again() {
    let fixture = fixture();
    let holder = StdListener::bind("127.0.0.1:0").expect("a free port");
    let port = holder.local_addr().expect("bound").port();
    let other = free_port();
    fixture.services.sync(ports(&[("web", port, 1), ("zoo", other, 1)]), [None, None]);
    opened(other).await;
    let event = fixture.events.all().remove(0);
    assert_eq!((event.reason, event.action), ("FailedToStartServiceHealthcheck", "Listen"));
    assert_eq!((event.regarding.kind, event.regarding.name.as_str()), ("Service", "web"));
    let start = format!("node n1 failed to start healthcheck \"shop/web\" on port {port}: ");
    assert!(event.note.starts_with(&start), "{}", event.note);
    drop(holder);
    fixture.services.sync(ports(&[("web", port, 1), ("zoo", other, 1)]), [None, None]);
    opened(port).await;
    assert_eq!(get(at(port), "/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_services_with_one_port_one_is_served() {
    let fixture = fixture();
    let port = free_port();
    fixture.services.sync(ports(&[("a", port, 1), ("b", port, 2)]), [None, None]);
    opened(port).await;
    until("the event", || !fixture.events.all().is_empty()).await;
    assert_eq!(brief(&get(at(port), "/").await), (200, Some("1")));
    // The port is free again before the other one asks for it.
    fixture.services.sync(ports(&[("b", port, 2)]), [None, None]);
    let limit = Instant::now() + Duration::from_secs(8);
    while brief(&get(at(port), "/").await) != (200, Some("2")) {
        assert!(Instant::now() < limit, "b takes over");
        sleep(Duration::from_millis(5)).await;
    }
}

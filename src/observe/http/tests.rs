//! Good clients, bad clients and too many clients.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::*;

/// What a server said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Sends one request, word for word, and reads until the server closes. Status 0 when nobody answers.
pub(crate) async fn say(address: SocketAddr, request: &str) -> Said {
    let mut text = Vec::new();
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return Said { status: 0, head: String::new(), body: String::new() };
    };
    drop(stream.write_all(request.as_bytes()).await);
    drop(timeout(Duration::from_secs(10), stream.read_to_end(&mut text)).await.expect("an answer in time"));
    let text = String::from_utf8(text).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Said { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// A request with these extra header lines.
pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Said {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for header in headers {
        request += &format!("{header}\r\n");
    }
    if !body.is_empty() {
        request += &format!("Content-Length: {}\r\n", body.len());
    }
    say(address, &format!("{request}\r\n{body}")).await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Said {
    ask(address, "GET", path, &[], "").await
}

impl Said {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// The loopback address of a server, for a client.
pub(crate) fn reachable(server: &Server) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, server.address().expect("bound").port()).into()
}

fn echo() -> Handler {
    at_once(|request| {
        let body = format!("{} {} {}", request.method(), request.uri().path(), request.body().len());
        text(StatusCode::OK, body)
    })
}

fn start(limits: Limits) -> Server {
    Server::start("a test", (Ipv4Addr::LOCALHOST, 0).into(), true, limits, echo()).expect("a free port")
}

#[tokio::test]
async fn methods_are_answered_alike() {
    let server = start(Limits::default());
    let address = reachable(&server);
    assert_eq!(get(address, "/a?b=c").await.body, "GET /a 0");
    assert_eq!(ask(address, "POST", "/a", &[], "ignored").await.body, "POST /a 0");
    assert_eq!(ask(address, "PUT", "/a", &[], "four").await.body, "PUT /a 4");
    let head = ask(address, "HEAD", "/a", &[], "").await;
    assert_eq!((head.status, head.body.as_str(), head.header("content-length")), (200, "", Some("9")));
    assert_eq!(head.header("x-content-type-options"), Some("nosniff"));
}

#[tokio::test]
async fn what_is_too_large_or_no_http_is_refused() {
    let server = start(Limits::default());
    let address = reachable(&server);
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(64 * 1024));
    let said = say(address, &long).await;
    assert!(said.status == 431 || said.status == 414 || said.status == 0, "{said:?}");
    assert_eq!(ask(address, "PUT", "/", &[], &"1".repeat(2000)).await.status, 413);
    assert_eq!(say(address, "\u{16}\u{3}\u{1}nonsense\r\n\r\n").await.status, 400);
    assert_eq!(get(address, "/").await.status, 200, "and still there");
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let server = start(Limits { head: Duration::from_millis(200), ..Limits::default() });
    let address = reachable(&server);
    let begin = Instant::now();
    for beginning in ["", "GET / HT", "GET / HTTP/1.1\r\nHost: x\r\n"] {
        say(address, beginning).await;
    }
    assert!(begin.elapsed() < Duration::from_secs(8));
    assert_eq!(say(address, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n1").await.status, 408);
}

#[tokio::test]
async fn of_too_many_connections_the_oldest_goes() {
    let server = start(Limits { connections: 4, ..Limits::default() });
    let address = reachable(&server);
    let mut idle = Vec::new();
    for _ in 0..10 {
        idle.push(TcpStream::connect(address).await.expect("connects"));
    }
    assert_eq!(get(address, "/").await.status, 200);
    let mut byte = [0];
    let first = timeout(Duration::from_secs(5), idle[0].read(&mut byte)).await;
    assert!(matches!(first, Ok(Ok(0) | Err(_))), "closed: {first:?}");
    let last = timeout(Duration::from_millis(100), idle[9].read(&mut byte)).await;
    assert!(last.is_err(), "open: {last:?}");
}

#[tokio::test]
async fn an_unspecified_ipv4_address_takes_both_families() {
    let server =
        Server::start("a test", (Ipv4Addr::UNSPECIFIED, 0).into(), true, Limits::default(), echo()).expect("free");
    assert_eq!(get(reachable(&server), "/").await.status, 200);
    if StdListener::bind("[::1]:0").is_ok() {
        let port = server.address().expect("bound").port();
        assert_eq!(get((Ipv6Addr::LOCALHOST, port).into(), "/").await.status, 200);
    }
}

#[tokio::test]
async fn a_taken_port_is_fatal_or_tried_again() {
    let holder = bind((Ipv4Addr::LOCALHOST, 0).into(), Reach::Any).expect("a free port");
    let address = holder.local_addr().expect("bound");
    let refused = Server::start("a test", address, true, Limits::default(), echo()).expect_err("taken");
    assert!(refused.to_string().starts_with(&format!("a test cannot listen on {address}: ")), "{refused}");
    let server = Server::start("a test", address, false, Limits::default(), echo()).expect("waits");
    assert_eq!(server.address(), None);
    drop(holder);
    let mut bound = server.bound.clone();
    timeout(REBIND * 3, bound.wait_for(Option::is_some)).await.expect("in time").expect("bound");
    assert_eq!(get(address, "/").await.status, 200);
    server.close().await;
    bind(address, Reach::Any).expect("free again");
}

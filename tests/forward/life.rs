//! Routes come, change and go; connections do not notice.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pointsman::forward::{ForwardError, Options, Refusal, Settings};
use pointsman::model::Family;

use super::bed::{
    Bed, PATIENCE, assert_echo, assert_refused, echo, eventually, id, redirect, route, server, server_on, settings, vip,
};

const V4: Family = Family::V4;

#[test]
fn updates_keep_connections_and_the_listener() {
    let mut bed = Bed::new(2);
    let _servers = [server(&bed.lab, 1, echo), server(&bed.lab, 2, echo)];
    let (one, two) = (bed.endpoint(1, V4), bed.endpoint(2, V4));
    let listener = bed.serve(V4, &[one], Options::default());
    let mut old = bed.connect(V4);
    assert_echo(&mut old, "before");
    let again = bed.forwarder().set(&id(V4), &route(&[two], Options::default())).expect("an update");
    assert_eq!(again, listener, "the kernel need not be told");
    let mut new = bed.connect(V4);
    assert_echo(&mut new, "to the new endpoint");
    assert_echo(&mut old, "to the one that has gone");
    let status = bed.status(V4);
    assert_eq!((status.endpoints[&one].active, status.endpoints[&two].active), (1, 1));
}

#[test]
fn without_endpoints_new_connections_are_refused_and_old_ones_live_on() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    let mut old = bed.connect(V4);
    assert_echo(&mut old, "before");
    bed.forwarder().set(&id(V4), &route(&[], Options::default())).expect("an update");
    bed.assert_refused(V4, "nobody is there");
    assert_echo(&mut old, "as if nothing had happened");
    assert_eq!(bed.status(V4).refused[&Refusal::NoEndpoints], 1);
}

#[test]
fn removal_closes_the_listener_and_nothing_else() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    let mut old = bed.connect(V4);
    assert_echo(&mut old, "before");
    assert!(bed.forwarder().remove(&id(V4)) && !bed.forwarder().remove(&id(V4)), "once");
    eventually("the listener's end", || {
        bed.lab.client(0).run(|| TcpStream::connect_timeout(&vip(V4), PATIENCE)).is_err()
    });
    assert_echo(&mut old, "it lives on");
    assert_eq!(bed.status(V4).listener, None);
    eventually("it to be counted, and nothing else", || bed.status(V4).active == 1);
    drop(old);
    bed.wait_for_silence();
    assert!(bed.forwarder().status().is_empty(), "then it is forgotten");
}

#[test]
fn a_connection_that_was_not_translated_is_closed_at_once() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    for family in Family::ALL {
        let listener = bed.serve(family, &[bed.endpoint(1, family)], Options::default());
        assert_refused(bed.lab.client(0), listener, "straight to the listener");
        let status = bed.status(family);
        assert_eq!((status.refused[&Refusal::NotTranslated], status.endpoints.len()), (1, 1));
        assert_eq!(bed.endpoint_status(1, family).connections, 0, "no endpoint has heard of it");
    }
}

#[test]
fn a_shutdown_waits_for_connections_and_then_ends_them() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    // The first connection ends by itself meanwhile.
    let mut short = bed.connect(V4);
    assert_echo(&mut short, "before");
    let forwarder = bed.forwarder.take().expect("there");
    let begin = Instant::now();
    let waiting = std::thread::spawn(move || forwarder.shutdown(PATIENCE));
    let to = vip(V4);
    eventually("the listener's end", || bed.lab.client(0).run(|| TcpStream::connect_timeout(&to, PATIENCE)).is_err());
    assert_echo(&mut short, "while draining");
    drop(short);
    assert_eq!(waiting.join().expect("no panic"), 0, "none had to be ended");
    assert!(begin.elapsed() < PATIENCE, "it did not wait for longer than necessary");

    // The second one does not.
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    bed.serve(V4, &[bed.endpoint(1, V4)], Options::default());
    let mut long = bed.connect(V4);
    assert_echo(&mut long, "before");
    assert_eq!(bed.forwarder.take().expect("there").shutdown(Duration::from_millis(50)), 1, "one was ended");
    assert!(matches!(long.read(&mut [0; 1]), Ok(0) | Err(_)), "and its client knows");
}

#[test]
fn silence_ends_a_connection_only_if_asked_to_and_traffic_prevents_it() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    let idle_timeout = Some(Duration::from_millis(600));
    bed.serve(V4, &[bed.endpoint(1, V4)], Options { idle_timeout, ..Options::default() });
    let (mut busy, mut idle) = (bed.connect(V4), bed.connect(V4));
    assert_echo(&mut idle, "at first");
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(1500) {
        assert_echo(&mut busy, "while it is used");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(idle.read(&mut [0; 1]).expect("an end in order"), 0);
    assert_eq!(busy.read(&mut [0; 1]).expect("an end in order"), 0, "it ends too when it is used no more");
    bed.wait_for_silence();

    // The same when one direction has ended, by the other timeout: this server never finishes its own.
    let _deaf = server_on(bed.lab.pod("web-1"), 8081, |stream| {
        std::thread::sleep(PATIENCE * 2);
        drop(stream);
    });
    let options = Options { half_closed_timeout: Some(Duration::from_secs(1)), ..Options::default() };
    let deaf = SocketAddr::new(bed.endpoint(1, V4).ip(), 8081);
    bed.forwarder().set(&id(V4), &route(&[deaf], options)).expect("an update");
    let (open, half) = (bed.connect(V4), bed.connect(V4));
    eventually("two connections", || bed.status(V4).endpoints[&deaf].connections == 2);
    half.shutdown(std::net::Shutdown::Write).expect("finished");
    eventually("the end of the finished one", || bed.status(V4).active == 1);
    drop(open);
}

#[test]
fn who_stays_has_keepalives_on_both_sides_and_its_timeout() {
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    let idle_timeout = Some(Duration::from_millis(2500));
    bed.serve(V4, &[bed.endpoint(1, V4)], Options { idle_timeout, ..Options::default() });
    let mut idle = bed.connect(V4);
    assert_echo(&mut idle, "at first");
    let begin = Instant::now();
    let guarded = || {
        let mut command = std::process::Command::new("ss");
        command.args(["--no-header", "--tcp", "--numeric", "--options", "state", "established"]);
        let output = bed.lab.node().run(|| command.output()).expect("ss, of iproute2");
        let lines = String::from_utf8(output.stdout).expect("text");
        lines.lines().filter(|line| line.contains("timer:(keepalive,")).count()
    };
    eventually("both sockets to be guarded", || guarded() == 2);
    assert_eq!(idle.read(&mut [0; 1]).expect("an end in order"), 0);
    assert!(begin.elapsed() >= Duration::from_secs(2), "not before its time");
    bed.wait_for_silence();
}

#[test]
fn an_address_or_port_that_is_taken_is_an_error_to_try_again() {
    let elsewhere = "192.168.77.1".parse().expect("an address");
    let mut bed = Bed::with(1, Settings { listen_v4: elsewhere, ..settings() });
    let _server = server(&bed.lab, 1, echo);
    let wanted = route(&[bed.endpoint(1, V4)], Options::default());
    let error = bed.forwarder().set(&id(V4), &wanted).expect_err("the node has no such address");
    assert!(error.retry(), "it may have later");
    let text = error.to_string();
    assert!(text.starts_with("cannot listen on 192.168.77.1:0 for http of Service shop/web: "), "{text}");
    bed.lab.node().namespace().rtnl().expect("a socket").add_address("lo", elsewhere.into(), 32).expect("an address");
    // One port only, and somebody has it.
    bed.lab.node().namespace().sysctls(&[("ipv4/ip_local_port_range", "41000 41000")]).expect("a sysctl");
    let rival = bed.lab.node().run(|| std::net::TcpListener::bind((elsewhere, 41000))).expect("the port");
    let error = bed.forwarder().set(&id(V4), &wanted).expect_err("no port is left");
    let ForwardError::Listen { source, .. } = &error else { panic!("{error}") };
    assert_eq!((source.raw_os_error(), error.retry()), (Some(nix::libc::EADDRINUSE), true));
    drop(rival);
    let listener = bed.forwarder().set(&id(V4), &wanted).expect("now it is free");
    assert_eq!(listener, (elsewhere, 41000).into());
    bed.lab.node().namespace().sysctls(&[("ipv4/ip_local_port_range", "32768 60999")]).expect("a sysctl");
    redirect(bed.lab.node(), listener);
    assert_echo(&mut bed.connect(V4), "all is well");
}

//! Too many connections, too few descriptors.
//!
//! Where descriptors must run out, the forwarder runs in a process of its own, or they would run out for all tests: this binary
//! again, in the node's namespace, with [`helper`] as its only test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pointsman::forward::{Forwarder, Options, Refusal, Settings};
use pointsman::lab::Lab;
use pointsman::model::Family;

use super::bed::{self, Bed, PATIENCE, assert_echo, echo, eventually, server, settings, vip};

const V4: Family = Family::V4;
/// Tells the helper the endpoint.
const HELPER: &str = "POINTSMAN_TEST_FORWARD_TO";
/// Descriptors of the helper.
const FEW: u64 = 100;

/// As many descriptors as this process may have: it is client, node and pods in one.
fn many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(hard >= 15_000, "10,000 clients need more descriptors than `ulimit -Hn` allows: {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("its own limit");
}

/// Says whether a connection that was made is served, rather than reset.
fn is_served(stream: &mut TcpStream) -> bool {
    let mut echo = [0; 4];
    stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut echo)).is_ok()
}

#[test]
fn ten_thousand_at_once_meet_a_limit_of_a_thousand() {
    many_descriptors();
    let mut bed = Bed::new(1);
    let _server = server(&bed.lab, 1, echo);
    // Everybody is slow now, pods too: what takes long is not meant to fail here.
    let connect_timeouts = vec![PATIENCE];
    let options = Options { max_connections: Some(1000), connect_timeouts, ..Options::default() };
    bed.serve(V4, &[bed.endpoint(1, V4)], options);
    let mut held: Vec<TcpStream> = Vec::new();
    let mut refused = 0;
    bed.lab.client(0).run(|| {
        let results: Vec<_> = std::thread::scope(|scope| {
            let dial = || (0..1250).map(|_| TcpStream::connect_timeout(&vip(V4), PATIENCE * 2)).collect::<Vec<_>>();
            let workers: Vec<_> = (0..8).map(|_| scope.spawn(dial)).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
        });
        for stream in results {
            match stream {
                Ok(stream) => held.push(stream),
                // Reset before the client's own handshake was over.
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                    refused += 1;
                }
            }
        }
    });
    held.iter().for_each(|stream| stream.set_read_timeout(Some(PATIENCE)).expect("a timeout"));
    let mut served = Vec::new();
    for mut stream in held {
        if is_served(&mut stream) { served.push(stream) } else { refused += 1 }
    }
    assert_eq!((served.len(), refused), (1000, 9000), "{:?}", bed.status(V4));
    let status = bed.status(V4);
    assert_eq!((status.active, status.accepted, status.refused[&Refusal::RouteLimit]), (1000, 10_000, 9000));
    // One leaves, one may come.
    drop(served.pop());
    eventually("a place", || bed.status(V4).active == 999);
    assert_echo(&mut bed.connect(V4), "the place is free");
}

#[test]
fn the_process_has_a_limit_for_all_routes_together() {
    let mut bed = Bed::with(1, Settings { max_connections: Some(3), ..settings() });
    let _server = server(&bed.lab, 1, echo);
    for family in Family::ALL {
        bed.serve(family, &[bed.endpoint(1, family)], Options::default());
    }
    let mut held: Vec<_> = [V4, Family::V6, V4].map(|family| bed.connect(family)).into();
    held.iter_mut().for_each(|stream| assert_echo(stream, "below the limit"));
    bed.assert_refused(Family::V6, "one too many");
    assert_eq!(bed.status(Family::V6).refused[&Refusal::ProcessLimit], 1);
    drop(held.pop());
    eventually("a place", || bed.forwarder.as_ref().expect("there").connections() == 2);
    assert_echo(&mut bed.connect(Family::V6), "the place is free");
}

/// A forwarder in another process, told the endpoint by the environment. Says where it listens, and ends when its input does.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn helper() {
    let Ok(to) = std::env::var(HELPER) else { return };
    setrlimit(Resource::RLIMIT_NOFILE, FEW, FEW).expect("fewer descriptors");
    let mut forwarder =
        Forwarder::start(Settings { max_connections: Some(10_000), ..settings() }).expect("a forwarder");
    let route = bed::route(&[to.parse().expect("an address")], Options::default());
    println!("\nlistening {}", forwarder.set(&bed::id(V4), &route).expect("a listener"));
    for line in std::io::stdin().lines() {
        let _ = line.expect("a line");
        let status = forwarder.status().remove(0).1;
        let refused = status.refused.get(&Refusal::Descriptors).copied().unwrap_or(0);
        println!("\nstatus {} {refused}", status.active);
    }
}

/// CPU time of a process so far, in clock ticks (`/proc/PID/stat`, fields 14 and 15).
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it lives");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11].parse::<u64>().expect("ticks") + fields[12].parse::<u64>().expect("ticks")
}

struct Helper {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Helper {
    /// A forwarder on the lab's node that leads to its first pod.
    fn start(lab: &Lab) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", "limits::helper", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(HELPER, bed::endpoint(lab, 1, V4).to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = lab.node().spawn(command).expect("a helper");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut helper = Self { child, output };
        let listener: SocketAddr = helper.answer("listening").parse().expect("an address");
        bed::redirect(lab.node(), listener);
        helper
    }

    fn answer(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.starts_with(word) {
            line.clear();
            assert!(self.output.read_line(&mut line).expect("text") > 0, "the helper has ended");
        }
        line[word.len()..].trim().to_owned()
    }

    fn status(&mut self) -> (usize, u64) {
        writeln!(self.child.stdin.as_mut().expect("a pipe")).expect("asked");
        let answer = self.answer("status");
        let (active, refused) = answer.split_once(' ').expect("two numbers");
        (active.parse().expect("a number"), refused.parse().expect("a number"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn a_reader_that_is_slow_for_long_keeps_nobody_waiting_and_nothing_busy() {
    /// What it reads at a time, and how often: 200 kB/s of what could be gigabytes.
    const SIP: usize = 4096;
    const PAUSE: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(12);
    let lab = bed::lab(1);
    // Who says `more` is sent to for ever, others hear what they say.
    let _server = server(&lab, 1, |mut stream| {
        let mut word = [0; 4];
        if stream.read_exact(&mut word).is_err() {
            return;
        }
        let _ = stream.set_write_timeout(None);
        let bytes: Vec<u8> = (0..=255).cycle().take(1 << 16).collect();
        match &word {
            b"more" => while stream.write_all(&bytes).is_ok() {},
            _ => {
                if stream.write_all(&word).is_ok() {
                    echo(stream);
                }
            }
        }
    });
    let helper = Helper::start(&lab);
    let mut slow: Vec<_> = (0..4).map(|_| bed::connect(lab.client(0), vip(V4))).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(b"more").expect("asked"));
    // Until all buffers on the way are full.
    std::thread::sleep(Duration::from_secs(1));
    let mut others: Vec<_> = (0..4).map(|_| bed::connect(lab.client(0), vip(V4))).collect();
    let (begin, before) = (Instant::now(), ticks(helper.child.id()));
    let (mut read, mut longest) = (0_usize, Duration::ZERO);
    while begin.elapsed() < LONG {
        for stream in &mut slow {
            let mut sip = [0; SIP];
            stream.read_exact(&mut sip).expect("bytes");
            assert!(sip.iter().enumerate().all(|(at, byte)| *byte == ((read + at) % 256) as u8), "in order");
        }
        read += SIP;
        for stream in &mut others {
            let asked = Instant::now();
            assert_echo(stream, "beside slow ones");
            longest = longest.max(asked.elapsed());
        }
        std::thread::sleep(PAUSE);
    }
    let (used, elapsed) = (ticks(helper.child.id()) - before, begin.elapsed());
    assert!(longest < Duration::from_secs(2), "an echo took {longest:?}");
    assert!(u128::from(used) * 40 < elapsed.as_millis(), "{used} ticks of 10 ms in {elapsed:?}: it spins");
}

#[test]
fn running_out_of_descriptors_is_survived_without_spinning() {
    let lab = bed::lab(1);
    let _server = server(&lab, 1, echo);
    let mut helper = Helper::start(&lab);

    // Three times as many as there are descriptors for. Each is served, refused, or waits to be accepted.
    let mut streams: Vec<_> = (0..150).map(|_| bed::connect(lab.client(0), vip(V4))).collect();
    eventually("refusals for want of descriptors", || helper.status().1 > 0);
    let (active, _) = helper.status();
    assert!((20..=50).contains(&active), "two descriptors each, of {FEW}: {active}");

    // Out of descriptors, with clients waiting: it sleeps.
    let (begin, before) = (Instant::now(), ticks(helper.child.id()));
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks(helper.child.id()) - before;
    assert!(used < 60, "{used} of {} ticks spent on nothing", begin.elapsed().as_millis() / 10);

    // When they are free again, all is well.
    let served = streams.iter_mut().position(|stream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        is_served(stream)
    });
    assert!(served.is_some(), "those who came first are served");
    streams.clear();
    eventually("the end of all", || helper.status().0 == 0);
    eventually("service", || is_served(&mut bed::connect(lab.client(0), vip(V4))));
}

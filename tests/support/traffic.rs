//! Connections: counted, kept open, or made without pause.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman::lab::{Answer, ConnectError, Host, ask, connect};

use super::beds::{PATIENCE, SHORT};

/// How to ask.
pub type Question = fn(SocketAddr, Duration) -> Result<Answer, ConnectError>;

/// Both ways, with their names.
pub const BOTH: [(&str, Question); 2] = [("TCP", connect), ("UDP", ask)];

/// How often each pod answered.
pub type Tally = BTreeMap<String, usize>;

/// Asks `count` times over TCP; every question must be answered.
pub fn tally(from: &Host, to: SocketAddr, count: usize) -> Tally {
    tally_by(connect, from, to, count)
}

/// Asks `count` times; every question must be answered.
pub fn tally_by(question: Question, from: &Host, to: SocketAddr, count: usize) -> Tally {
    from.run(|| {
        let mut tally = Tally::new();
        for number in 0..count {
            match question(to, PATIENCE) {
                Ok(answer) => *tally.entry(answer.pod).or_default() += 1,
                Err(error) => panic!("question {number} from {} to {to} should be answered: {error}", from.role()),
            }
        }
        tally
    })
}

/// Who answered, in the order of their names.
pub fn names(tally: &Tally) -> Vec<&str> {
    tally.keys().map(String::as_str).collect()
}

/// Fails unless each of `pods` pods answered equally often, give or take one.
pub fn assert_even(tally: &Tally, pods: usize, what: &str) {
    assert_eq!(tally.len(), pods, "{what}: every endpoint should answer: {tally:?}");
    let (least, most) = (tally.values().min().expect("some"), tally.values().max().expect("some"));
    assert!(most - least <= 1, "{what}: round robin should be exact: {tally:?}");
}

/// Fails unless the question is refused, and at once.
pub fn assert_refused(question: Question, from: &Host, to: SocketAddr, what: &str) {
    let (result, took) = from.run(|| {
        let begin = Instant::now();
        (question(to, PATIENCE), begin.elapsed())
    });
    let refused = match &result {
        Err(ConnectError::Refused) => true,
        // A datagram that is rejected on its way out never leaves: the kernel tells the sender at once, in its own words.
        Err(ConnectError::Other(error)) => from.role() == "node" && error.kind() == ErrorKind::PermissionDenied,
        _ => false,
    };
    assert!(refused, "{what}: {to} should refuse {}: {result:?}", from.role());
    // The first SYN is repeated after a second: whoever is refused before has been answered the first time.
    assert!(
        took < Duration::from_millis(950),
        "{what}: {to} should refuse {} at once, not after {took:?}",
        from.role()
    );
}

/// Fails unless nothing at all answers: no Service, no reject.
pub fn assert_silent(from: &Host, to: SocketAddr, what: &str) {
    let result = from.run(|| connect(to, SHORT));
    let silent = matches!(result, Err(ConnectError::TimedOut | ConnectError::Unreachable));
    assert!(silent, "{what}: nobody should answer at {to}: {result:?}");
}

/// A connection that stays open.
pub struct Held {
    stream: TcpStream,
    /// Who is at the other end.
    pub pod: String,
}

impl Held {
    /// Connects; somebody must answer.
    pub fn open(from: &Host, to: SocketAddr) -> Self {
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE));
        let mut stream = stream.unwrap_or_else(|error| panic!("{to} should accept a connection: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut pod = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            pod.extend(byte.iter().filter(|byte| **byte != 0));
            stream.read_exact(&mut byte).expect("the server's greeting");
        }
        Self { stream, pod: String::from_utf8(pod).expect("a name") }
    }

    /// Where it comes from.
    pub fn local(&self) -> SocketAddr {
        self.stream.local_addr().expect("a connected socket")
    }

    /// Whether the other end still echoes.
    pub fn echoes(&mut self) -> bool {
        let mut echo = [0; 4];
        self.stream.write_all(b"ping").and_then(|()| self.stream.read_exact(&mut echo)).is_ok()
    }

    /// Waits until the other end ends it, saying nothing. Returns how long that took.
    pub fn wait_for_end(mut self) -> Duration {
        let begin = Instant::now();
        let heard = self.stream.read(&mut [0]);
        assert!(!heard.is_ok_and(|heard| heard > 0), "nobody says anything");
        begin.elapsed()
    }

    /// Fails unless the other end resets it, saying nothing.
    pub fn assert_reset(mut self, what: &str) {
        let error = self.stream.read(&mut [0]).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}: {error}");
    }

    /// Fails unless the other end still echoes.
    pub fn assert_alive(&mut self, what: &str) {
        let mut echo = [0; 4];
        let result = self.stream.write_all(b"ping").and_then(|()| self.stream.read_exact(&mut echo));
        assert!(result.is_ok(), "{what}: the connection to {} should live on: {result:?}", self.pod);
        assert_eq!(&echo, b"ping", "{what}: the echo");
    }
}

/// A client that connects without pause until it is stopped.
pub struct Restless {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: Option<JoinHandle<(Vec<String>, Answers)>>,
}

/// Who answered at each address.
pub type Answers = BTreeMap<SocketAddr, Tally>;

impl Restless {
    /// Starts connecting over TCP to all of these, one after the other.
    pub fn start(from: &Host, to: &[SocketAddr]) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, to) = (stop.clone(), made.clone(), to.to_vec());
        let work = move || {
            let (mut failures, mut answers) = (Vec::new(), Answers::new());
            for target in to.iter().cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                match connect(*target, PATIENCE) {
                    Ok(answer) => {
                        *answers.entry(*target).or_default().entry(answer.pod).or_default() += 1;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => failures.push(format!("{target}: {error}")),
                }
            }
            (failures, answers)
        };
        let thread = from.namespace().thread(work).expect("a thread");
        Self { stop, made, thread: Some(thread) }
    }

    /// Waits until this many more connections were made, so that a change has met some of them.
    pub fn wait_for(&self, more: usize) {
        let (begin, from) = (Instant::now(), self.made.load(Ordering::Relaxed));
        while self.made.load(Ordering::Relaxed) < from + more {
            assert!(begin.elapsed() < PATIENCE * 2, "{more} connections should take no time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops and tells who answered; fails if a single connection failed.
    pub fn assert_uninterrupted(mut self, what: &str) -> Answers {
        self.wait_for(5);
        self.stop.store(true, Ordering::Relaxed);
        let (failures, answers) = self.thread.take().expect("running").join().expect("no panic");
        let made = self.made.load(Ordering::Relaxed);
        assert!(failures.is_empty(), "{what}: none of {made} connections should fail: {failures:?}");
        answers
    }
}

impl Drop for Restless {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

//! The shop's customers: threads in the client's namespace that open one connection after another and tell what became of each.
//!
//! One thread sweeps over all frontends in turn. Others stay with the Service that is scaled, so that a change is seen within a
//! fraction of a millisecond. Everybody pauses between connections: the daemon under test shares the machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::lab::{Answer, ConnectError, Host, ask, connect};

/// How long to wait for an answer. A lost packet is sent again after a second, so this says "lost twice".
const TIMEOUT: Duration = Duration::from_secs(3);

/// A frontend to connect to: which one (service, then frontend within it), and how.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Index of the Service.
    pub service: usize,
    /// Index of the frontend within the Service.
    pub frontend: usize,
    /// Datagrams rather than connections.
    pub udp: bool,
    /// Where.
    pub address: SocketAddr,
}

/// One connection and what became of it.
#[derive(Debug)]
pub struct Observation {
    /// Where it went.
    pub target: Target,
    /// When it was started.
    pub started: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// The outcome.
    pub outcome: Result<Answer, ConnectError>,
}

/// Running customers; they stop when this is dropped.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sender: Sender<Observation>,
    /// What they see.
    pub seen: Receiver<Observation>,
}

impl Target {
    /// Connects once, from the calling thread's namespace.
    pub fn try_once(self, timeout: Duration) -> Observation {
        let started = Instant::now();
        let outcome = if self.udp { ask(self.address, timeout) } else { connect(self.address, timeout) };
        Observation { target: self, started, ended: Instant::now(), outcome }
    }
}

impl Default for Traffic {
    /// No customers yet.
    fn default() -> Self {
        let (sender, seen) = channel();
        Self { stop: Arc::default(), threads: Vec::new(), sender, seen }
    }
}

impl Traffic {
    /// A customer that connects to these targets in turn, with a pause after each connection.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start(&mut self, client: &Host, targets: Vec<Target>, pause: Duration) -> Result<()> {
        let (stop, sender) = (self.stop.clone(), self.sender.clone());
        let work = move || {
            for target in targets.iter().cycle() {
                if stop.load(Ordering::Relaxed) || sender.send(target.try_once(TIMEOUT)).is_err() {
                    return;
                }
                thread::sleep(pause);
            }
        };
        self.threads.push(client.namespace().thread(work)?);
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

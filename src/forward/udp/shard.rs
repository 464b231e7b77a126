//! One listener socket with the flows whose clients the kernel gives to it.
//!
//! A shard has no thread: its thread (`crew`) says which of its sockets are ready, and a *turn* carries what is there, up to a limit. A
//! turn first takes all replies and sends them with one system call, then takes what clients have sent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::Socket;

use super::crew::{Ready, Watch, sweep_period};
use super::flows::{Caller, Flows, Idle};
use super::route::{Permit, Route, count};
use super::wire::{self, Arena, BATCH, Joining, Piece, Request, SLOTS, Sent};
use crate::forward::register::Entry;

/// Flows ended in one turn at most.
const EXPIRED: usize = 64;
/// Endpoints tried for one datagram.
const TRIES: usize = 3;
/// Up to this length the first datagram of a flow is kept until it is answered, to be sent elsewhere if the endpoint refuses it.
const KEPT: usize = 1_500;

/// See the module.
#[derive(Debug)]
pub(super) struct Shard {
    route: Arc<Route>,
    listener: Socket,
    watch: Watch,
    flows: Flows<Upstream>,
    /// Most flows at a time.
    limit: usize,
    /// The route's generation that this shard knows.
    generation: u64,
    joining: Joining,
    take: Take,
    /// Turns so far.
    turns: u64,
    // Kept for their memory only.
    requests: Vec<Request>,
    replies: Vec<Request>,
    pieces: Vec<Piece>,
}

/// A flow's way to its endpoint.
#[derive(Debug)]
struct Upstream {
    socket: Socket,
    endpoint: SocketAddr,
    /// Does not answer: the next datagram goes to another.
    refused: bool,
    generation: u64,
    joining: Joining,
    take: Take,
    /// What is asked elsewhere if this endpoint refuses.
    kept: Option<Box<[u8]>>,
    tries: usize,
    entry: Entry,
    _permit: Permit,
}

/// How many datagrams to ask the kernel for. One while they come one by one, which saves it a look for a second one; more, the more
/// there are.
#[derive(Clone, Copy, Debug)]
struct Take {
    count: usize,
    /// The turn after the last one that took anything.
    next: u64,
}

// === impl Shard ===

impl Shard {
    /// On a socket that listens.
    ///
    /// # Errors
    /// When the system has no more room for watched descriptors.
    pub fn new(route: Arc<Route>, listener: Socket, watch: Watch) -> io::Result<Self> {
        watch.listener(&listener)?;
        let generation = route.generation();
        let (idle, limit) = route.limits();
        Ok(Self {
            route,
            listener,
            watch,
            flows: Flows::new(idle),
            limit,
            generation,
            joining: Joining::default(),
            take: Take::default(),
            turns: 0,
            requests: Vec::with_capacity(BATCH),
            replies: Vec::with_capacity(SLOTS),
            pieces: Vec::with_capacity(BATCH),
        })
    }

    /// Carries what is there, up to a limit.
    pub fn turn(&mut self, ready: impl Iterator<Item = Ready>, arena: &mut Arena, now: Instant) {
        self.turns += 1;
        self.notice_changes();
        let mut listener = false;
        for what in ready {
            match what {
                Ready::Listener => listener = true,
                Ready::Flow(key) => self.receive(key, arena, now),
            }
        }
        self.reply(arena);
        if listener {
            self.listen(arena, now);
        }
    }

    /// Whether there is anything that will expire.
    pub fn has_flows(&self) -> bool {
        !self.flows.is_empty()
    }

    /// Whether its route is closed.
    pub fn is_closed(&self) -> bool {
        self.route.is_closed()
    }

    fn notice_changes(&mut self) {
        let generation = self.route.generation();
        if generation != self.generation {
            self.generation = generation;
            let (idle, limit) = self.route.limits();
            self.flows.set_idle(idle);
            self.limit = limit;
        }
    }

    // === from clients ===

    /// Takes what clients have sent, up to a limit.
    fn listen(&mut self, arena: &mut Arena, now: Instant) {
        let mut requests = std::mem::take(&mut self.requests);
        if wire::receive_requests(&self.listener, arena, self.take.count, &mut requests).is_ok() {
            // Counted first: who has a reply finds it in the counters.
            let counters = &self.route.counters;
            count(&counters.requests, requests.iter().map(|request| request.piece.datagrams()).sum());
            count(&counters.request_bytes, requests.iter().map(|request| request.piece.len as u64).sum());
            for group in requests.chunk_by(|one, other| one.caller == other.caller) {
                self.carry(group, arena, now);
            }
        }
        self.take.took(requests.len(), self.turns);
        requests.clear();
        self.requests = requests;
    }

    /// Sends what one client sent on to its endpoint.
    fn carry(&mut self, requests: &[Request], arena: &Arena, now: Instant) {
        let mut pieces = std::mem::take(&mut self.pieces);
        pieces.clear();
        pieces.extend(requests.iter().map(|request| request.piece));
        let mut rest = &pieces[..];
        let mut refused = Vec::new();
        let mut sent = Sent::default();
        while !rest.is_empty() {
            let Some(key) = self.flow_of(requests[0].caller, arena.piece(&rest[0]), now, &refused) else {
                // Counted where it failed; without a flow, nothing goes anywhere.
                break;
            };
            let upstream = &mut self.flows.get_mut(key).expect("a flow").with;
            let (done, errno) = wire::send_requests(&upstream.socket, arena, rest, &mut upstream.joining, &mut sent);
            rest = &rest[done..];
            self.flows.asked(key, now);
            if errno.is_some() {
                // About an earlier datagram, or about this one: either way this one was not sent.
                refused.push(self.refuse(key, now));
                if refused.len() >= TRIES {
                    sent.dropped += rest.iter().map(Piece::datagrams).sum::<u64>();
                    break;
                }
            }
        }
        count(&self.route.counters.not_sent, sent.dropped);
        self.pieces = pieces;
    }

    /// The client's flow, with an endpoint that may serve it.
    fn flow_of(&mut self, caller: Caller, first: &[u8], now: Instant, refused: &[SocketAddr]) -> Option<usize> {
        let Some(key) = self.flows.find(&caller) else { return self.open(caller, first, now, refused) };
        if self.end_if_cut(key) {
            return self.open(caller, first, now, refused);
        }
        let generation = self.generation;
        let upstream = &mut self.flows.get_mut(key).expect("a flow").with;
        if !upstream.refused && (upstream.generation == generation || self.route.keeps(upstream.endpoint)) {
            upstream.generation = generation;
            return Some(key);
        }
        let mut excluded = refused.to_vec();
        if upstream.refused {
            excluded.push(upstream.endpoint);
        }
        self.relocate(key, &excluded, Some(first), now).then_some(key)
    }

    /// A flow for a client that has none.
    fn open(&mut self, caller: Caller, first: &[u8], now: Instant, refused: &[SocketAddr]) -> Option<usize> {
        while self.flows.len() >= self.limit {
            self.evict();
        }
        let permit = self.route.budget.take().or_else(|| {
            self.evict();
            self.route.budget.take()
        });
        let Some(permit) = permit else {
            count(&self.route.counters.no_room, 1);
            return None;
        };
        let (socket, endpoint) = self.dial(&caller, None, refused, now)?;
        let socket = socket.expect("there is none to keep");
        let key = self.flows.next_key();
        if !self.watch_upstream(&socket, key) {
            self.route.left(endpoint);
            return None;
        }
        let upstream = Upstream {
            socket,
            endpoint,
            refused: false,
            generation: self.generation,
            joining: Joining::default(),
            take: Take::default(),
            kept: kept(first),
            tries: 1,
            entry: self.route.enter(&caller, endpoint),
            _permit: permit,
        };
        let key = self.flows.insert(caller, upstream, now);
        count(&self.route.counters.opened, 1);
        count(&self.route.counters.flows, 1);
        Some(key)
    }

    /// Gives a flow another endpoint; `false` and no flow, if there is none.
    fn relocate(&mut self, key: usize, excluded: &[SocketAddr], first: Option<&[u8]>, now: Instant) -> bool {
        let flow = self.flows.get_mut(key).expect("a flow");
        let (caller, before) = (flow.caller, flow.with.endpoint);
        let Some((socket, endpoint)) = self.dial(&caller, Some(before), excluded, now) else {
            self.close(key);
            return false;
        };
        if let Some(socket) = &socket
            && !self.watch_upstream(socket, key)
        {
            self.route.left(endpoint);
            self.close(key);
            return false;
        }
        self.route.left(before);
        let generation = self.generation;
        let upstream = &mut self.flows.get_mut(key).expect("a flow").with;
        if let Some(socket) = socket {
            // The one before is closed by this, and is watched no more.
            upstream.socket = socket;
        }
        upstream.endpoint = endpoint;
        upstream.entry.move_to(endpoint);
        upstream.refused = false;
        upstream.generation = generation;
        upstream.tries += 1;
        if let Some(first) = first {
            (upstream.kept, upstream.tries) = (kept(first), 1);
        }
        self.flows.restart(key, now);
        count(&self.route.counters.moved, u64::from(endpoint != before));
        true
    }

    /// An endpoint, which counts the flow from now on, and a socket to it. No socket if it is the one where the flow is anyway.
    fn dial(
        &mut self,
        caller: &Caller,
        current: Option<SocketAddr>,
        excluded: &[SocketAddr],
        now: Instant,
    ) -> Option<(Option<Socket>, SocketAddr)> {
        let mut excluded = excluded.to_vec();
        let mut evicted = false;
        for _ in 0..TRIES {
            let Some(endpoint) = self.route.place(caller, now, &excluded) else {
                count(&self.route.counters.no_endpoint, 1);
                return None;
            };
            if current == Some(endpoint) {
                return Some((None, endpoint));
            }
            match self.route.dial.dial(caller.client, endpoint) {
                Ok(socket) => return Some((Some(socket), endpoint)),
                Err(error) => {
                    self.route.left(endpoint);
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
                    if wire::is_about_the_endpoint(errno) {
                        self.route.failed(endpoint, now);
                        excluded.push(endpoint);
                    } else if !evicted {
                        // No descriptors, ports or memory: somebody else's flow may be worth less.
                        self.evict_other(caller);
                        evicted = true;
                    } else {
                        break;
                    }
                }
            }
        }
        count(&self.route.counters.no_room, 1);
        None
    }

    fn watch_upstream(&self, socket: &Socket, key: usize) -> bool {
        let watched = self.watch.upstream(socket, key);
        if watched.is_err() {
            count(&self.route.counters.no_room, 1);
        }
        watched.is_ok()
    }

    // === from endpoints ===

    /// Takes what an endpoint has sent to a flow, up to a limit, to be sent on with the others' replies.
    fn receive(&mut self, key: usize, arena: &mut Arena, now: Instant) {
        if self.replies.len() == SLOTS {
            self.reply(arena);
        }
        if self.end_if_cut(key) {
            return;
        }
        let Some(flow) = self.flows.get_mut(key) else { return };
        let (caller, upstream) = (flow.caller, &mut flow.with);
        let replies = &mut self.replies;
        let count = upstream.take.count.min(SLOTS - replies.len());
        let received = wire::receive_replies(&upstream.socket, arena, replies.len(), count, |piece| {
            replies.push(Request { caller, piece });
        });
        match received {
            Ok(received) => {
                upstream.take.took(received, self.turns);
                let endpoint = upstream.endpoint;
                upstream.kept = None;
                if let Some(latency) = self.flows.answered(key, now) {
                    self.route.answered(endpoint, latency, now);
                }
            }
            Err(errno) if wire::is_about_the_endpoint(errno) => {
                let refused = self.refuse(key, now);
                self.ask_elsewhere(key, refused, now);
            }
            // Nothing there after all.
            Err(_) => {}
        }
    }

    /// Sends the collected replies.
    fn reply(&mut self, arena: &mut Arena) {
        if self.replies.is_empty() {
            return;
        }
        let counters = &self.route.counters;
        count(&counters.replies, self.replies.len() as u64);
        count(&counters.reply_bytes, self.replies.iter().map(|reply| reply.piece.len as u64).sum());
        let mut sent = Sent::default();
        wire::send_replies(&self.listener, arena, &self.replies, &mut self.joining, &mut sent);
        count(&counters.not_sent, sent.dropped);
        self.replies.clear();
    }

    /// The endpoint of this flow does not serve.
    fn refuse(&mut self, key: usize, now: Instant) -> SocketAddr {
        let upstream = &mut self.flows.get_mut(key).expect("a flow").with;
        upstream.refused = true;
        self.route.failed(upstream.endpoint, now);
        upstream.endpoint
    }

    /// Asks another endpoint what one refused, if that was all that the client said so far.
    fn ask_elsewhere(&mut self, key: usize, refused: SocketAddr, now: Instant) {
        let upstream = &mut self.flows.get_mut(key).expect("a flow").with;
        if upstream.tries >= TRIES {
            return;
        }
        let Some(kept) = upstream.kept.take() else { return };
        if self.relocate(key, &[refused], None, now) {
            let upstream = &mut self.flows.get_mut(key).expect("a flow").with;
            // Asking the same one again would only be refused again; the client will.
            if upstream.endpoint != refused && upstream.socket.send(&kept).is_ok() {
                upstream.kept = Some(kept);
            }
        }
    }

    // === the end of flows ===

    /// Ends flows that were idle for too long, up to a limit. Whether there may be more.
    pub fn expire(&mut self, now: Instant) -> bool {
        self.notice_changes();
        for _ in 0..EXPIRED {
            let Some(key) = self.flows.expired(now) else { return false };
            self.close(key);
            count(&self.route.counters.expired, 1);
        }
        true
    }

    /// How often it should be asked to.
    pub fn sweep_period(&self) -> Duration {
        let Idle { flow, stream } = self.route.limits().0;
        sweep_period(flow.min(stream))
    }

    /// Whether a flow had to end, and has.
    fn end_if_cut(&mut self, key: usize) -> bool {
        let cut = self.flows.get_mut(key).is_some_and(|flow| flow.with.entry.is_cut());
        if cut {
            self.close(key);
        }
        cut
    }

    fn evict(&mut self) {
        if let Some(key) = self.flows.most_dispensable() {
            self.close(key);
            count(&self.route.counters.evicted, 1);
        }
    }

    /// Evicts, but not the one for whom room is made.
    fn evict_other(&mut self, caller: &Caller) {
        if self.flows.most_dispensable() != self.flows.find(caller) {
            self.evict();
        }
    }

    fn close(&mut self, key: usize) {
        if let Some(flow) = self.flows.remove(key) {
            self.route.left(flow.with.endpoint);
            self.route.counters.flows.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    fn close_all(&mut self) {
        while let Some(key) = self.flows.most_dispensable() {
            self.close(key);
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.close_all();
    }
}

// === impl Take ===

impl Take {
    /// So many came. All that were asked for, turn after turn: there are more, and next time more are asked for.
    fn took(&mut self, received: usize, turn: u64) {
        let at_once = self.next == turn;
        self.count = match received {
            full if full >= self.count && (at_once || self.count > 1) => self.count * 2,
            some => some,
        };
        (self.count, self.next) = (self.count.clamp(1, BATCH), turn + 1);
    }
}

impl Default for Take {
    fn default() -> Self {
        Self { count: 1, next: 0 }
    }
}

/// What to keep of a first datagram.
fn kept(first: &[u8]) -> Option<Box<[u8]>> {
    (first.len() <= KEPT).then(|| first.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_datagrams_are_asked_for_one_by_one_and_many_by_many() {
        let mut take = Take::default();
        for turn in [1, 3, 5] {
            take.took(1, turn);
            assert_eq!(take.count, 1, "a ping-pong: every other turn");
        }
        for (turn, expected) in (6..12).zip([2, 4, 8, 16, 32, 32]) {
            take.took(take.count, turn);
            assert_eq!(take.count, expected, "as many as there were, at once");
        }
        take.took(5, 20);
        assert_eq!(take.count, 5, "not all that were asked for");
        take.took(0, 21);
        assert_eq!(take.count, 1);
    }
}

//! The table of flows: who is there, for how long, and who goes first when there are too many. No I/O, no clock.
//!
//! A flow is in one of three *stages*, as in the kernel's connection tracking: nobody answered yet; somebody did; and a *stream*,
//! in which a client goes on for two seconds or longer after its first datagram. A stream may be idle for longer than the others.
//! When room is needed, the flow that was idle for longest goes, unanswered ones before answered ones before streams: so a flood
//! with made-up sources displaces itself and not those who are being served.
//!
//! Each operation takes constant time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hashlink::LinkedHashSet;
use slab::Slab;

/// From this age on a flow that goes on is a stream (as in the kernel's `nf_conntrack_proto_udp`).
const STREAM_AGE: Duration = Duration::from_secs(2);

/// Who talks to the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Caller {
    pub client: SocketAddr,
    /// To which of the host's addresses, if the listener has more than one: replies must come from there.
    pub local: Option<IpAddr>,
}

/// How long flows may be idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Idle {
    pub flow: Duration,
    pub stream: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unanswered,
    Answered,
    Stream,
}

/// What is known of a flow; `T` is what its owner keeps with it.
#[derive(Debug)]
pub(super) struct Flow<T> {
    pub caller: Caller,
    pub with: T,
    stage: Stage,
    began: Instant,
    /// When a datagram passed last, either way.
    last: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flows<T> {
    flows: Slab<Flow<T>>,
    by_caller: HashMap<Caller, usize>,
    /// Per stage, the longest idle first.
    order: [LinkedHashSet<usize>; 3],
    idle: Idle,
}

impl<T> Flows<T> {
    pub fn new(idle: Idle) -> Self {
        Self { flows: Slab::new(), by_caller: HashMap::new(), order: Default::default(), idle }
    }

    pub fn set_idle(&mut self, idle: Idle) {
        self.idle = idle;
    }

    pub fn len(&self) -> usize {
        self.flows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    pub fn find(&self, caller: &Caller) -> Option<usize> {
        self.by_caller.get(caller).copied()
    }

    pub fn get_mut(&mut self, key: usize) -> Option<&mut Flow<T>> {
        self.flows.get_mut(key)
    }

    /// The key that the next flow will have.
    pub fn next_key(&self) -> usize {
        self.flows.vacant_key()
    }

    /// A new flow, by the first datagram of its client. The caller must not have one.
    pub fn insert(&mut self, caller: Caller, with: T, now: Instant) -> usize {
        let key = self.flows.insert(Flow { caller, with, stage: Stage::Unanswered, began: now, last: now });
        let before = self.by_caller.insert(caller, key);
        debug_assert!(before.is_none(), "one flow per caller");
        self.order[Stage::Unanswered as usize].insert(key);
        key
    }

    pub fn remove(&mut self, key: usize) -> Option<Flow<T>> {
        let flow = self.flows.try_remove(key)?;
        self.by_caller.remove(&flow.caller);
        self.order[flow.stage as usize].remove(&key);
        Some(flow)
    }

    /// The client sent something.
    pub fn asked(&mut self, key: usize, now: Instant) {
        let Some(flow) = self.flows.get_mut(key) else { return };
        let goes_on = flow.stage == Stage::Answered && now.saturating_duration_since(flow.began) >= STREAM_AGE;
        let stage = if goes_on { Stage::Stream } else { flow.stage };
        self.pass(key, stage, now);
    }

    /// The endpoint sent something. If it is the first answer: how long that took.
    pub fn answered(&mut self, key: usize, now: Instant) -> Option<Duration> {
        let flow = self.flows.get_mut(key)?;
        let first = flow.stage == Stage::Unanswered;
        let (stage, took) =
            (if first { Stage::Answered } else { flow.stage }, now.saturating_duration_since(flow.began));
        self.pass(key, stage, now);
        first.then_some(took)
    }

    /// The flow begins anew, with another endpoint.
    pub fn restart(&mut self, key: usize, now: Instant) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.began = now;
            self.pass(key, Stage::Unanswered, now);
        }
    }

    /// Whom to do without: the longest idle of the least established.
    pub fn most_dispensable(&self) -> Option<usize> {
        self.order.iter().find_map(|order| order.front().copied())
    }

    /// A flow whose time is over.
    pub fn expired(&self, now: Instant) -> Option<usize> {
        [(0, self.idle.flow), (1, self.idle.flow), (2, self.idle.stream)].into_iter().find_map(|(stage, idle)| {
            let key: usize = *self.order[stage].front()?;
            (now.saturating_duration_since(self.flows[key].last) >= idle).then_some(key)
        })
    }

    /// A datagram passed: the flow is the last one to become idle in its stage.
    fn pass(&mut self, key: usize, stage: Stage, now: Instant) {
        let flow = &mut self.flows[key];
        flow.last = now;
        if flow.stage == stage {
            self.order[stage as usize].to_back(&key);
        } else {
            self.order[flow.stage as usize].remove(&key);
            flow.stage = stage;
            self.order[stage as usize].insert(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Idle = Idle { flow: Duration::from_secs(30), stream: Duration::from_secs(120) };

    fn caller(number: u16) -> Caller {
        Caller { client: SocketAddr::from(([192, 0, 2, 1], number)), local: None }
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn idle_as_in_the_kernel() {
        let start = Instant::now();
        let mut flows = Flows::new(IDLE);
        let key = flows.insert(caller(1), (), start);
        assert_eq!(flows.expired(after(start, 29)), None);
        assert_eq!(flows.expired(after(start, 30)), Some(key));
        flows.asked(key, after(start, 20));
        assert_eq!(flows.expired(after(start, 49)), None, "each datagram renews");
        assert_eq!(flows.answered(key, after(start, 21)), Some(Duration::from_secs(21)));
        assert_eq!(flows.answered(key, after(start, 22)), None, "only the first answer is one");
        assert_eq!(flows.expired(after(start, 52)), Some(key), "an answer alone is no stream");
        flows.asked(key, after(start, 23));
        assert_eq!(flows.expired(after(start, 23 + 119)), None, "a stream");
        assert_eq!(flows.expired(after(start, 23 + 120)), Some(key));
        flows.restart(key, after(start, 24));
        assert_eq!(flows.expired(after(start, 24 + 30)), Some(key), "begins anew");
        assert!(flows.remove(key).is_some());
        assert_eq!((flows.len(), flows.expired(after(start, 1000)), flows.find(&caller(1))), (0, None, None));
    }

    #[test]
    fn the_least_established_goes_first() {
        let start = Instant::now();
        let mut flows = Flows::new(IDLE);
        let keys: Vec<usize> = (0..6).map(|number| flows.insert(caller(number), (), start)).collect();
        for answered in [0, 1, 2] {
            flows.answered(keys[answered], start);
        }
        flows.asked(keys[0], after(start, 2));
        flows.asked(keys[3], after(start, 3));
        let mut order = Vec::new();
        while let Some(key) = flows.most_dispensable() {
            order.push(flows.remove(key).expect("is there").caller.client.port());
        }
        assert_eq!(order, [4, 5, 3, 1, 2, 0]);
    }

    proptest! {
        /// The fast orders agree with looking at everybody.
        #[test]
        fn orders_are_true(steps in proptest::collection::vec((0u16..12, 0u8..5, 0u64..8), 1..200)) {
            let mut now = Instant::now();
            let mut flows = Flows::new(IDLE);
            for (number, what, seconds) in steps {
                now = after(now, seconds);
                match (what, flows.find(&caller(number))) {
                    (_, None) => {
                        prop_assert_eq!(flows.next_key(), flows.insert(caller(number), (), now));
                    }
                    (0 | 1, Some(key)) => flows.asked(key, now),
                    (2, Some(key)) => {
                        flows.answered(key, now);
                    }
                    (3, Some(key)) => flows.restart(key, now),
                    (_, Some(key)) => {
                        flows.remove(key);
                    }
                }
                let idle = |flow: &Flow<()>| if flow.stage == Stage::Stream { IDLE.stream } else { IDLE.flow };
                let any = flows.flows.iter().any(|(_, flow)| now.saturating_duration_since(flow.last) >= idle(flow));
                prop_assert_eq!(flows.expired(now).is_some(), any);
                let least = flows.flows.iter().map(|(_, flow)| (flow.stage as usize, flow.last)).min();
                let first = flows.most_dispensable().map(|key| (flows.flows[key].stage as usize, flows.flows[key].last));
                prop_assert_eq!(first, least);
                prop_assert_eq!(flows.order.iter().map(LinkedHashSet::len).sum::<usize>(), flows.len());
                prop_assert_eq!(flows.by_caller.len(), flows.len());
            }
        }
    }
}

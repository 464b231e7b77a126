//! What happens to connections, made out of what the kernel says.
//!
//! The kernel says of an entry that it is new, that it is in this state, that it is gone; it says so per packet that changes something, it may lose
//! some, and of a TCP connection that is over it says for the next two minutes that it is still remembered. People want to hear of
//! each connection once that it is there, of each step of its life, and once that it has ended, with what it carried. [`Known`] makes the one out of the other.
//!
//! *Ended* is a TCP connection when both sides have closed or one has reset, everything else when the kernel forgets it. What was known of it stays
//! known until then, so that its end is not told twice.
//!
//! A *review* compares with a dump: what it does not find has ended unheard, what nobody knew is told as *present*. Begin with one, and have one after a
//! loss.
//!
//! Invariants: no I/O, no clock; only entries whose destination was translated; no more than [`Known::new`]'s number are remembered. Of one too many, the
//! end is told when the kernel tells, and nothing else. Table below; on the real kernel `tests/e2e/flows.rs`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use jiff::Timestamp;

use super::census::Sighting;
use super::flow::{Flow, Identity, Tuple};
use super::ledger::Event;
use crate::model::Protocol;
use crate::status::Traffic;

/// `TCP_CONNTRACK_SYN_SENT`, `_SYN_RECV` (linux/netfilter/nf_conntrack_tcp.h).
const TCP_HANDSHAKE: [u8; 2] = [1, 2];

/// An entry of the table with all that people want to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which, and in which state.
    pub sighting: Sighting,
    /// What it carried; `None` where the kernel does not account.
    pub traffic: Option<Traffic>,
    /// When it began and ended, where the kernel keeps time (`net.netfilter.nf_conntrack_timestamp`).
    pub began: Option<Timestamp>,
    /// When it ended; only when it has.
    pub ended: Option<Timestamp>,
}

/// What happened to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It was there when we came, or was found after a loss.
    Present,
    /// It began.
    New,
    /// It is in another state now.
    Update,
    /// It has ended.
    End,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Happening {
    /// What.
    pub what: What,
    /// When it was heard of, or when the kernel says.
    pub at: Timestamp,
    /// The connection. When it began is what the kernel says, or when its beginning was heard of.
    pub record: Record,
}

/// Connections that are there.
#[derive(Debug)]
pub struct Known {
    flows: HashMap<Identity, Seen>,
    most: usize,
    /// How many came that there was no room for.
    unknown: u64,
    review: u32,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    reply: Tuple,
    state: Option<u8>,
    began: Option<Timestamp>,
    stage: Stage,
    /// In which review it was found last.
    review: u32,
}

/// How far its story is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is there, or its end is still to be told.
    Open,
    /// It was over when a review met it, and nothing was told. If its beginning is heard after all, then it lived while the table was
    /// being read, and its life is told as it is heard.
    Over,
    /// Its end has been told.
    Told,
}

// === impl Known ===

impl Known {
    /// Nobody yet; so many at most, of some 250 bytes each.
    pub fn new(most: usize) -> Self {
        Self { flows: HashMap::new(), most, unknown: 0, review: 0 }
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// How many came, ever, that there was no room for.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// The kernel says something.
    pub fn hear(&mut self, event: Event, record: &Record, at: Timestamp) -> Option<Happening> {
        let flow = &record.sighting.flow;
        if !flow.is_translated() {
            return None;
        }
        if event == Event::End {
            return match self.flows.remove(&flow.identity()) {
                Some(seen) if seen.stage != Stage::Open => None,
                Some(seen) => Some(seen.end(record, at)),
                // We have never met: what the kernel says in the end is all there is.
                None => Some(Happening { what: What::End, at: record.ended.unwrap_or(at), record: *record }),
            };
        }
        let began = record.began.or((event == Event::New).then_some(at));
        self.meet(if event == Event::New { What::New } else { What::Present }, record, began, at)
    }

    /// A review begins.
    pub fn begin_review(&mut self) {
        self.review = self.review.wrapping_add(1);
    }

    /// The review found this one.
    pub fn found(&mut self, record: &Record, at: Timestamp) -> Option<Happening> {
        record.sighting.flow.is_translated().then(|| self.meet(What::Present, record, record.began, at))?
    }

    /// The review is complete: those that it did not find have ended.
    pub fn end_review(&mut self, at: Timestamp) -> Vec<Happening> {
        let review = self.review;
        let mut ended = Vec::new();
        self.flows.retain(|key, seen| {
            if seen.review == review {
                return true;
            }
            if seen.stage == Stage::Open {
                let flow = Flow {
                    protocol: key.protocol,
                    original: key.original,
                    reply: seen.reply,
                    zone: key.zone,
                    id: key.id,
                    state: seen.state,
                };
                let sighting = Sighting { flow, status: 0, left: 0 };
                let record = Record { sighting, traffic: None, began: seen.began, ended: None };
                ended.push(Happening { what: What::End, at, record });
            }
            false
        });
        ended
    }

    fn meet(&mut self, what: What, record: &Record, began: Option<Timestamp>, at: Timestamp) -> Option<Happening> {
        let flow = &record.sighting.flow;
        let room = self.flows.len() < self.most;
        let review = self.review;
        match self.flows.entry(flow.identity()) {
            Entry::Vacant(_) if !room => {
                self.unknown += 1;
                None
            }
            Entry::Vacant(place) => {
                // What is over already is only waiting to be forgotten: nobody needs to hear of it.
                let stage = if flow.is_over() { Stage::Over } else { Stage::Open };
                place.insert(Seen { reply: flow.reply, state: flow.state, began, stage, review });
                let record = Record { began, ..*record };
                (stage == Stage::Open).then_some(Happening { what, at, record })
            }
            Entry::Occupied(mut place) => {
                let seen = place.get_mut();
                (seen.review, seen.reply) = (review, flow.reply);
                if what == What::New && seen.stage == Stage::Over {
                    *seen = Seen { state: flow.state, began, stage: Stage::Open, ..*seen };
                    return Some(Happening { what, at, record: Record { began, ..*record } });
                }
                // A review may have found it before its beginning was heard.
                seen.began = seen.began.or(began);
                // An event need not say everything.
                let state = flow.state.or(seen.state);
                if state == seen.state || seen.stage != Stage::Open || is_late(what, flow, seen) {
                    return None;
                }
                seen.state = state;
                if flow.is_over() {
                    seen.stage = Stage::Told;
                    return Some(seen.end(record, at));
                }
                Some(Happening { what: What::Update, at, record: Record { began: seen.began, ..*record } })
            }
        }
    }
}

/// Whether this was said before a review found the connection further on: nobody begins, or shakes hands, twice.
fn is_late(what: What, flow: &Flow, seen: &Seen) -> bool {
    let shakes_hands = |state: Option<u8>| state.is_some_and(|state| TCP_HANDSHAKE.contains(&state));
    what == What::New || flow.protocol == Protocol::Tcp && shakes_hands(flow.state) && !shakes_hands(seen.state)
}

// === impl Seen ===

impl Seen {
    fn end(&self, record: &Record, at: Timestamp) -> Happening {
        let mut record = Record { began: record.began.or(self.began), ..*record };
        let state = &mut record.sighting.flow.state;
        *state = state.or(self.state);
        Happening { what: What::End, at: record.ended.unwrap_or(at), record }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u8 = 3;
    const FIN_WAIT: u8 = 4;
    const TIME_WAIT: u8 = 7;

    fn record(port: u16, state: u8) -> Record {
        let at = |text: &str| text.parse().expect("an address");
        let (client, to, by) = (([10, 9, 0, 1], port).into(), at("10.96.0.1:80"), at("10.1.0.1:8080"));
        let flow = Flow {
            protocol: Protocol::Tcp,
            original: Tuple { source: client, destination: to, zone: None },
            reply: Tuple { source: by, destination: client, zone: None },
            zone: None,
            id: Some(u32::from(port)),
            state: Some(state),
        };
        Record { sighting: Sighting { flow, status: 0, left: 9 }, traffic: None, began: None, ended: None }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_life_is_told_once() {
        let mut known = Known::new(10);
        let mut told = |event, state, at| {
            let happened = known.hear(event, &record(1, state), second(at))?;
            Some((happened.what, happened.record.began, happened.at))
        };
        let began = Some(second(1));
        assert_eq!(told(Event::New, 1, 1), Some((What::New, began, second(1))));
        assert_eq!(told(Event::Present, 1, 2), None, "nothing has changed");
        assert_eq!(told(Event::Present, ESTABLISHED, 2), Some((What::Update, began, second(2))));
        assert_eq!(told(Event::Present, FIN_WAIT, 3), Some((What::Update, began, second(3))));
        assert_eq!(told(Event::Present, TIME_WAIT, 4), Some((What::End, began, second(4))));
        assert_eq!(told(Event::Present, TIME_WAIT, 5), None);
        assert_eq!(told(Event::End, TIME_WAIT, 124), None, "it was told");
        assert_eq!(told(Event::End, TIME_WAIT, 125), Some((What::End, None, second(125))), "nobody has met it");
        assert!(known.is_empty());
    }

    #[test]
    fn what_was_not_heard_is_found_out() {
        let mut known = Known::new(3);
        known.begin_review();
        let first = known.found(&record(1, ESTABLISHED), second(1)).expect("news");
        assert_eq!((first.what, first.record.began), (What::Present, None));
        assert_eq!(known.found(&record(2, TIME_WAIT), second(1)), None, "over and done with");
        assert!(known.end_review(second(1)).is_empty());
        known.hear(Event::New, &record(3, 1), second(2)).expect("news");
        assert!(known.hear(Event::New, &record(4, 1), second(2)).is_none() && known.unknown() == 1, "no room");
        known.begin_review();
        assert_eq!(known.found(&record(3, FIN_WAIT), second(3)).map(|happened| happened.what), Some(What::Update));
        let ended = known.end_review(second(3));
        assert_eq!(ended.len(), 1, "the one that was over is not told again");
        assert_eq!((ended[0].what, ended[0].record.sighting.flow.state), (What::End, Some(ESTABLISHED)));
        assert_eq!(known.len(), 1);
        // What waited while the table was read is older than what was read.
        known.begin_review();
        known.found(&record(5, ESTABLISHED), second(4)).expect("news");
        for (event, state) in [(Event::New, 1), (Event::Present, 2), (Event::Present, ESTABLISHED)] {
            assert_eq!(known.hear(event, &record(5, state), second(4)), None, "{event:?} {state}");
        }
        assert_eq!(
            known.hear(Event::Present, &record(5, FIN_WAIT), second(5)).map(|happened| happened.what),
            Some(What::Update)
        );
        // Who came and went while the table was read was over in it, and yet begins and ends.
        known.begin_review();
        assert_eq!(known.found(&record(6, TIME_WAIT), second(6)), None);
        let told: Vec<_> =
            [(Event::New, 1), (Event::Present, ESTABLISHED), (Event::Present, TIME_WAIT), (Event::End, TIME_WAIT)]
                .iter()
                .filter_map(|(event, state)| known.hear(*event, &record(6, *state), second(6)))
                .map(|happened| happened.what)
                .collect();
        assert_eq!(told, [What::New, What::Update, What::End]);
        // Nobody's: what was not translated.
        let mut other = record(9, ESTABLISHED);
        other.sighting.flow.reply.source = other.sighting.flow.original.destination;
        assert_eq!(known.hear(Event::New, &other, second(4)), None);
    }

    #[test]
    fn the_kernels_clock_goes_before_ours() {
        let mut known = Known::new(3);
        let with = |began, ended| Record { began, ended, ..record(1, ESTABLISHED) };
        let happened = known.hear(Event::New, &with(Some(second(1)), None), second(5)).expect("news");
        assert_eq!(happened.record.began, Some(second(1)));
        let happened = known.hear(Event::End, &with(Some(second(1)), Some(second(8))), second(9)).expect("the end");
        assert_eq!((happened.at, happened.record.began), (second(8), Some(second(1))));
    }
}

//! One subject's counts, endpoint by endpoint, and when they are worth a report.
//!
//! Endpoints have places, so that a flow remembers a number rather than an address; a place without connections is used again. Proven with
//! the ledger.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Report;
use crate::conntrack::watch::{Interest, Subject};
use crate::schedule::live::Load;

/// Least time between two reports of a subject.
pub(super) const SHORTEST_GAP: Duration = Duration::from_millis(2);

/// A dirty subject is reported after this time in any case.
pub(super) const LONGEST_GAP: Duration = Duration::from_millis(10);

/// A subject is due early when changes came for every so many endpoints.
const ENDPOINTS_PER_CHANGE: usize = 2;

/// One subject's counts.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) subject: Subject,
    pub(super) interest: Interest,
    pub(super) endpoints: Vec<(SocketAddr, Load)>,
    pub(super) places: HashMap<SocketAddr, u32>,
    pub(super) free: Vec<u32>,
    /// Changes and new connections since the last report.
    pub(super) changes: usize,
    pub(super) arrivals: usize,
    pub(super) expected: usize,
    pub(super) reported: Option<Instant>,
    /// The last review that was about it.
    pub(super) review: u32,
}

// === impl Account ===

impl Account {
    pub(super) fn arrive(&mut self, endpoint: SocketAddr, active: bool, new: bool) -> u32 {
        let (endpoints, free) = (&mut self.endpoints, &mut self.free);
        let place = *self.places.entry(endpoint).or_insert_with(|| {
            let place = free.pop().unwrap_or_else(|| {
                endpoints.push((endpoint, Load::default()));
                u32::try_from(endpoints.len() - 1).expect("no more endpoints than addresses")
            });
            endpoints[place as usize] = (endpoint, Load::default());
            place
        });
        *self.endpoints[place as usize].1.side(active) += 1;
        self.changes += 1;
        self.arrivals += usize::from(new);
        place
    }

    pub(super) fn turn(&mut self, place: u32, active: bool) {
        let load = &mut self.endpoints[place as usize].1;
        *load.side(!active) -= 1;
        *load.side(active) += 1;
        self.changes += 1;
    }

    pub(super) fn leave(&mut self, place: u32, active: bool) {
        let (endpoint, load) = &mut self.endpoints[place as usize];
        *load.side(active) -= 1;
        // A closed connection that is forgotten weighs little.
        self.changes += usize::from(active);
        if *load == Load::default() {
            self.places.remove(endpoint);
            self.free.push(place);
        }
    }

    /// `None`: at once.
    pub(super) fn due(&self) -> Option<Instant> {
        let many = (self.interest.candidates.len() / ENDPOINTS_PER_CHANGE).max(1);
        let gap = if self.changes >= many { SHORTEST_GAP } else { LONGEST_GAP };
        self.reported.map(|reported| reported + gap)
    }

    pub(super) fn report(&self) -> Report {
        let load = |endpoint: &SocketAddr| Some(self.endpoints[*self.places.get(endpoint)? as usize].1);
        let of = |endpoint| Some((endpoint, load(&endpoint)?));
        let loads = self.interest.candidates.iter().filter_map(|candidate| of(candidate.endpoint)).collect();
        let expected = self.arrivals.max(self.expected);
        let rings = self.interest.rings.iter().map(|ring| (ring.clone(), None)).collect();
        Report { subject: self.subject.clone(), rule: self.interest.rule, loads, expected, rings }
    }
}

// === impl Load ===

impl Load {
    fn side(&mut self, active: bool) -> &mut u32 {
        if active { &mut self.active } else { &mut self.inactive }
    }
}

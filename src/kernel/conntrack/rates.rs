//! How many connections come, for people who look: two walks through the table with some time in between.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::settings::accounting;
use super::{ConntrackError, ConntrackTable};
use crate::conntrack::Flow;
use crate::conntrack::rates::Between;
use crate::model::Protocol;
use crate::status::{Opened, RateList, RateRow, VERSION};

/// The first walk has been made.
#[derive(Debug)]
pub struct Measuring {
    begin: Instant,
    between: Between,
    partial: bool,
    came: HashMap<(Protocol, SocketAddr, SocketAddr), Opened>,
}

// === impl Measuring ===

impl Measuring {
    /// Walks for the first time, in the calling thread's network namespace. Takes some 0.15 s for 100,000 connections; not for a thread that others
    /// wait for.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    pub fn begin() -> Result<Self, ConntrackError> {
        let (begin, mut between) = (Instant::now(), Between::default());
        let dump = ConntrackTable::open()?.walk_records(|record| between.before(record))?;
        Ok(Self { begin, between, partial: dump.partial, came: HashMap::new() })
    }

    /// Connections that connection tracking does not know as translated: so many were opened since.
    pub fn add_direct(&mut self, protocol: Protocol, frontend: SocketAddr, endpoint: SocketAddr) {
        *self.came.entry((protocol, frontend, endpoint)).or_default() += Opened { opened: 1, traffic: None };
    }

    /// Walks again, and says what came. `behind` says who answers behind a listener of the forwarder.
    ///
    /// # Errors
    /// Whatever the kernel answers.
    pub fn end(mut self, behind: impl Fn(&Flow) -> Option<SocketAddr>) -> Result<RateList, ConntrackError> {
        let seconds = self.begin.elapsed().as_secs_f64();
        let (between, came) = (&mut self.between, &mut self.came);
        let dump = ConntrackTable::open()?.walk_records(|record| {
            let flow = &record.sighting.flow;
            if !flow.is_translated() {
                return;
            }
            let Some(one) = between.after(record) else { return };
            let by = behind(flow).unwrap_or(flow.reply.source);
            let one = Opened { opened: one.opened.into(), traffic: one.traffic };
            *came.entry((flow.protocol, flow.original.destination, by)).or_default() += one;
        })?;
        let is_something = |came: &Opened| came.opened > 0 || came.traffic.is_some_and(|sum| sum != Default::default());
        let mut found: Vec<_> = self.came.into_iter().filter(|(_, came)| is_something(came)).collect();
        found.sort_by_key(|(key, _)| *key);
        let row = |((protocol, destination, endpoint), came): ((Protocol, _, _), _)| RateRow {
            protocol: protocol.to_string(),
            destination,
            endpoint,
            came,
        };
        Ok(RateList {
            version: VERSION.to_owned(),
            accounting: accounting(),
            seconds,
            read: dump.read,
            partial: self.partial || dump.partial,
            rates: found.into_iter().map(row).collect(),
        })
    }
}

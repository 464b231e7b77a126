//! Deals rings again: what the controller does with counts of connections.
//!
//! The thread that counts (`kernel::conntrack::Counts`) sends reports; the controller takes them when it is awake and hands them to
//! [`Dealer::redeal`], which asks the kernel how far each ring is, has the engine deal the slots that come next, and commits those that
//! differ, all in one transaction. What it does is measured (`pointsman_*` of `observe::metrics`).
//!
//! Proven by `tests/e2e/live.rs`.

use std::collections::HashSet;
use std::time::Instant;

use tokio::sync::mpsc;
use tracing::debug;

use crate::compile::{Delta, Ring};
use crate::conntrack::Interests;
use crate::conntrack::ledger::Report;
use crate::engine::Engine;
use crate::kernel::conntrack::Counts;
use crate::kernel::{DataPlane, KernelError};
use crate::observe::metrics::{self, Live};

/// Reports of connections that may wait for the controller.
const REPORTS: usize = 256;

/// Who is counted, and what has been counted.
pub(super) struct Dealer {
    counts: Counts,
    reports: mpsc::Receiver<Report>,
    /// What the metrics say of events and losses.
    told: (u64, u64),
}

// === impl Dealer ===

impl Dealer {
    /// Counts nothing yet.
    pub(super) fn new() -> Self {
        let (report, reports) = mpsc::channel(REPORTS);
        Self { counts: Counts::new(report), reports, told: (0, 0) }
    }

    /// Waits for a report. Safe to be given up.
    pub(super) async fn report(&mut self) -> Option<Report> {
        self.reports.recv().await
    }

    /// Takes news about what is to be counted.
    pub(super) fn watch(&mut self, interests: Interests) {
        if !interests.is_empty() {
            self.counts.watch(interests);
            self.tell();
        }
    }

    /// Asks for a report of everything, because some were thrown away.
    pub(super) fn report_all(&mut self) {
        self.counts.report_all();
    }

    /// Throws reports away, those that wait as well.
    pub(super) fn forget(&mut self, reports: &mut Vec<Report>) {
        while self.reports.try_recv().is_ok() {}
        reports.clear();
    }

    /// Deals the rings of these Services again, and of those whose reports wait.
    pub(super) fn redeal(
        &mut self,
        reports: &mut Vec<Report>,
        engine: &mut Engine,
        plane: &mut DataPlane,
    ) -> Result<(), KernelError> {
        let begin = Instant::now();
        while let Ok(report) = self.reports.try_recv() {
            reports.push(report);
        }
        let mut delta = Delta::default();
        let mut dealt = HashSet::new();
        // The newest report of each.
        for report in reports.drain(..).rev() {
            if !dealt.insert(report.subject.clone()) {
                continue;
            }
            let picks = |(ring, _): &(Ring, _)| plane.picks(report.subject.family, &ring.chain);
            match report.rings.iter().map(picks).collect::<Result<Vec<_>, _>>() {
                Ok(picks) => engine.redeal(&report, &picks, &mut delta),
                // A ring that has gone since: there will be a report of what is there now.
                Err(KernelError::Nft(nft::Error::Query { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        let applied = plane.apply(&delta)?;
        let kernel_us = applied.duration.as_micros();
        debug!(services = dealt.len(), elements = applied.elements, kernel_us, "dealt again");
        metrics::redealt(begin.elapsed(), applied.elements as u64);
        self.tell();
        Ok(())
    }

    /// Brings the metrics up to date.
    fn tell(&mut self) {
        let tally = self.counts.tally();
        let (events, losses) = (tally.events(), tally.losses());
        metrics::live(&Live {
            services: self.counts.services(),
            connections: tally.flows(),
            events: events - self.told.0,
            losses: losses - self.told.1,
        });
        self.told = (events, losses);
    }
}

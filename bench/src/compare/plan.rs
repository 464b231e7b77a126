//! In which order everything is measured, and when a figure counts.
//!
//! A *session* is one contender on a stage of its own with one number of Services: it is set up, measured, and goes. A *round* has a
//! session for each contender and size; who begins moves on from session to session, so that whatever else the machine does meets all of
//! them alike. Around each measurement the floor is taken, on a stage of its own that stays: if it moved by more than [`DRIFT`], the
//! measurement is repeated, as often as the plan allows; the last one counts, and how much the floor moved stays in the record. What cannot be
//! repeated in a session (first sync) is repeated with a new one if that is quick. Failures are records like others.

use std::time::{Duration, Instant};

use pointsman::lab::Namespace;

use super::contender::{Contender, Running};
use super::measure::{self, Observations, Pace, Scene, Values};
use super::model::{self, Measurement};
use super::progress::Progress;
use super::record::{Journal, Key, Outcome, Record};
use super::stage::Stage;
use crate::usage::kernel_bytes;

/// How far the floor may move during a measurement.
pub const DRIFT: f64 = 0.10;

/// Connections of the floor's blocks.
const FLOOR_SAMPLES: usize = 400;

/// Set-ups that took longer are not repeated.
const QUICK: Duration = Duration::from_secs(2);

/// Until the kernel has freed what an earlier stage left.
const FREED: Duration = Duration::from_millis(250);

/// What is to be done.
pub struct Plan<'a> {
    pub sizes: Vec<u32>,
    /// The size at which everything is measured.
    pub base: u32,
    pub rounds: u32,
    pub endpoints: u16,
    pub pace: Pace,
    pub contenders: &'a [Box<dyn Contender>],
    /// How often a measurement is taken at most, while the floor moves.
    pub attempts: u32,
    /// Only these measurements, if there are any.
    pub only: Vec<Measurement>,
    /// When to break off.
    pub until: Option<Instant>,
}

/// A contender, a size, a round.
struct Session<'a> {
    contender: &'a dyn Contender,
    services: u32,
    round: u32,
}

/// A contender that serves.
struct Begun<'a> {
    running: Box<dyn Running + 'a>,
    took: Duration,
    cost: Values,
}

/// A measurement as it was taken.
struct Taken {
    outcome: Result<Observations, String>,
    floor: [f64; 2],
    attempts: u32,
}

// === impl Plan ===

impl Plan<'_> {
    /// Measures what the journal does not have; says whether all of it is there now.
    pub fn run(&self, journal: &mut Journal) -> anyhow::Result<bool> {
        let unavailable: Vec<_> = self.contenders.iter().map(|contender| contender.unavailable()).collect();
        let sessions = self.sessions();
        let mut progress = Progress::new(sessions.len());
        let floor = Stage::new()?;
        // The first user of netfilter's hooks on a machine makes the kernel rewrite its own code, which belongs to nobody's figures.
        let _hooked = hooked()?;
        measure::floor(&floor, FLOOR_SAMPLES)?;
        for (index, session) in &sessions {
            if self.until.is_some_and(|until| Instant::now() > until) {
                progress.note("time is up: the next run goes on from here");
                progress.end();
                return Ok(false);
            }
            let missing = session.missing(journal, self);
            let (ready, declined): (Vec<_>, Vec<_>) = missing.into_iter().partition(|measurement| {
                unavailable[*index].is_none() && session.contender.declines(*measurement, session.services).is_none()
            });
            for measurement in declined {
                let reason = unavailable[*index].clone();
                let reason = reason.or_else(|| session.contender.declines(measurement, session.services));
                let outcome = Outcome::Declined(reason.expect("declined"));
                journal.write(vec![session.record(measurement, outcome)])?;
            }
            if !ready.is_empty() {
                let Session { round, services, contender } = session;
                progress.say(&format!(
                    "round {} of {}: {} with {services} Services",
                    round + 1,
                    self.rounds,
                    contender.name()
                ));
                session.take(&ready, self, &floor, journal, &mut progress)?;
            }
            progress.done(ready.is_empty());
        }
        progress.end();
        Ok(true)
    }

    /// With the index of their contender.
    fn sessions(&self) -> Vec<(usize, Session<'_>)> {
        let count = self.contenders.len();
        let mut sessions = Vec::new();
        for round in 0..self.rounds {
            for (number, services) in self.sizes.iter().enumerate() {
                for position in 0..count {
                    let index = (round as usize + number + position) % count;
                    let contender = &*self.contenders[index];
                    sessions.push((index, Session { contender, services: *services, round }));
                }
            }
        }
        sessions
    }
}

// === impl Session ===

impl Session<'_> {
    fn key(&self, measurement: Measurement) -> Key {
        Key::new(self.round, self.services, self.contender.name(), measurement)
    }

    fn record(&self, measurement: Measurement, outcome: Outcome) -> Record {
        Record { key: self.key(measurement), variant: String::new(), outcome, parts: 1, floor: [0.0; 2], attempts: 0 }
    }

    fn missing(&self, journal: &Journal, plan: &Plan) -> Vec<Measurement> {
        let wanted = |measurement: &Measurement| measurement.by_size() || self.services == plan.base;
        let asked = |measurement: &Measurement| plan.only.is_empty() || plan.only.contains(measurement);
        let all = Measurement::ALL.into_iter().filter(wanted).filter(asked);
        all.filter(|measurement| !journal.has(&self.key(*measurement))).collect()
    }

    /// Takes these measurements, and writes them down one by one.
    fn take(
        &self,
        measurements: &[Measurement],
        plan: &Plan,
        floor: &Stage,
        journal: &mut Journal,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        if let Some(before) = self.gave_up_before(journal) {
            for measurement in measurements {
                journal.write(vec![self.record(*measurement, Outcome::Failed(before.clone()))])?;
            }
            return Ok(());
        }
        for attempt in 1..=plan.attempts {
            let stage = Stage::new()?;
            let cluster = model::cluster(self.services, plan.endpoints, stage.pod());
            let before = measure::floor(floor, FLOOR_SAMPLES)?;
            let begun = self.begin(&stage, &cluster, plan);
            let around = [before, measure::floor(floor, FLOOR_SAMPLES)?];
            let quick = begun.as_ref().is_ok_and(|begun| begun.took < QUICK);
            if drifted(around) && quick && attempt < plan.attempts {
                continue;
            }
            let mut begun = match begun {
                Ok(begun) => begun,
                Err(error) => {
                    let (name, services) = (self.contender.name(), self.services);
                    progress.note(&format!("{name} with {services} Services failed: {error:#}"));
                    for measurement in measurements {
                        let outcome = Outcome::Failed(format!("at the start: {error:#}"));
                        journal.write(vec![self.record(*measurement, outcome)])?;
                    }
                    return Ok(());
                }
            };
            let scene = Scene {
                stage: &stage,
                floor,
                cluster: &cluster,
                services: self.services,
                contender: self.contender,
                pace: &plan.pace,
                seed: u64::from(self.round) * 7919 + 17,
            };
            for measurement in measurements {
                let at_start = |values: Values| Taken {
                    outcome: Ok(vec![(String::new(), values)]),
                    floor: around,
                    attempts: attempt,
                };
                let taken = match measurement {
                    Measurement::FirstSync => at_start([("ms".to_owned(), begun.took.as_secs_f64() * 1e3)].into()),
                    Measurement::Cost => at_start(begun.cost.clone()),
                    _ => self.repeat(*measurement, &scene, &mut *begun.running, plan.attempts)?,
                };
                if let Err(reason) = &taken.outcome {
                    let (what, name) = (measurement.name(), self.contender.name());
                    progress.note(&format!("{what} of {name} with {} Services failed: {reason}", self.services));
                }
                journal.write(self.records(*measurement, taken))?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Who ran into the limit of time once is not waited for again.
    fn gave_up_before(&self, journal: &Journal) -> Option<String> {
        let failed = journal.of(self.contender.name(), self.services).find_map(|record| match &record.outcome {
            Outcome::Failed(reason) if reason.contains("was not done after") && record.key.round < self.round => {
                Some((record.key.round, reason))
            }
            _ => None,
        });
        failed.map(|(round, reason)| match reason.strip_prefix("not tried again: ") {
            Some(_) => reason.clone(),
            None => format!("not tried again: in round {}, {reason}", round + 1),
        })
    }

    /// Sets the contender up; how long that took and what it cost.
    fn begin<'a>(&self, stage: &'a Stage, cluster: &[model::Service], plan: &Plan) -> anyhow::Result<Begun<'a>> {
        // The kernel frees what earlier namespaces held in its own time.
        std::thread::sleep(FREED);
        let kernel = kernel_bytes()?;
        let mut running = self.contender.start(stage, cluster, plan.pace.limit)?;
        if self.contender.declines(Measurement::FirstSync, self.services).is_none() {
            stage.until_served(cluster, plan.pace.limit, || running.alive())?;
        }
        let took = running.began().elapsed();
        let usage = running.usage()?;
        let kernel = kernel_bytes()? - kernel;
        let cost =
            [("cpu_ms", usage.cpu * 1e3), ("memory_mb", usage.memory as f64 / 1e6), ("kernel_mb", kernel as f64 / 1e6)];
        Ok(Begun { running, took, cost: cost.map(|(key, value)| (key.to_owned(), value)).into() })
    }

    /// Until the floor held still.
    fn repeat(
        &self,
        measurement: Measurement,
        scene: &Scene,
        running: &mut dyn Running,
        most: u32,
    ) -> anyhow::Result<Taken> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let before = measure::floor(scene.floor, FLOOR_SAMPLES)?;
            let outcome = scene.measure(measurement, running).map_err(|error| format!("{error:#}"));
            let floor = [before, measure::floor(scene.floor, FLOOR_SAMPLES)?];
            let again = outcome.is_ok() && measurement.repeatable() && drifted(floor) && attempts < most;
            if !again {
                return Ok(Taken { outcome, floor, attempts });
            }
        }
    }

    fn records(&self, measurement: Measurement, taken: Taken) -> Vec<Record> {
        let Taken { outcome, floor, attempts } = taken;
        let parts = outcome.as_ref().map_or(1, Vec::len);
        let record = |variant, outcome| Record { key: self.key(measurement), variant, outcome, parts, floor, attempts };
        match outcome {
            Err(reason) => vec![record(String::new(), Outcome::Failed(reason))],
            Ok(observations) => {
                observations.into_iter().map(|(variant, values)| record(variant, Outcome::Values(values))).collect()
            }
        }
    }
}

fn drifted([before, after]: [f64; 2]) -> bool {
    (after / before - 1.0).abs() > DRIFT
}

/// A namespace that uses the hooks.
fn hooked() -> anyhow::Result<Namespace> {
    let namespace = Namespace::anonymous()?;
    namespace.run(|| pointsman::kernel::DataPlane::open()?.apply(&pointsman::compile::Delta::default()))?;
    Ok(namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_that_moved_in_either_direction_has_moved() {
        assert!(!drifted([20.0, 21.9]) && !drifted([20.0, 18.1]));
        assert!(drifted([20.0, 22.1]) && drifted([20.0, 17.9]));
    }
}

//! What has happened so far, and whether it is what should happen.
//!
//! The board counts connections per Service, frontend and endpoint, and keeps two lists of pods for each Service: the *members*, who
//! may answer now, and the counts *since the last change*, because a bar that mixes three endpoints' time with five endpoints' time
//! would show nothing. It draws nothing ([`super::render`] does) and opens nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::shop::Shop;
use super::traffic::{Observation, Target};
use crate::lab::ConnectError;

/// Complaints kept word for word; later ones are only counted.
const COMPLAINTS_KEPT: usize = 8;
/// Below this many connections per endpoint an uneven draw says nothing.
const ENOUGH: u64 = 100;
/// How far two endpoints of a round robin may be apart: one for the turn, one for a connection that is still on its way.
const ROUND_ROBIN_SLACK: u64 = 2;

/// Everything seen; see the module.
#[derive(Debug)]
pub struct Board {
    /// One per Service with addresses.
    pub rows: Vec<Row>,
    /// Services that a proxy ignores, and why.
    pub ignored: Vec<(String, &'static str)>,
    /// Connections answered by an endpoint.
    pub answered: u64,
    /// Connections refused because they had to be.
    pub refused: u64,
    /// Connections that did not do what they should.
    pub failed: u64,
    /// The first of what did not work, in words.
    pub complaints: Vec<String>,
    /// How long connections took.
    pub latencies: Latencies,
}

/// One Service.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Whether endpoints must come in turn.
    pub round_robin: bool,
    /// Its frontends with their counts.
    pub frontends: Vec<FrontendRow>,
    /// Who may answer now.
    pub members: BTreeSet<String>,
    /// Who answered since the last change, members with none included.
    pub recent: BTreeMap<String, u64>,
    /// Connections since the start, whatever became of them.
    pub total: u64,
    /// Refused, as it had to be.
    pub refused: u64,
}

/// One frontend of a Service.
#[derive(Debug)]
pub struct FrontendRow {
    /// How and where to connect.
    pub target: Target,
    /// Connections to it.
    pub total: u64,
    /// Who answered, since the last change.
    pub recent: BTreeMap<String, u64>,
}

/// Counts per microsecond up to ten milliseconds, which answers percentiles without keeping every value.
#[derive(Debug)]
pub struct Latencies {
    micros: Vec<u32>,
    count: u64,
}

// === impl Board ===

impl Board {
    /// Nothing has happened yet.
    pub fn new(shop: &Shop) -> Self {
        let rows = shop.services.iter().enumerate().map(|(service, of)| {
            let frontends = of.frontends.iter().enumerate().map(|(frontend, of)| FrontendRow {
                target: Target { service, frontend, udp: of.udp, address: of.address },
                total: 0,
                recent: BTreeMap::new(),
            });
            let mut row = Row {
                name: of.name.clone(),
                round_robin: of.round_robin,
                frontends: frontends.collect(),
                members: BTreeSet::new(),
                recent: BTreeMap::new(),
                total: 0,
                refused: 0,
            };
            row.set_members(of.frontends.iter().flat_map(|frontend| frontend.pods.clone()).collect());
            row
        });
        Self {
            rows: rows.collect(),
            ignored: shop.ignored.clone(),
            answered: 0,
            refused: 0,
            failed: 0,
            complaints: Vec::new(),
            latencies: Latencies { micros: vec![0; 10_001], count: 0 },
        }
    }

    /// Every frontend.
    pub fn targets(&self) -> Vec<Target> {
        self.rows.iter().flat_map(|row| &row.frontends).map(|frontend| frontend.target).collect()
    }

    /// The Service of this name.
    ///
    /// # Panics
    /// If there is none.
    pub fn row_mut(&mut self, name: &str) -> &mut Row {
        self.rows.iter_mut().find(|row| row.name == name).expect("a Service of the shop")
    }

    /// Whether this is how such a connection should end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(&self, seen: &Observation) -> Result<(), String> {
        let row = &self.rows[seen.target.service];
        let to = seen.target.address;
        match &seen.outcome {
            Ok(answer) if row.members.contains(&answer.pod) => Ok(()),
            Ok(answer) => Err(format!("{}: {to} was answered by {}, which is not its endpoint", row.name, answer.pod)),
            Err(ConnectError::Refused) if row.members.is_empty() => Ok(()),
            Err(error) => Err(format!("{}: {to}: {error}", row.name)),
        }
    }

    /// Takes a connection in.
    pub fn record(&mut self, seen: &Observation) {
        let judgement = self.judge(seen);
        let row = &mut self.rows[seen.target.service];
        let frontend = &mut row.frontends[seen.target.frontend];
        row.total += 1;
        frontend.total += 1;
        if let Ok(answer) = &seen.outcome {
            // By reference first: a name that is known needs no copy.
            for counts in [&mut row.recent, &mut frontend.recent] {
                match counts.get_mut(&answer.pod) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(answer.pod.clone(), 1)),
                }
            }
            self.latencies.record(answer.latency);
        }
        match (judgement, &seen.outcome) {
            (Ok(()), Ok(_)) => self.answered += 1,
            (Ok(()), Err(_)) => {
                self.refused += 1;
                row.refused += 1;
            }
            (Err(complaint), _) => {
                self.failed += 1;
                self.complain(complaint);
            }
        }
    }

    /// Notes something that did not work.
    pub fn complain(&mut self, complaint: String) {
        if self.complaints.len() < COMPLAINTS_KEPT && !self.complaints.contains(&complaint) {
            self.complaints.push(complaint);
        }
    }

    /// Looks whether the connections since the last change went where the scheduler should send them.
    pub fn check_distribution(&mut self) {
        let uneven: Vec<_> = self.rows.iter().filter_map(Row::uneven).collect();
        uneven.into_iter().for_each(|complaint| self.complain(complaint));
    }

    /// Notes frontends that nobody connected to, at the end.
    pub fn check_coverage(&mut self) {
        let frontends = self.rows.iter().flat_map(|row| row.frontends.iter().map(move |frontend| (row, frontend)));
        let missed: Vec<_> = frontends
            .filter(|(_, frontend)| frontend.total == 0)
            .map(|(row, frontend)| format!("{}: nobody connected to {}", row.name, frontend.target.address))
            .collect();
        missed.into_iter().for_each(|complaint| self.complain(complaint));
    }
}

// === impl Row ===

impl Row {
    /// From now on these pods may answer, and bars start again.
    pub fn set_members(&mut self, members: BTreeSet<String>) {
        self.recent = members.iter().map(|pod| (pod.clone(), 0)).collect();
        for frontend in &mut self.frontends {
            frontend.recent = self.recent.clone();
        }
        self.members = members;
    }

    /// These pods may answer too, while a change is on its way.
    pub fn also_allow(&mut self, pods: impl IntoIterator<Item = String>) {
        self.members.extend(pods);
    }

    fn uneven(&self) -> Option<String> {
        self.frontends.iter().find_map(|frontend| {
            let counts: Vec<u64> =
                self.members.iter().map(|pod| frontend.recent.get(pod).copied().unwrap_or(0)).collect();
            let (least, most) = (*counts.iter().min()?, *counts.iter().max()?);
            let mean = counts.iter().sum::<u64>() / counts.len() as u64;
            let wrong = if self.round_robin {
                most - least > ROUND_ROBIN_SLACK
            } else {
                // Five standard deviations and more: not by chance.
                mean >= ENOUGH && (least < mean / 2 || most > mean * 3 / 2)
            };
            let scheduler = if self.round_robin { "rr" } else { "random" };
            wrong.then(|| format!("{}: {counts:?} connections per endpoint are not {scheduler}", self.name))
        })
    }
}

// === impl Latencies ===

impl Latencies {
    fn record(&mut self, latency: Duration) {
        let last = self.micros.len() - 1;
        let micros = usize::try_from(latency.as_micros()).unwrap_or(last).min(last);
        self.micros[micros] += 1;
        self.count += 1;
    }

    /// The latency that this share of connections does not exceed; `None` before the first one.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let rank = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.micros.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map(|micros| Duration::from_micros(micros as u64))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Instant;

    use super::*;
    use crate::lab::Answer;

    /// A shop board after `outcomes`: Service name, pod that answered (or `refused`), how often.
    pub fn board_after(outcomes: &[(&str, &str, u32)]) -> Board {
        let mut board = Board::new(&Shop::embedded().expect("the shop"));
        for (service, pod, times) in outcomes {
            let target = board.row_mut(service).frontends[0].target;
            for _ in 0..*times {
                let outcome = match *pod {
                    "refused" => Err(ConnectError::Refused),
                    "timeout" => Err(ConnectError::TimedOut),
                    pod => Ok(Answer { pod: pod.into(), latency: Duration::from_micros(40) }),
                };
                let now = Instant::now();
                board.record(&Observation { target, started: now, ended: now, outcome });
            }
        }
        board
    }

    #[test]
    fn what_should_happen_is_not_complained_about() {
        let mut board = board_after(&[
            ("web", "web-1", 120),
            ("web", "web-2", 140),
            ("web", "web-3", 101),
            ("cart", "cart-1", 7),
            ("cart", "cart-2", 6),
            ("cart", "cart-3", 6),
            ("recommendations", "refused", 9),
        ]);
        board.check_distribution();
        assert_eq!(board.complaints, [""; 0]);
        assert_eq!((board.answered, board.refused, board.failed), (380, 9, 0));
        assert_eq!(board.latencies.percentile(0.5), Some(Duration::from_micros(40)));
    }

    #[test]
    fn what_should_not_happen_is_complained_about_in_words() {
        let mut board = board_after(&[
            ("web", "refused", 1),
            ("sessions", "timeout", 1),
            ("payments", "payments-3", 1),
            ("recommendations", "web-1", 1),
            ("catalog", "catalog-1", 500),
            ("cart", "cart-1", 9),
            ("cart", "cart-2", 3),
        ]);
        board.check_distribution();
        assert_eq!(board.failed, 4);
        insta::assert_snapshot!(board.complaints.join("\n"), @"
        web: 10.96.0.10:80: connection refused
        sessions: 10.96.0.80:6379: timed out
        payments: 10.96.0.60:443 was answered by payments-3, which is not its endpoint
        recommendations: 10.96.0.90:80 was answered by web-1, which is not its endpoint
        cart: [9, 3, 0] connections per endpoint are not rr
        catalog: [500, 0, 0, 0] connections per endpoint are not random
        ");
    }

    #[test]
    fn during_a_change_both_sets_may_answer_and_afterwards_one() {
        let mut board = board_after(&[]);
        board.row_mut("web").also_allow(["web-4".to_owned()]);
        let target = board.row_mut("web").frontends[0].target;
        let now = Instant::now();
        let outcome = Ok(Answer { pod: "web-4".into(), latency: Duration::ZERO });
        let seen = Observation { target, started: now, ended: now, outcome };
        assert_eq!(board.judge(&seen), Ok(()));
        board.row_mut("web").set_members(["web-1".to_owned()].into());
        assert!(board.judge(&seen).is_err());
    }
}

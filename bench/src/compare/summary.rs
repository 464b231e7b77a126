//! Few numbers out of a journal, and where we are worse.
//!
//! A [`Row`] is a contender, a number of Services, a measurement and its variant at one place: medians and quartiles over rounds, how many
//! runs there were, and what failed. [`worse`] compares us with every peer of the same kind, figure by figure: everything that is behind by
//! more than [`NOTHING`] is listed, whether it matters or not. Floor and yardstick are no peers: they are no proxies.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::model::{Figure, Measurement};
use super::plan::DRIFT;
use super::record::{Outcome, Place, Record};
use crate::stats::Spread;

/// A difference that is none.
const NOTHING: f64 = 0.02;

/// See the module.
#[derive(Debug, Clone)]
pub struct Row {
    pub contender: String,
    pub services: u32,
    pub measurement: Measurement,
    pub variant: String,
    /// By the figure's key.
    pub figures: BTreeMap<String, Spread>,
    pub runs: usize,
    /// Why it failed, once for each reason.
    pub failures: Vec<String>,
    pub failed: usize,
    pub declined: Option<String>,
    /// Runs during which the floor moved.
    pub drifted: usize,
}

/// A figure in which a peer is better, with some numbers of Services.
#[derive(Debug, Clone)]
pub struct Worse {
    pub measurement: Measurement,
    pub figure: Figure,
    pub variant: String,
    pub ours: String,
    pub peer: String,
    /// By the number of Services.
    pub at: Vec<Behind>,
}

/// By how much.
#[derive(Debug, Clone, Copy)]
pub struct Behind {
    pub services: u32,
    pub ours: Spread,
    pub peer: Spread,
    /// How many times worse; nothing to divide by where the peer has nothing.
    pub factor: Option<f64>,
}

/// Who is compared with whom: ours, and its peers.
const KERNEL_PEERS: [&str; 7] = [
    "nftables-shape",
    "iptables-nft-shape",
    "iptables-legacy-shape",
    "ipvs-shape",
    "kube-proxy-nftables",
    "kube-proxy-iptables",
    "kube-proxy-ipvs",
];
const USERSPACE_PEERS: [&str; 2] = ["haproxy", "nginx"];
pub const PAIRS: [(&str, &[&str]); 2] = [("pointsman", &KERNEL_PEERS), ("pointsman-userspace", &USERSPACE_PEERS)];

/// All rows of a place, in the order of contenders, sizes and measurements.
pub fn rows(place: &Place) -> Vec<Row> {
    let names: Vec<_> = place.participants().into_iter().map(|one| one.name.as_str()).collect();
    let mut groups: BTreeMap<(Measurement, usize, u32, &str), Vec<&Record>> = BTreeMap::new();
    for record in &place.records {
        let Some(measurement) = Measurement::of(&record.key.measurement) else { continue };
        let index = names.iter().position(|name| *name == record.key.contender).unwrap_or(names.len());
        groups.entry((measurement, index, record.key.services, &record.variant)).or_default().push(record);
    }
    groups
        .into_iter()
        .map(|((measurement, _, services, variant), records)| Row::of(measurement, services, variant, &records))
        .collect()
}

impl Row {
    fn of(measurement: Measurement, services: u32, variant: &str, records: &[&Record]) -> Self {
        let values: Vec<_> = records
            .iter()
            .filter_map(|record| if let Outcome::Values(values) = &record.outcome { Some(values) } else { None })
            .collect();
        let spread = |figure: &Figure| {
            let found: Vec<f64> = values.iter().filter_map(|values| values.get(figure.key)).copied().collect();
            (!found.is_empty()).then(|| (figure.key.to_owned(), Spread::of(found)))
        };
        let reasons = records.iter().filter_map(|record| match &record.outcome {
            Outcome::Failed(reason) => Some(reason.clone()),
            _ => None,
        });
        let mut failures: Vec<_> = reasons.collect();
        let failed = failures.len();
        failures.sort();
        failures.dedup();
        let declined = records.iter().find_map(|record| match &record.outcome {
            Outcome::Declined(reason) => Some(reason.clone()),
            _ => None,
        });
        let moved = |record: &&&Record| {
            let [before, after] = record.floor;
            before > 0.0 && (after / before - 1.0).abs() > DRIFT
        };
        Self {
            contender: records[0].key.contender.clone(),
            services,
            measurement,
            variant: variant.to_owned(),
            figures: measurement.figures().iter().filter_map(spread).collect(),
            runs: values.len(),
            failures,
            failed,
            declined,
            drifted: records.iter().filter(moved).count(),
        }
    }
}

/// What different programs call the same.
fn canonical(variant: &str) -> &str {
    match variant {
        "leastconn" | "least_conn" | "lc,exact" => "lc",
        "hash" | "source" => "by client",
        other => other,
    }
}

/// See the module.
pub fn worse(rows: &[Row]) -> Vec<Worse> {
    let mut found: Vec<Worse> = Vec::new();
    for (name, peers) in PAIRS {
        let with_figures = |row: &&Row| row.runs > 0;
        for ours in rows.iter().filter(|row| row.contender == name).filter(with_figures) {
            let same = |row: &&Row| {
                row.measurement == ours.measurement
                    && row.services == ours.services
                    && canonical(&row.variant) == canonical(&ours.variant)
                    && peers.contains(&row.contender.as_str())
            };
            for peer in rows.iter().filter(same).filter(with_figures) {
                for figure in ours.measurement.figures() {
                    let Some(behind) = behind(figure, ours, peer) else { continue };
                    let matches = |one: &&mut Worse| {
                        one.measurement == ours.measurement
                            && one.figure.key == figure.key
                            && one.variant == ours.variant
                            && one.ours == name
                            && one.peer == peer.contender
                    };
                    match found.iter_mut().find(matches) {
                        Some(one) => one.at.push(behind),
                        None => found.push(Worse {
                            measurement: ours.measurement,
                            figure: *figure,
                            variant: ours.variant.clone(),
                            ours: name.to_owned(),
                            peer: peer.contender.clone(),
                            at: vec![behind],
                        }),
                    }
                }
            }
        }
    }
    found
}

fn behind(figure: &Figure, ours: &Row, peer: &Row) -> Option<Behind> {
    let more = figure.more?;
    let (own, theirs) = (*ours.figures.get(figure.key)?, *peer.figures.get(figure.key)?);
    // What is below the grain may be anything, or less than nothing.
    let [own_size, their_size] = [own, theirs].map(|spread| spread.median.max(figure.grain));
    let (large, small) = if more { (their_size, own_size) } else { (own_size, their_size) };
    let factor = (small > 0.0).then(|| large / small);
    let is_behind = large > small * (1.0 + NOTHING) && large - small > figure.grain;
    is_behind.then_some(Behind { services: ours.services, ours: own, peer: theirs, factor })
}

impl Behind {
    /// Whether the quartiles overlap, so that it may be chance.
    pub fn doubtful(&self) -> bool {
        self.ours.low <= self.peer.high && self.peer.low <= self.ours.high
    }
}

/// `100: 22.1 to 20.1 (1.1 x)`
impl std::fmt::Display for Behind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let services = number(f64::from(self.services));
        write!(f, "{services}: {} to {}", number(self.ours.median), number(self.peer.median))?;
        match self.factor {
            Some(factor) if self.doubtful() => write!(f, " ({factor:.2} x?)"),
            Some(factor) => write!(f, " ({factor:.2} x)"),
            None => Ok(()),
        }
    }
}

/// How many rounds figures are of: `2`, or `2, 2, 1` where that differs by the number of Services.
pub fn runs<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    let runs: Vec<_> = rows.map(|row| row.runs).filter(|runs| *runs > 0).collect();
    let differs = runs.iter().any(|one| *one != runs[0]);
    let shown = if differs { &runs[..] } else { &runs[..runs.len().min(1)] };
    if shown.is_empty() { "0".to_owned() } else { shown.iter().map(usize::to_string).collect::<Vec<_>>().join(", ") }
}

/// `1 to 2 rounds of the 3 planned`
pub fn rounds(rows: &[Row], planned: u32) -> String {
    let runs = || rows.iter().map(|row| row.runs).filter(|runs| *runs > 0);
    let (least, most) = (runs().min().unwrap_or(0), runs().max().unwrap_or(0));
    match (least == most, most == planned as usize) {
        (true, true) => format!("{most} rounds"),
        (true, false) => format!("{most} rounds of the {planned} planned"),
        (false, _) => format!("{least} to {most} rounds of the {planned} planned"),
    }
}

/// A number with as many digits as it is worth.
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let text = match magnitude {
        _ if magnitude >= 1_000.0 => {
            let digits = format!("{magnitude:.0}");
            let grouped: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
            return format!("{}{}", if value < 0.0 { "-" } else { "" }, grouped.join(","));
        }
        _ if magnitude >= 100.0 => format!("{value:.0}"),
        _ if magnitude >= 10.0 => format!("{value:.1}"),
        _ if magnitude >= 1.0 || magnitude == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// All rows of all places, one line per figure.
pub fn csv(places: &[Place]) -> String {
    let mut text =
        "place,contender,kind,services,measurement,variant,figure,unit,runs,failed,median,low,high,reason\n".to_owned();
    for place in places {
        let (manifest, participants) = (place.manifest(), place.participants());
        for row in rows(place) {
            let kind = participants.iter().find(|one| one.name == row.contender).map_or("", |one| &one.kind);
            let Row { contender, services, measurement, variant, runs, failed, .. } = &row;
            let front =
                format!("{},{contender},\"{kind}\",{services},{},\"{variant}\"", manifest.place, measurement.name());
            let reason = row
                .failures
                .first()
                .or(row.declined.as_ref())
                .map_or(String::new(), |reason| format!("\"{}\"", reason.replace('"', "'").replace('\n', " ")));
            if row.figures.is_empty() {
                let _ = writeln!(text, "{front},,,{runs},{failed},,,,{reason}");
            }
            for figure in measurement.figures() {
                let Some(Spread { low, median, high }) = row.figures.get(figure.key) else { continue };
                let _ = writeln!(
                    text,
                    "{front},{},{},{runs},{failed},{median:.4},{low:.4},{high:.4},{reason}",
                    figure.key, figure.unit
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::record::{Key, Manifest, Participant};
    use super::*;

    fn place(figures: &[(&str, f64)]) -> Place {
        let mut manifest = Manifest::here("host", None);
        manifest.contenders = figures
            .iter()
            .map(|(name, _)| Participant {
                name: (*name).to_owned(),
                kind: "baseline".into(),
                title: String::new(),
                version: String::new(),
                unavailable: None,
            })
            .collect();
        let record = |round, name: &str, p50: f64| Record {
            key: Key::new(round, 100, name, Measurement::Setup),
            variant: String::new(),
            outcome: Outcome::Values([("p50_us".to_owned(), p50), ("rate".to_owned(), 1e6 / p50)].into()),
            parts: 1,
            floor: [16.0, 16.0],
            attempts: 1,
        };
        let records = (0..3)
            .flat_map(|round| figures.iter().map(move |(name, p50)| record(round, name, p50 + f64::from(round) * 0.1)));
        Place { manifests: vec![manifest], records: records.collect(), notes: Vec::new() }
    }

    #[test]
    fn where_a_peer_is_better_in_either_direction_it_is_found() {
        let rows =
            rows(&place(&[("pointsman", 22.0), ("ipvs-shape", 20.0), ("iptables-nft-shape", 40.0), ("direct", 10.0)]));
        let found = worse(&rows);
        let named: Vec<_> = found.iter().map(|one| (one.figure.key, one.peer.as_str(), one.at.len())).collect();
        assert_eq!(named, [("p50_us", "ipvs-shape", 1), ("rate", "ipvs-shape", 1)]);
        assert_eq!(found[0].at[0].to_string(), "100: 22.1 to 20.1 (1.10 x)");
    }

    #[test]
    fn rounds_that_were_not_run_are_not_claimed() {
        let mut begun = place(&[("pointsman", 22.0)]);
        begun.manifests[0].rounds = 3;
        assert_eq!((rounds(&rows(&begun), 3), runs(rows(&begun).iter())), ("3 rounds".into(), "3".into()));
        begun.records.truncate(2);
        let other = Record { key: Key::new(0, 1_000, "pointsman", Measurement::Setup), ..begun.records[0].clone() };
        begun.records.push(other);
        let rows = rows(&begun);
        assert_eq!((rounds(&rows, 3), runs(rows.iter())), ("1 to 2 rounds of the 3 planned".into(), "2, 1".into()));
    }

    #[test]
    fn two_per_cent_is_nothing() {
        assert!(worse(&rows(&place(&[("pointsman", 20.3), ("nftables-shape", 20.0)]))).is_empty());
    }

    #[test]
    fn numbers_have_the_digits_they_are_worth() {
        let read = [0.0, 0.0123, 1.5, 21.049, 212.4, 1234.5, 1_234_567.0].map(number);
        assert_eq!(read, ["0", "0.012", "1.5", "21", "212", "1,234", "1,234,567"]);
    }
}

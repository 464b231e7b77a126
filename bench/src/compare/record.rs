//! Raw data: a line of JSON for each observation, written as soon as it is made.
//!
//! A *journal* is the file `compare-<place>.jsonl` of a results directory; a *place* is a kernel on which everything was run: `host`, `vm`.
//! Lines are either a [`Manifest`], one at each start of a run, which says machine, programs and plan, or a [`Record`], or a note (`{"note": "..."}`),
//! which somebody wrote by hand and reports repeat: why a figure was taken out, for one. Whoever starts a
//! run with a journal that is there goes on where it broke off: what has a record is not measured again. A line that was cut short by a
//! crash is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::contender::Contender;
use super::model::Measurement;
use super::tool;
use crate::report;

/// What is measured once per round: who, with how many Services, what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    pub round: u32,
    pub services: u32,
    pub contender: String,
    pub measurement: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Figures by key.
    Values(BTreeMap<String, f64>),
    /// It was tried and did not work.
    Failed(String),
    /// It was not tried: what for is written here.
    Declined(String),
}

/// One observation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub key: Key,
    /// Scheduler or event, where a measurement has several.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How many records there are of this key, one for each variant.
    pub parts: usize,
    /// p50 of connecting to the pod, without a proxy, before and after: microseconds.
    #[serde(default)]
    pub floor: [f64; 2],
    /// How often it was taken until the floor held still; the last one counts.
    #[serde(default)]
    pub attempts: u32,
}

/// Who takes part, as the run saw it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Participant {
    pub name: String,
    pub kind: String,
    pub title: String,
    pub version: String,
    pub unavailable: Option<String>,
}

/// Where, with what and how it was run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub place: String,
    pub when: String,
    pub command: String,
    pub commit: String,
    pub kernel: String,
    pub machine: String,
    pub load_average: String,
    pub sizes: Vec<u32>,
    pub base: u32,
    pub rounds: u32,
    pub endpoints: u16,
    pub samples: usize,
    pub limit_seconds: u64,
    pub programs: Vec<String>,
    pub contenders: Vec<Participant>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Manifest { manifest: Box<Manifest> },
    Note { note: String },
    Record(Box<Record>),
}

/// A journal that is written on.
pub struct Journal {
    files: Vec<File>,
    known: BTreeSet<Key>,
    records: Vec<Record>,
}

/// All that a journal says.
#[derive(Debug, Clone)]
pub struct Place {
    /// The last one counts; older ones say when else it was run.
    pub manifests: Vec<Manifest>,
    pub records: Vec<Record>,
    /// What somebody had to say of them.
    pub notes: Vec<String>,
}

// === impl Key ===

impl Key {
    pub fn new(round: u32, services: u32, contender: &str, measurement: Measurement) -> Self {
        Self { round, services, contender: contender.to_owned(), measurement: measurement.name().to_owned() }
    }
}

// === impl Participant ===

impl Participant {
    pub fn of(contender: &dyn Contender) -> Self {
        Self {
            name: contender.name().to_owned(),
            kind: contender.kind().name().to_owned(),
            title: contender.title(),
            version: contender.version(),
            unavailable: contender.unavailable(),
        }
    }
}

// === impl Manifest ===

impl Manifest {
    /// What programs say of themselves.
    pub fn programs() -> Vec<String> {
        let asked = [
            ("nft", "--version"),
            ("iptables-legacy-restore", "--version"),
            ("ipset", "--version"),
            ("ipvsadm", "--version"),
            ("haproxy", "-v"),
            ("nginx", "-v"),
        ];
        asked
            .into_iter()
            .map(|(name, argument)| tool::version(name, argument))
            .filter(|said| !said.is_empty())
            .collect()
    }

    /// The machine's part.
    pub fn here(place: &str, commit: Option<String>) -> Self {
        let command: Vec<_> = std::env::args().skip(1).collect();
        Self {
            place: place.to_owned(),
            when: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            command: format!("cargo run --release -p bench -- {}", command.join(" ")),
            commit: commit.unwrap_or_else(report::commit),
            kernel: report::kernel_release(),
            machine: report::machine(),
            load_average: report::load_average(),
            sizes: Vec::new(),
            base: 0,
            rounds: 0,
            endpoints: 0,
            samples: 0,
            limit_seconds: 0,
            programs: Self::programs(),
            contenders: Vec::new(),
        }
    }
}

// === impl Place ===

impl Place {
    /// Reads a journal.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let (mut manifests, mut records, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        for line in text.lines() {
            match serde_json::from_str(line) {
                Ok(Line::Manifest { manifest }) => manifests.push(*manifest),
                Ok(Line::Record(record)) => records.push(*record),
                Ok(Line::Note { note }) => notes.push(note),
                Err(_) => {}
            }
        }
        Ok(Self { manifests, records: whole(records), notes })
    }

    /// All journals of a directory.
    pub fn all(directory: &Path) -> anyhow::Result<Vec<Self>> {
        let entries = std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("compare-") && name.ends_with(".jsonl")
        };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(named).collect();
        paths.sort();
        let places: Vec<Self> = paths.iter().map(|path| Self::read(path)).collect::<anyhow::Result<_>>()?;
        Ok(places.into_iter().filter(|place| !place.manifests.is_empty()).collect())
    }

    pub fn manifest(&self) -> &Manifest {
        self.manifests.last().expect("read so")
    }

    /// Everybody who took part in any of its runs: one that went on with a few has the others' figures, too.
    pub fn participants(&self) -> Vec<&Participant> {
        let mut lists: Vec<_> = self.manifests.iter().rev().map(|manifest| &manifest.contenders).collect();
        // In the order of the longest list; what the last run says of somebody counts.
        lists.sort_by_key(|list| std::cmp::Reverse(list.len()));
        let mut all: Vec<&Participant> = Vec::new();
        for one in lists.into_iter().flatten() {
            if !all.iter().any(|known| known.name == one.name) {
                let said = self.manifests.iter().rev().flat_map(|manifest| &manifest.contenders);
                all.push(said.into_iter().find(|other| other.name == one.name).unwrap_or(one));
            }
        }
        all
    }
}

/// Where the journal of a place is.
pub fn path(directory: &Path, place: &str) -> PathBuf {
    directory.join(format!("compare-{place}.jsonl"))
}

/// What is there of each key if all its parts are, and the last of them if there are more: a crash may come between two lines.
fn whole(records: Vec<Record>) -> Vec<Record> {
    let mut places: BTreeMap<&Key, Vec<usize>> = BTreeMap::new();
    records.iter().enumerate().for_each(|(place, record)| places.entry(&record.key).or_default().push(place));
    let mut kept: BTreeSet<usize> = BTreeSet::new();
    for found in places.values() {
        let parts = found.last().map_or(0, |last| records[*last].parts);
        if found.len() >= parts {
            kept.extend(&found[found.len() - parts..]);
        }
    }
    records.iter().enumerate().filter(|(place, _)| kept.contains(place)).map(|(_, record)| record.clone()).collect()
}

// === impl Journal ===

impl Journal {
    /// Opens a journal to go on with, or a new one; everything is also written to `mirror`.
    pub fn open(path: &Path, mirror: Option<&Path>) -> anyhow::Result<Self> {
        let records = if path.exists() { Place::read(path)?.records } else { Vec::new() };
        let known = records.iter().map(|record| record.key.clone()).collect();
        let open = |path: &Path| {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            opened.with_context(|| format!("opening {}", path.display()))
        };
        let mut files: Vec<_> = std::iter::once(path).chain(mirror).map(open).collect::<anyhow::Result<_>>()?;
        // A line that was cut short ends here, so that the next one is whole.
        if std::fs::read(path).is_ok_and(|text| text.last().is_some_and(|last| *last != b'\n')) {
            files[0].write_all(b"\n")?;
        }
        Ok(Self { files, known, records })
    }

    /// Whether this is known already.
    pub fn has(&self, key: &Key) -> bool {
        self.known.contains(key)
    }

    /// What was recorded of a contender at a size.
    pub fn of(&self, contender: &str, services: u32) -> impl Iterator<Item = &Record> {
        let matches = move |record: &&Record| record.key.contender == contender && record.key.services == services;
        self.records.iter().filter(matches)
    }

    /// Begins a run.
    pub fn begin(&mut self, manifest: Manifest) -> anyhow::Result<()> {
        self.line(&Line::Manifest { manifest: Box::new(manifest) })
    }

    /// Writes all records of one key at once: none of them would be there without the others.
    pub fn write(&mut self, records: Vec<Record>) -> anyhow::Result<()> {
        for record in records {
            self.line(&Line::Record(Box::new(record.clone())))?;
            self.known.insert(record.key.clone());
            self.records.push(record);
        }
        Ok(())
    }

    fn line(&mut self, line: &Line) -> anyhow::Result<()> {
        let text = format!("{}\n", serde_json::to_string(line)?);
        for file in &mut self.files {
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(round: u32, outcome: Outcome) -> Record {
        let key = Key::new(round, 100, "pointsman", Measurement::Setup);
        Record { key, variant: String::new(), outcome, parts: 1, floor: [16.0, 16.5], attempts: 1 }
    }

    #[test]
    fn a_run_that_goes_on_with_a_few_leaves_the_others_in_their_places() {
        let with = |names: &[&str], version: &str| {
            let contenders = names.iter().map(|name| Participant {
                name: (*name).to_owned(),
                kind: "baseline".into(),
                title: String::new(),
                version: version.to_owned(),
                unavailable: None,
            });
            Manifest { contenders: contenders.collect(), ..Manifest::here("host", None) }
        };
        let manifests = vec![with(&["direct", "pointsman", "nginx"], "1"), with(&["nginx"], "2")];
        let place = Place { manifests, records: Vec::new(), notes: Vec::new() };
        let found: Vec<_> = place.participants().iter().map(|one| format!("{} {}", one.name, one.version)).collect();
        assert_eq!(found, ["direct 1", "pointsman 1", "nginx 2"]);
    }

    #[test]
    fn of_a_key_that_was_cut_short_nothing_counts_until_it_is_there_again() {
        let part = |variant: &str| Record {
            variant: variant.to_owned(),
            parts: 2,
            ..record(0, Outcome::Values([("cv".to_owned(), 0.1)].into()))
        };
        assert!(whole(vec![part("rr")]).is_empty());
        let again = vec![part("rr"), part("rr"), part("lc")];
        assert_eq!(whole(again.clone()), again[1..]);
    }

    #[test]
    fn what_is_written_is_known_to_the_next_run_and_a_torn_line_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = path(directory.path(), "host");
        let values = Outcome::Values([("p50_us".to_owned(), 21.5)].into());
        let mut journal = Journal::open(&path, None).expect("a journal");
        journal.begin(Manifest::here("host", None)).expect("written");
        let failed = Outcome::Failed("nft was not done after 60 s".into());
        journal.write(vec![record(0, values.clone()), record(1, failed.clone())]).expect("written");
        drop(journal);
        let whole = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, format!("{whole}{}", &whole.lines().last().expect("a line")[..30])).expect("written");
        let journal = Journal::open(&path, None).expect("the same journal");
        assert!(journal.has(&record(0, values.clone()).key) && journal.has(&record(1, values.clone()).key));
        assert!(!journal.has(&record(2, values.clone()).key));
        let place = Place::read(&path).expect("a place");
        assert_eq!(place.records, [record(0, values), record(1, failed)]);
        assert_eq!((place.manifests.len(), place.notes.len()), (1, 0));
    }
}

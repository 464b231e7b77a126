//! Where results go: tables on the terminal, raw data and a summary in files.
//!
//! A [`Report`] collects what a measurement says, prints it as it comes, and at the end writes it to
//! `bench/results/<date>-<kernel>/<measurement>.md`, with the machine, the commit and the command in front. Raw data stand beside
//! it as CSV, one row per block or round and nothing averaged, so that every number of the summary can be had from them.

use std::fmt::{Display, Write as _};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

/// A summary in the making, and the directory it will stand in.
#[derive(Debug)]
pub struct Report {
    directory: PathBuf,
    name: String,
    text: String,
}

/// Rows of raw data.
#[derive(Debug)]
pub struct Csv(String);

/// A table of text cells.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

// === impl Report ===

impl Report {
    /// Begins the report of a measurement.
    pub fn begin(name: &str, directory: Option<PathBuf>) -> anyhow::Result<Self> {
        let now = jiff::Timestamp::now();
        let directory = results(directory)?;
        let mut report = Self { directory, name: name.to_owned(), text: String::new() };
        let command: Vec<_> = std::env::args().skip(1).collect();
        report.say(format!("# {name}\n"));
        report.say(format!("- when: {}", now.strftime("%Y-%m-%d %H:%M UTC")));
        report.say(format!("- command: `cargo run --release -p bench -- {}`", command.join(" ")));
        report.say(format!("- commit: {}", commit()));
        report.say(format!("- kernel: {}", kernel_release()));
        report.say(format!("- machine: {}", machine()));
        report.say(format!("- load average at the start: {}\n", load_average()));
        Ok(report)
    }

    /// Adds a line, and prints it.
    pub fn say(&mut self, line: impl Display) {
        println!("{line}");
        writeln!(self.text, "{line}").expect("writing to a string");
    }

    /// Writes raw data to `<name>.csv`.
    pub fn raw(&self, name: &str, csv: &Csv) -> anyhow::Result<()> {
        write(&self.directory.join(format!("{name}.csv")), &csv.0)
    }

    /// Writes a drawing to `<name>.svg`.
    pub fn figure(&self, name: &str, svg: &str) -> anyhow::Result<()> {
        write(&self.directory.join(format!("{name}.svg")), svg)
    }

    /// Writes the summary.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.say(format!("\nload average at the end: {}", load_average()));
        let path = self.directory.join(format!("{}.md", self.name));
        write(&path, &self.text)?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

// === impl Csv ===

impl Csv {
    /// With these columns.
    pub fn new(columns: &str) -> Self {
        Self(format!("{columns}\n"))
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[&dyn Display]) {
        let cells: Vec<_> = cells.iter().map(ToString::to_string).collect();
        debug_assert!(!cells.iter().any(|cell| cell.contains(',')), "no cell of ours needs quoting");
        self.0.push_str(&cells.join(","));
        self.0.push('\n');
    }
}

// === impl Table ===

impl Table {
    /// With this head.
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: &[&dyn Display]) {
        self.rows.push(cells.iter().map(ToString::to_string).collect());
    }
}

/// As Markdown that is aligned for a terminal too.
impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(f, "| {} |", cells.join(" | "))?;
            if index == 0 {
                let lines: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
                writeln!(f, "| {} |", lines.join(" | "))?;
            }
        }
        Ok(())
    }
}

// === asking ===

/// Where results go: this directory, or `bench/results/<date>-<kernel>`; made if it is not there.
pub fn results(directory: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let today = || jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let default = || PathBuf::from(format!("bench/results/{}-{}", today(), kernel_release()));
    let directory = directory.unwrap_or_else(default);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The first line of a file of the kernel's; `unknown` if there is none.
pub fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or("unknown").to_owned()
}

/// As `uname -r` has it.
pub fn kernel_release() -> String {
    first_line("/proc/sys/kernel/osrelease")
}

/// As the kernel tells it.
pub fn load_average() -> String {
    first_line("/proc/loadavg")
}

/// Cores, model and memory.
pub fn machine() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let memory = first_line("/proc/meminfo").replace("MemTotal:", "");
    format!("{cores} x {model}, {} memory", memory.trim())
}

/// The commit that is checked out, marked if files differ from it.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let clean =
        git(&["status", "--porcelain", "--", "src", "nft", "bench/src"]).is_some_and(|changes| changes.is_empty());
    if clean { commit } else { format!("{commit} with changes") }
}

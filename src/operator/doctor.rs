//! `doctor` for people and scripts: see [`crate::doctor`].

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::cli::Format;
use super::text::{Look, colours, paint, plain};
use super::{Failure, say};
use crate::doctor::{Report, Verdict, gather};

/// Exit status of a report whose worst finding is a warning, and one that fails.
const WARNED: u8 = 1;
const FAILED: u8 = 2;

/// How it is shown.
#[derive(Clone, Debug, Args)]
pub struct DoctorOptions {
    /// Only what is not as it should be
    #[arg(short, long)]
    pub quiet: bool,

    /// Write this instead of lines
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

pub(super) fn run(socket: &Path, options: &DoctorOptions) -> Result<ExitCode, Failure> {
    let mut report = Report::of(&gather(socket));
    if options.quiet {
        report.findings.retain(|finding| finding.verdict > Verdict::Ok);
    }
    let mut out = io::stdout().lock();
    match options.output {
        Some(format) => say(&mut out, format, &report)?,
        None => write(&mut out, &report, colours())?,
    }
    Ok(match report.verdict {
        Verdict::Ok => ExitCode::SUCCESS,
        Verdict::Warn => ExitCode::from(WARNED),
        Verdict::Fail => ExitCode::from(FAILED),
    })
}

fn write(out: &mut impl Write, report: &Report, colours: bool) -> io::Result<()> {
    let width = report.findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    for finding in &report.findings {
        let (word, look) = match finding.verdict {
            Verdict::Ok => ("ok  ", Look::Good),
            Verdict::Warn => ("warn", Look::Plain),
            Verdict::Fail => ("FAIL", Look::Bad),
        };
        writeln!(out, "{} {:width$}  {}", paint(word, look, colours), plain(&finding.check), plain(&finding.seen))?;
        if let Some(advice) = &finding.advice {
            writeln!(out, "     {:width$}  -> {}", "", plain(advice))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Finding;

    #[test]
    fn a_line_each_and_what_to_do_below() {
        let finding = |check: &str, verdict, seen: &str, advice: Option<&str>| Finding {
            check: check.to_owned(),
            verdict,
            seen: seen.to_owned(),
            advice: advice.map(str::to_owned),
        };
        let findings = vec![
            finding("kernel", Verdict::Ok, "Linux 6.18", None),
            finding("conntrack", Verdict::Fail, "full\u{1b}[2J", Some("raise it")),
        ];
        let mut out = Vec::new();
        write(&mut out, &Report { version: "v1".to_owned(), verdict: Verdict::Fail, findings }, false).expect("memory");
        insta::assert_snapshot!(String::from_utf8(out).expect("text"), @r"
        ok   kernel     Linux 6.18
        FAIL conntrack  full\u{1b}[2J
                        -> raise it
        ");
    }
}

//! Columns, colours, and text from strangers.
//!
//! Names and annotations may hold anything if they come from manifests. [`plain`] shows what a terminal would obey, and what would make one
//! text look like another (control characters, bidirectional marks, invisible ones), as an escape.

use std::io::{self, IsTerminal, Write};

use jiff::{SpanRound, Timestamp, Unit};

/// How a cell looks where colours are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Good,
    Bad,
    Faint,
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    look: Look,
}

/// Rows under a heading, in columns as wide as they have to be.
#[derive(Debug)]
pub(super) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

/// Text without anything that a terminal would obey or hide.
pub(super) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_deceptive(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Marks that turn the direction of writing or are not to be seen, line and paragraph separators, the byte order mark.
fn is_deceptive(character: char) -> bool {
    matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// How long ago: `5s`, `3m`, `2h`, `9d`.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    let round = SpanRound::new().largest(Unit::Second).smallest(Unit::Second);
    let seconds = (now - then).round(round).map_or(0, |span| span.get_seconds());
    span(seconds)
}

/// A number of seconds, shortly.
pub(super) fn span(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Whether colours are wanted on standard output.
pub(super) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes with a look.
pub(super) fn paint(text: &str, look: Look, colours: bool) -> String {
    let code = match look {
        _ if !colours => return text.to_owned(),
        Look::Plain => return text.to_owned(),
        Look::Good => 32,
        Look::Bad => 31,
        Look::Faint => 2,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

// === impl Cell ===

impl Cell {
    pub(super) fn new(text: impl AsRef<str>, look: Look) -> Self {
        let text = plain(text.as_ref());
        Self { text: if text.is_empty() { "-".to_owned() } else { text }, look }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Look::Plain)
    }
}

// === impl Table ===

impl Table {
    pub(super) fn new<const N: usize>(heading: [&'static str; N]) -> Self {
        Self { heading: heading.to_vec(), rows: Vec::new() }
    }

    pub(super) fn push<const N: usize>(&mut self, row: [Cell; N]) {
        self.rows.push(row.to_vec());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn write(&self, out: &mut impl Write, colours: bool) -> io::Result<()> {
        let mut widths: Vec<usize> = self.heading.iter().map(|text| text.len()).collect();
        for row in &self.rows {
            widths.iter_mut().zip(row).for_each(|(width, cell)| *width = cell.text.chars().count().max(*width));
        }
        let heading: Vec<_> = self.heading.iter().map(|text| Cell::new(text, Look::Faint)).collect();
        for row in std::iter::once(&heading).chain(&self.rows) {
            for (index, (cell, width)) in row.iter().zip(&widths).enumerate() {
                out.write_all(paint(&cell.text, cell.look, colours).as_bytes())?;
                if index + 1 < row.len() {
                    write!(out, "{:gap$}", "", gap = width - cell.text.chars().count() + 2)?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_write_to_the_terminal() {
        let hostile = "a\u{1b}[2J\u{1b}]0;owned\u{7}\r\nb\u{9b}31m\u{202e}txt\u{200b}é日";
        let shown = plain(hostile);
        let want = "a\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\r\\nb\\u{9b}31m\\u{202e}txt\\u{200b}é日";
        assert_eq!(shown, want);
        let mut table = Table::new(["NAME", "X"]);
        table.push([hostile.into(), "".into()]);
        table.push(["b".into(), Cell::new("bad", Look::Bad)]);
        let mut out = Vec::new();
        table.write(&mut out, false).expect("memory");
        let out = String::from_utf8(out).expect("text");
        assert!(!out.contains(['\u{1b}', '\r', '\u{7}', '\u{9b}']) && out.lines().count() == 3, "{out:?}");
        let mut out = Vec::new();
        table.write(&mut out, true).expect("memory");
        assert!(String::from_utf8(out).expect("text").contains("\u{1b}[31mbad\u{1b}[0m"));
    }

    #[test]
    fn times_are_short() {
        let told: Vec<_> = [-1, 0, 119, 120, 7200, 172_800].map(span).into();
        assert_eq!(told, ["0s", "0s", "119s", "2m", "2h", "2d"]);
    }
}

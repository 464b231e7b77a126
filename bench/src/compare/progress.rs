//! What a run says while it goes on: one line that is written over on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// See the module.
pub struct Progress {
    terminal: bool,
    begin: Instant,
    total: usize,
    done: usize,
    /// Of those done, how many were there before.
    known: usize,
    width: usize,
}

// === impl Progress ===

impl Progress {
    /// Of so many sessions.
    pub fn new(total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { terminal, begin: Instant::now(), total, done: 0, known: 0, width: 0 }
    }

    /// Says what is under way.
    pub fn say(&mut self, what: &str) {
        let share = 100 * self.done / self.total.max(1);
        let line = format!("[{share:>3} %] {what}{}", self.remaining());
        if self.terminal {
            let width = line.chars().count();
            let padding = " ".repeat(self.width.saturating_sub(width));
            eprint!("\r{line}{padding}");
            let _ = std::io::stderr().flush();
            self.width = width;
        } else {
            eprintln!("{line}");
        }
    }

    /// Says what happened, for good.
    pub fn note(&mut self, what: &str) {
        if self.terminal {
            eprintln!("\r{what}{}", " ".repeat(self.width.saturating_sub(what.chars().count())));
            self.width = 0;
        } else {
            eprintln!("{what}");
        }
    }

    /// A session is over; `known` if nothing had to be measured.
    pub fn done(&mut self, known: bool) {
        self.done += 1;
        self.known += usize::from(known);
    }

    /// After the last word.
    pub fn end(&mut self) {
        if self.terminal && self.width > 0 {
            eprintln!();
        }
    }

    fn remaining(&self) -> String {
        let measured = self.done - self.known;
        if measured == 0 {
            return String::new();
        }
        let each = self.begin.elapsed() / u32::try_from(measured).expect("few");
        let left = each * u32::try_from(self.total - self.done).expect("few");
        format!(", about {} left", rounded(left))
    }
}

fn rounded(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds >= 90 { format!("{} min", (seconds + 30) / 60) } else { format!("{seconds} s") }
}

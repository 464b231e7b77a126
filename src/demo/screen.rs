//! Where the demo speaks: a terminal that shows the board in place, or a log that gets one line after another.
//!
//! On a terminal, what is said scrolls up and the board stays below it, redrawn ten times a second. Lines are never wider than the
//! terminal, or going back up by their number would miss. Colour is restrained, and left out when `NO_COLOR` is set.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::render::{Line, Style};

const REDRAW_EVERY: Duration = Duration::from_millis(100);
/// For logs, and for terminals that do not say how wide they are.
const USUAL_WIDTH: usize = 120;

/// The output; see the module.
#[derive(Debug)]
pub struct Screen<W: Write> {
    out: W,
    terminal: bool,
    colour: bool,
    started: Instant,
    board: Vec<Line>,
    drawn: Option<Instant>,
    /// Lines of the board that are on the terminal now.
    on_screen: usize,
}

impl Screen<io::Stdout> {
    /// Standard output, as it is connected.
    pub fn stdout() -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        // https://no-color.org: any value that is not empty.
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self::new(out, terminal, colour)
    }
}

impl<W: Write> Screen<W> {
    /// An output that is a terminal or is none.
    pub fn new(out: W, terminal: bool, colour: bool) -> Self {
        Self { out, terminal, colour, started: Instant::now(), board: Vec::new(), drawn: None, on_screen: 0 }
    }

    /// Columns to fill.
    pub fn width(&self) -> usize {
        let size = self.terminal.then(terminal_size::terminal_size).flatten();
        size.map_or(USUAL_WIDTH, |(width, _)| usize::from(width.0)).max(40)
    }

    /// Whether the board is due to be drawn again.
    pub fn wants_board(&self) -> bool {
        self.terminal && self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW_EVERY)
    }

    /// Shows the board as it is now, in the place of the last one. A log shows none before [`Screen::finish`].
    pub fn show(&mut self, board: Vec<Line>) {
        if self.terminal {
            self.board = board;
            self.drawn = Some(Instant::now());
            let text = self.up() + &self.board_text();
            self.emit(&text);
        }
    }

    /// Says one line for good, with the time since the start.
    pub fn say(&mut self, line: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let line: Line = vec![(Style::Dim, format!("[{seconds:5.1}s] ")), (Style::Plain, line.to_owned())];
        let text = self.up() + &self.line_text(&line, usize::MAX) + &self.board_text();
        self.emit(&text);
    }

    /// Leaves the last board standing, and says no more in place.
    pub fn finish(&mut self, board: &[Line]) {
        let mut text = self.up();
        let width = if self.terminal { self.width() } else { usize::MAX };
        board.iter().for_each(|line| text += &self.line_text(line, width));
        self.board.clear();
        self.on_screen = 0;
        self.emit(&text);
    }

    /// Takes the board off the screen, if one is there.
    pub fn clear(&mut self) {
        let text = self.up();
        self.board.clear();
        self.emit(&text);
    }

    /// Prints a line as it is.
    pub fn print(&mut self, line: &Line) {
        let text = self.line_text(line, usize::MAX);
        self.emit(&text);
    }

    /// Goes back to the first line of the board and clears from there.
    fn up(&mut self) -> String {
        match std::mem::take(&mut self.on_screen) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    fn board_text(&mut self) -> String {
        // What has scrolled off the top cannot be redrawn: a low terminal shows the first lines only.
        let height = terminal_size::terminal_size().map_or(usize::MAX, |(_, height)| usize::from(height.0));
        self.on_screen = self.board.len().min(height.saturating_sub(1));
        let width = self.width();
        self.board.iter().take(self.on_screen).map(|line| self.line_text(line, width)).collect()
    }

    /// A line cut to a width, styled if the output is.
    fn line_text(&self, line: &Line, width: usize) -> String {
        let mut text = String::new();
        let mut left = width;
        for (style, piece) in line {
            let piece: String = piece.chars().take(left).collect();
            left -= piece.chars().count();
            let code = match style {
                Style::Plain => "",
                Style::Bold => "1",
                Style::Dim => "2",
                Style::Bar => "36",
                Style::Good => "32",
                Style::Bad => "1;31",
            };
            if self.colour && !code.is_empty() {
                text += &format!("\x1b[{code}m{piece}\x1b[0m");
            } else {
                text += &piece;
            }
        }
        // Bars are padded; a log shall not end in blanks.
        if !self.colour {
            text.truncate(text.trim_end().len());
        }
        text.push('\n');
        text
    }

    fn emit(&mut self, text: &str) {
        // A reader that has gone away (`| head`) is no reason to leave the lab behind: go on and clear up.
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        vec![(Style::Bold, text.to_owned())]
    }

    fn text(screen: Screen<Vec<u8>>) -> String {
        String::from_utf8(screen.out).expect("UTF-8")
    }

    #[test]
    fn a_log_has_no_escape_codes_and_one_board() {
        let mut screen = Screen::new(Vec::new(), false, false);
        screen.say("hello");
        assert!(!screen.wants_board());
        screen.show(vec![line("early")]);
        screen.finish(&[line("late   ")]);
        assert_eq!(text(screen), "[  0.0s] hello\nlate\n");
    }

    #[test]
    fn a_terminal_redraws_the_board_below_what_was_said() {
        let mut screen = Screen::new(Vec::new(), true, false);
        screen.show(vec![line("a"), line("b")]);
        screen.say("hello");
        screen.finish(&[line("c")]);
        assert_eq!(text(screen), "a\nb\n\x1b[2A\r\x1b[J[  0.0s] hello\na\nb\n\x1b[2A\r\x1b[Jc\n");
    }

    #[test]
    fn colour_is_used_only_when_wanted() {
        let mut screen = Screen::new(Vec::new(), true, true);
        screen.finish(&[line("c")]);
        assert_eq!(text(screen), "\x1b[1mc\x1b[0m\n");
    }
}

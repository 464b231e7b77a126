//! The board as lines of styled text, without any terminal.
//!
//! One line per Service: name, address, scheduler, connections, and a cell per endpoint with its bar, all scaled to the width that
//! is there. The same lines are redrawn on a terminal and printed once at the end of a log ([`super::screen`]).

use std::time::Duration;

use super::board::{Board, Row};

/// How a piece of text looks; what that means is the screen's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As it comes.
    Plain,
    /// Headings and names.
    Bold,
    /// Less important.
    Dim,
    /// Bars.
    Bar,
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
}

/// A line of text in pieces.
pub type Line = Vec<(Style, String)>;

/// Narrowest bar that still shows a difference.
const BAR_MIN: usize = 3;
/// Longer bars do not show more.
const BAR_MAX: usize = 16;
/// Columns of everything left of the bars.
const LEFT: usize = 17 + 24 + 8 + 8;

/// The whole board, for a width in columns.
pub fn board(board: &Board, width: usize) -> Vec<Line> {
    let header = vec![(
        Style::Dim,
        format!(
            " {:<16} {:<23} {:<7} {:>7}  {}",
            "SERVICE", "ADDRESS", "SCHED", "CONNS", "PER ENDPOINT SINCE THE LAST CHANGE"
        ),
    )];
    let mut lines = vec![Line::new(), header];
    lines.extend(board.rows.iter().map(|row| service(row, width)));
    for (name, why) in &board.ignored {
        lines.push(vec![(Style::Dim, format!(" {name:<16} {why}"))]);
    }
    lines.push(Line::new());
    lines.push(totals(board));
    lines
}

/// Connections, failures, latency, in one line.
pub fn totals(board: &Board) -> Line {
    let failed = if board.failed == 0 { Style::Good } else { Style::Bad };
    let latency = |share| board.latencies.percentile(share).map_or("-".into(), duration);
    vec![
        (Style::Plain, format!(" {} connections answered, ", thousands(board.answered))),
        (failed, format!("{} failed", thousands(board.failed))),
        (Style::Plain, format!(", {} refused as they should be", thousands(board.refused))),
        (Style::Dim, format!("; to connect: p50 {}, p99 {}", latency(0.5), latency(0.99))),
    ]
}

fn service(row: &Row, width: usize) -> Line {
    let scheduler = match (row.members.is_empty(), row.round_robin) {
        (true, _) => "-",
        (false, true) => "rr",
        (false, false) => "random",
    };
    let mut line = vec![
        (Style::Bold, format!(" {:<16} ", row.name)),
        (Style::Plain, format!("{:<23} ", addresses(row))),
        (Style::Dim, format!("{scheduler:<7} ")),
        (Style::Plain, format!("{:>7}  ", thousands(row.total))),
    ];
    if row.members.is_empty() {
        line.push((Style::Good, format!("{} refused", thousands(row.refused))));
        line.push((Style::Dim, ", as they should be: no endpoints".into()));
        return line;
    }
    let mut pods: Vec<_> = row.recent.iter().collect();
    pods.sort_by_key(|(pod, _)| (pod.len(), *pod));
    let most = row.recent.values().copied().max().unwrap_or(0).max(1);
    let label = |pod: &str| pod.strip_prefix(&format!("{}-", row.name)).unwrap_or(pod).to_owned();
    // "1 ████ 1,234  ": what is not bar, for the widest cell.
    let fixed = pods.iter().map(|(pod, _)| label(pod).len()).max().unwrap_or(0) + thousands(most).len() + 4;
    let bar_width = (width.saturating_sub(LEFT) / pods.len()).saturating_sub(fixed).clamp(BAR_MIN, BAR_MAX);
    for (pod, count) in pods {
        line.push((Style::Dim, format!("{} ", label(pod))));
        line.push((Style::Bar, bar(*count, most, bar_width)));
        line.push((
            Style::Plain,
            format!(" {:<count_width$}  ", thousands(*count), count_width = thousands(most).len()),
        ));
    }
    line
}

/// The first address and what else there is: `10.96.0.10:80 +IPv6`, `10.96.0.30:80 +2 ports`.
fn addresses(row: &Row) -> String {
    let first = row.frontends[0].target.address;
    let same_family = row.frontends.iter().filter(|f| f.target.address.is_ipv4() == first.is_ipv4()).count();
    let mut text = first.to_string();
    if same_family > 1 {
        text += &format!(" +{}", same_family - 1);
    }
    if same_family < row.frontends.len() {
        text += " +IPv6";
    }
    text
}

/// A bar of `count` out of `most`, padded to `width` columns, in eighths of a column.
fn bar(count: u64, most: u64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (count * width as u64 * 8).div_ceil(most) as usize;
    let text = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    let columns = eighths.div_ceil(8);
    text + &" ".repeat(width - columns)
}

/// `12,345`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits: `38 µs`, `1.24 ms`, `2.5 s`.
pub fn duration(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..10_000 => format!("{:.2} ms", micros as f64 / 1e3),
        micros @ 10_000..1_000_000 => format!("{:.0} ms", micros as f64 / 1e3),
        micros => format!("{:.1} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::board::tests::board_after;
    use super::*;

    fn plain(lines: &[Line]) -> String {
        let text = |line: &Line| line.iter().map(|(_, text)| text.as_str()).collect::<String>();
        lines.iter().map(|line| text(line).trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_board_at_two_widths() {
        let outcomes = [
            ("cart", "cart-1", 34),
            ("cart", "cart-2", 33),
            ("cart", "cart-3", 33),
            ("dns", "dns-1", 12),
            ("dns", "dns-2", 19),
            ("recommendations", "refused", 40),
            ("sessions", "sessions-1", 1234),
            ("web", "web-1", 800),
            ("web", "web-2", 750),
            ("web", "web-3", 400),
        ];
        let seen = board_after(&outcomes);
        insta::assert_snapshot!("wide", plain(&board(&seen, 140)));
        insta::assert_snapshot!("narrow", plain(&board(&seen, 80)));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        let micros = [0, 38, 1_240, 12_400, 124_000, 2_500_000].map(|m| duration(Duration::from_micros(m)));
        assert_eq!(micros, ["0 µs", "38 µs", "1.24 ms", "12 ms", "124 ms", "2.5 s"]);
    }

    #[test]
    fn a_bar_fills_its_width_and_never_more() {
        assert_eq!(bar(0, 10, 4), "    ");
        assert_eq!(bar(5, 10, 4), "██  ");
        assert_eq!(bar(9, 10, 4), "███▋");
        assert_eq!(bar(10, 10, 4), "████");
    }
}

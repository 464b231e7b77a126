//! Charts as SVG: lines over the number of Services, and bars.
//!
//! Colours are CSS variables (`var(--ink)`, `var(--pointsman)`), so that the page decides between light and dark; [`png`] puts
//! either in. Lines are named at their ends and have marks of their own, so that colours are not all there is to tell them apart.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use resvg::{tiny_skia, usvg};

use super::summary::number;
use crate::stats::Spread;

/// Name, colour on light, colour on dark.
pub const COLOURS: [(&str, &str, &str); 17] = [
    ("ink", "#1f2328", "#e6edf3"),
    ("muted", "#6a737d", "#9198a1"),
    ("grid", "#e3e6ea", "#2b3138"),
    ("paper", "#ffffff", "#0d1117"),
    ("pointsman", "#0757b8", "#58a6ff"),
    ("pointsman-userspace", "#7a3db8", "#bc8cff"),
    ("nftables-shape", "#c84a00", "#ff9a4d"),
    ("iptables-nft-shape", "#1a7f37", "#56d364"),
    ("iptables-legacy-shape", "#6b7a00", "#c3cf3c"),
    ("ipvs-shape", "#bf1b60", "#ff7bac"),
    ("haproxy", "#0a7c86", "#39c5cf"),
    ("nginx", "#80563c", "#d2a48a"),
    ("direct", "#6a737d", "#9198a1"),
    ("dnat-rule", "#32383f", "#c9d1d9"),
    ("kube-proxy-nftables", "#a33a00", "#ffb27d"),
    ("kube-proxy-iptables", "#145c29", "#7ee787"),
    ("kube-proxy-ipvs", "#8d1247", "#ff9dc4"),
];

const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

const WIDTH: f64 = 860.0;
const LEFT: f64 = 66.0;
const TOP: f64 = 62.0;
/// Where lines end and their names begin.
const RIGHT: f64 = 660.0;
const HEIGHT: f64 = 400.0;
const BOTTOM: f64 = HEIGHT - 52.0;

/// A contender's line.
pub struct Line {
    pub name: String,
    /// Ascending.
    pub points: Vec<(f64, Spread)>,
}

/// A bar.
pub struct Bar {
    /// Whose colour it has.
    pub contender: String,
    pub label: String,
    pub spread: Spread,
}

/// What stands around a chart.
pub struct Frame<'a> {
    pub title: &'a str,
    pub subtitle: &'a str,
    pub unit: &'a str,
    /// Whether the scale of values is logarithmic.
    pub logarithmic: bool,
}

struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
    from: f64,
    to: f64,
}

/// Lines over the number of Services.
pub fn lines(frame: &Frame, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let (xs, spreads): (Vec<f64>, Vec<Spread>) = points().copied().unzip();
    if xs.is_empty() {
        return String::new();
    }
    let x = Scale::of(&xs, true, LEFT + 14.0, RIGHT - 14.0);
    let values: Vec<f64> = spreads.iter().flat_map(|spread| [spread.low, spread.high, spread.median]).collect();
    let y = Scale::of(&values, frame.logarithmic, BOTTOM, TOP);
    let mut svg = open(frame, HEIGHT);
    for tick in y.ticks() {
        let at = y.at(tick);
        let _ =
            writeln!(svg, r#"<line x1="{LEFT}" x2="{RIGHT}" y1="{at:.1}" y2="{at:.1}" style="stroke:var(--grid)"/>"#);
        text(&mut svg, LEFT - 8.0, at + 4.0, "end", "muted", &number(tick));
    }
    let mut sizes = xs.clone();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    for size in &sizes {
        // 5,000 and 10,000 would touch.
        let short = if *size >= 1_000.0 { format!("{}k", number(*size / 1_000.0)) } else { number(*size) };
        text(&mut svg, x.at(*size), BOTTOM + 20.0, "middle", "muted", &short);
    }
    text(&mut svg, (LEFT + RIGHT) / 2.0, BOTTOM + 42.0, "middle", "muted", "Services, 10 endpoints each");
    let mut names: Vec<(f64, &str, f64)> = Vec::new();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty()) {
        let colour = format!("var(--{})", line.name);
        let dashes = if ["direct", "dnat-rule"].contains(&line.name.as_str()) { ";stroke-dasharray:5 4" } else { "" };
        let width = if line.name.starts_with("pointsman") { 3.0 } else { 1.8 };
        let path: Vec<_> =
            line.points.iter().map(|(size, spread)| format!("{:.1},{:.1}", x.at(*size), y.at(spread.median))).collect();
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" style="fill:none;stroke:{colour};stroke-width:{width}{dashes}"/>"#,
            path.join(" ")
        );
        for (size, spread) in &line.points {
            let (at, middle) = (x.at(*size), y.at(spread.median));
            let (low, high) = (y.at(spread.low), y.at(spread.high));
            let _ = writeln!(
                svg,
                r#"<g style="stroke:{colour};fill:{colour}"><title>{}, {}: {} [{}, {}] {}</title><line x1="{at:.1}" x2="{at:.1}" y1="{low:.1}" y2="{high:.1}"/>{}</g>"#,
                line.name,
                number(*size),
                number(spread.median),
                number(spread.low),
                number(spread.high),
                frame.unit,
                mark(index, at, middle)
            );
        }
        let (size, last) = line.points.last().expect("not empty");
        names.push((y.at(last.median), &line.name, x.at(*size)));
    }
    // Names at the ends, moved apart.
    names.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut taken = TOP - 20.0;
    let heights: Vec<f64> = names
        .iter()
        .map(|(at, _, _)| {
            taken = at.max(taken + 16.0);
            taken
        })
        .collect();
    let overflow = (heights.last().copied().unwrap_or(0.0) - (BOTTOM + 8.0)).max(0.0);
    let mut bottom = f64::INFINITY;
    let mut placed: Vec<f64> = heights
        .iter()
        .rev()
        .map(|at| {
            bottom = if overflow > 0.0 { (*at).min(bottom - 16.0).min(BOTTOM + 8.0) } else { *at };
            bottom
        })
        .collect();
    placed.reverse();
    for ((at, name, end), height) in names.iter().zip(placed) {
        let _ = writeln!(
            svg,
            r#"<line x1="{:.1}" y1="{at:.1}" x2="{:.1}" y2="{height:.1}" style="stroke:var(--{name});stroke-width:0.7;opacity:0.6"/>"#,
            end + 6.0,
            RIGHT + 6.0
        );
        let weight = if name.starts_with("pointsman") { "bold" } else { "normal" };
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" font-size="13" font-weight="{weight}" style="fill:var(--{name})">{name}</text>"#,
            RIGHT + 10.0,
            height + 4.0
        );
    }
    svg + "</svg>\n"
}

/// Bars from zero, in the order given.
pub fn bars(frame: &Frame, bars: &[Bar]) -> String {
    if bars.is_empty() {
        return String::new();
    }
    const STEP: f64 = 26.0;
    const LABELS: f64 = 250.0;
    let height = TOP + STEP * bars.len() as f64 + 12.0;
    let most = bars.iter().map(|bar| bar.spread.high).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let scale = |value: f64| LABELS + value.max(0.0) / most * (WIDTH - LABELS - 150.0);
    let mut svg = open(frame, height);
    for (number_of, bar) in bars.iter().enumerate() {
        let (top, spread) = (TOP + STEP * number_of as f64, bar.spread);
        let middle = top + STEP / 2.0 - 2.0;
        text(&mut svg, LABELS - 8.0, middle + 4.0, "end", "ink", &bar.label);
        let _ = writeln!(
            svg,
            r#"<rect x="{LABELS}" y="{:.1}" width="{:.1}" height="{}" style="fill:var(--{})"><title>{}: {} [{}, {}] {}</title></rect>"#,
            top + 2.0,
            (scale(spread.median) - LABELS).max(1.0),
            STEP - 9.0,
            bar.contender,
            bar.label,
            number(spread.median),
            number(spread.low),
            number(spread.high),
            frame.unit
        );
        let _ = writeln!(
            svg,
            r#"<line x1="{:.1}" x2="{:.1}" y1="{middle:.1}" y2="{middle:.1}" style="stroke:var(--ink);stroke-width:1.5"/>"#,
            scale(spread.low),
            scale(spread.high)
        );
        let value = format!("{} {}", number(spread.median), frame.unit);
        text(&mut svg, scale(spread.high.max(spread.median)) + 8.0, middle + 4.0, "start", "ink", value.trim());
    }
    svg + "</svg>\n"
}

/// Draws a chart on paper, which may be dark.
pub fn png(svg: &str, dark: bool, path: &Path) -> anyhow::Result<()> {
    let mut drawn = svg.replace(FONT, "DejaVu Sans");
    for (name, light, on_dark) in COLOURS {
        drawn = drawn.replace(&format!("var(--{name})"), if dark { on_dark } else { light });
    }
    let mut options = usvg::Options::default();
    options.fontdb_mut().load_system_fonts();
    anyhow::ensure!(!options.fontdb.is_empty(), "no font on this machine: apt-get install fonts-dejavu-core");
    let tree = usvg::Tree::from_str(&drawn, &options).context("reading our own chart")?;
    let size = tree.size().to_int_size();
    let (width, height) = (size.width() * 2, size.height() * 2);
    let mut pixels = tiny_skia::Pixmap::new(width, height).context("no picture of this size")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(2.0, 2.0), &mut pixels.as_mut());
    pixels.save_png(path).with_context(|| format!("writing {}", path.display()))
}

fn open(frame: &Frame, height: f64) -> String {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="{FONT}" role="img" aria-label="{}">
<rect width="{WIDTH}" height="{height}" style="fill:var(--paper)"/>
<text x="14" y="24" font-size="16" font-weight="bold" style="fill:var(--ink)">{}</text>
"#,
        escape(frame.title),
        escape(frame.title)
    );
    text(&mut svg, 14.0, 44.0, "start", "muted", frame.subtitle);
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, colour: &str, text: &str) {
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" font-size="13" text-anchor="{anchor}" style="fill:var(--{colour})">{}</text>"#,
        escape(text)
    );
}

fn mark(index: usize, x: f64, y: f64) -> String {
    let (l, r, t, b) = (x - 4.0, x + 4.0, y - 4.0, y + 4.0);
    match index % 4 {
        0 => format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.8"/>"#),
        1 => format!(r#"<rect x="{l:.1}" y="{t:.1}" width="8" height="8"/>"#),
        2 => format!(r#"<path d="M{x:.1},{t:.1} L{r:.1},{b:.1} L{l:.1},{b:.1} Z"/>"#),
        _ => format!(
            r#"<path d="M{x:.1},{:.1} L{:.1},{y:.1} L{x:.1},{:.1} L{:.1},{y:.1} Z"/>"#,
            t - 1.0,
            r + 1.0,
            b + 1.0,
            l - 1.0
        ),
    }
}

/// For text in XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

// === impl Scale ===

impl Scale {
    fn of(values: &[f64], logarithmic: bool, from: f64, to: f64) -> Self {
        let least = values.iter().copied().filter(|value| !logarithmic || *value > 0.0).fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (low, high) = if logarithmic {
            // Down and up to round numbers.
            let (least, most) = if least.is_finite() { (least, most.max(least)) } else { (1.0, 10.0) };
            let round = |value: f64, up: bool| {
                let power = 10f64.powf(value.log10().floor());
                let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
                let found = if up {
                    steps.iter().find(|step| **step >= value)
                } else {
                    steps.iter().rfind(|step| **step <= value)
                };
                found.copied().unwrap_or(value)
            };
            // What is just below a round number may stand on the edge.
            let low = round(least * 1.03, false);
            (low, round(most, true).max(low * 2.0))
        } else {
            (0.0, most * 1.05)
        };
        Self { low, high, logarithmic, from, to }
    }

    fn at(&self, value: f64) -> f64 {
        let part = if self.logarithmic {
            (value.max(self.low).ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        let inside = |tick: &f64| (self.low * 0.999..=self.high * 1.001).contains(tick);
        if self.logarithmic {
            let decades = (self.high / self.low).log10();
            let steps: &[f64] = if decades > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let powers = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
            let all = powers.flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
            return all.filter(inside).collect();
        }
        let rough = self.high / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..=6).map(|number| f64::from(number) * step).filter(inside).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64) -> Spread {
        Spread { low: median * 0.9, median, high: median * 1.1 }
    }

    #[test]
    fn every_colour_that_is_used_exists() {
        let line =
            |name: &str| Line { name: name.to_owned(), points: vec![(1.0, spread(20.0)), (10_000.0, spread(400.0))] };
        let names = COLOURS.iter().skip(4).map(|(name, ..)| line(name)).collect::<Vec<_>>();
        let frame = Frame { title: "a < b", subtitle: "", unit: "µs", logarithmic: true };
        let mut drawn = lines(&frame, &names);
        drawn.push_str(&bars(&frame, &[Bar { contender: "nginx".into(), label: "x".into(), spread: spread(0.0) }]));
        for (name, light, _) in COLOURS {
            drawn = drawn.replace(&format!("var(--{name})"), light);
        }
        assert!(!drawn.contains("var("), "{drawn}");
        assert!(drawn.contains("a &lt; b") && !drawn.contains("NaN") && !drawn.contains("inf"));
    }

    #[test]
    fn scales_have_round_ticks() {
        let scale = Scale::of(&[16.0, 410.0], true, 0.0, 100.0);
        assert_eq!(scale.ticks(), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert!(scale.at(10.0).abs() < 1e-9 && (scale.at(500.0) - 100.0).abs() < 1e-9);
        assert_eq!(Scale::of(&[9.0], false, 0.0, 1.0).ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
    }
}

//! One picture of all figures: a panel per metric, a column per size, a dot per round, a line where a target is. An SVG that needs
//! nothing else to be looked at.

use std::fmt::Write;

/// A metric.
#[derive(Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) groups: Vec<Group>,
}

/// What was measured at one size.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) label: String,
    /// By round.
    pub(super) values: Vec<f64>,
    /// What is not to be exceeded.
    pub(super) target: Option<f64>,
}

const COLUMNS: usize = 3;
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 210.0;
/// Within a panel: where the figures' area begins and ends.
const LEFT: f64 = 52.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 178.0;

/// Draws them, from left to right and from top to bottom.
pub(super) fn draw(panels: &[Panel]) -> String {
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * panels.len().div_ceil(COLUMNS) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = ((index % COLUMNS) as f64 * WIDTH, (index / COLUMNS) as f64 * HEIGHT);
        writeln!(svg, "<g transform=\"translate({x} {y})\">\n{}</g>", panel.draw()).expect("writing to a string");
    }
    svg.push_str("</svg>\n");
    svg
}

// === impl Panel ===

impl Panel {
    fn draw(&self) -> String {
        let all = self.groups.iter().flat_map(|group| group.values.iter().copied().chain(group.target));
        let top = nice(all.fold(0.0, f64::max));
        let height = |value: f64| BOTTOM - (BOTTOM - TOP) * value / top;
        let mut svg = format!("<text x=\"8\" y=\"18\" font-size=\"12\">{}</text>\n", escaped(&self.title));
        let mut add = |line: String| svg.push_str(&line);
        for tick in [0.0, top / 2.0, top] {
            let (y, right) = (height(tick), WIDTH - 8.0);
            add(format!("<line x1=\"{LEFT}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\" stroke=\"#ddd\"/>\n"));
            add(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tick}</text>\n", LEFT - 5.0, y + 4.0));
        }
        let step = (WIDTH - 8.0 - LEFT) / self.groups.len().max(1) as f64;
        for (index, group) in self.groups.iter().enumerate() {
            let middle = LEFT + step * (index as f64 + 0.5);
            let label = escaped(&group.label);
            add(format!("<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\n", BOTTOM + 16.0));
            if let Some(target) = group.target {
                let (y, half) = (height(target), step * 0.4);
                let (x1, x2) = (middle - half, middle + half);
                add(format!(
                    "<line x1=\"{x1}\" y1=\"{y}\" x2=\"{x2}\" y2=\"{y}\" stroke=\"#c33\" stroke-width=\"2\"/>\n"
                ));
            }
            for value in &group.values {
                let color = if group.target.is_some_and(|target| *value > target) { "#c33" } else { "#1a6" };
                add(format!("<circle cx=\"{middle}\" cy=\"{}\" r=\"4\" fill=\"{color}\"/>\n", height(*value)));
            }
        }
        svg
    }
}

/// The next of 1, 2, 5, 10, 20... that is not below.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panel_has_a_dot_per_round_and_a_line_per_target() {
        let group = |target| Group { label: "1 x 2".to_owned(), values: vec![3.0, 7.0], target };
        let panels = [Panel { title: "a < b".to_owned(), groups: vec![group(Some(5.0)), group(None)] }];
        let svg = draw(&panels);
        let count = |text: &str| svg.matches(text).count();
        assert_eq!((count("<circle"), count("stroke-width"), count("a &lt; b")), (4, 1, 1));
        assert_eq!(count("#c33"), 2, "the line, and the dot above it");
        assert_eq!([0.3, 7.0, 10.0, 11.0].map(nice), [0.5, 10.0, 10.0, 20.0]);
    }
}

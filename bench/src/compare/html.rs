//! The report: one HTML file that needs nothing else, a table of all rows as CSV, the tables as Markdown, and the main charts as PNG.
//!
//! What is in it is computed from the journals alone, so `--report` makes the same again. Figures are medians over rounds with quartiles;
//! what failed stands where its figure would be, and what was not tried says why.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::chart::{self, Bar, COLOURS, Frame, Line, escape};
use super::markdown;
use super::model::{Figure, Measurement};
use super::record::{Manifest, Place};
use super::summary::{self, Row, Worse, number};

/// Files of the report.
const HTML: &str = "compare.html";
const CSV: &str = "compare.csv";
const MARKDOWN: &str = "compare.md";

/// Charts for where only pictures are shown, each for light and dark pages: of which lines, and the file's name.
const PICTURES: [(usize, &str); 2] = [(0, "compare-setup"), (2, "compare-one-change")];

const STYLE: &str = "\
body{margin:0 auto;max-width:60rem;padding:1.5rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
h1{line-height:1.2}h2{margin-top:2.5rem;border-bottom:1px solid var(--grid)}h3{margin-top:2rem}
table{border-collapse:collapse;margin:.75rem 0;font-size:.875rem;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--grid);text-align:right;vertical-align:top}
th:first-child,td:first-child,td.text,th.text{text-align:left}td.text{max-width:34rem}
tr.ours td{font-weight:600}small,.muted{color:var(--muted);font-weight:400}.failed{color:#cf222e;text-align:left}
svg{max-width:100%;height:auto;display:block;margin:.5rem 0}code{font-size:.9em}a{color:var(--pointsman)}
@media (prefers-color-scheme:dark){.failed{color:#ff7b72}}
";

/// What the lines of charts are drawn of.
const LINES: [(Measurement, &str, bool); 7] = [
    (Measurement::Setup, "p50_ratio", true),
    (Measurement::Setup, "p99_us", true),
    (Measurement::OneChange, "p50_ms", true),
    (Measurement::FirstSync, "ms", true),
    (Measurement::Cost, "kernel_mb", true),
    (Measurement::Cost, "cpu_ms", true),
    (Measurement::Requests, "rate", false),
];

const BARS: [(Measurement, &str); 6] = [
    (Measurement::Throughput, "gbps"),
    (Measurement::Udp, "p50_us"),
    (Measurement::Packets, "rate"),
    (Measurement::Balance, "most"),
    (Measurement::Moved, "left_pct"),
    (Measurement::Removal, "ms"),
];

/// Who forwards in user space.
const USERSPACE: [&str; 3] = ["pointsman-userspace", "haproxy", "nginx"];

/// Writes everything.
pub fn write(directory: &Path, places: &[Place]) -> anyhow::Result<()> {
    anyhow::ensure!(!places.is_empty(), "no journal in {}", directory.display());
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    put(HTML, &page(places))?;
    put(CSV, &summary::csv(places))?;
    put(MARKDOWN, &markdown::page(places))?;
    let rows = summary::rows(&places[0]);
    for (line, name) in PICTURES {
        let drawn = line_chart(&places[0], &rows, LINES[line]);
        if drawn.is_empty() {
            eprintln!("no {name}.png: there are no figures for it yet");
            continue;
        }
        for (suffix, dark) in [("", false), ("-dark", true)] {
            let name = format!("{name}{suffix}.png");
            if let Err(error) = chart::png(&drawn, dark, &directory.join(&name)) {
                eprintln!("no {name}: {error:#}");
            }
        }
    }
    println!("written to {}: {HTML}, {CSV}, {MARKDOWN} and the main charts", directory.display());
    Ok(())
}

fn page(places: &[Place]) -> String {
    let mut page = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
                    <meta name=\"viewport\" content=\"width=device-width\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
                    <title>Service proxies side by side</title>\n<style>\n"
        .to_owned();
    let colours = |dark: bool| -> String {
        COLOURS
            .iter()
            .map(|(name, light, on_dark)| format!("--{name}:{};", if dark { on_dark } else { light }))
            .collect()
    };
    let _ = writeln!(
        page,
        ":root{{color-scheme:light dark;{}}}\n@media (prefers-color-scheme:dark){{:root{{{}}}}}\n{STYLE}</style>",
        colours(false),
        colours(true)
    );
    page.push_str(
        "<h1>Service proxies side by side</h1>\n<p>The same Services, programmed by one contender after the other, in network namespaces of one \
         machine: a client, a node, a pod. Figures are medians over rounds, with quartiles in brackets. A <em>place</em> is a kernel on which \
         everything was run; figures of different places do not compare, ratios to the floor of the same place do.</p>\n<p>",
    );
    for place in places {
        let Manifest { place, kernel, .. } = place.manifest();
        let _ = write!(page, "<a href=\"#{place}\">Place {place}: Linux {}</a> ", escape(kernel));
    }
    page.push_str("</p>\n");
    for place in places {
        self::place(&mut page, place);
    }
    page.push_str("<h2 id=\"how\">How each is measured</h2>\n<table>\n");
    for measurement in Measurement::ALL {
        let _ = writeln!(
            page,
            "<tr><td>{}<br><small>{}</small><td class=\"text\">{}",
            measurement.title(),
            measurement.name(),
            escape(measurement.meaning())
        );
    }
    page.push_str(
        "</table>\n<p>Everybody is seen from outside, by connections of a client. All are told the same: the clients' network is that of the pods, so \
         sources are kept. Who begins moves on from session to session. Before and after each measurement the floor (connecting to the pod, no proxy \
         on the node) is taken; if it moved by more than 10 %, the measurement is repeated, up to three times. Raw data: \
         <code>compare-*.jsonl</code> beside this file, a line per observation; all rows of the tables: <code>compare.csv</code>.</p>\n</html>\n",
    );
    page
}

fn place(page: &mut String, place: &Place) {
    let (manifest, rows) = (place.manifest(), summary::rows(place));
    let name = &manifest.place;
    let _ = writeln!(page, "<h2 id=\"{name}\">Place {name}: Linux {}</h2>\n<table>", escape(&manifest.kernel));
    let floors: Vec<f64> = place.records.iter().flat_map(|record| record.floor).filter(|floor| *floor > 0.0).collect();
    let measured = place.records.iter().filter(|record| record.attempts > 0).count();
    let repeated = place.records.iter().filter(|record| record.attempts > 1).count();
    let drifted: usize = rows.iter().map(|row| row.drifted).sum();
    let mut facts = vec![
        ("machine", manifest.machine.clone()),
        ("when", runs(place)),
        ("command", format!("<code>{}</code>", escape(&manifest.command))),
        ("commit", manifest.commit.clone()),
        ("load average at the start", manifest.load_average.clone()),
        (
            "plan",
            format!(
                "{}; {} connections per set-up block; everything at {} Services; {} endpoints each",
                summary::rounds(&rows, manifest.rounds),
                number(manifest.samples as f64),
                manifest.base,
                manifest.endpoints
            ),
        ),
        ("programs", escape(&manifest.programs.join("; "))),
    ];
    if !floors.is_empty() {
        let spread = crate::stats::Spread::of(floors);
        facts.push(("floor, p50 of connecting", format!("{spread:.1} µs; {measured} observations, of which {repeated} were repeated because it moved, and {drifted} kept though it still did")));
    }
    facts.extend(place.notes.iter().map(|note| ("note", escape(note))));
    for (key, value) in facts {
        let _ = writeln!(page, "<tr><td>{key}<td class=\"text\">{value}");
    }
    page.push_str("</table>\n<h3>Who takes part</h3>\n<table>\n<tr><th>contender<th class=\"text\">what it is<th class=\"text\">how, and what it says of itself\n");
    for one in place.participants() {
        let version =
            if one.version.is_empty() { String::new() } else { format!("<br><small>{}</small>", escape(&one.version)) };
        let missing = one
            .unavailable
            .as_ref()
            .map_or(String::new(), |reason| format!("<br><span class=\"failed\">not here: {}</span>", escape(reason)));
        let _ = writeln!(
            page,
            "<tr><td>{}<td class=\"text\">{}<td class=\"text\">{}{version}{missing}",
            one.name,
            one.kind,
            escape(&one.title)
        );
    }
    page.push_str(
        "</table>\n<p class=\"muted\">A baseline reproduces the documented shape of kube-proxy's rules with the real tools; it is not kube-proxy, and \
         has no control plane of its own.</p>\n",
    );
    let _ = writeln!(page, "<h3 id=\"{name}-charts\">Charts</h3>");
    let charts = LINES.map(|line| (line.0, line_chart(place, &rows, line)));
    let charts = charts
        .into_iter()
        .chain(BARS.map(|(measurement, key)| (measurement, bar_chart(place, &rows, measurement, key))));
    let mut charts = charts.filter(|(_, drawn)| !drawn.is_empty()).peekable();
    while let Some((measurement, drawn)) = charts.next() {
        page.push_str(&drawn);
        // After the last one; the userspace proxies are not in charts of connection set-up, which they answer themselves.
        if measurement != Measurement::Setup && charts.peek().is_none_or(|(next, _)| *next != measurement) {
            caveat(page, measurement);
        }
    }
    worse(page, name, &summary::worse(&rows));
    let _ = writeln!(page, "<h3 id=\"{name}-tables\">All figures</h3>");
    for measurement in Measurement::ALL {
        let of: Vec<_> = rows.iter().filter(|row| row.measurement == measurement).collect();
        if of.is_empty() {
            continue;
        }
        let _ = writeln!(page, "<h4 id=\"{name}-{}\">{}</h4>", measurement.name(), measurement.title());
        caveat(page, measurement);
        if measurement.by_size() {
            by_size(page, name, measurement, &of)
        } else {
            by_variant(page, name, measurement, &of)
        }
    }
}

/// When it was run.
pub fn runs(place: &Place) -> String {
    let (first, last) = (&place.manifests[0], place.manifest());
    match place.manifests.len() {
        1 => first.when.clone(),
        count => format!("{} to {}, in {count} runs", first.when, last.when),
    }
}

fn worse(page: &mut String, name: &str, found: &[Worse]) {
    let _ = writeln!(page, "<h3 id=\"{name}-worse\">Where we are worse</h3>");
    if found.is_empty() {
        page.push_str(
            "<p>Nowhere by more than 2 %, against any peer of the same kind, in any figure of this place.</p>\n",
        );
        return;
    }
    page.push_str(
        "<p>Every figure in which a peer's median is better than ours by more than 2 %: the kernel's data planes against ours in the kernel, HAProxy and \
         nginx against our forwarder. By number of Services: ours, theirs, and how many times worse; with a question mark where the quartiles \
         overlap. The machine's own speed moves (see the floor), and absolute times and rates with it: of set-up, the ratio is what holds.</p>\n<table>\n<tr><th>figure<th class=\"text\">ours<th class=\"text\">peer<th class=\"text\">where\n",
    );
    for one in found {
        let variant = if one.variant.is_empty() { String::new() } else { format!(" ({})", escape(&one.variant)) };
        let unit = if one.figure.unit.is_empty() { String::new() } else { format!(", {}", one.figure.unit) };
        let _ = writeln!(
            page,
            "<tr><td>{}: {}{variant}{unit}<td class=\"text\">{}<td class=\"text\">{}<td class=\"text\">{}",
            one.measurement.title(),
            one.figure.title,
            one.ours,
            one.peer,
            one.at.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        );
    }
    page.push_str("</table>\n");
}

/// What a figure must not be read without.
fn caveat(page: &mut String, measurement: Measurement) {
    if let Some(caveat) = measurement.caveat() {
        let _ = writeln!(page, "<p class=\"muted\">{}</p>", escape(caveat));
    }
}

fn figure(measurement: Measurement, key: &str) -> &'static Figure {
    measurement.figures().iter().find(|figure| figure.key == key).expect("one of its figures")
}

fn line_chart(place: &Place, rows: &[Row], (measurement, key, logarithmic): (Measurement, &str, bool)) -> String {
    let manifest = place.manifest();
    let of = |name: &String| {
        let own = rows.iter().filter(|row| row.contender == *name && row.measurement == measurement);
        let mut points: Vec<_> =
            own.filter_map(|row| Some((f64::from(row.services), *row.figures.get(key)?))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        // What a machine as a whole gained or lost is no size.
        if logarithmic {
            points.retain(|(_, spread)| spread.median > 0.0);
        }
        Line { name: name.clone(), points }
    };
    // A userspace proxy answers the handshake by itself.
    let only_kernel = measurement == Measurement::Setup;
    let shown = place.participants().into_iter().filter(|one| !(only_kernel && USERSPACE.contains(&one.name.as_str())));
    let lines: Vec<_> = shown.map(|one| of(&one.name)).filter(|line| !line.points.is_empty()).collect();
    let drawn = rows.iter().filter(|row| row.measurement == measurement).cloned().collect::<Vec<_>>();
    let rounds = summary::rounds(&drawn, manifest.rounds);
    let figure = figure(measurement, key);
    let title = format!("{}: {}, {}", measurement.title(), figure.title, figure.unit);
    let better = if figure.more == Some(true) { "more is better" } else { "less is better" };
    let subtitle = format!("{better}; Linux {}; medians and quartiles of {rounds}", manifest.kernel);
    chart::lines(&Frame { title: &title, subtitle: &subtitle, unit: figure.unit, logarithmic }, &lines)
}

fn bar_chart(place: &Place, rows: &[Row], measurement: Measurement, key: &str) -> String {
    let bars = rows.iter().filter(|row| row.measurement == measurement).filter_map(|row| {
        let label = if row.variant.is_empty() || row.variant == "default" {
            row.contender.clone()
        } else {
            format!("{} {}", row.contender, row.variant)
        };
        Some(Bar { contender: row.contender.clone(), label, spread: *row.figures.get(key)? })
    });
    let figure = figure(measurement, key);
    let (title, manifest) = (format!("{}: {}", measurement.title(), figure.title), place.manifest());
    let better = if figure.more == Some(true) { "more is better" } else { "less is better" };
    let subtitle = format!("{better}; Linux {}; {} Services", manifest.kernel, manifest.base);
    chart::bars(
        &Frame { title: &title, subtitle: &subtitle, unit: figure.unit, logarithmic: false },
        &bars.collect::<Vec<_>>(),
    )
}

fn row_begin(page: &mut String, contender: &str, label: &str) {
    let ours = if contender.starts_with("pointsman") { " class=\"ours\"" } else { "" };
    let _ = write!(page, "<tr{ours}><td>{}", escape(label));
}

/// A figure, or why there is none.
fn cell(page: &mut String, id: &str, row: &Row, key: &str) {
    let Some(spread) = row.figures.get(key) else {
        let _ = match (row.failures.first(), &row.declined) {
            (Some(reason), _) => {
                write!(page, "<td id=\"{id}\" class=\"failed\" title=\"{0}\">failed: {0}", escape(reason))
            }
            (_, Some(reason)) => write!(page, "<td id=\"{id}\" class=\"muted\"><small>{}</small>", escape(reason)),
            _ => write!(page, "<td id=\"{id}\">"),
        };
        return;
    };
    let _ = write!(
        page,
        "<td id=\"{id}\">{} <small>[{}, {}]</small>",
        number(spread.median),
        number(spread.low),
        number(spread.high)
    );
    if row.failed > 0 {
        let _ = write!(page, "<br><small class=\"failed\">{} of {} failed</small>", row.failed, row.failed + row.runs);
    }
}

/// A table per figure: contenders by sizes.
fn by_size(page: &mut String, place: &str, measurement: Measurement, rows: &[&Row]) {
    let mut sizes: Vec<u32> = rows.iter().map(|row| row.services).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut names: Vec<&str> = Vec::new();
    rows.iter().for_each(|row| {
        if !names.contains(&row.contender.as_str()) {
            names.push(&row.contender);
        }
    });
    for figure in measurement.figures() {
        let unit = if figure.unit.is_empty() { String::new() } else { format!(", {}", figure.unit) };
        let _ = write!(page, "<table>\n<tr><th>{}{unit}", figure.title);
        sizes.iter().for_each(|size| {
            let _ = write!(page, "<th>{}", number(f64::from(*size)));
        });
        page.push_str("<th>runs\n");
        for name in &names {
            let of = |size: u32| rows.iter().find(|row| row.contender == *name && row.services == size);
            let reasons: Vec<_> = sizes.iter().filter_map(|size| of(*size)).map(|row| row.declined.as_ref()).collect();
            row_begin(page, name, name);
            if let (true, Some(reason)) = (reasons.iter().all(Option::is_some), reasons.first().copied().flatten()) {
                let _ = writeln!(
                    page,
                    "<td class=\"text muted\" colspan=\"{}\"><small>{}</small>",
                    sizes.len() + 1,
                    escape(reason)
                );
                continue;
            }
            for size in &sizes {
                match of(*size) {
                    Some(row) => {
                        cell(
                            page,
                            &format!("{place}-{}-{}-{name}-{size}", measurement.name(), figure.key),
                            row,
                            figure.key,
                        );
                    }
                    None => page.push_str("<td class=\"muted\">not yet"),
                }
            }
            let runs = summary::runs(sizes.iter().filter_map(|size| of(*size)).copied());
            let _ = writeln!(page, "<td>{runs}");
        }
        page.push_str("</table>\n");
    }
}

/// One table: contenders and variants by figures.
fn by_variant(page: &mut String, place: &str, measurement: Measurement, rows: &[&Row]) {
    page.push_str("<table>\n<tr><th>contender");
    for figure in measurement.figures() {
        let unit = if figure.unit.is_empty() { String::new() } else { format!(", {}", figure.unit) };
        let _ = write!(page, "<th>{}{unit}", figure.title);
    }
    page.push_str("<th>runs\n");
    for row in rows {
        let label =
            if row.variant.is_empty() { row.contender.clone() } else { format!("{}: {}", row.contender, row.variant) };
        row_begin(page, &row.contender, &label);
        let reason = row.failures.first().map(|reason| ("failed", format!("failed: {reason}")));
        let reason = reason.or_else(|| row.declined.clone().map(|reason| ("muted", reason)));
        match reason {
            Some((class, reason)) if row.runs == 0 => {
                let width = measurement.figures().len() + 1;
                let _ =
                    writeln!(page, "<td class=\"text {class}\" colspan=\"{width}\"><small>{}</small>", escape(&reason));
            }
            _ => {
                for figure in measurement.figures() {
                    let id = format!("{place}-{}-{}-{}-{}", measurement.name(), figure.key, row.contender, row.variant);
                    cell(page, &id, row, figure.key);
                }
                let _ = writeln!(page, "<td>{}", row.runs);
            }
        }
    }
    page.push_str("</table>\n");
}

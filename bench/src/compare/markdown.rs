//! The tables of the report as Markdown, for where HTML is not shown and for the README, whose claims link to rows in here.
//!
//! Each row has an anchor, in its last cell so that the text stays readable: `PLACE-MEASUREMENT-FIGURE-CONTENDER` where figures stand by size,
//! `PLACE-MEASUREMENT-CONTENDER[-VARIANT]` elsewhere. `tests/readme.rs` follows the README's links.

use std::collections::BTreeSet;
use std::fmt::{Display, Write};

use super::html::runs;
use super::model::{Figure, Measurement};
use super::record::{Manifest, Place};
use super::summary::{self, Row, number};
use crate::report::Table;

/// All places.
pub fn page(places: &[Place]) -> String {
    let mut text = "# compare\n\nComputed from the journals beside this file by `cargo run --release -p bench -- compare --report`. \
                    Charts, and what every figure means: `compare.html`. All figures with quartiles: `compare.csv`.\n"
        .to_owned();
    for place in places {
        let (manifest, rows) = (place.manifest(), summary::rows(place));
        let Manifest { place: name, kernel, machine, commit, command, rounds, .. } = manifest;
        let _ = writeln!(
            text,
            "\n## {name}: Linux {kernel}\n\n- machine: {machine}\n- when: {}\n- commit: {commit}\n- command: `{command}`\n- medians [quartiles] of {}; the column *runs* says of how many, by the number of Services where that differs",
            runs(place),
            summary::rounds(&rows, *rounds)
        );
        for note in &place.notes {
            let _ = writeln!(text, "- note: {note}");
        }
        for measurement in Measurement::ALL {
            let of: Vec<_> = rows.iter().filter(|row| row.measurement == measurement).collect();
            if of.iter().all(|row| row.runs == 0) {
                continue;
            }
            let _ = writeln!(text, "\n### {name}: {}\n", measurement.title());
            if let Some(caveat) = measurement.caveat() {
                let _ = writeln!(text, "{caveat}\n");
            }
            if measurement.by_size() {
                by_size(&mut text, name, measurement, &of);
            } else {
                by_variant(&mut text, name, measurement, &of);
            }
        }
        let found = summary::worse(&rows);
        let _ = writeln!(text, "\n### {name}: where we are worse\n");
        let mut table = Table::new(&["figure", "ours", "peer", "Services: ours to theirs"]);
        for one in &found {
            let what =
                format!("{}: {}, {} {}", one.measurement.title(), one.figure.title, one.figure.unit, one.variant);
            let at = one.at.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            table.row(&[&what.trim_end(), &one.ours, &one.peer, &at]);
        }
        let _ = if found.is_empty() { writeln!(text, "Nowhere by more than 2 %.") } else { write!(text, "{table}") };
    }
    text
}

/// A table per figure: contenders by sizes.
fn by_size(text: &mut String, place: &str, measurement: Measurement, rows: &[&Row]) {
    let sizes: BTreeSet<u32> = rows.iter().map(|row| row.services).collect();
    for (index, figure) in measurement.figures().iter().enumerate() {
        let mut head = vec![heading(figure)];
        head.extend(sizes.iter().map(|size| number(f64::from(*size))));
        head.push("runs".to_owned());
        let mut table = table(&head);
        for name in names(rows) {
            let of = |size: &u32| rows.iter().find(|row| row.contender == name && row.services == *size);
            let found: Vec<_> = sizes.iter().map(of).collect();
            if found.iter().flatten().all(|row| row.runs == 0 && row.failed == 0) {
                continue;
            }
            let mut cells = vec![name.to_owned()];
            cells.extend(found.iter().map(|row| row.map_or("-".to_owned(), |row| cell(row, figure))));
            let runs = summary::runs(found.iter().flatten().map(|row| **row));
            cells.push(format!("{runs} {}", anchor(&[place, measurement.name(), figure.key, name])));
            add(&mut table, &cells);
        }
        let _ = write!(text, "{}{table}", if index == 0 { "" } else { "\n" });
    }
}

/// One table: contenders and variants by figures.
fn by_variant(text: &mut String, place: &str, measurement: Measurement, rows: &[&Row]) {
    let mut head = vec!["contender".to_owned()];
    head.extend(measurement.figures().iter().map(heading));
    head.push("runs".to_owned());
    let mut table = table(&head);
    for row in rows.iter().filter(|row| row.runs + row.failed > 0) {
        let Row { contender, variant, runs, .. } = row;
        let mut cells = vec![if variant.is_empty() { contender.clone() } else { format!("{contender}: {variant}") }];
        cells.extend(measurement.figures().iter().map(|figure| cell(row, figure)));
        cells.push(format!("{runs} {}", anchor(&[place, measurement.name(), contender, variant])));
        add(&mut table, &cells);
    }
    let _ = write!(text, "{table}");
}

/// In the order in which they come.
fn names<'a>(rows: &[&'a Row]) -> Vec<&'a str> {
    let mut known = BTreeSet::new();
    rows.iter().map(|row| row.contender.as_str()).filter(|name| known.insert(*name)).collect()
}

fn heading(figure: &Figure) -> String {
    if figure.unit.is_empty() { figure.title.to_owned() } else { format!("{}, {}", figure.title, figure.unit) }
}

fn cell(row: &Row, figure: &Figure) -> String {
    let failed =
        if row.failed > 0 { format!("{} of {} failed", row.failed, row.failed + row.runs) } else { String::new() };
    let Some(spread) = row.figures.get(figure.key) else {
        return if failed.is_empty() { "-".to_owned() } else { failed };
    };
    let figures = format!("{} [{}, {}]", number(spread.median), number(spread.low), number(spread.high));
    if failed.is_empty() { figures } else { format!("{figures}, {failed}") }
}

/// What a link to a row names: letters, digits, `-` and `_` alone.
fn anchor(parts: &[&str]) -> String {
    let parts: Vec<_> = parts.iter().filter(|part| !part.is_empty()).map(|part| part.replace(',', "-")).collect();
    format!("<a id=\"{}\"></a>", parts.join("-"))
}

fn table(head: &[String]) -> Table {
    Table::new(&head.iter().map(String::as_str).collect::<Vec<_>>())
}

fn add(table: &mut Table, cells: &[String]) {
    table.row(&cells.iter().map(|cell| cell as &dyn Display).collect::<Vec<_>>());
}

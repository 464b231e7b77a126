//! What the README says of the comparison stands in the results that it links to.
//!
//! A figure is a link to a row of a `compare.md`, written inline or by reference (`[1.35][setup]`, and `[setup]:
//! bench/results/.../compare.md#host-setup-p50_ratio-pointsman` elsewhere): the row must be there, and every number of the link's text in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Text and target of links in Markdown.
fn links(text: &str) -> Vec<(String, String)> {
    let definition = |line: &str| {
        let (name, target) = line.strip_prefix('[')?.split_once("]: ")?;
        Some((name.to_owned(), target.trim().to_owned()))
    };
    let definitions: BTreeMap<String, String> = text.lines().filter_map(definition).collect();
    let mut links = Vec::new();
    for (between, closing) in [("](", ')'), ("][", ']')] {
        for (at, _) in text.match_indices(between) {
            let Some(begin) = text[..at].rfind('[') else { continue };
            let target = &text[at + 2..];
            let Some(target) = target.find(closing).map(|end| target[..end].to_owned()) else { continue };
            let target = if closing == ')' { Some(target) } else { definitions.get(&target).cloned() };
            links.extend(target.map(|target| (text[begin + 1..at].to_owned(), target)));
        }
    }
    links
}

fn numbers(text: &str) -> Vec<&str> {
    let parts = text.split(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == ','));
    parts.map(|part| part.trim_matches(['.', ','])).filter(|part| !part.is_empty()).collect()
}

#[test]
fn numbers_are_read() {
    assert_eq!(numbers("**1,234** to 10.5 µs, 3."), ["1,234", "10.5", "3"]);
    let pair = |text: &str, target: &str| (text.to_owned(), target.to_owned());
    let found = links("a [b](c#d), [1.5][e]\n\n[e]: f#g\n");
    assert_eq!(found, [pair("b", "c#d"), pair("1.5", "f#g")]);
}

#[test]
fn every_figure_of_the_comparison_stands_in_the_row_that_it_links_to() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md")).expect("the README");
    let mut figures = 0;
    for (text, target) in links(&readme) {
        let Some((file, anchor)) = target.split_once("/compare.md#") else { continue };
        let table = fs::read_to_string(root.join(file).join("compare.md")).expect("results");
        let row = table.lines().find(|line| line.contains(&format!("id=\"{anchor}\"")));
        let row = row.unwrap_or_else(|| panic!("{target}: no such row"));
        let found = numbers(row);
        for number in numbers(&text) {
            assert!(found.contains(&number), "{number} of [{text}] is not in {row}");
            figures += 1;
        }
    }
    assert!(figures >= 10, "the README links {figures} figures to rows of the comparison");
}

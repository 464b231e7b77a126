//! What the README says of the comparison stands in the results that it links to.
//!
//! A figure is a link to a row of a `compare.md` (`[10.6](bench/results/.../compare.md#host-setup-p50_us-pointsman)`): the row must be there,
//! and every number of the link's text in it.

use std::fs;
use std::path::Path;

/// Text and target of links in Markdown.
fn links(text: &str) -> Vec<(String, String)> {
    let mut links = Vec::new();
    for (at, _) in text.match_indices("](") {
        let Some(begin) = text[..at].rfind('[') else { continue };
        let Some(end) = text[at..].find(')') else { continue };
        links.push((text[begin + 1..at].to_owned(), text[at + 2..at + end].to_owned()));
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
    assert_eq!(links("a [b](c#d), [e](f)"), [("b".to_owned(), "c#d".to_owned()), ("e".to_owned(), "f".to_owned())]);
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

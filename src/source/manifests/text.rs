//! From text to documents, and from a document to typed values.
//!
//! The two formats of manifests, YAML and JSON, differ here and nowhere else: [`documents`] cuts a file into documents and
//! [`read`] decodes one of them with a serde seed. A document can thus be decoded twice, first for its kind and then for its type,
//! without an untyped tree in between, which keeps line numbers and costs no memory.
//!
//! Both formats name the path of the offending field (`spec.ports[0].port`) and the line. Input is not trusted: nesting is limited
//! (64 levels in YAML, 128 in JSON, so that no stack overflows), and so is what YAML aliases may expand to. Lines are 1-based.

use serde::de::{DeserializeSeed, IgnoredAny};
use serde_saphyr::{DuplicateKeyPolicy, MessageFormatter};

/// How a manifest is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `.yaml`, `.yml`
    Yaml,
    /// `.json`; several values after each other are several documents.
    Json,
}

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Line of the file on which `text` begins.
    pub line: usize,
    /// The document alone.
    pub text: &'a str,
}

/// Where and why a text was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Line in the file.
    pub line: usize,
    /// Path of the field, empty for the document itself or when it is not even well-formed.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

/// How many parser events all aliases of one document may expand to: thousands of shared label maps, but no bomb.
const MAX_ALIAS_EVENTS: usize = 200_000;
/// Levels of nesting in YAML. Kubernetes objects need about ten.
const MAX_DEPTH: usize = 64;
/// Bytes of scalars in one document, aliases expanded.
const MAX_SCALAR_BYTES: usize = 96 << 20;

/// Stack for reading one file. Nesting is limited, but an unoptimised build spends up to 64 KiB on one level of it.
const STACK: usize = 16 << 20;

/// Does `work`, which reads untrusted text, on a thread of its own: its stack fits the nesting allowed, and its panic is an error
/// like any other.
///
/// # Errors
/// It panicked, or there is no thread to be had.
pub fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("reader".to_owned()).stack_size(STACK);
        match reader.spawn_scoped(scope, work).map(|thread| thread.join()) {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err("the parser panicked on it".to_owned()),
            Err(error) => Err(format!("no thread to read it with: {error}")),
        }
    })
}

/// Cuts a file into documents. Empty ones (blank, comments only) are left out.
///
/// # Errors
/// JSON that is not well-formed. YAML is only cut, not read.
pub fn documents(format: Format, text: &str) -> Result<Vec<Document<'_>>, Fault> {
    match format {
        Format::Yaml => Ok(yaml_documents(text)),
        Format::Json => json_documents(text),
    }
}

/// Decodes one document.
///
/// # Errors
/// The document is malformed, too deep, too repetitive, or not what the seed expects.
pub fn read<'a, S>(format: Format, document: Document<'a>, seed: S) -> Result<S::Value, Fault>
where
    S: DeserializeSeed<'a>,
{
    match format {
        Format::Yaml => yaml(document, seed, DuplicateKeyPolicy::Error),
        Format::Json => json(document, seed),
    }
}

/// Decodes one document like [`read`], but hands every occurrence of a repeated key to the seed, which decides.
///
/// # Errors
/// As [`read`].
pub fn read_repeated<'a, S>(format: Format, document: Document<'a>, seed: S) -> Result<S::Value, Fault>
where
    S: DeserializeSeed<'a>,
{
    match format {
        Format::Yaml => yaml(document, seed, DuplicateKeyPolicy::PassThrough),
        Format::Json => json(document, seed),
    }
}

/// A line of `---` at its first column separates documents even inside scalars (YAML 1.2.2, rule 206, c-forbidden), so lines
/// suffice to cut. Directives (`%YAML 1.2`) in front of a separator form a chunk of their own and are dropped.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let marker = |line: &str, mark: &str| {
        line.strip_prefix(mark).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let hollow = |line: &str| {
        let rest = if marker(line, "---") { &line[3..] } else { line };
        let rest = rest.trim();
        rest.is_empty() || rest.starts_with('#') || line.starts_with('%')
    };
    let mut found = Vec::new();
    let (mut start, mut start_line, mut filled) = (0, 1, false);
    let (mut at, mut line_number) = (0, 1);
    let mut cut = |start: usize, end: usize, line: usize, filled: bool| {
        if filled {
            found.push(Document { line, text: &text[start..end] });
        }
    };
    for line in text.split_inclusive('\n') {
        let (begins, ends) = (marker(line, "---"), marker(line, "..."));
        if begins || ends {
            cut(start, at, start_line, filled);
            filled = false;
            (start, start_line) = if begins { (at, line_number) } else { (at + line.len(), line_number + 1) };
        }
        filled |= !ends && !hollow(line);
        at += line.len();
        line_number += 1;
    }
    cut(start, at, start_line, filled);
    found
}

fn json_documents(text: &str) -> Result<Vec<Document<'_>>, Fault> {
    let mut found = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut end, mut line) = (0, 1);
    while let Some(value) = values.next() {
        value.map_err(|error| Fault { line: error.line().max(1), path: String::new(), reason: json_reason(&error) })?;
        let rest = &text[end..values.byte_offset()];
        let blank = rest.len() - rest.trim_start().len();
        line += newlines(&rest[..blank]);
        found.push(Document { line, text: &rest[blank..] });
        line += newlines(&rest[blank..]);
        end = values.byte_offset();
    }
    Ok(found)
}

fn newlines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

fn json<'a, S: DeserializeSeed<'a>>(document: Document<'a>, seed: S) -> Result<S::Value, Fault> {
    let mut from = serde_json::Deserializer::from_str(document.text);
    let mut track = serde_path_to_error::Track::new();
    seed.deserialize(serde_path_to_error::Deserializer::new(&mut from, &mut track)).map_err(|error| Fault {
        line: document.line + error.line().max(1) - 1,
        path: path(track),
        reason: json_reason(&error),
    })
}

/// The one place that knows the YAML library.
fn yaml<'a, S>(document: Document<'a>, seed: S, duplicate_keys: DuplicateKeyPolicy) -> Result<S::Value, Fault>
where
    S: DeserializeSeed<'a>,
{
    let options = serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        with_snippet: false,
        emit_comments: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        // The size of the file bounds everything but aliases, so the counts of honest big files need no bound of their own.
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: MAX_SCALAR_BYTES,
            enforce_alias_anchor_ratio: false,
        },
    };
    let mut at = String::new();
    let outcome = serde_saphyr::with_deserializer_from_str_with_options(document.text, options, |from| {
        let mut track = serde_path_to_error::Track::new();
        seed.deserialize(serde_path_to_error::Deserializer::new(from, &mut track)).inspect_err(|_| at = path(track))
    });
    outcome.map_err(|error| {
        let place = error.location().unwrap_or(serde_saphyr::Location::UNKNOWN);
        let [line, column] = [place.line(), place.column()].map(|n| usize::try_from(n).unwrap_or(1).max(1));
        let mut reason = serde_saphyr::DefaultMessageFormatter.format_message(&error).into_owned();
        // The library says what was expected ("invalid i64"), not what was there.
        if !at.is_empty()
            && let Some(there) = document.text.lines().nth(line - 1).map(|text| snippet(text, column))
            && !there.is_empty()
        {
            reason = format!("{reason} at `{there}`");
        }
        Fault { line: document.line + line - 1, path: at, reason: tame(&reason) }
    })
}

/// The beginning of what is at a column (1-based, in characters) of a line.
fn snippet(line: &str, column: usize) -> String {
    const MOST: usize = 40;
    let rest: String = line.chars().skip(column - 1).collect();
    let rest = rest.trim();
    if rest.chars().count() > MOST { rest.chars().take(MOST).chain(['…']).collect() } else { rest.to_owned() }
}

/// serde_json ends its messages with a place that is relative to the document; [`Fault::line`] says it better.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    tame(text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason))
}

/// A message may quote the input: no control characters, and no megabytes.
fn tame(text: &str) -> String {
    const MOST: usize = 300;
    let mut tamed: String = text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        tamed.push('…');
    }
    tamed
}

fn path(track: serde_path_to_error::Track) -> String {
    let path = track.path().to_string();
    if path == "." { String::new() } else { tame(&path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_cut_at_separators_and_keeps_its_lines() {
        let text =
            "%YAML 1.2\n---\na: 1\n---\n# nothing\n---   \n\nb: |\n  x\n ---\n--- # c\nc: 3\n...\n# end\n--- {d: 4}";
        let cut: Vec<_> = documents(Format::Yaml, text).unwrap().iter().map(|d| (d.line, d.text)).collect();
        assert_eq!(
            cut,
            [(2, "---\na: 1\n"), (6, "---   \n\nb: |\n  x\n ---\n"), (11, "--- # c\nc: 3\n"), (15, "--- {d: 4}")]
        );
        assert!(documents(Format::Yaml, "").unwrap().is_empty());
        assert_eq!(documents(Format::Yaml, "a: 1\r\n---\r\nb: 2\r\n").unwrap().len(), 2);
    }

    #[test]
    fn json_is_cut_between_values() {
        let cut = documents(Format::Json, "\n{\n\"a\":1}\n\n {} ").unwrap();
        assert_eq!(cut, [Document { line: 2, text: "{\n\"a\":1}" }, Document { line: 5, text: "{}" }]);
        assert_eq!(documents(Format::Json, "{}\n{\n").unwrap_err().line, 3);
        assert!(documents(Format::Json, " \n").unwrap().is_empty());
    }
}

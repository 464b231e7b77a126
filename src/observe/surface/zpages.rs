//! `/flagz` and `/statusz`: for people as text, for programs as objects of group `config.k8s.io`.
//!
//! The text is meant to be read and not parsed; to keep everybody honest its delimiter is another one in each process. Programs
//! ask for `application/json;g=config.k8s.io;v=v1beta1;as=Flagz` (or `application/yaml`, or v1alpha1, which is answered with a
//! warning). A bare `application/json` could mean anything and is 406, as in kube-proxy.

use std::collections::BTreeMap;
use std::time::Instant;

use hyper::body::Bytes;
use hyper::header::{ACCEPT, HeaderValue, WARNING};
use hyper::{Request, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use super::super::http::{Answer, answer, text};
use super::Surface;

const GROUP: &str = "config.k8s.io";
const COMPONENT: &str = "kube-proxy";
const DELIMITERS: [&str; 4] = [":", ": ", "=", " "];
const CAUTION: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// Both pages.
pub(super) struct Pages {
    flags: BTreeMap<String, String>,
    version: String,
    paths: Vec<&'static str>,
    delimiter: &'static str,
    started: (Timestamp, Instant),
}

/// How a page is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Structured { yaml: bool, version: &'static str },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<T> {
    kind: &'static str,
    api_version: String,
    metadata: Metadata,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

#[derive(Serialize)]
struct Flags<'a> {
    flags: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    start_time: String,
    uptime_seconds: u64,
    /// There is no Go here; the field is required.
    go_version: &'static str,
    binary_version: &'a str,
    emulation_version: &'a str,
    paths: &'a [&'static str],
}

/// The first acceptable form, in the client's order of preference.
fn negotiate(accept: &str, kind: &str) -> Option<Form> {
    let mut choices: Vec<(f32, Form)> = accept.split(',').filter_map(|range| choice(range, kind)).collect();
    // The sort is stable: among equals the first named wins.
    choices.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    choices.first().map(|(_, form)| *form)
}

/// One media range with its parameters, if we have what it asks for.
fn choice(range: &str, kind: &str) -> Option<(f32, Form)> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    let parameters: BTreeMap<&str, &str> = parts.filter_map(|part| part.split_once('=')).collect();
    let quality = parameters.get("q").map_or(Some(1.0), |quality| quality.parse::<f32>().ok())?;
    if quality <= 0.0 {
        return None;
    }
    let yaml = match media.as_str() {
        "*/*" | "text/*" | "text/plain" => return Some((quality, Form::Text)),
        "application/json" => false,
        "application/yaml" => true,
        _ => return None,
    };
    let version = match *parameters.get("v")? {
        "v1beta1" => "v1beta1",
        "v1alpha1" => "v1alpha1",
        _ => return None,
    };
    let fits = parameters.get("g") == Some(&GROUP) && parameters.get("as") == Some(&kind);
    fits.then_some((quality, Form::Structured { yaml, version }))
}

// === impl Pages ===

impl Pages {
    pub(super) fn new(surface: &Surface) -> Self {
        let Surface { flags, version, profiling, .. } = surface;
        let mut paths = vec!["/configz", "/flagz", "/healthz", "/metrics", "/metrics/slis", "/proxyMode", "/statusz"];
        paths.retain(|path| (surface.flagz || *path != "/flagz") && (surface.statusz || *path != "/statusz"));
        if *profiling {
            paths.insert(1, "/debug/flags/v");
        }
        Self {
            flags: flags.iter().cloned().collect(),
            version: version.to_owned(),
            paths,
            delimiter: DELIMITERS[fastrand::usize(..DELIMITERS.len())],
            started: (Timestamp::now(), Instant::now()),
        }
    }

    pub(super) fn flagz(&self, request: &Request<Bytes>) -> Answer {
        self.page(request, "Flagz", Flags { flags: &self.flags }, || {
            let line = |(name, value): (&String, &String)| format!("{name}{}{value}\n", self.delimiter);
            self.flags.iter().map(line).collect()
        })
    }

    pub(super) fn statusz(&self, request: &Request<Bytes>) -> Answer {
        let uptime = self.started.1.elapsed().as_secs();
        let status = Status {
            start_time: self.started.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            uptime_seconds: uptime,
            go_version: "none",
            binary_version: &self.version,
            emulation_version: minor(&self.version),
            paths: &self.paths,
        };
        self.page(request, "Statusz", status, || {
            let started = self.started.0.strftime("%a %b %e %H:%M:%S UTC %Y").to_string();
            let (hours, minutes, seconds) = (uptime / 3600, uptime / 60 % 60, uptime % 60);
            let lines = [
                ("Started", started),
                ("Up", format!("{hours} hr {minutes:02} min {seconds:02} sec")),
                ("Go version", "none (Rust)".to_owned()),
                ("Binary version", self.version.clone()),
                ("Emulation version", minor(&self.version).to_owned()),
                ("Paths", self.paths.join(" ")),
            ];
            lines.iter().map(|(name, value)| format!("{name}{}{value}\n", self.delimiter)).collect()
        })
    }

    fn page(
        &self,
        request: &Request<Bytes>,
        kind: &'static str,
        content: impl Serialize,
        readable: impl FnOnce() -> String,
    ) -> Answer {
        let accept = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept = accept.collect::<Vec<_>>().join(",");
        let form = if accept.trim().is_empty() { Some(Form::Text) } else { negotiate(&accept, kind) };
        match form {
            None => text(
                StatusCode::NOT_ACCEPTABLE,
                format!("406 not acceptable: ask for text/plain or application/json;g={GROUP};v=v1beta1;as={kind}\n"),
            ),
            Some(Form::Text) => {
                let title = kind.to_lowercase();
                text(StatusCode::OK, format!("\n{COMPONENT} {title}\n{CAUTION}\n\n{}", readable()))
            }
            Some(Form::Structured { yaml, version }) => {
                let api_version = format!("{GROUP}/{version}");
                let page = Page { kind, api_version, metadata: Metadata { name: COMPONENT }, content };
                let mut answer = match yaml {
                    false => {
                        answer(StatusCode::OK, "application/json", serde_json::to_string(&page).unwrap_or_default())
                    }
                    true => {
                        answer(StatusCode::OK, "application/yaml", serde_saphyr::to_string(&page).unwrap_or_default())
                    }
                };
                if version == "v1alpha1" {
                    let warning = format!("299 - \"{GROUP}/v1alpha1 {kind} is deprecated, use {GROUP}/v1beta1\"");
                    answer.headers_mut().extend(HeaderValue::try_from(warning).ok().map(|value| (WARNING, value)));
                }
                answer
            }
        }
    }
}

/// `1.36` of `1.36.2`.
fn minor(version: &str) -> &str {
    let version = version.trim_start_matches('v');
    version.match_indices('.').nth(1).map_or(version, |(end, _)| &version[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptable_forms() {
        let beta = |yaml| Some(Form::Structured { yaml, version: "v1beta1" });
        for (accept, form) in [
            ("*/*", Some(Form::Text)),
            ("text/plain; charset=utf-8", Some(Form::Text)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Form::Text)),
            ("application/json", None),
            ("application/yaml", None),
            ("text/html", None),
            ("*/*;q=0", None),
            ("application/json;g=config.k8s.io;v=v1beta1;as=Flagz", beta(false)),
            ("application/yaml; as=Flagz; v=v1beta1; g=config.k8s.io", beta(true)),
            ("application/json;g=config.k8s.io;v=v1beta1;as=Statusz", None),
            ("application/json;g=config.k8s.io;v=v2;as=Flagz", None),
            ("application/json;g=config.k8s.io;v=v1;as=Flagz, text/plain;q=0.1", Some(Form::Text)),
            ("text/plain;q=0.1, application/json;g=config.k8s.io;v=v1beta1;as=Flagz", beta(false)),
            (
                "application/json;g=config.k8s.io;v=v1alpha1;as=Flagz",
                Some(Form::Structured { yaml: false, version: "v1alpha1" }),
            ),
        ] {
            assert_eq!(negotiate(accept, "Flagz"), form, "{accept}");
        }
    }

    #[test]
    fn minor_versions() {
        assert_eq!((minor("v1.36.2"), minor("1.36"), minor("1.36.0-rc.1"), minor("")), ("1.36", "1.36", "1.36", ""));
    }
}

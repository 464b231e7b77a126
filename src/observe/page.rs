//! The page under `/ui/` of the metrics port: what is served, for people who look.
//!
//! | path | answer |
//! |---|---|
//! | `/ui/` | the page; `/ui/page.css` and `/ui/page.js` are its parts. All three are in the binary |
//! | `/ui/v1/timeline?after=` | what was programmed after that entry ([`Timeline`]) |
//! | `/ui/v1/traffic/NAMESPACE/NAME` | connections of a Service, opened and open, by port and endpoint |
//! | `/ui/v1/flows/NAMESPACE/NAME` | the connections themselves, some hundred at most |
//! | `/ui/v1/...` | the status API ([`super::api`]), but for `/v1/explain`, `/v1/drift`, `/v1/rates` and `/v1/flows`, which look into the kernel for anything: that is root's |
//!
//! Who can look is who reaches the port: on loopback unless told otherwise, as metrics are. A browser on the node could be made to look by a foreign page,
//! so requests must be for an address or `localhost` (a name could be made to lead here: DNS rebinding) and come from no other origin.
//! Nothing can be changed here: only GET and HEAD are answered. Paths are compared as a whole, so there is nothing to traverse.
//!
//! The page itself loads nothing from elsewhere and runs no script but its own (Content-Security-Policy), and writes names as text only.
//!
//! Proven by the tests below and by `tests/page.rs`, in a real browser.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, HOST, HeaderName, HeaderValue, ORIGIN};
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::api::Api;
use super::http::{Answer, Handler, answer, not_found, text};
use super::timeline::{Entry, Timeline};
use crate::conntrack::census::Connections;
use crate::kernel::conntrack::CensusTaker;

/// Where the page is.
pub(super) const ROOT: &str = "/ui";

/// Everything from here, and nothing from anywhere else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What only root may ask: it looks into the kernel, or has the kernel tell.
const ROOTS: [&str; 4] = ["/v1/explain", "/v1/drift", "/v1/rates", "/v1/flows"];

/// Flows shown at a time.
const FLOWS: usize = 200;

/// Answers for the page. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Page {
    api: Api,
    timeline: Timeline,
    census: Option<CensusTaker>,
}

#[derive(Serialize)]
struct TimelineView {
    newest: u64,
    entries: Vec<Arc<Entry>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TrafficView {
    /// Which walk this is from; 0: there was none yet.
    walk: u64,
    /// Seconds since then.
    age: Option<f64>,
    /// By name and protocol of the port.
    ports: Vec<PortTraffic>,
}

#[derive(Serialize)]
struct PortTraffic {
    name: String,
    protocol: String,
    endpoints: BTreeMap<String, Numbers>,
}

#[derive(Serialize)]
struct Numbers {
    opened: u64,
    active: u64,
    inactive: u64,
    unanswered: u64,
}

// === impl Page ===

impl Page {
    pub(super) fn new(api: Api, timeline: Timeline, census: Option<CensusTaker>) -> Self {
        Self { api, timeline, census }
    }

    /// A handler of everything that the page is, and of all else what `others` says.
    pub(super) fn before(self, others: Handler) -> Handler {
        Arc::new(move |request| {
            let path = request.uri().path();
            if path != ROOT && !path.starts_with("/ui/") {
                return others(request);
            }
            let page = self.clone();
            Box::pin(async move { harden(page.answer(&request).await) })
        })
    }

    async fn answer(&self, request: &Request<Bytes>) -> Answer {
        if !is_ours(request) {
            return text(StatusCode::FORBIDDEN, "ask for an address or for localhost, and from no other page\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "there is nothing to change here\n");
        }
        let path = request.uri().path();
        match path {
            "/ui" => moved(),
            "/ui/" => answer(StatusCode::OK, "text/html; charset=utf-8", include_str!("page/page.html")),
            "/ui/page.css" => answer(StatusCode::OK, "text/css; charset=utf-8", include_str!("page/page.css")),
            "/ui/page.js" => answer(StatusCode::OK, "text/javascript; charset=utf-8", include_str!("page/page.js")),
            "/ui/v1/timeline" => {
                let query = request.uri().query().unwrap_or_default();
                let after = query.split('&').find_map(|pair| pair.strip_prefix("after=")?.parse().ok()).unwrap_or(0);
                json(&TimelineView { newest: self.timeline.newest(), entries: self.timeline.after(after) })
            }
            _ => match path.strip_prefix("/ui/v1/traffic/").and_then(named) {
                Some((namespace, name)) => json(&self.traffic(&namespace, &name)),
                None => match path.strip_prefix("/ui/v1/flows/").and_then(named) {
                    Some((namespace, name)) => self.api.flows_of(&namespace, &name, FLOWS).await,
                    None => {
                        match path.strip_prefix(ROOT).filter(|path| path.starts_with("/v1/") && !ROOTS.contains(path)) {
                            Some(path) => self.api.answer(request, path).await,
                            None => not_found(),
                        }
                    }
                },
            },
        }
    }

    fn traffic(&self, namespace: &str, name: &str) -> TrafficView {
        let snapshot = self.census.as_ref().map(CensusTaker::look_closely).unwrap_or_default();
        let is_asked = |service: &crate::model::ServiceKey| *service.namespace == *namespace && *service.name == *name;
        let accounts = snapshot.accounts.iter().filter(|(port, _)| is_asked(&port.service));
        let ports = accounts.map(|(port, account)| PortTraffic {
            name: port.name.to_string(),
            protocol: port.protocol.to_string(),
            endpoints: account.endpoints.iter().map(|(at, of)| (at.to_string(), Numbers::from(of))).collect(),
        });
        TrafficView {
            walk: snapshot.walk,
            age: snapshot.at.map(|at| Instant::now().saturating_duration_since(at).as_secs_f64()),
            ports: ports.collect(),
        }
    }
}

// === impl Numbers ===

impl From<&Connections> for Numbers {
    fn from(of: &Connections) -> Self {
        let Connections { opened, active, inactive, unanswered, .. } = *of;
        Self { opened, active, inactive, unanswered }
    }
}

/// `NAMESPACE/NAME`, decoded.
fn named(path: &str) -> Option<(String, String)> {
    let (namespace, name) = path.split_once('/')?;
    let decoded = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
    Some((decoded(namespace), decoded(name)))
}

/// Whether a request is meant for us and comes from us, or from nobody's page.
fn is_ours(request: &Request<Bytes>) -> bool {
    let header = |name: HeaderName| request.headers().get(name).map(HeaderValue::to_str);
    let Some(Ok(host)) = header(HOST) else { return false };
    let origin = match header(ORIGIN) {
        None => true,
        Some(Ok(origin)) => origin.strip_prefix("http://") == Some(host),
        Some(Err(_)) => false,
    };
    origin && is_no_name(host)
}

/// Whether a `Host` is an address, or `localhost`, which no name server decides about.
fn is_no_name(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return true;
    }
    let (name, port) = host.split_once(':').unwrap_or((host, "0"));
    name.eq_ignore_ascii_case("localhost") && port.parse::<u16>().is_ok()
}

fn moved() -> Answer {
    let mut answer = text(StatusCode::PERMANENT_REDIRECT, "");
    answer.headers_mut().insert(hyper::header::LOCATION, HeaderValue::from_static("/ui/"));
    answer
}

fn json(value: &impl Serialize) -> Answer {
    answer(StatusCode::OK, "application/json", serde_json::to_vec(value).unwrap_or_default())
}

/// What keeps a browser from doing more than it should.
fn harden(mut answer: Answer) -> Answer {
    for (name, value) in [
        ("content-security-policy", POLICY),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
    ] {
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(headers: &[(HeaderName, &str)]) -> bool {
        let mut request = Request::builder();
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        is_ours(&request.body(Bytes::new()).expect("a request"))
    }

    #[test]
    fn names_that_somebody_else_decides_about_are_refused() {
        for host in
            ["127.0.0.1:10249", "127.0.0.1", "[::1]:10249", "[::1]", "192.168.0.7:80", "localhost", "LOCALHOST:10249"]
        {
            assert!(asked(&[(HOST, host)]), "{host}");
            let own = format!("http://{host}");
            assert!(asked(&[(HOST, host), (ORIGIN, &own)]), "{host}");
            for foreign in ["http://evil.example", "null", "https://127.0.0.1:10249", "http://127.0.0.1:1"] {
                assert!(!asked(&[(HOST, host), (ORIGIN, foreign)]), "{host} {foreign}");
            }
        }
        for host in
            ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1:x", "", "localhost:x"]
        {
            assert!(!asked(&[(HOST, host)]), "{host:?}");
        }
        assert!(!asked(&[]));
    }
}

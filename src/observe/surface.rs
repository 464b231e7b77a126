//! The metrics port: what operators and Prometheus read, and the few things they may set.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | everything recorded ([`super::metrics`]) |
//! | `/metrics/slis` | how often `/healthz` here was asked; DELETE starts over |
//! | `/healthz`, `/healthz/ping` | `ok`, always: that somebody answers. The proxy's health has its own port ([`super::health`]) |
//! | `/proxyMode` | the mode's name |
//! | `/configz` | the configuration as JSON |
//! | `/flagz`, `/statusz` | flags, and what is running: text, or structured on request (KEP-4827, KEP-4828), each unless its feature gate is closed |
//! | `/debug/flags/v` | PUT sets the verbosity, if profiling is enabled |
//! | anything else, `/debug/pprof` too | 404 |
//!
//! There is no profiler behind `enableProfiling`: pprof is a format of Go's runtime. perf(1) does for this binary.
//!
//! As in kube-proxy, methods are not told apart except where the table says so.
//!
//! Proven by `surface/tests.rs`, over real sockets.

mod zpages;

use std::fmt;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use prometheus::{Gauge, GaugeVec, IntCounterVec, Opts, Registry};

use super::http::{Answer, Handler, answer, at_once, not_found, text};
use super::metrics::{self, ConnectionSeries, Exposition};
use zpages::Pages;

/// What the pages tell. Everything has a default, so that a daemon without a configuration has pages as well.
#[derive(Clone)]
pub struct Surface {
    /// `nftables`, `iptables` or `ipvs`: as configured.
    pub mode: String,
    /// The configuration as a JSON object, for `/configz`; without it that path is 404.
    pub configuration: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// Every flag with its value, hidden ones too, sorted by name.
    pub flags: Vec<(String, String)>,
    /// `enableProfiling`: whether `/debug/flags/v` is there.
    pub profiling: bool,
    /// Sets the verbosity; the message of an error is sent to the client.
    pub set_verbosity: Arc<dyn Fn(i32) -> Result<(), String> + Send + Sync>,
    /// Whether `/flagz` is there (feature gate ComponentFlagz).
    pub flagz: bool,
    /// Whether `/statusz` is there (feature gate ComponentStatusz).
    pub statusz: bool,
    /// The version of kube-proxy that we stand for, `1.36.0`.
    pub version: String,
}

/// The counters of `/healthz` on this port.
struct Pings {
    registry: Registry,
    state: GaugeVec,
    total: IntCounterVec,
}

/// Answers for the metrics port.
pub(super) fn handler(surface: Surface, exposition: Exposition, connections: Option<ConnectionSeries>) -> Handler {
    let pages = Pages::new(&surface);
    let pings = Pings::new();
    at_once(move |request| match request.uri().path() {
        "/metrics" => {
            let mut text = exposition.render();
            connections.iter().for_each(|series| series.write(&mut text));
            answer(StatusCode::OK, Exposition::CONTENT_TYPE, text)
        }
        "/metrics/slis" => pings.answer(request),
        "/healthz" => pings.count(if wants_details(request) { "[+]ping ok\nhealthz check passed\n" } else { "ok" }),
        "/healthz/ping" => pings.count("ok"),
        "/proxyMode" => text(StatusCode::OK, surface.mode.clone()),
        "/configz" => match &surface.configuration {
            Some(configuration) => configz(&configuration()),
            None => not_found(),
        },
        "/flagz" if surface.flagz => pages.flagz(request),
        "/statusz" if surface.statusz => pages.statusz(request),
        "/debug/flags/v" if surface.profiling => verbosity(&surface, request),
        _ => not_found(),
    })
}

/// `?verbose`, with or without a value.
fn wants_details(request: &Request<Bytes>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| pair == "verbose" || pair.starts_with("verbose="))
}

fn configz(configuration: &str) -> Answer {
    answer(StatusCode::OK, "application/json", format!("{{\"kubeproxy.config.k8s.io\":{configuration}}}"))
}

fn verbosity(surface: &Surface, request: &Request<Bytes>) -> Answer {
    if request.method() != Method::PUT {
        return text(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n");
    }
    let body = String::from_utf8_lossy(request.body());
    let level = body.trim();
    let Ok(number) = level.parse::<i32>() else {
        return text(StatusCode::BAD_REQUEST, format!("failed to set verbosity: {level:?} is not an integer\n"));
    };
    match (surface.set_verbosity)(number) {
        Ok(()) => text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {number}\n")),
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("failed to set verbosity to {number}: {reason}\n")),
    }
}

// === impl Surface ===

impl Default for Surface {
    fn default() -> Self {
        Self {
            mode: "nftables".to_owned(),
            configuration: None,
            flags: Vec::new(),
            profiling: false,
            flagz: true,
            statusz: true,
            set_verbosity: Arc::new(|_| Err("the verbosity of this process is fixed".to_owned())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

impl fmt::Debug for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surface")
            .field("mode", &self.mode)
            .field("flags", &self.flags)
            .field("profiling", &self.profiling)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

// === impl Pings ===

impl Pings {
    fn new() -> Self {
        let registry = Registry::new();
        let state =
            Opts::new("kubernetes_healthcheck", "[STABLE] 1 for a health check that passed when it was last asked");
        let total = Opts::new("kubernetes_healthchecks_total", "[STABLE] Answers of health checks by result");
        let start = Opts::new("process_start_time_seconds", "When the process started (seconds since 1970)");
        let made = (|| {
            let state = GaugeVec::new(state, &["name", "type"])?;
            let total = IntCounterVec::new(total, &["name", "status", "type"])?;
            let start = Gauge::with_opts(start)?;
            start.set(metrics::start_time().unwrap_or_default());
            registry.register(Box::new(state.clone()))?;
            registry.register(Box::new(total.clone()))?;
            registry.register(Box::new(start))?;
            prometheus::Result::Ok((state, total))
        })();
        let (state, total) = made.expect("constant definitions are sound");
        Self { registry, state, total }
    }

    /// A health check was asked for, and passed.
    fn count(&self, body: &'static str) -> Answer {
        self.state.with_label_values(&["ping", "healthz"]).set(1.0);
        self.total.with_label_values(&["ping", "success", "healthz"]).inc();
        text(StatusCode::OK, body)
    }

    fn answer(&self, request: &Request<Bytes>) -> Answer {
        if request.method() == Method::DELETE {
            self.state.reset();
            self.total.reset();
            return text(StatusCode::OK, "metrics reset\n");
        }
        answer(StatusCode::OK, Exposition::CONTENT_TYPE, metrics::encode(&self.registry))
    }
}

#[cfg(test)]
mod tests;

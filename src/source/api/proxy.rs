//! Which HTTP proxy stands between us and the API server, if any.
//!
//! The rules are client-go's: a kubeconfig's `proxy-url` counts whatever the environment says; without it the environment decides as
//! for any Go program: `HTTPS_PROXY` for a server with TLS and `HTTP_PROXY` for one without (either in lower case, too), unless
//! `NO_PROXY` names the server (addresses, networks, domains, each also with a port, or `*`). A server on this host is never asked for
//! through a proxy of the environment.
//!
//! Proxies are spoken to by CONNECT, also for servers without TLS, and as SOCKS5. One of the environment that we cannot use is told about and passed
//! over; one of the kubeconfig is an error, because the server may be out of reach without it.
//!
//! Proven by the tests below, by `tests/source_api.rs` (through a real proxy) and `tests/e2e/api.rs` (the environment).

use std::net::IpAddr;

use hyper::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

/// The variables that matter, as they are.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    /// `HTTP_PROXY`.
    pub(super) http: String,
    /// `HTTPS_PROXY`.
    pub(super) https: String,
    /// `NO_PROXY`.
    pub(super) no: String,
}

/// A proxy that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: not a proxy that we can use: expected http:// or socks5:// and a host")]
pub struct Unusable(pub String);

/// Reads a proxy's URL; without a scheme it is http.
pub(super) fn parse(url: &str) -> Result<Intercept, Unusable> {
    let unusable = || Unusable(without_password(url));
    let anywhere = Uri::from_static("https://anywhere");
    let proxy = Matcher::builder().https(url.trim()).build().intercept(&anywhere).ok_or_else(unusable)?;
    match proxy.uri().scheme_str() {
        Some("http" | "socks5" | "socks5h") if proxy.uri().host().is_some_and(|host| !host.is_empty()) => Ok(proxy),
        _ => Err(unusable()),
    }
}

/// What may be said about a URL.
fn without_password(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

// === impl Environment ===

impl Environment {
    /// This process's.
    pub(super) fn of_process() -> Self {
        let first = |names: [&str; 2]| {
            names
                .into_iter()
                .filter_map(|name| std::env::var(name).ok())
                .find(|text| !text.is_empty())
                .unwrap_or_default()
        };
        Self {
            http: first(["HTTP_PROXY", "http_proxy"]),
            https: first(["HTTPS_PROXY", "https_proxy"]),
            no: first(["NO_PROXY", "no_proxy"]),
        }
    }

    /// The proxy for this server, with the variable that names it when it cannot be used.
    pub(super) fn proxy(&self, server: &Uri) -> Result<Option<Intercept>, (&'static str, Unusable)> {
        let (name, url, port) = match server.scheme_str() {
            Some("https") => ("HTTPS_PROXY", &self.https, 443),
            _ => ("HTTP_PROXY", &self.http, 80),
        };
        if url.is_empty() || self.spares(server, port) {
            return Ok(None);
        }
        parse(url).map(Some).map_err(|unusable| (name, unusable))
    }

    /// Whether the server is asked directly.
    fn spares(&self, server: &Uri, default_port: u16) -> bool {
        let host = server.host().unwrap_or_default();
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        if host.eq_ignore_ascii_case("localhost") || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let port = server.port_u16().unwrap_or(default_port);
        let list: Vec<_> = self.no.split(',').map(str::trim).filter_map(|entry| without_port(entry, port)).collect();
        if list.contains(&"*") {
            return true;
        }
        let nobody = Matcher::builder().http("http://p").https("http://p").no(list.join(",")).build();
        nobody.intercept(server).is_none()
    }
}

/// An entry of `NO_PROXY` that concerns a server on this port, without the port.
fn without_port(entry: &str, port: u16) -> Option<&str> {
    let entry = entry.strip_prefix("*.").unwrap_or(entry);
    if entry.contains('/') || entry.parse::<IpAddr>().is_ok() {
        return Some(entry);
    }
    match entry.rsplit_once(':') {
        Some((host, digits)) if digits.parse::<u16>().is_ok() => {
            (digits.parse() == Ok(port)).then(|| host.trim_start_matches('[').trim_end_matches(']'))
        }
        _ => Some(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides_as_for_any_go_program() {
        let https = "https://10.96.0.1:6443";
        for (http, secure, no, server, want) in [
            ("", "", "", https, None),
            ("", "http://p:3128", "", https, Some("http://p:3128/")),
            ("", "p:3128", "", https, Some("http://p:3128/")),
            ("", "http://me:secret@p:3128", "", https, Some("http://p:3128/")),
            ("", "socks5://p:1080", "", https, Some("socks5://p:1080/")),
            ("http://p:3128", "", "", https, None),
            ("http://p:3128", "", "", "http://10.96.0.1", Some("http://p:3128/")),
            ("", "http://p", "10.96.0.0/12,.cluster.local", https, None),
            ("", "http://p", "10.97.0.0/16", https, Some("http://p/")),
            ("", "http://p", "10.96.0.1:6443", https, None),
            ("", "http://p", "10.96.0.1:443", https, Some("http://p/")),
            ("", "http://p", "*", https, None),
            ("", "http://p", "a, example.com", "https://api.example.com", None),
            ("", "http://p", ".example.com", "https://api.example.com", None),
            ("", "http://p", "*.example.com", "https://api.example.com", None),
            ("", "http://p", "ample.com", "https://api.example.com", Some("http://p/")),
            ("", "http://p", "", "https://localhost:6443", None),
            ("http://p", "", "", "http://127.0.0.2:8080", None),
            ("", "http://p", "", "https://[::1]:6443", None),
            ("", "http://p", "fd00::/8", "https://[fd00::1]:6443", None),
        ] {
            let environment = Environment { http: http.into(), https: secure.into(), no: no.into() };
            let proxy = environment.proxy(&server.parse().expect("a URL")).expect("usable");
            let text = proxy.map(|proxy| proxy.uri().to_string());
            assert_eq!(text.as_deref(), want, "{environment:?} {server}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_password() {
        for (url, shown) in [("ftp://p", "ftp://p"), ("https://me:secret@p:1", "https://p:1"), ("http://", "http://")] {
            let environment = Environment { https: url.into(), ..Environment::default() };
            let (name, unusable) = environment.proxy(&Uri::from_static("https://a")).unwrap_err();
            assert_eq!((name, unusable), ("HTTPS_PROXY", Unusable(shown.to_owned())));
        }
    }
}

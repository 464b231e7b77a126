//! How the API server is reached: which one, with which credentials, over which connection.
//!
//! The rules are those of client-go's `BuildConfigFromFlags`: a kubeconfig names server and credentials, `--master` overrides
//! the server, and with neither of them the pod's service account is used. Everything is read again whenever a client is made,
//! so a rotated token, certificate or authority counts from the next client on. `proxy` says through which proxy, if any.
//!
//! The connection is made here and not by kube's default stack for two reasons: kube's retries 429, 503 and 504 by itself, up
//! to 15 times and for minutes, where we want to see and report them; and it sets no TCP keep-alive, without which a watch on
//! a dead peer is only noticed when its time is over.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connect, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Intercept;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{InClusterError, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceBuilder};

use super::proxy::{self, Environment, Unusable};
use super::trouble::chain;
use crate::observe::metrics::CountRequests;

/// Set in every pod by the kubelet.
const SERVICE_HOST: &str = "KUBERNETES_SERVICE_HOST";
/// Stands for "none" where kube would look into the environment by its own rules.
const DIRECT: &str = "direct";
/// A peer is dead after one idle period and three unanswered probes: 60 s, as client-go's HTTP/2 health check has it, roughly.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Where the configuration comes from.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) master: Option<String>,
    pub(super) user_agent: String,
    pub(super) connect_timeout: Duration,
}

/// Why there is no way to the API server. Each says what was tried and what is missing, its causes included; so it names no `source`.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Nothing names an API server.
    #[error(
        "no API server to watch: neither --kubeconfig nor --master is given, and this is not a pod ({SERVICE_HOST} is not set)"
    )]
    Nowhere,
    /// In a pod, but without what a pod needs.
    #[error("in-cluster configuration: {0}")]
    InCluster(InClusterError),
    /// The kubeconfig cannot be read or lacks something.
    #[error("kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: KubeconfigError,
    },
    /// `--master` is no URL.
    #[error("--master {master}: not a URL: {reason}")]
    Master {
        /// As given.
        master: String,
        /// Why not.
        reason: String,
    },
    /// The token file that the configuration names cannot be read.
    #[error("token file {path}: {reason}")]
    Token {
        /// The file.
        path: String,
        /// Why not.
        reason: std::io::Error,
    },
    /// The kubeconfig asks for a proxy of a kind that we do not speak to.
    #[error("kubeconfig {path}: clusters: proxy-url: {reason}")]
    Proxy {
        /// The file.
        path: PathBuf,
        /// Which.
        reason: Unusable,
    },
    /// Credentials or certificates that no client can be made of.
    #[error("credentials: {}", chain(&**.0))]
    Credentials(Box<kube::Error>),
}

// === impl Access ===

impl Access {
    /// Reads the configuration as it is now. A `proxy_url` in it is the kubeconfig's, and never the environment's.
    pub(super) fn config(&self) -> Result<Config, AccessError> {
        let mut config = match (&self.kubeconfig, &self.master) {
            (Some(path), master) => {
                let failed = |reason| AccessError::Kubeconfig { path: path.clone(), reason };
                let mut kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
                    let unset = cluster.proxy_url.as_ref().is_none_or(String::is_empty);
                    cluster.proxy_url = if unset { Some(DIRECT.to_owned()) } else { cluster.proxy_url.take() };
                }
                if let Some(master) = master {
                    for cluster in kubeconfig.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
                        let tls = cluster.certificate_authority.is_some()
                            || cluster.certificate_authority_data.is_some()
                            || cluster.insecure_skip_tls_verify == Some(true);
                        cluster.server = Some(server_url(master, tls)?.to_string());
                    }
                }
                Config::try_from(kubeconfig).map_err(failed)?
            }
            (None, Some(master)) => Config::new(server_url(master, false)?),
            (None, None) if std::env::var_os(SERVICE_HOST).is_none() => return Err(AccessError::Nowhere),
            (None, None) => Config::incluster_env().map_err(AccessError::InCluster)?,
        };
        config.proxy_url = config.proxy_url.take().filter(|proxy| *proxy != DIRECT);
        if let (Some(proxy), Some(path)) = (&config.proxy_url, &self.kubeconfig) {
            let path = path.clone();
            proxy::parse(&proxy.to_string()).map_err(|reason| AccessError::Proxy { path, reason })?;
        }
        if let Some(path) = &config.auth_info.token_file {
            let text =
                std::fs::read_to_string(path).map_err(|reason| AccessError::Token { path: path.clone(), reason })?;
            // client-go prefers the file to a token beside it and trims what it reads; kube does neither. A file that needs
            // trimming is therefore handed over as a token, and read again when that is no longer accepted.
            let token = text.trim();
            config.auth_info.token = (token.len() != text.len()).then(|| token.to_owned().into());
        }
        if let Ok(user_agent) = HeaderValue::from_str(&self.user_agent) {
            config.headers.push((USER_AGENT, user_agent));
        }
        Ok(config)
    }

    /// Makes a client from the configuration as it is now. Needs a tokio runtime.
    pub(super) fn client(&self) -> Result<Client, AccessError> {
        let config = self.config()?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(self.connect_timeout));
        connector.set_keepalive(Some(KEEPALIVE_IDLE));
        connector.set_keepalive_interval(Some(KEEPALIVE_PROBE));
        connector.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        let proxy = match &config.proxy_url {
            Some(own) => proxy::parse(&own.to_string()).ok(),
            // What cannot be used was told about when the daemon started.
            None => Environment::of_process().proxy(&config.cluster_url).ok().flatten(),
        };
        let client = match proxy {
            None => finish(config, connector),
            Some(proxy) if proxy.uri().scheme_str() == Some("http") => finish(config, tunnel(&proxy, connector)),
            Some(proxy) => finish(config, socks(&proxy, connector)),
        };
        client.map_err(|error| AccessError::Credentials(Box::new(error)))
    }

    /// What to tell about a proxy in the environment: its URL, or what keeps it from being used.
    pub(super) fn proxy_of_environment(&self, config: &Config) -> Option<Result<Uri, (&'static str, Unusable)>> {
        let proxy = Environment::of_process().proxy(&config.cluster_url);
        proxy.map(|proxy| proxy.map(|proxy| proxy.uri().clone())).transpose().filter(|_| config.proxy_url.is_none())
    }
}

fn tunnel(proxy: &Intercept, connector: HttpConnector) -> Tunnel<HttpConnector> {
    let tunnel = Tunnel::new(proxy.uri().clone(), connector);
    match proxy.basic_auth() {
        Some(authorization) => tunnel.with_auth(authorization.clone()),
        None => tunnel,
    }
}

fn socks(proxy: &Intercept, connector: HttpConnector) -> SocksV5<HttpConnector> {
    let socks = SocksV5::new(proxy.uri().clone(), connector);
    match proxy.raw_auth() {
        Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
        None => socks,
    }
}

/// Adds TLS where the server has it. Without TLS there is nothing to verify, and a machine without any certificates must do.
fn finish<C>(config: Config, connector: C) -> kube::Result<Client>
where
    C: Service<Uri> + Connect + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    match config.cluster_url.scheme_str() {
        Some("https") => {
            let connector = config.rustls_https_connector_with_connector(connector)?;
            assemble(config, connector)
        }
        _ => assemble(config, connector),
    }
}

/// The stack of a client: whose server, whose credentials, which headers, which connection.
fn assemble<C: Connect + Clone + Send + Sync + 'static>(config: Config, connector: C) -> kube::Result<Client> {
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let service = ServiceBuilder::new()
        .layer_fn(|service| CountRequests::new(service, &host))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(HttpClient::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// `--master` as a URL; without a scheme it is https where the kubeconfig speaks of TLS and http otherwise, as in client-go.
fn server_url(master: &str, tls: bool) -> Result<Uri, AccessError> {
    let failed = |reason: String| AccessError::Master { master: master.to_owned(), reason };
    let url = match master.contains("://") {
        true => master.to_owned(),
        false => format!("{}://{master}", if tls { "https" } else { "http" }),
    };
    let url: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| failed(error.to_string()))?;
    match (url.scheme_str(), url.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(url),
        _ => Err(failed("expected http:// or https:// and a host".to_owned())),
    }
}

/// `kube-proxy/<version> (<os>/<arch>) pointsman`, the architecture as Go names it.
pub(super) fn user_agent(version: &str) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("kube-proxy/{version} ({}/{arch}) pointsman", std::env::consts::OS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(kubeconfig: Option<PathBuf>, master: Option<&str>) -> Access {
        let master = master.map(str::to_owned);
        Access { kubeconfig, master, user_agent: user_agent("v1"), connect_timeout: Duration::from_secs(1) }
    }

    #[test]
    fn master_overrides_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let text = r#"{"clusters":[{"name":"c","cluster":{"server":"https://a:6443"}}],"users":[{"name":"u","user":{}}],
            "contexts":[{"name":"x","context":{"cluster":"c","user":"u"}}],"current-context":"x"}"#;
        std::fs::write(&path, text).unwrap();
        let url = |master| access(Some(path.clone()), master).config().unwrap().cluster_url.to_string();
        assert_eq!(url(None), "https://a:6443/");
        assert_eq!(url(Some("https://b")), "https://b/");
        assert_eq!(url(Some("b:8080")), "http://b:8080/");
        assert_eq!(access(None, Some("http://c:1")).config().unwrap().cluster_url.to_string(), "http://c:1/");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let missing = access(Some("/nowhere/kubeconfig".into()), None).config().unwrap_err().to_string();
        assert!(missing.contains("/nowhere/kubeconfig"), "{missing}");
        let master = access(None, Some("ftp://x")).config().unwrap_err().to_string();
        assert!(master.contains("--master ftp://x"), "{master}");
        if std::env::var_os(SERVICE_HOST).is_none() {
            let nowhere = access(None, None).config().unwrap_err().to_string();
            assert!(nowhere.contains("--kubeconfig") && nowhere.contains(SERVICE_HOST), "{nowhere}");
        }
    }
}

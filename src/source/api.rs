//! The API server as a source: Services, EndpointSlices, ServiceCIDRs and our own Node, watched for as long as the process lives.
//!
//! ```text
//! access     which server, which credentials, which connection      -> a client
//! proxy      through which proxy, if any
//! watch      list or stream, then follow; one task per kind         -> events
//! decode     events and pages, forgiving about single objects       -> lean objects
//! limit      how many requests at most
//! ledger     who was told about, so that the vanished are reported   -> Change
//! trouble    what goes wrong, how long to wait, saying it once
//! ```
//!
//! What is asked for is what kube-proxy asks for: Services without the label `service.kubernetes.io/service-proxy-name` that are
//! not headless, EndpointSlices without the label `service.kubernetes.io/headless`, the Node of our name, and all ServiceCIDRs (a server that
//! does not know them yet answers 404; they are asked for again now and then, and nobody waits for them). Listing is by a
//! streaming list where the server offers it (KEP-3157) and by pages of 500 where it does not.
//!
//! Invariants, beyond those of [`crate::source`]:
//! - No failure is final. Each is answered by what it calls for (follow on, list again, connect again, read the credentials
//!   again) after a jittered wait that doubles from at most 0.8 s to at most 30 s and starts over with the first success.
//! - Nothing is deleted because the server is away: only a complete listing or an event deletes.
//! - A change is sent before the next one is read, so a slow receiver slows the reading and nothing piles up here.
//!
//! Proven by `tests/source_api.rs`, against the double in `tests/double`.

mod access;
mod decode;
mod ledger;
mod limit;
mod proxy;
mod trouble;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::object::{EndpointSlice, Node, Service, ServiceCIDR};
use super::{Change, Kind, Object, ObjectKey};
use access::Access;
pub use access::AccessError;
use ledger::Watched;
use limit::Limiter;
pub use limit::Rate;
pub use proxy::Unusable;
use watch::{Selection, Watch, Way};

/// Services another proxy is responsible for carry this label.
const SERVICE_LABELS: &str = "!service.kubernetes.io/service-proxy-name";
/// Headless Services have nothing to proxy.
const SERVICE_FIELDS: &str = "spec.clusterIP!=None";
/// The slices of headless Services carry this label.
const SLICE_LABELS: &str = "!service.kubernetes.io/headless";

/// Which API server, and as whom.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// `--kubeconfig`; an empty path counts as absent, as an empty flag does.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: overrides the server of the kubeconfig, or stands alone. Empty counts as absent.
    pub master: Option<String>,
    /// The name of our Node.
    pub node_name: String,
    /// The version in the User-Agent, `v1.2.3`; the crate's own when absent.
    pub version: Option<String>,
    /// How many requests at most; any number when absent.
    pub rate: Option<Rate>,
    /// Whether to ask for streaming lists first (feature gate WatchListClient).
    pub streaming_lists: bool,
    /// Time constants.
    pub timing: Timing,
}

/// The time constants of the source. The defaults are for production; tests shorten them.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// For a TCP connection to come about: 10 s.
    pub connect: Duration,
    /// For an answer to begin, and between two parts of a page: 30 s. A queued request waits at most 15 s in an API server of
    /// default settings (API Priority and Fairness).
    pub response: Duration,
    /// Between two initial events, and before the bookmark that ends them: 10 s. Longer silence means a server that is too old
    /// for streaming lists.
    pub initial_silence: Duration,
    /// A watch is asked to last for one to two times this: 300 s, as client-go. Whole seconds, at least one.
    pub watch: Duration,
    /// A watch that has not ended this long after its time is given up: 10 s.
    pub slack: Duration,
    /// A reopened watch that has lasted so long counts as well; one that the server ends earlier, without an event, does not: 1 s.
    pub settled: Duration,
    /// Upper bound of the first wait after a failure: 800 ms; the lower bound is an eighth of it.
    pub backoff_first: Duration,
    /// The longest wait: 30 s.
    pub backoff_max: Duration,
    /// Objects per page: 500, as client-go.
    pub page_size: u32,
}

/// Watches an API server.
#[derive(Debug)]
pub struct ApiSource {
    access: Arc<Access>,
    node_name: String,
    rate: Option<Rate>,
    streaming_lists: bool,
    timing: Timing,
}

/// Makes clients of the API server that a source watches, for whoever has to write to it. Their requests have a limit of their own.
#[derive(Clone, Debug)]
pub struct Clients {
    access: Arc<Access>,
    limiter: Option<Arc<Limiter>>,
}

// === impl ApiConfig ===

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            master: None,
            node_name: String::new(),
            version: None,
            rate: None,
            streaming_lists: true,
            timing: Timing::default(),
        }
    }
}

// === impl Timing ===

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            initial_silence: Duration::from_secs(10),
            watch: Duration::from_secs(300),
            slack: Duration::from_secs(10),
            settled: Duration::from_secs(1),
            backoff_first: Duration::from_millis(800),
            backoff_max: Duration::from_secs(30),
            page_size: 500,
        }
    }
}

// === impl ApiSource ===

impl ApiSource {
    /// Finds out how to reach the API server, without talking to it.
    ///
    /// # Errors
    /// When nothing names an API server, or what names it cannot be read. That is for the operator to mend: the daemon exits.
    pub fn new(config: ApiConfig) -> Result<Self, AccessError> {
        let version = config.version.unwrap_or_else(|| format!("v{}", env!("CARGO_PKG_VERSION")));
        let access = Access {
            kubeconfig: config.kubeconfig.filter(|path| !path.as_os_str().is_empty()),
            master: config.master.filter(|master| !master.is_empty()),
            user_agent: access::user_agent(&version),
            connect_timeout: config.timing.connect,
        };
        let found = access.config()?;
        match access.proxy_of_environment(&found) {
            None => {}
            Some(Ok(proxy)) => {
                info!(%proxy, server = %found.cluster_url, "the environment names a proxy for the API server")
            }
            Some(Err((variable, error))) => {
                warn!(variable, %error, "a proxy of the environment is passed over: the API server is asked directly");
            }
        }
        Ok(Self {
            access: Arc::new(access),
            node_name: config.node_name,
            rate: config.rate,
            streaming_lists: config.streaming_lists,
            timing: config.timing,
        })
    }

    /// For those who write to the same API server.
    pub fn clients(&self) -> Clients {
        Clients { access: self.access.clone(), limiter: self.limiter() }
    }

    /// Sends changes until `shutdown` is cancelled or the receiver is dropped.
    pub async fn run(self, changes: mpsc::Sender<Change>, shutdown: CancellationToken) {
        let services = Selection { labels: Some(SERVICE_LABELS), fields: Some(SERVICE_FIELDS.to_owned()) };
        let slices = Selection { labels: Some(SLICE_LABELS), fields: None };
        let node = Selection { labels: None, fields: Some(format!("metadata.name={}", self.node_name)) };
        let networks = Selection { labels: None, fields: None };
        let limiter = self.limiter();
        let mut watches = JoinSet::new();
        watches.spawn(self.watch::<Service>(services, &limiter, &changes).run());
        watches.spawn(self.watch::<EndpointSlice>(slices, &limiter, &changes).run());
        watches.spawn(self.watch::<Node>(node, &limiter, &changes).run());
        watches.spawn(self.watch::<ServiceCIDR>(networks, &limiter, &changes).run());
        // Leaving drops the set, which ends the watches wherever they are: there is nothing of theirs to finish.
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = changes.closed() => {}
            ended = watches.join_next() => {
                if let Some(Err(error)) = ended && let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    fn watch<K: Watched>(
        &self,
        selection: Selection,
        limiter: &Option<Arc<Limiter>>,
        changes: &mpsc::Sender<Change>,
    ) -> Watch<K> {
        let way = if self.streaming_lists { Way::Streaming } else { Way::Pages };
        Watch::new(self.access.clone(), limiter.clone(), self.timing.clone(), selection, way, changes.clone())
    }

    fn limiter(&self) -> Option<Arc<Limiter>> {
        self.rate.and_then(Limiter::new).map(Arc::new)
    }
}

// === impl Clients ===

impl Clients {
    /// A client with the credentials as they are now. Needs a tokio runtime.
    ///
    /// # Errors
    /// When what names the server cannot be read any more.
    pub fn client(&self) -> Result<kube::Client, AccessError> {
        self.access.client()
    }

    /// Waits until another request may be made; to be awaited before each.
    pub async fn ready(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.ready().await;
        }
    }
}

macro_rules! watched {
    ($($kind:ident),*) => {$(
        impl Watched for $kind {
            const KIND: Kind = Kind::$kind;

            fn into_object(self) -> Object {
                Object::$kind(Box::new(self))
            }
        }
    )*};
}

watched!(Service, EndpointSlice, Node, ServiceCIDR);

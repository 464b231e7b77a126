//! A source at work, and what it has said so far.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api_double::ApiDouble;
use pointsman::source::api::{ApiConfig, ApiSource, Timing};
use pointsman::source::{Change, Kind, Object, ObjectKey};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::subscriber::DefaultGuard;

pub const SERVICES: &str = "/api/v1/services";
pub const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
pub const NODES: &str = "/api/v1/nodes";

/// Short enough for a test to wait for, long enough for a loaded machine.
pub fn short() -> Timing {
    Timing {
        connect: Duration::from_millis(500),
        response: Duration::from_millis(400),
        initial_silence: Duration::from_millis(300),
        watch: Duration::from_secs(60),
        slack: Duration::from_millis(300),
        settled: Duration::from_millis(100),
        backoff_first: Duration::from_millis(40),
        backoff_max: Duration::from_millis(160),
        page_size: 500,
    }
}

pub struct Running {
    changes: mpsc::Receiver<Change>,
    pub said: Vec<Change>,
    /// What a model would hold by now.
    pub objects: BTreeMap<(Kind, String), Object>,
    pub shutdown: CancellationToken,
    pub task: JoinHandle<()>,
    log: Log,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn start(double: &ApiDouble) -> Running {
    start_with(ApiConfig { master: Some(double.url()), timing: short(), ..ApiConfig::default() })
}

pub fn start_from(kubeconfig: PathBuf) -> Running {
    start_with(ApiConfig { kubeconfig: Some(kubeconfig), timing: short(), ..ApiConfig::default() })
}

pub fn start_with(config: ApiConfig) -> Running {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_env_filter("info").with_writer(move || writer.clone()).finish();
    // Everything runs on the thread of the test, so this catches all of it and nothing else.
    let guard = tracing::subscriber::set_default(subscriber);
    let source = ApiSource::new(ApiConfig { node_name: "node-1".into(), ..config }).unwrap();
    let (sender, changes) = mpsc::channel(16);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(source.run(sender, shutdown.clone()));
    Running { changes, said: Vec::new(), objects: BTreeMap::new(), shutdown, task, log, _guard: guard }
}

impl Running {
    /// Listens until the condition holds, and fails after some seconds.
    pub async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let limit = Instant::now() + Duration::from_secs(8);
        while !condition(self) {
            let step = limit.min(Instant::now() + Duration::from_millis(10));
            match timeout_at(step, self.changes.recv()).await {
                Ok(Some(change)) => self.take(change),
                Ok(None) => panic!("the source ended while waiting for {what}"),
                Err(_) if Instant::now() >= limit => {
                    panic!("waited in vain for {what}; log:\n{}\nobjects: {:?}", self.log(), self.names())
                }
                Err(_) => {}
            }
        }
    }

    pub async fn synced(&mut self) {
        self.until("all kinds to be synced", |run| run.synced_kinds().len() == 4).await;
    }

    /// Listens for a while.
    pub async fn settle(&mut self, time: Duration) {
        let limit = Instant::now() + time;
        while let Ok(Some(change)) = timeout_at(limit, self.changes.recv()).await {
            self.take(change);
        }
    }

    /// Drops the receiver and waits for the source to end.
    pub async fn stop_listening(self) {
        drop(self.changes);
        self.task.await.unwrap();
    }

    fn take(&mut self, change: Change) {
        match &change {
            Change::Apply(object) => {
                self.objects.insert((object.kind(), object.key().to_string()), object.clone());
            }
            Change::Delete(kind, key) => {
                let gone = self.objects.remove(&(*kind, key.to_string()));
                assert!(gone.is_some(), "{key} was deleted and never applied");
            }
            Change::Synced(_) => {}
        }
        self.said.push(change);
    }

    pub fn synced_kinds(&self) -> Vec<Kind> {
        let kinds = self.said.iter().filter_map(|change| match change {
            Change::Synced(kind) => Some(*kind),
            _ => None,
        });
        kinds.collect()
    }

    pub fn deletions(&self) -> Vec<&ObjectKey> {
        let keys = self.said.iter().filter_map(|change| match change {
            Change::Delete(_, key) => Some(key),
            _ => None,
        });
        keys.collect()
    }

    pub fn names(&self) -> Vec<&str> {
        self.objects.keys().map(|(_, name)| name.as_str()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.objects.keys().any(|(_, key)| key == name)
    }

    /// The first port of a Service.
    pub fn port(&self, name: &str) -> Option<i64> {
        match self.objects.get(&(Kind::Service, name.to_owned()))? {
            Object::Service(service) => service.spec.ports.first().map(|port| port.port),
            _ => None,
        }
    }

    pub fn log(&self) -> String {
        String::from_utf8(self.log.0.lock().unwrap().clone()).unwrap()
    }

    /// How many log lines contain all of these.
    pub fn logged(&self, parts: &[&str]) -> usize {
        self.log().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
    }
}

/// The requests for a collection.
pub fn requests(double: &ApiDouble, path: &str) -> Vec<api_double::Request> {
    double.requests().into_iter().filter(|request| request.path == path).collect()
}

/// A Service `default/<name>` with one port.
pub fn web(name: &str, port: u16) -> serde_json::Value {
    api_double::service("default", name, "10.96.0.10", &[("http", "TCP", port)])
}

/// A double with a Service, its slice and two Nodes.
pub fn shop() -> ApiDouble {
    let double = ApiDouble::start();
    double.apply(web("web", 80));
    double.apply(api_double::endpoint_slice("default", "web-1", "web", &["10.1.0.1"], &[("http", "TCP", 8080)]));
    double.apply(api_double::node("node-1", &[("InternalIP", "192.0.2.1")]));
    double.apply(api_double::node("node-2", &[("InternalIP", "192.0.2.2")]));
    double
}

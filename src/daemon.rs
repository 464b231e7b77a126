//! The daemon: sources, engine and data plane wired together.
//!
//! ```text
//!  source (tokio tasks)  --changes-->  controller (a thread of its own)
//!                                        Engine: what shall be       DataPlane: what is
//! ```
//!
//! One thread, the *controller*, owns all state: it takes changes, compiles them, applies the difference and waits for the kernel's
//! answer. While it waits, changes pile up in the channel and become the next batch: a quiet cluster is programmed at once, a storm
//! in few transactions. What belongs together (the edits of one file, the events of one write) arrives within microseconds, so the
//! first change of a batch waits a moment for the others.
//!
//! Invariants: nothing is programmed before Services and EndpointSlices are known completely; what is programmed stays when a source
//! falls silent, when the daemon ends and when it dies; what kube-proxy left is removed only after the first load is programmed; a refusal by the kernel leads to a fresh look at what is there and a second
//! attempt, with back-off, for as long as it takes.
//!
//! `controller` is that thread; `forwarding` and `host_address` are its part that runs the userspace forwarder; `node_wait` is what it waits for before the first load; `settings` says what a configuration means to each part.
//!
//! Proven by `tests/e2e/`.

mod controller;
mod dealer;
mod forwarding;
mod guard;
mod host_address;
mod node_wait;
mod settings;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cleanup::{self, Asked, CleanupError, CleanupErrors};
use crate::config::{Config, DetectLocal, SourceConfig};
use crate::engine::Engine;
use crate::kernel::conntrack::{CensusTaker, apply_sysctls, online_cpus};
use crate::kernel::{DataPlane, KernelError, Ownership};
use crate::logging::Verbosity;
use crate::model::{Families, Family};
use crate::observe::{self, desk, kept};
use crate::source::Change;
use crate::source::api::{ApiConfig, ApiSource, Clients, Rate};
use crate::source::manifests::ManifestSource;
use controller::{AfterFirstLoad, Controller, Outside};
use forwarding::Forwarding;
use node_wait::NodeWait;

/// Changes in flight between source and controller; a source that is faster waits.
const CHANNEL: usize = 2048;

/// How long a predecessor that has just been killed may take to be gone, and how often to look.
const HANDOVER: Duration = Duration::from_secs(3);
const HANDOVER_PAUSE: Duration = Duration::from_millis(50);

/// Serves until the process is ended. Returns only errors that nothing can be done about here.
pub async fn run(config: Config, verbosity: Verbosity) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let (changes, taken) = mpsc::channel(CHANNEL);
    // The source is made first: a directory that is not there, or a kubeconfig that does not parse, must not leave a trace in the
    // kernel. The data plane is opened before the source runs: without permission there is no use in listing a cluster.
    let source = make_source(&config)?;
    let clients = source.clients();
    let start = Timestamp::now();
    let (opened, open_result) = oneshot::channel();
    let (ended, end_result) = oneshot::channel();
    let (observe, observer) = oneshot::channel();
    let policy = settings::policy(&config);
    let ownership = if config.own_tables { Ownership::WherePossible } else { Ownership::Shared };
    let after_first_load = after_first_load(&config.source);
    let (scheduler, pause) = (config.scheduler, config.sync.min_period);
    let forwarding = Forwarding::new(config.forward);
    let (desk, questions) = desk::desk();
    let census = start_census(&config);
    let counted = census.clone();
    let (forwards, stop, carried) = (forwarding.in_use(), forwarding.stop(), forwarding.register());
    let kept = config.status_socket.as_deref().map(|socket| kept::read(&kept::beside(socket))).unwrap_or_default();
    let node_wait = match config.source {
        SourceConfig::Api { .. } => NodeWait::new(config.detect_local == DetectLocal::NodeCidr),
        SourceConfig::Manifests(_) => NodeWait::none(),
    };
    thread::Builder::new()
        .name("controller".to_owned())
        .spawn(move || {
            // A table owned by somebody else ends the start and not the third hour.
            let claimed = claim(ownership);
            let plane = match claimed {
                Ok((plane, 0)) => plane,
                Ok((plane, tables)) => {
                    info!(tables, "tables of a predecessor are there; they stay as they are until everything is known");
                    plane
                }
                Err(error) => return drop(opened.send(Err(error))),
            };
            let mut engine = Engine::with_settings(policy, scheduler);
            engine.measure_since(start);
            for (service, one) in kept {
                engine.restore_override(&service, one);
            }
            if opened.send(Ok(plane.families().collect())).is_err() {
                return;
            }
            let Ok(observer) = observer.blocking_recv() else { return };
            let outside = Outside { observer, questions, census: counted };
            let controller = Controller::new(engine, plane, outside, pause, after_first_load, node_wait, forwarding);
            let runtime = runtime::Builder::new_current_thread().enable_time().build();
            let runtime = runtime.expect("a runtime without I/O needs no resources that could be lacking");
            drop(ended.send(runtime.block_on(controller.run(taken))));
        })
        .context("starting the controller thread")?;
    let families: Families = open_result.await.context("the controller thread ended before it began")??;
    check_families(&config, families)?;
    prepare(&config)?;
    // Before anything is programmed, and not before it is clear that something can be.
    let (observer, _servers) = observe::start(
        settings::observe(&config, families, verbosity, clients.is_some(), desk, census, carried),
        clients,
    )?;
    drop(observe.send(observer));
    info!(node = config.node, mode = %config.mode, scheduler = %config.scheduler, "serving");
    // As the first process of a container we get no signal that we do not ask for.
    let mut terminate = signal(SignalKind::terminate()).context("asking for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("asking for SIGINT")?;
    // They outlive the wait for a signal: without its source, the controller would end before it is told how.
    let (mut end_result, mut source) = (std::pin::pin!(end_result), std::pin::pin!(source.run(changes, shutdown)));
    let signal = tokio::select! {
        _ = terminate.recv() => Signal::SIGTERM,
        _ = interrupt.recv() => Signal::SIGINT,
        () = &mut source => anyhow::bail!("the source of objects ended"),
        outcome = &mut end_result => {
            outcome.context("the controller thread panicked")??;
            anyhow::bail!("the controller ended")
        }
    };
    if forwards.load(Ordering::Relaxed) {
        info!(%signal, drain = ?config.forward.drain, "stopping: the kernel takes over what the forwarder carries; another signal ends it at once");
        stop.cancel();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = &mut end_result => {}
        }
    }
    stopped(signal)
}

/// Counts connections for metrics, if that is wanted. Without it Services are served all the same.
fn start_census(config: &Config) -> Option<CensusTaker> {
    if config.connection_metrics.services == 0 {
        return None;
    }
    CensusTaker::start().inspect_err(|error| warn!(%error, "connections will not be counted for metrics")).ok()
}

/// Pods that can only be told in a family that this kernel does not have cannot be told at all (spec section 3).
fn check_families(config: &Config, families: Families) -> anyhow::Result<()> {
    match &config.detect_local {
        DetectLocal::ClusterCidr(networks) if !networks.is_empty() => {
            let served = networks.iter().any(|network| families.contains(Family::of(network.addr())));
            anyhow::ensure!(served, "clusterCIDR: no network of a family that this kernel has nftables for");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Opens the data plane and takes possession of its tables. A predecessor that was killed a moment ago owns them until the kernel has
/// closed its sockets, so somebody else's tables are tried again for [`HANDOVER`].
fn claim(ownership: Ownership) -> Result<(DataPlane, usize), KernelError> {
    let begin = Instant::now();
    let mut said = false;
    loop {
        match DataPlane::open_as(ownership).and_then(|mut plane| plane.claim().map(|tables| (plane, tables))) {
            Err(error) if error.is_rival() && begin.elapsed() < HANDOVER => {
                if !std::mem::replace(&mut said, true) {
                    info!(%error, patience = ?HANDOVER, "waiting for another instance to be gone");
                }
                thread::sleep(HANDOVER_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

/// What is programmed stays: a commit that is under way completes, and nothing else is owed to the kernel. The exit code is that of a
/// process that the signal ended, as with kube-proxy.
fn stopped(signal: Signal) -> ! {
    info!(%signal, "stopping; what is programmed stays");
    std::process::exit(128 + signal as i32)
}

/// Does what needs more privileges than serving: kernel parameters of connection tracking, and our own memory priority.
pub fn prepare(config: &Config) -> anyhow::Result<()> {
    let applied = apply_sysctls(&settings::conntrack(config).sysctls(online_cpus()))?;
    for sysctl in applied.written {
        info!(path = %sysctl.path.display(), value = sysctl.value, "kernel parameter set");
    }
    for sysctl in applied.fixed {
        info!(path = %sysctl.path.display(), wanted = sysctl.value, "left alone: it can only be set in the machine's first network namespace");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", config.oom_score_adj.to_string()) {
        // kube-proxy goes on as well: it is a wish and no need.
        info!(%error, value = config.oom_score_adj, "cannot set oom_score_adj");
    }
    Ok(())
}

/// Removes everything that this program and kube-proxy ever program in this network namespace. What fails does not keep the rest from
/// being removed.
pub fn cleanup() -> Result<(), CleanupErrors> {
    let mut errors = Vec::new();
    match DataPlane::open().and_then(|mut plane| plane.remove()) {
        Ok(0) => {}
        Ok(tables) => info!(tables, "removed our own nftables tables"),
        Err(error @ (KernelError::NoFamily | KernelError::Nft(nft::Error::Unavailable(_)))) => {
            info!(%error, "so there are no tables to be removed");
        }
        Err(error) => errors.push(error.into()),
    }
    if !errors.iter().any(CleanupError::is_permission) {
        errors.extend(cleanup::remove_leftovers(Asked::Explicitly));
    }
    if errors.is_empty() {
        info!("cleaned up");
        return Ok(());
    }
    Err(CleanupErrors(errors))
}

/// What is done once the first load is programmed. A directory of manifests is no cluster in which a kube-proxy could have been.
fn after_first_load(source: &SourceConfig) -> Option<AfterFirstLoad> {
    match source {
        SourceConfig::Manifests(_) => None,
        SourceConfig::Api { .. } => Some(remove_leftovers),
    }
}

/// On a thread of its own: a large iptables ruleset takes its time, and Services go on changing.
fn remove_leftovers() {
    let remove = || {
        let errors = cleanup::remove_leftovers(Asked::ByStart);
        for error in &errors {
            warn!(%error, "something that kube-proxy left could not be removed; --cleanup tries again");
        }
        if errors.is_empty() {
            info!("of kube-proxy's leftovers none is there");
        }
    };
    if let Err(error) = thread::Builder::new().name("leftovers".to_owned()).spawn(remove) {
        warn!(%error, "what kube-proxy left could not be removed; --cleanup tries again");
    }
}

enum Source {
    Manifests(ManifestSource),
    Api(Box<ApiSource>),
}

fn make_source(config: &Config) -> anyhow::Result<Source> {
    Ok(match &config.source {
        SourceConfig::Manifests(dir) => Source::Manifests(ManifestSource::new(dir, &config.node)?),
        SourceConfig::Api { kubeconfig, master } => Source::Api(Box::new(ApiSource::new(ApiConfig {
            kubeconfig: kubeconfig.clone(),
            master: master.clone(),
            node_name: config.node.clone(),
            rate: Some(Rate { per_second: config.client.qps, burst: config.client.burst }),
            version: Some(config.version.clone()),
            streaming_lists: config.gates.enabled("WatchListClient"),
            ..ApiConfig::default()
        })?)),
    })
}

// === impl Source ===

impl Source {
    /// For who writes to the API server, if there is one.
    fn clients(&self) -> Option<Clients> {
        match self {
            Source::Manifests(_) => None,
            Source::Api(source) => Some(source.clients()),
        }
    }

    async fn run(self, changes: mpsc::Sender<Change>, shutdown: CancellationToken) {
        match self {
            Source::Manifests(source) => source.run(changes, shutdown).await,
            Source::Api(source) => source.run(changes, shutdown).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream: Test_checkBadIPConfig.
    #[test]
    fn networks_of_a_family_that_is_not_there_end_the_start() {
        let source = SourceConfig::Manifests("/".into());
        let with = |networks: &[&str]| {
            let networks = networks.iter().map(|text| text.parse().expect("a network")).collect();
            let mut config = Config::new("n1", source.clone());
            config.detect_local = DetectLocal::ClusterCidr(networks);
            config
        };
        let v4: Families = [Family::V4].into_iter().collect();
        assert!(check_families(&with(&["fd00::/64"]), v4).is_err());
        for fine in [&[][..], &["10.0.0.0/8"], &["10.0.0.0/8", "fd00::/64"]] {
            assert!(check_families(&with(fine), v4).is_ok(), "{fine:?}");
        }
        assert!(check_families(&with(&["fd00::/64"]), Families::ALL).is_ok());
    }
}

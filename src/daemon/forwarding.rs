//! The forwarder's place in the daemon: opens what the engine wishes for, says where, and closes what nobody is sent to any more.
//!
//! In one batch of the controller: the engine compiles; [`Forwarding::follow`] opens new listeners and has the kernel send to them
//! ([`Redirects`](crate::kernel::redirects::Redirects)); the kernel takes what was compiled; [`Forwarding::committed`] ends redirects that are not needed, and closes their
//! listeners. So a listener is open before anybody is sent to it, and nobody is sent to one that is closed. Redirects go with this
//! process, whatever ends it. A listener that cannot be opened is reported and tried
//! again, with back-off; while nobody is redirected, the kernel carries a Service if it can (see `engine::routes`).
//!
//! Listeners for the kernel bind to all addresses, on ports that the system chooses; the kernel is told one address of the host
//! (`host_address`), and a Node that gets another one changes no socket. TCP listeners refuse who did not come by the kernel's
//! translation. Listeners for local processes bind to a loopback address and the node port itself.
//!
//! Nothing is started before there is something to forward.

mod backoff;
mod leading;
mod meter;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::backoff::Backoff;
use self::leading::Leading;
use self::meter::Meter;
use super::host_address::HostAddresses;
use crate::config::ForwardConfig;
use crate::engine::{Engine, Fallback, ListenerKey, Outcome, Wish};
use crate::forward::udp::{UdpForwarder, UdpOptions, UdpRoute};
use crate::forward::{Forwarder, Gate, Register, RouteId, Settings};
use crate::kernel::redirects::Redirect;
use crate::model::{Family, Protocol, ServiceKey};
use crate::observe::{Observer, metrics};
use crate::policy::{NodeAddresses, Reason};

/// How often metrics are brought up to date.
const MEASURE: Duration = Duration::from_secs(5);

/// Threads for UDP; flows are spread over them.
const UDP_WORKERS: usize = 2;

/// All listeners.
#[derive(Debug, Default)]
pub(super) struct Forwarding {
    /// Most TCP connections, if the operator says so.
    max_connections: Option<usize>,
    /// What all of them enter by.
    gate: Option<Arc<Gate>>,
    /// How long a stop waits for connections.
    drain: Duration,
    /// Whether anybody depends on us, for who may want to end the process at once.
    in_use: Arc<AtomicBool>,
    stop: CancellationToken,
    /// For what the kernel sends.
    tcp: Option<Forwarder>,
    /// For node ports on loopback addresses.
    loopback: Option<Forwarder>,
    udp: Option<UdpForwarder>,
    /// Who is carried where, by all of them.
    register: Register,
    wanted: BTreeMap<ListenerKey, Wanted>,
    /// Those of them that could not be opened.
    failed: BTreeSet<ListenerKey>,
    /// Those that the engine has not heard the latest of: a batch costs what it touches, however many there are.
    untold: BTreeSet<ListenerKey>,
    /// To be closed when the kernel knows.
    closing: BTreeSet<ListenerKey>,
    leading: Leading,
    /// Nobody is to be led here any more.
    handed_over: bool,
    /// Where the kernel finds us, IPv4 and IPv6.
    addresses: [Option<IpAddr>; 2],
    host: HostAddresses,
    tcp_meter: Meter,
    udp_meter: Meter,
    /// When metrics are to be brought up to date, while there is something to measure.
    measure_at: Option<Instant>,
}

#[derive(Debug)]
struct Wanted {
    wish: Wish,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It listens at this address; the unspecified one stands for all.
    Open(SocketAddr),
    /// It could not be opened.
    Failed(Backoff),
}

// === impl Forwarding ===

impl Forwarding {
    /// With nothing to forward.
    pub(super) fn new(config: ForwardConfig) -> Self {
        Self { max_connections: config.max_connections, drain: config.drain, ..Self::default() }
    }

    /// Tells, at any time and from any thread, whether a stop has something to wait for.
    pub(super) fn in_use(&self) -> Arc<AtomicBool> {
        self.in_use.clone()
    }

    /// To be cancelled when the controller shall end in order.
    pub(super) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Who is carried where, for people who look.
    pub(super) fn register(&self) -> Register {
        self.register.clone()
    }

    /// Whether anybody depends on us.
    pub(super) fn is_in_use(&self) -> bool {
        !self.wanted.is_empty() || !self.closing.is_empty() || self.connections() > 0
    }

    /// TCP connections and UDP flows.
    pub(super) fn connections(&self) -> usize {
        let tcp = [&self.tcp, &self.loopback].into_iter().flatten().map(Forwarder::connections).sum::<usize>();
        tcp + self.udp.as_ref().map_or(0, UdpForwarder::flows)
    }

    /// When there is a listener to be tried again.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let failed = self.failed.iter().filter_map(|listener| self.wanted.get(listener));
        let retries = failed.filter_map(|wanted| match wanted.state {
            State::Failed(backoff) => Some(backoff.at),
            State::Open(_) => None,
        });
        retries.chain(self.measure_at).chain(self.leading.deadline()).min()
    }

    /// Opens and changes what the engine wishes for, and has it compiled what follows from that, into `outcome`, as long as fewer than
    /// `elements` differ.
    pub(super) fn follow(&mut self, engine: &mut Engine, outcome: &mut Outcome, elements: usize, observer: &Observer) {
        for (listener, wish) in engine.take_wishes() {
            match wish {
                Some(wish) => self.want(listener, wish, observer),
                None => {
                    self.failed.remove(&listener);
                    self.untold.remove(&listener);
                    if let Some(Wanted { state: State::Open(_), .. }) = self.wanted.remove(&listener) {
                        self.closing.insert(listener);
                    }
                }
            }
        }
        self.retry(observer);
        self.in_use.store(self.is_in_use(), Ordering::Relaxed);
        if self.measure_at.is_none_or(|at| at <= Instant::now()) {
            self.measure(engine);
        }
        let moved = self.tell(engine, &outcome.services);
        for (service, fallback) in engine.take_fallbacks() {
            announce(&service, fallback, observer);
        }
        if moved {
            engine.compile_into(outcome, elements);
        }
    }

    /// The kernel has what was compiled: what it does not send to any more is closed. Connections live on.
    pub(super) fn committed(&mut self, engine: &mut Engine) {
        if !self.closing.is_empty() {
            self.measure(engine);
        }
        let closing = std::mem::take(&mut self.closing);
        let ended = closing.iter().filter(|listener| listener.loopback.is_none());
        self.lead(ended.map(|listener| (listener.route.clone(), None)).collect());
        for listener in closing {
            self.close(&listener);
            if listener.loopback.is_none() {
                engine.set_listener(&listener.route, None);
            }
        }
    }

    /// Nobody is led here any more, from this moment on.
    pub(super) fn hand_over(&mut self) {
        (self.leading, self.handed_over) = (Leading::default(), true);
    }

    /// Closes all listeners, waits for connections for as long as that may take, and ends the others.
    pub(super) fn shutdown(mut self) {
        let (begin, drain) = (Instant::now(), self.drain);
        let connections = self.connections();
        if connections > 0 {
            info!(connections, patience = ?drain, "draining what the forwarder carries");
        }
        // UDP has nobody to say goodbye to: its flows are at their endpoints already, by way of the kernel.
        drop(self.udp.take());
        let mut forwarders: Vec<_> = [self.tcp.take(), self.loopback.take()].into_iter().flatten().collect();
        // Before the first one is waited for: who came meanwhile would be ended soon.
        forwarders.iter_mut().for_each(Forwarder::close);
        let mut ended = 0;
        for forwarder in forwarders {
            ended += forwarder.shutdown(drain.saturating_sub(begin.elapsed()));
        }
        if ended > 0 {
            warn!(connections = ended, "connections were still open and are ended");
        }
    }

    /// Brings metrics up to date.
    fn measure(&mut self, engine: &Engine) {
        if !self.is_in_use() && self.measure_at.is_none() {
            return;
        }
        for reason in Reason::ALL {
            let services = engine.fallbacks().values().filter(|fallback| fallback.reason == reason).count();
            metrics::userspace_services(reason.label(), services);
        }
        let open = self.wanted.values().filter(|wanted| matches!(wanted.state, State::Open(_))).count();
        metrics::userspace_listeners(open, self.wanted.len() - open);
        let forwarders = [("", &self.tcp), ("loopback ", &self.loopback)];
        let routes = forwarders.into_iter().filter_map(|(kind, forwarder)| Some((kind, forwarder.as_ref()?.status())));
        let routes = routes.flat_map(|(kind, routes)| routes.into_iter().map(move |route| (kind, route)));
        self.tcp_meter.read(routes.map(|(kind, (id, status))| (format!("{kind}{id:?}"), meter::tcp(&status))));
        self.tcp_meter.publish("tcp");
        if let Some(udp) = &self.udp {
            let named = |name: &str| Some((name.to_owned(), meter::udp(&udp.status(name)?.1)));
            self.udp_meter.read(udp.names().filter_map(named));
            self.udp_meter.publish("udp");
        }
        self.measure_at = self.is_in_use().then(|| Instant::now() + MEASURE);
    }

    fn want(&mut self, listener: ListenerKey, wish: Wish, observer: &Observer) {
        self.closing.remove(&listener);
        let failed = match self.wanted.get(&listener).map(|wanted| wanted.state) {
            Some(state @ State::Failed(backoff)) if !backoff.is_due(Instant::now()) => {
                // Its time will come.
                self.wanted.insert(listener, Wanted { wish, state });
                return;
            }
            Some(State::Failed(backoff)) => Some(backoff),
            Some(State::Open(_)) | None => None,
        };
        let state = match self.open(&listener, &wish) {
            Ok(address) => {
                if let Some(at) = listener.loopback
                    && !matches!(self.wanted.get(&listener), Some(Wanted { state: State::Open(_), .. }))
                {
                    info!(service = %listener.route.port, protocol = %listener.route.port.protocol, %at, "node port served for local processes");
                }
                State::Open(address)
            }
            Err(error) => {
                let service = &listener.route.port.service;
                let instead = match listener.loopback {
                    Some(at) => format!("local processes do not find it at {at}"),
                    None => "the kernel carries it where it can".to_owned(),
                };
                let again = Backoff::after(failed, Instant::now());
                error!(%service, error, retry_in = ?again.pause, "the forwarder cannot listen; {instead}");
                observer.forwarder_cannot_listen(service, format!("{error}; {instead}"));
                State::Failed(again)
            }
        };
        match state {
            State::Open(_) => self.failed.remove(&listener),
            State::Failed(_) => self.failed.insert(listener.clone()),
        };
        if listener.loopback.is_none() {
            self.untold.insert(listener.clone());
        }
        self.wanted.insert(listener, Wanted { wish, state });
    }

    fn retry(&mut self, observer: &Observer) {
        let now = Instant::now();
        let due = |listener: &&ListenerKey| matches!(self.wanted[*listener].state, State::Failed(backoff) if backoff.is_due(now));
        let due: Vec<_> = self.failed.iter().filter(due).cloned().collect();
        for listener in due {
            let wish = self.wanted[&listener].wish.clone();
            self.want(listener, wish, observer);
        }
    }

    /// Tells kernel and engine where listeners are, as far as something has happened to them or to these Services. Whether what is
    /// expected of flows differs from what the engine knew.
    fn tell(&mut self, engine: &mut Engine, compiled: &[ServiceKey]) -> bool {
        if self.handed_over || (self.tcp.is_none() && self.udp.is_none() && self.untold.is_empty()) {
            return false;
        }
        let known = NodeAddresses::new(engine.settings(), engine.store().node());
        let mut everybody = false;
        let found = self.host.look(Family::ALL.map(|family| known.known(family)));
        for (family, address) in Family::ALL.into_iter().zip(found) {
            let before = std::mem::replace(&mut self.addresses[family as usize], address);
            everybody |= before != address;
            match address {
                Some(address) if before != Some(address) => {
                    info!(%address, "connections for the forwarder are sent to")
                }
                None if before.is_some() => {
                    warn!(%family, "this host has no address any more that connections for the forwarder could be sent to");
                }
                _ => {}
            }
        }
        let (mut moved, mut redirects) = (false, BTreeMap::new());
        let mut concerned = std::mem::take(&mut self.untold);
        for service in compiled {
            concerned.extend(engine.listeners(service).filter(|listener| listener.loopback.is_none()).cloned());
        }
        if everybody {
            concerned.extend(self.wanted.keys().filter(|listener| listener.loopback.is_none()).cloned());
        }
        for (listener, wanted) in concerned.iter().filter_map(|listener| Some((listener, self.wanted.get(listener)?))) {
            let address = match wanted.state {
                State::Open(bound) => {
                    self.addresses[listener.route.family as usize].map(|address| SocketAddr::new(address, bound.port()))
                }
                State::Failed(_) => None,
            };
            moved |= engine.set_listener(&listener.route, address);
            let redirect = address.zip(engine.pool(&listener.route)).map(|(to, pool)| Redirect { pool, to });
            redirects.insert(listener.route.clone(), redirect);
        }
        match self.leading.may_ask(Instant::now()) {
            true => self.lead(redirects),
            false => self.untold.extend(concerned),
        }
        moved
    }

    /// Has the kernel lead these routes' connections there, or to nobody of ours.
    fn lead(&mut self, wanted: BTreeMap<RouteId, Option<Redirect>>) {
        if !self.leading.change(wanted) {
            // It leads nobody here any more: all of them shall be led again.
            self.untold.extend(self.wanted.keys().filter(|listener| listener.loopback.is_none()).cloned());
        }
    }

    fn open(&mut self, listener: &ListenerKey, wish: &Wish) -> Result<SocketAddr, String> {
        let route = &listener.route;
        match route.port.protocol {
            Protocol::Udp => {
                let udp = match &mut self.udp {
                    Some(udp) => udp,
                    none => {
                        let started = UdpForwarder::start_with(UDP_WORKERS, UdpForwarder::FLOWS, self.register.clone());
                        none.insert(started.map_err(|error| error.to_string())?)
                    }
                };
                udp.set(&name(listener), udp_route(listener, wish)).map_err(|error| error.to_string())
            }
            Protocol::Tcp | Protocol::Sctp => {
                let gate = || Arc::new(Gate::of_process(self.max_connections));
                let gate = self.gate.get_or_insert_with(gate).clone();
                let (slot, workers) = match listener.loopback {
                    None => (&mut self.tcp, 0),
                    Some(_) => (&mut self.loopback, 1),
                };
                let settings = Settings { workers, ..Settings::default() };
                let register = self.register.clone();
                let start = || Forwarder::start_with(settings, gate, register).map_err(|error| error.to_string());
                let forwarder = match slot {
                    Some(forwarder) => forwarder,
                    none => none.insert(start()?),
                };
                let opened = match listener.loopback {
                    None => forwarder.set(route, &wish.route),
                    Some(at) => forwarder.set_at(route, &wish.route, at),
                };
                opened.map_err(|error| error.to_string())
            }
        }
    }

    fn close(&mut self, listener: &ListenerKey) {
        match (listener.route.port.protocol, listener.loopback) {
            (Protocol::Udp, _) => self.udp.as_mut().map(|udp| udp.remove(&name(listener))),
            (_, None) => self.tcp.as_mut().map(|forwarder| forwarder.remove(&listener.route)),
            (_, Some(_)) => self.loopback.as_mut().map(|forwarder| forwarder.remove(&listener.route)),
        };
    }
}

// === routes as each forwarder wants them ===

/// What the UDP forwarder knows a route by.
fn name(listener: &ListenerKey) -> String {
    let ListenerKey { route: RouteId { port, family, local }, loopback } = listener;
    // Names of Services and ports have no spaces.
    format!("{} {} {family} {local} {loopback:?}", port.service, port.name)
}

fn udp_route(listener: &ListenerKey, wish: &Wish) -> UdpRoute {
    let Wish { route, draining } = wish;
    let any: IpAddr = match listener.route.family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let defaults = UdpOptions::default();
    let idle = route.options.idle_timeout;
    UdpRoute {
        listen: listener.loopback.unwrap_or(SocketAddr::new(any, 0)),
        candidates: route.candidates.clone(),
        draining: draining.clone(),
        method: route.method,
        affinity: route.affinity,
        seed: fastrand::u64(..),
        options: UdpOptions {
            idle: idle.unwrap_or(defaults.idle),
            idle_stream: idle.unwrap_or(defaults.idle_stream),
            flows: route.options.max_connections.unwrap_or(defaults.flows),
            ..defaults
        },
    }
}

/// Says, once, who carries a Service and why.
fn announce(service: &ServiceKey, fallback: Option<Fallback>, observer: &Observer) {
    match fallback {
        Some(fallback) => {
            let (reason, note) = (fallback.reason.label(), fallback.note());
            metrics::fell_back(reason);
            info!(%service, reason, "{note}");
            observer.carried_in_userspace(service, note);
        }
        None => info!(%service, "carried by the kernel alone again"),
    }
}

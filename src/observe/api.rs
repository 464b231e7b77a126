//! The status API: questions over HTTP, answered with the views of [`crate::status`].
//!
//! One handler for whoever is let in: the socket of `pointsman` ([`super::socket`]) and read-only paths of the metrics port. It finds out
//! the names that are asked for, has the controller look at some of them at a time, and does the rest (sorting, JSON) where nobody waits
//! for it. Connections are looked at by [`super::walks`], one walk at a time; what is said by hand goes through [`super::orders`].
//!
//! Every answer is JSON; of a mistake, `{"error": "..."}`. Only GET and HEAD are answered, but at `/v1/overrides` on the socket, where endpoints are drained and
//! weighted by hand.
//!
//! | path | answer | refused with |
//! |---|---|---|
//! | `/v1/health` | [`HealthView`] | |
//! | `/v1/services?namespace=&search=&only=&page=&perPage=&connections=` | [`ServicePage`] | 400 |
//! | `/v1/services/NAMESPACE/NAME?connections=` | [`ServiceView`] | 404 |
//! | `/v1/list?namespace=&search=&only=&rows=` | [`VirtualList`]; text ([`crate::status::rows`]) with `rows` | 400 |
//! | `/v1/explain?target=&from=&protocol=&verify=` | [`Explanation`] | 400 |
//! | `/v1/connections` | [`ConnectionList`] | |
//! | `/v1/rates?seconds=` | [`RateList`], after so many seconds (0.1 to 4; 1) | 400 |
//! | `/v1/drift` | [`DriftView`] | |
//! | `/v1/overrides` | [`OverrideList`](crate::status::OverrideList) | |
//! | POST `/v1/overrides?endpoint=&service=&weight=&for=&cut=` | the same: what was said | 400, 404, 409 |
//! | DELETE `/v1/overrides?endpoint=&service=` (or `all=true`) | the same: what still stands | 400, 404 |
//! | `/v1/flows?target=&client=&endpoint=&protocol=&state=&node=&most=&follow=` | [`FlowList`](crate::status::flows::FlowList); lines of [`FlowEvent`](crate::status::flows::FlowEvent) with `follow` | 400, 429 |
//!
//! `connections=true` adds the live connections of each endpoint. 503 is said when the controller, or the kernel, does not answer.
//!
//! Proven by `tests/e2e/status.rs`.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::contact;
use super::desk::{Busy, Desk, Glance};
use super::flows::{Asked, Flows, FollowError, ListError, leads_to};
use super::http::{Answer, Handler, answer};
use super::orders::{Orders, Refused, Said};
use super::rows::{self, Counted};
use super::walks::{FRESH, WalkError, Walks};
use crate::conntrack::{Destination, Flow};
use crate::engine::OrderError;
use crate::forward::Register;
use crate::kernel::KernelError;
use crate::kernel::addresses::interface_addresses;
use crate::kernel::conntrack::accounting;
use crate::kernel::glance::{self, Comparison, Difference};
use crate::model::{Families, Family, Protocol, ServiceKey};
use crate::status::explain::{DifferenceView, Explanation, Question, VerificationView, explain};
use crate::status::flows::FlowFilter;
use crate::status::query::{self, Parameters, QueryError, is_set};
use crate::status::{
    self, CHUNK, ConnectionList, DriftView, FamilyHealth, HealthView, Lift, ListedFrontend, Page, RateList, Search,
    ServicePage, ServiceView, VERSION, VirtualList,
};

/// For how many seconds rates may be measured: the forwarder remembers for 5 s who left.
const WINDOW: RangeInclusive<f64> = 0.1..=4.0;

/// Differences that are named, of all that drifted.
const DIFFERENCES: usize = 20;

/// Answers questions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    desk: Desk,
    walks: Walks,
    flows: Flows,
    orders: Orders,
    about: About,
    started: (Instant, Timestamp),
}

/// What is known without asking.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// Whose defaults apply.
    pub(super) mode: String,
    /// The version of kube-proxy that we stand for.
    pub(super) version: String,
    /// The families served.
    pub(super) families: Families,
    /// Where health and metrics are served, and whether the page is.
    pub(super) health_address: Option<SocketAddr>,
    pub(super) metrics_address: Option<SocketAddr>,
    pub(super) page: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is nothing at this path")]
    NoPath,
    #[error("no Service {0} is served here")]
    NoService(String),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Order(#[from] Refused),
    #[error("only GET and HEAD are answered here")]
    Method,
    #[error(transparent)]
    Busy(#[from] Busy),
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Follow(#[from] FollowError),
}

#[derive(Serialize)]
struct ErrorBody {
    error: String,
}

// === impl Api ===

impl Api {
    /// An API before a desk.
    pub(super) fn new(desk: Desk, register: Register, about: About, keep: Option<PathBuf>) -> Self {
        let started = (Instant::now(), Timestamp::now());
        let walks = Walks::new(register.clone());
        let flows = Flows::new(desk.clone(), register, walks.clone());
        let orders = Orders::new(desk.clone(), keep);
        Self(Arc::new(Inner { desk, walks, flows, orders, about, started }))
    }

    /// As a handler of all that is asked, and ordered, on a socket for root.
    pub(super) fn handler(&self) -> Handler {
        let api = self.clone();
        Arc::new(move |request| {
            let api = api.clone();
            Box::pin(async move {
                match (request.method(), request.uri().path()) {
                    (&Method::POST | &Method::DELETE, "/v1/overrides") => api.say(&request).await,
                    (_, path) => api.answer(&request, path).await,
                }
            })
        })
    }

    /// Answers a request as if it were for this path, which begins with `/v1/`. Nothing is changed by this.
    pub(super) async fn answer(&self, request: &Request<Bytes>, path: &str) -> Answer {
        let parameters = parameters_of(request);
        let answered = match *request.method() {
            Method::GET | Method::HEAD => self.get(path, &parameters).await,
            _ => Err(Refusal::Method),
        };
        answered.unwrap_or_else(Refusal::into_answer)
    }

    async fn get(&self, path: &str, parameters: &Parameters) -> Result<Answer, Refusal> {
        match path {
            "/v1/health" => Ok(json(&self.health().await?)),
            "/v1/services" => Ok(json(&self.services(parameters).await?)),
            "/v1/list" if is_set(parameters, "rows") => self.rows(parameters).await,
            "/v1/list" => Ok(json(&self.list(parameters).await?)),
            "/v1/explain" => Ok(json(&self.explain(parameters).await?)),
            "/v1/connections" => Ok(json(&self.connections().await?)),
            "/v1/overrides" => Ok(json(&self.0.orders.standing().await?)),
            "/v1/rates" => Ok(json(&self.rates(parameters).await?)),
            "/v1/drift" => Ok(json(&self.drift().await?)),
            "/v1/flows" => self.flows(parameters).await,
            _ => {
                let name = path.strip_prefix("/v1/services/").and_then(|name| name.split_once('/'));
                let (namespace, name) = name.ok_or(Refusal::NoPath)?;
                let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
                let key = ServiceKey::new(&decoded(namespace), &decoded(name));
                Ok(json(&self.service(key, parameters).await?))
            }
        }
    }

    async fn health(&self) -> Result<HealthView, Refusal> {
        let Inner { about, started, .. } = &*self.0;
        let (about, started) = (about.clone(), *started);
        Ok(self.0.desk.ask(move |glance| health(glance, &about, started)).await?)
    }

    async fn services(&self, parameters: &Parameters) -> Result<ServicePage, Refusal> {
        let (search, page) = (Search::of(parameters)?, Page::of(parameters)?);
        let keys = self.found(search).await?;
        let (total, pages) = (keys.len(), page.pages(keys.len()));
        let mut services: Vec<ServiceView> = Vec::new();
        for keys in chunks(page.cut(keys)) {
            let seen = self.0.desk.ask(move |glance| {
                let (now, wall) = (Instant::now(), Timestamp::now());
                keys.iter().filter_map(|key| status::view(glance.engine, key, now, wall)).collect::<Vec<_>>()
            });
            services.extend(seen.await?);
        }
        if wants_connections(parameters) && !services.is_empty() {
            let census = self.0.walks.all().await?;
            services.iter_mut().for_each(|service| census.fill(service));
        }
        Ok(ServicePage { version: VERSION.to_owned(), total, page: page.number, pages, services })
    }

    async fn service(&self, key: ServiceKey, parameters: &Parameters) -> Result<ServiceView, Refusal> {
        let name = key.to_string();
        let seen = self.0.desk.ask(move |glance| status::view(glance.engine, &key, Instant::now(), Timestamp::now()));
        let mut service = seen.await?.ok_or(Refusal::NoService(name))?;
        if wants_connections(parameters) {
            let destinations = destinations(&service);
            if !destinations.is_empty() {
                self.0.walks.to(destinations).await?.fill(&mut service);
            }
        }
        Ok(service)
    }

    /// Some of a Service's connections, for the page.
    pub(super) async fn flows_of(&self, namespace: &str, name: &str, most: usize) -> Answer {
        let asked = Asked { filter: FlowFilter::of_service(namespace, name), most };
        let list = async {
            let only = self.only(&asked.filter).await?.unwrap_or_default();
            Ok(json(&*self.0.flows.share(asked, move |flow| leads_to(&only, flow)).await?))
        };
        list.await.unwrap_or_else(Refusal::into_answer)
    }

    async fn flows(&self, parameters: &Parameters) -> Result<Answer, Refusal> {
        let asked = Asked::of(parameters)?;
        if is_set(parameters, "follow") {
            if let Some((namespace, name)) = asked.filter.service() {
                self.service(ServiceKey::new(namespace, name), &[]).await?;
            }
            return Ok(self.0.flows.follow(asked)?);
        }
        let only = self.only(&asked.filter).await?;
        let wants = move |flow: &Flow| only.as_ref().is_none_or(|only| leads_to(only, flow));
        Ok(json(&self.0.flows.list(asked, wants).await?))
    }

    /// Of a Service that is known, only connections to its frontends are looked at.
    async fn only(&self, filter: &FlowFilter) -> Result<Option<HashSet<(Protocol, Destination)>>, Refusal> {
        let Some((namespace, name)) = filter.service() else { return Ok(None) };
        let service = self.service(ServiceKey::new(namespace, name), &[]).await?;
        Ok(Some(destinations(&service).into_iter().collect()))
    }

    async fn list(&self, parameters: &Parameters) -> Result<VirtualList, Refusal> {
        let mut services = Vec::new();
        for keys in chunks(self.found(Search::of(parameters)?).await?) {
            let seen = self
                .0
                .desk
                .ask(move |glance| keys.iter().flat_map(|key| status::list(glance.engine, key)).collect::<Vec<_>>());
            services.extend(seen.await?.into_iter().map(ListedFrontend::into_view));
        }
        Ok(VirtualList { version: VERSION.to_owned(), services })
    }

    async fn rows(&self, parameters: &Parameters) -> Result<Answer, Refusal> {
        let keys = self.found(Search::of(parameters)?).await?;
        let census = self.0.walks.all().await?;
        let to = census.destinations();
        let crossed = if to.is_empty() {
            Vec::new()
        } else {
            self.0.desk.ask(move |glance| status::crossed(glance.engine, &to)).await?
        };
        Ok(rows::rows(self.0.desk.clone(), chunks(keys), Counted { census, crossed: crossed.into() }))
    }

    async fn explain(&self, parameters: &Parameters) -> Result<Explanation, Refusal> {
        let question = Question::of(parameters)?;
        let verify = is_set(parameters, "verify");
        // The host's addresses are read where the tables are: in the daemon's network namespace, and not by the controller.
        let addresses = spawn_blocking(interface_addresses).await.map_err(|_| Busy)?;
        let asked = self.0.desk.ask(move |glance| explain(glance.engine, &question, &addresses, verify));
        let (mut explanation, expected) = asked.await?;
        for (index, family, image) in expected {
            let compared = spawn_blocking(move || glance::compare(family, &image)).await.map_err(|_| Busy)??;
            explanation.answers[index].verification = Some(verification(compared));
        }
        Ok(explanation)
    }

    async fn connections(&self) -> Result<ConnectionList, Refusal> {
        let census = self.0.walks.all().await?;
        Ok(ConnectionList {
            version: VERSION.to_owned(),
            accounting: accounting(),
            read: census.read,
            partial: census.partial,
            connections: census.rows(),
        })
    }

    /// Looks every element up that the kernel should have for a Service. What differs is looked up again after a moment: it may have been
    /// about to be programmed.
    async fn drift(&self) -> Result<DriftView, Refusal> {
        let mut drift = DriftView { version: VERSION.to_owned(), looked_up: 0, differing: 0, differences: Vec::new() };
        for keys in chunks(self.found(Search::default()).await?) {
            let (looked_up, differing) = self.compare(keys).await?;
            drift.looked_up += looked_up;
            if differing.is_empty() {
                continue;
            }
            sleep(FRESH).await;
            for (_, found) in self.compare(differing.into_keys().collect()).await?.1 {
                drift.differing += found.len();
                drift.differences.extend(found.into_iter().map(difference));
                drift.differences.truncate(DIFFERENCES);
            }
        }
        Ok(drift)
    }

    /// Looks up the elements of these Services: how many, and what differs by Service.
    async fn compare(&self, keys: Vec<ServiceKey>) -> Result<(usize, BTreeMap<ServiceKey, Vec<Difference>>), Refusal> {
        let expected = self.0.desk.ask(move |glance| {
            let engine = glance.engine;
            let services = keys.iter().filter_map(|key| engine.store().service(key));
            let ports = services.flat_map(|service| service.ports.iter().map(|port| service.port_key(port)));
            let images =
                ports.flat_map(|port| Family::ALL.map(|family| (port.clone(), family, engine.elements(&port, family))));
            images.collect::<Vec<_>>()
        });
        let expected = expected.await?;
        let compared = spawn_blocking(move || {
            let (mut looked_up, mut differing) = (0, BTreeMap::new());
            for (port, family, image) in expected {
                let compared = glance::compare(family, &image)?;
                looked_up += compared.looked_up;
                if !compared.differences.is_empty() {
                    differing.entry(port.service).or_insert_with(Vec::new).extend(compared.differences);
                }
            }
            Ok::<_, KernelError>((looked_up, differing))
        });
        Ok(compared.await.map_err(|_| Busy)??)
    }

    /// Has what somebody says by hand carried out.
    async fn say(&self, request: &Request<Bytes>) -> Answer {
        let parameters = parameters_of(request);
        let said = async {
            let said = match *request.method() {
                Method::DELETE => Said::Lift(Lift::of(&parameters)?),
                _ => Said::Place(status::order_of(&parameters)?),
            };
            Ok(json(&self.0.orders.say(said).await?))
        };
        said.await.unwrap_or_else(Refusal::into_answer)
    }

    /// What comes within some time from now on.
    async fn rates(&self, parameters: &Parameters) -> Result<RateList, Refusal> {
        let number = |text: &str| text.parse().ok().filter(|seconds| WINDOW.contains(seconds));
        let seconds = query::read(parameters, "seconds", "not a number from 0.1 to 4", number)?;
        Ok(self.0.walks.rates(Duration::from_secs_f64(seconds.unwrap_or(1.0))).await?)
    }

    /// The Services that are wanted, sorted.
    async fn found(&self, search: Search) -> Result<Vec<ServiceKey>, Busy> {
        let desk = &self.0.desk;
        let wanted = search.clone();
        let mut keys = desk
            .ask(move |glance| {
                let keys = glance.engine.store().services().map(|service| &service.key);
                keys.filter(|key| wanted.wants_namespace(key)).cloned().collect::<Vec<_>>()
            })
            .await?;
        if !search.is_by_name() {
            let mut found = Vec::new();
            for mut keys in chunks(keys) {
                let search = search.clone();
                let wanted = desk.ask(move |glance| {
                    keys.retain(|key| search.wants(glance.engine, key));
                    keys
                });
                found.extend(wanted.await?);
            }
            keys = found;
        }
        keys.sort();
        Ok(keys)
    }
}

/// Where the clients of a Service connect to.
fn destinations(service: &ServiceView) -> Vec<(Protocol, Destination)> {
    let mut destinations = Vec::new();
    for port in &service.ports {
        let (Some(protocol), Some(family)) = (port.transport(), Family::from_kubernetes(&port.family)) else {
            continue;
        };
        for frontend in port.frontends.iter().filter(|frontend| frontend.held_by.is_none()) {
            destinations.push((
                protocol,
                match frontend.address {
                    Some(address) => Destination::Address((address, frontend.port).into()),
                    None => Destination::NodePort(family, frontend.port),
                },
            ));
        }
    }
    destinations
}

fn health(glance: Glance<'_>, about: &About, (started, wall): (Instant, Timestamp)) -> HealthView {
    let (engine, kernel) = (glance.engine, glance.kernel);
    let families = about.families.iter().map(|family| FamilyHealth {
        family: family.to_string(),
        table: match family {
            Family::V4 => "ip pointsman",
            Family::V6 => "ip6 pointsman",
        }
        .to_owned(),
    });
    HealthView {
        version: VERSION.to_owned(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
        kube_proxy: about.version.clone(),
        pid: std::process::id(),
        node: engine.node_name().to_owned(),
        zone: engine.store().node().and_then(|node| node.zone.as_deref()).map(Into::into),
        mode: about.mode.clone(),
        default_scheduler: engine.default_scheduler().to_string(),
        started: wall,
        uptime_seconds: started.elapsed().as_secs_f64(),
        loaded: kernel.loaded,
        trusted: kernel.trusted,
        services: engine.store().services().count(),
        endpoints: engine.endpoint_count(),
        elements: kernel.elements,
        problems: engine.standing_problems(),
        families: families.collect(),
        overrides: engine.overrides().count(),
        health_address: about.health_address,
        metrics_address: about.metrics_address,
        page: about.page,
        api: contact::last(),
        last_sync: kernel.last_sync.clone(),
        last_error: kernel.last_error.clone(),
    }
}

fn parameters_of(request: &Request<Bytes>) -> Vec<(String, String)> {
    let query = request.uri().query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

fn wants_connections(parameters: &Parameters) -> bool {
    is_set(parameters, "connections")
}

fn verification(compared: Comparison) -> VerificationView {
    VerificationView {
        looked_up: compared.looked_up,
        differences: compared.differences.into_iter().map(difference).collect(),
    }
}

fn difference(one: Difference) -> DifferenceView {
    DifferenceView { set: one.set.to_owned(), expected: one.expected, found: one.found }
}

/// Cut into pieces that the controller can look at in one go.
fn chunks(keys: Vec<ServiceKey>) -> impl Iterator<Item = Vec<ServiceKey>> {
    let mut keys = keys.into_iter().peekable();
    std::iter::from_fn(move || {
        keys.peek()?;
        Some(keys.by_ref().take(CHUNK).collect())
    })
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn refused(status: StatusCode, error: String) -> Answer {
    let body = serde_json::to_vec(&ErrorBody { error }).unwrap_or_default();
    answer(status, "application/json", body)
}

// === impl Refusal ===

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Busy(error) => error.into(),
            ListError::Walk(error) => error.into(),
        }
    }
}

impl Refusal {
    fn into_answer(self) -> Answer {
        let status = match self {
            Refusal::NoPath | Refusal::NoService(_) => StatusCode::NOT_FOUND,
            Refusal::Order(Refused::Order(OrderError::Ambiguous { .. } | OrderError::TooMany)) => StatusCode::CONFLICT,
            Refusal::Order(Refused::Order(_)) => StatusCode::NOT_FOUND,
            Refusal::Query(_) => StatusCode::BAD_REQUEST,
            Refusal::Follow(FollowError::Many) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Method => StatusCode::METHOD_NOT_ALLOWED,
            Refusal::Order(_) | Refusal::Busy(_) | Refusal::Walk(_) | Refusal::Kernel(_) | Refusal::Follow(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        };
        refused(status, self.to_string())
    }
}

//! What was said by hand about endpoints on this node: what can be asked for, and how it stands.
//!
//! The same form is what a daemon leaves for its successor (`crate::observe::kept`).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::query::{Parameters, QueryError, get, read, wrong};
use super::service::moment;
use crate::engine::{Engine, Order, ServiceName, Who};
use crate::model::ServiceKey;
use crate::policy::{Override, Path, Standing, Subject};

/// How long what is said by hand holds if nothing else is said: an hour.
pub const USUAL: Duration = Duration::from_secs(3_600);

/// The longest time: a day. What shall last is an annotation.
pub const LONGEST: Duration = Duration::from_secs(86_400);

/// The shortest.
const SHORTEST: Duration = Duration::from_secs(1);

/// What was said by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideList {
    /// [`super::VERSION`].
    pub version: String,
    /// By Service; of two about one endpoint, the later one counts.
    pub overrides: Vec<OverrideView>,
    /// What is to be known besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What was said by hand about the endpoints of a Service that it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverrideView {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// The pod, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The address; left out where the pod's name was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port; left out where all are meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What they weigh, 0..65535; 0: they get no new connections.
    pub weight: u16,
    /// When it was said.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
    /// Whom it means now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
    /// Whether it has no effect, or not all of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_effect: bool,
    /// Why, and what else is to be known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What was said by hand about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByHandView {
    /// What it weighs, 0..65535; 0: it gets no new connections.
    pub weight: u16,
    /// When it was said.
    pub since: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// What is to be taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lift {
    /// About whom; `None`: all.
    pub who: Option<Who>,
    /// Behind which Service; `None`: all.
    pub service: Option<ServiceName>,
}

/// All that was said by hand; `now` and `wall` are the same moment.
pub fn overrides(engine: &Engine, now: Instant, wall: Timestamp) -> Vec<OverrideView> {
    engine.overrides().map(|(key, one)| view(engine, key, one, now, wall)).collect()
}

/// What was said about one subject, if it still stands.
pub fn override_on(
    engine: &Engine,
    (key, subject): &(ServiceKey, Subject),
    now: Instant,
    wall: Timestamp,
) -> Option<OverrideView> {
    let one = engine.overrides_of(key).iter().find(|one| one.subject == *subject)?;
    Some(view(engine, key, one, now, wall))
}

fn view(engine: &Engine, key: &ServiceKey, one: &Override, now: Instant, wall: Timestamp) -> OverrideView {
    let (mut endpoints, mut warnings, mut without_effect) = (Vec::new(), Vec::new(), false);
    let mut warn = |effect: bool, text: String| {
        without_effect |= !effect;
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    };
    let seen = engine.look(key);
    for port in seen.iter().flat_map(|seen| &seen.ports) {
        for endpoint in port.endpoints.iter().filter(|endpoint| one.subject.is(endpoint.address, endpoint.endpoint)) {
            if !endpoints.contains(&endpoint.address) {
                endpoints.push(endpoint.address);
            }
            let used = [endpoint.cluster, endpoint.local].iter().any(|set| matches!(set, Standing::Chosen(_)));
            let Some(resolved) = port.resolved.as_ref().filter(|_| used) else { continue };
            if endpoint.weight != one.weight {
                warn(false, "something said later about the same endpoint counts".to_owned());
            } else if one.is_drain() {
                let text = format!(
                    "all qualifying endpoints weigh 0, so all are used alike: new connections still reach {}",
                    endpoint.address
                );
                warn(false, text);
            } else if one.weight > 1 && !resolved.scheduler.heeds_weights() && resolved.path == Path::Kernel {
                warn(false, format!("scheduler {} ignores weights, only 0 counts", resolved.scheduler));
            }
        }
    }
    if seen.is_none() {
        warn(true, "no such Service is served here now".to_owned());
    } else if endpoints.is_empty() {
        warn(true, "nobody whom it means is behind this Service now".to_owned());
    }
    let (pod, address, port) = match &one.subject {
        Subject::Pod(name) => (Some(name.to_string()), None, None),
        Subject::Address { address, port, pod } => (pod.as_deref().map(str::to_owned), Some(*address), *port),
    };
    OverrideView {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        pod,
        address,
        port,
        weight: one.weight,
        since: moment(one.since, now, wall),
        until: moment(one.until, now, wall),
        endpoints,
        without_effect,
        warnings,
    }
}

/// A time as in `90s`, `1h30m`; a bare number is seconds.
///
/// # Errors
/// It is none, or not between a second and a day: says why.
pub fn lasting(text: &str) -> Result<Duration, &'static str> {
    let text = text.trim();
    let seconds = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok().map(Duration::from_secs));
    let time = seconds.unwrap_or_else(|| Duration::try_from(text.parse::<SignedDuration>().ok()?).ok());
    match time {
        None => Err("not a time such as 30s, 10m or 1h30m"),
        Some(time) if (SHORTEST..=LONGEST).contains(&time) => Ok(time),
        Some(_) => Err("not between 1s and 24h: what shall last is an annotation (pointsman.dev/weights)"),
    }
}

/// An order, from the parameters `endpoint`, `service`, `weight`, `for` and `cut`.
///
/// # Errors
/// One of them cannot be read.
pub fn order_of(parameters: &Parameters) -> Result<Order, QueryError> {
    let who = who_of(parameters)?.ok_or_else(|| wrong("endpoint", "", NO_ENDPOINT))?;
    let weight = read(parameters, "weight", "not a weight in 0..65535", |text| text.parse().ok())?.unwrap_or(0);
    let lasts = match get(parameters, "for") {
        None => USUAL,
        Some(text) => lasting(text).map_err(|reason| wrong("for", text, reason))?,
    };
    let cut = match get(parameters, "cut") {
        None | Some("false" | "0") => false,
        Some("true" | "1") if weight == 0 => true,
        Some(text @ ("true" | "1")) => return Err(wrong("cut", text, "only a drain (weight 0) ends connections")),
        Some(text) => return Err(wrong("cut", text, "neither true nor false")),
    };
    Ok(Order { who, service: service_of(parameters)?, weight, lasts, cut })
}

const NO_ENDPOINT: &str = "not an endpoint: ADDRESS, ADDRESS:PORT, POD or NAMESPACE/POD";

fn who_of(parameters: &Parameters) -> Result<Option<Who>, QueryError> {
    read(parameters, "endpoint", NO_ENDPOINT, Who::parse)
}

fn service_of(parameters: &Parameters) -> Result<Option<ServiceName>, QueryError> {
    read(parameters, "service", "neither NAME nor NAMESPACE/NAME", ServiceName::parse)
}

// === impl Lift ===

impl Lift {
    /// From the parameters `endpoint` or `all`, and `service`.
    ///
    /// # Errors
    /// One of them cannot be read, or nobody is named.
    pub fn of(parameters: &Parameters) -> Result<Self, QueryError> {
        let (who, service) = (who_of(parameters)?, service_of(parameters)?);
        let all = matches!(get(parameters, "all"), Some("true" | "1"));
        if who.is_none() && !all {
            return Err(wrong("endpoint", "", NO_ENDPOINT));
        }
        Ok(Self { who: who.filter(|_| !all), service })
    }
}

// === impl ByHandView ===

impl ByHandView {
    pub(super) fn new(one: &Override, at: &impl Fn(Instant) -> Timestamp) -> Self {
        Self { weight: one.weight, since: at(one.since), until: at(one.until) }
    }
}

// === impl OverrideView ===

impl OverrideView {
    /// Whom it means, as people name it.
    pub fn subject(&self) -> String {
        let pod = self.pod.as_deref();
        let place = match (self.address, self.port) {
            (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
            (Some(address), None) => address.to_string(),
            (None, _) => return pod.unwrap_or_default().to_owned(),
        };
        pod.map_or(place.clone(), |pod| format!("{place} ({pod})"))
    }

    /// As an input of decisions. What would last longer than can be asked for lasts so long; what has ended ends now.
    pub fn restore(&self, now: Instant, wall: Timestamp) -> (ServiceKey, Override) {
        let subject = match (self.address, &self.pod) {
            (Some(address), pod) => Subject::Address { address, port: self.port, pod: pod.as_deref().map(Into::into) },
            (None, pod) => Subject::Pod(pod.as_deref().unwrap_or_default().into()),
        };
        let span = |from: Timestamp, to: Timestamp| Duration::try_from(to.duration_since(from)).unwrap_or_default();
        let since = now.checked_sub(span(self.since, wall)).unwrap_or(now);
        let until = now + span(wall, self.until).min(LONGEST);
        (ServiceKey::new(&self.namespace, &self.name), Override { subject, weight: self.weight, since, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parameters: &[(&str, &str)]) -> Result<Order, String> {
        let parameters: Vec<_> =
            parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        order_of(&parameters).map_err(|error| error.to_string())
    }

    #[test]
    fn orders() {
        let order = read(&[("endpoint", "web-1"), ("service", "shop/web"), ("for", "1h30m"), ("cut", "true")]);
        let order = order.expect("an order");
        assert_eq!((order.weight, order.lasts, order.cut), (0, Duration::from_secs(5_400), true));
        assert_eq!(read(&[("endpoint", "10.1.0.7"), ("weight", "7")]).expect("an order").lasts, USUAL);
        for (parameters, reason) in [
            (&[("service", "web")][..], "endpoint=\"\": not an endpoint"),
            (&[("endpoint", "a/b/c")], "endpoint=\"a/b/c\": not an endpoint"),
            (&[("endpoint", "a"), ("service", "x/")], "service=\"x/\": neither NAME"),
            (&[("endpoint", "a"), ("weight", "65536")], "weight=\"65536\": not a weight"),
            (&[("endpoint", "a"), ("weight", "-1")], "weight=\"-1\": not a weight"),
            (&[("endpoint", "a"), ("for", "soon")], "for=\"soon\": not a time"),
            (&[("endpoint", "a"), ("for", "0")], "for=\"0\": not between 1s and 24h"),
            (&[("endpoint", "a"), ("for", "-5s")], "for=\"-5s\": not a time"),
            (&[("endpoint", "a"), ("for", "25h")], "for=\"25h\": not between 1s and 24h"),
            (&[("endpoint", "a"), ("for", "99999999999999999999")], "for=\"99999999999999999999\": not a time"),
            (&[("endpoint", "a"), ("cut", "maybe")], "cut=\"maybe\": neither"),
            (&[("endpoint", "a"), ("cut", "true"), ("weight", "1")], "cut=\"true\": only a drain"),
        ] {
            let error = read(parameters).expect_err(reason);
            assert!(error.starts_with(reason), "{error} for {reason}");
        }
        let lift = |parameters: &[(&str, &str)]| {
            let all: Vec<_> = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Lift::of(&all).is_ok()
        };
        assert_eq!([lift(&[]), lift(&[("all", "true")]), lift(&[("endpoint", "web-1")])], [false, true, true]);
    }

    #[test]
    fn what_is_kept_is_what_was_said() {
        let (now, wall) = (Instant::now(), Timestamp::from_second(1_000_000).expect("a time"));
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).expect("a time");
        let view = OverrideView {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            pod: Some("web-1".to_owned()),
            address: Some([10, 1, 0, 7].into()),
            port: Some(80),
            weight: 3,
            since: at(-60),
            until: at(600),
            endpoints: Vec::new(),
            without_effect: false,
            warnings: Vec::new(),
        };
        let kept: OverrideView =
            serde_json::from_str(&serde_json::to_string(&view).expect("JSON")).expect("what was written");
        let (key, one) = kept.restore(now, wall);
        assert_eq!(
            (key.to_string(), one.weight, one.until - now),
            ("shop/web".to_owned(), 3, Duration::from_secs(600))
        );
        assert_eq!(one.subject.to_string(), "10.1.0.7:80 (web-1)");
        let (_, ended) = OverrideView { until: at(-1), ..kept.clone() }.restore(now, wall);
        assert_eq!(ended.until, now);
        let (_, endless) = OverrideView { until: at(10_000_000), ..kept }.restore(now, wall);
        assert_eq!(endless.until - now, LONGEST);
    }
}

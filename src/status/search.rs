//! Who is looked for, and which page of them.

use std::net::{IpAddr, SocketAddr};

use super::query::{self, Parameters, QueryError};
use crate::engine::Engine;
use crate::model::{Service, ServiceKey};
use crate::policy::Path;

/// Services per page, unless asked otherwise, and at most.
const PER_PAGE: usize = 100;
const MOST_PER_PAGE: usize = 1000;

/// Which Services are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Of this namespace.
    pub namespace: Option<String>,
    /// With this in `namespace/name`, whatever the case, in the name of a pod or in a scheduler's name; an address is looked for among frontends and
    /// endpoints, a number among ports, too.
    pub text: Option<String>,
    /// In this state.
    pub only: Option<Only>,
}

/// A state to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// Something is wrong with it.
    Problems,
    /// The forwarder carries it.
    Userspace,
    /// Nobody is ready.
    Unready,
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// From 1.
    pub number: usize,
    /// Services on each, 1..=1000.
    pub size: usize,
}

// === impl Search ===

impl Search {
    /// From the parameters of a query; those that it does not know are passed over.
    ///
    /// # Errors
    /// `only=` with a word that is none.
    pub fn of(parameters: &Parameters) -> Result<Self, QueryError> {
        let only = query::read(parameters, "only", "neither problems, userspace nor unready", |word| match word {
            "problems" => Some(Only::Problems),
            "userspace" => Some(Only::Userspace),
            "unready" => Some(Only::Unready),
            _ => None,
        })?;
        let namespace = query::get(parameters, "namespace").map(str::to_owned);
        Ok(Self { namespace, text: query::get(parameters, "search").map(str::to_lowercase), only })
    }

    /// Whether the name alone decides.
    pub fn is_by_name(&self) -> bool {
        self.text.is_none() && self.only.is_none()
    }

    /// Whether the namespace is one that is wanted.
    pub fn wants_namespace(&self, key: &ServiceKey) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| *namespace == *key.namespace)
    }

    /// Whether a Service is wanted.
    pub fn wants(&self, engine: &Engine, key: &ServiceKey) -> bool {
        let Some(service) = engine.store().service(key).filter(|_| self.wants_namespace(key)) else { return false };
        let text = self.text.as_deref().is_none_or(|text| finds(text, engine, service));
        text && self.only.is_none_or(|only| only.fits(engine, service))
    }
}

fn finds(text: &str, engine: &Engine, service: &Service) -> bool {
    let key = &service.key;
    if key.to_string().to_lowercase().contains(text) {
        return true;
    }
    let endpoints = || engine.store().slices(key).flat_map(|slice| &slice.endpoints);
    let socket = text.parse::<SocketAddr>().ok();
    if let Some(address) =
        socket.map(|socket| socket.ip()).or_else(|| text.trim_matches(['[', ']']).parse::<IpAddr>().ok())
    {
        let frontends = [&service.cluster_ips, &service.load_balancer_ips, &service.external_ips];
        let is_frontend = frontends.into_iter().any(|addresses| addresses.contains(&address));
        let front = service.ports.iter().any(|port| socket.is_none_or(|socket| socket.port() == port.port));
        let back = engine.store().slices(key).any(|slice| {
            let port = slice.ports.iter().any(|port| socket.is_none_or(|socket| socket.port() == port.port));
            port && slice.endpoints.iter().any(|endpoint| endpoint.address == address)
        });
        return (is_frontend && front) || back;
    }
    let port = text.parse::<u16>().ok();
    let by_port = |number| service.ports.iter().any(|port| port.port == number || port.node_port == Some(number));
    let scheduler = |name: String| name == text;
    port.is_some_and(by_port)
        || service.scheduler.is_some_and(|asked| scheduler(asked.to_string()))
        || service.exact.is_some_and(|asked| scheduler(asked.to_string()))
        || endpoints().any(|endpoint| endpoint.pod.as_deref().is_some_and(|pod| pod.contains(text)))
}

// === impl Only ===

impl Only {
    fn fits(self, engine: &Engine, service: &Service) -> bool {
        match self {
            Only::Problems => engine.problems_of(&service.key).next().is_some(),
            Only::Userspace => {
                service.ports.iter().any(|port| Path::of(service, port.protocol, engine.settings()) != Path::Kernel)
            }
            Only::Unready => {
                let mut endpoints = engine.store().slices(&service.key).flat_map(|slice| &slice.endpoints);
                !endpoints.any(|endpoint| endpoint.ready)
            }
        }
    }
}

// === impl Page ===

impl Page {
    /// From the parameters of a query.
    ///
    /// # Errors
    /// `page=` or `perPage=` with something that is no number from 1 on; beyond 1000 per page is 1000.
    pub fn of(parameters: &Parameters) -> Result<Self, QueryError> {
        let number = |parameter: &'static str| {
            let parse = |text: &str| text.parse().ok().filter(|number| *number > 0);
            query::read(parameters, parameter, "not a number from 1 on", parse)
        };
        let size = number("perPage")?.unwrap_or(PER_PAGE).min(MOST_PER_PAGE);
        Ok(Self { number: number("page")?.unwrap_or(1), size })
    }

    /// How many pages so many Services take; 1 for none.
    pub fn pages(self, total: usize) -> usize {
        total.div_ceil(self.size).max(1)
    }

    /// What is on this page.
    pub fn cut<T>(self, mut all: Vec<T>) -> Vec<T> {
        let begin = (self.number - 1).saturating_mul(self.size).min(all.len());
        let end = begin.saturating_add(self.size).min(all.len());
        all.drain(begin..end).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(text: &[(&str, &str)]) -> Vec<(String, String)> {
        text.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn pages() {
        let page = |text: &[(&str, &str)]| Page::of(&parameters(text));
        assert_eq!([page(&[]), page(&[("page", "")])], [(); 2].map(|()| Ok(Page { number: 1, size: 100 })));
        assert_eq!(page(&[("page", "3"), ("perPage", "9999")]), Ok(Page { number: 3, size: 1000 }));
        for bad in ["0", "-1", "x", "99999999999999999999999"] {
            let error = page(&[("page", bad)]).expect_err("no page");
            assert_eq!(error.to_string(), format!("page={bad:?}: not a number from 1 on"));
        }
        let cut = |number, size| Page { number, size }.cut((0..5).collect::<Vec<_>>());
        assert_eq!((cut(1, 2), cut(3, 2), cut(4, 2), cut(usize::MAX, 1000)), (vec![0, 1], vec![4], vec![], vec![]));
        let count = |total| Page { number: 1, size: 2 }.pages(total);
        assert_eq!((count(0), count(2), count(3)), (1, 1, 2));
    }

    #[test]
    fn states() {
        let search = Search::of(&parameters(&[("only", "userspace"), ("search", " Web "), ("other", "x")]));
        let want = Search { namespace: None, text: Some("web".into()), only: Some(Only::Userspace) };
        assert_eq!(search, Ok(want));
        assert!(Search::of(&parameters(&[("only", "\u{1b}[2J")])).is_err());
        assert!(Search::of(&parameters(&[("namespace", "")])).is_ok_and(|search| search.is_by_name()));
    }
}

//! Weights that somebody gave to endpoints by hand, on this node and for a while.
//!
//! An [`Override`] is one more input of a decision: for one Service it says whom it means ([`Subject`]) and what that endpoint weighs instead of what
//! annotations say; 0 is a *drain*. It is looked up wherever a weight is ([`super::Assessment`]), so all that holds for weights holds for it: a
//! drained endpoint gets no new connections and keeps those that it has, slow start takes its part, a split counts weights within groups, and
//! a set in which everybody weighs 0 is used as if nothing had been said. It is never a Service's last endpoint that is taken away: a Service that
//! refuses its clients would be worse than an endpoint that is used for longer than somebody meant, and the endpoint that was left may be lost any moment.
//!
//! A subject with an address knows its pod, too: a pod that gets the address of another has not been meant.
//!
//! Of two that mean the same endpoint the later one counts. When they begin and end is the engine's business; here they are in force.
//!
//! Proven by the properties below.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::model::{Endpoint, plain};

/// What an endpoint of a Service weighs, said by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Whom it means.
    pub subject: Subject,
    /// What it weighs: 0..65535; with 0 it is drained.
    pub weight: u16,
    /// When it was said.
    pub since: Instant,
    /// When it ends.
    pub until: Instant,
}

/// Endpoints of a Service that are meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// Those of this pod, in both families.
    Pod(Arc<str>),
    /// Those with this address.
    Address {
        /// The address.
        address: IpAddr,
        /// The port; `None`: all.
        port: Option<u16>,
        /// Who was behind it when it was said, if that was known.
        pod: Option<Arc<str>>,
    },
}

// === impl Override ===

impl Override {
    /// Whether the endpoint gets no new connections.
    pub fn is_drain(&self) -> bool {
        self.weight == 0
    }
}

// === impl Subject ===

impl Subject {
    /// Whether this is the endpoint, or one of them.
    pub fn is(&self, at: SocketAddr, endpoint: &Endpoint) -> bool {
        let port_fits = match self {
            Subject::Address { port: Some(port), .. } => *port == at.port(),
            _ => true,
        };
        port_fits && self.may_be(endpoint)
    }

    /// Whether this is the endpoint, on one of its ports at least.
    fn may_be(&self, endpoint: &Endpoint) -> bool {
        match self {
            Subject::Pod(name) => endpoint.pod.as_deref() == Some(name),
            Subject::Address { address, pod, .. } => {
                *address == endpoint.address && pod.as_deref() == endpoint.pod.as_deref()
            }
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Pod(name) => write!(f, "pod {}", plain(name)),
            Subject::Address { address, port, pod } => {
                match port {
                    Some(port) => write!(f, "{}", SocketAddr::new(*address, *port))?,
                    None => write!(f, "{address}")?,
                }
                pod.as_ref().map_or(Ok(()), |pod| write!(f, " ({})", plain(pod)))
            }
        }
    }
}

/// What was said about an endpoint last.
pub(super) fn weight_of(overrides: &[Override], at: SocketAddr, endpoint: &Endpoint) -> Option<u16> {
    overrides.iter().rev().find(|one| one.subject.is(at, endpoint)).map(|one| one.weight)
}

/// Whether any of them makes an endpoint heavier than others, for which schedulers that look at weights are needed.
pub(super) fn add_weights<'a>(overrides: &[Override], mut endpoints: impl Iterator<Item = &'a Endpoint>) -> bool {
    let heavy = || overrides.iter().filter(|one| one.weight > 1);
    heavy().next().is_some() && endpoints.any(|endpoint| heavy().any(|one| one.subject.may_be(endpoint)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Assessment, Warming, weigh};
    use super::*;
    use crate::model::{Family, Service, ServiceKey, Slice};
    use crate::schedule::Candidate;
    use crate::source::ObjectKey;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint { pod: Some(format!("web-{last}").into()), ..Endpoint::ready_at([10, 1, 0, last]) }
    }

    fn at(last: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 1, 0, last], port))
    }

    fn said(subject: Subject, weight: u16) -> Override {
        let now = Instant::now();
        Override { subject, weight, since: now, until: now }
    }

    fn by_address(last: u8, port: Option<u16>) -> Subject {
        Subject::Address { address: at(last, 0).ip(), port, pod: endpoint(last).pod.map(Into::into) }
    }

    fn service(annotations: &serde_json::Value) -> Service {
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        let value = json!({"metadata": {"annotations": annotations}, "spec": spec});
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served")
    }

    fn slice(endpoints: Vec<Endpoint>) -> Slice {
        Slice { service: ServiceKey::new("shop", "web"), family: Family::V4, ports: Vec::new(), endpoints }
    }

    fn weighed(service: &Service, slice: &Slice, overrides: &[Override]) -> BTreeMap<SocketAddr, u32> {
        let assessment = Assessment::new(service, [slice].into_iter(), overrides);
        let known: Vec<_> = slice.endpoints.iter().map(|one| (SocketAddr::new(one.address, 8080), one)).collect();
        let candidates = weigh::weigh(&assessment, &known, &Warming::default(), true);
        candidates.into_iter().map(|Candidate { endpoint, weight }| (endpoint, weight)).collect()
    }

    #[test]
    fn whom_a_subject_means() {
        let pod = Subject::Pod("web-1".into());
        let other = Endpoint { pod: Some("db-1".into()), ..endpoint(1) };
        for (subject, meant, shown) in [
            (pod, [true, true, false, false], "pod web-1"),
            (by_address(1, None), [true, true, false, false], "10.1.0.1 (web-1)"),
            (by_address(1, Some(80)), [true, false, false, false], "10.1.0.1:80 (web-1)"),
            (Subject::Pod("\u{1b}".into()), [false; 4], "pod \\u{1b}"),
        ] {
            let asked =
                [(at(1, 80), &endpoint(1)), (at(1, 81), &endpoint(1)), (at(2, 80), &endpoint(2)), (at(1, 80), &other)];
            assert_eq!(asked.map(|(at, endpoint)| subject.is(at, endpoint)), meant, "{subject}");
            assert_eq!(subject.to_string(), shown);
        }
        let later = [said(by_address(1, None), 0), said(by_address(1, Some(80)), 5)];
        assert_eq!(weight_of(&later, at(1, 80), &endpoint(1)), Some(5));
        assert_eq!(weight_of(&later, at(1, 81), &endpoint(1)), Some(0));
        assert_eq!(weight_of(&later, at(2, 80), &endpoint(2)), None);
    }

    #[test]
    fn a_drain_alone_asks_for_no_other_scheduler() {
        let (service, slice) = (service(&json!({})), slice(vec![endpoint(1), endpoint(2)]));
        let assess = |overrides: &[Override]| {
            let assessment = Assessment::new(&service, [&slice].into_iter(), overrides);
            (assessment.is_weighted(), assessment.asks_for_weights())
        };
        assert_eq!(assess(&[]), (false, false));
        assert_eq!(assess(&[said(by_address(1, None), 0)]), (true, false));
        assert_eq!(assess(&[said(by_address(1, None), 3)]), (true, true));
        assert_eq!(assess(&[said(by_address(9, None), 3)]), (true, false), "whom it means is not there");
    }

    proptest! {
        /// Whatever annotations and hands say: what is drained is left out unless everybody is, others keep their proportions, and what
        /// means nobody changes nothing.
        #[test]
        fn a_hand_reaches_whom_it_means_and_nobody_else(
            count in 2u8..12,
            annotated in any::<bool>(),
            drained in proptest::collection::btree_set(1u8..12, 0..12),
            heavy in 1u8..12,
            weight in 1u16..100,
        ) {
            let annotations = if annotated { json!({"pointsman.dev/weights": "web-1=3,web-2=7,*=2"}) } else { json!({}) };
            let (service, slice) = (service(&annotations), slice((1..=count).map(endpoint).collect()));
            let before = weighed(&service, &slice, &[said(by_address(200, None), 0)]);
            if annotated {
                prop_assert_eq!(&before, &weighed(&service, &slice, &[]), "who means nobody changes nothing");
            }
            let mut overrides: Vec<Override> = drained.iter().map(|last| said(by_address(*last, None), 0)).collect();
            overrides.insert(0, said(Subject::Pod(format!("web-{heavy}").into()), weight));
            let after = weighed(&service, &slice, &overrides);
            let left: Vec<u8> = (1..=count).filter(|last| !drained.contains(last)).collect();
            if left.is_empty() {
                prop_assert!(after.len() == usize::from(count) && after.values().all(|weight| *weight == 1), "{after:?}");
            } else {
                prop_assert_eq!(after.keys().copied().collect::<Vec<_>>(), left.iter().map(|last| at(*last, 8080)).collect::<Vec<_>>());
                let wanted = |last: u8| match (last == heavy, annotated, last) {
                    (true, ..) => u64::from(weight),
                    (_, false, _) => 1,
                    (_, _, 1) => 3,
                    (_, _, 2) => 7,
                    _ => 2,
                };
                for pair in left.windows(2) {
                    let [one, two] = [pair[0], pair[1]];
                    let got = |last: u8| u64::from(after[&at(last, 8080)]);
                    prop_assert_eq!(got(one) * wanted(two), got(two) * wanted(one), "{:?}", after);
                }
            }
        }
    }
}

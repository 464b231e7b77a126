//! Why things are as [`resolve`] decided: each endpoint of each port with its place in either set, and who holds which
//! frontend.
//!
//! Asked for by people who look, never on the way to the kernel. It decides nothing by itself: the sets are judged by the rules that
//! `select` selects with, candidates and verdicts are those of [`resolve`], weights those of the assessment. So what is told cannot
//! differ from what is done; the property below holds the two side by side.

use std::net::SocketAddr;

use super::select::{Sets, Topology, Unfit, gather, is_local};
use super::{Assessment, Claim, Context, ResolvedPort, Role, frontends, is_external, node_port, resolve, uses};
use crate::model::{Endpoint, Family, Service, ServicePort, Slice};
use crate::schedule::Candidate;

/// A Service port in one family, with everybody behind it.
#[derive(Clone, Debug)]
pub struct Surveyed<'a> {
    /// Which Service port.
    pub port: &'a ServicePort,
    /// Which family.
    pub family: Family,
    /// What was decided; `None` where it has no frontend.
    pub resolved: Option<ResolvedPort>,
    /// All that it asks for, whoever has it. A node port has role [`Role::External`] here.
    pub claims: Vec<(Claim, Role)>,
    /// What came of topology hints.
    pub topology: Topology,
    /// By address.
    pub endpoints: Vec<SurveyedEndpoint<'a>>,
}

/// An endpoint and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SurveyedEndpoint<'a> {
    /// Its address and port.
    pub address: SocketAddr,
    /// What its slice says.
    pub endpoint: &'a Endpoint,
    /// Whether it is on this node.
    pub here: bool,
    /// What it weighs: 0..65535, what was said by hand or, if that is nothing, by annotations; 1 if nobody says anything.
    pub weight: u16,
    /// In the cluster set.
    pub cluster: Standing,
    /// In the local set.
    pub local: Standing,
}

/// What an endpoint is to a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// It gets connections, weighted so much relative to the others.
    Chosen(u32),
    /// No traffic policy leads to this set.
    Unused,
    /// It is not ready.
    NotReady,
    /// It terminates and does not serve any more.
    Stopped,
    /// It terminates, and others are ready.
    Leaving,
    /// Topology hints keep it for other zones.
    OtherZone,
    /// Topology hints keep it for other nodes.
    OtherNode,
    /// It is not on this node, and a Local policy asks for those that are.
    NotHere,
    /// It weighs 0: it keeps the connections that it has.
    Drained,
    /// Its group has no share.
    NoShare,
}

/// Looks at all ports of a Service, also those that are not served.
pub fn survey<'a>(
    service: &'a Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    context: Context<'_>,
) -> Vec<Surveyed<'a>> {
    let own = context.assessment.is_none().then(|| Assessment::new(service, slices.clone(), context.overrides));
    let Some(assessment) = context.assessment.or(own.as_ref()) else { return Vec::new() };
    let context = Context { assessment: Some(assessment), ..context };
    let mut resolved = resolve(service, slices.clone(), context);
    let mut surveyed = Vec::new();
    for family in Family::ALL.into_iter().filter(|family| service.serves(*family)) {
        for port in &service.ports {
            let key = service.port_key(port);
            let decided = resolved.iter().position(|one| one.key == key && one.family == family);
            let decided = decided.map(|index| resolved.swap_remove(index));
            let known = gather(port, slices.clone().filter(|slice| slice.family == family));
            let uses = uses(service, is_external(service, port, family));
            let sets = Sets::of(&known, context.place(), uses);
            let (cluster, local) = match &decided {
                Some(decided) => (decided.cluster.as_slice(), decided.local.as_slice()),
                None => (&[][..], &[][..]),
            };
            let look = |(address, endpoint): (SocketAddr, &'a Endpoint)| {
                let weight = if assessment.is_weighted() { assessment.weight(address, endpoint) } else { 1 };
                let standing = |unfit, candidates| standing(address, weight, unfit, candidates);
                SurveyedEndpoint {
                    address,
                    endpoint,
                    here: is_local(endpoint, context.place().node),
                    weight,
                    cluster: if uses.cluster {
                        standing(sets.unfit(false, endpoint), cluster)
                    } else {
                        Standing::Unused
                    },
                    local: if uses.local { standing(sets.unfit(true, endpoint), local) } else { Standing::Unused },
                }
            };
            let served = frontends(service, port, family, context.settings).into_iter();
            let served = served.map(|(frontend, role)| (Claim::Frontend(frontend), role));
            let node_port = node_port(port).map(|node_port| (Claim::NodePort(family, node_port), Role::External));
            surveyed.push(Surveyed {
                port,
                family,
                claims: served.chain(node_port).collect(),
                topology: sets.topology,
                endpoints: known.into_iter().map(look).collect(),
                resolved: decided,
            });
        }
    }
    surveyed
}

fn standing(address: SocketAddr, weight: u16, unfit: Option<Unfit>, candidates: &[Candidate]) -> Standing {
    match unfit {
        Some(Unfit::NotReady) => Standing::NotReady,
        Some(Unfit::Stopped) => Standing::Stopped,
        Some(Unfit::Leaving) => Standing::Leaving,
        Some(Unfit::OtherZone) => Standing::OtherZone,
        Some(Unfit::OtherNode) => Standing::OtherNode,
        Some(Unfit::NotHere) => Standing::NotHere,
        // A set that is selected and that some verdict leads to has candidates.
        None if candidates.is_empty() => Standing::Unused,
        None => match candidates.binary_search_by_key(&address, |candidate| candidate.endpoint) {
            Ok(index) => Standing::Chosen(candidates[index].weight),
            Err(_) if weight == 0 => Standing::Drained,
            Err(_) => Standing::NoShare,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Claims, Settings, wanted};
    use super::*;
    use crate::model::{Names, Node, ServiceKey};
    use crate::schedule::Scheduler;
    use crate::source::ObjectKey;

    fn service(policies: (bool, bool), annotations: &serde_json::Value) -> Service {
        let name = |local: bool| if local { "Local" } else { "Cluster" };
        let value = json!({
            "metadata": {"annotations": annotations},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}],
                     "internalTrafficPolicy": name(policies.0), "externalTrafficPolicy": name(policies.1)},
        });
        let key = ObjectKey { namespace: "shop".into(), name: "web".into() };
        Service::parse(&key, &serde_json::from_value(value).expect("decodes")).0.expect("served")
    }

    fn slice(endpoints: &[serde_json::Value]) -> Slice {
        let value = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
        });
        let key = ObjectKey { namespace: "shop".into(), name: "web-1".into() };
        Slice::parse(&key, &serde_json::from_value(value).expect("decodes"), &mut Names::default()).0.expect("usable")
    }

    fn with_context<T>(service: &Service, look: impl FnOnce(Context<'_>) -> T) -> T {
        let settings = Settings { node: "me".into(), ..Settings::default() };
        let node = Node { zone: Some("a".into()), ..Node::default() };
        let mut claims = Claims::default();
        claims.set(&ServiceKey::new("shop", "web"), 0, wanted(service, &settings));
        let context = Context {
            settings: &settings,
            node: Some(&node),
            claims: &claims,
            scheduler: Scheduler::Random,
            warming: None,
            assessment: None,
            overrides: &[],
        };
        look(context)
    }

    /// Each reason, once per set.
    #[test]
    fn the_reasons() {
        let on = |last: u8, node: &str, more: serde_json::Value| {
            let mut value = json!({"addresses": [format!("10.1.0.{last}")], "nodeName": node});
            more.as_object().expect("an object").iter().for_each(|(key, field)| value[key] = field.clone());
            value
        };
        let conditions = |ready: bool, serving: bool, terminating: bool| json!({"conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
        let endpoints = [
            on(1, "me", json!({})),
            on(2, "other", json!({})),
            on(3, "me", conditions(false, false, false)),
            on(4, "me", conditions(false, true, true)),
            on(5, "me", conditions(false, false, true)),
            on(6, "me", json!({"targetRef": {"kind": "Pod", "name": "lame"}})),
        ];
        let service = service((false, true), &json!({"pointsman.dev/weights": "lame=0"}));
        let slice = slice(&endpoints);
        let seen = with_context(&service, |context| {
            let surveyed = survey(&service, [&slice].into_iter(), context);
            surveyed[0].endpoints.iter().map(|one| (one.cluster, one.local)).collect::<Vec<_>>()
        });
        use Standing::{Chosen, Drained, Leaving, NotHere, NotReady, Stopped};
        let want = [
            (Chosen(1), Chosen(1)),
            (Chosen(1), NotHere),
            (NotReady, NotReady),
            (Leaving, Leaving),
            (Stopped, Stopped),
            (Drained, Drained),
        ];
        assert_eq!(seen, want);
    }

    #[test]
    fn hints_and_shares() {
        let zoned = |last: u8, zone: &str| {
            json!({"addresses": [format!("10.1.0.{last}")], "hints": {"forZones": [{"name": zone}]},
                   "targetRef": {"kind": "Pod", "name": format!("pod-{last}")}})
        };
        let service = service((false, false), &json!({"pointsman.dev/split": "pod-1=0%, *=100%"}));
        let slice = slice(&[zoned(1, "a"), zoned(2, "a"), zoned(3, "b")]);
        with_context(&service, |context| {
            let surveyed = survey(&service, [&slice].into_iter(), context);
            assert_eq!(surveyed[0].topology, Topology::Zone);
            let seen: Vec<_> = surveyed[0].endpoints.iter().map(|one| (one.cluster, one.local)).collect();
            let unused = Standing::Unused;
            assert_eq!(
                seen,
                [(Standing::NoShare, unused), (Standing::Chosen(1), unused), (Standing::OtherZone, unused)]
            );
        });
    }

    fn any_endpoint() -> impl Strategy<Value = serde_json::Value> {
        let node = prop_oneof![Just("me"), Just("other")];
        let zone = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
        (0u8..6, node, zone, any::<[bool; 3]>()).prop_map(|(last, node, zone, [ready, serving, terminating])| {
            let hints = zone.map(|zone| json!({"forZones": [{"name": zone}]})).unwrap_or(json!({}));
            json!({"addresses": [format!("10.1.0.{last}")], "nodeName": node, "hints": hints,
                   "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                   "targetRef": {"kind": "Pod", "name": format!("pod-{last}")}})
        })
    }

    proptest! {
        /// Chosen is who is a candidate, and nobody else.
        #[test]
        fn what_is_told_is_what_was_decided(
            endpoints in proptest::collection::vec(any_endpoint(), 0..8),
            policies in any::<(bool, bool)>(),
            weights in prop_oneof![Just(json!({})), Just(json!({"pointsman.dev/weights": "pod-1=0,pod-2=0,*=3"}))],
        ) {
            let (service, slice) = (service(policies, &weights), slice(&endpoints));
            with_context(&service, |context| {
                let resolved = resolve(&service, [&slice].into_iter(), context);
                let surveyed = survey(&service, [&slice].into_iter(), context);
                prop_assert_eq!(surveyed.len(), 1);
                prop_assert_eq!(surveyed[0].resolved.as_ref(), resolved.first());
                for (of, candidates) in [(0, &resolved[0].cluster), (1, &resolved[0].local)] {
                    let standing = |one: &SurveyedEndpoint<'_>| if of == 0 { one.cluster } else { one.local };
                    let chosen = surveyed[0].endpoints.iter().filter_map(|one| match standing(one) {
                        Standing::Chosen(weight) => Some(Candidate { endpoint: one.address, weight }),
                        _ => None,
                    });
                    prop_assert_eq!(&chosen.collect::<Vec<_>>(), candidates);
                }
                Ok(())
            })?;
        }
    }
}

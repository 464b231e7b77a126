//! Services and endpoints in wide tables: all that was decided about them, a row each.

use std::path::Path;

use jiff::Timestamp;

use super::cli::{GetOptions, What};
use super::client::query;
use super::target::TargetError;
use super::text::{self, Cell, Look, Table, ago, span};
use super::{Failure, ask, none_found, orders, repeat, say};
use crate::status::{
    ByHandView, CarrierView, EndpointView, MembershipView, OverrideList, PortView, ServicePage, ServiceView,
    StandingView, VERSION, VerdictView,
};

pub(super) fn run(socket: &Path, options: &GetOptions) -> Result<(), Failure> {
    if options.what == What::Overrides {
        return overrides(socket, options);
    }
    repeat(options.watch, |screen| {
        let page = fetch(socket, options)?;
        if let Some(format) = options.output {
            return say(&mut screen.text, format, &page);
        }
        let now = Timestamp::now();
        let table = match options.what {
            What::Endpoints => endpoints(&page.services, now),
            What::Services | What::Overrides => services(&page.services, now),
        };
        let only = options.only.map(|only| only.word());
        screen.remarks.extend(match () {
            () if page.services.is_empty() => {
                Some(none_found("Service", options.search.as_deref(), options.namespace.as_deref(), only))
            }
            () if table.is_empty() => Some("the Services that match have no endpoint".to_owned()),
            () => None,
        });
        Ok(table.write(&mut screen.text, text::colours())?)
    })
}

/// What was said by hand.
fn overrides(socket: &Path, options: &GetOptions) -> Result<(), Failure> {
    repeat(options.watch, |screen| {
        let mut list: OverrideList = ask(socket, "/v1/overrides")?;
        list.overrides.retain(|one| {
            let text = format!("{}/{} {}", one.namespace, one.name, one.subject());
            options.namespace.as_ref().is_none_or(|namespace| *namespace == one.namespace)
                && options.search.as_ref().is_none_or(|search| text.contains(&**search))
        });
        if let Some(format) = options.output {
            return say(&mut screen.text, format, &list);
        }
        if list.overrides.is_empty() {
            let what = "drain or weight by hand";
            screen.remarks.push(none_found(what, options.search.as_deref(), options.namespace.as_deref(), None));
        }
        Ok(orders::table(&list.overrides, Timestamp::now()).write(&mut screen.text, text::colours())?)
    })
}

/// All pages in one.
pub(super) fn fetch(socket: &Path, options: &GetOptions) -> Result<ServicePage, Failure> {
    let connections = (options.what == What::Endpoints).then_some("true");
    if let Some((namespace, name)) = options.search.as_deref().and_then(|search| search.split_once('/')) {
        let encoded =
            |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
        // As other commands, and this one's tables, write a Service port.
        let (name, port) = name.split_once(':').map_or((name, None), |(name, port)| (name, Some(port)));
        let path = format!("/v1/services/{}/{}", encoded(namespace), encoded(name));
        let mut service: ServiceView = ask(socket, &query(&path, &[("connections", connections)]))?;
        if let Some(port) = port {
            service.ports.retain(|one| one.name == port || port.parse() == Ok(one.port));
            if service.ports.is_empty() {
                let name = format!("{namespace}/{name}");
                return Err(TargetError::NoPort { name, port: port.to_owned() }.into());
            }
        }
        return Ok(ServicePage { version: VERSION.to_owned(), total: 1, page: 1, pages: 1, services: vec![service] });
    }
    let mut all: Option<ServicePage> = None;
    loop {
        let number = all.as_ref().map_or(1, |all| all.page + 1).to_string();
        let parameters = [
            ("namespace", options.namespace.as_deref()),
            ("search", options.search.as_deref()),
            ("only", options.only.map(|only| only.word())),
            ("perPage", Some("1000")),
            ("page", Some(&*number)),
            ("connections", connections),
        ];
        let page: ServicePage = ask(socket, &query("/v1/services", &parameters))?;
        let all = match &mut all {
            Some(all) => {
                all.services.extend(page.services);
                (all.page, all.pages) = (page.page, page.pages);
                all
            }
            None => all.insert(page),
        };
        if all.page >= all.pages {
            return Ok(ServicePage { page: 1, pages: 1, ..all.clone() });
        }
    }
}

fn services(services: &[ServiceView], now: Timestamp) -> Table {
    let mut table = Table::new([
        "SERVICE",
        "TYPE",
        "PROTO",
        "FRONTENDS",
        "SCHEDULER",
        "ENDPOINTS",
        "POLICY",
        "PATH",
        "TOPOLOGY",
        "AFFINITY",
        "CHANGED",
        "PROBLEM",
    ]);
    for service in services {
        for port in &service.ports {
            let (chosen, all) = counts(port);
            let problem = service.problems.last().map(|one| format!("{}: {}", one.field, one.reason));
            let said = port.endpoints.iter().filter(|one| one.by_hand.is_some()).count();
            let endpoints =
                if said > 0 { format!("{chosen}/{all}, {said} by hand") } else { format!("{chosen}/{all}") };
            let serves = [port.internal, port.outside].contains(&Some(VerdictView::Cluster))
                || [port.internal, port.outside].contains(&Some(VerdictView::Local));
            table.push([
                name(service, port).into(),
                format!("{:?}", service.kind).into(),
                (&port.protocol).into(),
                frontends(port).into(),
                scheduler(service).into(),
                Cell::new(endpoints, if serves { Look::Good } else { Look::Bad }),
                policy(service).into(),
                path(port).into(),
                (&port.topology).into(),
                service.session_affinity_seconds.map(|seconds| span(seconds.into())).unwrap_or_default().into(),
                service.last_change.map(|then| ago(then, now)).unwrap_or_default().into(),
                Cell::new(problem.unwrap_or_default(), Look::Bad),
            ]);
        }
    }
    table
}

fn endpoints(services: &[ServiceView], now: Timestamp) -> Table {
    let mut table = Table::new([
        "SERVICE", "PROTO", "ENDPOINT", "POD", "NODE", "ZONE", "WEIGHT", "SHARE", "LOCAL", "ACTIVE", "STATE", "NOTE",
    ]);
    for service in services {
        for port in &service.ports {
            for one in &port.endpoints {
                let node = one.node.as_deref().unwrap_or_default();
                table.push([
                    name(service, port).into(),
                    (&port.protocol).into(),
                    one.socket().to_string().into(),
                    one.pod.as_deref().unwrap_or_default().into(),
                    if one.here { format!("{node} (here)") } else { node.to_owned() }.into(),
                    one.zone.as_deref().unwrap_or_default().into(),
                    one.weight.to_string().into(),
                    share(&one.cluster).into(),
                    share(&one.local).into(),
                    one.connections.map(|connections| connections.active.to_string()).unwrap_or_default().into(),
                    state(one),
                    note(one, now).into(),
                ]);
            }
        }
    }
    table
}

/// Namespace, name and port, as Kubernetes writes it.
pub(super) fn name(service: &ServiceView, port: &PortView) -> String {
    let port = if port.name.is_empty() { String::new() } else { format!(":{}", port.name) };
    format!("{}/{}{port}", service.namespace, service.name)
}

fn frontends(port: &PortView) -> String {
    let one = port.frontends.iter().map(|frontend| {
        let place = match frontend.address {
            Some(address) => std::net::SocketAddr::new(address, frontend.port).to_string(),
            None => format!("node:{}", frontend.port),
        };
        match &frontend.held_by {
            Some(holder) => format!("{place} (held by {holder})"),
            None => place,
        }
    });
    one.collect::<Vec<_>>().join(",")
}

fn counts(port: &PortView) -> (usize, usize) {
    let chosen = |one: &&EndpointView| [one.cluster.standing, one.local.standing].contains(&StandingView::Chosen);
    (port.endpoints.iter().filter(chosen).count(), port.endpoints.len())
}

fn scheduler(service: &ServiceView) -> String {
    match &service.scheduler.asked {
        Some(asked) if *asked != service.scheduler.used => format!("{} ({asked} asked)", service.scheduler.used),
        _ => service.scheduler.used.clone(),
    }
}

fn policy(service: &ServiceView) -> String {
    let (internal, external) = (&service.internal_traffic_policy, &service.external_traffic_policy);
    if internal == external { internal.clone() } else { format!("int {internal}, ext {external}") }
}

fn path(port: &PortView) -> String {
    let carrier = match port.path.carrier {
        CarrierView::Kernel => return "kernel".to_owned(),
        CarrierView::Userspace => "userspace",
    };
    let waits = if port.path.listeners.is_empty() { ", not listening" } else { "" };
    format!("{carrier} ({}{waits})", port.path.reason.as_deref().unwrap_or("?"))
}

fn share(membership: &MembershipView) -> String {
    match membership.standing {
        StandingView::Chosen => format!("{:.1}%", membership.share * 100.0),
        _ => String::new(),
    }
}

fn state(one: &EndpointView) -> Cell {
    // What is not used by any policy says nothing about the endpoint.
    let both = [one.cluster.standing, one.local.standing];
    let said = both.into_iter().find(|standing| *standing == StandingView::Chosen);
    let said = said.or(both.into_iter().find(|standing| *standing != StandingView::Unused));
    let standing = said.unwrap_or(StandingView::Unused);
    let look = if standing == StandingView::Chosen { Look::Good } else { Look::Bad };
    Cell::new(words(standing), look)
}

/// What an endpoint is to a set, for people.
pub(super) fn words(standing: StandingView) -> &'static str {
    match standing {
        StandingView::Chosen => "in use",
        StandingView::Unused => "no policy leads here",
        StandingView::NotReady => "not ready",
        StandingView::Stopped => "terminating, does not serve",
        StandingView::Leaving => "terminating, others are ready",
        StandingView::OtherZone => "for other zones",
        StandingView::OtherNode => "for other nodes",
        StandingView::NotHere => "not on this node",
        StandingView::Drained => "weight 0",
        StandingView::NoShare => "its group has no share",
        StandingView::Gone => "in no slice any more",
    }
}

/// What was said by hand, and for how long it holds.
pub(super) fn by_hand(said: ByHandView, now: Timestamp) -> String {
    let what = if said.weight == 0 { "drained".to_owned() } else { format!("weight {}", said.weight) };
    format!("{what} by hand, {} left", ago(now, said.until))
}

fn note(one: &EndpointView, now: Timestamp) -> String {
    let mut notes = Vec::new();
    if let Some(said) = one.by_hand {
        notes.push(by_hand(said, now));
    }
    if let Some(percent) = one.slow_start_percent {
        notes.push(format!("slow start {percent}%"));
    }
    if let Some(until) = one.draining_until {
        notes.push(format!("draining, {} left", ago(now, until)));
    }
    notes.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_shown_as_text() {
        let view = serde_json::json!({
            "namespace": "shop\u{1b}[2J", "name": "web\u{7}\n<b>", "type": "ClusterIP", "internalTrafficPolicy": "Cluster",
            "externalTrafficPolicy": "Local", "scheduler": {"used": "rr", "asked": "x\u{1b}c"},
            "problems": [{"object": "Service", "field": "a\r", "value": "", "reason": "\u{202e}gnorw"}],
            "ports": [{"name": "\t", "protocol": "TCP", "family": "IPv4", "port": 80, "internal": "cluster",
                "frontends": [{"address": "10.96.0.1", "port": 80, "role": "cluster"}, {"port": 30080, "role": "nodePort", "heldBy": "o\u{9b}"}],
                "path": {"carrier": "userspace", "reason": "scheduler"}, "topology": "anywhere",
                "endpoints": [{"address": "10.1.0.1", "port": 8080, "pod": "p\u{1b}]0;x\u{7}", "here": true, "ready": true, "serving": true,
                    "terminating": false, "weight": 1, "slowStartPercent": 40,
                    "cluster": {"standing": "chosen", "slots": 1, "share": 1.0}, "local": {"standing": "unused"}}]}],
        });
        let view: ServiceView = serde_json::from_value(view).expect("a view");
        for table in [services(std::slice::from_ref(&view), Timestamp::now()), endpoints(&[view], Timestamp::now())] {
            let mut out = Vec::new();
            table.write(&mut out, false).expect("memory");
            let out = String::from_utf8(out).expect("text");
            assert_eq!(out.lines().count(), 2, "{out}");
            assert!(!out.trim_end().chars().any(|one| one != '\n' && one.is_control()), "{out:?}");
            assert!(out.contains("shop\\u{1b}[2J/web\\u{7}\\n<b>"), "{out}");
            assert!(out.contains("userspace (scheduler, not listening)") || out.contains("slow start 40%"), "{out}");
        }
    }
}

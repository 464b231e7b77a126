//! Connections where no daemon can be asked: connection tracking, and Services as the kernel's tables label them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::super::{Failure, remark};
use super::{FlowsOptions, parameters};
use crate::forward::Register;
use crate::kernel::KernelError;
use crate::kernel::conntrack::{Follower, News, list_flows};
use crate::kernel::glance;
use crate::model::{Family, Protocol};
use crate::observe::flow_settings;
use crate::operator::client::ClientError;
use crate::status::VERSION;
use crate::status::flows::teller::Teller;
use crate::status::flows::{FlowEvent, FlowFilter, FlowList, FlowWord, Named, Pair, pairs, views};

/// How often the tables are read again because somebody is not in them.
const PACE: Duration = Duration::from_secs(1);

const WAIT: Duration = Duration::from_millis(200);

/// Connections looked at, of whom those that are wanted are shown.
const LOOKED_AT: usize = 200_000;

/// Services by their frontends, as the kernel's tables label them.
#[derive(Debug, Default)]
struct Labels {
    frontends: HashMap<(Protocol, SocketAddr), String>,
    node_ports: HashMap<(Family, Protocol, u16), String>,
    read: Option<Instant>,
}

/// A list, and what is to be known beside it.
pub(super) fn list(options: &FlowsOptions, client: ClientError) -> Result<(FlowList, String), Failure> {
    let filter = filter(options)?;
    let (mut labels, remark) = Labels::first(client)?;
    let listing = list_flows(|flow| filter.may_want(flow), LOOKED_AT).map_err(Failure::Conntrack)?;
    let none = HashMap::new();
    let pairs = pairs(&listing.records, &none);
    let names = pairs.iter().copied().zip(labels.names(&pairs)).collect();
    let mut flows = views(&listing.records, &none, &names, Timestamp::now());
    flows.retain(|flow| filter.wants(flow));
    let more = listing.more + flows.len().saturating_sub(options.most);
    flows.truncate(options.most);
    let (read, partial) = (listing.read, listing.partial);
    Ok((FlowList { version: VERSION.to_owned(), settings: flow_settings(), read, partial, more, flows }, remark))
}

pub(super) fn follow(
    options: &FlowsOptions,
    client: ClientError,
    events: mpsc::Sender<Result<FlowEvent, Failure>>,
) -> Result<(), Failure> {
    let filter = filter(options)?;
    let (mut labels, beside) = Labels::first(client)?;
    remark(&beside);
    let mut follower = Follower::open().map_err(Failure::Conntrack)?;
    let mut teller = Teller::new(filter.clone(), Register::default());
    let begin = FlowEvent { settings: Some(flow_settings()), ..FlowEvent::plain(FlowWord::Begin) };
    thread::spawn(move || {
        let mut told = vec![begin];
        loop {
            for event in told {
                if events.blocking_send(Ok(event)).is_err() {
                    return;
                }
            }
            let (mut happened, mut lost) = (Vec::new(), false);
            let stepped = follower.step(
                WAIT,
                |flow| filter.may_want(flow),
                |news| match news {
                    News::Flow(happening) => happened.push(*happening),
                    News::Lost => lost = true,
                },
            );
            if let Err(error) = stepped {
                return drop(events.blocking_send(Err(Failure::Conntrack(error))));
            }
            told = teller.tell(happened, Instant::now(), &mut |pairs| labels.names(&pairs));
            told.extend(lost.then(|| FlowEvent::plain(FlowWord::Lost)));
        }
    });
    Ok(())
}

fn filter(options: &FlowsOptions) -> Result<FlowFilter, Failure> {
    let given = parameters(options);
    let given: Vec<_> =
        given.iter().filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.to_owned()))).collect();
    Ok(FlowFilter::of(&given)?)
}

// === impl Labels ===

impl Labels {
    /// Reads the tables, and says that this is all there is.
    fn first(client: ClientError) -> Result<(Self, String), Failure> {
        let mut labels = Self::default();
        match labels.read() {
            Err(kernel) => return Err(Failure::Nobody { client, kernel }),
            Ok(false) => return Err(Failure::Nothing { client }),
            Ok(true) => {}
        }
        let told = "this is what connection tracking and the kernel's tables say, which know no pods";
        Ok((labels, format!("{client}; {told}")))
    }

    /// Whether there are tables.
    fn read(&mut self) -> Result<bool, KernelError> {
        self.read = Some(Instant::now());
        let tables = glance::tables()?;
        (self.frontends, self.node_ports) = (HashMap::new(), HashMap::new());
        for (family, table) in &tables {
            self.frontends.extend(table.services.iter().map(|(frontend, target)| {
                ((frontend.protocol, (frontend.address, frontend.port).into()), target.label.to_string())
            }));
            self.node_ports.extend(
                table.node_ports.iter().map(|(at, target)| ((*family, at.protocol, at.port), target.label.to_string())),
            );
        }
        Ok(!tables.is_empty())
    }

    fn names(&mut self, pairs: &[Pair]) -> Vec<Named> {
        let unknown = pairs.iter().any(|pair| self.label(pair).is_none());
        if unknown && self.read.is_none_or(|at| at.elapsed() > PACE) {
            // What was read before is better than nothing.
            drop(self.read());
        }
        pairs.iter().map(|pair| self.label(pair).map(named).unwrap_or_default()).collect()
    }

    fn label(&self, pair: &Pair) -> Option<&str> {
        let Pair { protocol, frontend, .. } = *pair;
        let by_port = || self.node_ports.get(&(Family::of(frontend.ip()), protocol, frontend.port()));
        self.frontends.get(&(protocol, frontend)).or_else(by_port).map(String::as_str)
    }
}

/// `shop/web:http` in its parts.
fn named(label: &str) -> Named {
    let Some((namespace, rest)) = label.split_once('/') else { return Named::default() };
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, Some(port.into())),
        None => (rest, None),
    };
    Named { namespace: Some(namespace.into()), service: Some(name.into()), port, ..Named::default() }
}

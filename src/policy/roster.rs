//! Who is behind the ports of a large Service, so that a change of a few endpoints need not look at all of them.
//!
//! [`resolve`](super::resolve) looks at every endpoint. Yet what endpoints of a port have to do with each other is in a few numbers
//! (`select`): how many are ready, on this node, with hints for our zone. As long as a change leaves those numbers saying the same, each
//! endpoint is in or out by itself, and the decision for the port is the one before, but for those who went and came. A [`Roster`]
//! keeps the numbers and the addresses; [`Roster::exchange`] brings it up to date with slices that changed and says who went and came,
//! or that the Service has to be resolved again.
//!
//! There is no roster where endpoints bear upon each other in other ways: weights, shares, slow start, drain, session affinity,
//! schedulers that deal to everybody anew, the userspace forwarder, flows of UDP, a port for health checks, and an address that is
//! listed twice.
//!
//! Invariants: no I/O; after an exchange the decision is what `resolve` would say. Proven by the engine's property test, which compares
//! every difference with that of an engine that never exchanges.

use std::net::{IpAddr, SocketAddr};

use super::select::{Modes, Place, Sets, Tally, Uses, gather};
use super::{Context, Path, ResolvedPort, is_external, uses};
use crate::model::map::HashSet;
use crate::model::{Endpoint, Family, PortKey, Protocol, Service, Slice};
use crate::schedule::Scheduler;

/// The endpoints of a Service.
#[derive(Debug)]
pub struct Roster {
    ports: Vec<Listed>,
}

/// Who went and who came behind a Service port in one family. All lists are sorted, and nobody is in both of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortExchange {
    /// Which Service port.
    pub port: PortKey,
    /// Which family.
    pub family: Family,
    /// How slots are dealt to them.
    pub scheduler: Scheduler,
    /// Of [`ResolvedPort::cluster`].
    pub cluster: Exchange<SocketAddr>,
    /// Of [`ResolvedPort::local`].
    pub local: Exchange<SocketAddr>,
    /// Of [`ResolvedPort::local_addresses`].
    pub local_addresses: Exchange<IpAddr>,
}

/// Who went and who came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange<T> {
    /// Who is not there any more.
    pub gone: Vec<T>,
    /// Who was not there before.
    pub came: Vec<T>,
}

/// What a slice was and what it is; `None` where there was or is none.
pub type SliceChange<'a> = (Option<&'a Slice>, Option<&'a Slice>);

/// The endpoints of a Service port in one family.
#[derive(Debug)]
struct Listed {
    key: PortKey,
    family: Family,
    scheduler: Scheduler,
    /// Whether a verdict leads to the set.
    cluster: bool,
    local: bool,
    uses: Uses,
    known: HashSet<IpAddr>,
    tally: Tally,
    modes: Modes,
}

/// An endpoint behind a port.
type Behind<'a> = (SocketAddr, &'a Endpoint);

// === impl Exchange ===

impl<T: Ord + Copy> Exchange<T> {
    /// Whoever went and came is where it was.
    fn new(gone: impl Iterator<Item = T>, came: impl Iterator<Item = T>) -> Self {
        let (mut gone, mut came): (Vec<_>, Vec<_>) = (gone.collect(), came.collect());
        gone.sort_unstable();
        came.sort_unstable();
        if !gone.is_empty() && !came.is_empty() {
            let left = gone.clone();
            gone.retain(|one| came.binary_search(one).is_err());
            came.retain(|one| left.binary_search(one).is_err());
        }
        Self { gone, came }
    }

    /// Whether nobody went or came.
    pub fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.came.is_empty()
    }
}

// === impl PortExchange ===

impl PortExchange {
    /// Whether nobody went or came.
    pub fn is_empty(&self) -> bool {
        self.cluster.is_empty() && self.local.is_empty() && self.local_addresses.is_empty()
    }
}

// === impl Roster ===

impl Roster {
    /// The roster of a Service that was decided as `resolved`; `None` where its endpoints cannot be exchanged one by one.
    pub fn of<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        resolved: &[ResolvedPort],
        context: Context<'_>,
    ) -> Option<Self> {
        let weighted = context.assessment.is_none_or(|assessment| assessment.is_weighted());
        let tuning = &service.tuning;
        let aware = tuning.slow_start.is_some() || tuning.drain.is_some() || service.health_check_port.is_some();
        if weighted || aware || !resolved.iter().all(is_exchangeable) {
            return None;
        }
        let ports = resolved.iter().map(|port| Listed::of(service, slices.clone(), port, context));
        Some(Self { ports: ports.collect::<Option<_>>()? })
    }

    /// Follows slices that changed; says for each port who went and came. `None`: the Service has to be resolved as a whole, and the
    /// roster is of no use any more.
    pub fn exchange(&mut self, changes: &[SliceChange<'_>], context: Context<'_>) -> Option<Vec<PortExchange>> {
        let place = context.place();
        let changes: Vec<_> = changes.iter().map(|change| difference(*change)).collect();
        self.ports.iter_mut().map(|port| port.exchange(&changes, place)).collect()
    }
}

fn is_exchangeable(port: &ResolvedPort) -> bool {
    let by_slots = matches!(port.scheduler, Scheduler::Random | Scheduler::RoundRobin);
    by_slots && port.path == Path::Kernel && port.affinity.is_none() && port.key.protocol != Protocol::Udp
}

// === impl Listed ===

impl Listed {
    /// `None` if an address is listed twice: which entry counts depends on both.
    fn of<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        port: &ResolvedPort,
        context: Context<'_>,
    ) -> Option<Self> {
        let asked = service.ports.iter().find(|one| service.port_key(one) == port.key)?;
        let slices = slices.filter(|slice| slice.family == port.family);
        let entries =
            slices.clone().map(|slice| targets(slice, &port.key, port.family).count() * slice.endpoints.len()).sum();
        let (place, uses) = (context.place(), uses(service, is_external(service, asked, port.family)));
        let mut tally = Tally::default();
        let mut known = HashSet::with_capacity_and_hasher(entries, Default::default());
        for (address, endpoint) in gather(asked, slices) {
            tally.add(endpoint, place);
            known.insert(address.ip());
        }
        let once = known.len() == entries;
        let (cluster, local) = (!port.cluster.is_empty(), !port.local.is_empty());
        let (key, family, scheduler, modes) = (port.key.clone(), port.family, port.scheduler, tally.modes(uses));
        once.then_some(Self { key, family, scheduler, cluster, local, uses, known, tally, modes })
    }

    /// Whom the endpoints of a slice are behind this port.
    fn behind<'a>(&self, (slice, endpoints): &Side<'a>, all: &mut Vec<Behind<'a>>) {
        for target in slice.iter().flat_map(|slice| targets(slice, &self.key, self.family)) {
            all.extend(endpoints.iter().map(|one| (SocketAddr::new(one.address, target), *one)));
        }
    }

    fn exchange(&mut self, changes: &[Difference<'_>], place: Place<'_>) -> Option<PortExchange> {
        let (mut gone, mut came) = (Vec::<Behind<'_>>::new(), Vec::<Behind<'_>>::new());
        for change in changes {
            self.behind(&change.before, &mut gone);
            self.behind(&change.after, &mut came);
        }
        // All that go first: one may have gone from one slice into another.
        for (address, endpoint) in &gone {
            self.tally.remove(endpoint, place);
            self.known.remove(&address.ip()).then_some(())?;
        }
        for (address, endpoint) in &came {
            self.tally.add(endpoint, place);
            (self.known.insert(address.ip()) && endpoint.weight.is_none()).then_some(())?;
        }
        if self.tally.modes(self.uses) != self.modes {
            return None;
        }
        let sets = Sets::new(self.modes, place, self.uses);
        let of = |used: bool, local: bool| {
            let chosen = |all: &[Behind<'_>]| -> Vec<_> {
                let chosen = all.iter().filter(|(_, one)| used && sets.holds(local, one));
                chosen.map(|(address, _)| *address).collect()
            };
            Exchange::new(chosen(&gone).into_iter(), chosen(&came).into_iter())
        };
        let here = |all: &[Behind<'_>]| -> Vec<_> {
            all.iter().filter(|(_, one)| sets.reaches_here(one)).map(|(address, _)| address.ip()).collect()
        };
        Some(PortExchange {
            port: self.key.clone(),
            family: self.family,
            scheduler: self.scheduler,
            cluster: of(self.cluster, false),
            local: of(self.local, true),
            local_addresses: Exchange::new(here(&gone).into_iter(), here(&came).into_iter()),
        })
    }
}

// === what differs between two states of a slice ===

/// A slice, and those of its endpoints that matter.
type Side<'a> = (Option<&'a Slice>, Vec<&'a Endpoint>);

/// Who went and who came; somebody may be in both.
struct Difference<'a> {
    before: Side<'a>,
    after: Side<'a>,
}

fn difference<'a>((before, after): SliceChange<'a>) -> Difference<'a> {
    let all = |slice: Option<&'a Slice>| slice.map_or(&[][..], |slice| &slice.endpoints);
    let (old, new) = (all(before), all(after));
    let comparable = before.zip(after).is_some_and(|(old, new)| (old.family, &old.ports) == (new.family, &new.ports));
    if !comparable {
        return Difference { before: (before, old.iter().collect()), after: (after, new.iter().collect()) };
    }
    // What is the same in front and at the end; then whoever stayed in its place, as far as that is easily seen.
    let front = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[front..], &new[front..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    let mut came = new.iter().peekable();
    let gone = old.iter().filter(|one| came.next_if_eq(one).is_none()).collect();
    Difference { before: (before, gone), after: (after, came.collect()) }
}

/// The ports of a slice that a Service port's connections go to.
fn targets(slice: &Slice, port: &PortKey, family: Family) -> impl Iterator<Item = u16> {
    let ports = slice.ports.iter().filter(move |_| slice.family == family);
    ports.filter(|one| *one.name == *port.name && one.protocol == port.protocol).map(|one| one.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(endpoints: &[u8]) -> Slice {
        let service = crate::model::ServiceKey::new("ns", "s");
        let endpoints = endpoints.iter().map(|last| Endpoint::ready_at([10, 0, 0, *last])).collect();
        Slice { service, family: Family::V4, ports: Vec::new(), endpoints }
    }

    #[test]
    fn what_differs_is_found_without_those_who_stay() {
        let differ = |before: &[u8], after: &[u8]| {
            let (before, after) = (slice(before), slice(after));
            let found = difference((Some(&before), Some(&after)));
            let last = |side: &Side<'_>| {
                let octets = side.1.iter().map(|one| one.address.to_string().rsplit('.').next().map(str::to_owned));
                octets.flatten().collect::<Vec<_>>().join(" ")
            };
            format!("{} -> {}", last(&found.before), last(&found.after))
        };
        assert_eq!(differ(&[1, 2, 3, 4], &[1, 2, 3, 4]), " -> ");
        assert_eq!(differ(&[1, 2, 3, 4], &[1, 9, 3, 4]), "2 -> 9", "one in the place of another");
        assert_eq!(differ(&[1, 2, 3, 4], &[1, 3, 4, 9]), "2 -> 9", "one goes, and the next comes last");
        assert_eq!(differ(&[1, 2, 3, 4], &[4]), "1 2 3 -> ");
        assert_eq!(differ(&[], &[1, 2]), " -> 1 2");
        assert_eq!(differ(&[1, 1, 1], &[1]), "1 1 -> ");
    }

    #[test]
    fn who_went_and_came_is_where_it_was() {
        let exchange = Exchange::new([3, 1, 2].into_iter(), [2, 4].into_iter());
        assert_eq!(exchange, Exchange { gone: vec![1, 3], came: vec![4] });
        assert!(Exchange::new([1].into_iter(), [1].into_iter()).is_empty());
    }
}

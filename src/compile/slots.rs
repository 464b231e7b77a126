//! Who stands in the slots of a pool, in little room.
//!
//! A cluster has as many slots as endpoints, or, with hash tables, a thousand per Service. An address that is known to be of one family and has
//! neither scope nor flow takes 6 bytes, or 18, instead of 32.
//!
//! Proven by the tests below; what is done with slots by `pool` and `compiler`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::schedule::{Changed, Scheduler, Swap};

/// The endpoints of a pool's slots, by number.
#[derive(Clone, Debug)]
pub(super) enum Slots {
    V4(Vec<(Ipv4Addr, u16)>),
    V6(Vec<(Ipv6Addr, u16)>),
    Any(Vec<SocketAddr>),
}

/// An endpoint in little room; in the order of endpoints.
trait Compact: Copy + Ord + Into<SocketAddr> {
    fn of(endpoint: SocketAddr) -> Option<Self>;

    /// All of them, or none.
    fn all(endpoints: &[SocketAddr]) -> Option<Vec<Self>> {
        let mut all = Vec::with_capacity(endpoints.len());
        endpoints.iter().all(|one| Self::of(*one).map(|one| all.push(one)).is_some()).then_some(all)
    }
}

// === impl Compact ===

impl Compact for (Ipv4Addr, u16) {
    fn of(endpoint: SocketAddr) -> Option<Self> {
        match endpoint {
            SocketAddr::V4(at) => Some((*at.ip(), at.port())),
            SocketAddr::V6(_) => None,
        }
    }
}

impl Compact for (Ipv6Addr, u16) {
    fn of(endpoint: SocketAddr) -> Option<Self> {
        match endpoint {
            SocketAddr::V6(at) if at.scope_id() == 0 && at.flowinfo() == 0 => Some((*at.ip(), at.port())),
            _ => None,
        }
    }
}

// === impl Slots ===

impl Slots {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::V4(slots) => slots.len(),
            Self::V6(slots) => slots.len(),
            Self::Any(slots) => slots.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoint of a slot.
    pub(super) fn get(&self, slot: usize) -> Option<SocketAddr> {
        match self {
            Self::V4(slots) => slots.get(slot).map(|one| (*one).into()),
            Self::V6(slots) => slots.get(slot).map(|one| (*one).into()),
            Self::Any(slots) => slots.get(slot).copied(),
        }
    }

    /// All of them, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> + Clone + '_ {
        (0..self.len()).filter_map(|slot| self.get(slot))
    }

    pub(super) fn to_vec(&self) -> Vec<SocketAddr> {
        match self {
            Self::V4(slots) => slots.iter().map(|one| (*one).into()).collect(),
            Self::V6(slots) => slots.iter().map(|one| (*one).into()).collect(),
            Self::Any(slots) => slots.clone(),
        }
    }

    /// As [`Scheduler::exchange`].
    pub(super) fn exchange(&mut self, scheduler: Scheduler, swap: Swap<'_>) -> Option<Changed<SocketAddr>> {
        if !self.fits(swap.came) {
            *self = Self::Any(self.to_vec());
        }
        match self {
            Self::V4(slots) => exchange(slots, scheduler, swap),
            Self::V6(slots) => exchange(slots, scheduler, swap),
            Self::Any(slots) => scheduler.exchange(slots, swap),
        }
    }

    /// Whether these can be kept as those are that are here.
    fn fits(&self, endpoints: &[SocketAddr]) -> bool {
        match self {
            Self::V4(_) => endpoints.iter().all(|one| <(Ipv4Addr, u16)>::of(*one).is_some()),
            Self::V6(_) => endpoints.iter().all(|one| <(Ipv6Addr, u16)>::of(*one).is_some()),
            Self::Any(_) => true,
        }
    }
}

/// Who has no such form is not here, so nothing is to be done about those that go.
fn exchange<T: Compact>(slots: &mut Vec<T>, scheduler: Scheduler, swap: Swap<'_>) -> Option<Changed<SocketAddr>> {
    let Swap { gone, came, seed, changes } = swap;
    let (gone, came) = (T::all(gone)?, T::all(came)?);
    let changed = scheduler.exchange(slots, Swap { gone: &gone, came: &came, seed, changes })?;
    Some(changed.into_iter().map(|(slot, before)| (slot, before.map(Into::into))).collect())
}

impl Default for Slots {
    fn default() -> Self {
        Self::Any(Vec::new())
    }
}

impl From<&[SocketAddr]> for Slots {
    fn from(slots: &[SocketAddr]) -> Self {
        // The first says what the others are, nearly always.
        let compact = match slots.first() {
            Some(SocketAddr::V4(_)) => Compact::all(slots).map(Self::V4),
            Some(SocketAddr::V6(_)) => Compact::all(slots).map(Self::V6),
            None => None,
        };
        compact.unwrap_or_else(|| Self::Any(slots.to_vec()))
    }
}

impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::V4(one), Self::V4(other)) => one == other,
            (Self::V6(one), Self::V6(other)) => one == other,
            _ => self.len() == other.len() && self.iter().eq(other.iter()),
        }
    }
}

impl Eq for Slots {}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use proptest::prelude::*;

    use super::*;

    fn any_endpoint() -> impl Strategy<Value = SocketAddr> {
        prop_oneof![
            8 => (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from),
            1 => (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from),
            1 => (any::<[u8; 16]>(), any::<u16>(), any::<u32>(), 0u32..2)
                .prop_map(|(ip, port, flow, scope)| SocketAddrV6::new(ip.into(), port, flow, scope).into()),
        ]
    }

    proptest! {
        #[test]
        fn what_stands_in_slots_does_not_depend_on_how_it_is_kept(
            endpoints in prop_oneof![
                proptest::collection::vec(any_endpoint(), 0..5),
                proptest::collection::vec((any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from), 0..9),
                proptest::collection::vec((any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from), 0..9),
            ],
        ) {
            let kept = Slots::from(&*endpoints);
            prop_assert_eq!(kept.to_vec(), endpoints.clone());
            prop_assert_eq!(kept.iter().collect::<Vec<_>>(), endpoints.clone());
            prop_assert_eq!((kept.len(), kept.is_empty()), (endpoints.len(), endpoints.is_empty()));
            prop_assert_eq!(kept.get(endpoints.len()), None);
            prop_assert_eq!(&Slots::Any(endpoints.clone()), &kept);
            prop_assert_ne!(Slots::from(&*[&*endpoints, &[([192, 0, 2, 1], 1).into()]].concat()), kept);
        }

        #[test]
        fn an_exchange_does_not_depend_on_it_either(
            here in proptest::collection::btree_set(any_endpoint(), 2..9),
            others in proptest::collection::btree_set(any_endpoint(), 0..5),
            leave in any::<proptest::sample::Index>(),
            v4 in any::<bool>(),
            round_robin in any::<bool>(),
        ) {
            let here: Vec<_> = here.into_iter().filter(|one| !v4 || one.is_ipv4()).collect();
            let came: Vec<_> = others.into_iter().filter(|one| !here.contains(one)).collect();
            let gone: Vec<_> = here.iter().copied().take(leave.index(here.len() + 1)).collect();
            let scheduler = if round_robin { Scheduler::RoundRobin } else { Scheduler::Random };
            let swap = Swap { gone: &gone, came: &came, seed: 7, changes: 1 };
            let (mut kept, mut plain) = (Slots::from(&*here), here.clone());
            prop_assert_eq!(kept.exchange(scheduler, swap), scheduler.exchange(&mut plain, swap));
            prop_assert_eq!(kept.to_vec(), plain);
        }
    }
}

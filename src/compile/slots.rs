//! Who stands in the slots of a pool, in little room.
//!
//! A cluster has as many slots as endpoints, or, with hash tables, a thousand per Service. An address that is known to be of one family and has
//! neither scope nor flow takes 6 bytes, or 18, instead of 32. Slots that are exchanged one by one are spread out for that, and stay so.
//!
//! Proven by the test below; what is done with slots by `pool` and `compiler`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// The endpoints of a pool's slots, by number.
#[derive(Clone, Debug)]
pub(super) enum Slots {
    V4(Box<[(Ipv4Addr, u16)]>),
    V6(Box<[(Ipv6Addr, u16)]>),
    Spread(Vec<SocketAddr>),
}

// === impl Slots ===

impl Slots {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::V4(slots) => slots.len(),
            Self::V6(slots) => slots.len(),
            Self::Spread(slots) => slots.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoint of a slot.
    pub(super) fn get(&self, slot: usize) -> Option<SocketAddr> {
        match self {
            Self::V4(slots) => slots.get(slot).map(|(ip, port)| SocketAddrV4::new(*ip, *port).into()),
            Self::V6(slots) => slots.get(slot).map(|(ip, port)| SocketAddrV6::new(*ip, *port, 0, 0).into()),
            Self::Spread(slots) => slots.get(slot).copied(),
        }
    }

    /// All of them, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = SocketAddr> + Clone + '_ {
        (0..self.len()).filter_map(|slot| self.get(slot))
    }

    pub(super) fn to_vec(&self) -> Vec<SocketAddr> {
        match self {
            Self::Spread(slots) => slots.clone(),
            Self::V4(_) | Self::V6(_) => self.iter().collect(),
        }
    }

    /// Those who stand in slots, to be changed.
    pub(super) fn spread(&mut self) -> &mut Vec<SocketAddr> {
        if !matches!(self, Self::Spread(_)) {
            *self = Self::Spread(self.to_vec());
        }
        match self {
            Self::Spread(slots) => slots,
            Self::V4(_) | Self::V6(_) => unreachable!("just spread out"),
        }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::Spread(Vec::new())
    }
}

impl From<&[SocketAddr]> for Slots {
    fn from(slots: &[SocketAddr]) -> Self {
        let v4 = |slot: &SocketAddr| match slot {
            SocketAddr::V4(at) => Some((*at.ip(), at.port())),
            SocketAddr::V6(_) => None,
        };
        let v6 = |slot: &SocketAddr| match slot {
            SocketAddr::V6(at) if at.scope_id() == 0 && at.flowinfo() == 0 => Some((*at.ip(), at.port())),
            _ => None,
        };
        // The first says what the others are, nearly always.
        let compact = match slots.first() {
            Some(SocketAddr::V4(_)) => slots.iter().map(v4).collect::<Option<_>>().map(Self::V4),
            Some(SocketAddr::V6(_)) => slots.iter().map(v6).collect::<Option<_>>().map(Self::V6),
            None => None,
        };
        compact.unwrap_or_else(|| Self::Spread(slots.to_vec()))
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
            let mut spread = kept.clone();
            prop_assert_eq!(&*spread.spread(), &endpoints);
            prop_assert_eq!(&spread, &kept);
            spread.spread().push(([192, 0, 2, 1], 1).into());
            prop_assert_ne!(spread, kept);
        }
    }
}

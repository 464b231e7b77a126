//! Networks: CIDRs as objects and flags write them, and the ranges of addresses that sets in the kernel hold.
//!
//! A kernel set of ranges refuses ranges that overlap, so lists of networks are merged ([`AddressRange::merged`]) before they get
//! there; a gap can be cut out of the result ([`AddressRange::without`]).

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::{Family, parse_address};

/// Addresses of one family from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The first.
    pub first: IpAddr,
    /// The last, not below the first.
    pub last: IpAddr,
}

/// Parses a CIDR the way Kubernetes does for objects that exist already: surrounding blanks and leading zeros are ignored, and
/// bits behind the prefix too.
pub fn parse_network(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.trim().split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    IpNet::new(parse_address(address)?, prefix.parse().ok()?).ok().map(|network| network.trunc())
}

// === impl AddressRange ===

impl AddressRange {
    /// One address.
    pub fn single(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }

    /// All addresses of a family.
    pub fn everything(family: Family) -> Self {
        match family {
            Family::V4 => Self { first: [0; 4].into(), last: [255; 4].into() },
            Family::V6 => Self { first: [0u16; 8].into(), last: [0xffff_u16; 8].into() },
        }
    }

    /// The addresses that a host keeps to itself: 127.0.0.0/8 (RFC 1122) and ::1 (RFC 4291).
    pub fn loopback(family: Family) -> Self {
        match family {
            Family::V4 => Self { first: [127, 0, 0, 0].into(), last: [127, 255, 255, 255].into() },
            Family::V6 => Self::single([0u16, 0, 0, 0, 0, 0, 0, 1].into()),
        }
    }

    /// The family of both ends.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first <= address && address <= self.last
    }

    /// The fewest ranges of a family that cover the same addresses, in order; ranges of the other family are left out.
    pub fn merged(family: Family, ranges: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| range.family() == family).collect();
        ranges.sort();
        let mut merged: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if next(last.last).is_none_or(|behind| range.first <= behind) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        merged
    }

    /// What is left of these ranges when another is taken out.
    pub fn without(ranges: &[Self], gap: Self) -> Vec<Self> {
        let mut left = Vec::with_capacity(ranges.len() + 1);
        for range in ranges {
            if range.last < gap.first || gap.last < range.first || range.family() != gap.family() {
                left.push(*range);
                continue;
            }
            if let Some(last) = previous(gap.first).filter(|last| range.first <= *last) {
                left.push(Self { first: range.first, last });
            }
            if let Some(first) = next(gap.last).filter(|first| *first <= range.last) {
                left.push(Self { first, last: range.last });
            }
        }
        left
    }
}

impl From<IpNet> for AddressRange {
    fn from(network: IpNet) -> Self {
        Self { first: network.network(), last: network.broadcast() }
    }
}

impl std::fmt::Display for AddressRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// The address behind, of the same family.
fn next(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_add(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_add(1)?.into()),
    })
}

/// The address before, of the same family.
fn previous(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_sub(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_sub(1)?.into()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_parsed_as_kubernetes_does() {
        let table = [
            (" 10.0.0.0/8 ", Some("10.0.0.0/8")),
            ("010.020.000.001/24", Some("10.20.0.0/24")),
            ("fd00::1/64", Some("fd00::/64")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_network(text).map(|network| network.to_string()), want.map(str::to_owned), "{text:?}");
        }
    }

    fn ranges(texts: &[&str]) -> Vec<AddressRange> {
        texts.iter().map(|text| parse_network(text).expect("a network").into()).collect()
    }

    fn text(ranges: &[AddressRange]) -> String {
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn overlapping_and_adjacent_networks_become_one_range() {
        let list = ranges(&["10.0.1.0/24", "10.0.0.0/24", "10.0.0.128/25", "192.168.0.1/32", "fd00::/64"]);
        let merged = AddressRange::merged(Family::V4, list.clone());
        assert_eq!(text(&merged), "10.0.0.0-10.0.1.255 192.168.0.1");
        assert_eq!(text(&AddressRange::merged(Family::V6, list)), "fd00::-fd00::ffff:ffff:ffff:ffff");
        let all = AddressRange::merged(Family::V4, ranges(&["0.0.0.0/0", "10.0.0.0/8"]));
        assert_eq!(all, [AddressRange::everything(Family::V4)]);
    }

    #[test]
    fn loopback_can_be_cut_out() {
        let cut = |family, list: &[&str]| {
            text(&AddressRange::without(&AddressRange::merged(family, ranges(list)), AddressRange::loopback(family)))
        };
        assert_eq!(cut(Family::V4, &["0.0.0.0/0"]), "0.0.0.0-126.255.255.255 128.0.0.0-255.255.255.255");
        assert_eq!(cut(Family::V6, &["::/0"]), ":: ::2-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(cut(Family::V4, &["127.0.0.1/32"]), "");
        assert_eq!(cut(Family::V4, &["10.0.0.0/8"]), "10.0.0.0-10.255.255.255");
    }

    proptest! {
        #[test]
        fn merging_and_cutting_keep_every_other_address(list in proptest::collection::vec((any::<u8>(), 0u8..20), 0..8), gap in (any::<u8>(), 0u8..20), probe in any::<u8>()) {
            let range = |(first, more): (u8, u8)| AddressRange { first: [10, 0, 0, first].into(), last: [10, 0, 0, first.saturating_add(more)].into() };
            let list: Vec<_> = list.into_iter().map(range).collect();
            let (gap, probe) = (range(gap), IpAddr::from([10, 0, 0, probe]));
            let merged = AddressRange::merged(Family::V4, list.clone());
            prop_assert_eq!(merged.iter().any(|range| range.contains(probe)), list.iter().any(|range| range.contains(probe)));
            for pair in merged.windows(2) {
                prop_assert!(next(pair[0].last) < Some(pair[1].first));
            }
            let left = AddressRange::without(&merged, gap);
            prop_assert_eq!(left.iter().any(|range| range.contains(probe)), merged.iter().any(|range| range.contains(probe)) && !gap.contains(probe));
        }
    }
}

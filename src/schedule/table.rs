//! The sizes of hash tables, and the hash that deals their buckets.
//!
//! All nodes of a cluster must come to the same tables, whatever version or machine they run on. So the hash is one that will not
//! change: XXH64 (xxhash.com, specification 0.1.1) of an endpoint's address in network order (4 or 16 bytes) and its port in network
//! order, under a number that says what it is asked for. Logarithms come from `libm`, which computes the same on every processor. Any
//! change here moves the clients of every cluster that is being updated; the tests pin it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use xxhash_rust::xxh64::xxh64;

/// How many buckets a table has: a power of two from 16 to 65,536, or a prime of [`Buckets::PRIMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Buckets(u32);

/// How many buckets the tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// Of `sh` and `dh`: a power of two.
    pub hash: Buckets,
    /// Of `mh`: a prime.
    pub maglev: Buckets,
}

// === impl Buckets ===

impl Buckets {
    /// Those of IPVS (`primes` in net/netfilter/ipvs/ip_vs_mh.c), and the one that the Maglev paper measured. A position in this list is
    /// part of a plan's number, so new ones come last.
    pub const PRIMES: [u32; 11] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071, 65_537];

    /// Exponents of the powers of two.
    const EXPONENTS: std::ops::RangeInclusive<u32> = 4..=16;

    /// Where the indexes of primes begin.
    const FIRST_PRIME: u32 = 32;

    /// This number of buckets, if a table can have so many.
    pub fn new(count: usize) -> Option<Self> {
        let count = u32::try_from(count).ok()?;
        let power = count.is_power_of_two() && Self::EXPONENTS.contains(&count.trailing_zeros());
        (power || Self::PRIMES.contains(&count)).then_some(Self(count))
    }

    /// The number.
    pub fn count(self) -> u32 {
        self.0
    }

    /// Whether it is one for `mh`.
    pub fn is_prime(self) -> bool {
        !self.0.is_power_of_two()
    }

    /// A number below 64 that stands for this size.
    pub fn index(self) -> u32 {
        let position = Self::PRIMES.iter().position(|prime| *prime == self.0);
        position.map_or(self.0.trailing_zeros(), |at| Self::FIRST_PRIME + u32::try_from(at).expect("a short list"))
    }

    /// The size of an index.
    pub fn from_index(index: u32) -> Option<Self> {
        match index.checked_sub(Self::FIRST_PRIME) {
            Some(at) => Self::PRIMES.get(usize::try_from(at).ok()?).copied().map(Self),
            None => Self::EXPONENTS.contains(&index).then(|| Self(1 << index)),
        }
    }
}

impl fmt::Display for Buckets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// For the names of chains: digits, and no others than [`fmt::Display`] writes.
impl FromStr for Buckets {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let buckets = text.parse().ok().and_then(Self::new).ok_or(())?;
        if buckets.to_string() == text { Ok(buckets) } else { Err(()) }
    }
}

// === impl TableSizes ===

impl TableSizes {
    /// These numbers of buckets. The error says what `--sh-table-size` and `--mh-table-size` take.
    pub fn hash_buckets(count: i64) -> Result<Buckets, String> {
        let buckets = usize::try_from(count).ok().and_then(Buckets::new).filter(|buckets| !buckets.is_prime());
        buckets.ok_or_else(|| "must be a power of two from 16 to 65536".to_owned())
    }

    /// See [`TableSizes::hash_buckets`].
    pub fn maglev_buckets(count: i64) -> Result<Buckets, String> {
        let buckets = usize::try_from(count).ok().and_then(Buckets::new).filter(|buckets| buckets.is_prime());
        buckets.ok_or_else(|| {
            let mut primes = Buckets::PRIMES;
            primes.sort_unstable();
            format!("must be one of {}", primes.map(|prime| prime.to_string()).join(", "))
        })
    }
}

/// 1024 and, as in IPVS, 4093. What each costs and how even it is: `bench/results/`, `schedulers.md`.
impl Default for TableSizes {
    fn default() -> Self {
        Self { hash: Buckets(1024), maglev: Buckets(4093) }
    }
}

/// The number of an endpoint under a question; see the module's text.
pub(super) fn number(endpoint: SocketAddr, question: u64) -> u64 {
    let mut bytes = [0; 18];
    let address = match endpoint.ip() {
        IpAddr::V4(address) => {
            bytes[..4].copy_from_slice(&address.octets());
            4
        }
        IpAddr::V6(address) => {
            bytes[..16].copy_from_slice(&address.octets());
            16
        }
    };
    bytes[address..address + 2].copy_from_slice(&endpoint.port().to_be_bytes());
    xxh64(&bytes[..address + 2], question)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_indexes_and_back() {
        let powers = (4..=16).map(|exponent| 1_usize << exponent);
        let all: Vec<_> = powers.chain(Buckets::PRIMES.map(|prime| prime as usize)).collect();
        let mut indexes = std::collections::BTreeSet::new();
        for count in all {
            let buckets = Buckets::new(count).expect("a size");
            assert_eq!(Buckets::from_index(buckets.index()), Some(buckets));
            assert!(buckets.index() < 64 && indexes.insert(buckets.index()));
            assert_eq!(buckets.to_string().parse(), Ok(buckets));
        }
        assert_eq!(indexes.len(), 24);
        for count in [0, 1, 8, 17, 1000, 4096 * 32] {
            assert_eq!(Buckets::new(count), None, "{count}");
        }
        assert_eq!([3, 17, 43, 64, u32::MAX].map(Buckets::from_index), [None; 5]);
        assert!("01024".parse::<Buckets>().is_err() && "+1024".parse::<Buckets>().is_err());
    }

    #[test]
    fn only_sizes_that_fit_the_scheduler_are_taken() {
        assert_eq!(TableSizes::hash_buckets(256).map(Buckets::count), Ok(256));
        assert_eq!(TableSizes::maglev_buckets(65537).map(Buckets::count), Ok(65537));
        for wrong in [-16, 0, 251, 131_072] {
            assert_eq!(TableSizes::hash_buckets(wrong), Err("must be a power of two from 16 to 65536".to_owned()));
        }
        let primes = "must be one of 251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 65537, 131071";
        assert_eq!(TableSizes::maglev_buckets(1024), Err(primes.to_owned()));
    }

    /// If this fails, nodes that are updated disagree with those that are not.
    #[test]
    fn the_hash_is_the_one_it_has_always_been() {
        assert_eq!(xxh64(b"", 0), 0xef46_db37_51d8_e999, "the specification's own example");
        let v4 = SocketAddr::from(([10, 244, 0, 2], 8080));
        let v6: SocketAddr = "[fd00:10:244::2]:8080".parse().expect("an endpoint");
        let numbers = [number(v4, 0), number(v4, 1), number(v6, 0)];
        insta::assert_snapshot!(format!("{numbers:x?}"), @"");
    }
}

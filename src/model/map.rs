//! Hash tables that are asked with every change and for every element of a first load.
//!
//! The standard library's hasher withstands keys chosen to collide, and takes a good part of the time of a first load. Keys here are names
//! and addresses from the cluster's own API; foldhash is several times faster, and seeded by chance in each process, so that nobody who may
//! name a Service can work out collisions beforehand.

use std::hash::{BuildHasher, Hasher};
use std::sync::LazyLock;

use foldhash::fast::RandomState;

/// As the standard library's; made by `default()` or by collecting.
pub type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;

/// As the standard library's; made by `default()` or by collecting.
pub type HashSet<T> = std::collections::HashSet<T, RandomState>;

/// A table for keys that are met in their order: those that differ in a last part of 16 bits alone, as slots of a pool do, lie side by side. Half
/// a million that are scattered take a miss of the processor's cache each, which is more than all else that is done with them.
pub type NearMap<K, V> = std::collections::HashMap<K, V, Near>;

/// Makes [`NearHasher`]s; all of a process begin with the same number, which nobody outside knows.
#[derive(Clone, Copy, Debug)]
pub struct Near(u64);

/// Everything is scattered but a number of 16 bits that comes last, which is added. (Longer ones may be addresses, whose differences are not in
/// their lower bits.)
#[derive(Clone, Copy, Debug)]
pub struct NearHasher {
    scattered: u64,
    last: u64,
}

// === impl Near ===

impl Default for Near {
    fn default() -> Self {
        static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::default().hash_one(0));
        Self(*SEED)
    }
}

impl BuildHasher for Near {
    type Hasher = NearHasher;

    fn build_hasher(&self) -> NearHasher {
        NearHasher { scattered: self.0, last: 0 }
    }
}

// === impl NearHasher ===

/// An odd number without a pattern: the fraction of the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Both halves of a product.
fn scatter(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    (product as u64) ^ (product >> 64) as u64
}

impl NearHasher {
    fn take(&mut self, number: u64) {
        self.scattered = scatter(self.scattered ^ number ^ self.last.rotate_left(32), GOLDEN);
        self.last = 0;
    }
}

impl Hasher for NearHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.take(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.take(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.take(0);
        self.last = number.into();
    }

    fn write_u32(&mut self, number: u32) {
        self.take(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.take(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.take(number as u64);
    }

    fn finish(&self) -> u64 {
        let place = scatter(self.scattered, GOLDEN).wrapping_add(self.last);
        // The uppermost bits tell neighbours in a table apart.
        place ^ (self.last.wrapping_mul(GOLDEN) & 0xfe00_0000_0000_0000)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::Hash;
    use std::net::IpAddr;

    use super::*;

    /// So many keys, in a table of twice as many places: how many of those are taken.
    fn places<K: Hash>(keys: impl Iterator<Item = K>) -> (usize, usize) {
        let hashes: Vec<u64> = keys.map(|key| Near::default().hash_one(key)).collect();
        let mask = (2 * hashes.len()).next_power_of_two() as u64 - 1;
        (hashes.len(), hashes.iter().map(|hash| hash & mask).collect::<BTreeSet<_>>().len())
    }

    #[test]
    fn neighbours_are_neighbours_and_all_others_are_scattered() {
        let hash = |pool: u32, slot: u16| Near::default().hash_one((pool, slot));
        let place = |hash: u64| hash % (1 << 20);
        assert_eq!(place(hash(7, 3)), place(hash(7, 2) + 1));
        assert_ne!(hash(7, 3) >> 57, hash(7, 2) >> 57, "told apart at a glance");
        // Four of five keys have a place of their own where keys are scattered by chance.
        let even = |(keys, places): (usize, usize)| places * 10 > keys * 7;
        assert!(even(places((0..20_000u32).flat_map(|pool| (0..10u16).map(move |slot| (pool << 12, slot))))));
        assert!(even(places((0..5_000u32).map(|pool| (pool << 12, 0u16)))));
        let addresses =
            |step: u32| (0..20_000u32).map(move |number| IpAddr::from((0x0a60_0000 + number * step).to_be_bytes()));
        assert!(even(places(addresses(1))) && even(places(addresses(256))));
        assert!(even(places(addresses(1).map(|address| (address, 6u8, 80u16)))));
        assert!(even(places((1..30_000u16).map(|port| (6u8, port)))));
        assert!(even(places((0..150u16).flat_map(|one| (0..150u16).map(move |other| (one, other))))));
        assert!(even(places((0..20_000u32).map(|pool| pool << 12))));
        assert!(even(places(
            (0..20_000u32).map(|number| IpAddr::from((0xfd00u128 << 112 | u128::from(number)).to_be_bytes()))
        )));
    }
}

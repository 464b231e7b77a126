//! Numbers for pools.

use std::collections::BTreeSet;

use super::layout::{MAX_POOL, PoolId};

/// Hands out pool numbers.
///
/// A number that was given back is not handed out again before all others above it have been: a packet that read it from map
/// `services` just before the pool vanished must not find another Service's endpoints under it.
#[derive(Debug, Default)]
pub(super) struct Pools {
    used: BTreeSet<u32>,
    last: u32,
}

impl Pools {
    /// The next free number; `None` when all are in use, which takes a million Service ports.
    pub(super) fn take(&mut self) -> Option<PoolId> {
        let free_after = |from: u32, used: &BTreeSet<u32>| {
            let mut candidate = from + 1;
            for number in used.range(from + 1..) {
                if *number != candidate {
                    break;
                }
                candidate += 1;
            }
            (candidate <= MAX_POOL).then_some(candidate)
        };
        let number = free_after(self.last, &self.used).or_else(|| free_after(0, &self.used))?;
        self.used.insert(number);
        self.last = number;
        PoolId::new(number)
    }

    /// Takes one particular number, as found in a kernel; `false` if it is in use.
    pub(super) fn claim(&mut self, pool: PoolId) -> bool {
        let free = self.used.insert(pool.number());
        if free {
            self.last = self.last.max(pool.number());
        }
        free
    }

    /// Keeps numbers up to this one for later, because a kernel has (or had) them in use.
    pub(super) fn start_after(&mut self, pool: PoolId) {
        self.last = self.last.max(pool.number());
    }

    pub(super) fn give_back(&mut self, pool: PoolId) {
        self.used.remove(&pool.number());
    }

    /// How many are in use.
    pub(super) fn len(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_reused_as_late_as_possible() {
        let mut pools = Pools::default();
        let first = pools.take().expect("free");
        let second = pools.take().expect("free");
        pools.give_back(first);
        let third = pools.take().expect("free");
        assert_eq!((first.number(), second.number(), third.number()), (1, 2, 3));
        pools.start_after(PoolId::new(MAX_POOL).expect("in range"));
        assert_eq!(pools.take().map(PoolId::number), Some(1), "wraps around to the first free one");
        assert_eq!(pools.take().map(PoolId::number), Some(4));
        assert!(!pools.claim(second) && pools.claim(PoolId::new(9).expect("in range")));
        assert_eq!(pools.take().map(PoolId::number), Some(10));
        assert_eq!(pools.len(), 6);
    }
}

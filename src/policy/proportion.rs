//! Whole numbers in given proportions: for shares that have to become weights, and weights that have to become slots.
//!
//! [`reduce`] is exact as far as numbers go; [`fit`] makes as few as slots can be. Proven by the properties of `weigh`.

use std::collections::BTreeMap;

/// The largest sum of weights that is handed over: fits any arithmetic of a scheduler.
pub(super) const MAX_TOTAL: u64 = 1 << 24;

/// So many weights are slots as they are, in the schedulers that deal slots; one is a thousandth of all connections.
pub(super) const FEW: u32 = 1000;

/// Weights for slots, from each endpoint's group and the number in proportion to what it gets. Where the exact ones are more than [`FEW`], a
/// scheduler that deals slots rounds each endpoint by itself, and a group of fifty that are all rounded the same way is far from its share.
/// So the groups are rounded first, and then their endpoints within them: a group is then less than 0.1 percentage points off, unless it
/// has more endpoints than its share has slots. Then each has one if weights are `dealt` as slots, because who deals them would do no
/// better; others can make something of exact ones, and get `None`, as where nothing has to be rounded and where there are more endpoints
/// than slots.
pub(super) fn fit(divided: &[(usize, u128)], dealt: bool) -> Option<Vec<u32>> {
    let numbers = || divided.iter().map(|(_, number)| *number);
    let divisor = numbers().fold(0, gcd).max(1);
    let all: u128 = numbers().sum();
    if all / divisor <= u128::from(FEW) {
        return None;
    }
    let mut groups: BTreeMap<usize, Vec<(usize, u128)>> = BTreeMap::new();
    for (at, (group, number)) in divided.iter().enumerate().filter(|(_, (_, number))| *number > 0) {
        groups.entry(*group).or_default().push((at, *number));
    }
    let sums: Vec<u128> = groups.values().map(|members| members.iter().map(|(_, number)| number).sum()).collect();
    if !dealt && sums.iter().any(|sum| sum * u128::from(FEW) < all) {
        return None;
    }
    let least = |members: &Vec<_>| if dealt { u32::try_from(members.len()).ok() } else { Some(1) };
    let least: Vec<u32> = groups.values().map(least).collect::<Option<_>>()?;
    let mut fitted = vec![0; divided.len()];
    for (slots, members) in apportion(&sums, &least, FEW)?.into_iter().zip(groups.values()) {
        let numbers: Vec<u128> = members.iter().map(|(_, number)| *number).collect();
        for (slots, (at, _)) in apportion(&numbers, &vec![1; members.len()], slots)?.into_iter().zip(members) {
            fitted[*at] = slots;
        }
    }
    Some(fitted)
}

/// Deals so many slots in proportion, by largest remainders, at least so many to each. `None` if there are too few.
fn apportion(numbers: &[u128], least: &[u32], slots: u32) -> Option<Vec<u32>> {
    let spare = least.iter().try_fold(slots, |spare, least| spare.checked_sub(*least))?;
    let all: u128 = numbers.iter().sum();
    // Whoever is owed less than the least has that; the others share what is left in proportion to what they are owed beyond theirs.
    let beyond = |(number, least): (&u128, &u32)| (number * u128::from(slots)).saturating_sub(all * u128::from(*least));
    let owed: u128 = numbers.iter().zip(least).map(beyond).sum::<u128>().max(1);
    let mut dealt: Vec<(u32, u128)> = Vec::with_capacity(numbers.len());
    for (number, least) in numbers.iter().zip(least) {
        let exact = beyond((number, least)) * u128::from(spare);
        dealt.push((least + u32::try_from(exact / owed).ok()?, exact % owed));
    }
    let left = slots - dealt.iter().map(|(count, _)| count).sum::<u32>();
    let mut order: Vec<usize> = (0..dealt.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(dealt[*at].1), *at));
    order.into_iter().take(usize::try_from(left).ok()?).for_each(|at| dealt[at].0 += 1);
    Some(dealt.into_iter().map(|(count, _)| count).collect())
}

/// The same proportions in the smallest whole numbers, rounded where their sum would exceed [`MAX_TOTAL`]. Only 0 becomes 0.
pub(super) fn reduce(numbers: Vec<u128>) -> Vec<u32> {
    let sum: u128 = numbers.iter().sum();
    let divisor = numbers.iter().fold(0, |divisor, number| gcd(divisor, *number)).max(1);
    let unit = if sum / divisor <= u128::from(MAX_TOTAL) { divisor } else { sum.div_ceil(u128::from(MAX_TOTAL)) };
    let scaled = |number: u128| ((number + unit / 2) / unit).max(u128::from(number > 0));
    numbers.into_iter().map(|number| u32::try_from(scaled(number)).expect("no more than all")).collect()
}

pub(super) fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

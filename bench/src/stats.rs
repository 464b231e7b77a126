//! Few numbers out of many.
//!
//! Quantiles are of the nearest rank: always a value that was measured. The median of a [`Spread`], which has few values, is the middle of the
//! two in the middle where their number is even: the lower of two would make every time look better than it was. What is compared are medians over rounds, of ratios taken
//! within one round, because the rounds of a shared machine differ more than the variants within one.

use std::fmt;

/// Median and quartiles of repeated measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// A quarter of the values is not above this.
    pub low: f64,
    /// The middle.
    pub median: f64,
    /// Three quarters of the values are not above this.
    pub high: f64,
}

/// How even a distribution over endpoints is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Evenness {
    /// The coefficient of variation: standard deviation to the mean.
    pub cv: f64,
    /// The largest to the mean.
    pub most: f64,
    /// The smallest to the mean.
    pub least: f64,
    /// Jain's index: 1 if all are equal, 1/n if one has everything.
    pub jain: f64,
}

/// The value at `share` (0 to 1) of sorted values.
///
/// # Panics
/// Without values.
pub fn quantile<T: Copy>(sorted: &[T], share: f64) -> T {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

impl Spread {
    /// Of these values.
    ///
    /// # Panics
    /// Without values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let [below, above] = [(sorted.len() - 1) / 2, sorted.len() / 2].map(|rank| sorted[rank]);
        Self { low: quantile(&sorted, 0.25), median: f64::midpoint(below, above), high: quantile(&sorted, 0.75) }
    }

    /// Of `a[i] / b[i]`.
    pub fn of_ratios(a: &[f64], b: &[f64]) -> Self {
        Self::of(a.iter().zip(b).map(|(a, b)| a / b))
    }
}

// === impl Evenness ===

impl Evenness {
    /// Of these counts; `None` if there is nothing.
    pub fn of<T: Copy + TryInto<u32, Error: std::fmt::Debug>>(counts: &[T]) -> Option<Self> {
        let counts: Vec<f64> = counts.iter().map(|count| f64::from((*count).try_into().expect("a count"))).collect();
        let (sum, squares) = (counts.iter().sum::<f64>(), counts.iter().map(|count| count * count).sum::<f64>());
        let mean = sum / counts.len() as f64;
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
        let most = counts.iter().copied().fold(0.0, f64::max) / mean;
        let least = counts.iter().copied().fold(f64::INFINITY, f64::min) / mean;
        let jain = sum * sum / (counts.len() as f64 * squares);
        (sum > 0.0).then(|| Self { cv: variance.sqrt() / mean, most, least, jain })
    }

    /// Adds a part of another, to make a mean of many.
    pub fn add(&mut self, other: Self, part: f64) {
        self.cv += other.cv * part;
        self.most += other.most * part;
        self.least += other.least * part;
        self.jain += other.jain * part;
    }
}

/// Median, and the quartiles behind it: `25.31 [25.10, 25.84]`.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(f, "{:.digits$} [{:.digits$}, {:.digits$}]", self.median, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenness_is_what_textbooks_say() {
        let even = Evenness::of(&[5u32, 5, 5, 5]).expect("something");
        assert_eq!((even.cv, even.most, even.least, even.jain), (0.0, 1.0, 1.0, 1.0));
        let one = Evenness::of(&[8u32, 0, 0, 0]).expect("something");
        assert_eq!((one.most, one.least, one.jain), (4.0, 0.0, 0.25));
        assert!((one.cv - 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(Evenness::of(&[0u32, 0]), None);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (50, 99, 100));
        assert_eq!((quantile(&[7], 0.0), quantile(&[7], 0.99)), (7, 7));
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 2.5, 3.0));
        assert_eq!(Spread::of([54.1, 27.6]).median, 40.85, "not the lower of two");
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(format!("{spread:.1}"), "2.5 [1.0, 3.0]");
    }
}

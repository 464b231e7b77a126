//! Few numbers out of many.
//!
//! Quantiles are of the nearest rank: always a value that was measured. What is compared are medians over rounds, of ratios taken
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
        Self { low: quantile(&sorted, 0.25), median: quantile(&sorted, 0.5), high: quantile(&sorted, 0.75) }
    }

    /// Of `a[i] / b[i]`.
    pub fn of_ratios(a: &[f64], b: &[f64]) -> Self {
        Self::of(a.iter().zip(b).map(|(a, b)| a / b))
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
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!((quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)), (50, 99, 100));
        assert_eq!((quantile(&[7], 0.0), quantile(&[7], 0.99)), (7, 7));
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.low, spread.median, spread.high), (1.0, 2.0, 3.0));
        assert_eq!(format!("{spread:.1}"), "2.0 [1.0, 3.0]");
    }
}

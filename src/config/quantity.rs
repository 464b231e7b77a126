//! Quantities as Kubernetes writes them: `64Mi`, `1k`, `1.5e3`.
//!
//! Only the buffer sizes of logging are quantities. A [`Quantity`] keeps the amount exactly, in billionths, and the family of
//! suffixes it was written with, and is shown canonically: the largest suffix that leaves a whole number (apimachinery's
//! `resource.Quantity`). Proven by the table and the round trip below.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const NANO: i128 = 1_000_000_000;

/// An amount with its family of suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Quantity {
    nanos: i128,
    style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Decimal,
    Binary,
    Exponent,
}

/// The text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: not a quantity: a number with an optional suffix (Ki, Mi, Gi, k, M, G, ...), at most 2^63")]
pub struct NoQuantity {
    /// What was written.
    pub text: String,
}

const DECIMAL: [(&str, i128); 10] = [
    ("E", NANO * 1_000_000_000_000_000_000),
    ("P", NANO * 1_000_000_000_000_000),
    ("T", NANO * 1_000_000_000_000),
    ("G", NANO * 1_000_000_000),
    ("M", NANO * 1_000_000),
    ("k", NANO * 1_000),
    ("", NANO),
    ("m", 1_000_000),
    ("u", 1_000),
    ("n", 1),
];

const BINARY: [(&str, i128); 6] = [
    ("Ei", NANO << 60),
    ("Pi", NANO << 50),
    ("Ti", NANO << 40),
    ("Gi", NANO << 30),
    ("Mi", NANO << 20),
    ("Ki", NANO << 10),
];

// === impl Quantity ===

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, style: Style::Decimal };

    /// The amount in whole units, rounded up; zero if negative.
    pub fn value(self) -> u64 {
        u64::try_from((self.nanos.max(0) + NANO - 1) / NANO).unwrap_or(u64::MAX)
    }

    /// Whether it is less than nothing.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }
}

impl Default for Quantity {
    fn default() -> Self {
        Quantity::ZERO
    }
}

impl FromStr for Quantity {
    type Err = NoQuantity;

    fn from_str(text: &str) -> Result<Self, NoQuantity> {
        let refuse = || NoQuantity { text: text.to_owned() };
        let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.').map_or(0, |at| at + 1);
        let (mut number, suffix) = text.split_at(end);
        let (unit, style) = if let Some((_, unit)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            (*unit, Style::Binary)
        } else if let Some((_, unit)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            match number.split_once(['e', 'E']) {
                Some((mantissa, exponent)) if suffix.is_empty() => {
                    number = mantissa;
                    let exponent: i32 = exponent.parse().map_err(|_| refuse())?;
                    let power = u32::try_from(exponent + 9).ok().filter(|power| *power <= 28).ok_or_else(refuse)?;
                    (10i128.pow(power), Style::Exponent)
                }
                _ => (*unit, Style::Decimal),
            }
        } else {
            return Err(refuse());
        };
        let (negative, number) = match number.as_bytes().first() {
            Some(b'-') => (true, &number[1..]),
            Some(b'+') => (false, &number[1..]),
            _ => (false, number),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.len() + fraction.len() == 0 || !plain(whole) || !plain(fraction) || whole.len() > 19 {
            return Err(refuse());
        }
        let mut nanos = if whole.is_empty() { 0 } else { whole.parse::<i128>().map_err(|_| refuse())? };
        nanos = nanos.checked_mul(unit).ok_or_else(refuse)?;
        let mut scale = unit;
        for digit in fraction.bytes() {
            // Below a billionth, Kubernetes rounds up; nobody buffers that.
            scale /= 10;
            nanos += i128::from(digit - b'0') * scale;
        }
        if nanos > i128::from(i64::MAX) * NANO {
            return Err(refuse());
        }
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, style })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.nanos;
        if nanos == 0 {
            return f.write_str("0");
        }
        let whole = |(_, unit): &&(&str, i128)| nanos % unit == 0;
        let binary = BINARY.iter().find(whole).filter(|_| self.style == Style::Binary && nanos.abs() >= NANO << 10);
        let Some((suffix, unit)) = binary.or_else(|| DECIMAL.iter().find(whole)) else {
            return write!(f, "{nanos}n");
        };
        // A binary amount that is not a whole number of Ki has no suffix, unless it is not even whole.
        let (suffix, unit) =
            if self.style == Style::Binary && binary.is_none() && *unit > NANO { ("", NANO) } else { (*suffix, *unit) };
        let exponent = unit.ilog10() as i32 - 9;
        match self.style {
            Style::Exponent if exponent != 0 => write!(f, "{}e{exponent}", nanos / unit),
            _ => write!(f, "{}{suffix}", nanos / unit),
        }
    }
}

impl TryFrom<String> for Quantity {
    type Error = NoQuantity;

    fn try_from(text: String) -> Result<Self, NoQuantity> {
        text.parse()
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> String {
        quantity.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_mean_what_they_mean_in_kubernetes() {
        let table = [
            ("0", 0, "0"),
            ("1000", 1000, "1k"),
            ("1500", 1500, "1500"),
            ("1.5k", 1500, "1500"),
            ("64Mi", 64 << 20, "64Mi"),
            ("1024Ki", 1 << 20, "1Mi"),
            ("1.5Mi", 3 << 19, "1536Ki"),
            ("0.5Ki", 512, "512"),
            ("1e3", 1000, "1e3"),
            ("1E3", 1000, "1e3"),
            ("2E", 2_000_000_000_000_000_000, "2E"),
            ("1e-3", 1, "1e-3"),
            ("100m", 1, "100m"),
            ("-1", 0, "-1"),
            (".5", 1, "500m"),
        ];
        for (text, value, shown) in table {
            let parsed: Quantity = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((parsed.value(), parsed.to_string().as_str()), (value, shown), "{text}");
        }
        for text in ["", "Mi", "1 Mi", "1mi", "1K", "one", "1e", "1e99", "1.2.3", "--1", "10E", "1e3Ki", "-"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in "-?[0-9]{1,6}(\\.[0-9]{1,3})?(Ki|Mi|Gi|k|M|G|m|e3|e-3|)") {
            let quantity: Quantity = text.parse().expect("a quantity");
            let shown = quantity.to_string();
            let again: Quantity = shown.parse().expect("its own text");
            prop_assert_eq!(again.nanos, quantity.nanos);
            prop_assert_eq!(again.to_string(), shown);
        }

        #[test]
        fn nothing_panics(text in "[-+]?[0-9.eEKMGim]{0,16}") {
            let _ = text.parse::<Quantity>();
        }
    }
}

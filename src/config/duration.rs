//! Durations as Go writes them: `1h15m30.918s`, `300ms`, `0s`.
//!
//! Every duration of kube-proxy's flags and configuration file is such a text (Go's package `time`, `ParseDuration`). A
//! [`GoDuration`] counts nanoseconds in 64 bits with a sign, as Go does, so that a negative value can be read and then be refused
//! with its field's name. Proven by the table and the round trip below.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

const MICRO: i64 = 1_000;
const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;

/// Nanoseconds with a sign: from -292 to 292 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// The text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoDuration {
    /// Not a sequence of numbers with units.
    #[error("not a duration: write numbers with units (ns, us, ms, s, m, h), such as \"30s\" or \"1h30m\"")]
    Malformed,
    /// A number without unit.
    #[error("a duration needs a unit (ns, us, ms, s, m, h), such as \"30s\"")]
    NoUnit,
    /// Beyond 292 years.
    #[error("a duration beyond 292 years")]
    TooLong,
}

// === impl GoDuration ===

impl GoDuration {
    /// Nothing.
    pub const ZERO: GoDuration = GoDuration(0);

    /// Whole seconds.
    pub const fn from_secs(seconds: i64) -> Self {
        GoDuration(seconds * SECOND)
    }

    /// Nanoseconds.
    pub const fn from_nanos(nanos: i64) -> Self {
        GoDuration(nanos)
    }

    /// Nanoseconds.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// As the standard library has it; zero if negative, which validation has refused by then.
    pub fn get(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }

    /// As the standard library has it; `None` for zero, which means "leave it alone" where this is used.
    pub fn nonzero(self) -> Option<Duration> {
        Some(self.get()).filter(|duration| !duration.is_zero())
    }
}

impl FromStr for GoDuration {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration::ZERO);
        }
        if rest.is_empty() {
            return Err(NoDuration::Malformed);
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let (whole, after) = digits(rest);
            let (fraction, after) = match after.strip_prefix('.') {
                Some(after) => digits(after),
                None => ("", after),
            };
            if whole.is_empty() && fraction.is_empty() {
                return Err(NoDuration::Malformed);
            }
            let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
            let unit = i128::from(match &after[..end] {
                "ns" => 1,
                "us" | "µs" | "μs" => MICRO,
                "ms" => MILLI,
                "s" => SECOND,
                "m" => MINUTE,
                "h" => HOUR,
                "" => return Err(NoDuration::NoUnit),
                _ => return Err(NoDuration::Malformed),
            });
            let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| NoDuration::TooLong)? };
            total += i128::from(whole) * unit;
            // No unit has more than 13 decimals of a nanosecond; what is finer is cut off.
            let (mut part, mut scale) = (0, 1);
            for digit in fraction.bytes().take(18) {
                part = part * 10 + i128::from(digit - b'0');
                scale *= 10;
            }
            total += part * unit / scale;
            if total > i128::from(i64::MAX) + i128::from(negative) {
                return Err(NoDuration::TooLong);
            }
            rest = &after[end..];
        }
        let total = if negative { -total } else { total };
        i64::try_from(total).map(GoDuration).map_err(|_| NoDuration::TooLong)
    }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute, second) = (HOUR.unsigned_abs(), MINUTE.unsigned_abs(), SECOND.unsigned_abs());
        let nanos = self.0.unsigned_abs();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", decimal(nanos, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", decimal(nanos, 1_000_000)),
            _ => {
                if nanos >= hour {
                    write!(f, "{}h", nanos / hour)?;
                }
                if nanos >= minute {
                    write!(f, "{}m", nanos % hour / minute)?;
                }
                write!(f, "{}s", decimal(nanos % minute, second))
            }
        }
    }
}

/// `nanos` in units of `unit`, with as many decimals as it takes.
fn decimal(nanos: u64, unit: u64) -> String {
    let width = unit.ilog10() as usize;
    let text = format!("{}.{:0width$}", nanos / unit, nanos % unit);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Visitor { nanoseconds: false })
    }
}

/// Reads a field that takes a number of nanoseconds too.
pub(super) fn or_nanoseconds<'de, D: Deserializer<'de>>(from: D) -> Result<GoDuration, D::Error> {
    from.deserialize_any(Visitor { nanoseconds: true })
}

struct Visitor {
    nanoseconds: bool,
}

impl de::Visitor<'_> for Visitor {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration in quotes with a unit, such as \"30s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        text.parse().map_err(|error| E::custom(format_args!("{text:?}: {error}")))
    }

    fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
        if self.nanoseconds {
            return Ok(GoDuration(nanos));
        }
        Err(E::invalid_type(de::Unexpected::Signed(nanos), &self))
    }

    fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
        match i64::try_from(nanos) {
            Ok(nanos) if self.nanoseconds => Ok(GoDuration(nanos)),
            _ => Err(E::invalid_type(de::Unexpected::Unsigned(nanos), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_mean_what_they_mean_in_go() {
        let table = [
            ("0", 0, "0s"),
            ("-0", 0, "0s"),
            ("5s", 5 * SECOND, "5s"),
            ("+5s", 5 * SECOND, "5s"),
            ("-1.5h", -HOUR - 30 * MINUTE, "-1h30m0s"),
            ("1h15m30.918s", HOUR + 15 * MINUTE + 30 * SECOND + 918 * MILLI, "1h15m30.918s"),
            ("24h", 24 * HOUR, "24h0m0s"),
            ("15m", 15 * MINUTE, "15m0s"),
            ("300ms", 300 * MILLI, "300ms"),
            ("1.5us", 1_500, "1.5µs"),
            ("1µs2ns", 1_002, "1.002µs"),
            (".5s", 500 * MILLI, "500ms"),
            ("5.s", 5 * SECOND, "5s"),
            ("0.3333333333333333333h", 20 * MINUTE - 1, "19m59.999999999s"),
            ("9223372036854775807ns", i64::MAX, "2562047h47m16.854775807s"),
            ("-9223372036854775808ns", i64::MIN, "-2562047h47m16.854775808s"),
        ];
        for (text, nanos, shown) in table {
            let parsed: GoDuration = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!((parsed.nanos(), parsed.to_string().as_str()), (nanos, shown), "{text}");
        }
        let bad =
            ["", "-", "3", "30", "s", ".s", "1x", "1 s", " 1s", "1s ", "1S", "1d", "--1s", "9223372036854775808ns"];
        for text in bad.into_iter().chain(["1e3s", "99999999999999999999h", "3000000h"]) {
            assert!(text.parse::<GoDuration>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos: i64) {
            let duration = GoDuration(nanos);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn nothing_panics(text in "[-+]?[0-9.hmsnuµ ]{0,24}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}

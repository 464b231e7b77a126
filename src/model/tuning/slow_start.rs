//! How an endpoint that became ready grows into its weight.
//!
//! Envoy's formula: `weight * max(min, (time / window) ^ (1 / aggression))`. Time goes in [`SlowStart::STEPS`] steps, each no shorter
//! than [`SlowStart::SHORTEST_STEP`], and the result is in whole per cent: each change of weight is a change of slots in the kernel, and
//! nobody can tell 41 % from 41.3 %.

use std::time::Duration;

use super::{Remarks, percentage, time};

/// How an endpoint starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// How long it takes, not zero.
    pub window: Duration,
    /// In thousandths, 10..100,000: 1,000 grows evenly, more grows faster at first.
    aggression: u32,
    /// The least part of the weight, in per cent, 1..100.
    min: u32,
}

// === impl SlowStart ===

impl SlowStart {
    /// Weights per window.
    pub const STEPS: u32 = 32;

    /// A window that is short has fewer steps.
    pub const SHORTEST_STEP: Duration = Duration::from_millis(50);

    /// Envoy's default, in per cent.
    const DEFAULT_MIN: u32 = 10;

    /// `None` if the time is none, or zero.
    pub(super) fn parse(text: &str, remarks: &mut Remarks<'_>) -> Option<Self> {
        let mut parts = text.split(',').map(str::trim);
        let text = parts.next().unwrap_or_default();
        let window = time(text, remarks, "no slow start")?;
        if window.is_zero() {
            remarks.add(text, "no time at all; no slow start");
            return None;
        }
        let mut slow_start = Self { window, aggression: 1_000, min: Self::DEFAULT_MIN };
        for part in parts.filter(|part| !part.is_empty()) {
            match part.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                Some(("aggression", value)) => match value.parse::<f64>() {
                    Ok(number) if (0.01..=100.0).contains(&number) => {
                        slow_start.aggression = (number * 1000.0).round() as u32;
                    }
                    _ => remarks.add(part, "not a number in 0.01..100; taken as 1"),
                },
                Some(("min", value)) => match percentage(value, part, remarks) {
                    Some(share) if share > 0 => slow_start.min = share.div_ceil(10_000).min(100),
                    _ => remarks.add(part, "not a share in 1%..100%; taken as 10%"),
                },
                _ => remarks.add(part, "neither aggression= nor min=; ignored"),
            }
        }
        Some(slow_start)
    }

    /// The part of its weight that an endpoint has which has been ready for `elapsed`: 1..100 per cent.
    pub fn percent(&self, elapsed: Duration) -> u32 {
        if elapsed >= self.window {
            return 100;
        }
        let step = self.step();
        let steps = elapsed.as_nanos() / step.as_nanos();
        let progress = (steps as f64 * step.as_secs_f64() / self.window.as_secs_f64()).clamp(0.0, 1.0);
        let grown = progress.powf(1000.0 / f64::from(self.aggression)) * 100.0;
        // Between 0 and 100 by now.
        (grown as u32).clamp(self.min, 100)
    }

    /// How long until [`SlowStart::percent`] is another than now; `None` when it stays at 100.
    pub fn until_next(&self, elapsed: Duration) -> Option<Duration> {
        let now = self.percent(elapsed);
        if now == 100 {
            return None;
        }
        let step = self.step();
        let mut at = step * u32::try_from(elapsed.as_nanos() / step.as_nanos()).unwrap_or(u32::MAX);
        while at < self.window {
            at = (at + step).min(self.window);
            if self.percent(at) != now {
                return Some(at - elapsed);
            }
        }
        None
    }

    fn step(&self) -> Duration {
        (self.window / Self::STEPS).max(Self::SHORTEST_STEP)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::SLOW_START_ANNOTATION;
    use super::super::tests::parse;
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn slow_start(text: &str) -> SlowStart {
        let (tuning, problems) = parse(&[(SLOW_START_ANNOTATION, text)]);
        assert_eq!(problems, [""; 0], "{text}");
        tuning.slow_start.expect(text)
    }

    #[test]
    fn what_it_says() {
        assert_eq!(slow_start("60s"), SlowStart { window: 60 * S, aggression: 1_000, min: 10 });
        let all = SlowStart { window: 90 * S, aggression: 2_500, min: 25 };
        assert_eq!(slow_start("1m30s, aggression=2.5, min=25%"), all);
        assert_eq!(slow_start("90,min=24.5%,aggression=2.5,"), all);
        assert_eq!(slow_start("60s,min=0.2%").min, 1);
        for text in ["0s", "0", "0s,min=5%"] {
            let (tuning, problems) = parse(&[(SLOW_START_ANNOTATION, text)]);
            assert!(tuning.slow_start.is_none(), "{text}: none is none");
            let said = format!("{:?}: no time at all; no slow start", text.trim_end_matches(",min=5%"));
            assert!(problems.len() == 1 && problems[0].ends_with(&said), "{text}: {problems:?}");
        }
        for (text, said) in [
            ("60s,aggression=0", "\"aggression=0\": not a number in 0.01..100; taken as 1"),
            ("60s,aggression=NaN", "\"aggression=NaN\": not a number in 0.01..100; taken as 1"),
            ("60s,aggression=fast", "\"aggression=fast\": not a number in 0.01..100; taken as 1"),
            ("60s,min=0%", "\"min=0%\": not a share in 1%..100%; taken as 10%"),
            ("60s,min=x%", "\"min=x%\": not a share in 1%..100%; taken as 10%"),
            ("60s,max=4%", "\"max=4%\": neither aggression= nor min=; ignored"),
        ] {
            let (tuning, problems) = parse(&[(SLOW_START_ANNOTATION, text)]);
            assert_eq!(tuning.slow_start, Some(slow_start("60s")), "{text}");
            assert!(problems.len() == 1 && problems[0].ends_with(said), "{text}: {problems:?}");
        }
        let (tuning, problems) = parse(&[(SLOW_START_ANNOTATION, "min=10%,60s")]);
        assert!(tuning.slow_start.is_none() && problems.len() == 1, "{problems:?}");
    }

    #[test]
    fn envoys_formula() {
        let table = [
            ("64s", [10, 10, 25, 50, 75, 96, 100]),
            ("64s,min=40%", [40, 40, 40, 50, 75, 96, 100]),
            ("64s,aggression=2", [10, 17, 50, 70, 86, 98, 100]),
            ("64s,aggression=0.5,min=1%", [1, 1, 6, 25, 56, 93, 100]),
        ];
        for (text, want) in table {
            let slow_start = slow_start(text);
            let got = [0, 2, 16, 32, 48, 62, 64].map(|seconds| slow_start.percent(seconds * S));
            assert_eq!(got, want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_grows_in_few_steps_to_all(
            millis in 1u64..4_000_000, aggression in 10u32..100_000, min in 1u32..=100, begin in 0u64..5_000_000,
        ) {
            let slow_start = SlowStart { window: Duration::from_millis(millis), aggression, min };
            let mut at = Duration::from_millis(begin);
            let mut before = slow_start.percent(at);
            let mut steps = 0;
            while let Some(wait) = slow_start.until_next(at) {
                prop_assert!(!wait.is_zero());
                let almost = at + wait - Duration::from_nanos(1);
                prop_assert_eq!(slow_start.percent(almost), before, "nothing changes before");
                at += wait;
                let now = slow_start.percent(at);
                prop_assert!(now > before && now <= 100);
                before = now;
                steps += 1;
            }
            prop_assert!(steps <= SlowStart::STEPS + 1, "{steps}");
            prop_assert_eq!(before, 100);
        }
    }
}

//! Feature gates.
//!
//! A gate that changes what a kube-proxy does has a row in [`GATES`]. Clusters tend to hand the same gates to all their
//! components, so the names that only concern others are known too, in `gates/inert.rs`, and are accepted without effect. A name in
//! neither is an error, as upstream has it: a typo in a gate must not pass for a decision.

mod inert;

use std::collections::BTreeMap;

/// How settled a feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Off unless asked for.
    Alpha,
    /// Well tested.
    Beta,
    /// Here to stay.
    Stable,
}

/// A gate that has an effect.
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// As typed.
    pub name: &'static str,
    /// How settled it is.
    pub stage: Stage,
    /// Whether it is on unless said otherwise.
    pub default: bool,
    /// Whether nothing else can be said.
    pub locked: bool,
}

const fn gate(name: &'static str, stage: Stage, default: bool, locked: bool) -> Gate {
    Gate { name, stage, default, locked }
}

/// All gates that have an effect, by name.
pub const GATES: [Gate; 10] = [
    gate("AllowServiceExternalIPs", Stage::Stable, true, false),
    gate("ComponentFlagz", Stage::Beta, true, false),
    gate("ComponentStatusz", Stage::Beta, true, false),
    gate("ContextualLogging", Stage::Beta, true, false),
    gate("LoggingAlphaOptions", Stage::Alpha, false, false),
    gate("LoggingBetaOptions", Stage::Beta, true, false),
    gate("MultiCIDRServiceAllocator", Stage::Stable, true, true),
    gate("NativeHistograms", Stage::Alpha, false, false),
    gate("PreferSameTrafficDistribution", Stage::Stable, true, true),
    gate("WatchListClient", Stage::Beta, true, false),
];

/// Those of [`GATES`] that change a kube-proxy, and nothing here: their stage and default still count for the bulk gates.
const WITHOUT_EFFECT: [&str; 3] = ["ContextualLogging", "LoggingBetaOptions", "NativeHistograms"];

/// Which gates are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeatureGates {
    said: BTreeMap<String, bool>,
}

// === impl FeatureGates ===

impl FeatureGates {
    /// Takes what was said, or for each gate that cannot be set so: its name and the reason.
    ///
    /// # Errors
    /// Unknown gates, and locked ones set to the other value.
    pub fn new(said: &BTreeMap<String, bool>) -> Result<Self, Vec<(String, String)>> {
        let wrong = said.iter().filter_map(|(name, on)| {
            let reason = match GATES.iter().find(|gate| gate.name == name) {
                Some(gate) if gate.locked && gate.default != *on => {
                    format!("this feature gate is locked to {}", gate.default)
                }
                Some(_) => return None,
                None if matches!(name.as_str(), "AllAlpha" | "AllBeta") || inert::NAMES.contains(&name.as_str()) => {
                    return None;
                }
                None => "unknown feature gate".to_owned(),
            };
            Some((name.clone(), reason))
        });
        let wrong: Vec<_> = wrong.collect();
        if wrong.is_empty() { Ok(FeatureGates { said: said.clone() }) } else { Err(wrong) }
    }

    /// Whether a gate of [`GATES`] is open; false for any other name.
    pub fn enabled(&self, name: &str) -> bool {
        let Some(gate) = GATES.iter().find(|gate| gate.name == name) else { return false };
        let all = match gate.stage {
            Stage::Alpha => self.said.get("AllAlpha"),
            Stage::Beta => self.said.get("AllBeta"),
            Stage::Stable => None,
        };
        self.said.get(name).or(all).copied().unwrap_or(gate.default)
    }

    /// What was said and has no effect here.
    pub fn inert(&self) -> impl Iterator<Item = &str> {
        let inert = |name: &&str| inert::NAMES.contains(name) || WITHOUT_EFFECT.contains(name);
        self.said.keys().map(String::as_str).filter(inert)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gates(said: &[(&str, bool)]) -> Result<FeatureGates, Vec<(String, String)>> {
        FeatureGates::new(&said.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
    }

    #[test]
    fn bulk_gates_are_overruled_by_single_ones() {
        let open = gates(&[("AllAlpha", true), ("AllBeta", false), ("ComponentFlagz", true)]).expect("valid");
        for (name, want) in [
            ("NativeHistograms", true),
            ("LoggingAlphaOptions", true),
            ("ComponentStatusz", false),
            ("ComponentFlagz", true),
            ("AllowServiceExternalIPs", true),
            ("NoSuchGate", false),
        ] {
            assert_eq!(open.enabled(name), want, "{name}");
        }
        assert!(GATES.iter().all(|gate| FeatureGates::default().enabled(gate.name) == gate.default));
    }

    #[test]
    fn unknown_and_locked_gates_are_refused_and_foreign_ones_are_not() {
        let wrong = gates(&[("MultiCIDRServiceAllocator", false), ("NoSuchGate", true), ("NodeSwap", false)]);
        let names: Vec<_> = wrong.expect_err("invalid").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["MultiCIDRServiceAllocator", "NoSuchGate"]);
        let fine = gates(&[("MultiCIDRServiceAllocator", true), ("NativeHistograms", true), ("NodeSwap", false)]);
        assert_eq!(fine.expect("valid").inert().collect::<Vec<_>>(), ["NativeHistograms", "NodeSwap"]);
    }

    #[test]
    fn names_are_sorted_and_in_one_place() {
        assert!(inert::NAMES.is_sorted() && GATES.is_sorted_by_key(|gate| gate.name));
        assert!(GATES.iter().all(|gate| !inert::NAMES.contains(&gate.name)));
    }
}

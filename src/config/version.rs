//! What `--version` says.
//!
//! Tools expect of a kube-proxy the version of a Kubernetes release, so we say the one whose behaviour we have and append our own
//! as build metadata, which semantic versioning ignores in comparisons.

use serde_json::Value;

/// The Kubernetes release whose kube-proxy this is a replacement for.
pub const RELEASE: &str = "v1.36.2";

/// The version as reported unless `--version=vX.Y.Z...` says otherwise.
pub const REPORTED: &str = concat!("v1.36.2+pointsman.", env!("CARGO_PKG_VERSION"));

/// What `--version` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Print this and exit.
    Print(String),
    /// Go on and report this version.
    Report(String),
}

/// Reads the value of `--version`.
///
/// # Errors
/// A version of another release.
pub fn asked(value: &Value) -> Result<Asked, String> {
    match value {
        Value::Bool(true) => Ok(Asked::Print(format!("Kubernetes {REPORTED}"))),
        Value::String(text) if text == "raw" => Ok(Asked::Print(raw())),
        Value::String(text) => match text.strip_prefix(RELEASE) {
            Some(rest) if rest.is_empty() || rest.starts_with(['-', '+']) => Ok(Asked::Report(text.clone())),
            _ => Err(format!("--version: {text:?}: this is {RELEASE}; only its suffix can be changed")),
        },
        _ => Ok(Asked::Report(REPORTED.to_owned())),
    }
}

fn raw() -> String {
    let mut numbers = RELEASE.trim_start_matches('v').split('.');
    let mut next = || numbers.next().unwrap_or_default();
    let (major, minor) = (next(), next());
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    format!(
        "version.Info{{Major:{major:?}, Minor:{minor:?}, GitVersion:{REPORTED:?}, Compiler:\"rustc\", Platform:{platform:?}}}"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_same_release_can_be_reported() {
        assert!(REPORTED.starts_with(RELEASE));
        for (value, reported) in [
            (json!(false), Some(REPORTED)),
            (json!("v1.36.2"), Some("v1.36.2")),
            (json!("v1.36.2-gke.1"), Some("v1.36.2-gke.1")),
            (json!("v1.36.2+x"), Some("v1.36.2+x")),
            (json!("v1.36.21"), None),
            (json!("v1.35.2"), None),
            (json!("v"), None),
        ] {
            assert_eq!(asked(&value).ok(), reported.map(|text| Asked::Report(text.to_owned())), "{value}");
        }
        assert_eq!(asked(&json!(true)), Ok(Asked::Print(format!("Kubernetes {REPORTED}"))));
        assert!(matches!(asked(&json!("raw")), Ok(Asked::Print(text)) if text.starts_with("version.Info{Major:\"1\"")));
    }
}

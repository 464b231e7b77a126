//! What is shown.
//!
//! The verbosity of an event follows from where it comes from and how severe it is; [`shows`] compares it with what was asked for
//! in general and for single source files. All of it depends on an event's metadata alone, so tracing asks once per call site.

use tracing::{Level, Metadata};

/// Target of the lines that list every flag.
pub const FLAGS: &str = "pointsman::flags";
/// Target of the lines about changes programmed.
pub const PROGRAMMED: &str = "pointsman::programmed";

/// Which source files or modules: klog's globs.
///
/// Without `/` and `::`, the file's name without extension must fit; with `/`, its path without extension; with `::`, the module's
/// path. `*` is any text without the separator `/`, `?` one character, `[a-z]` and `[^a-z]` one of a set, `\` takes the next
/// character as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// The verbosity from which on an event is shown.
pub fn verbosity(metadata: &Metadata<'_>) -> u32 {
    let target = metadata.target();
    let within = |name: &str| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let ours = ["pointsman", "kube_proxy", "nft"].into_iter().any(within);
    let client = ["kube", "kube_client", "kube_runtime"].into_iter().any(within);
    match *metadata.level() {
        Level::ERROR | Level::WARN => 0,
        Level::INFO if within(FLAGS) => 1,
        Level::INFO if within(PROGRAMMED) => 2,
        Level::INFO if ours => 0,
        Level::INFO => 4,
        Level::DEBUG if ours => 4,
        Level::TRACE if ours => 6,
        Level::DEBUG if client => 6,
        _ => 8,
    }
}

/// Whether an event is shown.
pub fn shows(metadata: &Metadata<'_>, general: u32, modules: &[(Pattern, u32)]) -> bool {
    let needed = verbosity(metadata);
    if needed <= general {
        return true;
    }
    let (file, module) = (metadata.file().unwrap_or_default(), metadata.module_path().unwrap_or_default());
    modules.iter().find(|(pattern, _)| pattern.fits(file, module)).is_some_and(|(_, level)| needed <= *level)
}

// === impl Pattern ===

impl Pattern {
    /// Any text is a pattern; one that is malformed (`[`) fits nothing.
    pub fn new(text: impl Into<String>) -> Self {
        Pattern(text.into())
    }

    fn fits(&self, file: &str, module: &str) -> bool {
        let path = file.strip_suffix(".rs").unwrap_or(file);
        let subject = match self.0.as_str() {
            pattern if pattern.contains("::") => module,
            pattern if pattern.contains('/') => path,
            _ => path.rsplit('/').next().unwrap_or(path),
        };
        let pattern: Vec<char> = self.0.chars().collect();
        let subject: Vec<char> = subject.chars().collect();
        glob(&pattern, &subject)
    }
}

/// Whether all of `text` fits. Patterns come from the command line and are short, so backtracking is no danger.
fn glob(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], []) => true,
        (['*', rest @ ..], _) => {
            let reach = text.iter().position(|c| *c == '/').unwrap_or(text.len());
            (0..=reach).any(|skip| glob(rest, &text[skip..]))
        }
        (['?', rest @ ..], [c, text @ ..]) => *c != '/' && glob(rest, text),
        (['[', rest @ ..], [c, text @ ..]) => set(rest, *c).is_some_and(|(fits, rest)| fits && glob(rest, text)),
        (['\\', want, rest @ ..], [c, text @ ..]) | ([want, rest @ ..], [c, text @ ..]) => {
            want == c && glob(rest, text)
        }
        _ => false,
    }
}

/// Whether a character is in the set that the pattern begins with, and what follows the set.
fn set(pattern: &[char], c: char) -> Option<(bool, &[char])> {
    let (negated, mut rest) = match pattern {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let mut first = true;
    loop {
        match rest {
            [']', after @ ..] if !first => return Some((found != negated, after)),
            [low, '-', high, after @ ..] if *high != ']' => {
                found |= (*low..=*high).contains(&c);
                rest = after;
            }
            [one, after @ ..] => {
                found |= *one == c;
                rest = after;
            }
            [] => return None,
        }
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_as_in_klog() {
        let (file, module) = ("src/kernel/plane.rs", "pointsman::kernel::plane");
        for (pattern, want) in [
            ("plane", true),
            ("pl*", true),
            ("*", true),
            ("p?ane", true),
            ("p[a-m]ane", true),
            ("p[^a-m]ane", false),
            ("pla[", false),
            ("kernel", false),
            ("plan", false),
            ("Plane", false),
            ("src/kernel/*", true),
            ("src/*", false),
            ("*/*/plane", true),
            ("pointsman::kernel::*", true),
            ("pointsman::*", true),
            ("kube::*", false),
            ("", false),
        ] {
            assert_eq!(Pattern::new(pattern).fits(file, module), want, "{pattern:?}");
        }
    }
}

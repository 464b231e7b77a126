//! What connections are made to, as people say it.
//!
//! The daemon knows Services by namespace and name. Of a Service that has its name for itself the namespace need not be said here, as with `list`, `get`
//! and `flows`.
//!
//! Proven by the test below and by `tests/e2e/operator.rs`.

use std::path::Path;

use super::cli::{GetOptions, What};
use super::{Failure, get};
use crate::status::explain::Target;

/// Namespaces that are named, of all that have a Service of a name.
const NAMED: usize = 4;

/// Why nobody is meant.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    #[error("{0:?} is neither ADDRESS:PORT, a node port's number, nor [NAMESPACE/]NAME[:PORT]")]
    Unreadable(String),
    #[error("no Service {0} is served here")]
    Nobody(String),
    #[error("Service {name} has no port {port}")]
    NoPort { name: String, port: String },
    #[error("{name} is in several namespaces: say NAMESPACE/{name}: {namespaces}")]
    Several { name: String, namespaces: String },
}

/// A target that [`Target::parse`] reads: what was said, its namespace added where it is a Service's name alone.
pub(super) fn whole(socket: &Path, text: &str) -> Result<String, Failure> {
    if Target::parse(text).is_some() {
        return Ok(text.to_owned());
    }
    let name = name(text).ok_or_else(|| TargetError::Unreadable(text.to_owned()))?;
    let asked = GetOptions {
        what: What::Services,
        search: Some(name.to_owned()),
        namespace: None,
        only: None,
        output: None,
        watch: None,
    };
    let services = get::fetch(socket, &asked)?.services;
    let found = services.into_iter().filter(|service| service.name == name).map(|service| service.namespace);
    let found: Vec<_> = found.collect();
    match &*found {
        [] => Err(TargetError::Nobody(name.to_owned()).into()),
        [namespace] => Ok(format!("{namespace}/{text}")),
        several => {
            let namespaces = several.iter().take(NAMED).map(|one| &**one).collect::<Vec<_>>().join(", ");
            Err(TargetError::Several { name: name.to_owned(), namespaces }.into())
        }
    }
}

/// The name in `NAME` or `NAME:PORT`, if it can be one (a letter comes first); an address is none.
fn name(text: &str) -> Option<&str> {
    let (name, port) = text.split_once(':').unwrap_or((text, "-"));
    let begins = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let is_name = begins && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (is_name && !port.is_empty() && !port.contains([':', '/'])).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_addresses() {
        assert_eq!(["web", "web:http", "web-1:80"].map(name), [Some("web"), Some("web"), Some("web-1")]);
        let others =
            ["", "10.96.0.1", "fd00::1", "fd00:10:96::10", "web:", ":80", "[::1]", "a b", "-a", "70000", "a:b/c"];
        for other in others {
            assert_eq!(name(other), None, "{other}");
        }
    }
}

//! What a GET asks for: path and query string, understood.
//!
//! Paths are `/api/<version>/...` and `/apis/<group>/<version>/...`, then optionally `namespaces/<namespace>`, then the plural
//! and optionally a name. The collection is the path without namespace and name.

use serde_json::Value;

use crate::selector::Selector;

/// A list, watch or get.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Path of the collection across all namespaces.
    pub(crate) collection: String,
    /// Only this namespace.
    pub(crate) namespace: Option<String>,
    /// Only this object.
    pub(crate) name: Option<String>,
    pub(crate) labels: Selector,
    pub(crate) fields: Selector,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial_events: bool,
    pub(crate) version_match: Option<String>,
    /// `resourceVersion`; `None` when absent or empty.
    pub(crate) version: Option<u64>,
    pub(crate) limit: Option<usize>,
    pub(crate) continue_token: Option<String>,
    pub(crate) timeout_seconds: Option<u64>,
}

// === impl Query ===

impl Query {
    /// Parses a request target; `Err` carries the message for a 400 answer.
    pub(crate) fn parse(path: &str, query: &str) -> Result<Self, String> {
        let mut parsed = Self::at(path);
        for (key, value) in pairs(query) {
            match key.as_str() {
                "labelSelector" => parsed.labels = Selector::parse(&value)?,
                "fieldSelector" => parsed.fields = Selector::parse(&value)?,
                "watch" => parsed.watch = is_true(&value),
                "allowWatchBookmarks" => parsed.bookmarks = is_true(&value),
                "sendInitialEvents" => parsed.send_initial_events = is_true(&value),
                "resourceVersionMatch" => parsed.version_match = Some(value),
                "resourceVersion" if value.is_empty() => {}
                "resourceVersion" => parsed.version = Some(number(&key, &value)?),
                "limit" => parsed.limit = Some(number(&key, &value)? as usize),
                "continue" if value.is_empty() => {}
                "continue" => parsed.continue_token = Some(value),
                "timeoutSeconds" => parsed.timeout_seconds = Some(number(&key, &value)?),
                _ => {}
            }
        }
        Ok(parsed)
    }

    fn at(path: &str) -> Self {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix = if parts[0] == "apis" { 3 } else { 2 };
        let mut query = Self::default();
        // `namespaces` is itself a collection, `namespaces/<name>` one of its objects.
        if parts.len() > prefix + 2 && parts[prefix] == "namespaces" {
            query.namespace = Some(parts[prefix + 1].to_owned());
            parts.drain(prefix..prefix + 2);
        }
        if parts.len() > prefix + 1 {
            query.name = Some(parts[prefix + 1..].join("/"));
            parts.truncate(prefix + 1);
        }
        query.collection = format!("/{}", parts.join("/"));
        query
    }

    /// Whether an object of the collection is asked for.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| object["metadata"]["namespace"] == namespace)
            && self.labels.matches_labels(object)
            && self.fields.matches_fields(object)
    }
}

/// The decoded pairs of a query string.
pub(crate) fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect()
}

/// Undoes percent-encoding and `+` for a blank; a broken escape stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (byte, escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(escaped)) => {
                bytes.push(escaped);
                rest = &tail[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn number(key: &str, value: &str) -> Result<u64, String> {
    value.parse().map_err(|_| format!("{key}: invalid value: \"{value}\""))
}

fn is_true(value: &str) -> bool {
    matches!(value, "true" | "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, collection, namespace, name) in [
            ("/api/v1/services", "/api/v1/services", None, None),
            ("/api/v1/nodes/n1", "/api/v1/nodes", None, Some("n1")),
            ("/api/v1/namespaces/a/services", "/api/v1/services", Some("a"), None),
            ("/api/v1/namespaces/a/services/web", "/api/v1/services", Some("a"), Some("web")),
            ("/api/v1/namespaces/a", "/api/v1/namespaces", None, Some("a")),
            (
                "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices",
                "/apis/discovery.k8s.io/v1/endpointslices",
                Some("a"),
                None,
            ),
        ] {
            let query = Query::at(path);
            assert_eq!(query.collection, collection, "{path}");
            assert_eq!((query.namespace.as_deref(), query.name.as_deref()), (namespace, name), "{path}");
        }
    }

    #[test]
    fn query_strings() {
        let query = Query::parse(
            "/api/v1/services",
            "&watch=true&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&resourceVersion=&limit=5",
        )
        .unwrap();
        assert!(query.watch);
        assert_eq!((query.version, query.limit), (None, Some(5)));
        assert_eq!(query.labels, Selector::parse("!service.kubernetes.io/service-proxy-name").unwrap());
        assert!(Query::parse("/api/v1/services", "limit=many").is_err());
        assert_eq!(pairs("a=b+c&d=%zz"), [("a".into(), "b c".into()), ("d".into(), "%zz".into())]);
    }
}

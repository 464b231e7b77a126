//! Objects and their history: what etcd and the watch cache are to a real API server.
//!
//! One counter gives every write its resourceVersion, across all collections. A collection keeps its objects and a window of
//! past events; a watch that wants to start before the window is told 410, as is a page whose snapshot was compacted away.
//! An object is serialised once, when it is written: lists and watches copy those bytes, however many clients there are. A
//! write costs the logarithm of the collection, a watch costs the events it delivers.
//!
//! Invariants: versions only grow; events of a collection are in version order; a page token names an immutable snapshot, so
//! all pages of one list tell the same moment.
//!
//! Proven by the tests below and by `tests/wire.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use hyper::body::Bytes;
use serde_json::{Value, json};

use crate::query::Query;

/// Kinds without a namespace, among those a proxy may meet.
const CLUSTER_SCOPED: [&str; 5] = ["Node", "ServiceCIDR", "Namespace", "IPAddress", "PersistentVolume"];
/// The collections that exist before anything is written to them.
pub(crate) const COLLECTIONS: [&str; 4] = [
    "/api/v1/services",
    "/api/v1/nodes",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/apis/networking.k8s.io/v1/servicecidrs",
];
/// Unfinished paged lists that are kept at a time.
const PAGED_LISTS: usize = 64;

/// All collections and the version counter.
pub(crate) struct Store {
    version: u64,
    window: usize,
    collections: BTreeMap<String, Collection>,
    paged: BTreeMap<u64, Paged>,
    paged_next: u64,
}

/// One kind of object.
#[derive(Default)]
pub(crate) struct Collection {
    objects: BTreeMap<(String, String), Arc<Stored>>,
    events: VecDeque<Event>,
    /// No watch may start before this version.
    compacted: u64,
    /// Events up to and including this version fell out of the window.
    lost: u64,
    /// `kind` and `apiVersion` of the objects, for lists and bookmarks.
    kind: String,
    api_version: String,
}

/// An object as of its last write.
pub(crate) struct Stored {
    pub(crate) value: Value,
    pub(crate) json: Bytes,
}

/// One write: what was there before and after it.
struct Event {
    version: u64,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
    /// The object with the version of its deletion.
    tombstone: Option<Bytes>,
}

/// The rest of a list that is being read in pages.
struct Paged {
    version: u64,
    objects: Vec<Arc<Stored>>,
}

/// A list answer.
pub(crate) struct Page {
    pub(crate) version: u64,
    pub(crate) objects: Vec<Arc<Stored>>,
    pub(crate) continue_token: Option<String>,
    pub(crate) remaining: usize,
}

/// Why the store refuses.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The version is older than the window.
    Gone(String),
    /// The version was never reached.
    TooLarge(u64),
    /// The continue token is none of ours.
    BadToken,
}

// === impl Store ===

impl Store {
    /// An empty store that remembers `window` events per collection.
    pub(crate) fn new(window: usize) -> Self {
        let collections = COLLECTIONS.iter().map(|path| ((*path).to_owned(), Collection::named(path))).collect();
        // A real cluster's counter is never at its beginning, and 0 means "any version" on the wire.
        Self { version: 1000, window: window.max(1), collections, paged: BTreeMap::new(), paged_next: 0 }
    }

    /// The version of the last write.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The collection under this path, if it exists.
    pub(crate) fn collection(&self, path: &str) -> Option<&Collection> {
        self.collections.get(path)
    }

    /// Creates or replaces an object and returns its version.
    pub(crate) fn apply(&mut self, mut value: Value) -> u64 {
        let path = collection_path(&value);
        let (kind, api_version) = (text(&value, "/kind"), text(&value, "/apiVersion"));
        assert!(!text(&value, "/metadata/name").is_empty(), "an object needs metadata.name: {value}");
        if text(&value, "/metadata/namespace").is_empty() && !CLUSTER_SCOPED.contains(&kind.as_str()) {
            value["metadata"]["namespace"] = "default".into();
        }
        self.version += 1;
        let version = self.version;
        let key = (text(&value, "/metadata/namespace"), text(&value, "/metadata/name"));
        let collection = self.collections.entry(path).or_default();
        (collection.kind, collection.api_version) = (kind, api_version);
        let before = collection.objects.get(&key).cloned();
        value["metadata"]["resourceVersion"] = version.to_string().into();
        if text(&value, "/metadata/uid").is_empty() {
            let uid = before.as_ref().map(|before| text(&before.value, "/metadata/uid"));
            value["metadata"]["uid"] = uid.unwrap_or_else(|| format!("00000000-0000-4000-8000-{version:012x}")).into();
        }
        let after = Arc::new(Stored::new(value));
        collection.objects.insert(key, after.clone());
        collection.record(Event { version, before, after: Some(after), tombstone: None }, self.window);
        version
    }

    /// Deletes an object; `None` when it was not there.
    pub(crate) fn delete(&mut self, path: &str, namespace: &str, name: &str) -> Option<u64> {
        let collection = self.collections.get_mut(path)?;
        let before = collection.objects.remove(&(namespace.to_owned(), name.to_owned()))?;
        self.version += 1;
        let tombstone = Some(before.at_version(self.version));
        let event = Event { version: self.version, before: Some(before), after: None, tombstone };
        collection.record(event, self.window);
        Some(self.version)
    }

    /// Makes every version handed out so far, and every unfinished paged list, too old. Open watches go on, as they do when
    /// etcd compacts.
    pub(crate) fn compact(&mut self) {
        self.version += 1;
        self.paged.clear();
        for collection in self.collections.values_mut() {
            collection.compacted = self.version;
        }
    }

    /// Answers a list: a fresh one, or the next page of an unfinished one.
    pub(crate) fn list(&mut self, query: &Query) -> Result<Page, Refusal> {
        let (version, objects) = match &query.continue_token {
            Some(token) => {
                let id = token.strip_prefix("page-").and_then(|id| id.parse().ok()).ok_or(Refusal::BadToken)?;
                let paged = self.paged.remove(&id).ok_or_else(|| {
                    Refusal::Gone("The provided continue parameter is too old to display a consistent list".into())
                })?;
                (paged.version, paged.objects)
            }
            None => {
                self.check_reached(query.version)?;
                (self.version, self.matching(query))
            }
        };
        Ok(self.cut(version, objects, query.limit))
    }

    fn cut(&mut self, version: u64, mut objects: Vec<Arc<Stored>>, limit: Option<usize>) -> Page {
        let rest = match limit {
            Some(limit) if limit > 0 && limit < objects.len() => objects.split_off(limit),
            _ => Vec::new(),
        };
        let remaining = rest.len();
        let continue_token = (remaining > 0).then(|| {
            self.paged_next += 1;
            self.paged.insert(self.paged_next, Paged { version, objects: rest });
            if self.paged.len() > PAGED_LISTS {
                self.paged.pop_first();
            }
            format!("page-{}", self.paged_next)
        });
        Page { version, objects, continue_token, remaining }
    }

    /// All objects a query selects, in key order.
    pub(crate) fn matching(&self, query: &Query) -> Vec<Arc<Stored>> {
        let Some(collection) = self.collections.get(&query.collection) else { return Vec::new() };
        collection.objects.values().filter(|object| query.matches(&object.value)).cloned().collect()
    }

    /// One object.
    pub(crate) fn get(&self, path: &str, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.collections.get(path)?.objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// Whether events after `version` can still be told.
    pub(crate) fn check_version(&self, path: &str, version: u64) -> Result<(), Refusal> {
        let compacted = self.collections.get(path).map_or(0, |collection| collection.compacted.max(collection.lost));
        if version < compacted {
            return Err(Refusal::Gone(format!("too old resource version: {version} ({compacted})")));
        }
        self.check_reached(Some(version))
    }

    fn check_reached(&self, version: Option<u64>) -> Result<(), Refusal> {
        match version {
            Some(version) if version > self.version => Err(Refusal::TooLarge(version)),
            _ => Ok(()),
        }
    }

    /// Appends the watch events after `cursor` that concern `query`, one line each, to `into`, and returns the new cursor.
    pub(crate) fn events_since(&self, query: &Query, cursor: u64, into: &mut Vec<u8>) -> Result<u64, Refusal> {
        if let Some(collection) = self.collections.get(&query.collection) {
            if cursor < collection.lost {
                return Err(Refusal::Gone(format!("too old resource version: {cursor} ({})", collection.lost)));
            }
            let first = collection.events.partition_point(|event| event.version <= cursor);
            for event in collection.events.range(first..) {
                event.write(query, into);
            }
        }
        Ok(self.version)
    }
}

// === impl Collection ===

impl Collection {
    fn named(path: &str) -> Self {
        let kind = match path.rsplit('/').next() {
            Some("services") => "Service",
            Some("nodes") => "Node",
            Some("endpointslices") => "EndpointSlice",
            _ => "ServiceCIDR",
        };
        let api_version = path.trim_start_matches("/apis/").trim_start_matches("/api/");
        let api_version = api_version.rsplit_once('/').map_or("", |(group_version, _)| group_version);
        Self { kind: kind.to_owned(), api_version: api_version.to_owned(), ..Self::default() }
    }

    fn record(&mut self, event: Event, window: usize) {
        self.events.push_back(event);
        while self.events.len() > window {
            if let Some(forgotten) = self.events.pop_front() {
                self.lost = forgotten.version;
            }
        }
    }

    /// The head of a list answer, up to and including `"items":[`.
    pub(crate) fn list_head(&self, page: &Page) -> String {
        let mut metadata = json!({"resourceVersion": page.version.to_string()});
        if let Some(token) = &page.continue_token {
            metadata["continue"] = token.clone().into();
            metadata["remainingItemCount"] = page.remaining.into();
        }
        format!(r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#, self.kind, self.api_version)
    }

    /// A bookmark line; `initial` marks the end of the initial events of a streaming list.
    pub(crate) fn bookmark(&self, version: u64, initial: bool) -> Vec<u8> {
        let mut metadata = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": self.kind, "apiVersion": self.api_version, "metadata": metadata});
        format!("{{\"type\":\"BOOKMARK\",\"object\":{object}}}\n").into_bytes()
    }
}

// === impl Stored ===

impl Stored {
    fn new(value: Value) -> Self {
        let json = Bytes::from(value.to_string());
        Self { value, json }
    }

    /// The object as JSON with another resourceVersion.
    fn at_version(&self, version: u64) -> Bytes {
        let mut value = self.value.clone();
        value["metadata"]["resourceVersion"] = version.to_string().into();
        Bytes::from(value.to_string())
    }
}

// === impl Event ===

impl Event {
    /// What a selector makes of a write: an object that stops matching is gone for that watch.
    fn write(&self, query: &Query, into: &mut Vec<u8>) {
        let matched = self.before.as_ref().is_some_and(|object| query.matches(&object.value));
        let matches = self.after.as_ref().filter(|object| query.matches(&object.value));
        match (matched, matches, &self.before) {
            (false, Some(object), _) => write_line("ADDED", &object.json, into),
            (true, Some(object), _) => write_line("MODIFIED", &object.json, into),
            (true, None, Some(before)) => match &self.tombstone {
                Some(json) => write_line("DELETED", json, into),
                None => write_line("DELETED", &before.at_version(self.version), into),
            },
            _ => {}
        }
    }
}

/// Appends one watch event.
pub(crate) fn write_line(kind: &str, object: &[u8], into: &mut Vec<u8>) {
    into.extend_from_slice(b"{\"type\":\"");
    into.extend_from_slice(kind.as_bytes());
    into.extend_from_slice(b"\",\"object\":");
    into.extend_from_slice(object);
    into.extend_from_slice(b"}\n");
}

/// The path of the collection an object belongs to.
pub(crate) fn collection_path(object: &Value) -> String {
    let (kind, api_version) = (text(object, "/kind"), text(object, "/apiVersion"));
    assert!(!kind.is_empty() && !api_version.is_empty(), "an object needs apiVersion and kind: {object}");
    let lower = kind.to_lowercase();
    let plural = match lower.as_str() {
        "endpoints" => lower,
        _ if lower.ends_with('s') => format!("{lower}es"),
        _ if lower.ends_with('y') => format!("{}ies", &lower[..lower.len() - 1]),
        _ => format!("{lower}s"),
    };
    let root = if api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{api_version}/{plural}")
}

fn text(value: &Value, pointer: &str) -> String {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{node, service};

    fn query(text: &str) -> Query {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        Query::parse(path, query).unwrap()
    }

    fn lines(store: &Store, query: &Query, cursor: u64) -> Vec<String> {
        let mut bytes = Vec::new();
        store.events_since(query, cursor, &mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .map(|line| {
                let event: Value = serde_json::from_str(line).unwrap();
                let object = &event["object"]["metadata"];
                format!("{} {} {}", event["type"], object["name"], object["resourceVersion"]).replace('"', "")
            })
            .collect()
    }

    #[test]
    fn one_counter_for_everything() {
        let mut store = Store::new(10);
        let first = store.apply(service("a", "web", "10.0.0.1", &[]));
        let second = store.apply(node("n1", &[]));
        assert_eq!(second, first + 1);
        assert_eq!(store.delete("/api/v1/services", "a", "web"), Some(second + 1));
        assert_eq!(store.delete("/api/v1/services", "a", "web"), None);
    }

    #[test]
    fn events_follow_the_selector() {
        let mut store = Store::new(10);
        let start = store.version();
        let plain = service("a", "web", "10.0.0.1", &[]);
        let mut labelled = plain.clone();
        labelled["metadata"]["labels"]["hide"] = "yes".into();
        store.apply(plain.clone());
        store.apply(labelled.clone());
        store.apply(labelled);
        store.apply(plain);
        store.delete("/api/v1/services", "a", "web");
        let hidden = query("/api/v1/services?labelSelector=!hide");
        assert_eq!(
            lines(&store, &hidden, start),
            ["ADDED web 1001", "DELETED web 1002", "ADDED web 1004", "DELETED web 1005"]
        );
        let all = query("/api/v1/services");
        assert_eq!(lines(&store, &all, start + 3), ["MODIFIED web 1004", "DELETED web 1005"]);
    }

    #[test]
    fn the_window_and_compaction_end_old_versions() {
        let mut store = Store::new(2);
        let start = store.version();
        for port in 1..=3 {
            store.apply(service("a", "web", "10.0.0.1", &[("", "TCP", port)]));
        }
        assert!(matches!(store.check_version("/api/v1/services", start), Err(Refusal::Gone(_))));
        assert_eq!(store.check_version("/api/v1/services", start + 1), Ok(()));
        let now = store.version();
        assert_eq!(store.check_version("/api/v1/services", now), Ok(()));
        store.compact();
        assert!(matches!(store.check_version("/api/v1/services", now), Err(Refusal::Gone(_))));
        assert_eq!(store.check_version("/api/v1/services", now + 1), Ok(()));
        assert_eq!(store.check_version("/api/v1/services", now + 9), Err(Refusal::TooLarge(now + 9)));
    }

    #[test]
    fn pages_tell_one_moment() {
        let mut store = Store::new(10);
        for n in 0..5 {
            store.apply(service("a", &format!("s{n}"), "10.0.0.1", &[]));
        }
        let first = store.list(&query("/api/v1/services?limit=2")).unwrap();
        assert_eq!((first.objects.len(), first.remaining), (2, 3));
        store.delete("/api/v1/services", "a", "s4");
        let token = first.continue_token.unwrap();
        let rest = store.list(&query(&format!("/api/v1/services?limit=9&continue={token}"))).unwrap();
        assert_eq!((rest.objects.len(), rest.version, rest.continue_token), (3, first.version, None));
        assert!(matches!(store.list(&query(&format!("/api/v1/services?continue={token}"))), Err(Refusal::Gone(_))));
        assert!(matches!(store.list(&query("/api/v1/services?continue=x")), Err(Refusal::BadToken)));
    }

    #[test]
    fn paths() {
        assert_eq!(collection_path(&json!({"apiVersion": "v1", "kind": "Service"})), "/api/v1/services");
        assert_eq!(
            collection_path(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy"})),
            "/apis/networking.k8s.io/v1/networkpolicies"
        );
    }
}

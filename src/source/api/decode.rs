//! From bytes to objects, forgiving about single objects.
//!
//! The straight path decodes a whole watch event or list page into the lean types, which costs no intermediate tree. Only when
//! that fails is the text looked at again, this time for the object's name: one object with a number where a string belongs
//! must not cost the other ten thousand. Text that is no JSON at all names nobody, and the caller has to ask again.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::core::WatchEvent;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;

use super::ObjectKey;

/// A watch event, understood as far as possible.
pub(super) enum Decoded<K> {
    /// As the server meant it.
    Event(WatchEvent<K>),
    /// The object was deleted, and more than its name could not be read.
    Deleted(Broken),
    /// The object is there, and cannot be read.
    Broken(Broken),
    /// The text ends too early: the connection broke off.
    Cut,
    /// Nothing of use, and why.
    Garbled(String),
}

/// An object that cannot be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) key: ObjectKey,
    /// `metadata.resourceVersion`, empty when unknown.
    pub(super) version: String,
    pub(super) reason: String,
}

/// One page of a list.
pub(super) struct Page<K> {
    pub(super) metadata: ListMeta,
    pub(super) objects: Vec<K>,
    pub(super) broken: Vec<Broken>,
}

#[derive(Deserialize)]
struct WirePage<K> {
    #[serde(default)]
    metadata: ListMeta,
    items: Option<Vec<K>>,
}

/// Decodes one line of a watch.
pub(super) fn event<K: DeserializeOwned>(line: &str) -> Decoded<K> {
    let error = match serde_json::from_str(line) {
        Ok(event) => return Decoded::Event(event),
        Err(error) => error,
    };
    if error.classify() == Category::Eof {
        return Decoded::Cut;
    }
    let Ok(event) = serde_json::from_str::<Value>(line) else { return Decoded::Garbled(error.to_string()) };
    // An error while the watch is being answered may come as a bare Status.
    if event["kind"] == "Status"
        && let Ok(status) = serde_json::from_value(event.clone())
    {
        return Decoded::Event(WatchEvent::Error(status));
    }
    match (event["type"].as_str(), broken(&event["object"], error.to_string())) {
        (Some("DELETED"), Some(broken)) => Decoded::Deleted(broken),
        (Some("ADDED" | "MODIFIED"), Some(broken)) => Decoded::Broken(broken),
        _ => Decoded::Garbled(error.to_string()),
    }
}

/// Decodes a page of a list; `Err` says why nothing of it could be used.
pub(super) fn page<K: DeserializeOwned>(text: &str) -> Result<Page<K>, String> {
    let error = match serde_json::from_str::<WirePage<K>>(text) {
        Ok(page) => {
            let objects = page.items.unwrap_or_default();
            return Ok(Page { metadata: page.metadata, objects, broken: Vec::new() });
        }
        Err(error) => error,
    };
    let wire: WirePage<Value> = serde_json::from_str(text).map_err(|_| error.to_string())?;
    let mut page = Page { metadata: wire.metadata, objects: Vec::new(), broken: Vec::new() };
    for item in wire.items.unwrap_or_default() {
        match K::deserialize(&item) {
            Ok(object) => page.objects.push(object),
            Err(error) => {
                let nameless = || Broken {
                    key: ObjectKey { namespace: String::new(), name: "(without a readable name)".to_owned() },
                    version: String::new(),
                    reason: String::new(),
                };
                let reason = error.to_string();
                page.broken.push(broken(&item, reason.clone()).unwrap_or_else(|| Broken { reason, ..nameless() }));
            }
        }
    }
    Ok(page)
}

/// Whose object this is, if it says so.
fn broken(object: &Value, reason: String) -> Option<Broken> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let key = ObjectKey { namespace: text("namespace"), name: text("name") };
    (!key.name.is_empty()).then(|| Broken { key, version: text("resourceVersion"), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::Service;

    #[test]
    fn events() {
        let bad = r#"{"metadata":{"namespace":"a","name":"web","resourceVersion":"7"},"spec":{"ports":"many"}}"#;
        let line = |kind: &str| format!(r#"{{"type":"{kind}","object":{bad}}}"#);
        match event::<Service>(&line("MODIFIED")) {
            Decoded::Broken(broken) => {
                assert_eq!((broken.key.to_string().as_str(), broken.version.as_str()), ("a/web", "7"));
                assert!(broken.reason.contains("many"), "{}", broken.reason);
            }
            _ => panic!("expected a broken object"),
        }
        assert!(matches!(event::<Service>(&line("DELETED")), Decoded::Deleted(_)));
        assert!(matches!(event::<Service>(&line("MODIFIED")[..40]), Decoded::Cut));
        assert!(matches!(event::<Service>("<html>"), Decoded::Garbled(_)));
        assert!(matches!(event::<Service>(r#"{"type":"ADDED","object":{"spec":3}}"#), Decoded::Garbled(_)));
        let status =
            r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"m","reason":"Expired","code":410}"#;
        assert!(matches!(event::<Service>(status), Decoded::Event(WatchEvent::Error(status)) if status.code == 410));
    }

    #[test]
    fn pages() {
        let text = r#"{"metadata":{"resourceVersion":"9"},"items":[
            {"metadata":{"name":"good"}}, {"metadata":{"name":"bad"},"spec":{"ports":3}}, {"metadata":7}]}"#;
        let page = page::<Service>(text).unwrap();
        assert_eq!(page.metadata.resource_version.as_deref(), Some("9"));
        assert_eq!(page.objects.len(), 1);
        assert_eq!(page.broken.iter().map(|broken| broken.key.name.as_str()).next(), Some("bad"));
        assert_eq!(page.broken.len(), 2);
        assert!(super::page::<Service>("<html>").is_err());
        assert!(
            super::page::<Service>(r#"{"metadata":{"resourceVersion":"9"},"items":null}"#).unwrap().objects.is_empty()
        );
    }
}

//! An object's metadata, reduced while it is read to what a proxy looks at.
//!
//! Half of an object's text may be `managedFields`, and annotations may hold a megabyte of somebody's configuration. Whatever is not
//! named here is skipped in the text and never allocated; what is kept is put into the type that the client library knows.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Our own labels and annotations.
const OWN: &str = "pointsman.dev/";

/// Labels and annotations of others that somebody here reads.
const KNOWN: [&str; 6] = [
    "kubernetes.io/service-name",
    "service.kubernetes.io/headless",
    "service.kubernetes.io/service-proxy-name",
    "topology.kubernetes.io/zone",
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kube-router.io/service.scheduler",
];

/// The fields that are kept.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lean {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<Named>,
    annotations: Option<Named>,
}

/// Labels or annotations, without those that nobody reads.
struct Named(BTreeMap<String, String>);

/// Reads `metadata`.
pub(super) fn lean<'de, D: Deserializer<'de>>(from: D) -> Result<ObjectMeta, D::Error> {
    let lean = Lean::deserialize(from)?;
    Ok(ObjectMeta {
        name: lean.name,
        namespace: lean.namespace,
        resource_version: lean.resource_version,
        creation_timestamp: lean.creation_timestamp,
        deletion_timestamp: lean.deletion_timestamp,
        labels: lean.labels.map(|labels| labels.0),
        annotations: lean.annotations.map(|annotations| annotations.0),
        ..ObjectMeta::default()
    })
}

// === impl Named ===

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Named;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
                let mut named = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name.starts_with(OWN) || KNOWN.contains(&name.as_str()) {
                        named.insert(name, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Named(named))
            }
        }

        from.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::source::object::{EndpointSlice, Service};

    #[test]
    fn only_what_is_read_is_kept() {
        let service: Service = serde_json::from_value(json!({"metadata": {
            "name": "web", "namespace": "shop", "resourceVersion": "7", "uid": "1", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:a": {}}}],
            "ownerReferences": [{"name": "x"}], "labels": null,
            "annotations": {"example.org/blob": "x", "pointsman.dev/scheduler": "rr", "kube-router.io/service.scheduler": "lc"},
        }}))
        .expect("decodes");
        let meta = service.metadata;
        assert_eq!(
            (meta.name.as_deref(), meta.namespace.as_deref(), meta.resource_version.as_deref()),
            (Some("web"), Some("shop"), Some("7"))
        );
        assert_eq!(meta.creation_timestamp.map(|time| time.0.as_second()), Some(1_767_225_600));
        assert_eq!((meta.uid, meta.managed_fields, meta.owner_references, meta.labels), (None, None, None, None));
        let annotations: Vec<_> = meta.annotations.into_iter().flatten().collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            annotations,
            [pair("kube-router.io/service.scheduler", "lc"), pair("pointsman.dev/scheduler", "rr")]
        );
    }

    #[test]
    fn what_is_kept_must_be_text_and_the_rest_may_be_anything() {
        let slice = |labels| serde_json::from_value::<EndpointSlice>(json!({"metadata": {"labels": labels}}));
        assert!(slice(json!({"kubernetes.io/service-name": 7})).is_err());
        assert!(slice(json!({"example.org/other": 7})).is_ok());
        assert!(slice(json!(["kubernetes.io/service-name"])).is_err());
        assert!(serde_json::from_value::<EndpointSlice>(json!({})).is_err(), "an object without metadata is none");
    }
}

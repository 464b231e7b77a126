//! Writes over HTTP: Events only, which are all that a proxy writes. They become objects like any other.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Request};
use serde_json::Value;

use crate::query::Query;
use crate::serve::{Answer, not_found, refuse, reply_json};
use crate::{Shared, lock};

/// The collection that can be written to.
pub(crate) const EVENTS: &str = "/apis/events.k8s.io/v1/events";

/// Answers a request that is no GET.
pub(crate) async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let query = match Query::parse(head.uri.path(), head.uri.query().unwrap_or_default()) {
        Ok(query) => query,
        Err(message) => return refuse(shared, 400, "BadRequest", &message),
    };
    if query.collection != EVENTS {
        return refuse(shared, 405, "MethodNotAllowed", "the double takes nothing but Events over HTTP");
    }
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let Ok(body) = serde_json::from_slice::<Value>(&body) else {
        return refuse(shared, 400, "BadRequest", "the body is not JSON");
    };
    match (head.method, &query.name) {
        (Method::POST, None) => create(shared, &query, body),
        (Method::PATCH, Some(name)) => patch(shared, &query, name, &body),
        _ => refuse(shared, 405, "MethodNotAllowed", "an Event is created or patched"),
    }
}

fn create(shared: &Arc<Shared>, query: &Query, mut object: Value) -> Answer {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let namespace = query.namespace.clone().unwrap_or_default();
    if name.is_empty() || object["metadata"]["namespace"].as_str().is_some_and(|given| given != namespace) {
        return refuse(shared, 422, "Invalid", "metadata.name or metadata.namespace do not fit the request");
    }
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason", "type"] {
        if object[field].as_str().is_none_or(str::is_empty) {
            return refuse(shared, 422, "Invalid", &format!("Event \"{name}\" is invalid: {field}: Required value"));
        }
    }
    object["metadata"]["namespace"] = namespace.clone().into();
    object["apiVersion"] = "events.k8s.io/v1".into();
    object["kind"] = "Event".into();
    if lock(&shared.store).get(EVENTS, &namespace, &name).is_some() {
        return refuse(shared, 409, "AlreadyExists", &format!("events \"{name}\" already exists"));
    }
    put(shared, 201, object)
}

fn patch(shared: &Arc<Shared>, query: &Query, name: &str, patch: &Value) -> Answer {
    let namespace = query.namespace.as_deref().unwrap_or_default();
    let Some(stored) = lock(&shared.store).get(EVENTS, namespace, name) else { return not_found(shared, name) };
    let mut object = stored.value.clone();
    merge(&mut object, patch);
    put(shared, 200, object)
}

fn put(shared: &Arc<Shared>, code: u16, object: Value) -> Answer {
    lock(&shared.store).apply(object.clone());
    shared.wake.send_modify(|count| *count += 1);
    reply_json(shared, code, &object)
}

/// RFC 7396.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = Value::Object(Default::default());
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(object.as_object_mut().and_then(|object| object.remove(name))),
            value => merge(&mut object[name], value),
        }
    }
}

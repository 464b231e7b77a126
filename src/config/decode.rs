//! From the text of a configuration file to a [`Document`].
//!
//! Upstream reads twice: strictly, and if only strictness was offended (a field it does not know, a key given twice), leniently
//! with one line in the log. Here the text becomes an untyped tree in one pass, in which the last of repeated keys wins and the
//! repetition is remembered; the tree is decoded by type, where errors are final; and what the typed form does not show again was
//! unknown. The result of both ways is the same.
//!
//! `null` is absence everywhere. Only the first document of a file counts. Nothing in here knows what a value means.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::document::{API_VERSION, Document, KIND};
use crate::source::manifests::text::{self, Format};

/// What a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Without defaults.
    pub document: Document,
    /// What a strict reader would have refused, such as `unknown field "ipvs.schduler"`.
    pub offences: Vec<String>,
}

/// Why a file says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Path of the field, empty for the file as a whole.
    pub field: String,
    /// What is wrong there, value included.
    pub reason: String,
}

/// Decodes the first document of a YAML or JSON text.
///
/// # Errors
/// The first thing that is malformed or not of its field's type.
pub fn decode(text: &str) -> Result<Decoded, DecodeError> {
    text::on_large_stack(|| decode_here(text)).unwrap_or_else(|reason| Err(whole(reason)))
}

fn whole(reason: impl Into<String>) -> DecodeError {
    DecodeError { field: String::new(), reason: reason.into() }
}

fn decode_here(text: &str) -> Result<Decoded, DecodeError> {
    let mut offences = Vec::new();
    let mut tree = tree(text.strip_prefix('\u{feff}').unwrap_or(text), &mut offences)?;
    whole_numbers(&mut tree);
    let Value::Object(fields) = &tree else { return Err(whole(format!("expected fields, found {}", shown(&tree)))) };
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match fields.get(field) {
            Some(Value::String(value)) if value == expected => {}
            None | Some(Value::Null) => {
                let reason = format!("missing; this file must say {expected:?}");
                return Err(DecodeError { field: field.to_owned(), reason });
            }
            Some(value) => {
                let reason = format!("{}: must be {expected:?}", shown(value));
                return Err(DecodeError { field: field.to_owned(), reason });
            }
        }
    }
    let mut pruned = tree.clone();
    prune(&mut pruned);
    let document: Document = serde_path_to_error::deserialize(pruned)
        .map_err(|error| DecodeError { field: error.path().to_string(), reason: error.inner().to_string() })?;
    let known = serde_json::to_value(&document).map_err(|error| whole(error.to_string()))?;
    compare(&tree, &known, "", &mut offences)?;
    Ok(Decoded { document, offences })
}

/// The first document, untyped.
fn tree(text: &str, offences: &mut Vec<String>) -> Result<Value, DecodeError> {
    let first_of = |format| text::documents(format, text).map(|documents| documents.first().copied());
    // JSON is nearly YAML, but its reader is the better judge of it.
    if text.trim_start().starts_with('{')
        && let Ok(Some(document)) = first_of(Format::Json)
        && let Ok(tree) = text::read_repeated(Format::Json, document, Node { path: "", offences })
    {
        return Ok(tree);
    }
    offences.clear();
    let failed = |fault: text::Fault| DecodeError {
        // The path of what is not even well-formed is a question mark.
        field: if fault.path == "?" { String::new() } else { fault.path },
        reason: format!("line {}: {}", fault.line, fault.reason),
    };
    let Some(document) = first_of(Format::Yaml).map_err(failed)? else { return Err(whole("the file is empty")) };
    text::read_repeated(Format::Yaml, document, Node { path: "", offences }).map_err(failed)
}

/// How a value is named in a message.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".to_owned(),
        value => value.to_string(),
    }
}

/// Makes `5.0` a `5`: kube-proxy reads YAML by way of JSON, whose writer drops the fraction.
fn whole_numbers(value: &mut Value) {
    /// Beyond this not every whole number can be told from its neighbours.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < EXACT);
            if let Some(float) = float {
                *number = (float as i64).into();
            }
        }
        _ => {}
    }
}

/// Takes nulls out.
fn prune(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

/// Finds fields of `given` that `known` does not have.
///
/// # Errors
/// A list where there should be fields: serde takes one for the other.
fn compare(given: &Value, known: &Value, path: &str, offences: &mut Vec<String>) -> Result<(), DecodeError> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given {
                let path = join(path, name);
                match known.get(name) {
                    Some(known) => compare(value, known, &path, offences)?,
                    // The typed form leaves out an empty list of these; a null in a map of gates is no gate.
                    None if path == "logging.vmodule" || path.starts_with("featureGates.") => {}
                    None => offences.push(format!("unknown field {path:?}")),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                compare(given, known, &format!("{path}[{index}]"), offences)?;
            }
        }
        (given, Value::Object(_)) if !given.is_null() => {
            let reason = format!("expected fields, found {}", shown(given));
            return Err(DecodeError { field: path.to_owned(), reason });
        }
        _ => {}
    }
    Ok(())
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Builds a tree and remembers repeated keys.
struct Node<'a> {
    path: &'a str,
    offences: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format_args!("{value} is not a finite number")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match from.next_element_seed(Node { path: &path, offences: self.offences })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            let path = join(self.path, &name);
            let value = from.next_value_seed(Node { path: &path, offences: self.offences })?;
            if fields.insert(name, value).is_some() {
                self.offences.push(format!("key {path:?} given twice"));
            }
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_head(body: &str) -> String {
        format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{body}")
    }

    #[test]
    fn strictness_is_told_and_forgiven() {
        let decoded = decode(&with_head(
            "mode: ipvs\nmode: nftables\nipvs: {schduler: rr, scheduler: lc, scheduler: wrr}\nBindAddress: '::'\nNodePorts: null\n\
             logging: {vmodule: [{filePattern: a, level: 3}]}\n---\nmode: iptables\n",
        ))
        .expect("lenient");
        assert_eq!((decoded.document.mode.as_str(), decoded.document.ipvs.scheduler.as_str()), ("nftables", "wrr"));
        insta::assert_snapshot!(decoded.offences.join("\n"), @r#"
        key "mode" given twice
        key "ipvs.scheduler" given twice
        unknown field "BindAddress"
        unknown field "NodePorts"
        unknown field "ipvs.schduler"
        unknown field "logging.vmodule[0].level"
        "#);
    }

    #[test]
    fn null_is_absence_and_yaml_is_the_old_one() {
        let body = "iptables: null\nnodePortAddresses: ~\nbindAddress: null\nenableProfiling: yes\nconntrack: {min: null}\n\
                    logging: {flushFrequency: 2000000000}\nfeatureGates: null\nclientConnection: {qps: 7}\n";
        let decoded = decode(&with_head(body)).expect("valid");
        assert!(decoded.document.enable_profiling && decoded.offences.is_empty(), "{decoded:?}");
        assert_eq!(decoded.document.logging.flush_frequency, crate::config::GoDuration::from_secs(2));
        assert!((decoded.document.client_connection.qps - 7.0).abs() < f32::EPSILON);
    }

    #[test]
    fn json_is_read_too() {
        let text = format!("{{\n\t\"apiVersion\": {API_VERSION:?}, \"kind\": {KIND:?},\n\t\"mode\": \"nftables\"}}\n");
        assert_eq!(decode(&text).expect("valid").document.mode, "nftables");
        let flow = format!("{{apiVersion: {API_VERSION}, kind: {KIND}, mode: ipvs}}");
        assert_eq!(decode(&flow).expect("YAML that looks like JSON").document.mode, "ipvs");
    }
}

//! What a document says about itself before its type is known: kind, name, and the same for the items of a list.
//!
//! Decoding a [`Head`] never fails for the shape of a value, only for text that is not well-formed: a foreign kind may put anything
//! under `metadata` or `items`, and must be recognised as foreign, not reported as broken. Only the handful of fields named in
//! [`Fields`] are kept.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Any value, reduced to what tells objects apart.
#[derive(Debug, Default)]
pub enum Head {
    /// `null`, or not there.
    #[default]
    Nothing,
    /// A scalar, as text.
    Word(String),
    /// A sequence.
    Sequence,
    /// A mapping.
    Fields(Box<Fields>),
}

/// The fields of interest of a mapping, be it an object or its `metadata`.
#[derive(Debug, Default)]
pub struct Fields {
    /// `apiVersion`
    pub api_version: Head,
    /// `kind`
    pub kind: Head,
    /// `metadata`
    pub metadata: Head,
    /// `metadata.namespace`
    pub namespace: Head,
    /// `metadata.name`
    pub name: Head,
    /// `items`
    pub items: Option<Items>,
}

/// What is under `items`. YAML knows the line of each element, JSON does not (line 0).
#[derive(Debug)]
pub enum Items {
    /// A sequence, as every list has it.
    Sequence(Vec<Spanned<Head>>),
    /// `null`, which Kubernetes writes for an empty list.
    Nothing,
    /// Something else.
    Other,
}

// === impl Head ===

impl Head {
    /// The text of a scalar.
    pub fn word(&self) -> Option<&str> {
        if let Head::Word(word) = self { Some(word) } else { None }
    }
}

impl<'de> Deserialize<'de> for Head {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(HeadVisitor)
    }
}

struct HeadVisitor;

macro_rules! words {
    ($($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, value: $type) -> Result<Head, E> {
            Ok(Head::Word(value.to_string()))
        })*
    };
}

macro_rules! others {
    ($other:expr, $($visit:ident: $type:ty),*) => {
        $(fn $visit<E>(self, _: $type) -> Result<Self::Value, E> {
            Ok($other)
        })*
    };
}

impl<'de> Visitor<'de> for HeadVisitor {
    type Value = Head;

    words!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64, visit_str: &str);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object")
    }

    /// `!!binary`
    fn visit_bytes<E>(self, _: &[u8]) -> Result<Head, E> {
        Ok(Head::Nothing)
    }

    fn visit_unit<E>(self) -> Result<Head, E> {
        Ok(Head::Nothing)
    }

    fn visit_none<E>(self) -> Result<Head, E> {
        Ok(Head::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Head, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Head, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Head, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Head::Sequence)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Head, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key::<Head>()? {
            match key.word() {
                Some("apiVersion") => fields.api_version = map.next_value()?,
                Some("kind") => fields.kind = map.next_value()?,
                Some("metadata") => fields.metadata = map.next_value()?,
                Some("namespace") => fields.namespace = map.next_value()?,
                Some("name") => fields.name = map.next_value()?,
                // JSON allows it; but what is planned for the one list would not fit the other.
                Some("items") if fields.items.is_some() => return Err(A::Error::duplicate_field("items")),
                Some("items") => fields.items = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Head::Fields(Box::new(fields)))
    }
}

// === impl Items ===

impl<'de> Deserialize<'de> for Items {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(ItemsVisitor)
    }
}

struct ItemsVisitor;

impl<'de> Visitor<'de> for ItemsVisitor {
    type Value = Items;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of Kubernetes objects")
    }

    others!(Items::Other, visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64, visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E>(self) -> Result<Items, E> {
        Ok(Items::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Items, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(Items::Sequence(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Items, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Items::Other)
    }
}

//! JSON documents of strangers: read strictly, written deterministically.
//!
//! `serde_json` keeps the last of two equal keys. A registry, a scanner and a runtime may then read
//! two different images out of the same bytes, so equal keys are an error here, and so is a document
//! above its limit (security.md, "one parser = one reading").

use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserializer, Serialize};
use serde_json::{Map, Value};

/// Why a JSON document was refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// More bytes than the limit for this kind of document.
    #[error("{what} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// What was read, e.g. `image config`.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Not JSON, a key twice, or not of the expected form.
    #[error("{what} cannot be read: {reason}")]
    Malformed {
        /// What was read, e.g. `image manifest`.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
}

impl DocumentError {
    pub(crate) fn malformed(what: &'static str, reason: impl fmt::Display) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }
}

/// Reads a document; equal keys in one object are an error.
///
/// # Errors
/// When the bytes are more than `limit`, not JSON, or hold a key twice.
pub fn parse_value(what: &'static str, bytes: &[u8], limit: u64) -> Result<Value, DocumentError> {
    let size = bytes.len() as u64;
    if size > limit {
        return Err(DocumentError::TooLarge { what, size, limit });
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut json).map_err(|e| DocumentError::malformed(what, e))?;
    json.end().map_err(|e| DocumentError::malformed(what, e))?;
    Ok(value)
}

/// Like [`parse_value`], into a type.
///
/// # Errors
/// As [`parse_value`], and when the document has not the form of `T`.
pub fn parse<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    limit: u64,
) -> Result<T, DocumentError> {
    let value = parse_value(what, bytes, limit)?;
    serde_json::from_value(value).map_err(|e| DocumentError::malformed(what, e))
}

/// The bytes of a document, indented by two spaces, as BuildKit writes manifests and indexes.
///
/// # Panics
/// Never for the document types of this crate: they have string keys only.
pub fn pretty(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(document).expect("documents have string keys and no failing parts")
}

/// The bytes of a document without white space.
///
/// # Panics
/// As [`pretty`].
pub fn compact(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("documents have string keys and no failing parts")
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
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

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Strict)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = items.next_key::<String>()? {
            let value = items.next_value_seed(Strict)?;
            if map.insert(key.clone(), value).is_some() {
                return Err(de::Error::custom(format_args!("key `{key}` occurs twice")));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<&str, &str>) {
        let got = parse_value("document", text.as_bytes(), 100);
        match (got, expect) {
            (Ok(value), Ok(expect)) => assert_eq!(value.to_string(), expect),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (got, _) => panic!("{text}: {got:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn reads_strictly() {
        check(
            r#"{"b": 1, "a": [null, true, -1, 1.5, "x"]}"#,
            Ok(r#"{"b":1,"a":[null,true,-1,1.5,"x"]}"#),
        );
        check(r#"{"a": 1, "a": 2}"#, Err("key `a` occurs twice"));
        check(r#"[{"x": {"a": 1, "a": 2}}]"#, Err("key `a` occurs twice"));
        check("{} {}", Err("trailing"));
        check("", Err("EOF"));
        check(&" ".repeat(101), Err("101 bytes, more than the limit of 100"));
        check(&"[".repeat(99), Err("EOF"));
    }

    #[test]
    fn deep_documents_end_in_an_error_and_not_in_the_stack() {
        let deep = "[".repeat(500_000);
        assert!(parse_value("document", deep.as_bytes(), 1 << 20).is_err());
    }
}

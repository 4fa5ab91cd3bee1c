//! Operations: opaque JSON that is kept and forwarded as the text received. Money is not rounded (design rule 24).
//!
//! Nothing here turns a number into a number. Two bodies are the same when they are equal apart from white space and
//! member order, numbers by their text: `1.0` and `1.00` differ, and `{"a":1,"b":2}` equals `{ "b": 2, "a": 1 }`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

/// Deeper JSON is refused: a body that is only brackets should cost us nothing, and no service needs it.
pub const DEPTH_MAX: usize = 64;

/// SHA-256 over the canonical form of a JSON text: equal for texts that are the same body.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BodyDigest(pub [u8; 32]);

impl BodyDigest {
    /// The digest of a JSON text.
    ///
    /// # Errors
    /// When the text is not JSON, or nested deeper than [`DEPTH_MAX`].
    pub fn of_json(text: &str) -> Result<Self, InvalidOperations> {
        Self::of_json_within(text, DEPTH_MAX)
    }

    /// The digest of a JSON text that holds operations at some depth of its own.
    pub(crate) fn of_json_within(text: &str, depth: usize) -> Result<Self, InvalidOperations> {
        let raw: &RawValue = serde_json::from_str(text)
            .map_err(|error| InvalidOperations::Json(error.to_string()))?;
        let mut canonical = String::with_capacity(text.len());
        write_canonical(raw, depth, &mut canonical)?;
        Ok(Self(Sha256::digest(canonical.as_bytes()).into()))
    }
}

impl fmt::Debug for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The operations of one branch: a JSON array, as the text received. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Operations {
    text: Arc<str>,
    digest: BodyDigest,
}

/// Why a text is not a list of operations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidOperations {
    /// Not JSON at all.
    #[error("not valid JSON: {0}")]
    Json(String),
    /// JSON, but not an array.
    #[error("operations must be an array")]
    NotAnArray,
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
}

impl Operations {
    /// Takes a JSON array as it is.
    ///
    /// # Errors
    /// When the text is not a JSON array, or nested deeper than [`DEPTH_MAX`].
    pub fn parse(text: &str) -> Result<Self, InvalidOperations> {
        let text = text.trim_matches([' ', '\t', '\n', '\r']);
        let digest = BodyDigest::of_json(text)?;
        if !text.starts_with('[') {
            return Err(InvalidOperations::NotAnArray);
        }
        Ok(Self {
            text: text.into(),
            digest,
        })
    }

    /// No operations: `[]`.
    #[must_use]
    pub fn none() -> Self {
        Self {
            text: "[]".into(),
            digest: BodyDigest(Sha256::digest(b"[]").into()),
        }
    }

    /// The JSON array, to the letter as it was received.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Equal for operations that are the same.
    #[must_use]
    pub fn digest(&self) -> BodyDigest {
        self.digest
    }
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Operations {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.text).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Operations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(de::Error::custom)
    }
}

/// Members sorted by name (those of one name in the order given), no white space, strings re-escaped in one way,
/// everything else by its text.
fn write_canonical(
    raw: &RawValue,
    depth_left: usize,
    out: &mut String,
) -> Result<(), InvalidOperations> {
    let text = raw.get().trim_matches([' ', '\t', '\n', '\r']);
    let json = |error: serde_json::Error| InvalidOperations::Json(error.to_string());
    let deeper = || depth_left.checked_sub(1).ok_or(InvalidOperations::TooDeep);
    match text.as_bytes().first() {
        Some(b'{') => {
            let depth_left = deeper()?;
            let Members(members) = serde_json::from_str(text).map_err(json)?;
            out.push('{');
            for (at, (name, values)) in members.iter().enumerate() {
                for (again, value) in values.iter().enumerate() {
                    if at + again > 0 {
                        out.push(',');
                    }
                    write_string(name, out)?;
                    out.push(':');
                    write_canonical(value, depth_left, out)?;
                }
            }
            out.push('}');
        }
        Some(b'[') => {
            let depth_left = deeper()?;
            let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(json)?;
            out.push('[');
            for (at, element) in elements.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_canonical(element, depth_left, out)?;
            }
            out.push(']');
        }
        Some(b'"') => {
            let string: String = serde_json::from_str(text).map_err(json)?;
            write_string(&string, out)?;
        }
        _ => out.push_str(text),
    }
    Ok(())
}

fn write_string(string: &str, out: &mut String) -> Result<(), InvalidOperations> {
    let quoted = serde_json::to_string(string)
        .map_err(|error| InvalidOperations::Json(error.to_string()))?;
    out.push_str(&quoted);
    Ok(())
}

/// An object's members as raw text, by name.
struct Members<'a>(BTreeMap<String, Vec<&'a RawValue>>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::<String, Vec<&RawValue>>::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    members.entry(name).or_default().push(value);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(one: &str, other: &str) -> bool {
        Operations::parse(one).unwrap().digest() == Operations::parse(other).unwrap().digest()
    }

    #[test]
    fn bodies_are_the_same_apart_from_white_space_and_member_order() {
        assert!(same("[]", " [ ]\n"));
        assert!(same(
            r#"[{"a":1,"b":[2,3]}]"#,
            r#"[ { "b" : [2, 3], "a" : 1 } ]"#
        ));
        assert!(same(r#"["é\n"]"#, r#"["\u00e9\u000a"]"#));
        assert!(!same("[1,2]", "[2,1]"));
        assert!(
            !same(r#"[{"a":null}]"#, "[{}]"),
            "null is a value inside operations"
        );
        assert!(!same(r#"[{"a":1,"a":2}]"#, r#"[{"a":2,"a":1}]"#));
        assert!(!same(r#"["1"]"#, "[1]"));
        assert!(!same(r#"[{"a":"b\",\"c"}]"#, r#"[{"a":"b","c":""}]"#));
    }

    #[test]
    fn numbers_are_the_same_only_by_their_text() {
        assert!(!same("[1.0]", "[1.00]"));
        assert!(!same("[100000000000000000001]", "[100000000000000000000]"));
        assert!(!same("[0.1]", "[0.10000000000000000000001]"));
        assert!(!same("[1e2]", "[100]"));
    }

    #[test]
    fn operations_are_forwarded_as_the_text_received() {
        let text = r#"[ {"amount": 100000000000000000000.10, "b":"\u00e9"} ]"#;
        let operations: Operations = serde_json::from_str(text).unwrap();
        assert_eq!(operations.text(), text);
        assert_eq!(serde_json::to_string(&operations).unwrap(), text);
    }

    #[test]
    fn what_is_no_array_or_too_deep_is_refused() {
        assert_eq!(Operations::parse("{}"), Err(InvalidOperations::NotAnArray));
        assert!(matches!(
            Operations::parse("[1"),
            Err(InvalidOperations::Json(_))
        ));
        assert!(Operations::parse(&format!("{}{}", "[".repeat(64), "]".repeat(64))).is_ok());
        let brackets = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            Operations::parse(&brackets),
            Err(InvalidOperations::TooDeep)
        );
    }

    #[test]
    fn no_operations_are_the_empty_array() {
        assert_eq!(Operations::none(), Operations::parse("[]").unwrap());
    }
}

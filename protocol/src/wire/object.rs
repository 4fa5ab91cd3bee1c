//! Bodies that are JSON objects, and nothing else.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, value::MapAccessDeserializer},
};

/// A `T` that is read from an object. What serde derives for a struct also takes an array, its members in the order of
/// our source: `[30000]` would be a deadline, and `[]` an empty body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = T;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::BeginRequest;
    use super::*;

    #[test]
    fn an_array_is_no_object_and_numbers_in_operations_stay_as_they_are() {
        for text in ["[]", "[30000]", r#"{"branches":[["east"]]}"#] {
            assert!(
                serde_json::from_str::<Object<BeginRequest>>(text).is_err(),
                "{text}"
            );
        }
        let text = r#"{"branches":[{"participant":"east","operations":[1.00,1E400]}]}"#;
        let Object(read) = serde_json::from_str::<Object<BeginRequest>>(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}

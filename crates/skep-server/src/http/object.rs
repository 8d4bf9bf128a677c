//! Structures of a request that must be JSON objects.
//!
//! What `serde` derives for a structure also accepts an array of its members, in the order of declaration. The protocol
//! has no such form.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

/// A `T` that was an object.
pub(super) struct ObjectOnly<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for ObjectOnly<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectMembers<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectMembers<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer
            .deserialize_map(ObjectMembers(PhantomData))
            .map(ObjectOnly)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Deserialize)]
    struct Pair<'a> {
        a: u8,
        #[serde(borrow, default)]
        b: Option<&'a RawValue>,
    }

    #[test]
    fn an_array_of_members_is_refused() {
        let read = |text| {
            let pair: Result<ObjectOnly<Pair<'_>>, _> = serde_json::from_str(text);
            pair.map(|ObjectOnly(pair)| (pair.a, pair.b.map(|b| b.get().to_owned())))
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            read(r#"{"b":[1, 2],"a":7}"#),
            Ok((7, Some("[1, 2]".to_owned())))
        );
        assert_eq!(read(r#"{"a":7}"#), Ok((7, None)));
        let error = read("[7,null]").expect_err("an array");
        assert!(
            error.contains("invalid type: sequence, expected a JSON object"),
            "{error}"
        );
        assert!(
            serde_json::from_str::<Pair<'_>>("[7,null]").is_ok(),
            "what this is for"
        );
        for text in ["7", "null", r#""x""#, "{}"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}

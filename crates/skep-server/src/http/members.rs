//! The parameters of an input or an output in JSON: a short list, where a map would cost more than it saves.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;
use smallvec::SmallVec;

use super::{
    lean::{Leaf, Name},
    parameters,
};
use crate::{
    error::ApiError,
    inference::{self, NamedSpan, SpanParameters},
};

/// The known members; others are ignored, as on Triton.
const KNOWN: [&str; 6] = [
    "binary_data_size",
    "binary_data",
    "classification",
    inference::REGION,
    inference::OFFSET,
    inference::BYTE_SIZE,
];

/// The most known members of one object. Repetitions count, and more of them can only be malicious.
const MAX_KNOWN: usize = 64;

/// Names and values in the order in which they were sent; repeated names are kept.
#[derive(Debug)]
pub(super) struct TensorMembers(SmallVec<[(&'static str, Value); 1]>);

impl TensorMembers {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// Where tensor `name` lies in a region, if the members say so.
    pub(super) fn span(&self, name: &str) -> Result<Option<NamedSpan>, ApiError> {
        let mut span = SpanParameters::default();
        for (key, value) in self.iter() {
            match key {
                inference::REGION => span.region = Some(parameters::text(key, value)?),
                inference::OFFSET => span.offset = Some(parameters::unsigned(key, value)?),
                inference::BYTE_SIZE => span.byte_size = Some(parameters::unsigned(key, value)?),
                _ => {}
            }
        }
        span.span(name)
    }
}

impl<'de> Deserialize<'de> for TensorMembers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = TensorMembers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut object: A,
            ) -> Result<TensorMembers, A::Error> {
                let mut members = SmallVec::new();
                while let Some(Name(name)) = object.next_key()? {
                    let Some(known) = KNOWN.into_iter().find(|known| *known == name) else {
                        object.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let Leaf(value) = object.next_value()?;
                    if members.len() == MAX_KNOWN {
                        return Err(A::Error::custom(format!("`{known}` comes too often")));
                    }
                    members.push((known, value));
                }
                Ok(TensorMembers(members))
            }
        }

        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn known_members_keep_their_order_and_others_are_ignored() {
        let text = r#"{"binary_data":1,"a":[[{}]],"b\u0062":{"c":"d"},"classification":[1],"binary_data":null}"#;
        let members: TensorMembers = serde_json::from_str(text).expect("valid");
        let expected = [
            ("binary_data", &json!(1)),
            ("classification", &json!([])),
            ("binary_data", &Value::Null),
        ];
        assert!(members.iter().eq(expected));
        assert!(serde_json::from_str::<TensorMembers>("[]").is_err());
    }

    #[test]
    fn repetitions_of_a_member_are_bounded() {
        let text = |count| format!("{{{}}}", vec![r#""binary_data":true"#; count].join(","));
        assert!(serde_json::from_str::<TensorMembers>(&text(MAX_KNOWN)).is_ok());
        assert!(serde_json::from_str::<TensorMembers>(&text(MAX_KNOWN + 1)).is_err());
    }
}

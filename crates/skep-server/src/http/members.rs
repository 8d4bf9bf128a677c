//! The members of a JSON object as they came: a few, in a list, where a map would cost more than it finds.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;
use smallvec::SmallVec;

/// Names and values in the order in which they were sent; a name that is sent twice is here twice.
#[derive(Debug)]
pub(super) struct Members<'a>(SmallVec<[(Name<'a>, Value); 1]>);

/// Borrowed unless an escape is in it.
#[derive(Debug, Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl Members<'_> {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (&*name.0, value))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Object<'a> {
            type Value = Members<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
                let mut members = SmallVec::new();
                while let Some(member) = object.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Object(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_order_and_borrow() {
        let members: Members<'_> =
            serde_json::from_str(r#"{"b":1,"a\u0062":null,"b":[2]}"#).expect("an object");
        let names: Vec<(&str, String)> = members
            .iter()
            .map(|(name, value)| (name, value.to_string()))
            .collect();
        let expected = [("b", "1"), ("ab", "null"), ("b", "[2]")];
        assert_eq!(
            names,
            expected.map(|(name, value)| (name, value.to_owned()))
        );
        assert!(matches!(members.0[0].0.0, Cow::Borrowed(_)));
        assert!(serde_json::from_str::<Members<'_>>("[]").is_err());
    }
}

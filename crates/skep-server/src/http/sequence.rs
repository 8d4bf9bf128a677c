//! Lists and ids of inference requests, bounded while they are read.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use smallvec::{Array, SmallVec};

/// An array of at most `MOST` elements; those that fit into an `A` are stored inline. A parsed value moves several
/// times, so only small elements should be stored inline.
pub(super) struct AtMost<A: Array, const MOST: usize>(pub(super) SmallVec<A>);

impl<'de, A: Array, const MOST: usize> Deserialize<'de> for AtMost<A, MOST>
where
    A::Item: Deserialize<'de>,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AtMostVisitor<A, const MOST: usize>(PhantomData<A>);

        impl<'de, A: Array, const MOST: usize> Visitor<'de> for AtMostVisitor<A, MOST>
        where
            A::Item: Deserialize<'de>,
        {
            type Value = AtMost<A, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sequence")
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut array: S) -> Result<Self::Value, S::Error> {
                let mut elements = SmallVec::new();
                while let Some(element) = array.next_element()? {
                    if elements.len() == MOST {
                        let text = format!("an array has more than {MOST} elements");
                        return Err(S::Error::custom(text));
                    }
                    elements.push(element);
                }
                Ok(AtMost(elements))
            }
        }

        deserializer.deserialize_seq(AtMostVisitor(PhantomData))
    }
}

/// A request's id: a string, or a number, which Triton accepts too.
#[derive(Debug)]
pub(super) struct Id<'a>(pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl<'de> Visitor<'de> for TextOrNumber {
            type Value = Id<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Id<'de>, E> {
                Ok(Id(Cow::Owned(number.to_string())))
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_end_at_their_bound() {
        let read =
            |text| serde_json::from_str::<AtMost<[i64; 6], 3>>(text).map(|all| all.0.to_vec());
        assert_eq!(read("[1,2,3]").ok(), Some(vec![1, 2, 3]));
        let error = read("[1,2,3,4]").expect_err("too many");
        assert_eq!(
            error.to_string(),
            "an array has more than 3 elements at line 1 column 9"
        );
        assert!(read("1").is_err());
    }

    #[test]
    fn an_id_is_a_text_or_a_number() {
        let read = |text| serde_json::from_str::<Id<'_>>(text).map(|Id(id)| id.into_owned());
        assert_eq!(read(r#""a\n""#).ok().as_deref(), Some("a\n"));
        assert_eq!(read("7").ok().as_deref(), Some("7"));
        for text in ["-7", "1.5", "[]", "{}", "true"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}

//! JSON values that keep only the parts that the server uses: nested values, repetitions and unknown names take no
//! memory.
//!
//! A value of eight bytes of text can take six hundred bytes in memory, so text from a client is read with these and
//! not as a plain `serde_json::Value`.

use std::{borrow::Cow, cell::Cell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

use crate::bounds::MAX_PARAMETERS;

/// Entries kept of a request when only its fault is sought.
const MAX_LOOKED_AT: usize = 64 << 10;

/// Reads a value down to a depth; containers below it stay empty. Fails if there are more entries than are `left`.
#[derive(Clone, Copy)]
struct Lean<'a> {
    depth: usize,
    /// Whether the elements of arrays are kept, as members of objects are.
    arrays: bool,
    /// Which members are kept.
    keeps: fn(&str) -> bool,
    left: &'a Cell<usize>,
}

impl Lean<'_> {
    fn deeper(self) -> Self {
        Self {
            depth: self.depth.saturating_sub(1),
            ..self
        }
    }

    fn take<E: Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1);
        let left = left.ok_or_else(|| E::custom(too_many()))?;
        self.left.set(left);
        Ok(())
    }
}

/// Why an object is refused.
pub(super) fn too_many() -> String {
    format!("an object has more than {MAX_PARAMETERS} members")
}

impl<'de> DeserializeSeed<'de> for Lean<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lean<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Value, A::Error> {
        let mut elements = Vec::new();
        if self.depth == 0 || !self.arrays {
            while array.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Array(elements));
        }
        while let Some(element) = array.next_element_seed(self.deeper())? {
            self.take()?;
            elements.push(element);
        }
        Ok(Value::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        if self.depth == 0 {
            while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Value::Object(members));
        }
        while let Some(Name(name)) = object.next_key()? {
            if (self.keeps)(&name) {
                self.take()?;
                members.insert(name.into_owned(), object.next_value_seed(self.deeper())?);
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Value::Object(members))
    }
}

/// A name, borrowed unless it contains an escape.
#[derive(Debug, Deserialize)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// A string, a number, a boolean or null; a container is read as an empty one.
pub(super) struct Leaf(pub(super) Value);

impl<'de> Deserialize<'de> for Leaf {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let lean = Lean {
            depth: 0,
            arrays: false,
            keeps: |_| false,
            left: &Cell::new(0),
        };
        lean.deserialize(deserializer).map(Self)
    }
}

/// An object of [`Leaf`]s.
pub(super) struct Leaves(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Leaves {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LeavesVisitor;

        impl<'de> Visitor<'de> for LeavesVisitor {
            type Value = Leaves;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Leaves, A::Error> {
                let mut members = Map::new();
                let mut count = 0;
                while let Some((Name(name), Leaf(value))) = object.next_entry()? {
                    count += 1;
                    if count > MAX_PARAMETERS {
                        return Err(A::Error::custom(too_many()));
                    }
                    members.insert(name.into_owned(), value);
                }
                Ok(Leaves(members))
            }
        }

        deserializer.deserialize_map(LeavesVisitor)
    }
}

/// Reads a value with objects down to `depth` and at most [`MAX_PARAMETERS`] members in all.
pub(super) fn parse(json: &[u8], depth: usize) -> serde_json::Result<Value> {
    read(
        json,
        Lean {
            depth,
            arrays: false,
            keeps: |_| true,
            left: &Cell::new(MAX_PARAMETERS),
        },
    )
}

/// As [`parse`], with the elements of arrays, which count as members.
pub(super) fn parse_with_arrays(json: &[u8], depth: usize) -> serde_json::Result<Value> {
    read(
        json,
        Lean {
            depth,
            arrays: true,
            keeps: |_| true,
            left: &Cell::new(MAX_PARAMETERS),
        },
    )
}

/// Reads the structure of an inference request, without its data and parameters.
pub(super) fn form(json: &[u8]) -> serde_json::Result<Value> {
    const SHOWN: [&str; 6] = ["id", "inputs", "outputs", "name", "datatype", "shape"];
    read(
        json,
        Lean {
            // The request, its inputs, an input, its shape.
            depth: 4,
            arrays: true,
            keeps: |name| SHOWN.contains(&name),
            left: &Cell::new(MAX_LOOKED_AT),
        },
    )
}

fn read(json: &[u8], lean: Lean<'_>) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = lean.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_below_the_depth_are_empty() {
        let text = br#"{"a":{"b":{"c":1},"d":[[2],{"e":3}]},"f":"g","h":null,"i":-1.5,"j":true}"#;
        assert_eq!(
            parse(text, 2).ok(),
            Some(json!({"a": {"b": {}, "d": []}, "f": "g", "h": null, "i": -1.5, "j": true}))
        );
        assert_eq!(parse(b"[[1]]", 2).ok(), Some(json!([])));
        assert!(parse(b"[[1]", 2).is_err());
        assert!(parse(b"1 2", 2).is_err());
        assert_eq!(
            form(br#"{"inputs":[{"name":"x","shape":[1,[2]],"data":[1]}],"x":{"y":1}}"#).ok(),
            Some(json!({"inputs": [{"name": "x", "shape": [1, []]}]}))
        );
    }

    #[test]
    fn members_are_counted_at_every_depth() {
        let of = |count: usize| {
            let members: Vec<String> = (0..count).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        let most = of(MAX_PARAMETERS);
        let more = of(MAX_PARAMETERS + 1);
        assert!(parse(most.as_bytes(), 1).is_ok());
        assert!(parse(more.as_bytes(), 1).is_err());
        assert!(serde_json::from_str::<Leaves>(&most).is_ok());
        assert!(serde_json::from_str::<Leaves>(&more).is_err());
        let halves = format!("{{\"a\":{},\"b\":{}}}", of(2000), of(2100));
        assert!(parse(halves.as_bytes(), 2).is_err(), "together");
        assert!(parse(halves.as_bytes(), 1).is_ok(), "which nobody looks at");
    }
}

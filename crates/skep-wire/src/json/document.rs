//! JSON whose numbers may be bare `NaN` and `Infinity`.

use std::{cell::OnceCell, ops::Range};

use serde_json::value::RawValue;

use super::{special::special, tokens::Tokens};

/// JSON text that may hold bare `NaN`, `Infinity` and `-Infinity`.
///
/// Text without them goes to the JSON parser unchanged, at no extra cost. If the parser refuses the text, it gets a
/// copy in which each special is replaced by a fraction of the same length. Outside tensor data any number will do in
/// place of a special, positions in errors stay correct, and [`Document::text`] finds the original text of a value in
/// the copy. A string that spells a special stays a string.
///
/// ```
/// use serde_json::value::RawValue;
/// use skep_types::DataType;
/// use skep_wire::json::{Document, read};
///
/// let document = Document::new(b"[0.5, NaN]");
/// let data: &RawValue = document.parse(serde_json::from_slice)?;
/// let bytes = read(document.text(data), DataType::Fp32, 2)?;
/// assert_eq!(bytes, [0.5f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Document<'a> {
    json: &'a [u8],
    /// Set if the parser needed the copy.
    masked: OnceCell<Vec<u8>>,
}

impl<'a> Document<'a> {
    /// A document of unchecked text.
    #[must_use]
    pub const fn new(json: &'a [u8]) -> Self {
        Self {
            json,
            masked: OnceCell::new(),
        }
    }

    /// Parses the text with `parser`, such as [`serde_json::from_slice`].
    ///
    /// # Errors
    /// The parser's.
    pub fn parse<'b, T>(
        &'b self,
        parser: impl Fn(&'b [u8]) -> serde_json::Result<T>,
    ) -> serde_json::Result<T> {
        self.parse_within(parser, |_| Ok(()))
    }

    /// As [`Document::parse`]; `room` is called with the size of the copy in bytes, before the text is copied.
    ///
    /// # Errors
    /// The parser's, and those of `room`.
    pub fn parse_within<'b, T, E: From<serde_json::Error>>(
        &'b self,
        parser: impl Fn(&'b [u8]) -> serde_json::Result<T>,
        room: impl FnOnce(usize) -> Result<(), E>,
    ) -> Result<T, E> {
        let error = match parser(self.json) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if self.masked.get().is_none() {
            if specials(self.json).next().is_none() {
                return Err(error.into());
            }
            room(self.json.len())?;
        }
        Ok(parser(self.masked.get_or_init(|| mask(self.json)))?)
    }

    /// The original text of a value from [`Document::parse`].
    #[must_use]
    pub fn text<'b>(&'b self, value: &'b RawValue) -> &'b str {
        let parsed = value.get();
        self.original(parsed).unwrap_or(parsed)
    }

    /// The original text at the position of `parsed` in the copy; `None` if `parsed` is not part of the copy.
    fn original(&self, parsed: &str) -> Option<&str> {
        let masked = self.masked.get()?;
        let start = parsed.as_ptr().addr().checked_sub(masked.as_ptr().addr())?;
        let end = start.checked_add(parsed.len())?;
        str::from_utf8(self.json.get(start..end)?).ok()
    }
}

/// The positions of bare specials.
fn specials(json: &[u8]) -> impl Iterator<Item = Range<usize>> {
    Tokens::new(json).filter(|token| {
        let word = str::from_utf8(&json[token.clone()]).ok();
        word.and_then(special).is_some()
    })
}

/// The text with a fraction for each bare special.
fn mask(json: &[u8]) -> Vec<u8> {
    let mut masked = json.to_vec();
    for token in specials(json) {
        let number = &mut masked[token];
        // A fraction, so that a special is refused where an integer is needed.
        number.fill(b'5');
        number[..2].copy_from_slice(b"0.");
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn masked(text: &str) -> Option<String> {
        specials(text.as_bytes()).next()?;
        Some(String::from_utf8(mask(text.as_bytes())).expect("text"))
    }

    #[test]
    fn specials_are_masked_as_whole_words_outside_of_strings() {
        assert_eq!(masked(r#"{"NaN":"\"-Infinity"}"#), None);
        assert_eq!(masked("\"NaN"), None);
        assert_eq!(masked("[nan,inf,infinity,NaNN,1NaN,--Infinity,+Inf]"), None);
        assert_eq!(
            masked(r#"{"a NaN":[-Infinity,NaN , Infinity,-NaN,Inf,-Inf]}"#).as_deref(),
            Some(r#"{"a NaN":[0.5555555,0.5 , 0.555555,0.55,0.5,0.55]}"#)
        );
    }

    #[test]
    fn values_come_back_as_they_were_sent() {
        let text = r#" {"é":NaN, "b" : [ 0.5,"NaN", -Infinity ]} "#;
        let document = Document::new(text.as_bytes());
        let members: Vec<(&str, &RawValue)> = document
            .parse(|json| {
                let whole: &RawValue = serde_json::from_slice(json)?;
                serde_json::from_str::<std::collections::BTreeMap<&str, &RawValue>>(whole.get())
                    .map(|members| members.into_iter().collect())
            })
            .expect("parses");
        let members: Vec<_> = members
            .into_iter()
            .map(|(key, value)| (key, document.text(value)))
            .collect();
        assert_eq!(
            members,
            [("b", r#"[ 0.5,"NaN", -Infinity ]"#), ("é", "NaN")]
        );
    }

    #[test]
    fn values_from_elsewhere_are_unchanged() {
        let document = Document::new(b"NaN");
        assert!(document.parse(serde_json::from_slice::<Value>).is_ok());
        let elsewhere: &RawValue = serde_json::from_str("7").expect("JSON");
        assert_eq!(document.text(elsewhere), "7");
    }

    #[test]
    fn errors_are_the_parsers_and_point_into_the_text() {
        let error = |text: &str| {
            Document::new(text.as_bytes())
                .parse(serde_json::from_slice::<Value>)
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            error("[1,nan]"),
            Err("expected ident at line 1 column 5".to_owned())
        );
        assert_eq!(
            error("[-Infinity,\n NaN,,]"),
            Err("expected value at line 2 column 6".to_owned())
        );
        let half = [b"[NaN,\"".as_slice(), b"\xff\"]"].concat();
        assert!(
            Document::new(&half)
                .parse(serde_json::from_slice::<Value>)
                .is_err()
        );
    }
}

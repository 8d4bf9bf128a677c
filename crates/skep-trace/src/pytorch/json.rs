//! JSON in pieces, as PyTorch's profiler writes it.
//!
//! It writes what no JSON parser takes, in parts that do not matter here: paths with single backslashes and control
//! characters in texts, `inf` and `nan` for numbers (pytorch/pytorch#98432 and #130622, pytorch/kineto#105). So texts
//! may have anything but a quote without a backslash, and numbers are looked at only where they are used.

use std::io::Read;

use crate::{
    error::{TraceError, shown},
    input::{END, Input},
};

/// How much of a text or a number is kept. What matters is shorter.
const KEPT_BYTES: usize = 64;

/// Arrays and objects within each other. Those of a trace go some five deep.
const MAX_DEPTH: usize = 128;

/// Words that are values, `-` before them apart.
const WORDS: [&[u8]; 7] = [
    b"true",
    b"false",
    b"null",
    b"NaN",
    b"nan",
    b"Infinity",
    b"inf",
];

/// A piece of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JsonToken {
    ObjectStart,
    ObjectEnd,
    ArrayStart,
    ArrayEnd,
    /// The name of a member: [`JsonReader::text`].
    Key,
    /// A text: [`JsonReader::text`], with its escapes as they are.
    Text,
    /// A number: [`JsonReader::text`].
    Number,
    /// `null` and the like.
    Word,
}

/// What may come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum JsonState {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
    End,
}

/// What is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JsonNest {
    Array,
    Object,
}

/// Reads JSON piece by piece, in memory that does not grow with it.
#[derive(Default)]
pub(super) struct JsonReader {
    state: JsonState,
    nests: Vec<JsonNest>,
    text: Vec<u8>,
    is_cut: bool,
}

impl JsonReader {
    /// The last name, text or number; `None` if it is too long to matter.
    pub(super) fn text(&self) -> Option<&[u8]> {
        Some(&*self.text).filter(|_| !self.is_cut)
    }

    /// How many arrays and objects are open.
    pub(super) fn depth(&self) -> usize {
        self.nests.len()
    }

    /// The next piece; `None` behind the last one, where the input must end.
    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
    ) -> Result<Option<JsonToken>, TraceError> {
        let mut byte = skip_white(input)?;
        if self.state == JsonState::CommaOrEnd && byte == Some(b',') {
            input.consume(1);
            byte = skip_white(input)?;
            self.state = match self.nests.last() {
                Some(JsonNest::Object) => JsonState::Key,
                _ => JsonState::Value,
            };
        }
        let nest = self.nests.last().copied();
        match (self.state, byte) {
            (JsonState::End, None) => return Ok(None),
            (JsonState::Value | JsonState::ValueOrEnd, Some(b'{' | b'[')) => {
                return self.open(byte == Some(b'['), input).map(Some);
            }
            (JsonState::Value | JsonState::ValueOrEnd, Some(b'"')) => {
                self.quoted(input)?;
                self.after_value();
                return Ok(Some(JsonToken::Text));
            }
            (JsonState::Value | JsonState::ValueOrEnd, Some(byte)) if is_scalar(byte) => {
                return self.scalar(input).map(Some);
            }
            (JsonState::Key | JsonState::KeyOrEnd, Some(b'"')) => {
                self.quoted(input)?;
                match skip_white(input)? {
                    Some(b':') => input.consume(1),
                    got => return Err(wrong(input, "`:` after a member's name", got)),
                }
                self.state = JsonState::Value;
                return Ok(Some(JsonToken::Key));
            }
            (JsonState::ValueOrEnd | JsonState::CommaOrEnd, Some(b']'))
                if nest == Some(JsonNest::Array) =>
            {
                return Ok(Some(self.close(JsonToken::ArrayEnd, input)));
            }
            (JsonState::KeyOrEnd | JsonState::CommaOrEnd, Some(b'}'))
                if nest == Some(JsonNest::Object) =>
            {
                return Ok(Some(self.close(JsonToken::ObjectEnd, input)));
            }
            _ => {}
        }
        let expected = match (self.state, nest) {
            (JsonState::Value, _) => "a value",
            (JsonState::ValueOrEnd, _) => "a value or `]`",
            (JsonState::Key, _) => "a member's name in quotes",
            (JsonState::KeyOrEnd, _) => "a member's name in quotes or `}`",
            (JsonState::CommaOrEnd, Some(JsonNest::Array)) => "`,` or `]`",
            (JsonState::CommaOrEnd, _) => "`,` or `}`",
            (JsonState::End, _) => END,
        };
        Err(wrong(input, expected, byte))
    }

    /// The next piece, which has to be there.
    pub(super) fn piece<R: Read>(&mut self, input: &mut Input<R>) -> Result<JsonToken, TraceError> {
        let piece = self.next(input)?;
        piece.ok_or_else(|| wrong(input, "a value", None))
    }

    /// Passes over what is left of a value, of which this is the first piece.
    pub(super) fn skip<R: Read>(
        &mut self,
        first: JsonToken,
        input: &mut Input<R>,
    ) -> Result<(), TraceError> {
        if matches!(first, JsonToken::ArrayStart | JsonToken::ObjectStart) {
            let depth = self.depth() - 1;
            while self.depth() > depth {
                self.piece(input)?;
            }
        }
        Ok(())
    }

    fn open<R: Read>(
        &mut self,
        is_array: bool,
        input: &mut Input<R>,
    ) -> Result<JsonToken, TraceError> {
        if self.nests.len() == MAX_DEPTH {
            return Err(TraceError::TooMany {
                what: "arrays and objects within each other",
                limit: MAX_DEPTH as u64,
            });
        }
        input.consume(1);
        let (nest, state, token) = if is_array {
            (
                JsonNest::Array,
                JsonState::ValueOrEnd,
                JsonToken::ArrayStart,
            )
        } else {
            (
                JsonNest::Object,
                JsonState::KeyOrEnd,
                JsonToken::ObjectStart,
            )
        };
        self.nests.push(nest);
        self.state = state;
        Ok(token)
    }

    fn close<R: Read>(&mut self, token: JsonToken, input: &mut Input<R>) -> JsonToken {
        input.consume(1);
        self.nests.pop();
        self.after_value();
        token
    }

    fn after_value(&mut self) {
        self.state = if self.nests.is_empty() {
            JsonState::End
        } else {
            JsonState::CommaOrEnd
        };
    }

    fn clear(&mut self) {
        self.text.clear();
        self.is_cut = false;
    }

    fn keep(&mut self, part: &[u8]) {
        let kept = part.len().min(KEPT_BYTES - self.text.len());
        self.is_cut |= kept < part.len();
        self.text.extend_from_slice(&part[..kept]);
    }

    /// Reads a text with its quotes.
    fn quoted<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), TraceError> {
        self.clear();
        input.consume(1);
        loop {
            let bytes = input.bytes()?;
            if bytes.is_empty() {
                return Err(wrong(input, "a quote at the end of a text", None));
            }
            let special = bytes.iter().position(|byte| b"\"\\".contains(byte));
            let count = special.unwrap_or(bytes.len());
            self.keep(&bytes[..count]);
            let special = bytes.get(count).copied();
            input.consume(count);
            match special {
                None => {}
                Some(b'"') => {
                    input.consume(1);
                    return Ok(());
                }
                Some(backslash) => {
                    input.consume(1);
                    self.keep(&[backslash]);
                    // The quote of an escape ends nothing. At the end, the next round says so.
                    if let Some(escaped) = input.next()? {
                        self.keep(&[escaped]);
                    }
                }
            }
        }
    }

    /// Reads a number or a word.
    fn scalar<R: Read>(&mut self, input: &mut Input<R>) -> Result<JsonToken, TraceError> {
        self.clear();
        let at = input.at();
        loop {
            let bytes = input.bytes()?;
            let end = bytes.iter().position(|byte| !is_scalar(*byte));
            let count = end.unwrap_or(bytes.len());
            self.keep(&bytes[..count]);
            input.consume(count);
            if end.is_some() || count == 0 {
                break;
            }
        }
        self.after_value();
        let word = self.text.strip_prefix(b"-").unwrap_or(&self.text);
        if word.first().is_some_and(u8::is_ascii_digit) {
            Ok(JsonToken::Number)
        } else if WORDS.contains(&word) {
            Ok(JsonToken::Word)
        } else {
            Err(TraceError::Byte {
                byte: at,
                expected: "a value",
                got: format!("`{}`", shown(&self.text)),
            })
        }
    }
}

/// Whether a byte may be in a number or a word.
fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

/// The first byte that is no white space, which stays.
fn skip_white<R: Read>(input: &mut Input<R>) -> Result<Option<u8>, TraceError> {
    loop {
        let bytes = input.bytes()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let count = bytes
            .iter()
            .position(|byte| !b" \t\r\n".contains(byte))
            .unwrap_or(bytes.len());
        let found = bytes.get(count).copied();
        input.consume(count);
        if found.is_some() {
            return Ok(found);
        }
    }
}

/// An error at the next byte.
fn wrong<R: Read>(input: &Input<R>, expected: &'static str, got: Option<u8>) -> TraceError {
    TraceError::Byte {
        byte: input.at(),
        expected,
        got: match got {
            None => END.to_owned(),
            Some(byte) if byte.is_ascii_graphic() => format!("`{}`", char::from(byte)),
            Some(byte) => format!("byte {byte:#04x}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{JsonToken::*, *};

    fn tokens(text: &str) -> Result<Vec<(JsonToken, Option<String>)>, String> {
        let mut input = Input::open(text.as_bytes()).expect("plain");
        let mut json = JsonReader::default();
        let mut all = Vec::new();
        while let Some(token) = json.next(&mut input).map_err(|error| error.to_string())? {
            let text = json.text().filter(|_| matches!(token, Key | Text | Number));
            all.push((
                token,
                text.map(|text| String::from_utf8_lossy(text).into_owned()),
            ));
        }
        Ok(all)
    }

    #[test]
    fn pieces_of_json() {
        let long = "x".repeat(KEPT_BYTES + 1);
        let text = format!(
            "\u{20}{{\"a\" : [1,-2.5e+3 , true,null, -inf,NaN],\"\":{{}} ,\"b\": [], \"c\":\"{long}\"}}\n"
        );
        let of = |token, text: &str| (token, Some(text.to_owned()));
        let expected = [
            (ObjectStart, None),
            of(Key, "a"),
            (ArrayStart, None),
            of(Number, "1"),
            of(Number, "-2.5e+3"),
            (Word, None),
            (Word, None),
            (Word, None),
            (Word, None),
            (ArrayEnd, None),
            of(Key, ""),
            (ObjectStart, None),
            (ObjectEnd, None),
            of(Key, "b"),
            (ArrayStart, None),
            (ArrayEnd, None),
            of(Key, "c"),
            (Text, None),
            (ObjectEnd, None),
        ];
        assert_eq!(tokens(&text).expect("JSON"), expected);
        // As long as fits, and what PyTorch writes on Windows.
        let fits = "y".repeat(KEPT_BYTES);
        assert_eq!(tokens(&format!("\"{fits}\"")), Ok(vec![of(Text, &fits)]));
        assert_eq!(
            tokens("[\"torch\\cuda\\\"\u{1}\"]").expect("JSON")[1],
            of(Text, "torch\\cuda\\\"\u{1}")
        );
    }

    #[test]
    fn errors_say_where_they_are() {
        for (text, expected) in [
            ("", "byte 0: expected a value, got the end of the input"),
            (
                "[",
                "byte 1: expected a value or `]`, got the end of the input",
            ),
            (
                "[1",
                "byte 2: expected `,` or `]`, got the end of the input",
            ),
            ("[1,]", "byte 3: expected a value, got `]`"),
            ("[1}", "byte 2: expected `,` or `]`, got `}`"),
            ("[}", "byte 1: expected a value or `]`, got `}`"),
            (
                "{]",
                "byte 1: expected a member's name in quotes or `}`, got `]`",
            ),
            (
                "{\"a\" 1",
                "byte 5: expected `:` after a member's name, got `1`",
            ),
            ("{\"a\":1 ]", "byte 7: expected `,` or `}`, got `]`"),
            (
                "{\"a\":1,}",
                "byte 7: expected a member's name in quotes, got `}`",
            ),
            (
                "[\"a\\\"",
                "byte 5: expected a quote at the end of a text, got the end of the input",
            ),
            ("[truth]", "byte 1: expected a value, got `truth`"),
            ("[-]", "byte 1: expected a value, got `-`"),
            ("{} {", "byte 3: expected the end of the input, got `{`"),
            ("[\u{0}]", "byte 1: expected a value or `]`, got byte 0x00"),
        ] {
            assert_eq!(tokens(text), Err(expected.to_owned()), "{text}");
        }
        let deepest = [vec![b'['; MAX_DEPTH], vec![b']'; MAX_DEPTH]].concat();
        let deepest = String::from_utf8(deepest).expect("ASCII");
        assert!(tokens(&deepest).is_ok());
        assert_eq!(
            tokens(&format!("[{deepest}]")),
            Err(
                "more than 128 arrays and objects within each other, which is the limit".to_owned()
            )
        );
    }
}

//! JSON split into tokens.

use std::ops::Range;

/// Iterates over strings (quotes included), words (numbers and literals), and every other byte by itself. Ranges lie on
/// the boundaries of characters if the text is UTF-8; a string that does not end is the whole rest.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    json: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) const fn new(json: &'a [u8]) -> Self {
        Self { json, at: 0 }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Range<usize>;

    #[inline]
    fn next(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let rest = &self.json[start..];
        let length = match *rest.first()? {
            b'"' => string_length(rest),
            byte if is_punctuation(byte) => 1,
            _ => rest
                .iter()
                .position(|byte| is_punctuation(*byte))
                .unwrap_or(rest.len()),
        };
        self.at += length;
        Some(start..self.at)
    }
}

const fn is_punctuation(byte: u8) -> bool {
    matches!(
        byte,
        b',' | b'[' | b']' | b'{' | b'}' | b':' | b'"' | b' ' | b'\n' | b'\r' | b'\t'
    )
}

/// The length of the string that `rest` begins with, quotes included.
fn string_length(rest: &[u8]) -> usize {
    let mut escaped = false;
    for (index, byte) in rest.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_cover_the_text_without_gaps() {
        for (text, expected) in [
            ("", &[][..]),
            (
                r#"{"a,]\"":[-1.5e3, NaN]}"#,
                &[
                    "{",
                    r#""a,]\"""#,
                    ":",
                    "[",
                    "-1.5e3",
                    ",",
                    " ",
                    "NaN",
                    "]",
                    "}",
                ],
            ),
            (r#""\\"1"#, &[r#""\\""#, "1"]),
            ("\"é [", &["\"é ["]),
            ("é1\"\"", &["é1", "\"\""]),
        ] {
            let tokens: Vec<&str> = Tokens::new(text.as_bytes()).map(|r| &text[r]).collect();
            assert_eq!(tokens, expected);
        }
    }
}

//! Fields of a message in protobuf's text format, on one line: `{ a: 1 b { c: "x" } }`.

/// What a message is that ends too early or too late.
pub(super) const WHOLE: &str = "a whole message in braces, and nothing behind it";

/// Since 2025 protobuf writes such a word, and a random number of spaces, before the fields of a text that is for people:
/// `{ goo.gle/debugstr  a: 1 }`.
const DEBUG_WORD: &[u8] = b"goo.gle/";

/// Messages within messages. Those of the log go three deep.
const MAX_DEPTH: usize = 32;

/// A piece of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextField<'a> {
    /// A field with a number, a word or a text; the text without its quotes, its escapes as they are.
    Value(&'a [u8], &'a [u8]),
    /// A field that begins a message.
    Open(&'a [u8]),
    /// The end of that message.
    Close,
}

/// The fields of a message and of those in it; ends after an error, which says what was expected and what is there.
pub(super) struct TextFields<'a> {
    rest: &'a [u8],
    /// How many messages are open.
    depth: usize,
    has_begun: bool,
}

impl<'a> TextFields<'a> {
    /// The fields of `message`, which is in braces.
    pub(super) fn of(message: &'a [u8]) -> Self {
        Self {
            rest: message,
            depth: 0,
            has_begun: false,
        }
    }

    /// Passes over this byte, with white space before it.
    fn passes(&mut self, byte: u8) -> bool {
        let rest = self.rest.trim_ascii_start();
        let after = rest.strip_prefix(&[byte]);
        self.rest = after.unwrap_or(rest);
        after.is_some()
    }

    /// Takes the bytes before the first that is of no word.
    fn word(&mut self, is_of_word: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|byte| !is_of_word(*byte));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    /// The next piece; `None` behind the last brace.
    fn piece(&mut self) -> Result<Option<TextField<'a>>, &'static str> {
        if !self.has_begun {
            self.has_begun = true;
            self.depth = 1;
            if !self.passes(b'{') {
                return Err(WHOLE);
            }
            self.rest = self.rest.trim_ascii_start();
            if self.rest.starts_with(DEBUG_WORD) {
                self.word(|byte| !byte.is_ascii_whitespace());
            }
        }
        if self.passes(b'}') {
            self.depth -= 1;
            return match (self.depth, self.rest.trim_ascii()) {
                (0, []) => Ok(None),
                (0, _) => Err(WHOLE),
                _ => Ok(Some(TextField::Close)),
            };
        }
        if self.rest.is_empty() {
            return Err(WHOLE);
        }
        let name = self.word(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if name.is_empty() {
            return Err("a field's name or a brace");
        }
        let has_colon = self.passes(b':');
        if self.passes(b'{') {
            if self.depth == MAX_DEPTH {
                return Err("at most 32 messages within each other");
            }
            self.depth += 1;
            return Ok(Some(TextField::Open(name)));
        }
        if !has_colon {
            return Err("`:` or `{` after a field's name");
        }
        let value = if self.passes(b'"') {
            self.quoted()?
        } else {
            self.word(|byte| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte))
        };
        Ok(Some(TextField::Value(name, value)))
    }

    /// A text behind its first quote.
    fn quoted(&mut self) -> Result<&'a [u8], &'static str> {
        let mut end = 0;
        loop {
            match self.rest.get(end) {
                None => return Err("a text that ends with a quote"),
                Some(b'"') => break,
                // What is escaped cannot end the text.
                Some(b'\\') => end += 2,
                Some(_) => end += 1,
            }
        }
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }
}

impl<'a> Iterator for TextFields<'a> {
    type Item = Result<TextField<'a>, (&'static str, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_begun && self.depth == 0 {
            return None;
        }
        let before = self.rest;
        match self.piece() {
            Ok(field) => field.map(Ok),
            Err(expected) => {
                self.depth = 0;
                Some(Err((expected, before.trim_ascii())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{TextField::*, *};

    fn fields(text: &str) -> Result<Vec<TextField<'_>>, (&'static str, &[u8])> {
        TextFields::of(text.as_bytes()).collect()
    }

    #[test]
    fn fields_of_nested_messages() {
        assert_eq!(fields("{ }"), Ok(vec![]));
        assert_eq!(
            fields(r#"{a:-1 b{c : "x \" } \\" d { } } e: DT_INT32  f: "" g: { h: 1.5e+3 } }"#),
            Ok(vec![
                Value(b"a", b"-1"),
                Open(b"b"),
                Value(b"c", br#"x \" } \\"#),
                Open(b"d"),
                Close,
                Close,
                Value(b"e", b"DT_INT32"),
                Value(b"f", b""),
                Open(b"g"),
                Value(b"h", b"1.5e+3"),
                Close,
            ])
        );
    }

    #[test]
    fn a_word_for_people_may_come_first() {
        let plain = fields("{ a: 1 b { c: 2 } }");
        assert_eq!(fields("{ goo.gle/debugstr    a: 1 b { c: 2 } }"), plain);
        assert_eq!(fields("{ goo.gle/debugonly }"), Ok(vec![]));
        assert!(
            fields("{ a { goo.gle/debugstr b: 1 } }").is_err(),
            "only there"
        );
    }

    #[test]
    fn errors_say_where_they_are() {
        let deep = format!("{{ {}{}", "a { ".repeat(32), "} ".repeat(33));
        for (text, expected, got) in [
            ("", WHOLE, ""),
            ("a: 1 }", WHOLE, "a: 1 }"),
            ("{ a: 1", WHOLE, ""),
            ("{ a { b: 1 }", WHOLE, ""),
            ("{ } x", WHOLE, "{ } x"),
            ("{ a: 1 } }", WHOLE, "} }"),
            ("{ - }", "a field's name or a brace", "{ - }"),
            ("{ a: 1 b }", "`:` or `{` after a field's name", "b }"),
            ("{ a: 1 b 1 }", "`:` or `{` after a field's name", "b 1 }"),
            (
                r#"{ a: 1 b: "c }"#,
                "a text that ends with a quote",
                r#"b: "c }"#,
            ),
            (
                r#"{ a: 1 b: "c\"#,
                "a text that ends with a quote",
                r#"b: "c\"#,
            ),
            (
                &deep,
                "at most 32 messages within each other",
                &deep[2 + 31 * 4..deep.len() - 1],
            ),
        ] {
            let error = fields(text).expect_err(text);
            assert_eq!(error, (expected, got.as_bytes()), "{text}");
        }
    }
}

//! Tokens of protobuf text format, with their positions.

use crate::error::Position;

/// One token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name: of a field, an enum value, `true`, `inf`.
    Ident(&'a str),
    /// Digits and the characters attached to them, without sign, not yet checked.
    Number(&'a str),
    /// A string's bytes with escapes resolved.
    Text(Vec<u8>),
    /// Any other character.
    Punct(char),
    /// The end of the text.
    End,
}

impl Token<'_> {
    /// The token as an error message shows it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Ident(text) | Self::Number(text) => format!("`{}`", shorten(text)),
            Self::Text(bytes) => format!(
                "the string \"{}\"",
                shorten(&String::from_utf8_lossy(bytes))
            ),
            Self::Punct(c) => format!("`{c}`"),
            Self::End => "the end of the file".to_owned(),
        }
    }
}

/// At most 40 characters of a token: an error is one line.
fn shorten(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// A broken string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LexError {
    /// Byte offset.
    pub(super) offset: usize,
    pub(super) expected: &'static str,
    pub(super) got: String,
}

/// Reads tokens one at a time.
#[derive(Debug, Clone)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    offset: usize,
}

impl<'a> Lexer<'a> {
    /// A lexer at the start of `text`, after a byte-order mark if there is one.
    pub(super) fn new(text: &'a str) -> Self {
        let offset = if text.starts_with('\u{feff}') {
            '\u{feff}'.len_utf8()
        } else {
            0
        };
        Self { text, offset }
    }

    /// The next token and the byte offset where it starts.
    pub(super) fn next(&mut self) -> Result<(usize, Token<'a>), LexError> {
        self.skip_blank();
        let start = self.offset;
        let Some(first) = self.peek() else {
            return Ok((start, Token::End));
        };
        let token = match first {
            'a'..='z' | 'A'..='Z' | '_' => {
                Token::Ident(self.take_while(|c| c.is_ascii_alphanumeric() || c == '_'))
            }
            '0'..='9' => Token::Number(self.take_number()),
            '.' if self
                .rest()
                .as_bytes()
                .get(1)
                .is_some_and(u8::is_ascii_digit) =>
            {
                Token::Number(self.take_number())
            }
            '"' | '\'' => Token::Text(self.take_string(first)?),
            other => {
                self.offset += other.len_utf8();
                Token::Punct(other)
            }
        };
        Ok((start, token))
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.offset..).unwrap_or("")
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.offset += end;
        &rest[..end]
    }

    /// Skips white space (carriage returns included) and comments.
    fn skip_blank(&mut self) {
        loop {
            self.take_while(|c| c.is_ascii_whitespace() || c == '\u{b}');
            if self.peek() != Some('#') {
                return;
            }
            self.take_while(|c| c != '\n');
        }
    }

    /// Everything that could belong to a number. The reader of the field's value decides whether it is one.
    fn take_number(&mut self) -> &'a str {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let hex = bytes.len() > 1 && bytes[0] == b'0' && matches!(bytes[1], b'x' | b'X');
        let mut end = 0;
        while let Some(&byte) = bytes.get(end) {
            let exponent_sign = matches!(byte, b'+' | b'-')
                && !hex
                && matches!(bytes[..end].last(), Some(b'e' | b'E'));
            if !(byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || exponent_sign) {
                break;
            }
            end += 1;
        }
        self.offset += end;
        &rest[..end]
    }

    fn take_string(&mut self, quote: char) -> Result<Vec<u8>, LexError> {
        let start = self.offset;
        self.offset += quote.len_utf8();
        let mut bytes = Vec::new();
        loop {
            let plain = self.take_while(|c| c != quote && c != '\\' && c != '\n');
            bytes.extend_from_slice(plain.as_bytes());
            match self.peek() {
                Some('\\') => self.take_escape(&mut bytes)?,
                Some(c) if c == quote => {
                    self.offset += quote.len_utf8();
                    return Ok(bytes);
                }
                Some(_) => {
                    return Err(self.broken(start, "a closing quote", "the end of the line"));
                }
                None => return Err(self.broken(start, "a closing quote", "the end of the file")),
            }
        }
    }

    fn take_escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), LexError> {
        const EXPECTED: &str = "an escape sequence such as \\n, \\\", \\x41, \\101 or \\u00e9";
        let start = self.offset;
        self.offset += 1;
        let Some(kind) = self.peek() else {
            return Err(self.broken(start, EXPECTED, "the end of the file"));
        };
        if kind.is_digit(8) {
            let value = self
                .take_digits(8, 1..=3)
                .and_then(|v| u8::try_from(v).ok());
            bytes.push(value.ok_or_else(|| {
                self.broken(start, "an octal escape up to \\377", "a larger one")
            })?);
            return Ok(());
        }
        self.offset += kind.len_utf8();
        let simple = match kind {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '?' | '\\' | '\'' | '"' => u8::try_from(kind).unwrap_or(b'?'),
            'x' | 'X' => {
                let value = self
                    .take_digits(16, 1..=2)
                    .and_then(|v| u8::try_from(v).ok());
                value.ok_or_else(|| {
                    self.broken(start, EXPECTED, "`\\x` without hexadecimal digits")
                })?
            }
            'u' | 'U' => {
                let code = self.take_code_point(kind);
                let c = code.ok_or_else(|| {
                    self.broken(start, "a Unicode code point", "an invalid escape")
                })?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            other => {
                return Err(self.broken(start, EXPECTED, &format!("`\\{}`", other.escape_debug())));
            }
        };
        bytes.push(simple);
        Ok(())
    }

    /// The character of a `\u` or `\U` escape whose letter is already read. Two surrogates make one character.
    fn take_code_point(&mut self, kind: char) -> Option<char> {
        let digits = if kind == 'u' { 4 } else { 8 };
        let first = self.take_digits(16, digits..=digits)?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first);
        }
        if !self.rest().starts_with("\\u") {
            return None;
        }
        self.offset += 2;
        let second = self.take_digits(16, 4..=4)?;
        if !(0xdc00..0xe000).contains(&second) {
            return None;
        }
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
    }

    fn take_digits(&mut self, radix: u32, count: std::ops::RangeInclusive<usize>) -> Option<u32> {
        let digits = self
            .rest()
            .chars()
            .take(*count.end())
            .take_while(|c| c.is_digit(radix))
            .count();
        let text = self.rest().get(..digits)?;
        if digits < *count.start() {
            return None;
        }
        self.offset += digits;
        u32::from_str_radix(text, radix).ok()
    }

    fn broken(&self, offset: usize, expected: &'static str, got: &str) -> LexError {
        debug_assert!(offset <= self.text.len());
        LexError {
            offset,
            expected,
            got: got.to_owned(),
        }
    }
}

/// The line and column of a byte offset. Only errors need them, so the lexer does not count.
pub(super) fn position(text: &str, offset: usize, file: &str) -> Position {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[line_start..]
        .chars()
        .filter(|&c| c != '\u{feff}')
        .count()
        + 1;
    let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
    // The largest text that is parsed has fewer characters than a u32 can count.
    Position {
        file: file.into(),
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: u32::try_from(column).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::{Lexer, Token, position};

    fn tokens(text: &str) -> Vec<String> {
        let mut lexer = Lexer::new(text);
        let mut all = Vec::new();
        loop {
            match lexer.next() {
                Ok((_, Token::End)) => return all,
                Ok((_, token)) => all.push(token.describe()),
                Err(error) => {
                    all.push(format!("error at {}: {}", error.offset, error.got));
                    return all;
                }
            }
        }
    }

    #[test]
    fn tokens_of_every_kind() {
        assert_eq!(
            tokens("\u{feff}a_1:-0x1F # note\r\n<1.5e-3f>"),
            ["`a_1`", "`:`", "`-`", "`0x1F`", "`<`", "`1.5e-3f`", "`>`"]
        );
        // A sign belongs to a decimal exponent alone.
        assert_eq!(tokens("1E+2 0x1E+2"), ["`1E+2`", "`0x1E`", "`+`", "`2`"]);
        assert_eq!(
            tokens(".5 .a 1-2"),
            ["`.5`", "`.`", "`a`", "`1`", "`-`", "`2`"]
        );
    }

    #[test]
    fn strings_resolve_every_escape() {
        let cases: [(&str, &[u8]); 8] = [
            (r#""a\tb\\\"\'\?""#, b"a\tb\\\"'?"),
            (r"'\a\b\f\n\r\v'", &[7, 8, 12, 10, 13, 11]),
            (r"'\101\0\1018'", b"A\0A8"),
            (r"'\x41\xfg'", b"A\x0fg"),
            (r"'\u00e9'", "é".as_bytes()),
            (r"'\U0001F600'", "😀".as_bytes()),
            (r"'\ud83d\ude00'", "😀".as_bytes()),
            ("'it\"s'", b"it\"s"),
        ];
        for (text, expected) in cases {
            assert_eq!(
                Lexer::new(text).next(),
                Ok((0, Token::Text(expected.to_vec()))),
                "{text}"
            );
        }
        for bad in [
            "'abc",
            "\"a\nb\"",
            r"'\q'",
            r"'\x'",
            r"'\u12'",
            r"'\ud83d'",
            r"'\777'",
            "'\\",
        ] {
            assert!(Lexer::new(bad).next().is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(
            position("ab\r\nçd x", "ab\r\nçd ".len(), "f").to_string(),
            "f:2:4"
        );
        assert_eq!(position("", 0, "f").to_string(), "f:1:1");
        assert_eq!(position("\u{feff}x", 3, "f").to_string(), "f:1:1");
    }
}

//! Where results come from: the version and the command, which every output of `skep plan` and `skep simulate` carries.

use std::env;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The command as a shell takes it again, without the path of the program.
pub(crate) fn command() -> String {
    let arguments = env::args_os().skip(1);
    let words = arguments.map(|argument| quoted(&argument.to_string_lossy()));
    std::iter::once("skep".to_owned())
        .chain(words)
        .collect::<Vec<String>>()
        .join(" ")
}

/// Both in a line.
pub(crate) fn line(command: &str) -> String {
    format!("skep {VERSION}: {command}")
}

/// A word for a shell; on one line, whatever is in it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    if word.chars().any(char::is_control) {
        let escaped = word.chars().map(|c| match c {
            '\\' | '\'' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        });
        return format!("$'{}'", escaped.collect::<String>());
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        for (word, expected) in [
            ("--load", "--load"),
            (
                "triton:preferred=4+8,delay=5",
                "triton:preferred=4+8,delay=5",
            ),
            ("", "''"),
            ("my file", "'my file'"),
            ("it's", "'it'\\''s'"),
            ("a\nb's", "$'a\\u000ab\\'s'"),
            ("ä", "'ä'"),
        ] {
            assert_eq!(quoted(word), expected);
        }
    }
}

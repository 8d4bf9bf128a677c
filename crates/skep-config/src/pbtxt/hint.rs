//! What to write instead of a text that the parser refuses.

use prost_reflect::{Kind, MessageDescriptor};

use super::lexer::{Lexer, Token};
use crate::{
    hints::{
        near_miss,
        suggest::{did_you_mean, nearest},
    },
    parameters::table,
};

/// A hint is one line: it shows a longer value as three dots.
const SHOWN_BYTES: usize = 64;

/// The hint for an unknown field. `text` begins with it; `fields` are the fields of its message.
///
/// Skep's own settings are keys of `parameters`, but users also write them as fields.
pub(super) fn unknown_field<'a>(
    name: &str,
    text: &str,
    fields: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let dotted = dotted(text);
    if let Some(spec) = table::parameter(dotted) {
        let form = parameter(spec.key, value_after(dotted, text));
        return Some(format!(
            "`{dotted}` is a parameter of the model, not a field: write `{form}`"
        ));
    }
    did_you_mean(nearest(name, fields)).or_else(|| {
        let key = near_miss::meant(dotted)?;
        let value = value_after(dotted, text).filter(|_| !near_miss::changes_unit(dotted, key));
        let form = parameter(key, value);
        Some(format!(
            "did you mean the model's parameter `{key}`? write `{form}`"
        ))
    })
}

/// The hint for a scalar where a message with one field is expected: how to write it as that field.
pub(super) fn in_message(
    field: &str,
    token: &Token<'_>,
    message: &MessageDescriptor,
) -> Option<String> {
    let value = scalar(token)?;
    let mut fields = message.fields();
    let only = fields.next()?;
    if fields.next().is_some() {
        return None;
    }
    let value = match only.kind() {
        Kind::Message(_) => return None,
        Kind::String => format!("\"{value}\""),
        _ => value,
    };
    Some(format!("write `{field} {{ {}: {value} }}`", only.name()))
}

fn parameter(key: &str, value: Option<String>) -> String {
    let value = value.unwrap_or_else(|| "...".to_owned());
    format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}")
}

/// The name that `text` begins with. Unlike fields, keys of parameters may contain dots and dashes.
fn dotted(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')));
    &text[..end.unwrap_or(text.len())]
}

/// The value that follows a name, if it is a scalar.
fn value_after(name: &str, text: &str) -> Option<String> {
    let mut lexer = Lexer::new(text.get(name.len()..)?);
    if next_token(&mut lexer)? != Token::Punct(':') {
        return None;
    }
    match next_token(&mut lexer)? {
        Token::Punct('-') => Some(format!("-{}", scalar(&next_token(&mut lexer)?)?)),
        token => scalar(&token),
    }
}

fn next_token<'a>(lexer: &mut Lexer<'a>) -> Option<Token<'a>> {
    lexer.next().ok().map(|(_, token)| token)
}

/// A scalar as it would be written between the quotes of a string.
fn scalar(token: &Token<'_>) -> Option<String> {
    let text = match token {
        Token::Ident(text) | Token::Number(text) => (*text).to_owned(),
        Token::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            text.replace('\\', "\\\\").replace('"', "\\\"")
        }
        Token::Punct(_) | Token::End => return None,
    };
    let is_short = text.len() <= SHOWN_BYTES && !text.contains(char::is_control);
    Some(if is_short { text } else { "...".to_owned() })
}

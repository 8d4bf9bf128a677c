//! What to write instead of what the parser refuses.

use prost_reflect::{Kind, MessageDescriptor};

use super::lexer::{Lexer, Token};
use crate::{
    hints::{
        near_miss,
        suggest::{did_you_mean, nearest},
    },
    parameters::table,
};

/// A hint is one line: what is longer stands in it as three dots.
const SHOWN_BYTES: usize = 64;

/// The hint for a field that its message does not have: `text` begins with it, `fields` are those that there are.
///
/// Skep's own settings are keys of `parameters`, and users write them as fields.
pub(super) fn unknown_field<'a>(
    name: &str,
    text: &str,
    fields: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let dotted = dotted(text);
    if let Some(spec) = table::parameter(dotted) {
        let form = parameter(spec.key, value_behind(dotted, text));
        return Some(format!(
            "`{dotted}` is a parameter of the model, not a field: write `{form}`"
        ));
    }
    did_you_mean(nearest(name, fields)).or_else(|| {
        let key = near_miss::meant(dotted)?;
        let value = value_behind(dotted, text).filter(|_| !near_miss::changes_unit(dotted, key));
        let form = parameter(key, value);
        Some(format!(
            "did you mean the model's parameter `{key}`? write `{form}`"
        ))
    })
}

/// The hint for a value that stands where a message is expected: how its only field takes it, as in a parameter's value.
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

/// The name that `text` begins with; keys of parameters may have dots in them, names of fields not.
fn dotted(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')));
    &text[..end.unwrap_or(text.len())]
}

/// The value that was written for a name, if it is a scalar.
fn value_behind(name: &str, text: &str) -> Option<String> {
    let mut lexer = Lexer::new(text.get(name.len()..)?);
    let mut next = || lexer.next().ok().map(|(_, token)| token);
    if next()? != Token::Punct(':') {
        return None;
    }
    match next()? {
        Token::Punct('-') => Some(format!("-{}", scalar(&next()?)?)),
        token => scalar(&token),
    }
}

/// A scalar as it stands between the quotes of a string.
fn scalar(token: &Token<'_>) -> Option<String> {
    let text = match token {
        Token::Ident(text) | Token::Number(text) => (*text).to_owned(),
        Token::Text(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            text.replace('\\', "\\\\").replace('"', "\\\"")
        }
        Token::Punct(_) | Token::End => return None,
    };
    let is_line = text.len() <= SHOWN_BYTES && !text.contains(char::is_control);
    Some(if is_line { text } else { "...".to_owned() })
}

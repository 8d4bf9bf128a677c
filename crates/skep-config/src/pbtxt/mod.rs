//! `config.pbtxt`: from protobuf text format to the wire's model configuration.
//!
//! prost-reflect's own parser refuses lists without a colon (`input [ {..} ]`, the usual spelling), a byte-order mark
//! and `TRUE`, and gives no positions. The parser here therefore works on its descriptors only.

mod hint;
mod lexer;
mod parser;
mod scalar;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use skep_proto::inference;

use crate::error::{ConfigError, Position};

/// The largest text that is read. Real configurations have a few kilobytes; the limit bounds the cost of a hostile one.
const MAX_CONFIG_BYTES: usize = 16 << 20;

/// Reads a model configuration in protobuf text format. Errors call the text `file`.
///
/// # Errors
/// [`ConfigError::Syntax`], [`ConfigError::UnknownField`] or [`ConfigError::Repeated`], with file, line and column.
pub fn parse_pbtxt(text: &[u8], file: &str) -> Result<inference::ModelConfig, ConfigError> {
    read(text, file).map(|(config, _)| config)
}

/// The positions of a file's fields, for errors about a text that can be parsed.
#[derive(Debug)]
pub struct FieldPositions<'a> {
    text: &'a str,
    file: &'a str,
    offsets: BTreeMap<String, usize>,
}

impl<'a> FieldPositions<'a> {
    /// Reads a text. If it cannot be parsed, no field has a position.
    #[must_use]
    pub fn read(text: &'a [u8], file: &'a str) -> Self {
        Self {
            text: std::str::from_utf8(text).unwrap_or_default(),
            file,
            offsets: read(text, file).map_or_else(|_| BTreeMap::new(), |(_, offsets)| offsets),
        }
    }

    /// The position of a field by its path, such as `input[1].dims`. An absent field has the position of the nearest
    /// field around it.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Position> {
        let mut path = path;
        loop {
            if let Some(&offset) = self.offsets.get(path) {
                return Some(lexer::position(self.text, offset, self.file));
            }
            path = path.rsplit_once('.')?.0;
        }
    }
}

fn read(
    text: &[u8],
    file: &str,
) -> Result<(inference::ModelConfig, BTreeMap<String, usize>), ConfigError> {
    if text.len() > MAX_CONFIG_BYTES {
        return Err(whole_file(
            file,
            format!("at most {MAX_CONFIG_BYTES} bytes"),
            format!("{} bytes", text.len()),
        ));
    }
    let text = std::str::from_utf8(text).map_err(|error| {
        let valid = String::from_utf8_lossy(&text[..error.valid_up_to()]);
        ConfigError::Syntax {
            at: lexer::position(&valid, valid.len(), file),
            field: String::new(),
            expected: "text in UTF-8".to_owned(),
            got: format!(
                "the byte 0x{:02x}",
                text.get(error.valid_up_to()).copied().unwrap_or_default()
            ),
            hint: None,
        }
    })?;
    let descriptor = skep_proto::descriptors()
        .get_message_by_name("inference.ModelConfig")
        .ok_or_else(|| {
            whole_file(
                file,
                "a schema with `ModelConfig`".to_owned(),
                "none".to_owned(),
            )
        })?;
    let (message, offsets) = parser::Parser::new(text, file)?.parse(&descriptor)?;
    // Descriptors and generated types come from the same files, so one decodes what the other encodes.
    message
        .transcode_to()
        .map(|config| (config, offsets))
        .map_err(|error| whole_file(file, "a model configuration".to_owned(), error.to_string()))
}

fn whole_file(file: &str, expected: String, got: String) -> ConfigError {
    ConfigError::Syntax {
        at: lexer::position("", 0, file),
        field: String::new(),
        expected,
        got,
        hint: None,
    }
}

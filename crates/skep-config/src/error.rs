//! Why a configuration is refused.

use std::fmt;

/// A position in a text file. Lines and columns start at 1; columns count characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// The file, as the caller named it.
    pub file: Box<str>,
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// Why a configuration, or a flag about one, is refused.
///
/// Texts are Triton's where its users search for them: these name the tensor or group in single quotes. A hint is a
/// separate line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is not the expected message in protobuf text format.
    #[error("{at}: {}expected {expected}, got {got}{}", in_field(.field), hint_line(.hint.as_ref()))]
    Syntax {
        /// Where.
        at: Position,
        /// The path of the field whose value is read, such as `input[1].dims`; empty outside any field.
        field: String,
        /// What the parser expected.
        expected: String,
        /// What the text has instead.
        got: String,
        /// What the user probably meant.
        hint: Option<String>,
    },
    /// A field that its message does not have.
    #[error("{at}: unknown field `{field}` in `{message}`{}", hint_line(.hint.as_ref()))]
    UnknownField {
        /// Where.
        at: Position,
        /// The field as written.
        field: String,
        /// The message it was written in.
        message: String,
        /// What the user probably meant.
        hint: Option<String>,
    },
    /// A field set twice, or together with another member of its `oneof`.
    #[error("{at}: {reason}")]
    Repeated {
        /// Where the second setting is.
        at: Position,
        /// The path of the field.
        field: String,
        /// Which rule it breaks.
        reason: String,
    },
    /// JSON that is not a model configuration.
    #[error("{source_name}: {}{reason}", in_field(.field))]
    Json {
        /// The name that the caller gave the text.
        source_name: String,
        /// The path of the wrong member; empty if the whole text is wrong.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that the field, or the model as a whole, does not allow.
    #[error("{reason}{}", hint_line(.hint.as_ref()))]
    Invalid {
        /// The model.
        model: String,
        /// The path of the field.
        field: String,
        /// The rule, and what broke it.
        reason: String,
        /// What to write instead.
        hint: Option<String>,
    },
    /// A valid setting that this version of Skep cannot honour; it is refused rather than ignored.
    #[error("`{field}` of model `{model}` is not supported yet{}", hint_line(.hint.as_ref()))]
    Unsupported {
        /// The model.
        model: String,
        /// The path of the field.
        field: String,
        /// What to do instead.
        hint: Option<String>,
    },
    /// The configuration and the model's own file disagree.
    #[error("{reason}{}", hint_line(.hint.as_ref()))]
    Signature {
        /// The model.
        model: String,
        /// The tensor; empty if they disagree about the whole list.
        tensor: String,
        /// What each of them says.
        reason: String,
        /// What to write instead.
        hint: Option<String>,
    },
    /// A value in the `parameters` map that its key does not allow.
    #[error("parameter `{key}` of model `{model}` is `{got}`, expected {expected}")]
    Parameter {
        /// The model.
        model: String,
        /// The key.
        key: String,
        /// What the key takes.
        expected: String,
        /// The value.
        got: String,
    },
    /// A `--backend-config` argument that cannot be read or honoured.
    #[error("`--backend-config={argument}`: {reason}{}", hint_line(.hint.as_ref()))]
    BackendFlag {
        /// The argument.
        argument: String,
        /// What is wrong with it.
        reason: String,
        /// What the user probably meant.
        hint: Option<String>,
    },
}

/// The kind of a [`ConfigError`], for callers that map errors to codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConfigErrorKind {
    /// The text cannot be parsed: syntax, unknown or repeated fields.
    Syntax,
    /// The text can be parsed, but a value is wrong.
    Invalid,
    /// A valid setting that is not supported yet.
    Unsupported,
    /// The configuration contradicts the model's file.
    Mismatch,
}

impl ConfigError {
    /// The kind of error.
    #[must_use]
    pub const fn kind(&self) -> ConfigErrorKind {
        match self {
            Self::Syntax { .. }
            | Self::UnknownField { .. }
            | Self::Repeated { .. }
            | Self::Json { .. } => ConfigErrorKind::Syntax,
            Self::Invalid { .. } | Self::Parameter { .. } | Self::BackendFlag { .. } => {
                ConfigErrorKind::Invalid
            }
            Self::Unsupported { .. } => ConfigErrorKind::Unsupported,
            Self::Signature { .. } => ConfigErrorKind::Mismatch,
        }
    }

    /// The model that the error is about, if it is known.
    #[must_use]
    pub fn model(&self) -> Option<&str> {
        match self {
            Self::Invalid { model, .. }
            | Self::Unsupported { model, .. }
            | Self::Signature { model, .. }
            | Self::Parameter { model, .. } => Some(model),
            _ => None,
        }
    }

    /// Where in the text the error is; `None` if the text could be parsed.
    #[must_use]
    pub const fn position(&self) -> Option<&Position> {
        match self {
            Self::Syntax { at, .. } | Self::UnknownField { at, .. } | Self::Repeated { at, .. } => {
                Some(at)
            }
            _ => None,
        }
    }

    /// The path of the field that the error is about, such as `input[1].dims`. If the configuration contradicts the
    /// model's file, the tensor's name. Empty if no single field is wrong.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Syntax { field, .. }
            | Self::UnknownField { field, .. }
            | Self::Repeated { field, .. }
            | Self::Json { field, .. }
            | Self::Invalid { field, .. }
            | Self::Unsupported { field, .. } => field,
            Self::Signature { tensor, .. } => tensor,
            Self::Parameter { .. } => "parameters",
            Self::BackendFlag { .. } => "",
        }
    }

    /// A [`ConfigError::Invalid`] without a hint.
    pub(crate) fn invalid(
        model: &str,
        field: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Invalid {
            model: model.to_owned(),
            field: field.into(),
            reason: reason.into(),
            hint: None,
        }
    }

    /// A [`ConfigError::Unsupported`] without a hint.
    pub(crate) fn unsupported(model: &str, field: impl Into<String>) -> Self {
        Self::Unsupported {
            model: model.to_owned(),
            field: field.into(),
            hint: None,
        }
    }
}

fn in_field(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!("field `{field}`: ")
    }
}

fn hint_line(hint: Option<&String>) -> String {
    hint.map_or_else(String::new, |hint| format!("\n{hint}"))
}

#[cfg(test)]
mod tests {
    use crate::parse_pbtxt;

    #[test]
    fn errors_about_the_text_have_a_position() {
        for (text, expected) in [
            ("name: 'm'\n  backend: ", Some((2, 12))),
            ("name: 'm'\n  bakcend: 'mock'", Some((2, 3))),
            ("name: 'm'\nname: 'm'", Some((2, 1))),
        ] {
            let error = parse_pbtxt(text.as_bytes(), "c").expect_err(text);
            let position = error.position().map(|at| (at.line, at.column));
            assert_eq!(position, expected, "{text}");
        }
        assert_eq!(
            super::ConfigError::invalid("m", "input", "is wrong").position(),
            None
        );
    }
}

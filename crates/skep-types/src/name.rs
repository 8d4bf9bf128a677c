//! Names and versions of models.

use std::{borrow::Borrow, fmt, num::NonZeroU64, sync::Arc};

/// The name of a model: its directory's name in the repository.
///
/// It is not empty, not `.` or `..`, and contains no path separator and no control character, so that it can always be
/// joined to a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

/// A text that cannot name a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid model name `{0}`, expected a directory name without path separators")]
pub struct InvalidModelName(pub String);

impl ModelName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`InvalidModelName`] if the name is empty, `.` or `..`, or contains `/`, `\` or a control character.
    pub fn new(name: &str) -> Result<Self, InvalidModelName> {
        let bad = name.is_empty()
            || name == "."
            || name == ".."
            || name
                .chars()
                .any(|c| c == '/' || c == '\\' || c.is_control());
        if bad {
            Err(InvalidModelName(name.to_owned()))
        } else {
            Ok(Self(name.into()))
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The version of a model: a positive integer, a string only on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelVersion(NonZeroU64);

/// A text or number that is not a model version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid model version `{0}`, expected a positive integer without leading zeros")]
pub struct InvalidModelVersion(pub String);

impl ModelVersion {
    /// Version 1.
    pub const ONE: Self = Self(NonZeroU64::MIN);

    /// A version from a positive number that fits a signed 64-bit integer, as in a configuration.
    ///
    /// # Errors
    /// [`InvalidModelVersion`] for zero and for numbers above `i64::MAX`.
    pub fn new(version: u64) -> Result<Self, InvalidModelVersion> {
        NonZeroU64::new(version)
            .filter(|v| i64::try_from(v.get()).is_ok())
            .map(Self)
            .ok_or_else(|| InvalidModelVersion(version.to_string()))
    }

    /// Reads a version directory's name, or a version on the wire.
    ///
    /// # Errors
    /// [`InvalidModelVersion`] unless the text is a positive integer in decimal digits without leading zeros.
    pub fn parse(text: &str) -> Result<Self, InvalidModelVersion> {
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        let number = if canonical {
            text.parse::<u64>().ok()
        } else {
            None
        };
        number
            .and_then(|n| Self::new(n).ok())
            .ok_or_else(|| InvalidModelVersion(text.to_owned()))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_repository_are_refused() {
        for bad in ["", ".", "..", "a/b", "a\\b", "../x", "a\0b", "a\nb"] {
            assert!(ModelName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["digits", "a.b", "..a", "modèle 1"] {
            assert!(ModelName::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn versions_are_positive_integers_without_leading_zero() {
        for bad in [
            "",
            "0",
            "01",
            "-1",
            "+1",
            "1.0",
            "abc",
            " 1",
            "9223372036854775808",
        ] {
            assert!(ModelVersion::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            ModelVersion::parse("9223372036854775807").map(ModelVersion::get),
            Ok(i64::MAX.unsigned_abs())
        );
    }
}

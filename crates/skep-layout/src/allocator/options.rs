//! Options of allocators: parsed by their names, each with its default and what it does.

use std::fmt;

/// An option, for help texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionSpec {
    /// Its name in a specification.
    pub name: &'static str,
    /// Its value when it is not given.
    pub default: String,
    /// What it does.
    pub text: &'static str,
}

/// A type of values of options.
pub(super) trait OptionValue: Sized + fmt::Debug {
    /// What is expected, as in "expected ...".
    const EXPECTED: &'static str;

    fn parse(text: &str) -> Option<Self>;

    fn show(&self) -> String;
}

impl OptionValue for bool {
    const EXPECTED: &'static str = "`true` or `false`";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl OptionValue for u32 {
    const EXPECTED: &'static str = "a whole number";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A share, from 0 to 1.
impl OptionValue for f64 {
    const EXPECTED: &'static str = "a number from 0 to 1";

    fn parse(text: &str) -> Option<Self> {
        let share: Self = text.parse().ok()?;
        (0.0..=1.0).contains(&share).then_some(share)
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// A number of bytes.
impl OptionValue for u64 {
    const EXPECTED: &'static str = "a number of bytes such as `65536`, `512KiB` or `20MiB`";

    fn parse(text: &str) -> Option<Self> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
        let unit = units
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
        let (number, shift) = unit.unwrap_or((text, 0));
        let bytes: Self = number.trim().parse().ok()?;
        bytes
            .checked_mul(1 << shift)
            .filter(|bytes| *bytes < 1 << 62)
    }

    fn show(&self) -> String {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if *self > 0 && self.is_multiple_of(1 << shift) {
                return format!("{}{unit}", self >> shift);
            }
        }
        self.to_string()
    }
}

/// Bytes, or `none`.
impl OptionValue for Option<u64> {
    const EXPECTED: &'static str = "`none`, or a number of bytes such as `512KiB` or `20MiB`";

    fn parse(text: &str) -> Option<Self> {
        if text == "none" {
            return Some(None);
        }
        u64::parse(text).map(Some)
    }

    fn show(&self) -> String {
        self.map_or_else(|| "none".to_owned(), |bytes| bytes.show())
    }
}

/// Why an option cannot be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OptionError {
    Unknown,
    Value { expected: &'static str },
}

/// Options that can be listed and set by name.
pub(super) trait Options: Default {
    fn specs() -> Vec<OptionSpec>;

    fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError>;
}

/// Declares a struct of options, with the default and the description of each.
macro_rules! options {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $text:literal])+ $field:ident: $kind:ty = $default:expr;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub(super) struct $name {
            $($(#[doc = $text])+ pub(super) $field: $kind,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl crate::allocator::options::Options for $name {
            fn specs() -> Vec<crate::allocator::options::OptionSpec> {
                let default = Self::default();
                vec![$(crate::allocator::options::OptionSpec {
                    name: stringify!($field),
                    default: crate::allocator::options::OptionValue::show(&default.$field),
                    text: concat!($($text),+).trim_ascii(),
                },)*]
            }

            fn set(
                &mut self,
                name: &str,
                value: &str,
            ) -> Result<(), crate::allocator::options::OptionError> {
                use crate::allocator::options::{OptionError, OptionValue};
                match name {
                    $(stringify!($field) => {
                        self.$field = <$kind as OptionValue>::parse(value).ok_or(
                            OptionError::Value { expected: <$kind as OptionValue>::EXPECTED },
                        )?;
                        Ok(())
                    })*
                    _ => Err(OptionError::Unknown),
                }
            }
        }
    };
}

/// Declares an enumeration whose values are words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident: $expected:literal { $($(#[doc = $text:literal])+ $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum $name {
            $($(#[doc = $text])+ $variant,)*
        }

        impl crate::allocator::options::OptionValue for $name {
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)*
                    _ => None,
                }
            }

            fn show(&self) -> String {
                match self {
                    $(Self::$variant => $word.to_owned(),)*
                }
            }
        }
    };
}

pub(super) use {options, words};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_shown() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("512KiB", 512 << 10),
            ("20MiB", 20 << 20),
            ("3GiB", 3 << 30),
        ] {
            assert_eq!(u64::parse(text), Some(bytes));
            assert_eq!(bytes.show(), text);
        }
        for wrong in [
            "",
            "-1",
            "1.5MiB",
            "MiB",
            "9999999999GiB",
            "18446744073709551615",
        ] {
            assert_eq!(u64::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Option::<u64>::parse("none"), Some(None));
        assert_eq!(Option::<u64>::parse("1KiB"), Some(Some(1024)));
        assert_eq!(None::<u64>.show(), "none");
        assert_eq!(
            (f64::parse("0.8"), f64::parse("1.1"), f64::parse("NaN")),
            (Some(0.8), None, None)
        );
    }
}

//! The forms that values in the `parameters` map take.

use std::time::Duration;

use skep_types::Percentile;

/// What a key's value must look like. Values are always strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterType {
    /// `1`, `0`, `true` or `false`.
    Bool,
    /// A decimal integer within bounds.
    Integer {
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A number of milliseconds above 0, with or without a fraction.
    Milliseconds,
    /// A percentile of latency, with or without a fraction.
    Percentile,
    /// A number of bytes above 0, plain or in `KiB`, `MiB`, `GiB`.
    Bytes,
    /// `device:id` pairs, separated by semicolons.
    Devices,
    /// 1 to 64 letters, digits, `.`, `_` and `-`.
    Name,
    /// Any text.
    Text,
}

/// The `max` of an integer without an upper limit.
pub(crate) const ANY: u64 = u64::MAX;

/// The longest latency objective, an hour in milliseconds: a longer one is a mistake in units.
pub(crate) const MAX_LATENCY_MS: f64 = 3_600_000.0;

impl ParameterType {
    /// Whether a value has this form.
    pub(crate) fn accepts(self, value: &str) -> bool {
        match self {
            Self::Bool => boolean(value).is_some(),
            Self::Integer { min, max } => value
                .trim()
                .parse::<u64>()
                .is_ok_and(|n| (min..=max).contains(&n)),
            Self::OneOf(words) => words.contains(&value.trim()),
            Self::Milliseconds => milliseconds(value).is_some(),
            Self::Percentile => percentile(value).is_some(),
            Self::Bytes => bytes(value).is_some(),
            Self::Devices => value.split(';').all(|device| {
                let device = device.trim();
                let id = device
                    .strip_prefix("cpu:")
                    .or_else(|| device.strip_prefix("gpu:"));
                id.is_some_and(|id| id.parse::<u32>().is_ok())
            }),
            Self::Name => is_name(value.trim()),
            Self::Text => true,
        }
    }

    /// What it accepts, for errors and the documentation.
    pub(crate) fn describe(self) -> String {
        match self {
            Self::Bool => "`1`, `0`, `true` or `false`".to_owned(),
            Self::Integer { min, max: ANY } => format!("an integer of at least {min}"),
            Self::Integer { min, max } => format!("an integer from {min} to {max}"),
            Self::OneOf(words) => format!("one of `{}`", words.join("`, `")),
            Self::Milliseconds => {
                format!("a number of milliseconds above 0 and up to {MAX_LATENCY_MS}")
            }
            Self::Percentile => {
                format!(
                    "a percentile from {} to {}",
                    Percentile::MIN,
                    Percentile::MAX
                )
            }
            Self::Bytes => {
                "a number of bytes above 0 such as `268435456`, `512KiB`, `256MiB` or `2GiB`"
                    .to_owned()
            }
            Self::Devices => "devices such as `cpu:0`, separated by `;`".to_owned(),
            Self::Name => "1 to 64 letters, digits, `.`, `_` or `-`".to_owned(),
            Self::Text => "any text".to_owned(),
        }
    }
}

/// Whether a tenant may have this name: it becomes part of a file's name.
fn is_name(value: &str) -> bool {
    (1..=64).contains(&value.len())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// A boolean as Triton's backends read one.
pub(crate) fn boolean(value: &str) -> Option<bool> {
    match value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A size in bytes, as users write it: plain or with a unit.
pub(crate) fn bytes(value: &str) -> Option<u64> {
    let value = value.trim();
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((value.strip_suffix(unit)?.trim_end(), *shift)))
        .unwrap_or((value, 0));
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    number.checked_mul(1 << shift)
}

/// A number of milliseconds as a time above 0.
pub(crate) fn milliseconds(text: &str) -> Option<Duration> {
    let ms: f64 = text.trim().parse().ok()?;
    let time = Duration::try_from_secs_f64(ms / 1e3).ok()?;
    (ms <= MAX_LATENCY_MS && !time.is_zero()).then_some(time)
}

/// A percentile of latency within its bounds.
pub(crate) fn percentile(text: &str) -> Option<Percentile> {
    Percentile::new(text.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_above_zero_and_at_most_the_largest() {
        assert_eq!(milliseconds(" 2.5 "), Some(Duration::from_micros(2500)));
        let most = milliseconds(&MAX_LATENCY_MS.to_string());
        assert_eq!(most, Some(Duration::from_secs_f64(MAX_LATENCY_MS / 1e3)));
        for wrong in [
            "0",
            "-1",
            "1e-9",
            "NaN",
            "inf",
            "x",
            &(MAX_LATENCY_MS * 1.01).to_string(),
        ] {
            assert_eq!(milliseconds(wrong), None, "{wrong}");
        }
    }
}

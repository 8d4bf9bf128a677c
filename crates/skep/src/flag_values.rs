//! Values of flags that several commands take.

use std::time::Duration;

use skep_types::{CpuSet, InvalidCpuSet};

/// Triton's booleans: true, false, 1, 0, in any case.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" => Ok(true),
        "false" | "0" | "off" => Ok(false),
        _ => Err(format!("expected true or false, got `{text}`")),
    }
}

/// Milliseconds above 0.
pub(crate) fn positive_millis(text: &str) -> Result<Duration, String> {
    let millis: f64 = text
        .parse()
        .map_err(|_| "expected a number of milliseconds")?;
    let duration = Duration::try_from_secs_f64(millis / 1e3).ok();
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a number of milliseconds above 0".to_owned())
}

/// The members of `key=value,key=value`. A list of CPUs has commas itself: what has no `=` continues the value before it.
/// `None` if the text begins with such a part.
pub(crate) fn members(text: &str) -> Option<Vec<(&str, String)>> {
    let mut members: Vec<(&str, String)> = Vec::new();
    for part in text.split(',') {
        match part.split_once('=') {
            Some((key, value)) => members.push((key.trim(), value.trim().to_owned())),
            None => members.last_mut()?.1 += &format!(",{}", part.trim()),
        }
    }
    Some(members)
}

/// `cpus` of a device.
pub(crate) fn cpus(text: &str) -> Result<CpuSet, String> {
    text.parse()
        .map_err(|error: InvalidCpuSet| format!("cpus={error}"))
}

/// `memory` of a device: bytes, with `K`, `M`, `G` or `T` for powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("memory={text}: expected bytes above 0 as in 8G, 512M or 1073741824");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let power = match &*text[digits.len()..].to_ascii_uppercase() {
        "" => 0,
        "K" | "KIB" => 1,
        "M" | "MIB" => 2,
        "G" | "GIB" => 3,
        "T" | "TIB" => 4,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number.checked_mul(1 << (10 * power));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_have_tritons_spellings() {
        for text in ["true", "True", "1", "TRUE"] {
            assert_eq!(boolean(text), Ok(true));
        }
        assert_eq!(boolean("false"), Ok(false));
        assert!(boolean("yes please").is_err());
    }
}

//! Values of flags that several commands take.

use std::time::Duration;

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

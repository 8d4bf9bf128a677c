//! Values of flags that several commands take.

/// Triton's booleans: true, false, 1, 0, in any case.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "on" => Ok(true),
        "false" | "0" | "off" => Ok(false),
        _ => Err(format!("expected true or false, got `{text}`")),
    }
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

//! Texts of errors: each part of a chain is said once.

/// Texts of errors (thiserror's) that hold what [`std::error::Error::source`] gives besides: chains are printed whole.
pub(super) fn said_twice(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for part in code.split("#[error(").skip(1) {
        let Some((text, item)) = part.split_once(")]") else {
            continue;
        };
        // As far as the variant or the structure goes.
        let end = item.find("\n    },").or_else(|| item.find("\n}"));
        let item = &item[..end.unwrap_or(item.len())];
        let has_source = ["#[source]", "#[from]", " source:"]
            .iter()
            .any(|mark| item.contains(mark));
        if has_source && ["{source}", "{0}"].iter().any(|name| text.contains(name)) {
            found.push(text.trim());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(item: &str) -> usize {
        said_twice(item).len()
    }

    #[test]
    fn an_error_that_says_its_source_is_found() {
        assert_eq!(count("#[error(\"a: {source}\")]\n    A { source: E },"), 1);
        assert_eq!(count("#[error(\"a: {0}\")]\n    A(#[from] E),"), 1);
        assert_eq!(count("#[error(transparent)]\n    A(#[from] E),"), 0);
        assert_eq!(count("#[error(\"a\")]\n    A(#[source] E),"), 0);
        assert_eq!(count("#[error(\"a: {reason}\")]\n    A { reason: E },"), 0);
        let several =
            "#[error(\"{0}\")]\n    A(E),\n    #[error(transparent)]\n    B(#[from] E),\n}";
        assert_eq!(count(several), 0);
    }
}

//! Paths in a configuration: each stays inside the directory that it is relative to.

/// The name of the model's file if neither the configuration nor the caller gives one.
pub(crate) const DEFAULT_MODEL_FILENAME: &str = "model.onnx";

/// Whether a path stays inside the directory that it is relative to.
pub(crate) fn stays_inside(path: &str) -> bool {
    let has_bad_part = path
        .split('/')
        .any(|part| part == ".." || part.contains(['\0', '\\']));
    !path.is_empty() && !path.starts_with('/') && !has_bad_part
}

/// The error text for a path that leaves its directory; `what` names the field.
pub(crate) fn leaves(what: &str) -> String {
    format!("{what} must be a relative path without '..'")
}

#[cfg(test)]
mod tests {
    use super::stays_inside;

    #[test]
    fn a_path_must_not_leave_its_directory() {
        for good in ["model.onnx", "a/b.onnx", "..a", "a..", "./x"] {
            assert!(stays_inside(good), "{good}");
        }
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a\\..\\b",
            "a\0",
        ] {
            assert!(!stays_inside(bad), "{bad}");
        }
    }
}

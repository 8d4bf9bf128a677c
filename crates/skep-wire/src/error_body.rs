//! The body of an HTTP error, `{"error":"..."}`, as Triton answers: written by the server, read by the client.

use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct ErrorBody<T> {
    error: T,
}

/// The body that says `text`.
///
/// # Panics
/// Never in practice: text always has a JSON form.
#[must_use]
pub fn write(text: &str) -> String {
    serde_json::to_string(&ErrorBody { error: text }).expect("text has a JSON form")
}

/// The text of an error's body; `None` for a body that is not Triton's, such as a proxy's.
#[must_use]
pub fn read(body: &[u8]) -> Option<String> {
    let body: ErrorBody<String> = serde_json::from_slice(body).ok()?;
    Some(body.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_error_reads_back() {
        let text = "no model `\"m\"`\n";
        assert_eq!(write(text), r#"{"error":"no model `\"m\"`\n"}"#);
        assert_eq!(read(write(text).as_bytes()).as_deref(), Some(text));
    }

    #[test]
    fn other_bodies_hold_no_error() {
        for body in ["", "Bad Gateway", "[]", "{}", r#"{"error":1}"#] {
            assert_eq!(read(body.as_bytes()), None, "{body}");
        }
    }
}

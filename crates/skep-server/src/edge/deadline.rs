//! How long a gRPC client waits for its answer.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Response};

/// The most digits that a value may have.
const MAX_DIGITS: usize = 8;

/// The time in header `grpc-timeout`; `None` if it is absent or malformed: the call then has no deadline, as with other
/// servers.
///
/// Source: gRPC over HTTP/2, "Timeout".
pub(super) fn read(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > MAX_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 60 * 60),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// The answer to a call whose deadline has passed.
pub(super) fn exceeded() -> Response<Body> {
    tonic::Status::deadline_exceeded("the call's deadline has passed")
        .into_http::<tonic::body::Body>()
        .map(Body::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_units_and_malformed_ones_are_ignored() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header"));
            read(&headers)
        };
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("99999999m", Some(Duration::from_millis(99_999_999))),
            ("5u", Some(Duration::from_micros(5))),
            ("6n", Some(Duration::from_nanos(6))),
            ("100000000n", None),
            ("1", None),
            ("S", None),
            ("+1S", None),
            ("1h", None),
            ("", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}

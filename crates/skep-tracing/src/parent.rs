//! The span that a request belongs to, as its client says in the headers `traceparent` and `tracestate`.
//!
//! Source: W3C, "Trace Context", level 1.

/// Longer states are not passed on; the standard asks for 512 characters at least.
const MAX_STATE_BYTES: usize = 512;

/// A client's span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent {
    pub(crate) trace: [u8; 16],
    pub(crate) span: [u8; 8],
    /// Whether the client traces this request.
    pub(crate) is_sampled: bool,
    /// `tracestate`, passed on unread.
    pub(crate) state: String,
}

impl TraceParent {
    /// Reads the headers. `None` if `traceparent` is invalid; the request then counts as one without the header.
    #[must_use]
    pub fn read(parent: &[u8], state: Option<&[u8]>) -> Option<Self> {
        let text = std::str::from_utf8(parent).ok()?.trim();
        let mut fields = text.splitn(4, '-');
        let version: [u8; 1] = hexadecimal(fields.next()?)?;
        let (trace, span) = (hexadecimal(fields.next()?)?, hexadecimal(fields.next()?)?);
        let (flags, rest) = fields.next()?.split_at_checked(2)?;
        let [flags] = hexadecimal(flags)?;
        // Later versions may have more fields.
        let is_ended = rest.is_empty() || (version != [0] && rest.starts_with('-'));
        let is_valid = is_ended && version != [0xff] && trace != [0; 16] && span != [0; 8];
        let state = state.and_then(|state| std::str::from_utf8(state).ok());
        is_valid.then(|| Self {
            trace,
            span,
            is_sampled: flags & 1 == 1,
            state: state
                .filter(|state| state.len() <= MAX_STATE_BYTES)
                .unwrap_or_default()
                .to_owned(),
        })
    }
}

/// Bytes in lower-case hexadecimal digits.
fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let is_digit = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.iter().all(is_digit) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn read(text: &str) -> Option<TraceParent> {
        TraceParent::read(text.as_bytes(), None)
    }

    #[test]
    fn the_standards_example_is_read() {
        let parent = read(&format!("00-{TRACE}-{SPAN}-01")).expect("valid");
        assert_eq!(parent.trace[..4], [0x0a, 0xf7, 0x65, 0x19]);
        assert_eq!(
            parent.span,
            [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]
        );
        assert!(parent.is_sampled);
        assert!(
            !read(&format!("00-{TRACE}-{SPAN}-00"))
                .expect("valid")
                .is_sampled
        );
        let later = read(&format!(
            "cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"
        ));
        assert!(later.is_some_and(|parent| parent.is_sampled));
    }

    #[test]
    fn a_state_is_passed_on() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let state =
            |state: &[u8]| TraceParent::read(parent.as_bytes(), Some(state)).map(|p| p.state);
        assert_eq!(state(b"a=1,b=2").as_deref(), Some("a=1,b=2"));
        assert_eq!(state(&[b'x'; 513]).as_deref(), Some(""));
        assert_eq!(state(b"\xff").as_deref(), Some(""));
    }

    #[test]
    fn what_is_not_valid_is_absent() {
        for text in [
            String::new(),
            "00".to_owned(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-0"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("00-{}-{SPAN}-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{}x-{SPAN}-01", &TRACE[1..]),
            format!("00-{}é-{SPAN}-01", &TRACE[2..]),
        ] {
            assert_eq!(read(&text), None, "{text}");
        }
        assert_eq!(TraceParent::read(b"\xff", None), None);
    }
}

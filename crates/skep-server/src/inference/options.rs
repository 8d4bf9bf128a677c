//! What the node's operator chooses about inference calls: which headers become parameters, whether answers over gRPC
//! are compressed, whether tensors may lie in clients' shared memory.

use regex::{Regex, RegexBuilder};
use skep_runtime::{InferRequest, Parameter};

/// What the node's operator chooses about inference calls.
#[derive(Debug, Clone, Default)]
pub struct InferenceOptions {
    /// The HTTP headers that become parameters of their request.
    pub http_headers: HeaderPattern,
    /// The gRPC metadata that becomes parameters of its request.
    pub grpc_headers: HeaderPattern,
    /// Whether answers over gRPC are compressed for clients that accept it.
    pub grpc_compression: bool,
    /// Whether clients may register shared-memory regions.
    pub client_regions: bool,
}

/// Matches the names of headers that are forwarded to models as parameters; matches none by default.
///
/// Source: Triton, `--http-header-forward-pattern`: the pattern may match any part of a name, ignoring case.
#[derive(Debug, Clone, Default)]
pub struct HeaderPattern(Option<Regex>);

impl HeaderPattern {
    /// A pattern of a regular expression; empty for no header.
    ///
    /// # Errors
    /// A text that says what is wrong with the expression.
    pub fn parse(pattern: &str) -> Result<Self, String> {
        if pattern.is_empty() {
            return Ok(Self(None));
        }
        let regex = RegexBuilder::new(pattern).case_insensitive(true).build();
        regex
            .map(|regex| Self(Some(regex)))
            .map_err(|error| error.to_string())
    }

    /// Puts the matching headers into the request's parameters. A header overrides a parameter of the same name, and
    /// the last of several headers overrides the others, as on Triton.
    pub(crate) fn forward<'a>(
        &self,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
        request: &mut InferRequest,
    ) {
        let Some(regex) = &self.0 else {
            return;
        };
        for (name, value) in headers.filter(|(name, _)| regex.is_match(name)) {
            let value = Parameter::String(String::from_utf8_lossy(value).into_owned());
            request.parameters.retain(|(key, _)| key != name);
            request.parameters.push((name.to_owned(), value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(pattern: &str) -> Vec<(String, Parameter)> {
        let mut request = InferRequest {
            parameters: vec![
                ("mine".to_owned(), Parameter::Int(1)),
                ("my_a".to_owned(), Parameter::Int(2)),
            ],
            ..Default::default()
        };
        let headers: [(&str, &[u8]); 5] = [
            ("my_a", b"first"),
            ("host", b"h"),
            ("my_a", b"last"),
            ("x-my_b", b""),
            ("my_c", b"\xff"),
        ];
        let pattern = HeaderPattern::parse(pattern).expect("valid");
        pattern.forward(headers.into_iter(), &mut request);
        request.parameters
    }

    #[test]
    fn headers_become_parameters_where_they_match() {
        let text = |key: &str, value: &str| (key.to_owned(), Parameter::String(value.to_owned()));
        let mine = ("mine".to_owned(), Parameter::Int(1));
        assert_eq!(
            forwarded("MY_"),
            [
                mine.clone(),
                text("my_a", "last"),
                text("x-my_b", ""),
                text("my_c", "\u{fffd}")
            ]
        );
        assert_eq!(forwarded("^my_a$"), [mine.clone(), text("my_a", "last")]);
        let untouched = [mine, ("my_a".to_owned(), Parameter::Int(2))];
        assert_eq!(forwarded("nothing"), untouched);
        assert_eq!(forwarded(""), untouched);
        assert!(HeaderPattern::parse("[").is_err());
    }
}

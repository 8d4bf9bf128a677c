//! Headers that are sent with every call.

use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use tonic::{Status, metadata::MetadataMap, service::Interceptor};

use crate::error::Error;

/// Where the JSON part of a body ends and the binary tensor data begins.
pub(crate) const HEADER_LENGTH: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// Headers that the protocols set themselves.
const RESERVED: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    HEADER_LENGTH,
];

/// Headers of each call: HTTP's, and gRPC's metadata.
#[derive(Debug, Clone, Default)]
pub struct Headers(HeaderMap);

impl Headers {
    /// Adds a header in the form `name: value`; a name may occur several times.
    ///
    /// # Errors
    /// For text that is not a header, and for headers that the protocol itself sets.
    pub fn add(&mut self, line: &str) -> Result<(), Error> {
        // A header may be a secret: errors never show its value.
        let Some((name, value)) = line.split_once(':') else {
            return Err(Error::invalid("expected `name: value`, there is no colon"));
        };
        let name: HeaderName = name.trim().parse().map_err(|_| {
            Error::invalid(format!("`{}` cannot be the name of a header", name.trim()))
        })?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| {
            Error::invalid(format!(
                "the value of header `{name}` has characters that no header may have"
            ))
        })?;
        value.set_sensitive(true);
        if RESERVED.contains(&name) || name.as_str().starts_with("grpc-") {
            return Err(Error::invalid(format!(
                "header `{name}` follows from the request and cannot be set"
            )));
        }
        self.0.append(name, value);
        Ok(())
    }

    pub(crate) fn put_into<T>(&self, request: &mut Request<T>) {
        request.headers_mut().extend(self.0.clone());
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if !self.0.is_empty() {
            let mut headers = std::mem::take(request.metadata_mut()).into_headers();
            headers.extend(self.0.clone());
            *request.metadata_mut() = MetadataMap::from_headers(headers);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_lines_and_values_stay_secret() {
        let mut headers = Headers::default();
        headers.add("infer: s3: cret ").expect("a header");
        headers.add("infer:second").expect("a header");
        let values: Vec<_> = headers.0.get_all("infer").iter().collect();
        assert_eq!(values, ["s3: cret", "second"]);
        assert!(!format!("{headers:?}").contains("cret"));
        for (line, why) in [
            ("secret", "no colon"),
            ("a b: secret", "name of a header"),
            (": secret", "name of a header"),
            ("a: sec\nret", "characters"),
            ("Host: secret", "cannot be set"),
            ("grpc-timeout: secret", "cannot be set"),
        ] {
            let text = headers.add(line).expect_err(line).to_string();
            assert!(
                text.contains(why) && !text.contains("secret"),
                "{line:?}: {text}"
            );
        }
    }
}

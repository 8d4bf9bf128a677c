//! Compressed requests and answers of inference: `gzip` and `deflate`.
//!
//! Source: RFC 9110 (content codings); which requests and answers may be compressed: Triton, `http_server.cc`.

use std::{
    io::{self, Write},
    sync::Arc,
};

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use skep_tensor::{Charge, OverBudget};

use crate::{
    error::{ApiError, JSON, error_response},
    inflate::{InflateError, inflate},
    off_reactor::off_reactor,
};

/// Compressed bytes that are decompressed in place: they can become a thousand times as much, which takes milliseconds.
/// More goes to another thread, so that no other request waits for it.
const MAX_INLINE_COMPRESSED_BYTES: usize = 4 << 10;

/// Bytes that are compressed in place: a millisecond at most.
const MAX_INLINE_PLAIN_BYTES: usize = 32 << 10;

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// In zlib's format, as HTTP defines it.
    Deflate,
}

impl Coding {
    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Gzip, Self::Deflate]
            .into_iter()
            .find(|coding| name.eq_ignore_ascii_case(coding.name()))
    }

    /// The value of `Content-Encoding`.
    pub(super) const fn header_value(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }
}

/// A request in an unknown coding.
#[derive(Debug)]
pub(super) struct UnknownCoding;

impl IntoResponse for UnknownCoding {
    /// As on Triton, with the known codings.
    fn into_response(self) -> Response {
        let text = "Unsupported compression type";
        let mut response = error_response(StatusCode::NOT_IMPLEMENTED, JSON, text);
        let known = HeaderValue::from_static("gzip, deflate");
        response
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, known);
        response
    }
}

/// The coding of a request's body; `None` if it is not compressed.
pub(super) fn of_request(headers: &HeaderMap) -> Result<Option<Coding>, UnknownCoding> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(None);
    };
    match value.to_str().map(str::trim) {
        Ok(name) if name.eq_ignore_ascii_case("identity") => Ok(None),
        Ok(name) => Coding::parse(name).map(Some).ok_or(UnknownCoding),
        Err(_) => Err(UnknownCoding),
    }
}

/// The coding that a client prefers for its answer, the first of equals; `None` if the client prefers no compression or
/// an unknown coding.
pub(super) fn of_answer(headers: &HeaderMap) -> Option<Coding> {
    let mut best: (f32, Option<Coding>) = (0.0, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let (name, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let name = name.trim();
            let coding = Coding::parse(name);
            if coding.is_none() && !name.eq_ignore_ascii_case("identity") {
                continue;
            }
            let weight = weight.trim().strip_prefix("q=").unwrap_or_default();
            let weight = weight.parse::<f32>().unwrap_or(0.0);
            if weight > best.0 {
                best = (weight, coding);
            }
        }
    }
    best.1
}

/// Decompresses a body to at most `limit` bytes and within the memory of requests. A body that becomes longer is
/// refused as soon as it does.
pub(super) async fn decompress(
    body: Bytes,
    limit: usize,
    charge: Arc<Charge>,
) -> Result<Bytes, ApiError> {
    if body.is_empty() {
        return Err(ApiError::invalid("nothing to be decompressed"));
    }
    let inline = body.len() <= MAX_INLINE_COMPRESSED_BYTES;
    let work = move || {
        let packed_bytes = body.len();
        let plain = inflate(&body, limit, &charge);
        drop(body);
        charge.give_back(packed_bytes);
        plain
    };
    let plain = if inline {
        work()
    } else {
        off_reactor(work).await?
    };
    match plain {
        Ok(plain) => Ok(plain.into()),
        Err(InflateError::NoMemory(over)) => Err(over.into()),
        Err(InflateError::TooLong) => Err(ApiError::invalid(format!(
            "the decompressed request exceeds the maximum allowed value of {limit} bytes. Use --http-max-input-size to increase the limit."
        ))),
        Err(InflateError::Broken(error)) => Err(ApiError::invalid(format!(
            "the request's body cannot be decompressed: {error}"
        ))),
    }
}

/// Compresses an answer. Memory is charged before it is allocated, and the plain answer's charge is given back.
pub(super) async fn compress(
    plain: Vec<u8>,
    coding: Coding,
    charge: &Arc<Charge>,
) -> Result<Vec<u8>, ApiError> {
    let inline = plain.len() <= MAX_INLINE_PLAIN_BYTES;
    let charge = Arc::clone(charge);
    let work = move || {
        let plain_bytes = plain.capacity();
        let packed = deflate(&plain, coding, &charge);
        drop(plain);
        charge.give_back(plain_bytes);
        packed
    };
    let packed = if inline {
        work()
    } else {
        off_reactor(work).await?
    };
    packed.map_err(|error| match error.downcast::<OverBudget>() {
        Ok(over) => over.into(),
        Err(error) => ApiError::internal(format!("the answer cannot be compressed: {error}")),
    })
}

pub(super) fn deflate(plain: &[u8], coding: Coding, charge: &Charge) -> io::Result<Vec<u8>> {
    let packed = Charged {
        bytes: Vec::new(),
        charge,
    };
    let packed = match coding {
        Coding::Gzip => {
            let mut encoder = GzEncoder::new(packed, Compression::default());
            encoder.write_all(plain)?;
            encoder.finish()?
        }
        Coding::Deflate => {
            let mut encoder = ZlibEncoder::new(packed, Compression::default());
            encoder.write_all(plain)?;
            encoder.finish()?
        }
    };
    Ok(packed.bytes)
}

/// Bytes whose memory is charged before it is allocated.
struct Charged<'a> {
    bytes: Vec<u8>,
    charge: &'a Charge,
}

impl Write for Charged<'_> {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        crate::growth::make_room(&mut self.bytes, more.len(), self.charge)
            .map_err(io::Error::other)?;
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_coding_is_chosen_as_on_triton() {
        for (accept, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("deflate", Some(Coding::Deflate)),
            ("gzip, deflate, br", Some(Coding::Gzip)),
            ("deflate, gzip", Some(Coding::Deflate)),
            ("br,gzip", Some(Coding::Gzip)),
            ("gzip;q=0.5, deflate;q=0.9", Some(Coding::Deflate)),
            ("gzip;q=0.5,deflate", Some(Coding::Deflate)),
            ("deflate;q=0, gzip", Some(Coding::Gzip)),
            ("br", None),
            ("*", None),
            ("identity, gzip", None),
            ("identity;q=1, gzip;q=0.5", None),
            ("gzip;q=0", None),
            ("gzip;q=abc", None),
            ("gzip;q=NaN", None),
            ("zgzip", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accept));
            assert_eq!(of_answer(&headers), expected, "{accept}");
        }
        assert_eq!(of_answer(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn compressed_data_decompresses_within_the_limit() {
        let free = Arc::new(Charge::unbounded());
        for size in [0, 1, 100, MAX_INLINE_PLAIN_BYTES + 1, 1 << 20] {
            let plain: Vec<u8> = (0..size)
                .map(|n| u8::try_from(n % 251).unwrap_or(0))
                .collect();
            for coding in [Coding::Gzip, Coding::Deflate] {
                let packed = compress(plain.clone(), coding, &free)
                    .await
                    .expect("compresses");
                let back = decompress(packed.clone().into(), size, Arc::clone(&free))
                    .await
                    .expect("fits");
                assert_eq!(back, plain);
                if size > 0 {
                    assert!(
                        decompress(packed.into(), size - 1, Arc::clone(&free))
                            .await
                            .is_err()
                    );
                }
            }
        }
    }
}

//! What handlers take out of a request, with errors in the protocol's form.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody},
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::request::Parts,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;

use crate::{
    edge::BodyError,
    error::{self, ApiError},
    server::Shared,
};

/// `{model}` and, if the route has it, `{version}`.
#[derive(Debug, Deserialize)]
pub(super) struct ModelPath {
    pub(super) model: String,
    pub(super) version: Option<String>,
}

impl FromRequestParts<Arc<Shared>> for ModelPath {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Response> {
        let Path(path): Path<Self> = Path::from_request_parts(parts, shared)
            .await
            .map_err(|error| ApiError::invalid(error.body_text()).into_response())?;
        match &path.version {
            // On Triton the path of a version that is no number is none of its paths.
            Some(version) if !version.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(super::not_found())
            }
            _ => Ok(path),
        }
    }
}

/// What is reserved for a body before any of it has come; a longer one grows as it comes.
const MAX_RESERVED_BYTES: usize = 16 << 20;

/// Where tensor data begins in memory: what backends ask of an input that they use where it lies.
const ALIGNMENT_BYTES: usize = 64;

/// Reads a whole body of at most `limit` bytes into one piece.
///
/// Each frame is copied and let go before the next is read, so that the connection reads into the same memory again and
/// again; a body of one frame is not copied.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    read_split_body(body, limit, None).await
}

/// As [`read_body`]; a body that is put together from several frames has its byte `split`, where the JSON part ends and
/// binary data begins, on a boundary of 64 bytes. Its data can then be used where it lies.
pub(super) async fn read_split_body(
    body: Body,
    limit: usize,
    split: Option<usize>,
) -> Result<Bytes, ApiError> {
    let too_long = || {
        ApiError::invalid(error::unreadable(format_args!(
            "it is longer than {limit} bytes"
        )))
    };
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(too_long());
    }
    let mut stream = body.into_data_stream();
    let Some(first) = stream.next().await else {
        return Ok(Bytes::new());
    };
    let first = first.map_err(body_error)?;
    if first.len() > limit {
        return Err(too_long());
    }
    if first.len() == expected {
        return Ok(first);
    }
    let reserved = expected.min(MAX_RESERVED_BYTES).max(first.len());
    let mut whole = BytesMut::with_capacity(reserved + ALIGNMENT_BYTES);
    let padding = split.map_or(0, |split| {
        (whole.as_ptr() as usize + split).wrapping_neg() % ALIGNMENT_BYTES
    });
    whole.resize(padding, 0);
    whole.extend_from_slice(&first);
    drop(first);
    while let Some(frame) = stream.next().await {
        let frame = frame.map_err(body_error)?;
        if whole.len() - padding + frame.len() > limit {
            return Err(too_long());
        }
        whole.extend_from_slice(&frame);
    }
    Ok(whole.freeze().slice(padding..))
}

/// What the connection says of a body, or whatever else went wrong.
fn body_error(error: axum::Error) -> ApiError {
    let error = error.into_inner();
    match error.downcast_ref::<BodyError>() {
        Some(error) => error.into(),
        None => ApiError::invalid(error::unreadable(error)),
    }
}

/// A body that is JSON as a whole: bounded as the JSON part of an inference request is.
pub(super) struct JsonBody(pub(super) Bytes);

impl FromRequest<Arc<Shared>> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let body = read_body(request.into_body(), shared.max_json_bytes).await?;
        Ok(Self(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn chunked(chunks: &'static [&'static str]) -> Body {
        let chunks = chunks
            .iter()
            .map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())));
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn bodies_are_put_together_within_the_limit() {
        let read = async |body, limit| read_body(body, limit).await.map_err(|_| "refused");
        assert_eq!(read(Body::empty(), 4).await.as_deref(), Ok(&b""[..]));
        assert_eq!(
            read(Body::from("abcd"), 4).await.as_deref(),
            Ok(&b"abcd"[..])
        );
        assert_eq!(
            read(chunked(&["ab", "", "cd"]), 4).await.as_deref(),
            Ok(&b"abcd"[..])
        );
        assert_eq!(read(Body::from("abcde"), 4).await, Err("refused"));
        assert_eq!(read(chunked(&["abc", "de"]), 4).await, Err("refused"));
        assert_eq!(read(chunked(&["abcde"]), 4).await, Err("refused"));
    }

    #[tokio::test]
    async fn data_behind_the_split_is_aligned_in_a_body_put_together() {
        for split in [0, 1, 3, 5] {
            let body = read_split_body(chunked(&["ab", "c", "de"]), 8, Some(split)).await;
            let body = body.unwrap_or_else(|error| panic!("{error:?}"));
            assert_eq!(&body[..], b"abcde");
            assert_eq!(
                (body.as_ptr() as usize + split) % ALIGNMENT_BYTES,
                0,
                "split at {split}"
            );
        }
    }
}

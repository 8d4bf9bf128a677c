//! A whole body in one piece.

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::StreamExt;

/// Bytes reserved for a body before any of it has arrived; a longer body grows as it arrives. A tensor of 16 MiB fits,
/// with its description.
const MAX_RESERVED_BYTES: usize = (16 << 20) + (64 << 10);

/// The alignment of tensor data in memory: backends need it to use an input in place.
const ALIGNMENT_BYTES: usize = 64;

/// A body up to this size is copied even if it arrived whole: the copy costs less than the new read buffer that the
/// connection would need while the old one is held.
const MAX_SMALL_BYTES: usize = 4 << 10;

/// Why a body could not be read.
#[derive(Debug)]
pub(crate) enum UnreadBody {
    /// It is longer than it may be.
    TooLong,
    /// The system is out of memory.
    NoMemory,
    /// The connection failed.
    Failed(axum::Error),
}

/// Reads a whole body of at most `limit` bytes into one piece.
///
/// Each frame is copied once and released before the next is read, so that the connection reuses its read buffer; a
/// large body that arrives in one frame is not copied. `split` gets the first frame and returns the byte of the body at
/// which tensor data begins, if it knows. In a body assembled here that byte is aligned to 64 bytes, so the data can be
/// used in place, unless the body's length is unknown and its data outgrows the buffer.
pub(crate) async fn read_body(
    body: Body,
    limit: usize,
    split: impl FnOnce(&[u8]) -> Option<usize>,
) -> Result<Bytes, UnreadBody> {
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(UnreadBody::TooLong);
    }
    let mut stream = body.into_data_stream();
    let Some(first) = stream.next().await else {
        return Ok(Bytes::new());
    };
    let first = first.map_err(UnreadBody::Failed)?;
    if first.len() > limit {
        return Err(UnreadBody::TooLong);
    }
    if first.len() == expected && expected > MAX_SMALL_BYTES {
        return Ok(first);
    }
    let split = split(&first);
    // A body without a declared length has at least the bytes before its data.
    let reserved = expected.max(split.unwrap_or(0)).min(MAX_RESERVED_BYTES);
    let reserved = reserved.max(first.len());
    let mut whole = Vec::new();
    make_room(&mut whole, reserved + ALIGNMENT_BYTES)?;
    let padding = split.map_or(0, |split| {
        (whole.as_ptr() as usize).wrapping_add(split).wrapping_neg() % ALIGNMENT_BYTES
    });
    whole.resize(padding, 0);
    whole.extend_from_slice(&first);
    drop(first);
    while let Some(frame) = stream.next().await {
        let frame = frame.map_err(UnreadBody::Failed)?;
        if whole.len() - padding + frame.len() > limit {
            return Err(UnreadBody::TooLong);
        }
        make_room(&mut whole, frame.len())?;
        whole.extend_from_slice(&frame);
    }
    Ok(Bytes::from(whole).slice(padding..))
}

fn make_room(whole: &mut Vec<u8>, more: usize) -> Result<(), UnreadBody> {
    whole.try_reserve(more).map_err(|_| UnreadBody::NoMemory)
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use futures_util::stream;
    use http_body::{Frame, SizeHint};

    use super::*;

    fn chunked(chunks: &'static [&'static str]) -> Body {
        let chunks = chunks
            .iter()
            .map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk.as_bytes())));
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn bodies_are_assembled_within_the_limit() {
        let read = async |body, limit| {
            read_body(body, limit, |_| None)
                .await
                .map_err(|_| "refused")
        };
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

    /// A body that declares its length, as one with `Content-Length` does.
    struct Declared(Body, u64);

    impl HttpBody for Declared {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.1)
        }
    }

    #[tokio::test]
    async fn data_after_the_split_is_aligned_in_an_assembled_body() {
        let chunks = &["ab", "c", "de"];
        let declared = || Body::new(Declared(chunked(chunks), 5));
        for (body, split) in [
            (declared(), 0),
            (declared(), 1),
            (declared(), 3),
            (declared(), 5),
            // The whole body has room before the split: a gRPC message, which ends there.
            (chunked(chunks), 5),
        ] {
            let body = read_body(body, 8, |_| Some(split)).await;
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

//! Decompresses requests before tonic sees them: tonic would let a message of a few kilobytes become as large as any
//! message may be.
//!
//! Source: gRPC over HTTP/2, "Length-Prefixed-Message".

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use skep_tensor::Charge;
use tokio::runtime::{Handle, RuntimeFlavor};
use tonic::{Status, codegen::Service, server::NamedService};

use super::message::{PREFIX_BYTES, is_large};
use crate::{
    bounds::MAX_MANAGEMENT_BYTES,
    error::ApiError,
    inflate::{InflateError, inflate},
};

/// Compressed messages longer than this are decompressed as blocking work.
const LONG_BYTES: usize = 4 << 10;

/// A service whose requests may be compressed, with `gzip` or `deflate`.
#[derive(Debug, Clone)]
pub(super) struct Inflated<S> {
    service: S,
    /// The largest decompressed message, in bytes.
    limit: usize,
}

impl<S> Inflated<S> {
    pub(super) const fn new(service: S, limit: usize) -> Self {
        Self { service, limit }
    }
}

impl<S: NamedService> NamedService for Inflated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Inflated<S>
where
    S: Service<http::Request<tonic::body::Body>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> S::Future {
        let (mut head, body) = request.into_parts();
        let body = if take_coding(&mut head.headers) {
            let limit = if is_large(head.uri.path()) {
                self.limit
            } else {
                self.limit.min(MAX_MANAGEMENT_BYTES)
            };
            let charge = head.extensions.get().cloned();
            let charge = charge.unwrap_or_else(|| Arc::new(Charge::unbounded()));
            tonic::body::Body::new(InflatedMessages::new(body, limit, charge))
        } else {
            tonic::body::Body::new(body)
        };
        self.service.call(http::Request::from_parts(head, body))
    }
}

/// Removes the header if it names a known coding, so that the service sees a request that is not compressed.
fn take_coding(headers: &mut HeaderMap) -> bool {
    let ours = headers
        .get("grpc-encoding")
        .is_some_and(|coding| coding == "gzip" || coding == "deflate");
    if ours {
        headers.remove("grpc-encoding");
    }
    ours
}

/// Turns a body of messages, each possibly compressed, into one of plain messages.
pub(super) struct InflatedMessages<B> {
    body: Pin<Box<B>>,
    /// The part of the next message that has arrived.
    received: BytesMut,
    limit: usize,
    /// The charge of the request.
    charge: Arc<Charge>,
    /// A decompressed message whose prefix has been passed on.
    plain: Option<Bytes>,
    /// The charge of the message that was passed on last, without tonic's copy; given back at the next poll.
    passing: usize,
}

impl<B> InflatedMessages<B> {
    pub(super) fn new(body: B, limit: usize, charge: Arc<Charge>) -> Self {
        Self {
            body: Box::pin(body),
            received: BytesMut::new(),
            limit,
            charge,
            plain: None,
            passing: 0,
        }
    }

    /// The next message, if it has arrived as a whole: with its prefix, or only the prefix if the rest is in `plain`.
    fn next(&mut self) -> Result<Option<Bytes>, Status> {
        let Some(prefix) = self.received.get(..PREFIX_BYTES) else {
            return Ok(None);
        };
        let compressed = prefix[0] == 1;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        // Compression hardly ever makes data longer: a message over the limit now is over it decompressed too.
        if compressed && length > self.limit {
            return Err(self.too_long());
        }
        if self.received.len() - PREFIX_BYTES < length {
            return Ok(None);
        }
        let mut message = self.received.split_to(PREFIX_BYTES + length);
        if !compressed {
            return Ok(Some(message.freeze()));
        }
        message.advance(PREFIX_BYTES);
        let before = self.charge.bytes();
        let plain = off_reactor(length, || inflate(&message, self.limit, &self.charge));
        let plain = plain.map_err(|error| match error {
            InflateError::TooLong => self.too_long(),
            InflateError::NoMemory(over) => ApiError::from(over).into(),
            InflateError::Broken(error) => {
                Status::invalid_argument(format!("the message cannot be decompressed: {error}"))
            }
        })?;
        let plain_length = u32::try_from(plain.len()).map_err(|_| self.too_long())?;
        self.passing = self.charge.bytes().saturating_sub(before) + PREFIX_BYTES + length;
        // tonic copies it.
        self.charge
            .add(PREFIX_BYTES + plain.len())
            .map_err(|over| Status::from(ApiError::from(over)))?;
        let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
        prefix.put_u8(0);
        prefix.put_u32(plain_length);
        self.plain = Some(plain.into()).filter(|plain: &Bytes| !plain.is_empty());
        Ok(Some(prefix.freeze()))
    }

    fn too_long(&self) -> Status {
        Status::resource_exhausted(format!(
            "the decompressed message exceeds the maximum allowed value of {} bytes. Use --http-max-input-size to increase the limit.",
            self.limit
        ))
    }
}

/// Moves the reactor's other tasks to another thread if this one will be busy for long.
fn off_reactor<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let several = Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > LONG_BYTES && several {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}

impl<B> Body for InflatedMessages<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(plain) = self.plain.take() {
            return Poll::Ready(Some(Ok(Frame::data(plain))));
        }
        let passed = std::mem::take(&mut self.passing);
        self.charge.give_back(passed);
        loop {
            match self.next() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                Ok(None) => {}
                Err(status) => return Poll::Ready(Some(Err(status.into()))),
            }
            match ready!(self.body.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.received.extend_from_slice(&data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                // tonic refuses a truncated message.
                None if !self.received.is_empty() => {
                    let rest = self.received.split().freeze();
                    return Poll::Ready(Some(Ok(Frame::data(rest))));
                }
                None => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, pin::pin};

    use flate2::{Compression, write::ZlibEncoder};
    use futures_util::stream;

    use super::*;

    fn message(flag: u8, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).expect("short");
        [&[flag][..], &length.to_be_bytes(), data].concat()
    }

    fn packed(data: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).expect("a vector takes all");
        message(1, &encoder.finish().expect("a vector takes all"))
    }

    /// The output for a body that arrives in pieces of `size` bytes.
    async fn passed(body: &[u8], size: usize, limit: usize) -> Result<Vec<u8>, String> {
        let pieces: Vec<_> = body
            .chunks(size)
            .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)))
            .collect();
        let body = axum::body::Body::from_stream(stream::iter(pieces));
        let mut messages = pin!(InflatedMessages::new(
            body,
            limit,
            Arc::new(Charge::unbounded())
        ));
        let mut out = Vec::new();
        let next = |context: &mut Context<'_>| messages.as_mut().poll_frame(context);
        let mut next = next;
        while let Some(frame) = std::future::poll_fn(&mut next).await {
            let frame = frame.map_err(|error| error.to_string())?;
            out.extend_from_slice(&frame.into_data().map_err(|_| "trailers")?);
        }
        Ok(out)
    }

    #[tokio::test]
    async fn messages_come_out_plain_whatever_their_pieces() {
        let body = [packed(&[7; 100]), message(0, b"plain"), packed(b"")].concat();
        let expected = [message(0, &[7; 100]), message(0, b"plain"), message(0, b"")].concat();
        for size in [1, 3, 7, 1000] {
            assert_eq!(passed(&body, size, 100).await.as_deref(), Ok(&*expected));
        }
    }

    #[tokio::test]
    async fn too_long_and_damaged_messages_are_refused() {
        let text = passed(&packed(&[7; 100]), 10, 99).await.expect_err("long");
        assert!(
            text.contains("exceeds the maximum allowed value of 99 bytes"),
            "{text}"
        );
        // Refused by its declared length, before it has arrived.
        let claimed = &message(1, &[0; 100])[..PREFIX_BYTES];
        assert!(passed(claimed, 5, 99).await.is_err());
        let text = passed(&message(1, b"broken"), 10, 99)
            .await
            .expect_err("broken");
        assert!(text.contains("cannot be decompressed"), "{text}");
        // Truncated: passed on, for tonic to refuse.
        let cut = &message(0, b"plain")[..7];
        assert_eq!(passed(cut, 10, 99).await.as_deref(), Ok(cut));
    }
}

//! Connections, bodies, statuses: everything between a path and an answer's bytes.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::{client::legacy, rt::TokioExecutor};
use skep_wire::error_body;

use super::encode::EncodedRequest;
use crate::{
    address::{Address, ClientOptions},
    connect::Connector,
    error::{AnswerCode, Error, chain, root_cause},
    headers::{HEADER_LENGTH, Headers},
};

/// The memory that is reserved for an answer by its declared length, before its bytes arrive.
const TRUSTED_BYTES: usize = 16 << 20;

/// How much of an error's body is kept if it is not Triton's JSON: enough for a proxy's line, not for a whole page.
const MAX_ERROR_TEXT_BYTES: usize = 512;

/// A pool of connections to one server.
#[derive(Debug, Clone)]
pub(super) struct HttpTransport {
    client: legacy::Client<Connector, Chunks>,
    authority: Arc<str>,
    /// The URL that paths are appended to.
    base: Arc<str>,
    headers: Headers,
    max_answer_bytes: usize,
}

/// A complete answer.
pub(super) struct HttpReply {
    pub(super) status: StatusCode,
    pub(super) header_length: Option<HeaderValue>,
    body: Bytes,
}

impl HttpTransport {
    pub(super) fn new(address: &Address, options: &ClientOptions) -> Result<Self, Error> {
        let connector = Connector::new(address, options, b"http/1.1")?;
        Ok(Self {
            client: legacy::Client::builder(TokioExecutor::new()).build(connector),
            authority: Arc::clone(&address.authority),
            base: address.base().into(),
            headers: options.headers.clone(),
            max_answer_bytes: options.max_answer_bytes,
        })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        &self.authority
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: EncodedRequest,
    ) -> Result<HttpReply, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some(content_type) = body.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(length) = body.header_length {
            request = request.header(HEADER_LENGTH, length);
        }
        let mut request = request
            .body(Chunks(body.chunks))
            .map_err(|error| Error::invalid(error.to_string()))?;
        self.headers.put_into(&mut request);
        let response = self
            .client
            .request(request)
            .await
            .map_err(|error| self.failure(&error))?;
        let (parts, body) = response.into_parts();
        Ok(HttpReply {
            status: parts.status,
            header_length: parts.headers.get(HEADER_LENGTH).cloned(),
            body: self.read(body).await?,
        })
    }

    /// Reads a body up to the limit; one that arrives in a single piece is not copied.
    async fn read(&self, mut body: Incoming) -> Result<Bytes, Error> {
        let limit = self.max_answer_bytes;
        let too_large = || Error::too_large(&self.authority, limit);
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(too_large());
        }
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| self.failure(&error))?.into_data() else {
                continue;
            };
            if data.len() > limit - whole.len() {
                return Err(too_large());
            }
            if data.len() == announced && whole.is_empty() {
                return Ok(data);
            }
            if whole.is_empty() {
                whole.reserve(announced.min(TRUSTED_BYTES));
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    /// Maps the libraries' errors to this crate's.
    fn failure(&self, error: &(dyn std::error::Error + 'static)) -> Error {
        let connect = error
            .downcast_ref::<legacy::Error>()
            .is_some_and(legacy::Error::is_connect);
        if connect {
            return Error::connect(&self.authority, error);
        }
        let address = self.authority.to_string();
        let reason = root_cause(error);
        if chain(error)
            .filter_map(|error| error.downcast_ref::<hyper::Error>())
            .any(hyper::Error::is_parse)
        {
            return Error::Protocol { address, reason };
        }
        Error::Disconnected { address, reason }
    }
}

impl HttpReply {
    /// The body, if the status is a success.
    pub(super) fn checked(self) -> Result<Bytes, Error> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        Err(Error::Status {
            code: AnswerCode::Http(self.status.as_u16()),
            message: error_text(self.status, &self.body),
        })
    }
}

/// The text of an error: from Triton's JSON, a proxy's text, or the status alone.
fn error_text(status: StatusCode, body: &[u8]) -> String {
    if let Some(text) = error_body::read(body) {
        return text;
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_ERROR_TEXT_BYTES)]);
    match text.trim() {
        "" => status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_owned(),
        text => text.to_owned(),
    }
}

/// A request's body in pieces, so that tensor data is not copied on its way to the socket.
#[derive(Debug, Default)]
pub(super) struct Chunks(VecDeque<Bytes>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_texts_are_tritons_or_bounded() {
        let text = |body: &[u8]| error_text(StatusCode::NOT_FOUND, body);
        assert_eq!(text(br#"{"error":"no such model"}"#), "no such model");
        assert_eq!(text(b" upstream gone\n"), "upstream gone");
        assert_eq!(text(b""), "Not Found");
        assert_eq!(text(&[b'x'; 9999]).len(), MAX_ERROR_TEXT_BYTES);
    }
}

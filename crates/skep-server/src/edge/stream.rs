//! A connection's bytes, plain or encrypted, with a note of when they move.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::activity::Activity;

/// What is read at once of what nobody wants.
const DISCARDED_BYTES: usize = 16 << 10;

/// What a client that speaks HTTP/2 begins with.
///
/// Source: RFC 9113, "HTTP/2 Connection Preface".
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How bytes travel.
enum Transport {
    Plain(TcpStream),
    // Boxed: a plain connection does not pay for the state of a session.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection's bytes.
pub(super) struct Stream {
    transport: Transport,
    activity: Arc<Activity>,
    closing: Closing,
    /// What was read ahead.
    ahead: Bytes,
}

/// How far the end of a connection is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    /// Our side is shut; what the client still sends is thrown away, since a close with unread bytes would reset the
    /// connection before the client has read the answer.
    Lingering,
}

impl Stream {
    pub(super) fn plain(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            transport: Transport::Plain(stream),
            activity,
            closing: Closing::Open,
            ahead: Bytes::new(),
        }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, activity: Arc<Activity>) -> Self {
        Self {
            transport: Transport::Tls(Box::new(stream)),
            activity,
            closing: Closing::Open,
            ahead: Bytes::new(),
        }
    }

    /// Whether the client begins with HTTP/2; what is read to find out is read again by the protocol.
    pub(super) fn poll_is_http2(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let known = self.ahead.len();
            if self.ahead[..] != PREFACE[..known] {
                return Poll::Ready(Ok(false));
            }
            if known == PREFACE.len() {
                return Poll::Ready(Ok(true));
            }
            let mut buffer = [0; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut buffer[known..]);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(false));
            }
            self.activity.read();
            self.ahead = [&self.ahead, buffer.filled()].concat().into();
        }
    }

    fn note_write(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(bytes @ 1..)) => self.activity.written(*bytes),
            Poll::Pending => self.activity.blocked(),
            Poll::Ready(_) => {}
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ahead.is_empty() {
            let bytes = this.ahead.len().min(buffer.remaining());
            buffer.put_slice(&this.ahead.split_to(bytes));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.transport).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            this.activity.read();
        }
        outcome
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.note_write(&outcome);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        };
        this.note_write(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => {
                let outcome = Pin::new(stream).poll_flush(cx);
                match outcome {
                    Poll::Pending => this.activity.blocked(),
                    Poll::Ready(_) => this.activity.flushed(),
                }
                outcome
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.closing == Closing::Open {
            ready!(match &mut this.transport {
                Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            })?;
            if !this.activity.left_unread() {
                return Poll::Ready(Ok(()));
            }
            this.closing = Closing::Lingering;
            this.activity.lingers();
        }
        let mut buffer = [0; DISCARDED_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut buffer);
            match ready!(Pin::new(&mut this.transport).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // The end, or a client that is gone: nothing is left to be told.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

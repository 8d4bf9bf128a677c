//! A connection's bytes, plain or encrypted; it notes when they move.

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

/// Bytes read at once of input that is discarded.
const DISCARDED_BYTES: usize = 16 << 10;

/// The first bytes of a client that speaks HTTP/2.
///
/// Source: RFC 9113, "HTTP/2 Connection Preface".
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How bytes travel.
enum SocketTransport {
    Plain(TcpStream),
    // Boxed: a plain connection does not pay for the state of a TLS session.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection's bytes.
pub(super) struct ConnectionStream {
    transport: SocketTransport,
    activity: Arc<Activity>,
    closing: Closing,
    /// Bytes read ahead.
    ahead: Bytes,
    /// Whether the end of the input is withheld from the protocol while a request is under way.
    half_closes: bool,
}

/// How far closing has got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    Open,
    /// The server's side is closed; input is discarded, since closing with unread bytes would reset the connection
    /// before the client has read the answer.
    Lingering,
}

impl ConnectionStream {
    pub(super) fn plain(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self {
            transport: SocketTransport::Plain(stream),
            activity,
            closing: Closing::Open,
            ahead: Bytes::new(),
            half_closes: false,
        }
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, activity: Arc<Activity>) -> Self {
        Self {
            transport: SocketTransport::Tls(Box::new(stream)),
            activity,
            closing: Closing::Open,
            ahead: Bytes::new(),
            half_closes: false,
        }
    }

    /// Lets a client close its sending side and still get its answer.
    ///
    /// hyper drops a request when it reads the end of the input. So the end is withheld while a request is under way;
    /// [`Activity`] records it, and the sweep ends what takes too long.
    pub(super) const fn half_closes(mut self) -> Self {
        self.half_closes = true;
        self
    }

    /// Whether the client speaks HTTP/2. The bytes read to find out are kept for the protocol.
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

    /// Notes the outcome of a write of `offered` bytes.
    fn note_write(&self, outcome: &Poll<io::Result<usize>>, offered: usize) {
        match outcome {
            Poll::Ready(Ok(bytes @ 1..)) => {
                self.activity.written(*bytes);
                // A socket that took everything is not blocked; with TLS the session may only have buffered it, and a
                // flush tells.
                if *bytes == offered && matches!(self.transport, SocketTransport::Plain(_)) {
                    self.activity.flushed();
                }
            }
            Poll::Pending => self.activity.blocked(),
            Poll::Ready(_) => {}
        }
    }
}

impl AsyncRead for SocketTransport {
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

impl AsyncRead for ConnectionStream {
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
        } else if this.half_closes
            && matches!(outcome, Poll::Ready(Ok(())))
            && buffer.remaining() > 0
            && this.activity.ends_sending()
        {
            // Only the end of the request wakes the reader again. A body that waits for more is polled after this, and
            // sees that the input has ended.
            return Poll::Pending;
        }
        outcome
    }
}

impl AsyncWrite for ConnectionStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            SocketTransport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            SocketTransport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        this.note_write(&outcome, bytes.len());
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = match &mut this.transport {
            SocketTransport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            SocketTransport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        };
        this.note_write(&outcome, pieces.iter().map(|piece| piece.len()).sum());
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            SocketTransport::Plain(stream) => stream.is_write_vectored(),
            SocketTransport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.transport {
            SocketTransport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            SocketTransport::Tls(stream) => {
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
                SocketTransport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                SocketTransport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
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
                // The end, or a client that is gone: nothing is left to do.
                _ => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use skep_tensor::MemoryBudget;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{
        super::{activity::ActivityLimits, connections::Connections, limits::Limits},
        *,
    };

    /// Both ends of a connection, the server's first.
    async fn pair() -> (ConnectionStream, TcpStream, Arc<Activity>) {
        let patience = Duration::from_secs(60);
        let limits = Limits {
            connections: 1,
            request_memory: MemoryBudget::new(0),
            head: patience,
            body: patience,
            write: patience,
            idle: patience,
            half_closed: patience,
            header_fields: 100,
        };
        let connections = Arc::new(Connections::new(&limits));
        let entry = connections.enter(ActivityLimits::new(&limits, None, None));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).await.expect("a connection");
        let (server, _) = listener.accept().await.expect("a connection");
        let activity = Arc::clone(&entry.activity);
        (
            ConnectionStream::plain(server, Arc::clone(&activity)),
            client,
            activity,
        )
    }

    #[tokio::test]
    async fn a_socket_that_takes_the_rest_is_not_blocked() {
        let (mut server, mut client, activity) = pair().await;
        let mut sent = 0;
        let chunk = [7; 64 << 10];
        loop {
            let written = poll_fn(|cx| match Pin::new(&mut server).poll_write(cx, &chunk) {
                Poll::Ready(written) => Poll::Ready(Some(written.expect("open"))),
                Poll::Pending => Poll::Ready(None),
            });
            match written.await {
                Some(bytes) => sent += bytes,
                None => break,
            }
        }
        assert!(activity.is_blocked());
        let mut received = vec![0; sent];
        client.read_exact(&mut received).await.expect("open");
        server.write_all(&[7; 10]).await.expect("open");
        assert!(!activity.is_blocked());
    }

    #[tokio::test]
    async fn the_preface_is_read_ahead_and_read_again() {
        for (sent, is_http2) in [
            (&PREFACE[..], true),
            (b"GET / HTTP/1.1\r\n", false),
            (b"PRI", false),
        ] {
            let (mut server, mut client, _) = pair().await;
            client.write_all(sent).await.expect("open");
            client.shutdown().await.expect("open");
            let told = poll_fn(|cx| server.poll_is_http2(cx)).await;
            assert_eq!(told.expect("open"), is_http2);
            let mut read = Vec::new();
            server.read_to_end(&mut read).await.expect("open");
            assert_eq!(read, sent);
        }
    }
}

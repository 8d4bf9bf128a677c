//! Messages over a connection between a client and a daemon.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use skep_ipc::{FrameError, FrameStream, Framing, Malformed};

use crate::StoreError;

/// An answer may be several frames, each with a descriptor. A page of the longest descriptions fits into one.
const FRAMING: Framing = Framing {
    max_frame_bytes: 2 << 20,
    max_descriptors: 1,
    takes_turns: false,
};

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Connection(FrameStream<UnixStream>);

impl Connection {
    pub(crate) const fn new(stream: UnixStream) -> Self {
        Self(FrameStream::new(stream, FRAMING))
    }

    /// How long each read and each write waits for the other side; reads for ever if `None`.
    pub(crate) fn set_patience(
        &self,
        read: Option<Duration>,
        write: Duration,
    ) -> Result<(), StoreError> {
        self.0
            .set_timeouts(read, Some(write))
            .map_err(StoreError::disconnected)
    }

    /// The socket, to hand it to another process.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.0.into_socket()
    }

    /// The socket, to poll it.
    pub(crate) const fn stream(&self) -> &UnixStream {
        self.0.socket()
    }

    /// Ends the connection for both sides and for every process that has it.
    pub(crate) fn shut_down(&self) {
        // It may have ended already.
        let _ = self.stream().shutdown(Shutdown::Both);
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`StoreError::Disconnected`].
    pub(crate) fn send(
        &self,
        message: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), StoreError> {
        let sent = self.0.send(message, descriptor.as_slice());
        sent.map_err(store_error)
    }

    /// Waits for a message and decodes it; `None` if the other side has closed the connection between two messages.
    ///
    /// # Errors
    /// [`StoreError::Disconnected`], and [`StoreError::Protocol`] for a malformed message.
    pub(crate) fn receive<T>(
        &self,
        decode: impl FnOnce(&[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<(T, Option<OwnedFd>)>, StoreError> {
        let mut buffer = Vec::new();
        let received = self.0.receive_with_descriptors(&mut buffer);
        let Some((message, descriptors)) = received.map_err(store_error)? else {
            return Ok(None);
        };
        Ok(Some((decode(message)?, descriptors.into_iter().next())))
    }
}

fn store_error(error: FrameError) -> StoreError {
    match error {
        FrameError::Unsendable { .. }
        | FrameError::TooLong { .. }
        | FrameError::Descriptors
        | FrameError::OutOfTurn => StoreError::protocol(error.to_string()),
        other => StoreError::disconnected(io::Error::from(other)),
    }
}

impl From<Malformed> for StoreError {
    fn from(error: Malformed) -> Self {
        Self::protocol(error.into_reason())
    }
}

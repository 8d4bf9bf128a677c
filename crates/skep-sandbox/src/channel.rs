//! The connection between the server and one worker process, with reused buffers.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Instant,
};

use skep_ipc::{FrameError, FrameStream, Framing, MessageWriter, ReceivedFrame};

/// Configurations and signatures of thousands of tensors are below a mebibyte. A load brings two descriptors.
const FRAMING: Framing = Framing {
    max_frame_bytes: 16 << 20,
    max_descriptors: 2,
    takes_turns: true,
};

/// One end of the connection.
#[derive(Debug)]
pub(crate) struct Channel<S> {
    stream: FrameStream<S>,
    outgoing: MessageWriter,
    incoming: Vec<u8>,
}

impl<S: AsFd> Channel<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            stream: FrameStream::new(socket, FRAMING),
            outgoing: MessageWriter::default(),
            incoming: Vec::new(),
        }
    }

    /// Sends the message that `encode` writes.
    ///
    /// # Errors
    /// As [`FrameStream::send`].
    pub(crate) fn send(
        &mut self,
        encode: impl FnOnce(&mut MessageWriter),
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), FrameError> {
        self.outgoing.clear();
        encode(&mut self.outgoing);
        self.stream.send(self.outgoing.as_bytes(), descriptors)
    }

    /// The next message; `None` when the other end is closed. Descriptors that come with it are dropped.
    ///
    /// # Errors
    /// As [`FrameStream::receive`].
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>, FrameError> {
        self.receive_until(None)
    }

    /// As [`Channel::receive`], and gives up at `deadline`.
    pub(crate) fn receive_until(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<&[u8]>, FrameError> {
        self.stream.receive(&mut self.incoming, deadline)
    }

    /// The next message and its descriptors; `None` when the other end is closed.
    ///
    /// # Errors
    /// As [`FrameStream::receive_with_descriptors`].
    pub(crate) fn receive_with_descriptors(
        &mut self,
    ) -> Result<Option<ReceivedFrame<'_>>, FrameError> {
        self.stream.receive_with_descriptors(&mut self.incoming)
    }
}

//! Frames over a stream socket, with descriptors.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use rustix::{
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use crate::StoreError;

/// Bytes that a frame may have behind its length: a page of the longest descriptions fits.
const MAX_FRAME_BYTES: usize = 2 << 20;

/// Memory for a frame is taken as its bytes come, so many at a time.
const STEP_BYTES: usize = 64 << 10;

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
}

/// A frame's kind and body, and the descriptor that came with it.
pub(crate) type Frame = (Vec<u8>, Option<OwnedFd>);

impl Connection {
    pub(crate) const fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// How long one side waits for the other: to read, and to write.
    pub(crate) fn set_patience(
        &self,
        read: Option<Duration>,
        write: Duration,
    ) -> Result<(), StoreError> {
        self.stream
            .set_read_timeout(read)
            .and_then(|()| self.stream.set_write_timeout(Some(write)))
            .map_err(StoreError::disconnected)
    }

    /// For handing it on.
    pub(crate) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// For polling.
    pub(crate) const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Ends it for both sides, whoever else has it.
    pub(crate) fn shut_down(&self) {
        // It may have ended already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// [`StoreError::Disconnected`].
    pub(crate) fn send(
        &self,
        body: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), StoreError> {
        let length = u32::try_from(body.len())
            .ok()
            .filter(|_| body.len() <= MAX_FRAME_BYTES)
            .ok_or_else(|| StoreError::protocol(format!("a frame of {} bytes", body.len())))?;
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend(length.to_le_bytes());
        frame.extend(body);
        let mut rest = &frame[..];
        let mut descriptor = descriptor;
        while !rest.is_empty() {
            let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            let parts = [IoSlice::new(rest)];
            let sent =
                retry_on_intr(|| sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL));
            let sent = sent.map_err(lost)?;
            // It went with the first byte.
            descriptor = None;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits for a frame; none if the other side has ended the connection between two frames.
    ///
    /// # Errors
    /// [`StoreError::Disconnected`], and [`StoreError::Protocol`] for more than a frame may have.
    pub(crate) fn receive(&self) -> Result<Option<Frame>, StoreError> {
        let mut descriptor = None;
        let mut length = [0; 4];
        let got = self.fill(&mut length, &mut descriptor)?;
        if got == 0 {
            return Ok(None);
        }
        if got < length.len() {
            return Err(StoreError::disconnected("it ended within a message"));
        }
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(StoreError::protocol(format!(
                "it has {length} bytes, expected at most {MAX_FRAME_BYTES}"
            )));
        }
        let mut body = Vec::new();
        while body.len() < length {
            let from = body.len();
            body.resize(length.min(from + STEP_BYTES), 0);
            let expected = body.len() - from;
            if self.fill(&mut body[from..], &mut descriptor)? < expected {
                return Err(StoreError::disconnected("it ended within a message"));
            }
        }
        Ok(Some((body, descriptor)))
    }

    /// Reads until the buffer is full or the connection ends. Bytes that were read.
    fn fill(
        &self,
        buffer: &mut [u8],
        descriptor: &mut Option<OwnedFd>,
    ) -> Result<usize, StoreError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let message = retry_on_intr(|| {
                let mut parts = [IoSliceMut::new(&mut buffer[filled..])];
                let flags = RecvFlags::CMSG_CLOEXEC;
                recvmsg(&self.stream, &mut parts, &mut control, flags)
            });
            let message = message.map_err(lost)?;
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
                    for one in descriptors {
                        if descriptor.replace(one).is_some() {
                            return Err(too_many());
                        }
                    }
                }
            }
            if message.flags.contains(ReturnFlags::CTRUNC) {
                return Err(too_many());
            }
            if message.bytes == 0 {
                break;
            }
            filled += message.bytes;
        }
        Ok(filled)
    }
}

fn too_many() -> StoreError {
    StoreError::protocol("it comes with several descriptors, or one too many for this process")
}

fn lost(error: Errno) -> StoreError {
    if error == Errno::AGAIN {
        return StoreError::disconnected("the other side takes too long");
    }
    StoreError::disconnected(io::Error::from(error))
}

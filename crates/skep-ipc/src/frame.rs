//! Frames over a stream socket.
//!
//! ```text
//! length u32, little-endian | body            descriptors come with the frame's first byte
//! ```

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::sockopt::{Timeout, set_socket_timeout},
};

use crate::descriptors;

/// Bytes before a frame's body.
const HEADER_BYTES: usize = 4;

/// Where peers take turns, this much is read at once before a frame's length is known: most frames are shorter.
const READ_BYTES: usize = 4096;

/// Memory for a frame is taken as its bytes arrive, this many at a time.
const STEP_BYTES: usize = 64 << 10;

/// The rules of a protocol.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    /// Bytes that a frame's body may have.
    pub max_frame_bytes: usize,
    /// Descriptors that a frame may carry; at most [`MAX_DESCRIPTORS`](crate::MAX_DESCRIPTORS).
    pub max_descriptors: usize,
    /// Whether a peer waits for the answer to each frame. A frame then usually takes one read, and one that follows
    /// early is an error. Otherwise each frame is read exactly, so that descriptors are never those of the next one.
    pub takes_turns: bool,
}

/// Why a frame was not sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame to send is too long. Nothing was sent.
    #[error("a frame of {bytes} bytes, expected at most {limit}")]
    Unsendable {
        /// Of its body.
        bytes: usize,
        /// Of the protocol.
        limit: usize,
    },
    /// The peer announces a frame that is too long.
    #[error("it has {bytes} bytes, expected at most {limit}")]
    TooLong {
        /// Of its body.
        bytes: usize,
        /// Of the protocol.
        limit: usize,
    },
    /// The peer sent too many descriptors.
    #[error("it carries more descriptors than expected, or than this process can open")]
    Descriptors,
    /// The peer sent a frame before it had an answer to the last one.
    #[error("another frame follows it")]
    OutOfTurn,
    /// The connection ended within a frame.
    #[error("the connection ended within a frame")]
    CutOff,
    /// The deadline passed, or a read or a write took longer than [`FrameStream::set_timeouts`] allows.
    #[error("the other side takes too long")]
    TimedOut,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for FrameError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::AGAIN | Errno::TIMEDOUT => Self::TimedOut,
            other => Self::Io(other.into()),
        }
    }
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        let kind = match error {
            FrameError::Unsendable { .. } => io::ErrorKind::InvalidInput,
            FrameError::TooLong { .. } | FrameError::Descriptors | FrameError::OutOfTurn => {
                io::ErrorKind::InvalidData
            }
            FrameError::CutOff => io::ErrorKind::UnexpectedEof,
            FrameError::TimedOut => io::ErrorKind::TimedOut,
            FrameError::Io(error) => return error,
        };
        Self::new(kind, error)
    }
}

/// A frame's body, and the descriptors that came with it.
pub type ReceivedFrame<'b> = (&'b [u8], Vec<OwnedFd>);

/// A connected stream socket that carries frames.
#[derive(Debug)]
pub struct FrameStream<S> {
    socket: S,
    framing: Framing,
}

impl<S: AsFd> FrameStream<S> {
    /// Frames over a blocking socket.
    pub const fn new(socket: S, framing: Framing) -> Self {
        Self { socket, framing }
    }

    /// The socket.
    pub const fn socket(&self) -> &S {
        &self.socket
    }

    /// Gives the socket back.
    pub fn into_socket(self) -> S {
        self.socket
    }

    /// How long each read and each write waits for the peer; `None` for ever.
    ///
    /// # Errors
    /// The system's, such as for a time of zero.
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, read)?;
        set_socket_timeout(&self.socket, Timeout::Send, write)?;
        Ok(())
    }

    /// Sends a frame. Descriptors stay open here.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`], [`FrameError::TimedOut`], and the socket's.
    pub fn send(&self, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), FrameError> {
        let limit = self.framing.max_frame_bytes;
        let length = u32::try_from(body.len()).ok();
        let length = length.filter(|_| body.len() <= limit);
        let length = length.ok_or(FrameError::Unsendable {
            bytes: body.len(),
            limit,
        })?;
        let header = length.to_le_bytes();
        let total = HEADER_BYTES + body.len();
        let mut sent = 0;
        while sent < total {
            let head = IoSlice::new(header.get(sent..).unwrap_or_default());
            let rest = IoSlice::new(
                body.get(sent.saturating_sub(HEADER_BYTES)..)
                    .unwrap_or_default(),
            );
            let descriptors = if sent == 0 { descriptors } else { &[] };
            sent += self.send_some(&[head, rest], descriptors)?;
        }
        Ok(())
    }

    /// Worker processes may not call `sendmsg` while they run a model; without descriptors it is not needed.
    fn send_some(
        &self,
        parts: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<usize, Errno> {
        if descriptors.is_empty() {
            return retry_on_intr(|| rustix::io::writev(&self.socket, parts));
        }
        descriptors::send(self.socket.as_fd(), parts, descriptors)
    }

    /// Waits for a frame; `None` when the peer has closed the connection. Descriptors that come with it are dropped.
    /// `buffer` keeps the bytes, and its memory can be used again.
    ///
    /// # Errors
    /// [`FrameError::TimedOut`] after the deadline, if there is one; what the peer did wrong; and the socket's.
    pub fn receive<'b>(
        &self,
        buffer: &'b mut Vec<u8>,
        deadline: Option<Instant>,
    ) -> Result<Option<&'b [u8]>, FrameError> {
        read_frame(self.framing, buffer, |into| {
            if let Some(deadline) = deadline {
                wait_until(self.socket.as_fd(), deadline)?;
            }
            Ok(retry_on_intr(|| {
                rustix::io::read(&self.socket, &mut *into)
            })?)
        })
    }

    /// As [`Self::receive`], with the frame's descriptors.
    ///
    /// # Errors
    /// As [`Self::receive`], and [`FrameError::Descriptors`] if there are more than the protocol allows.
    pub fn receive_with_descriptors<'b>(
        &self,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<ReceivedFrame<'b>>, FrameError> {
        let mut descriptors = Vec::new();
        let body = read_frame(self.framing, buffer, |into| {
            let received = descriptors::receive(self.socket.as_fd(), into, &mut descriptors)?;
            if received.lost_descriptors || descriptors.len() > self.framing.max_descriptors {
                return Err(FrameError::Descriptors);
            }
            Ok(received.bytes)
        })?;
        Ok(body.map(|body| (body, descriptors)))
    }
}

/// Reads until a frame is complete.
fn read_frame(
    framing: Framing,
    buffer: &mut Vec<u8>,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, FrameError>,
) -> Result<Option<&[u8]>, FrameError> {
    let (mut filled, mut end) = (0, None);
    loop {
        if end.is_none()
            && let Some((header, _)) = buffer[..filled].split_first_chunk::<HEADER_BYTES>()
        {
            let bytes = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
            let limit = framing.max_frame_bytes;
            if bytes > limit {
                return Err(FrameError::TooLong { bytes, limit });
            }
            end = Some(HEADER_BYTES + bytes);
        }
        match end {
            Some(end) if filled > end => return Err(FrameError::OutOfTurn),
            Some(end) if filled == end => return Ok(Some(&buffer[HEADER_BYTES..end])),
            _ => {}
        }
        let needed = end.map_or(HEADER_BYTES, |end| end.min(filled + STEP_BYTES));
        let until = match framing.takes_turns {
            true => needed.max(READ_BYTES),
            false => needed,
        };
        if buffer.len() < until {
            buffer.resize(until, 0);
        }
        match read(&mut buffer[filled..until])? {
            0 if filled == 0 => return Ok(None),
            0 => return Err(FrameError::CutOff),
            count => filled += count,
        }
    }
}

/// Waits until there is something to read, or the deadline has passed.
fn wait_until(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(), Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

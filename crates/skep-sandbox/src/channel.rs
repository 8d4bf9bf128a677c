//! Messages over a socket: each is its length (u32, little-endian) and its bytes; descriptors come with its first byte.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    },
};

use crate::encode::Writer;

/// How long a message may be: configurations and signatures of thousands of tensors are below a mebibyte.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Bytes before a message.
const HEADER_BYTES: usize = 4;

/// What is read at once before a message's length is known: most messages are shorter.
const READ_BYTES: usize = 4096;

/// Descriptors that come with one message at most.
const MAX_DESCRIPTORS: usize = 2;

/// One end of a conversation.
#[derive(Debug)]
pub(crate) struct Channel<S> {
    socket: S,
    outgoing: Writer,
    incoming: Vec<u8>,
}

impl<S: AsFd> Channel<S> {
    pub(crate) fn new(socket: S) -> Self {
        Self {
            socket,
            outgoing: Writer::default(),
            incoming: Vec::new(),
        }
    }

    /// Sends what `encode` writes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a message that is too long, of which nothing is sent; those of the socket.
    pub(crate) fn send(
        &mut self,
        encode: impl FnOnce(&mut Writer),
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let writer = &mut self.outgoing;
        writer.0.clear();
        writer.u32(0);
        encode(writer);
        let length = writer.0.len() - HEADER_BYTES;
        if length > MAX_MESSAGE_BYTES {
            let text = format!("a message of {length} bytes, expected {MAX_MESSAGE_BYTES} at most");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let header = u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        writer.0[..HEADER_BYTES].copy_from_slice(&header);
        let socket = self.socket.as_fd();
        let mut rest: &[u8] = &writer.0;
        if !descriptors.is_empty() {
            let sent = send_with(socket, rest, descriptors)?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        while !rest.is_empty() {
            let sent = retry_on_intr(|| rustix::io::write(socket, rest))?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next message; `None` when the other end is closed. Descriptors that come with it are dropped.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a message that is too long or followed by another one, those of the socket.
    pub(crate) fn receive(&mut self) -> io::Result<Option<&[u8]>> {
        self.receive_until(None)
    }

    /// As [`Channel::receive`], but waits for it no longer than until `deadline`, where there is one.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when that has passed; as [`Channel::receive`].
    pub(crate) fn receive_until(&mut self, deadline: Option<Instant>) -> io::Result<Option<&[u8]>> {
        let socket = self.socket.as_fd();
        receive(&mut self.incoming, |into| {
            if let Some(deadline) = deadline {
                wait_until(socket, deadline)?;
            }
            retry_on_intr(|| rustix::io::read(socket, &mut *into))
        })
    }

    /// The next message and the descriptors that came with it; otherwise as [`Channel::receive`].
    pub(crate) fn receive_with_descriptors(&mut self) -> io::Result<Option<(&[u8], Vec<OwnedFd>)>> {
        let socket = self.socket.as_fd();
        let mut descriptors = Vec::new();
        let message = receive(&mut self.incoming, |into| {
            receive_with(socket, into, &mut descriptors)
        })?;
        Ok(message.map(|message| (message, descriptors)))
    }
}

fn receive(
    buffer: &mut Vec<u8>,
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Option<&[u8]>> {
    let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
    let (mut filled, mut end) = (0, None);
    loop {
        if end.is_none()
            && let Some((header, _)) = buffer[..filled].split_first_chunk::<HEADER_BYTES>()
        {
            let length = usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX);
            if length > MAX_MESSAGE_BYTES {
                return invalid("a message is too long");
            }
            end = Some(HEADER_BYTES + length);
        }
        match end {
            Some(end) if filled > end => return invalid("a message is followed by another one"),
            Some(end) if filled == end => return Ok(Some(&buffer[HEADER_BYTES..end])),
            _ => {}
        }
        let wanted = end.unwrap_or(READ_BYTES).max(READ_BYTES);
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        let count = read(&mut buffer[filled..])?;
        match (count, filled) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => filled += count,
        }
    }
}

/// Waits until there is something to read, or the deadline has passed.
fn wait_until(socket: BorrowedFd<'_>, deadline: Instant) -> Result<(), Errno> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(
            &mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)],
            Some(&left),
        ) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn send_with(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = retry_on_intr(|| {
        rustix::net::sendmsg(
            socket,
            &[io::IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
    });
    sent.map_err(Into::into)
}

fn receive_with(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [io::IoSliceMut::new(into)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, time::Duration};

    use super::*;

    fn pair() -> (Channel<UnixStream>, Channel<UnixStream>) {
        let (one, other) = UnixStream::pair().expect("pair");
        (Channel::new(one), Channel::new(other))
    }

    #[test]
    fn messages_of_every_size_arrive_whole_with_their_descriptors() {
        let (mut sender, mut receiver) = pair();
        let thread = std::thread::spawn(move || {
            for length in [0, 1, READ_BYTES - HEADER_BYTES, READ_BYTES, 1 << 20] {
                let bytes = vec![7; length];
                let socket = sender.socket.try_clone().expect("clone");
                let descriptors = [socket.as_fd()];
                let with = &descriptors[..length % 2];
                sender
                    .send(|writer| writer.0.extend_from_slice(&bytes), with)
                    .expect("send");
                // The answer: one message at a time.
                sender.receive().expect("receive").expect("open");
            }
        });
        for length in [0, 1, READ_BYTES - HEADER_BYTES, READ_BYTES, 1 << 20] {
            let (message, descriptors) = receiver
                .receive_with_descriptors()
                .expect("receive")
                .expect("open");
            assert_eq!(message.len(), length);
            assert!(message.iter().all(|&byte| byte == 7));
            assert_eq!(descriptors.len(), length % 2);
            receiver.send(|_| {}, &[]).expect("send");
        }
        thread.join().expect("sender");
        assert!(receiver.receive().expect("receive").is_none());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, text) in [
            (&[255, 255, 255, 255][..], "too long"),
            (&[1, 0, 0, 0, 9, 1][..], "followed"),
            (&[2, 0, 0, 0, 9][..], "end of file"),
        ] {
            let (sender, mut receiver) = pair();
            rustix::io::write(&sender.socket, bytes).expect("write");
            drop(sender);
            let error = receiver.receive().expect_err("refused").to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn a_message_that_is_too_long_is_not_sent() {
        let (mut sender, mut receiver) = pair();
        let error = sender
            .send(|writer| writer.0.resize(MAX_MESSAGE_BYTES + 5, 0), &[])
            .expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        drop(sender);
        assert!(receiver.receive().expect("receive").is_none());
    }

    #[test]
    fn a_message_that_does_not_come_whole_in_time_is_not_waited_for() {
        let (mut sender, mut receiver) = pair();
        sender.send(|writer| writer.u8(7), &[]).expect("send");
        // What is there is taken, however late.
        let past = Some(Instant::now());
        let message = receiver.receive_until(past).expect("receive");
        assert_eq!(message, Some(&[7][..]));
        let soon = || Some(Instant::now() + Duration::from_millis(2));
        for part in [&[][..], &[9, 0]] {
            rustix::io::write(&sender.socket, part).expect("write");
            let error = receiver.receive_until(soon()).expect_err("late");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }
}

//! File descriptors over a socket (`SCM_RIGHTS`). They travel with the first byte of what is sent with them.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    cmsg_space,
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// Descriptors that one frame can carry.
pub const MAX_DESCRIPTORS: usize = 2;

/// Sends some of the bytes, and all descriptors. Returns how many bytes were sent.
///
/// # Errors
/// [`Errno::INVAL`] for more than [`MAX_DESCRIPTORS`]; the socket's errors.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    descriptors: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL);
    }
    retry_on_intr(|| sendmsg(socket, parts, &mut control, SendFlags::NOSIGNAL))
}

/// What one read brought.
pub(crate) struct RawRead {
    pub(crate) bytes: usize,
    /// Whether descriptors were lost: the peer sent more than there is space for, or this process can open no more.
    pub(crate) lost_descriptors: bool,
}

/// Reads some bytes, and appends the descriptors that came with them.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<RawRead, Errno> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(into)];
        recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = ancillary {
            descriptors.extend(received);
        }
    }
    Ok(RawRead {
        bytes: message.bytes,
        lost_descriptors: message.flags.contains(ReturnFlags::CTRUNC),
    })
}

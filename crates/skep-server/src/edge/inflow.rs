//! A request's body: it arrives at the client's pace and is charged before a handler gets it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;
use skep_tensor::Charge;
use tokio::time::{Instant, Sleep, sleep};

use super::{activity::Activity, intake::IntakeReader};
use crate::{
    access::AccessNote,
    error::{ApiError, BodyError, MIN_PROGRESS_BYTES},
};

/// How long a call's messages may be, and how much memory they may become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MessageBounds {
    /// The largest message, in bytes.
    pub(crate) bytes: usize,
    /// Bytes charged for each byte of a message; a charge above 1 lasts until the next message begins.
    pub(crate) weight: usize,
    /// Whether the client may send any number of messages, at any time.
    pub(crate) many: bool,
}

/// Where a body comes from.
pub(super) enum BodySource {
    Http1(Incoming),
    Http2 {
        reader: IntakeReader,
        /// The rest of the declared length, which has not arrived yet.
        length: Option<u64>,
    },
}

impl BodySource {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let (reader, length) = match self {
            Self::Http1(body) => return Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Http2 { reader, length } => (reader, length),
        };
        let data = ready!(reader.poll_data(cx)?);
        Poll::Ready(data.map(|data| {
            *length = length.map(|length| length.saturating_sub(data.len() as u64));
            Ok(Frame::data(data))
        }))
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2 { reader, .. } => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2 { length, .. } => length.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

pin_project! {
    /// A request's body: it must keep coming and fit into the memory.
    pub(super) struct Inflow {
        source: BodySource,
        // Where gRPC's messages begin and end; `None` for HTTP.
        messages: Option<MessageFraming>,
        charge: Arc<Charge>,
        patience: Duration,
        #[pin]
        wait: Option<Sleep>,
        // Bytes that have arrived since the wait began.
        fresh_bytes: usize,
        // Is told when the body is dropped before its end.
        unread: Option<Arc<Activity>>,
        // Counts the bytes for the access log.
        note: AccessNote,
    }

    impl PinnedDrop for Inflow {
        fn drop(this: Pin<&mut Self>) {
            if let Some(activity) = this.unread.as_ref().filter(|_| !this.source.is_end_stream()) {
                activity.leave_unread();
            }
        }
    }
}

impl Inflow {
    /// `unread` is told when the body is dropped before its end.
    pub(super) const fn new(
        source: BodySource,
        messages: Option<MessageBounds>,
        charge: Arc<Charge>,
        patience: Duration,
        unread: Option<Arc<Activity>>,
        note: AccessNote,
    ) -> Self {
        Self {
            source,
            messages: match messages {
                Some(bounds) => Some(MessageFraming::new(bounds)),
                None => None,
            },
            charge,
            patience,
            wait: None,
            fresh_bytes: 0,
            unread,
            note,
        }
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let is_grpc = this.messages.is_some();
        let refuse = |error: BodyError| Poll::Ready(Some(Err(boxed(error, is_grpc))));
        match this.source.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let Some(data) = frame.data_ref() else {
                    return Poll::Ready(Some(Ok(frame)));
                };
                this.note.received(data.len());
                *this.fresh_bytes += data.len();
                let mut weight = 1;
                if let Some(messages) = this.messages {
                    weight = messages.bounds.weight;
                    if let Err(error) = messages.pass(data, this.charge) {
                        return refuse(error);
                    }
                }
                let bytes = data.len().saturating_mul(weight);
                if let Err(over) = this.charge.add(bytes) {
                    return refuse(BodyError::NoMemory(over));
                }
                if let Some(messages) = this.messages {
                    messages.charged += bytes;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => refuse(error),
            Poll::Ready(None) => {
                *this.unread = None;
                Poll::Ready(None)
            }
            // A stream may pause for any time between two messages.
            Poll::Pending
                if this
                    .messages
                    .as_ref()
                    .is_some_and(MessageFraming::may_pause) =>
            {
                this.wait.set(None);
                Poll::Pending
            }
            Poll::Pending if (this.unread.as_ref()).is_some_and(|it| it.has_ended_sending()) => {
                refuse(BodyError::CutShort)
            }
            Poll::Pending => {
                if this.wait.is_none() {
                    *this.fresh_bytes = 0;
                    this.wait.set(Some(sleep(*this.patience)));
                }
                let mut wait = this.wait.as_pin_mut().expect("set above");
                ready!(wait.as_mut().poll(cx));
                if *this.fresh_bytes < MIN_PROGRESS_BYTES {
                    return refuse(BodyError::Stalled(*this.patience));
                }
                *this.fresh_bytes = 0;
                wait.as_mut().reset(Instant::now() + *this.patience);
                // Registers the task for the new deadline.
                wait.poll(cx).map(|()| None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

/// An error of the type that a protocol's handlers expect.
fn boxed(error: BodyError, is_grpc: bool) -> BoxError {
    match error {
        BodyError::TooLong { .. } => Box::new(tonic::Status::out_of_range(error.to_string())),
        error if is_grpc => Box::new(tonic::Status::from(ApiError::from(&error))),
        error => Box::new(error),
    }
}

/// Where the messages of a call begin and end: a flag, a length of four bytes, and so many bytes.
///
/// Source: gRPC over HTTP/2, "Length-Prefixed-Message".
#[derive(Debug)]
struct MessageFraming {
    bounds: MessageBounds,
    /// Bytes of a message's prefix that have arrived, and the length in them so far.
    prefix_bytes: usize,
    length: u32,
    /// Bytes of a message that are still to come.
    left: usize,
    /// Bytes charged since the last message began.
    charged: usize,
}

/// A flag and a length.
const PREFIX_BYTES: usize = 5;

impl MessageFraming {
    const fn new(bounds: MessageBounds) -> Self {
        Self {
            bounds,
            prefix_bytes: 0,
            length: 0,
            left: 0,
            charged: 0,
        }
    }

    const fn may_pause(&self) -> bool {
        self.bounds.many && self.is_between()
    }

    const fn is_between(&self) -> bool {
        self.prefix_bytes == 0 && self.left == 0
    }

    /// Accounts for data. Refuses a message by its declared length, before memory is reserved for it, if it is longer
    /// than the call allows or could never fit into the memory.
    fn pass(&mut self, mut data: &[u8], charge: &Charge) -> Result<(), BodyError> {
        while let Some(&byte) = data.first() {
            if self.left > 0 {
                let passed = self.left.min(data.len());
                self.left -= passed;
                data = &data[passed..];
                continue;
            }
            if self.prefix_bytes == 0 {
                self.length = 0;
                if self.bounds.weight > 1 {
                    // The surcharge for the decoded form ends with the message; large calls charge for that form
                    // themselves.
                    charge.give_back(std::mem::take(&mut self.charged));
                }
            } else {
                self.length = self.length << 8 | u32::from(byte);
            }
            self.prefix_bytes += 1;
            if self.prefix_bytes == PREFIX_BYTES {
                self.prefix_bytes = 0;
                self.left = usize::try_from(self.length).unwrap_or(usize::MAX);
                self.check(charge)?;
            }
            data = &data[1..];
        }
        Ok(())
    }

    /// Checks the length of the message that begins.
    fn check(&self, charge: &Charge) -> Result<(), BodyError> {
        let (length, limit) = (self.left, self.bounds.bytes);
        if length > limit {
            return Err(BodyError::TooLong { length, limit });
        }
        charge.could_hold(length).map_err(BodyError::NoMemory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_tensor::MemoryBudget;

    const BOUNDS: MessageBounds = MessageBounds {
        bytes: 256,
        weight: 1,
        many: true,
    };

    #[test]
    fn message_boundaries_are_found_in_any_pieces() {
        let call = [
            &[0, 0, 0, 0, 3][..],
            b"abc",
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0],
            &[7; 256],
        ]
        .concat();
        let free = Charge::unbounded();
        for cut in 1..call.len() {
            let mut messages = MessageFraming::new(BOUNDS);
            let (first, second) = call.split_at(cut);
            messages.pass(first, &free).expect("short enough");
            assert_eq!(
                messages.is_between(),
                [8, 13].contains(&cut),
                "cut at {cut}"
            );
            messages.pass(second, &free).expect("short enough");
            assert!(messages.is_between());
        }
    }

    #[test]
    fn the_decoded_form_is_charged_until_the_next_message_begins() {
        let budget = MemoryBudget::new(10_000);
        let charge = budget.charge();
        let mut messages = MessageFraming::new(MessageBounds {
            weight: 32,
            ..BOUNDS
        });
        for _ in 0..100 {
            let message = [0, 0, 0, 0, 1, 7];
            messages.pass(&message, &charge).expect("short enough");
            let bytes = message.len() * 32;
            charge.add(bytes).expect("room");
            messages.charged += bytes;
        }
        assert_eq!(charge.bytes(), 6 * 32);
        assert!(messages.may_pause());
        messages.bounds.many = false;
        assert!(!messages.may_pause(), "a call of one message ends");
    }

    #[test]
    fn a_message_is_refused_by_its_declared_length() {
        let prefix = [0, 0, 0, 1, 1];
        let mut messages = MessageFraming::new(BOUNDS);
        let free = Charge::unbounded();
        messages.pass(&prefix[..4], &free).expect("no length yet");
        let refused = messages.pass(&prefix[4..], &free);
        let expected = matches!(
            refused,
            Err(BodyError::TooLong {
                length: 257,
                limit: 256
            })
        );
        assert!(expected, "{refused:?}");

        let budget = MemoryBudget::new(100);
        let prefix = [0, 0, 0, 0, 101];
        let refused = MessageFraming::new(BOUNDS).pass(&prefix, &budget.charge());
        assert!(
            matches!(refused, Err(BodyError::NoMemory(_))),
            "{refused:?}"
        );
    }
}

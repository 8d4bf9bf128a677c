//! The part of an HTTP/2 request that has arrived, read or not.
//!
//! A client may fill its windows before the request's handler reads. Those bytes are taken in as they arrive and
//! charged to the memory of requests; the stream's window opens again when the handler has read them. So one unread
//! stream cannot exhaust the connection's window and block the others.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use skep_tensor::Charge;

use crate::error::BodyError;

/// What the handler and the request's task share.
struct Intake {
    /// `None` once the handler has dropped its side.
    stream: Option<RecvStream>,
    /// Bytes taken in and not read yet.
    unread: VecDeque<Bytes>,
    /// The charge for `unread`.
    charge: Charge,
    /// The error that the reader gets after the unread bytes.
    failed: Option<BodyError>,
    /// Whether the body has ended.
    ended: bool,
    /// The handler's task, if it waits for more. It may differ from the request's task.
    waiting: Option<Waker>,
}

impl Intake {
    /// Takes the next bytes from the stream, if any have arrived.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.ended) else {
            return Poll::Ready(None);
        };
        let end = match stream.poll_data(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(data))) => return Poll::Ready(Some(data)),
            // The client needs nothing more, and does not send the rest.
            Poll::Ready(Some(Err(error))) if error.reason() == Some(Reason::NO_ERROR) => None,
            Poll::Ready(Some(Err(error))) => Some(error.into()),
            Poll::Ready(None) => None,
        };
        self.ended = true;
        self.failed = end;
        Poll::Ready(None)
    }

    /// Lets the client send that many bytes again.
    fn release(&mut self, data: &Bytes) {
        if let Some(stream) = &mut self.stream {
            // Fails for a stream that has ended, which needs no window.
            drop(stream.flow_control().release_capacity(data.len()));
        }
    }
}

fn lock(intake: &Mutex<Intake>) -> MutexGuard<'_, Intake> {
    // Each change is one step: a panic leaves nothing half done.
    skep_host::lock(intake)
}

/// The handler's side. Dropping it ends the request's body.
pub(super) struct IntakeReader(Arc<Mutex<Intake>>);

/// The side of the request's task.
pub(super) struct IntakeTaker(Arc<Mutex<Intake>>);

/// Both sides of a request's body; unread bytes are added to `charge`.
pub(super) fn intake(stream: RecvStream, charge: Charge) -> (IntakeReader, IntakeTaker) {
    let intake = Arc::new(Mutex::new(Intake {
        stream: Some(stream),
        unread: VecDeque::new(),
        charge,
        failed: None,
        ended: false,
        waiting: None,
    }));
    (IntakeReader(Arc::clone(&intake)), IntakeTaker(intake))
}

impl IntakeReader {
    pub(super) fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut intake = lock(&self.0);
        intake.waiting = None;
        if let Some(data) = intake.unread.pop_front() {
            intake.charge.give_back(data.len());
            intake.release(&data);
            return Poll::Ready(Some(Ok(data)));
        }
        match intake.poll_next(cx) {
            Poll::Ready(Some(data)) => {
                intake.release(&data);
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(None) => Poll::Ready(intake.failed.take().map(Err)),
            Poll::Pending => {
                intake.waiting = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let intake = lock(&self.0);
        let is_over = |stream: &RecvStream| stream.is_end_stream();
        intake.unread.is_empty()
            && intake.failed.is_none()
            && intake.stream.as_ref().is_none_or(is_over)
    }
}

impl Drop for IntakeReader {
    fn drop(&mut self) {
        let mut intake = lock(&self.0);
        intake.unread.clear();
        intake.charge.clear();
        intake.stream = None;
    }
}

impl IntakeTaker {
    /// Takes in and charges the bytes that have arrived, and wakes a waiting handler. The request's task calls this
    /// whenever it has nothing else to do.
    pub(super) fn take(&self, cx: &mut Context<'_>) {
        let mut intake = lock(&self.0);
        let is_own = |waiting: &mut Waker| waiting.will_wake(cx.waker());
        if intake.waiting.take_if(is_own).is_some() {
            // The waiting task is this one and has just polled: it is woken when more arrives.
            return;
        }
        let before = intake.unread.len();
        while let Poll::Ready(Some(data)) = intake.poll_next(cx) {
            match intake.charge.add(data.len()) {
                Ok(()) => intake.unread.push_back(data),
                Err(over) => {
                    intake.failed = Some(BodyError::NoMemory(over));
                    intake.ended = true;
                    intake.stream = None;
                }
            }
        }
        let has_news = intake.unread.len() > before || intake.ended;
        let waiting = intake.waiting.take_if(|_| has_news);
        drop(intake);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

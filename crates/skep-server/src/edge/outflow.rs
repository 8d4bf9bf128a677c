//! An answer's body: each piece keeps its charge until it is written.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use skep_tensor::Charge;

use super::activity::Activity;
use crate::{access::AccessVisit, traced::SendingTrace};

/// A request under way; it ends when this is dropped.
pub(super) struct RequestInFlight {
    activity: Arc<Activity>,
    /// For the access log.
    visit: Option<AccessVisit>,
    /// Ends the request's trace.
    traced: Option<SendingTrace>,
}

impl RequestInFlight {
    pub(super) fn new(activity: Arc<Activity>, visit: Option<AccessVisit>) -> Self {
        activity.request_begins();
        Self {
            activity,
            visit,
            traced: None,
        }
    }

    /// The head of the answer is ready.
    pub(super) fn answered<B>(&mut self, response: &mut Response<B>) {
        self.traced = response.extensions_mut().remove();
        if let Some(visit) = &mut self.visit {
            visit.answered(response);
        }
    }

    /// A piece of the answer leaves.
    fn sent(&mut self, bytes: usize) {
        if let Some(visit) = &mut self.visit {
            visit.sent(bytes);
        }
    }

    /// The answer ends with these trailers.
    fn ended(&mut self, trailers: &HeaderMap) {
        if let Some(visit) = &mut self.visit {
            visit.ended(trailers);
        }
    }

    /// The answer begins.
    pub(super) fn answer_begins(&self) {
        self.activity.answer_begins();
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.activity.request_ends();
    }
}

/// A piece of an answer. The protocol drops it once it is written, and its charge with it, however long before the
/// answer's body was read to its end.
#[derive(Debug, Default)]
pub(super) struct AnswerPiece {
    data: Bytes,
    charge: Option<Arc<Charge>>,
}

impl AnswerPiece {
    /// Splits off the first `bytes`.
    pub(super) fn split_to(&mut self, bytes: usize) -> Self {
        Self {
            data: self.data.split_to(bytes),
            charge: self.charge.clone(),
        }
    }
}

impl Buf for AnswerPiece {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, bytes: usize) {
        self.data.advance(bytes);
    }

    fn copy_to_bytes(&mut self, bytes: usize) -> Bytes {
        self.data.copy_to_bytes(bytes)
    }
}

/// The charge that an answer holds.
#[derive(Debug)]
pub(super) enum Holding {
    /// Nothing.
    Nothing,
    /// One charge for the whole answer.
    Whole(Arc<Charge>),
    /// The charge for the messages encoded since the last piece left, and the rest of the call's charge.
    Messages {
        leaving: Arc<Charge>,
        _call: Arc<Charge>,
    },
}

impl Holding {
    /// The charge of the next piece.
    fn of_piece(&self) -> Option<Arc<Charge>> {
        match self {
            Self::Nothing => None,
            Self::Whole(charge) => Some(Arc::clone(charge)),
            Self::Messages { leaving, .. } if leaving.bytes() == 0 => None,
            Self::Messages { leaving, .. } => Some(Arc::new(leaving.split(usize::MAX))),
        }
    }
}

pin_project! {
    /// An answer's body; the request is under way until it is dropped.
    pub(super) struct Outflow {
        #[pin]
        body: Body,
        holding: Holding,
        running: Option<RequestInFlight>,
    }
}

impl Outflow {
    pub(super) const fn new(
        body: Body,
        holding: Holding,
        running: Option<RequestInFlight>,
    ) -> Self {
        Self {
            body,
            holding,
            running,
        }
    }
}

impl http_body::Body for Outflow {
    type Data = AnswerPiece;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<AnswerPiece>, axum::Error>>> {
        let this = self.project();
        let frame = ready!(this.body.poll_frame(cx)?);
        if let (Some(running), Some(frame)) = (this.running, &frame) {
            if let Some(trailers) = frame.trailers_ref() {
                running.ended(trailers);
            } else if let Some(data) = frame.data_ref() {
                running.sent(data.len());
            }
        }
        let piece = |data| AnswerPiece {
            data,
            charge: this.holding.of_piece(),
        };
        Poll::Ready(frame.map(|frame| Ok(frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body as _;
    use skep_tensor::MemoryBudget;

    fn piece(body: &mut Outflow) -> AnswerPiece {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().expect("data"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_keeps_its_charge_until_its_last_piece_is_written() {
        let budget = MemoryBudget::new(100);
        let charge = Arc::new(budget.charge());
        charge.add(10).expect("room");
        let mut body = Outflow::new(Body::from("0123456789"), Holding::Whole(charge), None);
        let mut rest = piece(&mut body);
        drop(body);
        let first = rest.split_to(4);
        assert_eq!(first.chunk(), b"0123");
        drop(first);
        assert_eq!(budget.used(), 10);
        drop(rest);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn each_piece_of_a_stream_keeps_its_own_charge() {
        let budget = MemoryBudget::new(100);
        let (leaving, call) = (Arc::new(budget.charge()), Arc::new(budget.charge()));
        let holding = Holding::Messages {
            leaving: Arc::clone(&leaving),
            _call: call,
        };
        let frames = futures_util::stream::iter(["a", "b"].map(Ok::<_, axum::Error>));
        let mut body = Outflow::new(Body::from_stream(frames), holding, None);
        leaving.add(7).expect("room");
        let first = piece(&mut body);
        leaving.add(5).expect("room");
        let second = piece(&mut body);
        assert_eq!((leaving.bytes(), budget.used()), (0, 12));
        drop(first);
        assert_eq!(budget.used(), 5);
        drop(second);
        assert_eq!(budget.used(), 0);
    }
}

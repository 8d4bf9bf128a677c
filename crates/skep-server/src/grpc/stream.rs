//! `ModelStreamInfer`: many requests on one call, answered in the order of their arrival.
//!
//! Requests reach their models in the order of their arrival and run concurrently; an answer waits for those before it. A stream takes its next request only when fewer than
//! [`MAX_IN_FLIGHT`] are under way, so flow control slows down a client that does not read its answers. Dropping the
//! stream drops its requests, which takes waiting ones out of their queues.
//!
//! Source: Triton, `grpc_service.proto`; errors as Triton 2.51 answers them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use skep_proto::inference::{
    InferParameter, ModelInferResponse, ModelStreamInferResponse, infer_parameter::ParameterChoice,
};
use skep_tensor::Charge;
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::{
    codec::{EncodedMessage, of_message},
    infer::{self, Noted, Received},
};
use crate::{
    access::{AccessNote, AccessVisit},
    inference::InferenceFailure,
    state::ServerState,
    traced::{self, CallTiming, TracedCall},
};

/// Requests of one stream that may be under way at once: several of the largest usual batches. Each is charged for its
/// memory from its first byte until its answer is written.
const MAX_IN_FLIGHT: usize = 128;

/// The metadata by which a client asks for errors as the call's status, which ends the stream, instead of as an answer.
const STATUS_ERRORS: &str = "triton_grpc_error";

/// The parameter that marks the final answer to a request.
const FINAL_RESPONSE: &str = "triton_final_response";

type StreamAnswer = Result<EncodedMessage<ModelStreamInferResponse>, Status>;

/// A request that has arrived, and its charge.
type StreamRequest = Result<(Bytes, Arc<Charge>), Status>;

/// Answers the requests of a stream until the client ends it or the node stops. `incoming` is the charge for what has
/// arrived; each answer is charged for being encoded `encodings` times.
pub(super) fn answers(
    state: Arc<ServerState>,
    metadata: MetadataMap,
    requests: Streaming<Bytes>,
    incoming: Arc<Charge>,
    encodings: usize,
    note: AccessNote,
) -> impl Stream<Item = StreamAnswer> + Send + 'static {
    let status_errors = metadata
        .get(STATUS_ERRORS)
        .is_some_and(|value| value == "true");
    let metadata = Arc::new(metadata);
    let answering = (Arc::clone(&state), Arc::clone(&metadata));
    let answers = until_stop(Arc::clone(&state), requests, incoming)
        // One after the other: a small request must not reach the model before a large one that came earlier, since both
        // may be of one sequence.
        .then(move |message| {
            // The request has arrived: its time counts from here.
            let (note, visit) = note.message();
            let timing = CallTiming::begin(&state.traces, traced::GRPC);
            let (state, metadata) = (Arc::clone(&state), Arc::clone(&metadata));
            async move {
                let received = async {
                    let (message, charge) = message?;
                    note.received(message.len());
                    let received = infer::receive(message, &charge).await?;
                    let traced = timing.received(&state, &received.model, (*metadata).as_ref());
                    Ok::<_, Status>((received, charge, traced))
                };
                (received.await, note, visit)
            }
        })
        .map(move |(received, note, mut visit)| {
            let (state, metadata) = (Arc::clone(&answering.0), Arc::clone(&answering.1));
            async move {
                let mut traced = None;
                let answered = async {
                    let (received, charge, begun) = received?;
                    traced = begun;
                    let noted = Noted {
                        note: &note,
                        traced: traced.as_ref(),
                    };
                    let answer = answer(&state, &metadata, received, &charge, encodings, noted);
                    Ok((answer.await, charge))
                };
                let answered = answered.await;
                if let Some(visit) = &mut visit {
                    record(visit, &answered);
                }
                let (answer, charge) = answered?;
                if let (Some(call), Err(refused)) = (&traced, &answer) {
                    call.failed(Status::from(refused.failure.error.clone()).message());
                }
                let mut closed = closed(answer, charge, status_errors)?;
                closed.traced = traced.map(TracedCall::sends);
                Ok(closed)
            }
        })
        .buffered(MAX_IN_FLIGHT);
    until_error(answers)
}

/// Records a request's outcome for the access log.
fn record(visit: &mut AccessVisit, answered: &Result<(AnswerOrRefusal, Arc<Charge>), Status>) {
    match answered {
        Ok((Ok(answer), _)) => {
            visit.sent(answer.encoded_len());
            visit.succeeded();
        }
        Ok((Err(refused), _)) => visit.refused(&refused.failure.error.clone().into()),
        Err(status) => visit.refused(status),
    }
}

/// Takes no more requests after a stop has begun; those under way are answered before the stream ends.
fn until_stop(
    state: Arc<ServerState>,
    requests: Streaming<Bytes>,
    incoming: Arc<Charge>,
) -> impl Stream<Item = StreamRequest> + Send {
    stream::unfold(Some(requests), move |requests| {
        let (state, incoming) = (Arc::clone(&state), Arc::clone(&incoming));
        async move {
            let mut requests = requests?;
            tokio::select! {
                request = requests.next() => {
                    let request = request?.map(|message| {
                        let charge = of_message(&incoming, &message);
                        (message, charge)
                    });
                    Some((request, Some(requests)))
                }
                () = state.runtime.stop_begun() => {
                    let text = "the server is stopping and takes no more requests from this stream";
                    Some((Err(Status::unavailable(text)), None))
                }
            }
        }
    })
}

/// Ends a stream after its first error, which becomes the call's status; other requests are cancelled.
fn until_error(
    answers: impl Stream<Item = StreamAnswer> + Send + 'static,
) -> impl Stream<Item = StreamAnswer> + Send {
    stream::unfold(Some(Box::pin(answers)), |answers| async move {
        let mut answers = answers?;
        let answer = answers.next().await?;
        let rest = answer.is_ok().then_some(answers);
        Some((answer, rest))
    })
}

/// A request that failed, with what its answer says.
struct RefusedRequest {
    failure: InferenceFailure,
    id: String,
    model: String,
}

/// The outcome of a request.
type AnswerOrRefusal = Result<ModelInferResponse, Box<RefusedRequest>>;

async fn answer(
    state: &ServerState,
    metadata: &MetadataMap,
    received: Received,
    charge: &Arc<Charge>,
    encodings: usize,
    noted: Noted<'_>,
) -> AnswerOrRefusal {
    let (id, model) = (received.id.clone(), received.model.clone());
    let answer = infer::infer_on_stream(state, metadata, received, charge, noted).await;
    let answer =
        answer.and_then(
            |answer| match infer::charge_encoding(&answer, encodings, charge) {
                Ok(()) => Ok(answer),
                Err(error) => Err(InferenceFailure { error, ran: true }),
            },
        );
    answer.map_err(|failure| Box::new(RefusedRequest { failure, id, model }))
}

/// An answer or an error in the form of the stream.
fn closed(answer: AnswerOrRefusal, charge: Arc<Charge>, status_errors: bool) -> StreamAnswer {
    let refused = match answer {
        Ok(mut answer) => {
            put_final(&mut answer);
            return Ok(EncodedMessage {
                message: ModelStreamInferResponse {
                    error_message: String::new(),
                    infer_response: Some(answer),
                },
                charge: Some(charge),
                traced: None,
            });
        }
        Err(refused) => refused,
    };
    let InferenceFailure { error, ran } = refused.failure;
    if status_errors {
        return Err(error.into());
    }
    let mut response = ModelInferResponse {
        id: refused.id,
        ..Default::default()
    };
    if ran {
        response.model_name = refused.model;
        put_final(&mut response);
    }
    Ok(EncodedMessage {
        message: ModelStreamInferResponse {
            error_message: Status::from(error).message().to_owned(),
            infer_response: Some(response),
        },
        charge: None,
        traced: None,
    })
}

/// Marks the answer as final: each request has one answer.
fn put_final(answer: &mut ModelInferResponse) {
    let parameter = InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(true)),
    };
    answer
        .parameters
        .insert(FINAL_RESPONSE.to_owned(), parameter);
}

//! `ModelStreamInfer`: many requests on one call, answered in the order in which they came.
//!
//! Requests run at the same time; an answer waits for those before it. A stream takes its next request only when fewer
//! than [`MAX_IN_FLIGHT`] are under way, so a client that does not read its answers is slowed down by its own
//! connection. Dropping the stream drops what it runs, which takes waiting requests out of their queues.
//!
//! Source: Triton, `grpc_service.proto`; forms of errors as Triton 2.51 answers.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use skep_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
    infer_parameter::ParameterChoice,
};
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::infer::{self, Failure};
use crate::server::Shared;

/// Requests of one stream that are under way at once: several of the largest usual batches, and a bound on what a client
/// can have in memory by one call.
const MAX_IN_FLIGHT: usize = 128;

/// What a client sends to be told of an error by the call's status, which ends the stream, instead of by an answer.
const STATUS_ERRORS: &str = "triton_grpc_error";

/// Says of an answer whether its request has no further ones.
const FINAL_RESPONSE: &str = "triton_final_response";

type Answer = Result<ModelStreamInferResponse, Status>;

/// Answers the requests of a stream until the client ends it or the node stops.
pub(super) fn answers(
    shared: Arc<Shared>,
    metadata: MetadataMap,
    requests: Streaming<ModelInferRequest>,
) -> impl Stream<Item = Answer> + Send + 'static {
    let status_errors = metadata
        .get(STATUS_ERRORS)
        .is_some_and(|value| value == "true");
    let metadata = Arc::new(metadata);
    let answers = until_stop(Arc::clone(&shared), requests)
        .map(move |message| {
            let (shared, metadata) = (Arc::clone(&shared), Arc::clone(&metadata));
            async move { answer(&shared, &metadata, message?, status_errors).await }
        })
        .buffered(MAX_IN_FLIGHT);
    until_error(answers)
}

/// A stop takes no further requests; those under way are answered before the client is told.
fn until_stop(
    shared: Arc<Shared>,
    requests: Streaming<ModelInferRequest>,
) -> impl Stream<Item = Result<ModelInferRequest, Status>> + Send {
    stream::unfold(Some(requests), move |requests| {
        let shared = Arc::clone(&shared);
        async move {
            let mut requests = requests?;
            tokio::select! {
                request = requests.next() => request.map(|request| (request, Some(requests))),
                () = shared.runtime.stop_begun() => {
                    let text = "the server is stopping, it takes no further requests from this stream";
                    Some((Err(Status::unavailable(text)), None))
                }
            }
        }
    })
}

/// Ends a stream behind its first error, which is its call's status; what else is under way is cancelled.
fn until_error(
    answers: impl Stream<Item = Answer> + Send + 'static,
) -> impl Stream<Item = Answer> + Send {
    stream::unfold(Some(Box::pin(answers)), |answers| async move {
        let mut answers = answers?;
        let answer = answers.next().await?;
        let rest = answer.is_ok().then_some(answers);
        Some((answer, rest))
    })
}

async fn answer(
    shared: &Shared,
    metadata: &MetadataMap,
    message: ModelInferRequest,
    status_errors: bool,
) -> Answer {
    let (id, model) = (message.id.clone(), message.model_name.clone());
    match infer::infer_on_stream(shared, metadata, message).await {
        Ok(mut answer) => {
            put_final(&mut answer);
            Ok(ModelStreamInferResponse {
                error_message: String::new(),
                infer_response: Some(answer),
            })
        }
        Err(Failure { error, .. }) if status_errors => Err(error.into()),
        Err(Failure { error, ran }) => {
            let mut response = ModelInferResponse {
                id,
                ..Default::default()
            };
            if ran {
                response.model_name = model;
                put_final(&mut response);
            }
            Ok(ModelStreamInferResponse {
                error_message: Status::from(error).message().to_owned(),
                infer_response: Some(response),
            })
        }
    }
}

/// Each request has one answer, so it is the last.
fn put_final(answer: &mut ModelInferResponse) {
    let parameter = InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(true)),
    };
    answer
        .parameters
        .insert(FINAL_RESPONSE.to_owned(), parameter);
}

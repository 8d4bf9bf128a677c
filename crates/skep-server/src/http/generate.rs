//! `POST /v2/models/{model}[/versions/{version}]/generate` and `.../generate_stream`.
//!
//! A request is a JSON object: members named like inputs hold their data, all others are parameters, and so are the
//! members of `parameters`. An answer is an object of outputs, sent as an event if a stream was asked for. Members of
//! an answer are sorted by name, as on Triton.
//!
//! Source: Triton, "Generate Extension"; forms as Triton 2.51 answers.

use std::{borrow::Cow, cell::Cell, collections::BTreeMap, fmt, sync::Arc};

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, json, value::RawValue};
use skep_config::{InputConfig, ModelConfig};
use skep_runtime::{ErrorKind, InferRequest, InferResponse};
use skep_tensor::Charge;
use skep_types::Shape;
use skep_wire::json::Document;

use super::{
    acquire::acquire,
    compression,
    extract::{HeldMemory, JsonBody, ModelPath},
    fault,
    infer::MAX_INLINE_JSON_BYTES,
    input,
    lean::{self, Leaf, Name},
    parameters::{self, SEQUENCE_END, SEQUENCE_ID, SEQUENCE_START},
    reply,
    request::Unparsed,
    response,
};
use crate::{
    access::AccessNote,
    bounds::MAX_PARAMETERS,
    error::ApiError,
    growth::make_room,
    inference::{self, InferenceFailure, SequenceParameters},
    off_reactor::off_reactor,
    state::ServerState,
    traced::{self, CallTiming, TracedCall},
};

/// The type of a stream of events.
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

pub(super) async fn generate(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
    headers: HeaderMap,
    HeldMemory(charge): HeldMemory,
    note: AccessNote,
    JsonBody(body): JsonBody,
) -> Response {
    let traced = received(&state, &path, &headers);
    let answer = async {
        refuse_compressed(&headers)?;
        let answer = run(&state, &path, body, &charge, &note, traced.as_ref());
        let answer = answer.await.map_err(|f| f.error)?;
        Ok::<_, ApiError>(reply::json(StatusCode::OK, answer))
    };
    let mut response = answer.await.unwrap_or_else(IntoResponse::into_response);
    TracedCall::answered(traced, &mut response);
    response
}

pub(super) async fn generate_stream(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
    headers: HeaderMap,
    HeldMemory(charge): HeldMemory,
    note: AccessNote,
    JsonBody(body): JsonBody,
) -> Response {
    let traced = received(&state, &path, &headers);
    let answer = async {
        refuse_compressed(&headers)?;
        match run(&state, &path, body, &charge, &note, traced.as_ref()).await {
            Ok(answer) => {
                // The event is a copy.
                charge.add(answer.len())?;
                Ok(event(StatusCode::OK, &answer))
            }
            // The first event decides the status, as on Triton.
            Err(InferenceFailure { error, ran: true }) => {
                let mut response = event(error.http_status(), error.body().as_bytes());
                response.extensions_mut().insert(error.into_refusal());
                Ok(response)
            }
            Err(InferenceFailure { error, .. }) => Err(error),
        }
    };
    let mut response = answer.await.unwrap_or_else(IntoResponse::into_response);
    TracedCall::answered(traced, &mut response);
    response
}

/// The call's trace, if it is traced: its body has been read before the handler.
fn received(state: &ServerState, path: &ModelPath, headers: &HeaderMap) -> Option<TracedCall> {
    CallTiming::begin(&state.traces, traced::HTTP).received(state, &path.model, headers)
}

/// Only `infer` takes compressed requests, as on Triton.
fn refuse_compressed(headers: &HeaderMap) -> Result<(), ApiError> {
    match compression::of_request(headers) {
        Ok(None) => Ok(()),
        _ => Err(ApiError::invalid(
            "Unsupported content-encoding, only 'identity' is supported.",
        )),
    }
}

/// A stream of one event: each request has one answer.
fn event(status: StatusCode, json: &[u8]) -> Response {
    let body = [b"data: ", json, b"\n\n"].concat();
    (status, [(header::CONTENT_TYPE, EVENTS)], body).into_response()
}

async fn run(
    state: &ServerState,
    path: &ModelPath,
    body: Bytes,
    charge: &Arc<Charge>,
    note: &AccessNote,
    traced: Option<&TracedCall>,
) -> Result<Vec<u8>, InferenceFailure> {
    let loaded = acquire(state, path, &body, body.len()).await?;
    let mut request = if body.len() > MAX_INLINE_JSON_BYTES {
        let (loaded, charge) = (Arc::clone(&loaded), Arc::clone(charge));
        off_reactor(move || decode(&body, loaded.config(), &charge)).await??
    } else {
        decode(&body, loaded.config(), charge)?
    };
    request.charge = Some(Arc::clone(charge));
    TracedCall::attach(traced, &mut request);
    inference::log_parameters(&request, &loaded);
    let id = request.id.clone();
    note.sent_to(&loaded, &id);
    let mut answer = loaded.infer(request).await.map_err(|error| {
        inference::log_failure(&id, &error);
        InferenceFailure {
            // A request that does not fit the model does not reach it.
            ran: error.kind() != ErrorKind::InvalidArgument,
            error: error.into(),
        }
    })?;
    note.answered(&answer);
    inference::settle(charge, &mut answer);
    let output_bytes = inference::output_bytes(&answer);
    if output_bytes > MAX_INLINE_JSON_BYTES {
        let charge = Arc::clone(charge);
        Ok(off_reactor(move || encode(answer, &id, &charge)).await??)
    } else {
        Ok(encode(answer, &id, charge)?)
    }
}

/// The members of an object, in order; a key may occur several times.
struct GenerateMembers<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for GenerateMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GenerateReader;
        impl<'de> Visitor<'de> for GenerateReader {
            type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Name(key)) = map.next_key()? {
                    if members.len() == MAX_PARAMETERS {
                        return Err(A::Error::custom(lean::too_many()));
                    }
                    members.push((key, map.next_value()?));
                }
                Ok(members)
            }
        }
        deserializer
            .deserialize_map(GenerateReader)
            .map(GenerateMembers)
    }
}

/// The number of elements of an array, 1 for anything else.
struct Length(usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Counter;
        impl<'de> Visitor<'de> for Counter {
            type Value = Length;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Length, A::Error> {
                let mut count = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Length(count))
            }
        }
        deserializer.deserialize_seq(Counter)
    }
}

pub(super) fn decode(
    body: &[u8],
    config: &ModelConfig,
    charge: &Charge,
) -> Result<InferRequest, ApiError> {
    let document = Document::new(body);
    let copied_bytes = Cell::new(0);
    let parsed = document.parse_within(serde_json::from_slice, |bytes| {
        copied_bytes.set(bytes);
        charge.add(bytes).map_err(Unparsed::NoMemory)
    });
    let GenerateMembers(members) = parsed.map_err(|unparsed| match unparsed {
        Unparsed::Json(error) => fault::json_error(&error),
        Unparsed::NoMemory(over) => over.into(),
    })?;
    let mut mapping = MemberMapping {
        document: &document,
        model: config.name().as_str(),
        inputs: config.inputs(),
        request: InferRequest::default(),
        sequence: config.sequences().map(|_| SequenceParameters::default()),
        charge,
    };
    for (key, value) in members {
        match &*key {
            "parameters" if mapping.input(&key).is_none() => {
                let GenerateMembers(members) = serde_json::from_str(value.get()).map_err(|_| {
                    ApiError::invalid(
                        "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object",
                    )
                })?;
                for (key, value) in members {
                    mapping
                        .member(&key, value)
                        .map_err(|error| error.prefixed("Converting keyword: 'parameters': "))?;
                }
            }
            "id" => {
                mapping.request.id = serde_json::from_str(value.get())
                    .map_err(|_| parameters::unreadable("id", "non-string as string"))?;
                if mapping.input(&key).is_some() {
                    mapping.member(&key, value)?;
                }
            }
            key => mapping.member(key, value)?,
        }
    }
    charge.give_back(copied_bytes.get());
    mapping.request.sequence = mapping.sequence.and_then(SequenceParameters::step);
    Ok(mapping.request)
}

/// Turns members into inputs and parameters.
struct MemberMapping<'a> {
    document: &'a Document<'a>,
    model: &'a str,
    inputs: &'a [InputConfig],
    request: InferRequest,
    /// Its place in a sequence; `None` if the model has no sequences. The parameters are then the user's own.
    sequence: Option<SequenceParameters>,
    charge: &'a Charge,
}

impl<'a> MemberMapping<'a> {
    fn input(&self, name: &str) -> Option<&'a InputConfig> {
        self.inputs.iter().find(|input| input.name == name)
    }

    fn member(&mut self, key: &str, value: &RawValue) -> Result<(), ApiError> {
        let text = self.document.text(value);
        let Some(input) = self.input(key) else {
            let Leaf(value) =
                serde_json::from_str(text).map_err(|error| fault::json_error(&error))?;
            if let Some(sequence) = &mut self.sequence
                && let SEQUENCE_ID | SEQUENCE_START | SEQUENCE_END = key
            {
                return parameters::of_sequence(key, &value, sequence);
            }
            let parameter = parameters::own(key, &value)?;
            self.request.parameters.push((key.to_owned(), parameter));
            return Ok(());
        };
        // Without brackets it is one value, whose kind is checked when it is read.
        let count = if value.get().starts_with('[') {
            serde_json::from_str(value.get()).map(|Length(count)| count)
        } else {
            Ok(1)
        };
        let count = count.map_err(|error| fault::json_error(&error))?;
        let shape = fit(count, input.client_dims().as_slice()).ok_or_else(|| {
            ApiError::invalid(format!(
                "The schema can not convert input '{key}' to tensor with proper shape"
            ))
        })?;
        let (datatype, count) = (input.datatype, shape.element_count());
        let data = input::data(key, text, datatype, count, self.charge)?;
        let id = &self.request.id;
        let tensor = inference::input_tensor(id, key, self.model, input.datatype, shape, data)?;
        self.request.inputs.push((key.to_owned(), tensor));
        Ok(())
    }
}

/// The shape of `count` elements within `dims`: the last variable dimension takes all elements that the fixed ones
/// leave, other variable ones are 1. `None` if the elements do not fill the shape exactly.
fn fit(count: usize, dims: &[i64]) -> Option<Shape> {
    let mut rest = count;
    for fixed in dims.iter().filter_map(|&dim| usize::try_from(dim).ok()) {
        if fixed == 0 || !rest.is_multiple_of(fixed) {
            return None;
        }
        rest /= fixed;
    }
    let mut sizes: Vec<usize> = dims
        .iter()
        .rev()
        .map(|&dim| usize::try_from(dim).unwrap_or_else(|_| std::mem::replace(&mut rest, 1)))
        .collect();
    sizes.reverse();
    if rest == 1 {
        Shape::new(&sizes).ok()
    } else {
        None
    }
}

fn json_bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// An answer's members: its model, its parameters and its outputs; an output of one element is a scalar. Memory is
/// added to `charge` before it is allocated.
pub(super) fn encode(
    answer: InferResponse,
    id: &str,
    charge: &Charge,
) -> Result<Vec<u8>, ApiError> {
    let mut members: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    if !id.is_empty() {
        members.insert("id".to_owned(), json_bytes(&json!(id)));
    }
    members.insert(
        "model_name".to_owned(),
        json_bytes(&json!(answer.model.as_str())),
    );
    let version = answer.version.to_string();
    members.insert("model_version".to_owned(), json_bytes(&json!(version)));
    for (key, value) in &answer.parameters {
        members.insert(key.clone(), json_bytes(&parameters::value(value)));
    }
    for output in &answer.outputs {
        let mut data = Vec::new();
        response::encode_data(output, &mut data, charge)?;
        if output.tensor.shape().element_count() == 1 {
            // `[x]` without its brackets.
            data.pop();
            data.remove(0);
        }
        members.insert(output.name.to_string(), data);
    }
    let mut json = Vec::new();
    let texts = members
        .iter()
        .map(|(key, value)| key.len() + value.len() + 4);
    make_room(&mut json, texts.sum::<usize>() + 2, charge)?;
    json.push(b'{');
    for (index, (key, value)) in members.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(json!(key).to_string().as_bytes());
        json.push(b':');
        json.extend_from_slice(value);
    }
    json.push(b'}');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_fitted_into_dims() {
        for (count, dims, expected) in [
            (1, &[1i64][..], Some(&[1usize][..])),
            (2, &[1], None),
            (0, &[1], None),
            (0, &[-1], Some(&[0])),
            (1, &[-1, 1], Some(&[1, 1])),
            (2, &[-1, 1], Some(&[2, 1])),
            (6, &[-1, -1, 2], Some(&[1, 3, 2])),
            (5, &[-1, 2], None),
            (0, &[-1, 16], Some(&[0, 16])),
            (16, &[-1, 16], Some(&[1, 16])),
            (1, &[], Some(&[])),
            (2, &[], None),
        ] {
            let shape = fit(count, dims);
            assert_eq!(
                shape.as_ref().map(Shape::dims),
                expected,
                "{count} in {dims:?}"
            );
        }
    }
}

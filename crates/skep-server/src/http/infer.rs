//! `POST /v2/models/{model}[/versions/{version}]/infer`.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, Method, Request},
    response::{IntoResponse, Response},
};

use skep_runtime::ErrorKind;
use skep_tensor::Charge;

use super::{
    acquire::acquire,
    compression,
    extract::{HeldMemory, ModelPath, read_split_body},
    raw, request, response,
};
use crate::{
    access::AccessNote,
    edge::{AnswerFuture, Shortcut},
    error::ApiError,
    inference,
    off_reactor::off_reactor,
    state::ServerState,
    traced::{self, CallTiming, TracedCall},
};

/// The largest body that is accepted, in bytes; a tensor of 2 GiB or more in one request is a mistake.
const MAX_BODY_BYTES: usize = 2 << 30;

/// JSON up to this size is read and written on the reactor: a millisecond at most. More goes to another thread, so that
/// no other connection waits for it.
pub(super) const MAX_INLINE_JSON_BYTES: usize = 128 << 10;

/// Where the JSON part of a body ends and the binary tensor data begins.
pub(super) const HEADER_LENGTH: &str = "inference-header-content-length";

/// Answers plain requests for inference without the router.
pub(super) struct DirectInference(pub(super) Arc<ServerState>);

impl Shortcut for DirectInference {
    fn take(
        &self,
        request: Request<Body>,
        charge: &Arc<Charge>,
    ) -> Result<AnswerFuture, Request<Body>> {
        if request.method() != Method::POST {
            return Err(request);
        }
        let Some(path) = target(request.uri().path()) else {
            return Err(request);
        };
        let state = State(Arc::clone(&self.0));
        let (parts, body) = request.into_parts();
        let held = HeldMemory(Arc::clone(charge));
        let note = AccessNote::of(&parts.extensions);
        Ok(Box::pin(async move {
            infer(state, path, parts.headers, held, note, body).await
        }))
    }
}

/// The model that a path of this call names; `None` leaves an unusual path to the router.
fn target(path: &str) -> Option<ModelPath> {
    let rest = path.strip_prefix("/v2/models/")?.strip_suffix("/infer")?;
    let (model, version) = match rest.split_once('/') {
        None => (rest, None),
        Some((model, rest)) => (model, Some(rest.strip_prefix("versions/")?)),
    };
    let is_plain = !model.is_empty() && !model.contains(['/', '%']);
    let is_number =
        |version: &str| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit());
    (is_plain && version.is_none_or(is_number)).then(|| ModelPath {
        model: model.to_owned(),
        version: version.map(str::to_owned),
    })
}

pub(super) async fn infer(
    State(state): State<Arc<ServerState>>,
    path: ModelPath,
    headers: HeaderMap,
    HeldMemory(charge): HeldMemory,
    note: AccessNote,
    body: Body,
) -> Response {
    let mut call = InferCall {
        timing: CallTiming::begin(&state.traces, traced::HTTP),
        state: &state,
        path: &path,
        headers: &headers,
        charge,
        note,
        traced: None,
    };
    let answer = call.answer(body).await;
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    TracedCall::answered(call.traced, &mut response);
    response
}

/// An inference under way.
struct InferCall<'a> {
    state: &'a ServerState,
    path: &'a ModelPath,
    headers: &'a HeaderMap,
    charge: Arc<Charge>,
    note: AccessNote,
    timing: CallTiming,
    /// Set when its body was received, if it is traced.
    traced: Option<TracedCall>,
}

impl InferCall<'_> {
    async fn answer(&mut self, body: Body) -> Result<Response, ApiError> {
        let Self {
            state,
            path,
            headers,
            charge,
            note,
            timing,
            traced,
        } = self;
        let coding = match compression::of_request(headers) {
            Ok(coding) => coding,
            Err(unknown) => return Ok(unknown.into_response()),
        };
        let mut body = read_split_body(body, MAX_BODY_BYTES, split(headers)).await?;
        if coding.is_some() {
            body = compression::decompress(body, state.max_json_bytes, Arc::clone(charge)).await?;
        }
        let header_length = header_length(headers, body.len()).map_err(ApiError::plain)?;
        let json_bytes = header_length.unwrap_or(body.len());
        if json_bytes > state.max_json_bytes {
            return Err(ApiError::invalid(format!(
                "Request JSON size of {json_bytes} bytes exceeds the maximum allowed value of {} bytes. Use --http-max-input-size to increase the limit.",
                state.max_json_bytes
            )));
        }
        *traced = timing.received(state, &path.model, headers);
        // Resolved after the body is read: a version is held only while a request runs, never while a slow client sends.
        let loaded = acquire(state, path, &body, json_bytes)
            .await
            .map_err(ApiError::plain)?;
        inference::refuse_decoupled(&loaded, "HTTP end point").map_err(ApiError::plain)?;
        let decoded = match header_length {
            Some(0) => raw::decode(body, loaded.config())?,
            _ if json_bytes > MAX_INLINE_JSON_BYTES => {
                let (model, charge) = (path.model.clone(), Arc::clone(charge));
                let decode = move || request::decode(&body, header_length, &model, &charge);
                off_reactor(decode).await??
            }
            _ => {
                let decoded = request::decode(&body, header_length, &path.model, charge)?;
                // The decoded request keeps the slices that it needs.
                drop(body);
                decoded
            }
        };
        let mut wanted = decoded.wanted;
        let mut request = decoded.request;
        let regions = decoded.regions;
        let taken = regions.take_in(state, &mut request, &path.model, charge);
        wanted.regions = taken.await?;
        request.charge = Some(Arc::clone(charge));
        let names = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        state.inference.http_headers.forward(names, &mut request);
        TracedCall::attach(traced.as_ref(), &mut request);
        inference::log_parameters(&request, &loaded);
        let id = request.id.clone();
        note.sent_to(&loaded, &id);
        let answer = loaded.infer(request).await;
        let mut answer = answer.map_err(|error| {
            inference::log_failure(&id, &error);
            match error.kind() {
                ErrorKind::InvalidArgument => error.into(),
                _ => ApiError::from(error).plain(),
            }
        })?;
        note.answered(&answer);
        inference::settle(charge, &mut answer);
        inference::classify(&mut answer, &wanted.classes, &loaded).map_err(ApiError::plain)?;
        wanted
            .regions
            .write(&answer)
            .await
            .map_err(ApiError::plain)?;
        let encoded = if response::json_data_bytes(&answer, &wanted) > MAX_INLINE_JSON_BYTES {
            let charge = Arc::clone(charge);
            off_reactor(move || response::encode(&answer, &id, &wanted, &charge)).await?
        } else {
            response::encode(&answer, &id, &wanted, charge)
        };
        let mut encoded = encoded.map_err(ApiError::plain)?;
        if let Some(coding) = compression::of_answer(headers) {
            encoded.compress(coding, charge).await?;
        }
        Ok(encoded.into_response())
    }
}

/// Where the binary data of a body begins, if the client declares it; checked later, against the body.
fn split(headers: &HeaderMap) -> Option<usize> {
    headers
        .get(HEADER_LENGTH)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The length of the JSON part, if the client declares it; 0 for a raw binary request.
pub(super) fn header_length(
    headers: &HeaderMap,
    body_bytes: usize,
) -> Result<Option<usize>, ApiError> {
    let Some(value) = headers.get(HEADER_LENGTH) else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(value.as_bytes());
    let digits = text.trim().trim_start_matches(['-', '+']);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ApiError::invalid(format!(
            "Unable to parse Inference-Header-Content-Length, got: {text}"
        )));
    }
    // A number that does not parse is out of any range.
    match text.trim().parse::<usize>() {
        Ok(length) if length <= body_bytes => Ok(Some(length)),
        _ => Err(ApiError::invalid(format!(
            "inference header size should be in range (0, {body_bytes}), got: {}",
            text.trim()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_paths_name_a_model() {
        let named = |path| target(path).map(|path| (path.model, path.version));
        let model = |version: Option<&str>| Some(("m".to_owned(), version.map(str::to_owned)));
        assert_eq!(named("/v2/models/m/infer"), model(None));
        assert_eq!(named("/v2/models/m/versions/2/infer"), model(Some("2")));
        for other in [
            "/v2/models//infer",
            "/v2/models/infer",
            "/v2/models/m%20n/infer",
            "/v2/models/m/infer/",
            "/v2/models/m/2/infer",
            "/v2/models/m/versions/infer",
            "/v2/models/m/versions//infer",
            "/v2/models/m/versions/x/infer",
            "/v2/models/m/versions/2/3/infer",
            "/v2/models/m/generate",
        ] {
            assert_eq!(named(other), None, "{other}");
        }
    }
}

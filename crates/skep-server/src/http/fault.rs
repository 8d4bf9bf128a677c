//! Finds what is wrong with an inference request that is JSON, but not of the protocol's form; in Triton's words.
//!
//! Only requests that could not be read come here, so a second, slower look does no harm.

use serde_json::Value;
use skep_wire::json::Document;

use crate::error::ApiError;

/// A dimension is negative or not an integer.
const NEGATIVE_SHAPE: &str =
    "Unable to parse 'shape': attempt to access JSON non-unsigned-integer as unsigned-integer";

pub(super) fn negative_shape() -> ApiError {
    ApiError::invalid(NEGATIVE_SHAPE)
}

/// A body is not JSON, or not of the form that its reader expects.
pub(super) fn json_error(error: &serde_json::Error) -> ApiError {
    ApiError::invalid(format!("failed to parse the request JSON buffer: {error}"))
}

/// The fault that Triton would name first; `otherwise` if the text is not JSON, or no fault is found.
pub(super) fn find(document: &Document<'_>, otherwise: &serde_json::Error) -> ApiError {
    let parsed = document.parse(super::lean::form);
    match parsed.ok().and_then(|request| of_request(&request)) {
        Some(text) => ApiError::invalid(text),
        None => json_error(otherwise),
    }
}

fn of_request(request: &Value) -> Option<String> {
    if !request.is_object() {
        return None;
    }
    text(request, "id", true)
        .or_else(|| inputs(request))
        .or_else(|| {
            let outputs = request.get("outputs")?;
            let Value::Array(outputs) = outputs else {
                return Some(no_array("outputs"));
            };
            outputs
                .iter()
                .find_map(|output| text(output, "name", false))
        })
}

fn inputs(request: &Value) -> Option<String> {
    match request.get("inputs") {
        None => Some(missing("inputs")),
        Some(Value::Array(inputs)) => inputs.iter().find_map(of_input),
        Some(_) => Some(no_array("inputs")),
    }
}

fn of_input(input: &Value) -> Option<String> {
    text(input, "name", false)
        .or_else(|| text(input, "datatype", false))
        .or_else(|| match input.get("shape") {
            None => Some(missing("shape")),
            Some(Value::Array(dims)) if dims.iter().all(Value::is_u64) => None,
            Some(Value::Array(_)) => Some(NEGATIVE_SHAPE.to_owned()),
            Some(_) => Some(no_array("shape")),
        })
}

/// The fault of a member that has to be text.
fn text(object: &Value, name: &str, optional: bool) -> Option<String> {
    match object.get(name) {
        None if optional => None,
        None => Some(missing(name)),
        Some(Value::String(_)) => None,
        Some(_) => Some(format!(
            "Unable to parse '{name}': attempt to access JSON non-string as string"
        )),
    }
}

fn missing(name: &str) -> String {
    format!("Unable to parse '{name}': attempt to access non-existing object member '{name}'")
}

fn no_array(name: &str) -> String {
    format!("Unable to parse '{name}': attempt to access JSON non-array as array")
}

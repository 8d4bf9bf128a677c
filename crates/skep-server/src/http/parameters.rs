//! Parameters of requests and answers in JSON.
//!
//! Source: Triton, "Parameters Extension"; errors as Triton 2.51 words them.

use serde_json::{Map, Value, json};
use skep_runtime::{InferRequest, Parameter};
use skep_types::CorrelationId;

use crate::{
    error::ApiError,
    inference::{self, SequenceParameters},
};

pub(super) const SEQUENCE_ID: &str = "sequence_id";
pub(super) const SEQUENCE_START: &str = "sequence_start";
pub(super) const SEQUENCE_END: &str = "sequence_end";

/// A parameter of the user's own; its value is of one of the kinds that parameters may have.
pub(super) fn own(key: &str, value: &Value) -> Result<Parameter, ApiError> {
    let invalid = || {
        ApiError::invalid(format!(
            "parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'."
        ))
    };
    match value {
        Value::Bool(value) => Ok(Parameter::Bool(*value)),
        Value::String(value) => Ok(Parameter::String(value.clone())),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Ok(Parameter::Int(whole)),
            (None, Some(number)) => Ok(Parameter::Double(number)),
            (None, None) => Err(invalid()),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Err(invalid()),
    }
}

/// Puts a request's parameters into it, the user's own and those that the protocol defines. Returns whether outputs are
/// to be binary.
pub(super) fn of_request(
    given: &Map<String, Value>,
    request: &mut InferRequest,
) -> Result<bool, ApiError> {
    let mut binary = false;
    let mut sequence = SequenceParameters::default();
    for (key, value) in given {
        match key.as_str() {
            "binary_data_output" => binary = boolean(key, value)?,
            SEQUENCE_ID | SEQUENCE_START | SEQUENCE_END => {
                of_sequence(key, value, &mut sequence)?;
            }
            "priority" => request.priority = unsigned(key, value)?,
            "timeout" => request.timeout = inference::timeout(unsigned(key, value)?),
            key if key.starts_with("triton_") => return Err(inference::reserved_parameter()),
            key => request.parameters.push((key.to_owned(), own(key, value)?)),
        }
    }
    request.sequence = sequence.step();
    Ok(binary)
}

/// Reads one of the parameters that place a request in a sequence.
pub(super) fn of_sequence(
    key: &str,
    value: &Value,
    sequence: &mut SequenceParameters,
) -> Result<(), ApiError> {
    match key {
        SEQUENCE_START => sequence.start = boolean(key, value)?,
        SEQUENCE_END => sequence.end = boolean(key, value)?,
        _ => {
            sequence.id = match (value.as_u64(), value.as_str()) {
                (Some(number), _) => CorrelationId::number(number),
                (None, Some(text)) => CorrelationId::text(text),
                (None, None) => return Err(unreadable(key, "non-string as string")),
            }
        }
    }
    Ok(())
}

pub(super) fn boolean(key: &str, value: &Value) -> Result<bool, ApiError> {
    value
        .as_bool()
        .ok_or_else(|| unreadable(key, "non-boolean as boolean"))
}

pub(super) fn text(key: &str, value: &Value) -> Result<String, ApiError> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| unreadable(key, "non-string as string"))
}

pub(super) fn unsigned(key: &str, value: &Value) -> Result<u64, ApiError> {
    value
        .as_u64()
        .ok_or_else(|| unreadable(key, "non-unsigned-integer as unsigned-integer"))
}

pub(super) fn unreadable(key: &str, what: &str) -> ApiError {
    ApiError::invalid(format!(
        "Unable to parse '{key}': attempt to access JSON {what}"
    ))
}

/// A parameter's value in JSON.
pub(super) fn value(parameter: &Parameter) -> Value {
    match parameter {
        Parameter::Bool(value) => json!(value),
        Parameter::Int(value) => json!(value),
        Parameter::Double(value) => json!(value),
        Parameter::String(value) => json!(value),
    }
}

/// Appends `,"parameters":{...}`, or nothing if there are no parameters.
pub(super) fn encode(parameters: &[(String, Parameter)], json: &mut Vec<u8>) {
    if parameters.is_empty() {
        return;
    }
    let members: Map<String, Value> = parameters
        .iter()
        .map(|(key, parameter)| (key.clone(), value(parameter)))
        .collect();
    json.extend_from_slice(format!(",\"parameters\":{}", Value::Object(members)).as_bytes());
}

#[cfg(test)]
mod tests {
    use skep_types::SequenceStep;

    use super::*;

    fn request(given: &Value) -> Result<InferRequest, ApiError> {
        let mut request = InferRequest::default();
        let given = given.as_object().expect("an object");
        of_request(given, &mut request).map(|_| request)
    }

    #[test]
    fn priority_and_timeout_are_read() {
        let of = |given| {
            let request = request(&given).expect("valid");
            (request.priority, request.timeout)
        };
        let timeout = Some(std::time::Duration::from_micros(1500));
        assert_eq!(of(json!({"priority": 3, "timeout": 1500})), (3, timeout));
        assert_eq!(
            of(json!({"priority": u64::MAX, "timeout": 0})),
            (u64::MAX, None)
        );
        assert_eq!(of(json!({})), (0, None));
    }

    #[test]
    fn a_place_in_a_sequence_is_read() {
        let of = |given| request(&given).expect("valid").sequence;
        let step =
            |id: Option<CorrelationId>, start, end| id.map(|id| SequenceStep { id, start, end });
        let number = CorrelationId::number(u64::MAX);
        let given = json!({"sequence_id": u64::MAX, "sequence_start": true, "sequence_end": false});
        assert_eq!(of(given), step(number, true, false));
        let text = CorrelationId::text("a");
        let given = json!({"sequence_id": "a", "sequence_end": true});
        assert_eq!(of(given), step(text, false, true));
        for none in [json!(0), json!("")] {
            let given = json!({"sequence_id": none, "sequence_start": true});
            assert_eq!(of(given), None);
        }
    }

    fn read(given: Value) -> Result<Vec<(String, Parameter)>, String> {
        request(&given)
            .map(|request| request.parameters)
            .map_err(|error| tonic::Status::from(error).message().to_owned())
    }

    #[test]
    fn kinds_are_kept() {
        let given = json!({"a": -1, "b": true, "c": "x", "d": 1.0, "e": u64::MAX, "priority": 3, "sequence_id": "s"});
        let expected = [
            ("a", Parameter::Int(-1)),
            ("b", Parameter::Bool(true)),
            ("c", Parameter::String("x".to_owned())),
            ("d", Parameter::Double(1.0)),
            ("e", Parameter::Double(1.844_674_407_370_955_2e19)),
        ];
        let read = read(given).expect("valid");
        assert_eq!(read, expected.map(|(key, value)| (key.to_owned(), value)));
        let mut json = Vec::new();
        encode(&read, &mut json);
        assert_eq!(
            String::from_utf8_lossy(&json),
            r#","parameters":{"a":-1,"b":true,"c":"x","d":1.0,"e":1.8446744073709552e+19}"#
        );
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        let text = r#"{"a": 4.222222222222222e80, "b": 0.1}"#;
        let given = serde_json::from_str(text).expect("JSON");
        let expected = [("a", 4.222_222_222_222_222e80), ("b", 0.1)];
        let expected = expected.map(|(key, value)| (key.to_owned(), Parameter::Double(value)));
        assert_eq!(read(given).as_deref(), Ok(&expected[..]));
    }

    #[test]
    fn other_kinds_are_refused_in_tritons_words() {
        let not_unsigned = "attempt to access JSON non-unsigned-integer as unsigned-integer";
        for (given, expected) in [
            (
                json!({"a": null}),
                "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'.".to_owned(),
            ),
            (
                json!({"a": [1]}),
                "parameter 'a' has invalid type. It should be either 'int', 'bool', or 'string'.".to_owned(),
            ),
            (
                json!({"triton_x": 1}),
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
                    .to_owned(),
            ),
            (json!({"priority": -1}), format!("Unable to parse 'priority': {not_unsigned}")),
            (json!({"timeout": "x"}), format!("Unable to parse 'timeout': {not_unsigned}")),
            (
                json!({"sequence_end": 1}),
                "Unable to parse 'sequence_end': attempt to access JSON non-boolean as boolean".to_owned(),
            ),
            (
                json!({"sequence_id": 1.5}),
                "Unable to parse 'sequence_id': attempt to access JSON non-string as string".to_owned(),
            ),
        ] {
            assert_eq!(read(given), Err(expected));
        }
    }
}

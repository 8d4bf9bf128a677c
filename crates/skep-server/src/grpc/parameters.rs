//! Parameters of requests and answers in messages.
//!
//! Source: Triton, "Parameters Extension"; errors as Triton 2.51 words them.

use std::collections::BTreeMap;

use skep_proto::inference::{InferParameter, infer_parameter::ParameterChoice};
use skep_regions::RegionSpan;
use skep_runtime::{InferRequest, Parameter};
use skep_types::CorrelationId;

use crate::{
    error::ApiError,
    inference::{self, NamedSpan, SequenceParameters, SpanParameters},
};

/// The parameter that asks for an empty final answer on a stream. Only decoupled models send one: a single answer is
/// the final one.
const EMPTY_FINAL: &str = "triton_enable_empty_final_response";

/// Puts a request's parameters into it, the user's own and those that the protocol defines.
pub(super) fn of_request(
    given: BTreeMap<String, InferParameter>,
    request: &mut InferRequest,
) -> Result<(), ApiError> {
    let mut sequence = SequenceParameters::default();
    for (key, parameter) in given {
        let Some(choice) = parameter.parameter_choice else {
            return Err(wrong_kind(&key, expected(&key)));
        };
        match (key.as_str(), choice) {
            // Clients send unsigned numbers as signed ones.
            ("sequence_id", ParameterChoice::Int64Param(id)) => {
                sequence.id = CorrelationId::number(id.cast_unsigned());
            }
            ("sequence_id", ParameterChoice::Uint64Param(id)) => {
                sequence.id = CorrelationId::number(id);
            }
            ("sequence_id", ParameterChoice::StringParam(id)) => {
                sequence.id = CorrelationId::text(&id);
            }
            ("sequence_start", ParameterChoice::BoolParam(start)) => sequence.start = start,
            ("sequence_end", ParameterChoice::BoolParam(end)) => sequence.end = end,
            (EMPTY_FINAL, ParameterChoice::BoolParam(_)) => {}
            ("priority", ParameterChoice::Uint64Param(level)) => request.priority = level,
            ("priority", ParameterChoice::Int64Param(level @ 0..)) => {
                request.priority = level.unsigned_abs();
            }
            ("timeout", ParameterChoice::Int64Param(us @ 0..)) => {
                request.timeout = inference::timeout(us.unsigned_abs());
            }
            ("priority" | "timeout", ParameterChoice::Int64Param(_)) => {
                return Err(ApiError::invalid(format!(
                    "invalid value for '{key}', expected value >= 0."
                )));
            }
            (
                EMPTY_FINAL | "sequence_id" | "sequence_start" | "sequence_end" | "priority"
                | "timeout",
                _,
            ) => return Err(wrong_kind(&key, expected(&key))),
            (reserved, _) if reserved.starts_with("triton_") => {
                return Err(ApiError::invalid(format!(
                    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with 'triton_' are allowed: {EMPTY_FINAL}"
                )));
            }
            (_, choice) => {
                let value = match choice {
                    ParameterChoice::BoolParam(value) => Parameter::Bool(value),
                    ParameterChoice::Int64Param(value) => Parameter::Int(value),
                    ParameterChoice::StringParam(value) => Parameter::String(value),
                    ParameterChoice::DoubleParam(value) => Parameter::Double(value),
                    ParameterChoice::Uint64Param(_) => {
                        return Err(wrong_kind(&key, expected(&key)));
                    }
                };
                request.parameters.push((key, value));
            }
        }
    }
    request.sequence = sequence.step();
    Ok(())
}

/// The kinds that a parameter may have.
fn expected(key: &str) -> &'static str {
    match key {
        "sequence_id" => "int64_param or string_param",
        "sequence_start" | "sequence_end" | EMPTY_FINAL => "bool_param",
        "priority" => "int64_param or uint64_param",
        "timeout" => "int64_param",
        _ => "int64_param, bool_param, or string_param",
    }
}

fn wrong_kind(key: &str, expected: &str) -> ApiError {
    ApiError::invalid(format!(
        "invalid value type for '{key}' parameter, expected {expected}."
    ))
}

/// How many classes an output's parameter asks for, at least 1. Unlike over HTTP, 0 is refused.
pub(super) fn classes(parameter: &InferParameter) -> Result<u64, ApiError> {
    let Some(ParameterChoice::Int64Param(count)) = parameter.parameter_choice else {
        return Err(ApiError::invalid(
            "invalid value type for 'classification' parameter, expected int64_param",
        ));
    };
    u64::try_from(count)
        .ok()
        .filter(|count| *count > 0)
        .ok_or_else(|| {
            ApiError::invalid("invalid value for 'classification' parameter, expected >= 0")
        })
}

/// Where tensor `name` lies in a region, if its parameters say so.
pub(super) fn span(
    name: &str,
    given: &BTreeMap<String, InferParameter>,
) -> Result<Option<NamedSpan>, ApiError> {
    let choice = |key: &str| given.get(key).map(|given| given.parameter_choice.as_ref());
    let wrong = |key: &str, expected: &str| {
        ApiError::invalid(format!(
            "invalid value type for '{key}' parameter for tensor '{name}', expected {expected}."
        ))
    };
    let bytes = |key: &str| match choice(key) {
        None => Ok(None),
        Some(Some(ParameterChoice::Int64Param(bytes @ 0..))) => Ok(Some(bytes.unsigned_abs())),
        Some(Some(ParameterChoice::Int64Param(_))) => Err(ApiError::invalid(format!(
            "invalid value for '{key}' parameter for tensor '{name}', expected value >= 0."
        ))),
        Some(_) => Err(wrong(key, "int64_param")),
    };
    let region = match choice(inference::REGION) {
        None => None,
        Some(Some(ParameterChoice::StringParam(region))) => Some(region.clone()),
        Some(_) => return Err(wrong(inference::REGION, "string_param")),
    };
    let parameters = SpanParameters {
        region,
        offset: bytes(inference::OFFSET)?,
        byte_size: bytes(inference::BYTE_SIZE)?,
    };
    parameters.span(name)
}

/// The parameters of an output of `bytes` bytes in a region.
pub(super) fn encode_span(span: &RegionSpan, bytes: usize) -> BTreeMap<String, InferParameter> {
    // Sizes of objects fit the system's signed offsets.
    let number = |bytes: u64| Parameter::Int(i64::try_from(bytes).unwrap_or(i64::MAX));
    encode(vec![
        (
            inference::REGION.to_owned(),
            Parameter::String(span.region().to_owned()),
        ),
        (inference::OFFSET.to_owned(), number(span.offset())),
        (inference::BYTE_SIZE.to_owned(), number(bytes as u64)),
    ])
}

/// An answer's parameters as a message has them.
pub(super) fn encode(parameters: Vec<(String, Parameter)>) -> BTreeMap<String, InferParameter> {
    parameters
        .into_iter()
        .map(|(key, value)| {
            let parameter_choice = Some(choice(value));
            (key, InferParameter { parameter_choice })
        })
        .collect()
}

fn choice(value: Parameter) -> ParameterChoice {
    match value {
        Parameter::Bool(value) => ParameterChoice::BoolParam(value),
        Parameter::Int(value) => ParameterChoice::Int64Param(value),
        Parameter::Double(value) => ParameterChoice::DoubleParam(value),
        Parameter::String(value) => ParameterChoice::StringParam(value),
    }
}

#[cfg(test)]
mod tests {
    use skep_types::SequenceStep;

    use super::*;
    use ParameterChoice as Choice;

    fn request(key: &str, choice: Option<Choice>) -> Result<InferRequest, String> {
        let parameter = InferParameter {
            parameter_choice: choice,
        };
        let mut request = InferRequest::default();
        of_request(BTreeMap::from([(key.to_owned(), parameter)]), &mut request)
            .map(|()| request)
            .map_err(|error| tonic::Status::from(error).message().to_owned())
    }

    #[test]
    fn a_place_in_a_sequence_is_read() {
        let number = |number| CorrelationId::number(number);
        for (id, expected) in [
            (Choice::Int64Param(7), number(7)),
            (Choice::Int64Param(-1), number(u64::MAX)),
            (Choice::Uint64Param(u64::MAX), number(u64::MAX)),
            (Choice::StringParam("a".into()), CorrelationId::text("a")),
            (Choice::Int64Param(0), None),
            (Choice::StringParam(String::new()), None),
        ] {
            for (start, end) in [(true, false), (false, true)] {
                let given = [
                    ("sequence_id", id.clone()),
                    ("sequence_start", Choice::BoolParam(start)),
                    ("sequence_end", Choice::BoolParam(end)),
                ];
                let given = given.map(|(key, choice)| {
                    let parameter_choice = Some(choice);
                    (key.to_owned(), InferParameter { parameter_choice })
                });
                let mut request = InferRequest::default();
                of_request(BTreeMap::from(given), &mut request).expect("valid");
                let expected = expected.clone();
                let step = expected.map(|id| SequenceStep { id, start, end });
                assert_eq!(request.sequence, step);
            }
        }
    }

    fn read(key: &str, choice: Option<Choice>) -> Result<Vec<(String, Parameter)>, String> {
        request(key, choice).map(|request| request.parameters)
    }

    #[test]
    fn priority_and_timeout_are_read() {
        let of = |key, choice| {
            let request = request(key, Some(choice)).expect("valid");
            (request.priority, request.timeout)
        };
        let timeout = Some(std::time::Duration::from_micros(1500));
        assert_eq!(
            of("priority", Choice::Uint64Param(u64::MAX)),
            (u64::MAX, None)
        );
        assert_eq!(of("priority", Choice::Int64Param(3)), (3, None));
        assert_eq!(of("timeout", Choice::Int64Param(1500)), (0, timeout));
        assert_eq!(of("timeout", Choice::Int64Param(0)), (0, None));
    }

    #[test]
    fn kinds_are_kept_and_come_back() {
        for (choice, value) in [
            (Choice::Int64Param(-1), Parameter::Int(-1)),
            (Choice::BoolParam(true), Parameter::Bool(true)),
            (Choice::DoubleParam(1.5), Parameter::Double(1.5)),
            (
                Choice::StringParam("x".into()),
                Parameter::String("x".into()),
            ),
        ] {
            let parameters = read("a", Some(choice.clone())).expect("valid");
            assert_eq!(parameters, [("a".to_owned(), value)]);
            assert_eq!(encode(parameters)["a"].parameter_choice, Some(choice));
        }
        assert_eq!(read("priority", Some(Choice::Uint64Param(5))), Ok(vec![]));
    }

    #[test]
    fn other_kinds_are_refused_in_tritons_words() {
        for (key, choice, expected) in [
            (
                "a",
                Some(Choice::Uint64Param(5)),
                "invalid value type for 'a' parameter, expected int64_param, bool_param, or string_param.",
            ),
            (
                "a",
                None,
                "invalid value type for 'a' parameter, expected int64_param, bool_param, or string_param.",
            ),
            (
                "sequence_id",
                Some(Choice::DoubleParam(1.0)),
                "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
            ),
            (
                "sequence_end",
                Some(Choice::Int64Param(1)),
                "invalid value type for 'sequence_end' parameter, expected bool_param.",
            ),
            (
                "priority",
                Some(Choice::Int64Param(-5)),
                "invalid value for 'priority', expected value >= 0.",
            ),
            (
                "timeout",
                Some(Choice::Uint64Param(5)),
                "invalid value type for 'timeout' parameter, expected int64_param.",
            ),
            (
                EMPTY_FINAL,
                Some(Choice::Int64Param(1)),
                "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
            ),
            (
                "triton_x",
                Some(Choice::BoolParam(true)),
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with 'triton_' are allowed: triton_enable_empty_final_response",
            ),
        ] {
            assert_eq!(read(key, choice), Err(expected.to_owned()));
        }
    }
}

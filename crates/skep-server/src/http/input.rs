//! An input of an inference request: its tensor, from its JSON or from the binary part of the body.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use skep_tensor::{Charge, Tensor};
use skep_types::{DataType, Shape};
use skep_wire::{
    WireError,
    json::{self, Document},
};

use super::{fault, members::TensorMembers, parameters, sequence::AtMost};
use crate::{
    bounds::MAX_DIMS,
    error::ApiError,
    inference::{self, NamedSpan},
};

/// Memory of decoding that is too small to be charged.
pub(super) const UNCHARGED_BYTES: usize = 4 << 10;

/// An input as JSON has it.
#[derive(Deserialize)]
pub(super) struct InputJson<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    shape: AtMost<[i64; 6], MAX_DIMS>,
    #[serde(borrow)]
    datatype: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<TensorMembers>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

/// Why an input's JSON data cannot be read.
pub(super) fn data_error(input: &str, error: &WireError) -> ApiError {
    ApiError::invalid(match error {
        WireError::NoJsonForm(datatype) => format!(
            "receiving {datatype} data via JSON is not supported. Please use the binary data format for input {input}"
        ),
        _ => format!("Unable to parse 'data': {error}, in input '{input}'"),
    })
}

/// The binary part of a body, consumed from front to back.
pub(super) struct BinaryPart<'a> {
    pub(super) rest: Bytes,
    /// Whether the request says where its JSON part ends.
    pub(super) announced: bool,
    pub(super) model: &'a str,
}

impl BinaryPart<'_> {
    fn take(&mut self, input: &str, size: usize) -> Result<Bytes, ApiError> {
        if !self.announced {
            return Err(ApiError::invalid(
                "must specify valid 'Inference-Header-Content-Length' in request header and 'binary_data_size' when passing inputs in binary data format",
            ));
        }
        if let Some(missing) = size
            .checked_sub(self.rest.len())
            .filter(|missing| *missing > 0)
        {
            return Err(ApiError::invalid(format!(
                "unexpected size for input '{input}', expecting {missing} additional bytes for model '{}'",
                self.model
            )));
        }
        Ok(self.rest.split_to(size))
    }
}

/// Where an input's data is.
pub(super) enum InputPlace {
    /// In the request.
    Request(Tensor),
    /// In a region.
    Region(DataType, Shape, NamedSpan),
}

/// An input's tensor, from its JSON or from the binary part, or its place in a region.
pub(super) fn place(
    id: &str,
    input: &InputJson<'_>,
    document: &Document<'_>,
    binary: &mut BinaryPart<'_>,
    charge: &Charge,
) -> Result<InputPlace, ApiError> {
    let name = &input.name;
    let datatype = DataType::from_protocol_name(&input.datatype).map_err(|error| {
        ApiError::invalid(format!("invalid datatype for input {name}: {error}"))
    })?;
    if input.shape.0.iter().any(|dim| *dim < 0) {
        return Err(fault::negative_shape());
    }
    let shape =
        Shape::from_wire(&input.shape.0).map_err(|error| inference::invalid_input(name, error))?;
    let (binary_size, span) = input_parameters(input)?;
    let bytes = match (input.data, binary_size, span) {
        (None, None, Some(span)) => return Ok(InputPlace::Region(datatype, shape, span)),
        (None, Some(size), None) => binary.take(name, size)?,
        (Some(raw), None, None) => data(
            name,
            document.text(raw),
            datatype,
            shape.element_count(),
            charge,
        )?,
        (None, None, None) => return Err(one_field_only("no field is set")),
        (data, size, span) => {
            let set = [
                data.map(|_| " 'data'"),
                size.map(|_| " 'binary_data_size'"),
                span.map(|_| " 'shared_memory_region'"),
            ];
            let set: String = set.into_iter().flatten().collect();
            return Err(one_field_only(&format!("set{set}")));
        }
    };
    let tensor = inference::input_tensor(id, name, binary.model, datatype, shape, bytes)?;
    Ok(InputPlace::Request(tensor))
}

/// Reads the elements of an input; memory is charged before it is allocated.
pub(super) fn data(
    input: &str,
    text: &str,
    datatype: DataType,
    count: usize,
    charge: &Charge,
) -> Result<Bytes, ApiError> {
    let needs = json::needs(text, datatype, count);
    let is_charged = needs.kept_bytes + needs.passing_bytes > UNCHARGED_BYTES;
    if is_charged {
        charge.add(needs.kept_bytes.saturating_add(needs.passing_bytes))?;
    }
    let data = json::read(text, datatype, count).map_err(|error| data_error(input, &error))?;
    if is_charged {
        charge.give_back(needs.passing_bytes);
    }
    Ok(data)
}

fn one_field_only(but: &str) -> ApiError {
    ApiError::invalid(format!(
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'. But {but}"
    ))
}

/// The size of an input's binary data and its place in a region, if its parameters declare them.
fn input_parameters(input: &InputJson<'_>) -> Result<(Option<usize>, Option<NamedSpan>), ApiError> {
    let Some(members) = &input.parameters else {
        return Ok((None, None));
    };
    let mut binary_size = None;
    for (key, value) in members.iter() {
        if key == "binary_data_size" {
            // A size that cannot be addressed is larger than any body.
            let size = parameters::unsigned(key, value)?;
            binary_size = Some(usize::try_from(size).unwrap_or(usize::MAX));
        }
    }
    Ok((binary_size, members.span(&input.name)?))
}

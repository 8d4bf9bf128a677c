//! Finds out how much memory decoding a message takes, before anything is decoded.
//!
//! A few bytes on the wire can become many in memory: an empty input is two bytes on the wire and some hundreds in
//! memory; a boolean is one byte, and its list grows by doubling. The scan walks over tags and lengths without
//! allocating; it refuses messages with too many entries, and computes the memory of the others.
//!
//! Source: Protocol Buffers, "Encoding"; the fields of `grpc_service.proto`.

use std::mem::size_of;

use bytes::Bytes;
use skep_proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use skep_tensor::Tensor;

use crate::bounds::{MAX_DIMS, MAX_PARAMETERS, MAX_TENSORS};

/// A list that grows by doubling has up to twice the room that it needs, and the old list exists while it grows.
const GROWTH: usize = 3;

/// Memory of a parameter beside its texts: an entry in a map, whose nodes may be half empty, and later in a list.
const PARAMETER_BYTES: usize = 256;

/// The memory that decoding a message takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct DecodingNeeds {
    /// Bytes of the decoded message, which is freed once the request has been made from it.
    pub(super) passing: usize,
    /// Bytes of the request, without the message's bytes that it refers to.
    pub(super) kept: usize,
}

impl DecodingNeeds {
    pub(super) const fn bytes(self) -> usize {
        self.passing.saturating_add(self.kept)
    }

    const fn add(&mut self, count: usize, passing: usize, kept: usize) {
        self.passing = self.passing.saturating_add(count.saturating_mul(passing));
        self.kept = self.kept.saturating_add(count.saturating_mul(kept));
    }
}

/// Why a scan has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScanFault {
    /// The scan takes more steps than allowed.
    #[error("the message is long")]
    Long,
    /// The bytes are not a message.
    #[error("failed to decode Protobuf message: a field is cut short or has no valid tag")]
    Malformed,
    /// There are too many entries.
    #[error("the request has more than {limit} {what}")]
    TooMany {
        /// The kind of entry.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
}

/// Scans a `ModelInferRequest` in at most `steps`; each field and each element of typed contents is a step.
pub(super) fn infer_request(message: &[u8], steps: usize) -> Result<DecodingNeeds, ScanFault> {
    let mut scan = Scan {
        steps,
        ..Scan::default()
    };
    let mut rest = message;
    while let Some(field) = scan.next(&mut rest)? {
        match field.number {
            4 => scan.parameter(field.data)?,
            5 => {
                scan.tensors(1)?;
                scan.needs.add(
                    1,
                    GROWTH * size_of::<InferInputTensor>(),
                    GROWTH * size_of::<(String, Tensor)>(),
                );
                scan.input(field.data)?;
            }
            6 => {
                scan.tensors(1)?;
                scan.needs.add(
                    1,
                    GROWTH * size_of::<InferRequestedOutputTensor>(),
                    GROWTH * size_of::<(String, u64)>(),
                );
                scan.output(field.data)?;
            }
            7 => {
                scan.raw += 1;
                if scan.raw > MAX_TENSORS {
                    return Err(too_many("raw input contents", MAX_TENSORS));
                }
                scan.needs.add(1, GROWTH * size_of::<Bytes>(), 0);
            }
            _ => scan.text(field.data),
        }
    }
    Ok(scan.needs)
}

/// Scans a `RepositoryModelLoadRequest`; its files are not copied.
pub(super) fn load_request(message: &[u8]) -> Result<DecodingNeeds, ScanFault> {
    let mut scan = Scan {
        steps: usize::MAX,
        ..Scan::default()
    };
    let mut rest = message;
    while let Some(field) = scan.next(&mut rest)? {
        if field.number == 3 {
            scan.load_parameter(field.data)?;
        } else {
            scan.text(field.data);
        }
    }
    Ok(scan.needs)
}

const fn too_many(what: &'static str, limit: usize) -> ScanFault {
    ScanFault::TooMany { what, limit }
}

/// A field; `data` is empty for a number.
struct WireField<'a> {
    number: u64,
    data: &'a [u8],
    /// Whether the field has a length.
    delimited: bool,
}

#[derive(Default)]
struct Scan {
    steps: usize,
    needs: DecodingNeeds,
    tensors: usize,
    raw: usize,
    parameters: usize,
}

impl Scan {
    const fn step(&mut self, steps: usize) -> Result<(), ScanFault> {
        match self.steps.checked_sub(steps) {
            Some(left) => {
                self.steps = left;
                Ok(())
            }
            None => Err(ScanFault::Long),
        }
    }

    /// Takes the next field off `rest`.
    #[inline]
    fn next<'a>(&mut self, rest: &mut &'a [u8]) -> Result<Option<WireField<'a>>, ScanFault> {
        if rest.is_empty() {
            return Ok(None);
        }
        self.step(1)?;
        let key = varint(rest)?;
        let (number, kind) = (key >> 3, key & 7);
        let length = match kind {
            0 => {
                varint(rest)?;
                0
            }
            1 => 8,
            2 => usize::try_from(varint(rest)?).map_err(|_| ScanFault::Malformed)?,
            // A group's fields count as if they stood outside it, which overestimates them.
            3 | 4 => 0,
            5 => 4,
            _ => return Err(ScanFault::Malformed),
        };
        let (data, after) = rest.split_at_checked(length).ok_or(ScanFault::Malformed)?;
        *rest = after;
        Ok(Some(WireField {
            number,
            data,
            delimited: kind == 2,
        }))
    }

    const fn tensors(&mut self, count: usize) -> Result<(), ScanFault> {
        self.tensors += count;
        if self.tensors > MAX_TENSORS {
            return Err(too_many("inputs and outputs", MAX_TENSORS));
        }
        Ok(())
    }

    const fn text(&mut self, data: &[u8]) {
        self.needs.add(1, data.len(), data.len());
    }

    fn parameter(&mut self, data: &[u8]) -> Result<(), ScanFault> {
        self.parameters += 1;
        if self.parameters > MAX_PARAMETERS {
            return Err(too_many("parameters", MAX_PARAMETERS));
        }
        self.needs.add(
            1,
            PARAMETER_BYTES + data.len(),
            PARAMETER_BYTES + data.len(),
        );
        Ok(())
    }

    /// A parameter of a load: a name, and a value of which `bytes_param` is not copied.
    fn load_parameter(&mut self, mut rest: &[u8]) -> Result<(), ScanFault> {
        self.parameter(&[])?;
        while let Some(field) = self.next(&mut rest)? {
            if field.number != 2 {
                self.text(field.data);
                continue;
            }
            let mut value = field.data;
            while let Some(field) = self.next(&mut value)? {
                if field.number != 4 {
                    self.text(field.data);
                }
            }
        }
        Ok(())
    }

    fn output(&mut self, mut rest: &[u8]) -> Result<(), ScanFault> {
        while let Some(field) = self.next(&mut rest)? {
            match field.number {
                2 => self.parameter(field.data)?,
                _ => self.text(field.data),
            }
        }
        Ok(())
    }

    fn input(&mut self, mut rest: &[u8]) -> Result<(), ScanFault> {
        let mut dims = 0;
        while let Some(field) = self.next(&mut rest)? {
            match field.number {
                3 => {
                    dims += self.varints(&field)?;
                    if dims > MAX_DIMS {
                        return Err(too_many("dimensions in a shape", MAX_DIMS));
                    }
                }
                4 => self.parameter(field.data)?,
                5 => self.contents(field.data)?,
                _ => self.text(field.data),
            }
        }
        self.needs
            .add(dims, GROWTH * size_of::<i64>(), 2 * size_of::<usize>());
        Ok(())
    }

    /// Typed contents: lists of numbers, which grow, and a tensor's data made of them.
    fn contents(&mut self, mut rest: &[u8]) -> Result<(), ScanFault> {
        while let Some(field) = self.next(&mut rest)? {
            let (count, size) = match field.number {
                1 => (self.varints(&field)?, size_of::<bool>()),
                2 | 4 => (self.varints(&field)?, size_of::<u32>()),
                3 | 5 => (self.varints(&field)?, size_of::<u64>()),
                6 => (field.data.len() / size_of::<f32>(), size_of::<f32>()),
                7 => (field.data.len() / size_of::<f64>(), size_of::<f64>()),
                8 => {
                    let kept = 2 * (field.data.len() + size_of::<u32>());
                    self.needs.add(1, GROWTH * size_of::<Bytes>(), kept);
                    continue;
                }
                _ => continue,
            };
            self.step(count)?;
            self.needs.add(count, GROWTH * size, size);
        }
        Ok(())
    }

    /// How many numbers a field holds: packed ones, or one.
    fn varints(&mut self, field: &WireField<'_>) -> Result<usize, ScanFault> {
        if !field.delimited {
            return Ok(1);
        }
        // Counting is vectorised: many bytes a step.
        self.step(field.data.len() / 16)?;
        Ok(field.data.iter().filter(|byte| **byte < 0x80).count())
    }
}

/// Takes a number off `rest`.
#[inline]
fn varint(rest: &mut &[u8]) -> Result<u64, ScanFault> {
    let mut value = 0;
    for (index, &byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(ScanFault::Malformed)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_proto::inference::{
        InferParameter, InferTensorContents, ModelInferRequest, infer_parameter::ParameterChoice,
    };

    use super::*;

    fn needs(message: &ModelInferRequest) -> Result<DecodingNeeds, ScanFault> {
        infer_request(&message.encode_to_vec(), usize::MAX)
    }

    fn with_contents(contents: InferTensorContents) -> ModelInferRequest {
        ModelInferRequest {
            inputs: vec![InferInputTensor {
                contents: Some(contents),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn entries_are_bounded() {
        let of = |inputs, outputs, raw| ModelInferRequest {
            inputs: vec![InferInputTensor::default(); inputs],
            outputs: vec![InferRequestedOutputTensor::default(); outputs],
            raw_input_contents: vec![Bytes::new(); raw],
            ..Default::default()
        };
        assert!(needs(&of(MAX_TENSORS / 2, MAX_TENSORS / 2, MAX_TENSORS)).is_ok());
        assert_eq!(
            needs(&of(MAX_TENSORS / 2, MAX_TENSORS / 2 + 1, 0)),
            Err(too_many("inputs and outputs", MAX_TENSORS))
        );
        assert_eq!(
            needs(&of(0, 0, MAX_TENSORS + 1)),
            Err(too_many("raw input contents", MAX_TENSORS))
        );
        let mut message = ModelInferRequest::default();
        let parameter = |index: usize| (index.to_string(), InferParameter::default());
        message.parameters = (0..=MAX_PARAMETERS).map(parameter).collect();
        assert_eq!(needs(&message), Err(too_many("parameters", MAX_PARAMETERS)));
        message.parameters.pop_first();
        assert!(needs(&message).is_ok());
        message.inputs = vec![InferInputTensor {
            shape: vec![1; MAX_DIMS + 1],
            ..Default::default()
        }];
        assert_eq!(
            needs(&message),
            Err(too_many("dimensions in a shape", MAX_DIMS))
        );
    }

    #[test]
    fn elements_are_counted_by_what_they_become() {
        let of = |contents| {
            let all = needs(&with_contents(contents)).expect("bounded");
            let none = needs(&with_contents(InferTensorContents::default())).expect("bounded");
            (all.passing - none.passing, all.kept - none.kept)
        };
        let (n, long) = (1000, i64::MAX);
        let contents = InferTensorContents::default;
        assert_eq!(
            of(InferTensorContents {
                bool_contents: vec![true; n],
                ..contents()
            }),
            (3 * n, n)
        );
        assert_eq!(
            of(InferTensorContents {
                int_contents: vec![-1; n],
                ..contents()
            }),
            (12 * n, 4 * n)
        );
        assert_eq!(
            of(InferTensorContents {
                int64_contents: vec![long; n],
                ..contents()
            }),
            (24 * n, 8 * n)
        );
        assert_eq!(
            of(InferTensorContents {
                fp32_contents: vec![0.0; n],
                ..contents()
            }),
            (12 * n, 4 * n)
        );
        assert_eq!(
            of(InferTensorContents {
                bytes_contents: vec![Bytes::new(); n],
                ..contents()
            }),
            (3 * size_of::<Bytes>() * n, 8 * n)
        );
    }

    #[test]
    fn the_work_is_bounded() {
        let contents = InferTensorContents {
            bool_contents: vec![true; 100],
            ..Default::default()
        };
        let message = with_contents(contents).encode_to_vec();
        assert_eq!(infer_request(&message, 100), Err(ScanFault::Long));
        assert!(infer_request(&message, 200).is_ok());
        // An unknown field again and again.
        let message = [0x78, 0].repeat(100);
        assert_eq!(infer_request(&message, 99), Err(ScanFault::Long));
        assert!(infer_request(&message, 100).is_ok());
    }

    #[test]
    fn malformed_messages_are_found() {
        for broken in [
            &[0x0a][..],
            &[0x0a, 5, 1],
            &[0x0f],
            &[0xff; 12],
            &[0x2a, 2, 0x0a, 9],
        ] {
            assert_eq!(
                infer_request(broken, usize::MAX),
                Err(ScanFault::Malformed),
                "{broken:x?}"
            );
        }
        let mut message = ModelInferRequest::default();
        let parameter = InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam("x".repeat(100))),
        };
        message.parameters.insert("p".to_owned(), parameter);
        assert!(needs(&message).expect("fine").kept > 100);
    }
}

//! Inputs that lie in clients' shared-memory regions, and outputs that go there.
//!
//! Decoding only notes what a request names ([`RegionUse`]). [`RegionUse::take_in`] looks the regions up, copies the
//! inputs into the request, and keeps the regions of outputs open; [`OutputRegions::write`] copies the outputs when
//! the model has finished. [`skep_regions`] says why tensors are copied.

use std::sync::Arc;

use bytes::Bytes;
use skep_regions::RegionSpan;
use skep_runtime::{InferRequest, InferResponse};
use skep_tensor::Charge;
use skep_types::{DataType, Shape};

use super::tensor::{input_tensor, size_mismatch};
use crate::{error::ApiError, off_reactor::off_reactor, state::ServerState};

/// Bytes of a request that are copied on the reactor: a tenth of a millisecond or two. More goes to another thread, so
/// that no other connection waits for it.
const INLINE_BYTES: usize = 1 << 20;

/// The parameter that names a tensor's region.
pub(crate) const REGION: &str = "shared_memory_region";

/// The parameter that says where a tensor begins in its region, in bytes; 0 if absent.
pub(crate) const OFFSET: &str = "shared_memory_offset";

/// The parameter that says how many bytes a tensor has, or how many an output may have.
pub(crate) const BYTE_SIZE: &str = "shared_memory_byte_size";

/// Where a request says that a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedSpan {
    pub(crate) region: String,
    pub(crate) offset: u64,
    pub(crate) byte_size: u64,
}

/// The parameters of a tensor that are about regions.
#[derive(Debug, Default)]
pub(crate) struct SpanParameters {
    pub(crate) region: Option<String>,
    pub(crate) offset: Option<u64>,
    pub(crate) byte_size: Option<u64>,
}

impl SpanParameters {
    /// The span of tensor `name`, if the parameters name one.
    pub(crate) fn span(self, name: &str) -> Result<Option<NamedSpan>, ApiError> {
        match self {
            Self {
                region: None,
                offset: None,
                byte_size: None,
            } => Ok(None),
            Self {
                region: Some(region),
                offset,
                byte_size: Some(byte_size),
            } => Ok(Some(NamedSpan {
                region,
                offset: offset.unwrap_or(0),
                byte_size,
            })),
            Self { region, .. } => {
                let absent = if region.is_none() { REGION } else { BYTE_SIZE };
                Err(ApiError::invalid(format!(
                    "must specify both '{REGION}' and '{BYTE_SIZE}' for tensor '{name}', '{absent}' is missing"
                )))
            }
        }
    }
}

/// An input that lies in a region.
#[derive(Debug)]
pub(crate) struct RegionInput {
    /// Its place among all inputs of the request.
    pub(crate) position: usize,
    pub(crate) name: String,
    pub(crate) datatype: DataType,
    pub(crate) shape: Shape,
    pub(crate) span: NamedSpan,
}

/// The regions that a request uses.
#[derive(Debug, Default)]
pub(crate) struct RegionUse {
    /// In the order of the request.
    pub(crate) inputs: Vec<RegionInput>,
    /// The outputs' names and places.
    pub(crate) outputs: Vec<(String, NamedSpan)>,
}

impl RegionUse {
    /// Adds an output, which cannot be replaced by `classes` classes at the same time.
    pub(crate) fn add_output(
        &mut self,
        name: &str,
        span: NamedSpan,
        classes: u64,
    ) -> Result<(), ApiError> {
        if classes > 0 {
            return Err(ApiError::invalid(format!(
                "output can't set both '{REGION}' and 'classification'"
            )));
        }
        self.outputs.push((name.to_owned(), span));
        Ok(())
    }

    /// Copies the inputs into the request, and finds the places of the outputs. Copies are added to `charge` before
    /// they are made.
    pub(crate) async fn take_in(
        self,
        state: &ServerState,
        request: &mut InferRequest,
        model: &str,
        charge: &Arc<Charge>,
    ) -> Result<OutputRegions, ApiError> {
        if self.inputs.is_empty() && self.outputs.is_empty() {
            return Ok(OutputRegions::default());
        }
        let regions = state.regions()?;
        let find = |span: &NamedSpan| regions.span(&span.region, span.offset, span.byte_size);
        let mut outputs = OutputRegions::default();
        for (name, span) in self.outputs {
            outputs.0.push((name, find(&span)?));
        }
        let mut spans = Vec::with_capacity(self.inputs.len());
        for input in &self.inputs {
            let span = find(&input.span)?;
            input.check(&span, &request.id, model)?;
            spans.push(span);
        }
        let copies = copy_all(spans, charge).await?;
        for (input, data) in self.inputs.into_iter().zip(copies) {
            let RegionInput {
                position,
                name,
                datatype,
                shape,
                ..
            } = input;
            let tensor = input_tensor(&request.id, &name, model, datatype, shape, data)?;
            request.inputs.insert(position, (name, tensor));
        }
        Ok(outputs)
    }
}

impl RegionInput {
    /// Refuses a span that cannot hold the tensor, before its bytes are copied.
    fn check(&self, span: &RegionSpan, id: &str, model: &str) -> Result<(), ApiError> {
        // No overflow: a shape's element count leaves room for eight bytes an element.
        let expected = self.datatype.element_size();
        let expected = expected.map(|size| size * self.shape.element_count());
        match expected {
            Some(expected) if expected != span.byte_size() => {
                let got = span.byte_size();
                Err(size_mismatch(id, &self.name, model, expected, got))
            }
            _ => Ok(()),
        }
    }
}

/// A copy of each span.
async fn copy_all(spans: Vec<RegionSpan>, charge: &Arc<Charge>) -> Result<Vec<Bytes>, ApiError> {
    let bytes = spans.iter().map(RegionSpan::byte_size);
    let bytes = bytes.fold(0, usize::saturating_add);
    charge.add(bytes)?;
    let copy = move || spans.iter().map(RegionSpan::read).collect();
    let copies: Result<_, _> = if bytes > INLINE_BYTES {
        off_reactor(copy).await?
    } else {
        copy()
    };
    Ok(copies?)
}

/// Where outputs of a request go.
#[derive(Debug, Default)]
pub(crate) struct OutputRegions(Vec<(String, RegionSpan)>);

impl OutputRegions {
    /// The place of an output; `None` if it travels with the response.
    pub(crate) fn of(&self, output: &str) -> Option<&RegionSpan> {
        let mut places = self.0.iter();
        places
            .find(|(name, _)| name == output)
            .map(|(_, span)| span)
    }

    /// Copies the outputs to their places; none of them if one is too large.
    pub(crate) async fn write(&self, answer: &InferResponse) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut copies = Vec::with_capacity(self.0.len());
        let mut bytes = 0usize;
        for output in &answer.outputs {
            let Some(span) = self.of(&output.name) else {
                continue;
            };
            let data = output.tensor.data();
            if data.len() > span.byte_size() {
                return Err(ApiError::invalid(format!(
                    "shared memory size specified with the request for output '{}' ({} bytes) should be at least {} bytes to hold the results",
                    output.name,
                    span.byte_size(),
                    data.len()
                )));
            }
            bytes = bytes.saturating_add(data.len());
            copies.push((span.clone(), data.clone()));
        }
        let copy = move || copies.iter().try_for_each(|(span, data)| span.write(data));
        if bytes > INLINE_BYTES {
            off_reactor(copy).await??;
        } else {
            copy()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(
        region: Option<&str>,
        offset: Option<u64>,
        byte_size: Option<u64>,
    ) -> Result<Option<NamedSpan>, String> {
        let parameters = SpanParameters {
            region: region.map(str::to_owned),
            offset,
            byte_size,
        };
        let span = parameters.span("x");
        span.map_err(|error| tonic::Status::from(error).message().to_owned())
    }

    #[test]
    fn a_span_has_a_region_and_a_size() {
        assert_eq!(span(None, None, None), Ok(None));
        let named = |offset| {
            Ok(Some(NamedSpan {
                region: "r".to_owned(),
                offset,
                byte_size: 4,
            }))
        };
        assert_eq!(span(Some("r"), None, Some(4)), named(0));
        assert_eq!(span(Some("r"), Some(8), Some(4)), named(8));
        let missing = |what| {
            Err(format!(
                "must specify both 'shared_memory_region' and 'shared_memory_byte_size' for tensor 'x', '{what}' is missing"
            ))
        };
        assert_eq!(span(Some("r"), Some(8), None), missing(BYTE_SIZE));
        assert_eq!(span(None, None, Some(4)), missing(REGION));
        assert_eq!(span(None, Some(8), None), missing(REGION));
    }

    #[test]
    fn classes_and_a_region_exclude_each_other() {
        let mut regions = RegionUse::default();
        let span = span(Some("r"), None, Some(4))
            .expect("valid")
            .expect("a span");
        assert!(regions.add_output("y", span.clone(), 0).is_ok());
        let error = regions.add_output("z", span, 1).expect_err("both");
        assert_eq!(
            tonic::Status::from(error).message(),
            "output can't set both 'shared_memory_region' and 'classification'"
        );
    }
}

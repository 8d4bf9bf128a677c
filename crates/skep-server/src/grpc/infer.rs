//! `ModelInfer`: decodes messages into requests, and encodes answers into messages.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use skep_proto::inference::{
    InferTensorContents, ModelInferRequest, ModelInferResponse,
    model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    model_infer_response::InferOutputTensor,
};
use skep_runtime::{ErrorKind, InferRequest, InferResponse, LoadedVersion, RuntimeError};
use skep_tensor::{Charge, Tensor};
use skep_types::{DataType, Shape};
use skep_wire::{WireError, typed};
use tonic::{
    Status,
    metadata::{KeyAndValueRef, MetadataMap},
};

use super::{
    parameters,
    scan::{self, DecodingNeeds, ScanFault},
};
use crate::{
    access::AccessNote,
    error::ApiError,
    inference::{self, InferenceFailure, NamedSpan, OutputRegions, RegionInput, RegionUse},
    off_reactor::off_reactor,
    state::ServerState,
    traced::TracedCall,
};

/// Fields and elements of a message that are scanned and decoded on the reactor: some tens of microseconds. More goes
/// to another thread, so that no other call waits for it.
const INLINE_STEPS: usize = 8 << 10;

/// Memory of decoding that is too small to be charged.
const UNCHARGED_BYTES: usize = 2 << 10;

/// A decoded message.
pub(super) struct Received {
    pub(super) id: String,
    pub(super) model: String,
    version: String,
    decoded: Result<DecodedMessage, ApiError>,
}

/// Decodes a message, once its decoded form is known to fit into the memory; that form is added to `charge`.
pub(super) async fn receive(message: Bytes, charge: &Arc<Charge>) -> Result<Received, Status> {
    match scan::infer_request(&message, INLINE_STEPS) {
        Err(ScanFault::Long) => {
            let charge = Arc::clone(charge);
            let work = move || {
                let needs = scan::infer_request(&message, usize::MAX);
                take_apart(message, needs, &charge)
            };
            off_reactor(work).await?
        }
        needs => take_apart(message, needs, charge),
    }
}

fn take_apart(
    message: Bytes,
    needs: Result<DecodingNeeds, ScanFault>,
    charge: &Charge,
) -> Result<Received, Status> {
    let needs = needs.map_err(|fault| refused(fault, &message))?;
    let is_charged = needs.bytes() > UNCHARGED_BYTES;
    if is_charged {
        charge.add(needs.bytes()).map_err(ApiError::from)?;
    }
    let mut message =
        ModelInferRequest::decode(message).map_err(|error| Status::internal(error.to_string()))?;
    let received = Received {
        id: message.id.clone(),
        model: std::mem::take(&mut message.model_name),
        version: std::mem::take(&mut message.model_version),
        decoded: Ok(DecodedMessage::default()),
    };
    let decoded = decode(message, &received.model);
    if is_charged {
        charge.give_back(needs.passing);
    }
    Ok(Received {
        decoded,
        ..received
    })
}

/// Why a message is not decoded.
fn refused(fault: ScanFault, message: &Bytes) -> Status {
    match fault {
        ScanFault::TooMany { .. } => Status::invalid_argument(fault.to_string()),
        ScanFault::Long | ScanFault::Malformed => {
            // The decoder's error says more, and decoding a short message costs little memory.
            let short = message.slice(..message.len().min(UNCHARGED_BYTES));
            match ModelInferRequest::decode(short) {
                Err(error) if message.len() <= UNCHARGED_BYTES => {
                    Status::internal(error.to_string())
                }
                _ => Status::internal(fault.to_string()),
            }
        }
    }
}

/// Where it is noted what becomes of a request.
#[derive(Clone, Copy)]
pub(super) struct Noted<'a> {
    pub(super) note: &'a AccessNote,
    /// Set if the request is traced.
    pub(super) traced: Option<&'a TracedCall>,
}

/// Runs a request of a call with one answer; the memory it uses is added to `charge`.
pub(super) async fn infer(
    state: &ServerState,
    metadata: &MetadataMap,
    received: Received,
    charge: &Arc<Charge>,
    noted: Noted<'_>,
) -> Result<ModelInferResponse, InferenceFailure> {
    let loaded = acquire(state, &received).await?;
    inference::refuse_decoupled(&loaded, "ModelInfer RPC")?;
    run(state, &loaded, metadata, received, charge, noted).await
}

/// Runs a request of a stream.
pub(super) async fn infer_on_stream(
    state: &ServerState,
    metadata: &MetadataMap,
    received: Received,
    charge: &Arc<Charge>,
    noted: Noted<'_>,
) -> Result<ModelInferResponse, InferenceFailure> {
    let loaded = acquire(state, &received).await?;
    run(state, &loaded, metadata, received, charge, noted).await
}

async fn acquire(
    state: &ServerState,
    received: &Received,
) -> Result<Arc<LoadedVersion>, RuntimeError> {
    let version = Some(received.version.as_str());
    let decoded = received.decoded.as_ref().ok();
    let timeout = decoded.and_then(|decoded| decoded.request.timeout);
    let runtime = &state.runtime;
    runtime.acquire(&received.model, version, timeout).await
}

async fn run(
    state: &ServerState,
    loaded: &LoadedVersion,
    metadata: &MetadataMap,
    received: Received,
    charge: &Arc<Charge>,
    Noted { note, traced }: Noted<'_>,
) -> Result<ModelInferResponse, InferenceFailure> {
    let DecodedMessage {
        mut request,
        classes,
        regions,
    } = received.decoded?;
    let taken = regions.take_in(state, &mut request, &received.model, charge);
    let regions = taken.await?;
    request.charge = Some(Arc::clone(charge));
    // Binary metadata is not text.
    let headers = metadata.iter().filter_map(|entry| match entry {
        KeyAndValueRef::Ascii(name, value) => Some((name.as_str(), value.as_encoded_bytes())),
        KeyAndValueRef::Binary(..) => None,
    });
    state.inference.grpc_headers.forward(headers, &mut request);
    TracedCall::attach(traced, &mut request);
    inference::log_parameters(&request, loaded);
    let id = request.id.clone();
    note.sent_to(loaded, &id);
    let answer = loaded.infer(request).await;
    let mut answer = answer.map_err(|error| {
        inference::log_failure(&id, &error);
        InferenceFailure {
            ran: error.kind() != ErrorKind::InvalidArgument,
            error: error.into(),
        }
    })?;
    note.answered(&answer);
    inference::settle(charge, &mut answer);
    inference::classify(&mut answer, &classes, loaded)?;
    let written = regions.write(&answer).await;
    written.map_err(|error| InferenceFailure { error, ran: true })?;
    Ok(encode(answer, id, &regions))
}

/// Charges the memory of an answer that is encoded `times` times.
pub(super) fn charge_encoding(
    message: &ModelInferResponse,
    times: usize,
    charge: &Charge,
) -> Result<(), ApiError> {
    Ok(charge.add(message.encoded_len().saturating_mul(times))?)
}

/// A decoded request, and the classes that its outputs become.
#[derive(Default)]
pub(super) struct DecodedMessage {
    pub(super) request: InferRequest,
    /// The outputs that are replaced by classes, and how many classes.
    pub(super) classes: Vec<(String, u64)>,
    /// Inputs that are not in the request yet, and outputs that do not travel with the response.
    pub(super) regions: RegionUse,
}

/// Decodes a message; raw tensor data is not copied.
pub(super) fn decode(message: ModelInferRequest, model: &str) -> Result<DecodedMessage, ApiError> {
    let raw = !message.raw_input_contents.is_empty();
    let in_region = |input: &&InferInputTensor| input.parameters.contains_key(inference::REGION);
    let in_message = message.inputs.len() - message.inputs.iter().filter(in_region).count();
    if raw && message.raw_input_contents.len() != in_message {
        return Err(ApiError::invalid(format!(
            "expected {in_message} raw_input_contents, one for each input of the request for model '{model}' that is not in shared memory, got {}",
            message.raw_input_contents.len()
        )));
    }
    let mut contents = message.raw_input_contents.into_iter();
    let mut request = InferRequest {
        id: message.id,
        ..Default::default()
    };
    parameters::of_request(message.parameters, &mut request)?;
    let mut regions = RegionUse::default();
    for (position, mut input) in message.inputs.into_iter().enumerate() {
        if let Some(span) = parameters::span(&input.name, &input.parameters)? {
            let input = region_input(position, input, span, model)?;
            regions.inputs.push(input);
            continue;
        }
        let tensor = tensor(&request.id, &mut input, contents.next(), model)?;
        request.inputs.push((input.name, tensor));
    }
    let mut classes = Vec::new();
    for output in message.outputs {
        let count = output_classes(&output)?;
        if let Some(span) = parameters::span(&output.name, &output.parameters)? {
            regions.add_output(&output.name, span, count)?;
        } else if count > 0 {
            classes.push((output.name.clone(), count));
        }
        request.outputs.push(output.name);
    }
    Ok(DecodedMessage {
        request,
        classes,
        regions,
    })
}

/// How many classes replace an output; 0 for the output itself. Unknown parameters are ignored, as on Triton.
fn output_classes(output: &InferRequestedOutputTensor) -> Result<u64, ApiError> {
    let classes = output.parameters.get("classification");
    classes.map_or(Ok(0), parameters::classes)
}

/// An input that lies in a region.
fn region_input(
    position: usize,
    input: InferInputTensor,
    span: NamedSpan,
    model: &str,
) -> Result<RegionInput, ApiError> {
    let name = input.name;
    if input.contents.is_some() {
        return Err(ApiError::invalid(format!(
            "unexpected 'content' provided when using shared memory for input tensor '{name}' for model '{model}'"
        )));
    }
    let (datatype, shape) = datatype_and_shape(&name, &input.datatype, &input.shape)?;
    Ok(RegionInput {
        position,
        name,
        datatype,
        shape,
        span,
    })
}

fn datatype_and_shape(
    name: &str,
    datatype: &str,
    shape: &[i64],
) -> Result<(DataType, Shape), ApiError> {
    let datatype = DataType::from_protocol_name(datatype)
        .map_err(|error| inference::invalid_input(name, error))?;
    let shape = Shape::from_wire(shape).map_err(|error| inference::invalid_input(name, error))?;
    Ok((datatype, shape))
}

fn tensor(
    id: &str,
    input: &mut InferInputTensor,
    raw: Option<Bytes>,
    model: &str,
) -> Result<Tensor, ApiError> {
    let name = &input.name;
    let (datatype, shape) = datatype_and_shape(name, &input.datatype, &input.shape)?;
    let data = match (raw, input.contents.take()) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid(format!(
                "contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
            )));
        }
        (Some(raw), None) => raw,
        (None, contents) => {
            let absent = contents.is_none();
            let contents = contents.unwrap_or_default();
            let data = typed::read(&contents, datatype)
                .map_err(|error| inference::invalid_input(name, contents_error(&error)))?;
            if let Some(got) = foreign_field(&contents, datatype) {
                return Err(ApiError::invalid(format!(
                    "unexpected explicit tensor data for input tensor '{name}' for model '{model}' of type '{got}', expected datatype '{datatype}'"
                )));
            }
            // Absent contents are empty ones: right for a tensor without elements.
            if absent && shape.element_count() > 0 {
                return Err(ApiError::invalid(format!(
                    "unable to find data for input tensor '{name}' for model '{model}' in request."
                )));
            }
            data
        }
    };
    inference::input_tensor(id, name, model, datatype, shape, data)
}

/// The datatype of a non-empty field that does not belong to `datatype`.
fn foreign_field(contents: &InferTensorContents, datatype: DataType) -> Option<DataType> {
    use DataType as D;
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let fields: [(bool, &[DataType]); 8] = [
        (bool_contents.is_empty(), &[D::Bool]),
        (int_contents.is_empty(), &[D::Int32, D::Int16, D::Int8]),
        (int64_contents.is_empty(), &[D::Int64]),
        (uint_contents.is_empty(), &[D::Uint32, D::Uint16, D::Uint8]),
        (uint64_contents.is_empty(), &[D::Uint64]),
        (fp32_contents.is_empty(), &[D::Fp32]),
        (fp64_contents.is_empty(), &[D::Fp64]),
        (bytes_contents.is_empty(), &[D::Bytes]),
    ];
    let foreign = |(empty, own): &(bool, &[DataType])| !empty && !own.contains(&datatype);
    fields.into_iter().find(foreign).map(|(_, own)| own[0])
}

fn contents_error(error: &WireError) -> String {
    match error {
        WireError::NoTypedForm(_) => format!("{error}, send it in raw_input_contents"),
        _ => error.to_string(),
    }
}

/// Encodes an answer: always raw contents, as on Triton, which are empty for an output in a region.
pub(super) fn encode(
    answer: InferResponse,
    id: String,
    regions: &OutputRegions,
) -> ModelInferResponse {
    let mut message = ModelInferResponse {
        model_name: answer.model.to_string(),
        model_version: answer.version.to_string(),
        id,
        parameters: parameters::encode(answer.parameters),
        ..Default::default()
    };
    for output in answer.outputs {
        let data = output.tensor.data();
        let span = regions.of(&output.name);
        message.outputs.push(InferOutputTensor {
            name: output.name.to_string(),
            datatype: output.tensor.datatype().protocol_name().to_owned(),
            shape: output.tensor.shape().to_wire(),
            parameters: span
                .map(|span| parameters::encode_span(span, data.len()))
                .unwrap_or_default(),
            ..Default::default()
        });
        message.raw_output_contents.push(match span {
            Some(_) => Bytes::new(),
            None => data.clone(),
        });
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(
        datatype: &str,
        contents: InferTensorContents,
        raw: Vec<Bytes>,
    ) -> ModelInferRequest {
        let mut input = InferInputTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: vec![1, 2],
            ..Default::default()
        };
        input.contents = Some(contents).filter(|c| *c != InferTensorContents::default());
        ModelInferRequest {
            model_name: "m".into(),
            inputs: vec![input],
            raw_input_contents: raw,
            ..Default::default()
        }
    }

    fn outcome(message: ModelInferRequest) -> Result<Bytes, String> {
        decode(message, "m")
            .map(|decoded| decoded.request.inputs[0].1.data().clone())
            .map_err(|error| Status::from(error).message().to_owned())
    }

    #[test]
    fn typed_contents_narrow_exactly() {
        let ints = |values: &[i32]| InferTensorContents {
            int_contents: values.to_vec(),
            ..Default::default()
        };
        assert_eq!(
            outcome(message("INT8", ints(&[-1, 127]), vec![])).as_deref(),
            Ok(&[255u8, 127][..])
        );
        assert_eq!(
            outcome(message("INT8", ints(&[0, 128]), vec![])),
            Err("input 'x': 128 is not a valid INT8".to_owned())
        );
    }

    #[test]
    fn half_precision_has_no_typed_contents() {
        assert_eq!(
            outcome(message("FP16", InferTensorContents::default(), vec![])),
            Err("input 'x': FP16 has no typed contents, send it in raw_input_contents".to_owned())
        );
    }

    #[test]
    fn contents_of_another_datatype_are_refused_in_tritons_words() {
        let both = InferTensorContents {
            fp32_contents: vec![1.0, 2.0],
            int_contents: vec![1],
            ..Default::default()
        };
        assert_eq!(
            outcome(message("FP32", both, vec![])),
            Err("unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'INT32', expected datatype 'FP32'".to_owned())
        );
        assert_eq!(
            outcome(message("FP32", InferTensorContents::default(), vec![])),
            Err("unable to find data for input tensor 'x' for model 'm' in request.".to_owned())
        );
    }

    #[test]
    fn raw_and_typed_contents_exclude_each_other() {
        let typed = InferTensorContents {
            fp32_contents: vec![1.0, 2.0],
            ..Default::default()
        };
        let raw = vec![Bytes::from(vec![0; 8])];
        assert!(outcome(message("FP32", InferTensorContents::default(), raw.clone())).is_ok());
        let error = outcome(message("FP32", typed, raw)).expect_err("both");
        assert!(error.contains("must not be specified"), "{error}");
    }

    #[test]
    fn sizes_are_checked() {
        let raw = vec![Bytes::from(vec![0; 7])];
        assert_eq!(
            outcome(message("FP32", InferTensorContents::default(), raw)),
            Err(
                "[request id: <id_unknown>] input byte size mismatch for input 'x' for model 'm'. Expected 8, got 7"
                    .to_owned()
            )
        );
    }
}

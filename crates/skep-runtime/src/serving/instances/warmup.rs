//! Warm-up: requests that each instance runs before it is ready.
//!
//! Source: Triton, model configuration, `model_warmup`.

use std::path::Path;

use bytes::Bytes;
use skep_backend::Instance;
use skep_config::{ModelConfig, Warmup, WarmupData, WarmupInput};
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, Shape};

use crate::{
    error::RuntimeError,
    serving::{
        instances::runner::InstanceRunner, interface::Interface, request::InferRequest, validate,
    },
};

/// The directory of a model's warm-up data.
const DATA_DIRECTORY: &str = "warmup";

/// A warm-up request, built once for all instances.
pub(crate) struct WarmupRequest {
    name: String,
    count: u32,
    request: InferRequest,
}

/// As large as a client's request may be.
const MAX_FILE_BYTES: u64 = 2 << 30;

/// Builds the configured requests.
pub(crate) fn prepare(
    config: &ModelConfig,
    interface: &Interface,
    directory: &Path,
) -> Result<Vec<WarmupRequest>, RuntimeError> {
    let batched = config.max_batch_size() > 0;
    let mut requests = Vec::new();
    for warmup in config.warmups() {
        let request = build(warmup, batched, interface, directory)
            .map_err(|error| failed(&warmup.name, &error))?;
        requests.push(WarmupRequest {
            name: warmup.name.clone(),
            count: warmup.count,
            request,
        });
    }
    Ok(requests)
}

fn build(
    warmup: &Warmup,
    batched: bool,
    interface: &Interface,
    directory: &Path,
) -> Result<InferRequest, RuntimeError> {
    let mut request = InferRequest {
        id: format!("warmup:{}", warmup.name),
        ..Default::default()
    };
    for (name, input) in &warmup.inputs {
        let tensor = tensor(warmup, input, batched, directory)?;
        request.inputs.push((name.clone(), tensor));
    }
    validate::prepare_alone(&request, interface)?;
    Ok(request)
}

/// Runs the warm-up requests on one instance.
pub(super) fn run(
    runner: &InstanceRunner,
    instance: &mut dyn Instance,
    warmups: &[WarmupRequest],
) -> Result<(), RuntimeError> {
    for warmup in warmups {
        for _ in 0..warmup.count {
            let prepared = validate::prepare_alone(&warmup.request, &runner.interface)?;
            runner
                .warm_up(instance, prepared)
                .map_err(|error| failed(&warmup.name, &error))?;
        }
    }
    Ok(())
}

fn failed(name: &str, error: &RuntimeError) -> RuntimeError {
    RuntimeError::new(
        error.kind(),
        format!("failed to run warmup '{name}': {error}"),
    )
}

fn tensor(
    warmup: &Warmup,
    input: &WarmupInput,
    batched: bool,
    directory: &Path,
) -> Result<Tensor, RuntimeError> {
    let mut dims = input.dims.dims().to_vec();
    if batched {
        dims.insert(0, warmup.batch_size.max(1));
    }
    let shape = Shape::new(&dims).map_err(|e| RuntimeError::invalid(e.to_string()))?;
    let count = shape.element_count();
    let data: Vec<u8> = match &input.data {
        WarmupData::Zero => return Ok(Tensor::zeros(input.datatype, shape)),
        WarmupData::Random => random(input.datatype, count),
        WarmupData::File(name) => {
            let path = directory.join(DATA_DIRECTORY).join(name);
            let rows = if batched { warmup.batch_size.max(1) } else { 1 };
            let row = skep_host::read_file(&path, MAX_FILE_BYTES).map_err(|e| {
                RuntimeError::invalid(format!("cannot read `{}`: {e}", path.display()))
            })?;
            // A file holds one row, whatever the batch size.
            row.repeat(rows)
        }
    };
    Tensor::new(input.datatype, shape, Bytes::from(data))
        .map_err(|e| RuntimeError::invalid(e.to_string()))
}

/// Pseudo-random elements (xorshift, fixed seed): small integers, which are NaN in no datatype.
fn random(datatype: DataType, count: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut data = Vec::new();
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = u8::try_from(state >> 57).unwrap_or(0);
        match datatype {
            DataType::Bool => data.push(value & 1),
            DataType::Uint8 | DataType::Int8 => data.push(value),
            DataType::Uint16 | DataType::Int16 => data.extend(u16::from(value).to_le_bytes()),
            DataType::Uint32 | DataType::Int32 => data.extend(u32::from(value).to_le_bytes()),
            DataType::Uint64 | DataType::Int64 => data.extend(u64::from(value).to_le_bytes()),
            DataType::Fp32 => data.extend((f32::from(value) / 128.0).to_le_bytes()),
            DataType::Fp64 => data.extend((f64::from(value) / 128.0).to_le_bytes()),
            // Exponents below the largest: finite in both half-precision formats.
            DataType::Fp16 | DataType::Bf16 => data.extend([value, 0x30]),
            DataType::Bytes => data.extend(encode_strings([value.to_string().as_bytes()])),
        }
    }
    data
}

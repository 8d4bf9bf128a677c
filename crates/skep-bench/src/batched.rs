//! What the benchmarks of batching share: a mock that stands for an accelerator, and tensors to send.

use anyhow::Result;
use bytes::Bytes;
use skep_models::{Inputs, Kind};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};

use crate::named_inputs;

/// What an execution takes on the mock, in milliseconds: published figures of a text recogniser on an accelerator.
pub const BASE_MS: f64 = 1.87;
/// What each inference adds to that, in milliseconds.
pub const PER_INFERENCE_MS: f64 = 0.087;

/// The MLP's ports: a model whose configuration left them out would be completed with a batcher.
pub const MLP_PORTS: &str = "input { name: \"input\" data_type: TYPE_FP32 dims: 512 }
    output { name: \"output\" data_type: TYPE_FP32 dims: 512 }";

/// A parameter of a model's configuration.
pub fn parameter(key: &str, value: &str) -> String {
    format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n")
}

/// The mock's ports and what its executions take, as part of a configuration.
pub fn mock_config(base_ms: f64, per_inference_ms: f64) -> String {
    let us = |ms: f64| format!("{:.0}", ms * 1e3);
    format!(
        "input {{ name: \"x\" data_type: TYPE_FP32 dims: 16 }}
         output {{ name: \"y\" data_type: TYPE_FP32 dims: 16 }}
         {}{}",
        parameter("mock.latency_us", &us(base_ms)),
        parameter("mock.latency_us_per_item", &us(per_inference_ms)),
    )
}

/// Inputs of a request to the mock.
///
/// # Errors
/// When a batch of this size has no shape.
pub fn mock_inputs(batch: usize) -> Result<Vec<(String, Tensor)>> {
    let shape = Shape::new(&[batch, 16])?;
    let bytes = vec![0; shape.element_count() * 4];
    let tensor = Tensor::new(DataType::Fp32, shape, Bytes::from(bytes))?;
    Ok(vec![("x".to_owned(), tensor)])
}

/// Inputs of a request to a generated model.
///
/// # Errors
/// As [`named_inputs`].
pub fn inputs(kind: &Kind, batch: usize) -> Result<Vec<(String, Tensor)>> {
    let wanted = Inputs {
        seed: 1,
        batch,
        sequence: 1,
    };
    named_inputs(kind, wanted)
}

//! What the benchmarks of batching share: a mock that stands for an accelerator, and tensors to send.

use anyhow::Result;
use bytes::Bytes;
use skep_tensor::Tensor;
use skep_testkit::{Inputs, Kind};
use skep_types::{DataType, Shape};

/// What an execution takes on the mock, figures that were published for a text recogniser on an accelerator.
pub(crate) const BASE_MS: f64 = 1.87;
pub(crate) const PER_INFERENCE_MS: f64 = 0.087;

/// The MLP's ports: a model whose configuration left them out would be completed with a batcher.
pub(crate) const MLP_PORTS: &str = "input { name: \"input\" data_type: TYPE_FP32 dims: 512 }
    output { name: \"output\" data_type: TYPE_FP32 dims: 512 }";

/// A parameter of a model's configuration.
pub(crate) fn parameter(key: &str, value: &str) -> String {
    format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n")
}

/// The mock's ports and what its executions take, as part of a configuration.
pub(crate) fn mock_config(base_ms: f64, per_inference_ms: f64) -> String {
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
pub(crate) fn mock_inputs(batch: usize) -> Result<Vec<(String, Tensor)>> {
    let shape = Shape::new(&[batch, 16])?;
    let bytes = vec![0; shape.element_count() * 4];
    let tensor = Tensor::new(DataType::Fp32, shape, Bytes::from(bytes))?;
    Ok(vec![("x".to_owned(), tensor)])
}

/// Inputs of a request to a generated model.
pub(crate) fn inputs(kind: &Kind, batch: usize) -> Result<Vec<(String, Tensor)>> {
    let wanted = Inputs {
        seed: 1,
        batch,
        sequence: 1,
    };
    let mut inputs = Vec::new();
    for input in skep_testkit::inputs(kind, wanted) {
        let tensor = Tensor::new(input.datatype, input.shape, Bytes::from(input.data))?;
        inputs.push((input.name.to_string(), tensor));
    }
    Ok(inputs)
}

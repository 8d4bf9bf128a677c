//! Raw binary requests: the body is the data of the only input, and everything else follows from the model's
//! configuration.
//!
//! Source: Triton, "Binary Tensor Data Extension", "Raw Binary Request".

use bytes::Bytes;
use skep_config::ModelConfig;
use skep_runtime::InferRequest;
use skep_types::Shape;

use super::request::{DecodedRequest, OutputEncoding};
use crate::{
    error::ApiError,
    inference::{self, RegionUse},
};

/// The name that Triton's texts give to the input, which the request does not name.
const INPUT_NAME: &str = "raw_input";

/// Makes a request from a body that is tensor data as a whole; its outputs travel as binary data.
pub(super) fn decode(body: Bytes, config: &ModelConfig) -> Result<DecodedRequest, ApiError> {
    let model = config.name().as_str();
    let error = |text: String| inference::invalid_request("", &text);
    let [input] = config.inputs() else {
        return Err(error(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {} inputs in '{model}' model configuration",
            config.inputs().len()
        )));
    };
    let name = &input.name;
    let dims = input.dims.as_slice();
    let variable = dims.iter().filter(|&&dim| dim == -1).count();
    if variable > 1 {
        return Err(error(format!(
            "The shape of the raw input '{name}' can not be deduced because there are more than one variable-sized dimension"
        )));
    }
    let fixed = dims.iter().filter_map(|&dim| usize::try_from(dim).ok());
    // Cannot overflow: checked when the configuration was read.
    let item: usize = fixed.product();
    let data = match input.datatype.element_size() {
        Some(_) => body,
        None if variable == 0 && item == 1 => {
            // The body is the only string; as an element of a tensor it needs its length in front.
            skep_tensor::encode_strings([&*body]).into()
        }
        None => {
            return Err(error(format!(
                "For BYTE datatype raw input '{name}', the model must have input shape [1]"
            )));
        }
    };
    let size = input.datatype.element_size().unwrap_or(1) * item.max(1);
    let deduced = data.len() / size;
    let batch = input.batched.then_some(1);
    let dims = dims
        .iter()
        .map(|&dim| usize::try_from(dim).unwrap_or(deduced));
    let dims: Vec<usize> = batch.into_iter().chain(dims).collect();
    let shape = Shape::new(&dims).map_err(|e| error(e.to_string()))?;
    let tensor = inference::input_tensor("", INPUT_NAME, model, input.datatype, shape, data)?;
    Ok(DecodedRequest {
        request: InferRequest {
            inputs: vec![(name.clone(), tensor)],
            ..Default::default()
        },
        wanted: OutputEncoding {
            all_binary: true,
            ..Default::default()
        },
        regions: RegionUse::default(),
    })
}

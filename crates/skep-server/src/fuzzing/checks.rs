//! Checks on requests that the fuzz targets of both protocols share.

use skep_runtime::{InferRequest, InferResponse, NamedTensor, Parameter};
use skep_tensor::Tensor;
use skep_types::{DataType, ModelName, ModelVersion};

/// The model that fuzzed requests are for.
pub(crate) const MODEL: &str = "m";

/// An answer that sends a request's inputs back as outputs.
pub(crate) fn echo(request: &InferRequest) -> InferResponse {
    let outputs = request.inputs.iter().map(|(name, tensor)| NamedTensor {
        name: name.as_str().into(),
        tensor: tensor.clone(),
        owns_memory: false,
    });
    InferResponse {
        model: ModelName::new(MODEL).expect("a name"),
        version: ModelVersion::new(1).expect("a version"),
        outputs: outputs.collect(),
        timing: None,
        parameters: request.parameters.clone(),
        charge: None,
    }
}

/// The data of each input fits its datatype and shape, computed independently here.
pub(crate) fn assert_consistent(request: &InferRequest) {
    for (name, tensor) in &request.inputs {
        let dims = tensor.shape().dims();
        let elements = if dims.contains(&0) {
            Some(0)
        } else {
            dims.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim))
        };
        let expected = match tensor.datatype().element_size() {
            Some(size) => elements.and_then(|n| n.checked_mul(size)),
            None => {
                let strings = tensor.view().strings();
                assert_eq!(Some(strings.clone().count()), elements, "strings of {name}");
                Some(strings.map(|text| text.len() + size_of::<u32>()).sum())
            }
        };
        assert_eq!(Some(tensor.data().len()), expected, "bytes of {name}");
    }
}

/// The same names with the same values in the same order.
pub(crate) fn assert_same_inputs(left: &[(String, Tensor)], right: &[(String, Tensor)]) {
    assert_eq!(left.len(), right.len(), "inputs");
    for ((left_name, left), (right_name, right)) in left.iter().zip(right) {
        assert_eq!(left_name, right_name);
        assert_eq!(left.datatype(), right.datatype(), "datatype of {left_name}");
        assert_eq!(left.shape(), right.shape(), "shape of {left_name}");
        assert_eq!(values(left), values(right), "values of {left_name}");
    }
}

/// A tensor's bytes, with one NaN and one value for true: text cannot tell others apart.
fn values(tensor: &Tensor) -> Vec<u8> {
    let data = tensor.data();
    match tensor.datatype() {
        DataType::Bool => data.iter().map(|byte| u8::from(*byte != 0)).collect(),
        DataType::Fp32 => {
            let values = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
            values
                .map(|v| if v.is_nan() { f32::NAN } else { v })
                .flat_map(f32::to_le_bytes)
                .collect()
        }
        DataType::Fp64 => {
            let values = data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b));
            values
                .map(|v| if v.is_nan() { f64::NAN } else { v })
                .flat_map(f64::to_le_bytes)
                .collect()
        }
        _ => data.to_vec(),
    }
}

/// The same parameters, in any order.
pub(crate) fn assert_same_parameters(left: &[(String, Parameter)], right: &[(String, Parameter)]) {
    let sorted = |given: &[(String, Parameter)]| {
        let mut all: Vec<String> = given.iter().map(|pair| format!("{pair:?}")).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(sorted(left), sorted(right));
}

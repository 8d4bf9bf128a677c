//! The form in which a response is kept: nothing of its own request, and no memory but that of its outputs.

use skep_tensor::TensorError;
use skep_types::MemoryKind;

use super::long_work;
use crate::serving::request::{InferResponse, NamedTensor, Parameter};

/// Memory of an entry besides its outputs: its places in the table's lists and index, the response around the outputs.
const ENTRY_BYTES: usize = 512;

/// Bytes that an entry takes.
pub(super) fn entry_bytes(response: &InferResponse) -> u64 {
    let outputs = response.outputs.iter();
    let outputs = outputs.map(|output| size_of::<NamedTensor>() + output.tensor.data().len());
    let parameters = response.parameters.iter().map(|(key, value)| {
        let text = match value {
            Parameter::String(text) => text.len(),
            Parameter::Bool(_) | Parameter::Int(_) | Parameter::Double(_) => 0,
        };
        size_of::<(String, Parameter)>() + key.len() + text
    });
    let bytes = outputs
        .chain(parameters)
        .fold(ENTRY_BYTES, usize::saturating_add);
    bytes as u64
}

/// What is kept of a response; `None` if it cannot be kept. Outputs whose memory holds more than themselves are copied:
/// a batch that other requests shared, a request's body, memory of the backend's library.
pub(super) async fn kept(response: &InferResponse) -> Option<InferResponse> {
    // A field that is added has to be decided about here.
    let InferResponse {
        model,
        version,
        outputs,
        timing: _,
        parameters,
        charge: _,
    } = response;
    let is_on_host = |output: &NamedTensor| output.tensor.memory_kind() == MemoryKind::Host;
    if !outputs.iter().all(is_on_host) {
        return None;
    }
    let copied = outputs.iter().filter(|output| !output.owns_memory);
    let copied = copied.map(|output| output.tensor.data().len());
    let outputs = match long_work::is_short(copied.sum()) {
        true => own_memory(outputs),
        false => {
            let outputs = outputs.clone();
            long_work::run(move || own_memory(&outputs)).await?
        }
    };
    Some(InferResponse {
        model: model.clone(),
        version: *version,
        outputs: outputs.ok()?,
        timing: None,
        parameters: parameters.clone(),
        charge: None,
    })
}

fn own_memory(outputs: &[NamedTensor]) -> Result<Vec<NamedTensor>, TensorError> {
    let owned = outputs.iter().map(|output| {
        if output.owns_memory {
            return Ok(output.clone());
        }
        Ok(NamedTensor {
            name: output.name.clone(),
            tensor: output.tensor.try_copy()?,
            owns_memory: true,
        })
    });
    owned.collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use skep_tensor::Tensor;
    use skep_types::{DataType, DeviceId, ModelName, ModelVersion, Shape};

    use super::*;

    fn response(data: Bytes, owns_memory: bool) -> InferResponse {
        let shape = Shape::new(&[data.len()]).expect("shape");
        InferResponse {
            model: ModelName::new("m").expect("name"),
            version: ModelVersion::ONE,
            outputs: vec![NamedTensor {
                name: "y".into(),
                tensor: Tensor::new(DataType::Uint8, shape, data).expect("tensor"),
                owns_memory,
            }],
            timing: None,
            parameters: Vec::new(),
            charge: None,
        }
    }

    #[tokio::test]
    async fn only_outputs_that_own_their_memory_are_kept_in_place() {
        let body = Bytes::from(vec![7; 2 * long_work::SHORT_BYTES]);
        for length in [0, 5, 2 * long_work::SHORT_BYTES] {
            let output = body.slice(..length);
            let shared = kept(&response(output.clone(), false)).await.expect("kept");
            let data = shared.outputs[0].tensor.data();
            assert_eq!(*data, output);
            assert!(length == 0 || data.as_ptr() != body.as_ptr(), "{length}");
            let owned = kept(&response(output.clone(), true)).await.expect("kept");
            assert_eq!(owned.outputs[0].tensor.data().as_ptr(), output.as_ptr());
        }
    }

    #[tokio::test]
    async fn memory_of_devices_is_not_kept() {
        let mut on_device = response(Bytes::from_static(b"12"), true);
        let tensor = on_device.outputs[0].tensor.clone();
        on_device.outputs[0].tensor = tensor.in_memory(MemoryKind::Device(DeviceId::default()));
        assert!(kept(&on_device).await.is_none());
    }

    #[test]
    fn an_entry_takes_at_least_its_data() {
        let bytes = |length| entry_bytes(&response(Bytes::from(vec![0; length]), true));
        assert_eq!(bytes(1000) - bytes(0), 1000);
        let mut with_parameter = response(Bytes::new(), true);
        let text = Parameter::String("x".repeat(500));
        with_parameter.parameters.push(("key".to_owned(), text));
        assert!(entry_bytes(&with_parameter) > bytes(0) + 500);
    }
}

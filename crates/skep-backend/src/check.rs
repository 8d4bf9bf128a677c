//! Checks that every backend makes before a run, so that a wrong input is an error and never a crash.

use skep_tensor::TensorView;
use skep_types::{DataType, DeviceId, MemoryKind, ModelSignature};

use crate::{BackendError, ErrorKind, OutputSlot};

/// Refuses a device that is not a set of CPU cores, for backends that run on the CPU only.
///
/// # Errors
/// [`ErrorKind::Unsupported`], naming the device.
pub fn check_cpu(backend: &str, device: DeviceId) -> Result<(), BackendError> {
    if device.is_cpu() {
        return Ok(());
    }
    let text = format!("backend `{backend}` runs on the CPU only, got device {device}");
    Err(BackendError::new(ErrorKind::Unsupported, text))
}

/// Checks a run's inputs and wanted outputs against the model's signature, for backends that run on the CPU: number,
/// datatypes, shapes, host memory, and that `BOOL` elements are 0 or 1 (native code may count true elements by summing
/// bytes, and write that many results).
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the tensor, the expected and the actual value.
pub fn check_run(
    signature: &ModelSignature,
    inputs: &[TensorView<'_>],
    outputs: &[OutputSlot],
) -> Result<(), BackendError> {
    if inputs.len() != signature.inputs.len() {
        return invalid(format!(
            "got {} inputs, expected {}",
            inputs.len(),
            signature.inputs.len()
        ));
    }
    for (spec, view) in signature.inputs.iter().zip(inputs) {
        let name = &spec.name;
        if view.memory_kind() != MemoryKind::Host {
            return invalid(format!(
                "input `{name}` lies in {}, expected host memory",
                view.memory_kind()
            ));
        }
        if view.datatype() != spec.datatype {
            return invalid(format!(
                "input `{name}` has datatype {}, expected {}",
                view.datatype(),
                spec.datatype
            ));
        }
        if let Some(dims) = &spec.dims
            && !dims.accepts(view.shape().dims())
        {
            return invalid(format!(
                "input `{name}` has shape {}, expected {dims}",
                view.shape()
            ));
        }
        if view.datatype() == DataType::Bool
            && let Some(index) = view.data().iter().position(|&byte| byte > 1)
        {
            return invalid(format!(
                "input `{name}` holds {} at index {index}, expected 0 or 1 for a BOOL",
                view.data()[index]
            ));
        }
    }
    if let Some(slot) = outputs
        .iter()
        .find(|slot| slot.memory_kind() != MemoryKind::Host)
    {
        return invalid(format!(
            "output {} is wanted in {}, expected host memory",
            slot.index(),
            slot.memory_kind()
        ));
    }
    let count = signature.outputs.len();
    match outputs.iter().find(|slot| slot.index() >= count) {
        Some(slot) => invalid(format!(
            "output {} is wanted, expected one below {count}",
            slot.index()
        )),
        None => Ok(()),
    }
}

fn invalid(message: String) -> Result<(), BackendError> {
    Err(BackendError::new(ErrorKind::InvalidArgument, message))
}

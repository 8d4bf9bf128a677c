//! Two ways of loading a model, compared by what they answer.

use std::sync::Arc;

use skep_backend::{BackendError, Model as _, OutputSlot};
use skep_tensor::{AlignedBuffer, Tensor, TensorView};
use skep_types::{DataType, Shape, TensorSpec};

use crate::model::OrtModel;

/// Dimensions that the model leaves open.
const OPEN_DIMENSION: usize = 1;

/// Elements of an input, at most: inputs of all dimensions open but one may be of any size.
const MAX_ELEMENTS: usize = 1 << 26;

/// Runs both on the same inputs. Where neither can run on these, nothing is known, and nothing said.
///
/// # Errors
/// What differs.
pub(crate) fn same_answers(plain: OrtModel, other: OrtModel) -> Result<(), String> {
    let Some(inputs) = inputs(&plain.signature.inputs) else {
        return Ok(());
    };
    match (run(plain, &inputs), run(other, &inputs)) {
        (Ok(expected), Ok(got)) if expected == got => Ok(()),
        (Ok(_), Ok(_)) => Err("the baked form answers otherwise than the model".to_owned()),
        (Ok(_), Err(error)) => Err(format!("the baked form does not run: {error}")),
        // The inputs are made up: the model may well refuse them.
        (Err(_), _) => Ok(()),
    }
}

/// Inputs that most models take: fractions between -0.5 and 0.5, the integers 0 and 1, `false` and `true`. `None` for
/// inputs of strings, of unknown rank, or beyond measure.
fn inputs(specs: &[TensorSpec]) -> Option<Vec<Tensor>> {
    specs.iter().map(input).collect()
}

fn input(spec: &TensorSpec) -> Option<Tensor> {
    let dims = spec.dims.as_ref()?.as_slice().iter();
    let dims: Vec<usize> = dims
        .map(|dim| usize::try_from(*dim).unwrap_or(OPEN_DIMENSION))
        .collect();
    let shape = Shape::new(&dims).ok()?;
    let count = shape.element_count();
    let size = spec.datatype.element_size()?;
    if count > MAX_ELEMENTS {
        return None;
    }
    let mut buffer = AlignedBuffer::zeroed(count * size);
    for (index, element) in buffer.chunks_exact_mut(size).enumerate() {
        // Any numbers that are not all the same.
        let fraction = (index * 7919 % 97) as f32 / 97.0 - 0.5;
        match spec.datatype {
            DataType::Fp32 => element.copy_from_slice(&fraction.to_le_bytes()),
            DataType::Fp64 => element.copy_from_slice(&f64::from(fraction).to_le_bytes()),
            // 1.0 and 0.0.
            DataType::Fp16 if index % 3 == 0 => element.copy_from_slice(&0x3c00_u16.to_le_bytes()),
            DataType::Bf16 if index % 3 == 0 => element.copy_from_slice(&0x3f80_u16.to_le_bytes()),
            DataType::Fp16 | DataType::Bf16 => {}
            _ => element[0] = u8::from(index % 3 == 0),
        }
    }
    Tensor::new(spec.datatype, shape, buffer.freeze()).ok()
}

/// All outputs of a run.
fn run(model: OrtModel, inputs: &[Tensor]) -> Result<Vec<Option<Tensor>>, BackendError> {
    let outputs = model.signature.outputs.len();
    let mut instance = Arc::new(model).instance()?;
    let views: Vec<TensorView<'_>> = inputs.iter().map(Tensor::view).collect();
    let mut slots: Vec<OutputSlot> = (0..outputs).map(OutputSlot::new).collect();
    instance.execute(&views, &mut slots)?;
    Ok(slots.into_iter().map(OutputSlot::into_tensor).collect())
}

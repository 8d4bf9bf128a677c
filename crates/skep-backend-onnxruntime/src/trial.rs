//! Two ways of loading a model, compared by what they answer.

use std::sync::Arc;

use skep_backend::{BackendError, Model as _, OutputSlot};
use skep_tensor::{AlignedBuffer, Tensor, TensorView};
use skep_types::{DataType, Shape, TensorSpec};

use crate::model::OrtModel;

/// What dimensions that the model leaves open are, run by run: kernels differ between one row and several.
const OPEN_DIMENSIONS: [usize; 2] = [1, 3];

/// Elements of an input, at most: inputs of all dimensions open but one may be of any size.
const MAX_ELEMENTS: usize = 1 << 26;

/// What became of a comparison.
#[derive(Debug)]
pub(crate) enum Trial {
    /// All answers are the same, to the bit.
    Same,
    /// The model took none of the inputs: they are made up.
    NotCompared,
    /// An answer is another one.
    Different,
    /// The other one does not run what the model runs.
    Failed(String),
}

/// Runs both on the same inputs.
pub(crate) fn same_answers(plain: OrtModel, other: OrtModel) -> Trial {
    let specs = plain.signature.inputs.clone();
    let (plain, other) = (Arc::new(plain), Arc::new(other));
    let mut trial = Trial::NotCompared;
    for open in OPEN_DIMENSIONS {
        let Some(inputs) = inputs(&specs, open) else {
            continue;
        };
        match (run(&plain, &inputs), run(&other, &inputs)) {
            (Ok(expected), Ok(got)) if expected == got => trial = Trial::Same,
            (Ok(_), Ok(_)) => return Trial::Different,
            (Ok(_), Err(error)) => {
                return Trial::Failed(format!("the baked form does not run: {error}"));
            }
            (Err(_), _) => {}
        }
    }
    trial
}

/// Inputs that most models take: fractions between -0.5 and 0.5, the integers 0 and 1, `false` and `true`. `None` for
/// inputs of strings, of unknown rank, or beyond measure.
fn inputs(specs: &[TensorSpec], open: usize) -> Option<Vec<Tensor>> {
    specs.iter().map(|spec| input(spec, open)).collect()
}

fn input(spec: &TensorSpec, open: usize) -> Option<Tensor> {
    let dims = spec.dims.as_ref()?.as_slice().iter();
    let dims: Vec<usize> = dims
        .map(|dim| usize::try_from(*dim).unwrap_or(open))
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
fn run(model: &Arc<OrtModel>, inputs: &[Tensor]) -> Result<Vec<Option<Tensor>>, BackendError> {
    let outputs = model.signature.outputs.len();
    let mut instance = Arc::clone(model).instance()?;
    let views: Vec<TensorView<'_>> = inputs.iter().map(Tensor::view).collect();
    let mut slots: Vec<OutputSlot> = (0..outputs).map(OutputSlot::new).collect();
    instance.execute(&views, &mut slots)?;
    Ok(slots.into_iter().map(OutputSlot::into_tensor).collect())
}

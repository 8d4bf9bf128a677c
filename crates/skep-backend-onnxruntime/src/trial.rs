//! Compares the outputs of two ways of loading a model, in bounded time.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use skep_backend::{BackendError, Instance, Model as _, OutputSlot};
use skep_host::process_cpu_time;
use skep_tensor::{AlignedBuffer, Tensor, TensorView};
use skep_types::{DataType, DeviceId, Shape, TensorSpec};

use crate::model::OrtModel;

/// The sizes for open dimensions, run by run: kernels differ between one row and several.
const OPEN_DIMENSIONS: [usize; 2] = [1, 3];

/// The most elements of an input, since the fixed dimensions may make it very large.
const MAX_ELEMENTS: usize = 1 << 24;

/// The result of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TrialResult {
    /// All outputs are equal to the bit.
    Same,
    /// The model accepted none of the inputs, which are invented.
    NotCompared,
    /// A run of the model takes too long.
    TooSlow,
    /// An output differs.
    Different,
    /// The form fails on inputs that the model accepts.
    Failed(String),
}

impl TrialResult {
    /// The CPU time for all runs of the model: as much as baking took so far, plus a second. So a small model that runs
    /// slowly does not take much longer to bake. Wall time would count the long waits of a process of the lowest priority.
    pub(crate) fn limit() -> Duration {
        process_cpu_time() + MIN_LIMIT
    }
}

/// The least CPU time for the runs.
const MIN_LIMIT: Duration = Duration::from_secs(1);

/// How often the time of a run is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A model's outputs for the inputs that it accepts.
pub(crate) enum ExpectedOutputs {
    /// Inputs and their outputs; at least one pair.
    Outputs(Vec<(Vec<Tensor>, RunOutputs)>),
    /// It accepts none of the inputs.
    Nothing,
    /// A run takes too long.
    TooSlow,
}

/// All outputs of a run.
type RunOutputs = Vec<Option<Tensor>>;

/// Runs the model on invented inputs.
pub(crate) fn expected(model: OrtModel, limit: Duration) -> ExpectedOutputs {
    let specs = model.signature.inputs.clone();
    let outcome = bounded(model, limit, |model| {
        let mut answers = Vec::new();
        for open in OPEN_DIMENSIONS {
            if let Some(inputs) = inputs(&specs, open)
                && let Ok(got) = run(model, &inputs)
            {
                answers.push((inputs, got));
            }
        }
        answers
    });
    match outcome {
        // Runs that finished in time count.
        Ok((answers, _)) if !answers.is_empty() => ExpectedOutputs::Outputs(answers),
        Ok((_, true)) => ExpectedOutputs::TooSlow,
        Ok((_, false)) | Err(_) => ExpectedOutputs::Nothing,
    }
}

/// Runs the form on the same inputs, within four times the limit of the model.
pub(crate) fn compare(
    expected: &[(Vec<Tensor>, RunOutputs)],
    other: OrtModel,
    limit: Duration,
) -> TrialResult {
    let outcome = bounded(other, 4 * limit, |other| {
        for (inputs, expected) in expected {
            match run(other, inputs) {
                Ok(got) if got == *expected => {}
                Ok(_) => return TrialResult::Different,
                Err(error) => {
                    return TrialResult::Failed(format!("the baked form does not run: {error}"));
                }
            }
        }
        TrialResult::Same
    });
    outcome.map_or_else(
        |error| TrialResult::Failed(error.to_string()),
        |(trial, _)| trial,
    )
}

/// Performs runs of a model, and ends them once the process has spent `limit` of CPU time on them. Returns whether it
/// did.
fn bounded<T>(
    model: OrtModel,
    limit: Duration,
    runs: impl FnOnce(&mut TrialInstance) -> T,
) -> Result<(T, bool), BackendError> {
    let outputs = model.signature.outputs.len();
    let mut instance = TrialInstance {
        instance: Arc::new(model).instance(DeviceId::default())?,
        outputs,
    };
    let interrupt = instance.instance.interrupt();
    let began = process_cpu_time();
    let (over, is_over) = mpsc::sync_channel::<()>(1);
    Ok(thread::scope(|scope| {
        let watched = scope.spawn(move || {
            let mut is_late = false;
            while is_over.recv_timeout(CHECK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                is_late |= process_cpu_time().saturating_sub(began) > limit;
                if let Some(interrupt) = interrupt.as_ref().filter(|_| is_late) {
                    // More runs may follow a late one: each is ended.
                    interrupt.interrupt();
                }
            }
            is_late
        });
        let result = runs(&mut instance);
        drop(over);
        (result, watched.join().unwrap_or(false))
    }))
}

/// Inputs that most models accept: fractions between -0.5 and 0.5, the integers 0 and 1, `false` and `true`. `None` for
/// inputs of strings, of unknown rank, or too large.
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
        // Any numbers that are not all equal.
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
fn run(trying: &mut TrialInstance, inputs: &[Tensor]) -> Result<RunOutputs, BackendError> {
    let views: Vec<TensorView<'_>> = inputs.iter().map(Tensor::view).collect();
    let mut slots: Vec<OutputSlot> = (0..trying.outputs).map(OutputSlot::new).collect();
    trying.instance.execute(&views, &mut slots)?;
    Ok(slots.into_iter().map(OutputSlot::into_tensor).collect())
}

/// An instance under trial.
struct TrialInstance {
    instance: Box<dyn Instance>,
    outputs: usize,
}

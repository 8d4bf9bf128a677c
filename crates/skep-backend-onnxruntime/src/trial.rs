//! Two ways of loading a model, compared by what they answer, in bounded time.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use skep_backend::{BackendError, Instance, Model as _, OutputSlot};
use skep_tensor::{AlignedBuffer, Tensor, TensorView};
use skep_types::{DataType, DeviceId, Shape, TensorSpec};

use crate::model::OrtModel;

/// What dimensions that the model leaves open are, run by run: kernels differ between one row and several.
const OPEN_DIMENSIONS: [usize; 2] = [1, 3];

/// Elements of an input, at most: inputs of all dimensions open but one may be of any size.
const MAX_ELEMENTS: usize = 1 << 24;

/// What became of a comparison.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// All answers are the same, to the bit.
    Same,
    /// The model took none of the inputs: they are made up.
    NotCompared,
    /// A run of the model takes too long.
    TooSlow,
    /// An answer is another one.
    Different,
    /// The other one does not run what the model runs.
    Failed(String),
}

impl Trial {
    /// How much time of the processor the runs of one of the two may take together: as much as baking took until now, and a
    /// second. So a small model that is slow to run is not much slower to bake.
    pub(crate) fn limit() -> Duration {
        processor_time() + LEAST
    }
}

/// The least that runs may take.
const LEAST: Duration = Duration::from_secs(1);

/// How often somebody looks whether a run takes too long.
const LOOK: Duration = Duration::from_millis(20);

/// What a model answers to inputs.
pub(crate) enum Expected {
    /// Inputs, and what it answers to them; at least one.
    Answers(Vec<(Vec<Tensor>, Answers)>),
    /// It takes none of them.
    Nothing,
    /// It takes too long.
    TooSlow,
}

/// All outputs of a run.
type Answers = Vec<Option<Tensor>>;

/// Runs the model as it is.
pub(crate) fn expected(model: OrtModel, limit: Duration) -> Expected {
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
        // What was answered in time counts.
        Ok((answers, _)) if !answers.is_empty() => Expected::Answers(answers),
        Ok((_, true)) => Expected::TooSlow,
        Ok((_, false)) | Err(_) => Expected::Nothing,
    }
}

/// Runs the other one on the same inputs. It may take some times as long as the model: that it has to be slower is no
/// reason for that.
pub(crate) fn compare(
    expected: &[(Vec<Tensor>, Answers)],
    other: OrtModel,
    limit: Duration,
) -> Trial {
    let outcome = bounded(other, 4 * limit, |other| {
        for (inputs, expected) in expected {
            match run(other, inputs) {
                Ok(got) if got == *expected => {}
                Ok(_) => return Trial::Different,
                Err(error) => {
                    return Trial::Failed(format!("the baked form does not run: {error}"));
                }
            }
        }
        Trial::Same
    });
    outcome.map_or_else(|error| Trial::Failed(error.to_string()), |(trial, _)| trial)
}

/// Runs of a model which are ended when the process has spent so much time of the processor on them; whether they were.
fn bounded<T>(
    model: OrtModel,
    limit: Duration,
    runs: impl FnOnce(&mut Trying) -> T,
) -> Result<(T, bool), BackendError> {
    let outputs = model.signature.outputs.len();
    let mut instance = Trying {
        instance: Arc::new(model).instance(DeviceId::default())?,
        outputs,
    };
    let interrupt = instance.instance.interrupt();
    let began = processor_time();
    let (over, is_over) = mpsc::sync_channel::<()>(1);
    Ok(thread::scope(|scope| {
        let watched = scope.spawn(move || {
            let mut is_late = false;
            while is_over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                is_late |= processor_time().saturating_sub(began) > limit;
                if let Some(interrupt) = interrupt.as_ref().filter(|_| is_late) {
                    // Each run that goes on: a late one is followed by others.
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

/// Time of the processor that this process has taken. A process of the lowest priority waits for the processor most of the
/// time, which is no time that anything takes.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
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
fn run(trying: &mut Trying, inputs: &[Tensor]) -> Result<Answers, BackendError> {
    let views: Vec<TensorView<'_>> = inputs.iter().map(Tensor::view).collect();
    let mut slots: Vec<OutputSlot> = (0..trying.outputs).map(OutputSlot::new).collect();
    trying.instance.execute(&views, &mut slots)?;
    Ok(slots.into_iter().map(OutputSlot::into_tensor).collect())
}

/// An instance that is tried out.
struct Trying {
    instance: Box<dyn Instance>,
    outputs: usize,
}

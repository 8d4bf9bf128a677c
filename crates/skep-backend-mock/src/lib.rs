//! The mock backend: scripted latency, output and failure, for tests of the server and for simulation.
//!
//! A model needs no file: its configuration declares inputs and outputs, and its `parameters` are the script
//! (`mock.latency_us` and so on, listed in docs/model-parameters.md). All instances of a model share one count of
//! executions. A scripted panic is deliberate: it tests that the server isolates it.
//!
//! `fill.rs` has the content of outputs, `timer.rs` waits until a point in time.

mod fill;
mod timer;

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use skep_backend::{
    Backend, BackendError, Capabilities, ErrorKind, Instance, LoadRequest, Model, OutputSlot,
    check_cpu, check_run,
};
use skep_config::{MockOptions, MockOutput, ModelConfig, TensorConfig};
use skep_tensor::{AlignedBuffer, Tensor, TensorView};
use skep_types::{DataType, DeviceId, ModelSignature, Shape, TensorSpec};

/// The backend's name in configurations.
pub const NAME: &str = "mock";

/// The mock backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mock;

impl Backend for Mock {
    fn name(&self) -> &'static str {
        NAME
    }

    fn describe(&self) -> String {
        "scripted latency, output and failure".to_owned()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights_in_place: true,
            prepared_outputs: true,
            datatypes: &DataType::ALL,
        }
    }

    fn model_files(&self) -> &'static [&'static str] {
        &[]
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Model>, BackendError> {
        check_cpu(NAME, request.device)?;
        let script = request.config.mock().clone();
        thread::sleep(script.load_latency);
        if let Some(text) = &script.load_error {
            return Err(BackendError::new(ErrorKind::Internal, text.clone()));
        }
        let signature = signature(request.config);
        if script.output == MockOutput::Echo {
            check_echo(&signature)?;
        }
        Ok(Arc::new(MockModel {
            signature,
            script,
            batched: request.config.max_batch_size() > 0,
            executions: AtomicU64::new(0),
            running: AtomicU32::new(0),
        }))
    }
}

/// The configuration's inputs and outputs, followed by the inputs that are computed from a batch.
fn signature(config: &ModelConfig) -> ModelSignature {
    let computed = config.batch_inputs().iter().map(|input| TensorSpec {
        name: input.name.clone(),
        datatype: input.datatype,
        dims: Some(input.kind.dims()),
    });
    let inputs = config.inputs().iter().map(tensor_spec);
    ModelSignature {
        inputs: inputs.chain(computed).collect(),
        outputs: config.outputs().iter().map(tensor_spec).collect(),
    }
}

fn tensor_spec(tensor: &TensorConfig) -> TensorSpec {
    TensorSpec {
        name: tensor.name.clone(),
        datatype: tensor.datatype,
        dims: Some(tensor.full_dims()),
    }
}

/// Checks that each output can echo the input at its position.
fn check_echo(signature: &ModelSignature) -> Result<(), BackendError> {
    for (index, output) in signature.outputs.iter().enumerate() {
        let input = signature.inputs.get(index);
        if input.is_none_or(|input| input.datatype != output.datatype) {
            let got = input.map_or("a missing input".to_owned(), |i| {
                format!("an input of datatype {}", i.datatype)
            });
            return Err(BackendError::new(
                ErrorKind::Unsupported,
                format!(
                    "`mock.output` is `echo`, but output `{}` of datatype {} cannot echo {got}",
                    output.name, output.datatype
                ),
            ));
        }
    }
    Ok(())
}

struct MockModel {
    signature: ModelSignature,
    script: MockOptions,
    batched: bool,
    executions: AtomicU64,
    running: AtomicU32,
}

/// Counts an execution as running, for as long as it lives.
struct RunningExecution<'a> {
    running: &'a AtomicU32,
    /// The number of others that were running when it began.
    others: u32,
}

impl<'a> RunningExecution<'a> {
    fn new(running: &'a AtomicU32) -> Self {
        let others = running.fetch_add(1, Ordering::Relaxed);
        Self { running, others }
    }
}

impl Drop for RunningExecution<'_> {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Model for MockModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    fn output_shapes(&self, inputs: &[&Shape]) -> Option<Vec<Shape>> {
        (0..self.signature.outputs.len())
            .map(|index| self.shape(index, inputs))
            .collect()
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        let threads = usize::try_from(self.script.cpu_threads).unwrap_or(usize::MAX);
        NonZeroUsize::new(threads)
    }

    fn echoes_parameters(&self) -> bool {
        self.script.echo_parameters
    }

    fn instance(self: Arc<Self>, device: DeviceId) -> Result<Box<dyn Instance>, BackendError> {
        check_cpu(NAME, device)?;
        Ok(Box::new(MockInstance { model: self }))
    }
}

impl MockModel {
    /// An output's shape: the echoed input's, or the configured dims. A variable dim comes from the input at the same
    /// position, the batch size from the first input; otherwise it is 1.
    fn shape(&self, index: usize, inputs: &[&Shape]) -> Option<Shape> {
        let opposite = inputs.get(index);
        if self.script.output == MockOutput::Echo {
            return opposite.map(|&shape| shape.clone());
        }
        let dims = self.signature.outputs[index].dims.as_ref()?.as_slice();
        let batch = inputs.first().and_then(|s| s.dims().first().copied());
        let same_rank = opposite.filter(|s| s.rank() == dims.len());
        let sizes = dims.iter().enumerate().map(|(axis, &dim)| match dim {
            -1 if axis == 0 && self.batched => batch.unwrap_or(1),
            -1 => same_rank.map_or(1, |s| s.dims()[axis]),
            fixed => usize::try_from(fixed).unwrap_or(0),
        });
        Shape::new(&sizes.collect::<Vec<_>>()).ok()
    }

    /// The number of inferences in a batch.
    fn items(&self, inputs: &[TensorView<'_>]) -> u32 {
        let first = inputs.first().and_then(|view| view.shape().dims().first());
        match first {
            Some(&batch) if self.batched => u32::try_from(batch).unwrap_or(u32::MAX),
            _ => 1,
        }
    }

    /// Fills the slot with its output.
    fn fill(&self, slot: &mut OutputSlot, inputs: &[TensorView<'_>]) -> Result<(), BackendError> {
        let internal =
            |e: &dyn std::error::Error| BackendError::new(ErrorKind::Internal, e.to_string());
        let index = slot.index();
        let datatype = self.signature.outputs[index].datatype;
        let shapes: Vec<&Shape> = inputs.iter().map(TensorView::shape).collect();
        let shape = self.shape(index, &shapes).ok_or_else(|| {
            let name = &self.signature.outputs[index].name;
            BackendError::new(
                ErrorKind::Internal,
                format!("output `{name}` would be too large"),
            )
        })?;
        let fixed = |memory: &mut [u8]| match self.script.output {
            MockOutput::Zero => memory.fill(0),
            MockOutput::Echo => memory.copy_from_slice(inputs[index].data()),
            MockOutput::Ramp => fill::ramp(datatype, memory),
        };
        if let Some((prepared_datatype, prepared_shape, memory)) = slot.prepared_mut()
            && prepared_datatype == datatype
            && *prepared_shape == shape
        {
            fixed(memory);
            return slot.finish_prepared().map_err(|e| internal(&e));
        }
        let elements = shape.element_count();
        let data = match (datatype.element_size(), self.script.output) {
            (Some(size), _) => {
                let mut buffer = AlignedBuffer::try_zeroed(elements.saturating_mul(size))?;
                fixed(&mut buffer);
                buffer.freeze()
            }
            (None, MockOutput::Zero) => fill::empty_strings(elements).into(),
            (None, MockOutput::Echo) => inputs[index].data().to_vec().into(),
            (None, MockOutput::Ramp) => fill::ramp_strings(elements).into(),
        };
        slot.fill(Tensor::new(datatype, shape, data).map_err(|e| internal(&e))?);
        Ok(())
    }
}

/// Whether something that happens at every `every`-th execution happens at this one; 0 means never.
const fn is_due(number: u64, every: u64) -> bool {
    every != 0 && number.is_multiple_of(every)
}

struct MockInstance {
    model: Arc<MockModel>,
}

impl Instance for MockInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let start = Instant::now();
        let model = &*self.model;
        check_run(&model.signature, inputs, outputs)?;
        let script = &model.script;
        let number = model.executions.fetch_add(1, Ordering::Relaxed) + 1;
        let latency = script.latency + script.latency_per_item.saturating_mul(model.items(inputs));
        let running = RunningExecution::new(&model.running);
        let longer = running.others.saturating_mul(script.overlap_percent);
        timer::wait_until(start + latency + latency.saturating_mul(longer) / 100);
        drop(running);
        assert!(
            !is_due(number, script.panic_every),
            "execution {number} panics, as `mock.panic_every` says"
        );
        if is_due(number, script.fail_every) {
            let message = format!("execution {number} fails, as `mock.fail_every` says");
            return Err(BackendError::new(ErrorKind::Internal, message));
        }
        outputs
            .iter_mut()
            .try_for_each(|slot| model.fill(slot, inputs))
    }
}

//! A loaded model, and its instances.

use std::{
    ffi::CString,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use skep_alloc::{Arena, PlannedRuns, Recording, RunMode, RunPlans};
use skep_backend::{
    BackendError, ErrorKind, Instance, Interrupt, LoadRequest, Model, OutputSlot, RunMemory,
    check_cpu, check_run,
};
use skep_onnx::ShapeRules;
use skep_store::Digest;
use skep_tensor::{AlignedBuffer, RunBound, Tensor, TensorError, TensorView};
use skep_types::{DataType, DeviceId, ModelSignature, Shape, TensorSpec};
use smallvec::SmallVec;

use crate::{
    OnnxRuntime, error,
    ffi::{ApiError, OrtRuntime, OrtTensor, RunOptions, Session, TensorList},
    options,
    planning::run_class,
    sessions::{CurrentSession, SharedSession},
};

/// One session, which all instances share: it may run on any number of threads at once.
#[derive(Debug)]
pub(crate) struct OrtModel {
    /// The backend that loaded it, for when it switches to its baked form.
    pub(crate) backend: OnnxRuntime,
    pub(crate) session: CurrentSession,
    /// Whether `session` is the baked form's.
    pub(crate) is_baked: AtomicBool,
    /// Whether the library's arena releases unused memory after every run.
    pub(crate) shrinks_arena: bool,
    pub(crate) signature: ModelSignature,
    pub(crate) input_names: Vec<CString>,
    pub(crate) output_names: Vec<CString>,
    pub(crate) shapes: Option<ShapeRules>,
    /// Plans for intermediate tensors; `None` leaves their memory to the library.
    pub(crate) plans: Option<RunPlans>,
    /// Threads that a run keeps busy.
    pub(crate) threads: NonZeroUsize,
    /// Whether the session has threads besides the callers', which run on the CPUs of the load.
    pub(crate) starts_threads: bool,
    /// The bound on a run's memory.
    pub(crate) bound: RunBound,
    /// Set when an output had another shape than the file declares.
    pub(crate) shapes_lie: AtomicBool,
}

impl Model for OrtModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    fn output_shapes(&self, inputs: &[&Shape]) -> Option<Vec<Shape>> {
        if self.shapes_lie.load(Ordering::Relaxed) {
            return None;
        }
        self.shapes.as_ref()?.output_shapes(inputs)
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        Some(self.threads)
    }

    fn is_bound_by_load(&self) -> bool {
        self.starts_threads
    }

    fn is_baked(&self) -> bool {
        self.is_baked.load(Ordering::Relaxed)
    }

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        self.session.get().tensors().to_vec()
    }

    fn switch_to_form(&self, request: &LoadRequest<'_>) -> Result<bool, BackendError> {
        let Some((session, left)) = self.backend.baked_session(request)? else {
            return Ok(false);
        };
        self.session.replace(session);
        self.is_baked.store(true, Ordering::Relaxed);
        // The old session's memory is free by now, unless runs are in flight, so there is room for copies of the
        // weights.
        left.into_iter().for_each(skep_weights::moves::bring);
        Ok(true)
    }

    fn instance(self: Arc<Self>, device: DeviceId) -> Result<Box<dyn Instance>, BackendError> {
        check_cpu(crate::NAME, device)?;
        Ok(Box::new(OrtInstance {
            stop: Arc::new(RunInterrupt {
                options: self.run_options().map_err(error::run)?,
                is_set: AtomicBool::new(false),
            }),
            runs: InstanceRuns::of(self.plans.as_ref())?,
            model: self,
        }))
    }
}

/// Ends an instance's run after its current operator.
#[derive(Debug)]
struct RunInterrupt {
    options: RunOptions,
    is_set: AtomicBool,
}

impl Interrupt for RunInterrupt {
    fn begin(&self) {
        if self.is_set.load(Ordering::Acquire)
            && self.is_set.swap(false, Ordering::AcqRel)
            && let Err(error) = self.options.resume()
        {
            tracing::warn!(
                "interrupted runs cannot be resumed, later runs fail: {}",
                error.message
            );
        }
    }

    fn interrupt(&self) {
        self.is_set.store(true, Ordering::Release);
        if let Err(error) = self.options.terminate() {
            tracing::warn!("a run cannot be interrupted: {}", error.message);
        }
    }
}

/// The runs of an instance.
#[derive(Debug, Default)]
struct InstanceRuns {
    planned: PlannedRuns,
    /// CPU time of the last run, if it was measured.
    cpu_time: Option<Duration>,
}

impl InstanceRuns {
    /// The runs of another instance of a model with these plans.
    fn of(plans: Option<&RunPlans>) -> Result<Self, BackendError> {
        let planned = plans.map(RunPlans::instance).transpose();
        let planned = planned.map_err(|error| crate::invalid_allocator(error.into()))?;
        Ok(Self {
            planned: planned.unwrap_or_default(),
            cpu_time: None,
        })
    }
}

/// An executable copy: it owns the memory of its runs, unless the session's arena does. A run's lists are on the stack.
#[derive(Debug)]
struct OrtInstance {
    model: Arc<OrtModel>,
    runs: InstanceRuns,
    stop: Arc<RunInterrupt>,
}

impl Instance for OrtInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let model = &*self.model;
        check_run(&model.signature, inputs, outputs)?;
        let runtime = model.backend.runtime;
        let _strings = model.bound.admit(string_bytes(inputs))?;
        let values = inputs.iter().map(|view| input(runtime, *view));
        let values: TensorList<OrtTensor<'_>> =
            values.collect::<Result<_, _>>().map_err(error::run)?;
        model.run_any(&mut self.runs, &self.stop.options, &values, inputs, outputs)
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.runs.cpu_time
    }

    fn interrupt(&self) -> Option<Arc<dyn Interrupt>> {
        Some(Arc::clone(&self.stop) as Arc<dyn Interrupt>)
    }

    fn memory(&self) -> Option<RunMemory> {
        self.model
            .plans
            .as_ref()
            .map(|_| self.runs.planned.figures())
    }
}

impl OrtModel {
    fn run_options(&self) -> Result<RunOptions, ApiError> {
        options::run_options(self.backend.runtime, self.shrinks_arena)
    }

    /// Runs once with inputs of these shapes that are all zero, and records the allocations. The model has no plans.
    pub(crate) fn record(&self, inputs: &[Shape]) -> Result<Recording, BackendError> {
        let zero = |(spec, shape): (&TensorSpec, &Shape)| {
            // An empty string takes the four bytes of its length.
            let size = spec.datatype.element_size().unwrap_or(4);
            let data = AlignedBuffer::zeroed(shape.element_count() * size).freeze();
            Tensor::new(spec.datatype, shape.clone(), data)
        };
        let zeros = self.signature.inputs.iter().zip(inputs).map(zero);
        let invalid =
            |error: TensorError| BackendError::new(ErrorKind::InvalidArgument, error.to_string());
        let zeros: Vec<Tensor> = zeros.collect::<Result<_, _>>().map_err(invalid)?;
        let views: Vec<TensorView<'_>> = zeros.iter().map(Tensor::view).collect();
        let known = self.output_shapes(&inputs.iter().collect::<Vec<_>>());
        let outputs = self.signature.outputs.iter().enumerate();
        let mut slots: Vec<OutputSlot> = outputs
            .map(|(index, spec)| match &known {
                Some(shapes) => OutputSlot::prepared(index, spec.datatype, shapes[index].clone()),
                None => Ok(OutputSlot::new(index)),
            })
            .collect::<Result<_, _>>()?;
        check_run(&self.signature, &views, &slots)?;
        let values = views.iter().map(|view| input(self.backend.runtime, *view));
        let values: TensorList<OrtTensor<'_>> =
            values.collect::<Result<_, _>>().map_err(error::run)?;
        let options = self.run_options().map_err(error::run)?;
        let charge = &mut self.bound.begin(0);
        let (ran, outcome) = Arena::new().run(RunMode::Record, charge, || {
            let runs = &mut InstanceRuns::default();
            self.run(runs, &options, &values, &views, &mut slots, true)
        });
        ran.map_err(error::run)?;
        outcome.recording.ok_or_else(|| {
            let message = "the run makes too many allocations to be recorded";
            BackendError::new(ErrorKind::Unsupported, message)
        })
    }

    /// Runs into the slots' prepared memory; if an output's shape does not fit, runs again into the library's memory.
    fn run_any(
        &self,
        runs: &mut InstanceRuns,
        options: &RunOptions,
        values: &[OrtTensor<'_>],
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let Some(first) = self.run_prepared(runs, options, values, inputs, outputs)? else {
            return Ok(());
        };
        // The file's shapes may be wrong. They are if the run succeeds in the library's memory.
        self.run(runs, options, values, inputs, outputs, false)
            .map_err(error::run)?;
        if !self.shapes_lie.swap(true, Ordering::Relaxed) {
            let reason = first.message;
            // The runtime, which knows the names of model and output, warns if the configuration is wrong too.
            tracing::debug!(%reason, "an output does not have the shape that the model declares; later runs do not use declared shapes");
        }
        Ok(())
    }

    /// Runs into the slots' prepared memory. `Ok(Some(_))` is a failure that a wrong shape of prepared memory may
    /// explain.
    fn run_prepared(
        &self,
        runs: &mut InstanceRuns,
        options: &RunOptions,
        values: &[OrtTensor<'_>],
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<Option<ApiError>, BackendError> {
        let prepared = outputs.iter_mut().any(|slot| slot.prepared_mut().is_some());
        match self.run(runs, options, values, inputs, outputs, true) {
            Ok(()) => Ok(None),
            Err(failure) if prepared && error::may_be_output_shape(&failure) => Ok(Some(failure)),
            Err(failure) => Err(error::run(failure)),
        }
    }

    /// Runs once and fills the slots; with `in_place`, in their prepared memory.
    fn run(
        &self,
        runs: &mut InstanceRuns,
        options: &RunOptions,
        values: &[OrtTensor<'_>],
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
        in_place: bool,
    ) -> Result<(), ApiError> {
        // Outputs belong to the session that made them, even if the model switches to another one meanwhile.
        let session = self.session.get();
        let runtime = session.session().runtime();
        let wanted: TensorList<usize> = outputs.iter().map(OutputSlot::index).collect();
        let class = self
            .plans
            .as_ref()
            .map(|plans| (plans, run_class(inputs, outputs, in_place)));
        let mut held = 0_u64;
        let made = {
            let prepared = outputs.iter_mut().map(|slot| match slot.prepared_mut() {
                Some((datatype, shape, memory)) if in_place => {
                    held = held.saturating_add(memory.len() as u64);
                    OrtTensor::over_mut(runtime, datatype, shape.dims(), memory).map(Some)
                }
                _ => Ok(None),
            });
            let prepared: TensorList<Option<OrtTensor<'_>>> = prepared.collect::<Result<_, _>>()?;
            let run = || {
                session.session().run(
                    options,
                    self.input_names.iter().map(CString::as_c_str),
                    values,
                    wanted
                        .iter()
                        .map(|&index| self.output_names[index].as_c_str()),
                    &prepared,
                )
            };
            let started = session.session().begin();
            let ran = match class {
                Some((plans, class)) => {
                    let beside = held.saturating_add(string_bytes(inputs));
                    let ran = runs.planned.run(plans, &class, (&self.bound, beside), run);
                    if let Some(fault) = runs.planned.take_fault() {
                        let name = plans.allocator().unwrap_or_default();
                        tracing::error!(
                            "allocator `{name}` broke its contract: {fault}. Runs of this instance take their memory from the heap from now on"
                        );
                    }
                    ran.map_err(error::of_run)
                }
                None => run(),
            };
            runs.cpu_time = session.session().end(started);
            ran?
        };
        for (slot, value) in outputs.iter_mut().zip(made) {
            match value {
                Some(value) => slot.fill(tensor(&session, value, inputs)?),
                None => slot.finish_prepared().map_err(error::inconsistent)?,
            }
        }
        Ok(())
    }
}

/// An output in the library's memory as a tensor. Only strings are copied.
fn tensor(
    session: &SharedSession,
    value: OrtTensor<'static>,
    inputs: &[TensorView<'_>],
) -> Result<Tensor, ApiError> {
    let (datatype, dims) = value.datatype_and_dims()?;
    let shape = Shape::new(&dims).map_err(error::inconsistent)?;
    let data = if datatype == DataType::Bytes {
        Bytes::from(value.encoded_strings(shape.element_count())?)
    } else {
        share(session, value, datatype, &dims, inputs)?
    };
    Tensor::new(datatype, shape, data).map_err(error::inconsistent)
}

fn share(
    session: &SharedSession,
    value: OrtTensor<'static>,
    datatype: DataType,
    dims: &SmallVec<[usize; 6]>,
    inputs: &[TensorView<'_>],
) -> Result<Bytes, ApiError> {
    let bytes = value.bytes(datatype, dims)?;
    // If the graph connects an output directly to an input, it lies in the input's memory, which ends with the run.
    let range = bytes.as_ptr_range();
    let borrowed = inputs.iter().any(|view| {
        let input = view.data().as_ptr_range();
        input.start < range.end && range.start < input.end
    });
    if bytes.is_empty() || borrowed {
        return Ok(Bytes::copy_from_slice(bytes));
    }
    Ok(Bytes::from_owner(SharedOutput {
        datatype,
        dims: dims.clone(),
        value,
        _session: Arc::clone(session.session()),
    }))
}

/// An output in the library's memory, shared by all holders of its bytes.
struct SharedOutput {
    datatype: DataType,
    dims: SmallVec<[usize; 6]>,
    value: OrtTensor<'static>,
    /// The memory comes from the session's arena, or is one of its initializers. Declared last, so dropped last.
    _session: Arc<Session>,
}

impl AsRef<[u8]> for SharedOutput {
    fn as_ref(&self) -> &[u8] {
        // The same call succeeded when the output was taken.
        self.value
            .bytes(self.datatype, &self.dims)
            .unwrap_or_default()
    }
}

/// The memory that the library takes for an element of a tensor of strings, besides its bytes.
const STRING_BYTES: u64 = 32;

/// The memory of the library's copies of string inputs.
fn string_bytes(inputs: &[TensorView<'_>]) -> u64 {
    let strings = inputs
        .iter()
        .filter(|view| view.datatype() == DataType::Bytes);
    strings.fold(0, |bytes, view| {
        let elements = (view.shape().element_count() as u64).saturating_mul(STRING_BYTES);
        bytes
            .saturating_add(elements)
            .saturating_add(view.data().len() as u64)
    })
}

/// An input as the library takes it: a tensor over the caller's memory, or a copy of strings, which the library must
/// own.
fn input<'a>(
    runtime: &'static OrtRuntime,
    view: TensorView<'a>,
) -> Result<OrtTensor<'a>, ApiError> {
    let dims = view.shape().dims();
    match view.datatype() {
        DataType::Bytes => OrtTensor::strings(runtime, dims, view.strings()),
        datatype => OrtTensor::over(runtime, datatype, dims, view.data()),
    }
}

//! The executable copy of one instance: made, and run on batches.
//!
//! Gather (one copy; none for a batch of one), execute, split (no copy).

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use skep_backend::{BackendError, Instance, Model, OutputSlot, panic_text};
use skep_scheduler::{BatchRows, SequencePayload as _};
use skep_tensor::{RunBound, RunCharge, Tensor, TensorView};
use skep_types::{DeviceId, Shape, Time};
use smallvec::SmallVec;

use crate::{
    clock,
    error::RuntimeError,
    serving::{
        batch::rows,
        driver::Driver,
        instances::{
            inputs::batch_inputs,
            outputs::{BatchOutputs, OutputSlots, OutputSplitter, given_outputs, wanted_outputs},
            watch::{EndedRun, ExecutionWatch, InterruptReason},
        },
        interface::Interface,
        job::{Job, PreparedRequest, Waiters},
        sequences::{NextStates, SequenceMemory},
    },
    statistics::recorder::{ExecutionTimes, InstanceRecorder},
};

/// Makes the executable copy of one instance, and runs batches on it.
pub(crate) struct InstanceRunner {
    /// Triton's name for the instance, `<model>_<group>_<index>`.
    pub(crate) name: String,
    pub(crate) model: Arc<dyn Model>,
    /// Where its executable copy runs.
    pub(crate) device: DeviceId,
    pub(crate) interface: Arc<Interface>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) recorder: Arc<InstanceRecorder>,
    /// How much memory an execution may take.
    pub(crate) bound: RunBound,
    /// How long it may take.
    pub(crate) watch: Arc<ExecutionWatch>,
}

/// A batch that was executed.
pub(super) struct ExecutedBatch {
    pub(super) outputs: BatchOutputs,
    /// The states for the next requests of the batch's sequences.
    pub(super) states: Option<NextStates>,
    pub(super) at: ExecutionTimes,
}

impl InstanceRunner {
    /// Makes the executable copy.
    ///
    /// # Errors
    /// The backend's error; also when the backend panics.
    pub(super) fn instantiate(&self) -> Result<Box<dyn Instance>, RuntimeError> {
        let made = catch_unwind(AssertUnwindSafe(|| {
            Arc::clone(&self.model).instance(self.device)
        }));
        match made {
            Ok(result) => {
                let instance = result?;
                self.watch.interrupt_by(instance.interrupt());
                Ok(instance)
            }
            Err(panic) => Err(RuntimeError::internal(format!(
                "instance `{}` panicked: {}",
                self.name,
                panic_text(&*panic)
            ))),
        }
    }

    /// Executes a batch that was taken at `taken`. `lie` says where its jobs lie if it has rows without a job.
    pub(super) fn execute(
        &self,
        instance: &mut dyn Instance,
        jobs: &[Box<Job>],
        lie: Option<&BatchRows>,
        taken: Time,
    ) -> Result<ExecutedBatch, RuntimeError> {
        let mut joined = SmallVec::new();
        let rows = rows(jobs, lie);
        let inputs = batch_inputs(&self.interface, &rows, &mut joined)?;
        let gathered = clock::now();
        let wanted = wanted_outputs(&self.interface, jobs);
        let mut slots = OutputSlots::new();
        let _charge = self.prepare(inputs, &wanted, &mut slots)?;
        let views: SmallVec<[TensorView<'_>; 4]> = inputs.iter().map(Tensor::view).collect();
        let run = instance.execute(&views, &mut slots);
        if let Some(memory) = instance.memory() {
            self.recorder.took(memory);
        }
        run?;
        let ran = clock::now();
        if let Some(cpu) = instance.cpu_time() {
            self.driver.used(cpu, ran.since(gathered));
        }
        let given = given_outputs(&self.interface, slots, &wanted)?;
        let splitter = OutputSplitter {
            interface: &self.interface,
            rows: &rows,
        };
        let outputs = splitter.split(&given, &wanted)?;
        let sequences = self.interface.sequences.as_ref();
        let states = sequences.map(|sequences| sequences.next_states(&given, &wanted, &rows));
        let at = ExecutionTimes {
            taken,
            gathered,
            ran,
            ended: clock::now(),
        };
        Ok(ExecutedBatch {
            outputs,
            states: states.transpose()?,
            at,
        })
    }

    /// Adds a slot for each wanted output, and then one for each state that is not among them. Where the model tells the shapes in advance, the slots are allocated, and
    /// the charge for them is returned, to be held while the model runs.
    fn prepare(
        &self,
        inputs: &[Tensor],
        wanted: &[usize],
        slots: &mut OutputSlots,
    ) -> Result<RunCharge, BackendError> {
        let listed = wanted.iter().map(|&index| {
            let output = &self.interface.outputs[index];
            (output.position, output.config.datatype)
        });
        let sequences = self.interface.sequences.iter();
        let states = sequences.flat_map(|sequences| sequences.further_outputs(wanted));
        let outputs: SmallVec<[_; 4]> = listed.chain(states).collect();
        let shapes: SmallVec<[&Shape; 4]> = inputs.iter().map(Tensor::shape).collect();
        let Some(known) = self.model.output_shapes(&shapes) else {
            slots.extend(
                outputs
                    .iter()
                    .map(|(position, _)| OutputSlot::new(*position)),
            );
            return Ok(RunCharge::default());
        };
        let outputs = outputs
            .iter()
            .map(|(position, datatype)| (*position, *datatype, &known[*position]));
        let bytes = outputs.clone().map(|(_, datatype, shape)| {
            let size = datatype.element_size().unwrap_or(0) as u64;
            (shape.element_count() as u64).saturating_mul(size)
        });
        // Before any memory is allocated: the system overcommits.
        let charge = self.bound.admit(bytes.fold(0, u64::saturating_add))?;
        for (position, datatype, shape) in outputs {
            slots.push(OutputSlot::prepared(position, datatype, shape.clone())?);
        }
        Ok(charge)
    }

    /// Runs a warm-up request before the instance is ready. It counts in the statistics, as on Triton.
    pub(super) fn warm_up(
        &self,
        instance: &mut dyn Instance,
        prepared: PreparedRequest,
    ) -> Result<(), RuntimeError> {
        let size = prepared.batch_size;
        let executed = self.execute_alone(instance, prepared)?;
        self.recorder
            .executed(size, None, &executed.at, std::iter::once(executed.at.taken));
        Ok(())
    }

    /// Runs a request that counts in no statistics. Returns how long it took.
    pub(super) fn try_out(
        &self,
        instance: &mut dyn Instance,
        prepared: PreparedRequest,
    ) -> Result<Duration, RuntimeError> {
        let executed = self.execute_alone(instance, prepared)?;
        Ok(executed.at.ended.since(executed.at.taken))
    }

    /// Executes one request outside of serving, when the device that models share has slots for it. A panic is an
    /// error.
    fn execute_alone(
        &self,
        instance: &mut dyn Instance,
        prepared: PreparedRequest,
    ) -> Result<ExecutedBatch, RuntimeError> {
        let _occupied = self.driver.occupy();
        let taken = clock::now();
        let (reply, _) = tokio::sync::oneshot::channel();
        let mut job = Job::new(prepared, reply, taken);
        if job.prepared.sequence.is_some() {
            job.remember(&SequenceMemory::default());
        }
        let jobs = [job];
        self.watch.begin(taken, Waiters::new(), None);
        let executed = catch_unwind(AssertUnwindSafe(|| {
            self.execute(instance, &jobs, None, taken)
        }));
        let ended = self.watch.end();
        match executed {
            Ok(executed) => match ended {
                Some(EndedRun {
                    interrupted: None, ..
                }) => executed,
                Some(EndedRun {
                    interrupted: Some(reason),
                    ..
                }) => Err(self.watch.error(reason)),
                None => Err(self.watch.error(InterruptReason::Deadline)),
            },
            Err(panic) => {
                let text = format!("the backend panicked: {}", panic_text(&*panic));
                Err(RuntimeError::internal(text))
            }
        }
    }
}

//! An instance at work: one thread, one executable copy of the model.
//!
//! Gather (one copy; none for a batch of one), execute, split (no copy), answer. A panic or an error of the backend
//! answers its batch only; after a panic the executable copy is thrown away and made again, and so is one that says that it
//! is lost: at once, and after further losses ever later.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use skep_backend::{BackendError, Instance, Model, OutputSlot, panic_text};
use skep_heap::give_back_freed_memory;
use skep_scheduler::{BatchEnd, InstanceId};
use skep_tensor::{Charge, RunBound, RunCharge, Tensor, TensorView, gather, split};
use skep_types::{DeviceId, Shape, Time};
use smallvec::SmallVec;

use crate::{
    ErrorKind, InferResponse, NamedTensor, RuntimeError, Timing, clock,
    serving::{
        driver::{Driver, JobBatch},
        instances::{
            back_off::BackOff,
            watch::{EndedRun, InterruptReason, Waiters, Watch},
        },
        interface::{Interface, InterfaceTensor, OmittedInput},
        job::Job,
        ragged,
        validate::{Prepared, reshaped},
    },
    statistics::recorder::{Execution, Recorder},
};

/// Everything that an instance's thread needs.
pub(crate) struct InstanceThread {
    pub(crate) id: InstanceId,
    /// Triton's name for it, `<model>_<group>_<index>`.
    pub(crate) name: String,
    pub(crate) model: Arc<dyn Model>,
    /// Where its executable copy runs.
    pub(crate) device: DeviceId,
    pub(crate) interface: Arc<Interface>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) recorder: Arc<Recorder>,
    /// What memory an execution may take.
    pub(crate) bound: RunBound,
    /// How long it may take.
    pub(crate) watch: Arc<Watch>,
}

/// What to do where an output has no batch dimension.
const NO_BATCHES: &str = "write `max_batch_size: 0` in the model's configuration if this output does not begin with the batch";

type Slots = SmallVec<[OutputSlot; 4]>;

/// The jobs of a batch; one is the usual number under light load.
type Jobs = SmallVec<[Box<Job>; 4]>;

/// A batch's output, a part a job.
type BatchParts = SmallVec<[Tensor; 1]>;

/// A batch's answers, and when each phase ended.
struct ExecutedBatch {
    /// The outputs of each job, in the order that its client wants.
    answers: SmallVec<[Vec<NamedTensor>; 4]>,
    at: Execution,
}

/// What became of the executable copy with a batch.
enum ExecutableCopy {
    /// It can run the next one.
    Sound,
    Panicked,
    /// What it ran in is gone.
    Lost,
}

/// The end of an execution.
struct ServeEnd {
    copy: ExecutableCopy,
    /// When the batch was answered; `None` where that was done elsewhere, since the execution took too long.
    answered: Option<Time>,
}

impl InstanceThread {
    /// Makes the executable copy; a backend's panic is an error.
    pub(crate) fn instantiate(&self) -> Result<Box<dyn Instance>, RuntimeError> {
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

    /// Serves batches until the mailbox closes, `first` before any. The instance has been declared ready.
    pub(crate) fn serve(
        &self,
        instance: Box<dyn Instance>,
        first: Option<JobBatch>,
        mailbox: &Receiver<JobBatch>,
    ) {
        let mut instance = instance;
        let mut next = first;
        let mut back_off = BackOff::new(clock::now());
        loop {
            let Some(mut batch) = next.take().or_else(|| mailbox.recv().ok()) else {
                return;
            };
            let taken = clock::now();
            if instance.is_lost()
                && let Ok(renewed) = self.instantiate()
            {
                // It ended while it had nothing to do, which costs no request. Where it cannot be made again the run says why.
                self.was_made_again();
                back_off.started(taken);
                instance = renewed;
            }
            let ServeEnd { copy, answered } =
                self.run_and_answer(&mut *instance, &mut batch, taken);
            if let (ExecutableCopy::Sound, Some(ended)) = (&copy, answered) {
                next = self.driver.finished(self.id, taken, ended, batch.requests);
                continue;
            }
            let is_wanted = match answered {
                Some(_) => self.driver.gone(self.id, taken),
                None => self.driver.back(self.id),
            };
            if !is_wanted {
                return;
            }
            match copy {
                ExecutableCopy::Sound => {
                    tracing::info!(
                        "an execution of instance `{}` that had been given up has ended",
                        self.name
                    );
                }
                ExecutableCopy::Panicked => {
                    let Some(restarted) = self.restart() else {
                        return self.driver.give_up(self.id);
                    };
                    instance = restarted;
                }
                ExecutableCopy::Lost => {
                    drop(instance);
                    let Some(replaced) = self.replace(mailbox, &mut back_off) else {
                        return;
                    };
                    instance = replaced;
                }
            }
            next = self.driver.ready(self.id);
        }
    }

    fn restart(&self) -> Option<Box<dyn Instance>> {
        match self.instantiate() {
            Ok(instance) => {
                tracing::warn!("instance `{}` was restarted after a panic", self.name);
                self.recorder.restarted();
                Some(instance)
            }
            Err(error) => {
                tracing::error!("instance `{}` cannot be restarted: {error}", self.name);
                None
            }
        }
    }

    /// Makes a lost copy again, however often that takes; `None` when the instance was taken away meanwhile.
    fn replace(
        &self,
        mailbox: &Receiver<JobBatch>,
        back_off: &mut BackOff,
    ) -> Option<Box<dyn Instance>> {
        loop {
            let wait = back_off.lost(clock::now());
            // An instance that is gone gets no batches: what ends the wait is its end.
            if let Err(RecvTimeoutError::Disconnected) = mailbox.recv_timeout(wait) {
                return None;
            }
            match self.instantiate() {
                Ok(instance) => {
                    self.was_made_again();
                    back_off.started(clock::now());
                    return Some(instance);
                }
                Err(error) => {
                    tracing::error!("instance `{}` cannot be made again yet: {error}", self.name);
                }
            }
        }
    }

    fn was_made_again(&self) {
        tracing::warn!("instance `{}` was made again", self.name);
        self.recorder.restarted();
    }

    /// Runs a batch taken at `taken` and answers each of its requests, unless the watch has done so meanwhile.
    fn run_and_answer(
        &self,
        instance: &mut dyn Instance,
        batch: &mut JobBatch,
        taken: Time,
    ) -> ServeEnd {
        self.recorder.began(taken);
        let (size, end) = (batch.size(), batch.end);
        let mut jobs: Jobs = batch
            .requests
            .drain(..)
            .map(|request| request.payload)
            .collect();
        let waiters: Waiters = jobs.iter_mut().map(|job| job.take_waiter()).collect();
        self.watch.begin(taken, waiters, Some(end));
        let result = catch_unwind(AssertUnwindSafe(|| self.execute(instance, &jobs, taken)));
        let ended = self.watch.end();
        let was_told = ended.as_ref().is_none_or(|ended| ended.told.is_some());
        let (result, copy) = match result {
            Ok(result) => {
                // One that was told to end behind its answer may be lost with a good result.
                let may_be = result.is_err() || was_told;
                let copy = match may_be && instance.is_lost() {
                    true => ExecutableCopy::Lost,
                    false => ExecutableCopy::Sound,
                };
                (result, copy)
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                tracing::error!("instance `{}` panicked: {text}", self.name);
                let text = format!("instance `{}` panicked: {text}", self.name);
                (Err(RuntimeError::internal(text)), ExecutableCopy::Panicked)
            }
        };
        let Some(EndedRun { waiters, told }) = ended else {
            return ServeEnd {
                copy,
                answered: None,
            };
        };
        let answered = match result {
            Ok(executed) => {
                let answered = executed.at.ended;
                self.answer(waiters, &jobs, executed, size, end);
                answered
            }
            // What an interrupted run says of its end is no news.
            Err(error) => {
                // Its own error says no more than that it was told to end.
                let error = told.map_or(error, |reason| self.watch.error(reason));
                self.fail(waiters, end, &error, taken)
            }
        };
        ServeEnd {
            copy,
            answered: Some(answered),
        }
    }

    fn execute(
        &self,
        instance: &mut dyn Instance,
        jobs: &[Box<Job>],
        taken: Time,
    ) -> Result<ExecutedBatch, RuntimeError> {
        let joined: SmallVec<[Tensor; 4]>;
        let inputs: &[Tensor] = match (&self.interface.ragged, jobs) {
            // A batch of one runs on the request's own memory.
            (None, [job]) => &job.prepared.inputs,
            (None, _) => {
                let inputs = 0..self.interface.inputs.len();
                joined = inputs
                    .map(|index| self.gather(jobs, index))
                    .collect::<Result<_, _>>()?;
                &joined
            }
            (Some(ragged), _) => {
                joined = ragged.feed(jobs, |index| self.gather(jobs, index))?;
                &joined
            }
        };
        let gathered = clock::now();
        let wanted = self.wanted(jobs);
        let mut slots = Slots::new();
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
        let answers = self.split_outputs(slots, &wanted, jobs)?;
        let at = Execution {
            taken,
            gathered,
            ran,
            ended: clock::now(),
        };
        Ok(ExecutedBatch { answers, at })
    }

    /// An input of all jobs, joined along the batch axis with one copy.
    fn gather(&self, jobs: &[Box<Job>], index: usize) -> Result<Tensor, RuntimeError> {
        let first = &jobs[0].prepared;
        if first.omitted.iter().any(|o| usize::from(*o) == index) && self.has_default(index) {
            // A batch holds requests that left out the same: the default once for all.
            return Ok(first.inputs[index].clone());
        }
        let parts: SmallVec<[Tensor; 8]> = jobs
            .iter()
            .map(|job| job.prepared.inputs[index].clone())
            .collect();
        gather(&parts).map_err(|error| BackendError::from(error).into())
    }

    /// Whether the model's graph has a value of its own for an input.
    fn has_default(&self, position: usize) -> bool {
        self.interface.inputs.iter().any(|port| {
            port.position == position && matches!(port.absent, Some(OmittedInput::Default(_)))
        })
    }

    /// Interface indices of the outputs that any request wants.
    fn wanted(&self, jobs: &[Box<Job>]) -> SmallVec<[usize; 4]> {
        let all = 0..self.interface.outputs.len();
        all.filter(|index| jobs.iter().any(|job| job.prepared.outputs.contains(index)))
            .collect()
    }

    /// Adds where the outputs go; what the prepared ones among them are charged with while the model runs.
    fn prepare(
        &self,
        inputs: &[Tensor],
        wanted: &[usize],
        slots: &mut Slots,
    ) -> Result<RunCharge, BackendError> {
        let shapes: SmallVec<[&Shape; 4]> = inputs.iter().map(Tensor::shape).collect();
        let Some(known) = self.model.output_shapes(&shapes) else {
            let slot = |&index: &usize| OutputSlot::new(self.interface.outputs[index].position);
            slots.extend(wanted.iter().map(slot));
            return Ok(RunCharge::default());
        };
        let of = |&index: &usize| {
            let port = &self.interface.outputs[index];
            (port.position, port.config.datatype, &known[port.position])
        };
        let bytes = wanted.iter().map(of).map(|(_, datatype, shape)| {
            let size = datatype.element_size().unwrap_or(0) as u64;
            (shape.element_count() as u64).saturating_mul(size)
        });
        // Before any memory is taken: the system lends more than it has.
        let charge = self.bound.admit(bytes.fold(0, u64::saturating_add))?;
        for (position, datatype, shape) in wanted.iter().map(of) {
            slots.push(OutputSlot::prepared(position, datatype, shape.clone())?);
        }
        Ok(charge)
    }

    /// The outputs of each job, in the order that its client wants.
    fn split_outputs(
        &self,
        slots: Slots,
        wanted: &[usize],
        jobs: &[Box<Job>],
    ) -> Result<SmallVec<[Vec<NamedTensor>; 4]>, RuntimeError> {
        // By interface output index; empty where nobody wants it.
        let mut parts: SmallVec<[BatchParts; 4]> = SmallVec::new();
        parts.resize(self.interface.outputs.len(), BatchParts::new());
        for (slot, &index) in slots.into_iter().zip(wanted) {
            let port = &self.interface.outputs[index];
            let tensor = slot.into_tensor().ok_or_else(|| {
                RuntimeError::internal(format!(
                    "model `{}` gave no output `{}`",
                    self.interface.model, port.name
                ))
            })?;
            let ragged = self.interface.ragged.as_ref();
            parts[index] = match ragged.and_then(|ragged| ragged.scattered_by(index)) {
                Some(source) => self.scatter(&tensor, index, source, jobs)?,
                None => self.parts(self.client_shape(tensor, index)?, index, jobs)?,
            };
        }
        let named = |index: usize, position: usize| NamedTensor {
            name: Arc::clone(&self.interface.outputs[index].name),
            tensor: parts[index][position].clone(),
        };
        let answers = jobs.iter().enumerate().map(|(position, job)| {
            let outputs = job.prepared.outputs.iter();
            outputs.map(|&index| named(index, position)).collect()
        });
        Ok(answers.collect())
    }

    /// An output's part of each job.
    fn parts(
        &self,
        tensor: Tensor,
        index: usize,
        jobs: &[Box<Job>],
    ) -> Result<BatchParts, RuntimeError> {
        let sizes: SmallVec<[usize; 8]> = jobs.iter().map(|job| job.prepared.batch_size).collect();
        let whole = self.interface.max_batch_size == 0
            || (jobs.len() == 1 && tensor.shape().dims().first() == sizes.first());
        if whole {
            return Ok(SmallVec::from_buf([tensor]));
        }
        split(&tensor, &sizes)
            .map(SmallVec::from_vec)
            .map_err(|error| self.wrong_output(index, &format!("{error}\n{NO_BATCHES}")))
    }

    /// The part of each job of an output that has the shapes of an input.
    fn scatter(
        &self,
        tensor: &Tensor,
        index: usize,
        source: usize,
        jobs: &[Box<Job>],
    ) -> Result<BatchParts, RuntimeError> {
        let config = &self.interface.outputs[index].config;
        if tensor.datatype() != config.datatype {
            let text = format!(
                "the model gave {}, the configuration says {}",
                tensor.datatype(),
                config.datatype
            );
            return Err(self.wrong_output(index, &text));
        }
        let shapes = jobs.iter().map(|job| job.prepared.inputs[source].shape());
        let shapes: SmallVec<[&Shape; 8]> = shapes.collect();
        ragged::scatter(tensor, &config.full_dims(), &shapes)
            .map_err(|error| self.wrong_output(index, &error))
    }

    /// Gives an output the shape that clients see. One of another shape than the configuration says keeps its own, as on
    /// Triton: files are often wrong about shapes, and clients go by those of answers.
    fn client_shape(&self, tensor: Tensor, index: usize) -> Result<Tensor, RuntimeError> {
        let port = &self.interface.outputs[index];
        let config = &port.config;
        if tensor.datatype() != config.datatype {
            let (got, expected) = (tensor.datatype(), config.datatype);
            let text = format!("the model gave {got}, the configuration says {expected}");
            return Err(self.wrong_output(index, &text));
        }
        let dims = tensor.shape().dims();
        let (batch, inner) = dims.split_at(usize::from(config.batched).min(dims.len()));
        let shape = match &config.reshape {
            _ if !config.model_dims().accepts(inner) => None,
            None => return Ok(tensor),
            Some(reshape) => reshaped(reshape, &config.dims, batch, inner),
        };
        if let Some(shape) = shape
            && let Ok(shaped) = tensor.clone().reshape(shape)
        {
            return Ok(shaped);
        }
        // A scalar is a tensor of one element to clients.
        if dims.is_empty()
            && !config.batched
            && let Ok(shape) = Shape::new(&[1])
            && let Ok(one) = tensor.clone().reshape(shape)
        {
            if !config.dims.accepts(&[1]) {
                self.say_other_shape(port, tensor.shape());
            }
            return Ok(one);
        }
        self.say_other_shape(port, tensor.shape());
        Ok(tensor)
    }

    /// Says once that the model gives an output another shape than the configuration says.
    fn say_other_shape(&self, port: &InterfaceTensor, shape: &Shape) {
        if port.other_shape_said.swap(true, Ordering::Relaxed) {
            return;
        }
        let (name, model) = (&port.name, &self.interface.model);
        let expected = port.config.full_dims();
        tracing::warn!(
            "output `{name}` of model `{model}` has shape {shape}, expected {expected}: clients get the shape that the model gives; \
             write -1 in the configuration's dims for what varies"
        );
    }

    fn wrong_output(&self, index: usize, what: &str) -> RuntimeError {
        let name = &self.interface.outputs[index].name;
        RuntimeError::internal(format!(
            "output `{name}` of model `{}`: {what}",
            self.interface.model
        ))
    }

    fn answer(
        &self,
        waiters: Waiters,
        jobs: &[Box<Job>],
        executed: ExecutedBatch,
        size: usize,
        end: BatchEnd,
    ) {
        // Before the answers, so that statistics never lag behind what a client has seen.
        let arrivals = waiters.iter().map(|waiter| waiter.arrived);
        let is_too_slow = self
            .recorder
            .executed(size, Some(end), &executed.at, arrivals);
        if is_too_slow {
            tracing::warn!(
                "instance `{}`: executions of one inference take longer than `slo_latency_ms` allows, the last one {:.3} ms: requests will be late or given up",
                self.name,
                executed.at.ended.since(executed.at.taken).as_secs_f64() * 1e3
            );
        }
        let charged = charge_outputs(jobs, &executed.answers);
        let at = executed.at;
        for ((waiter, job), outputs) in waiters.into_iter().zip(jobs).zip(executed.answers) {
            let timing = Timing {
                queue: at.taken.since(waiter.arrived),
                compute_input: at.gathered.since(at.taken),
                compute_infer: at.ran.since(at.gathered),
                compute_output: at.ended.since(at.ran),
                batch_size: size,
                batch_end: end.name(),
            };
            let response = charged.clone().map(|shared| InferResponse {
                model: self.interface.model.clone(),
                version: self.interface.version,
                outputs,
                timing: Some(timing),
                parameters: Vec::new(),
                charge: shared.or_else(|| job.prepared.charge.clone()),
            });
            self.driver.answer(waiter, response);
        }
    }

    /// Answers a failed batch; when that was.
    fn fail(&self, waiters: Waiters, end: BatchEnd, error: &RuntimeError, taken: Time) -> Time {
        let ended = clock::now();
        self.recorder.gave_up(end, taken, ended);
        self.driver.fail(waiters, error, ended);
        if error.kind() == ErrorKind::Exhausted {
            // What it had until then lies in the heaps.
            give_back_freed_memory();
        }
        ended
    }

    /// Runs a warm-up request before the instance is ready; it counts in the statistics, as on Triton.
    pub(crate) fn warm_up(
        &self,
        instance: &mut dyn Instance,
        prepared: Prepared,
    ) -> Result<(), RuntimeError> {
        let size = prepared.batch_size;
        let executed = self.execute_alone(instance, prepared)?;
        self.recorder
            .executed(size, None, &executed.at, std::iter::once(executed.at.taken));
        Ok(())
    }

    /// Runs a request that nobody sent and that counts nowhere; how long it took.
    pub(crate) fn try_out(
        &self,
        instance: &mut dyn Instance,
        prepared: Prepared,
    ) -> Result<Duration, RuntimeError> {
        let executed = self.execute_alone(instance, prepared)?;
        Ok(executed.at.ended.since(executed.at.taken))
    }

    /// Executes one request outside of serving, in its turn among the models that share the device; a panic is an error.
    fn execute_alone(
        &self,
        instance: &mut dyn Instance,
        prepared: Prepared,
    ) -> Result<ExecutedBatch, RuntimeError> {
        let _occupied = self.driver.occupy();
        let taken = clock::now();
        let (reply, _) = tokio::sync::oneshot::channel();
        let jobs = [Job::new(prepared, reply, taken)];
        self.watch.begin(taken, Waiters::new(), None);
        let executed = catch_unwind(AssertUnwindSafe(|| self.execute(instance, &jobs, taken)));
        let ended = self.watch.end();
        match executed {
            Ok(executed) => match ended {
                Some(EndedRun { told: None, .. }) => executed,
                Some(EndedRun {
                    told: Some(reason), ..
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
/// Charges the memory of a batch's outputs before anybody waits for the answers to be read. That of one request is added
/// to its own charge; that of several lies in one piece, which lasts as long as any of their answers: its charge, which is
/// returned, does too.
fn charge_outputs(
    jobs: &[Box<Job>],
    answers: &[Vec<NamedTensor>],
) -> Result<Option<Arc<Charge>>, RuntimeError> {
    let Some(charge) = jobs.first().and_then(|job| job.prepared.charge.as_ref()) else {
        return Ok(None);
    };
    let outputs = answers.iter().flatten();
    let bytes = outputs.map(|output| output.tensor.data().len()).sum();
    let (shared, added) = if let [_] = jobs {
        (None, charge.add(bytes))
    } else {
        let shared = Arc::new(charge.sibling());
        let added = shared.add(bytes);
        (Some(shared), added)
    };
    added.map(|()| shared).map_err(|over| {
        RuntimeError::new(
            ErrorKind::Full,
            format!("the memory of requests is full, try again later: {over}"),
        )
    })
}

//! An instance at work: one thread, one executable copy of the model.
//!
//! Gather (one copy; none for a batch of one), execute, split (no copy), answer. A panic or an error of the backend
//! answers its batch only; after a panic the executable copy is thrown away and made anew, and so is one that says that it
//! is lost: at once, and after further losses ever later.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use skep_backend::{Instance, Model, OutputSlot, panic_text};
use skep_scheduler::{BatchEnd, InstanceId};
use skep_tensor::{Tensor, TensorView, gather, split};
use skep_types::{Shape, Time};
use smallvec::SmallVec;

use crate::{
    FailureReason, InferResponse, NamedTensor, RuntimeError,
    back_off::BackOff,
    clock,
    driver::{Driver, Work},
    job::Job,
    ragged,
    recorder::{Execution, Recorder},
    validate::{Prepared, reshaped},
    version::{Absent, Interface},
};

/// Everything that an instance's thread needs.
pub(crate) struct Worker {
    pub(crate) id: InstanceId,
    /// Triton's name for it, `<model>_<group>_<index>`.
    pub(crate) name: String,
    pub(crate) model: Arc<dyn Model>,
    pub(crate) interface: Arc<Interface>,
    pub(crate) driver: Arc<Driver>,
    pub(crate) recorder: Arc<Recorder>,
}

/// The jobs of a batch; one is the usual number under light load.
type Jobs = SmallVec<[Box<Job>; 4]>;

/// A batch's output, a part a job.
type Parts = SmallVec<[Tensor; 1]>;

/// A batch's answers, and when each phase ended.
struct Executed {
    /// The outputs of each job, in the order that its client wants.
    answers: SmallVec<[Vec<NamedTensor>; 4]>,
    at: Execution,
}

/// What became of the executable copy with a batch.
enum End {
    /// It can run the next one; when it had answered this one.
    Ready(Time),
    Panicked,
    /// What it ran in is gone.
    Lost,
}

impl Worker {
    /// Makes the executable copy; a backend's panic is an error.
    pub(crate) fn instantiate(&self) -> Result<Box<dyn Instance>, RuntimeError> {
        let made = catch_unwind(AssertUnwindSafe(|| Arc::clone(&self.model).instance()));
        match made {
            Ok(result) => result.map_err(Into::into),
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
        first: Option<Work>,
        mailbox: &Receiver<Work>,
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
                // It ended while it had nothing to do, which costs no request. Where it cannot be made anew the run says why.
                self.was_made_anew();
                back_off.started(taken);
                instance = renewed;
            }
            let end = self.run_and_answer(&mut *instance, &mut batch, taken);
            if let End::Ready(ended) = end {
                next = self.driver.finished(self.id, taken, ended, batch.requests);
                continue;
            }
            if !self.driver.gone(self.id, taken) {
                return;
            }
            if matches!(end, End::Panicked) {
                let Some(restarted) = self.restart() else {
                    return self.driver.give_up(self.id);
                };
                instance = restarted;
            } else {
                drop(instance);
                let Some(replaced) = self.replace(mailbox, &mut back_off) else {
                    return;
                };
                instance = replaced;
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

    /// Makes a lost copy anew, however often that takes; `None` when the instance was taken away meanwhile.
    fn replace(
        &self,
        mailbox: &Receiver<Work>,
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
                    self.was_made_anew();
                    back_off.started(clock::now());
                    return Some(instance);
                }
                Err(error) => {
                    tracing::error!("instance `{}` cannot be made anew yet: {error}", self.name);
                }
            }
        }
    }

    fn was_made_anew(&self) {
        tracing::warn!("instance `{}` was made anew", self.name);
        self.recorder.restarted();
    }

    /// Runs a batch taken at `taken` and answers each of its requests.
    fn run_and_answer(&self, instance: &mut dyn Instance, batch: &mut Work, taken: Time) -> End {
        self.recorder.began(taken);
        let (size, end) = (batch.size(), batch.end);
        let jobs: Jobs = batch
            .requests
            .drain(..)
            .map(|request| request.payload)
            .collect();
        let result = catch_unwind(AssertUnwindSafe(|| self.execute(instance, &jobs, taken)));
        match result {
            Ok(Ok(executed)) => {
                let ended = executed.at.ended;
                self.answer(jobs, executed, size, end);
                End::Ready(ended)
            }
            Ok(Err(error)) => {
                let ended = self.fail(jobs, end, &error, taken);
                if instance.is_lost() {
                    End::Lost
                } else {
                    End::Ready(ended)
                }
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                tracing::error!("instance `{}` panicked: {text}", self.name);
                self.fail(
                    jobs,
                    end,
                    &RuntimeError::internal(format!("instance `{}` panicked: {text}", self.name)),
                    taken,
                );
                End::Panicked
            }
        }
    }

    fn execute(
        &self,
        instance: &mut dyn Instance,
        jobs: &[Box<Job>],
        taken: Time,
    ) -> Result<Executed, RuntimeError> {
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
        let mut slots = self.slots(inputs, &wanted);
        let views: SmallVec<[TensorView<'_>; 4]> = inputs.iter().map(Tensor::view).collect();
        let run = instance.execute(&views, &mut slots);
        if let Some(memory) = instance.memory() {
            self.recorder.took(memory);
        }
        run?;
        let ran = clock::now();
        let answers = self.split_outputs(slots, &wanted, jobs)?;
        let at = Execution {
            taken,
            gathered,
            ran,
            ended: clock::now(),
        };
        Ok(Executed { answers, at })
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
        gather(&parts).map_err(|error| RuntimeError::internal(error.to_string()))
    }

    /// Whether the model's graph has a value of its own for an input.
    fn has_default(&self, position: usize) -> bool {
        self.interface.inputs.iter().any(|port| {
            port.position == position && matches!(port.absent, Some(Absent::Default(_)))
        })
    }

    /// Interface indices of the outputs that any request wants.
    fn wanted(&self, jobs: &[Box<Job>]) -> SmallVec<[usize; 4]> {
        let all = 0..self.interface.outputs.len();
        all.filter(|index| jobs.iter().any(|job| job.prepared.outputs.contains(index)))
            .collect()
    }

    fn slots(&self, inputs: &[Tensor], wanted: &[usize]) -> SmallVec<[OutputSlot; 4]> {
        let shapes: SmallVec<[&Shape; 4]> = inputs.iter().map(Tensor::shape).collect();
        let known = self.model.output_shapes(&shapes);
        let slot = |&index: &usize| {
            let port = &self.interface.outputs[index];
            match &known {
                Some(shapes) => OutputSlot::prepared(
                    port.position,
                    port.config.datatype,
                    shapes[port.position].clone(),
                ),
                None => OutputSlot::new(port.position),
            }
        };
        wanted.iter().map(slot).collect()
    }

    /// The outputs of each job, in the order that its client wants.
    fn split_outputs(
        &self,
        slots: SmallVec<[OutputSlot; 4]>,
        wanted: &[usize],
        jobs: &[Box<Job>],
    ) -> Result<SmallVec<[Vec<NamedTensor>; 4]>, RuntimeError> {
        // By interface output index; empty where nobody wants it.
        let mut parts: SmallVec<[Parts; 4]> = SmallVec::new();
        parts.resize(self.interface.outputs.len(), Parts::new());
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
    ) -> Result<Parts, RuntimeError> {
        let sizes: SmallVec<[usize; 8]> = jobs.iter().map(|job| job.prepared.batch_size).collect();
        let whole = self.interface.max_batch_size == 0
            || (jobs.len() == 1 && tensor.shape().dims().first() == sizes.first());
        if whole {
            return Ok(SmallVec::from_buf([tensor]));
        }
        split(&tensor, &sizes)
            .map(SmallVec::from_vec)
            .map_err(|error| self.wrong_output(index, &error.to_string()))
    }

    /// The part of each job of an output that has the shapes of an input.
    fn scatter(
        &self,
        tensor: &Tensor,
        index: usize,
        source: usize,
        jobs: &[Box<Job>],
    ) -> Result<Parts, RuntimeError> {
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

    /// Checks an output against the configuration and gives it the shape that clients see.
    fn client_shape(&self, tensor: Tensor, index: usize) -> Result<Tensor, RuntimeError> {
        let config = &self.interface.outputs[index].config;
        let dims = tensor.shape().dims();
        let (batch, inner) = dims.split_at(usize::from(config.batched).min(dims.len()));
        if tensor.datatype() != config.datatype || !config.model_dims().accepts(inner) {
            let got = format!("the model gave {} {}", tensor.datatype(), tensor.shape());
            return Err(self.wrong_output(
                index,
                &format!(
                    "{got}, the configuration says {} {}",
                    config.datatype,
                    config.full_dims()
                ),
            ));
        }
        let Some(reshape) = &config.reshape else {
            return Ok(tensor);
        };
        reshaped(reshape, &config.dims, batch, inner)
            .and_then(|shape| tensor.reshape(shape).ok())
            .ok_or_else(|| self.wrong_output(index, "its shape cannot be reshaped to dims"))
    }

    fn wrong_output(&self, index: usize, what: &str) -> RuntimeError {
        let name = &self.interface.outputs[index].name;
        RuntimeError::internal(format!(
            "output `{name}` of model `{}`: {what}",
            self.interface.model
        ))
    }

    fn answer(&self, jobs: Jobs, executed: Executed, size: usize, end: BatchEnd) {
        // Before the answers, so that statistics never lag behind what a client has seen.
        let arrivals = jobs.iter().map(|job| job.arrived);
        self.recorder
            .executed(size, Some(end), &executed.at, arrivals);
        for (job, outputs) in jobs.into_iter().zip(executed.answers) {
            let response = InferResponse {
                model: self.interface.model.clone(),
                version: self.interface.version,
                outputs,
                parameters: Vec::new(),
                charge: job.prepared.charge.clone(),
            };
            self.driver.answer(job, Ok(response));
        }
    }

    /// Answers a failed batch; when that was.
    fn fail(&self, jobs: Jobs, end: BatchEnd, error: &RuntimeError, taken: Time) -> Time {
        let ended = clock::now();
        self.recorder.gave_up(end, taken, ended);
        for job in jobs {
            let total = ended.since(job.arrived);
            self.driver
                .statistics()
                .failed(FailureReason::Backend, total);
            self.driver.answer(job, Err(error.clone()));
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
    ) -> Result<Executed, RuntimeError> {
        let _occupied = self.driver.occupy();
        let taken = clock::now();
        let (reply, _) = tokio::sync::oneshot::channel();
        let jobs = [Job::new(prepared, reply, taken)];
        catch_unwind(AssertUnwindSafe(|| self.execute(instance, &jobs, taken))).map_err(
            |panic| {
                RuntimeError::internal(format!("the backend panicked: {}", panic_text(&*panic)))
            },
        )?
    }
}

//! An instance at work: one thread, one executable copy of the model.
//!
//! Gather (one copy; none for a batch of one), execute, split (no copy), answer. A panic or an error of the backend
//! answers its batch only; after a panic the executable copy is thrown away and made anew.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc::Receiver},
};

use skep_backend::{Instance, Model, OutputSlot};
use skep_scheduler::{Batch, InstanceId};
use skep_tensor::{Tensor, TensorView, gather, split};
use skep_types::{Shape, Time};
use smallvec::SmallVec;

use crate::{
    FailureReason, InferResponse, NamedTensor, RuntimeError, clock,
    driver::{Driver, Job},
    recorder::{Execution, Recorder},
    validate::{Prepared, reshaped},
    version::Interface,
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

/// A batch's outputs, and when each phase ended.
struct Executed {
    /// By interface output index; `None` where nobody wants it.
    outputs: SmallVec<[Option<Vec<Tensor>>; 4]>,
    at: Execution,
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
                text(&*panic)
            ))),
        }
    }

    /// Serves batches until the mailbox closes, `first` before any. The instance has been declared ready.
    pub(crate) fn serve(
        &self,
        instance: Box<dyn Instance>,
        first: Option<Batch<Job>>,
        mailbox: &Receiver<Batch<Job>>,
    ) {
        let mut instance = Some(instance);
        let mut next = first;
        while let Some(current) = &mut instance {
            let Some(batch) = next.take().or_else(|| mailbox.recv().ok()) else {
                return;
            };
            let began = clock::now();
            if self.run_and_answer(&mut **current, batch) {
                next = self.driver.finished(self.id, clock::now().since(began));
            } else {
                self.driver.gone(self.id);
                instance = self.restart();
                if instance.is_some() {
                    next = self.driver.ready(self.id);
                }
            }
        }
        self.driver.give_up();
    }

    fn restart(&self) -> Option<Box<dyn Instance>> {
        match self.instantiate() {
            Ok(instance) => {
                tracing::warn!("instance `{}` was restarted after a panic", self.name);
                Some(instance)
            }
            Err(error) => {
                tracing::error!("instance `{}` cannot be restarted: {error}", self.name);
                None
            }
        }
    }

    /// Runs a batch and answers each of its requests; `false` if the backend panicked.
    fn run_and_answer(&self, instance: &mut dyn Instance, batch: Batch<Job>) -> bool {
        let taken = clock::now();
        self.recorder.began(taken);
        let size = batch.size();
        let jobs: SmallVec<[Job; 4]> = batch
            .requests
            .into_iter()
            .map(|request| request.payload)
            .collect();
        let result = catch_unwind(AssertUnwindSafe(|| self.execute(instance, &jobs, taken)));
        match result {
            Ok(Ok(executed)) => {
                self.answer(jobs, executed, size);
                true
            }
            Ok(Err(error)) => {
                self.fail(jobs, &error, taken);
                true
            }
            Err(panic) => {
                let text = text(&*panic);
                tracing::error!("instance `{}` panicked: {text}", self.name);
                self.fail(
                    jobs,
                    &RuntimeError::internal(format!("instance `{}` panicked: {text}", self.name)),
                    taken,
                );
                false
            }
        }
    }

    fn execute(
        &self,
        instance: &mut dyn Instance,
        jobs: &[Job],
        taken: Time,
    ) -> Result<Executed, RuntimeError> {
        let mut inputs: SmallVec<[Tensor; 4]> = SmallVec::new();
        for index in 0..self.interface.inputs.len() {
            inputs.push(gather_input(jobs, index)?);
        }
        let gathered = clock::now();
        let wanted = self.wanted(jobs);
        let mut slots = self.slots(&inputs, &wanted);
        let views: SmallVec<[TensorView<'_>; 4]> = inputs.iter().map(Tensor::view).collect();
        instance.execute(&views, &mut slots)?;
        let ran = clock::now();
        let outputs = self.split_outputs(slots, &wanted, jobs)?;
        let at = Execution {
            taken,
            gathered,
            ran,
            ended: clock::now(),
        };
        Ok(Executed { outputs, at })
    }

    /// Interface indices of the outputs that any request wants.
    fn wanted(&self, jobs: &[Job]) -> SmallVec<[usize; 4]> {
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

    fn split_outputs(
        &self,
        slots: SmallVec<[OutputSlot; 4]>,
        wanted: &[usize],
        jobs: &[Job],
    ) -> Result<SmallVec<[Option<Vec<Tensor>>; 4]>, RuntimeError> {
        let mut outputs: SmallVec<[Option<Vec<Tensor>>; 4]> = SmallVec::new();
        outputs.resize(self.interface.outputs.len(), None);
        let sizes: SmallVec<[usize; 4]> = jobs.iter().map(|job| job.prepared.batch_size).collect();
        for (slot, &index) in slots.into_iter().zip(wanted) {
            let port = &self.interface.outputs[index];
            let tensor = slot.into_tensor().ok_or_else(|| {
                RuntimeError::internal(format!(
                    "model `{}` gave no output `{}`",
                    self.interface.model, port.name
                ))
            })?;
            let tensor = self.client_shape(tensor, index)?;
            let parts = if self.interface.max_batch_size == 0 {
                vec![tensor]
            } else {
                split(&tensor, &sizes)
                    .map_err(|error| self.wrong_output(index, &error.to_string()))?
            };
            outputs[index] = Some(parts);
        }
        Ok(outputs)
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

    fn answer(&self, jobs: SmallVec<[Job; 4]>, mut executed: Executed, size: usize) {
        // Before the answers, so that statistics never lag behind what a client has seen.
        let arrivals = jobs.iter().map(|job| job.arrived);
        self.recorder.executed(size, &executed.at, arrivals);
        for (position, job) in jobs.into_iter().enumerate() {
            let mut outputs = Vec::with_capacity(job.prepared.outputs.len());
            for &index in &job.prepared.outputs {
                let parts = executed.outputs[index]
                    .as_mut()
                    .map(|parts| parts[position].clone());
                let name = Arc::clone(&self.interface.outputs[index].name);
                outputs.extend(parts.map(|tensor| NamedTensor { name, tensor }));
            }
            let model = self.interface.model.clone();
            let response = InferResponse {
                model,
                version: self.interface.version,
                outputs,
            };
            // A client that went away meanwhile is nobody's loss.
            drop(job.reply.send(Ok(response)));
        }
    }

    fn fail(&self, jobs: SmallVec<[Job; 4]>, error: &RuntimeError, taken: Time) {
        let ended = clock::now();
        self.recorder.gave_up(taken, ended);
        for job in jobs {
            let total = ended.since(job.arrived);
            self.driver
                .statistics()
                .failed(FailureReason::Backend, total);
            job.fail(error.clone());
        }
    }

    /// Runs a warm-up request before the instance is ready; it counts in the statistics, as on Triton.
    pub(crate) fn warm_up(
        &self,
        instance: &mut dyn Instance,
        prepared: Prepared,
    ) -> Result<(), RuntimeError> {
        let taken = clock::now();
        let size = prepared.batch_size;
        let (reply, _) = tokio::sync::oneshot::channel();
        let jobs = [Job {
            prepared,
            reply,
            arrived: taken,
        }];
        let executed = catch_unwind(AssertUnwindSafe(|| self.execute(instance, &jobs, taken)))
            .map_err(|panic| {
            RuntimeError::internal(format!("the backend panicked: {}", text(&*panic)))
        })??;
        self.recorder
            .executed(size, &executed.at, std::iter::once(taken));
        Ok(())
    }
}

fn gather_input(jobs: &[Job], index: usize) -> Result<Tensor, RuntimeError> {
    if let [job] = jobs {
        return Ok(job.prepared.inputs[index].clone());
    }
    let parts: SmallVec<[Tensor; 8]> = jobs
        .iter()
        .map(|job| job.prepared.inputs[index].clone())
        .collect();
    gather(&parts).map_err(|error| RuntimeError::internal(error.to_string()))
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text")
}
